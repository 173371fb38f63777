//! `weft.mooncake.TransferEngine`: Mooncake's Python class, on [`weft_compat::Node`].
//!
//! Names, arguments, defaults and return values are those of `mooncake.engine`; errors are numbers, and their words go to
//! Python's logger `weft.mooncake`. Where Mooncake ends the process or claims success for nothing, this returns an error.

mod args;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyString};
use weft_compat::{Access, Fault, Node, Note, Op, Progress, Setup, Transfer};

use self::args::{Notify, Number, Opcode, numbers, types};
use crate::{memory, wait};

/// How long a wait that was interrupted by Ctrl-C takes to leave memory alone.
const CANCEL: Duration = Duration::from_secs(5);

/// Mooncake's transfer engine on Weft. Every call returns a number: 0 is success unless it says otherwise.
///
/// Local memory is named by address; it has to stay where it is until unregister_memory has returned, or the engine is gone.
#[pyclass(frozen, weakref, module = "weft.mooncake")]
pub(crate) struct TransferEngine {
    node: RwLock<Option<Arc<Node>>>,
    transfers: Mutex<HashMap<u64, Arc<Transfer>>>,
    last: AtomicU64,
}

/// Says what went wrong to Python's logging; returns Mooncake's number for it.
fn report(py: Python<'_>, what: &str, fault: &Fault) -> i32 {
    log(py, "error", &format!("{what}: {fault}"));
    fault.code()
}

fn log(py: Python<'_>, level: &str, message: &str) {
    let logged = py
        .import("logging")
        .and_then(|logging| logging.call_method1("getLogger", ("weft.mooncake",)))
        .and_then(|logger| logger.call_method1(level, ("%s", message)));
    if let Err(error) = logged {
        error.print(py);
    }
}

/// Which requests a transfer has, as the caller names them.
struct Asked {
    op: Op,
    target: String,
    locals: Vec<u64>,
    remotes: Vec<u64>,
    lens: Vec<u64>,
    note: Option<Note>,
}

impl TransferEngine {
    fn node(&self) -> PyResult<Arc<Node>> {
        let node = self.node.read().unwrap_or_else(PoisonError::into_inner).clone();
        node.ok_or_else(|| PyRuntimeError::new_err("the engine is not initialized; call initialize() first"))
    }

    fn transfers(&self) -> MutexGuard<'_, HashMap<u64, Arc<Transfer>>> {
        self.transfers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The outcome of a call of the node's, as a number; the GIL is free meanwhile.
    fn outcome(
        &self,
        py: Python<'_>,
        what: &str,
        call: impl FnOnce(&Node) -> Result<(), Fault> + Send,
    ) -> PyResult<i32> {
        let node = self.node()?;
        Ok(match py.detach(|| call(&node)) {
            Ok(()) => 0,
            Err(fault) => report(py, what, &fault),
        })
    }

    fn start(&self, py: Python<'_>, asked: &Asked) -> PyResult<Result<Transfer, Fault>> {
        let node = self.node()?;
        let Asked { op, target, locals, remotes, lens, note } = asked;
        Ok(py.detach(|| node.transfer_and_notify(*op, target, locals, remotes, lens, note.as_ref())))
    }

    /// Waits, so that Ctrl-C works; then the transfer is cancelled before the exception goes on.
    fn finish(&self, py: Python<'_>, transfer: &Transfer) -> PyResult<Result<(), Fault>> {
        match wait::interruptible(py, None, |until| transfer.wait_until(until)) {
            Ok(Some(result)) => Ok(result),
            Ok(None) => Err(crate::error::broken("a wait without a deadline ended")),
            Err(interrupt) => {
                py.detach(|| transfer.cancel(CANCEL));
                Err(interrupt)
            }
        }
    }

    fn sync(&self, py: Python<'_>, asked: &Asked) -> PyResult<i32> {
        let ended = match self.start(py, asked)? {
            Ok(transfer) => {
                let ended = self.finish(py, &transfer)?;
                py.detach(|| drop(transfer));
                ended
            }
            Err(fault) => Err(fault),
        };
        // Whatever the cause, Mooncake's transfers fail with -1.
        Ok(match ended {
            Ok(()) => 0,
            Err(fault) => {
                report(py, &format!("transfer with {}", asked.target), &fault);
                -1
            }
        })
    }

    fn begin(&self, py: Python<'_>, asked: &Asked) -> PyResult<u64> {
        Ok(match self.start(py, asked)? {
            Ok(transfer) => {
                let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
                self.transfers().insert(id, Arc::new(transfer));
                id
            }
            Err(fault) => {
                report(py, &format!("transfer with {}", asked.target), &fault);
                0
            }
        })
    }

    fn open(&self, py: Python<'_>, setup: &Setup, device: &str) -> i32 {
        if self.node.read().unwrap_or_else(PoisonError::into_inner).is_some() {
            return 0;
        }
        crate::log::start();
        if setup.protocol.eq_ignore_ascii_case("rdma") {
            log(
                py,
                "warning",
                "protocol \"rdma\" is taken as \"auto\": EFA where both sides have it, else TCP",
            );
        }
        if !device.is_empty() {
            log(py, "info", &format!("device_name {device:?} is not used; WEFT_EFA_NICS chooses cards"));
        }
        match py.detach(|| Node::start(setup, &|name| std::env::var(name).ok())) {
            Ok(node) => {
                let (protocol, source) = node.engine().protocol();
                log(py, "info", &format!("{} is up, protocol {protocol} ({source})", node.session()));
                let mut slot = self.node.write().unwrap_or_else(PoisonError::into_inner);
                let earlier = slot.get_or_insert_with(|| Arc::new(node));
                let _ = earlier;
                0
            }
            Err(fault) => report(py, "initialize", &fault),
        }
    }

    /// [`sync`](Self::sync) after everything that is on the CUDA stream; -1 without it if that cannot be waited for.
    fn sync_after_stream(&self, py: Python<'_>, stream: Number, asked: &Asked) -> PyResult<i32> {
        if self.after_stream(py, stream.0) { self.sync(py, asked) } else { Ok(-1) }
    }

    /// Waits for a CUDA stream, so that what it writes is there before it is sent, and what it reads has been read.
    fn after_stream(&self, py: Python<'_>, stream: u64) -> bool {
        let waited =
            py.import("weft.mooncake._cuda").and_then(|cuda| cuda.call_method1("synchronize", (stream,)));
        match waited {
            Ok(_) => true,
            Err(error) => {
                log(py, "error", &format!("CUDA stream {stream:#x}: {error}"));
                false
            }
        }
    }
}

fn one(op: Op, target: String, local: Number, remote: Number, len: Number, note: Option<Note>) -> Asked {
    Asked { op, target, locals: vec![local.0], remotes: vec![remote.0], lens: vec![len.0], note }
}

fn many(
    op: Op,
    target: String,
    locals: Vec<Number>,
    remotes: Vec<Number>,
    lens: Vec<Number>,
    note: Option<Note>,
) -> Asked {
    Asked { op, target, locals: numbers(locals), remotes: numbers(remotes), lens: numbers(lens), note }
}

#[pymethods]
#[allow(clippy::too_many_arguments)] // Mooncake's signatures
impl TransferEngine {
    #[new]
    fn new() -> Self {
        Self { node: RwLock::default(), transfers: Mutex::default(), last: AtomicU64::new(0) }
    }

    /// Opens the engine. `local_hostname` is how peers reach this host, `metadata_server` "P2PHANDSHAKE" or a store's URL, `protocol`
    /// "auto", "efa", "tcp" or "rdma" (MOONCAKE_PROTOCOL and MC_FORCE_TCP win over it). Again: nothing.
    #[pyo3(signature = (local_hostname, metadata_server, protocol, device_name, /))]
    fn initialize(
        &self,
        py: Python<'_>,
        local_hostname: &str,
        metadata_server: &str,
        protocol: &str,
        device_name: &str,
    ) -> i32 {
        self.open(py, &Setup::new(local_hostname, metadata_server, protocol), device_name)
    }

    /// As initialize; `metadata_type` ("p2p", "etcd", "redis", "http") completes a store's address that has no scheme.
    #[pyo3(signature = (local_hostname, metadata_server, protocol, device_name, metadata_type, /))]
    fn initialize_ext(
        &self,
        py: Python<'_>,
        local_hostname: &str,
        metadata_server: &str,
        protocol: &str,
        device_name: &str,
        metadata_type: &str,
    ) -> i32 {
        let server = match metadata_type.to_ascii_lowercase().as_str() {
            "p2p" | "p2phandshake" => "P2PHANDSHAKE".to_owned(),
            "" => metadata_server.to_owned(),
            _ if metadata_server.contains("://") || metadata_server == "P2PHANDSHAKE" => {
                metadata_server.to_owned()
            }
            kind => format!("{kind}://{metadata_server}"),
        };
        self.open(py, &Setup::new(local_hostname, &server, protocol), device_name)
    }

    /// The port by which peers reach this engine; "host:port" is its session name.
    fn get_rpc_port(&self) -> PyResult<u16> {
        Ok(self.node()?.port())
    }

    /// Allocates and registers memory; its address, 0 on failure.
    #[pyo3(signature = (length, /))]
    fn allocate_managed_buffer(&self, py: Python<'_>, length: Number) -> PyResult<u64> {
        let node = self.node()?;
        let length = usize::try_from(length.0).unwrap_or(usize::MAX);
        Ok(py.detach(|| node.allocate(length)).unwrap_or_else(|fault| {
            report(py, "allocate_managed_buffer", &fault);
            0
        }))
    }

    /// Frees what allocate_managed_buffer gave.
    #[pyo3(signature = (address, length, /))]
    fn free_managed_buffer(&self, py: Python<'_>, address: Number, length: Number) -> PyResult<i32> {
        let _ = length;
        self.outcome(py, "free_managed_buffer", |node| node.free(address.0))
    }

    /// Writes and waits until the bytes are visible at the peer. 0, or -1.
    #[pyo3(signature = (target_hostname, buffer, peer_buffer_address, length, transport_hint = ""))]
    fn transfer_sync_write(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffer: Number,
        peer_buffer_address: Number,
        length: Number,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        self.sync(py, &one(Op::Write, target_hostname, buffer, peer_buffer_address, length, None))
    }

    /// Reads and waits for the bytes. 0, or -1.
    #[pyo3(signature = (target_hostname, buffer, peer_buffer_address, length, transport_hint = ""))]
    fn transfer_sync_read(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffer: Number,
        peer_buffer_address: Number,
        length: Number,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        self.sync(py, &one(Op::Read, target_hostname, buffer, peer_buffer_address, length, None))
    }

    /// Reads or writes; `notify` is delivered to the peer after success.
    #[pyo3(signature = (target_hostname, buffer, peer_buffer_address, length, opcode, notify = None, transport_hint = ""))]
    fn transfer_sync(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffer: Number,
        peer_buffer_address: Number,
        length: Number,
        opcode: Opcode,
        notify: Option<Notify>,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        let note = notify.map(|notify| notify.0);
        self.sync(py, &one(opcode.0, target_hostname, buffer, peer_buffer_address, length, note))
    }

    /// Writes `lengths[i]` bytes from `buffers[i]` to `peer_buffer_addresses[i]`, all together, and waits. 0, or -1.
    #[pyo3(signature = (target_hostname, buffers, peer_buffer_addresses, lengths, transport_hint = ""))]
    fn batch_transfer_sync_write(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffers: Vec<Number>,
        peer_buffer_addresses: Vec<Number>,
        lengths: Vec<Number>,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        self.sync(py, &many(Op::Write, target_hostname, buffers, peer_buffer_addresses, lengths, None))
    }

    /// Reads `lengths[i]` bytes from `peer_buffer_addresses[i]` into `buffers[i]`, all together, and waits. 0, or -1.
    #[pyo3(signature = (target_hostname, buffers, peer_buffer_addresses, lengths, transport_hint = ""))]
    fn batch_transfer_sync_read(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffers: Vec<Number>,
        peer_buffer_addresses: Vec<Number>,
        lengths: Vec<Number>,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        self.sync(py, &many(Op::Read, target_hostname, buffers, peer_buffer_addresses, lengths, None))
    }

    /// A batch of either kind; `notify` is delivered to the peer after success.
    #[pyo3(signature = (target_hostname, buffers, peer_buffer_addresses, lengths, opcode, notify = None,
                        transport_hint = ""))]
    fn batch_transfer_sync(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffers: Vec<Number>,
        peer_buffer_addresses: Vec<Number>,
        lengths: Vec<Number>,
        opcode: Opcode,
        notify: Option<Notify>,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        let note = notify.map(|notify| notify.0);
        self.sync(py, &many(opcode.0, target_hostname, buffers, peer_buffer_addresses, lengths, note))
    }

    /// Starts a batch of writes; its id for get_batch_transfer_status, 0 on failure.
    #[pyo3(signature = (target_hostname, buffers, peer_buffer_addresses, lengths, transport_hint = ""))]
    fn batch_transfer_async_write(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffers: Vec<Number>,
        peer_buffer_addresses: Vec<Number>,
        lengths: Vec<Number>,
        transport_hint: &str,
    ) -> PyResult<u64> {
        let _ = transport_hint;
        self.begin(py, &many(Op::Write, target_hostname, buffers, peer_buffer_addresses, lengths, None))
    }

    /// Starts a batch of reads; its id for get_batch_transfer_status, 0 on failure.
    #[pyo3(signature = (target_hostname, buffers, peer_buffer_addresses, lengths, transport_hint = ""))]
    fn batch_transfer_async_read(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffers: Vec<Number>,
        peer_buffer_addresses: Vec<Number>,
        lengths: Vec<Number>,
        transport_hint: &str,
    ) -> PyResult<u64> {
        let _ = transport_hint;
        self.begin(py, &many(Op::Read, target_hostname, buffers, peer_buffer_addresses, lengths, None))
    }

    /// Starts a batch of either kind; its id for get_batch_transfer_status, 0 on failure.
    #[pyo3(signature = (target_hostname, buffers, peer_buffer_addresses, lengths, opcode, transport_hint = ""))]
    fn batch_transfer_async(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffers: Vec<Number>,
        peer_buffer_addresses: Vec<Number>,
        lengths: Vec<Number>,
        opcode: Opcode,
        transport_hint: &str,
    ) -> PyResult<u64> {
        let _ = transport_hint;
        self.begin(py, &many(opcode.0, target_hostname, buffers, peer_buffer_addresses, lengths, None))
    }

    /// Waits for these batches and forgets them. 0 if all ended well, else -1.
    #[pyo3(signature = (batch_ids, /))]
    fn get_batch_transfer_status(&self, py: Python<'_>, batch_ids: Vec<Number>) -> PyResult<i32> {
        let mut outcome = 0;
        for id in numbers(batch_ids) {
            // Known until it has ended, so that Ctrl-C leaves it to be asked for again.
            let transfer = self.transfers().get(&id).cloned();
            let ended = match transfer {
                None => Err(Fault::NotRegistered(id)),
                Some(transfer) => match wait::interruptible(py, None, |until| transfer.wait_until(until))? {
                    Some(ended) => ended,
                    None => return Err(crate::error::broken("a wait without a deadline ended")),
                },
            };
            let known = self.transfers().remove(&id);
            py.detach(|| drop(known));
            if let Err(fault) = ended {
                match fault {
                    Fault::NotRegistered(id) => log(py, "error", &format!("there is no batch {id}")),
                    fault => drop(report(py, &format!("batch {id}"), &fault)),
                }
                outcome = -1;
            }
        }
        Ok(outcome)
    }

    /// Starts one write; its id for transfer_check_status, 0 on failure.
    #[pyo3(signature = (target_hostname, buffer, peer_buffer_address, length, transport_hint = ""))]
    fn transfer_submit_write(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffer: Number,
        peer_buffer_address: Number,
        length: Number,
        transport_hint: &str,
    ) -> PyResult<u64> {
        let _ = transport_hint;
        self.begin(py, &one(Op::Write, target_hostname, buffer, peer_buffer_address, length, None))
    }

    /// 1 done, 0 running, -1 failed, -2 out of time; one that has ended is forgotten.
    #[pyo3(signature = (batch_id, /))]
    fn transfer_check_status(&self, py: Python<'_>, batch_id: Number) -> i32 {
        let Some(transfer) = self.transfers().get(&batch_id.0).cloned() else {
            log(py, "error", &format!("there is no batch {}", batch_id.0));
            return -1;
        };
        let status = match py.detach(|| transfer.progress()) {
            Progress::Pending => return 0,
            Progress::Done => 1,
            Progress::Failed(fault) => {
                report(py, &format!("batch {}", batch_id.0), &fault);
                if matches!(fault, Fault::Timeout(_)) { -2 } else { -1 }
            }
        };
        let known = self.transfers().remove(&batch_id.0);
        py.detach(|| drop((known, transfer)));
        status
    }

    /// Copies the first `length` bytes of `data` to an address of this process. 0, or -1.
    #[pyo3(signature = (dest_address, data, length, /))]
    fn write_bytes_to_buffer(
        &self,
        py: Python<'_>,
        dest_address: Number,
        data: &Bound<'_, PyAny>,
        length: Number,
    ) -> PyResult<i32> {
        let bytes: Vec<u8> = match data.cast::<PyString>() {
            Ok(text) => text.extract::<String>()?.into_bytes(),
            Err(_) => data.extract()?,
        };
        let wanted = usize::try_from(length.0).ok().and_then(|length| bytes.get(..length));
        let Some(wanted) = wanted else {
            log(py, "error", &format!("{} bytes were given and {} are to be written", bytes.len(), length.0));
            return Ok(-1);
        };
        Ok(match py.detach(|| memory::poke(dest_address.0, wanted)) {
            Ok(()) => 0,
            Err(error) => {
                log(py, "error", &format!("write_bytes_to_buffer at {:#x}: {error}", dest_address.0));
                -1
            }
        })
    }

    /// `length` bytes at an address of this process.
    #[pyo3(signature = (source_address, length, /))]
    fn read_bytes_from_buffer<'py>(
        &self,
        py: Python<'py>,
        source_address: Number,
        length: Number,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let length = usize::try_from(length.0).map_err(|_| PyValueError::new_err("too many bytes"))?;
        PyBytes::new_with(py, length, |bytes| {
            memory::peek(source_address.0, bytes).map_err(|error| {
                PyValueError::new_err(format!("reading {length} bytes at {:#x}: {error}", source_address.0))
            })
        })
    }

    /// Registers memory. 0, or a negative number; -7 if part of it is registered already.
    #[pyo3(signature = (buffer_addr, capacity, location = "*"))]
    #[allow(unsafe_code)] // the caller's promise is handed on
    fn register_memory(
        &self,
        py: Python<'_>,
        buffer_addr: Number,
        capacity: Number,
        location: &str,
    ) -> PyResult<i32> {
        // SAFETY: Mooncake's contract, repeated in the class's documentation: the memory stays until it has been unregistered.
        self.outcome(py, "register_memory", |node| unsafe {
            node.register(buffer_addr.0, capacity.0, location, Access::READ_WRITE)
        })
    }

    /// Takes peers' access away and waits for requests in flight. 0, or -3 if nothing is registered there.
    #[pyo3(signature = (buffer_addr, /))]
    fn unregister_memory(&self, py: Python<'_>, buffer_addr: Number) -> PyResult<i32> {
        self.outcome(py, "unregister_memory", |node| node.unregister(buffer_addr.0))
    }

    /// Registers all of these, or none.
    #[pyo3(signature = (buffer_addresses, capacities, location = "*"))]
    #[allow(unsafe_code)] // the caller's promise is handed on
    fn batch_register_memory(
        &self,
        py: Python<'_>,
        buffer_addresses: Vec<Number>,
        capacities: Vec<Number>,
        location: &str,
    ) -> PyResult<i32> {
        if buffer_addresses.len() != capacities.len() {
            let counts = format!("{} addresses and {} capacities", buffer_addresses.len(), capacities.len());
            log(py, "error", &format!("batch_register_memory: {counts}"));
            return Ok(-1);
        }
        let ranges: Vec<(u64, u64)> =
            numbers(buffer_addresses).into_iter().zip(numbers(capacities)).collect();
        // SAFETY: as for register_memory.
        self.outcome(py, "batch_register_memory", |node| unsafe {
            node.register_many(&ranges, location, Access::READ_WRITE)
        })
    }

    /// Unregisters all of these.
    #[pyo3(signature = (buffer_addresses, /))]
    fn batch_unregister_memory(&self, py: Python<'_>, buffer_addresses: Vec<Number>) -> PyResult<i32> {
        let addresses = numbers(buffer_addresses);
        self.outcome(py, "batch_unregister_memory", |node| node.unregister_many(&addresses))
    }

    /// Which NICs are near which memory, as Mooncake's priority matrix in JSON; only those named in `device_name` (with commas between),
    /// if any are.
    #[pyo3(signature = (device_name = None))]
    fn get_local_topology(&self, py: Python<'_>, device_name: Option<&str>) -> PyResult<String> {
        py.detach(|| crate::topology::priority_matrix(device_name.unwrap_or_default()))
            .map_err(PyRuntimeError::new_err)
    }

    /// The address of the first buffer that a peer has registered; 0 on failure.
    #[pyo3(signature = (segment_name, /))]
    fn get_first_buffer_address(&self, py: Python<'_>, segment_name: &str) -> PyResult<u64> {
        let node = self.node()?;
        Ok(py.detach(|| node.first_buffer(segment_name)).unwrap_or_else(|fault| {
            report(py, "get_first_buffer_address", &fault);
            0
        }))
    }

    /// Opens connections and rails to a peer now rather than with the first transfer.
    fn warmup_efa_segment(&self, py: Python<'_>, segment_name: &str) -> PyResult<i32> {
        self.outcome(py, "warmup_efa_segment", |node| node.warm_up(segment_name))
    }

    /// The notifications that have come since it was asked last, oldest first.
    fn get_notifies<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let node = self.node()?;
        let class = types(py)?.getattr("TransferNotify")?;
        let notes = py.detach(|| node.notes());
        let objects = notes.into_iter().map(|note| class.call1((note.name, note.message)));
        PyList::new(py, objects.collect::<PyResult<Vec<_>>>()?)
    }

    /// 0 if a peer answers, else a negative number: -101 for its name, -102 for the connection.
    fn send_probe(&self, py: Python<'_>, peer_server_name: &str) -> PyResult<i32> {
        self.outcome(py, "send_probe", |node| node.probe(peer_server_name))
    }

    /// This engine, for functions that want Mooncake's inner one and only hand it back.
    fn get_engine(slf: Py<Self>) -> Py<Self> {
        slf
    }

    /// A number that tells engines apart; not an address of anything of Mooncake's.
    fn get_engine_ptr(&self) -> PyResult<usize> {
        Ok(Arc::as_ptr(&self.node()?) as usize)
    }

    /// transfer_sync_write after everything that is on the CUDA stream.
    #[pyo3(signature = (target_hostname, buffer, peer_buffer_address, length, stream_ptr = Number(0), transport_hint = ""),
           text_signature = "($self, target_hostname, buffer, peer_buffer_address, length, stream_ptr=0, transport_hint='')")]
    fn transfer_write_on_cuda(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffer: Number,
        peer_buffer_address: Number,
        length: Number,
        stream_ptr: Number,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        self.sync_after_stream(
            py,
            stream_ptr,
            &one(Op::Write, target_hostname, buffer, peer_buffer_address, length, None),
        )
    }

    /// transfer_sync_read after everything that is on the CUDA stream.
    #[pyo3(signature = (target_hostname, buffer, peer_buffer_address, length, stream_ptr = Number(0), transport_hint = ""),
           text_signature = "($self, target_hostname, buffer, peer_buffer_address, length, stream_ptr=0, transport_hint='')")]
    fn transfer_read_on_cuda(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffer: Number,
        peer_buffer_address: Number,
        length: Number,
        stream_ptr: Number,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        self.sync_after_stream(
            py,
            stream_ptr,
            &one(Op::Read, target_hostname, buffer, peer_buffer_address, length, None),
        )
    }

    /// batch_transfer_sync_write after everything that is on the CUDA stream.
    #[pyo3(signature = (target_hostname, buffers, peer_buffer_addresses, lengths, stream_ptr = Number(0),
                        transport_hint = ""),
           text_signature = "($self, target_hostname, buffers, peer_buffer_addresses, lengths, stream_ptr=0, transport_hint='')")]
    fn batch_transfer_write_on_cuda(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffers: Vec<Number>,
        peer_buffer_addresses: Vec<Number>,
        lengths: Vec<Number>,
        stream_ptr: Number,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        self.sync_after_stream(
            py,
            stream_ptr,
            &many(Op::Write, target_hostname, buffers, peer_buffer_addresses, lengths, None),
        )
    }

    /// batch_transfer_sync_read after everything that is on the CUDA stream.
    #[pyo3(signature = (target_hostname, buffers, peer_buffer_addresses, lengths, stream_ptr = Number(0),
                        transport_hint = ""),
           text_signature = "($self, target_hostname, buffers, peer_buffer_addresses, lengths, stream_ptr=0, transport_hint='')")]
    fn batch_transfer_read_on_cuda(
        &self,
        py: Python<'_>,
        target_hostname: String,
        buffers: Vec<Number>,
        peer_buffer_addresses: Vec<Number>,
        lengths: Vec<Number>,
        stream_ptr: Number,
        transport_hint: &str,
    ) -> PyResult<i32> {
        let _ = transport_hint;
        self.sync_after_stream(
            py,
            stream_ptr,
            &many(Op::Read, target_hostname, buffers, peer_buffer_addresses, lengths, None),
        )
    }

    /// Ends the engine: not part of Mooncake's API, whose engines end when they are collected, as this one does too.
    fn close(&self, py: Python<'_>) {
        self.end(py);
    }

    fn __repr__(&self) -> String {
        let node = self.node.read().unwrap_or_else(PoisonError::into_inner).clone();
        let session = node.map_or_else(|| "not initialized".into(), |node| node.session());
        format!("<weft.mooncake.TransferEngine {session}>")
    }
}

impl TransferEngine {
    fn end(&self, py: Python<'_>) {
        let node = self.node.write().unwrap_or_else(PoisonError::into_inner).take();
        let transfers = std::mem::take(&mut *self.transfers());
        // Ending an engine joins its threads; nobody should wait for the GIL meanwhile.
        py.detach(|| drop((transfers, node)));
    }
}

impl Drop for TransferEngine {
    fn drop(&mut self) {
        let _ = Python::try_attach(|py| self.end(py));
    }
}
