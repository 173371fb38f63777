//! The two sides of a lane against a model, without a socket: the streams are cut anywhere, the connection is lost anywhere,
//! and the bytes, the answers and the events must be what plain copying would have given.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use crate::batch::BatchState;
use crate::cipher::Cipher;
use crate::decoder::{Decoder, Step};
use crate::handshake::{Failure, Handshake, Introduction, Psk};
use crate::initiator::{Control, Initiator};
use crate::memory::{Memory, OwnedMemory};
use crate::region::{Access, Region, RegionTable};
use crate::request::Range;
use crate::responder::{Call, Errand, MAX_HELD_BYTES, Responder};
use crate::seam::Gather;
use crate::service::{Service, Session};
use crate::settings::Limits;
use crate::slice::{Cursor, LocalUse, Slice};
use crate::stats::Counters;
use crate::submit::Cutter;
use crate::window::{Seen, Window};
use crate::wire::{self, Header, Kind, Reader};

const LEN: usize = 4096;

fn addr() -> SocketAddr {
    ([127, 0, 0, 1], 7).into()
}

struct World {
    service: Arc<Service>,
    session: Arc<Session>,
    counters: Arc<Counters>,
    here: Arc<OwnedMemory>,
    there: Arc<OwnedMemory>,
    local: Region,
    remote: Region,
}

impl World {
    fn new(events: usize) -> Self {
        let table = Arc::new(RegionTable::default());
        let counters = Arc::new(Counters::default());
        let limits = Limits { events, ..Limits::default() };
        let service = Arc::new(Service::new(Arc::clone(&table), limits, Arc::clone(&counters)));
        let (here, there) = (OwnedMemory::new(LEN).unwrap(), OwnedMemory::new(LEN).unwrap());
        here.write(0, &(0..LEN).map(|i| (i * 7 + 3) as u8).collect::<Vec<_>>()).unwrap();
        there.write(0, &(0..LEN).map(|i| (i * 13 + 11) as u8).collect::<Vec<_>>()).unwrap();
        let local = table.register(here.clone(), Access::LOCAL).unwrap();
        let remote = table.register(there.clone(), Access::READ_WRITE).unwrap();
        let session = service.session(9);
        Self { service, session, counters, here, there, local, remote }
    }

    fn responder(&self) -> Responder {
        Responder::new(Arc::clone(&self.service), Arc::clone(&self.session), addr())
    }

    fn slice(&self, op: &Op, batch: &Arc<BatchState>, index: usize, events: &mut Window) -> Slice {
        let deadline = Instant::now() + Duration::from_secs(3600);
        let mut slice = Slice::empty(deadline);
        slice.ticket = Some(batch.first_ticket(index));
        match op {
            Op::Copy { write, immediate, pieces } => {
                slice.kind = if *write { Kind::Write } else { Kind::Read };
                slice.local = Some(LocalUse::new(&self.local.inner));
                slice.key = self.remote.inner.key;
                for &(l, r, len) in pieces {
                    slice.local_ranges.push(Range { at: l, len });
                    slice.remote_ranges.push(Range { at: self.remote.addr() + r, len });
                    slice.bytes += len;
                }
                if *write && *immediate {
                    slice.event = events.take();
                    slice.immediate = Some(index as u64);
                }
            }
            Op::Notify(bytes) => {
                slice.kind = Kind::Notify;
                slice.event = events.take();
                slice.message = bytes.clone();
            }
            Op::BadKey => {
                slice.kind = Kind::Read;
                slice.local = Some(LocalUse::new(&self.local.inner));
                slice.local_ranges.push(Range { at: 0, len: 8 });
                slice.remote_ranges.push(Range { at: self.remote.addr(), len: 8 });
                slice.bytes = 8;
            }
        }
        slice
    }
}

#[derive(Debug, Clone)]
enum Op {
    Copy { write: bool, immediate: bool, pieces: Vec<(u64, u64, u64)> },
    Notify(Vec<u8>),
    BadKey,
}

/// Disjoint pieces, so that the order in which requests are applied does not matter: the n-th request owns the n-th stripe of
/// both memories.
fn ops() -> impl Strategy<Value = Vec<Op>> {
    let stripe = 256_u64;
    let one = (any::<bool>(), any::<bool>(), prop::collection::vec(1_u64..40, 1..5), 0_u8..10);
    prop::collection::vec((one, prop::collection::vec(any::<u8>(), 0..300)), 1..15).prop_map(move |all| {
        let with_index = all.into_iter().enumerate();
        with_index
            .map(|(i, ((write, immediate, lens, kind), bytes))| match kind {
                0 => Op::BadKey,
                1 => Op::Notify(bytes),
                _ => {
                    let base = i as u64 * stripe;
                    let mut at = 0;
                    let pieces = lens.iter().map(|&len| {
                        let piece = (base + at, base + at + 7, len);
                        at += len + 3;
                        piece
                    });
                    Op::Copy { write, immediate, pieces: pieces.collect() }
                }
            })
            .collect()
    })
}

fn copied(parts: &Gather<'_>, limit: usize) -> Vec<u8> {
    let mut out = vec![0; limit];
    let n = parts.copy_to(&mut out, limit);
    out.truncate(n);
    out
}

/// One step of both directions; false if nothing moved.
fn step(initiator: &mut Initiator, responder: &mut Responder, ask: usize, answer: usize) -> bool {
    let bytes = {
        let mut parts = Gather::new();
        initiator.gather(&mut parts, ask);
        copied(&parts, ask)
    };
    initiator.sent(bytes.len() as u64);
    responder.feed(&bytes).unwrap();
    let back = {
        let mut parts = Gather::new();
        responder.gather(&mut parts, answer);
        copied(&parts, answer)
    };
    responder.sent(back.len() as u64);
    initiator.feed(&back).unwrap();
    !bytes.is_empty() || !back.is_empty()
}

fn check(world: &World, ops: &[Op], before_here: &[u8], before_there: &[u8]) -> Result<(), TestCaseError> {
    let (mut here, mut there) = (before_here.to_vec(), before_there.to_vec());
    for op in ops {
        if let Op::Copy { write, pieces, .. } = op {
            for &(l, r, len) in pieces {
                let (l, r, len) = (l as usize, r as usize, len as usize);
                match write {
                    true => there[r..r + len].copy_from_slice(&before_here[l..l + len]),
                    false => here[l..l + len].copy_from_slice(&before_there[r..r + len]),
                }
            }
        }
    }
    prop_assert!(contents(&world.here) == here, "local memory differs");
    prop_assert!(contents(&world.there) == there, "remote memory differs");
    Ok(())
}

fn contents(memory: &OwnedMemory) -> Vec<u8> {
    let mut bytes = vec![0; memory.len()];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

/// What was delivered: immediates and notifications, sorted.
fn delivered(world: &World) -> (Vec<u64>, Vec<Vec<u8>>) {
    let mut immediates: Vec<_> =
        std::iter::from_fn(|| world.service.arrivals.try_next()).map(|a| a.immediate).collect();
    let mut notes: Vec<_> =
        std::iter::from_fn(|| world.service.notifications.try_next()).map(|n| n.bytes).collect();
    immediates.sort_unstable();
    notes.sort();
    (immediates, notes)
}

fn expected(ops: &[Op]) -> (Vec<u64>, Vec<Vec<u8>>) {
    let immediates = ops.iter().enumerate().filter_map(|(i, op)| match op {
        Op::Copy { write: true, immediate: true, .. } => Some(i as u64),
        _ => None,
    });
    let mut notes: Vec<_> =
        ops.iter().filter_map(|op| if let Op::Notify(b) = op { Some(b.clone()) } else { None }).collect();
    notes.sort();
    (immediates.collect(), notes)
}

proptest! {
    /// Cut the two streams anywhere: the same bytes, each request ended once, each event delivered once.
    #[test]
    fn any_split_of_the_streams_gives_the_same_result(
        ops in ops(),
        cuts in prop::collection::vec((1_usize..400, 1_usize..400), 1..20),
    ) {
        let world = World::new(1000);
        let (here, there) = (contents(&world.here), contents(&world.there));
        let batch = BatchState::with_requests(&world.counters, ops.len());
        let mut events = Window::default();
        let (mut initiator, mut responder) = (Initiator::new(addr(), 1 << 20), world.responder());
        for (i, op) in ops.iter().enumerate() {
            initiator.push(&mut world.slice(op, &batch, i, &mut events), events.floor());
        }
        batch.seal();
        for &(ask, answer) in cuts.iter().cycle() {
            if !step(&mut initiator, &mut responder, ask, answer) && initiator.in_flight() == 0 {
                break;
            }
        }
        prop_assert!(batch.has_ended() && initiator.in_flight() == 0 && initiator.bytes_in_flight() == 0);
        let bad = ops.iter().filter(|op| matches!(op, Op::BadKey)).count();
        let failed = world.counters.snapshot().requests_failed;
        prop_assert_eq!(failed, bad as u64);
        check(&world, &ops, &here, &there)?;
        prop_assert_eq!(delivered(&world), expected(&ops));
    }

    /// Lose the connection anywhere, again and again. After the old lane's responder is gone (that is what superseding it
    /// means) everything that was in flight is sent again: nothing is lost, nothing is delivered twice.
    #[test]
    fn a_lost_lane_loses_nothing_and_repeats_nothing(
        ops in ops(),
        lives in prop::collection::vec((1_usize..3000, 1_usize..500, 1_usize..500), 0..6),
    ) {
        let world = World::new(1000);
        let (here, there) = (contents(&world.here), contents(&world.there));
        let batch = BatchState::with_requests(&world.counters, ops.len());
        let mut events = Window::default();
        let mut waiting: Vec<Slice> =
            ops.iter().enumerate().map(|(i, op)| world.slice(op, &batch, i, &mut events)).collect();
        batch.seal();
        for (budget, ask, answer) in lives.into_iter().chain([(usize::MAX, 977, 1009)]) {
            let (mut initiator, mut responder) = (Initiator::new(addr(), 1 << 20), world.responder());
            for mut slice in waiting.drain(..) {
                initiator.push(&mut slice, events.floor());
            }
            let mut moved = 0;
            while moved < budget && step(&mut initiator, &mut responder, ask, answer) {
                moved += ask + answer;
            }
            for event in initiator.leavings.finished_events.drain(..) {
                events.finish(event);
            }
            waiting.extend(initiator.lost().into_iter().map(|(slice, _)| slice));
        }
        prop_assert!(waiting.is_empty() && batch.has_ended());
        check(&world, &ops, &here, &there)?;
        prop_assert_eq!(delivered(&world), expected(&ops));
    }

    /// Give up on a batch in the middle: every request ends once, reads that were given up stop writing to local memory at
    /// that moment, and the lane goes on in step.
    #[test]
    fn cancelling_anywhere_keeps_the_lane_in_step(ops in ops(), steps in 0_usize..40, cut in 1_usize..200) {
        let world = World::new(1000);
        let batch = BatchState::with_requests(&world.counters, ops.len());
        let mut events = Window::default();
        let (mut initiator, mut responder) = (Initiator::new(addr(), 1 << 20), world.responder());
        for (i, op) in ops.iter().enumerate() {
            initiator.push(&mut world.slice(op, &batch, i, &mut events), events.floor());
        }
        batch.seal();
        for _ in 0..steps {
            step(&mut initiator, &mut responder, cut, cut);
        }
        initiator.cancel(&batch);
        prop_assert!(batch.has_ended());
        let quiet = contents(&world.here);
        while step(&mut initiator, &mut responder, cut, cut) {}
        prop_assert!(contents(&world.here) == quiet, "a cancelled read went on writing");
        prop_assert_eq!(initiator.in_flight(), 0);
        // And the lane still works.
        let again = BatchState::with_requests(&world.counters, 1);
        let op = Op::Copy { write: true, immediate: false, pieces: vec![(0, 0, 100)] };
        initiator.push(&mut world.slice(&op, &again, 0, &mut events), events.floor());
        again.seal();
        while step(&mut initiator, &mut responder, 512, 512) {}
        prop_assert!(again.has_ended());
        prop_assert_eq!(&contents(&world.there)[..100], &contents(&world.here)[..100]);
    }

    /// Say good-bye anywhere: what is in flight is answered all the same, once, and then nothing is half-done.
    #[test]
    fn going_away_anywhere_answers_everything(ops in ops(), steps in 0_usize..60, cut in 1_usize..300) {
        let world = World::new(1000);
        let (here, there) = (contents(&world.here), contents(&world.there));
        let batch = BatchState::with_requests(&world.counters, ops.len());
        let mut events = Window::default();
        let (mut initiator, mut responder) = (Initiator::new(addr(), 1 << 20), world.responder());
        for (i, op) in ops.iter().enumerate() {
            initiator.push(&mut world.slice(op, &batch, i, &mut events), events.floor());
        }
        batch.seal();
        for _ in 0..steps {
            step(&mut initiator, &mut responder, cut, cut);
        }
        responder.go_away();
        responder.go_away(); // said once
        while step(&mut initiator, &mut responder, cut, cut) {}
        prop_assert!(batch.has_ended() && initiator.in_flight() == 0 && responder.is_idle());
        prop_assert_eq!(&initiator.leavings.control, &[Control::GoAway]);
        check(&world, &ops, &here, &there)?;
        prop_assert_eq!(delivered(&world), expected(&ops));
    }

    /// Ask for the end of a lane among other requests: the question is put once, and its answer is told as that lane's.
    #[test]
    fn superseding_is_asked_once_and_answered_once(ops in ops(), lanes in prop::collection::vec(any::<u64>(), 1..5), cut in 1_usize..300) {
        let world = World::new(1000);
        let batch = BatchState::with_requests(&world.counters, ops.len());
        let mut events = Window::default();
        let (mut initiator, mut responder) = (Initiator::new(addr(), 1 << 20), world.responder());
        let late = Instant::now() + Duration::from_secs(3600);
        for (i, op) in ops.iter().enumerate() {
            initiator.push(&mut world.slice(op, &batch, i, &mut events), events.floor());
            if let Some(&lane) = lanes.get(i) {
                initiator.push(&mut Slice::control(Kind::Supersede, lane, late), 0);
            }
        }
        batch.seal();
        let asked: Vec<u64> = lanes.iter().copied().take(ops.len()).collect();
        let mut closed = Vec::new();
        loop {
            let moved = step(&mut initiator, &mut responder, cut, cut);
            prop_assert!(initiator.leavings.control.len() <= closed.len(), "told before it was done");
            let errands = std::mem::take(&mut responder.errands);
            if !moved && errands.is_empty() {
                break;
            }
            for errand in errands {
                let Errand::Supersede { id, lane } = errand else { panic!("{errand:?}") };
                closed.push(lane);
                responder.answer(id, 0);
            }
        }
        prop_assert_eq!(&closed, &asked);
        let told: Vec<u64> = initiator
            .leavings
            .control
            .iter()
            .map(|c| match c { Control::Superseded(lane) => *lane, other => panic!("{other:?}") })
            .collect();
        prop_assert_eq!(&told, &asked);
        prop_assert!(batch.has_ended() && initiator.in_flight() == 0);
    }

    /// A full queue delays events and loses none.
    #[test]
    fn a_full_queue_delays_events_and_loses_none(count in 1_usize..12, room in 1_usize..4) {
        let world = World::new(room);
        let ops: Vec<_> =
            (0..count).map(|i| Op::Copy { write: true, immediate: true, pieces: vec![(i as u64, i as u64, 1)] }).collect();
        let batch = BatchState::with_requests(&world.counters, count);
        let mut events = Window::default();
        let (mut initiator, mut responder) = (Initiator::new(addr(), 1 << 20), world.responder());
        for (i, op) in ops.iter().enumerate() {
            initiator.push(&mut world.slice(op, &batch, i, &mut events), events.floor());
        }
        batch.seal();
        let mut seen = Vec::new();
        for _ in 0..=count {
            while step(&mut initiator, &mut responder, 4096, 4096) {}
            let (immediates, _) = delivered(&world);
            prop_assert!(immediates.len() <= room);
            seen.extend(immediates);
            for mut slice in std::mem::take(&mut initiator.leavings.later) {
                initiator.push(&mut slice, events.floor());
            }
        }
        seen.sort_unstable();
        prop_assert_eq!(seen, (0..count as u64).collect::<Vec<_>>());
        prop_assert!(batch.has_ended());
    }

    /// Garbage never panics, and is never taken for progress.
    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..600), cut in 1_usize..100) {
        let world = World::new(10);
        let there = contents(&world.there);
        let (mut initiator, mut responder) = (Initiator::new(addr(), 1 << 20), world.responder());
        for piece in bytes.chunks(cut) {
            if responder.feed(piece).is_err() {
                break;
            }
        }
        for piece in bytes.chunks(cut) {
            if initiator.feed(piece).is_err() {
                break;
            }
        }
        prop_assert!(contents(&world.there) == there);
    }

    /// A frame whose fields are right but whose contents are the peer's choice: at worst a refusal.
    #[test]
    fn well_formed_lies_are_refused(
        kind in any::<u8>(), flags in any::<u8>(), id in any::<u64>(), payload in 0_u64..64,
        meta in prop::collection::vec(any::<u8>(), 0..80), guess_key in any::<bool>(),
    ) {
        let world = World::new(10);
        let there = contents(&world.there);
        let mut responder = world.responder();
        let mut meta = meta;
        if guess_key && meta.len() >= 16 {
            meta[..16].copy_from_slice(&world.local.inner.key.0);
        }
        let header =
            Header { kind, flags, code: 0, meta_len: meta.len() as u32, id, payload_len: payload };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend(meta);
        bytes.extend(vec![0x5a; payload as usize]);
        let _ = responder.feed(&bytes);
        prop_assert!(contents(&world.there) == there, "a write without a key changed memory");
    }

    #[test]
    fn frames_survive_any_split(
        frames in prop::collection::vec(
            (any::<u8>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..200), prop::collection::vec(any::<u8>(), 0..300)),
            0..8,
        ),
        cut in 1_usize..120,
    ) {
        let mut stream = Vec::new();
        for (kind, id, meta, payload) in &frames {
            let header = Header {
                kind: *kind, flags: 0, code: 0, meta_len: meta.len() as u32, id: *id, payload_len: payload.len() as u64,
            };
            stream.extend(header.to_bytes());
            stream.extend(meta);
            stream.extend(payload);
        }
        let mut decoder = Decoder::default();
        let mut seen: Vec<(u8, u64, Vec<u8>, Vec<u8>)> = Vec::new();
        for mut piece in stream.chunks(cut) {
            loop {
                match decoder.step(&mut piece).unwrap() {
                    Step::Starved => break,
                    Step::Frame(h, meta) => seen.push((h.kind, h.id, meta.to_vec(), Vec::new())),
                    Step::Payload(p) => seen.last_mut().unwrap().3.extend(p),
                }
            }
        }
        prop_assert!(decoder.is_idle());
        prop_assert_eq!(seen, frames);
    }

    #[test]
    fn ranges_are_read_as_they_were_written(
        ranges in prop_oneof![
            prop::collection::vec((0_u64..1 << 48, 1_u64..1 << 30), 1..200),
            (0_u64..1 << 40, 1_u64..10_000, 0_u64..10_000, 1_usize..300).prop_map(|(at, len, gap, n)| {
                (0..n as u64).map(|i| (at + i * (len + gap), len)).collect()
            }),
            prop::collection::vec(0_u64..1 << 48, 1..200).prop_map(|a| a.into_iter().map(|a| (a, 4096)).collect()),
        ],
        base in prop_oneof![Just(0), 0_u64..1 << 48],
    ) {
        let mut ranges: Vec<_> = ranges.into_iter().map(|(at, len)| Range { at, len }).collect();
        let mut bytes = Vec::new();
        match base {
            0 => wire::put_ranges(&mut bytes, &ranges),
            _ => wire::put_ranges_at(&mut bytes, &ranges, base),
        }
        ranges.iter_mut().for_each(|r| r.at += base);
        let (mut reader, mut back) = (Reader(&bytes), Vec::new());
        let total = wire::get_ranges(&mut reader, &mut back).unwrap();
        prop_assert_eq!(total, ranges.iter().map(|r| r.len).sum::<u64>());
        prop_assert!(reader.end().is_ok());
        prop_assert_eq!(back, ranges);
    }

    #[test]
    fn slices_partition_a_request(
        local in prop::collection::vec(1_u64..3 << 20, 1..30),
        cuts in prop::collection::vec(1_u64..1 << 20, 0..40),
        longest in prop_oneof![50_000_u64..4 << 20, Just(u64::MAX)],
    ) {
        let total: u64 = local.iter().sum();
        let mut remote = Vec::new();
        let mut left = total;
        for cut in cuts.into_iter().chain([u64::MAX]) {
            let len = cut.min(left);
            if len > 0 {
                remote.push(Range { at: remote.len() as u64 * (8 << 20), len });
            }
            left -= len;
        }
        let local: Vec<_> =
            local.iter().enumerate().map(|(i, &len)| Range { at: i as u64 * (4 << 20), len }).collect();
        let mut cutter = Cutter::new(&local, &remote, total, longest);
        let (mut locals, mut remotes, mut sum) = (Vec::new(), Vec::new(), 0);
        while !cutter.is_done() {
            let (mut l, mut r) = (Vec::new(), Vec::new());
            let n = cutter.next(&mut l, &mut r);
            prop_assert!(n > 0 && n <= longest.min(crate::submit::MAX_SLICE));
            prop_assert_eq!(l.iter().map(|r| r.len).sum::<u64>(), n);
            prop_assert_eq!(r.iter().map(|r| r.len).sum::<u64>(), n);
            sum += n;
            l.into_iter().for_each(|r| crate::request::push_merged(&mut locals, 0, r));
            r.into_iter().for_each(|r| crate::request::push_merged(&mut remotes, 0, r));
        }
        prop_assert_eq!(sum, total);
        let mut want = Vec::new();
        local.into_iter().for_each(|r| crate::request::push_merged(&mut want, 0, r));
        prop_assert_eq!(locals, want);
        let mut want = Vec::new();
        remote.into_iter().for_each(|r| crate::request::push_merged(&mut want, 0, r));
        prop_assert_eq!(remotes, want);
    }

    #[test]
    fn a_cursor_walks_every_byte(lens in prop::collection::vec(1_u64..50, 1..10), steps in prop::collection::vec(1_u64..60, 1..30)) {
        let ranges: Vec<_> = lens.iter().enumerate().map(|(i, &len)| Range { at: i as u64 * 100, len }).collect();
        let flat: Vec<u64> = ranges.iter().flat_map(|r| r.at..r.at + r.len).collect();
        let (mut cursor, mut done) = (Cursor::default(), 0);
        for step in steps {
            let rest: Vec<u64> = cursor.rest(&ranges).flat_map(|r| r.at..r.at + r.len).collect();
            prop_assert_eq!(&rest[..], &flat[done..]);
            cursor.advance(&ranges, step);
            done = (done + step as usize).min(flat.len());
        }
    }

    /// Receiver and sender of the window against a set.
    #[test]
    fn the_window_remembers_exactly_what_was_delivered(steps in prop::collection::vec((0_u64..40, any::<bool>()), 0..200)) {
        let mut window = Window::default();
        let mut delivered = std::collections::BTreeSet::new();
        let mut floor = 0;
        for (number, raise) in steps {
            if raise && number > floor {
                floor = number;
                window.raise(floor);
            }
            let before = number < floor || delivered.contains(&number);
            prop_assert_eq!(window.seen(number) == Seen::Before, before, "{} floor {}", number, floor);
            if !before {
                window.finish(number);
                delivered.insert(number);
            }
        }
    }

    #[test]
    fn handshakes_agree_for_any_split(
        cut in 1_usize..64, encrypt in any::<bool>(), secret in prop::option::of(prop::collection::vec(any::<u8>(), 16..40)),
        message in prop::collection::vec(any::<u8>(), 1..2000),
    ) {
        let encrypt = encrypt && secret.is_some();
        let psk = secret.map(|s| Psk::derive(&s).unwrap());
        let hello = Introduction { session: 1, lane: 2, encrypt, ..Introduction::default() };
        let welcome = Introduction { session: 3, encrypt, challenge: [7; 32], ..Introduction::default() };
        let mut a = Handshake::dial(hello.clone(), psk.clone()).unwrap();
        let mut b = Handshake::accept(welcome.clone(), psk);
        let (mut at_a, mut at_b) = (None, None);
        for _ in 0..10_000 {
            let n = a.outgoing().len().min(cut).min(b.wants());
            if n > 0 {
                let bytes = a.outgoing()[..n].to_vec();
                a.sent(n);
                at_b = at_b.or(b.feed(&bytes).unwrap());
            }
            let n = b.outgoing().len().min(cut).min(a.wants());
            if n > 0 {
                let bytes = b.outgoing()[..n].to_vec();
                b.sent(n);
                at_a = at_a.or(a.feed(&bytes).unwrap());
            }
            if at_a.is_some() && at_b.is_some() {
                break;
            }
        }
        let (at_a, at_b) = (at_a.unwrap(), at_b.unwrap());
        prop_assert_eq!((&at_a.theirs, &at_b.theirs), (&welcome, &hello));
        prop_assert_eq!((at_a.cipher.is_some(), at_b.cipher.is_some()), (encrypt, encrypt));
        if let (Some(mut a), Some(mut b)) = (at_a.cipher, at_b.cipher) {
            a.seal(&message).unwrap();
            a.seal(&message).unwrap();
            let sealed = a.outgoing().to_vec();
            prop_assert!(!sealed.windows(message.len().min(16)).any(|w| message.len() >= 16 && w == &message[..16]));
            prop_assert_eq!(open(&mut b, &sealed, cut), Ok([message.clone(), message.clone()].concat()));
            // One flipped bit anywhere in a record is noticed.
            a.sent(sealed.len());
            a.seal(&message).unwrap();
            let mut forged = a.outgoing().to_vec();
            let at = 2 + cut % (forged.len() - 2);
            forged[at] ^= 1;
            prop_assert!(open(&mut b, &forged, cut).is_err());
        }
    }

    #[test]
    fn a_wrong_secret_is_refused(right in prop::collection::vec(any::<u8>(), 16..40), flip in any::<prop::sample::Index>()) {
        let mut wrong = right.clone();
        wrong[flip.index(right.len())] ^= 1;
        let a = Handshake::dial(Introduction::default(), Psk::derive(&wrong)).unwrap();
        let mut b = Handshake::accept(Introduction::default(), Psk::derive(&right));
        prop_assert!(matches!(b.feed(a.outgoing()), Err(Failure::Authentication(_))));
    }

    #[test]
    fn handshake_garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..400), native in any::<bool>()) {
        for psk in [None, Psk::derive(&[1; 16])] {
            let mut input = if native { crate::handshake::preface(psk.is_some()).to_vec() } else { Vec::new() };
            input.extend(&bytes);
            let _ = Handshake::accept(Introduction::default(), psk.clone()).feed(&input);
            let _ = Handshake::dial(Introduction::default(), psk).unwrap().feed(&bytes);
        }
    }
}

fn open(cipher: &mut Cipher, sealed: &[u8], cut: usize) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::new();
    for mut piece in sealed.chunks(cut) {
        while let Some(plain) = cipher.open(&mut piece).map_err(|e| e.0)? {
            out.extend_from_slice(plain);
        }
    }
    Ok(out)
}

/// What an attacker has recorded opens nothing: the first message of a session that it replays is answered, but it cannot
/// prove that it holds the session's keys.
#[test]
fn a_recorded_hello_opens_nothing() {
    let psk = Psk::derive(b"sixteen bytes or more");
    let mut a = Handshake::dial(Introduction::default(), psk.clone()).unwrap();
    let first = a.outgoing().to_vec();
    a.sent(first.len());
    let mut b = Handshake::accept(Introduction::default(), psk.clone());
    assert!(b.feed(&first).unwrap().is_none());
    let reply = b.outgoing().to_vec();
    assert!(a.feed(&reply).unwrap().is_none());
    let second = a.outgoing().to_vec();
    assert!(b.feed(&second).unwrap().is_some(), "the real one gets in");

    let mut fresh = Handshake::accept(Introduction::default(), psk);
    assert!(fresh.feed(&first).unwrap().is_none(), "a replay looks like a first message");
    assert!(
        matches!(fresh.feed(&second), Err(Failure::Authentication(_))),
        "but the recorded proof does not fit"
    );
}

#[test]
fn a_call_is_for_the_handler_and_its_answer_comes_back() {
    let world = World::new(10);
    let batch = BatchState::with_requests(&world.counters, 1);
    let (mut initiator, mut responder) = (Initiator::new(addr(), 1 << 20), world.responder());
    let mut slice = Slice::empty(Instant::now() + Duration::from_secs(60));
    (slice.kind, slice.event, slice.message) = (Kind::Call, Some(0), b"question".to_vec());
    slice.ticket = Some(batch.first_ticket(0));
    initiator.push(&mut slice, 0);
    batch.seal();
    while step(&mut initiator, &mut responder, 5, 5) {}
    assert_eq!(responder.next_call(0), None);
    let Some(Call { id, request }) = responder.next_call(1) else { panic!("no call") };
    assert_eq!(request, b"question");
    responder.answer_call(id, Ok(b"answer".to_vec()));
    while step(&mut initiator, &mut responder, 5, 5) {}
    assert!(batch.has_ended());
    assert_eq!(batch.take_answer(), b"answer");
}

/// Places are used again, ids are not: what answers an earlier request must not end the later one in the same place.
#[test]
fn an_answer_to_an_earlier_request_is_refused() {
    let world = World::new(1);
    let batch = BatchState::with_requests(&world.counters, 2);
    let mut initiator = Initiator::new(addr(), 1000);
    let op = Op::Copy { write: true, immediate: false, pieces: vec![(0, 0, 8)] };
    let send = |initiator: &mut Initiator, index| {
        let id = initiator.push(&mut world.slice(&op, &batch, index, &mut Window::default()), 0);
        let mut out = Gather::new();
        initiator.gather(&mut out, usize::MAX);
        let bytes = out.bytes() as u64;
        initiator.sent(bytes);
        Header::answer(id, 0, 0).to_bytes()
    };
    let first = send(&mut initiator, 0);
    initiator.feed(&first).unwrap();
    let second = send(&mut initiator, 1);
    assert_ne!(first, second);
    assert!(initiator.feed(&first).is_err() && !batch.has_ended());
}

/// A read's answer brings as many bytes as were asked for, or the stream cannot be trusted any more.
#[test]
fn a_read_whose_answer_has_another_length_is_refused() {
    for (payload, fine) in [(8, true), (0, false), (7, false), (9, false), (u64::MAX, false)] {
        let world = World::new(1);
        let batch = BatchState::with_requests(&world.counters, 1);
        let mut initiator = Initiator::new(addr(), 1000);
        let op = Op::Copy { write: false, immediate: false, pieces: vec![(0, 0, 8)] };
        let id = initiator.push(&mut world.slice(&op, &batch, 0, &mut Window::default()), 0);
        let mut out = Gather::new();
        initiator.gather(&mut out, usize::MAX);
        let bytes = out.bytes() as u64;
        initiator.sent(bytes);
        let answer = Header::answer(id, 0, payload).to_bytes();
        assert_eq!(initiator.feed(&answer).is_ok(), fine, "{payload} bytes for a read of 8");
    }
}

/// What an answer may bring is bounded by what this side is willing to hold, before it holds any of it.
#[test]
fn answers_that_are_too_long_are_refused() {
    let (limit, text) = (1000, 4096);
    for (kind, code, payload, fine) in [
        (Kind::Call, 0, limit, true),
        (Kind::Call, 0, limit + 1, false),
        (Kind::Call, 8, text, true),
        (Kind::Call, 8, text + 1, false),
        (Kind::Call, 5, text + 1, false),
        (Kind::Notify, 0, 1, false),
        (Kind::Notify, 1, u64::MAX, false),
    ] {
        let world = World::new(1);
        let batch = BatchState::with_requests(&world.counters, 1);
        let mut initiator = Initiator::new(addr(), limit);
        let mut slice = Slice::empty(Instant::now() + Duration::from_secs(60));
        (slice.kind, slice.event, slice.ticket) = (kind, Some(0), Some(batch.first_ticket(0)));
        let id = initiator.push(&mut slice, 0);
        let mut out = Gather::new();
        initiator.gather(&mut out, usize::MAX);
        let bytes = out.bytes() as u64;
        initiator.sent(bytes);
        let answer = Header::answer(id, code, payload).to_bytes();
        assert_eq!(initiator.feed(&answer).is_ok(), fine, "{kind:?} code {code}: {payload} bytes");
    }
}

/// Revoking turns answers that have not begun into refusals. One that has begun has promised its bytes: only closing the lane can
/// end it.
#[test]
fn revoking_turns_answers_that_have_not_begun_into_refusals() {
    for begun in [0_u64, 1, 24, 30] {
        let world = World::new(1);
        let batch = BatchState::with_requests(&world.counters, 1);
        let (mut initiator, mut responder) = (Initiator::new(addr(), 1000), world.responder());
        let op = Op::Copy { write: false, immediate: false, pieces: vec![(0, 0, 64)] };
        initiator.push(&mut world.slice(&op, &batch, 0, &mut Window::default()), 0);
        let mut out = Gather::new();
        initiator.gather(&mut out, usize::MAX);
        responder.feed(&copied(&out, LEN)).unwrap();
        responder.sent(begun);
        world.remote.revoke();
        assert_eq!(responder.read_revoked(), begun == 0, "{begun} bytes had been sent");
        if begun == 0 {
            let mut out = Gather::new();
            responder.gather(&mut out, usize::MAX);
            let said = copied(&out, LEN);
            let header = Header::from_bytes(said.first_chunk().unwrap());
            let revoked = crate::error::Refusal::Revoked as u16;
            assert_eq!((said.len(), header.code, header.payload_len), (24, revoked, 0));
        }
    }
}

/// A write whose region is revoked while its bytes come is refused, and not one byte more is applied.
#[test]
fn a_write_in_progress_is_refused_when_its_region_is_revoked() {
    let world = World::new(1);
    let before = contents(&world.there);
    let batch = BatchState::with_requests(&world.counters, 1);
    let (mut initiator, mut responder) = (Initiator::new(addr(), 1000), world.responder());
    let op = Op::Copy { write: true, immediate: false, pieces: vec![(0, 0, 64)] };
    initiator.push(&mut world.slice(&op, &batch, 0, &mut Window::default()), 0);
    let mut out = Gather::new();
    initiator.gather(&mut out, usize::MAX);
    let frame = copied(&out, LEN);
    let (first, rest) = frame.split_at(frame.len() - 40);
    responder.feed(first).unwrap();
    world.remote.revoke();
    responder.feed(rest).unwrap();
    let mut out = Gather::new();
    responder.gather(&mut out, usize::MAX);
    let header = Header::from_bytes(copied(&out, LEN).first_chunk().unwrap());
    assert_eq!(header.code, crate::error::Refusal::Revoked as u16);
    assert_eq!(contents(&world.there)[24..], before[24..]);
}

/// Whoever asks and takes no answers is not read any further when what waits for it has a certain size: lists of ranges, messages
/// to the handler, answers of the handler.
#[test]
fn what_waits_for_a_peer_is_bounded() {
    let world = World::new(10);
    let most = MAX_HELD_BYTES;
    // Reads of many small ranges.
    let mut responder = world.responder();
    let mut meta = world.remote.inner.key.0.to_vec();
    let ranges: Vec<_> =
        (0..4000).map(|i| Range { at: world.remote.addr() + i % 7, len: 1 + i % 2 }).collect();
    wire::put_ranges(&mut meta, &ranges);
    let mut read = Header { kind: Kind::Read as u8, meta_len: meta.len() as u32, ..Header::answer(1, 0, 0) };
    let each = 4000 * size_of::<Range>() as u64;
    for count in 0..most.div_ceil(each) {
        assert!(responder.wants_input(), "stops after {count}");
        read.id = count;
        responder.feed(&[&read.to_bytes()[..], &meta].concat()).unwrap();
    }
    assert!(!responder.wants_input(), "goes on with {} reads unanswered", most.div_ceil(each));
    // One answer leaves, and there is room again.
    responder.sent(24 + 6000);
    assert!(responder.wants_input());

    // Messages to the handler, which has none at the moment.
    let call = |number: u64, request: &[u8]| {
        let meta = [number.to_le_bytes(), 0_u64.to_le_bytes()].concat();
        let header = Header {
            kind: Kind::Call as u8,
            meta_len: meta.len() as u32,
            ..Header::answer(number, 0, request.len() as u64)
        };
        [&header.to_bytes()[..], &meta, request].concat()
    };
    let mut responder = world.responder();
    let mut number = 0;
    while responder.wants_input() {
        responder.feed(&call(number, &vec![1; 8 << 20])).unwrap();
        number += 1;
    }
    assert_eq!(number, most / (8 << 20));
    // It takes two at a time, and nothing more while too many answers wait, which also come to a bound.
    for _ in 0..2 {
        responder.next_call(2).unwrap();
        assert!(responder.wants_input());
        responder.feed(&call(number, &vec![1; 8 << 20])).unwrap();
        number += 1;
    }
    assert_eq!(responder.next_call(2), None);
    let mut responder = world.responder();
    (1000..1100).for_each(|number| responder.feed(&call(number, b"")).unwrap());
    let mut answered = 0;
    while let Some(Call { id, .. }) = responder.next_call(1) {
        responder.answer_call(id, Ok(vec![0; 4 << 20]));
        answered += 1;
    }
    assert_eq!(answered, most / (4 << 20));
    assert!(!responder.wants_input() && responder.has_unsent());
    responder.sent(24 + (4 << 20));
    assert!(responder.wants_input() && responder.next_call(1).is_some());
}

/// After a cancellation has been answered, an answer that had not begun is one of refusal. One that has begun goes on.
#[test]
fn cancelling_takes_back_answers_that_have_not_begun() {
    for begun in [0_u64, 1, 24, 30] {
        let world = World::new(1);
        let mut responder = world.responder();
        let mut meta = world.remote.inner.key.0.to_vec();
        wire::put_ranges(&mut meta, &[Range { at: world.remote.addr(), len: 64 }]);
        let read = Header { kind: Kind::Read as u8, meta_len: meta.len() as u32, ..Header::answer(7, 0, 0) };
        responder.feed(&[&read.to_bytes()[..], &meta].concat()).unwrap();
        responder.sent(begun);
        let cancel = Header { kind: Kind::Cancel as u8, meta_len: 8, ..Header::answer(8, 0, 0) };
        responder.feed(&[&cancel.to_bytes()[..], &7_u64.to_le_bytes()].concat()).unwrap();
        let mut out = Gather::new();
        responder.gather(&mut out, usize::MAX);
        let said = copied(&out, LEN);
        if begun > 0 {
            assert_eq!(said.len() as u64, 24 + 64 - begun + 24, "{begun} bytes had been sent");
            continue;
        }
        let (first, second) = said.split_first_chunk().unwrap();
        let cancelled = crate::error::Refusal::Cancelled as u16;
        assert_eq!(Header::from_bytes(first), Header::answer(7, cancelled, 0));
        assert_eq!(Header::from_bytes(second.first_chunk().unwrap()), Header::answer(8, 0, 0));
        assert_eq!(second.len(), 24);
    }
}
