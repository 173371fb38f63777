//! A transfer that has been started, and how it stands.

use std::time::{Duration, Instant};

use engine::{BatchHandle, Engine, Region};

use crate::fault::Fault;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// From the peer's memory into this process's.
    Read,
    /// From this process's memory into the peer's.
    Write,
}

/// How a transfer stands.
#[derive(Debug, Clone)]
pub enum Progress {
    /// Running.
    Pending,
    /// Ended well: a write is visible at the peer.
    Done,
    /// Ended with an error; a deadline is [`Fault::Timeout`].
    Failed(Fault),
}

/// A started transfer; may be waited for and polled from several threads.
#[derive(Debug)]
pub struct Transfer {
    engine: Engine,
    /// `None` if there was nothing to do.
    handle: Option<BatchHandle>,
    /// Where each request of the caller's is in the batch; empty ones are not.
    places: Vec<Option<usize>>,
    /// Memory that was registered for this transfer alone.
    borrowed: Vec<Region>,
}

impl Transfer {
    pub(crate) fn new(
        engine: Engine,
        handle: Option<BatchHandle>,
        places: Vec<Option<usize>>,
        borrowed: Vec<Region>,
    ) -> Self {
        Self { engine, handle, places, borrowed }
    }

    /// Number of requests, as they were asked for.
    #[allow(clippy::len_without_is_empty)] // one without requests has ended; nobody asks
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Blocks until it has ended; each request has its deadline, so it ends.
    ///
    /// # Errors
    /// The first request's that failed.
    pub fn wait(&self) -> Result<(), Fault> {
        self.handle.as_ref().map_or(Ok(()), BatchHandle::wait).map_err(fault)
    }

    /// As [`wait`](Self::wait), but `None` if it is still running at `deadline`.
    pub fn wait_until(&self, deadline: Instant) -> Option<Result<(), Fault>> {
        match &self.handle {
            None => Some(Ok(())),
            Some(handle) => Some(handle.wait_until(deadline)?.map_err(fault)),
        }
    }

    /// How it stands, without blocking.
    pub fn progress(&self) -> Progress {
        match self.handle.as_ref().map_or(Some(Ok(())), BatchHandle::poll) {
            None => Progress::Pending,
            Some(Ok(())) => Progress::Done,
            Some(Err(error)) => Progress::Failed(fault(error)),
        }
    }

    /// How one of its requests stands.
    pub fn progress_of(&self, index: usize) -> Progress {
        let place = match self.places.get(index) {
            None => {
                let why = format!("the batch has {} requests and no number {index}", self.len());
                return Progress::Failed(Fault::Argument(why));
            }
            Some(place) => *place,
        };
        match (place, &self.handle) {
            (Some(place), Some(handle)) => match handle.status(place) {
                engine::Status::Pending => Progress::Pending,
                engine::Status::Done => Progress::Done,
                engine::Status::Failed(error) => Progress::Failed(fault(error)),
            },
            _ => Progress::Done,
        }
    }

    /// Ends it early and waits, for `limit` at most, until its memory is left alone; false if that is not certain.
    pub fn cancel(&self, limit: Duration) -> bool {
        self.handle.as_ref().is_none_or(|handle| {
            handle.cancel();
            handle.quiesced(Instant::now() + limit)
        })
    }
}

impl Drop for Transfer {
    /// Memory that was registered for this transfer goes back. That waits for requests that are running, which the caller has
    /// had no reason to leave behind.
    fn drop(&mut self) {
        for region in self.borrowed.drain(..) {
            if let Err(error) = self.engine.unregister(region) {
                tracing::warn!(%error, "memory that was registered for one transfer is still in use");
            }
        }
    }
}

pub(crate) fn fault(error: engine::Error) -> Fault {
    if is_deadline(&error) { Fault::Timeout(error) } else { Fault::Engine(error) }
}

/// Whether a deadline ended it, at any depth.
fn is_deadline(error: &engine::Error) -> bool {
    fn tcp(error: &tcp_transport::Error) -> bool {
        match error {
            tcp_transport::Error::Batch { source, .. } => tcp(source),
            other => matches!(other, tcp_transport::Error::Timeout { .. }),
        }
    }
    fn fabric(error: &efa_transport::Error) -> bool {
        match error {
            efa_transport::Error::Batch { source, .. } => fabric(source),
            other => matches!(other, efa_transport::Error::Timeout { .. }),
        }
    }
    match error {
        engine::Error::Batch { source, .. } => is_deadline(source),
        engine::Error::Tcp(error) => tcp(error),
        engine::Error::Fabric(error) => fabric(error),
        _ => false,
    }
}
