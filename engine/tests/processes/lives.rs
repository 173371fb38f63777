//! Peers that die, freeze, come back, and change what they have registered, while others use it.

use crate::alone;
use crate::cluster::{Cluster, Kind, LOCAL, READ_WRITE, eventually, filled, request, request_to};
use crate::order::{BatchOrder, Follow, Order, Setup};

const LEN: usize = 256 << 10;
/// Where restarted processes have their memory again.
const PLACE: u64 = 0x7100_0000_0000;

fn order(requests: Vec<crate::order::Request>, deadline_ms: u64) -> BatchOrder {
    BatchOrder { requests, follow: Follow::Wait, deadline_ms: Some(deadline_ms), notify: None }
}

/// A process dies under traffic and comes back at the same address with its memory at the same place. Requests for its former life
/// fail, and never write into the new one; the batches after that succeed, and nobody has done anything for it.
fn a_restart_heals_by_itself(test: &str, kind: Kind) {
    let Some(cluster) = Cluster::new(test, kind) else { return };
    let _alone = alone();
    let mut near = cluster.node();
    let mut far = cluster.node_with(Setup { fixed: Some(PLACE), ..kind.setup() }, true);
    far.register("pool", LEN, READ_WRITE, 1);
    near.register("staging", LEN, LOCAL, 2);
    let epoch = near.open(&far).epoch;
    let name = far.name.clone();
    let write = |at, len| vec![request_to(true, "staging", &name, "pool", at, len)];
    assert_eq!(near.run(write(0, 1000)).result, Ok(()));

    let setup = far.kill();
    let ended = near.batch(order(write(0, 1000), 3000));
    let error = ended.result.unwrap_err();
    assert!(
        error.contains(&name) || error.contains(name.rsplit(':').next().unwrap()),
        "names the peer: {error}"
    );
    assert!(ended.ms < 10_000, "it took {} ms to fail", ended.ms);

    let mut far = cluster.node_with(Setup { fixed: Some(PLACE), ..setup }, true);
    assert_eq!(far.name, name);
    far.register("pool", LEN, READ_WRITE, 3);
    // The batch after that knows nothing of it yet; at the latest the one after it goes well.
    let first = near.batch(order(write(0, LEN as u64), 10_000));
    if let Err(error) = &first.result {
        assert!(far.holds("pool", &filled(LEN, 3)), "a request for a former life has written: {error}");
        let second = near.batch(order(write(0, LEN as u64), 10_000));
        assert_eq!(second.result, Ok(()), "after {error}");
    }
    assert!(far.holds("pool", &filled(LEN, 2)));
    let view = near.view(&name);
    assert_ne!(view.epoch, epoch);
    assert!(near.peer_statistics(&name)["restarts"].as_u64() >= Some(1));
    if !kind.on_cards() {
        return;
    }
    // Over cards again, not by the way around.
    eventually("it is back on the cards", || near.view(&name).path.starts_with("efa/"));
}

#[test]
fn a_restart_heals_by_itself_over_sockets() {
    a_restart_heals_by_itself("a_restart_heals_by_itself_over_sockets", Kind::Tcp);
}

#[test]
fn a_restart_heals_by_itself_within_the_host() {
    a_restart_heals_by_itself("a_restart_heals_by_itself_within_the_host", Kind::Host);
}

#[test]
fn a_restart_heals_by_itself_over_efa_direct() {
    a_restart_heals_by_itself("a_restart_heals_by_itself_over_efa_direct", Kind::EfaDirect);
}

#[test]
fn a_restart_heals_by_itself_over_efa() {
    a_restart_heals_by_itself("a_restart_heals_by_itself_over_efa", Kind::Efa);
}

#[test]
fn a_restart_heals_by_itself_with_auto() {
    a_restart_heals_by_itself("a_restart_heals_by_itself_with_auto", Kind::Auto);
}

/// A process that freezes closes nothing and answers nothing. Requests end at their deadline, with its name; when it thaws, the
/// next ones succeed.
fn a_frozen_peer_costs_no_more_than_the_deadline(test: &str, kind: Kind) {
    let Some(cluster) = Cluster::new(test, kind) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", LEN, READ_WRITE, 1);
    near.register("staging", LEN, LOCAL, 2);
    near.open(&far);
    assert_eq!(near.run(vec![request(true, "staging", &far, "pool", 0, 1000)]).result, Ok(()));
    far.freeze();
    let ended = near.batch(order(vec![request(true, "staging", &far, "pool", 0, LEN as u64)], 1500));
    far.thaw();
    match ended.result {
        // The card needs no process at the target.
        Ok(()) => assert!(kind.on_cards(), "who has answered?"),
        Err(error) => {
            assert!(error.contains(far.name.rsplit(':').next().unwrap()), "names the peer: {error}")
        }
    }
    assert!(ended.ms < 8000, "{} ms", ended.ms);
    eventually("the next batch succeeds", || {
        near.batch(order(vec![request(true, "staging", &far, "pool", 0, LEN as u64)], 10_000)).result.is_ok()
    });
    assert!(far.holds("pool", &filled(LEN, 2)));
}

#[test]
fn a_frozen_peer_over_sockets() {
    a_frozen_peer_costs_no_more_than_the_deadline("a_frozen_peer_over_sockets", Kind::Tcp);
}

#[test]
fn a_frozen_peer_over_efa_direct() {
    a_frozen_peer_costs_no_more_than_the_deadline("a_frozen_peer_over_efa_direct", Kind::EfaDirect);
}

/// A network that lets nothing through. Requests end at their deadline; when it is whole again, the next ones succeed.
#[test]
fn a_partition_over_efa_ends_requests_and_heals() {
    let test = "a_partition_over_efa_ends_requests_and_heals";
    let Some(cluster) = Cluster::new(test, Kind::EfaDirect) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", LEN, READ_WRITE, 1);
    near.register("staging", LEN, LOCAL, 2);
    near.open(&far);
    let write = || vec![request(true, "staging", &far, "pool", 0, LEN as u64)];
    assert_eq!(near.run(write()).result, Ok(()));
    for card in 0..2 {
        cluster.fault(&format!("link card={card}"));
    }
    let ended = near.batch(order(write(), 1500));
    assert!(ended.result.is_err() && ended.ms < 8000, "{ended:?}");
    cluster.heal();
    eventually("the next batch succeeds", || near.batch(order(write(), 10_000)).result.is_ok());
    assert!(far.holds("pool", &filled(LEN, 2)));
    assert!(near.view(&far.name).path.starts_with("efa/"), "`efa` never goes another way");
}

/// One side unregisters and registers its memory again and again while the other writes to it without a pause. Each batch succeeds
/// or says that the registration has gone; after each change it goes on by itself.
fn registered_again_under_traffic(test: &str, kind: Kind) {
    let Some(cluster) = Cluster::new(test, kind) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", LEN, READ_WRITE, 1);
    near.register("staging", LEN, LOCAL, 2);
    near.open(&far);
    let name = far.name.clone();
    let write = || vec![request_to(true, "staging", &name, "pool", 0, LEN as u64)];
    let traffic = order(write(), 10_000);
    near.must(Order::Traffic(traffic));
    let done = |near: &mut crate::cluster::Node, name: &str| {
        let peer = near.peer_statistics(name);
        peer["tcp"]["requests_done"].as_u64().unwrap() + peer["fabric"]["requests_done"].as_u64().unwrap()
    };
    let failed = |near: &mut crate::cluster::Node, name: &str| {
        let peer = near.peer_statistics(name);
        peer["tcp"]["requests_failed"].as_u64().unwrap() + peer["fabric"]["requests_failed"].as_u64().unwrap()
    };
    let goes_on = |near: &mut crate::cluster::Node, what| {
        let before = done(near, &name);
        eventually(what, || done(near, &name) > before + 3);
    };
    for _ in 0..8 {
        goes_on(&mut near, "traffic goes on");
        far.must(Order::RegisterAgain("pool".into()));
        // Once it has found the new registration it loses nothing more to the change; how much before depends on the machine.
        goes_on(&mut near, "traffic goes on after a change");
        let before = failed(&mut near, &name);
        goes_on(&mut near, "traffic goes on and on");
        assert_eq!(failed(&mut near, &name), before, "a change that is over costs batches");
    }
    let (well, errors) = near.stop_traffic();
    assert!(well > 30, "{well}");
    for error in &errors {
        let known = ["key", "revoked", "registered", "stale", "no buffer"];
        assert!(known.iter().any(|word| error.contains(word)), "{error}");
    }
    assert_eq!(near.run(write()).result, Ok(()));
    assert!(far.holds("pool", &filled(LEN, 2)));
}

#[test]
fn registered_again_under_traffic_over_sockets() {
    registered_again_under_traffic("registered_again_under_traffic_over_sockets", Kind::Tcp);
}

#[test]
fn registered_again_under_traffic_within_the_host() {
    registered_again_under_traffic("registered_again_under_traffic_within_the_host", Kind::Host);
}

#[test]
fn registered_again_under_traffic_over_efa_direct() {
    registered_again_under_traffic("registered_again_under_traffic_over_efa_direct", Kind::EfaDirect);
}

/// Shutting down lets running requests finish, and later ones fail; the other side loses nothing.
#[test]
fn a_graceful_end_loses_nothing() {
    let _alone = alone();
    let Some(cluster) = Cluster::new("a_graceful_end_loses_nothing", Kind::Tcp) else { return };
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", 8 << 20, READ_WRITE, 1);
    near.register("staging", 8 << 20, LOCAL, 2);
    near.open(&far);
    near.must(Order::Batch(BatchOrder {
        requests: vec![request(true, "staging", &far, "pool", 0, 8 << 20)],
        follow: Follow::Drop,
        deadline_ms: None,
        notify: Some(b"done".to_vec()),
    }));
    near.must(Order::Shutdown { wait_ms: 10_000 });
    assert!(far.holds("pool", &filled(8 << 20, 2)), "a request that was running has been lost");
}

/// Retries, failures and moves of a node's requests to a peer so far.
fn trouble(node: &mut crate::cluster::Node, peer: &str) -> Vec<Option<u64>> {
    let statistics = node.peer_statistics(peer);
    let of = |value: &serde_json::Value| value.as_u64();
    vec![
        of(&statistics["retries"]),
        of(&statistics["fabric"]["requests_failed"]),
        of(&statistics["requests_moved"]),
        of(&statistics["failovers"]),
    ]
}

fn descriptor(node: &mut crate::cluster::Node) -> Option<u64> {
    node.statistics()["descriptor"].as_u64()
}

/// A card of a node fails so that its endpoint has to be opened again, under another address. Its peers hear of it by themselves and
/// before they fail: those that it has opened, and those that have only opened it.
///
/// Catches: a descriptor that changes and nobody is told, so that peers send to an address that is nobody's.
fn peers_hear_of_an_endpoint_that_was_opened_again(test: &str, kind: Kind) {
    let Some(cluster) = Cluster::new(test, kind) else { return };
    let _alone = alone();
    let (mut far, mut near, mut asker) = (cluster.node(), cluster.node(), cluster.node());
    for node in [&mut far, &mut near, &mut asker] {
        node.register("pool", LEN, READ_WRITE, 1);
    }
    far.open(&near);
    near.open(&far);
    asker.open(&far);
    let write = |to: &str| vec![request_to(true, "pool", to, "pool", 0, LEN as u64)];
    let names = [far.name.clone(), near.name.clone()];
    assert_eq!(far.run(write(&names[1])).result, Ok(()));
    for node in [&mut near, &mut asker] {
        assert_eq!(node.run(write(&names[0])).result, Ok(()));
    }
    // Its next write over either card is told that the queue pair has stopped working.
    let before = descriptor(&mut far);
    cluster.fault("fail status=1 op=write nth=1");
    assert_eq!(far.batch(order(write(&names[1]), 20_000)).result, Ok(()), "over the other card");
    cluster.heal();
    eventually("it is opened again", || {
        let nics = far.statistics()["nics"].clone();
        nics.as_array().unwrap().iter().any(|nic| nic["reopened"].as_u64() > Some(0))
    });
    assert!(descriptor(&mut far) > before);
    for node in [&mut near, &mut asker] {
        let trouble_before = trouble(node, &names[0]);
        eventually("it has heard", || {
            node.peer_statistics(&names[0])["descriptor"].as_u64() == descriptor(&mut far)
        });
        for _ in 0..4 {
            assert_eq!(node.run(write(&names[0])).result, Ok(()));
        }
        assert_eq!(trouble(node, &names[0]), trouble_before, "it has sent to where nobody is");
    }
}

#[test]
fn peers_hear_of_an_endpoint_that_was_opened_again_before_they_fail() {
    let test = "peers_hear_of_an_endpoint_that_was_opened_again_before_they_fail";
    peers_hear_of_an_endpoint_that_was_opened_again(test, Kind::EfaDirect);
}

#[test]
fn peers_hear_of_an_endpoint_of_efa_that_was_opened_again_before_they_fail() {
    let test = "peers_hear_of_an_endpoint_of_efa_that_was_opened_again_before_they_fail";
    peers_hear_of_an_endpoint_that_was_opened_again(test, Kind::Efa);
}

/// A third node has the fabric `efa` only, so that the second opens it besides. The first hears of it.
#[test]
fn peers_hear_of_a_second_fabric() {
    let test = "peers_hear_of_a_second_fabric";
    let Some(cluster) = Cluster::new(test, Kind::Auto) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    let Some(mut old) = cluster.older_node(test) else { return };
    for node in [&mut far, &mut near, &mut old] {
        node.register("pool", LEN, READ_WRITE, 1);
    }
    near.open(&far);
    let before = descriptor(&mut far);
    old.open(&far);
    assert!(descriptor(&mut far) > before, "it has opened the other one");
    eventually("it has heard", || {
        near.peer_statistics(&far.name)["descriptor"].as_u64() == descriptor(&mut far)
    });
}

/// The provider behind fabric `efa` begins with a peer by messages of its own, and sends each once. One that is lost with a queue pair, the
/// target's answer here, is made up for by another endpoint; what waits for it is sent to that one, long before its deadline.
///
/// Catches: a request that waits for an answer which nobody will give.
#[test]
fn a_lost_answer_of_the_provider_over_efa_is_made_up_for() {
    let Some(cluster) = Cluster::new("a_lost_answer_of_the_provider_over_efa_is_made_up_for", Kind::Efa)
    else {
        return;
    };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    for node in [&mut near, &mut far] {
        node.register("pool", LEN, READ_WRITE, 1);
    }
    near.open(&far);
    let write = || vec![request(true, "pool", &far, "pool", 0, LEN as u64)];
    for rule in ["fail status=1 op=send nth=1", "fail status=2 op=send nth=1"] {
        cluster.fault(rule);
        let ended = near.batch(order(write(), 20_000));
        assert!(ended.result.is_ok() && ended.ms < 10_000, "{rule}: {ended:?}");
        cluster.heal();
    }
}

/// Messages of the provider that nobody ever gets. The card has taken nothing and will say nothing, yet a request ends at its deadline,
/// whoever follows it, and says which peer it was; when the cards are well again, the next ones succeed.
///
/// Catches: a deadline that waits for the provider.
#[test]
fn a_provider_over_efa_that_says_nothing_costs_no_more_than_the_deadline() {
    let test = "a_provider_over_efa_that_says_nothing_costs_no_more_than_the_deadline";
    let Some(cluster) = Cluster::new(test, Kind::Efa) else { return };
    let _alone = alone();
    for (rule, follow) in [
        ("hold op=send", Follow::Wait),
        ("fail status=13 op=send", Follow::Await),
        ("fail status=10 op=send", Follow::Poll),
    ] {
        let (mut near, mut far) = (cluster.node(), cluster.node());
        far.register("pool", LEN, READ_WRITE, 1);
        near.register("staging", LEN, LOCAL, 2);
        near.open(&far);
        let write = || vec![request(true, "staging", &far, "pool", 0, LEN as u64)];
        cluster.fault(rule);
        let ended = near.batch(BatchOrder { follow, ..order(write(), 500) });
        let error = ended.result.unwrap_err();
        assert!(error.contains(&far.name), "{rule}: {error}");
        // Beyond its deadline, the peer is asked what is wrong; two seconds at most.
        assert!((450..8000).contains(&ended.ms), "{rule}, {follow:?}: {} ms", ended.ms);
        assert!(ended.statuses[0].is_err());
        cluster.heal();
        eventually("the next batch succeeds", || near.batch(order(write(), 10_000)).result.is_ok());
        assert!(far.holds("pool", &filled(LEN, 2)));
    }
}
