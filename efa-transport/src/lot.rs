//! Lots: slices that have everything but their place in common, and stray ones.
//!
//! A thousand pages of one request are a thousand [`Slice`]s and, on each lane, one [`Lot`]: what keeps their memory
//! registered and their batch alive is counted once for all of them. A slice whose attempt has failed, or that another NIC takes
//! over, leaves its lane as a [`Stray`]: a piece of memory to transfer, with a lot of its own.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use slab::Slab;

use crate::batch::{BatchState, Party};
use crate::error::Error;
use crate::peer::{Peer, PeerTable};
use crate::region::RegionInner;
use crate::request::Op;
use crate::scheduler::rail::Set;
use crate::scheduler::retry::{Tried, Untried};
use crate::scheduler::slicer::Cut;
use crate::slice::{NONE, Piece, Slice};
use crate::stall::Refusals;
use crate::warmup::Probe;

/// What slices of one batch on one lane share. Dropping one that still has slices fails their requests, so nothing is ever lost.
pub(crate) struct Lot {
    pub(crate) batch: Arc<BatchState>,
    /// Keeps the memory registered; lots alone do, so that a batch that has ended holds nothing.
    pub(crate) region: Arc<RegionInner>,
    party: u32,
    pub(crate) local_chunk: u32,
    pub(crate) remote_chunk: u32,
    /// Slices of it that exist: queued, or possibly still touching memory here or at the peer.
    slices: u32,
    /// The request of the only slice, if it came as a stray.
    request: Option<u32>,
    pub(crate) op: Op,
    /// Carries the request's immediate.
    pub(crate) gate: bool,
    /// The NICs of the latest attempt.
    pub(crate) local_nic: u8,
    pub(crate) remote_nic: u8,
    /// Attempts that have ended.
    pub(crate) attempts: u16,
    /// Where they have failed, if there was one: then it has one slice.
    pub(crate) tried: Option<Box<Tried>>,
    /// The provider has taken one of them: it may have got through, whatever has become of it here.
    pub(crate) sent: bool,
    /// Of its next slice.
    pub(crate) refusals: Refusals,
}

impl Lot {
    /// For the slice `cut`, and those that are added.
    pub(crate) fn new(
        batch: Arc<BatchState>,
        region: Arc<RegionInner>,
        party: u32,
        op: Op,
        cut: &Cut,
    ) -> Self {
        Self {
            batch,
            region,
            party,
            local_chunk: cut.local_chunk,
            remote_chunk: cut.remote_chunk,
            slices: 1,
            request: None,
            op,
            gate: false,
            local_nic: NONE,
            remote_nic: NONE,
            attempts: 0,
            tried: None,
            sent: false,
            refusals: Refusals::default(),
        }
    }

    /// How many slices it has, before the first of them starts.
    pub(crate) const fn set_slices(&mut self, count: u32) {
        self.slices = count;
    }

    #[inline]
    pub(crate) fn party(&self) -> &Party {
        // The number came with the batch, whose parties stay as long as slices exist.
        &self.batch.parties[self.party as usize]
    }

    #[inline]
    pub(crate) fn peer(&self) -> &Arc<Peer> {
        &self.party().peer
    }

    #[inline]
    pub(crate) fn table(&self) -> &Arc<PeerTable> {
        &self.party().table
    }

    /// The NICs on this side that can carry its slices.
    #[inline]
    pub(crate) fn locals(&self) -> u128 {
        self.region.chunks.get(self.local_chunk as usize).map_or(0, |chunk| chunk.nics)
    }

    /// The NICs on the other side that can.
    #[inline]
    pub(crate) fn remotes(&self) -> u128 {
        self.table().nics_of(self.remote_chunk)
    }

    /// Those of `usable` lanes that its slice has not failed on; all of them if it has failed on all.
    #[inline]
    pub(crate) fn other_locals(&self, usable: Set) -> Set {
        self.tried.as_ref().map_or(usable, |tried| tried.other_locals(usable))
    }

    /// The same of remote NICs.
    #[inline]
    pub(crate) fn other_remotes(&self, usable: Set) -> Set {
        self.tried.as_ref().map_or(usable, |tried| tried.other_remotes(usable))
    }

    /// Whether its slice has failed on a lane, and has others to try first.
    #[inline]
    pub(crate) fn avoids(&self, lane: usize) -> bool {
        self.tried.as_ref().is_some_and(|tried| tried.holds_local(lane))
    }

    /// Its slice has failed on the NICs of the latest attempt; `locals` and `remotes` are those that it may use now.
    #[cold]
    pub(crate) fn has_failed(&mut self, locals: Set, remotes: Set) -> Untried {
        let nic = |nic: u8| (nic != NONE).then_some(usize::from(nic));
        let rail = (nic(self.local_nic), nic(self.remote_nic));
        self.tried.get_or_insert_default().fail(rail, (locals, remotes))
    }

    /// The immediate of a request.
    pub(crate) fn immediate(&self, request: u32) -> Option<u64> {
        self.batch.requests.get(request as usize)?.immediate.map(u64::from)
    }

    /// So many slices are over: nothing touches memory for them any more. So many requests have ended with them.
    #[inline]
    pub(crate) fn slices_gone(&mut self, count: u32, requests: u32) {
        self.slices -= count;
        self.batch.slices_gone(count, requests);
    }

    /// A lot of its own for one slice that leaves.
    fn split(&mut self) -> Self {
        self.slices -= 1;
        Self {
            batch: Arc::clone(&self.batch),
            region: Arc::clone(&self.region),
            slices: 1,
            tried: None,
            ..*self
        }
    }
}

impl Drop for Lot {
    fn drop(&mut self) {
        if self.slices == 0 {
            return;
        }
        match self.request {
            Some(request) => {
                self.batch.fail(request, |_| Error::ShutDown);
            }
            None => self.batch.fail_all(&Error::ShutDown),
        }
        self.peer().counters.lost.fetch_add(self.slices as usize, Ordering::Release);
        self.slices_gone(self.slices, 0);
    }
}

/// A slice between two lanes. Dropping it fails its request, if that has not ended.
pub(crate) struct Stray {
    pub(crate) lot: Lot,
    pub(crate) piece: Piece,
}

impl Stray {
    /// From a lot with this slice only.
    pub(crate) fn new(mut lot: Lot, piece: Piece) -> Self {
        lot.request = Some(piece.request);
        Self { lot, piece }
    }

    /// The one that carries its request's immediate.
    pub(crate) fn gate(mut lot: Lot, piece: Piece) -> Self {
        lot.gate = true;
        Self::new(lot, piece)
    }

    /// An attempt has ended, of local NIC `lane`.
    pub(crate) fn attempted(&mut self, lane: usize) {
        self.lot.attempts = self.lot.attempts.saturating_add(1);
        self.lot.local_nic = lane as u8;
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.lot.batch.request_has_ended(self.piece.request)
    }

    /// Fails its request; false if that had ended before.
    pub(crate) fn fail(self, error: impl FnOnce(&Party) -> Error) -> bool {
        self.lot.batch.fail(self.piece.request, error)
    }
}

/// What the slices of a lane's queue stand for.
pub(crate) enum Cargo {
    Lot(Lot),
    /// A small read that warms a rail up; a slice without bytes stands for it. Boxed, because lots are moved about and it is larger.
    Probe(Box<Probe>),
}

/// The lots of one lane, and its probes.
#[derive(Default)]
pub(crate) struct Lots(Slab<Cargo>);

impl Lots {
    /// The number that its slices carry.
    pub(crate) fn insert(&mut self, cargo: Cargo) -> u32 {
        self.0.insert(cargo) as u32
    }

    #[inline]
    pub(crate) fn get(&self, number: u32) -> Option<&Cargo> {
        self.0.get(number as usize)
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, number: u32) -> Option<&mut Cargo> {
        self.0.get_mut(number as usize)
    }

    /// So many slices of a lot are over, and so many requests have ended with them; with the last slice the lot goes.
    #[inline]
    pub(crate) fn end(&mut self, number: u32, slices: u32, requests: u32) {
        if let Some(Cargo::Lot(lot)) = self.0.get_mut(number as usize) {
            lot.slices_gone(slices, requests);
            if lot.slices == 0 {
                self.0.remove(number as usize);
            }
        }
    }

    /// The only slice of a lot that was sent alone has ended well, which ends its batch.
    #[inline]
    pub(crate) fn end_alone(&mut self, number: u32) {
        if let Some(Cargo::Lot(lot)) = self.0.get_mut(number as usize) {
            lot.slices = 0;
            lot.batch.end_alone();
            self.0.remove(number as usize);
        }
    }

    /// Takes a slice out that has left the queue.
    pub(crate) fn take(&mut self, slice: &Slice) -> Option<Taken> {
        let number = slice.lot as usize;
        let mut lot = match self.0.get_mut(number)? {
            Cargo::Lot(lot) if lot.slices > 1 => lot.split(),
            _ => match self.0.remove(number) {
                Cargo::Lot(lot) => lot,
                Cargo::Probe(probe) => return Some(Taken::Probe(*probe)),
            },
        };
        if slice.remote_nic != NONE {
            lot.remote_nic = slice.remote_nic;
        }
        Some(Taken::Stray(Stray::new(lot, slice.piece)))
    }

    /// Whether nobody waits for a slice any more.
    #[inline]
    pub(crate) fn has_ended(&self, slice: &Slice) -> bool {
        match self.get(slice.lot) {
            Some(Cargo::Lot(lot)) => lot.batch.request_has_ended(slice.request()),
            Some(Cargo::Probe(probe)) => probe.is_over(),
            None => true,
        }
    }
}

/// What has left a lane.
pub(crate) enum Taken {
    Stray(Stray),
    Probe(Probe),
}
