//! Providers that take their time to open something: a second fabric, or an endpoint again.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use scripted_provider::{Answer, Call, Control};

use super::scripted::scripted;
use super::{EIO, Stand};
use crate::descriptor::Descriptor;
use crate::provider::Found;
use crate::{Error, Event, PeerId, Status};

const SECOND: &str = "second";
const LIMIT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(30);
/// Longer than anything here may take, on a machine that does much else.
const PATIENCE: Duration = Duration::from_secs(20);

/// A transport whose cards have a second fabric, if a peer asks for it.
fn open(control: Control) -> Stand {
    let nics = 2;
    Stand::open_with(
        control,
        "scripted",
        nics,
        |config| config,
        |choice| {
            let infos = choice.first.infos.clone();
            choice.second = Some(Found { infos, label: SECOND.into(), why: "the test says so".into() });
        },
    )
}

/// A peer that is on that fabric only.
fn on_second(stand: &Stand, name: &str) -> Vec<u8> {
    let mut descriptor = Descriptor::decode(&stand.descriptor(name, (7, 1), 700, 2)).unwrap();
    descriptor.fabrics[0].fabric = SECOND.into();
    descriptor.on_request.clear();
    descriptor.encode()
}

fn still_opening(outcome: Result<PeerId, Error>) {
    match outcome {
        Err(Error::Incompatible { why, .. }) => assert!(why.contains("has been being opened"), "{why}"),
        other => panic!("{other:?}"),
    }
}

fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let began = Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "{what}");
        std::thread::yield_now();
    }
}

/// Catches: a call that hangs with the provider; requests, registrations or other peers that wait for it; deadlines that do not hold
/// meanwhile; a fabric that nobody is told of when it is open in the end.
#[test]
fn while_the_second_fabric_is_being_opened_everything_else_goes_on_and_in_time() {
    let test = "scripted_tests::opening::while_the_second_fabric_is_being_opened_everything_else_goes_on_and_in_time";
    scripted(test, |control| {
        let stand = open(control);
        let other = stand.meet("other", (1, 1), 100);
        let wanted = on_second(&stand, "wanted");
        control.tell(Call::Open, Answer::Hang, 1);
        let began = Instant::now();
        for _ in 0..2 {
            still_opening(stand.transport.add_or_update_peer_until(&wanted, Instant::now() + LIMIT));
        }
        still_opening(stand.transport.add_or_update_peer_until(&wanted, Instant::now()));
        assert!(began.elapsed() < PATIENCE);
        // Others are not concerned.
        assert!(stand.send(other, 9, LONG).wait().is_ok());
        stand.meet("newcomer", (1, 1), 300);
        stand.meet("other", (1, 2), 100);
        let more = fabric_safe::Mapping::anonymous(4096, fabric_safe::PageKind::Small).unwrap();
        let more = stand.transport.register(std::sync::Arc::new(more), crate::Access::ALL).unwrap();
        // A deadline holds, to the nanosecond of this clock; and a cancellation works.
        control.tell(Call::Post, Answer::Never, 2);
        let (late, unwanted) = (stand.send(other, 1, LIMIT), stand.send(other, 1, LONG));
        unwanted.cancel();
        assert!(matches!(unwanted.status(0), Status::Failed(Error::Cancelled)));
        stand.advance(LIMIT);
        stand.core().expire();
        assert!(matches!(late.status(0), Status::Failed(Error::Timeout { .. })));
        // It comes to an end.
        stand.events();
        control.forget_answers();
        eventually("nobody is told", || stand.events().contains(&Event::DescriptorChanged));
        let wanted = stand.transport.add_or_update_peer_until(&wanted, Instant::now()).expect("it is open");
        let state = stand.transport.peer_state(wanted).unwrap();
        assert_eq!((state.fabric.as_str(), state.stale), (SECOND, false));
        let before = control.placed().len();
        assert!(stand.send(wanted, 4, LONG).wait().is_ok());
        let lanes = [2, 3].map(|lane| stand.endpoint_of(lane));
        let placed = stand.placed_since(before);
        assert!(placed.len() == 4 && placed.iter().all(|it| lanes.contains(&it.endpoint)), "{placed:?}");
        assert!(more.unregister(Instant::now() + PATIENCE).is_ok());
    });
}

/// Catches: a failure that is not told to all who wait, or that is not tried again; a shutdown that waits for a provider, or leaves
/// somebody waiting.
#[test]
fn who_waits_for_the_second_fabric_hears_how_it_ended() {
    let test = "scripted_tests::opening::who_waits_for_the_second_fabric_hears_how_it_ended";
    scripted(test, |control| {
        for shut in [false, true] {
            let stand = open(control);
            let names = ["one", "two", "three"];
            let wanted = names.map(|name| on_second(&stand, name));
            if shut {
                control.tell(Call::Open, Answer::Hang, 1);
            } else {
                control.tell(Call::Open, Answer::Fail(EIO), u32::MAX);
            }
            std::thread::scope(|scope| {
                let waiting: Vec<_> = wanted
                    .iter()
                    .map(|wanted| scope.spawn(|| stand.transport.add_or_update_peer(wanted)))
                    .collect();
                if shut {
                    // Whoever is the first: it hangs now.
                    still_opening(stand.transport.add_or_update_peer_until(&wanted[0], Instant::now()));
                    stand.transport.shutdown(Instant::now());
                }
                for waiting in waiting {
                    match waiting.join().unwrap() {
                        Err(Error::Incompatible { why, .. }) => {
                            assert!(why.contains("cannot be opened"), "{why}")
                        }
                        other => panic!("{other:?}"),
                    }
                }
            });
            control.forget_answers();
            if !shut {
                for wanted in &wanted {
                    stand.transport.add_or_update_peer(wanted).expect("now it can be opened");
                }
            }
        }
    });
}

/// Times that endpoints have been opened again.
fn reopened(stand: &Stand) -> u64 {
    stand.transport.statistics().nics.iter().map(|nic| nic.reopened).sum()
}

/// Catches: whoever drives, submits or looks at the time held up by a card that is being opened again, or closed; work that stays with
/// that card although another one could do it, or comes to it meanwhile; two openings of one card at once; an outcome that nobody takes
/// in.
#[test]
fn while_a_card_is_being_opened_again_the_others_carry_on_and_deadlines_hold() {
    let test =
        "scripted_tests::opening::while_a_card_is_being_opened_again_the_others_carry_on_and_deadlines_hold";
    scripted(test, |control| {
        for call in [Call::Open, Call::CloseEndpoint] {
            for nics in [1, 3] {
                let stand =
                    Stand::open(control, "scripted", nics, |config| config.stripe_bytes(super::BLOCK));
                let peer = stand.meet("peer", (1, 1), 100);
                let core = stand.core();
                let depth = scripted_provider::DEPTH as u64 * nics as u64;
                control.tell(Call::Post, Answer::Complete { after: 3 }, u32::MAX);
                // More than the cards take, so that some wait.
                let handle = stand.send(peer, 2 * depth, LONG);
                let objects = control.counts().objects;
                control.tell(call, Answer::Hang, 1);
                stand.hangs.store(true, Ordering::SeqCst);
                let began = Instant::now();
                stand.events();
                core.broken(&core.lanes[0], "as the test says");
                let queued = || core.lanes[0].state.lock().queue.queued();
                assert_eq!(queued() == 0, nics > 1, "{call:?}: {} wait", queued());
                // Any reason to open it again while that goes on.
                core.lanes[0].flushed.store(true, Ordering::SeqCst);
                core.reopen(&core.lanes[0]);
                core.broken(&core.lanes[0], "again");
                stand.unstick();
                if call == Call::Open {
                    eventually("it is not closed", || !core.lanes[0].reopening.is_closing());
                }
                stand.drive_through(20);
                let state = handle.poll();
                if nics > 1 && call == Call::Open {
                    assert!(state.expect("over the others").is_ok());
                }
                // What comes later goes over the others, or waits no longer than it may.
                control.tell(Call::Post, Answer::Usual, u32::MAX);
                let before = control.placed().len();
                let later = stand.send(peer, 9, LIMIT);
                stand.drive();
                if nics > 1 {
                    assert!(later.poll().expect("it has ended").is_ok());
                }
                let out = stand.endpoint_of(0);
                assert!(stand.placed_since(before).iter().all(|placed| placed.endpoint != out), "{call:?}");
                stand.advance(LIMIT);
                core.expire();
                if nics == 1 {
                    assert!(matches!(later.status(0), Status::Failed(Error::Timeout { .. })));
                    assert!(later.quiesced(Instant::now()), "nothing of it has been posted");
                }
                let _ = (stand.transport.describe(), stand.transport.statistics());
                stand.meet("newcomer", (1, 1), 300);
                assert_eq!(reopened(&stand), 0);
                assert!(began.elapsed() < PATIENCE);
                // It comes to an end, and is used.
                control.forget_answers();
                stand.hangs.store(false, Ordering::SeqCst);
                stand.settle();
                assert!(stand.events().contains(&Event::DescriptorChanged));
                stand.advance(LONG + LONG);
                core.expire();
                stand.drive();
                assert!(handle.quiesced(Instant::now()));
                assert_eq!(
                    (reopened(&stand), control.counts().objects),
                    (1, objects),
                    "{call:?}, {nics} NICs"
                );
                // It has not answered for a while, as far as is known.
                stand.meet("peer", (1, 1), 100);
                let before = control.placed().len();
                let all = stand.send(peer, depth, LONG);
                stand.drive();
                assert!(all.poll().expect("it has ended").is_ok());
                let again = stand.endpoint_of(0);
                assert!(again != out && stand.placed_since(before).iter().any(|it| it.endpoint == again));
                stand.assert_clean(&[peer]);
            }
        }
    });
}

/// Catches: a shutdown that waits for a provider; anything that is left behind when that comes back in the end.
#[test]
fn a_card_that_is_being_opened_again_does_not_hold_up_a_shutdown() {
    let test = "scripted_tests::opening::a_card_that_is_being_opened_again_does_not_hold_up_a_shutdown";
    scripted(test, |control| {
        for call in [Call::Open, Call::CloseEndpoint] {
            let none = control.counts();
            let stand = Stand::open(control, "scripted", 2, |config| config);
            let peer = stand.meet("peer", (1, 1), 100);
            control.tell(Call::Post, Answer::Never, 4);
            let handle = stand.send(peer, 4, LONG);
            control.tell(call, Answer::Hang, 1);
            stand.core().broken(&stand.core().lanes[0], "as the test says");
            let began = Instant::now();
            stand.transport.shutdown(Instant::now());
            for request in 0..4 {
                assert!(matches!(handle.status(request), Status::Failed(_)), "{:?}", handle.status(request));
            }
            drop((handle, stand));
            assert!(began.elapsed() < PATIENCE);
            control.forget_answers();
            eventually("something is left behind", || {
                let left = control.counts();
                (left.objects, left.regions) == (none.objects, none.regions)
            });
        }
    });
}
