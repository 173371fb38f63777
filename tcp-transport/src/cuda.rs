//! Device memory as a region: copies through a ring of pinned buffers, so that the device takes over one piece while the socket
//! brings the next.
#![allow(unsafe_code)] // the CUDA seam: device pointers

use std::sync::{Arc, Mutex};

use efa_mr::cuda::{Cuda, Event, Pinned, Stream};

use crate::error::Error;
use crate::memory::{DeviceCopy, Memory};
use crate::sync::lock;

/// Buffers of the ring, and the length of each: four pieces of what the socket brings at a time.
const BUFFERS: usize = 4;
const BUFFER: usize = 256 << 10;

/// Device memory that somebody else allocated; made by [`CudaMemory::new`].
#[derive(Debug)]
pub struct CudaMemory {
    address: u64,
    len: usize,
    stream: Stream,
    ring: Mutex<Ring>,
}

#[derive(Debug)]
struct Ring {
    buffers: Vec<(Pinned, Event)>,
    next: usize,
}

impl CudaMemory {
    /// Wraps `len` bytes of the memory of a CUDA device.
    ///
    /// # Safety
    /// The range stays allocated on that device until the returned value has been dropped.
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
        let buffers = (0..BUFFERS)
            .map(|_| {
                Ok((Pinned::new(cuda, device, BUFFER).map_err(failed)?, stream.record().map_err(failed)?))
            })
            .collect::<Result<_, Error>>()?;
        Ok(Arc::new(Self { address, len, stream, ring: Mutex::new(Ring { buffers, next: 0 }) }))
    }

    fn check(&self, offset: usize, len: usize) -> Result<u64, String> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len => Ok(self.address + offset as u64),
            _ => Err(format!("{offset:#x}+{len:#x} is outside of the device memory")),
        }
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
            let mut ring = lock(&self.ring);
            let at = ring.next;
            ring.next = (at + 1) % ring.buffers.len();
            let (buffer, event) = &ring.buffers[at];
            event.wait().map_err(|e| e.to_string())?;
            // SAFETY: the event says that the last copy that used the buffer is over, the lock that nobody else begins one, and
            // the piece is no longer than the buffer.
            unsafe { std::ptr::copy_nonoverlapping(piece.as_ptr(), buffer.address(), piece.len()) };
            // SAFETY: the target was checked and stays allocated; the buffer is not touched again before its event.
            unsafe { self.stream.copy(to, buffer.address() as u64, piece.len()) }
                .map_err(|e| e.to_string())?;
            event.record_again(&self.stream).map_err(|e| e.to_string())?;
            to += piece.len() as u64;
        }
        Ok(())
    }

    fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), String> {
        let mut from = self.check(offset, bytes.len())?;
        let mut ring = lock(&self.ring);
        let buffers = ring.buffers.len();
        let first = ring.next;
        ring.next = 0;
        // All buffers are queued before the first is waited for, so that the device copies ahead.
        for group in bytes.chunks_mut(BUFFER * buffers) {
            for (i, piece) in group.chunks(BUFFER).enumerate() {
                let (buffer, event) = &ring.buffers[(first + i) % buffers];
                event.wait().map_err(|e| e.to_string())?;
                // SAFETY: the source was checked and stays allocated; the buffer's last copy is over, and it is not touched
                // before the new event.
                unsafe { self.stream.copy(buffer.address() as u64, from, piece.len()) }
                    .map_err(|e| e.to_string())?;
                event.record_again(&self.stream).map_err(|e| e.to_string())?;
                from += piece.len() as u64;
            }
            for (i, piece) in group.chunks_mut(BUFFER).enumerate() {
                let (buffer, event) = &ring.buffers[(first + i) % buffers];
                event.wait().map_err(|e| e.to_string())?;
                // SAFETY: the copy into the buffer is over, and the piece is no longer than it.
                unsafe { std::ptr::copy_nonoverlapping(buffer.address(), piece.as_mut_ptr(), piece.len()) };
            }
        }
        Ok(())
    }

    fn flush(&self) -> Result<(), String> {
        self.stream.synchronize().map_err(|e| e.to_string())
    }
}
