//! Copies between device and host that go on while the network does something else.

use super::driver::{Cuda, CudaError, check};
use cudarc::driver::sys;
use std::fmt;
use std::ptr::{self, NonNull};

const STREAM_NON_BLOCKING: u32 = 1;
const EVENT_DISABLE_TIMING: u32 = 2;
const HOST_ALLOC_PORTABLE: u32 = 1;

/// A queue of copies on a device, in order among themselves and independent of the default stream.
pub struct Stream {
    cuda: &'static Cuda,
    ordinal: u16,
    raw: NonNull<sys::CUstream_st>,
}

// SAFETY: streams may be used from any thread; the driver synchronises.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("device", &self.ordinal).finish_non_exhaustive()
    }
}

/// A moment in a stream: everything that was put in before has been done.
pub struct Event {
    cuda: &'static Cuda,
    ordinal: u16,
    raw: NonNull<sys::CUevent_st>,
}

// SAFETY: events may be used from any thread; the driver synchronises.
unsafe impl Send for Event {}
// SAFETY: as above.
unsafe impl Sync for Event {}

impl fmt::Debug for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Event").field("device", &self.ordinal).finish_non_exhaustive()
    }
}

/// Pinned host memory, zeroed, for all devices: what copies need to be asynchronous at all. Freed when dropped.
pub struct Pinned {
    cuda: &'static Cuda,
    ordinal: u16,
    address: NonNull<u8>,
    len_bytes: usize,
}

// SAFETY: plain memory; no method gives access to the bytes.
unsafe impl Send for Pinned {}
// SAFETY: as above.
unsafe impl Sync for Pinned {}

impl fmt::Debug for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pinned")
            .field("address", &self.address)
            .field("len_bytes", &self.len_bytes)
            .finish_non_exhaustive()
    }
}

impl Stream {
    /// A stream on a device.
    ///
    /// # Errors
    /// [`CudaError`].
    pub fn new(cuda: &'static Cuda, ordinal: u16) -> Result<Self, CudaError> {
        let _context = cuda.enter(ordinal)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        check("cuStreamCreate", unsafe { sys::cuStreamCreate(&mut raw, STREAM_NON_BLOCKING) })?;
        Ok(Self { cuda, ordinal, raw: not_null("cuStreamCreate", raw)? })
    }

    /// Queues a copy between any two places that CUDA knows (device, pinned host). Returns at once.
    ///
    /// # Safety
    /// Both ranges are valid for the length, do not overlap, and stay allocated, and nobody else writes to the target or looks at
    /// it, until an [`Event`] recorded after this call has happened or [`synchronize`](Self::synchronize) has returned.
    ///
    /// # Errors
    /// [`CudaError::Call`]; nothing has been queued then. Errors of the copy itself come with the event.
    pub unsafe fn copy(&self, to: u64, from: u64, len_bytes: usize) -> Result<(), CudaError> {
        let _context = self.cuda.enter(self.ordinal)?;
        // SAFETY: as the caller promises.
        check("cuMemcpyAsync", unsafe { sys::cuMemcpyAsync(to, from, len_bytes, self.raw.as_ptr()) })
    }

    /// Marks this moment of the stream.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn record(&self) -> Result<Event, CudaError> {
        let _context = self.cuda.enter(self.ordinal)?;
        let mut raw = ptr::null_mut();
        // SAFETY: the pointer is to a live handle.
        check("cuEventCreate", unsafe { sys::cuEventCreate(&mut raw, EVENT_DISABLE_TIMING) })?;
        let event = Event { cuda: self.cuda, ordinal: self.ordinal, raw: not_null("cuEventCreate", raw)? };
        event.record_again(self)?;
        Ok(event)
    }

    /// Lets the stream wait for an event of another one before it goes on.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn wait_for(&self, event: &Event) -> Result<(), CudaError> {
        let _context = self.cuda.enter(self.ordinal)?;
        // SAFETY: both are alive.
        check("cuStreamWaitEvent", unsafe {
            sys::cuStreamWaitEvent(self.raw.as_ptr(), event.raw.as_ptr(), 0)
        })
    }

    /// Blocks until everything that was queued has been done.
    ///
    /// # Errors
    /// [`CudaError::Call`], also for copies that failed.
    pub fn synchronize(&self) -> Result<(), CudaError> {
        let _context = self.cuda.enter(self.ordinal)?;
        // SAFETY: the stream is alive.
        check("cuStreamSynchronize", unsafe { sys::cuStreamSynchronize(self.raw.as_ptr()) })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Ok(_context) = self.cuda.enter(self.ordinal) {
            // SAFETY: ours, and not used again. What is queued is still done.
            let _ = unsafe { sys::cuStreamDestroy_v2(self.raw.as_ptr()) };
        }
    }
}

impl Event {
    /// Marks the present moment of a stream of the same device, so that one event serves many copies.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn record_again(&self, stream: &Stream) -> Result<(), CudaError> {
        let _context = self.cuda.enter(self.ordinal)?;
        // SAFETY: both are alive.
        check("cuEventRecord", unsafe { sys::cuEventRecord(self.raw.as_ptr(), stream.raw.as_ptr()) })
    }

    /// Whether it has happened. Does not block.
    ///
    /// # Errors
    /// [`CudaError::Call`], also for copies before it that failed.
    pub fn is_done(&self) -> Result<bool, CudaError> {
        let _context = self.cuda.enter(self.ordinal)?;
        // SAFETY: the event is alive.
        match unsafe { sys::cuEventQuery(self.raw.as_ptr()) } {
            sys::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            status => check("cuEventQuery", status).map(|()| true),
        }
    }

    /// Blocks until it has happened.
    ///
    /// # Errors
    /// As [`is_done`](Self::is_done).
    pub fn wait(&self) -> Result<(), CudaError> {
        let _context = self.cuda.enter(self.ordinal)?;
        // SAFETY: the event is alive.
        check("cuEventSynchronize", unsafe { sys::cuEventSynchronize(self.raw.as_ptr()) })
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        if let Ok(_context) = self.cuda.enter(self.ordinal) {
            // SAFETY: ours, and not used again.
            let _ = unsafe { sys::cuEventDestroy_v2(self.raw.as_ptr()) };
        }
    }
}

impl Pinned {
    /// Allocates `len_bytes` bytes, with the context of a device.
    ///
    /// # Errors
    /// [`CudaError::Call`], also for a length of zero.
    pub fn new(cuda: &'static Cuda, ordinal: u16, len_bytes: usize) -> Result<Self, CudaError> {
        let _context = cuda.enter(ordinal)?;
        let mut address = ptr::null_mut();
        // SAFETY: the pointer is to a live pointer.
        let status = unsafe { sys::cuMemHostAlloc(&mut address, len_bytes, HOST_ALLOC_PORTABLE) };
        check("cuMemHostAlloc", status)?;
        let address = not_null("cuMemHostAlloc", address.cast::<u8>())?;
        // SAFETY: `len_bytes` bytes there are ours.
        unsafe { address.as_ptr().write_bytes(0, len_bytes) };
        Ok(Self { cuda, ordinal, address, len_bytes })
    }

    /// First byte. The bytes may be read and written through it while no copy uses them.
    #[must_use]
    pub const fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Length in bytes.
    #[must_use]
    pub const fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        if let Ok(_context) = self.cuda.enter(self.ordinal) {
            // SAFETY: from `cuMemHostAlloc`, and not used again.
            let _ = unsafe { sys::cuMemFreeHost(self.address.as_ptr().cast()) };
        }
    }
}

fn not_null<T>(call: &'static str, pointer: *mut T) -> Result<NonNull<T>, CudaError> {
    NonNull::new(pointer).ok_or_else(|| CudaError::Call {
        call,
        name: "success without an object".into(),
        code: 0,
    })
}
