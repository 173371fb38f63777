//! Two transports in one process, over every provider that is here, with the copy within the process switched off.

use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric_safe::{Mapping, PageKind};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use crate::{Access, Batch, Config, Error, Op, Provider, Region, Request, Shape, Status, Transport};

const LEN: usize = 4 << 20;

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

fn open(test: &str, provider: Provider, nics: usize, name: &str) -> Option<Transport> {
    let mut config = Config::new()
        .name(name)
        .provider(provider.clone())
        .endpoints_per_nic(nics)
        .same_process_copy(false)
        .request_deadline(Duration::from_secs(10));
    if provider != Provider::Shm {
        config = config.source("127.0.0.1");
    }
    match Transport::open(config) {
        Ok(transport) => Some(transport),
        Err(error @ (Error::NoLibrary(_) | Error::NoProvider { .. })) => {
            eprintln!("SKIP: {test}: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn memory(transport: &Transport, len: usize) -> Region {
    transport.register(Arc::new(Mapping::anonymous(len, PageKind::Small).unwrap()), Access::ALL).unwrap()
}

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|i| (i as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ seed).collect()
}

/// Every way to move bytes, between two transports.
fn moves_bytes(test: &str, provider: Provider, nics: usize) {
    let Some(a) = open(test, provider.clone(), nics, "a") else { return };
    let Some(b) = open(test, provider, nics, "b") else { return };
    eprintln!("{}", a.describe());
    let (ours, theirs) = (memory(&a, LEN), memory(&b, LEN));
    let peer = a.add_or_update_peer(&b.local_descriptor()).unwrap();
    b.add_or_update_peer(&a.local_descriptor()).unwrap();
    let warm = a.warm_up(peer, soon()).unwrap();
    assert_eq!((warm.rails, warm.failed), (nics, vec![]));
    let written = |a: &Transport| a.statistics().nics.iter().map(|nic| nic.bytes_written).sum::<u64>();
    let warming = written(&a);

    let bytes = pattern(LEN, 1);
    ours.write(0, &bytes).unwrap();
    let mut batch = Batch::new();
    batch.push(Request::write(peer, &ours, ours.addr(), theirs.addr(), LEN as u64)).unwrap();
    a.submit(&mut batch).unwrap().wait().unwrap();
    let mut seen = vec![0; LEN];
    settle(|| {
        theirs.read(0, &mut seen).unwrap();
        seen == bytes
    });

    // Pages in another order, back into our memory.
    let page = 16_384;
    let there: Vec<u64> = (0..16).map(|i| theirs.addr() + (15 - i) * page).collect();
    let here = Shape::Strided { addr: ours.addr() + 1, block_len: page, stride: page + 5, count: 16 };
    let request = Request {
        op: Op::Read,
        peer,
        local: &ours,
        local_shape: here,
        remote_shape: Shape::Paged { page_len: page, addrs: &there },
        immediate: None,
    };
    ours.write(0, &vec![0; LEN]).unwrap();
    batch.push(request).unwrap();
    let handle = a.submit(&mut batch).unwrap();
    handle.wait().unwrap();
    assert!(handle.quiesced(soon()));
    let mut expected = vec![0; LEN];
    for i in 0..16_usize {
        let (to, from) = (1 + i * (page as usize + 5), (15 - i) * page as usize);
        expected[to..to + page as usize].copy_from_slice(&bytes[from..from + page as usize]);
    }
    ours.read(0, &mut seen).unwrap();
    assert!(seen == expected, "paged to strided");

    // One request fails, the other does not.
    batch.push(Request::write(peer, &ours, ours.addr(), theirs.addr() + LEN as u64 - 10, 11)).unwrap();
    batch.push(Request::write(peer, &ours, ours.addr(), theirs.addr(), 11)).unwrap();
    let handle = a.submit(&mut batch).unwrap();
    let error = handle.wait().unwrap_err();
    assert!(matches!(handle.status(0), Status::Failed(Error::NotRegistered { .. })), "{error}");
    assert!(matches!(handle.status(1), Status::Done));
    assert!(error.to_string().contains("peer b"), "{error}");
    drop(handle);

    ours.unregister(soon()).unwrap();
    assert!(matches!(ours.read(0, &mut seen), Err(Error::Unregistered { .. })));
    let statistics = a.statistics();
    assert_eq!(written(&a) - warming, LEN as u64 + 11);
    if nics > 1 {
        let most = statistics.nics.iter().map(|nic| nic.bytes_written).max().unwrap();
        assert!(most < LEN as u64 / 2, "one NIC has carried {most} of {LEN} bytes");
    }
    assert!(statistics.nics.iter().all(|nic| nic.in_flight == 0 && nic.queued == 0));
}

/// A request that is alone in its batch, with a region of its own kind on either side, in and out of bounds.
#[derive(Debug, Clone)]
struct Lone {
    op: Op,
    ours: usize,
    theirs: usize,
    local: u64,
    remote: u64,
    len: u64,
    immediate: Option<u32>,
    scattered: bool,
}

fn lone() -> impl Strategy<Value = Lone> {
    let edge = LONE as u64;
    // Mostly inside; now and then around an end.
    let at = prop_oneof![6 => 0..edge / 2, 1 => edge - 20..edge + 5];
    let len = prop_oneof![4 => 1_u64..9000, 1 => Just(1), 1 => edge / 2..edge + 10];
    let ops = prop_oneof![Just(Op::Read), Just(Op::Write)];
    let immediate = prop_oneof![4 => Just(None), 1 => any::<u32>().prop_map(Some)];
    (ops, 0..2_usize, 0..3_usize, at.clone(), at, len, immediate, prop::bool::weighted(0.2)).prop_map(
        |(op, ours, theirs, local, remote, len, immediate, scattered)| Lone {
            op,
            ours,
            theirs,
            local,
            remote,
            len,
            immediate: immediate.filter(|_| op == Op::Write),
            scattered,
        },
    )
}

/// Bytes of a region in the test below.
const LONE: usize = 1 << 20;

/// Catches: the short way of a lone request ends differently, moves other bytes, or counts differently than the way of all others.
fn lone_requests_end_alike(test: &str, provider: Provider, nics: usize) {
    let Some(a) = open(test, provider.clone(), nics, "a") else { return };
    let Some(b) = open(test, provider, nics, "b") else { return };
    let ours = [memory(&a, LONE), memory(&a, LONE)];
    let map = || Arc::new(Mapping::anonymous(LONE, PageKind::Small).unwrap());
    let theirs = [
        memory(&b, LONE),
        b.register(map(), Access::ALL.difference(Access::REMOTE_WRITE)).unwrap(),
        b.register(map(), Access::ALL.difference(Access::REMOTE_READ)).unwrap(),
    ];
    let peer = a.add_or_update_peer(&b.local_descriptor()).unwrap();
    b.add_or_update_peer(&a.local_descriptor()).unwrap();
    a.warm_up(peer, soon()).unwrap();
    let counts = || {
        let (all, its) = (a.statistics(), a.peer_statistics(peer).unwrap());
        let slices: u64 = all.nics.iter().map(|nic| nic.slices).sum();
        [all.requests_done, all.requests_failed, slices, its.slices, its.bytes_read, its.bytes_written]
    };
    let contents = |region: &Region| {
        let mut bytes = vec![0; LONE];
        region.read(0, &mut bytes).unwrap();
        bytes
    };
    let send = |lone: &Lone, shortcut: bool| {
        let mut batch = Batch::new();
        for (seed, region) in ours.iter().chain(&theirs).enumerate() {
            region.write(0, &pattern(LONE, seed as u8)).unwrap();
        }
        let (from, to) = (&ours[lone.ours], &theirs[lone.theirs]);
        let (local, remote) = (from.addr() + lone.local, to.addr() + lone.remote);
        // Two parts that do not touch.
        let parts = [(remote, lone.len / 2), (remote + lone.len / 2 + 1, lone.len - lone.len / 2)];
        let request = Request { op: lone.op, ..Request::write(peer, from, local, remote, lone.len) };
        let scattered = if lone.scattered { Shape::Scatter(&parts) } else { request.remote_shape };
        let request = Request { immediate: lone.immediate, remote_shape: scattered, ..request };
        let before = counts();
        let outcome = match batch.push(request) {
            Err(error) => Err(error.to_string()),
            Ok(_) => {
                let handle = a.core().submit_by(&mut batch, shortcut).unwrap();
                let outcome = handle.wait().map_err(|error| error.to_string());
                assert!(handle.quiesced(soon()));
                outcome
            }
        };
        let after = counts();
        let counted: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let all = || ours.iter().chain(&theirs);
        let mut expected: Vec<Vec<u8>> = (0..5).map(|seed| pattern(LONE, seed)).collect();
        if outcome.is_ok() {
            // A range may reach over into the region behind, where that is next to it in memory.
            let place = |addr: u64| {
                let region =
                    all().position(|region| (region.addr()..region.addr() + region.len()).contains(&addr));
                let region = region.expect("it was in bounds");
                (region, (addr - all().nth(region).unwrap().addr()) as usize)
            };
            let there = (0..lone.len).map(|n| remote + n + u64::from(lone.scattered && n >= lone.len / 2));
            let moved: Vec<_> =
                (local..).zip(there).map(|(here, there)| (place(here), place(there))).collect();
            for (here, there) in moved {
                let (from, to) = if lone.op == Op::Write { (here, there) } else { (there, here) };
                expected[to.0][to.1] = expected[from.0][from.1];
            }
        }
        settle(|| all().map(contents).eq(expected.iter().cloned()));
        (outcome, counted)
    };
    let cases = ProptestConfig::with_cases(ProptestConfig::default().cases.min(48));
    let mut runner = TestRunner::new(ProptestConfig { source_file: Some(file!()), ..cases });
    let outcome = runner.run(&lone(), |lone| {
        let (short, long) = (send(&lone, true), send(&lone, false));
        prop_assert_eq!(&short.0, &long.0);
        prop_assert_eq!(short.1, long.1, "what was counted");
        Ok(())
    });
    outcome.unwrap();
}

#[test]
fn lone_requests_end_alike_over_shm() {
    lone_requests_end_alike("lone_requests_end_alike_over_shm", Provider::Shm, 1);
}

#[test]
fn lone_requests_end_alike_over_net_with_three_nics() {
    lone_requests_end_alike("lone_requests_end_alike_over_net_with_three_nics", Provider::Net, 3);
}

/// Providers without delivery completion may be a moment late.
fn settle(mut done: impl FnMut() -> bool) {
    let deadline = soon();
    while !done() {
        assert!(Instant::now() < deadline, "the bytes have not arrived");
        std::thread::yield_now();
    }
}

#[test]
fn bytes_move_over_rxm() {
    moves_bytes("bytes_move_over_rxm", Provider::TcpRxm, 1);
}

#[test]
fn bytes_move_over_rxm_with_four_nics() {
    moves_bytes("bytes_move_over_rxm_with_four_nics", Provider::TcpRxm, 4);
}

#[test]
fn bytes_move_over_net() {
    moves_bytes("bytes_move_over_net", Provider::Net, 1);
}

#[test]
fn bytes_move_over_shm() {
    moves_bytes("bytes_move_over_shm", Provider::Shm, 1);
}

/// Catches: warm-ups that do every pair of cards, or one rail twice, or leave one out; that need a second exchange of descriptors;
/// or that leave the way of requests untried.
#[test]
fn warming_up_takes_one_exchange_and_one_operation_for_each_rail() {
    let test = "warming_up_takes_one_exchange_and_one_operation_for_each_rail";
    for (locals, remotes) in [(16, 16), (4, 16), (16, 4), (1, 1)] {
        let Some(a) = open(test, Provider::Net, locals, "a") else { return };
        let Some(b) = open(test, Provider::Net, remotes, "b") else { return };
        // The one round trip: ours there, theirs back.
        b.add_or_update_peer(&a.local_descriptor()).unwrap();
        let peer = a.add_or_update_peer(&b.local_descriptor()).unwrap();
        let told = (a.descriptor_generation(), b.descriptor_generation());
        let rails = locals.max(remotes);
        for round in 1..=2 {
            let warm = a.warm_up(peer, soon()).unwrap();
            assert_eq!((warm.rails, warm.failed), (rails, vec![]));
            let nics = a.statistics().nics;
            let mut each: Vec<u64> = nics.iter().map(|nic| nic.slices).collect();
            // One rail has been rehearsed on.
            each[0] -= round as u64 * 3;
            assert_eq!(each, vec![(round * rails / locals) as u64; locals], "{locals} by {remotes}");
            // Each NIC knows the remote ones that it works with, no others.
            assert!(nics.iter().all(|nic| nic.addresses == rails / locals), "{locals} by {remotes}");
        }
        assert_eq!(a.statistics().requests_done, 2 * 4);
        assert_eq!((a.descriptor_generation(), b.descriptor_generation()), told, "nobody needs to ask again");
    }
}

/// Catches: requests that find every rail cold because none comes twice in a row; that all go over one for ever; a warm-up that
/// rehearses on another rail than the first request takes.
#[test]
fn requests_that_are_alone_stay_with_a_nic_for_a_while_and_use_all_alike() {
    const NICS: usize = 4;
    let test = "requests_that_are_alone_stay_with_a_nic_for_a_while_and_use_all_alike";
    let Some(a) = open(test, Provider::Net, NICS, "a") else { return };
    let Some(b) = open(test, Provider::Net, NICS, "b") else { return };
    b.add_or_update_peer(&a.local_descriptor()).unwrap();
    let (ours, theirs) = (memory(&a, 4096), memory(&b, 4096));
    let peer = a.add_or_update_peer(&b.local_descriptor()).unwrap();
    let counts = || a.statistics().nics.iter().map(|nic| nic.slices).collect::<Vec<_>>();
    let mut batch = Batch::new();
    let mut send = |requests: usize| {
        let before = counts();
        for _ in 0..requests {
            batch.push(Request::write(peer, &ours, ours.addr(), theirs.addr(), 64)).unwrap();
            a.submit(&mut batch).unwrap().wait().unwrap();
        }
        counts().iter().zip(before).map(|(after, before)| after - before).collect::<Vec<_>>()
    };
    // Somewhere in the middle of a stay.
    send(22);
    let before = counts();
    a.warm_up(peer, soon()).unwrap();
    let rehearsed = counts().iter().zip(before).position(|(after, before)| after - before == 4);
    let first = send(1).iter().position(|&slices| slices == 1);
    assert_eq!((first, rehearsed), (Some(1), Some(1)));
    assert_eq!(send(9), [0, 9, 0, 0]);
    let round = send(16 * NICS);
    assert_eq!(round, [16; NICS]);
}

/// Catches: a warm-up that writes to memory that is somebody's: a peer that is no transport of ours has nothing else to probe.
#[test]
fn peers_made_of_parts_are_only_read() {
    let test = "peers_made_of_parts_are_only_read";
    let Some(a) = open(test, Provider::Net, 3, "a") else { return };
    let Some(b) = open(test, Provider::Net, 3, "b") else { return };
    let theirs = memory(&b, 8);
    theirs.write(0, &[0xa5; 8]).unwrap();
    b.add_or_update_peer(&a.local_descriptor()).unwrap();
    let mut parts = crate::Parts::read(&b.local_descriptor()).unwrap();
    for (nic, entry) in parts.nics.iter_mut().enumerate() {
        let (_, key) = parts.chunks[0].keys[nic];
        let address = if parts.virtual_addressing { theirs.addr() } else { 0 };
        // Eight bytes are all that there is.
        entry.probe = (address, key);
    }
    let peer = a.add_or_update_peer(&parts.descriptor().unwrap()).unwrap();
    let warm = a.warm_up(peer, soon()).unwrap();
    assert_eq!((warm.rails, warm.failed), (3, vec![]));
    let mut bytes = [0; 8];
    theirs.read(0, &mut bytes).unwrap();
    assert_eq!(bytes, [0xa5; 8]);
    assert!(a.statistics().nics.iter().all(|nic| (nic.slices, nic.bytes_written) == (1, 0)));
    assert_eq!(a.statistics().requests_done, 0);
}

/// Kilobytes of memory that this process has, and its threads.
fn footprint() -> (u64, usize) {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| -> u64 {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    (field("VmRSS:"), field("Threads:") as usize)
}

/// Catches: threads, address vector entries or NICs squared for each peer; lookups that slow down with their number.
#[test]
fn a_thousand_peers_with_sixteen_cards_cost_little() {
    const PEERS: usize = 1000;
    const CARDS: usize = 16;
    const CHILD: &str = "EFA_TRANSPORT_TEST_THOUSAND";
    let test = "a_thousand_peers_with_sixteen_cards_cost_little";
    if std::env::var_os(CHILD).is_none() {
        // In a process of its own, where nobody else allocates or starts threads.
        let name = format!("transport_tests::{test}");
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        let output = child.args(["--exact", &name, "--nocapture"]).env(CHILD, "1").output().unwrap();
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success() && String::from_utf8_lossy(&output.stdout).contains("1 passed"));
        return;
    }
    let Some(a) = open(test, Provider::Net, CARDS, "a") else { return };
    let Some(b) = open(test, Provider::Net, CARDS, "b") else { return };
    let (ours, theirs) = (memory(&a, LEN), memory(&b, LEN));
    // As many regions as a KV cache has layers, and 999 more processes that look like this one.
    let layers: Vec<Region> = (0..64).map(|_| memory(&b, 4096)).collect();
    let one = crate::descriptor::Descriptor::decode(&b.local_descriptor()).unwrap();
    let descriptors: Vec<Vec<u8>> = (0..PEERS as u64)
        .map(|n| {
            let (name, epoch) = (format!("peer-{n}"), one.epoch ^ (n + 1));
            crate::descriptor::Descriptor { name, epoch, ..one.clone() }.encode()
        })
        .collect();
    let (memory_before, threads_before) = footprint();
    let began = Instant::now();
    let peers: Vec<_> = descriptors.iter().map(|bytes| a.add_or_update_peer(bytes).unwrap()).collect();
    let connecting = began.elapsed();
    let (memory_after, threads_after) = footprint();
    let entries = |a: &Transport| a.statistics().nics.iter().map(|nic| nic.addresses).sum::<usize>();
    eprintln!(
        "{PEERS} peers of {CARDS} cards and {} regions: {} KiB and {:?} each, {} threads more",
        layers.len() + 1,
        (memory_after - memory_before) / PEERS as u64,
        connecting / PEERS as u32,
        threads_after - threads_before
    );
    assert_eq!(threads_after, threads_before);
    assert_eq!(entries(&a), 0, "nothing has been sent yet");
    // 65 regions on 16 cards are 1,040 keys of 8 bytes, and some for their ranges and the cards' names.
    assert!((memory_after - memory_before) / (PEERS as u64) < 32);
    assert!(connecting / (PEERS as u32) < Duration::from_millis(2), "{connecting:?}");
    // A small write to some of them uses one rail each.
    let mut batch = Batch::new();
    for peer in peers.iter().step_by(20) {
        batch.push(Request::write(*peer, &ours, ours.addr(), theirs.addr(), 64)).unwrap();
    }
    a.submit(&mut batch).unwrap().wait().unwrap();
    assert_eq!(entries(&a), PEERS / 20);
}
