//! Batches of reads and writes, and following them to their end.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, TryLockError};
use std::task::{Context, Poll};
use std::time::Instant;

use engine::{BatchHandle, Status};
use pyo3::prelude::*;

use crate::error::{OrRaise as _, raise};
use crate::ranges;
use crate::wait::{self, Wake};

/// Reads and writes to be submitted together, to one peer or to many.
///
/// Submitting empties it; it can be used again.
#[pyclass(frozen, module = "weft")]
pub(crate) struct Batch {
    engine: engine::Engine,
    inner: Mutex<engine::Batch>,
}

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
}

impl Batch {
    pub(crate) fn new(engine: engine::Engine, timeout: Option<f64>) -> PyResult<Self> {
        let mut batch = engine::Batch::new();
        if let Some(timeout) = timeout {
            batch.set_deadline(wait::duration(timeout)?);
        }
        Ok(Self { engine, inner: Mutex::new(batch) })
    }

    fn inner(&self) -> MutexGuard<'_, engine::Batch> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(
        &self,
        op: Op,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
    ) -> PyResult<usize> {
        let (region, from) = ranges::local(local)?;
        let (segment, to) = ranges::remote(remote)?;
        let mut batch = self.inner();
        let pushed = match op {
            Op::Read => batch.read(&region, from.shape(), &segment, to.shape()),
            Op::Write => batch.write(&region, from.shape(), &segment, to.shape()),
        };
        drop(batch);
        pushed.or_raise(local.py())
    }
}

#[pymethods]
impl Batch {
    /// Adds a write of local memory to a peer's; returns the request's index. A write that is done is visible to the peer. With a
    /// tag (0 to 65535) the peer's arrivals() of it count one more then.
    #[pyo3(signature = (local, remote, tag = None))]
    fn write(
        &self,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        tag: Option<u16>,
    ) -> PyResult<usize> {
        let Some(tag) = tag else { return self.push(Op::Write, local, remote) };
        let ((region, from), (segment, to)) = (ranges::local(local)?, ranges::remote(remote)?);
        let pushed = self.inner().write_with_tag(&region, from.shape(), &segment, to.shape(), tag);
        pushed.or_raise(local.py())
    }

    /// When all requests of the next submission have ended well, their peers get this notification.
    fn notify_on_completion(&self, payload: Vec<u8>) {
        self.inner().notify_on_completion(payload);
    }

    /// Adds a read of a peer's memory into local memory; returns the request's index.
    fn read(&self, local: &Bound<'_, PyAny>, remote: &Bound<'_, PyAny>) -> PyResult<usize> {
        self.push(Op::Read, local, remote)
    }

    /// Starts all requests and empties the batch. Does not wait for the network.
    pub(crate) fn submit(&self, py: Python<'_>) -> PyResult<Transfer> {
        let submitted = py.detach(|| {
            let mut batch = self.inner();
            self.engine.submit(&mut batch)
        });
        Ok(Transfer::new(submitted.or_raise(py)?))
    }

    /// Removes all requests.
    fn clear(&self) {
        self.inner().clear();
    }

    fn __len__(&self) -> usize {
        self.inner().len()
    }

    /// A batch is something even while it is empty.
    fn __bool__(&self) -> bool {
        true
    }

    fn __repr__(&self) -> String {
        format!("<weft.Batch of {} requests>", self.__len__())
    }
}

/// A submitted batch. Each of its requests ends exactly once, at its deadline at the latest. It can be waited for, polled, or
/// awaited; dropping it lets the requests run on.
#[pyclass(frozen, module = "weft")]
pub(crate) struct Transfer {
    // Whoever awaits needs it alone for a moment; everybody else shares it.
    handle: RwLock<BatchHandle>,
}

impl Transfer {
    pub(crate) fn new(handle: BatchHandle) -> Self {
        Self { handle: RwLock::new(handle) }
    }

    fn handle(&self) -> std::sync::RwLockReadGuard<'_, BatchHandle> {
        self.handle.read().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Transfer {
    /// Blocks until every request has ended, for `timeout` seconds at most; the GIL is free meanwhile, and Ctrl-C works.
    ///
    /// Raises the error of the first request that failed, or TimeoutError; then the transfer goes on.
    #[pyo3(signature = (timeout = None))]
    pub(crate) fn wait(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<()> {
        let end = wait::end(timeout)?;
        let ended = wait::interruptible(py, end, |until| self.handle().wait_until(until))?;
        match ended {
            Some(result) => result.or_raise(py),
            None => wait::patience(py),
        }
    }

    /// Whether every request has ended, well or not. Does not block.
    fn done(&self, py: Python<'_>) -> bool {
        py.detach(|| self.handle().poll().is_some())
    }

    /// The exception of one request, or of the whole batch; None if it ended well or is still running.
    #[pyo3(signature = (index = None))]
    fn exception(&self, py: Python<'_>, index: Option<usize>) -> Option<PyErr> {
        let error = py.detach(|| match index {
            None => self.handle().poll().and_then(Result::err),
            Some(index) => match self.handle().status(index) {
                Status::Failed(error) => Some(error),
                _ => None,
            },
        });
        error.map(|error| raise(py, &error))
    }

    /// "pending", "done" or "failed".
    fn status(&self, index: usize) -> &'static str {
        match self.handle().status(index) {
            Status::Pending => "pending",
            Status::Done => "done",
            Status::Failed(_) => "failed",
        }
    }

    /// Ends every running request with CancelledError. Bytes on their way may still arrive: quiesced().
    fn cancel(&self, py: Python<'_>) {
        py.detach(|| self.handle().cancel());
    }

    /// Blocks until nobody touches memory for this transfer any more; False if that is not certain after `timeout` seconds.
    #[pyo3(signature = (timeout = 30.0))]
    fn quiesced(&self, py: Python<'_>, timeout: f64) -> PyResult<bool> {
        let end = Instant::now() + wait::duration(timeout)?;
        let ask = |until: Instant| match self.handle().quiesced(until) {
            true => Some(true),
            // Before the deadline that it was given, a no is final.
            false => (Instant::now() < until).then_some(false),
        };
        Ok(wait::interruptible(py, Some(end), ask)?.unwrap_or(false))
    }

    /// For event loops: leaves `wake` to be made readable at the end. "done", or "pending", or "busy" if another thread waits for
    /// this transfer just now.
    fn _watch(&self, py: Python<'_>, wake: &Wake) -> PyResult<&'static str> {
        let mut handle = match self.handle.try_write() {
            Ok(handle) => handle,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok("busy"),
        };
        match Pin::new(&mut *handle).poll(&mut Context::from_waker(&wake.waker())) {
            Poll::Pending => Ok("pending"),
            Poll::Ready(result) => result.map(|()| "done").or_raise(py),
        }
    }

    /// `await transfer`: as wait(), for asyncio. Cancelling the awaiting task does not cancel the transfer.
    fn __await__<'py>(slf: &Bound<'py, Self>) -> PyResult<Bound<'py, PyAny>> {
        slf.py().import("weft._asyncio")?.call_method1("finish", (slf,))?.call_method0("__await__")
    }

    fn __len__(&self) -> usize {
        self.handle().len()
    }

    fn __bool__(&self) -> bool {
        true
    }

    fn __repr__(&self, py: Python<'_>) -> String {
        let state = match py.detach(|| self.handle().poll()) {
            None => "running".into(),
            Some(Ok(())) => "done".into(),
            Some(Err(error)) => format!("failed: {error}"),
        };
        format!("<weft.Transfer of {} requests, {state}>", self.__len__())
    }
}
