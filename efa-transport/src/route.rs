//! Which lane a slice goes to, and moving lanes on.

use std::sync::TryLockError;
use std::sync::atomic::Ordering;

use crate::core::Core;
use crate::error::Error;
use crate::lane::{Context, Lane, Outcome, Work};
use crate::scheduler::rail::{Chooser, Set, cost, members, partners};
use crate::slice::{NONE, Slice};
use crate::sync::lock;

/// A lane with less than this waiting is not worth taking over from.
const WORTH_TAKING: u64 = 64 << 10;

/// Slices of one call of submit, by lane.
#[derive(Default)]
pub(crate) struct Staging {
    pub(crate) lanes: Vec<Vec<Slice>>,
}

impl Core {
    /// The NICs that are not set aside; all if all are.
    pub(crate) fn usable(&self, now: u64) -> Set {
        let mut set: Set = 0;
        for lane in &self.lanes {
            if lane.aside_until.load(Ordering::Relaxed) <= now {
                set |= 1 << lane.index;
            }
        }
        if set == 0 { Set::MAX } else { set }
    }

    /// Where ties between equally loaded lanes begin.
    pub(crate) fn next_turn(&self) -> usize {
        self.turn.fetch_add(1, Ordering::Relaxed) % self.lanes.len()
    }

    /// The lane for a slice: the least loaded that has its memory, near ones preferred.
    #[inline]
    pub(crate) fn choose(
        &self,
        slice: &Slice,
        usable: Set,
        avoid: Option<usize>,
        (chooser, turn): (&mut Chooser, usize),
        now: u64,
    ) -> Option<usize> {
        let all = slice.locals();
        let mut eligible = all & usable;
        if let Some(avoid) = avoid
            && eligible & !(1 << avoid) != 0
        {
            eligible &= !(1 << avoid);
        }
        if eligible == 0 {
            eligible = all;
        }
        if slice.request().peer.health().is_suspect() {
            eligible = self.with_partner(slice, eligible, now);
        }
        if eligible.is_power_of_two() {
            return Some(eligible.trailing_zeros() as usize);
        }
        let near = slice.region.near;
        let far = |index: usize| near & (1 << index) == 0;
        chooser.choose(
            eligible,
            turn,
            |index| cost(0, slice.len, self.lanes[index].pace, far(index)),
            |index| {
                let lane = &self.lanes[index];
                let waiting = lane.load.load(Ordering::Relaxed);
                cost(waiting, slice.len, lane.pace, far(index))
            },
        )
    }

    /// Of `eligible`, the lanes whose own remote NICs answer, as far as we know; all if there is none. The others could only use
    /// rails that nobody has prepared.
    #[cold]
    fn with_partner(&self, slice: &Slice, eligible: Set, now: u64) -> Set {
        let well = slice.remotes() & !slice.request().peer.health().avoid(now);
        let (locals, remotes) = (self.lanes.len(), slice.request().table.nics.len());
        let answered = members(eligible)
            .filter(|&lane| partners(lane, locals, remotes) & well != 0)
            .fold(0, |set: Set, lane| set | 1 << lane);
        if answered != 0 { answered } else { eligible }
    }

    /// Queues slices on a lane and posts what can be posted.
    pub(crate) fn hand_to(&self, lane: &Lane, slices: impl ExactSizeIterator<Item = Slice>, now: u64) {
        if slices.len() == 0 {
            return;
        }
        let mut outcome = Outcome::default();
        {
            let mut state = lock(&lane.state);
            for slice in slices {
                let (flow, len) = (slice.request().peer.id.slot, slice.len);
                state.queue.push(flow, len, Work::Slice(slice));
            }
            lane.post(&mut state, &self.context(now), &mut outcome);
        }
        if !outcome.is_empty() {
            self.settle(lane, outcome);
        }
    }

    /// Puts one slice on the lane that suits it.
    pub(crate) fn route(&self, mut slice: Slice, now: u64) {
        slice.blocked_since = 0;
        let avoid = (slice.attempts > 0 && slice.local_nic != NONE).then_some(slice.local_nic as usize);
        let turn = self.next_turn();
        match self.choose(&slice, self.usable(now), avoid, (&mut Chooser::default(), turn), now) {
            Some(lane) => {
                self.lanes[lane].expect(slice.len);
                self.hand_to(&self.lanes[lane], std::iter::once(slice), now);
            }
            None => {
                slice.fail(|r| Error::NoRail {
                    peer: r.peer.name.clone(),
                    why: "no NIC here has the local memory registered".into(),
                });
            }
        }
    }

    pub(crate) fn context(&self, now: u64) -> Context<'_> {
        Context {
            now,
            lanes: self.lanes.len(),
            doorbell_batching: self.config.doorbell_batching,
            arrivals: &self.arrivals,
            core: self,
        }
    }

    /// Drives every lane that nobody else drives, once. Returns how much happened.
    pub(crate) fn drive_all(&self) -> usize {
        self.drive(|_| true)
    }

    /// Drives the lanes that have something of ours to do, once. The others want to be driven now and then, for peers.
    pub(crate) fn drive_busy(&self) -> usize {
        self.drive(Lane::is_busy)
    }

    fn drive(&self, which: impl Fn(&Lane) -> bool) -> usize {
        let now = self.clock.now();
        let context = self.context(now);
        let mut happened = 0;
        let mut idle: Set = 0;
        for lane in &self.lanes {
            if !which(lane) {
                idle |= 1 << lane.index;
                continue;
            }
            let mut state = match lane.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            let mut outcome = Outcome::default();
            lane.counters.polls.fetch_add(1, Ordering::Relaxed);
            happened += lane.drive(&mut state, &context, &mut outcome);
            if state.queue.queued() == 0 && state.queue.in_flight() < state.queue.depth() {
                idle |= 1 << lane.index;
            }
            drop(state);
            if !outcome.is_empty() {
                self.settle(lane, outcome);
            }
        }
        if idle != 0 && self.lanes.len() > 1 {
            self.take_over(idle, now);
        }
        if self.retry_count.load(Ordering::Acquire) > 0 {
            self.pump_retries(now);
        }
        happened
    }

    /// An empty list, allocated before if possible.
    #[cold]
    pub(crate) fn spare_started(&self) -> Vec<Slice> {
        lock(&self.outcomes).pop().unwrap_or_default()
    }

    /// Lanes with nothing to do take waiting slices from the one that has most of them.
    pub(crate) fn take_over(&self, idle: Set, now: u64) {
        let usable = self.usable(now);
        let mut busiest: Option<(u64, usize)> = None;
        for lane in &self.lanes {
            let load = lane.load.load(Ordering::Relaxed);
            if idle & (1 << lane.index) == 0
                && load > WORTH_TAKING
                && busiest.is_none_or(|(most, _)| load > most)
            {
                busiest = Some((load, lane.index));
            }
        }
        let Some((_, from)) = busiest else { return };
        for to in members(idle & usable) {
            if to >= self.lanes.len()
                || self.lanes[to].load.load(Ordering::Relaxed) > self.config.window_bytes
            {
                continue;
            }
            let Ok(mut state) = self.lanes[from].state.try_lock() else { return };
            let share = state.queue.queued_bytes() / 2;
            if share < WORTH_TAKING {
                return;
            }
            let mut taken = lock(&self.staging).pop().unwrap_or_default();
            taken.lanes.resize_with(self.lanes.len(), Vec::new);
            let slices = &mut taken.lanes[to];
            state.queue.take_waiting(
                share.min(self.config.window_bytes),
                |work| matches!(work, Work::Slice(slice) if slice.locals() & (1 << to) != 0),
                |_, _, work| {
                    if let Work::Slice(slice) = work {
                        slices.push(slice);
                    }
                },
            );
            drop(state);
            for slice in slices.iter() {
                self.lanes[from].let_go(slice.len);
                self.lanes[to].expect(slice.len);
            }
            self.lanes[to].counters.taken_over.fetch_add(slices.len() as u64, Ordering::Relaxed);
            // They were taken from the end.
            slices.reverse();
            self.hand_to(&self.lanes[to], slices.drain(..), now);
            lock(&self.staging).push(taken);
        }
    }
}
