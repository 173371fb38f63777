//! What can happen to a request that is alone in its batch, on the [short way](crate::alone): it must come to the same as on the long one.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use fabric_safe::{Mapping, PageKind};
use scripted_provider::{Answer, Call, Control};

use super::scripted::scripted;
use super::{BLOCK, EIO, Stand};
use crate::{Access, Batch, Error, PeerId, Request, Status};

const LIMIT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(30);
const EAGAIN: i32 = 11;

/// Slices that went the short way.
fn short(stand: &Stand) -> u64 {
    stand.core().lanes.iter().map(|lane| lane.counters.alone.load(Ordering::SeqCst)).sum()
}

/// A stand, and a peer to which every lane has a path.
fn trodden(control: Control, nics: usize) -> (Stand, PeerId) {
    let stand = Stand::open(control, "scripted", nics, |config| config);
    let peer = stand.meet("peer", (1, 1), 100);
    tread(&stand, peer);
    control.reset();
    (stand, peer)
}

/// Lone requests over every lane; those that come next take the short way.
fn tread(stand: &Stand, peer: PeerId) {
    for _ in 0..64 {
        assert!(stand.send(peer, 1, LONG).wait().is_ok());
    }
    let before = short(stand);
    assert!(stand.send(peer, 1, LONG).wait().is_ok());
    assert_eq!(short(stand), before + 1, "the way is trodden");
}

/// What a test has been told by a waker.
#[derive(Default)]
struct Told(AtomicUsize);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Catches: an operation that the provider has no room for, or refuses, lost, posted twice, or ended otherwise than on the long way.
#[test]
fn what_is_refused_on_the_short_way_goes_the_long_one() {
    scripted("scripted_tests::alone::what_is_refused_on_the_short_way_goes_the_long_one", |control| {
        let (stand, peer) = trodden(control, 1);
        let lane = &stand.core().lanes[0];
        // There is room a moment later.
        for times in [1, 2, 5] {
            control.reset();
            control.tell(Call::Post, Answer::Fail(EAGAIN), times);
            let (before, again) = (short(&stand), lane.counters.again.load(Ordering::SeqCst));
            let handle = stand.send(peer, 1, LONG);
            assert_eq!(short(&stand), before);
            let (queued, flying) = {
                let state = lane.state.lock();
                (state.queue.queued(), state.queue.in_flight())
            };
            assert_eq!((queued, flying), if times == 1 { (0, 1) } else { (1, 0) });
            // What comes next is alone in its batch but not in the queue, and waits for its turn.
            let at = stand.region.addr() + BLOCK;
            let mut batch = Batch::new();
            batch.push(Request::write(peer, &stand.region, at, at, BLOCK)).unwrap();
            let next = stand.transport.submit(&mut batch).unwrap();
            assert_eq!(short(&stand), before + u64::from(times == 1));
            stand.drive_through(10);
            assert!(handle.poll().expect("it has ended").is_ok());
            assert!(next.poll().expect("it has ended").is_ok());
            let placed: Vec<u64> = control.placed().iter().map(|placed| placed.address).collect();
            assert_eq!(placed, [at - BLOCK, at], "each once, in order");
            // The first refusal was the short way's.
            let again = lane.counters.again.load(Ordering::SeqCst) - again;
            assert!(again >= u64::from(times > 1) && again < times.into(), "{again} of {times}");
        }
        // It is refused for good.
        control.reset();
        control.tell(Call::Post, Answer::Fail(EIO), 1000);
        let handle = stand.send(peer, 1, LONG);
        stand.drive_through(200);
        assert!(matches!(handle.poll(), Some(Err(Error::Failed { .. }))), "{:?}", handle.poll());
        assert!(handle.quiesced(Instant::now()));
        assert_eq!(control.placed(), []);
        stand.assert_clean(&[peer]);
    });
}

/// Catches: an attempt that is not counted, is repeated over the card that has failed, or ends its request twice; a waiter that looks at
/// the wrong lane for ever.
#[test]
fn what_fails_on_the_short_way_is_tried_again_over_another_card() {
    scripted(
        "scripted_tests::alone::what_fails_on_the_short_way_is_tried_again_over_another_card",
        |control| {
            let (stand, peer) = trodden(control, 3);
            for after in [0, 3] {
                // Where it goes in the end is no hint to the next one.
                tread(&stand, peer);
                control.reset();
                let errors = || stand.transport.statistics().nics.iter().map(|nic| nic.errors).sum::<u64>();
                let its = || stand.transport.peer_statistics(peer).unwrap();
                let (before, failed, counted) = (short(&stand), errors(), its());
                control.tell(Call::Post, Answer::Error { errno: EIO, provider_errno: 0, after }, 1);
                let handle = stand.send(peer, 1, LONG);
                assert_eq!(short(&stand), before + 1);
                assert!(handle.wait().is_ok());
                let placed = control.placed();
                assert!(placed.len() == 2 && placed[0].endpoint != placed[1].endpoint, "{placed:?}");
                assert_eq!(errors(), failed + 1);
                assert_eq!((its().slices, its().retries), (counted.slices + 1, counted.retries + 1));
                stand.assert_clean(&[peer]);
            }
        },
    );
}

/// Catches: memory that is free although the card still has it, after a deadline or a cancellation; a late end that changes how a request
/// has ended, or that nobody hears of.
#[test]
fn what_ends_late_ends_nothing_twice() {
    scripted("scripted_tests::alone::what_ends_late_ends_nothing_twice", |control| {
        let late = [Answer::Complete { after: 5 }, Answer::Error { errno: EIO, provider_errno: 0, after: 5 }];
        for (cancelled, answer) in [(false, late[0]), (true, late[0]), (false, late[1]), (true, late[1])] {
            let (stand, peer) = trodden(control, 2);
            let before = (short(&stand), stand.transport.statistics());
            control.tell(Call::Post, answer, 1);
            let handle = stand.send(peer, 1, LIMIT);
            assert_eq!(short(&stand), before.0 + 1);
            if cancelled {
                handle.cancel();
            } else {
                stand.advance(LIMIT);
                stand.core().expire();
            }
            let failed = |status| match status {
                Status::Failed(Error::Cancelled) => cancelled,
                Status::Failed(Error::Timeout { .. }) => !cancelled,
                _ => false,
            };
            assert!(failed(handle.status(0)));
            assert_eq!(stand.transport.peer_state(peer).unwrap().outstanding, 1);
            assert!(!handle.state().is_quiet(), "the card has it");
            assert!(matches!(stand.region.unregister(Instant::now()), Err(Error::StillInUse { .. })));
            stand.drive();
            assert!(failed(handle.status(0)) && handle.state().is_quiet(), "{:?}", handle.status(0));
            stand.assert_clean(&[peer]);
            drop(handle);
            let (done, failed) = (stand.transport.statistics(), before.1);
            let counted =
                (done.requests_done - failed.requests_done, done.requests_failed - failed.requests_failed);
            assert_eq!((counted, control.placed().len()), ((0, 1), 1));
        }
    });
}

/// Catches: somebody who sleeps or has left a waker, and is not told of the end; or of the quiet after it.
#[test]
fn whoever_waits_for_a_lone_request_is_told() {
    scripted("scripted_tests::alone::whoever_waits_for_a_lone_request_is_told", |control| {
        let (stand, peer) = trodden(control, 1);
        let told = Arc::new(Told::default());
        let waker = Waker::from(Arc::clone(&told));
        for cancelled in [false, true] {
            control.reset();
            control.tell(Call::Post, Answer::Complete { after: 5 }, 1);
            let before = (short(&stand), told.0.load(Ordering::SeqCst));
            let handle = stand.send(peer, 1, LONG);
            let poll = || Future::poll(std::pin::pin!(&handle), &mut Context::from_waker(&waker));
            assert!(poll().is_pending());
            assert_eq!(short(&stand), before.0 + 1);
            if cancelled {
                handle.cancel();
            } else {
                stand.drive();
            }
            assert_eq!(told.0.load(Ordering::SeqCst), before.1 + 1, "cancelled: {cancelled}");
            assert!(matches!(poll(), Poll::Ready(outcome) if outcome.is_ok() != cancelled));
            stand.drive();
        }
        // One sleeps until the card is through with it; the other drives, as the progress thread would. It sleeps far longer if it is
        // not told.
        for cancelled in [false, true] {
            control.reset();
            control.tell(Call::Post, Answer::Complete { after: 5 }, 1);
            let handle = stand.send(peer, 1, LONG);
            if cancelled {
                handle.cancel();
            }
            let state = handle.state();
            let began = Instant::now();
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    while !state.is_quiet() {
                        state.sleep(crate::batch::BatchState::is_quiet, LONG);
                    }
                });
                while !state.is_listened_to() {
                    std::thread::yield_now();
                }
                stand.drive();
            });
            assert!(began.elapsed() < LONG / 2, "cancelled: {cancelled}");
        }
        stand.assert_clean(&[peer]);
    });
}

/// Catches: a request that goes to a peer's former life, or its former memory; to one that has been removed; by a path that was found for
/// another region.
#[test]
fn the_short_way_ends_with_what_it_leads_to() {
    scripted("scripted_tests::alone::the_short_way_ends_with_what_it_leads_to", |control| {
        let (stand, peer) = trodden(control, 1);
        let key_of = |batch: &mut Batch| {
            control.reset();
            assert!(stand.transport.submit(batch).unwrap().wait().is_ok());
            control.placed()[0].key
        };
        for (life, key) in [((1, 2), 200), ((2, 1), 300)] {
            assert_eq!(stand.meet("peer", life, key), peer);
            for _ in 0..3 {
                assert_eq!(key_of(&mut stand.requests(peer, 1, LONG)), key, "{life:?}");
            }
        }
        // A restart while it is under way: it fails, and its late end is nobody's.
        control.reset();
        control.tell(Call::Post, Answer::Complete { after: 5 }, 1);
        let before = short(&stand);
        let handle = stand.send(peer, 1, LONG);
        assert_eq!(short(&stand), before + 1);
        stand.meet("peer", (4, 1), 400);
        assert!(matches!(handle.status(0), Status::Failed(Error::PeerStale { .. })));
        stand.drive();
        assert!(handle.quiesced(Instant::now()));
        assert_eq!(control.placed().len(), 1);
        // Removed while it is under way: it ends; what has been pushed for it before is not sent.
        tread(&stand, peer);
        control.reset();
        control.tell(Call::Post, Answer::Complete { after: 5 }, 1);
        let handle = stand.send(peer, 1, LONG);
        let mut late = stand.requests(peer, 1, LONG);
        assert!(stand.transport.remove_peer(peer));
        assert!(matches!(stand.transport.submit(&mut late), Err(Error::UnknownPeer(_))));
        assert!(handle.wait().is_ok());
        assert_eq!(control.placed().len(), 1);
        let other = stand.meet("other", (1, 1), 500);
        assert_eq!(other.slot, peer.slot);
        for _ in 0..3 {
            assert_eq!(key_of(&mut stand.requests(other, 1, LONG)), 500);
        }
        // Memory that has come in the place of other memory.
        let mapping = Mapping::anonymous(4096, PageKind::Small).unwrap();
        let region = stand.transport.register(Arc::new(mapping), Access::ALL).unwrap();
        let mut batch = Batch::new();
        let there = stand.region.addr();
        for expected in [0, 1, 1] {
            let before = short(&stand);
            batch.push(Request::write(other, &region, region.addr(), there, 8)).unwrap();
            assert_eq!(key_of(&mut batch), 500);
            assert_eq!(short(&stand) - before, expected, "its first one has to look for a path");
        }
        stand.assert_clean(&[other]);
    });
}

/// Catches: an operation posted on an endpoint that is being closed.
#[test]
fn a_lane_that_is_being_opened_again_is_passed_over() {
    scripted("scripted_tests::alone::a_lane_that_is_being_opened_again_is_passed_over", |control| {
        for nics in [1, 2] {
            let (stand, peer) = trodden(control, nics);
            let lane = &stand.core().lanes[stand.core().place_of_one()];
            control.tell(Call::CloseEndpoint, Answer::Hang, 1);
            stand.hangs.store(true, Ordering::SeqCst);
            stand.core().broken(lane, "as the test says");
            let out = stand.endpoint_of(lane.index);
            let handle = stand.send(peer, 1, LONG);
            stand.drive();
            assert!(control.placed().iter().all(|placed| placed.endpoint != out));
            assert_eq!(handle.poll().is_some(), nics > 1);
            control.forget_answers();
            stand.hangs.store(false, Ordering::SeqCst);
            stand.settle();
            stand.drive_through(2);
            assert!(handle.poll().expect("it has ended").is_ok());
            assert_eq!(control.placed().len(), 1);
            stand.assert_clean(&[peer]);
        }
    });
}

/// Catches: two threads that take each other's batches, turns or counts; memory that is deregistered while one of them has a request on
/// its way with it (which the provider notices), or a request that gets it afterwards.
#[test]
fn several_threads_send_alone_while_memory_goes() {
    const THREADS: u64 = 3;
    const ROUNDS: usize = 40;
    scripted("scripted_tests::alone::several_threads_send_alone_while_memory_goes", |control| {
        let (stand, peer) = trodden(control, 2);
        let before =
            (short(&stand), stand.transport.statistics(), stand.transport.peer_statistics(peer).unwrap());
        let there = stand.region.addr();
        let mut sent = 0;
        for round in 0..ROUNDS {
            let mapping = Mapping::anonymous(4096, PageKind::Small).unwrap();
            let region = stand.transport.register(Arc::new(mapping), Access::ALL).unwrap();
            let gone = AtomicUsize::new(0);
            let threads = std::thread::scope(|scope| {
                let sender = || {
                    let (mut batch, mut sent) = (Batch::new(), 0_u64);
                    loop {
                        let after = gone.load(Ordering::SeqCst) == 1;
                        match batch.push(Request::write(peer, &region, region.addr(), there, 64)) {
                            Ok(_) => assert!(!after, "after the memory was free"),
                            Err(Error::Unregistered { .. }) => return sent,
                            Err(error) => panic!("{error}"),
                        }
                        assert!(stand.transport.submit(&mut batch).unwrap().wait().is_ok());
                        sent += 1;
                    }
                };
                let threads: Vec<_> = (0..THREADS).map(|_| scope.spawn(sender)).collect();
                while stand.transport.peer_statistics(peer).unwrap().slices < before.2.slices + sent + 64 {
                    std::thread::yield_now();
                }
                region.unregister(Instant::now() + LONG).unwrap();
                gone.store(1, Ordering::SeqCst);
                threads.into_iter().map(|thread| thread.join().unwrap()).sum::<u64>()
            });
            sent += threads;
            assert_eq!(control.faults().total(), 0, "round {round}: {:?}", control.faults());
        }
        let after = (stand.transport.statistics(), stand.transport.peer_statistics(peer).unwrap());
        assert_eq!(after.0.requests_done - before.1.requests_done, sent);
        assert_eq!(after.1.slices - before.2.slices, sent);
        assert!(short(&stand) > before.0);
        stand.assert_clean(&[peer]);
    });
}
