//! Memory that the network may read and write.

use std::sync::Arc;

use crate::error::Error;
use crate::seam;

/// Memory that can be registered: bytes at a fixed address that nobody borrows.
///
/// The transport reads and writes the bytes at any time between registration and the end of the last request that
/// uses them, from any thread and, on the same host, from another process. It keeps the `Arc` as long as that.
///
/// # Safety
///
/// For the whole life of the value:
/// - [`address`](Memory::address) and [`len`](Memory::len) never change, and the range is mapped, readable and
///   writable (or, if [`device`](Memory::device) is some, is reached through that alone);
/// - no Rust reference to any of the bytes is held while the value is registered; contents are read and written through
///   raw pointers, the transport's copying functions, or not at all.
#[allow(unsafe_code)] // a promise that the compiler cannot check; nothing unsafe is done here
pub unsafe trait Memory: Send + Sync {
    /// First address. Requests name absolute addresses, on both sides.
    fn address(&self) -> u64;
    /// Length in bytes.
    fn len(&self) -> usize;
    /// Whether there are no bytes at all. Such memory cannot be registered.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// How to reach bytes that the CPU cannot address, such as GPU memory; `None` for host memory.
    fn device(&self) -> Option<&dyn DeviceCopy> {
        None
    }
}

/// Copies between host memory and memory that the CPU cannot address.
///
/// The transport hands in its own staging buffers and never keeps them past [`flush`](DeviceCopy::flush).
pub trait DeviceCopy: Send + Sync {
    /// Copies `bytes` to `offset` of the memory. May return before the copy has been made, not before `bytes` can be
    /// reused.
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), String>;
    /// Fills `bytes` from `offset` of the memory; they are there when it returns.
    fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), String>;
    /// Begins to copy the `len` bytes at `offset`, which will be wanted next, and returns at once: while the network sends one
    /// piece, the device fetches the other. `None` if that is not possible now; then they are copied when they are wanted.
    fn copy_out_ahead(&self, offset: usize, len: usize) -> Option<Box<dyn AheadCopy>> {
        let _ = (offset, len);
        None
    }
    /// Returns when every earlier `copy_in` is visible to every user of the memory, and no copy that was begun still reads it.
    fn flush(&self) -> Result<(), String>;
}

/// A copy from a device that has been begun. Dropping it gives the result up.
pub trait AheadCopy: Send {
    /// Fills `bytes`, which are as many as were asked for; waits for the copy if need be.
    fn finish(self: Box<Self>, bytes: &mut [u8]) -> Result<(), String>;
}

/// Page-aligned, zeroed memory of the transport's own, with safe copying in and out.
///
/// ```
/// use tcp_transport::OwnedMemory;
///
/// let memory = OwnedMemory::new(1 << 20)?;
/// memory.write(4096, b"hello")?;
/// let mut bytes = [0; 5];
/// memory.read(4096, &mut bytes)?;
/// assert_eq!(&bytes, b"hello");
/// # Ok::<(), tcp_transport::Error>(())
/// ```
#[derive(Debug)]
pub struct OwnedMemory {
    map: seam::Mapping,
}

impl OwnedMemory {
    /// Maps `len` zeroed bytes, rounded up to whole pages for the kernel; [`Memory::len`] is `len`.
    ///
    /// # Errors
    /// [`Error::Io`] when the kernel refuses; [`Error::Request`] for a length of zero.
    pub fn new(len: usize) -> Result<Arc<Self>, Error> {
        Self::map(len, false)
    }

    /// As [`new`](Self::new), on huge pages of the system's default size. They must have been reserved
    /// (`sysctl vm.nr_hugepages`).
    ///
    /// # Errors
    /// [`Error::Io`] when there are not enough of them.
    pub fn hugepages(len: usize) -> Result<Arc<Self>, Error> {
        Self::map(len, true)
    }

    fn map(len: usize, huge: bool) -> Result<Arc<Self>, Error> {
        if len == 0 {
            return Err(Error::Request("memory of zero bytes cannot be mapped".into()));
        }
        let map = seam::Mapping::new(len, huge).map_err(|e| {
            let kind = if huge { " of huge pages" } else { "" };
            Error::io(format!("mapping {len} bytes{kind}"), e)
        })?;
        Ok(Arc::new(Self { map }))
    }

    /// Copies `bytes` to `offset`. The network may be writing the same bytes meanwhile; then either wins, byte by byte.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the bytes do not fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        seam::copy_in(self, offset, bytes);
        Ok(())
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`] if the range is not inside the memory.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Error> {
        self.check(offset, bytes.len())?;
        seam::copy_out(self, offset, bytes);
        Ok(())
    }

    fn check(&self, offset: usize, len: usize) -> Result<(), Error> {
        if offset.checked_add(len).is_some_and(|end| end <= self.len()) {
            return Ok(());
        }
        Err(Error::OutOfBounds {
            side: "local",
            addr: self.address().wrapping_add(offset as u64),
            len: len as u64,
            region_addr: self.address(),
            region_len: self.len() as u64,
        })
    }
}

// The trait's promises are kept by the mapping: see `seam::Mapping`.
seam::owned_memory!(OwnedMemory, map);

/// Memory that somebody else allocated; made by [`foreign_memory`].
#[derive(Debug)]
pub struct ForeignMemory {
    range: seam::ForeignRange,
}

seam::owned_memory!(ForeignMemory, range);

/// Wraps memory that somebody else allocated.
///
/// # Safety
/// `address..address + len` stays mapped, readable and writable, and no Rust reference to its bytes exists, until the
/// returned value has been dropped. A transport drops its `Arc` when the region is unregistered and the last request on it
/// has ended.
///
/// # Errors
/// [`Error::Request`] for a null address, zero length, or a range that wraps around the address space.
#[allow(unsafe_code)] // the crate's only unsafe function: its caller vouches for the pointer
pub unsafe fn foreign_memory(address: *mut u8, len: usize) -> Result<Arc<ForeignMemory>, Error> {
    if address.is_null() || len == 0 || (address as usize).checked_add(len).is_none() {
        return Err(Error::Request(format!("memory at {address:?} of {len} bytes cannot be registered")));
    }
    Ok(Arc::new(ForeignMemory { range: seam::ForeignRange::new(address, len) }))
}
