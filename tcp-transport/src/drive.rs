//! How a waiting caller moves its own bytes: it takes the lanes that its batch uses and blocks on their sockets, so that no
//! other thread has to be woken between the answer and its end.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::batch::BatchState;
use crate::clock::{Coarse, TICK};
use crate::initiator::Leavings;
use crate::lane::{BLOCKING_RECEIVE, Lane};
use crate::peer::{MAX_LANES, PeerInner};

/// Most lanes that one waiter drives at a time.
const MAX_DRIVEN: usize = 2 * MAX_LANES;

/// Wakes a waiter that blocks on its lanes' sockets, because its batch has ended elsewhere.
pub(crate) struct Poke {
    event: OwnedFd,
    asleep: AtomicBool,
}

impl Poke {
    fn new() -> Option<Arc<Self>> {
        let event = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok()?;
        Some(Arc::new(Self { event, asleep: AtomicBool::new(false) }))
    }

    pub(crate) fn poke(&self) {
        // One order with what has been changed before, which the waiter looks at after it has said that it is asleep.
        if self.asleep.swap(false, Ordering::SeqCst) {
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

/// A waiter's lists, kept per thread so that waiting allocates nothing.
#[derive(Default)]
pub(crate) struct Peers {
    pub(crate) list: Vec<Arc<PeerInner>>,
    lanes: Vec<Arc<Lane>>,
    /// Lanes that others drive, who will call.
    parked: Vec<Arc<Lane>>,
    parked_before: Vec<Arc<Lane>>,
    leavings: Leavings,
    poke: Option<Arc<Poke>>,
    /// The batch knows the poke.
    poke_is_left: bool,
}

thread_local! {
    static LISTS: Cell<Option<Box<Peers>>> = const { Cell::new(None) };
}

/// Gives the lists back to the thread when dropped.
pub(crate) struct Borrowed(Option<Box<Peers>>);

impl Peers {
    pub(crate) fn take() -> Borrowed {
        Borrowed(Some(LISTS.take().unwrap_or_default()))
    }

    /// Leaves the poke with the batch, before the first time that the waiter blocks on more than one thing.
    fn leave_poke(&mut self, batch: &BatchState) {
        if !std::mem::replace(&mut self.poke_is_left, true) {
            if self.poke.is_none() {
                self.poke = Poke::new();
            }
            self.poke.iter().for_each(|poke| batch.add_poke(poke));
        }
    }

    /// The waiting is over: ends that, and passes on the calls that have come too late.
    pub(crate) fn leave(&mut self, batch: &Arc<BatchState>) {
        if std::mem::take(&mut self.poke_is_left) {
            self.poke.iter().for_each(|poke| batch.remove_poke(poke));
        }
        self.parked.drain(..).for_each(|lane| lane.leave(batch));
    }

    /// Drives the lanes of these peers that have something in flight and that nobody else drives, until `done`, the deadline,
    /// or until there is nothing left to drive. False if there was nothing at all.
    pub(crate) fn drive(
        &mut self,
        batch: &Arc<BatchState>,
        deadline: Option<Instant>,
        done: fn(&BatchState) -> bool,
    ) -> bool {
        self.lanes.clear();
        let alone = self.collect(batch);
        if self.lanes.is_empty() {
            return false;
        }
        self.run(batch, deadline, done, alone);
        // Room that has been made is somebody's turn.
        self.list.iter().for_each(|peer| peer.dispatch());
        while let Some(lane) = self.lanes.pop() {
            lane.stop_driving();
        }
        true
    }

    /// Takes the lanes that matter to the batch, besides those that are driven already, or parks on them. Says whether everything
    /// of the batch is on one lane.
    fn collect(&mut self, batch: &Arc<BatchState>) -> bool {
        let Self { list, lanes, parked, parked_before, .. } = self;
        std::mem::swap(parked, parked_before);
        let mut places = 0;
        for peer in list.iter() {
            // What waits for room waits for every lane that has none, whoever's slices are on it.
            let queued = peer.queued();
            places += queued;
            peer.lanes(|lane| {
                if lane.in_flight() == 0 || !(queued > 0 || batch.uses_lane(lane.number)) {
                    return;
                }
                places += 1;
                if lanes.len() == MAX_DRIVEN || lanes.iter().any(|l| Arc::ptr_eq(l, lane)) {
                    return;
                }
                if !lane.try_drive() {
                    lane.park(batch);
                    if !lane.try_drive() {
                        parked.push(Arc::clone(lane));
                        return;
                    }
                    lane.leave(batch);
                }
                lanes.push(Arc::clone(lane));
            });
        }
        for lane in parked_before.drain(..) {
            if !parked.iter().any(|l| Arc::ptr_eq(l, &lane)) {
                lane.leave(batch);
            }
        }
        places <= 1
    }

    /// `alone`: everything of the batch is on the one lane that is being driven, so that nobody else can end the batch.
    fn run(
        &mut self,
        batch: &Arc<BatchState>,
        deadline: Option<Instant>,
        done: fn(&BatchState) -> bool,
        mut alone: bool,
    ) {
        let started = Coarse::now();
        while !done(batch) {
            if batch.take_nudge() {
                alone = self.collect(batch);
            }
            let now = Coarse::now();
            if now.since(started) >= TICK {
                // Slices of the batch may be on other lanes by now: the caller collects the lanes anew.
                self.tick(Instant::now());
                return;
            }
            // The precise clock is only asked by those who are in a hurry.
            let left = deadline.map_or(TICK, |d| d.saturating_duration_since(Instant::now()));
            if left.is_zero() || self.lanes.iter().all(|l| l.in_flight() == 0) {
                return;
            }
            if self.lanes.len() == 1
                && left >= BLOCKING_RECEIVE
                && alone
                && let Some(copying) = self.lanes[0].begin_blocking()
            {
                let result = self.lanes[0].receive_blocking(copying, &mut self.leavings);
                if !self.settle(0, result) {
                    return;
                }
                self.list.iter().for_each(|peer| peer.dispatch());
                alone = done(batch) || self.is_alone(batch);
                continue;
            }
            let ready = self.wait(batch, left.min(TICK), done);
            for index in 0..self.lanes.len().min(64) {
                if ready & 1 << index == 0 {
                    continue;
                }
                let result = self.lanes[index].service(true, &mut self.leavings);
                if !self.settle(index, result) {
                    return; // the list of lanes has changed
                }
            }
            for peer in &self.list {
                peer.dispatch();
            }
            alone = self.lanes.len() == 1 && self.is_alone(batch);
        }
    }

    /// See [`run`](Self::run).
    fn is_alone(&self, batch: &BatchState) -> bool {
        let mut others = 0;
        for peer in &self.list {
            peer.lanes(|lane| others += usize::from(lane.in_flight() > 0 && batch.uses_lane(lane.number)));
            others += peer.queued();
        }
        // While parked it may be called, which would not wake it from the socket.
        others <= 1 && self.parked.is_empty()
    }

    /// Looks at deadlines; false if a lane was lost.
    fn tick(&mut self, now: Instant) -> bool {
        for index in 0..self.lanes.len() {
            let result = self.lanes[index].tick(now, &mut self.leavings);
            if !self.settle(index, result) {
                return false;
            }
        }
        for peer in &self.list {
            peer.tick(now);
        }
        true
    }

    /// Sees to what a lane has left behind; false if it is lost.
    fn settle(&mut self, index: usize, result: Result<(), String>) -> bool {
        if result.is_ok() && self.leavings.is_empty() {
            return true;
        }
        let lane = &Arc::clone(&self.lanes[index]);
        let Some(peer) = lane.peer.upgrade() else { return false };
        peer.tidy(lane, &mut self.leavings);
        match result {
            Ok(()) => true,
            Err(cause) => {
                peer.lane_lost(lane, &cause);
                false
            }
        }
    }

    /// Blocks until a lane can go on; returns a bit for each that can.
    fn wait(&mut self, batch: &BatchState, timeout: Duration, done: fn(&BatchState) -> bool) -> u64 {
        self.leave_poke(batch);
        let Some(poke) = self.poke.clone() else { return 0 };
        let flags = |lane: &Arc<Lane>| match lane.will_send() {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        poke.asleep.store(true, Ordering::SeqCst);
        if done(batch) || batch.is_nudged() {
            poke.asleep.store(false, Ordering::Release);
            return 0;
        }
        // Two arrays, so that the usual one is small.
        let ready = match self.lanes.as_slice() {
            [one] => {
                let mut fds = [
                    PollFd::from_borrowed_fd(poke.event.as_fd(), PollFlags::IN),
                    PollFd::new(one.socket(), flags(one)),
                ];
                poll(&mut fds, &timeout)
            }
            many => {
                let mut fds: [PollFd<'_>; MAX_DRIVEN + 1] =
                    std::array::from_fn(|_| PollFd::from_borrowed_fd(poke.event.as_fd(), PollFlags::empty()));
                fds[0] = PollFd::from_borrowed_fd(poke.event.as_fd(), PollFlags::IN);
                for (fd, lane) in fds[1..].iter_mut().zip(many) {
                    *fd = PollFd::new(lane.socket(), flags(lane));
                }
                poll(&mut fds[..=many.len()], &timeout)
            }
        };
        if !poke.asleep.swap(false, Ordering::AcqRel) {
            // Poked, or about to be: the count must not wake the next wait.
            let mut count = [0; 8];
            let _ = rustix::io::read(&poke.event, &mut count);
        }
        ready >> 1
    }
}

fn poll(fds: &mut [PollFd<'_>], timeout: &Timespec) -> u64 {
    if rustix::event::poll(fds, Some(timeout)).is_err() {
        return 0; // interrupted: the caller looks again
    }
    fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty()).map(|(i, _)| 1 << i).sum()
}

impl std::ops::Deref for Borrowed {
    type Target = Peers;
    fn deref(&self) -> &Peers {
        self.0.as_ref().unwrap_or_else(|| unreachable!("only drop takes it"))
    }
}

impl std::ops::DerefMut for Borrowed {
    fn deref_mut(&mut self) -> &mut Peers {
        self.0.as_mut().unwrap_or_else(|| unreachable!("only drop takes it"))
    }
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(mut lists) = self.0.take() {
            lists.list.clear();
            lists.lanes.clear();
            lists.parked.clear();
            LISTS.set(Some(lists));
        }
    }
}
