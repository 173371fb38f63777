//! Memory of accelerators, with or without a dmabuf.

use core::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::{Memory, Placement, SharedMemory};

/// A dmabuf and where in it the memory begins.
#[derive(Debug, Clone, Copy)]
pub struct Dmabuf<'a> {
    /// The exported buffer.
    pub fd: BorrowedFd<'a>,
    /// Offset in bytes, inside the dmabuf, of the first byte of the memory.
    pub offset: u64,
}

/// A range of device memory: CUDA, ROCm, Neuron, SynapseAI.
///
/// Domains take it only if they were discovered with [`Capabilities::HMEM`](crate::Capabilities::HMEM).
pub struct DeviceMemory {
    address: *mut u8,
    len_bytes: usize,
    placement: Placement,
    dmabuf: Option<(OwnedFd, u64)>,
    _guard: Option<Box<dyn Send + Sync>>,
}

impl DeviceMemory {
    /// Describes `len_bytes` bytes of device memory at the device address `address`. `guard` is dropped when the memory is
    /// no longer needed; pass `()` if someone else frees it.
    ///
    /// # Safety
    ///
    /// The range is an allocation of the device that `placement` names and stays allocated until `guard` (or, without
    /// one, this value) has been dropped.
    pub unsafe fn new(
        address: *mut u8,
        len_bytes: usize,
        placement: Placement,
        guard: impl Send + Sync + 'static,
    ) -> Self {
        DeviceMemory { address, len_bytes, placement, dmabuf: None, _guard: Some(Box::new(guard)) }
    }

    /// Registers through `fd`, a dmabuf in which the memory begins at `offset_bytes`, as CUDA VMM allocations and GPUs
    /// without peer memory modules need. Taken into account by libfabric 1.20 and later.
    #[must_use]
    pub fn with_dmabuf(mut self, fd: OwnedFd, offset_bytes: u64) -> Self {
        self.dmabuf = Some((fd, offset_bytes));
        self
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DeviceMemory")
            .field("address", &self.address)
            .field("len_bytes", &self.len_bytes)
            .field("placement", &self.placement)
            .field("dmabuf", &self.dmabuf)
            .finish_non_exhaustive()
    }
}

// SAFETY: the pointer is a device address that is never dereferenced here.
unsafe impl Send for DeviceMemory {}
// SAFETY: as above; no method gives access to the bytes.
unsafe impl Sync for DeviceMemory {}

// SAFETY: the constructor's contract is the trait's; device addresses do not move.
unsafe impl Memory for DeviceMemory {
    fn address(&self) -> *mut u8 {
        self.address
    }
    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
    fn placement(&self) -> Placement {
        self.placement
    }
    fn dmabuf(&self) -> Option<Dmabuf<'_>> {
        self.dmabuf.as_ref().map(|(fd, offset)| Dmabuf { fd: fd.as_fd(), offset: *offset })
    }
}

// SAFETY: no method lends the bytes.
unsafe impl SharedMemory for DeviceMemory {}
