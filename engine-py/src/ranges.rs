//! Parts of registered memory, here or at a peer: one side of a request.

use engine::Shape;
use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PySlice;

use crate::error::{Kind, exception};
use crate::region::Region;
use crate::segment::RemoteBuffer;

/// Absolute addresses in one of the engine's shapes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ranges {
    Contiguous { addr: u64, len: u64 },
    Paged { page_len: u64, addrs: Vec<u64> },
    Strided { addr: u64, block_len: u64, stride: u64, count: u64 },
    Scatter(Vec<(u64, u64)>),
}

impl Ranges {
    pub(crate) fn shape(&self) -> Shape<'_> {
        match self {
            Self::Contiguous { addr, len } => Shape::contiguous(*addr, *len),
            Self::Paged { page_len, addrs } => Shape::Paged { page_len: *page_len, addrs },
            Self::Strided { addr, block_len, stride, count } => {
                Shape::Strided { addr: *addr, block_len: *block_len, stride: *stride, count: *count }
            }
            Self::Scatter(ranges) => Shape::Scatter(ranges),
        }
    }

    /// Bytes; saturates, because the engine checks each request anyway.
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Contiguous { len, .. } => *len,
            Self::Paged { page_len, addrs } => page_len.saturating_mul(addrs.len() as u64),
            Self::Strided { block_len, count, .. } => block_len.saturating_mul(*count),
            Self::Scatter(ranges) => ranges.iter().fold(0, |sum, (_, len)| sum.saturating_add(*len)),
        }
    }

    fn describe(&self) -> String {
        match self {
            Self::Contiguous { addr, len } => format!("{addr:#x}+{len:#x}"),
            Self::Paged { page_len, addrs } => format!("{} pages of {page_len} bytes", addrs.len()),
            Self::Strided { addr, block_len, stride, count } => {
                format!("{count} blocks of {block_len} bytes every {stride} bytes from {addr:#x}")
            }
            Self::Scatter(ranges) => format!("{} ranges, {} bytes", ranges.len(), self.len()),
        }
    }
}

/// A buffer that parts are cut out of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Whole {
    pub(crate) addr: u64,
    pub(crate) len: u64,
}

impl Whole {
    fn outside(self, py: Python<'_>, offset: u64, len: u64) -> PyErr {
        let message = format!("range {offset}+{len} is outside of a buffer of {} bytes", self.len);
        exception(py, Kind::Range, message)
    }

    /// The absolute address of a range that must lie inside.
    fn at(self, py: Python<'_>, offset: u64, len: u64) -> PyResult<u64> {
        let inside = offset.checked_add(len).is_some_and(|end| end <= self.len);
        if inside { Ok(self.addr + offset) } else { Err(self.outside(py, offset, len)) }
    }

    /// `len` bytes at `offset`; without a length, up to the end.
    pub(crate) fn range(self, py: Python<'_>, offset: u64, len: Option<u64>) -> PyResult<Ranges> {
        let len = len.unwrap_or_else(|| self.len.saturating_sub(offset));
        Ok(Ranges::Contiguous { addr: self.at(py, offset, len)?, len })
    }

    /// Pages of one length at these offsets.
    pub(crate) fn pages(self, py: Python<'_>, offsets: &[u64], page_len: u64) -> PyResult<Ranges> {
        let addrs = offsets.iter().map(|&offset| self.at(py, offset, page_len)).collect::<PyResult<_>>()?;
        Ok(Ranges::Paged { page_len, addrs })
    }

    /// `count` blocks, the beginnings of neighbours `stride` apart.
    pub(crate) fn strided(
        self,
        py: Python<'_>,
        offset: u64,
        block_len: u64,
        stride: u64,
        count: u64,
    ) -> PyResult<Ranges> {
        let last = stride.saturating_mul(count.saturating_sub(1)).saturating_add(block_len);
        Ok(Ranges::Strided { addr: self.at(py, offset, last)?, block_len, stride, count })
    }

    /// Pieces of any lengths.
    pub(crate) fn scatter(self, py: Python<'_>, pieces: &[(u64, u64)]) -> PyResult<Ranges> {
        let ranges = pieces
            .iter()
            .map(|&(offset, len)| Ok((self.at(py, offset, len)?, len)))
            .collect::<PyResult<_>>()?;
        Ok(Ranges::Scatter(ranges))
    }

    /// `buffer[a:b]`, with Python's rules for slices; steps are what [`strided`](Self::strided) is for.
    pub(crate) fn slice(self, slice: &Bound<'_, PySlice>) -> PyResult<Ranges> {
        let len = isize::try_from(self.len).map_err(|_| PyValueError::new_err("the buffer is too large"))?;
        let at = slice.indices(len)?;
        if at.step != 1 {
            return Err(PyValueError::new_err("a step is not supported here; use strided()"));
        }
        // Between 0 and len, as `indices` promises.
        Ok(Ranges::Contiguous { addr: self.addr + at.start as u64, len: at.slicelength as u64 })
    }
}

/// Part of a Region: the local side of a request.
#[pyclass(frozen, module = "weft")]
pub(crate) struct LocalRange {
    pub(crate) region: engine::Region,
    pub(crate) ranges: Ranges,
}

/// Part of a peer's memory: the remote side of a request.
#[pyclass(frozen, module = "weft")]
pub(crate) struct RemoteRange {
    pub(crate) segment: engine::Segment,
    pub(crate) ranges: Ranges,
}

#[pymethods]
impl LocalRange {
    /// Bytes, all pieces together.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.ranges.len()
    }

    fn __repr__(&self) -> String {
        format!("<weft.LocalRange of {:?}: {}>", self.region.label(), self.ranges.describe())
    }
}

#[pymethods]
impl RemoteRange {
    /// Bytes, all pieces together.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.ranges.len()
    }

    fn __repr__(&self) -> String {
        format!("<weft.RemoteRange of {}: {}>", self.segment.name(), self.ranges.describe())
    }
}

/// What a method takes as its local side: a Region (all of it) or a part.
pub(crate) fn local(side: &Bound<'_, PyAny>) -> PyResult<(engine::Region, Ranges)> {
    if let Ok(part) = side.cast::<LocalRange>() {
        let part = part.get();
        return Ok((part.region.clone(), part.ranges.clone()));
    }
    if let Ok(region) = side.cast::<Region>() {
        let region = region.get();
        let Whole { addr, len } = region.whole();
        return Ok((region.inner(side.py())?, Ranges::Contiguous { addr, len }));
    }
    Err(not_a("local", "a Region or a part of one, such as region[0:4096]", side))
}

/// What a method takes as its remote side: a RemoteBuffer (all of it) or a part.
pub(crate) fn remote(side: &Bound<'_, PyAny>) -> PyResult<(engine::Segment, Ranges)> {
    if let Ok(part) = side.cast::<RemoteRange>() {
        let part = part.get();
        return Ok((part.segment.clone(), part.ranges.clone()));
    }
    if let Ok(buffer) = side.cast::<RemoteBuffer>() {
        let buffer = buffer.get();
        let Whole { addr, len } = buffer.whole();
        return Ok((buffer.segment.clone(), Ranges::Contiguous { addr, len }));
    }
    Err(not_a("remote", "a RemoteBuffer or a part of one, such as segment[\"kv\"][0:4096]", side))
}

fn not_a(which: &str, wanted: &str, got: &Bound<'_, PyAny>) -> PyErr {
    let kind = got.get_type();
    let name = kind.name().map(|name| name.to_string()).unwrap_or_else(|_| "object".into());
    PyTypeError::new_err(format!("the {which} side of a request is {wanted}, not {name}"))
}
