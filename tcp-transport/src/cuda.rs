//! Device memory as a region: copies through a pool of pinned buffers, so that the device works on one piece while the socket
//! moves another.
#![allow(unsafe_code)] // the CUDA seam: device pointers

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use efa_mr::cuda::{Cuda, Event, Pinned, Stream};

use crate::error::Error;
use crate::memory::{AheadCopy, DeviceCopy, Memory};
use crate::staging::STAGE;
use crate::sync::lock;

/// Pinned buffers of one region, each as long as what the socket is given at a time.
const BUFFERS: usize = 6;
const BUFFER: usize = STAGE as usize;
/// Buffers that copies begun ahead leave to others.
const KEPT: usize = 2;

/// Device memory that somebody else allocated; made by [`CudaMemory::new`].
#[derive(Debug)]
pub struct CudaMemory {
    address: u64,
    len: usize,
    stream: Stream,
    pool: Arc<Pool>,
}

/// Buffers that nobody holds. The device may still be copying from or to one until its event.
#[derive(Debug)]
struct Pool(Mutex<VecDeque<Buffer>>);

#[derive(Debug)]
struct Buffer {
    pinned: Pinned,
    event: Event,
}

impl CudaMemory {
    /// Wraps `len` bytes of the memory of a CUDA device.
    ///
    /// # Safety
    /// The range stays allocated on that device until the returned value has been dropped, or until
    /// [`Region::unregister`](crate::Region::unregister) has returned for every region that it was registered as.
    ///
    /// # Errors
    /// [`Error::Device`] where there is no driver or no such device, [`Error::Request`] for no bytes.
    pub unsafe fn new(device: u16, address: u64, len: usize) -> Result<Arc<Self>, Error> {
        if len == 0 || address.checked_add(len as u64).is_none() {
            return Err(Error::Request(format!("device memory {address:#x}+{len:#x} cannot be registered")));
        }
        let failed = |e: efa_mr::cuda::CudaError| Error::Device(e.to_string());
        let cuda = Cuda::get()
            .ok_or_else(|| Error::Device(Cuda::absence().unwrap_or("there is no CUDA driver").to_owned()))?;
        let stream = Stream::new(cuda, device).map_err(failed)?;
        let buffer = || {
            let pinned = Pinned::new(cuda, device, BUFFER).map_err(failed)?;
            Ok(Buffer { pinned, event: stream.record().map_err(failed)? })
        };
        let buffers = (0..BUFFERS).map(|_| buffer()).collect::<Result<_, Error>>()?;
        Ok(Arc::new(Self { address, len, stream, pool: Arc::new(Pool(Mutex::new(buffers))) }))
    }

    fn check(&self, offset: usize, len: usize) -> Result<u64, String> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.address + offset as u64),
            _ => Err(format!("{offset:#x}+{len:#x} is outside of the device memory")),
        }
    }

    /// Begins to fill a buffer from the device; `from` and `len` have been checked, and `len` is no more than [`BUFFER`].
    fn begin(&self, buffer: &Buffer, from: u64, len: usize) -> Result<(), String> {
        buffer.event.wait().map_err(|e| e.to_string())?;
        // SAFETY: the source stays allocated while copies of it run (`new`); the buffer's last copy is over, and it is not
        // touched before the new event.
        unsafe { self.stream.copy(buffer.pinned.address() as u64, from, len) }.map_err(|e| e.to_string())?;
        buffer.event.record_again(&self.stream).map_err(|e| e.to_string())
    }
}

impl Pool {
    fn free(&self) -> MutexGuard<'_, VecDeque<Buffer>> {
        lock(&self.0)
    }
}

impl Buffer {
    /// Waits for the copy that was begun and takes the first bytes of it.
    fn take(&self, bytes: &mut [u8]) -> Result<(), String> {
        self.event.wait().map_err(|e| e.to_string())?;
        let len = bytes.len().min(BUFFER);
        // SAFETY: the copy into the buffer is over, nobody begins another while this one is borrowed, and it is `BUFFER` long.
        unsafe { std::ptr::copy_nonoverlapping(self.pinned.address(), bytes.as_mut_ptr(), len) };
        Ok(())
    }
}

// SAFETY: the maker promised that the range stays allocated as long as this value; it is reached through `DeviceCopy` alone, so
// no Rust reference to it can exist.
unsafe impl Memory for CudaMemory {
    fn address(&self) -> u64 {
        self.address
    }
    fn len(&self) -> usize {
        self.len
    }
    fn device(&self) -> Option<&dyn DeviceCopy> {
        Some(self)
    }
}

impl DeviceCopy for CudaMemory {
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), String> {
        let mut to = self.check(offset, bytes.len())?;
        for piece in bytes.chunks(BUFFER) {
            let mut free = self.pool.free();
            let buffer = free.pop_front().ok_or("every pinned buffer is in use")?;
            let copied = (|| {
                buffer.event.wait().map_err(|e| e.to_string())?;
                // SAFETY: the event says that the last copy that used the buffer is over; it has been taken out of the pool, so
                // nobody begins one; and the piece is no longer than the buffer.
                unsafe {
                    std::ptr::copy_nonoverlapping(piece.as_ptr(), buffer.pinned.address(), piece.len())
                };
                // SAFETY: the target was checked and stays allocated; the buffer is not touched again before its event.
                unsafe { self.stream.copy(to, buffer.pinned.address() as u64, piece.len()) }
                    .map_err(|e| e.to_string())?;
                buffer.event.record_again(&self.stream).map_err(|e| e.to_string())
            })();
            free.push_back(buffer);
            copied?;
            to += piece.len() as u64;
        }
        Ok(())
    }

    fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), String> {
        let mut from = self.check(offset, bytes.len())?;
        let free = self.pool.free();
        if free.is_empty() {
            return Err("every pinned buffer is in use".into());
        }
        // All buffers are queued before the first is waited for, so that the device copies ahead.
        for group in bytes.chunks_mut(BUFFER * free.len()) {
            for (piece, buffer) in group.chunks(BUFFER).zip(&*free) {
                self.begin(buffer, from, piece.len())?;
                from += piece.len() as u64;
            }
            for (piece, buffer) in group.chunks_mut(BUFFER).zip(&*free) {
                buffer.take(piece)?;
            }
        }
        Ok(())
    }

    fn copy_out_ahead(&self, offset: usize, len: usize) -> Option<Box<dyn AheadCopy>> {
        let from = self.check(offset, len).ok().filter(|_| len <= BUFFER)?;
        let mut free = self.pool.free();
        if free.len() <= KEPT {
            return None;
        }
        let ahead = Ahead { buffer: free.pop_front(), pool: Arc::clone(&self.pool) };
        drop(free); // giving the buffer back takes the lock
        self.begin(ahead.buffer.as_ref()?, from, len).ok()?;
        Some(Box::new(ahead))
    }

    fn flush(&self) -> Result<(), String> {
        self.stream.synchronize().map_err(|e| e.to_string())
    }
}

/// A buffer that the device is filling.
struct Ahead {
    buffer: Option<Buffer>,
    pool: Arc<Pool>,
}

impl AheadCopy for Ahead {
    fn finish(self: Box<Self>, bytes: &mut [u8]) -> Result<(), String> {
        self.buffer.as_ref().map_or(Ok(()), |buffer| buffer.take(bytes))
    }
}

impl Drop for Ahead {
    fn drop(&mut self) {
        // Whoever takes it next waits for its event first.
        self.pool.free().extend(self.buffer.take());
    }
}
