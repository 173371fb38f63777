//! Counters: how many operations have ended, without saying which.

use core::ptr::{self, NonNull};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bitflags::bitflags;
use fabric_sys as sys;

use crate::Error;
use crate::domain::Domain;
use crate::object::close;

bitflags! {
    /// What a counter that is bound to an endpoint counts.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub struct CounterEvents: u64 {
        /// Messages sent.
        const SEND = sys::FI_SEND;
        /// Messages received.
        const RECV = sys::FI_RECV;
        /// Our reads.
        const READ = sys::FI_READ;
        /// Our writes.
        const WRITE = sys::FI_WRITE;
        /// Reads by peers (needs [`Capabilities::RMA_EVENT`](crate::Capabilities::RMA_EVENT)).
        const REMOTE_READ = sys::FI_REMOTE_READ;
        /// Writes by peers (needs [`Capabilities::RMA_EVENT`](crate::Capabilities::RMA_EVENT)).
        const REMOTE_WRITE = sys::FI_REMOTE_WRITE;
    }
}

/// An open counter. Cheap to clone; closed when the last handle and the last endpoint bound to it are gone.
#[derive(Clone)]
pub struct Counter(Arc<CounterInner>);

struct CounterInner {
    raw: NonNull<sys::fid_cntr>,
    waits: bool,
    // Last: closed after the counter.
    domain: Domain,
}

// SAFETY: the counter belongs to a thread-safe domain.
unsafe impl Send for CounterInner {}
// SAFETY: as above.
unsafe impl Sync for CounterInner {}

impl Counter {
    /// Opens a counter, one that can be waited on where the provider has such.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said, `ENOSYS` if it has no counters.
    pub fn open(domain: &Domain) -> Result<Counter, Error> {
        Self::with(domain, sys::FI_WAIT_UNSPEC).or_else(|_| Self::with(domain, sys::FI_WAIT_NONE))
    }

    /// Opens a counter that is only read: the provider need not wake anybody when it counts.
    ///
    /// # Errors
    ///
    /// As [`open`](Counter::open).
    pub fn without_wait(domain: &Domain) -> Result<Counter, Error> {
        Self::with(domain, sys::FI_WAIT_NONE)
    }

    fn with(domain: &Domain, wait_obj: sys::fi_wait_obj) -> Result<Counter, Error> {
        let mut attributes = sys::fi_cntr_attr {
            events: sys::FI_CNTR_EVENTS_COMP,
            wait_obj,
            wait_set: ptr::null_mut(),
            flags: 0,
        };
        let mut raw = ptr::null_mut();
        // SAFETY: the domain is open and the attributes are valid for the call.
        let status = unsafe { sys::fi_cntr_open(domain.raw(), &mut attributes, &mut raw, ptr::null_mut()) };
        match (status, NonNull::new(raw)) {
            (0, Some(raw)) => {
                let waits = wait_obj != sys::FI_WAIT_NONE;
                Ok(Counter(Arc::new(CounterInner { raw, waits, domain: domain.clone() })))
            }
            _ => Err(Error::call("fi_cntr_open", domain.info().place(), status)),
        }
    }

    /// Operations that have ended well. Lets the provider make progress.
    pub fn value(&self) -> u64 {
        // SAFETY: open as long as self.
        unsafe { sys::fi_cntr_read(self.raw()) }
    }

    /// Operations that have failed.
    pub fn errors(&self) -> u64 {
        // SAFETY: open as long as self.
        unsafe { sys::fi_cntr_readerr(self.raw()) }
    }

    /// Adds to the value. Some providers do it a little later.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said.
    pub fn add(&self, count: u64) -> Result<(), Error> {
        // SAFETY: open as long as self.
        self.check("fi_cntr_add", unsafe { sys::fi_cntr_add(self.raw(), count) })
    }

    /// Sets the value. Some providers do it a little later.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said.
    pub fn set(&self, value: u64) -> Result<(), Error> {
        // SAFETY: open as long as self.
        self.check("fi_cntr_set", unsafe { sys::fi_cntr_set(self.raw(), value) })
    }

    /// Blocks until the value is at least `threshold` (true), or something failed or the time is over (false).
    ///
    /// Sleeps in the provider where that is possible, otherwise polls and yields.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said.
    pub fn wait(&self, threshold: u64, timeout: Duration) -> Result<bool, Error> {
        let deadline = Instant::now().checked_add(timeout);
        let errors = self.errors();
        loop {
            if self.value() >= threshold {
                return Ok(true);
            }
            let left =
                deadline.map_or(Duration::MAX, |deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_zero() || self.errors() != errors {
                return Ok(false);
            }
            if !self.0.waits {
                std::thread::yield_now();
                continue;
            }
            // In slices, because a provider that progresses by being called may sleep through the end of an operation.
            let slice = left.min(Duration::from_millis(10)).as_millis().max(1) as core::ffi::c_int;
            // SAFETY: open as long as self.
            let status = unsafe { sys::fi_cntr_wait(self.raw(), threshold, slice) };
            // `sockets` returns some of them with the wrong sign.
            match status.wrapping_abs() {
                0 | sys::FI_ETIMEDOUT | sys::FI_EAGAIN | sys::FI_EAVAIL | sys::FI_EINTR => {}
                sys::FI_ENOSYS => std::thread::yield_now(),
                errno => return Err(Error::call("fi_cntr_wait", self.0.domain.info().place(), errno)),
            }
        }
    }

    fn check(&self, call: &'static str, status: core::ffi::c_int) -> Result<(), Error> {
        if status == 0 { Ok(()) } else { Err(Error::call(call, self.0.domain.info().place(), status)) }
    }

    pub(crate) fn raw(&self) -> *mut sys::fid_cntr {
        self.0.raw.as_ptr()
    }

    pub(crate) fn domain(&self) -> &Domain {
        &self.0.domain
    }
}

impl Drop for CounterInner {
    fn drop(&mut self) {
        // SAFETY: endpoints hold their counters, so none is bound any more.
        let _ = unsafe { close(self.raw.as_ptr().cast()) };
    }
}

impl core::fmt::Debug for Counter {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Counter").finish_non_exhaustive()
    }
}
