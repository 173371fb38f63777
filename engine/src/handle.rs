//! Following a submitted batch to its end.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use crate::error::Error;
use crate::request::Slot;

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
/// run on. It is a [`Future`] too, for any executor.
#[derive(Debug)]
pub struct BatchHandle {
    pub(crate) tcp: Option<tcp_transport::BatchHandle>,
    #[cfg(feature = "efa")]
    pub(crate) fabric: Option<efa_transport::BatchHandle>,
    pub(crate) slots: Vec<Slot>,
}

impl BatchHandle {
    /// Number of requests.
    #[allow(clippy::len_without_is_empty)] // an empty batch has an empty answer; nobody asks
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Blocks until every request has ended; each has its deadline, so this ends. The waiting thread moves the bytes itself
    /// where it can.
    ///
    /// # Errors
    /// [`Error::Batch`] with the first error, or that error itself when the batch has one request.
    pub fn wait(&self) -> Result<(), Error> {
        // Each transport's verdict is repeated by the statuses below, in the order of this batch.
        if let Some(handle) = &self.tcp {
            let _ = handle.wait();
        }
        #[cfg(feature = "efa")]
        if let Some(handle) = &self.fabric {
            let _ = handle.wait();
        }
        self.verdict()
    }

    /// As [`wait`](Self::wait), but gives up at `deadline` with `None`; the requests run on.
    pub fn wait_until(&self, deadline: Instant) -> Option<Result<(), Error>> {
        if let Some(handle) = &self.tcp {
            let _ = handle.wait_until(deadline)?;
        }
        #[cfg(feature = "efa")]
        if let Some(handle) = &self.fabric {
            let _ = handle.wait_until(deadline)?;
        }
        Some(self.verdict())
    }

    /// Whether all have ended, without blocking; `None` while some are running.
    pub fn poll(&self) -> Option<Result<(), Error>> {
        if let Some(handle) = &self.tcp {
            let _ = handle.poll()?;
        }
        #[cfg(feature = "efa")]
        if let Some(handle) = &self.fabric {
            let _ = handle.poll()?;
        }
        Some(self.verdict())
    }

    /// How one request stands. An index past the end is an error, too.
    pub fn status(&self, index: usize) -> Status {
        match self.slots.get(index) {
            Some(&Slot::Tcp(at)) => match self.tcp.as_ref().map(|handle| handle.status(at)) {
                Some(tcp_transport::Status::Pending) => Status::Pending,
                Some(tcp_transport::Status::Done) => Status::Done,
                Some(tcp_transport::Status::Failed(error)) => Status::Failed(error.into()),
                None => no_such_request(index),
            },
            #[cfg(feature = "efa")]
            Some(&Slot::Fabric(at)) => match self.fabric.as_ref().map(|handle| handle.status(at)) {
                Some(efa_transport::Status::Pending) => Status::Pending,
                Some(efa_transport::Status::Done) => Status::Done,
                Some(efa_transport::Status::Failed(error)) => Status::Failed(error.into()),
                None => no_such_request(index),
            },
            None => no_such_request(index),
        }
    }

    /// Ends every running request. Bytes that are on their way may still arrive: [`quiesced`](Self::quiesced).
    pub fn cancel(&self) {
        if let Some(handle) = &self.tcp {
            handle.cancel();
        }
        #[cfg(feature = "efa")]
        if let Some(handle) = &self.fabric {
            handle.cancel();
        }
    }

    /// Blocks until nobody, here or at the peers, touches memory for this batch any more; `false` if that is not certain at
    /// `deadline`. True at once after success.
    pub fn quiesced(&self, deadline: Instant) -> bool {
        let tcp = self.tcp.as_ref().is_none_or(|handle| handle.quiesced(deadline));
        #[cfg(feature = "efa")]
        let fabric = self.fabric.as_ref().is_none_or(|handle| handle.quiesced(deadline));
        #[cfg(not(feature = "efa"))]
        let fabric = true;
        tcp && fabric
    }

    fn verdict(&self) -> Result<(), Error> {
        let mut failed = 0;
        let mut first = None;
        for index in 0..self.len() {
            if let Status::Failed(error) = self.status(index) {
                failed += 1;
                first.get_or_insert((index, error));
            }
        }
        match first {
            None => Ok(()),
            Some((_, error)) if self.len() == 1 => Err(error),
            Some((index, error)) => {
                Err(Error::Batch { failed, total: self.len(), index, source: Box::new(error) })
            }
        }
    }
}

fn no_such_request(index: usize) -> Status {
    Status::Failed(tcp_transport::Error::Request(format!("the batch has no request {index}")).into())
}

impl Future for BatchHandle {
    type Output = Result<(), Error>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(handle) = &mut self.tcp
            && Pin::new(handle).poll(context).is_pending()
        {
            return Poll::Pending;
        }
        #[cfg(feature = "efa")]
        if let Some(handle) = &mut self.fabric
            && Pin::new(handle).poll(context).is_pending()
        {
            return Poll::Pending;
        }
        Poll::Ready(self.verdict())
    }
}
