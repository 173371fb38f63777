//! The batches of a transport: those that run, whose deadlines are watched, and spare ones to be used again.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};
use std::time::Duration;

use crate::batch::BatchState;
use crate::core::Core;
use crate::error::Error;
use crate::peer::Peer;
use crate::request::Batch;

/// Spare states that are kept with what they have allocated.
const SPARE: usize = 256;

/// Every state has a slot for as long as the transport lives; a batch takes one and gives it back.
#[derive(Default)]
pub(crate) struct Batches {
    slots: Vec<Slot>,
    /// Those that no batch has. The one that was given back last comes first: it is still in the cache.
    free: Vec<u32>,
    /// Requests that ended well and that failed, of batches whose slots have been given back.
    done: u64,
    failed: u64,
}

/// No slot.
const NONE: u32 = u32::MAX;

/// The slot that was taken last. Whose handle goes need not give that one back, which is a lock less: the next batch looks there first.
/// If none comes, [`Batches::expire`] finds it.
pub(crate) struct Latest(AtomicU32);

impl Default for Latest {
    fn default() -> Self {
        Self(AtomicU32::new(NONE))
    }
}

struct Slot {
    state: Arc<BatchState>,
    taken: bool,
}

/// What [`Batches::expire`] has found.
#[derive(Default)]
pub(crate) struct Expired {
    /// The next deadline.
    pub(crate) next: Option<u64>,
    /// Requests have been failed.
    pub(crate) any: bool,
    pub(crate) silent: Vec<Arc<Peer>>,
}

impl Batches {
    /// Takes a slot that nobody uses: a lot that has just ended may still be about to let go of its batch.
    fn take(&mut self, latest: &Latest) -> u32 {
        let slot = self.take_one(latest);
        // What whoever held it last has done to it has been done.
        fence(Ordering::Acquire);
        slot
    }

    #[inline]
    fn take_one(&mut self, latest: &Latest) -> u32 {
        let slot = latest.0.load(Ordering::Relaxed);
        if let Some(Slot { state, taken: true }) = self.slots.get(slot as usize)
            && Arc::strong_count(state) == 1
            && state.has_ended()
        {
            let (done, failed) = state.tally();
            self.done += done;
            self.failed += failed;
            return slot;
        }
        let slot = self.take_another();
        latest.0.store(slot, Ordering::Relaxed);
        slot
    }

    #[inline(never)] // of batches that follow each other, each finds the slot of the one before
    fn take_another(&mut self) -> u32 {
        let unused = |&slot: &u32| Arc::strong_count(&self.slots[slot as usize].state) == 1;
        if let Some(at) = self.free.iter().rposition(unused) {
            return self.free.swap_remove(at);
        }
        self.slots.push(Slot { state: Arc::new(BatchState::new()), taken: false });
        (self.slots.len() - 1) as u32
    }

    fn give_back(&mut self, slot: u32) {
        let Some(entry) = self.slots.get_mut(slot as usize) else { return };
        let (done, failed) = entry.state.tally();
        self.done += done;
        self.failed += failed;
        entry.taken = false;
        if self.free.len() >= SPARE {
            entry.state = Arc::new(BatchState::new());
        }
        self.free.push(slot);
    }

    /// Fails every request whose deadline has passed, and takes back what is over and has no handle any more.
    pub(crate) fn expire(&mut self, now: u64) -> Expired {
        let mut expired = Expired::default();
        for slot in 0..self.slots.len() {
            let Slot { state, taken: true } = &self.slots[slot] else { continue };
            if state.expire(now) {
                expired.any = true;
                expired.silent.extend(state.silent_peers());
            }
            if let Some(deadline) = state.first_deadline() {
                expired.next = Some(expired.next.map_or(deadline, |next| next.min(deadline)));
            } else if Arc::strong_count(state) == 1 {
                self.give_back(slot as u32);
            }
        }
        expired
    }

    /// Those that run.
    pub(crate) fn running(&self) -> Vec<Arc<BatchState>> {
        self.slots.iter().filter(|slot| slot.taken).map(|slot| Arc::clone(&slot.state)).collect()
    }

    /// Requests that ended well and that failed, of batches whose handle is gone.
    pub(crate) fn ended(&self) -> (u64, u64) {
        let over = self.slots.iter().filter(|slot| slot.taken && slot.state.is_over());
        over.map(|slot| slot.state.tally())
            .fold((self.done, self.failed), |sum, tally| (sum.0 + tally.0, sum.1 + tally.1))
    }
}

impl Core {
    /// The state of a batch that begins, and its slot. The deadline is watched from now on.
    pub(crate) fn begin(
        &self,
        batch: &Batch,
        deadline: (u64, Duration),
    ) -> Result<(u32, Arc<BatchState>), Error> {
        let mut batches = self.batches.lock();
        let slot = batches.take(&self.latest_batch);
        let entry = &mut batches.slots[slot as usize];
        let requests = batch.requests.iter().map(|stored| (stored.peer, stored.immediate));
        let like_before = match &batch.requests[..] {
            [one] if one.immediate.is_none() && batch.table.is_none() => {
                entry.state.refill(deadline, one.peer)
            }
            _ => false,
        };
        if !like_before {
            // What has this one owner, under this lock, nobody can clone meanwhile; and there are no weak ones.
            let state =
                Arc::get_mut(&mut entry.state).expect("`take` gives a slot whose state nobody else holds");
            if let Err(error) = state.fill(deadline, requests, || self.peers()) {
                state.clear();
                entry.taken = false;
                batches.free.push(slot);
                return Err(error);
            }
            if let Some(table) = &batch.table {
                state.take_peer_for(table);
            }
        }
        entry.taken = true;
        Ok((slot, Arc::clone(&entry.state)))
    }

    /// The handle is gone; a batch that still runs is watched on.
    pub(crate) fn let_run(&self, slot: u32, state: &BatchState) {
        state.let_go();
        if !state.has_ended() {
            self.wake_progress();
        } else if self.latest_batch.0.load(Ordering::Relaxed) != slot {
            self.batches.lock().give_back(slot);
        }
    }

    /// Lets go of what spare states hold, as far as nobody uses them.
    pub(crate) fn clear_spare(&self) {
        let mut batches = self.batches.lock();
        let Batches { slots, free, .. } = &mut *batches;
        for &slot in &*free {
            if let Some(state) = Arc::get_mut(&mut slots[slot as usize].state) {
                state.clear();
            }
        }
    }
}
