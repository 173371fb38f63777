//! Every call, between two and between four processes, over each path.

use crate::alone;
use crate::cluster::{Cluster, Kind, LOCAL, Node, READ, READ_WRITE, filled, request, request_to};
use crate::order::{Answer, BatchOrder, Follow, Order, Request, Setup, Where};

const LEN: usize = 1 << 20;

/// What both memories should hold.
struct Model {
    near: Vec<u8>,
    far: Vec<u8>,
}

impl Model {
    fn check(&self, near: &mut Node, far: &mut Node, what: &str) {
        assert!(near.holds("staging", &self.near), "local memory differs: {what}");
        assert!(far.holds("pool", &self.far), "remote memory differs: {what}");
    }

    /// Carries a request out on the model.
    fn play(&mut self, request: &Request) {
        let bytes = |place: &Where| -> Vec<usize> {
            let spans: Vec<(u64, u64)> = match place {
                Where::Range { at, len } => vec![(*at, *len)],
                Where::Pages { page_len, at } => at.iter().map(|at| (*at, *page_len)).collect(),
                Where::Strided { at, block_len, stride, count } => {
                    (0..*count).map(|i| (at + i * stride, *block_len)).collect()
                }
                Where::Scatter(ranges) => ranges.clone(),
            };
            spans.into_iter().flat_map(|(at, len)| at as usize..(at + len) as usize).collect()
        };
        for (l, r) in bytes(&request.local.1).into_iter().zip(bytes(&request.remote.1)) {
            if request.write { self.far[r] = self.near[l] } else { self.near[l] = self.far[r] }
        }
    }
}

/// Requests of every shape, both ways; no two of them touch the same bytes.
fn shapes(far: &Node) -> Vec<Request> {
    let request = |write, local, remote| Request {
        write,
        local: ("staging".into(), local),
        segment: far.name.clone(),
        remote: ("pool".into(), remote),
        tag: None,
    };
    let pages = |base: u64, order: [u64; 4]| Where::Pages {
        page_len: 4096,
        at: order.iter().map(|page| base + page * 8192).collect(),
    };
    vec![
        request(true, Where::Range { at: 1, len: 70_001 }, Where::Range { at: 3, len: 70_001 }),
        request(true, pages(131_072, [0, 2, 1, 3]), pages(200_001, [3, 0, 1, 2])),
        request(
            true,
            Where::Range { at: 262_144, len: 100 * 256 },
            Where::Strided { at: 300_000, block_len: 256, stride: 512, count: 100 },
        ),
        request(
            false,
            Where::Scatter(vec![(400_000, 10), (400_100, 1), (400_200, 5000)]),
            Where::Range { at: 400_000, len: 5011 },
        ),
        request(
            false,
            Where::Range { at: 500_000, len: 300_000 },
            Where::Range { at: 500_007, len: 300_000 },
        ),
        request(false, pages(850_000, [1, 0, 2, 3]), Where::Range { at: 850_001, len: 4 * 4096 }),
    ]
}

fn every_call(test: &str, kind: Kind) {
    let Some(cluster) = Cluster::new(test, kind) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", LEN, READ_WRITE, 1);
    far.register("read only", 4096, READ, 2);
    near.register("staging", LEN, LOCAL, 3);
    let mut model = Model { near: filled(LEN, 3), far: filled(LEN, 1) };

    // Segments.
    let view = near.open(&far);
    assert_eq!(view.buffers.len(), 2, "{view:?}");
    near.must(Order::WarmUp(far.name.clone()));
    near.must(Order::WarmUp(far.name.clone()));
    let view = near.open(&far);
    assert!(view.path.starts_with(kind.path()), "{view:?}");
    assert!(!view.reason.is_empty());
    near.must(Order::Probe(far.name.clone()));

    // Every shape, followed in every way.
    for (round, follow) in
        [Follow::Wait, Follow::WaitUntil, Follow::Poll, Follow::Await].into_iter().enumerate()
    {
        far.must(Order::Fill { label: "pool".into(), seed: 100 + round as u64 });
        model.far = filled(LEN, 100 + round as u64);
        let requests = shapes(&far);
        requests.iter().for_each(|request| model.play(request));
        let ended = near.batch(BatchOrder { requests, follow, deadline_ms: None, notify: None });
        assert_eq!(ended.result, Ok(()), "{follow:?}");
        assert!(ended.quiesced && ended.statuses.iter().all(Result::is_ok), "{follow:?}: {ended:?}");
        model.check(&mut near, &mut far, &format!("{follow:?}"));
    }

    // What can never work is refused before anything moves.
    let denied = near.must_fail(order(vec![request(true, "staging", &far, "read only", 0, 64)]));
    assert!(denied.to_lowercase().contains("writ"), "{denied}");
    let outside = near.must_fail(order(vec![request(false, "staging", &far, "pool", LEN as u64 - 10, 64)]));
    assert!(outside.contains("refresh") || outside.contains("outside"), "{outside}");
    model.check(&mut near, &mut far, "refused requests");

    // Counting arrivals: each once, those included that came before anyone asked.
    let tagged = |at: u64| {
        let mut request = request(true, "staging", &far, "pool", at, 5000);
        request.tag = Some(7);
        request
    };
    let writes: Vec<Request> = (0..5).map(|i| tagged(i * 8192)).collect();
    writes.iter().for_each(|request| model.play(request));
    assert_eq!(near.run(writes.clone()).result, Ok(()));
    let arrivals = |far: &mut Node, near: &Node, tag, at_least, wait_ms| {
        far.number(Order::Arrivals { peer: near.name.clone(), tag, at_least, wait_ms })
    };
    assert_eq!(arrivals(&mut far, &near, 7, 5, 20_000), 5);
    assert_eq!(near.run(writes).result, Ok(()));
    assert_eq!(arrivals(&mut far, &near, 7, 10, 20_000), 10);
    assert_eq!(arrivals(&mut far, &near, 8, 1, 1), 0, "another tag");
    let stranger = far.number(Order::Arrivals { peer: "stranger:1".into(), tag: 7, at_least: 1, wait_ms: 1 });
    assert_eq!(stranger, 0, "another peer");
    model.check(&mut near, &mut far, "tagged writes");

    // Notifications: alone, in order, and when a batch has ended well.
    for number in 0..10 {
        near.must(Order::Notify { segment: far.name.clone(), payload: vec![number] });
    }
    for number in 0..10 {
        assert_eq!(far.note(20_000), Some((near.name.clone(), vec![number])));
    }
    for follow in [Follow::Wait, Follow::Poll, Follow::Await, Follow::Drop] {
        let requests = vec![request(true, "staging", &far, "pool", 0, 4096)];
        let notify = format!("{follow:?}").into_bytes();
        model.play(&requests[0]);
        near.batch(BatchOrder { requests, follow, deadline_ms: None, notify: Some(notify.clone()) });
        assert_eq!(far.note(20_000), Some((near.name.clone(), notify)), "{follow:?}");
        model.check(&mut near, &mut far, "the bytes were there before the notification");
    }
    assert_eq!(far.note(1), None);

    // Registrations: many at once, found by address, and gone again.
    near.must(Order::RegisterMany { prefix: "many-".into(), count: 20, len: 4096, access: READ_WRITE });
    let at = |near: &mut Node, label: &str, offset, len| {
        near.must(Order::RegionAt { label: label.into(), offset, len })
    };
    assert!(format!("{:?}", at(&mut near, "many-7", 96, 4000)).contains("many-7+96"));
    assert!(format!("{:?}", at(&mut near, "many-7", 97, 4000)).contains("none"));
    assert_eq!(near.statistics()["regions"], 21);
    near.must(Order::UnregisterMany { prefix: "many-".into() });
    assert_eq!(near.statistics()["regions"], 1);
    far.register("later", 8192, READ_WRITE, 9);
    near.must(Order::Refresh(far.name.clone()));
    let read = vec![request(false, "staging", &far, "later", 0, 8192)];
    assert_eq!(near.run(read).result, Ok(()));
    assert_eq!(near.bytes("staging", 0, 8192), filled(8192, 9));

    // What was done is counted, and says which way it went.
    let statistics = near.peer_statistics(&far.name);
    let (used, other) = if kind.on_cards() { ("fabric", "tcp") } else { ("tcp", "fabric") };
    assert!(statistics[used]["bytes_written"].as_u64() > Some(200_000), "{statistics}");
    assert!(statistics[used]["bytes_read"].as_u64() > Some(200_000), "{statistics}");
    assert_eq!(statistics[used]["requests_failed"], 0, "{statistics}");
    assert_eq!(statistics[other]["requests_done"], 0, "{statistics}");
    assert!(statistics["path"].as_str().unwrap().starts_with(kind.path()), "{statistics}");
    let all = near.statistics();
    if kind.on_cards() {
        let moved = |nic: &serde_json::Value| nic["bytes_written"].as_u64().unwrap_or(0);
        assert!(all["nics"].as_array().unwrap().iter().map(moved).sum::<u64>() > 200_000, "{all}");
        assert!(all["nics"][0]["page_budget"].as_u64() > Some(0), "{all}");
    }

    // The end.
    near.must(Order::Close(far.name.clone()));
    assert_eq!(near.peer_statistics(&far.name)["path"], "closed");
    near.open(&far);
    assert_eq!(near.run(vec![request(false, "staging", &far, "pool", 0, 64)]).result, Ok(()));
    near.must(Order::Shutdown { wait_ms: 5000 });
    near.must_fail(order(vec![request(false, "staging", &far, "pool", 0, 64)]));
    assert!(far.holds("pool", &model.far), "shutting down moved bytes");
}

fn order(requests: Vec<Request>) -> Order {
    Order::Batch(BatchOrder { requests, follow: Follow::Wait, deadline_ms: None, notify: None })
}

#[test]
fn every_call_over_sockets() {
    every_call("every_call_over_sockets", Kind::Tcp);
}

#[test]
fn every_call_over_encrypted_sockets() {
    every_call("every_call_over_encrypted_sockets", Kind::Encrypted);
}

#[test]
fn every_call_within_the_host() {
    every_call("every_call_within_the_host", Kind::Host);
}

#[test]
fn every_call_over_efa_direct() {
    every_call("every_call_over_efa_direct", Kind::EfaDirect);
}

#[test]
fn every_call_over_efa() {
    every_call("every_call_over_efa", Kind::Efa);
}

/// Four processes, each with a pool of four parts: everybody writes a part of its own into each other's pool, all at once, as one
/// batch over three segments; then everybody reads it back.
fn four(test: &str, kind: Kind) {
    let Some(cluster) = Cluster::new(test, kind) else { return };
    let _alone = alone();
    const PART: usize = 64 << 10;
    let mut nodes: Vec<Node> = (0..4).map(|_| cluster.node()).collect();
    for (i, node) in nodes.iter_mut().enumerate() {
        node.register("pool", 4 * PART, READ_WRITE, i as u64);
        node.register("mine", PART, LOCAL, 10 + i as u64);
        node.register("back", 4 * PART, LOCAL, 20 + i as u64);
    }
    let names: Vec<String> = nodes.iter().map(|node| node.name.clone()).collect();
    let each = |i: usize, write: bool| -> Vec<Request> {
        let others = names.iter().enumerate().filter(|(j, _)| *j != i);
        others
            .map(|(j, name)| {
                let (label, at) = if write { ("mine", 0) } else { ("back", j * PART) };
                let mut request = request_to(write, label, name, "pool", 0, PART as u64);
                request.local.1 = Where::Range { at: at as u64, len: PART as u64 };
                request.remote.1 = Where::Range { at: (i * PART) as u64, len: PART as u64 };
                request
            })
            .collect()
    };
    for write in [true, false] {
        for (i, node) in nodes.iter_mut().enumerate() {
            node.tell(&order(each(i, write)));
        }
        for node in &mut nodes {
            match node.hear() {
                Answer::Ended(ended) => {
                    assert_eq!((ended.result, ended.statuses.len()), (Ok(()), 3));
                }
                other => panic!("{other:?}"),
            }
        }
    }
    for (i, node) in nodes.iter_mut().enumerate() {
        let mut pool = filled(4 * PART, i as u64);
        let mut back = filled(4 * PART, 20 + i as u64);
        for j in (0..4).filter(|j| *j != i) {
            pool[j * PART..][..PART].copy_from_slice(&filled(PART, 10 + j as u64));
            back[j * PART..][..PART].copy_from_slice(&filled(PART, 10 + i as u64));
        }
        assert!(node.holds("pool", &pool), "pool of node {i}");
        assert!(node.holds("back", &back), "what node {i} read back");
    }
}

#[test]
fn four_processes_over_sockets() {
    four("four_processes_over_sockets", Kind::Tcp);
}

#[test]
fn four_processes_within_the_host() {
    four("four_processes_within_the_host", Kind::Host);
}

#[test]
fn four_processes_over_efa_direct() {
    four("four_processes_over_efa_direct", Kind::EfaDirect);
}

/// Three nodes with cards and one without. `auto` takes EFA where both have it and TCP where one has not, and says why; one batch
/// can go both ways. `efa` refuses the one without.
#[test]
fn a_mixed_cluster_takes_the_best_path_to_each() {
    let test = "a_mixed_cluster_takes_the_best_path_to_each";
    let Some(cluster) = Cluster::new(test, Kind::Auto) else { return };
    let _alone = alone();
    let (mut near, mut far, mut strict) =
        (cluster.node(), cluster.node(), cluster.node_with(Kind::EfaDirect.setup(), true));
    let mut plain = cluster.without_cards(Kind::Auto.setup());
    for node in [&mut near, &mut far, &mut strict, &mut plain] {
        node.register("pool", 256 << 10, READ_WRITE, 1);
        node.register("staging", 256 << 10, LOCAL, 2);
    }
    assert!(near.open(&far).path.starts_with("efa/"), "{:?}", near.open(&far));
    let over_tcp = near.open(&plain);
    assert!(over_tcp.path.starts_with("tcp/"), "{over_tcp:?}");
    assert!(over_tcp.reason.contains(&plain.name), "whose fault it is: {over_tcp:?}");
    let from_plain = plain.open(&near);
    assert!(from_plain.path.starts_with("tcp/") && from_plain.reason.contains("here"), "{from_plain:?}");
    let refused = strict.must_fail(Order::Open(plain.name.clone()));
    assert!(refused.contains("not available") && refused.contains(&plain.name), "{refused}");
    assert!(strict.open(&near).path.starts_with("efa/"));

    // One batch, two paths, a status for each request.
    let both = vec![
        request(true, "staging", &far, "pool", 100, 100_000),
        request(true, "staging", &plain, "pool", 200, 100_000),
        request(false, "staging", &far, "pool", 200_000, 5000),
        request(false, "staging", &plain, "pool", 210_000, 5000),
    ];
    let ended = near.run(both);
    assert_eq!(ended.statuses, vec![Ok(()); 4]);
    let staging = filled(256 << 10, 2);
    for (node, at) in [(&mut far, 100), (&mut plain, 200)] {
        let mut pool = filled(256 << 10, 1);
        pool[at..at + 100_000].copy_from_slice(&staging[at..at + 100_000]);
        assert!(node.holds("pool", &pool));
    }
    assert_eq!(near.peer_statistics(&far.name)["fabric"]["requests_done"], 2);
    assert_eq!(near.peer_statistics(&plain.name)["tcp"]["requests_done"], 2);
    // And the other way: without cards, and from strict to near while near talks to plain.
    assert_eq!(plain.run(vec![request(true, "staging", &near, "pool", 0, 200_000)]).result, Ok(()));
    assert_eq!(strict.run(vec![request(false, "staging", &near, "pool", 0, 200_000)]).result, Ok(()));
    assert_eq!(strict.bytes("staging", 0, 200_000), staging[..200_000]);
}

/// A node whose libfabric knows `efa` only, and two that have `efa-direct` too, all with the same settings. Catches: a fabric that is
/// chosen for the whole node, so that old and new cannot talk; one that the first round trip does not open; a path that is named wrong.
#[test]
fn old_and_new_libfabrics_in_one_cluster() {
    let test = "old_and_new_libfabrics_in_one_cluster";
    let Some(cluster) = Cluster::new(test, Kind::Auto) else { return };
    let _alone = alone();
    let Some(mut old) = cluster.older_node(test) else { return };
    let (mut near, mut far) = (cluster.node(), cluster.node());
    for node in [&mut old, &mut near, &mut far] {
        node.register("pool", 256 << 10, READ_WRITE, 1);
        node.register("staging", 256 << 10, LOCAL, 2);
    }
    assert_eq!(near.open(&far).path, "efa/efa-direct");
    // Whoever begins, one round trip is enough.
    assert_eq!(old.open(&far).path, "efa/efa", "{:?}", old.open(&far));
    assert_eq!(near.open(&old).path, "efa/efa", "{:?}", near.open(&old));
    assert_eq!(near.view(&far.name).path, "efa/efa-direct", "it stays");
    let staging = filled(256 << 10, 2);
    // Both in one batch; then the old one to both; then memory that is new since.
    let both = vec![
        request(true, "staging", &far, "pool", 100, 100_000),
        request(true, "staging", &old, "pool", 100, 100_000),
    ];
    assert_eq!(near.run(both).statuses, vec![Ok(()); 2]);
    let mut pool = filled(256 << 10, 1);
    pool[100..100_100].copy_from_slice(&staging[100..100_100]);
    for node in [&mut far, &mut old] {
        assert!(node.holds("pool", &pool));
    }
    let both = vec![
        request(true, "staging", &far, "pool", 110_000, 50_000),
        request(true, "staging", &near, "pool", 110_000, 50_000),
        request(false, "staging", &near, "pool", 0, 50_000),
    ];
    assert_eq!(old.run(both).statuses, vec![Ok(()); 3]);
    assert_eq!(far.bytes("pool", 110_000, 50_000), staging[110_000..160_000]);
    assert_eq!(near.bytes("pool", 110_000, 50_000), staging[110_000..160_000]);
    assert_eq!(old.bytes("staging", 0, 50_000), filled(256 << 10, 1)[..50_000]);
    near.register("later", 64 << 10, READ_WRITE, 3);
    old.must(Order::Refresh(near.name.clone()));
    assert_eq!(old.run(vec![request(true, "staging", &near, "later", 0, 64 << 10)]).result, Ok(()));
    // What it has read before is in the first part of its staging memory.
    let sent = [&filled(256 << 10, 1)[..50_000], &staging[50_000..64 << 10]].concat();
    assert!(near.holds("later", &sent));
    assert_eq!(
        (near.view(&old.name).path, near.view(&far.name).path),
        ("efa/efa".into(), "efa/efa-direct".into())
    );
}

/// Two cards on each side, and every source of the protocol in its turn: builder, file, and the variables in their order. The path
/// is what the first of them says.
#[test]
fn the_first_source_that_says_something_decides() {
    let test = "the_first_source_that_says_something_decides";
    let Some(cluster) = Cluster::new(test, Kind::Auto) else { return };
    let _alone = alone();
    let far = cluster.node();
    let folder = tempfile::tempdir().unwrap();
    let file = |protocol: &str| {
        let path = folder.path().join(protocol);
        std::fs::write(&path, format!("protocol = {protocol:?}")).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (tcp_file, auto_file) = (file("tcp"), file("auto"));
    type Case<'a> = (Option<&'a str>, &'a [(&'a str, &'a str)], &'a str, &'a str);
    let cases: [Case<'_>; 8] = [
        (None, &[], "efa/", "default"),
        (None, &[("MC_FORCE_TCP", "1")], "tcp/", "MC_FORCE_TCP"),
        (None, &[("MC_FORCE_TCP", "1"), ("MOONCAKE_PROTOCOL", "rdma")], "efa/", "MOONCAKE_PROTOCOL"),
        (None, &[("WEFT_PROTOCOL", "tcp"), ("MOONCAKE_PROTOCOL", "efa")], "tcp/", "WEFT_PROTOCOL"),
        (None, &[("WEFT_PROTOCOL", "efa"), ("WEFT_CONFIG", &tcp_file)], "tcp/", "configuration file"),
        (None, &[("MC_FORCE_TCP", "1"), ("WEFT_CONFIG", &auto_file)], "efa/", "configuration file"),
        (Some("efa"), &[("WEFT_PROTOCOL", "tcp"), ("WEFT_CONFIG", &tcp_file)], "efa/", "builder"),
        (Some("tcp"), &[("WEFT_PROTOCOL", "efa")], "tcp/", "builder"),
    ];
    for (builder, variables, path, source) in cases {
        let mut command = cluster.command(true);
        command.envs(variables.iter().copied());
        let setup = Setup { protocol: builder.map(str::to_owned), ..Setup::default() };
        let mut node = Node::start(command, setup);
        let view = node.open(&far);
        assert!(view.path.starts_with(path), "{builder:?} {variables:?}: {view:?}");
        let settings = match node.must(Order::Settings) {
            Answer::Text(text) => serde_json::from_str::<serde_json::Value>(&text).unwrap(),
            other => panic!("{other:?}"),
        };
        let entries = settings.as_array().unwrap();
        let protocol = entries.iter().find(|entry| entry["name"] == "protocol").unwrap();
        assert!(protocol["source"].as_str().unwrap().contains(source), "{protocol}");
    }
}

/// A registration that fails half way leaves nothing behind: no region, no page of a card, nothing that peers hear of.
#[test]
fn many_registrations_are_made_or_none() {
    let test = "many_registrations_are_made_or_none";
    let Some(cluster) = Cluster::new(test, Kind::EfaDirect) else { return };
    let _alone = alone();
    let (mut near, mut far) = (cluster.node(), cluster.node());
    far.register("pool", 8192, READ_WRITE, 1);
    let pages = |far: &mut Node| {
        let all = far.statistics();
        let nics = all["nics"].as_array().unwrap().clone();
        (all["regions"].clone(), nics.into_iter().map(|nic| nic["pages"].clone()).collect::<Vec<_>>())
    };
    let before = pages(&mut far);
    let many = || Order::RegisterMany { prefix: "m".into(), count: 10, len: 8192, access: READ_WRITE };
    cluster.fault("register errno=12 nth=9");
    let error = far.must_fail(many());
    assert!(error.contains("8192"), "{error}");
    cluster.heal();
    assert_eq!(pages(&mut far), before);
    assert_eq!(near.open(&far).buffers.len(), 1);
    far.must(many());
    near.must(Order::Refresh(far.name.clone()));
    assert_eq!(near.open(&far).buffers.len(), 11);
    far.must(Order::UnregisterMany { prefix: "m".into() });
    assert_eq!(pages(&mut far), before);
}

/// Who chose the protocol, and that each choice is carried out.
#[test]
fn the_path_is_the_one_that_was_asked_for() {
    let test = "the_path_is_the_one_that_was_asked_for";
    let _alone = alone();
    let Some(cluster) = Cluster::new(test, Kind::Auto) else { return };
    let mut auto = cluster.node();
    for (kind, path) in [(Kind::Tcp, "tcp/"), (Kind::Auto, "efa/"), (Kind::EfaDirect, "efa/")] {
        let mut node = cluster.node_with(kind.setup(), true);
        let view = node.open(&auto);
        assert!(view.path.starts_with(path), "{kind:?}: {view:?}");
        // The other side decides for itself, but cannot have what this one has not.
        assert!(auto.open(&node).path.starts_with(path), "{kind:?}");
        let settings = format!("{:?}", node.must(Order::Settings));
        assert!(settings.contains("builder"), "{settings}");
    }
}
