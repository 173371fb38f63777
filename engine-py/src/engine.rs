//! The engine: what a process opens once.

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;

use crate::batch::{Batch, Op, Transfer};
use crate::error::{Kind, OrRaise as _, exception};
use crate::memory::Lent;
use crate::region::{self, Region};
use crate::segment::{Segment, deadline};
use crate::wait;

/// Registered memory, peers' segments, and the transports between them; what a process opens once.
///
/// Everything is optional. `listen` is where peers reach this engine ("host:port", or several; port 0 takes a free one; default:
/// a free port of 127.0.0.1) and `name` what they call it (default: the first listening address). `secret` is the cluster's, at
/// least 16 bytes. `protocol` is "auto", "efa" or "tcp"; without it the environment decides, and else it is "auto".
/// `provider` uses another libfabric provider than EFA. `timeout` is how many seconds a request has, unless its batch says otherwise.
/// `metadata` is a store where names are looked up ("etcd://…", "redis://…", "http://…"). `config` is a TOML file with any of these.
///
/// Ends with close() or its `with` block. All methods may be called from any thread.
#[pyclass(frozen, weakref, module = "weft")]
pub(crate) struct Engine {
    inner: RwLock<Option<engine::Engine>>,
    arrivals: Mutex<HashMap<(String, u16), Arc<engine::ArrivalCounter>>>,
    name: String,
}

/// A notification from a peer.
#[pyclass(frozen, module = "weft", eq, get_all)]
#[derive(PartialEq, Eq)]
pub(crate) struct Notification {
    /// Name of the engine that sent it, as that engine says.
    sender: String,
    /// What it sent.
    payload: Vec<u8>,
}

impl Engine {
    pub(crate) fn inner(&self, py: Python<'_>) -> PyResult<engine::Engine> {
        let inner = self.inner.read().unwrap_or_else(PoisonError::into_inner);
        inner
            .clone()
            .ok_or_else(|| exception(py, Kind::Closed, format!("the engine {} has been closed", self.name)))
    }

    fn take(&self) -> Option<engine::Engine> {
        self.inner.write().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn one(
        &self,
        py: Python<'_>,
        op: Op,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        let batch = Batch::new(self.inner(py)?, timeout)?;
        batch.push(op, local, remote)?;
        batch.submit(py)?.wait(py, None)
    }
}

/// An object's bytes as memory that lives as long as the network may touch it.
fn lend(memory: &Bound<'_, PyAny>) -> PyResult<Arc<dyn engine::Memory>> {
    let py = memory.py();
    let found = py.import("weft._memory")?.call_method1("locate", (memory,))?;
    let (addr, len, keeper): (u64, u64, Py<PyAny>) = found.extract()?;
    let lent = Lent::new(addr, len, Some(keeper)).ok_or_else(|| {
        exception(py, Kind::Range, format!("memory of {len} bytes at {addr:#x} cannot be registered"))
    })?;
    Ok(Arc::new(lent))
}

/// Anything that can be JSON, as Python's dictionaries and lists.
fn json<'py>(py: Python<'py>, value: &impl serde::Serialize) -> PyResult<Bound<'py, PyAny>> {
    let text = serde_json::to_string(value).map_err(|error| crate::error::broken(&error.to_string()))?;
    py.import("json")?.call_method1("loads", (text,))
}

/// `listen`: a string or several.
fn addresses(py: Python<'_>, listen: &Bound<'_, PyAny>) -> PyResult<Vec<SocketAddr>> {
    let texts = match listen.extract::<String>() {
        Ok(one) => vec![one],
        Err(_) => listen.extract::<Vec<String>>().map_err(|_| {
            PyTypeError::new_err("listen is an address such as \"0.0.0.0:9000\", or a list of them")
        })?,
    };
    let wrong = |text: &str, why: String| {
        exception(
            py,
            Kind::Setting,
            format!("listen: {text:?} is no address such as \"0.0.0.0:9000\": {why}"),
        )
    };
    let resolve = |text: &String| {
        let found = text.to_socket_addrs().map_err(|error| wrong(text, error.to_string()))?.next();
        found.ok_or_else(|| wrong(text, "it resolves to nothing".into()))
    };
    texts.iter().map(resolve).collect()
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (*, listen = None, name = None, protocol = None, provider = None, secret = None, same_host = None,
                        io_threads = None, lanes = None, timeout = None, metadata = None, config = None))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of Python
    fn new(
        py: Python<'_>,
        listen: Option<&Bound<'_, PyAny>>,
        name: Option<String>,
        protocol: Option<&str>,
        provider: Option<String>,
        secret: Option<&Bound<'_, PyAny>>,
        same_host: Option<bool>,
        io_threads: Option<usize>,
        lanes: Option<usize>,
        timeout: Option<f64>,
        metadata: Option<String>,
        config: Option<std::path::PathBuf>,
    ) -> PyResult<Self> {
        crate::log::start();
        let mut builder = engine::Engine::builder();
        if let Some(listen) = listen {
            builder = addresses(py, listen)?.into_iter().fold(builder, engine::Builder::listen);
        }
        if let Some(name) = name {
            builder = builder.name(name);
        }
        if let Some(protocol) = protocol {
            builder = builder.protocol(protocol.parse().or_raise(py)?);
        }
        if let Some(provider) = provider {
            builder = builder.provider(provider);
        }
        if let Some(secret) = secret {
            builder = match secret.extract::<String>() {
                Ok(text) => builder.secret(text),
                Err(_) => builder.secret(secret.extract::<Vec<u8>>()?),
            };
        }
        if let Some(on) = same_host {
            builder = builder.same_host(on);
        }
        if let Some(threads) = io_threads {
            builder = builder.io_threads(threads);
        }
        if let Some(lanes) = lanes {
            builder = builder.lanes(lanes);
        }
        if let Some(timeout) = timeout {
            builder = builder.timeout(wait::duration(timeout)?);
        }
        if let Some(url) = metadata {
            builder = builder.metadata(url);
        }
        if let Some(path) = config {
            builder = builder.config_file(path);
        }
        let engine = py.detach(|| builder.build()).or_raise(py)?;
        let name = engine.name().to_owned();
        Ok(Self { inner: RwLock::new(Some(engine)), arrivals: Mutex::default(), name })
    }

    /// The name by which peers open this engine's memory, "host:port".
    #[getter]
    fn name(&self) -> &str {
        &self.name
    }

    /// The protocol in force: "auto", "efa" or "tcp".
    #[getter]
    fn protocol(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.inner(py)?.protocol().0.to_string())
    }

    /// Who chose the protocol, such as "environment variable WEFT_PROTOCOL".
    #[getter]
    fn protocol_source(&self, py: Python<'_>) -> PyResult<String> {
        Ok(self.inner(py)?.protocol().1.to_string())
    }

    /// The libfabric path that this engine has, in words. Raises UnavailableError, with the reason, if it has none.
    #[getter]
    fn fabric(&self, py: Python<'_>) -> PyResult<String> {
        self.inner(py)?.fabric().or_raise(py)
    }

    /// Whether close() has been called.
    #[getter]
    fn closed(&self) -> bool {
        self.inner.read().unwrap_or_else(PoisonError::into_inner).is_none()
    }

    /// Registers memory: anything with the buffer protocol (bytearray, mmap, array, memoryview), NumPy arrays, torch tensors,
    /// objects with `__cuda_array_interface__`, `__array_interface__` or `__dlpack__`, or a weft.Address. Contiguous and writable.
    ///
    /// `access` says what peers may do with it: "", "r", "w" or "rw". The object stays alive and in place until the region has been
    /// unregistered. Raises what the transport says; nothing is registered then.
    #[pyo3(signature = (memory, name = "", access = "rw"))]
    fn register(&self, memory: &Bound<'_, PyAny>, name: &str, access: &str) -> PyResult<Region> {
        let py = memory.py();
        let (engine, access) = (self.inner(py)?, region::access(py, access)?);
        let lent = lend(memory)?;
        let region = py.detach(|| engine.register(name, lent, access)).or_raise(py)?;
        Ok(Region::new(engine, region, access, memory.clone().unbind()))
    }

    /// Registers several, or none of them. `names` are as many, or not given.
    #[pyo3(signature = (memories, names = None, access = "rw"))]
    fn register_many(
        &self,
        py: Python<'_>,
        memories: Vec<Bound<'_, PyAny>>,
        names: Option<Vec<String>>,
        access: &str,
    ) -> PyResult<Vec<Region>> {
        let (engine, access) = (self.inner(py)?, region::access(py, access)?);
        let names = names.unwrap_or_else(|| vec![String::new(); memories.len()]);
        if names.len() != memories.len() {
            let counts = format!("{} memories and {} names", memories.len(), names.len());
            return Err(exception(py, Kind::Setting, counts));
        }
        let lent = memories
            .iter()
            .zip(names)
            .map(|(memory, name)| Ok(engine::Buffer::new(name, lend(memory)?, access)));
        let lent = lent.collect::<PyResult<Vec<_>>>()?;
        let regions = py.detach(|| engine.register_many(lent)).or_raise(py)?;
        let wrap = |(region, memory): (engine::Region, Bound<'_, PyAny>)| {
            Region::new(engine.clone(), region, access, memory.unbind())
        };
        Ok(regions.into_iter().zip(memories).map(wrap).collect())
    }

    /// What has been moved, by peer, and how NICs stand; as dictionaries and lists.
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let engine = self.inner(py)?;
        json(py, &py.detach(|| engine.statistics()))
    }

    /// Every setting with its value and who chose it.
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        json(py, self.inner(py)?.settings())
    }

    /// How many writes with this tag have arrived from the engine called `peer`. With `at_least` it waits until there are so many, for
    /// `timeout` seconds (for ever without).
    #[pyo3(signature = (peer, tag, at_least = None, timeout = None))]
    fn arrivals(
        &self,
        py: Python<'_>,
        peer: &str,
        tag: u16,
        at_least: Option<u64>,
        timeout: Option<f64>,
    ) -> PyResult<u64> {
        let (engine, end) = (self.inner(py)?, wait::end(timeout)?);
        // A counter counts as long as it lives, so it stays.
        let known = self
            .arrivals
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(peer.to_owned(), tag))
            .cloned();
        let counter = match known {
            Some(counter) => counter,
            None => {
                let counter = Arc::new(py.detach(|| engine.arrivals(peer, tag)).or_raise(py)?);
                let mut arrivals = self.arrivals.lock().unwrap_or_else(PoisonError::into_inner);
                Arc::clone(arrivals.entry((peer.to_owned(), tag)).or_insert(counter))
            }
        };
        if let Some(wanted) = at_least {
            let reached = |until| counter.wait(wanted, until).then_some(());
            if wait::interruptible(py, end, reached)?.is_none() {
                let message =
                    format!("{} of {wanted} writes with tag {tag} came from {peer}", counter.value());
                return Err(exception(py, Kind::Timeout, message));
            }
        }
        Ok(counter.value())
    }

    /// Opens a peer's memory by the peer's name, "host:port": one round trip, which decides the path. The same name gives the same
    /// segment.
    #[pyo3(signature = (name, timeout = 30.0))]
    fn open(&self, py: Python<'_>, name: &str, timeout: f64) -> PyResult<Segment> {
        let (engine, deadline) = (self.inner(py)?, deadline(timeout)?);
        py.detach(|| engine.open(name, deadline)).map(|inner| Segment { inner }).or_raise(py)
    }

    /// An empty batch, whose requests will have `timeout` seconds (30 unless given) from submission to their end.
    #[pyo3(signature = (timeout = None))]
    fn batch(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Batch> {
        Batch::new(self.inner(py)?, timeout)
    }

    /// Writes local memory to a peer's and waits until it is visible there.
    #[pyo3(signature = (local, remote, timeout = None))]
    fn write(
        &self,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        self.one(local.py(), Op::Write, local, remote, timeout)
    }

    /// Reads a peer's memory into local memory and waits for it.
    #[pyo3(signature = (local, remote, timeout = None))]
    fn read(
        &self,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<()> {
        self.one(local.py(), Op::Read, local, remote, timeout)
    }

    /// Starts a write and returns its Transfer, to be waited for or awaited.
    #[pyo3(signature = (local, remote, timeout = None))]
    fn start_write(
        &self,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Transfer> {
        let batch = Batch::new(self.inner(local.py())?, timeout)?;
        batch.push(Op::Write, local, remote)?;
        batch.submit(local.py())
    }

    /// Starts a read and returns its Transfer, to be waited for or awaited.
    #[pyo3(signature = (local, remote, timeout = None))]
    fn start_read(
        &self,
        local: &Bound<'_, PyAny>,
        remote: &Bound<'_, PyAny>,
        timeout: Option<f64>,
    ) -> PyResult<Transfer> {
        let batch = Batch::new(self.inner(local.py())?, timeout)?;
        batch.push(Op::Read, local, remote)?;
        batch.submit(local.py())
    }

    /// The oldest notification of a peer; waits for one for `timeout` seconds (for ever without), then None.
    #[pyo3(signature = (timeout = None))]
    fn notification(&self, py: Python<'_>, timeout: Option<f64>) -> PyResult<Option<Notification>> {
        let (engine, end) = (self.inner(py)?, wait::end(timeout)?);
        let found = wait::interruptible(py, end, |until| engine.notification(until))?;
        Ok(found.map(|found| Notification { sender: found.from, payload: found.payload }))
    }

    /// Stops accepting, gives running requests `timeout` seconds to end, ends the rest, lets go of all memory. Doing it again does
    /// nothing.
    #[pyo3(signature = (timeout = 5.0))]
    fn close(&self, py: Python<'_>, timeout: f64) -> PyResult<()> {
        let deadline: Instant = deadline(timeout)?;
        if let Some(engine) = self.take() {
            py.detach(move || {
                engine.shutdown(deadline);
                drop(engine);
            });
        }
        Ok(())
    }

    fn __enter__(slf: Py<Self>) -> Py<Self> {
        slf
    }

    #[pyo3(signature = (*_exception))]
    fn __exit__(&self, py: Python<'_>, _exception: &Bound<'_, pyo3::types::PyTuple>) -> PyResult<()> {
        self.close(py, 5.0)
    }

    fn __repr__(&self) -> String {
        let state = if self.closed() { " closed" } else { "" };
        format!("<weft.Engine {}{state}>", self.name)
    }
}

impl Drop for Engine {
    /// Ending an engine joins its threads; nobody should wait for the GIL meanwhile.
    fn drop(&mut self) {
        if let Some(engine) = self.take() {
            let mut engine = Some(engine);
            let _ = Python::try_attach(|py| py.detach(|| drop(engine.take())));
            drop(engine);
        }
    }
}

#[pymethods]
impl Notification {
    fn __repr__(&self) -> String {
        format!("<weft.Notification from {}: {} bytes>", self.sender, self.payload.len())
    }
}
