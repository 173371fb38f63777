//! Registered memory.

use core::any::Any;
use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, Range};
use std::sync::Arc;

use fabric_sys as sys;

use crate::domain::Domain;
use crate::flags::Access;
use crate::memory::{Memory, Placement};
use crate::operations::HoldId;
use crate::register::{DeregisterError, Registration};
use crate::remote::RemoteRegion;
use crate::shared_bytes::{copy_in, copy_out};
use crate::{Error, Usage};

/// A registered piece of memory, whatever it is made of: what operations refer to.
///
/// Cheap to clone. The memory is deregistered when the last handle is gone and the last operation on it has ended.
#[derive(Clone)]
pub struct Region(pub(crate) Arc<RegionInner>);

pub(crate) struct RegionInner {
    pub(crate) id: HoldId,
    /// Where operations may use it: the domain's, or the endpoint's if the provider binds regions to endpoints.
    pub(crate) home: HoldId,
    pub(crate) descriptor: *mut c_void,
    pub(crate) access: Access,
    pub(crate) address: *mut u8,
    pub(crate) len_bytes: usize,
    pub(crate) placement: Placement,
    pub(crate) key: u64,
    pub(crate) registration: Arc<Registration>,
    /// `None` once it has been given back.
    pub(crate) memory: Option<Box<dyn Memory>>,
    pub(crate) domain: Domain,
}

// SAFETY: the pointers are to memory that is usable from every thread (Memory: Send + Sync) and to an object of a thread-safe
// domain; neither is dereferenced without synchronisation of its own.
unsafe impl Send for RegionInner {}
// SAFETY: as above.
unsafe impl Sync for RegionInner {}

impl Drop for RegionInner {
    fn drop(&mut self) {
        if let Some(memory) = self.memory.take() {
            let registration = self.registration.clone();
            let bury = Box::new(move || drop(registration.give_back(memory)));
            self.domain.0.bury_when_free(self.id, bury);
        }
    }
}

/// Part of a region, to or from which an operation transfers.
#[derive(Clone, Copy)]
pub struct Slice<'a> {
    pub(crate) region: &'a RegionInner,
    pub(crate) address: *mut u8,
    pub(crate) len_bytes: usize,
}

impl Slice<'_> {
    /// Length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.len_bytes
    }
}

impl fmt::Debug for Slice<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slice").field("address", &self.address).field("len_bytes", &self.len_bytes).finish()
    }
}

impl Region {
    /// Length in bytes.
    #[inline]
    pub fn len_bytes(&self) -> usize {
        self.0.len_bytes
    }

    /// Address of the first byte in this process or on its device. Only good for comparing: the bytes belong to the network.
    pub fn address(&self) -> usize {
        self.0.address as usize
    }

    /// What the region was registered for.
    pub fn access(&self) -> Access {
        self.0.access
    }

    /// The domain that it is registered with.
    pub fn domain(&self) -> &Domain {
        &self.0.domain
    }

    /// The key that peers need. All ones if it is longer than 64 bits: see [`raw_key`](Region::raw_key).
    pub fn key(&self) -> u64 {
        self.0.key
    }

    /// What peers need to know to reach the memory, as their operations want it (virtual addresses or offsets).
    pub fn remote(&self) -> RemoteRegion {
        let address = if self.0.domain.info().virtual_addressing() { self.0.address as u64 } else { 0 };
        RemoteRegion { address, len_bytes: self.0.len_bytes as u64, key: self.0.key }
    }

    /// The key where it is longer than 64 bits ([`MemoryMode::RAW`](crate::MemoryMode::RAW)), with the base address. The peer
    /// makes a 64-bit key of it with [`Domain::map_raw_key`].
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said, `ENOSYS` where keys are short.
    pub fn raw_key(&self) -> Result<(u64, Vec<u8>), Error> {
        let mut base = 0;
        let mut len = self.0.domain.info().key_bytes().max(8);
        let mut key = vec![0; len];
        let asked = self.0.registration.with_open(|raw| {
            // SAFETY: the region is open and the buffer as long as said.
            unsafe { sys::fi_mr_raw_attr(raw, &mut base, key.as_mut_ptr(), &mut len, 0) }
        });
        let status = asked.ok_or(Usage::Closed("region's endpoint"))?;
        if status != 0 {
            return Err(Error::call("fi_mr_raw_attr", "a memory region", status));
        }
        key.truncate(len);
        Ok((base, key))
    }

    /// Part of the region.
    ///
    /// # Errors
    ///
    /// [`Usage::OutOfRange`] if it is not inside.
    #[inline]
    pub fn slice(&self, range: Range<usize>) -> Result<Slice<'_>, Usage> {
        let inner = &*self.0;
        if range.start > range.end || range.end > inner.len_bytes {
            return Err(out_of_range(range.start, range.end, inner.len_bytes));
        }
        // In bounds, so the result is inside the memory (or one past it).
        let address = inner.address.wrapping_add(range.start);
        Ok(Slice { region: inner, address, len_bytes: range.end - range.start })
    }

    /// All of it.
    #[inline]
    pub fn as_slice(&self) -> Slice<'_> {
        Slice { region: &self.0, address: self.0.address, len_bytes: self.0.len_bytes }
    }

    /// Copies bytes into the region at `offset`.
    ///
    /// The network may be writing to the same bytes: what comes out then is some mixture, but nothing worse.
    ///
    /// # Errors
    ///
    /// [`Usage::OutOfRange`]; [`Usage::ReadOnly`] if the memory may not be written; [`Usage::NotHostMemory`] for device memory.
    pub fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), Usage> {
        let target = self.host_bytes(offset, bytes.len())?;
        if !self.0.memory.as_ref().is_some_and(|memory| memory.writable()) {
            return Err(Usage::ReadOnly);
        }
        // SAFETY: in bounds of writable host memory, which stays mapped as long as self.
        unsafe { copy_in(target, bytes) };
        Ok(())
    }

    /// Copies bytes out of the region from `offset` on.
    ///
    /// The network may be writing to the same bytes: what comes out then is some mixture, but nothing worse.
    ///
    /// # Errors
    ///
    /// [`Usage::OutOfRange`]; [`Usage::NotHostMemory`] for device memory.
    pub fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Usage> {
        let source = self.host_bytes(offset, bytes.len())?;
        // SAFETY: in bounds of host memory, which stays mapped as long as self.
        unsafe { copy_out(source, bytes) };
        Ok(())
    }

    fn host_bytes(&self, offset: usize, len: usize) -> Result<*mut u8, Usage> {
        let inner = &*self.0;
        match offset.checked_add(len) {
            Some(end) if end <= inner.len_bytes => {}
            _ => return Err(out_of_range(offset, offset.saturating_add(len), inner.len_bytes)),
        }
        if !inner.placement.is_host() {
            return Err(Usage::NotHostMemory);
        }
        Ok(inner.address.wrapping_add(offset))
    }
}

#[cold]
fn out_of_range(start: usize, end: usize, len: usize) -> Usage {
    Usage::OutOfRange { start, end, len }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Region")
            .field("address", &self.0.address)
            .field("len_bytes", &self.0.len_bytes)
            .field("access", &self.0.access)
            .finish_non_exhaustive()
    }
}

/// A registered piece of memory that remembers what it is made of and can give it back.
///
/// Everything else is in [`Region`], to which it dereferences. There is deliberately no way to the bytes but copying.
///
/// ```compile_fail
/// # fn show(region: fabric_safe::MemoryRegion<Vec<u8>>) {
/// let bytes: &[u8] = region.as_slice(); // not `&[u8]`: the network writes to it
/// # }
/// ```
///
/// ```compile_fail
/// # fn show(domain: fabric_safe::Domain) -> Result<(), Box<dyn std::error::Error>> {
/// let mut buffer = vec![0; 4096];
/// let region = domain.register(buffer, fabric_safe::Access::ALL)?;
/// buffer[0] = 1; // moved into the region
/// # Ok(())
/// # }
/// ```
pub struct MemoryRegion<M: Memory> {
    pub(crate) region: Region,
    pub(crate) memory: PhantomData<fn() -> M>,
}

impl<M: Memory> MemoryRegion<M> {
    /// Deregisters the memory and gives it back.
    ///
    /// # Errors
    ///
    /// [`DeregisterError::InUse`] returns the region while operations in flight or clones of its handle need it: poll the
    /// completion queue, or close the endpoint, and try again. [`DeregisterError::Leaked`] if the provider refuses.
    pub fn into_memory(mut self) -> Result<M, DeregisterError<M>> {
        // In this order: with the only handle in our hands, no new operation can come to hold the region.
        let Some(inner) = Arc::get_mut(&mut self.region.0) else {
            return Err(DeregisterError::InUse(self));
        };
        if inner.domain.0.is_held(inner.id) {
            return Err(DeregisterError::InUse(self));
        }
        let Some(memory) = inner.memory.take() else {
            return Err(DeregisterError::InUse(self));
        };
        let memory = inner.registration.give_back(memory).map_err(DeregisterError::Leaked)?;
        let memory: Box<dyn Any> = memory;
        match memory.downcast::<M>() {
            Ok(memory) => Ok(*memory),
            // `register` is the only place that makes a MemoryRegion<M>, and it puts an M into it.
            Err(_) => unreachable!("a MemoryRegion<M> holds an M"),
        }
    }

    /// A handle that does not know what the memory is made of.
    pub fn region(&self) -> &Region {
        &self.region
    }
}

impl<M: Memory> Deref for MemoryRegion<M> {
    type Target = Region;

    #[inline]
    fn deref(&self) -> &Region {
        &self.region
    }
}

impl<M: Memory> fmt::Debug for MemoryRegion<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.region.fmt(f)
    }
}
