//! Registered memory.

use std::sync::{Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PySlice};

use crate::error::{Kind, OrRaise as _, exception};
use crate::memory;
use crate::ranges::{LocalRange, Ranges, Whole};

/// Registered memory: peers can use it as far as its access goes, and the engine's own requests name parts of it.
///
/// Stays registered until unregister(), the end of a `with` block, or the engine's close(); the object whose memory it is lives as
/// long.
#[pyclass(frozen, weakref, module = "weft")]
pub(crate) struct Region {
    engine: engine::Engine,
    region: Mutex<Option<engine::Region>>,
    name: String,
    whole: Whole,
    access: engine::Access,
    owner: Py<PyAny>,
}

impl Region {
    pub(crate) fn new(
        engine: engine::Engine,
        region: engine::Region,
        access: engine::Access,
        owner: Py<PyAny>,
    ) -> Self {
        let whole = Whole { addr: region.addr(), len: region.len() };
        let name = region.label().to_owned();
        Self { engine, region: Mutex::new(Some(region)), name, whole, access, owner }
    }

    pub(crate) fn whole(&self) -> Whole {
        self.whole
    }

    /// The engine's region, while there is one.
    pub(crate) fn inner(&self, py: Python<'_>) -> PyResult<engine::Region> {
        self.region.lock().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(|| {
            exception(py, Kind::Refused, format!("the region {:?} has been unregistered", self.name))
        })
    }

    fn part(&self, py: Python<'_>, ranges: PyResult<Ranges>) -> PyResult<LocalRange> {
        Ok(LocalRange { region: self.inner(py)?, ranges: ranges? })
    }

    /// The absolute address of a range inside, for copying.
    fn address(&self, py: Python<'_>, offset: u64, len: u64) -> PyResult<u64> {
        self.inner(py)?;
        match self.whole.range(py, offset, Some(len))? {
            Ranges::Contiguous { addr, .. } => Ok(addr),
            _ => Err(crate::error::broken("a range is not contiguous")),
        }
    }
}

#[pymethods]
impl Region {
    /// What its owner called it; peers find it by this name.
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// First address, in this process.
    #[getter(address)]
    fn first_address(&self) -> u64 {
        self.whole.addr
    }

    /// Length in bytes.
    #[getter]
    fn nbytes(&self) -> u64 {
        self.whole.len
    }

    /// What peers may do: "", "r", "w" or "rw".
    #[getter]
    fn access(&self) -> &'static str {
        access_name(self.access)
    }

    /// The object whose memory it is.
    #[getter]
    fn memory(&self, py: Python<'_>) -> Py<PyAny> {
        self.owner.clone_ref(py)
    }

    /// Whether it is still registered.
    #[getter]
    fn registered(&self) -> bool {
        self.region.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    fn __len__(&self) -> usize {
        usize::try_from(self.whole.len).unwrap_or(usize::MAX)
    }

    /// `region[a:b]`: the bytes from a to b.
    fn __getitem__(&self, slice: &Bound<'_, PySlice>) -> PyResult<LocalRange> {
        self.part(slice.py(), self.whole.slice(slice))
    }

    /// `length` bytes at `offset`; without a length, up to the end.
    #[pyo3(signature = (offset = 0, length = None))]
    fn range(&self, py: Python<'_>, offset: u64, length: Option<u64>) -> PyResult<LocalRange> {
        self.part(py, self.whole.range(py, offset, length))
    }

    /// Pages of `length` bytes at these offsets.
    fn pages(&self, py: Python<'_>, offsets: Vec<u64>, length: u64) -> PyResult<LocalRange> {
        self.part(py, self.whole.pages(py, &offsets, length))
    }

    /// `count` blocks of `length` bytes, the beginnings of neighbours `stride` bytes apart.
    fn strided(
        &self,
        py: Python<'_>,
        offset: u64,
        length: u64,
        stride: u64,
        count: u64,
    ) -> PyResult<LocalRange> {
        self.part(py, self.whole.strided(py, offset, length, stride, count))
    }

    /// Pieces, each (offset, length).
    fn scatter(&self, py: Python<'_>, pieces: Vec<(u64, u64)>) -> PyResult<LocalRange> {
        self.part(py, self.whole.scatter(py, &pieces))
    }

    /// Copies `length` bytes at `offset` out.
    #[pyo3(signature = (offset = 0, length = None))]
    fn read<'py>(&self, py: Python<'py>, offset: u64, length: Option<u64>) -> PyResult<Bound<'py, PyBytes>> {
        let length = length.unwrap_or_else(|| self.whole.len.saturating_sub(offset));
        let addr = self.address(py, offset, length)?;
        // Inside the region, so it fits.
        PyBytes::new_with(py, length as usize, |bytes| Ok(memory::peek(addr, bytes)?))
    }

    /// Copies `data` to `offset`.
    #[pyo3(signature = (data, offset = 0))]
    fn write(&self, py: Python<'_>, data: &[u8], offset: u64) -> PyResult<()> {
        let addr = self.address(py, offset, data.len() as u64)?;
        Ok(memory::poke(addr, data)?)
    }

    /// Takes peers' access away and waits for requests in flight that use it. When it returns, nobody but this program touches the
    /// memory. Doing it again does nothing.
    fn unregister(&self, py: Python<'_>) -> PyResult<()> {
        let taken = self.region.lock().unwrap_or_else(PoisonError::into_inner).take();
        match taken {
            Some(region) => py.detach(|| self.engine.unregister(region)).or_raise(py),
            None => Ok(()),
        }
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.unregister(py)
    }

    fn __repr__(&self) -> String {
        let Whole { addr, len } = self.whole;
        let state = if self.registered() { access_name(self.access) } else { "unregistered" };
        format!("<weft.Region {:?} {addr:#x}+{len:#x} {state}>", self.name)
    }
}

/// `"rw"` and its parts, as Python writes them.
pub(crate) fn access(py: Python<'_>, text: &str) -> PyResult<engine::Access> {
    match text {
        "" => Ok(engine::Access::LOCAL),
        "r" => Ok(engine::Access::READ),
        "w" => Ok(engine::Access::WRITE),
        "rw" | "wr" => Ok(engine::Access::READ_WRITE),
        _ => {
            let message =
                format!("access {text:?} is unknown; what peers may do is \"\", \"r\", \"w\" or \"rw\"");
            Err(exception(py, Kind::Setting, message))
        }
    }
}

fn access_name(access: engine::Access) -> &'static str {
    match (access.allows(engine::Access::READ), access.allows(engine::Access::WRITE)) {
        (false, false) => "",
        (true, false) => "r",
        (false, true) => "w",
        (true, true) => "rw",
    }
}
