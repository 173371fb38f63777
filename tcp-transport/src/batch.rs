//! Following a submitted batch to its end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::error::Error;

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

/// A submitted batch. Each of its requests ends exactly once, at its deadline at the latest.
///
/// Whoever [waits](Self::wait) drives the lanes of the batch on the waiting thread; polling and awaiting leave that to the
/// I/O threads. Dropping the handle lets the requests run on.
#[derive(Debug)]
pub struct BatchHandle {}

impl BatchHandle {
    /// Number of requests.
    #[allow(clippy::len_without_is_empty)] // an empty batch has an empty answer; nobody asks
    pub fn len(&self) -> usize {
        0
    }
    /// Blocks until every request has ended; each has its deadline, so this ends.
    ///
    /// # Errors
    /// [`Error::Batch`] with the first error, or that error itself when the batch has one request.
    pub fn wait(&self) -> Result<(), Error> {
        Err(Error::ShutDown)
    }
    /// As [`wait`](Self::wait), but gives up at `deadline` with `None`; the requests run on.
    pub fn wait_until(&self, deadline: Instant) -> Option<Result<(), Error>> {
        let _ = deadline;
        None
    }
    /// Whether all have ended, without blocking; `None` while some are running.
    pub fn poll(&self) -> Option<Result<(), Error>> {
        None
    }
    /// How one request stands. An index past the end is [`Error::Request`].
    pub fn status(&self, index: usize) -> Status {
        let _ = index;
        Status::Pending
    }
    /// Ends every running request with [`Error::Cancelled`]. Bytes that are on their way may still arrive:
    /// [`quiesced`](Self::quiesced).
    pub fn cancel(&self) {}
    /// Blocks until nobody, here or at the peers, touches memory for this batch any more; `false` if that is not certain
    /// at `deadline`. True at once after success. After a deadline or a cancellation the last bytes may still be on their
    /// way until the peer has answered or has closed the lane.
    pub fn quiesced(&self, deadline: Instant) -> bool {
        let _ = deadline;
        false
    }
}

impl Future for BatchHandle {
    type Output = Result<(), Error>;
    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(Err(Error::ShutDown))
    }
}
