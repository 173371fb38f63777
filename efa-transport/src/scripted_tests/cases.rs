//! One thing that goes wrong at a time.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use scripted_provider::{Answer, Call};

use super::scripted::{scripted, scripted_as_efa};
use super::{BLOCK, BLOCKS, EIO, Stand};
use crate::{Batch, Error, Event, Request, Shape, Status};

const NANO: Duration = Duration::from_nanos(1);
const LIMIT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(30);
/// What an EFA card says of operations on a queue pair that has stopped working.
const FLUSHED: i32 = 1;
const EACCES: i32 = 13;
const EAGAIN: i32 = 11;
const ETIMEDOUT: i32 = 110;

/// Slices that have not been posted.
fn waiting(stand: &Stand) -> usize {
    stand.transport.statistics().nics.iter().map(|nic| nic.queued).sum()
}

fn fails() -> Answer {
    Answer::Error { errno: EIO, provider_errno: 0, after: 0 }
}

/// Catches: a request that fails before its deadline, or that outlives it.
#[test]
fn a_request_ends_at_its_deadline_and_not_before() {
    scripted("scripted_tests::cases::a_request_ends_at_its_deadline_and_not_before", |control| {
        let stand = Stand::open(control, "scripted", 2, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        for shortcut in [true, false] {
            control.reset();
            control.tell(Call::Post, Answer::Never, 1);
            let mut batch = stand.requests(peer, 1, LIMIT);
            let handle = stand.core().submit_by(&mut batch, shortcut).unwrap();
            stand.advance(LIMIT - NANO);
            stand.core().expire();
            stand.drive();
            assert!(matches!(handle.status(0), Status::Pending), "a nanosecond early");
            stand.advance(NANO);
            stand.core().expire();
            match handle.status(0) {
                Status::Failed(Error::Timeout { limit, .. }) => assert_eq!(limit, LIMIT),
                other => panic!("at its deadline: {other:?}"),
            }
            // The card still has it, and its memory.
            assert!(!handle.quiesced(Instant::now()));
            assert_eq!(stand.transport.peer_state(peer).unwrap().outstanding, 1);
            stand.advance(LONG);
            stand.unstick();
            stand.drive();
            assert!(handle.quiesced(Instant::now()), "its endpoint has been closed");
            stand.meet("peer", (1, 1), 100);
        }
        stand.assert_clean(&[peer]);
    });
}

/// Catches: slices that keep their memory and their place in line although nobody waits for them any more, or that are posted then.
#[test]
fn what_waits_goes_with_its_request() {
    scripted("scripted_tests::cases::what_waits_goes_with_its_request", |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        let depth = scripted_provider::DEPTH as u64;
        // At its deadline.
        control.tell(Call::Post, Answer::Complete { after: 1 }, u32::MAX);
        let handle = stand.send(peer, depth + 9, LIMIT);
        assert_eq!(waiting(&stand), 9);
        stand.advance(LIMIT);
        stand.core().expire();
        assert_eq!(waiting(&stand), 0);
        stand.drive();
        assert!(handle.quiesced(Instant::now()));
        assert_eq!(control.placed().len() as u64, depth);
        // When one slice of a long request fails for good. The one behind it is posted before anybody has looked at that; no more are.
        control.reset();
        control.tell(Call::Post, Answer::Error { errno: EACCES, provider_errno: 0, after: 0 }, 1);
        let places: Vec<(u64, u64)> = (0..40).map(|n| (stand.region.addr() + 96 * n, 8)).collect();
        let request = Request::write(peer, &stand.region, stand.region.addr(), stand.region.addr(), 320);
        let mut batch = Batch::new();
        batch.push(Request { remote_shape: Shape::Scatter(&places), ..request }).unwrap();
        let handle = stand.transport.submit(&mut batch).unwrap();
        stand.drive();
        assert!(matches!(handle.poll(), Some(Err(Error::PeerStale { .. }))));
        assert!(handle.quiesced(Instant::now()));
        assert_eq!(control.placed().len() as u64, depth + 1);
        // Cancelled while the card has it: what becomes of it there is nobody's concern.
        stand.meet("peer", (1, 2), 200);
        control.reset();
        control.tell(Call::Post, fails(), 1);
        let handle = stand.send(peer, 1, LONG);
        let retries = stand.transport.statistics().retries;
        handle.cancel();
        stand.drive();
        assert_eq!((control.placed().len(), stand.transport.statistics().retries), (1, retries));
        stand.assert_clean(&[peer]);
    });
}

/// Catches: a waiter that looks at the time only when nothing happens, and so waits on while there is traffic of others.
#[test]
fn a_waiter_gives_up_in_time_although_there_is_traffic() {
    scripted("scripted_tests::cases::a_waiter_gives_up_in_time_although_there_is_traffic", |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        control.tell(Call::Post, Answer::Never, 1);
        let stuck = stand.send(peer, 1, LONG);
        // Each reading brings one completion.
        control.tell(Call::Read, Answer::Limit(1), u32::MAX);
        let others = stand.send(peer, 2000, LONG);
        assert!(stuck.wait_until(Instant::now()).is_none());
        assert!(matches!(others.status(1999), Status::Pending), "it has waited for all of the others");
        control.reset();
        stand.drive();
        assert!(others.poll().expect("they have ended").is_ok());
    });
}

/// Catches: an attempt on behalf of a peer's former life that is repeated in its next one, where the memory is somebody else's.
#[test]
fn nothing_of_a_former_life_of_a_peer_is_sent_again() {
    scripted("scripted_tests::cases::nothing_of_a_former_life_of_a_peer_is_sent_again", |control| {
        let stand = Stand::open(control, "scripted", 2, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        // Twice the same life: what fails is sent again. Then another one.
        for (life, attempts) in [((1, 2), 2), ((2, 1), 1)] {
            control.reset();
            control.tell(Call::Post, fails(), 1);
            let handle = stand.send(peer, 1, LONG);
            stand.meet("peer", life, 200);
            stand.drive();
            assert_eq!(control.placed().len(), attempts, "{:?}", control.placed());
            match (handle.poll().expect("it has ended"), attempts) {
                (Ok(()), 2) => {}
                (Err(Error::PeerStale { why, .. }), 1) => assert!(why.contains("restarted"), "{why}"),
                other => panic!("{other:?}"),
            }
        }
        // It has failed before the news of the restart has got around.
        control.reset();
        control.tell(Call::Post, fails(), 1);
        let handle = stand.send(peer, 1, LONG);
        stand.core().learn(&stand.descriptor("peer", (3, 1), 300, 2), Instant::now()).unwrap();
        stand.drive();
        assert!(matches!(handle.poll(), Some(Err(Error::PeerStale { .. }))));
        assert_eq!(control.placed().len(), 1);
        // What has not been posted never is.
        stand.meet("peer", (4, 1), 400);
        control.reset();
        control.tell(Call::Post, Answer::Complete { after: 3 }, u32::MAX);
        let handle = stand.send(peer, 100, LONG);
        let posted = control.placed().len();
        assert!(posted < 100, "cards take no more than that");
        stand.meet("peer", (5, 1), 500);
        assert_eq!(waiting(&stand), 0);
        assert!(matches!(handle.status(99), Status::Failed(Error::PeerStale { .. })), "at once");
        stand.drive();
        assert_eq!(control.placed().len(), posted);
        assert!(handle.quiesced(Instant::now()));
        stand.assert_clean(&[peer]);
    });
}

/// Catches: a batch that goes to where its predecessor in the same place of memory went, by keys that are not good any more.
#[test]
fn the_next_batch_goes_by_the_latest_descriptor() {
    scripted("scripted_tests::cases::the_next_batch_goes_by_the_latest_descriptor", |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        let other = stand.meet("other", (1, 1), 900);
        for (to, life, key) in [
            (peer, (1, 1), 100),
            (peer, (1, 2), 200),
            (other, (1, 1), 900),
            (peer, (3, 1), 300),
            (peer, (3, 1), 300),
        ] {
            if to == peer {
                stand.meet("peer", life, key);
            }
            control.reset();
            let handle = stand.send(to, 3, LONG);
            stand.drive();
            assert!(handle.poll().expect("it has ended").is_ok());
            let keys: Vec<u64> = control.placed().iter().map(|placed| placed.key).collect();
            assert_eq!(keys, [key; 3], "life {life:?}");
        }
        // One that has gone is not known by what is left of it.
        assert!(stand.transport.remove_peer(peer));
        assert!(matches!(
            stand.transport.submit(&mut stand.requests(peer, 1, LONG)),
            Err(Error::UnknownPeer(_))
        ));
    });
}

/// Catches: a peer's handle that reaches whoever has its place now.
#[test]
fn a_handle_of_a_peer_that_was_removed_does_not_reach_its_successor() {
    scripted(
        "scripted_tests::cases::a_handle_of_a_peer_that_was_removed_does_not_reach_its_successor",
        |control| {
            let stand = Stand::open(control, "scripted", 1, |config| config);
            let old = stand.meet("old", (1, 1), 100);
            assert!(stand.send(old, 1, LONG).wait().is_ok());
            assert!(stand.transport.remove_peer(old));
            let new = stand.meet("new", (1, 1), 200);
            assert_eq!((new.slot, stand.transport.peers().len()), (old.slot, 1), "the place is used again");
            control.reset();
            assert!(matches!(
                stand.transport.submit(&mut stand.requests(old, 1, LONG)),
                Err(Error::UnknownPeer(_))
            ));
            assert!(stand.transport.peer_state(old).is_err());
            assert!(stand.transport.peer_statistics(old).is_err());
            assert_eq!((stand.transport.peer_name(old), stand.transport.peer_epoch(old)), (None, None));
            assert!(stand.transport.warm_up(old, Instant::now()).is_err());
            assert!(!stand.transport.remove_peer(old));
            assert_eq!(control.placed(), []);
            assert_eq!(stand.transport.peer_name(new).as_deref(), Some("new"));
            assert!(stand.send(new, 1, LONG).wait().is_ok());
            assert_eq!(control.placed()[0].key, 200);
        },
    );
}

/// Catches: a peer that is taken for silent although it has answered meanwhile, and one that is not because it answered earlier.
#[test]
fn a_peer_is_down_when_nothing_was_heard_while_a_request_ran() {
    scripted("scripted_tests::cases::a_peer_is_down_when_nothing_was_heard_while_a_request_ran", |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        for (heard, down) in [(true, false), (false, true)] {
            // The same place of memory for the batch, each time.
            assert!(stand.send(peer, 1, LONG).wait().is_ok());
            control.reset();
            control.tell(Call::Post, Answer::Never, 1);
            let stuck = stand.send(peer, 1, LIMIT);
            if heard {
                assert!(stand.send(peer, 1, LONG).wait().is_ok());
            }
            stand.events();
            stand.advance(LIMIT);
            stand.core().expire();
            assert!(matches!(stuck.poll(), Some(Err(Error::Timeout { .. }))));
            assert_eq!(stand.transport.peer_state(peer).unwrap().down, down, "heard: {heard}");
            let told = stand.events().iter().any(|event| matches!(event, Event::PeerDown { .. }));
            assert_eq!(told, down);
        }
    });
}

/// Catches: more attempts than were asked for, or fewer.
#[test]
fn attempts_are_counted() {
    scripted("scripted_tests::cases::attempts_are_counted", |control| {
        for retries in [0, 2, 3] {
            let stand = Stand::open(control, "scripted", 3, |config| config.retries(retries));
            let peer = stand.meet("peer", (1, 1), 100);
            control.tell(Call::Post, fails(), 1000);
            let handle = stand.send(peer, 1, LONG);
            stand.drive_through(100);
            match handle.poll().expect("it has ended") {
                Err(Error::Failed { attempts, .. }) => assert_eq!(attempts, retries + 1),
                other => panic!("{other:?}"),
            }
            assert_eq!(control.counts().accepted, u64::from(retries) + 1);
            assert_eq!(stand.transport.statistics().retries, u64::from(retries));
            stand.assert_clean(&[peer]);
        }
        // Every card has its chance, unless nothing is to be repeated at all.
        let stand = Stand::open(control, "scripted", 5, |config| config.retries(1));
        let peer = stand.meet("peer", (1, 1), 100);
        control.tell(Call::Post, fails(), 1000);
        let handle = stand.send(peer, 1, LONG);
        stand.drive_through(100);
        assert!(matches!(handle.poll(), Some(Err(Error::Failed { attempts: 5, .. }))), "{:?}", handle.poll());
    });
}

/// Catches: a pause between attempts that is not made; an attempt for a request that has been given up meanwhile.
#[test]
fn a_retry_waits_for_its_time_and_for_nobody_that_has_left() {
    scripted("scripted_tests::cases::a_retry_waits_for_its_time_and_for_nobody_that_has_left", |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        for cancelled in [false, true] {
            control.reset();
            control.tell(Call::Post, fails(), 1);
            let handle = stand.send(peer, 1, LONG);
            stand.drive();
            assert_eq!(control.placed().len(), 1, "there is no other NIC, so there is a pause");
            if cancelled {
                handle.cancel();
                assert!(handle.quiesced(Instant::now()));
            }
            stand.advance(Duration::from_millis(10));
            stand.drive();
            assert_eq!(control.placed().len(), if cancelled { 1 } else { 2 });
            assert_eq!(handle.poll().expect("it has ended").is_ok(), !cancelled);
        }
        stand.assert_clean(&[peer]);
    });
}

/// Catches: a card that is used although it has died while others are well; one that is not tried again; a retry over the
/// card that has just failed.
#[test]
fn a_card_that_fails_is_left_out_until_its_time_is_over() {
    scripted("scripted_tests::cases::a_card_that_fails_is_left_out_until_its_time_is_over", |control| {
        const NICS: usize = 4;
        let stand = Stand::open(control, "scripted", NICS, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        let dead = stand.endpoint_of(2);
        control.ruin(dead, EIO, 0);
        // Every request ends well: a retry goes elsewhere.
        let mut seen = 0;
        while stand.core().lanes[2].is_usable(stand.now()) {
            let handle = stand.send(peer, 1, LONG);
            stand.drive();
            assert!(handle.poll().expect("at once: the first retry waits for nothing").is_ok());
            let placed = stand.placed_since(seen);
            seen += placed.len();
            assert!(seen < 1000, "the card is never set aside");
            if let [first, second] = placed[..] {
                assert!(first.endpoint == dead && second.endpoint != dead);
            }
        }
        assert!(stand.events().iter().any(|event| matches!(event, Event::NicDown { .. })));
        let used = |count: usize| {
            let before = control.placed().len();
            for _ in 0..count {
                for requests in [1, 7] {
                    assert!(stand.send(peer, requests, LONG).wait().is_ok());
                }
            }
            stand.placed_since(before).iter().filter(|placed| placed.endpoint == dead).count()
        };
        assert_eq!(used(8), 0, "set aside");
        // Its time is over; it still fails, and is set aside at once.
        stand.advance(Duration::from_millis(60));
        assert!((1..=2).contains(&used(8)), "one batch finds that out");
        assert!(!stand.core().lanes[2].is_usable(stand.now()));
        // It works again.
        stand.advance(Duration::from_secs(1));
        control.ruin(dead, 0, 0);
        assert!(used(8) > 8, "its share");
        assert!(stand.events().iter().any(|event| matches!(event, Event::NicUp { .. })));
        stand.assert_clean(&[peer]);
    });
}

/// Catches: operations to a remote NIC that does not answer, while others of the peer do.
#[test]
fn a_remote_nic_that_does_not_answer_is_avoided() {
    scripted("scripted_tests::cases::a_remote_nic_that_does_not_answer_is_avoided", |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        // One NIC here, four there.
        let peer = stand.transport.add_or_update_peer(&stand.descriptor("peer", (1, 1), 100, 4)).unwrap();
        control.reset();
        control.tell(Call::Post, Answer::Error { errno: ETIMEDOUT, provider_errno: 0, after: 0 }, 1);
        assert!(stand.send(peer, 1, LONG).wait().is_ok());
        let keys =
            |from: usize| -> Vec<u64> { stand.placed_since(from).iter().map(|placed| placed.key).collect() };
        let [failed, second] = keys(0)[..] else { panic!("{:?}", keys(0)) };
        assert_ne!(failed, second);
        for _ in 0..4 {
            assert!(stand.send(peer, 5, LONG).wait().is_ok());
        }
        assert!(keys(2).iter().all(|&key| key != failed), "{failed} failed: {:?}", keys(2));
        assert!(keys(2).iter().collect::<std::collections::HashSet<_>>().len() == 3);
        stand.advance(Duration::from_secs(1));
        for _ in 0..4 {
            assert!(stand.send(peer, 5, LONG).wait().is_ok());
        }
        assert!(keys(22).contains(&failed), "it is tried again");
    });
}

/// Catches: a retry over the rail that has just failed because it looks the best again.
#[test]
fn a_retry_takes_another_rail() {
    scripted("scripted_tests::cases::a_retry_takes_another_rail", |control| {
        // Of two NICs here the one that fails has less to do than the other.
        let stand = Stand::open(control, "scripted", 2, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        control.tell(Call::Post, Answer::Never, 1);
        let _busy = stand.send(peer, 1, LONG);
        let busy = control.placed()[0].endpoint;
        control.tell(Call::Post, fails(), 1);
        let handle = stand.send(peer, 1, LONG);
        stand.drive();
        assert!(handle.poll().expect("a retry elsewhere waits for nothing").is_ok());
        let [failed, second] = stand.placed_since(1)[..] else { panic!("{:?}", control.placed()) };
        assert!(failed.endpoint != busy && second.endpoint == busy, "{:?}", control.placed());
        // Of two NICs there the one that fails would be next again.
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = stand.transport.add_or_update_peer(&stand.descriptor("peer", (1, 1), 100, 2)).unwrap();
        control.tell(Call::Post, fails(), 1);
        assert!(stand.send(peer, 2, LONG).wait().is_ok());
        let keys: Vec<u64> = control.placed().iter().map(|placed| placed.key).collect();
        assert!(keys.len() == 3 && keys[0] != keys[1] && keys[2] == keys[1], "{keys:?}");
    });
}

/// Catches: a slice that goes back to a card that it has failed on while there are others, here or there; a card that takes over what
/// has failed on it; a slice that is given up before every card has had its chance.
#[test]
fn a_slice_fails_on_each_dead_card_once() {
    scripted("scripted_tests::cases::a_slice_fails_on_each_dead_card_once", |control| {
        const NICS: usize = 12;
        for (count, dead) in [(1, 2), (1, NICS - 1), (BLOCKS, 3), (BLOCKS, NICS - 1)] {
            let stand = Stand::open(control, "scripted", NICS, |config| config.stripe_bytes(BLOCK));
            let peer = stand.meet("peer", (1, 1), 100);
            let (broken, well) = stand.core().lanes.first().lanes.split_at(dead);
            broken.iter().for_each(|lane| control.ruin(stand.endpoint_of(lane.index), EIO, 0));
            // Those that are well have more to do, it seems.
            well.iter().for_each(|lane| lane.expect(1 << 30));
            let handle = stand.send(peer, count, LONG);
            stand.drive_through(NICS);
            assert!(handle.poll().expect("it has ended").is_ok(), "{dead} of {NICS} dead, {count} slices");
            let mut seen = std::collections::HashSet::new();
            for placed in control.placed() {
                assert!(seen.insert((placed.address, placed.endpoint)), "twice over one card: {placed:?}");
            }
            assert!(seen.len() as u64 > count, "nothing has gone over a dead card");
            well.iter().for_each(|lane| lane.load.store(0, Ordering::SeqCst));
            stand.assert_clean(&[peer]);
        }
        // One NIC here, several there.
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let there = stand.descriptor("peer", (1, 1), 100, NICS);
        let peer = stand.transport.add_or_update_peer(&there).unwrap();
        for answer in [fails(), Answer::Error { errno: ETIMEDOUT, provider_errno: 0, after: 0 }] {
            control.reset();
            control.tell(Call::Post, answer, 7);
            let handle = stand.send(peer, 1, LONG);
            stand.drive_through(NICS);
            assert!(handle.poll().expect("it has ended").is_ok());
            let keys: std::collections::HashSet<u64> =
                control.placed().iter().map(|placed| placed.key).collect();
            assert_eq!((keys.len(), control.placed().len()), (8, 8), "{:?}", control.placed());
        }
        stand.assert_clean(&[peer]);
    });
}

/// Catches: rails that neither side has prepared, when a remote NIC does not answer and its partner here is left with others'.
#[test]
fn rails_that_are_left_are_those_that_both_sides_expect() {
    scripted("scripted_tests::cases::rails_that_are_left_are_those_that_both_sides_expect", |control| {
        let stand = Stand::open(control, "scripted", 2, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        control.tell(Call::Post, Answer::Error { errno: ETIMEDOUT, provider_errno: 0, after: 0 }, 1);
        assert!(stand.send(peer, 1, LONG).wait().is_ok());
        let failed = control.placed()[0];
        let before = control.placed().len();
        for _ in 0..4 {
            assert!(stand.send(peer, 3, LONG).wait().is_ok());
        }
        let placed = stand.placed_since(before);
        assert!(placed.iter().all(|it| it.key != failed.key && it.endpoint != failed.endpoint), "{placed:?}");
    });
}

/// Catches: an endpoint that has stopped working and is not replaced; what was under way on it lost, or counted twice.
#[test]
fn what_was_on_a_flushed_endpoint_ends_once_on_another() {
    scripted_as_efa(
        "scripted_tests::cases::what_was_on_a_flushed_endpoint_ends_once_on_another",
        |control| {
            let stand = Stand::open(control, "scripted-efa", 2, |config| config);
            let peer = stand.meet("peer", (1, 1), 100);
            let flushed = Answer::Error { errno: EIO, provider_errno: FLUSHED, after: 0 };
            // Of eight the first finds it out, the others on its endpoint would never end.
            control.tell(Call::Post, flushed, 1);
            control.tell(Call::Post, Answer::Never, 7);
            let handle = stand.send(peer, 8, LONG);
            stand.drive();
            assert_eq!(stand.transport.statistics().nics.iter().map(|nic| nic.reopened).sum::<u64>(), 0);
            assert!(matches!(handle.status(7), Status::Pending));
            let first = control.placed()[0].endpoint;
            let there =
                control.placed().iter().take(8).filter(|placed| placed.endpoint == first).count() as u64;
            assert!(there > 1, "{:?}", control.placed());
            stand.unstick();
            stand.drive();
            stand.advance(Duration::from_secs(1));
            stand.drive();
            let reopened: Vec<u64> =
                stand.transport.statistics().nics.iter().map(|nic| nic.reopened).collect();
            assert_eq!(reopened.iter().sum::<u64>(), 1, "{reopened:?}");
            // The one that failed has been sent again, and what was aborted; the rest is on the other endpoint. Its receives went
            // with the endpoint, too.
            let receives = scripted_provider::DEPTH as u64;
            assert_eq!(control.counts().forgotten, receives + there - 1);
            assert_eq!(control.placed().len() as u64, 8 + there);
            // Nobody closes the other one, which is well: its operations just never end.
            let ended =
                (0..8).filter(|&request| matches!(handle.status(request), Status::Done)).count() as u64;
            assert_eq!(ended, there);
            assert_eq!(stand.transport.peer_statistics(peer).unwrap().slices, there);
            assert_ne!(stand.endpoint_of(reopened.iter().position(|&n| n == 1).unwrap()), first);
            stand.unstick();
            assert_eq!(control.counts().forgotten, receives + there - 1, "once");
        },
    );
}

/// Catches: an immediate that is sent again after its endpoint was closed under it; one that is given up although the provider never
/// took it.
#[test]
fn an_immediate_is_sent_again_only_if_it_was_never_taken() {
    scripted("scripted_tests::cases::an_immediate_is_sent_again_only_if_it_was_never_taken", |control| {
        let stand = Stand::open(control, "scripted", 2, |config| config);
        let own = stand.transport.add_or_update_peer(&stand.transport.local_descriptor()).unwrap();
        let send = || {
            let at = stand.region.addr();
            let mut batch = Batch::new();
            batch.push(Request::write(own, &stand.region, at, at, 8).with_immediate(7)).unwrap();
            stand.transport.submit(&mut batch).unwrap()
        };
        // Its endpoint is closed because the completion queue has failed: it may have got through.
        control.reset();
        control.tell(Call::Post, Answer::Never, 1);
        let handle = send();
        control.tell(Call::Read, Answer::Fail(EIO), 2);
        stand.drive();
        stand.advance(Duration::from_secs(1));
        stand.drive();
        let error = handle.poll().expect("it has ended").expect_err("unknown");
        assert!(error.to_string().contains("may or may not have arrived"), "{error}");
        assert_eq!(control.placed().iter().filter(|placed| placed.immediate).count(), 1);
        // Refused when it was posted: it has not.
        control.reset();
        control.tell(Call::Post, Answer::Fail(EIO), 1);
        let handle = send();
        stand.drive();
        stand.advance(Duration::from_secs(1));
        stand.drive();
        assert!(handle.poll().expect("it has ended").is_ok());
        assert_eq!(control.placed().iter().filter(|placed| placed.immediate).count(), 1);
    });
}

/// Catches: a card that cannot be opened again and is given work, or never tried again; what waited for it lost.
#[test]
fn what_waits_for_a_card_that_cannot_be_opened_again_goes_elsewhere() {
    scripted(
        "scripted_tests::cases::what_waits_for_a_card_that_cannot_be_opened_again_goes_elsewhere",
        |control| {
            let stand = Stand::open(control, "scripted", 2, |config| config);
            let peer = stand.meet("peer", (1, 1), 100);
            control.reset();
            control.tell(Call::Post, Answer::Never, 2 * scripted_provider::DEPTH as u32);
            // More than both cards take: some wait.
            let handle = stand.send(peer, 3 * scripted_provider::DEPTH as u64, LONG);
            control.tell(Call::Open, Answer::Fail(EIO), 1);
            let lane = &stand.core().lanes[0];
            stand.core().broken(lane, "as the test says");
            stand.settle();
            assert!(!lane.is_usable(u64::MAX - 1));
            stand.core().reopen(&stand.core().lanes[1]);
            stand.settle();
            stand.advance(Duration::from_millis(300));
            stand.drive();
            stand.advance(Duration::from_secs(1));
            stand.drive();
            assert!(handle.poll().expect("it has ended").is_ok(), "over the other card");
            let before = control.placed().len();
            for _ in 0..4 {
                assert!(stand.send(peer, 2, LONG).wait().is_ok());
            }
            let other = stand.endpoint_of(1);
            assert!(stand.placed_since(before).iter().all(|placed| placed.endpoint == other));
            // The next look at what is stuck opens it.
            stand.unstick();
            assert!(lane.is_usable(stand.now() + 1_000_000_000));
            stand.advance(Duration::from_secs(2));
            let before = control.placed().len();
            for _ in 0..4 {
                assert!(stand.send(peer, 2, LONG).wait().is_ok());
            }
            let again = stand.endpoint_of(0);
            assert!(stand.placed_since(before).iter().any(|placed| placed.endpoint == again));
            stand.assert_clean(&[peer]);
        },
    );
}

/// Catches: a peer that is taken for dead because this process, which alone moves what the provider has, had no processor for some seconds;
/// one that is waited for although it takes nothing while it is asked all the time.
#[test]
fn time_in_which_nobody_looked_is_not_the_peers() {
    scripted("scripted_tests::cases::time_in_which_nobody_looked_is_not_the_peers", |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        let errors = || stand.transport.statistics().nics[0].errors;
        control.tell(Call::Post, Answer::Fail(EAGAIN), u32::MAX);
        let handle = stand.send(peer, 1, LONG);
        for _ in 0..8 {
            stand.advance(Duration::from_secs(2));
            stand.drive();
        }
        assert_eq!(errors(), 0, "nobody has looked for sixteen seconds");
        stand.drive_through(160);
        assert!(errors() > 0, "it has been asked for 1.6 s");
        control.reset();
        stand.drive_through(200);
        assert!(handle.poll().expect("it has ended").is_ok());
        stand.assert_clean(&[peer]);
    });
}
