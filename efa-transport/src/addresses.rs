//! A lane's address vector entries: one for each remote NIC in use.

use std::sync::Arc;
use std::time::Duration;

use fabric_safe::Address;

use crate::clock::nanos;
use crate::descriptor::NicEntry;
use crate::lane::{Lane, LaneState};
use crate::lot::Cargo;
use crate::nic::Nic;
use crate::peer::{Peer, PeerTable};
use crate::scheduler::queue::Queue;
use crate::scheduler::rail::{Set, holds};
use crate::slice::Slice;

/// Addresses of one peer's NICs in our vector, inserted when they are first used.
#[derive(Default)]
struct PeerAddresses {
    /// Whose they are: the list that they came from.
    nics: Option<Arc<[NicEntry]>>,
    addresses: Vec<Option<Address>>,
    last_used: u64,
}

/// All peers' addresses in the vector of one lane.
pub(crate) struct Addresses {
    /// By the peer's slot.
    peers: Vec<PeerAddresses>,
    /// Entries that we hold, and how many are enough.
    entries: usize,
    max_entries: usize,
}

impl Addresses {
    pub(crate) const fn new(max_entries: usize) -> Self {
        Self { peers: Vec::new(), entries: 0, max_entries }
    }

    /// The address of a peer's NIC, if it has been inserted.
    #[inline]
    pub(crate) fn get(&self, slot: usize, remote_nic: usize) -> Option<&Address> {
        self.peers.get(slot)?.addresses.get(remote_nic)?.as_ref()
    }

    /// The same, with what the peer says of that NIC.
    pub(crate) fn entry(&self, slot: usize, remote_nic: usize) -> Option<(&Address, &NicEntry)> {
        let nic = self.peers.get(slot)?.nics.as_ref()?.get(remote_nic)?;
        Some((self.get(slot, remote_nic)?, nic))
    }

    /// Whether the address of one of a peer's `nics` is there. The peer counts as used `now`.
    #[inline]
    pub(crate) fn touch(&mut self, slot: usize, nics: &Arc<[NicEntry]>, remote_nic: usize, now: u64) -> bool {
        let Some(known) = self.peers.get_mut(slot) else { return false };
        if !known.nics.as_ref().is_some_and(|known| Arc::ptr_eq(known, nics)) {
            return false;
        }
        known.last_used = now;
        known.addresses.get(remote_nic).is_some_and(Option::is_some)
    }

    /// The addresses of a peer with these NICs, those of others that it had before let go of.
    fn of(&mut self, slot: usize, nics: &Arc<[NicEntry]>, now: u64) -> &mut PeerAddresses {
        if self.peers.len() <= slot {
            self.peers.resize_with(slot + 1, PeerAddresses::default);
        }
        let known = &mut self.peers[slot];
        if !known.nics.as_ref().is_some_and(|known| Arc::ptr_eq(known, nics)) {
            self.entries -= known.addresses.iter().flatten().count();
            known.addresses.clear();
            known.addresses.resize(nics.len(), None);
            known.nics = Some(Arc::clone(nics));
        }
        known.last_used = now;
        known
    }

    /// The peer is in the same life, and some of its NICs are reached elsewhere now. What there is of the others stays: the provider has
    /// begun with them, and would not again. False if there is nothing of that peer.
    fn follow(&mut self, slot: usize, nics: &Arc<[NicEntry]>) -> bool {
        let Some(known) = self.peers.get_mut(slot) else { return false };
        let Some(before) = known.nics.replace(Arc::clone(nics)) else {
            known.nics = None;
            return false;
        };
        let stays = |index: usize| match (before.get(index), nics.get(index)) {
            (Some(before), Some(now)) => before.address == now.address,
            _ => false,
        };
        let held = known.addresses.iter().flatten().count();
        known.addresses.resize(nics.len(), None);
        for (index, address) in known.addresses.iter_mut().enumerate() {
            if !stays(index) {
                *address = None;
            }
        }
        self.entries -= held - known.addresses.iter().flatten().count();
        true
    }

    /// Inserts the address of one of a peer's `nics`, which is not there. If there are more than enough then, lets go of those
    /// of a peer to which nothing is in flight.
    #[cold]
    pub(crate) fn insert<T>(
        &mut self,
        slot: usize,
        (nics, remote_nic): (&Arc<[NicEntry]>, usize),
        (nic, queue): (&Nic, &Queue<T>),
        now: u64,
    ) -> Result<(), fabric_safe::Error> {
        let known = self.of(slot, nics, now);
        if let (Some(entry), Some(there)) = (known.addresses.get_mut(remote_nic), nics.get(remote_nic))
            && entry.is_none()
        {
            *entry = Some(nic.insert(&there.address)?);
            self.entries += 1;
        }
        if self.entries > self.max_entries {
            self.evict(slot, |slot| queue.in_flight_of(slot) > 0);
        }
        Ok(())
    }

    /// Lets go of one address, so that the provider begins anew when it is inserted again.
    pub(crate) fn remove(&mut self, slot: usize, remote_nic: usize) {
        let known = self.peers.get_mut(slot).and_then(|known| known.addresses.get_mut(remote_nic));
        if let Some(address) = known.and_then(Option::take) {
            self.entries -= 1;
            address.discard();
        }
    }

    /// Lets go of all of a peer's.
    fn forget(&mut self, slot: usize) {
        if let Some(known) = self.peers.get_mut(slot) {
            self.entries -= known.addresses.iter().flatten().count();
            *known = PeerAddresses::default();
        }
    }

    /// Lets go of the addresses of the peer that has been idle longest. fabric-safe removes an entry when the last operation to it
    /// has ended, so operations in flight are safe.
    fn evict(&mut self, keep: usize, busy: impl Fn(u32) -> bool) {
        let oldest = self
            .peers
            .iter()
            .enumerate()
            .filter(|(slot, peer)| *slot != keep && peer.nics.is_some() && !busy(*slot as u32))
            .min_by_key(|(_, peer)| peer.last_used)
            .map(|(slot, _)| slot);
        if let Some(slot) = oldest {
            self.forget(slot);
        }
    }
}

/// NICs of a peer that are not at the address any more where operations are under way to.
pub(crate) struct Deserted {
    peer: Arc<Peer>,
    nics: Set,
    /// When it said so.
    since: u64,
}

/// How long operations may be under way to where their peer says that it is not any more. A card soon tells those that it has sent;
/// but EFA's provider keeps those that wait until it has heard from that address for the first time.
const DESERTED: Duration = Duration::from_secs(1);

impl LaneState {
    /// Whether operations have been under way for long to where nobody is: only closing the endpoint ends them.
    pub(crate) fn sits_on_deserted(&mut self, now: u64) -> bool {
        let Self { queue, lots, deserted, .. } = self;
        let is_one = |slice: &Slice, old: &Deserted| {
            let (peer, remote_nic) = match lots.get(slice.lot) {
                Some(Cargo::Lot(lot)) => (lot.peer(), slice.remote_nic as usize),
                Some(Cargo::Probe(probe)) => (&probe.peer, probe.remote_nic),
                None => return false,
            };
            Arc::ptr_eq(peer, &old.peer) && holds(old.nics, remote_nic) && slice.since <= old.since
        };
        let mut sits = false;
        deserted.retain(|old| {
            let due = now.saturating_sub(old.since) >= nanos(DESERTED);
            sits |= due && queue.flying().any(|(_, slice)| is_one(slice, old));
            !due
        });
        sits
    }
}

impl Lane {
    /// Inserts addresses of a peer now, for cards that must know who writes to them.
    pub(crate) fn introduce(
        &self,
        peer: &Peer,
        nics: &Arc<[NicEntry]>,
        which: impl Fn(usize) -> bool,
        now: u64,
    ) {
        let mut state = self.state.lock();
        let addresses = &mut state.addresses;
        let known = addresses.of(peer.id.slot as usize, nics, now);
        let mut inserted = 0;
        for (index, (entry, nic)) in known.addresses.iter_mut().zip(nics.iter()).enumerate() {
            if which(index)
                && entry.is_none()
                && let Ok(address) = self.nic.insert(&nic.address)
            {
                *entry = Some(address);
                inserted += 1;
            }
        }
        addresses.entries += inserted;
    }

    /// Some of a peer's NICs have another address than before, in the same life. What goes to it from now on goes to the new ones; what
    /// is under way to the old ones is [looked at](LaneState::sits_on_deserted) again before long.
    pub(crate) fn follow(&self, peer: &Arc<Peer>, table: &PeerTable, now: u64) {
        let mut state = self.state.lock();
        let slot = peer.id.slot;
        if state.addresses.follow(slot as usize, &table.nics) && state.queue.in_flight_of(slot) > 0 {
            state.deserted.push(Deserted { peer: Arc::clone(peer), nics: table.moved, since: now });
        }
    }

    /// Address vector entries in use.
    pub(crate) fn addresses(&self) -> usize {
        self.state.lock().addresses.entries
    }

    /// Forgets the addresses of a peer that has been removed.
    pub(crate) fn forget(&self, slot: u32) {
        self.state.lock().addresses.forget(slot as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(last_used: u64) -> PeerAddresses {
        PeerAddresses { nics: Some(Arc::new([])), last_used, ..PeerAddresses::default() }
    }

    /// Catches: room that is made by taking the address of a peer with operations under way, or of the one that needs the room.
    #[test]
    fn room_is_made_by_the_peer_that_has_been_idle_longest_and_has_nothing_under_way() {
        let mut addresses = Addresses::new(1);
        addresses.peers = vec![used(1), used(2), PeerAddresses::default(), used(3), used(4)];
        let known = |addresses: &Addresses| -> Vec<usize> {
            (0..5).filter(|&slot| addresses.peers[slot].nics.is_some()).collect()
        };
        addresses.evict(1, |slot| slot == 0);
        assert_eq!(known(&addresses), [0, 1, 4], "the first is busy, the second wants the room");
        addresses.evict(1, |_| true);
        assert_eq!(known(&addresses), [0, 1, 4], "all are busy: there are more than enough for a while");
        addresses.evict(1, |_| false);
        assert_eq!(known(&addresses), [1, 4]);
    }
}
