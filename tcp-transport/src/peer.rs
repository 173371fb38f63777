//! A peer: another transport, reached by the address that it listens on. Its lanes, what waits for one, and what to do when
//! one is lost.

mod recovery;

use std::collections::VecDeque;
use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use crate::batch::{BatchHandle, BatchState, Ticket};
use crate::context::Context;
use crate::error::Error;
use crate::initiator::{Control, Leavings};
use crate::io::{IoShared, Message};
use crate::lane::Lane;
use crate::service::Service;
use crate::share::{Share, Touched};
use crate::slice::Slice;
use crate::sync::lock;
use crate::window::Window;
use crate::wire::Kind;

/// First pause after a failed connection; doubles up to [`MAX_BACKOFF`], each time shortened at random by up to half.
const MIN_BACKOFF: Duration = Duration::from_millis(20);
/// Most lanes to one peer.
pub(crate) const MAX_LANES: usize = 16;
/// Slices below this travel over the socket even on one host: copying between processes has to look the pages up, which costs
/// more than copying so few bytes twice.
const MIN_HOST_BYTES: u64 = 16 << 10;
const MAX_BACKOFF: Duration = Duration::from_secs(1);

#[cfg(test)]
thread_local! {
    /// What a test has happen between the look for room and the word that a slice waits for it.
    pub(crate) static BEFORE_WAITING: std::cell::Cell<Option<Box<dyn FnOnce()>>> = const { std::cell::Cell::new(None) };
}

/// Which way the bytes of a peer's requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Path {
    /// Not connected yet.
    Unknown,
    /// TCP.
    Net,
    /// Another process on this host: the region's owner copies between the two processes.
    Host,
    /// A transport of this very process: a plain copy.
    Loopback,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Net => "net",
            Self::Host => "host",
            Self::Loopback => "loopback",
        })
    }
}

/// Another transport. Clones are the same peer. Lanes open on demand, stay open, and reopen by themselves.
#[derive(Clone)]
pub struct Peer {
    pub(crate) inner: Arc<PeerInner>,
}

impl Peer {
    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.inner.addr
    }

    /// Which way bytes go to it at the moment.
    pub fn path(&self) -> Path {
        if self.inner.is_loopback() {
            return Path::Loopback;
        }
        let state = lock(&self.inner.state);
        match state.lanes.first() {
            None => Path::Unknown,
            Some(lane) if lane.is_host() => Path::Host,
            Some(_) => Path::Net,
        }
    }

    /// Opens the lanes now rather than with the first request, and waits until one is up; returns the path.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the last thing that went wrong, [`Error::Authentication`], [`Error::ShutDown`].
    pub fn connect(&self, deadline: Instant) -> Result<Path, Error> {
        self.ping(deadline)?;
        Ok(self.path())
    }

    /// One round trip to the peer's I/O thread.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn ping(&self, deadline: Instant) -> Result<Duration, Error> {
        let start = Instant::now();
        self.ask(Kind::Ping, &[], deadline)?;
        Ok(start.elapsed())
    }

    /// Puts `bytes` into the peer's queue of notifications, exactly once, and returns when they are there.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`Error::Refused`] when they are too long, [`Error::Timeout`] while its queue is full.
    pub fn notify(&self, bytes: &[u8], deadline: Instant) -> Result<(), Error> {
        self.ask(Kind::Notify, bytes, deadline).map(drop)
    }

    /// Has the peer's [`Handler`](crate::Handler) answer `request`. At most once: a call whose connection is lost after it
    /// was delivered fails with [`Error::AnswerLost`] rather than being run again.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`Error::Call`] with the handler's words; [`Error::AnswerLost`].
    pub fn call(&self, request: &[u8], deadline: Instant) -> Result<Vec<u8>, Error> {
        self.ask(Kind::Call, request, deadline)
    }

    /// Closes all lanes; requests in flight fail with [`Error::Disconnected`]. The next request opens new ones.
    pub fn disconnect(&self) {
        self.inner.close(false);
    }

    fn ask(&self, kind: Kind, message: &[u8], deadline: Instant) -> Result<Vec<u8>, Error> {
        let context = &self.inner.context;
        if context.is_closed() {
            return Err(Error::ShutDown);
        }
        let limit = context.settings.limits.message;
        if message.len() > limit {
            return Err(Error::Request(format!(
                "{} bytes are more than the limit of {limit}",
                message.len()
            )));
        }
        let mut slice = Slice { kind, message: message.to_vec(), ..Slice::empty(deadline) };
        if kind != Kind::Ping {
            slice.event = Some(self.inner.take_event()?);
        }
        let batch = context.pool.take(1, &self.inner);
        slice.ticket = Some(batch.first_ticket(0));
        let mut touched = Touched::default();
        let mut state = lock(&self.inner.state);
        self.inner.place(&mut state, slice, &mut touched, &mut Share::single());
        drop(state);
        batch.seal();
        self.inner.flush(&touched, false);
        let handle = BatchHandle::new(batch, Arc::clone(&context.pool));
        handle.wait()?;
        Ok(handle.state().take_answer())
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} path={})", self.addr(), self.path())
    }
}

pub(crate) struct PeerInner {
    me: Weak<Self>,
    addr: SocketAddr,
    pub(crate) context: Arc<Context>,
    /// The thread that looks at deadlines and connects.
    home: Arc<IoShared>,
    state: Mutex<PeerState>,
    /// Slices in `PeerState::pending` and `delayed`.
    waiting: AtomicUsize,
    events: Mutex<Window>,
    loopback: Mutex<Option<Weak<Service>>>,
    is_loopback: AtomicBool,
}

#[derive(Default)]
pub(crate) struct PeerState {
    lanes: Vec<Arc<Lane>>,
    /// Lanes that take nothing new, until what is on them has ended.
    leaving: Vec<Arc<Lane>>,
    /// Waiting for a lane with room, in order.
    pending: VecDeque<Slice>,
    /// Waiting because the peer was busy.
    delayed: Vec<Slice>,
    recovering: Vec<Recovery>,
    spare: Vec<Slice>,
    dialling: usize,
    failures: u32,
    next_dial: Option<Instant>,
    last_error: Option<Error>,
    session: Option<u128>,
}

/// A lost lane whose slices may be retried when the peer has confirmed that nothing more of it will be applied.
struct Recovery {
    lane: u64,
    session: u128,
    slices: Vec<Slice>,
    /// The lane that the question was asked on.
    asked_on: Option<u64>,
}

impl PeerState {
    /// The lanes that may have something on them.
    fn all_lanes(&self) -> Vec<Arc<Lane>> {
        self.lanes.iter().chain(&self.leaving).cloned().collect()
    }

    /// The lane has come to its end.
    fn forget(&mut self, lane: &Arc<Lane>) {
        self.lanes.retain(|l| !Arc::ptr_eq(l, lane));
        self.leaving.retain(|l| !Arc::ptr_eq(l, lane));
    }
}

impl PeerInner {
    pub(crate) fn new(addr: SocketAddr, context: &Arc<Context>) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: me.clone(),
            addr,
            context: Arc::clone(context),
            home: context.next_io(),
            state: Mutex::default(),
            waiting: AtomicUsize::new(0),
            events: Mutex::default(),
            loopback: Mutex::new(None),
            is_loopback: AtomicBool::new(false),
        })
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn set_loopback(&self, service: Option<Weak<Service>>) {
        self.is_loopback.store(service.is_some(), Ordering::Release);
        *lock(&self.loopback) = service;
    }

    pub(crate) fn is_loopback(&self) -> bool {
        self.is_loopback.load(Ordering::Acquire)
    }

    /// The peer, when it lives in this process.
    pub(crate) fn loopback(&self) -> Option<Arc<Service>> {
        if !self.is_loopback() {
            return None;
        }
        lock(&self.loopback).as_ref().and_then(Weak::upgrade)
    }

    /// The next number for something that must be delivered once.
    pub(crate) fn take_event(&self) -> Result<u64, Error> {
        let limit = crate::window::MAX_WINDOW as usize;
        lock(&self.events).take().ok_or(Error::QueueFull { queued: limit, limit })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, PeerState> {
        lock(&self.state)
    }

    // ---- placing slices on lanes ---------------------------------------------------------------------------------

    /// An empty slice to fill.
    pub(crate) fn spare(state: &mut PeerState, now: Instant) -> Slice {
        state.spare.pop().unwrap_or_else(|| Slice::empty(now))
    }

    /// How `total` bytes are spread over the lanes. Those that another caller is driving, who waits for what is on them, are left
    /// to it: two callers on one lane only stand in each other's way. Where callers take turns with those who copy for them, it is best
    /// done on one core: waking the caller then takes no interrupt of another core, on which it would have to wait for another copy.
    pub(crate) fn spread(state: &PeerState, total: u64, stripe: u64) -> Share {
        let core = (Self::is_host(state) && crate::awake::is_crowded()).then(rustix::thread::sched_getcpu);
        let near =
            |n: usize| core.is_some_and(|core| state.lanes.get(n).is_some_and(|l| l.is_copied_on(core)));
        let free = |n: usize| state.lanes.get(n).is_some_and(|l| l.is_usable() && !l.is_driven());
        Share::spread(total, state.lanes.len(), free, near, stripe)
    }

    /// Whether the peer copies between the two processes.
    pub(crate) fn is_host(state: &PeerState) -> bool {
        state.lanes.first().is_some_and(|lane| lane.is_host())
    }

    /// Slices that wait for a lane.
    pub(crate) fn queued(&self) -> usize {
        self.waiting.load(Ordering::Acquire)
    }

    /// Puts a slice on a lane, or behind those that wait for one.
    pub(crate) fn place(
        &self,
        state: &mut PeerState,
        mut slice: Slice,
        touched: &mut Touched,
        share: &mut Share,
    ) {
        if state.pending.is_empty() && self.try_place(state, &mut slice, touched, share) {
            slice.clear();
            if state.spare.len() < 1024 {
                state.spare.push(slice);
            }
            return;
        }
        #[cfg(test)]
        BEFORE_WAITING.take().into_iter().for_each(|between| between());
        state.pending.push_back(slice);
        self.waiting.fetch_add(1, Ordering::SeqCst);
        // Whoever makes room looks at the count after it, so room that was made before the count went up has to be found here.
        if state.pending.len() == 1
            && let Some(mut slice) = state.pending.pop_front()
        {
            if self.try_place(state, &mut slice, touched, share) {
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                slice.clear();
                state.spare.push(slice);
                return;
            }
            state.pending.push_front(slice);
        }
        if state.lanes.is_empty() {
            self.home.send(Message::Watch(self.me.clone()));
        }
    }

    fn try_place(
        &self,
        state: &mut PeerState,
        slice: &mut Slice,
        touched: &mut Touched,
        share: &mut Share,
    ) -> bool {
        let count = state.lanes.len();
        let bytes = slice.bytes;
        let turn = if count > 0 { share.turn(count) } else { 0 };
        for step in 0..count {
            let lane = &state.lanes[(turn + step) % count];
            if !lane.is_usable() {
                continue;
            }
            let mut core = lane.core();
            // Asked under the lock: what is pushed before a lane ends is handed over, what comes after would be lost.
            if !lane.is_usable() || !lane.has_room(&core, bytes) {
                continue;
            }
            let floor = if slice.event.is_some() { lock(&self.events).floor() } else { 0 };
            slice.kind =
                match (slice.kind, lane.is_host() && bytes >= MIN_HOST_BYTES && slice.is_host_capable()) {
                    (Kind::Read | Kind::HostRead, true) => Kind::HostRead,
                    (Kind::Read | Kind::HostRead, false) => Kind::Read,
                    (Kind::Write | Kind::HostWrite, true) => Kind::HostWrite,
                    (Kind::Write | Kind::HostWrite, false) => Kind::Write,
                    (other, _) => other,
                };
            lane.begin(&core);
            if let Some(ticket) = &slice.ticket {
                ticket.batch().mark_lane(lane.number);
            }
            core.push(slice, floor);
            lane.publish(&core);
            drop(core);
            touched.add(lane);
            share.used(step, bytes);
            return true;
        }
        false
    }

    /// Sends what has been placed. Unless the caller is going to drive the lanes, an I/O thread is armed for what does not
    /// fit the sockets.
    pub(crate) fn flush(self: &Arc<Self>, touched: &Touched, arm: bool) {
        for lane in touched.lanes() {
            if let Err(cause) = lane.flush_and(arm) {
                self.lane_lost(lane, &cause);
            }
        }
        if self.context.is_stopped() && self.queued() > 0 {
            // Submitted before the end was known: nobody will look for it any more.
            self.close(true);
        }
    }

    /// Moves waiting slices to lanes that have room again.
    pub(crate) fn dispatch(self: &Arc<Self>) {
        if self.waiting.load(Ordering::SeqCst) == 0 {
            return;
        }
        let mut state = lock(&self.state);
        let mut touched = Touched::default();
        let stripe = self.context.settings.stripe_bytes;
        let mut share = Share::every(stripe);
        while let Some(mut slice) = state.pending.pop_front() {
            if slice.ticket.as_ref().is_none_or(|t| t.has_ended()) {
                self.discard(slice);
                continue;
            }
            if !self.try_place(&mut state, &mut slice, &mut touched, &mut share) {
                state.pending.push_front(slice);
                break;
            }
            self.waiting.fetch_sub(1, Ordering::AcqRel);
            slice.clear();
            state.spare.push(slice);
        }
        drop(state);
        for lane in touched.lanes() {
            if let Err(cause) = lane.flush() {
                self.lane_lost(lane, &cause);
            } else {
                // Whoever waits for these may be asleep: there was no lane to drive. A driver who is at it now would not go on
                // for them either when it has what it waits for itself.
                lane.leave_to_io();
            }
        }
    }

    fn discard(&self, slice: Slice) {
        self.waiting.fetch_sub(1, Ordering::AcqRel);
        self.finish_event(slice.event);
    }

    fn finish_event(&self, event: Option<u64>) {
        if let Some(event) = event {
            lock(&self.events).finish(event);
        }
    }

    /// Sees to what a lane has left behind.
    pub(crate) fn tidy(self: &Arc<Self>, lane: &Arc<Lane>, leavings: &mut Leavings) {
        if leavings.is_empty() {
            return;
        }
        {
            let mut events = lock(&self.events);
            leavings.finished_events.drain(..).for_each(|e| events.finish(e));
        }
        let mut touched = Touched::default();
        if !leavings.next.is_empty() || !leavings.later.is_empty() {
            let mut state = lock(&self.state);
            for slice in leavings.next.drain(..) {
                self.place(&mut state, slice, &mut touched, &mut Share::single());
            }
            for slice in leavings.later.drain(..) {
                state.delayed.push(slice);
                self.waiting.fetch_add(1, Ordering::AcqRel);
                self.home.send(Message::Watch(Arc::downgrade(self)));
            }
        }
        self.flush(&touched, true);
        // Whoever waits for these does not know that they are under way.
        touched.lanes().for_each(|lane| lane.leave_to_io());
        for control in std::mem::take(&mut leavings.control) {
            match control {
                Control::GoAway => {
                    lane.drain();
                    lane.leave_to_io();
                    let mut state = lock(&self.state);
                    if let Some(at) = state.lanes.iter().position(|l| Arc::ptr_eq(l, lane)) {
                        let lane = state.lanes.remove(at);
                        state.leaving.push(lane);
                    }
                    drop(state);
                    if self.queued() > 0 {
                        self.want_lanes();
                    }
                }
                Control::HostProbed(ok) => {
                    lane.set_host(ok);
                    self.lane_up(lane);
                }
                Control::Superseded(number) => self.recover(number),
            }
        }
    }

    /// A lane that was to take nothing new has nothing left on it.
    pub(crate) fn lane_left(&self, lane: &Arc<Lane>) {
        lock(&self.state).forget(lane);
    }

    // ---- for those who wait --------------------------------------------------------------------------------------

    pub(crate) fn lanes(&self, mut each: impl FnMut(&Arc<Lane>)) {
        lock(&self.state).lanes.iter().for_each(&mut each);
    }

    /// Nobody is going to drive the lanes: the I/O threads are to.
    pub(crate) fn leave_to_io(&self) {
        let lanes = lock(&self.state).all_lanes();
        lanes.iter().for_each(|lane| lane.leave_to_io());
        if self.queued() > 0 {
            self.home.send(Message::Watch(self.me.clone()));
        }
    }

    /// Ends the requests of a batch.
    pub(crate) fn cancel(self: &Arc<Self>, batch: &Arc<BatchState>) {
        let of_batch = |s: &Slice| s.ticket.as_ref().is_some_and(|t| Arc::ptr_eq(t.batch(), batch));
        let mut state = lock(&self.state);
        let lanes = state.all_lanes();
        let mut ended = Vec::new();
        for _ in 0..state.pending.len() {
            match state.pending.pop_front() {
                Some(slice) if of_batch(&slice) => ended.push(slice),
                Some(slice) => state.pending.push_back(slice),
                None => break,
            }
        }
        let (gone, kept) = std::mem::take(&mut state.delayed).into_iter().partition(|s| of_batch(s));
        state.delayed = kept;
        ended.extend::<Vec<_>>(gone);
        self.waiting.fetch_sub(ended.len(), Ordering::AcqRel);
        for recovery in &mut state.recovering {
            for slice in recovery.slices.iter_mut().filter(|s| of_batch(s)) {
                if let Some(ticket) = &mut slice.ticket {
                    drop(ticket.end(Err(Error::Cancelled)));
                }
            }
        }
        drop(state);
        for slice in ended {
            self.end(slice, Error::Cancelled);
        }
        for lane in lanes {
            let mut core = lane.core();
            core.initiator.cancel(batch);
            lane.publish(&core);
            drop(core);
            let _ = lane.flush();
            lane.leave_to_io();
        }
        self.dispatch(); // there may be room now
    }

    /// Whether nothing is in flight or waiting.
    pub(crate) fn is_idle(&self) -> bool {
        let state = lock(&self.state);
        state.pending.is_empty()
            && state.delayed.is_empty()
            && state.recovering.is_empty()
            && state.lanes.iter().chain(&state.leaving).all(|l| l.in_flight() == 0)
    }

    /// Closes all lanes and ends everything.
    pub(crate) fn close(self: &Arc<Self>, shut_down: bool) {
        let (lanes, ended) = {
            let mut state = lock(&self.state);
            let mut ended: Vec<Slice> = state.pending.drain(..).collect();
            ended.append(&mut state.delayed);
            self.waiting.fetch_sub(ended.len(), Ordering::AcqRel);
            for mut recovery in std::mem::take(&mut state.recovering) {
                recovery.slices.iter().flat_map(|s| &s.ticket).for_each(Ticket::doubt);
                ended.append(&mut recovery.slices);
            }
            let mut lanes = std::mem::take(&mut state.lanes);
            lanes.append(&mut state.leaving);
            (lanes, ended)
        };
        let error = || match shut_down {
            true => Error::ShutDown,
            false => Error::Disconnected { peer: self.addr, detail: "disconnected by its user".into() },
        };
        for slice in ended {
            self.end(slice, error());
        }
        for lane in lanes {
            if lane.end() {
                let mut core = lane.core();
                let slices = core.initiator.lost();
                lane.publish(&core);
                drop(core);
                for (mut slice, touched) in slices {
                    if touched && let Some(ticket) = &slice.ticket {
                        // Nobody will ever ask the peer whether it has closed this lane.
                        ticket.doubt();
                    }
                    slice.local = None;
                    self.end(slice, error());
                }
            }
        }
    }
}
