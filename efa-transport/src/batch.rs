//! Following a submitted batch to its end.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use crate::core::Core;
use crate::error::Error;
use crate::peer::{Peer, PeerTable};
use crate::request::Op;
use crate::slice::Slice;
use crate::sync::{lock, nanos};

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

const RUNNING: u8 = 0;
const DONE: u8 = 1;
const FAILING: u8 = 2;
const FAILED: u8 = 3;

/// A request on its way. What the slices need to know is fixed before they exist.
pub(crate) struct RequestState {
    pub(crate) op: Op,
    pub(crate) peer: Arc<Peer>,
    pub(crate) table: Arc<PeerTable>,
    pub(crate) immediate: Option<u32>,
    /// As the clock of the transport reckons.
    pub(crate) deadline: u64,
    pub(crate) limit: Duration,
    /// Slices that have not ended well, and one more while slices are still being made.
    remaining: AtomicU32,
    state: AtomicU8,
    error: OnceLock<Error>,
    /// What the latest failed attempt said.
    last_error: Mutex<Option<String>>,
    /// The slice that carries the immediate, which starts when all others have ended well.
    gate: Mutex<Option<Slice>>,
}

impl RequestState {
    pub(crate) fn new(
        op: Op,
        peer: Arc<Peer>,
        table: Arc<PeerTable>,
        immediate: Option<u32>,
        deadline: u64,
        limit: Duration,
    ) -> Self {
        Self {
            op,
            peer,
            table,
            immediate,
            deadline,
            limit,
            remaining: AtomicU32::new(1),
            state: AtomicU8::new(RUNNING),
            error: OnceLock::new(),
            last_error: Mutex::new(None),
            gate: Mutex::new(None),
        }
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) != RUNNING
    }

    pub(crate) fn note(&self, error: &str) {
        *lock(&self.last_error) = Some(error.to_owned());
    }

    pub(crate) fn set_gate(&self, slice: Slice) {
        *lock(&self.gate) = Some(slice);
    }
}

/// What the slices of a batch share. Pooled by the transport.
pub(crate) struct BatchState {
    pub(crate) requests: Vec<RequestState>,
    /// Of all its requests, as the clock of the transport reckons.
    deadline: u64,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Requests that have not ended.
    running: AtomicUsize,
    /// Slices that exist: queued, or possibly still touching memory here or at the peer.
    pub(crate) alive: AtomicUsize,
}

#[derive(Default)]
struct Inner {
    waker: Option<Waker>,
    sleepers: usize,
}

impl BatchState {
    pub(crate) fn new() -> Self {
        Self {
            requests: Vec::new(),
            deadline: 0,
            inner: Mutex::default(),
            changed: Condvar::new(),
            running: AtomicUsize::new(0),
            alive: AtomicUsize::new(0),
        }
    }

    /// Empties a state that nobody else holds, and fills it with requests.
    pub(crate) fn fill(&mut self, requests: impl Iterator<Item = RequestState>) {
        self.requests.clear();
        self.requests.extend(requests);
        self.deadline = self.requests.first().map_or(0, |request| request.deadline);
        *self.running.get_mut() = self.requests.len();
        *self.alive.get_mut() = 0;
        let inner = self.inner.get_mut().unwrap_or_else(PoisonError::into_inner);
        inner.waker = None;
    }

    /// Lets go of peers.
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
    }

    /// Counts the slices that have been made of a request, before any of them starts. (Of those that ended while they were
    /// being made the count is below zero until then, and wraps.)
    pub(crate) fn add_slices(&self, index: u32, count: u32) {
        let Some(request) = self.requests.get(index as usize) else { return };
        request.remaining.fetch_add(count, Ordering::Relaxed);
        self.alive.fetch_add(count as usize, Ordering::Relaxed);
        request.peer.alive.fetch_add(count as usize, Ordering::Relaxed);
    }

    /// One part of a request has ended well; if it was the last one but the gate, the gate's slice comes back to be started.
    pub(crate) fn part_done(&self, index: u32) -> Option<Slice> {
        let request = self.requests.get(index as usize)?;
        match request.remaining.fetch_sub(1, Ordering::AcqRel) {
            1 => {
                if request.state.compare_exchange(RUNNING, DONE, Ordering::AcqRel, Ordering::Acquire).is_ok()
                {
                    self.one_less();
                }
                None
            }
            2 => lock(&request.gate).take(),
            _ => None,
        }
    }

    /// Ends a request with an error, unless it has ended.
    pub(crate) fn fail(&self, index: u32, error: impl FnOnce(&RequestState) -> Error) -> bool {
        let Some(request) = self.requests.get(index as usize) else { return false };
        if request.state.compare_exchange(RUNNING, FAILING, Ordering::AcqRel, Ordering::Acquire).is_err() {
            return false;
        }
        let _ = request.error.set(error(request));
        request.state.store(FAILED, Ordering::Release);
        let gate = lock(&request.gate).take();
        // Before the slice goes: its end looks at the request, which has ended by now.
        self.one_less();
        drop(gate);
        true
    }

    fn one_less(&self) {
        if self.running.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.wake();
        }
    }

    pub(crate) fn slice_gone(&self, index: u32) {
        if let Some(request) = self.requests.get(index as usize) {
            request.peer.alive.fetch_sub(1, Ordering::Release);
        }
        if self.alive.fetch_sub(1, Ordering::AcqRel) == 1 && self.has_ended() {
            self.wake();
        }
    }

    fn wake(&self) {
        let mut inner = lock(&self.inner);
        let waker = inner.waker.take();
        if inner.sleepers > 0 {
            self.changed.notify_all();
        }
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.running.load(Ordering::Acquire) == 0
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.has_ended() && self.alive.load(Ordering::Acquire) == 0
    }

    /// Fails every request whose deadline has passed; true if there was one.
    pub(crate) fn expire(&self, now: u64) -> bool {
        if now < self.deadline || self.has_ended() {
            return false;
        }
        let mut any = false;
        for (index, request) in self.requests.iter().enumerate() {
            if !request.has_ended() {
                any |= self.fail(index as u32, |request| Error::Timeout {
                    peer: request.peer.name.clone(),
                    limit: request.limit,
                    last: lock(&request.last_error).clone(),
                });
            }
        }
        any
    }

    /// Peers from which nothing has been heard for as long as a request to them that has just run out of time had.
    pub(crate) fn silent_peers(&self) -> Vec<Arc<Peer>> {
        let silent = |request: &&RequestState| {
            let began = request.deadline.saturating_sub(nanos(request.limit));
            matches!(request.error.get(), Some(Error::Timeout { .. }))
                && request.peer.last_success.load(Ordering::Relaxed) < began
        };
        let mut peers: Vec<Arc<Peer>> = Vec::new();
        for request in self.requests.iter().filter(silent) {
            if !peers.iter().any(|peer| Arc::ptr_eq(peer, &request.peer)) {
                peers.push(Arc::clone(&request.peer));
            }
        }
        peers
    }

    /// The deadline, unless everything has ended.
    pub(crate) fn first_deadline(&self) -> Option<u64> {
        (!self.has_ended()).then_some(self.deadline)
    }

    pub(crate) fn fail_all(&self, error: &Error) {
        for index in 0..self.requests.len() {
            self.fail(index as u32, |_| error.clone());
        }
    }

    /// Sleeps until something has changed for all of the batch, or the time is over.
    pub(crate) fn sleep(&self, done: fn(&Self) -> bool, limit: Duration) {
        let mut inner = lock(&self.inner);
        if done(self) {
            return;
        }
        inner.sleepers += 1;
        inner = self.changed.wait_timeout(inner, limit).unwrap_or_else(PoisonError::into_inner).0;
        inner.sleepers -= 1;
    }

    fn result(&self) -> Result<(), Error> {
        let mut failed = self.requests.iter().enumerate().filter_map(|(i, r)| r.error.get().map(|e| (i, e)));
        match failed.next() {
            None => Ok(()),
            Some((_, error)) if self.requests.len() == 1 => Err(error.clone()),
            Some((index, error)) => Err(Error::Batch {
                failed: 1 + failed.count(),
                total: self.requests.len(),
                index,
                source: Box::new(error.clone()),
            }),
        }
    }
}

/// A submitted batch. Each of its requests ends exactly once, at its deadline at the latest.
///
/// Whoever [waits](Self::wait) drives the NICs on the waiting thread; polling and awaiting leave that to the progress
/// thread. Dropping the handle lets the requests run on.
pub struct BatchHandle {
    state: Arc<BatchState>,
    core: Arc<Core>,
    watch: u32,
}

impl BatchHandle {
    pub(crate) fn new(state: Arc<BatchState>, core: Arc<Core>, watch: u32) -> Self {
        Self { state, core, watch }
    }

    /// Number of requests.
    #[allow(clippy::len_without_is_empty)] // an empty batch has an empty answer; nobody asks
    #[must_use]
    pub fn len(&self) -> usize {
        self.state.requests.len()
    }

    /// Blocks until every request has ended; each has its deadline, so this ends.
    ///
    /// # Errors
    /// [`Error::Batch`] with the first error, or that error itself when the batch has one request.
    pub fn wait(&self) -> Result<(), Error> {
        self.core.wait_for(&self.state, BatchState::has_ended, None);
        self.state.result()
    }

    /// As [`wait`](Self::wait), but gives up at `deadline` with `None`; the requests run on.
    pub fn wait_until(&self, deadline: Instant) -> Option<Result<(), Error>> {
        self.core.wait_for(&self.state, BatchState::has_ended, Some(deadline)).then(|| self.state.result())
    }

    /// Whether all have ended, without blocking; `None` while some are running.
    pub fn poll(&self) -> Option<Result<(), Error>> {
        if !self.state.has_ended() {
            self.core.drive_all();
        }
        self.state.has_ended().then(|| self.state.result())
    }

    /// How one request stands. An index past the end is [`Error::Request`].
    #[must_use]
    pub fn status(&self, index: usize) -> Status {
        match self.state.requests.get(index) {
            None => Status::Failed(Error::Request(format!("the batch has no request {index}"))),
            Some(request) => match request.state.load(Ordering::Acquire) {
                DONE => Status::Done,
                FAILED => Status::Failed(request.error.get().cloned().unwrap_or(Error::Cancelled)),
                _ => {
                    // Whoever only asks leaves the driving to the progress thread.
                    self.core.wake_progress();
                    Status::Pending
                }
            },
        }
    }

    /// Ends every running request with [`Error::Cancelled`]. Bytes that are on their way may still arrive:
    /// [`quiesced`](Self::quiesced).
    pub fn cancel(&self) {
        self.state.fail_all(&Error::Cancelled);
        self.core.sweep();
    }

    /// Blocks until no byte moves for this batch any more, here or at the peers; `false` if that is not certain at `deadline`.
    /// True at once after success. After a deadline or a cancellation, operations that the card has accepted may still
    /// write until they have ended.
    #[must_use]
    pub fn quiesced(&self, deadline: Instant) -> bool {
        self.core.wait_for(&self.state, BatchState::is_quiet, Some(deadline))
    }
}

impl fmt::Debug for BatchHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let running = self.state.running.load(Ordering::Relaxed);
        write!(f, "BatchHandle({running} of {} requests running)", self.len())
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
        if self.state.has_ended() {
            return Poll::Ready(self.state.result());
        }
        lock(&self.state.inner).waker = Some(context.waker().clone());
        // Asked again after the waker has been left, so that an end in between is seen by one or the other.
        if self.state.has_ended() {
            return Poll::Ready(self.state.result());
        }
        self.core.wake_progress();
        Poll::Pending
    }
}

impl Drop for BatchHandle {
    fn drop(&mut self) {
        self.core.unwatch(self.watch, &self.state);
    }
}

impl BatchState {
    /// Requests that ended well, and that failed. Each state is asked once.
    pub(crate) fn tally(&self) -> (u64, u64) {
        let failed = self.requests.iter().filter(|r| r.error.get().is_some()).count() as u64;
        (self.requests.len() as u64 - failed, failed)
    }
}
