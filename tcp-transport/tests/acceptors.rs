//! Acceptors that are mute, die, refuse or go away, seen by whoever dials them: each request ends once, nothing is sent a second
//! time before the end of the first attempt is certain, and what is not certain is not called so.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use common::raw::{Acceptor, Served, answer, go_away, is_closed};
use common::{Asker, builder, soon, until};
use tcp_transport::{Batch, BatchHandle, Deadlines, Error, Path, Peer, SocketOptions, Status, Transport};

const LEN: usize = 1 << 20;

const WRITE: u8 = 2;
const PING: u8 = 7;
const SUPERSEDE: u8 = 9;
const PROBE: u8 = 11;

/// One that asks an acceptor over one lane at a time.
struct World {
    acceptor: Acceptor,
    asker: Asker,
    peer: Peer,
}

impl World {
    fn new(deadlines: Deadlines) -> Self {
        Self::with(builder().lanes(1).deadlines(deadlines))
    }

    fn with(builder: tcp_transport::Builder) -> Self {
        let (acceptor, asker) = (Acceptor::new(), Asker::new(builder, LEN));
        asker.memory.write(0, &[7; LEN]).unwrap();
        let peer = asker.transport.peer(acceptor.addr()).unwrap();
        Self { acceptor, asker, peer }
    }

    /// Writes so many bytes; an I/O thread is to see to it.
    fn write(&self, len: u64, limit: Duration) -> BatchHandle {
        let remote = Acceptor::region(LEN as u64);
        let mut batch = Batch::new();
        batch.set_deadline(limit);
        self.asker.write(&mut batch, &self.peer, remote, 0, len);
        let handle = self.asker.transport.submit(&mut batch).unwrap();
        assert!(handle.poll().is_none());
        handle
    }
}

const LONG: Duration = Duration::from_secs(60);

/// Takes the write that comes next and answers it.
fn serve_write(lane: &mut Served, len: usize) {
    let write = lane.asked();
    assert_eq!((write.kind, write.payload), (WRITE, vec![7; len]));
    lane.answer(write.id, 0);
}

/// Who does not answer the hello, or answers a part of it, is left, and asked again on another connection.
#[test]
fn a_mute_handshake_is_given_up_and_another_one_made() {
    let quick = Duration::from_secs(1);
    let world = World::new(Deadlines { connect: quick, hello: quick, ..Deadlines::default() });
    let handle = world.write(100, LONG);
    let welcome = world.acceptor.welcome();
    for part in [0, 60, welcome.len() - 1] {
        let mut mute = world.acceptor.connection();
        mute.write_all(&welcome[..part]).unwrap();
        is_closed(mute); // panics if it is not
    }
    serve_write(&mut world.acceptor.lane(), 100);
    handle.wait().unwrap();
}

/// Each phase has its own limit, and an error says which one was the trouble.
#[test]
fn a_timeout_names_the_phase_that_took_too_long() {
    let quick = Duration::from_millis(100);
    let deadlines = Deadlines { connect: quick, hello: quick, ..Deadlines::default() };
    let limit = Duration::from_secs(1);
    let world = World::new(deadlines.clone());
    let mute = world.write(100, limit);
    // A listener whose queue is full answers no connection at all.
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.bind(&"127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap().into()).unwrap();
    socket.listen(1).unwrap();
    let addr = socket.local_addr().unwrap().as_socket().unwrap();
    let mut queued = Vec::new();
    while let Ok(stream) = std::net::TcpStream::connect_timeout(&addr, Duration::from_millis(200)) {
        assert!(queued.len() < 100);
        queued.push(stream);
    }
    let asker = Asker::new(builder().lanes(1).deadlines(deadlines), 4096);
    let error = asker.transport.peer(addr).unwrap().connect(Instant::now() + limit).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && error.to_string().contains("connecting"), "{error}");
    let error = mute.wait().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && error.to_string().contains("the handshake"), "{error}");
}

/// A write that may have arrived is repeated only when the acceptor has said that the lane it went on, named by its number, is
/// closed; however many lanes are lost on the way to that word.
#[test]
fn a_retry_waits_for_the_end_of_the_lane_that_was_lost() {
    let world = World::new(Deadlines::default());
    let handle = world.write(100, LONG);
    let mut first = world.acceptor.lane();
    let write = first.asked();
    let lost = first.number.to_le_bytes();
    first.close();
    // Lost again before it has answered.
    let mut second = world.acceptor.lane();
    let question = second.asked();
    assert_eq!((question.kind, question.meta.as_slice()), (SUPERSEDE, &lost[..]));
    assert_ne!(second.number.to_le_bytes(), lost);
    second.is_asked_nothing("before the question is answered");
    second.close();
    // Says that it has not closed the lane: nothing may be sent to it again.
    let mut third = world.acceptor.lane();
    let question = third.asked();
    assert_eq!((question.kind, question.meta.as_slice()), (SUPERSEDE, &lost[..]));
    third.answer(question.id, 7);
    assert!(is_closed(third.stream).is_empty(), "a lane that cannot be superseded was believed to be");
    let mut fourth = world.acceptor.lane();
    let question = fourth.asked();
    assert_eq!((question.kind, question.meta.as_slice()), (SUPERSEDE, &lost[..]));
    fourth.answer(question.id, 0);
    let again = fourth.asked();
    assert_eq!((again.kind, again.meta, again.payload), (write.kind, write.meta, write.payload));
    fourth.answer(again.id, 0);
    handle.wait().unwrap();
    assert!(handle.quiesced(soon()));
    let statistics = world.asker.transport.statistics();
    assert_eq!((statistics.retries, statistics.requests_done, statistics.requests_failed), (1, 1, 0));
}

/// Who closes every connection is not dialled all the time.
#[test]
fn connections_that_fail_are_made_ever_more_rarely() {
    let world = World::new(Deadlines::default());
    let handle = world.write(100, Duration::from_millis(900));
    let mut connections = 0;
    until("the request has ended", || {
        connections += u32::from(!world.acceptor.is_left_alone());
        handle.poll().is_some()
    });
    // Pauses of 10, 20, 40, 80, 160 and 320 ms at least.
    assert!((2..=12).contains(&connections), "{connections} connections in 900 ms");
    let error = handle.wait().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && error.to_string().contains("handshake"), "{error}");
}

/// A request that has lost its lane ends at its deadline, whatever becomes of the question. It is quiet when that is answered.
#[test]
fn a_deadline_is_kept_while_a_lost_lane_is_asked_about() {
    let world = World::new(Deadlines::default());
    let handle = world.write(100, Duration::from_secs(1));
    let mut lane = world.acceptor.lane();
    lane.asked();
    lane.close();
    let mut next = world.acceptor.lane();
    let question = next.asked();
    let result = handle.wait_until(soon()).expect("a request without an end");
    assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    assert!(!handle.quiesced(Instant::now()), "the question has not been answered");
    next.answer(question.id, 0);
    assert!(handle.quiesced(soon()));
    next.is_asked_nothing("it has ended");
}

/// What was on its way goes on, what is new goes elsewhere, and the lane is closed when nothing is on it any more.
#[test]
fn a_lane_that_goes_away_is_drained_and_closed() {
    for half_closed in [false, true] {
        let world = World::new(Deadlines::default());
        let before = world.write(100, LONG);
        let mut old = world.acceptor.lane();
        let write = old.asked();
        old.stream.write_all(&go_away()).unwrap();
        until("the lane takes nothing new", || world.peer.path() == Path::Unknown);
        let after = world.write(200, LONG);
        let mut new = world.acceptor.lane();
        if half_closed {
            // It has been lost in the end: what was on it is asked for once more, after that.
            let number = old.number.to_le_bytes();
            serve_write(&mut new, 200);
            old.close();
            let question = new.asked();
            assert_eq!((question.kind, question.meta.as_slice()), (SUPERSEDE, &number[..]));
            new.answer(question.id, 0);
            serve_write(&mut new, 100);
        } else {
            serve_write(&mut new, 200);
            old.answer(write.id, 0);
            assert!(is_closed(old.stream).is_empty());
        }
        before.wait().unwrap();
        after.wait().unwrap();
        let statistics = world.asker.transport.statistics();
        assert_eq!((statistics.requests_done, statistics.requests_failed), (2, 0));
        assert_eq!(
            (statistics.lanes_lost, statistics.retries),
            (u64::from(half_closed), u64::from(half_closed))
        );
        new.is_asked_nothing("once is enough");
        assert!(world.acceptor.is_left_alone(), "one lane is enough");
    }
}

/// The word may come with the last answer, when nothing else will happen on that lane.
#[test]
fn a_lane_that_goes_away_idle_is_closed_at_once() {
    let world = World::new(Deadlines::default());
    std::thread::scope(|scope| {
        let ping = scope.spawn(|| world.peer.ping(soon()));
        let mut old = world.acceptor.lane();
        let asked = old.asked();
        assert_eq!(asked.kind, PING);
        old.stream.write_all(&[go_away(), answer(asked.id, 0)].concat()).unwrap();
        ping.join().unwrap().unwrap();
        assert!(is_closed(old.stream).is_empty());
    });
    let handle = world.write(100, LONG);
    serve_write(&mut world.acceptor.lane(), 100);
    handle.wait().unwrap();
}

/// The word may come before the lane has been used at all: while the acceptor looks for its challenge in the dialler's memory.
#[test]
fn a_lane_that_goes_away_before_it_is_up_is_not_used() {
    let world = World::with(Transport::builder().same_process(false).lanes(1));
    let handle = world.write(100, LONG);
    let mut old = world.acceptor.lane_with(|theirs, ours| {
        ours[25] = 1; // willing to copy between processes of the same host
        ours[44..72].copy_from_slice(&theirs[44..72]);
        ours[72..].fill(5);
    });
    let probe = old.asked();
    assert_eq!(probe.kind, PROBE);
    old.stream.write_all(&[go_away(), answer(probe.id, 0)].concat()).unwrap();
    let mut new = world.acceptor.lane();
    serve_write(&mut new, 100);
    handle.wait().unwrap();
    assert!(is_closed(old.stream).is_empty());
}

/// And it may be lost before the acceptor has found anything: it has never been up, so there is nothing to supersede, and it counts
/// as a connection that has failed.
#[test]
fn a_lane_that_goes_away_and_dies_before_it_is_up_is_replaced() {
    let deadlines = Deadlines { stall: Duration::from_millis(300), ..Deadlines::default() };
    for silent in [false, true] {
        let world = World::with(
            Transport::builder().same_process(false).lanes(1).deadlines(deadlines.clone()).io_threads(1),
        );
        let handle = world.write(100, LONG);
        let near = |theirs: &[u8], ours: &mut [u8]| {
            ours[25] = 1; // willing to copy between processes of the same host
            ours[44..72].copy_from_slice(&theirs[44..72]);
            ours[72..].fill(5);
        };
        for lost in 1..=3 {
            let mut lane = world.acceptor.lane_with(near);
            assert_eq!(lane.asked().kind, PROBE);
            lane.stream.write_all(&go_away()).unwrap();
            if silent {
                // Neither an answer nor a sign of life.
                assert!(!is_closed(lane.stream).is_empty(), "no sign of life was asked for");
            } else {
                lane.close();
            }
            until("it is lost", || world.asker.transport.statistics().lanes_lost == lost);
            assert_eq!(world.peer.path(), Path::Unknown);
            assert!(matches!(handle.status(0), Status::Pending));
        }
        let mut lane = world.acceptor.lane();
        // Asked for nothing but this: no lane has to be superseded.
        serve_write(&mut lane, 100);
        handle.wait().unwrap();
        assert!(handle.quiesced(soon()));
        let statistics = world.asker.transport.statistics();
        assert_eq!((statistics.requests_done, statistics.requests_failed, statistics.retries), (1, 0, 0));
        assert!(world.acceptor.is_left_alone(), "one lane is enough");
    }
}

/// Idle time is not silence: a lane that has been idle for longer than a peer may be silent takes a request like any other, and
/// is given up when the peer has been silent for so long since that one.
#[test]
fn a_lane_may_be_idle_for_longer_than_a_peer_may_be_silent() {
    let stall = Duration::from_millis(400);
    let world = World::new(Deadlines { stall, ..Deadlines::default() });
    let mut lane;
    {
        let first = world.write(100, LONG);
        lane = world.acceptor.lane();
        serve_write(&mut lane, 100);
        first.wait().unwrap();
    }
    for round in 0..2 {
        std::thread::sleep(2 * stall);
        let handle = world.write(100, LONG);
        let write = lane.asked();
        assert_eq!(write.kind, WRITE, "round {round}");
        lane.is_asked_nothing("it has only just been asked"); // for a quarter of the time
        lane.answer(write.id, 0);
        handle.wait().unwrap();
    }
    std::thread::sleep(2 * stall);
    assert_eq!(world.asker.transport.statistics().lanes_lost, 0);
    let begin = Instant::now();
    let handle = world.write(100, LONG);
    assert_eq!((lane.asked().kind, lane.asked().kind), (WRITE, PING));
    assert!(is_closed(lane.stream).is_empty());
    let took = begin.elapsed();
    // Less a tick of the coarse clock; much later on a busy machine.
    assert!(took >= stall - Duration::from_millis(20) && took < 100 * stall, "{took:?}");
    let mut next = world.acceptor.lane();
    let question = next.asked();
    assert_eq!(question.kind, SUPERSEDE);
    next.answer(question.id, 0);
    serve_write(&mut next, 100);
    handle.wait().unwrap();
}

/// Once disconnected, nobody asks the peer any more what has become of what was on its way: memory is not called quiet then.
#[test]
fn who_disconnects_is_not_told_that_memory_is_quiet() {
    // On a lane.
    let world = World::new(Deadlines::default());
    let handle = world.write(100, LONG);
    let mut lane = world.acceptor.lane();
    lane.asked();
    world.peer.disconnect();
    assert!(matches!(handle.wait(), Err(Error::Disconnected { .. })));
    assert!(!handle.quiesced(soon()), "the peer may be writing it at this moment");
    // Lost with its lane, before the peer was asked.
    let handle = world.write(100, LONG);
    let mut lane = world.acceptor.lane();
    lane.asked();
    lane.close();
    let _asks_for_its_end = world.acceptor.connection();
    world.peer.disconnect();
    assert!(matches!(handle.wait(), Err(Error::Disconnected { .. })));
    assert!(!handle.quiesced(soon()), "the peer may be writing it at this moment");
    // Not sent at all.
    let other = World::new(Deadlines::default());
    let handle = other.write(100, LONG);
    let _mute = other.acceptor.connection();
    other.peer.disconnect();
    assert!(matches!(handle.status(0), Status::Failed(Error::Disconnected { .. })));
    assert!(handle.quiesced(soon()), "nobody has seen it");
}

/// Nor when the peer turns into one with another secret, or into another one, while it is owed the word that a lane is closed.
#[test]
fn what_was_lost_is_not_quiet_when_nobody_can_be_asked() {
    for restarted in [false, true] {
        let world = World::new(Deadlines::default());
        let handle = world.write(100, LONG);
        let mut lane = world.acceptor.lane();
        lane.asked();
        lane.close();
        if restarted {
            world.acceptor.lane_with(|_, ours| ours[..16].fill(8));
        } else {
            let mut refusing = world.acceptor.connection();
            refusing.write_all(&[&[3, 0, 1][..], b"no"].concat()).unwrap();
            is_closed(refusing);
        }
        let error = handle.wait().unwrap_err();
        match restarted {
            true => assert!(matches!(error, Error::PeerRestarted { .. }), "{error}"),
            false => assert!(matches!(error, Error::Authentication { .. }), "{error}"),
        }
        assert!(!handle.quiesced(soon()), "restarted={restarted}: the peer may be writing it at this moment");
    }
}

/// Who answers before it has been asked in full has not understood the question: the lane is closed, and what has been sent
/// of it, little as it may be, counts as sent.
#[test]
fn half_a_request_counts_as_sent() {
    for answered in [false, true] {
        let sockets = SocketOptions { send_buffer: Some(16 << 10), ..SocketOptions::default() };
        let world = World::with(builder().lanes(1).sockets(sockets));
        let handle = world.write(LEN as u64, LONG);
        let mut lane = world.acceptor.lane();
        let mut head = [0; 24];
        lane.stream.read_exact(&mut head).unwrap();
        assert_eq!(head[0], WRITE);
        let lost = lane.number.to_le_bytes();
        if answered {
            lane.answer(u64::from_le_bytes(head[8..16].try_into().unwrap()), 0);
            assert!(is_closed(lane.stream).len() < LEN, "the answer was believed");
        } else {
            lane.close();
        }
        let mut next = world.acceptor.lane();
        let question = next.asked();
        assert_eq!((question.kind, question.meta.as_slice()), (SUPERSEDE, &lost[..]), "answered={answered}");
        next.is_asked_nothing("before the question is answered");
        next.answer(question.id, 0);
        serve_write(&mut next, LEN);
        handle.wait().unwrap();
    }
}

/// Who takes its time is asked for a sign of life, and is not given up as long as it gives one.
#[test]
fn a_slow_acceptor_is_asked_for_a_sign_of_life() {
    let world = World::new(Deadlines { stall: Duration::from_secs(1), ..Deadlines::default() });
    let handle = world.write(100, LONG);
    let mut lane = world.acceptor.lane();
    let write = lane.asked();
    for _ in 0..3 {
        let ping = lane.asked();
        assert_eq!(ping.kind, PING);
        lane.answer(ping.id, 0);
    }
    lane.answer(write.id, 0);
    handle.wait().unwrap();
    assert_eq!(world.asker.transport.statistics().lanes_lost, 0);
}

/// Requests of one lane, each with its own deadline.
#[test]
fn each_request_ends_at_its_own_deadline() {
    let world = World::new(Deadlines::default());
    let [first, second, last] = [3_000, 4_000, 60_000].map(|ms| world.write(100, Duration::from_millis(ms)));
    let mut lane = world.acceptor.lane();
    let asked: Vec<_> = (0..3).map(|_| lane.asked()).collect();
    for handle in [first, second] {
        let result = handle.wait_until(soon()).expect("a request without an end");
        assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    }
    assert!(last.poll().is_none());
    asked.iter().for_each(|write| lane.answer(write.id, 0));
    last.wait().unwrap();
}

/// A lane takes no more requests at a time than its acceptor has said. What waits for room can be cancelled, and is not sent then.
#[test]
fn an_acceptor_says_how_much_it_takes_at_a_time() {
    let world = World::new(Deadlines::default());
    let handles = [1, 2, 3, 4].map(|len| world.write(len, LONG));
    let mut lane = world.acceptor.lane_with(|_, ours| ours[40..44].copy_from_slice(&2_u32.to_le_bytes()));
    let (first, second) = (lane.asked(), lane.asked());
    lane.is_asked_nothing("two are in flight");
    handles[2].cancel();
    assert!(matches!(handles[2].wait_until(soon()), Some(Err(Error::Cancelled))));
    assert!(handles[2].quiesced(soon()), "it was never sent");
    lane.answer(first.id, 0);
    serve_write(&mut lane, 4);
    lane.answer(second.id, 0);
    [0, 1, 3].into_iter().for_each(|n| handles[n].wait().unwrap());
    lane.is_asked_nothing("all has been answered");
}
