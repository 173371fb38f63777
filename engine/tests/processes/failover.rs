//! Traffic that moves from EFA to TCP when the last card dies, and back.

use crate::alone;
use crate::cluster::{Cluster, Kind, LOCAL, READ_WRITE, eventually, filled, request, request_to};
use crate::order::{Answer, BatchOrder, Follow, Order};

const LEN: usize = 1 << 20;

fn order(requests: Vec<crate::order::Request>) -> BatchOrder {
    BatchOrder { requests, follow: Follow::Wait, deadline_ms: Some(20_000), notify: None }
}

/// All cards die in the middle of traffic: no request is lost, the path and its reason say what has happened, and when they work
/// again the traffic goes back.
#[test]
fn traffic_moves_to_tcp_when_the_last_rail_dies_and_back_when_it_heals() {
    let test = "traffic_moves_to_tcp_when_the_last_rail_dies_and_back_when_it_heals";
    let Some(cluster) = Cluster::new(test, Kind::Auto) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", LEN, READ_WRITE, 1);
    near.register("staging", LEN, LOCAL, 2);
    assert!(near.open(&far).path.starts_with("efa/"));
    let many = || -> Vec<_> {
        (0..16).map(|i| request(true, "staging", &far, "pool", i * 65_536, 65_536)).collect()
    };
    near.must(Order::Traffic(order(many())));
    eventually("traffic flows", || {
        near.peer_statistics(&far.name)["fabric"]["requests_done"].as_u64() > Some(64)
    });

    // One card is not the last.
    cluster.fault("down card=0");
    let before = near.peer_statistics(&far.name)["fabric"]["requests_done"].as_u64().unwrap();
    eventually("it goes on over the other card", || {
        near.peer_statistics(&far.name)["fabric"]["requests_done"].as_u64() > Some(before + 64)
    });
    assert!(near.view(&far.name).path.starts_with("efa/"));
    assert_eq!(near.peer_statistics(&far.name)["failovers"], 0);

    cluster.fault("down card=1");
    eventually("moved to TCP", || near.view(&far.name).path.starts_with("tcp/"));
    let view = near.view(&far.name);
    assert!(view.reason.contains("moved to TCP"), "{view:?}");
    let tcp = near.peer_statistics(&far.name)["tcp"]["requests_done"].as_u64().unwrap();
    eventually("it goes on over TCP", || {
        near.peer_statistics(&far.name)["tcp"]["requests_done"].as_u64() > Some(tcp + 64)
    });

    cluster.heal();
    eventually("moved back", || near.view(&far.name).path.starts_with("efa/"));
    let before = near.peer_statistics(&far.name)["fabric"]["requests_done"].as_u64().unwrap();
    eventually("it goes on over EFA", || {
        near.peer_statistics(&far.name)["fabric"]["requests_done"].as_u64() > Some(before + 64)
    });
    let (well, errors) = near.stop_traffic();
    assert!(errors.is_empty(), "of {well} batches and more failed: {errors:?}");
    let statistics = near.peer_statistics(&far.name);
    assert!(statistics["failovers"].as_u64() >= Some(1), "{statistics}");
    assert!(statistics["returns"].as_u64() >= Some(1), "{statistics}");
    assert_eq!(statistics["fabric"]["requests_failed"], 0, "{statistics}");
    assert!(far.holds("pool", &filled(LEN, 2)));
}

/// `efa` was asked for by name, so it fails rather than going another way.
#[test]
fn efa_never_falls_back() {
    let Some(cluster) = Cluster::new("efa_never_falls_back", Kind::EfaDirect) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", LEN, READ_WRITE, 1);
    near.register("staging", LEN, LOCAL, 2);
    near.open(&far);
    for card in 0..2 {
        cluster.fault(&format!("down card={card}"));
    }
    let ended = near.batch(order(vec![request(true, "staging", &far, "pool", 0, 65_536)]));
    assert!(ended.result.is_err(), "which way has it gone?");
    let statistics = near.peer_statistics(&far.name);
    assert_eq!((&statistics["tcp"]["requests_done"], &statistics["failovers"]), (&0.into(), &0.into()));
    assert!(near.view(&far.name).path.starts_with("efa/"));
    assert!(far.holds("pool", &filled(LEN, 1)));
    cluster.heal();
    eventually("it works again", || {
        near.batch(order(vec![request(true, "staging", &far, "pool", 0, 65_536)])).result.is_ok()
    });
}

/// A batch to three peers of which one loses its cards, one dies, and one is well: each request ends once, as it should.
#[test]
fn a_batch_over_failing_and_healthy_peers_ends_each_request_once() {
    let test = "a_batch_over_failing_and_healthy_peers_ends_each_request_once";
    let Some(cluster) = Cluster::new(test, Kind::Auto) else { return };
    let _alone = alone();
    let (mut near, mut well, mut cardless, mut dead) =
        (cluster.node(), cluster.node(), cluster.node(), cluster.node());
    for node in [&mut well, &mut cardless, &mut dead] {
        node.register("pool", LEN, READ_WRITE, 1);
    }
    near.register("staging", LEN, LOCAL, 2);
    for node in [&well, &cardless, &dead] {
        assert!(near.open(node).path.starts_with("efa/"));
    }
    let names = [well.name.clone(), cardless.name.clone(), dead.name.clone()];
    let batch = || -> Vec<_> {
        (0..12)
            .map(|i| request_to(true, "staging", &names[i % 3], "pool", i as u64 * 65_536, 65_536))
            .collect()
    };
    assert_eq!(near.run(batch()).statuses, vec![Ok(()); 12]);
    for node in [&mut well, &mut cardless, &mut dead] {
        node.must(Order::Fill { label: "pool".into(), seed: 1 });
    }
    // Hosts are numbered in the order in which they came to the network.
    for card in 0..2 {
        cluster.fault(&format!("down card={card} host=2"));
    }
    dead.kill();
    let ended = near.batch(BatchOrder { deadline_ms: Some(8000), ..order(batch()) });
    for (i, status) in ended.statuses.iter().enumerate() {
        match i % 3 {
            0 | 1 => assert_eq!(*status, Ok(()), "request {i}: {ended:?}"),
            _ => assert!(status.is_err(), "request {i} went to a dead peer: {ended:?}"),
        }
    }
    assert!(ended.result.unwrap_err().contains("4 of 12"), "the dead peer's");
    let written = |third: usize| {
        let mut pool = filled(LEN, 1);
        let staging = filled(LEN, 2);
        for i in (third..12).step_by(3) {
            pool[i * 65_536..(i + 1) * 65_536].copy_from_slice(&staging[i * 65_536..(i + 1) * 65_536]);
        }
        pool
    };
    assert!(well.holds("pool", &written(0)));
    assert!(cardless.holds("pool", &written(1)));
}

/// The card takes a write and sits on it past the deadline. When the batch says that it is quiet, it is: the target's memory, used
/// for something else by then, does not change any more.
#[test]
fn no_write_arrives_after_a_batch_was_quiesced() {
    let test = "no_write_arrives_after_a_batch_was_quiesced";
    let Some(cluster) = Cluster::new(test, Kind::Auto) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", LEN, READ_WRITE, 1);
    near.register("staging", LEN, LOCAL, 2);
    near.open(&far);
    near.must(Order::WarmUp(far.name.clone()));
    cluster.fault("hold op=write");
    let requests = vec![request(true, "staging", &far, "pool", 0, LEN as u64)];
    let ended = near.batch(BatchOrder {
        requests,
        follow: Follow::Wait,
        deadline_ms: Some(1000),
        notify: Some(b"must not come".to_vec()),
    });
    if ended.result.is_ok() {
        // It went over TCP, but only when the first attempt could do no more harm.
        assert!(far.holds("pool", &filled(LEN, 2)));
    }
    assert!(ended.quiesced, "the endpoint is reopened if need be");
    far.must(Order::Fill { label: "pool".into(), seed: 3 });
    cluster.heal();
    // Whatever was held would be let go now.
    let patience = if ended.result.is_ok() { 20_000 } else { 1000 };
    assert_eq!(far.note(patience).is_some(), ended.result.is_ok());
    assert!(far.holds("pool", &filled(LEN, 3)), "a late write");
    assert!(matches!(near.ask(Order::Probe(far.name.clone())), Answer::Ok));
}

/// One card refuses its half of a request while the other one sits on its own. The request must not go over TCP before that half can
/// do no harm: it would be overtaken, and what is written to the same place after it, too.
#[test]
fn a_request_moves_only_when_its_first_attempt_is_over() {
    let test = "a_request_moves_only_when_its_first_attempt_is_over";
    let Some(cluster) = Cluster::new(test, Kind::Auto) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", LEN, READ_WRITE, 1);
    near.register("staging", LEN, LOCAL, 2);
    near.open(&far);
    near.must(Order::WarmUp(far.name.clone()));
    cluster.fault("hold op=write card=0");
    cluster.fault("fail status=7 op=write card=1");
    let ended = near.batch(BatchOrder {
        requests: vec![request(true, "staging", &far, "pool", 0, LEN as u64)],
        follow: Follow::Wait,
        deadline_ms: Some(3000),
        notify: None,
    });
    assert!(ended.quiesced, "it has gone over TCP while the first attempt could still write: {ended:?}");
    far.must(Order::Fill { label: "pool".into(), seed: 3 });
    cluster.heal();
    // A round trip over both cards: what was held would have been let go before it.
    eventually("EFA works again", || {
        near.batch(order(vec![request(false, "staging", &far, "pool", 0, LEN as u64)])).result.is_ok()
            && near.view(&far.name).path.starts_with("efa/")
    });
    assert!(far.holds("pool", &filled(LEN, 3)), "a late write, after {ended:?}");
}
