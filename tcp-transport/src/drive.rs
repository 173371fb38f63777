//! How a waiting caller moves its own bytes: it takes the lanes that its batch uses and blocks on their sockets, so that no
//! other thread has to be woken between the answer and its end.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::batch::BatchState;
use crate::clock::Coarse;
use crate::initiator::Leavings;
use crate::lane::{BLOCKING_RECEIVE, Lane};
use crate::peer::{MAX_LANES, PeerInner};

/// How often a driver looks at the deadlines of everything on its lanes.
const TICK: Duration = Duration::from_millis(20);
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
        if self.asleep.swap(false, Ordering::AcqRel) {
            let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
        }
    }
}

/// A waiter's lists, kept per thread so that waiting allocates nothing.
#[derive(Default)]
pub(crate) struct Peers {
    pub(crate) list: Vec<Arc<PeerInner>>,
    lanes: Vec<Arc<Lane>>,
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
            batch.set_poke(self.poke.as_ref());
        }
    }

    /// Ends that; to be called when the waiting is over.
    pub(crate) fn take_back_poke(&mut self, batch: &BatchState) {
        if std::mem::take(&mut self.poke_is_left) {
            batch.set_poke(None);
        }
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
        let mut places = 0;
        for peer in &self.list {
            peer.lanes(|lane| {
                if lane.in_flight() == 0 || !batch.uses_lane(lane.number) {
                    return;
                }
                places += 1;
                if self.lanes.len() == MAX_DRIVEN {
                    return;
                }
                if !lane.try_drive() {
                    lane.park(batch);
                    if !lane.try_drive() {
                        return;
                    }
                }
                self.lanes.push(Arc::clone(lane));
            });
        }
        if self.lanes.is_empty() {
            return false;
        }
        let queued: usize = self.list.iter().map(|p| p.queued()).sum();
        self.run(batch, deadline, done, places + queued <= 1);
        while let Some(lane) = self.lanes.pop() {
            lane.stop_driving();
        }
        true
    }

    /// `alone`: everything of the batch is on the one lane that is being driven, so that nobody else can end the batch.
    fn run(
        &mut self,
        batch: &BatchState,
        deadline: Option<Instant>,
        done: fn(&BatchState) -> bool,
        mut alone: bool,
    ) {
        let started = Coarse::now();
        while !done(batch) {
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
            if self.lanes.len() == 1 && left >= BLOCKING_RECEIVE && alone && self.lanes[0].can_block() {
                let result = self.lanes[0].receive_blocking(&mut self.leavings);
                if !self.settle(0, result) {
                    return;
                }
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
        others <= 1
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
        let flags = |lane: &Arc<Lane>| match lane.core().has_unsent() {
            true => PollFlags::IN | PollFlags::OUT,
            false => PollFlags::IN,
        };
        let timeout = Timespec { tv_sec: timeout.as_secs() as i64, tv_nsec: timeout.subsec_nanos().into() };
        poke.asleep.store(true, Ordering::SeqCst);
        if done(batch) {
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
            LISTS.set(Some(lists));
        }
    }
}
