//! Memory that somebody else allocated and will free.

use core::fmt;

use super::{Memory, Placement, SharedMemory};

/// A range of memory by pointer and length, for buffers that come from another allocator, language or library.
///
/// It does not own the range unless a guard is given, which is dropped when the memory is no longer needed.
pub struct ForeignMemory {
    address: *mut u8,
    len_bytes: usize,
    writable: bool,
    placement: Placement,
    _guard: Option<Box<dyn Send + Sync>>,
}

impl ForeignMemory {
    /// Describes `len_bytes` bytes of host memory from `address` on.
    ///
    /// # Safety
    ///
    /// From now until the value has been dropped (for a region that is dropped while operations are in flight, that is
    /// when the last of them has ended), the range is mapped, readable and writable, and nobody holds a Rust reference
    /// to any byte of it.
    pub unsafe fn new(address: *mut u8, len_bytes: usize) -> Self {
        ForeignMemory { address, len_bytes, writable: true, placement: Placement::Host, _guard: None }
    }

    /// As [`new`](ForeignMemory::new), kept alive by `guard`, which is dropped together with this value.
    ///
    /// # Safety
    ///
    /// As for [`new`](ForeignMemory::new); `guard` may be what makes it true.
    pub unsafe fn with_guard(address: *mut u8, len_bytes: usize, guard: impl Send + Sync + 'static) -> Self {
        ForeignMemory {
            address,
            len_bytes,
            writable: true,
            placement: Placement::Host,
            _guard: Some(Box::new(guard)),
        }
    }

    /// The same range, of which nothing may be written: it can be sent, written from and read by peers.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.writable = false;
        self
    }
}

impl fmt::Debug for ForeignMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ForeignMemory")
            .field("address", &self.address)
            .field("len_bytes", &self.len_bytes)
            .field("writable", &self.writable)
            .field("placement", &self.placement)
            .finish_non_exhaustive()
    }
}

// SAFETY: the pointer is never dereferenced here; who made the value promised that the range may be used from anywhere.
unsafe impl Send for ForeignMemory {}
// SAFETY: as above; no method gives access to the bytes.
unsafe impl Sync for ForeignMemory {}

// SAFETY: the constructors' contract is the trait's, word for word.
unsafe impl Memory for ForeignMemory {
    fn address(&self) -> *mut u8 {
        self.address
    }
    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
    fn placement(&self) -> Placement {
        self.placement
    }
    fn writable(&self) -> bool {
        self.writable
    }
}

// SAFETY: no method lends the bytes, and the constructors' contract forbids references made elsewhere.
unsafe impl SharedMemory for ForeignMemory {}
