//! Peers that close endpoints and open others, and operations that nobody will ever answer because of that.

use std::time::Duration;

use scripted_provider::{Answer, Call};

use super::scripted::{scripted, scripted_as_efa};
use super::{EIO, Stand};
use crate::descriptor::Descriptor;
use crate::{Error, PeerId, Status};

const LONG: Duration = Duration::from_secs(30);
const MILLI: Duration = Duration::from_millis(1);
/// As long as operations may be under way to where nobody is.
const DESERTED: Duration = Duration::from_secs(1);

/// A peer whose NICs have these addresses.
fn at(stand: &Stand, name: &str, life: (u64, u64), addresses: &[u8]) -> PeerId {
    let bytes = stand.descriptor(name, life, 100, addresses.len());
    let mut descriptor = Descriptor::decode(&bytes).unwrap();
    for (nic, &address) in descriptor.fabrics[0].nics.iter_mut().zip(addresses) {
        nic.address = [address].into();
    }
    stand.transport.add_or_update_peer(&descriptor.encode()).unwrap()
}

/// Where operations to a peer's first NIC go.
fn goes_to(stand: &Stand, peer: PeerId) -> Vec<u8> {
    let state = stand.core().lanes[0].state.lock();
    state.addresses.entry(peer.slot as usize, 0).expect("it is in use").1.address.to_vec()
}

fn reopened(stand: &Stand) -> u64 {
    stand.transport.statistics().nics.iter().map(|nic| nic.reopened).sum()
}

/// Catches: an operation that waits for its deadline although its peer has said that nobody will answer; a retry that goes there again;
/// an endpoint that is closed for less, or too early.
#[test]
fn what_is_under_way_to_an_endpoint_that_is_gone_is_sent_to_its_successor() {
    let test =
        "scripted_tests::moved::what_is_under_way_to_an_endpoint_that_is_gone_is_sent_to_its_successor";
    scripted(test, |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = at(&stand, "peer", (1, 1), &[1]);
        let other = at(&stand, "other", (1, 1), &[9]);
        control.tell(Call::Post, Answer::Never, 2);
        let (handle, beside) = (stand.send(peer, 1, LONG), stand.send(other, 1, LONG));
        let (old, others) = (control.placed()[0].peer, control.placed()[1].peer);
        // News of other things are no reason, nor is time.
        at(&stand, "peer", (1, 2), &[1]);
        at(&stand, "other", (1, 2), &[9]);
        stand.advance(10 * DESERTED);
        stand.unstick();
        assert_eq!((control.placed().len(), reopened(&stand)), (2, 0));
        at(&stand, "peer", (1, 3), &[2]);
        stand.advance(DESERTED - MILLI);
        stand.unstick();
        stand.drive();
        assert_eq!(reopened(&stand), 0, "a card may yet tell of it");
        assert!(matches!(handle.status(0), Status::Pending));
        stand.advance(MILLI);
        stand.unstick();
        stand.drive_through(2);
        assert!(handle.poll().expect("the new one answers").is_ok());
        assert!(beside.poll().expect("it has been on the same endpoint").is_ok());
        assert_eq!(reopened(&stand), 1);
        let (to_peer, to_other): (Vec<_>, Vec<_>) =
            stand.placed_since(2).into_iter().partition(|placed| placed.peer != others);
        assert!(to_peer.len() == 1 && to_peer[0].peer != old && to_other.len() == 1);
        assert_eq!(goes_to(&stand, peer), [2]);
        stand.advance(10 * DESERTED);
        stand.unstick();
        assert_eq!(reopened(&stand), 1, "once");
        stand.assert_clean(&[peer, other]);
    });
}

/// Catches: an endpoint that is closed although the card has told of everything that was under way; one that is closed because of
/// what went to the new address.
#[test]
fn an_endpoint_stays_when_what_was_under_way_has_ended_by_itself() {
    let test = "scripted_tests::moved::an_endpoint_stays_when_what_was_under_way_has_ended_by_itself";
    scripted(test, |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = at(&stand, "peer", (1, 1), &[1]);
        control.tell(Call::Post, Answer::Error { errno: EIO, provider_errno: 0, after: 3 }, 1);
        let handle = stand.send(peer, 1, LONG);
        at(&stand, "peer", (1, 2), &[2]);
        control.tell(Call::Post, Answer::Never, 1);
        stand.advance(MILLI);
        stand.drive_through(2);
        let placed = control.placed();
        assert!(
            placed.len() == 2 && placed[0].peer != placed[1].peer,
            "the old batch goes to the new address"
        );
        stand.advance(2 * DESERTED);
        stand.unstick();
        assert_eq!(reopened(&stand), 0);
        assert!(matches!(handle.status(0), Status::Pending));
        stand.advance(LONG);
        stand.core().expire();
        assert!(matches!(handle.status(0), Status::Failed(Error::Timeout { .. })));
    });
}

/// Catches: addresses of NICs that are where they were that are taken out and put in again. EFA's provider begins with an address
/// once; the other side does not answer it again.
#[test]
fn a_peer_that_moves_one_nic_keeps_its_other_addresses() {
    scripted("scripted_tests::moved::a_peer_that_moves_one_nic_keeps_its_other_addresses", |control| {
        let stand = Stand::open(control, "scripted", 1, |config| config);
        let peer = at(&stand, "peer", (1, 1), &[1, 2, 3]);
        let entries = || {
            control.reset();
            assert!(stand.send(peer, 60, LONG).wait().is_ok());
            let mut entries: Vec<(u64, u64)> =
                control.placed().iter().map(|placed| (placed.key, placed.peer)).collect();
            entries.sort_unstable();
            entries.dedup();
            assert_eq!(entries.len(), 3);
            entries
        };
        let held = || stand.core().lanes[0].addresses();
        let before = entries();
        at(&stand, "peer", (1, 2), &[1, 4, 3]);
        assert_eq!(held(), 2);
        let after = entries();
        assert_eq!((after[0], after[2], held()), (before[0], before[2], 3));
        assert_ne!(after[1], before[1]);
        // Another life with the same addresses begins anew with all.
        at(&stand, "peer", (2, 1), &[1, 4, 3]);
        let reborn = entries();
        assert!(after.iter().zip(&reborn).all(|(after, reborn)| after.1 != reborn.1), "{after:?} {reborn:?}");
        assert_eq!(held(), 3);
    });
}

/// Catches: a message of the provider's own that is lost with a queue pair, which nobody makes up for; an endpoint that is closed because
/// a peer has gone, which the provider reports as well.
#[test]
fn a_lost_message_of_the_provider_is_made_up_for_by_another_endpoint() {
    let test = "scripted_tests::moved::a_lost_message_of_the_provider_is_made_up_for_by_another_endpoint";
    scripted_as_efa(test, |control| {
        let stand = Stand::open(control, "scripted-efa", 1, |config| config);
        let peer = stand.meet("peer", (1, 1), 100);
        let reach = stand.transport.reach_generation();
        for (provider_errno, fatal) in [(13, false), (0, false), (1, true), (2, true)] {
            let before = reopened(&stand);
            control.tell(Call::Event, Answer::Error { errno: 125, provider_errno, after: 0 }, 1);
            control.tell(Call::Post, Answer::Never, 1);
            let handle = stand.send(peer, 1, LONG);
            stand.unstick();
            stand.unstick();
            stand.drive_through(2);
            assert_eq!(reopened(&stand) - before, u64::from(fatal), "{provider_errno}");
            if fatal {
                assert!(handle.poll().expect("it has been sent again").is_ok());
            } else {
                handle.cancel();
            }
        }
        assert_eq!(stand.transport.reach_generation(), reach + 2, "peers are told");
    });
}
