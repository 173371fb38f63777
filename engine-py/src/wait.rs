//! Waiting: the GIL is free, Ctrl-C works, and an event loop is woken through a file descriptor.

use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::task::Waker;
use std::time::{Duration, Instant};

use pyo3::exceptions::{PyOSError, PyValueError};
use pyo3::prelude::*;

use crate::error::{Kind, exception};

/// How long a wait goes on before Python may look for signals. The waiting thread drives the transfer meanwhile.
const SIGNALS: Duration = Duration::from_millis(100);

/// The end of a timeout in seconds; `None` waits for as long as the requests' own deadlines allow.
pub(crate) fn end(timeout: Option<f64>) -> PyResult<Option<Instant>> {
    timeout.map(|seconds| Ok(Instant::now() + duration(seconds)?)).transpose()
}

/// Seconds as Python gives them; more than a century counts as a century.
pub(crate) fn duration(seconds: f64) -> PyResult<Duration> {
    if seconds.is_nan() {
        return Err(PyValueError::new_err("a timeout is a number of seconds, not nan"));
    }
    Ok(Duration::try_from_secs_f64(seconds.clamp(0.0, 3.2e9)).unwrap_or_default())
}

/// Calls `step` with deadlines of at most [`SIGNALS`] from now, without the GIL, until it has an answer or `end` has passed.
///
/// # Errors
/// What a signal handler raises: `KeyboardInterrupt`, usually.
pub(crate) fn interruptible<T: Send>(
    py: Python<'_>,
    end: Option<Instant>,
    step: impl Fn(Instant) -> Option<T> + Sync,
) -> PyResult<Option<T>> {
    loop {
        let slice = Instant::now() + SIGNALS;
        let until = end.map_or(slice, |end| end.min(slice));
        if let Some(answer) = py.detach(|| step(until)) {
            return Ok(Some(answer));
        }
        py.check_signals()?;
        if end.is_some_and(|end| end <= Instant::now()) {
            return Ok(None);
        }
    }
}

/// The caller's patience is over, the transfer is not.
pub(crate) fn patience<T>(py: Python<'_>) -> PyResult<T> {
    let message = "not finished within the timeout; the transfer goes on until its own deadline";
    Err(exception(py, Kind::Timeout, message.into()))
}

/// A file descriptor that becomes readable when a transfer may have ended; for event loops. No thread waits for the GIL to
/// write to it.
#[pyclass(frozen, module = "weft._weft")]
pub(crate) struct Wake {
    event: Arc<Event>,
}

struct Event(OwnedFd);

impl std::task::Wake for Event {
    #[allow(unsafe_code)]
    fn wake(self: Arc<Self>) {
        let one = 1_u64;
        // SAFETY: writes the eight bytes of a live u64 to a descriptor that `self` keeps open. The counter cannot overflow
        // before somebody has read it 2^64 times too late, so the write never fails in a way that matters.
        let _ = unsafe { libc::write(self.0.as_raw_fd(), (&raw const one).cast(), 8) };
    }
}

impl Wake {
    /// For `Future::poll`.
    pub(crate) fn waker(&self) -> Waker {
        Waker::from(Arc::clone(&self.event))
    }
}

#[pymethods]
impl Wake {
    #[new]
    #[allow(unsafe_code)]
    fn new() -> PyResult<Self> {
        // SAFETY: no pointers; the result is checked before it is owned.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(PyOSError::new_err(std::io::Error::last_os_error().to_string()));
        }
        // SAFETY: a descriptor that the kernel has just given us and nobody else knows.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(Self { event: Arc::new(Event(fd)) })
    }

    /// The descriptor; valid as long as this object.
    fn fileno(&self) -> i32 {
        self.event.0.as_raw_fd()
    }

    /// Makes it unreadable until the next wake.
    #[allow(unsafe_code)]
    fn clear(&self) {
        let mut count = 0_u64;
        // SAFETY: reads at most eight bytes into a live u64 from a descriptor that `self` keeps open; it does not block.
        let _ = unsafe { libc::read(self.event.0.as_raw_fd(), (&raw mut count).cast(), 8) };
    }
}
