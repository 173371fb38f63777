//! A lane's address vector entries: one for each remote NIC in use.

use std::sync::Arc;

use fabric_safe::Address;

use crate::descriptor::NicEntry;
use crate::lane::Lane;
use crate::nic::Nic;
use crate::peer::Peer;
use crate::scheduler::queue::Queue;

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
