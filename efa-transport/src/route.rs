//! Which lane a slice goes to, and moving lanes on.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::batch::{BatchState, Party};
use crate::core::Core;
use crate::error::Error;
use crate::lane::{Context, Lane, LaneState, Left, Outcome, bump};
use crate::lot::{Cargo, Lot, Stray, Taken};
use crate::region::RegionInner;
use crate::request::Op;
use crate::scheduler::rail::{Chooser, Set, cost, members, only, partners};
use crate::scheduler::slicer::Cut;
use crate::slice::Piece;
use crate::stall::Refusals;

/// A lane with less than this waiting is not worth taking over from.
const WORTH_TAKING: u64 = 64 << 10;

/// Requests that are alone, one after another, between two changes of their lane: enough for most of them to find it warm, few
/// enough for all lanes to have the same in the end.
const STAY: usize = 16;

/// Slices that are on their way to lanes.
#[derive(Default)]
pub(crate) struct Staging {
    pub(crate) lanes: Vec<Staged>,
}

/// Slices for one lane: some of each lot, in order.
#[derive(Default)]
pub(crate) struct Staged {
    /// Each with the place of its first piece.
    lots: Vec<(usize, Lot)>,
    pieces: Vec<Piece>,
    /// Of all the slices.
    weight: u64,
    /// What the latest lot was made for; 0 for none.
    serial: u32,
}

/// What slices of one request have in common, but for the chunks that they lie in.
pub(crate) struct Kind<'a> {
    pub(crate) batch: &'a Arc<BatchState>,
    pub(crate) region: &'a Arc<RegionInner>,
    pub(crate) party: u32,
    pub(crate) op: Op,
}

impl Kind<'_> {
    /// A lot for one slice, and those that are added.
    #[inline(never)]
    pub(crate) fn lot(&self, cut: &Cut) -> Lot {
        Lot::new(Arc::clone(self.batch), Arc::clone(self.region), self.party, self.op, cut)
    }
}

impl Staged {
    /// Adds a slice of a request to the latest lot, or to a new one if that was made for something else; `serial`, which is not
    /// 0, says for what.
    #[inline]
    pub(crate) fn add(&mut self, request: u32, serial: u32, kind: &Kind<'_>, cut: &Cut) {
        if self.serial != serial {
            self.begin_lot(serial, kind, cut);
        }
        self.pieces.push(Piece::new(request, cut));
        self.weight += Lane::weight(cut.len);
    }

    #[inline(never)]
    fn begin_lot(&mut self, serial: u32, kind: &Kind<'_>, cut: &Cut) {
        self.lots.push((self.pieces.len(), kind.lot(cut)));
        self.serial = serial;
    }

    /// What the slices count in the lane's load.
    #[inline]
    pub(crate) const fn weight(&self) -> u64 {
        self.weight
    }

    fn add_stray(&mut self, stray: Stray) {
        self.weight += Lane::weight(stray.piece.len());
        self.lots.push((self.pieces.len(), stray.lot));
        self.pieces.push(stray.piece);
        self.serial = 0;
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Staging({} lanes)", self.lanes.len())
    }
}

impl Core {
    /// The NICs that are not set aside; all if all are.
    #[inline]
    pub(crate) fn usable(&self, now: u64) -> Set {
        if self.lanes.iter().all(|lane| lane.is_usable(now)) { Set::MAX } else { self.usable_of_some(now) }
    }

    #[cold]
    fn usable_of_some(&self, now: u64) -> Set {
        let usable = self.lanes.iter().filter(|lane| lane.is_usable(now));
        let set = usable.fold(0, |set: Set, lane| set | 1 << lane.index);
        if set == 0 { Set::MAX } else { set }
    }

    /// Where ties between equally loaded lanes of a fabric begin: a place among them, which all fabrics have as many of. The next
    /// one every time.
    pub(crate) fn next_turn(&self) -> usize {
        self.place(self.turn.fetch_add(STAY, Ordering::Relaxed))
    }

    /// The same for a request that is alone. Those stay at a lane for a while: it is in the caches, and its connection is warm.
    #[inline]
    pub(crate) fn turn_of_one(&self) -> usize {
        let turn = self.turn.load(Ordering::Relaxed);
        // Of several at the same time one counts, which is enough for a turn.
        self.turn.store(turn.wrapping_add(1), Ordering::Relaxed);
        self.place(turn)
    }

    /// Where the next request that is alone would begin.
    pub(crate) fn place_of_one(&self) -> usize {
        self.place(self.turn.load(Ordering::Relaxed))
    }

    #[inline]
    fn place(&self, turn: usize) -> usize {
        turn / STAY % self.lanes.first().lanes.len()
    }

    /// The lanes that can carry a lot's slices: those that have its memory and are `usable`; none only if no lane has it.
    #[inline]
    pub(crate) fn eligible(
        &self,
        region: &RegionInner,
        party: &Party,
        (local_chunk, remote_chunk): (u32, u32),
        usable: Set,
        now: u64,
    ) -> Set {
        let all = region.chunks.get(local_chunk as usize).map_or(0, |chunk| chunk.nics);
        let eligible = if all & usable != 0 { all & usable } else { all };
        if party.peer.health().is_suspect() {
            let well = party.table.nics_of(remote_chunk) & !party.peer.health().avoid(now);
            self.with_partner(party, well, eligible)
        } else {
            eligible
        }
    }

    /// Of `eligible`, the lanes whose own remote NICs are `well`, as far as we know; all if there is none. The others could only use
    /// rails that nobody has prepared.
    #[cold]
    fn with_partner(&self, party: &Party, well: Set, eligible: Set) -> Set {
        let (range, remotes) = (&self.lanes.fabric(party.table.fabric).range, party.table.nics.len());
        let answered = members(eligible)
            .filter(|&lane| partners(lane - range.start, range.len(), remotes) & well != 0)
            .fold(0, |set: Set, lane| set | 1 << lane);
        if answered != 0 { answered } else { eligible }
    }

    /// The least loaded of the eligible lanes, near ones preferred; `staged` says what each is about to get besides.
    #[inline]
    pub(crate) fn choose(
        &self,
        eligible: Set,
        near: Set,
        len: u64,
        (chooser, turn): (&mut Chooser, usize),
        staged: impl Fn(usize) -> u64,
    ) -> Option<usize> {
        if let Some(only) = only(eligible) {
            return Some(only);
        }
        let far = |index: usize| near & (1 << index) == 0;
        chooser.choose(
            eligible,
            turn,
            |index| cost(0, len, self.lanes[index].pace, far(index)),
            |index| {
                let lane = &self.lanes[index];
                let waiting = lane.load.load(Ordering::Relaxed) + staged(index);
                cost(waiting, len, lane.pace, far(index))
            },
        )
    }

    /// Queues slices on a lane and posts what can be posted.
    pub(crate) fn hand_to(&self, lane: &Lane, staged: &mut Staged, now: u64) {
        if staged.pieces.is_empty() {
            return;
        }
        self.give(lane, std::mem::take(&mut staged.weight), now, |state| {
            let mut lots = staged.lots.drain(..).peekable();
            while let Some((from, lot)) = lots.next() {
                let to = lots.peek().map_or(staged.pieces.len(), |next| next.0);
                state.admit(lot, staged.pieces.get(from..to).unwrap_or_default());
            }
            drop(lots);
            staged.pieces.clear();
            staged.serial = 0;
        });
    }

    /// Lets a lane admit slices of this weight, and posts what can be posted.
    #[inline]
    pub(crate) fn give(&self, lane: &Lane, weight: u64, now: u64, admit: impl FnOnce(&mut LaneState)) {
        let mut outcome = Outcome::default();
        {
            let mut state = lane.state.lock();
            lane.expect(weight);
            admit(&mut state);
            lane.post(&mut state, &Context::new(self, Some(now)), &mut outcome);
        }
        if let Some(left) = outcome.take() {
            self.settle(lane, left);
        }
    }

    /// Puts one slice on the lane that suits it.
    pub(crate) fn route(&self, mut stray: Stray, now: u64) {
        let Lot { local_chunk, remote_chunk, .. } = stray.lot;
        stray.lot.refusals = Refusals::default();
        let usable = stray.lot.other_locals(self.usable(now) & stray.lot.locals());
        let chunks = (local_chunk, remote_chunk);
        let mut eligible = self.eligible(&stray.lot.region, stray.lot.party(), chunks, usable, now);
        if stray.lot.tried.is_some() {
            let well = stray.lot.remotes() & !stray.lot.peer().health().avoid(now);
            eligible = self.with_partner(stray.lot.party(), stray.lot.other_remotes(well), eligible);
        }
        let near = stray.lot.region.near;
        let chooser = &mut Chooser::default();
        let turn = self.lanes.fabric(stray.lot.table().fabric).range.start + self.next_turn();
        match self.choose(eligible, near, stray.piece.len(), (chooser, turn), |_| 0) {
            Some(lane) => {
                let Stray { lot, piece } = stray;
                lot.batch.move_to(lane);
                self.give(&self.lanes[lane], Lane::weight(piece.len()), now, |lane| {
                    lane.admit(lot, &[piece])
                });
            }
            None => {
                stray.fail(|party| Error::NoRail {
                    peer: party.peer.name.clone(),
                    why: "no NIC here has the local memory registered".into(),
                });
            }
        }
    }

    /// An empty one, allocated before if possible.
    fn take_staging(&self) -> Staging {
        let mut staging = self.staging.lock().pop().unwrap_or_default();
        staging.lanes.resize_with(self.lanes.len(), Staged::default);
        staging
    }

    /// Drives every lane that nobody else drives, once. Returns how much happened.
    pub(crate) fn drive_all(&self) -> usize {
        self.drive(|_| true, |_, _| {})
    }

    /// Drives the lanes that have something of ours to do, once. The others want to be driven now and then, for peers.
    pub(crate) fn drive_busy(&self) -> usize {
        self.drive(Lane::is_busy, |_, _| {})
    }

    /// Drives some lanes once, and tells after each of them what happened there.
    #[inline(always)] // each caller has its own kind of lanes
    pub(crate) fn drive(&self, which: impl Fn(&Lane) -> bool, mut told: impl FnMut(&Lane, usize)) -> usize {
        let context = Context::new(self, None);
        let mut happened = 0;
        let mut idle: Set = 0;
        let mut outcome = Outcome::default();
        for lane in &self.lanes {
            if !which(lane) {
                idle |= 1 << lane.index;
                continue;
            }
            let Some(mut state) = lane.state.try_lock() else { continue };
            bump(&lane.counters.polls, 1);
            let here = lane.drive(&mut state, &context, &mut outcome);
            happened += here;
            told(lane, here);
            if state.queue.queued() == 0 && !state.queue.is_full() {
                idle |= 1 << lane.index;
            }
            drop(state);
            if let Some(left) = outcome.take() {
                self.settle(lane, left);
            }
        }
        if idle != 0 && self.lanes.len() > 1 {
            self.take_over(idle, &context);
        }
        if self.retry_count.load(Ordering::Acquire) > 0 {
            self.pump_retries(context.now());
        }
        happened
    }

    /// An empty one, allocated before if possible.
    #[cold]
    pub(crate) fn spare_left(&self) -> Box<Left> {
        self.left.lock().pop().unwrap_or_default()
    }

    /// Lanes with nothing to do take waiting slices from the one that has most of them.
    fn take_over(&self, idle: Set, context: &Context<'_>) {
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
        let now = context.now();
        for to in members(idle & self.usable(now) & self.lanes.mates(from)) {
            if self.lanes[to].load.load(Ordering::Relaxed) > self.config.window_bytes {
                continue;
            }
            let Some(mut state) = self.lanes[from].state.try_lock() else { return };
            let share = state.queue.queued_bytes() / 2;
            if share < WORTH_TAKING {
                return;
            }
            let mut staging = self.take_staging();
            let LaneState { queue, lots, taken, .. } = &mut *state;
            queue.take_waiting(
                share.min(self.config.window_bytes),
                |slice| match lots.get(slice.lot) {
                    Some(Cargo::Lot(lot)) => lot.locals() & (1 << to) != 0 && !lot.avoids(to),
                    _ => false,
                },
                |_, _, slice| taken.push(slice),
            );
            // They were taken from the end.
            for slice in taken.drain(..).rev() {
                if let Some(Taken::Stray(stray)) = lots.take(&slice) {
                    self.lanes[from].let_go(slice.len());
                    staging.lanes[to].add_stray(stray);
                }
            }
            drop(state);
            let count = staging.lanes[to].pieces.len();
            self.lanes[to].counters.taken_over.fetch_add(count as u64, Ordering::Relaxed);
            self.hand_to(&self.lanes[to], &mut staging.lanes[to], now);
            self.staging.lock().push(staging);
        }
    }
}
