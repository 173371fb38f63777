//! The run's own clock: order, times and faults that are the same in each run of the same program with the same seed.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use fabric_safe::Access;
use soft_efa::abi::{
    IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_READ, IBV_ACCESS_REMOTE_WRITE, ibv_cq, ibv_mr, ibv_qp,
};
use soft_efa::clock::Clock;
use soft_efa::{Network, settings};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;
use support::node::{Line, Side};
use support::verbs::{Card, To, Verbs, Work, number, part, target};
use support::{Part, alone, library_2, network, two};

fn virtual_network(nics: usize, gbps: &str, latency_us: &str) -> Network {
    let mut network = network(nics, "p5");
    network.set(settings::CLOCK, "virtual").set(settings::GBPS, gbps).set(settings::LATENCY_US, latency_us);
    network
}

#[test]
fn the_same_seed_gives_the_same_order_times_and_faults() {
    let folder = tempfile::tempdir().unwrap();
    let faults = folder.path().join("faults");
    std::fs::write(
        &faults,
        "fail status=13 prob=0.2\ndelay us=7 op=read prob=0.5\nfail status=8 at=end op=write every=9\n",
    )
    .unwrap();
    let run_with = |seed: u64, gbps: &str, faults: &Path| {
        let mut network = virtual_network(2, gbps, "10");
        network.set(settings::SEED, seed.to_string()).set(settings::FAULTS, faults);
        alone(&network, "transcript")
    };
    let run = |seed, gbps| run_with(seed, gbps, &faults);
    for gbps in ["100,50", "0"] {
        let first = run(7, gbps);
        assert!(first.lines().count() > 200 && first.contains("status 13"), "{first}");
        for again in 0..3 {
            assert!(run(7, gbps) == first, "seed 7, {gbps} Gbit/s: run {again} differs from the first");
        }
        assert!(run(8, gbps) != first, "another seed gives other faults");
    }
    let none = folder.path().join("none");
    std::fs::write(&none, "").unwrap();
    assert!(run_with(7, "0", &none) != run_with(8, "0", &none), "another seed gives another order");
}

#[test]
fn bandwidth_and_latency_are_exact() {
    let said = alone(&virtual_network(2, "100,50", "10,20"), "exact times");
    // 1 MiB at 100 Gbit/s takes 83,886.08 ns, at 50 Gbit/s twice that; a nanosecond is lost to rounding here and there.
    let expected: Vec<(usize, u64)> =
        (1..=8u64).flat_map(|n| [(0, 10_000 + n * 83_886), (1, 20_000 + n * 167_772)]).collect();
    let mut seen: Vec<(usize, u64)> = said
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(card, at)| (card.parse().unwrap(), at.parse().unwrap()))
        .collect();
    assert_eq!(seen.len(), 16, "{said}");
    assert!(seen.windows(2).all(|pair| pair[0].1 <= pair[1].1), "time goes forward: {said}");
    seen.sort_unstable();
    let mut expected = expected;
    expected.sort_unstable();
    assert_eq!(seen, expected);
}

#[test]
fn schedules_over_uneven_cards_can_be_compared_to_the_nanosecond() {
    let network = virtual_network(3, "100,50,25", "5");
    let said = alone(&network, "schedules");
    let spans: Vec<u64> = said.lines().map(|line| line.parse().unwrap()).collect();
    let [round_robin, least_loaded] = spans[..] else { panic!("{said}") };
    // 70 slices of 256 KiB: a third of them over the slowest card, or as many over each as it can take.
    let slice = |gbps: u64| (256 << 10) * 8 / gbps;
    assert_eq!(round_robin, 23 * slice(25) + 5000);
    let ideal = 70 * (256 << 10) * 8 / 175;
    assert!(least_loaded < ideal + 2 * slice(25) + 5000, "{least_loaded} against {ideal}");
    assert!(least_loaded < round_robin);
}

#[test]
fn a_manual_clock_moves_when_it_is_told_to() {
    let mut network = virtual_network(1, "0", "100");
    network.set(settings::CLOCK, "manual");
    alone(&network, "by hand");
    assert_eq!(network.control("clock").unwrap().trim(), "150000");
}

#[test]
fn processes_share_one_clock() {
    let network = virtual_network(1, "0", "10");
    let folder = tempfile::tempdir().unwrap();
    let line = folder.path().join("line");
    let start = |first| {
        support::Running(support::without_libfabric(&network, "ping-pong", first, &line).spawn().unwrap())
    };
    let (mut first, mut second) = (start(true), start(false));
    assert_eq!((first.wait().code(), second.wait().code()), (Some(0), Some(0)));
    // Fifty round trips of two messages of 10 µs.
    assert_eq!(network.control("clock").unwrap().trim(), "1000000");
}

#[test]
fn time_does_not_jump_over_what_another_process_does() {
    let network = virtual_network(2, "0", "10,1000");
    let folder = tempfile::tempdir().unwrap();
    let line = folder.path().join("line");
    let start = |first| {
        support::Running(support::without_libfabric(&network, "one waits", first, &line).spawn().unwrap())
    };
    let (mut first, mut second) = (start(true), start(false));
    assert_eq!((first.wait().code(), second.wait().code()), (Some(0), Some(0)));
}

#[test]
fn libfabric_lives_on_that_clock_too() {
    let test = "libfabric_lives_on_that_clock_too";
    let Some(library) = library_2(test) else { return };
    // An hour of latency.
    two(&virtual_network(1, "10", "3600000000"), &library, "efa-direct", "an hour");
    two(&virtual_network(1, "10", "100"), &library, "efa", "an hour");
}

/// The part of a child; does nothing unless started by a test.
#[test]
fn child() {
    let Some(part) = Part::mine() else { return };
    match part.play.as_str() {
        "transcript" => transcript(&part),
        "exact times" => exact_times(&part),
        "schedules" => schedules(&part),
        "by hand" => by_hand(),
        "ping-pong" => ping_pong(&part),
        "one waits" => one_waits(&part),
        "an hour" => an_hour(&part),
        other => panic!("no play called {other}"),
    }
}

fn clock() -> Clock {
    Clock::open(&PathBuf::from(std::env::var_os(settings::DIR).unwrap())).unwrap()
}

const QKEY: u32 = 0x1234;
const ALL: u32 = IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_REMOTE_WRITE;
const BYTES: usize = 2 << 20;

/// One card of this process with everything it needs to talk to the others.
struct Own {
    card: Card,
    queue: *mut ibv_cq,
    qp: *mut ibv_qp,
    mr: *mut ibv_mr,
    _memory: Vec<u8>,
    to: Vec<To>,
}

/// All cards of this process, each knowing each other: a process is a peer like any other.
fn own_cards(count: usize) -> Vec<Own> {
    let verbs = Verbs::load();
    let mut all: Vec<Own> = (0..count)
        .map(|index| {
            let card = Card::open(&verbs, index);
            let queue = card.queue(4096);
            let qp = card.queue_pair(queue, false, 1024, QKEY);
            let mut memory = vec![0u8; BYTES];
            let mr = card.register(memory.as_mut_ptr(), BYTES, ALL);
            Own { card, queue, qp, mr, _memory: memory, to: Vec::new() }
        })
        .collect();
    let peers: Vec<_> = all.iter().map(|own| (own.card.gid, number(own.qp))).collect();
    for own in &mut all {
        let to = |&(gid, number): &([u8; 16], u32)| To { handle: own.card.handle(&gid), number, qkey: QKEY };
        own.to = peers.iter().map(to).collect();
    }
    all
}

impl Own {
    fn write(&self, to: usize, mr: *mut ibv_mr, id: u64, length: usize) {
        let (address, rkey) = target(mr);
        let posted = self.card.post(
            self.qp,
            id,
            Work::Write { rkey, address },
            self.to[to],
            &[part(self.mr, 0, length)],
        );
        assert_eq!(posted, 0);
    }
}

fn transcript(told: &Part) {
    let clock = clock();
    let cards = own_cards(2);
    let mut text = String::new();
    let mut dice = 0x2545_f491_4f6c_dd1du64;
    let mut roll = |below: u64| {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        dice % below
    };
    for id in 0..100 {
        for own in &cards {
            assert_eq!(own.card.receive(own.qp, 10_000 + id, &mut [part(own.mr, 1 << 20, 8192)]), 0);
        }
    }
    let (mut posted, mut open) = (0, 0);
    let mut post = |posted: &mut u64| {
        let (from, to) = (roll(2) as usize, roll(2) as usize);
        let (address, rkey) = target(cards[to].mr);
        let (work, most) = match roll(5) {
            0 => (Work::Send, 8000),
            1 => (Work::SendImm(7), 8000),
            2 => (Work::Read { rkey, address }, 100_000),
            3 => (Work::WriteImm { rkey, address, imm: 9 }, 100_000),
            _ => (Work::Write { rkey, address }, 100_000),
        };
        let sge = part(cards[from].mr, 0, roll(most) as usize + 1);
        assert_eq!(cards[from].card.post(cards[from].qp, *posted, work, cards[from].to[to], &[sge]), 0);
        *posted += 1;
    };
    for _ in 0..60 {
        post(&mut posted);
        open += 1;
    }
    let mut quiet = 0;
    // Until all requests have ended, and then until their receives have been seen.
    while open > 0 || quiet < 4 {
        quiet += 1;
        for (index, own) in cards.iter().enumerate() {
            while let Some(end) = own.card.poll(own.queue) {
                quiet = 0;
                let now = clock.now().as_nanos();
                writeln!(
                    text,
                    "{now} card {index} request {} status {} bytes {}",
                    end.wr_id, end.vendor_err, end.byte_len
                )
                .unwrap();
                if end.wr_id < 10_000 {
                    open -= 1;
                    // Each end makes room for the next, as in a transport.
                    if posted < 160 {
                        post(&mut posted);
                        open += 1;
                    }
                }
            }
        }
    }
    std::fs::write(&told.line, text).unwrap();
}

fn exact_times(told: &Part) {
    let clock = clock();
    let cards = own_cards(2);
    for n in 0..8 {
        cards.iter().for_each(|own| own.write(0, cards[0].mr, n, 1 << 20));
    }
    let mut text = String::new();
    let mut open = 16;
    while open > 0 {
        for (index, own) in cards.iter().enumerate() {
            while let Some(end) = own.card.poll(own.queue) {
                assert_eq!(end.status, 0);
                writeln!(text, "{index} {}", clock.now().as_nanos()).unwrap();
                open -= 1;
            }
        }
    }
    std::fs::write(&told.line, text).unwrap();
}

fn schedules(told: &Part) {
    let clock = clock();
    let cards = own_cards(3);
    const SLICES: usize = 70;
    let mut text = String::new();
    for by_load in [false, true] {
        let start = clock.now();
        let mut open = [0usize; 3];
        let (mut next, mut ended) = (0, 0);
        while ended < SLICES {
            // In turn, or to each card as soon as it has less than two slices to do.
            while next < SLICES {
                let card = if by_load {
                    let Some(free) = (0..3).find(|&card| open[card] < 2) else { break };
                    free
                } else {
                    next % 3
                };
                cards[card].write(0, cards[0].mr, next as u64, 256 << 10);
                open[card] += 1;
                next += 1;
            }
            for (card, own) in cards.iter().enumerate() {
                while own.card.poll(own.queue).is_some() {
                    open[card] -= 1;
                    ended += 1;
                }
            }
        }
        writeln!(text, "{}", (clock.now() - start).as_nanos()).unwrap();
    }
    std::fs::write(&told.line, text).unwrap();
}

fn by_hand() {
    let clock = clock();
    let cards = own_cards(1);
    let own = &cards[0];
    own.write(0, own.mr, 1, 64);
    for _ in 0..1000 {
        assert!(own.card.poll(own.queue).is_none(), "before its time");
    }
    clock.advance(Duration::from_micros(50));
    own.write(0, own.mr, 2, 64);
    assert!(own.card.poll(own.queue).is_none());
    assert_eq!(clock.advance(Duration::from_nanos(49_999)), Duration::from_nanos(99_999));
    assert!(own.card.poll(own.queue).is_none(), "a nanosecond early");
    clock.advance(Duration::from_nanos(1));
    assert_eq!(own.card.poll(own.queue).unwrap().wr_id, 1);
    assert!(own.card.poll(own.queue).is_none());
    clock.advance(Duration::from_micros(50));
    assert_eq!(own.card.poll(own.queue).unwrap().wr_id, 2);
}

fn ping_pong(told: &Part) {
    let card = Card::open(&Verbs::load(), 0);
    let queue = card.queue(256);
    let qp = card.queue_pair(queue, false, 64, QKEY);
    let mut memory = vec![0u8; 4096];
    let mr = card.register(memory.as_mut_ptr(), memory.len(), ALL);
    let mut line = Line::open(&told.line, told.first);
    line.tell(&[&card.gid[..], &number(qp).to_le_bytes()[..]].concat());
    let theirs = line.hear(|| {}).unwrap();
    let (gid, number) = theirs.split_at(16);
    let to = To {
        handle: card.handle(gid.try_into().unwrap()),
        number: u32::from_le_bytes(number.try_into().unwrap()),
        qkey: QKEY,
    };
    for id in 0..50 {
        assert_eq!(card.receive(qp, 1000 + id, &mut [part(mr, 0, 64)]), 0);
    }
    line.tell(b"ready");
    assert_eq!(line.hear(|| {}).unwrap(), b"ready");
    let until = |wanted: fn(u64) -> bool| loop {
        if let Some(end) = card.poll(queue) {
            assert_eq!(end.status, 0);
            if wanted(end.wr_id) {
                return;
            }
        }
    };
    for round in 0..50 {
        if told.first {
            assert_eq!(card.post(qp, round, Work::Send, to, &[part(mr, 64, 64)]), 0);
            until(|id| id >= 1000);
        } else {
            until(|id| id >= 1000);
            assert_eq!(card.post(qp, round, Work::Send, to, &[part(mr, 64, 64)]), 0);
        }
    }
    if !told.first {
        // The last message's own end; until then the other process needs our clock.
        until(|id| id == 49);
    }
    line.tell(b"done");
    while line.hear(|| _ = card.poll(queue)).is_none() {}
}

/// The first process waits a millisecond for one write; the second one does fifty of ten microseconds, one after the other, meanwhile.
fn one_waits(told: &Part) {
    let clock = clock();
    let cards = own_cards(2);
    let mut line = Line::open(&told.line, told.first);
    let end = |own: &Own, at: u64| {
        while own.card.poll(own.queue).is_none() {}
        assert_eq!(clock.now(), Duration::from_micros(at));
    };
    if told.first {
        assert_eq!(line.hear(|| {}).unwrap(), b"begun");
        cards[1].write(1, cards[1].mr, 0, 64);
        line.tell(b"go on");
        end(&cards[1], 1000);
    } else {
        cards[0].write(0, cards[0].mr, 0, 64);
        line.tell(b"begun");
        assert_eq!(line.hear(|| {}).unwrap(), b"go on");
        end(&cards[0], 10);
        for n in 2..=50 {
            cards[0].write(0, cards[0].mr, 0, 64);
            end(&cards[0], 10 * n);
        }
    }
}

fn an_hour(told: &Part) {
    let mut side = Side::meet(told, 0);
    let clock = clock();
    if side.first {
        let region = side.node.register(vec![0; 1 << 20], Access::ALL);
        side.tell(&region.remote().to_bytes());
        assert_eq!(side.hear(), b"done");
        assert!(region.into_memory().unwrap() == support::pattern(1, 1 << 20));
    } else {
        let remote = side.remote();
        let region = side.node.register(support::pattern(1, 1 << 20), Access::ALL);
        let (token, peer) = (side.node.token(), side.peer.clone());
        let start = clock.now();
        side.node.post(|endpoint| endpoint.write(&peer, region.as_slice(), remote.at(0), token));
        side.node.good_end(token);
        let took = clock.now() - start;
        if told.fabric == "efa-direct" {
            assert_eq!(took, Duration::from_secs(3600) + Duration::from_nanos(838_860));
        } else {
            // The provider's handshake goes first.
            assert!(took > Duration::from_micros(938), "{took:?}");
        }
        side.tell(b"done");
    }
}
