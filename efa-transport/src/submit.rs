//! From a batch to slices on lanes.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::batch::{BatchHandle, BatchState, RequestState};
use crate::core::Core;
use crate::error::Error;
use crate::request::Batch;
use crate::route::Staging;
use crate::scheduler::rail::Chooser;
use crate::scheduler::slicer::{Hole, Stretch, longest_slice, slice};
use crate::slice::Slice;
use crate::sync::{lock, nanos};

/// Batch states that are kept for reuse.
const SPARE: usize = 256;

/// Batches whose deadlines are watched.
#[derive(Default)]
pub(crate) struct Watched {
    pub(crate) slots: Vec<Option<Arc<BatchState>>>,
    pub(crate) free: Vec<u32>,
}

impl Core {
    pub(crate) fn submit(self: &Arc<Self>, batch: &mut Batch) -> Result<BatchHandle, Error> {
        if self.is_shut() {
            return Err(Error::ShutDown);
        }
        for stored in &batch.requests {
            if stored.immediate.is_some() && self.immediate_bytes < 4 {
                return Err(Error::Request(format!(
                    "provider {} carries {} bytes of immediate, not 4",
                    self.lanes[0].nic.info.provider_name(),
                    self.immediate_bytes
                )));
            }
        }
        let limit = batch.deadline.unwrap_or(self.config.request_deadline);
        let now = self.clock.now();
        let deadline = now.saturating_add(nanos(limit));
        let state = {
            let peers = self.peers();
            for stored in &batch.requests {
                peers.get(stored.peer)?;
            }
            let requests = batch.requests.iter().filter_map(|stored| {
                let peer = Arc::clone(peers.get(stored.peer).ok()?);
                let table = peer.table();
                Some(RequestState::new(stored.op, peer, table, stored.immediate, deadline, limit))
            });
            self.take_state(requests)
        };
        let watch = self.watch(&state);
        let mut staging = lock(&self.staging).pop().unwrap_or_default();
        staging.lanes.resize_with(self.lanes.len(), Vec::new);
        let mut start_now = Vec::new();
        let mut chooser = Chooser::default();
        for (index, stored) in batch.requests.iter().enumerate() {
            self.stage(&state, index as u32, stored, batch, now, &mut staging, &mut start_now, &mut chooser);
        }
        batch.clear();
        for (lane, slices) in self.lanes.iter().zip(&mut staging.lanes) {
            self.hand_to(lane, slices.drain(..), now);
        }
        lock(&self.staging).push(staging);
        for slice in start_now {
            self.route(slice, now);
        }
        Ok(BatchHandle::new(state, Arc::clone(self), watch))
    }

    #[allow(clippy::too_many_arguments)] // all of submit's state
    pub(crate) fn stage(
        &self,
        state: &Arc<BatchState>,
        index: u32,
        stored: &crate::request::Stored,
        batch: &Batch,
        now: u64,
        staging: &mut Staging,
        start_now: &mut Vec<Slice>,
        chooser: &mut Chooser,
    ) {
        let request = &state.requests[index as usize];
        let peer = &request.peer;
        if peer.is_stale() {
            let why = "a key was refused or it has restarted".to_owned();
            state.fail(index, |r| Error::PeerStale { peer: r.peer.name.clone(), why });
            return;
        }
        if stored.immediate.is_some() && request.table.immediate_bytes < 4 {
            let why = "its NICs cannot receive immediates of 4 bytes".to_owned();
            state.fail(index, |r| Error::Incompatible { peer: r.peer.name.clone(), why });
            return;
        }
        if !peer.health().usable(now) {
            let why = "earlier requests found it so; it is tried again before long".to_owned();
            state.fail(index, |r| Error::PeerDown { peer: r.peer.name.clone(), why });
            return;
        }
        if request.table.epoch == self.epoch && self.config.same_process_copy {
            self.copy_within(state, index, stored, batch);
            return;
        }
        let usable = self.usable(now);
        let region = &stored.region;
        let rails = (region.chunks.first().map_or(0, |chunk| chunk.nics) & usable).count_ones() as usize;
        let longest = longest_slice(
            stored.bytes,
            rails,
            self.config.stripe_bytes,
            self.config.slice_bytes,
            self.longest,
        );
        let stretch = |range: &crate::request::Range| Stretch { at: range.at, len: range.len };
        let mut stranded = None;
        let mut held: Option<Slice> = None;
        let gated = stored.immediate.is_some();
        let mut made = 0;
        let lanes = self.lanes.len();
        let mut turn = self.next_turn();
        let sliced = slice(
            batch.local[stored.local.clone()].iter().map(stretch),
            batch.remote[stored.remote.clone()].iter().map(stretch),
            |addr| region.chunk_at(addr),
            |addr| request.table.chunk_at(addr, stored.op),
            longest,
            |cut| {
                made += 1;
                turn = if turn + 1 == lanes { 0 } else { turn + 1 };
                let mut slice = Slice::new(state, index, region, cut);
                if gated {
                    // The last one waits for all others.
                    match held.replace(slice) {
                        Some(before) => slice = before,
                        None => return,
                    }
                }
                match self.choose(&slice, usable, None, (chooser, turn), now) {
                    Some(lane) => {
                        self.lanes[lane].expect(slice.len);
                        staging.lanes[lane].push(slice);
                    }
                    // What it replaces fails the request just the same.
                    None => stranded = Some(slice),
                }
            },
        );
        state.add_slices(index, made);
        if let Some(mut slice) = held {
            slice.gate = true;
            request.set_gate(slice);
        }
        match sliced {
            Ok(()) => {}
            Err(Hole::Remote(stretch)) => {
                let wanted = stored.op.wanted();
                state.fail(index, |r| Error::NotRegistered {
                    peer: r.peer.name.clone(),
                    addr: stretch.at,
                    len: stretch.len,
                    wanted,
                });
            }
            Err(Hole::Local(stretch)) => {
                let (region_addr, region_len) = (region.addr, region.len);
                state.fail(index, |_| Error::OutOfBounds {
                    addr: stretch.at,
                    len: stretch.len,
                    region_addr,
                    region_len,
                });
            }
        }
        if let Some(slice) = stranded {
            slice.fail(|r| Error::NoRail {
                peer: r.peer.name.clone(),
                why: "no NIC here has the local memory registered".into(),
            });
        }
        // The part that stood for "slices are still being made".
        start_now.extend(state.part_done(index));
    }

    pub(crate) fn take_state(&self, requests: impl Iterator<Item = RequestState>) -> Arc<BatchState> {
        let spare = {
            let mut spare = lock(&self.spare);
            // A slice that has just ended may still be about to let go of its batch: then another will do.
            let free = spare.iter().rposition(|state| Arc::strong_count(state) == 1);
            free.map(|at| spare.swap_remove(at))
        };
        let mut state = spare.unwrap_or_else(|| Arc::new(BatchState::new()));
        if Arc::get_mut(&mut state).is_none() {
            state = Arc::new(BatchState::new());
        }
        if let Some(state) = Arc::get_mut(&mut state) {
            state.fill(requests);
        }
        state
    }

    pub(crate) fn watch(&self, state: &Arc<BatchState>) -> u32 {
        let mut watched = lock(&self.watched);
        let slot = watched.free.pop().unwrap_or_else(|| {
            watched.slots.push(None);
            (watched.slots.len() - 1) as u32
        });
        watched.slots[slot as usize] = Some(Arc::clone(state));
        slot
    }

    /// The handle is gone; a batch that still runs is watched on.
    pub(crate) fn unwatch(&self, slot: u32, state: &Arc<BatchState>) {
        if !state.has_ended() {
            self.wake_progress();
        } else {
            let mut watched = lock(&self.watched);
            let ours = watched.slots.get(slot as usize).and_then(Option::as_ref);
            if ours.is_some_and(|s| Arc::ptr_eq(s, state)) {
                watched.slots[slot as usize] = None;
                watched.free.push(slot);
            }
            drop(watched);
            self.count(state);
            self.keep(state);
        }
    }

    pub(crate) fn count(&self, state: &BatchState) {
        let (done, failed) = state.tally();
        self.requests_done.fetch_add(done, Ordering::Relaxed);
        self.requests_failed.fetch_add(failed, Ordering::Relaxed);
    }

    /// Keeps a state for reuse.
    pub(crate) fn keep(&self, state: &Arc<BatchState>) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE {
            spare.push(Arc::clone(state));
        }
    }

    /// Lets go of what spare states hold, as far as nobody uses them.
    pub(crate) fn clear_spare(&self) {
        for state in lock(&self.spare).iter_mut() {
            if let Some(state) = Arc::get_mut(state) {
                state.clear();
            }
        }
    }
}
