//! The end of a transport that has asked for something: what is running is finished as if there were no end, over whatever
//! connections it takes; what is not finished in time ends then; and what may still be applied is not called quiet.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::io::{Read, Write};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use common::raw::{Acceptor, Asked, Liar, Served, go_away, is_closed};
use common::{Asker, Target, builder, pattern, soon, until};
use tcp_transport::{
    Access, Batch, BatchHandle, Builder, Deadlines, Error, Limits, OwnedMemory, Path, Peer, Status, Transport,
};

const LEN: usize = 4096;
const LONG: Duration = Duration::from_secs(60);

const WRITE: u8 = 2;
const SUPERSEDE: u8 = 9;

/// One that asks an acceptor over one lane, which takes two requests at a time.
struct World {
    acceptor: Acceptor,
    asker: Asker,
    peer: Peer,
}

impl World {
    fn new() -> Self {
        let limits = Limits { lane_requests: 2, ..Limits::default() };
        let (acceptor, asker) = (Acceptor::new(), Asker::new(builder().lanes(1).limits(limits), LEN));
        let peer = asker.transport.peer(acceptor.addr()).unwrap();
        Self { acceptor, asker, peer }
    }

    /// Writes; nobody waits for it.
    fn write(&self, len: u64) -> BatchHandle {
        let mut batch = Batch::new();
        batch.set_deadline(LONG);
        self.asker.write(&mut batch, &self.peer, Acceptor::region(LEN as u64), 0, len);
        self.asker.transport.submit(&mut batch).unwrap()
    }

    /// Begins to shut down, which is certain when this returns.
    fn leave(&self, limit: Duration) -> JoinHandle<Instant> {
        let transport = self.asker.transport.clone();
        let leaving = std::thread::spawn(move || {
            transport.shutdown(Instant::now() + limit);
            Instant::now()
        });
        until("nothing new is taken", || {
            let memory = OwnedMemory::new(1).unwrap();
            matches!(self.asker.transport.register(memory, Access::LOCAL), Err(Error::ShutDown))
        });
        leaving
    }

    /// A lane of the acceptor's dies, which is known when this returns.
    fn lose(&self, lane: Served) {
        lane.close();
        until("it is lost", || self.asker.transport.statistics().lanes_lost == 1);
    }

    /// A request, on a lane that takes nothing new.
    fn write_and_go_away(&self) -> (BatchHandle, Served, Asked) {
        let handle = self.write(1);
        assert!(handle.poll().is_none());
        let mut lane = self.acceptor.lane();
        let write = lane.asked();
        lane.stream.write_all(&go_away()).unwrap();
        until("the lane takes nothing new", || self.peer.path() == Path::Unknown);
        (handle, lane, write)
    }

    /// Each of so many requests has ended, once.
    fn ended(&self, done: u64, failed: u64) {
        let statistics = self.asker.transport.statistics();
        assert_eq!((statistics.requests_done, statistics.requests_failed), (done, failed));
    }
}

/// Whoever never gives up on a lane, so that what nobody takes off a socket is not asked for once more.
fn patient() -> Builder {
    builder().deadlines(Deadlines { stall: LONG, ..Deadlines::default() })
}

/// That it does not end can only be seen for a while.
fn is_waiting(leaving: &JoinHandle<Instant>) {
    std::thread::sleep(Duration::from_millis(50));
    assert!(!leaving.is_finished());
}

fn is_shut_down(handle: &BatchHandle) -> bool {
    matches!(handle.poll(), Some(Err(Error::ShutDown)))
}

/// Nothing else is going on: what waits for a lane to be superseded is waited for all the same.
#[test]
fn a_request_that_has_lost_its_lane_is_waited_for() {
    let world = World::new();
    let handle = world.write(1);
    assert!(handle.poll().is_none());
    let mut first = world.acceptor.lane();
    let write = first.asked();
    let leaving = world.leave(LONG);
    world.lose(first);
    is_waiting(&leaving);
    let mut second = world.acceptor.lane();
    let question = second.asked();
    assert_eq!(question.kind, SUPERSEDE);
    second.answer(question.id, 0);
    let again = second.asked();
    assert_eq!((again.kind, again.meta), (write.kind, write.meta));
    second.answer(again.id, 0);
    leaving.join().unwrap();
    assert!(matches!(handle.poll(), Some(Ok(()))) && handle.quiesced(soon()));
    world.ended(1, 0);
}

/// Two are on the lane, one waits for room there: all are repeated elsewhere, those that may have arrived after the end of the lane
/// is certain.
#[test]
fn a_lane_lost_meanwhile_is_made_good() {
    for lost_before in [true, false] {
        let world = World::new();
        let handles = [1, 2, 3].map(|len| world.write(len));
        let mut first = world.acceptor.lane();
        [first.asked(), first.asked()].iter().for_each(|write| assert_eq!(write.kind, WRITE));
        let lost = first.number.to_le_bytes();
        let leaving;
        if lost_before {
            world.lose(first);
            leaving = world.leave(LONG);
        } else {
            leaving = world.leave(LONG);
            first.close();
        }
        let mut second = world.acceptor.lane();
        let mut left = 3;
        let question = loop {
            let asked = second.asked();
            if asked.kind == SUPERSEDE {
                break asked;
            }
            assert_eq!((asked.kind, asked.payload.len()), (WRITE, 3), "repeated before its lane has ended");
            second.answer(asked.id, 0);
            left -= 1;
        };
        assert_eq!(question.meta, lost);
        assert!(handles[..2].iter().all(|h| matches!(h.status(0), Status::Pending)));
        assert!(!leaving.is_finished());
        second.answer(question.id, 0);
        (0..left).for_each(|_| {
            let asked = second.asked();
            assert_eq!(asked.kind, WRITE);
            second.answer(asked.id, 0);
        });
        leaving.join().unwrap();
        assert!(handles.iter().all(|h| matches!(h.poll(), Some(Ok(()))) && h.quiesced(soon())));
        world.ended(3, 0);
        assert!(is_closed(second.stream).is_empty());
    }
}

/// Nobody answers in time: what may have arrived is not quiet, and what was never sent is.
#[test]
fn what_is_left_ends_in_time_and_says_what_is_certain() {
    #[derive(Debug, Clone, Copy, PartialEq)]
    enum How {
        Silent,
        LostBefore,
        LostMeanwhile,
        SilentLater,
    }
    for how in [How::Silent, How::LostBefore, How::LostMeanwhile, How::SilentLater] {
        // The last of them has much to do before.
        let limit = Duration::from_millis(if how == How::SilentLater { 4_000 } else { 300 });
        let world = World::new();
        let sent = [world.write(1), world.write(2)];
        let unsent = world.write(3);
        let mut lane = world.acceptor.lane();
        (0..2).for_each(|_| drop(lane.asked()));
        let mut kept = None;
        if how == How::LostBefore {
            world.lose(lane);
        } else {
            kept = Some(lane);
        }
        let begin = Instant::now();
        let leaving = world.leave(limit);
        match how {
            How::Silent | How::LostBefore => {}
            How::LostMeanwhile => kept.take().unwrap().close(),
            How::SilentLater => {
                kept.take().unwrap().close();
                // The question about the lost lane, and what was not sent over that, find no answer either.
                let mut next = world.acceptor.lane();
                while next.asked().kind != SUPERSEDE {}
                kept = Some(next);
            }
        }
        let took = leaving.join().unwrap() - begin;
        assert!(took >= limit && took < limit + Duration::from_secs(10), "{how:?}: {took:?}");
        assert!(sent.iter().chain([&unsent]).all(is_shut_down), "{how:?}");
        assert!(!sent.iter().any(|h| h.quiesced(Instant::now())), "{how:?}: the peer may be writing it");
        // In the last case it has been sent by now, over the second lane.
        assert_eq!(unsent.quiesced(Instant::now()), how != How::SilentLater, "{how:?}");
        world.ended(0, 3);
        drop(kept);
    }
}

/// A lane that its acceptor wants to be left has something on it until that is answered.
#[test]
fn a_lane_that_goes_away_is_waited_for() {
    let world = World::new();
    let (handle, mut lane, write) = world.write_and_go_away();
    let leaving = world.leave(LONG);
    lane.is_asked_nothing("it is to go on waiting");
    assert!(!leaving.is_finished());
    lane.answer(write.id, 0);
    leaving.join().unwrap();
    assert!(matches!(handle.poll(), Some(Ok(()))) && handle.quiesced(soon()));
    world.ended(1, 0);
}

/// Nor is it out of reach of those who cancel, or disconnect.
#[test]
fn what_is_on_a_lane_that_goes_away_can_be_ended() {
    for cancel in [true, false] {
        let world = World::new();
        let (handle, mut lane, write) = world.write_and_go_away();
        if cancel {
            handle.cancel();
            assert!(matches!(handle.status(0), Status::Failed(Error::Cancelled)));
            assert!(!handle.quiesced(Instant::now()), "it is on its way");
            lane.answer(write.id, 0);
            assert!(handle.quiesced(soon()));
        } else {
            world.peer.disconnect();
            assert!(matches!(handle.status(0), Status::Failed(Error::Disconnected { .. })));
            assert!(!handle.quiesced(soon()), "nobody will find out");
        }
        assert!(is_closed(lane.stream).is_empty());
        world.ended(0, 1);
    }
}

/// A batch larger than what may be in flight, and nobody who waits for it.
#[test]
fn what_waits_for_room_is_finished() {
    let target = Target::new(builder(), 1 << 20);
    let limits = Limits { lane_requests: 4, ..Limits::default() };
    let asker = Asker::new(patient().lanes(2).limits(limits), 1 << 20);
    let peer = asker.transport.peer(target.addr()).unwrap();
    peer.connect(soon()).unwrap();
    let bytes = pattern(1 << 20, 3);
    asker.memory.write(0, &bytes).unwrap();
    let mut batch = Batch::new();
    (0..256).for_each(|i| asker.write(&mut batch, &peer, target.region.descriptor(), i << 12, 1 << 12));
    let handle = asker.transport.submit(&mut batch).unwrap();
    asker.transport.shutdown(soon());
    assert!(matches!(handle.poll(), Some(Ok(()))), "{handle:?}");
    assert!(target.bytes(0, 1 << 20) == bytes);
    // One more is the ping of `connect`.
    assert_eq!(asker.transport.statistics().requests_done, 257);
}

/// There is no lane yet, and nothing has been sent.
#[test]
fn what_waits_for_a_connection_is_finished() {
    let world = World::new();
    let handle = world.write(100);
    let leaving = world.leave(LONG);
    is_waiting(&leaving);
    let mut lane = world.acceptor.lane();
    let write = lane.asked();
    assert_eq!((write.kind, write.payload.len()), (WRITE, 100));
    assert!(!leaving.is_finished());
    lane.answer(write.id, 0);
    leaving.join().unwrap();
    assert!(matches!(handle.poll(), Some(Ok(()))) && handle.quiesced(soon()));
    world.ended(1, 0);
}

/// One has been sent in part, the other waits behind it in the same lane: that one nobody has seen.
#[test]
fn what_no_byte_was_sent_of_is_quiet() {
    for shut_down in [true, false] {
        let acceptor = Acceptor::new();
        let limits = Limits { lane_bytes: u64::MAX, ..Limits::default() };
        let asker = Asker::new(builder().lanes(1).limits(limits), 64 << 20);
        let peer = asker.transport.peer(acceptor.addr()).unwrap();
        let remote = Acceptor::region(64 << 20);
        let [begun, behind] = [64_u64 << 20, 8].map(|len| {
            let mut batch = Batch::new();
            asker.write(&mut batch, &peer, remote, 0, len);
            asker.transport.submit(&mut batch).unwrap()
        });
        let mut lane = acceptor.lane();
        lane.stream.read_exact(&mut [0; 1000]).unwrap();
        if shut_down {
            asker.transport.shutdown(Instant::now());
        } else {
            peer.disconnect();
        }
        assert!(matches!(begun.poll(), Some(Err(_))) && matches!(behind.poll(), Some(Err(_))));
        assert!(!begun.quiesced(Instant::now()));
        assert!(behind.quiesced(Instant::now()), "nobody has seen it");
    }
}

/// The answer is there, but nobody has taken it off the socket.
#[test]
fn nobody_has_to_wait_for_what_is_finished() {
    let target = Target::new(builder(), LEN);
    let asker = Asker::new(patient(), LEN);
    let peer = asker.transport.peer(target.addr()).unwrap();
    peer.connect(soon()).unwrap();
    let mut batch = Batch::new();
    asker.write(&mut batch, &peer, target.region.descriptor(), 0, 8);
    let handle = asker.transport.submit(&mut batch).unwrap();
    asker.transport.shutdown(soon());
    assert!(matches!(handle.status(0), Status::Done), "{:?}", handle.status(0));
    assert!(handle.quiesced(Instant::now()));
}

/// A target does not wait for those who have left it in the middle of something.
#[test]
fn a_target_does_not_wait_for_who_is_gone() {
    let target = Target::new(Transport::builder(), LEN);
    let good = target.region.descriptor();
    let range = Liar::range(&good.to_bytes()[..16], good.addr, 100);
    let mut lanes = [0, 1].map(|_| Liar::new(target.addr()));
    for lane in &mut lanes {
        let half = [Liar::frame(2, 0, 1, &range, 100), vec![1; 50]].concat();
        lane.0.write_all(&half).unwrap();
    }
    until("both have begun", || target.transport.statistics().accepted == 2 && target.bytes(49, 1) == [1]);
    let transport = target.transport.clone();
    let leaving = std::thread::spawn(move || transport.shutdown(Instant::now() + LONG));
    let [first, mut second] = lanes;
    let mut told = [0; 24];
    second.0.read_exact(&mut told).unwrap();
    assert_eq!(told[..], go_away());
    drop(first);
    second.0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    assert!(second.0.peek(&mut [0]).is_err(), "the other one was closed in the middle of its write");
    drop(second);
    let begin = Instant::now();
    leaving.join().unwrap();
    assert!(begin.elapsed() < Duration::from_secs(20));
    assert_eq!(target.bytes(50, 50), [0; 50]);
}
