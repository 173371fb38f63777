//! The real `efa` provider over software cards: every number of cards, every profile, every size.

mod common;

use std::time::{Duration, Instant};

use common::cards::{control, on_cards};
use common::{
    Target, checksum, config, efa_cards, eventually, memory, open, pattern, processor_times, serve, soon,
};
use efa_transport::{Batch, Event, Op, Region, Request, Shape, Status, Transport};

const MIB: usize = 1 << 20;

/// Not a test: the target's process, when the tests below start it.
#[test]
fn target_process() {
    serve();
}

/// Opens the initiator in a process that is on cards.
fn initiator(test: &str, provider: &str, nics: usize) -> Option<Transport> {
    open(test, config(provider, nics, "initiator").stuck_after(Duration::from_secs(1)))
}

fn submit(transport: &Transport, request: Request<'_>) -> efa_transport::BatchHandle {
    let mut batch = Batch::new();
    batch.push(request).expect("a request");
    transport.submit(&mut batch).expect("submitting")
}

/// Writes and reads of many sizes and alignments, all bytes of both sides compared after each.
fn every_byte(transport: &Transport, target: &mut Target, region: &Region, len: usize, sizes: &[usize]) {
    let peer = target.meet(transport);
    let source = pattern(len, 2);
    let mut there = pattern(len, 1);
    target.fill(1);
    for (round, &size) in sizes.iter().enumerate() {
        region.write(0, &source).expect("our memory");
        let (from, to) = ((round * 7 + 1).min(len - size), (len - size).saturating_sub(round * 3));
        let (local, remote) = (region.addr() + from as u64, target.addr + to as u64);
        submit(transport, Request::write(peer, region, local, remote, size as u64)).wait().expect("a write");
        there[to..to + size].copy_from_slice(&source[from..from + size]);
        assert_eq!(target.checksum(), checksum(&there), "a write of {size} bytes from {from} to {to}");
        // Back, to another place.
        let (from, to) = ((len - size).saturating_sub(round * 5), (round * 11 + 3).min(len - size));
        let (local, remote) = (region.addr() + to as u64, target.addr + from as u64);
        submit(transport, Request::read(peer, region, local, remote, size as u64)).wait().expect("a read");
        let mut expected = source.clone();
        expected[to..to + size].copy_from_slice(&there[from..from + size]);
        let mut seen = vec![0; len];
        region.read(0, &mut seen).expect("our memory");
        assert!(seen == expected, "a read of {size} bytes from {from} to {to}");
    }
}

const SIZES: [usize; 9] = [1, 31, 4_095, 8_929, 65_536, 262_145, MIB, 2_500_001, 4 * MIB - 77];

fn moves_bytes(test: &str, nics: usize, profile: &str, provider: &str) {
    on_cards(test, nics, profile, &[], || {
        let len = 4 * MIB;
        // Many registrations for one buffer: every request crosses seams, on both sides.
        let config = config(provider, nics, "initiator").max_mr_bytes(640 << 10);
        let Some(transport) = open(test, config) else { return };
        let described = transport.describe();
        assert_eq!(described.nics.len(), nics);
        // Whoever is on the slow path is told so.
        let slow = profile == "p4d";
        assert_eq!(described.device_rdma, Some(!slow), "{described}");
        let warned = described.warnings.iter().any(|warning| warning.contains("emulates writes"));
        assert_eq!(warned, slow, "{described}");
        let mut target = Target::start(provider, nics, "target", len);
        let region = memory(&transport, len);
        assert!(region.registrations() >= 6 * nics, "{} registrations", region.registrations());
        every_byte(&transport, &mut target, &region, len, &SIZES);
        let statistics = transport.statistics();
        assert!(statistics.nics.iter().all(|nic| nic.bytes_written > 0), "{statistics:?}");
        assert!(statistics.nics.iter().all(|nic| nic.in_flight == 0 && nic.queued == 0), "{statistics:?}");
        // One entry for each rail in use, and no more.
        let entries: usize = statistics.nics.iter().map(|nic| nic.addresses).sum();
        assert!(entries <= nics, "{entries} entries for {nics} cards");
        transport.shutdown(soon());
    });
}

#[test]
fn one_card_of_p5_directly() {
    moves_bytes("one_card_of_p5_directly", 1, "p5", "efa/efa-direct");
}

#[test]
fn four_cards_of_p5_directly() {
    moves_bytes("four_cards_of_p5_directly", 4, "p5", "efa/efa-direct");
}

#[test]
fn sixteen_cards_of_p6_directly() {
    moves_bytes("sixteen_cards_of_p6_directly", 16, "p6", "efa/efa-direct");
}

#[test]
fn thirty_two_cards_of_p5_directly() {
    moves_bytes("thirty_two_cards_of_p5_directly", 32, "p5", "efa/efa-direct");
}

/// Device reads and emulated writes.
#[test]
fn four_cards_of_p4d_with_the_providers_protocols() {
    moves_bytes("four_cards_of_p4d_with_the_providers_protocols", 4, "p4d", "efa/efa");
}

#[test]
fn sixteen_cards_of_p5_with_the_providers_protocols() {
    moves_bytes("sixteen_cards_of_p5_with_the_providers_protocols", 16, "p5", "efa/efa");
}

/// Catches: rails to cards that are not there, keys looked up by the wrong side's card.
#[test]
fn different_numbers_of_cards_on_both_sides() {
    let test = "different_numbers_of_cards_on_both_sides";
    on_cards(test, 16, "p5", &[], || {
        for (ours, theirs) in [(1, 4), (4, 16), (16, 4), (3, 7)] {
            let Some(transport) = initiator(test, "efa/efa-direct", ours) else { return };
            let mut target = Target::start("efa/efa-direct", theirs, "target", 2 * MIB);
            let region = memory(&transport, 2 * MIB);
            every_byte(&transport, &mut target, &region, 2 * MIB, &[1, 70_000, 2 * MIB - 9]);
            let peer = target.meet(&transport);
            let warm = transport.warm_up(peer, soon()).expect("warming up");
            assert_eq!((warm.rails, warm.failed), (ours.max(theirs), vec![]), "{ours} against {theirs}");
            let entries: usize = transport.statistics().nics.iter().map(|nic| nic.addresses).sum();
            assert_eq!(entries, ours.max(theirs), "{ours} against {theirs}");
            transport.shutdown(soon());
        }
    });
}

/// Catches: lengths that are cut to 32 bits, slices longer than the card takes.
#[test]
fn a_gibibyte_in_one_request() {
    let test = "a_gibibyte_in_one_request";
    let free = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemAvailable:"))?;
        line.split_whitespace().nth(1)?.parse::<u64>().ok()
    });
    if std::env::var_os("WEFT_TEST_QUICK").is_some() {
        return eprintln!("SKIP: {test}: a long run");
    }
    if free.is_some_and(|kib| kib < 5 << 20) {
        return eprintln!("SKIP: {test}: less than 5 GiB of memory are free");
    }
    on_cards(test, 4, "p5", &[], || {
        let Some(transport) = initiator(test, "efa/efa-direct", 4) else { return };
        let len = (1 << 30) + 4096;
        let mut target = Target::start("efa/efa-direct", 4, "target", len);
        let peer = target.meet(&transport);
        let region = memory(&transport, len);
        let block = pattern(MIB, 3);
        for at in (0..1 << 30).step_by(MIB) {
            region.write(at, &block).expect("our memory");
        }
        // From an odd address to another one.
        let write = Request::write(peer, &region, region.addr() + 1, target.addr + 3, 1 << 30);
        submit(&transport, write).wait().expect("a write");
        let sums = target.sums(MIB);
        let mut expected = [&[0; 3], &block[1..], &block[..1]].concat();
        expected.truncate(MIB);
        assert_eq!(sums[0], checksum(&expected), "the first");
        // All further ones begin three bytes late and one byte on.
        let shifted = [&block[MIB - 2..], &block[..MIB - 2]].concat();
        assert!(sums[1..1023].iter().all(|&sum| sum == checksum(&shifted)), "in between");
        let read = Request::read(peer, &region, region.addr() + 4096, target.addr + 3, 1 << 30);
        submit(&transport, read).wait().expect("a read");
        let mut seen = vec![0; MIB];
        region.read(4096 + (777 << 20), &mut seen).expect("our memory");
        assert!(seen[..MIB - 1] == block[1..], "read back");
        transport.shutdown(soon());
    });
}

/// Catches: batches for several peers that are mixed up; one peer's table used for another.
#[test]
fn eight_processes_in_one_batch() {
    let test = "eight_processes_in_one_batch";
    on_cards(test, 4, "p5", &[], || {
        let Some(transport) = initiator(test, "efa/efa-direct", 4) else { return };
        let len = MIB;
        let mut targets: Vec<Target> =
            (0..7).map(|n| Target::start("efa/efa-direct", 4, &format!("target-{n}"), len)).collect();
        let peers: Vec<_> = targets.iter_mut().map(|target| target.meet(&transport)).collect();
        let region = memory(&transport, 7 * len);
        let source = pattern(7 * len, 4);
        region.write(0, &source).expect("our memory");
        let mut batch = Batch::new();
        let page = 16_384_u64;
        for (n, (target, &peer)) in targets.iter().zip(&peers).enumerate() {
            // Pages in reverse.
            let there: Vec<u64> = (0..64).rev().map(|p| target.addr + p * page).collect();
            let here = Shape::contiguous(region.addr() + (n * len) as u64, len as u64);
            let remote_shape = Shape::Paged { page_len: page, addrs: &there };
            let request = Request {
                op: Op::Write,
                peer,
                local: &region,
                local_shape: here,
                remote_shape,
                immediate: None,
            };
            batch.push(request).expect("a request");
        }
        transport.submit(&mut batch).expect("submitting").wait().expect("seven writes");
        for (n, target) in targets.iter_mut().enumerate() {
            let pages = source[n * len..(n + 1) * len].chunks(page as usize).rev();
            let expected: Vec<u8> = pages.flatten().copied().collect();
            assert_eq!(target.checksum(), checksum(&expected), "target {n}");
        }
        transport.shutdown(soon());
    });
}

/// Waits for an event; what else happens meanwhile does not matter.
fn expect_event(transport: &Transport, what: &str, wanted: impl Fn(&Event) -> bool) {
    let deadline = soon();
    while let Some(event) = transport.events().next(deadline) {
        if wanted(&event) {
            return;
        }
    }
    panic!("no event: {what}");
}

/// Catches: requests that fail with a card; a card that is tried for ever, or never again.
#[test]
fn a_dead_card_is_set_aside_and_let_back_in_and_the_others_carry_on() {
    let test = "a_dead_card_is_set_aside_and_let_back_in_and_the_others_carry_on";
    on_cards(test, 4, "p5", &[], || {
        let Some(transport) = initiator(test, "efa/efa-direct", 4) else { return };
        let names = efa_cards();
        let mut target = Target::start("efa/efa-direct", 4, "target", 4 * MIB);
        let peer = target.meet(&transport);
        let region = memory(&transport, 4 * MIB);
        let put = || {
            let write = Request::write(peer, &region, region.addr(), target.addr, 4 * MIB as u64);
            submit(&transport, write).wait()
        };
        put().expect("all well");
        // Ours; then theirs.
        for host in [65_536, 65_537] {
            let rule = control(&format!("down card=2 host={host}"));
            for round in 0..20 {
                put().unwrap_or_else(|error| panic!("card 2 of host {host} is dead, round {round}: {error}"));
            }
            if host == 65_536 {
                let down = Event::NicDown { nic: names[2].clone() };
                expect_event(&transport, "our card is down", |event| *event == down);
                assert!(transport.describe().nics[2].aside || transport.statistics().nics[2].errors > 4);
            } else {
                let state = transport.peer_state(peer).expect("a peer");
                assert!(!state.down && !state.stale, "{state:?}");
                eventually("their card is set aside", || {
                    put().expect("the others carry on");
                    transport.peer_state(peer).expect("a peer").nics_well == 3
                });
            }
            control(&format!("remove {}", rule.trim()));
            if host == 65_536 {
                let up = Event::NicUp { nic: names[2].clone() };
                expect_event(&transport, "our card is back without any traffic", |event| *event == up);
            } else {
                eventually("their card is back without any traffic", || {
                    transport.peer_state(peer).expect("a peer").nics_well == 4
                });
            }
            let before = transport.statistics().nics[2].bytes_written;
            put().expect("all well again");
            assert!(transport.statistics().nics[2].bytes_written > before, "card 2 carries traffic again");
        }
        transport.shutdown(soon());
    });
}

/// Catches: requests that fail because several cards have died at once, here or there, before one of them has been set aside; slices
/// that go back to a card that they have failed on while there are others, which have more to do.
#[test]
fn several_of_sixteen_cards_die_at_once() {
    let test = "several_of_sixteen_cards_die_at_once";
    on_cards(test, 16, "p6", &[], || {
        const LEN: usize = 2 * MIB;
        // Ours; then theirs, who is the third to be started.
        for (host, count) in [(65_536, 3), (65_536, 11), (65_539, 5)] {
            let Some(transport) = initiator(test, "efa/efa-direct", 16) else { return };
            let mut target = Target::start("efa/efa-direct", 16, "target", LEN);
            let peer = target.meet(&transport);
            let region = memory(&transport, LEN);
            assert_eq!(transport.warm_up(peer, soon()).expect("all well").rails, 16);
            let addr = target.addr;
            let put = |len: usize| {
                submit(&transport, Request::write(peer, &region, region.addr(), addr, len as u64))
            };
            let dead: Vec<usize> = (0..count).map(|nth| nth * 7 % 16).collect();
            // Those that live are busy: the first thing that each of them is told to do takes until the end.
            let alive = (0..16).filter(|card| !dead.contains(card));
            alive.for_each(|card| drop(control(&format!("hold op=write card={card} times=1"))));
            let busy = put(LEN);
            eventually("the other cards are idle", || {
                transport.progress();
                let nics = transport.statistics().nics;
                nics.iter().map(|nic| nic.in_flight + nic.queued).sum::<usize>() == 16 - count
            });
            // Nothing but attempts tells of that.
            dead.iter().for_each(|card| drop(control(&format!("down card={card} host={host}"))));
            for round in 0..4 {
                let before = transport.statistics().retries;
                let outcome = put(4096).wait();
                let retries = transport.statistics().retries - before;
                let what = format!("round {round} with {count} cards of host {host} dead");
                outcome.unwrap_or_else(|error| panic!("{what}: {error}"));
                assert!(retries <= count as u64, "{what}: one slice, {retries} retries");
                assert!(retries > 0 || round > 0, "{what}: nothing has gone over a dead card");
            }
            control("clear");
            busy.wait().expect("what was held");
            dead.iter().for_each(|card| drop(control(&format!("down card={card} host={host}"))));
            for round in 0..3 {
                let bytes = pattern(LEN, round);
                region.write(0, &bytes).expect("our memory");
                put(LEN).wait().unwrap_or_else(|error| panic!("{count} cards of host {host} dead: {error}"));
                assert_eq!(target.checksum(), checksum(&bytes));
            }
            control("clear");
            transport.shutdown(soon());
        }
    });
}

/// Catches: a peer that stays down for ever; an event that never comes; attempts that are counted wrongly.
#[test]
fn a_peer_that_is_cut_off_is_down_and_comes_up_again_by_itself() {
    let test = "a_peer_that_is_cut_off_is_down_and_comes_up_again_by_itself";
    on_cards(test, 2, "p5", &[], || {
        let Some(transport) = initiator(test, "efa/efa-direct", 2) else { return };
        let mut target = Target::start("efa/efa-direct", 2, "target", MIB);
        let peer = target.meet(&transport);
        let region = memory(&transport, MIB);
        let put = || {
            let write = Request::write(peer, &region, region.addr(), target.addr, MIB as u64);
            submit(&transport, write).wait()
        };
        put().expect("all well");
        control("unreachable host=65537");
        let error = put().expect_err("it is cut off").to_string();
        assert!(error.contains("target"), "{error}");
        expect_event(&transport, "PeerDown", |event| matches!(event, Event::PeerDown { .. }));
        assert!(transport.peer_quiesced(peer, soon()).expect("a peer"));
        let state = transport.peer_state(peer).expect("a peer");
        assert!(state.down && state.outstanding == 0, "{state:?}");
        control("clear");
        // Nobody sends anything.
        expect_event(&transport, "PeerUp", |event| matches!(event, Event::PeerUp { .. }));
        assert!(!transport.peer_state(peer).expect("a peer").down);
        put().expect("all well again");
        transport.shutdown(soon());
    });
}

/// Catches: late writes into memory that the caller has been told is free; memory let go of too early.
#[test]
fn after_a_cancellation_quiesced_says_when_no_byte_moves_any_more() {
    let test = "after_a_cancellation_quiesced_says_when_no_byte_moves_any_more";
    on_cards(test, 2, "p5", &[], || {
        let Some(transport) = initiator(test, "efa/efa-direct", 2) else { return };
        let mut target = Target::start("efa/efa-direct", 2, "target", MIB);
        let peer = target.meet(&transport);
        let region = memory(&transport, MIB);
        target.fill(1);
        region.write(0, &pattern(MIB, 2)).expect("our memory");
        let rule = control("hold op=write");
        let write = Request::write(peer, &region, region.addr(), target.addr, MIB as u64);
        let handle = submit(&transport, write);
        handle.cancel();
        assert!(matches!(handle.status(0), Status::Failed(efa_transport::Error::Cancelled)));
        assert!(!handle.quiesced(Instant::now() + Duration::from_millis(50)), "the cards hold it");
        assert!(transport.peer_state(peer).expect("a peer").outstanding > 0);
        assert!(!transport.peer_quiesced(peer, Instant::now()).expect("a peer"));
        control(&format!("remove {}", rule.trim()));
        assert!(handle.quiesced(soon()));
        assert_eq!(transport.peer_state(peer).expect("a peer").outstanding, 0);
        let after = target.checksum();
        let again = Request::read(peer, &region, region.addr(), target.addr, 64);
        submit(&transport, again).wait().expect("a read");
        assert_eq!(target.checksum(), after);
        transport.shutdown(soon());
    });
}

/// Catches: small writes that hang with doorbell batching, as they have been seen to on other engines.
#[test]
fn doorbell_batching_loses_nothing() {
    let test = "doorbell_batching_loses_nothing";
    on_cards(test, 2, "p5", &[], || {
        // Batches longer than the queue is deep: the last one that fits must ring the bell.
        let config = config("efa/efa-direct", 2, "initiator").doorbell_batching(true).depth(8);
        let Some(transport) = open(test, config) else { return };
        let len = 2 * MIB;
        let mut target = Target::start("efa/efa-direct", 2, "target", len);
        let peer = target.meet(&transport);
        let region = memory(&transport, len);
        every_byte(&transport, &mut target, &region, len, &[1, 64, 5_000, 300_000]);
        let mut batch = Batch::new();
        for round in 0..200 {
            for page in 0..1 + round % 40 {
                let at = page * 8_192;
                let write = Request::write(peer, &region, region.addr() + at, target.addr + at, 64);
                batch.push(write).expect("a request");
            }
            transport.submit(&mut batch).expect("submitting").wait().expect("small writes");
        }
        transport.shutdown(soon());
    });
}

/// Catches: an address that is taken out of the vector and inserted again, of a target that has made its handshake and makes no second.
#[test]
fn a_peer_that_was_removed_and_comes_again_is_reached() {
    let test = "a_peer_that_was_removed_and_comes_again_is_reached";
    on_cards(test, 1, "p5", &[], || {
        for provider in ["efa/efa", "efa/efa-direct"] {
            let Some(transport) = initiator(test, provider, 1) else { return };
            let mut target = Target::start(provider, 1, "target", MIB);
            let region = memory(&transport, MIB);
            for round in 0..3 {
                let peer = target.meet(&transport);
                region.write(0, &pattern(MIB, round)).expect("our memory");
                let write = Request::write(peer, &region, region.addr(), target.addr, MIB as u64);
                submit(&transport, write)
                    .wait()
                    .unwrap_or_else(|error| panic!("{provider}, round {round}: {error}"));
                assert_eq!(target.checksum(), checksum(&pattern(MIB, round)));
                assert!(transport.remove_peer(peer));
                // Whatever is cleared away when nothing is under way is cleared away now.
                eventually("the address is let go of", || {
                    transport.statistics().nics.iter().all(|nic| nic.addresses == 0)
                });
            }
            transport.shutdown(soon());
        }
    });
}

/// Catches: a first contact that waits for a timer that is too coarse, with and without wait objects.
#[test]
fn first_contact_is_answered_within_five_milliseconds() {
    let test = "first_contact_is_answered_within_five_milliseconds";
    on_cards(test, 1, "p5", &[], || {
        // With the provider's protocols the target's software answers.
        let Some(transport) = initiator(test, "efa/efa", 1) else { return };
        let mut fastest = Duration::MAX;
        for n in 0..40 {
            let mut target = Target::start("efa/efa", 1, &format!("target-{n}"), MIB);
            let peer = target.meet(&transport);
            // Let it fall asleep: that it has is not to be seen from here.
            std::thread::sleep(Duration::from_millis(300));
            // What is lost to whatever else runs on this machine is not the transport's.
            let waited = |times: Option<(_, Duration)>| times.map_or(Duration::ZERO, |(_, waited)| waited);
            let waits = || waited(processor_times(std::process::id())) + waited(target.processor_times());
            let before = waits();
            let warm = transport.warm_up(peer, soon()).expect("warming up");
            fastest = fastest.min(warm.took.saturating_sub(waits().saturating_sub(before)));
            // One is enough: a timer that is too coarse spoils them all, a busy machine only some.
            if fastest <= Duration::from_millis(5) {
                break;
            }
        }
        assert!(fastest <= Duration::from_millis(5), "{fastest:?}");
        transport.shutdown(soon());
    });
}
