//! A peer's memory.

use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PySlice;

use crate::error::OrRaise as _;
use crate::ranges::{Ranges, RemoteRange, Whole};
use crate::wait;

/// A peer engine's registered memory, as last heard.
#[pyclass(frozen, module = "weft")]
pub(crate) struct Segment {
    pub(crate) inner: engine::Segment,
}

/// A buffer that a peer has registered.
#[pyclass(frozen, module = "weft")]
pub(crate) struct RemoteBuffer {
    pub(crate) segment: engine::Segment,
    buffer: engine::RemoteBuffer,
}

/// Seconds from now as the engine's deadline.
pub(crate) fn deadline(timeout: f64) -> PyResult<Instant> {
    let timeout: Duration = wait::duration(timeout)?;
    Ok(Instant::now() + timeout)
}

#[pymethods]
impl Segment {
    /// The name it was opened by.
    #[getter]
    fn name(&self) -> &str {
        self.inner.name()
    }

    /// Which way its requests go at the moment, such as "efa/efa-direct" or "tcp/…".
    #[getter]
    fn path(&self) -> String {
        self.inner.path().to_string()
    }

    /// Why they go that way, in words.
    #[getter]
    fn path_reason(&self) -> String {
        self.inner.path_reason()
    }

    /// The peer's buffers, in ascending order of address.
    #[getter]
    fn buffers(&self) -> Vec<RemoteBuffer> {
        let wrap = |buffer| RemoteBuffer { segment: self.inner.clone(), buffer };
        self.inner.buffers().into_iter().map(wrap).collect()
    }

    /// `segment["kv"]`: the buffer of that name.
    fn __getitem__(&self, py: Python<'_>, name: &str) -> PyResult<RemoteBuffer> {
        let buffer = self.inner.buffer(name).or_raise(py)?;
        Ok(RemoteBuffer { segment: self.inner.clone(), buffer })
    }

    /// The range of `length` bytes at an absolute address of the peer's.
    fn at(&self, address: u64, length: u64) -> RemoteRange {
        RemoteRange { segment: self.inner.clone(), ranges: Ranges::Contiguous { addr: address, len: length } }
    }

    /// Ranges at absolute addresses of the peer's, each (address, length).
    fn scatter(&self, pieces: Vec<(u64, u64)>) -> RemoteRange {
        RemoteRange { segment: self.inner.clone(), ranges: Ranges::Scatter(pieces) }
    }

    /// Fetches the peer's current list of buffers. Needed after it has registered more, or has been restarted.
    #[pyo3(signature = (timeout = 30.0))]
    fn refresh(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let deadline = deadline(timeout)?;
        py.detach(|| self.inner.refresh(deadline)).or_raise(py)
    }

    /// Opens connections and rails now rather than with the first request.
    #[pyo3(signature = (timeout = 30.0))]
    fn warm_up(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let deadline = deadline(timeout)?;
        py.detach(|| self.inner.warm_up(deadline)).or_raise(py)
    }

    /// Whether the peer's engine answers: the round trip in seconds.
    #[pyo3(signature = (timeout = 30.0))]
    fn probe(&self, py: Python<'_>, timeout: f64) -> PyResult<f64> {
        let deadline = deadline(timeout)?;
        py.detach(|| self.inner.probe(deadline)).map(|time| time.as_secs_f64()).or_raise(py)
    }

    /// Puts `payload` into the peer's queue of notifications, exactly once; returns when it is there.
    #[pyo3(signature = (payload, timeout = 30.0))]
    fn notify(&self, py: Python<'_>, payload: &[u8], timeout: f64) -> PyResult<()> {
        let deadline = deadline(timeout)?;
        py.detach(|| self.inner.notify(payload, deadline)).or_raise(py)
    }

    fn __repr__(&self) -> String {
        let buffers = self.inner.buffers().len();
        format!("<weft.Segment {} path={} buffers={buffers}>", self.inner.name(), self.inner.path())
    }
}

impl RemoteBuffer {
    pub(crate) fn whole(&self) -> Whole {
        Whole { addr: self.buffer.addr(), len: self.buffer.len() }
    }

    fn part(&self, ranges: PyResult<Ranges>) -> PyResult<RemoteRange> {
        Ok(RemoteRange { segment: self.segment.clone(), ranges: ranges? })
    }
}

#[pymethods]
impl RemoteBuffer {
    /// What its owner called it.
    #[getter]
    fn name(&self) -> &str {
        self.buffer.label()
    }

    /// First address, in the peer's process.
    #[getter]
    fn address(&self) -> u64 {
        self.buffer.addr()
    }

    /// Length in bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.buffer.len()
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.buffer.len()).unwrap_or(usize::MAX)
    }

    /// `buffer[a:b]`: the bytes from a to b.
    fn __getitem__(&self, slice: &Bound<'_, PySlice>) -> PyResult<RemoteRange> {
        self.part(self.whole().slice(slice))
    }

    /// `length` bytes at `offset`; without a length, up to the end.
    #[pyo3(signature = (offset = 0, length = None))]
    fn range(&self, py: Python<'_>, offset: u64, length: Option<u64>) -> PyResult<RemoteRange> {
        self.part(self.whole().range(py, offset, length))
    }

    /// Pages of `length` bytes at these offsets.
    fn pages(&self, py: Python<'_>, offsets: Vec<u64>, length: u64) -> PyResult<RemoteRange> {
        self.part(self.whole().pages(py, &offsets, length))
    }

    /// `count` blocks of `length` bytes, the beginnings of neighbours `stride` bytes apart.
    fn strided(
        &self,
        py: Python<'_>,
        offset: u64,
        length: u64,
        stride: u64,
        count: u64,
    ) -> PyResult<RemoteRange> {
        self.part(self.whole().strided(py, offset, length, stride, count))
    }

    /// Pieces, each (offset, length).
    fn scatter(&self, py: Python<'_>, pieces: Vec<(u64, u64)>) -> PyResult<RemoteRange> {
        self.part(self.whole().scatter(py, &pieces))
    }

    fn __repr__(&self) -> String {
        let Whole { addr, len } = self.whole();
        format!("<weft.RemoteBuffer {:?} of {} {addr:#x}+{len:#x}>", self.buffer.label(), self.segment.name())
    }
}
