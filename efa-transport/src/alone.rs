//! The short way of a request that is alone in its batch: one range on either side, in one chunk, for one operation.
//!
//! It leads where the long way leads, and whatever is out of the ordinary takes that one. What others need and this does not:
//! slices gathered for all lanes and cut at seams, the lines in which slices wait, a look at every lane while it is waited for.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::batch::{BatchState, Party};
use crate::core::Core;
use crate::lane::{Context, Lane, LaneState, Outcome, bump};
use crate::lot::{Cargo, Lot};
use crate::post::Ends;
use crate::region::RegionInner;
use crate::request::{Batch, Op};
use crate::scheduler::rail::{Chooser, holds, only};
use crate::scheduler::slicer::Cut;
use crate::slice::{Piece, Slice};

impl Core {
    /// Sends the only request of a batch. False if it is not like that; then nothing has happened. The batch is empty otherwise. `now` may
    /// be a little while [ago](crate::clock::Clock::lately).
    #[inline]
    pub(crate) fn send_alone(&self, state: &Arc<BatchState>, batch: &mut Batch, now: u64) -> bool {
        let ([stored], [here], [there]) = (&batch.requests[..], &batch.local[..], &batch.remote[..]) else {
            return false;
        };
        let [party] = &state.parties[..] else { return false };
        let longest = self.lanes.fabric(party.table.fabric).longest.max(1).min(self.config.stripe_bytes);
        if stored.immediate.is_some() || stored.bytes > longest || party.peer.health().is_suspect() {
            return false;
        }
        // Nothing to be checked, on the first fabric, and not in this process: mostly so.
        let plain = party.table.fabric == 0 && party.table.epoch != self.epoch && !party.peer.is_stale();
        let second = if plain {
            None
        } else {
            let Ok(second) = self.prepare(state, 0, stored, batch, now) else {
                batch.clear();
                return true;
            };
            second
        };
        let region = second.as_ref().unwrap_or(&stored.region);
        let chunks = (region.chunk_at(here.at), party.table.chunk_at(there.at, stored.op));
        let (Some(local), Some(remote)) = chunks else { return false };
        if stored.bytes > local.left.min(remote.left) {
            return false;
        }
        let cut = Cut {
            local: here.at,
            remote: there.at,
            len: stored.bytes,
            local_chunk: local.index,
            remote_chunk: remote.index,
        };
        let Some(lane) = self.lane_of_one(region, party, &cut, now) else { return false };
        // The lot keeps the memory registered from now on, as the batch has until now.
        let Some(stored) = batch.requests.pop() else { return false };
        let region = second.unwrap_or(stored.region);
        let lot = Lot::new(Arc::clone(state), region, 0, stored.op, &cut);
        batch.clear();
        state.begin_alone(lane.index);
        let piece = Piece::new(0, &cut);
        {
            let mut its = lane.state.lock();
            if let Some(slice) = lane.post_alone(&mut its, &lot, piece, now) {
                lane.expect(Lane::weight(cut.len));
                lot.peer().counters.begins(lane.index);
                its.is_posted(lot, slice);
                return true;
            }
        }
        lot.peer().begun.fetch_add(1, Ordering::Relaxed);
        let now = self.clock.now();
        self.give(lane, Lane::weight(cut.len), now, |its| its.admit(lot, &[piece]));
        true
    }

    /// The lane whose turn it is if nothing is better: it is idle, near, and as fast as any. Otherwise the one that is chosen among
    /// all. Memory on one NIC has one way, and takes nobody's turn.
    #[inline]
    fn lane_of_one(&self, region: &RegionInner, party: &Party, cut: &Cut, now: u64) -> Option<&Lane> {
        let fabric = self.lanes.fabric(party.table.fabric);
        let nics = region.chunks.get(cut.local_chunk as usize)?.nics;
        if let Some(lane) = only(nics) {
            return self.lanes.get(lane);
        }
        let turn = self.turn_of_one();
        if let Some(lane) = fabric.lanes.get(turn)
            && holds(nics & region.near, lane.index)
            && !lane.is_busy()
            && lane.pace == fabric.fastest
            && lane.is_usable(now)
        {
            return Some(lane);
        }
        self.lane_of_all(region, party, cut, turn)
    }

    #[inline(never)]
    fn lane_of_all(&self, region: &RegionInner, party: &Party, cut: &Cut, turn: usize) -> Option<&Lane> {
        let now = self.clock.now();
        let chunks = (cut.local_chunk, cut.remote_chunk);
        let eligible = self.eligible(region, party, chunks, self.usable(now), now);
        let turn = (&mut Chooser::default(), self.lanes.fabric(party.table.fabric).range.start + turn);
        let lane = self.choose(eligible, region.near, cut.len, turn, |_| 0)?;
        self.lanes.get(lane)
    }

    /// Drives what a batch waits for: the lane that it was sent to alone, if that still has something to do; everything that has
    /// otherwise. Returns how much happened.
    #[inline]
    pub(crate) fn drive_for(&self, state: &BatchState) -> usize {
        let lane = state.lane().and_then(|lane| self.lanes.get(lane));
        match lane.filter(|lane| lane.is_busy()) {
            Some(lane) if self.retry_count.load(Ordering::Acquire) == 0 => self.drive_one(lane),
            _ => self.drive_busy(),
        }
    }

    #[inline]
    fn drive_one(&self, lane: &Lane) -> usize {
        let Some(mut its) = lane.state.try_lock() else { return 0 };
        let mut outcome = Outcome::default();
        bump(&lane.counters.polls, 1);
        let happened = lane.drive(&mut its, &Context::new(self, None), &mut outcome);
        drop(its);
        if let Some(left) = outcome.take() {
            self.settle(lane, left);
        }
        happened
    }
}

impl Lane {
    /// Posts the only slice of a lot at once, where nothing waits and the latest lot has gone the same way. `None` if it was not
    /// posted, for whatever reason: then nothing has happened.
    #[inline]
    fn post_alone(&self, state: &mut LaneState, lot: &Lot, piece: Piece, now: u64) -> Option<Slice> {
        let LaneState { endpoint, queue, addresses, path, owed, .. } = state;
        let token = queue.next_alone(piece.len())?;
        if !path.steady
            || path.ends != Ends::of(lot)
            || owed.is_some()
            || lot.peer().health().is_suspect()
            || !addresses.touch(path.slot, &lot.table().nics, path.remote_nic.into(), now)
            || lot.batch.request_has_ended(piece.request)
        {
            return None;
        }
        let address = addresses.get(path.slot, path.remote_nic.into())?;
        let region = lot.region.handle(path.handle)?;
        let start = piece.local.wrapping_sub(path.local_base) as usize;
        let local = region.slice(start..start.wrapping_add(piece.len() as usize)).ok()?;
        let remote = path.remote_of(&piece);
        let posted = match lot.op {
            Op::Write => endpoint.write(address, local, remote, token.raw().into()),
            Op::Read => endpoint.read(address, local, remote, token.raw().into()),
        };
        posted.ok()?;
        bump(&self.counters.slices, 1);
        #[cfg(test)]
        bump(&self.counters.alone, 1);
        Some(Slice { since: now, remote_nic: path.remote_nic, ..Slice::new(piece, 0) })
    }
}

impl LaneState {
    /// Takes account of the only slice of a lot, which has been posted.
    #[inline]
    fn is_posted(&mut self, lot: Lot, slice: Slice) {
        let flow = lot.peer().id.slot;
        let lot = self.lots.insert(Cargo::Lot(lot));
        self.queue.push_posted(flow, slice.len(), Slice { lot, ..slice });
    }
}
