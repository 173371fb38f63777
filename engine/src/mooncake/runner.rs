//! Carries out requests to Mooncake's nodes. Their protocol answers one request at a time on a connection, so several are
//! kept busy by a few threads, and whoever waits for a batch moves its bytes too.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tcp_transport::mooncake::{Client, Version};
use tcp_transport::{Error as TcpError, Op, Shape};

use super::pieces::{Piece, cut};
use super::remote::Remote;
use crate::error::Error;

/// Threads for all peers together; each has one connection in use at a time. As many as Mooncake itself opens to a peer.
const THREADS: usize = 4;
/// How long a connection may take to open, within the request's deadline.
const CONNECT: Duration = Duration::from_secs(10);

/// Requests to be carried out together.
#[derive(Default)]
pub(crate) struct Batch {
    requests: Vec<Request>,
}

struct Request {
    op: Op,
    remote: Remote,
    local: tcp_transport::Region,
    pieces: Vec<Piece>,
}

impl Batch {
    pub(crate) fn push(
        &mut self,
        op: Op,
        local: &tcp_transport::Region,
        local_shape: &Shape<'_>,
        remote: Remote,
        remote_shape: &Shape<'_>,
    ) -> Result<usize, Error> {
        let pieces = cut(local_shape, remote_shape).map_err(TcpError::Request)?;
        let (start, end) = (local.addr(), local.addr() + local.len());
        if let Some(out) = pieces.iter().find(|piece| piece.local < start || piece.local + piece.len > end) {
            return Err(Error::Tcp(TcpError::OutOfBounds {
                side: "local",
                addr: out.local,
                len: out.len,
                region_addr: local.addr(),
                region_len: local.len(),
            }));
        }
        self.requests.push(Request { op, remote, local: local.clone(), pieces });
        Ok(self.requests.len() - 1)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(crate) fn clear(&mut self) {
        self.requests.clear();
    }
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} requests to Mooncake's nodes)", self.requests.len())
    }
}

/// The threads and the connections. Dropping it ends the threads when they have ended what they are at.
#[derive(Default)]
pub(crate) struct Runner {
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    clients: Mutex<HashMap<Remote, Arc<Client>>>,
    queue: Mutex<Queue>,
    wake: Condvar,
}

/// Jobs that can use another pair of hands.
#[derive(Default)]
struct Queue {
    jobs: VecDeque<Arc<Job>>,
    threads: usize,
    idle: usize,
    closed: bool,
}

impl Runner {
    /// Begins with the requests of the batch and empties it.
    pub(crate) fn submit(&self, batch: &mut Batch, deadline: Instant) -> Handle {
        let requests = std::mem::take(&mut batch.requests);
        let pieces: usize = requests.iter().map(|request| request.pieces.len()).sum();
        let state = State {
            request: 0,
            piece: 0,
            left: requests.iter().map(|request| request.pieces.len()).collect(),
            results: vec![None; requests.len()],
            open: requests.len(),
            running: 0,
            uncertain: false,
            waker: None,
        };
        let job = Job {
            requests,
            deadline,
            shared: Arc::clone(&self.shared),
            state: Mutex::new(state),
            changed: Condvar::new(),
        };
        let job = Arc::new(job);
        for _ in 0..pieces.min(THREADS) {
            Shared::offer(&self.shared, Arc::clone(&job));
        }
        Handle { job }
    }

    /// Forgets a peer's connections; what runs over them goes on.
    pub(crate) fn forget(&self, remote: &Remote) {
        lock(&self.shared.clients).remove(remote);
    }
}

impl Drop for Runner {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        queue.closed = true;
        let jobs = std::mem::take(&mut queue.jobs);
        drop(queue);
        self.shared.wake.notify_all();
        for job in jobs {
            job.end(&TcpError::ShutDown);
        }
    }
}

impl Shared {
    fn offer(this: &Arc<Self>, job: Arc<Job>) {
        let mut queue = lock(&this.queue);
        queue.jobs.push_back(job);
        if queue.jobs.len() > queue.idle && queue.threads < THREADS {
            let shared = Arc::clone(this);
            let thread = std::thread::Builder::new().name("weft-mooncake".into());
            match thread.spawn(move || shared.run()) {
                Ok(_) => queue.threads += 1,
                Err(error) => {
                    tracing::warn!(%error, "no thread for Mooncake's peers; whoever waits moves the bytes")
                }
            }
        }
        drop(queue);
        this.wake.notify_one();
    }

    fn run(&self) {
        let mut queue = lock(&self.queue);
        while !queue.closed {
            match queue.jobs.pop_front() {
                Some(job) => {
                    drop(queue);
                    while job.step() {}
                    queue = lock(&self.queue);
                }
                None => {
                    queue.idle += 1;
                    queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
                    queue.idle -= 1;
                }
            }
        }
    }

    fn client(&self, remote: Remote) -> Arc<Client> {
        let version = if remote.version >= 2 { Version::V2 } else { Version::V1 };
        let mut clients = lock(&self.clients);
        let client =
            clients.entry(remote).or_insert_with(|| Arc::new(Client::new(remote.data, version, CONNECT)));
        Arc::clone(client)
    }
}

struct Job {
    requests: Vec<Request>,
    deadline: Instant,
    shared: Arc<Shared>,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// The next piece to begin with.
    request: usize,
    piece: usize,
    /// Pieces of each request that have not ended.
    left: Vec<usize>,
    results: Vec<Option<Result<(), TcpError>>>,
    /// Requests without a result.
    open: usize,
    /// Pieces that somebody is at.
    running: usize,
    /// A write has failed in a way that does not say whether the peer will still apply it.
    uncertain: bool,
    waker: Option<Waker>,
}

impl State {
    /// The next piece of a request that can still end well.
    fn take(&mut self, requests: &[Request]) -> Option<(usize, Piece)> {
        loop {
            let pieces = &requests.get(self.request)?.pieces;
            let next = pieces.get(self.piece).filter(|_| self.results[self.request].is_none());
            match next {
                Some(piece) => {
                    self.piece += 1;
                    self.running += 1;
                    return Some((self.request, *piece));
                }
                None => {
                    self.request += 1;
                    self.piece = 0;
                }
            }
        }
    }

    fn settle(&mut self, request: usize, result: Result<(), TcpError>) {
        if self.results[request].is_none() {
            self.results[request] = Some(result);
            self.open -= 1;
        }
    }
}

impl Job {
    /// Carries out one piece; false if there is none to begin with.
    fn step(&self) -> bool {
        let Some((index, piece)) = lock(&self.state).take(&self.requests) else { return false };
        let request = &self.requests[index];
        let client = self.shared.client(request.remote);
        let Piece { local, remote, len } = piece;
        let result = match request.op {
            Op::Write => client.write(&request.local, local, remote, len, self.deadline),
            Op::Read => client.read(&request.local, local, remote, len, self.deadline),
        };
        let mut state = lock(&self.state);
        state.running -= 1;
        state.left[index] -= 1;
        match result {
            Ok(()) if state.left[index] == 0 => state.settle(index, Ok(())),
            Ok(()) => {}
            Err(error) => {
                state.uncertain |= request.op == Op::Write && !matches!(error, TcpError::Refused { .. });
                state.settle(index, Err(error));
            }
        }
        self.tell(state);
        true
    }

    /// Ends every request that is still open.
    fn end(&self, error: &TcpError) {
        let mut state = lock(&self.state);
        for index in 0..self.requests.len() {
            state.settle(index, Err(error.clone()));
        }
        self.tell(state);
    }

    fn tell(&self, mut state: MutexGuard<'_, State>) {
        let waker = if state.open == 0 { state.waker.take() } else { None };
        drop(state);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Waits until `is_so`; false if it is not at `deadline`.
    fn wait(&self, deadline: Option<Instant>, is_so: impl Fn(&State) -> bool) -> bool {
        let mut state = lock(&self.state);
        while !is_so(&state) {
            state = match deadline {
                None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        true
    }
}

/// Follows the requests of a batch. Each ends once, at the deadline at the latest.
pub(crate) struct Handle {
    job: Arc<Job>,
}

impl Handle {
    /// Blocks until all have ended, and helps; whether all went well.
    pub(crate) fn wait(&self) -> bool {
        while self.job.step() {}
        self.job.wait(None, |state| state.open == 0);
        self.poll() == Some(true)
    }

    /// As [`wait`](Self::wait), without helping, for what it helped with could take longer.
    pub(crate) fn wait_until(&self, deadline: Instant) -> Option<bool> {
        if self.job.deadline <= deadline {
            return Some(self.wait());
        }
        self.job.wait(Some(deadline), |state| state.open == 0);
        self.poll()
    }

    /// Whether all have ended, and if so whether all went well.
    pub(crate) fn poll(&self) -> Option<bool> {
        let state = lock(&self.job.state);
        (state.open == 0).then(|| state.results.iter().all(|result| matches!(result, Some(Ok(())))))
    }

    pub(crate) fn poll_with(&self, context: &Context<'_>) -> Poll<bool> {
        let mut state = lock(&self.job.state);
        if state.open > 0 {
            state.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        drop(state);
        Poll::Ready(self.poll() == Some(true))
    }

    /// How a request stands; `None` while it runs.
    pub(crate) fn status(&self, index: usize) -> Option<Result<(), Error>> {
        match lock(&self.job.state).results.get(index) {
            Some(result) => result.clone().map(|result| result.map_err(Error::Tcp)),
            None => Some(Err(Error::Tcp(TcpError::Request(format!("the batch has no request {index}"))))),
        }
    }

    pub(crate) fn cancel(&self) {
        self.job.end(&TcpError::Cancelled);
    }

    /// Blocks until nobody touches memory for it any more; false if that is not certain, which after a write that was broken off
    /// it never is: the protocol has no way to ask.
    pub(crate) fn quiesced(&self, deadline: Instant) -> bool {
        let over = self.job.wait(Some(deadline), |state| state.open == 0 && state.running == 0);
        over && !lock(&self.job.state).uncertain
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Handle({} of {} open)", lock(&self.job.state).open, self.job.requests.len())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
