//! Following a submitted batch to its end.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::clock::nanos;
use crate::core::Core;
use crate::descriptor::NicEntry;
use crate::error::Error;
use crate::lot::Stray;
use crate::peer::{Peer, PeerId, PeerTable, Peers};

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

/// No lane.
const NOWHERE: u32 = u32::MAX;

const RUNNING: u8 = 0;
const DONE: u8 = 1;
const FAILED: u8 = 2;

/// A peer as it was when the batch was submitted; its requests share it.
pub(crate) struct Party {
    pub(crate) peer: Arc<Peer>,
    pub(crate) table: Arc<PeerTable>,
    /// Which of the peer's tables that is.
    version: u64,
    /// What was [heard](crate::peer::PeerCounters::heard) of it then.
    heard: AtomicU64,
}

impl Party {
    /// A peer as it is now, if there is one.
    pub(crate) fn new(id: PeerId, peers: &Peers) -> Result<Self, Error> {
        let peer = Arc::clone(peers.get(id)?);
        let (version, table) = peer.table_and_version();
        let heard = AtomicU64::new(peer.counters.heard.load(Ordering::Relaxed));
        Ok(Self { peer, table, version, heard })
    }

    /// The peer's NICs, if some of them are reached elsewhere than when the batch was submitted: with the same keys, as an endpoint that
    /// has been opened again has them.
    pub(crate) fn later_nics(&self) -> Option<Arc<[NicEntry]>> {
        if self.peer.version() == self.version {
            return None;
        }
        let (then, now) = (&self.table, self.peer.table());
        let same = (then.epoch, then.fabric, then.nics.len()) == (now.epoch, now.fabric, now.nics.len());
        (same && !Arc::ptr_eq(&then.nics, &now.nics)).then(|| Arc::clone(&now.nics))
    }

    /// Makes one that was used before good for another batch; false if the peer is another, has changed or is gone.
    #[inline]
    fn renew(&self, id: PeerId) -> bool {
        self.heard.store(self.peer.counters.heard.load(Ordering::Relaxed), Ordering::Relaxed);
        self.peer.id == id && self.peer.version() == self.version
    }
}

/// A request on its way. Small: what only few of them have is [`Rare`].
pub(crate) struct RequestState {
    /// Slices that have not ended well.
    remaining: AtomicU32,
    /// Which of the batch.
    pub(crate) party: u32,
    pub(crate) immediate: Option<u32>,
    state: AtomicU8,
}

impl RequestState {
    pub(crate) const fn new(party: u32, immediate: Option<u32>) -> Self {
        Self { remaining: AtomicU32::new(1), party, immediate, state: AtomicU8::new(RUNNING) }
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.state.load(Ordering::Acquire) != RUNNING
    }
}

/// What a request has that fails, or that carries an immediate.
#[derive(Default)]
struct Rare {
    error: Option<Error>,
    /// What the latest failed attempt said.
    last_error: Option<String>,
    /// The slice that carries the immediate, which starts when all others have ended well.
    gate: Option<Stray>,
}

/// What has become of a request when some of its slices have ended well.
pub(crate) enum Part {
    /// Others are still under way.
    Running,
    /// It has ended; whoever is told counts it with [`BatchState::slices_gone`].
    Ended,
    /// The slice with the immediate may start now.
    Gate(Stray),
}

/// What the slices of a batch share. Pooled by the transport.
pub(crate) struct BatchState {
    pub(crate) requests: Vec<RequestState>,
    pub(crate) parties: Vec<Party>,
    /// Of all its requests, as the clock of the transport reckons; and the time from submission to it.
    deadline: AtomicU64,
    limit_nanos: AtomicU64,
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Somebody sleeps, or has left a waker.
    listened: AtomicBool,
    rare: Mutex<HashMap<u32, Rare>>,
    /// Set before anything comes in there.
    has_rare: AtomicBool,
    /// Requests that have not ended.
    running: AtomicUsize,
    /// Requests that have failed.
    failed: AtomicUsize,
    /// Slices that exist: queued, or possibly still touching memory here or at the peer.
    alive: AtomicUsize,
    /// Its handle is gone.
    let_go: AtomicBool,
    /// Where its only slice is, if it was [sent alone](Self::begin_alone).
    lane: AtomicU32,
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
            parties: Vec::new(),
            deadline: AtomicU64::new(0),
            limit_nanos: AtomicU64::new(0),
            inner: Mutex::default(),
            changed: Condvar::new(),
            listened: AtomicBool::new(false),
            rare: Mutex::default(),
            has_rare: AtomicBool::new(false),
            running: AtomicUsize::new(0),
            failed: AtomicUsize::new(0),
            alive: AtomicUsize::new(0),
            let_go: AtomicBool::new(false),
            lane: AtomicU32::new(NOWHERE),
        }
    }

    /// Empties a state that nobody else holds, and fills it with requests: the peer of each, and its immediate. Often they go
    /// where the latest batch of this state went: then `peers` are not asked.
    pub(crate) fn fill<P: Deref<Target = Peers>>(
        &mut self,
        (deadline, limit): (u64, Duration),
        requests: impl Iterator<Item = (PeerId, Option<u32>)>,
        peers: impl Fn() -> P,
    ) -> Result<(), Error> {
        self.requests.clear();
        if std::mem::take(self.has_rare.get_mut()) {
            self.rare.get_mut().clear();
        }
        let mut latest = None;
        let mut parties = 0;
        for (id, immediate) in requests {
            if latest != Some(id) {
                if !self.parties.get(parties).is_some_and(|party| party.renew(id)) {
                    let party = Party::new(id, &peers())?;
                    self.parties.truncate(parties);
                    self.parties.push(party);
                }
                parties += 1;
                latest = Some(id);
            }
            self.requests.push(RequestState::new((parties - 1) as u32, immediate));
        }
        self.parties.truncate(parties);
        (*self.deadline.get_mut(), *self.limit_nanos.get_mut()) = (deadline, nanos(limit));
        *self.running.get_mut() = self.requests.len();
        *self.failed.get_mut() = 0;
        *self.alive.get_mut() = 0;
        *self.let_go.get_mut() = false;
        *self.lane.get_mut() = NOWHERE;
        self.inner.get_mut().waker = None;
        *self.listened.get_mut() = false;
        Ok(())
    }

    /// The same for one request without an immediate. False if anything is different from the latest batch of this state, or if that
    /// was [out of the ordinary](Self::is_plain): then it must be [filled](Self::fill). Nobody else holds it either way, so nothing
    /// here needs to be ordered.
    #[inline]
    pub(crate) fn refill(&self, (deadline, limit): (u64, Duration), id: PeerId) -> bool {
        let ([request], [party]) = (&self.requests[..], &self.parties[..]) else { return false };
        if !self.is_plain() || request.immediate.is_some() || !party.renew(id) {
            return false;
        }
        request.remaining.store(1, Ordering::Relaxed);
        request.state.store(RUNNING, Ordering::Relaxed);
        self.deadline.store(deadline, Ordering::Relaxed);
        self.limit_nanos.store(nanos(limit), Ordering::Relaxed);
        self.running.store(1, Ordering::Relaxed);
        self.alive.store(0, Ordering::Relaxed);
        self.let_go.store(false, Ordering::Relaxed);
        self.lane.store(NOWHERE, Ordering::Relaxed);
        true
    }

    /// Whether nobody has slept for it or left a waker, no attempt has failed, and there was no gate: then it has nothing
    /// [rare](Rare).
    #[inline]
    fn is_plain(&self) -> bool {
        !self.listened.load(Ordering::Relaxed) && !self.has_rare.load(Ordering::Relaxed)
    }

    /// Takes the peer for what `table` says, in this batch alone.
    pub(crate) fn take_peer_for(&mut self, table: &Arc<PeerTable>) {
        for party in &mut self.parties {
            // No peer's table gets so far: the next batch will look again.
            (party.table, party.version) = (Arc::clone(table), u64::MAX);
        }
    }

    /// Lets go of peers.
    pub(crate) fn clear(&mut self) {
        self.requests.clear();
        self.parties.clear();
        self.rare.get_mut().clear();
    }

    #[inline]
    pub(crate) fn request_has_ended(&self, index: u32) -> bool {
        self.requests.get(index as usize).is_none_or(RequestState::has_ended)
    }

    pub(crate) fn party_of(&self, index: u32) -> &Party {
        &self.parties[self.requests[index as usize].party as usize]
    }

    /// Says how many slices a request has, before the first of them starts.
    pub(crate) fn set_slices(&self, index: u32, count: u32) {
        if let Some(request) = self.requests.get(index as usize) {
            request.remaining.store(count, Ordering::Relaxed);
        }
    }

    /// Counts slices to one peer, before the first of them starts. (Of those that ended while they were being made the count is
    /// below zero until then, and wraps.)
    pub(crate) fn add_slices(&self, party: u32, count: usize) {
        self.alive.fetch_add(count, Ordering::Relaxed);
        self.parties[party as usize].peer.begun.fetch_add(count, Ordering::Relaxed);
    }

    /// The same for a batch whose only slice goes to a lane; whoever queues or posts it counts it for the peer.
    #[inline]
    pub(crate) fn begin_alone(&self, lane: usize) {
        self.lane.store(lane as u32, Ordering::Relaxed);
        self.alive.store(1, Ordering::Relaxed);
    }

    /// Keeps the slice with the immediate until all others of its request have ended well.
    pub(crate) fn set_gate(&self, index: u32, gate: Stray) {
        self.has_rare.store(true, Ordering::Relaxed);
        self.rare.lock().entry(index).or_default().gate = Some(gate);
    }

    /// Keeps what a failed attempt said.
    pub(crate) fn note(&self, index: u32, error: &str) {
        self.has_rare.store(true, Ordering::Relaxed);
        self.rare.lock().entry(index).or_default().last_error = Some(error.to_owned());
    }

    /// So many slices of a request have ended well.
    #[inline]
    pub(crate) fn slices_done(&self, index: u32, count: u32) -> Part {
        let Some(request) = self.requests.get(index as usize) else { return Part::Running };
        // Each slice is counted down once, by whoever ends it: if there are no others, nobody else changes the count.
        let remaining = if request.remaining.load(Ordering::Acquire) == count {
            count
        } else {
            request.remaining.fetch_sub(count, Ordering::AcqRel)
        };
        if remaining == count {
            let ended =
                request.state.compare_exchange(RUNNING, DONE, Ordering::AcqRel, Ordering::Acquire).is_ok();
            return if ended { Part::Ended } else { Part::Running };
        }
        if remaining == count + 1 && request.immediate.is_some() {
            let gate = self.rare.lock().get_mut(&index).and_then(|rare| rare.gate.take());
            return gate.map_or(Part::Running, Part::Gate);
        }
        Part::Running
    }

    /// Ends a request with an error, unless it has ended.
    pub(crate) fn fail(&self, index: u32, error: impl FnOnce(&Party) -> Error) -> bool {
        self.fail_with(index, |party, _| error(party))
    }

    #[cold]
    fn fail_with(&self, index: u32, error: impl FnOnce(&Party, Option<&str>) -> Error) -> bool {
        let Some(request) = self.requests.get(index as usize) else { return false };
        if request.has_ended() {
            return false;
        }
        self.has_rare.store(true, Ordering::Relaxed);
        let gate = {
            let mut all = self.rare.lock();
            // Under the lock: whoever sees that it has failed, and then takes the lock, finds the error. Sequentially consistent: see
            // `wake`; of a request that was sent alone this is the end.
            if request.state.compare_exchange(RUNNING, FAILED, Ordering::SeqCst, Ordering::Acquire).is_err() {
                return false;
            }
            let rare = all.entry(index).or_default();
            let party = &self.parties[request.party as usize];
            rare.error = Some(error(party, rare.last_error.as_deref()));
            rare.gate.take()
        };
        self.failed.fetch_add(1, Ordering::AcqRel);
        // Before the slice goes: its end looks at the request, which has ended by now.
        self.requests_ended(1);
        drop(gate);
        true
    }

    /// So many requests have ended.
    #[inline]
    pub(crate) fn requests_ended(&self, count: usize) {
        if self.running.fetch_sub(count, Ordering::SeqCst) == count {
            self.wake();
        }
    }

    /// So many slices are over, which their peer's counters know already, and so many requests have ended with them.
    #[inline]
    pub(crate) fn slices_gone(&self, slices: u32, requests: u32) {
        let (slices, requests) = (slices as usize, requests as usize);
        if requests == 0 {
            if self.alive.fetch_sub(slices, Ordering::SeqCst) == slices && self.has_ended() {
                self.wake();
            }
            return;
        }
        // As in `slices_done`: if there are no others, nobody else changes the count. Whoever sees the requests ended sees this, too.
        if self.alive.load(Ordering::Acquire) == slices {
            self.alive.store(0, Ordering::Release);
        } else {
            self.alive.fetch_sub(slices, Ordering::AcqRel);
        }
        self.requests_ended(requests);
    }

    fn wake(&self) {
        // Sequentially consistent, as is the count that has just come down: either we see who listens, or they see the end.
        if !self.listened.load(Ordering::SeqCst) {
            return;
        }
        let mut inner = self.inner.lock();
        let waker = inner.waker.take();
        if inner.sleepers > 0 {
            self.changed.notify_all();
        }
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        match &self.requests[..] {
            // The count follows.
            [one] if self.is_sent_alone() => one.state.load(Ordering::SeqCst) != RUNNING,
            _ => self.running.load(Ordering::SeqCst) == 0,
        }
    }

    /// Whether its only slice was [sent alone](Self::begin_alone).
    #[inline]
    pub(crate) fn is_sent_alone(&self) -> bool {
        self.lane.load(Ordering::Relaxed) != NOWHERE
    }

    /// The only slice of a batch that was sent alone has ended well, and nothing touches memory for it any more.
    #[inline]
    pub(crate) fn end_alone(&self) {
        // Whoever sees the request ended sees this, too.
        self.alive.store(0, Ordering::Release);
        let Some(one) = self.requests.first() else { return };
        // Sequentially consistent: see `wake`. Nobody else counts a request down that has ended well.
        if one.state.compare_exchange(RUNNING, DONE, Ordering::SeqCst, Ordering::Acquire).is_ok() {
            self.running.store(0, Ordering::Release);
            self.wake();
        } else {
            // It had failed before; somebody may wait for quiet.
            fence(Ordering::SeqCst);
            self.wake();
        }
    }

    /// A slice of it has gone to another lane.
    pub(crate) fn move_to(&self, lane: usize) {
        if self.is_sent_alone() {
            self.lane.store(lane as u32, Ordering::Relaxed);
        }
    }

    /// The lane of its only slice, if it was sent alone.
    #[inline]
    pub(crate) fn lane(&self) -> Option<usize> {
        let lane = self.lane.load(Ordering::Relaxed);
        (lane != NOWHERE).then_some(lane as usize)
    }

    /// Whether there is one slice at most.
    pub(crate) fn is_alone(&self) -> bool {
        self.alive.load(Ordering::Relaxed) <= 1
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.has_ended() && self.alive.load(Ordering::SeqCst) == 0
    }

    /// Of all its requests, as the clock of the transport reckons.
    #[inline]
    pub(crate) fn deadline(&self) -> u64 {
        self.deadline.load(Ordering::Relaxed)
    }

    /// Fails every request whose deadline has passed; true if there was one.
    pub(crate) fn expire(&self, now: u64) -> bool {
        if now < self.deadline() || self.has_ended() {
            return false;
        }
        let mut any = false;
        for index in 0..self.requests.len() {
            any |= self.fail_with(index as u32, |party, last_error| Error::Timeout {
                peer: party.peer.name.clone(),
                limit: Duration::from_nanos(self.limit_nanos.load(Ordering::Relaxed)),
                last: last_error.map(str::to_owned),
            });
        }
        any
    }

    /// Peers from which nothing has been heard for as long as a request to them that has just run out of time had.
    pub(crate) fn silent_peers(&self) -> Vec<Arc<Peer>> {
        let mut peers: Vec<Arc<Peer>> = Vec::new();
        for (&index, rare) in self.rare.lock().iter() {
            let party = self.party_of(index);
            let peer = &party.peer;
            if matches!(rare.error, Some(Error::Timeout { .. }))
                && peer.counters.heard.load(Ordering::Relaxed) == party.heard.load(Ordering::Relaxed)
                && !peers.iter().any(|other| Arc::ptr_eq(other, peer))
            {
                peers.push(Arc::clone(peer));
            }
        }
        peers
    }

    /// The deadline, unless everything has ended.
    pub(crate) fn first_deadline(&self) -> Option<u64> {
        (!self.has_ended()).then(|| self.deadline())
    }

    pub(crate) fn fail_all(&self, error: &Error) {
        for index in 0..self.requests.len() {
            self.fail(index as u32, |_| error.clone());
        }
    }

    /// Fails the requests to some of its peers.
    pub(crate) fn fail_those(&self, which: impl Fn(&Party) -> bool, error: impl Fn(&Party) -> Error) {
        for index in 0..self.requests.len() {
            if which(self.party_of(index as u32)) {
                self.fail(index as u32, &error);
            }
        }
    }

    /// Sleeps until something has changed for all of the batch, or the time is over.
    pub(crate) fn sleep(&self, done: fn(&Self) -> bool, limit: Duration) {
        self.listened.store(true, Ordering::SeqCst);
        let mut inner = self.inner.lock();
        if done(self) {
            return;
        }
        inner.sleepers += 1;
        self.changed.wait_for(&mut inner, limit);
        inner.sleepers -= 1;
    }

    /// Requests that have failed.
    #[inline]
    fn failures(&self) -> usize {
        match &self.requests[..] {
            [one] => usize::from(one.state.load(Ordering::Acquire) == FAILED),
            _ => self.failed.load(Ordering::Acquire),
        }
    }

    fn result(&self) -> Result<(), Error> {
        let failed = self.failures();
        if failed == 0 {
            return Ok(());
        }
        let rare = self.rare.lock();
        let first = rare.iter().filter_map(|(&index, rare)| Some((index, rare.error.as_ref()?)));
        match first.min_by_key(|(index, _)| *index) {
            None => Ok(()),
            Some((_, error)) if self.requests.len() == 1 => Err(error.clone()),
            Some((index, error)) => Err(Error::Batch {
                failed,
                total: self.requests.len(),
                index: index as usize,
                source: Box::new(error.clone()),
            }),
        }
    }

    /// Why a request has failed.
    fn error(&self, index: usize) -> Error {
        let rare = self.rare.lock();
        rare.get(&(index as u32)).and_then(|rare| rare.error.clone()).unwrap_or(Error::Cancelled)
    }
}

/// A submitted batch. Each of its requests ends exactly once, at its deadline at the latest.
///
/// Whoever [waits](Self::wait) drives the NICs on the waiting thread; polling and awaiting leave that to the progress
/// thread. Dropping the handle lets the requests run on.
pub struct BatchHandle {
    state: Arc<BatchState>,
    core: Arc<Core>,
    slot: u32,
}

impl BatchHandle {
    pub(crate) fn new(state: Arc<BatchState>, core: Arc<Core>, slot: u32) -> Self {
        Self { state, core, slot }
    }

    #[cfg(test)]
    pub(crate) fn state(&self) -> &BatchState {
        &self.state
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
                FAILED => Status::Failed(self.state.error(index)),
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
        self.state.inner.lock().waker = Some(context.waker().clone());
        self.state.listened.store(true, Ordering::SeqCst);
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
        self.core.let_run(self.slot, &self.state);
    }
}

impl BatchState {
    /// Its handle goes.
    #[inline]
    pub(crate) fn let_go(&self) {
        self.let_go.store(true, Ordering::Release);
    }

    /// Whether it is over and has no handle any more.
    pub(crate) fn is_over(&self) -> bool {
        self.let_go.load(Ordering::Acquire) && self.has_ended()
    }

    /// Whether somebody sleeps, or has left a waker.
    #[cfg(test)]
    pub(crate) fn is_listened_to(&self) -> bool {
        let inner = self.inner.lock();
        inner.sleepers > 0 || inner.waker.is_some()
    }

    /// Requests that ended well, and that failed.
    pub(crate) fn tally(&self) -> (u64, u64) {
        let failed = self.failures() as u64;
        (self.requests.len() as u64 - failed, failed)
    }
}
