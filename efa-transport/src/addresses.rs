//! A lane's address vector entries: one for each remote NIC in use.

use std::sync::Arc;

use fabric_safe::Address;

use crate::descriptor::NicEntry;
use crate::lane::{Lane, LaneState};
use crate::peer::Peer;

/// Addresses of one peer's NICs in our vector, inserted when they are first used.
#[derive(Default)]
pub(crate) struct PeerAddresses {
    /// Whose they are: the list that they came from.
    pub(crate) nics: Option<Arc<[NicEntry]>>,
    pub(crate) addresses: Vec<Option<Address>>,
    pub(crate) last_used: u64,
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
        let state = &mut *state;
        let slot = peer.id.slot as usize;
        if state.peers.len() <= slot {
            state.peers.resize_with(slot + 1, PeerAddresses::default);
        }
        let known = &mut state.peers[slot];
        if !known.nics.as_ref().is_some_and(|known| Arc::ptr_eq(known, nics)) {
            state.entries -= known.addresses.iter().flatten().count();
            known.addresses.clear();
            known.addresses.resize(nics.len(), None);
            known.nics = Some(Arc::clone(nics));
        }
        known.last_used = now;
        for (index, (entry, nic)) in known.addresses.iter_mut().zip(nics.iter()).enumerate() {
            if which(index)
                && entry.is_none()
                && let Ok(address) = self.nic.insert(&nic.address)
            {
                *entry = Some(address);
                state.entries += 1;
            }
        }
    }

    /// Address vector entries in use.
    pub(crate) fn addresses(&self) -> usize {
        self.state.lock().entries
    }

    /// Forgets the addresses of a peer that has been removed.
    pub(crate) fn forget(&self, slot: u32) {
        let mut state = self.state.lock();
        let state = &mut *state;
        if let Some(known) = state.peers.get_mut(slot as usize) {
            state.entries -= known.addresses.iter().flatten().count();
            *known = PeerAddresses::default();
        }
    }
}

/// Lets go of the addresses of the peer that has been idle longest. fabric-safe removes an entry when the last operation to it
/// has ended, so operations in flight are safe.
#[cold]
pub(crate) fn evict(state: &mut LaneState, keep: usize) {
    let oldest = state
        .peers
        .iter()
        .enumerate()
        .filter(|(slot, peer)| {
            *slot != keep && peer.nics.is_some() && state.queue.in_flight_of(*slot as u32) == 0
        })
        .min_by_key(|(_, peer)| peer.last_used)
        .map(|(slot, _)| slot);
    if let Some(slot) = oldest {
        state.entries -= state.peers[slot].addresses.iter().flatten().count();
        state.peers[slot] = PeerAddresses::default();
    }
}
