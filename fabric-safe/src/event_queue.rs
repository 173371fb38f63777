//! Event queues: what concerns objects rather than operations.

use core::ffi::c_int;
use core::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::Duration;

use fabric_sys as sys;

use crate::error::{Errno, Error};
use crate::fabric::Fabric;
use crate::object::close;

/// Longest event that is read: connection events carry user data behind a fixed part.
const MAX_EVENT_BYTES: usize = 1024;

/// An open event queue. Cheap to clone; closed when the last handle and the last endpoint bound to it are gone.
#[derive(Clone)]
pub struct EventQueue(Arc<QueueInner>);

struct QueueInner {
    raw: NonNull<sys::fid_eq>,
    // Last: closed after the queue.
    fabric: Fabric,
}

// SAFETY: event queues may be used from any thread.
unsafe impl Send for QueueInner {}
// SAFETY: as above.
unsafe impl Sync for QueueInner {}

/// Something that happened to an object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Event {
    /// What happened: one of libfabric's `FI_NOTIFY`, `FI_CONNECTED`, `FI_SHUTDOWN`, `FI_MR_COMPLETE`, …, or the number given to
    /// [`EventQueue::write`].
    pub number: u32,
    /// Value that comes with it.
    pub data: u64,
}

impl Event {
    /// An event to be [written](EventQueue::write).
    pub fn new(number: u32, data: u64) -> Event {
        Event { number, data }
    }
}

/// An error that concerns an object.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[error("event queue: {errno}, provider error {provider_errno}")]
pub struct EventError {
    /// libfabric's error number.
    pub errno: Errno,
    /// The provider's own.
    pub provider_errno: i32,
    /// Value that comes with it.
    pub data: u64,
}

impl EventQueue {
    /// Opens a queue that can be waited on.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said, `ENOSYS` if it has no event queues.
    pub fn open(fabric: &Fabric) -> Result<EventQueue, Error> {
        let mut attributes = sys::fi_eq_attr {
            size: 0,
            // So that we may write events ourselves.
            flags: sys::FI_WRITE,
            wait_obj: sys::FI_WAIT_UNSPEC,
            signaling_vector: 0,
            wait_set: ptr::null_mut(),
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the fabric is open and the attributes are valid for the call.
        let status = unsafe { sys::fi_eq_open(fabric.raw(), &mut attributes, &mut raw, ptr::null_mut()) };
        match NonNull::new(raw) {
            Some(raw) if status == 0 => Ok(EventQueue(Arc::new(QueueInner { raw, fabric: fabric.clone() }))),
            None if status == 0 => {
                Err(Error::Misbehaviour { call: "fi_eq_open", what: "success without an object".into() })
            }
            _ => Err(Error::call("fi_eq_open", fabric.name(), status)),
        }
    }

    /// The next event, if there is one. Never blocks.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said.
    pub fn read(&self) -> Result<Option<Result<Event, EventError>>, Error> {
        self.next("fi_eq_read", |event, buffer| {
            // SAFETY: the queue is open, the buffer as long as said.
            unsafe { sys::fi_eq_read(self.raw(), event, buffer.as_mut_ptr().cast(), size_of_val(buffer), 0) }
        })
    }

    /// The next event; blocks until there is one or the time is over (`None`).
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said.
    pub fn wait(&self, timeout: Duration) -> Result<Option<Result<Event, EventError>>, Error> {
        let timeout = c_int::try_from(timeout.as_millis()).unwrap_or(c_int::MAX);
        self.next("fi_eq_sread", |event, buffer| {
            // SAFETY: the queue is open, the buffer as long as said.
            unsafe {
                sys::fi_eq_sread(
                    self.raw(),
                    event,
                    buffer.as_mut_ptr().cast(),
                    size_of_val(buffer),
                    timeout,
                    0,
                )
            }
        })
    }

    fn next(
        &self,
        call: &'static str,
        read: impl FnOnce(&mut u32, &mut [u64]) -> isize,
    ) -> Result<Option<Result<Event, EventError>>, Error> {
        let mut number = 0;
        let mut buffer = [0u64; MAX_EVENT_BYTES / 8];
        let count = read(&mut number, &mut buffer);
        if count >= 0 {
            // Events begin with object, context and data; shorter ones leave zeroes.
            let data = buffer[core::mem::offset_of!(sys::fi_eq_entry, data) / 8];
            return Ok(Some(Ok(Event { number, data })));
        }
        match c_int::try_from(-count) {
            Ok(sys::FI_EAGAIN | sys::FI_ETIMEDOUT | sys::FI_EINTR) => Ok(None),
            Ok(sys::FI_EAVAIL) => self.error(),
            _ => Err(Error::call(call, self.0.fabric.name(), count as i64)),
        }
    }

    fn error(&self) -> Result<Option<Result<Event, EventError>>, Error> {
        let mut entry = sys::fi_eq_err_entry::default();
        // SAFETY: the queue is open and the entry zeroed: no buffer for error data.
        let count = unsafe { sys::fi_eq_readerr(self.raw(), &mut entry, 0) };
        if count <= 0 {
            return Ok(None);
        }
        Ok(Some(Err(EventError {
            errno: Errno::from_raw(entry.err.into()),
            provider_errno: entry.prov_errno,
            data: entry.data,
        })))
    }

    /// Puts an event of the caller's own into the queue, which wakes up who waits for it.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said.
    pub fn write(&self, event: &Event) -> Result<(), Error> {
        let entry = sys::fi_eq_entry { fid: ptr::null_mut(), context: ptr::null_mut(), data: event.data };
        // SAFETY: the queue is open and the entry as long as said.
        let count = unsafe {
            sys::fi_eq_write(
                self.raw(),
                event.number,
                (&raw const entry).cast(),
                size_of::<sys::fi_eq_entry>(),
                0,
            )
        };
        if count < 0 { Err(Error::call("fi_eq_write", self.0.fabric.name(), count as i64)) } else { Ok(()) }
    }

    pub(crate) fn raw(&self) -> *mut sys::fid_eq {
        self.0.raw.as_ptr()
    }

    pub(crate) fn fabric(&self) -> &Fabric {
        &self.0.fabric
    }
}

impl Drop for QueueInner {
    fn drop(&mut self) {
        // SAFETY: endpoints hold their queue, so none is bound any more.
        let _ = unsafe { close(self.raw.as_ptr().cast()) };
    }
}

impl core::fmt::Debug for EventQueue {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EventQueue").finish_non_exhaustive()
    }
}
