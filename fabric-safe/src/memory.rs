//! Memory that can be registered: what it has to promise, and the kinds that come with the crate.

mod device;
mod foreign;
mod mapping;
mod part;

use core::any::Any;
use std::sync::Arc;

pub use device::{DeviceMemory, Dmabuf};
pub use foreign::ForeignMemory;
pub use mapping::{Mapping, PageKind};
pub use part::Part;

/// Where a piece of memory lives, which decides how libfabric has to be told about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Placement {
    /// Ordinary memory that the processor can address.
    #[default]
    Host,
    /// Memory of an NVIDIA GPU, by the CUDA ordinal of the device.
    Cuda {
        /// CUDA device ordinal.
        device: i32,
    },
    /// Memory of an AMD GPU.
    Rocm {
        /// Device number; libfabric does not ask for it at present.
        device: i32,
    },
    /// Memory of an AWS Trainium or Inferentia card.
    Neuron {
        /// Neuron device number.
        device: i32,
    },
    /// Memory of an Intel Gaudi card.
    SynapseAi {
        /// Device number.
        device: i32,
    },
}

impl Placement {
    /// Whether the processor can read and write the bytes itself.
    pub fn is_host(self) -> bool {
        matches!(self, Placement::Host)
    }
}

/// A range of memory that a network card may read and write on its own.
///
/// A registered region takes the memory *by value* and gives it back when it has been deregistered. In between nobody
/// may look at the bytes through a Rust reference, because the network changes them at any time; the region copies in
/// and out instead ([`Region::copy_in`](crate::Region::copy_in), [`Region::copy_out`](crate::Region::copy_out)).
///
/// # Safety
///
/// While the value exists, and wherever it is moved to:
///
/// * [`address`](Memory::address) and [`len_bytes`](Memory::len_bytes) never change, and the range is mapped (readable,
///   and writable if [`writable`](Memory::writable) says so) until the value has been dropped;
/// * nobody holds a `&` or `&mut` reference to any of the bytes while the value is inside a
///   [`MemoryRegion`](crate::MemoryRegion), and nobody else's safe code can make one. A type that lends its bytes through
///   a shared handle of the same memory (an `Arc<Vec<u8>>`, say) does not qualify;
/// * [`placement`](Memory::placement) tells the truth: what is called `Host` can be dereferenced by the processor.
pub unsafe trait Memory: Any + Send + Sync {
    /// First byte of the range: a virtual address of this process, or a device address.
    fn address(&self) -> *mut u8;

    /// Length of the range in bytes.
    fn len_bytes(&self) -> usize;

    /// Where the bytes live. Host memory unless said otherwise.
    fn placement(&self) -> Placement {
        Placement::Host
    }

    /// Whether the bytes may be written. Regions of memory that may not can only be sources.
    fn writable(&self) -> bool {
        true
    }

    /// A dmabuf that exports this memory, where there is one; registration then goes through the file descriptor instead
    /// of the address.
    fn dmabuf(&self) -> Option<Dmabuf<'_>> {
        None
    }
}

// SAFETY: the heap block of a vector does not move when the vector does; only `&mut self` methods reallocate it, and
// nobody has the vector while a region owns it. `Vec::as_ptr` may be written through because we own the vector; the length
// covers initialised bytes only.
unsafe impl Memory for Vec<u8> {
    fn address(&self) -> *mut u8 {
        self.as_ptr().cast_mut()
    }
    fn len_bytes(&self) -> usize {
        self.len()
    }
}

// SAFETY: every method forwards to a value that keeps the promise, and moving the box does not move what is inside.
unsafe impl<M: Memory + ?Sized> Memory for Box<M> {
    fn address(&self) -> *mut u8 {
        (**self).address()
    }
    fn len_bytes(&self) -> usize {
        (**self).len_bytes()
    }
    fn placement(&self) -> Placement {
        (**self).placement()
    }
    fn writable(&self) -> bool {
        (**self).writable()
    }
    fn dmabuf(&self) -> Option<Dmabuf<'_>> {
        (**self).dmabuf()
    }
}

/// Memory whose every holder knows that it is shared with the network: no safe method of the type lends its bytes.
///
/// It is what allows an `Arc` of the memory to be registered while others keep clones of the `Arc`: with several domains,
/// for example, or to free it elsewhere. [`Mapping`], [`ForeignMemory`] and [`DeviceMemory`] qualify; `Vec<u8>` does not.
///
/// # Safety
///
/// No safe operation on `&Self` (nor on `&mut Self` or an owned `Self`, since the last clone can be unwrapped while a
/// region is gone) gives a Rust reference to the bytes.
pub unsafe trait SharedMemory: Memory {}

// SAFETY: forwards to a value that keeps the promise; the `Arc` keeps it in place; `SharedMemory` says that the other
// clones cannot lend the bytes.
unsafe impl<M: SharedMemory + ?Sized> Memory for Arc<M> {
    fn address(&self) -> *mut u8 {
        (**self).address()
    }
    fn len_bytes(&self) -> usize {
        (**self).len_bytes()
    }
    fn placement(&self) -> Placement {
        (**self).placement()
    }
    fn writable(&self) -> bool {
        (**self).writable()
    }
    fn dmabuf(&self) -> Option<Dmabuf<'_>> {
        (**self).dmabuf()
    }
}

// SAFETY: the `Arc` adds no way to the bytes.
unsafe impl<M: SharedMemory + ?Sized> SharedMemory for Arc<M> {}
// SAFETY: the `Box` adds no way to the bytes.
unsafe impl<M: SharedMemory + ?Sized> SharedMemory for Box<M> {}
