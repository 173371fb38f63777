//! Two processes on software cards, through libfabric: messages, reads, writes, immediates, and a target that sleeps.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use fabric_safe::{Access, CompletionBatch, SendOptions, WriteOptions, option};
use std::time::Duration;
use support::node::{Side, cards};
use support::{Library, Part, libraries, library_2, network, pattern, skip, two};

const MARGIN: usize = 64;

/// Runs `play` on every fabric of every libfabric for a profile.
fn everywhere(test: &str, profile: &str, play: &str) {
    let libraries = libraries();
    if libraries.is_empty() {
        return skip(test, "no libfabric here");
    }
    let network = network(2, profile);
    for library in &libraries {
        two(&network, library, "efa", play);
        // Without device writes the provider has no RMA on efa-direct, so nothing to test there with these plays.
        if library.is_2() && profile != "p4d" {
            two(&network, library, "efa-direct", play);
        }
    }
}

#[test]
fn every_operation_arrives_whole_on_p5() {
    everywhere("every_operation_arrives_whole_on_p5", "p5", "operations");
}

#[test]
fn every_operation_arrives_whole_on_p4d() {
    everywhere("every_operation_arrives_whole_on_p4d", "p4d", "operations");
}

#[test]
fn every_operation_arrives_whole_on_p5en_and_p6() {
    everywhere("every_operation_arrives_whole_on_p5en_and_p6", "p5en", "operations");
    everywhere("every_operation_arrives_whole_on_p5en_and_p6", "p6", "operations");
}

#[test]
fn nothing_changes_without_device_rdma() {
    let test = "nothing_changes_without_device_rdma";
    let Some(library) = library_2(test) else { return };
    let mut network = network(1, "p5");
    network.set("FI_EFA_USE_DEVICE_RDMA", "0");
    two(&network, &library, "efa", "operations");
}

#[test]
fn a_target_takes_no_part_in_reads_and_writes() {
    let test = "a_target_takes_no_part_in_reads_and_writes";
    let Some(library) = library_2(test) else { return };
    two(&network(1, "p5"), &library, "efa-direct", "sleeping target");
}

#[test]
fn completions_wake_a_sleeper() {
    let test = "completions_wake_a_sleeper";
    let Some(library) = library_2(test) else { return };
    let network = network(1, "p5");
    two(&network, &library, "efa-direct", "sleepers");
    two(&network, &library, "efa", "sleepers");
}

#[test]
fn every_card_reaches_every_card() {
    let test = "every_card_reaches_every_card";
    let Some(library) = library_2(test) else { return };
    two(&network(16, "p5en"), &library, "efa-direct", "all pairs");
}

#[test]
fn a_program_that_does_not_lend_its_time_gets_there_too() {
    let test = "a_program_that_does_not_lend_its_time_gets_there_too";
    let Some(library) = library_2(test) else { return };
    let mut network = network(1, "p5");
    network.set(soft_efa::settings::ASSIST, "0");
    two(&network, &library, "efa-direct", "operations");
}

#[test]
fn nothing_is_left_behind() {
    let test = "nothing_is_left_behind";
    let Some(library): Option<Library> = libraries().into_iter().next() else {
        return skip(test, "no libfabric here");
    };
    let count = || {
        std::fs::read_dir("/dev/shm").map_or(0, |dir| {
            dir.flatten().filter(|e| e.file_name().to_string_lossy().contains("soft-efa")).count()
        })
    };
    let network = network(1, "p5");
    two(&network, &library, "efa", "operations");
    let dir = network.dir().to_path_buf();
    let left: Vec<_> = std::fs::read_dir(&dir)
        .unwrap()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| name.starts_with("proc-") || name.starts_with("ring-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    drop(network);
    assert!(!dir.exists());
    assert_eq!(count(), 0);
}

/// The part of a child; does nothing unless started by a test.
#[test]
fn child() {
    let Some(part) = Part::mine() else { return };
    match part.play.as_str() {
        "operations" => operations(&part),
        "sleeping target" => sleeping_target(&part),
        "sleepers" => sleepers(&part),
        "all pairs" => all_pairs(&part),
        other => panic!("no play called {other}"),
    }
}

fn sizes(most: usize) -> impl Iterator<Item = usize> {
    let large = if std::env::var_os("SOFT_EFA_TEST_LARGE").is_some() { 1 << 30 } else { 16 << 20 };
    [64, 1000, 4096, 65_536, (1 << 20) + 1, 16 << 20, 1 << 30]
        .into_iter()
        .filter(move |&size| size <= most.min(large))
}

fn operations(part: &Part) {
    let mut side = Side::meet(part, 0);
    let profile = std::env::var(soft_efa::settings::PROFILE).unwrap();
    let device_rdma = std::env::var("FI_EFA_USE_DEVICE_RDMA").is_err();
    if part.fabric == "efa" && device_rdma {
        // Only libfabric 2 can be asked.
        if let Ok(emulated) = side.node.endpoint.get(option::EFA_EMULATED_WRITE) {
            assert_eq!(emulated, profile == "p4d", "device writes on {profile}");
            assert!(!side.node.endpoint.get(option::EFA_EMULATED_READ).unwrap(), "device reads on {profile}");
        }
    }
    let message = if part.fabric == "efa" { 16 << 20 } else { 8000 };
    for size in sizes(message) {
        send(&mut side, size);
    }
    for size in sizes(usize::MAX) {
        write(&mut side, size, None);
        read(&mut side, size);
        write(&mut side, size, Some(size as u64 & 0xffff_ffff));
    }
}

fn send(side: &mut Side, size: usize) {
    let token = side.node.token();
    let peer = side.peer.clone();
    if side.first {
        let region = side.node.register(vec![0; size + MARGIN], Access::ALL);
        side.node.post(|endpoint| endpoint.receive(None, region.as_slice(), token));
        side.together();
        let end = side.node.good_end(token);
        let bytes = region.into_memory().unwrap();
        assert_eq!(end.len_bytes, size);
        assert!(bytes[..size] == pattern(size as u64, size)[..], "{size} bytes of a message");
        assert!(bytes[size..].iter().all(|&byte| byte == 0));
    } else {
        let region = side.node.register(pattern(size as u64, size), Access::ALL);
        side.together();
        side.node
            .post(|endpoint| endpoint.send_with(&peer, &[region.as_slice()], SendOptions::default(), token));
        side.node.good_end(token);
    }
    side.together();
}

fn write(side: &mut Side, size: usize, immediate: Option<u64>) {
    let number = size as u64 + immediate.map_or(0, |_| 1);
    let peer = side.peer.clone();
    if side.first {
        let region = side.node.register(vec![0xee; size + 2 * MARGIN], Access::ALL);
        // An immediate takes a posted receive, on cards and fabrics without unsolicited ones.
        let spare = side.node.register(vec![0; 64], Access::ALL);
        let receive = side.node.token();
        let direct = side.node.endpoint.info().fabric_name() == "efa-direct";
        if immediate.is_some() && direct {
            side.node.post(|endpoint| endpoint.receive(None, spare.as_slice(), receive));
        }
        side.tell(&region.remote().to_bytes());
        if let Some(value) = immediate {
            side.node.until("the immediate", |node| !node.immediates.is_empty());
            let (told, length) = side.node.immediates.pop().unwrap();
            assert_eq!((told, length), (value, size));
        }
        side.together();
        let bytes = region.into_memory().unwrap();
        assert!(
            bytes[..MARGIN].iter().chain(&bytes[MARGIN + size..]).all(|&byte| byte == 0xee),
            "bytes outside"
        );
        assert!(bytes[MARGIN..MARGIN + size] == pattern(number, size)[..], "{size} bytes written");
    } else {
        let region = side.node.register(pattern(number, size), Access::ALL);
        let target = side.remote().at(MARGIN as u64);
        let token = side.node.token();
        let options = WriteOptions { immediate, ..WriteOptions::default() };
        side.node.post(|endpoint| endpoint.write_with(&peer, &[region.as_slice()], target, options, token));
        side.node.good_end(token);
        side.together();
    }
    side.together();
}

fn read(side: &mut Side, size: usize) {
    let peer = side.peer.clone();
    if side.first {
        let region = side.node.register(pattern(size as u64 + 2, size), Access::ALL);
        side.tell(&region.remote().to_bytes());
        side.together();
    } else {
        let region = side.node.register(vec![0xee; size + 2 * MARGIN], Access::ALL);
        let source = side.remote().at(0);
        let token = side.node.token();
        let slice = region.slice(MARGIN..MARGIN + size).unwrap();
        side.node.post(|endpoint| endpoint.read(&peer, slice, source, token));
        side.node.good_end(token);
        side.together();
        let bytes = region.into_memory().unwrap();
        assert!(
            bytes[..MARGIN].iter().chain(&bytes[MARGIN + size..]).all(|&byte| byte == 0xee),
            "bytes outside"
        );
        assert!(bytes[MARGIN..MARGIN + size] == pattern(size as u64 + 2, size)[..], "{size} bytes read");
    }
    side.together();
}

fn sleeping_target(part: &Part) {
    let mut side = Side::meet(part, 0);
    let peer = side.peer.clone();
    let size = 1 << 20;
    if side.first {
        let region = side.node.register(vec![7; size], Access::ALL);
        side.tell(&region.remote().to_bytes());
        // From here on nothing polls in this process until the other one has finished.
        assert_eq!(side.line.hear(|| std::thread::sleep(Duration::from_millis(20))).unwrap(), b"done");
        assert!(region.into_memory().unwrap() == pattern(1, size));
    } else {
        let region = side.node.register(pattern(1, size), Access::ALL);
        let remote = side.remote();
        let token = side.node.token();
        side.node.post(|endpoint| endpoint.write(&peer, region.as_slice(), remote.at(0), token));
        side.node.good_end(token);
        let back = side.node.register(vec![0; size], Access::ALL);
        let token = side.node.token();
        side.node.post(|endpoint| endpoint.read(&peer, back.as_slice(), remote.at(0), token));
        side.node.good_end(token);
        assert!(back.into_memory().unwrap() == pattern(1, size));
        side.tell(b"done");
    }
}

fn sleepers(part: &Part) {
    let info = cards(&part.fabric).swap_remove(0);
    let mut side = Side::meet_on(part, &info, true);
    let peer = side.peer.clone();
    let region = side.node.register(vec![3; 256], Access::ALL);
    let mut batch = CompletionBatch::new(8);
    let mut wait_for = |side: &Side, token: u64| {
        let start = std::time::Instant::now();
        loop {
            let ended = side.node.queue.wait(&mut batch, Duration::from_secs(5)).unwrap();
            let mut found = false;
            for end in ended {
                assert!(end.result().is_ok());
                found |= end.token() == Some(token);
            }
            if found {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "nobody woke us");
        }
    };
    // Each in turn sleeps until the other's message is there.
    for turn in 0..50u64 {
        let slice = region.slice(0..128).unwrap();
        if (turn % 2 == 0) == side.first {
            side.node.post(|endpoint| endpoint.receive(None, slice, 1000 + turn));
            side.tell(b"posted");
            wait_for(&side, 1000 + turn);
        } else {
            assert_eq!(side.hear(), b"posted");
            side.node.post(|endpoint| endpoint.send(&peer, slice, 1000 + turn));
            wait_for(&side, 1000 + turn);
        }
    }
}

fn all_pairs(part: &Part) {
    // One node a card; the first process's card i writes to the second's card (i + k) mod n for every k.
    let infos = cards(&part.fabric);
    assert_eq!(infos.len(), 16);
    let mut line = support::node::Line::open(&part.line, part.first);
    let mut nodes: Vec<_> = infos.iter().map(|info| support::node::Node::open(info, false)).collect();
    let names: Vec<Vec<u8>> = nodes.iter().map(|node| node.endpoint.name().unwrap().to_vec()).collect();
    names.iter().for_each(|name| line.tell(name));
    let theirs: Vec<Vec<u8>> = names.iter().map(|_| line.hear(|| {}).unwrap()).collect();
    let peers: Vec<Vec<_>> =
        nodes.iter().map(|node| theirs.iter().map(|name| node.insert(name)).collect()).collect();
    let regions: Vec<_> = nodes
        .iter()
        .map(|node| {
            node.register(if part.first { pattern(9, 4096) } else { vec![0; 16 * 4096] }, Access::ALL)
        })
        .collect();
    regions.iter().for_each(|region| line.tell(&region.remote().to_bytes()));
    let remotes: Vec<_> = regions
        .iter()
        .map(|_| fabric_safe::RemoteRegion::from_bytes(line.hear(|| {}).unwrap().try_into().unwrap()))
        .collect();
    if part.first {
        for (card, node) in nodes.iter_mut().enumerate() {
            let tokens: Vec<u64> = (0..16)
                .map(|other| {
                    let token = node.token();
                    let target = remotes[other].at(card as u64 * 4096);
                    let peer = peers[card][other].clone();
                    node.post(|endpoint| endpoint.write(&peer, regions[card].as_slice(), target, token));
                    token
                })
                .collect();
            for token in tokens {
                node.good_end(token);
            }
        }
        line.tell(b"done");
    } else {
        assert_eq!(line.hear(|| {}).unwrap(), b"done");
        for region in regions {
            let bytes = region.into_memory().unwrap();
            assert!(bytes.chunks(4096).all(|chunk| chunk == pattern(9, 4096)));
        }
    }
}
