//! Following a submitted batch to its end.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::clock::TICK;
use crate::error::Error;
use crate::peer::PeerInner;
use crate::request::Op;
use crate::slice::Slice;
use crate::stats::Counters;
use crate::sync::lock;

/// How long a waiter sleeps before it looks by itself. Whatever it waits for wakes it earlier.
const FALLBACK: Duration = TICK.saturating_mul(5);

/// How one request of a batch stands.
#[derive(Debug, Clone)]
pub enum Status {
    /// Running.
    Pending,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed(Error),
}

/// What the slices of a batch share. Pooled by the transport.
pub(crate) struct BatchState {
    inner: Mutex<BatchInner>,
    changed: Condvar,
    /// Slices that have not ended.
    running: AtomicUsize,
    /// Slices that may still touch memory, here or at the peer.
    alive: AtomicUsize,
    /// Some slice was let go of while its bytes may still be under way.
    doubtful: AtomicBool,
    /// Some request has failed.
    failed: AtomicBool,
    /// Threads that sleep until something changes, or have left a poke. Whoever changes something takes the lock for them
    /// only if there are any.
    watchers: AtomicUsize,
    /// A waiter has been called to a lane.
    nudged: AtomicBool,
    /// A bit for each lane that a slice has been put on, by its number modulo 64.
    lanes: AtomicU64,
    counters: Arc<Counters>,
}

#[derive(Default)]
struct BatchInner {
    requests: Vec<RequestState>,
    failed: usize,
    waker: Option<Waker>,
    answer: Vec<u8>,
    peers: Vec<Arc<PeerInner>>,
    /// Wake the waiters that block on their lanes' sockets.
    pokes: Vec<Arc<crate::drive::Poke>>,
}

#[derive(Default)]
struct RequestState {
    running: u32,
    error: Option<Error>,
    /// Starts when it is the last one left and all others ended well.
    gate: Option<Box<Slice>>,
}

/// A slice's duty to say how it ended. Dropping it unsaid ends it as disconnected, so no request is ever lost.
pub(crate) struct Ticket {
    batch: Arc<BatchState>,
    index: u32,
    ended: bool,
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ticket(request {})", self.index)
    }
}

impl Ticket {
    /// Says how the slice ended; the first word counts. A slice that was waiting for this one starts now.
    pub(crate) fn end(&mut self, result: Result<(), Error>) -> Option<Box<Slice>> {
        if std::mem::replace(&mut self.ended, true) {
            return None;
        }
        self.batch.end(self.index, result)
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.ended
    }

    /// What was sent may still be applied by the peer, and nobody will find out.
    pub(crate) fn doubt(&self) {
        self.batch.doubtful.store(true, Ordering::Release);
    }

    pub(crate) fn batch(&self) -> &Arc<BatchState> {
        &self.batch
    }

    /// Counts bytes that have been read or written.
    pub(crate) fn count(&self, op: Op, bytes: u64) {
        match op {
            Op::Read => self.batch.counters.bytes_read.add(bytes),
            Op::Write => self.batch.counters.bytes_written.add(bytes),
        };
    }

    /// Hands the answer of a call to whoever waits for it.
    pub(crate) fn set_answer(&self, answer: &mut Vec<u8>) {
        std::mem::swap(&mut lock(&self.batch.inner).answer, answer);
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.ended {
            // The slice was dropped with its transport.
            self.end(Err(Error::ShutDown));
        }
        if self.batch.alive.fetch_sub(1, Ordering::SeqCst) == 1 && self.batch.is_watched() {
            self.batch.wake(&lock(&self.batch.inner));
        }
    }
}

impl BatchState {
    fn new(counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            changed: Condvar::new(),
            running: AtomicUsize::new(0),
            alive: AtomicUsize::new(0),
            doubtful: AtomicBool::new(false),
            failed: AtomicBool::new(false),
            watchers: AtomicUsize::new(0),
            nudged: AtomicBool::new(false),
            lanes: AtomicU64::new(0),
            counters,
        })
    }

    /// A fresh one, outside of any pool.
    #[cfg(test)]
    pub(crate) fn with_requests(counters: &Arc<Counters>, requests: usize) -> Arc<Self> {
        let mut this = Self::new(Arc::clone(counters));
        if let Some(state) = Arc::get_mut(&mut this) {
            state.reset(requests);
        }
        this
    }

    /// Prepares for `requests` requests, each with its [first ticket](Self::first_ticket) to be taken.
    fn reset(&mut self, requests: usize) {
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.requests.clear();
        inner.requests.resize_with(requests, || RequestState { running: 1, error: None, gate: None });
        inner.failed = 0;
        inner.waker = None;
        inner.answer = Vec::new();
        inner.peers.clear();
        inner.pokes.clear();
        *self.nudged.get_mut() = false;
        // One for the submitter, so that the batch cannot end while slices are still being added.
        *self.running.get_mut() = 1 + requests;
        *self.alive.get_mut() = requests;
        *self.doubtful.get_mut() = false;
        *self.failed.get_mut() = false;
        *self.lanes.get_mut() = 0;
    }

    /// The ticket that every request has from the start, to be taken once: the request ends when this one and all others of it
    /// have ended.
    pub(crate) fn first_ticket(self: &Arc<Self>, index: usize) -> Ticket {
        Ticket { batch: Arc::clone(self), index: index as u32, ended: false }
    }

    /// One more slice of a request that has not ended.
    pub(crate) fn ticket(self: &Arc<Self>, index: usize) -> Ticket {
        lock(&self.inner).requests[index].running += 1;
        self.running.fetch_add(1, Ordering::Relaxed);
        self.alive.fetch_add(1, Ordering::Relaxed);
        Ticket { batch: Arc::clone(self), index: index as u32, ended: false }
    }

    /// A slice has been put on this lane.
    pub(crate) fn mark_lane(&self, number: u64) {
        let bit = 1 << (number % 64);
        if self.lanes.load(Ordering::Relaxed) & bit == 0 {
            self.lanes.fetch_or(bit, Ordering::Release);
        }
    }

    /// Whether a slice may be on this lane: a waiter leaves the others to those who wait for them.
    pub(crate) fn uses_lane(&self, number: u64) -> bool {
        self.lanes.load(Ordering::Acquire) & 1 << (number % 64) != 0
    }

    /// This slice starts when all others of the request have ended well.
    pub(crate) fn set_gate(&self, index: usize, slice: Box<Slice>) {
        lock(&self.inner).requests[index].gate = Some(slice);
    }

    pub(crate) fn add_peer(&self, peer: &Arc<PeerInner>) {
        let mut inner = lock(&self.inner);
        if !inner.peers.iter().any(|p| Arc::ptr_eq(p, peer)) {
            inner.peers.push(Arc::clone(peer));
        }
    }

    /// The submitter has added all slices.
    pub(crate) fn seal(&self) {
        if self.running.fetch_sub(1, Ordering::SeqCst) == 1 {
            let waker = self.all_ended(&mut lock(&self.inner));
            if let Some(waker) = waker {
                waker.wake();
            }
        }
    }

    fn end(&self, index: u32, result: Result<(), Error>) -> Option<Box<Slice>> {
        let mut inner = lock(&self.inner);
        let BatchInner { requests, failed, .. } = &mut *inner;
        let request = &mut requests[index as usize];
        request.running -= 1;
        if let Err(e) = result
            && request.error.is_none()
        {
            request.error = Some(e);
            *failed += 1;
            self.failed.store(true, Ordering::Relaxed); // seen by whoever sees the end
        }
        let (mut start, mut drop_later) = (None, None);
        if request.running == 1 && request.gate.is_some() {
            match &request.error {
                None => start = request.gate.take(),
                Some(_) => drop_later = request.gate.take(),
            }
        }
        if request.running == 0 {
            let counter = match request.error {
                None => &self.counters.requests_done,
                Some(_) => &self.counters.requests_failed,
            };
            counter.add(1);
        }
        let last = self.running.fetch_sub(1, Ordering::SeqCst) == 1;
        let waker = if last { self.all_ended(&mut inner) } else { None };
        drop(inner);
        drop(drop_later); // its ticket ends it too, which takes the lock
        if let Some(waker) = waker {
            waker.wake();
        }
        start
    }

    /// Wakes everybody; the waker is to be woken without the lock.
    fn all_ended(&self, inner: &mut BatchInner) -> Option<Waker> {
        if self.is_watched() {
            self.wake(inner);
        }
        inner.waker.take()
    }

    // The counts below and `watchers` are two sides of one agreement: who changes a count looks at `watchers` after it, who
    // watches says so before looking at the counts. That only holds if all of them have one order.

    pub(crate) fn has_ended(&self) -> bool {
        self.running.load(Ordering::SeqCst) == 0
    }

    fn is_quiet(&self) -> bool {
        self.alive.load(Ordering::SeqCst) == 0
    }

    pub(crate) fn is_watched(&self) -> bool {
        self.watchers.load(Ordering::SeqCst) > 0
    }

    /// Calls a waiter to a lane, which it is to drive now.
    pub(crate) fn nudge(&self) {
        self.nudged.store(true, Ordering::SeqCst);
        self.wake(&lock(&self.inner));
    }

    pub(crate) fn is_nudged(&self) -> bool {
        self.nudged.load(Ordering::SeqCst)
    }

    /// Takes the call, if there is one.
    pub(crate) fn take_nudge(&self) -> bool {
        self.is_nudged() && self.nudged.swap(false, Ordering::SeqCst)
    }

    fn wake(&self, inner: &BatchInner) {
        self.changed.notify_all();
        inner.pokes.iter().for_each(|poke| poke.poke());
    }

    /// Sleeps until `done`, a nudge, or the deadline.
    fn sleep(&self, done: impl Fn(&Self) -> bool, deadline: Instant) {
        let mut inner = lock(&self.inner);
        self.watchers.fetch_add(1, Ordering::SeqCst);
        while !done(self) && !self.take_nudge() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            inner = self.changed.wait_timeout(inner, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        self.watchers.fetch_sub(1, Ordering::SeqCst);
    }

    /// How it ended, when it has.
    fn result(&self) -> Result<(), Error> {
        if !self.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        let inner = lock(&self.inner);
        let first = inner.requests.iter().enumerate().find_map(|(i, r)| r.error.clone().map(|e| (i, e)));
        match first {
            None => Ok(()),
            Some((_, error)) if inner.requests.len() == 1 => Err(error),
            Some((index, error)) => Err(Error::Batch {
                failed: inner.failed,
                total: inner.requests.len(),
                index,
                source: Box::new(error),
            }),
        }
    }

    pub(crate) fn take_answer(&self) -> Vec<u8> {
        std::mem::take(&mut lock(&self.inner).answer)
    }

    fn peers(&self, into: &mut Vec<Arc<PeerInner>>) {
        into.extend(lock(&self.inner).peers.iter().cloned());
    }

    /// From now on `poke` is told when something ends.
    pub(crate) fn add_poke(&self, poke: &Arc<crate::drive::Poke>) {
        lock(&self.inner).pokes.push(Arc::clone(poke));
        self.watchers.fetch_add(1, Ordering::SeqCst);
    }

    /// Ends that.
    pub(crate) fn remove_poke(&self, poke: &Arc<crate::drive::Poke>) {
        lock(&self.inner).pokes.retain(|p| !Arc::ptr_eq(p, poke));
        self.watchers.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A submitted batch. Each of its requests ends exactly once, at its deadline at the latest.
///
/// Whoever [waits](Self::wait) drives the lanes of the batch on the waiting thread; polling and awaiting leave that to the
/// I/O threads. Dropping the handle lets the requests run on.
pub struct BatchHandle {
    state: Arc<BatchState>,
    pool: Arc<BatchPool>,
}

impl BatchHandle {
    pub(crate) fn new(state: Arc<BatchState>, pool: Arc<BatchPool>) -> Self {
        Self { state, pool }
    }

    pub(crate) fn state(&self) -> &Arc<BatchState> {
        &self.state
    }

    /// Number of requests.
    #[allow(clippy::len_without_is_empty)] // an empty batch has an empty answer; nobody asks
    pub fn len(&self) -> usize {
        lock(&self.state.inner).requests.len()
    }

    /// Blocks until every request has ended; each has its deadline, so this ends.
    ///
    /// # Errors
    /// [`Error::Batch`] with the first error, or that error itself when the batch has one request.
    pub fn wait(&self) -> Result<(), Error> {
        while !self.drive(None, BatchState::has_ended) {}
        self.state.result()
    }

    /// As [`wait`](Self::wait), but gives up at `deadline` with `None`; the requests run on.
    pub fn wait_until(&self, deadline: Instant) -> Option<Result<(), Error>> {
        if !self.drive(Some(deadline), BatchState::has_ended) {
            return None;
        }
        Some(self.state.result())
    }

    /// Drives lanes on this thread, or sleeps while others do, until `done`.
    fn drive(&self, deadline: Option<Instant>, done: fn(&BatchState) -> bool) -> bool {
        let mut peers = crate::drive::Peers::take();
        if done(&self.state) {
            return true;
        }
        self.state.peers(&mut peers.list);
        let ended = loop {
            if !peers.drive(&self.state, deadline, done) && !done(&self.state) {
                // Somebody else drives every lane that matters, or there is none yet.
                let soon = Instant::now() + FALLBACK;
                self.state.sleep(done, deadline.map_or(soon, |d| d.min(soon)));
            }
            if done(&self.state) {
                break true;
            }
            if deadline.is_some_and(|d| d <= Instant::now()) {
                break false;
            }
        };
        peers.leave(&self.state);
        if !ended {
            self.leave_to_io(&peers.list);
        }
        ended
    }

    fn leave_to_io(&self, peers: &[Arc<PeerInner>]) {
        for peer in peers {
            peer.leave_to_io();
        }
    }

    /// Whether all have ended, without blocking; `None` while some are running.
    pub fn poll(&self) -> Option<Result<(), Error>> {
        if self.state.has_ended() {
            return Some(self.state.result());
        }
        let mut peers = crate::drive::Peers::take();
        self.state.peers(&mut peers.list);
        self.leave_to_io(&peers.list);
        None
    }

    /// How one request stands. An index past the end is [`Error::Request`].
    pub fn status(&self, index: usize) -> Status {
        match lock(&self.state.inner).requests.get(index) {
            None => Status::Failed(Error::Request(format!("the batch has no request {index}"))),
            Some(r) if r.running > 0 => Status::Pending,
            Some(r) => r.error.clone().map_or(Status::Done, Status::Failed),
        }
    }

    /// Ends every running request with [`Error::Cancelled`]. Bytes that are on their way may still arrive:
    /// [`quiesced`](Self::quiesced).
    pub fn cancel(&self) {
        let mut peers = crate::drive::Peers::take();
        self.state.peers(&mut peers.list);
        for peer in &peers.list {
            peer.cancel(&self.state);
        }
    }

    /// Blocks until nobody, here or at the peers, touches memory for this batch any more; `false` if that is not certain
    /// at `deadline`. True at once after success. After a deadline or a cancellation the last bytes may still be on their
    /// way until the peer has answered or has closed the lane.
    pub fn quiesced(&self, deadline: Instant) -> bool {
        self.drive(Some(deadline), BatchState::is_quiet) && !self.state.doubtful.load(Ordering::Acquire)
    }
}

impl fmt::Debug for BatchHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BatchHandle({} slices running)", self.state.running.load(Ordering::Relaxed))
    }
}

impl Future for BatchHandle {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut &*self).poll(context)
    }
}

/// A handle that is shared can be awaited, too; the last one to be polled is woken.
impl Future for &BatchHandle {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        lock(&self.state.inner).waker = Some(context.waker().clone());
        // Asked after the waker has been left, so that an end in between is seen by one or the other.
        match BatchHandle::poll(&self) {
            None => Poll::Pending,
            Some(result) => Poll::Ready(result),
        }
    }
}

impl Drop for BatchHandle {
    fn drop(&mut self) {
        if !self.state.has_ended() {
            let mut peers = crate::drive::Peers::take();
            self.state.peers(&mut peers.list);
            self.leave_to_io(&peers.list);
        }
        self.pool.give_back(&self.state);
    }
}

/// Batch states that are not in use.
pub(crate) struct BatchPool {
    spare: Mutex<Vec<Arc<BatchState>>>,
    counters: Arc<Counters>,
}

const MAX_SPARE: usize = 256;

impl BatchPool {
    pub(crate) fn new(counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self { spare: Mutex::default(), counters })
    }

    /// A state for so many requests, the first of them to this peer.
    pub(crate) fn take(&self, requests: usize, peer: &Arc<PeerInner>) -> Arc<BatchState> {
        let mut spare = lock(&self.spare);
        // The last slice of an ended batch may be about to let go of it: then the next one will do.
        let free = spare.iter_mut().rposition(|s| Arc::get_mut(s).is_some());
        let state = free.map(|at| spare.swap_remove(at));
        drop(spare);
        let mut state = state.unwrap_or_else(|| BatchState::new(Arc::clone(&self.counters)));
        if let Some(state) = Arc::get_mut(&mut state) {
            state.reset(requests);
            state.inner.get_mut().unwrap_or_else(PoisonError::into_inner).peers.push(Arc::clone(peer));
        }
        state
    }

    fn give_back(&self, state: &Arc<BatchState>) {
        if !state.has_ended() {
            return;
        }
        lock(&state.inner).peers.clear();
        let mut spare = lock(&self.spare);
        if spare.len() < MAX_SPARE {
            spare.push(Arc::clone(state));
        }
    }
}
