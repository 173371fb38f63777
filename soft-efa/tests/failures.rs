//! How failures look through libfabric: which errno and which provider errno reach the completion queue.
//!
//! The table in README.md is what these tests assert; efa-transport's classification of errors is built on it.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use fabric_safe::{Access, PostError, RegisterOptions, RemoteRegion, option};
use soft_efa::status::{ALL, Status};
use soft_efa::{control, settings};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use support::node::{Line, Node, Side, cards};
use support::{Library, Part, Running, libraries, library_2, network, output, pattern, player, skip, two};

/// errno of libfabric for each status, as `fabric efa-direct` of 2.5.1 reports it.
fn errno_of(status: Status) -> i32 {
    match status {
        Status::Ok => 0,
        Status::Flushed => libc::ECANCELED,
        Status::BadLength | Status::RemoteBadLength => libc::EMSGSIZE,
        Status::RemoteAbort | Status::UnresponsiveRemote => libc::ECONNABORTED,
        Status::RemoteBadDestQpn | Status::RemoteUnknownPeer => libc::ENOTCONN,
        // FI_ENORX, one of libfabric's own.
        Status::RemoteRnr => 269,
        Status::RemoteBadStatus => libc::EREMOTEIO,
        Status::UnreachableRemote => libc::EHOSTUNREACH,
        _ => libc::EINVAL,
    }
}

macro_rules! plays {
    ($($test:ident: $fabric:literal, $play:literal, [$($name:ident = $value:expr),*];)*) => {
        $(
            #[test]
            fn $test() {
                let Some(library) = library_2(stringify!($test)) else { return };
                #[allow(unused_mut)]
                let mut network = network(1, "p5");
                $(network.set(settings::$name, $value);)*
                two(&network, &library, $fabric, $play);
            }
        )*
    };
}

plays! {
    keys_bounds_and_rights_are_checked: "efa-direct", "keys", [];
    keys_bounds_and_rights_are_checked_on_efa: "efa", "keys", [];
    every_status_reaches_the_completion_queue: "efa-direct", "statuses", [];
    a_target_that_does_not_know_us_refuses: "efa-direct", "unknown peer", [];
    requests_can_be_delayed_and_held: "efa-direct", "delays", [];
    cards_links_and_hosts_go_and_come_back: "efa-direct", "outages", [];
    registrations_are_limited: "efa-direct", "registrations", [MAX_PTES = "64", MAX_MR = "20", MAX_MR_SIZE = "1m"];
    address_handles_are_limited: "efa-direct", "handles", [MAX_AH = "3"];
    address_handles_are_limited_on_efa: "efa", "handles", [MAX_AH = "3"];
    depth_and_length_are_limited: "efa-direct", "depth", [SQ_DEPTH = "64", MAX_RDMA = "64k"];
    a_target_without_receives_is_given_up_after_its_retries: "efa-direct", "no receive", [];
    a_receive_that_is_too_short_fails_both_sides: "efa-direct", "short receive", [];
    posted_receives_are_limited: "efa-direct", "receive depth", [RQ_DEPTH = "192"];
    completions_can_be_late_lost_and_wrong: "efa-direct", "late completions", [];
    a_link_can_flap: "efa-direct", "flapping", [];
    a_card_has_its_bandwidth: "efa-direct", "bandwidth", [GBPS = "1", LATENCY_US = "100"];
}

#[test]
fn a_target_that_exits_is_noticed() {
    let test = "a_target_that_exits_is_noticed";
    let Some(library) = library_2(test) else { return };
    for (fabric, play) in [
        ("efa-direct", "closing"),
        ("efa-direct", "exit"),
        ("efa", "exit"),
        ("efa-direct", "killed"),
        ("efa", "killed"),
    ] {
        let network = network(1, "p5");
        let folder = tempfile::tempdir().unwrap();
        let line = folder.path().join("line");
        let start = |first| Running(player(&network, &library, fabric, play, first, &line).spawn().unwrap());
        let (mut first, mut second) = (start(true), start(false));
        assert_eq!(second.wait().code(), Some(0), "{play} on {fabric}");
        assert_eq!(first.wait().code(), (play != "killed").then_some(0), "{play} on {fabric}");
    }
}

#[test]
fn a_peer_restarts_with_the_same_number_or_another() {
    let test = "a_peer_restarts_with_the_same_number_or_another";
    let Some(library) = library_2(test) else { return };
    let network = network(1, "p5");
    let folder = tempfile::tempdir().unwrap();
    let numbers = ["any", "other", "same", "same", "other"];
    let line = folder.path().join("line");
    let mut second = Running(
        player(&network, &library, "efa-direct", "restarting", false, &line)
            .env("NUMBERS", numbers.join(" "))
            .spawn()
            .unwrap(),
    );
    for (life, number) in numbers.iter().enumerate() {
        network.control("clear").unwrap();
        if *number != "any" {
            network.control(&format!("restart qpn={number} host=7")).unwrap();
        }
        let place = folder.path().join(format!("life{life}"));
        let mut command = player(&network, &library, "efa-direct", "restarting", true, &place);
        let mut first =
            Running(command.env("LIFE", life.to_string()).env(settings::HOST, "7").spawn().unwrap());
        assert_eq!(first.wait().code(), None, "life {life} was not ended by a signal");
    }
    assert_eq!(second.wait().code(), Some(0));
}

#[test]
fn faults_of_the_environment_hold_from_the_start() {
    let test = "faults_of_the_environment_hold_from_the_start";
    let Some(library) = library_2(test) else { return };
    let folder = tempfile::tempdir().unwrap();
    let faults = folder.path().join("faults");
    std::fs::write(
        &faults,
        "# libfabric registers small buffers of its own\nregister errno=12 nth=1 min=5000000\n",
    )
    .unwrap();
    let mut network = network(1, "p5");
    network.set(settings::FAULTS, &faults);
    two(&network, &library, "efa-direct", "first registration");
}

#[test]
fn a_process_killed_in_mid_transfer_takes_nothing_with_it() {
    let test = "a_process_killed_in_mid_transfer_takes_nothing_with_it";
    let Some(library) = library_2(test) else { return };
    let network = network(1, "p5");
    let folder = tempfile::tempdir().unwrap();
    let line = folder.path().join("line");
    // The survivor is the first player; the others die one after the other in the middle of a write to it.
    let deaths: usize = std::env::var("SOFT_EFA_TEST_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let mut first = Running(
        player(&network, &library, "efa-direct", "survivor", true, &line)
            .env("DEATHS", deaths.to_string())
            .spawn()
            .unwrap(),
    );
    // Another process that had the number of one of ours may have been killed, too, before this.
    let in_shm = || {
        let entries = std::fs::read_dir("/dev/shm").into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned())
    };
    let before: std::collections::HashSet<String> = in_shm().collect();
    let mut dead = Vec::new();
    for death in 0..deaths {
        let place = folder.path().join(format!("line{death}"));
        let mut second =
            Running(player(&network, &library, "efa-direct", "survivor", false, &place).spawn().unwrap());
        dead.push(second.0.id());
        assert_eq!(second.wait().code(), None, "death {death} was not by a signal");
    }
    assert_eq!(first.wait().code(), Some(0));
    // libfabric names what it puts there by the process.
    let left: Vec<String> = in_shm()
        .filter(|name| {
            name.contains("soft-efa") || dead.iter().any(|pid| name.starts_with(&format!("{pid}:")))
        })
        .filter(|name| !before.contains(name))
        .collect();
    assert!(left.is_empty(), "left in /dev/shm: {left:?}");
    let rings = std::fs::read_dir(network.dir()).unwrap().flatten();
    let left = rings.filter(|entry| entry.file_name().to_string_lossy().starts_with("ring-")).count();
    assert!(left <= 4, "{left} rings of dead processes are left");
}

#[test]
fn counters_and_traces_tell_what_happened() {
    let test = "counters_and_traces_tell_what_happened";
    let Some(library) = library_2(test) else { return };
    let mut network = network(1, "p5");
    let folder = tempfile::tempdir().unwrap();
    network.set(settings::TRACE, folder.path());
    two(&network, &library, "efa-direct", "counted");
    let text: String = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap())
        .collect();
    assert_eq!(text.matches("\"name\":\"write 4096\"").count(), 10, "{text}");
}

#[test]
fn the_control_socket_answers_and_survives_nonsense() {
    let network = network(1, "p5");
    assert_eq!(network.control("fail status=13 op=write").unwrap().trim(), "1");
    assert!(network.control("list").unwrap().contains("1 fail status=13 op=write"));
    for nonsense in ["", "fail", "\u{7f}\u{0}", &"x".repeat(100_000)] {
        assert!(network.control(nonsense).is_err());
    }
    network.control("clear").unwrap();
    assert_eq!(network.control("list").unwrap().trim(), "");
}

#[test]
fn the_launcher_passes_the_exit_status_on_and_cleans_up() {
    let exe = env!("CARGO_BIN_EXE_soft-efa");
    let said = output(std::process::Command::new(exe).args([
        "--nics",
        "2",
        "--",
        "sh",
        "-c",
        "echo $SOFT_EFA_DIR; ls /sys/class/infiniband | wc -l; exit 7",
    ]));
    let text = String::from_utf8_lossy(&said.stdout).into_owned();
    let mut lines = text.lines();
    assert_eq!(said.status.code(), Some(7), "{}", String::from_utf8_lossy(&said.stderr));
    assert!(!PathBuf::from(lines.next().unwrap()).exists());
    assert_eq!(lines.next().unwrap().trim(), "2", "ls sees the cards through the preload library");
}

#[test]
fn the_launcher_says_the_seed_of_what_failed() {
    let run = |seed: &str| {
        let exe = env!("CARGO_BIN_EXE_soft-efa");
        let command = ["--seed", seed, "--nics", "1", "--", "sh", "-c", "echo $SOFT_EFA_SEED; exit 1"];
        let said = output(std::process::Command::new(exe).args(command));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        (text(&said.stdout), text(&said.stderr))
    };
    let (seed, said) = run("11");
    assert!(seed == "11" && said.contains("; seed 11 "), "{said}");
    let (seed, said) = run("random");
    assert!(said.starts_with(&format!("soft-efa: seed {seed}\n")), "told at the start: {said}");
    assert!(said.contains(&format!("; seed {seed} ")), "and when it failed: {said}");
    assert_ne!(run("random").0, seed);
}

#[test]
fn libfabric_1_17_sees_the_same_failures() {
    let test = "libfabric_1_17_sees_the_same_failures";
    let Some(library): Option<Library> = libraries().into_iter().find(|library| !library.is_2()) else {
        return skip(test, "no libfabric 1.17 here");
    };
    let network = network(1, "p5");
    let folder = tempfile::tempdir().unwrap();
    let line = folder.path().join("line");
    let start = |first| Running(player(&network, &library, "efa", "killed", first, &line).spawn().unwrap());
    let (mut first, mut second) = (start(true), start(false));
    assert_eq!((second.wait().code(), first.wait().code()), (Some(0), None));
}

/// The part of a child; does nothing unless started by a test.
#[test]
fn child() {
    let Some(part) = Part::mine() else { return };
    match part.play.as_str() {
        "keys" => keys(&part),
        "statuses" => statuses(&part),
        "unknown peer" => unknown_peer(&part),
        "delays" => delays(&part),
        "outages" => outages(&part),
        "registrations" => registrations(&part),
        "handles" => handles(&part),
        "depth" => depth(&part),
        "bandwidth" => bandwidth(&part),
        "first registration" => {
            let node = Node::open(&cards(&part.fabric)[0], false);
            let register = || node.domain.register(vec![0u8; 5_000_000], RegisterOptions::new(Access::ALL));
            let refused = register().map(drop).map_err(|error| error.error.errno().unwrap().raw());
            assert_eq!(refused, Err(libc::ENOMEM));
            register().map_err(|error| format!("{error:?}")).unwrap();
        }
        "no receive" => no_receive(&part),
        "short receive" => short_receive(&part),
        "receive depth" => receive_depth(&part),
        "late completions" => late_completions(&part),
        "flapping" => flapping(&part),
        "restarting" => restarting(&part),
        "closing" | "exit" | "killed" => leaving(&part),
        "survivor" => survivor(&part),
        "counted" => counted(&part),
        other => panic!("no play called {other}"),
    }
}

/// Sends a command to the run that we are in.
fn tell_run(line: &str) -> String {
    let dir = PathBuf::from(std::env::var_os(settings::DIR).unwrap());
    control::command(&dir, line).unwrap()
}

impl Side {
    /// errno and provider errno of a write of 64 bytes to there.
    fn write_ends(&mut self, remote: RemoteRegion, offset: u64) -> (i32, i32) {
        let region = self.node.register(vec![1; 64], Access::ALL);
        let (token, peer) = (self.node.token(), self.peer.clone());
        self.node.post(|endpoint| endpoint.write(&peer, region.as_slice(), remote.at(offset), token));
        self.node.end(token).numbers()
    }

    /// errno and provider errno of a read of 64 bytes from there.
    fn read_ends(&mut self, remote: RemoteRegion, offset: u64) -> (i32, i32) {
        let region = self.node.register(vec![1; 64], Access::ALL);
        let (token, peer) = (self.node.token(), self.peer.clone());
        self.node.post(|endpoint| endpoint.read(&peer, region.as_slice(), remote.at(offset), token));
        self.node.end(token).numbers()
    }
}

fn keys(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let all = side.node.register(vec![0; 4096], Access::ALL);
        let read_only = side.node.register(vec![0; 4096], Access::LOCAL | Access::REMOTE_READ);
        let write_only = side.node.register(vec![0; 4096], Access::LOCAL | Access::REMOTE_WRITE);
        let gone = side.node.register(vec![0; 4096], Access::ALL);
        for region in [&all, &read_only, &write_only, &gone] {
            side.tell(&region.remote().to_bytes());
        }
        assert_eq!(side.hear(), b"known");
        gone.into_memory().unwrap();
        side.tell(b"gone");
        assert_eq!(side.hear(), b"done");
        let untouched = all.into_memory().unwrap();
        assert!(untouched[64..].iter().all(|&byte| byte == 0));
    } else {
        let [all, read_only, write_only, gone] = std::array::from_fn(|_| side.remote());
        let bad = (libc::EINVAL, Status::RemoteBadAddress.vendor() as i32);
        assert_eq!(side.write_ends(all, 0), (0, 0));
        assert_eq!(side.write_ends(gone, 0), (0, 0), "a good key");
        side.tell(b"known");
        assert_eq!(side.hear(), b"gone");
        assert_eq!(side.write_ends(gone, 0), bad, "a stale key");
        assert_eq!(side.write_ends(RemoteRegion { key: all.key ^ 0x10, ..all }, 0), bad, "a wrong key");
        assert_eq!(side.write_ends(all, 4096 - 63), bad, "one byte past the end");
        assert_eq!(side.write_ends(all, u64::MAX), bad, "one byte before the start");
        assert_eq!(side.write_ends(read_only, 0), bad, "a write to what may only be read");
        assert_eq!(side.read_ends(read_only, 0), (0, 0));
        // libfabric 2.5.1 registers all memory for remote reads, whatever is asked for, so that is what the card allows.
        assert_eq!(side.read_ends(write_only, 0), (0, 0));
        assert_eq!(side.write_ends(write_only, 0), (0, 0), "the endpoint works after all that");
        side.tell(b"done");
    }
}

fn statuses(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let region = side.node.register(vec![0; 4096], Access::ALL);
        side.tell(&region.remote().to_bytes());
        assert_eq!(side.hear(), b"done");
    } else {
        let remote = side.remote();
        for status in ALL.into_iter().filter(|status| *status != Status::Ok) {
            tell_run(&format!("fail status={} op=write nth=2", status.vendor()));
            assert_eq!(side.write_ends(remote, 0), (0, 0), "only the second one fails");
            let numbers = side.write_ends(remote, 0);
            eprintln!(
                "status {:2} {status:?}: errno {}, provider errno {}",
                status.vendor(),
                numbers.0,
                numbers.1
            );
            assert_eq!(numbers, (errno_of(status), status.vendor() as i32), "{status:?}");
            assert_eq!(side.read_ends(remote, 0), (0, 0), "reads are not meant");
            tell_run("clear");
        }
        side.tell(b"done");
    }
}

fn unknown_peer(part: &Part) {
    // The target does not insert our address.
    let node = Node::open(&cards(&part.fabric)[0], false);
    let mut line = Line::open(&part.line, part.first);
    if part.first {
        let region = node.register(vec![0; 4096], Access::ALL);
        line.tell(&node.endpoint.name().unwrap());
        line.tell(&region.remote().to_bytes());
        let theirs = line.hear(|| {}).unwrap();
        line.tell(b"not yet");
        assert_eq!(line.hear(|| {}).unwrap(), b"refused");
        let _known = node.insert(&theirs);
        line.tell(b"now");
        assert_eq!(line.hear(|| {}).unwrap(), b"done");
    } else {
        let peer = node.insert(&line.hear(|| {}).unwrap());
        let remote = RemoteRegion::from_bytes(line.hear(|| {}).unwrap().try_into().unwrap());
        line.tell(&node.endpoint.name().unwrap());
        let mut side = Side { node, line, peer, first: false };
        assert_eq!(side.hear(), b"not yet");
        assert_eq!(side.write_ends(remote, 0), (libc::ENOTCONN, Status::RemoteUnknownPeer.vendor() as i32));
        side.tell(b"refused");
        assert_eq!(side.hear(), b"now");
        assert_eq!(side.write_ends(remote, 0), (0, 0));
        side.tell(b"done");
    }
}

fn delays(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let region = side.node.register(vec![0; 4096], Access::ALL);
        side.tell(&region.remote().to_bytes());
        assert_eq!(side.hear(), b"done");
    } else {
        let remote = side.remote();
        tell_run("delay us=200000 op=write");
        let start = Instant::now();
        assert_eq!(side.write_ends(remote, 0), (0, 0));
        assert!(start.elapsed() >= Duration::from_millis(200), "{:?}", start.elapsed());
        tell_run("clear");

        tell_run("hold op=write");
        let region = side.node.register(vec![1; 64], Access::ALL);
        let (token, peer) = (side.node.token(), side.peer.clone());
        side.node.post(|endpoint| endpoint.write(&peer, region.as_slice(), remote.at(0), token));
        // A read that is posted later ends although the write is held.
        assert_eq!(side.read_ends(remote, 128), (0, 0));
        assert!(!side.node.has_ended(token));
        tell_run("clear");
        side.node.good_end(token);
        side.tell(b"done");
    }
}

fn outages(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let region = side.node.register(vec![0; 4096], Access::ALL);
        side.tell(&region.remote().to_bytes());
        assert_eq!(side.hear(), b"done");
    } else {
        let remote = side.remote();
        let gone = (libc::ECONNABORTED, Status::UnresponsiveRemote.vendor() as i32);
        assert_eq!(side.write_ends(remote, 0), (0, 0));
        // Hosts are numbered from 65536 in the order in which they came; ours is one of the two.
        for host in [65_536, 65_537] {
            let rule = tell_run(&format!("down card=0 host={host}"));
            let ends = side.write_ends(remote, 0);
            assert!(
                ends == gone || ends == (libc::EINVAL, Status::QpInternalError.vendor() as i32),
                "{ends:?}"
            );
            tell_run(&format!("remove {}", rule.trim()));
            assert_eq!(side.write_ends(remote, 0), (0, 0), "the card is back");
        }
        tell_run("unreachable host=65536");
        tell_run("unreachable host=65537");
        assert_eq!(side.write_ends(remote, 0), gone);
        tell_run("clear");
        assert_eq!(side.write_ends(remote, 0), (0, 0));

        tell_run("link card=0");
        let region = side.node.register(vec![1; 64], Access::ALL);
        let (token, peer) = (side.node.token(), side.peer.clone());
        side.node.post(|endpoint| endpoint.write(&peer, region.as_slice(), remote.at(0), token));
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(50) {
            assert!(!side.node.has_ended(token), "nothing passes a link that is down");
        }
        tell_run("clear");
        side.node.good_end(token);
        side.tell(b"done");
    }
}

fn registrations(part: &Part) {
    let node = Node::open(&cards(&part.fabric)[0], false);
    let before = node.domain.clone();
    let register = |bytes: usize| before.register(vec![0u8; bytes], RegisterOptions::new(Access::ALL));
    let errno = |bytes: usize| register(bytes).map(drop).map_err(|error| error.error.errno().unwrap().raw());
    if part.first {
        assert_eq!(errno((1 << 20) + 1), Err(libc::EINVAL), "longer than max_mr_size");
        // 64 entries of 4 KiB: half of it once, not twice more.
        let half = register(31 * 4096).unwrap();
        assert_eq!(errno(48 * 4096), Err(libc::ENOMEM), "no page table entries left");
        drop(half);
        errno(48 * 4096).unwrap();
        let many: Vec<_> = (0..40).map_while(|_| register(64).ok()).collect();
        assert!((10..=20).contains(&many.len()), "{} registrations of at most 20", many.len());
        drop(many);
        tell_run("register errno=12 nth=2");
        let ends: Vec<_> = (0..3).map(|_| errno(64)).collect();
        assert_eq!(ends, [Ok(()), Err(libc::ENOMEM), Ok(())]);
    }
}

fn handles(part: &Part) {
    let node = Node::open(&cards(&part.fabric)[0], false);
    let name = node.endpoint.name().unwrap().to_vec();
    if part.first {
        // The endpoint itself may hold one handle (to itself); the card has three.
        let mut ends = Vec::new();
        for host in 1..=4u8 {
            let mut other = name.clone();
            other[13] = other[13].wrapping_add(host);
            ends.push(node.vector.insert(&other));
        }
        assert!(ends[0].is_ok() && ends[3].is_err(), "{ends:?}");
        // Those that nobody uses any more make room, also where they had stayed.
        drop(ends);
        let mut other = name;
        other[13] = other[13].wrapping_add(4);
        node.vector.insert(&other).unwrap();
    }
}

fn depth(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let region = side.node.register(vec![0; 1 << 20], Access::ALL);
        side.tell(&region.remote().to_bytes());
        assert_eq!(side.hear(), b"done");
    } else {
        let remote = side.remote();
        assert_eq!(side.node.endpoint.info().transmit_depth(), 64);
        tell_run("hold");
        let region = side.node.register(vec![1; 128 << 10], Access::ALL);
        let peer = side.peer.clone();
        let mut tokens = Vec::new();
        let refused = loop {
            let token = side.node.token();
            match side.node.endpoint.write(&peer, region.slice(0..64).unwrap(), remote.at(0), token) {
                Ok(_) => tokens.push(token),
                Err(error) => break error,
            }
        };
        assert!(matches!(refused, PostError::Again), "{refused}");
        assert_eq!(tokens.len(), 64);
        tell_run("clear");
        for token in tokens {
            side.node.good_end(token);
        }
        // Longer than the card takes: libfabric says so before the card is asked, or the card does.
        let token = side.node.token();
        if side.node.endpoint.write(&peer, region.as_slice(), remote.at(0), token).is_ok() {
            assert_eq!(side.node.end(token).numbers().1, Status::BadLength.vendor() as i32);
        }
        side.tell(b"done");
    }
}

fn bandwidth(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let region = side.node.register(vec![0; 1 << 20], Access::ALL);
        side.tell(&region.remote().to_bytes());
        assert_eq!(side.hear(), b"done");
    } else {
        let remote = side.remote();
        let region = side.node.register(pattern(1, 1 << 20), Access::ALL);
        let peer = side.peer.clone();
        // 4 MiB at 1 Gbit/s take 33.5 ms, whatever the order.
        let start = Instant::now();
        let tokens: Vec<u64> = (0..4).map(|_| side.node.token()).collect();
        for &token in &tokens {
            side.node.post(|endpoint| endpoint.write(&peer, region.as_slice(), remote.at(0), token));
        }
        for token in tokens {
            side.node.good_end(token);
        }
        let took = start.elapsed();
        assert!(took >= Duration::from_millis(33), "{took:?}");
        side.tell(b"done");
    }
}

fn no_receive(part: &Part) {
    let mut side = Side::meet_with(part, |endpoint| endpoint.set(option::EFA_RNR_RETRY, 2).unwrap());
    if side.first {
        assert_eq!(side.hear(), b"done");
        let region = side.node.register(vec![0; 64], Access::ALL);
        let token = side.node.token();
        side.node.post(|endpoint| endpoint.receive(None, region.as_slice(), token));
        side.tell(b"posted");
        side.node.good_end(token);
        side.together();
    } else {
        let region = side.node.register(vec![1; 64], Access::ALL);
        let send = |side: &mut Side| {
            let (token, peer) = (side.node.token(), side.peer.clone());
            side.node.post(|endpoint| endpoint.send(&peer, region.as_slice(), token));
            side.node.end(token).numbers()
        };
        assert_eq!(send(&mut side), (errno_of(Status::RemoteRnr), Status::RemoteRnr.vendor() as i32));
        let counters = tell_run("counters");
        let mine = format!("pid={} ", std::process::id());
        let line = counters.lines().find(|line| line.starts_with(&mine)).unwrap();
        assert!(line.contains(" receiver_not_ready=3 "), "the first attempt and two more: {line}");
        side.tell(b"done");
        assert_eq!(side.hear(), b"posted");
        assert_eq!(send(&mut side), (0, 0), "the endpoint works after that");
        side.together();
    }
}

fn short_receive(part: &Part) {
    let mut side = Side::meet(part, 0);
    let region = side.node.register(vec![1; 4096], Access::ALL);
    let token = side.node.token();
    if side.first {
        side.node.post(|endpoint| endpoint.receive(None, region.slice(0..64).unwrap(), token));
        side.tell(b"posted");
        assert_eq!(side.hear(), b"failed");
        // The receive is still there for a message that fits.
        assert!(!side.node.has_ended(token));
        side.tell(b"go on");
        assert_eq!(side.node.good_end(token).len_bytes, 64);
        side.together();
    } else {
        let peer = side.peer.clone();
        assert_eq!(side.hear(), b"posted");
        side.node.post(|endpoint| endpoint.send(&peer, region.slice(0..65).unwrap(), token));
        let status = Status::RemoteBadLength;
        assert_eq!(side.node.end(token).numbers(), (errno_of(status), status.vendor() as i32));
        side.tell(b"failed");
        assert_eq!(side.hear(), b"go on");
        let token = side.node.token();
        side.node.post(|endpoint| endpoint.send(&peer, region.slice(0..64).unwrap(), token));
        side.node.good_end(token);
        side.together();
    }
}

fn receive_depth(part: &Part) {
    // 192 entries of the queue, three to a receive.
    let mut node = Node::open(&cards(&part.fabric)[0], false);
    let region = node.register(vec![0; 64], Access::ALL);
    let mut posted = 0;
    let refused = loop {
        let token = node.token();
        match node.endpoint.receive(None, region.as_slice(), token) {
            Ok(_) => posted += 1,
            Err(error) => break error,
        }
        assert!(posted < 10_000);
    };
    assert!(matches!(refused, PostError::Again), "{refused}");
    assert_eq!(posted, node.endpoint.info().receive_depth(), "as many as the provider says");
    assert_eq!(posted, 64);
}

fn late_completions(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let region = side.node.register(vec![0; 4096], Access::ALL);
        side.tell(&region.remote().to_bytes());
        for place in [0, 1, 2] {
            assert_eq!(side.hear(), b"look");
            let mut byte = [0];
            region.copy_out(place * 64, &mut byte).unwrap();
            side.tell(&byte);
        }
        assert_eq!(side.hear(), b"done");
    } else {
        let remote = side.remote();
        let region = side.node.register(vec![1; 64], Access::ALL);
        let peer = side.peer.clone();
        let post = |side: &mut Side, place: u64| {
            let (token, peer) = (side.node.token(), peer.clone());
            side.node.post(|endpoint| endpoint.write(&peer, region.as_slice(), remote.at(place * 64), token));
            token
        };
        // The bytes are there, the completion is not.
        tell_run("hold at=end op=write");
        let token = post(&mut side, 0);
        let start = Instant::now();
        loop {
            assert!(!side.node.has_ended(token));
            let counters = tell_run("counters");
            if counters.contains(" write_bytes=64 ") {
                break;
            }
            assert!(start.elapsed() < Duration::from_secs(20), "{counters}");
        }
        side.tell(b"look");
        assert_eq!(side.hear(), [1]);
        // Another rule comes and goes: the request stays held.
        let other = tell_run("fail status=3 op=send");
        tell_run(&format!("remove {}", other.trim()));
        assert!(!side.node.has_ended(token));
        tell_run("clear");
        side.node.good_end(token);

        tell_run("delay at=end us=100000 op=write");
        let start = Instant::now();
        let token = post(&mut side, 1);
        side.node.good_end(token);
        assert!(start.elapsed() >= Duration::from_millis(100));
        tell_run("clear");
        side.tell(b"look");
        assert_eq!(side.hear(), [1]);

        // The bytes have arrived, and yet it counts as failed: a lost answer.
        tell_run("fail at=end status=13 op=write times=1");
        let token = post(&mut side, 2);
        let status = Status::UnresponsiveRemote;
        assert_eq!(side.node.end(token).numbers(), (errno_of(status), status.vendor() as i32));
        side.tell(b"look");
        assert_eq!(side.hear(), [1]);
        tell_run("clear");
        side.tell(b"done");
    }
}

fn flapping(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let region = side.node.register(vec![0; 4096], Access::ALL);
        side.tell(&region.remote().to_bytes());
        assert_eq!(side.hear(), b"done");
    } else {
        let remote = side.remote();
        const HALF: u64 = 20_000;
        tell_run(&format!("flap card=0 us={HALF}"));
        let now = || {
            let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
            // SAFETY: fills a local structure.
            unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
            time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1000
        };
        // Posted while the link is down, a request ends in the next period, when it is up, or later; nothing fails.
        let (mut down, start) = (0, Instant::now());
        while down < 5 {
            let posted = now();
            assert_eq!(side.write_ends(remote, 0), (0, 0));
            if (posted / HALF) % 2 == 1 {
                down += 1;
                assert!(now() / HALF > posted / HALF, "it passed while the link was down");
            }
            assert!(start.elapsed() < Duration::from_secs(30));
        }
        tell_run("clear");
        side.tell(b"done");
    }
}

/// The first process is the target's host, again and again; the second one keeps what it knew of it.
fn restarting(part: &Part) {
    if part.first {
        // One life: says who it is, and dies when it is told to.
        let life: usize = std::env::var("LIFE").unwrap().parse().unwrap();
        // Called once the other process has done with the life before: no card is opened in its place until then.
        let mut line = Line::open(&part.line, true);
        let node = Node::open(&cards(&part.fabric)[0], false);
        let region = node.register(vec![life as u8; 4096], Access::ALL);
        line.tell(&node.endpoint.name().unwrap());
        line.tell(&region.remote().to_bytes());
        let _peer = node.insert(&line.hear(|| {}).unwrap());
        line.tell(b"ready");
        assert_eq!(line.hear(|| {}).unwrap(), b"die");
        // SAFETY: a signal to ourselves.
        unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
        return;
    }
    let numbers: Vec<String> = std::env::var("NUMBERS").unwrap().split(' ').map(str::to_owned).collect();
    let mut node = Node::open(&cards(&part.fabric)[0], false);
    let mut known: Vec<(Vec<u8>, RemoteRegion)> = Vec::new();
    for (life, expected) in numbers.iter().enumerate() {
        let mut line = Line::open(&part.line.with_file_name(format!("life{life}")), false);
        let name = line.hear(|| {}).unwrap();
        let remote = RemoteRegion::from_bytes(line.hear(|| {}).unwrap().try_into().unwrap());
        line.tell(&node.endpoint.name().unwrap());
        assert_eq!(line.hear(|| {}).unwrap(), b"ready");
        // GID, then the queue pair's number: bytes 16 and 17 of the provider's address.
        if let Some((before, _)) = known.last() {
            assert_eq!(before[..16], name[..16], "the same host and card");
            assert_eq!(if before[16..18] == name[16..18] { "same" } else { "other" }, expected);
        }
        let peer = node.insert(&name);
        let mut side = Side { node, line, peer: peer.clone(), first: false };
        assert_eq!(side.write_ends(remote, 0), (0, 0));
        if let Some((before, key)) = known.last().cloned() {
            // What was known of the life before: its address leads nowhere, and its key is good for nothing.
            let stale = (libc::EINVAL, Status::RemoteBadAddress.vendor() as i32);
            assert_eq!(side.write_ends(key, 0), stale, "an old key at the new address, numbers {expected}");
            side.peer = side.node.insert(&before);
            let gone = (libc::ENOTCONN, Status::RemoteBadDestQpn.vendor() as i32);
            assert_eq!(side.write_ends(remote, 0), gone, "the old address, numbers {expected}");
        }
        known.push((name, remote));
        side.tell(b"die");
        assert_eq!(side.line.hear(|| {}), None);
        side.peer = peer;
        let gone = (libc::ECONNABORTED, Status::UnresponsiveRemote.vendor() as i32);
        assert_eq!(side.write_ends(remote, 0), gone, "dead again");
        node = side.node;
    }
}

fn leaving(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let region = side.node.register(vec![0; 4096], Access::ALL);
        side.tell(&region.remote().to_bytes());
        assert_eq!(side.hear(), b"known");
        match part.play.as_str() {
            "closing" => {
                side.node.endpoint.close().unwrap();
                side.tell(b"closed");
                assert_eq!(side.hear(), b"done");
            }
            "exit" => std::process::exit(0),
            _ => {
                // SAFETY: a signal to ourselves.
                unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
            }
        }
    } else {
        let remote = side.remote();
        assert_eq!(side.write_ends(remote, 0), (0, 0));
        side.tell(b"known");
        if part.play == "closing" {
            assert_eq!(side.hear(), b"closed");
            assert_eq!(
                side.write_ends(remote, 0),
                (libc::ENOTCONN, Status::RemoteBadDestQpn.vendor() as i32)
            );
            side.tell(b"done");
            return;
        }
        assert_eq!(side.line.hear(|| {}), None, "the other process is gone");
        let ends = side.write_ends(remote, 0);
        eprintln!("{} on {}: {ends:?}", part.play, part.fabric);
        // Handshaken on `efa`: the provider turns 13 into a number of its own.
        let expected = [Status::UnresponsiveRemote.vendor() as i32, 4124, 4126];
        assert!(expected.contains(&ends.1), "{ends:?}");
        // libfabric 1.17 knows one errno for everything.
        assert!([libc::ECONNABORTED, libc::EIO].contains(&ends.0), "{ends:?}");
        // And again: the second failure comes as fast as the first.
        assert!(expected.contains(&side.write_ends(remote, 0).1));
    }
}

fn survivor(part: &Part) {
    if !part.first {
        let mut side = Side::meet(part, 0);
        let remote = side.remote();
        let size = remote.len_bytes as usize;
        let region = side.node.register(pattern(5, size), Access::ALL);
        tell_run("clear");
        tell_run("kill op=write");
        let (token, peer) = (side.node.token(), side.peer.clone());
        side.node.post(|endpoint| endpoint.write(&peer, region.as_slice(), remote.at(0), token));
        side.node.end(token);
        panic!("we should be dead");
    }
    let deaths: usize = std::env::var("DEATHS").unwrap().parse().unwrap();
    let mut node = Node::open(&cards(&part.fabric)[0], false);
    for death in 0..deaths {
        let place = part.line.with_file_name(format!("line{death}"));
        let mut line = Line::open(&place, true);
        line.tell(&node.endpoint.name().unwrap());
        let peer = node.insert(&line.hear(|| {}).unwrap());
        let mut side = Side { node, line, peer, first: true };
        side.together();
        let region = side.node.register(vec![0; 8 << 20], Access::ALL);
        side.tell(&region.remote().to_bytes());
        let polled = &mut side.node;
        assert_eq!(side.line.hear(|| _ = polled.poll()), None);
        // The dead process's copy is over, and so is what it had announced: giving the memory back does not wait for it.
        let start = Instant::now();
        let bytes = region.into_memory().unwrap();
        assert!(start.elapsed() < Duration::from_secs(10));
        assert!(bytes.len() == 8 << 20);
        // Whoever writes to the dead process hears of it.
        let token = side.node.token();
        let own = side.node.register(vec![1; 64], Access::ALL);
        let peer = side.peer.clone();
        side.node.post(|endpoint| endpoint.send(&peer, own.as_slice(), token));
        let ends = side.node.end(token).numbers();
        assert!(
            ends.1 == Status::UnresponsiveRemote.vendor() as i32
                || ends.1 == Status::UnreachableRemote.vendor() as i32,
            "{ends:?}"
        );
        node = side.node;
    }
}

fn counted(part: &Part) {
    let mut side = Side::meet(part, 0);
    if side.first {
        let region = side.node.register(vec![0; 4096], Access::ALL);
        side.tell(&region.remote().to_bytes());
        assert_eq!(side.hear(), b"done");
    } else {
        let remote = side.remote();
        let region = side.node.register(vec![1; 4096], Access::ALL);
        for _ in 0..10 {
            let (token, peer) = (side.node.token(), side.peer.clone());
            side.node.post(|endpoint| endpoint.write(&peer, region.as_slice(), remote.at(0), token));
            side.node.good_end(token);
        }
        let counters = tell_run("counters");
        let mine = format!("pid={} ", std::process::id());
        let line = counters.lines().find(|line| line.starts_with(&mine)).unwrap();
        assert!(line.contains(" completed=10 ") && line.contains(" write_bytes=40960 "), "{line}");
        let pairs = tell_run("queue-pairs");
        assert!(pairs.lines().any(|line| line.contains(" posted=10 completed=10 failed=0 ")), "{pairs}");
        side.tell(b"done");
    }
}
