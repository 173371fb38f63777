//! What happens when the network misbehaves: every request ends once, the bytes are right, nothing arrives late, deadlines
//! are kept.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::time::{Duration, Instant};

use common::{Asker, Mode, Proxy, Target, builder, pattern, soon, until};
use tcp_transport::{Batch, Deadlines, Error, Request, Status};

const LEN: usize = 8 << 20;

fn quick() -> Deadlines {
    Deadlines {
        connect: Duration::from_millis(500),
        hello: Duration::from_millis(500),
        stall: Duration::from_millis(400),
        ..Deadlines::default()
    }
}

#[test]
fn connections_cut_anywhere_lose_nothing() {
    let target = Target::new(builder(), LEN);
    let proxy = Proxy::new(target.addr());
    let asker = Asker::new(builder().lanes(2), LEN);
    let peer = asker.transport.peer(proxy.addr).unwrap();
    let remote = target.region.descriptor();
    let mut batch = Batch::new();
    for (round, fuse) in [1_u64, 100, 5_000, 70_000, 1_000_000, 3_000_001].into_iter().enumerate() {
        peer.connect(soon()).unwrap();
        let bytes = pattern(LEN, round as u64);
        asker.memory.write(0, &bytes).unwrap();
        for i in 0..64 {
            asker.write(&mut batch, &peer, remote, i * (LEN as u64 / 64), LEN as u64 / 64);
        }
        let len = 4 << 20;
        let immediate = Request::write(&peer, &asker.region, asker.region.addr(), remote, remote.addr, len);
        batch.push(immediate.with_immediate(round as u64)).unwrap();
        proxy.cut_after(fuse);
        asker.transport.submit(&mut batch).unwrap().wait().unwrap();
        assert_eq!(target.bytes(0, LEN), bytes, "round {round}");
        let arrival = target.transport.arrivals().next(soon()).unwrap();
        assert_eq!((arrival.immediate, arrival.bytes), (round as u64, len));
        assert_eq!(target.transport.arrivals().try_next(), None, "the immediate came twice");
        proxy.cut_after(u64::MAX);
    }
    assert!(asker.transport.statistics().lanes_lost > 0, "the proxy cut nothing");
    assert!(asker.transport.statistics().retries > 0, "nothing had to be retried");
}

#[test]
fn split_and_delayed_streams_carry_the_same_bytes() {
    let target = Target::new(builder(), 1 << 20);
    let proxy = Proxy::new(target.addr());
    let asker = Asker::new(builder().lanes(2), 1 << 20);
    let peer = asker.transport.peer(proxy.addr).unwrap();
    let mut batch = Batch::new();
    for mode in [Mode::Split, Mode::Delay] {
        proxy.set(mode);
        let bytes = pattern(100_000, mode as u64);
        asker.memory.write(0, &bytes).unwrap();
        asker.write(&mut batch, &peer, target.region.descriptor(), 0, 100_000);
        asker.transport.submit(&mut batch).unwrap().wait().unwrap();
        asker.memory.write(0, &[0; 100_000]).unwrap();
        asker.read(&mut batch, &peer, target.region.descriptor(), 0, 100_000);
        asker.transport.submit(&mut batch).unwrap().wait().unwrap();
        let mut back = vec![0; 100_000];
        asker.memory.read(0, &mut back).unwrap();
        assert_eq!(back, bytes, "{mode:?}");
    }
}

#[test]
fn a_stalled_connection_is_given_up_and_the_requests_go_elsewhere() {
    let target = Target::new(builder().deadlines(quick()), 1 << 20);
    let proxy = Proxy::new(target.addr());
    let asker = Asker::new(builder().lanes(1).deadlines(quick()), 1 << 20);
    let peer = asker.transport.peer(proxy.addr).unwrap();
    for mode in [Mode::Stall, Mode::HalfOpen] {
        peer.connect(soon()).unwrap();
        let lost = asker.transport.statistics().lanes_lost;
        proxy.set(mode);
        let bytes = pattern(1 << 20, mode as u64);
        asker.memory.write(0, &bytes).unwrap();
        let mut batch = Batch::new();
        asker.write(&mut batch, &peer, target.region.descriptor(), 0, 1 << 20);
        let handle = asker.transport.submit(&mut batch).unwrap();
        assert!(handle.wait_until(Instant::now() + Duration::from_millis(100)).is_none());
        until("the stalled lane is given up", || asker.transport.statistics().lanes_lost > lost);
        // New connections go through again; the old one stays silent, as a black hole would.
        proxy.set(Mode::Pass);
        handle.wait().unwrap();
        assert!(handle.quiesced(soon()));
        assert_eq!(target.bytes(0, 1 << 20), bytes, "{mode:?}");
    }
}

#[test]
fn deadlines_are_kept_in_every_phase() {
    let target = Target::new(builder(), 1 << 20);
    let limit = Duration::from_millis(300);
    // Nobody listens; nobody answers the handshake; the peer goes silent in the middle.
    let closed = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    closed.bind(&std::net::SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
    let refusing = closed.local_addr().unwrap().as_socket().unwrap();
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let proxy = Proxy::new(target.addr());
    let asker = Asker::new(builder(), 1 << 20);
    for (name, addr) in [("refused", refusing), ("mute", mute.local_addr().unwrap()), ("silent", proxy.addr)]
    {
        let peer = asker.transport.peer(addr).unwrap();
        if name == "silent" {
            peer.connect(soon()).unwrap();
            proxy.set(Mode::Stall);
        }
        let mut batch = Batch::new();
        batch.set_deadline(limit);
        asker.write(&mut batch, &peer, target.region.descriptor(), 0, 1 << 20);
        let start = Instant::now();
        let error = asker.transport.submit(&mut batch).unwrap().wait().unwrap_err();
        let took = start.elapsed();
        assert!(matches!(error, Error::Timeout { .. }), "{name}: {error}");
        assert!(took >= limit && took < limit + Duration::from_secs(10), "{name}: {took:?}");
        if name == "refused" {
            assert!(error.to_string().contains("refused"), "says what went wrong on the way: {error}");
        }
    }
}

/// The heart of "no late write": a request that was given up may still be on its way; when the transport says that it is
/// quiet, it stays quiet.
#[test]
fn nothing_arrives_after_quiesced() {
    let target = Target::new(builder().deadlines(quick()), 1 << 20);
    let proxy = Proxy::new(target.addr());
    let asker = Asker::new(builder().lanes(1).deadlines(quick()), 1 << 20);
    let peer = asker.transport.peer(proxy.addr).unwrap();
    peer.connect(soon()).unwrap();
    let mut batch = Batch::new();
    for round in 0..3 {
        asker.memory.write(0, &vec![0xbb; 1 << 20]).unwrap();
        // The bytes reach the target, the answers do not come back.
        proxy.set(Mode::HalfOpen);
        batch.set_deadline(Duration::from_secs(1));
        asker.write(&mut batch, &peer, target.region.descriptor(), 0, 1 << 20);
        let handle = asker.transport.submit(&mut batch).unwrap();
        assert!(matches!(handle.wait(), Err(Error::Timeout { .. })));
        assert!(!handle.quiesced(Instant::now()), "the bytes are under way");
        proxy.set(Mode::Pass);
        assert!(handle.quiesced(soon()), "round {round}: the peer closes the old lane");
        target.memory.write(0, &vec![0xaa; 1 << 20]).unwrap();
        let ping = peer.ping(soon());
        assert!(ping.is_ok(), "{ping:?}");
        assert!(target.bytes(0, 1 << 20).iter().all(|&b| b == 0xaa), "round {round}: a late write");
    }
}

#[test]
fn a_cancelled_batch_ends_and_becomes_quiet() {
    let target = Target::new(builder(), LEN);
    let proxy = Proxy::new(target.addr());
    let asker = Asker::new(builder(), LEN);
    let peer = asker.transport.peer(proxy.addr).unwrap();
    peer.connect(soon()).unwrap();
    // No answer comes before it has been cancelled, however long that takes.
    proxy.set(Mode::Pause);
    let mut batch = Batch::new();
    for i in 0..8 {
        asker.read(&mut batch, &peer, target.region.descriptor(), i << 20, 1 << 20);
    }
    let handle = asker.transport.submit(&mut batch).unwrap();
    handle.cancel();
    let result = handle.wait();
    assert!(result.is_err());
    assert!((0..8).all(|i| matches!(handle.status(i), Status::Failed(Error::Cancelled) | Status::Done)));
    proxy.set(Mode::Pass);
    assert!(handle.quiesced(soon()));
    peer.ping(soon()).unwrap();
}

#[test]
fn a_restarted_peer_is_recognised_and_heals() {
    let first = Target::new(builder(), 4096);
    let proxy = Proxy::new(first.addr());
    let asker = Asker::new(builder().lanes(1).deadlines(quick()), 1 << 20);
    let peer = asker.transport.peer(proxy.addr).unwrap();
    peer.connect(soon()).unwrap();
    let old = first.region.descriptor();
    // A write is on its way to the first process when another one takes its place.
    proxy.set(Mode::Stall);
    let mut batch = Batch::new();
    asker.write(&mut batch, &peer, old, 0, 4096);
    let handle = asker.transport.submit(&mut batch).unwrap();
    let second = Target::new(builder(), 4096);
    proxy.retarget(second.addr());
    proxy.set(Mode::Pass);
    proxy.cut();
    let error = handle.wait().unwrap_err();
    assert!(matches!(error, Error::PeerRestarted { .. }), "{error}");
    asker.write(&mut batch, &peer, old, 0, 4096);
    let error = asker.transport.submit(&mut batch).unwrap().wait().unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "old keys mean nothing: {error}");
    asker.write(&mut batch, &peer, second.region.descriptor(), 0, 4096);
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
}

#[test]
fn shutdown_ends_every_request_once() {
    for graceful in [true, false] {
        let target = Target::new(builder(), LEN);
        let asker = Asker::new(builder(), LEN);
        let peer = asker.transport.peer(target.addr()).unwrap();
        peer.connect(soon()).unwrap();
        let bytes = pattern(LEN, 5);
        asker.memory.write(0, &bytes).unwrap();
        let mut batch = Batch::new();
        for i in 0..128 {
            asker.write(
                &mut batch,
                &peer,
                target.region.descriptor(),
                i * (LEN as u64 / 128),
                LEN as u64 / 128,
            );
        }
        let handle = asker.transport.submit(&mut batch).unwrap();
        let time = if graceful { Duration::from_secs(10) } else { Duration::ZERO };
        let waiter = std::thread::spawn(move || (handle.wait(), handle));
        asker.transport.shutdown(Instant::now() + time);
        let (result, handle) = waiter.join().unwrap();
        if graceful {
            result.unwrap();
            assert_eq!(target.bytes(0, LEN), bytes);
        } else {
            assert!((0..128).all(|i| !matches!(handle.status(i), Status::Pending)));
        }
        let statistics = asker.transport.statistics();
        // One more is the ping of `connect`.
        assert_eq!(statistics.requests_done + statistics.requests_failed, 129);
        asker.write(&mut batch, &peer, target.region.descriptor(), 0, 8);
        assert!(matches!(asker.transport.submit(&mut batch), Err(Error::ShutDown)));
    }
}

#[test]
fn the_target_shuts_down_while_it_is_written_to() {
    let target = Target::new(builder(), LEN);
    let asker = Asker::new(builder().deadlines(quick()), LEN);
    let peer = asker.transport.peer(target.addr()).unwrap();
    peer.connect(soon()).unwrap();
    let mut batch = Batch::new();
    batch.set_deadline(Duration::from_secs(2));
    for i in 0..64 {
        asker.write(&mut batch, &peer, target.region.descriptor(), i * (LEN as u64 / 64), LEN as u64 / 64);
    }
    let handle = asker.transport.submit(&mut batch).unwrap();
    let transport = target.transport.clone();
    let closer = std::thread::spawn(move || transport.close());
    let _ = handle.wait();
    assert!((0..64).all(|i| !matches!(handle.status(i), Status::Pending)));
    closer.join().unwrap();
}

#[test]
fn futures_and_polling_finish_without_a_waiter() {
    let target = Target::new(builder(), LEN);
    let asker = Asker::new(builder(), LEN);
    let peer = asker.transport.peer(target.addr()).unwrap();
    let mut batch = Batch::new();
    for len in [10, LEN as u64] {
        asker.write(&mut batch, &peer, target.region.descriptor(), 0, len);
        let handle = asker.transport.submit(&mut batch).unwrap();
        until("polled to the end", || handle.poll().is_some_and(|r| r.is_ok()));
        asker.read(&mut batch, &peer, target.region.descriptor(), 0, len);
        let handle = asker.transport.submit(&mut batch).unwrap();
        struct Unpark(std::thread::Thread);
        impl std::task::Wake for Unpark {
            fn wake(self: std::sync::Arc<Self>) {
                self.0.unpark();
            }
        }
        let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
        let mut context = std::task::Context::from_waker(&waker);
        let mut future = std::pin::pin!(handle);
        let deadline = soon();
        while future.as_mut().poll(&mut context).is_pending() {
            assert!(Instant::now() < deadline);
            std::thread::park_timeout(Duration::from_secs(20));
        }
    }
}

use std::future::Future as _;
