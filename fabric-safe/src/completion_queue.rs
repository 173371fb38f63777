//! Completion queues: where operations end.

use core::ffi::{CStr, c_int, c_void};
use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, Ordering};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use fabric_sys as sys;
use parking_lot::{Mutex, MutexGuard};

use crate::completion::{Completion, CompletionBatch, CompletionFormat, Failure};
use crate::domain::Domain;
use crate::error::{Errno, ErrorKind, OperationError};
use crate::object::close;
use crate::operations::{Ended, Table};
use crate::wait::WaitObject;
use crate::{Capabilities, Error, Info, Usage};

/// How to open a completion queue.
#[derive(Debug, Clone, Copy)]
pub struct CompletionQueueOptions {
    /// Completions that the queue has room for. It must take everything that the endpoints bound to it can have outstanding
    /// (binding checks that), and what peers cause with immediate values.
    pub entries: usize,
    /// How much completions tell.
    pub format: CompletionFormat,
    /// Whether [`wait`](CompletionQueue::wait) is to be possible. Costs a little per operation with some providers.
    pub wait: bool,
    /// Whether completions of receives say who sent, which needs [`Capabilities::SOURCE`](crate::Capabilities::SOURCE).
    pub sources: bool,
}

impl CompletionQueueOptions {
    /// Room for one endpoint of this kind, and as much again for immediate values (but at most 4096 of those); immediates
    /// are told, and tags where the provider has them; no waiting.
    pub fn new(info: &Info) -> CompletionQueueOptions {
        let own = info.transmit_depth() + info.receive_depth();
        CompletionQueueOptions {
            entries: own + own.min(4096),
            // Fabric `efa-direct` has no tags, and no completions that could tell them.
            format: if info.capabilities().contains(Capabilities::TAGGED) {
                CompletionFormat::Tagged
            } else {
                CompletionFormat::Data
            },
            wait: false,
            sources: false,
        }
    }
}

/// An open completion queue. Cheap to clone; closed when the last handle and the last endpoint bound to it are gone.
///
/// Several threads may poll; they take turns.
#[derive(Clone)]
pub struct CompletionQueue(pub(crate) Arc<QueueInner>);

pub(crate) struct QueueInner {
    raw: NonNull<sys::fid_cq>,
    format: CompletionFormat,
    entries: usize,
    sources: bool,
    state: Mutex<QueueState>,
    wait: Option<WaitObject>,
    stray: AtomicU64,
    // Last: closed after the queue.
    pub(crate) domain: Domain,
}

/// What only the poller touches.
pub(crate) struct QueueState {
    /// Tables of the endpoints that are bound, and of closed ones that still have operations to be told about.
    tables: Vec<Arc<Table>>,
    /// Sum of their slots.
    slots: usize,
    /// How many of them belong to endpoints that are open.
    open: usize,
}

// SAFETY: the queue belongs to a thread-safe domain; reading is serialised by `state` besides.
unsafe impl Send for QueueInner {}
// SAFETY: as above.
unsafe impl Sync for QueueInner {}

impl CompletionQueue {
    /// Opens a queue.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said, for instance if it has no queues of that size, or none to wait on.
    pub fn open(domain: &Domain, options: CompletionQueueOptions) -> Result<CompletionQueue, Error> {
        let mut attributes = sys::fi_cq_attr {
            size: options.entries,
            flags: 0,
            format: options.format.raw(),
            wait_obj: if options.wait { sys::FI_WAIT_FD } else { sys::FI_WAIT_NONE },
            signaling_vector: 0,
            wait_cond: sys::FI_CQ_COND_NONE,
            wait_set: ptr::null_mut(),
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the domain is open and the attributes are valid for the call.
        let status = unsafe { sys::fi_cq_open(domain.raw(), &mut attributes, &mut raw, ptr::null_mut()) };
        let raw = match NonNull::new(raw) {
            Some(raw) if status == 0 => raw,
            None if status == 0 => {
                return Err(Error::Misbehaviour {
                    call: "fi_cq_open",
                    what: "success without an object".into(),
                });
            }
            _ => return Err(Error::call("fi_cq_open", domain.info().place(), status)),
        };
        let mut inner = QueueInner {
            raw,
            format: options.format,
            entries: options.entries,
            sources: options.sources,
            state: Mutex::new(QueueState { tables: Vec::new(), slots: 0, open: 0 }),
            wait: None,
            stray: AtomicU64::new(0),
            domain: domain.clone(),
        };
        if options.wait {
            // SAFETY: the queue is open; it owns the descriptor and closes it after `wait` is gone (QueueInner::drop).
            inner.wait = Some(unsafe { WaitObject::of(raw.as_ptr().cast()) }?);
        }
        Ok(CompletionQueue(Arc::new(inner)))
    }

    /// Completions that the queue was opened for.
    pub fn entries(&self) -> usize {
        self.0.entries
    }

    /// How much completions tell.
    pub fn format(&self) -> CompletionFormat {
        self.0.format
    }

    /// Completions that came for operations which had ended already, or were never ours. Zero with every provider that keeps
    /// the rules.
    pub fn stray_completions(&self) -> u64 {
        self.0.stray.load(Ordering::Relaxed)
    }

    /// Takes what has completed, as much as fits into `batch`, and lets the provider make progress. Never blocks.
    ///
    /// The batch is emptied first. Regions and addresses that were let go of while operations used them are closed by the
    /// poll that ends their last operation, which runs their owners' code.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] if the queue itself has failed (`FI_EOVERRUN`: more completions than it has room for). Close its
    /// endpoints then: their operations still end.
    #[inline]
    pub fn poll<'b>(&self, batch: &'b mut CompletionBatch) -> Result<&'b [Completion], Error> {
        self.refill(batch)?;
        Ok(batch.completions())
    }

    #[inline]
    fn refill(&self, batch: &mut CompletionBatch) -> Result<(), Error> {
        batch.clear();
        let result = self.0.fill(&mut self.0.state.lock(), batch);
        // Without the lock: closing what has become free runs its owners' code.
        self.0.domain.0.reap();
        result
    }

    /// As [`poll`](CompletionQueue::poll), but if there is nothing, blocks until there is, or until the time is over, or
    /// until [`signal`](CompletionQueue::signal). The result can be empty in all cases.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the queue was opened without [`wait`](CompletionQueueOptions::wait); otherwise as for
    /// [`poll`](CompletionQueue::poll).
    pub fn wait<'b>(
        &self,
        batch: &'b mut CompletionBatch,
        timeout: Duration,
    ) -> Result<&'b [Completion], Error> {
        let wait = self.wait_object()?;
        let deadline = Instant::now().checked_add(timeout);
        loop {
            self.refill(batch)?;
            if !batch.completions().is_empty() {
                break;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left == Some(Duration::ZERO) {
                break;
            }
            // False: something has come in the meantime.
            if self.arm()? && wait.block(left)? {
                // Signalled: whatever is there now.
                self.refill(batch)?;
                break;
            }
        }
        Ok(batch.completions())
    }

    /// Makes one [`wait`](CompletionQueue::wait) return: one that blocks now, or else the next one.
    pub fn signal(&self) {
        if let Some(wait) = &self.0.wait {
            wait.signal();
        }
    }

    /// The descriptor that becomes readable when there is something to poll, for event loops. Call
    /// [`arm`](CompletionQueue::arm) each time before blocking on it.
    pub fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.0.wait.as_ref().map(WaitObject::fd)
    }

    /// Prepares for blocking on [`wait_fd`](CompletionQueue::wait_fd): true if the caller may block, false if it must poll
    /// first.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the queue was opened without [`wait`](CompletionQueueOptions::wait);
    /// [`Error::Call`] with what the provider said.
    pub fn arm(&self) -> Result<bool, Error> {
        self.wait_object()?;
        if self.0.state.lock().has_leftovers() {
            return Ok(false);
        }
        let mut objects = [self.0.raw.as_ptr().cast::<sys::fid>()];
        let fabric = self.0.domain.fabric();
        // SAFETY: fabric and queue are open.
        match unsafe { sys::fi_trywait(fabric.raw(), objects.as_mut_ptr(), 1) } {
            0 => Ok(true),
            status if status == -sys::FI_EAGAIN => Ok(false),
            status => Err(Error::call("fi_trywait", fabric.name(), status)),
        }
    }

    fn wait_object(&self) -> Result<&WaitObject, Error> {
        self.0.wait.as_ref().ok_or_else(|| Error::Unsupported {
            what: "waiting on a completion queue that was opened without `wait`",
            provider: self.0.domain.info().provider_name().to_owned(),
        })
    }

    pub(crate) fn raw(&self) -> *mut sys::fid_cq {
        self.0.raw.as_ptr()
    }
}

impl QueueState {
    /// Room for the operations of one more table?
    pub(crate) fn reserve(&mut self, entries: usize, table: &Arc<Table>) -> Result<(), Usage> {
        let need = self.slots + table.depth();
        if need > entries {
            return Err(Usage::QueueTooSmall { entries, need });
        }
        self.slots = need;
        self.open += 1;
        self.tables.push(table.clone());
        Ok(())
    }

    fn forget(&mut self, index: usize) {
        let table = self.tables.swap_remove(index);
        self.slots -= table.depth();
    }

    /// The endpoint of a table is closed (`quiesced`) or could not be closed.
    pub(crate) fn close(&mut self, table: &Table, quiesced: bool) {
        table.close(quiesced);
        self.open -= 1;
    }

    /// Whether there is something to tell that the provider knows nothing of.
    fn has_leftovers(&self) -> bool {
        self.tables.len() > self.open
    }
}

impl QueueInner {
    pub(crate) fn lock(&self) -> MutexGuard<'_, QueueState> {
        self.state.lock()
    }

    pub(crate) fn capacity(&self) -> usize {
        self.entries
    }

    /// Wakes whoever waits, because operations have been aborted.
    pub(crate) fn wake(&self) {
        if let Some(wait) = &self.wait {
            wait.signal();
        }
    }

    #[inline]
    fn fill(&self, state: &mut QueueState, batch: &mut CompletionBatch) -> Result<(), Error> {
        // Without an open endpoint there is nothing that could still complete, and `net` of 1.17 does not survive being asked.
        let read = if state.open > 0 { self.read(state, batch) } else { Ok(()) };
        // Only once nothing real is left: what completed before the endpoint was closed has ended well.
        if batch.completions().is_empty() {
            self.aborted(state, batch);
        }
        // A queue that has failed still tells how the operations of closed endpoints ended.
        if batch.completions().is_empty() { read } else { Ok(()) }
    }

    /// Reads what the provider has.
    #[inline]
    fn read(&self, state: &QueueState, batch: &mut CompletionBatch) -> Result<(), Error> {
        let capacity = batch.capacity();
        let (raw, sources) = batch.buffers();
        // SAFETY: the queue is open; the buffers have room for `capacity` entries of the longest format.
        let count = unsafe {
            if self.sources {
                sys::fi_cq_readfrom(self.raw.as_ptr(), raw, capacity, sources)
            } else {
                sys::fi_cq_read(self.raw.as_ptr(), raw, capacity)
            }
        };
        match usize::try_from(count) {
            Ok(count) if count <= capacity => {
                // SAFETY: so says the provider; `clear` has emptied the batch before.
                let strays = unsafe {
                    batch.add_entries(count, self.format, self.sources, |context| state.end(context))
                };
                if strays > 0 {
                    // Nobody waits for them: completions that came twice.
                    self.stray.fetch_add(strays as u64, Ordering::Relaxed);
                }
            }
            Ok(count) => {
                return Err(Error::Misbehaviour {
                    call: "fi_cq_read",
                    what: format!("{count} entries where {capacity} were asked for"),
                });
            }
            Err(_) => return self.exception(count, state, batch),
        }
        Ok(())
    }

    #[cold]
    fn exception(&self, status: isize, state: &QueueState, batch: &mut CompletionBatch) -> Result<(), Error> {
        match i32::try_from(-status) {
            Ok(sys::FI_EAGAIN | sys::FI_EINTR) => Ok(()),
            Ok(sys::FI_EAVAIL) => {
                self.error_entry(state, batch);
                Ok(())
            }
            _ => Err(Error::call("fi_cq_read", self.domain.info().place(), status as i64)),
        }
    }

    /// Takes one entry from the queue of errors.
    fn error_entry(&self, state: &QueueState, batch: &mut CompletionBatch) {
        let mut entry = sys::fi_cq_err_entry::default();
        // SAFETY: the queue is open and the entry zeroed: no buffer for error data, so the provider's own is used.
        let count = unsafe { sys::fi_cq_readerr(self.raw.as_ptr(), &mut entry, 0) };
        if count <= 0 {
            return;
        }
        let errno = Errno::from_raw(entry.err.into());
        let kind = match errno {
            Errno::ECANCELED => ErrorKind::Cancelled,
            Errno::ETRUNC => ErrorKind::Truncated,
            _ => ErrorKind::Provider,
        };
        let error = OperationError {
            kind,
            errno,
            provider_errno: entry.prov_errno,
            // `tcp;ofi_rxm` of 1.17 asks the first endpoint for the text, even if there is none any more.
            text: if state.open > 0 { self.error_text(&entry) } else { String::new() },
            overflow_bytes: entry.olen,
            quiesced: true,
        };
        let ended = state.end(entry.op_context);
        batch.push_failure(
            ended,
            Failure {
                flags: entry.flags & !sys::FI_REMOTE_CQ_DATA,
                len_bytes: entry.len,
                tag: entry.tag,
                error,
            },
        );
    }

    fn error_text(&self, entry: &sys::fi_cq_err_entry) -> String {
        let mut buffer = [0; 256];
        // SAFETY: the queue is open, error data is the provider's, the buffer is as long as said. The result is null or text
        // that ends with NUL, in the buffer or static.
        unsafe {
            let text = sys::fi_cq_strerror(
                self.raw.as_ptr(),
                entry.prov_errno as c_int,
                entry.err_data,
                buffer.as_mut_ptr(),
                buffer.len() - 1,
            );
            if text.is_null() { String::new() } else { CStr::from_ptr(text).to_string_lossy().into_owned() }
        }
    }

    /// Tells about the operations that closed endpoints left behind, and forgets their tables when there are none left.
    #[inline]
    fn aborted(&self, state: &mut QueueState, batch: &mut CompletionBatch) {
        if state.tables.len() > state.open {
            self.aborted_of(state, batch);
        }
    }

    #[cold]
    fn aborted_of(&self, state: &mut QueueState, batch: &mut CompletionBatch) {
        let mut index = 0;
        while index < state.tables.len() {
            if !state.tables[index].is_closed() {
                index += 1;
                continue;
            }
            let mut from = 0;
            while batch.room() > 0 {
                let Some((slot, ended, quiesced)) = state.tables[index].next_aborted(from) else { break };
                from = slot + 1;
                let error = OperationError {
                    kind: ErrorKind::Aborted,
                    errno: Errno::ECANCELED,
                    provider_errno: 0,
                    text: "the endpoint was closed before the operation had ended".to_owned(),
                    overflow_bytes: 0,
                    quiesced,
                };
                batch.push_failure(Some(ended), Failure { flags: 0, len_bytes: 0, tag: 0, error });
            }
            if batch.room() == 0 {
                return;
            }
            state.forget(index);
        }
    }
}

impl QueueState {
    /// Ends the operation that a context belongs to.
    #[inline(always)]
    fn end(&self, context: *mut c_void) -> Option<Ended> {
        let (first, others) = self.tables.split_first()?;
        match first.slot_of(context) {
            Some(slot) => first.end(slot),
            None => Self::end_in(others, context),
        }
    }

    #[cold]
    fn end_in(tables: &[Arc<Table>], context: *mut c_void) -> Option<Ended> {
        tables.iter().find_map(|table| Some((table, table.slot_of(context)?))).and_then(|(t, s)| t.end(s))
    }
}

impl Drop for QueueInner {
    fn drop(&mut self) {
        // The descriptor belongs to the queue: stop using it first.
        self.wait = None;
        // SAFETY: endpoints hold the queue, so none is bound any more.
        let _ = unsafe { close(self.raw.as_ptr().cast()) };
    }
}

impl core::fmt::Debug for CompletionQueue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("CompletionQueue")
            .field("entries", &self.0.entries)
            .field("format", &self.0.format)
            .finish_non_exhaustive()
    }
}
