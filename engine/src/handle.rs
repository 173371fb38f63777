//! Following a submitted batch to its end.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::error::Error;
use crate::flight::Flight;

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

/// A submitted batch. Each of its requests ends exactly once, at its deadline at the latest. Dropping the handle lets them
/// run on. It is a [`Future`] too, for any executor. May be used from several threads at once.
///
/// ```
/// use std::time::{Duration, Instant};
/// use engine::{Access, Batch, Engine, Error, HostMemory, Status};
///
/// # fn main() -> Result<(), Error> {
/// # let deadline = Instant::now() + Duration::from_secs(10);
/// # let target = Engine::builder().build()?;
/// # target.register("pool", HostMemory::new(8192)?, Access::READ_WRITE)?;
/// let engine = Engine::builder().build()?;
/// let local = engine.register("local", HostMemory::new(8192)?, Access::LOCAL)?;
/// let segment = engine.open(target.name(), deadline)?;
/// let pool = segment.buffer("pool")?;
/// let mut batch = Batch::new();
/// batch.set_deadline(Duration::from_secs(5));
/// let read = batch.read(&local, local.range(0, 4096), &segment, pool.range(4096, 4096))?;
/// let write = batch.write(&local, local.range(4096, 4096), &segment, pool.range(0, 4096))?;
/// let handle = engine.submit(&mut batch)?;
///
/// // A program with a loop of its own looks now and then …
/// while handle.poll().is_none() {
///     std::thread::yield_now();
/// }
/// assert!(matches!(handle.status(read), Status::Done));
/// assert!(matches!(handle.status(write), Status::Done));
///
/// // … an async one awaits it.
/// async fn transfer(engine: &Engine, batch: &mut Batch) -> Result<(), Error> {
///     engine.submit(batch)?.await
/// }
/// # Ok(())
/// # }
/// ```
pub struct BatchHandle {
    /// There until the handle is dropped.
    flight: Option<Arc<Flight>>,
}

impl BatchHandle {
    pub(crate) fn new(flight: Flight) -> Self {
        Self { flight: Some(Arc::new(flight)) }
    }

    fn flight(&self) -> &Arc<Flight> {
        // Only `drop` takes it, and nothing comes after that.
        self.flight.as_ref().expect("a handle has a flight until it is dropped")
    }

    /// Number of requests.
    #[allow(clippy::len_without_is_empty)] // an empty batch has an empty answer; nobody asks
    pub fn len(&self) -> usize {
        self.flight().parts.slots.len()
    }

    /// Blocks until every request has ended; each has its deadline, so this ends. The waiting thread moves the bytes itself
    /// where it can. After a failure that the peer may explain, it is asked first (for some 2 s at most): when this returns, the
    /// segment is up to date again.
    ///
    /// # Errors
    /// [`Error::Batch`] with the first error, or that error itself when the batch has one request. If all ended well, what kept
    /// the [notification](crate::Batch::notify_on_completion) from being delivered.
    pub fn wait(&self) -> Result<(), Error> {
        self.flight().wait()
    }

    /// As [`wait`](Self::wait), but gives up at `deadline` with `None`; the requests run on.
    pub fn wait_until(&self, deadline: Instant) -> Option<Result<(), Error>> {
        self.flight().wait_until(deadline)
    }

    /// Whether all have ended, without blocking; `None` while some are running.
    pub fn poll(&self) -> Option<Result<(), Error>> {
        self.flight().poll()
    }

    /// How one request stands. An index past the end is an error, too. What has ended stays as it is.
    pub fn status(&self, index: usize) -> Status {
        self.flight().status(index)
    }

    /// Ends every running request. Bytes that are on their way may still arrive: [`quiesced`](Self::quiesced).
    pub fn cancel(&self) {
        self.flight().cancel();
    }

    /// Blocks until nobody, here or at the peers, touches memory for this batch any more; `false` if that is not certain at
    /// `deadline`. True at once after success.
    pub fn quiesced(&self, deadline: Instant) -> bool {
        self.flight().quiesced(deadline)
    }
}

impl fmt::Debug for BatchHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.flight().is_settled() { "ended" } else { "running" };
        write!(f, "BatchHandle({} requests, {state})", self.len())
    }
}

impl Future for BatchHandle {
    type Output = Result<(), Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        self.flight().poll_with(context)
    }
}

impl Drop for BatchHandle {
    fn drop(&mut self) {
        let Some(flight) = self.flight.take() else { return };
        let Some(engine) = flight.engine.upgrade() else { return };
        if flight.is_settled() {
            if let Some(flight) = Arc::into_inner(flight) {
                engine.keep_parts(flight.into_parts());
            }
        } else {
            engine.adopt(flight);
        }
    }
}
