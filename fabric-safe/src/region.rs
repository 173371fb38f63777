//! Registered memory.

use core::any::Any;
use core::ffi::c_void;
use core::fmt;
use core::marker::PhantomData;
use core::ops::{Deref, Range};
use core::ptr::{self, NonNull};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use fabric_sys as sys;

use crate::domain::Domain;
use crate::flags::Access;
use crate::memory::{Memory, Placement};
use crate::object::close;
use crate::operations::HoldId;
use crate::remote::RemoteRegion;
use crate::shared_bytes::{copy_in, copy_out};
use crate::{Error, Usage};

/// How to register a piece of memory.
#[derive(Debug, Clone, Copy)]
pub struct RegisterOptions {
    /// What the region may be used for.
    pub access: Access,
    /// The key to register under, where we choose keys ([`Info::provider_keys`](crate::Info::provider_keys) is false); a
    /// fresh one if `None`. Providers that choose themselves ignore it.
    pub requested_key: Option<u64>,
}

impl RegisterOptions {
    /// Registers for `access`, everything else as is usual.
    pub fn new(access: Access) -> RegisterOptions {
        RegisterOptions { access, requested_key: None }
    }
}

impl From<Access> for RegisterOptions {
    fn from(access: Access) -> Self {
        RegisterOptions::new(access)
    }
}

/// Memory that could not be registered, and why.
pub struct RegisterError<M> {
    /// Why.
    pub error: Error,
    /// The memory, untouched.
    pub memory: M,
}

impl<M> fmt::Debug for RegisterError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RegisterError").field("error", &self.error).finish_non_exhaustive()
    }
}

impl<M> fmt::Display for RegisterError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl<M> std::error::Error for RegisterError<M> {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.error.source()
    }
}

impl<M> From<RegisterError<M>> for Error {
    fn from(failed: RegisterError<M>) -> Error {
        failed.error
    }
}

/// Memory that cannot be given back now.
#[non_exhaustive]
pub enum DeregisterError<M: Memory> {
    /// Operations in flight, or other handles of the region, still need it. Here is the region again.
    InUse(MemoryRegion<M>),
    /// The provider would not let go of it. The memory has been leaked, because the card may still use it.
    Leaked(Error),
}

impl<M: Memory> fmt::Debug for DeregisterError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeregisterError::InUse(region) => f.debug_tuple("InUse").field(region).finish(),
            DeregisterError::Leaked(error) => f.debug_tuple("Leaked").field(error).finish(),
        }
    }
}

impl<M: Memory> fmt::Display for DeregisterError<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            DeregisterError::InUse(_) => f.write_str("the region is still in use"),
            DeregisterError::Leaked(error) => {
                write!(f, "the region could not be closed and is leaked: {error}")
            }
        }
    }
}

impl<M: Memory> std::error::Error for DeregisterError<M> {}

/// A registered piece of memory, whatever it is made of: what operations refer to.
///
/// Cheap to clone. The memory is deregistered when the last handle is gone and the last operation on it has ended.
#[derive(Clone)]
pub struct Region(pub(crate) Arc<RegionInner>);

pub(crate) struct RegionInner {
    pub(crate) id: HoldId,
    pub(crate) descriptor: *mut c_void,
    pub(crate) access: Access,
    address: *mut u8,
    len_bytes: usize,
    placement: Placement,
    key: u64,
    raw: NonNull<sys::fid_mr>,
    /// `None` once it has been given back, together with `raw`.
    memory: Option<Box<dyn Memory>>,
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
            let registered = Registered { raw: self.raw, memory };
            self.domain.0.bury_when_free(self.id, Box::new(move || drop(registered.close())));
        }
    }
}

/// A registration without a user.
struct Registered {
    raw: NonNull<sys::fid_mr>,
    memory: Box<dyn Memory>,
}

// SAFETY: as for RegionInner.
unsafe impl Send for Registered {}

impl Registered {
    /// Deregisters and gives the memory back, or leaks it.
    fn close(self) -> Result<Box<dyn Memory>, Error> {
        // SAFETY: nobody has a handle of the region and no operation holds it.
        match unsafe { close(self.raw.as_ptr().cast()) } {
            Ok(()) => Ok(self.memory),
            Err(status) => {
                core::mem::forget(self.memory);
                Err(Error::call("fi_close", "a memory region", status))
            }
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
        // SAFETY: the region is open and the buffer as long as said.
        let status =
            unsafe { sys::fi_mr_raw_attr(self.0.raw.as_ptr(), &mut base, key.as_mut_ptr(), &mut len, 0) };
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
    region: Region,
    memory: PhantomData<fn() -> M>,
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
        let raw = inner.raw;
        let Some(memory) = inner.memory.take() else {
            return Err(DeregisterError::InUse(self));
        };
        let memory = Registered { raw, memory }.close().map_err(DeregisterError::Leaked)?;
        let memory: Box<dyn Any> = memory;
        match memory.downcast::<M>() {
            Ok(memory) => Ok(*memory),
            // `register_with` is the only place that makes a MemoryRegion<M>, and it puts an M into it.
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

impl Domain {
    /// Registers memory for `access` (or with [`RegisterOptions`]).
    ///
    /// Blocks for as long as the provider needs to pin pages and tell the card: from microseconds to seconds. Other threads
    /// can use the domain meanwhile.
    ///
    /// # Errors
    ///
    /// The memory comes back with the reason: [`Usage`] if the request makes no sense, otherwise what the provider said
    /// (`ENOMEM` if the card has no room for more pages).
    pub fn register<M: Memory>(
        &self,
        memory: M,
        options: impl Into<RegisterOptions>,
    ) -> Result<MemoryRegion<M>, RegisterError<M>> {
        let options = options.into();
        // Attributes first: if they are wrong, the memory goes back before it has been boxed.
        let (address, len_bytes) = (memory.address(), memory.len_bytes());
        if let Err(usage) = check(&memory, options.access) {
            return Err(RegisterError { error: usage.into(), memory });
        }
        match self.register_raw(&memory, options) {
            Err(error) => Err(RegisterError { error, memory }),
            Ok(raw) => {
                // SAFETY: the region is open.
                let (descriptor, key) =
                    unsafe { (sys::fi_mr_desc(raw.as_ptr()), sys::fi_mr_key(raw.as_ptr())) };
                let inner = RegionInner {
                    id: HoldId::new(),
                    descriptor,
                    access: options.access,
                    address,
                    len_bytes,
                    placement: memory.placement(),
                    key,
                    raw,
                    memory: Some(Box::new(memory)),
                    domain: self.clone(),
                };
                Ok(MemoryRegion { region: Region(Arc::new(inner)), memory: PhantomData })
            }
        }
    }

    fn register_raw<M: Memory>(
        &self,
        memory: &M,
        options: RegisterOptions,
    ) -> Result<NonNull<sys::fid_mr>, Error> {
        let segment = libc::iovec { iov_base: memory.address().cast(), iov_len: memory.len_bytes() };
        let mut attributes = sys::fi_mr_attr::default();
        attributes.__bindgen_anon_1.mr_iov = &segment;
        attributes.iov_count = 1;
        attributes.access = options.access.bits();
        match memory.placement() {
            Placement::Host => attributes.iface = sys::FI_HMEM_SYSTEM,
            Placement::Cuda { device } => {
                attributes.iface = sys::FI_HMEM_CUDA;
                attributes.device.cuda = device;
            }
            Placement::Rocm { .. } => attributes.iface = sys::FI_HMEM_ROCR,
            Placement::Neuron { device } => {
                attributes.iface = sys::FI_HMEM_NEURON;
                attributes.device.neuron = device;
            }
            Placement::SynapseAi { device } => {
                attributes.iface = sys::FI_HMEM_SYNAPSEAI;
                attributes.device.synapseai = device;
            }
        }
        let dmabuf = memory.dmabuf().map(|dmabuf| sys::fi_mr_dmabuf {
            fd: dmabuf.fd.as_raw_fd(),
            offset: dmabuf.offset,
            len: memory.len_bytes(),
            // libfabric takes `base_addr + offset` for the address of the memory.
            base_addr: memory.address().wrapping_sub(dmabuf.offset as usize).cast(),
        });
        let mut flags = 0;
        if let Some(dmabuf) = &dmabuf {
            if self.info().library().api_version() < sys::Version::new(1, 20) {
                return Err(Error::Unsupported {
                    what: "registering a dmabuf (needs libfabric 1.20)",
                    provider: self.info().provider_name().to_owned(),
                });
            }
            attributes.__bindgen_anon_1.dmabuf = dmabuf;
            flags |= sys::FI_MR_DMABUF;
        }
        // Where keys are ours, another user of the same domain may have taken one: a few tries find a free one.
        let tries = if options.requested_key.is_some() { 1 } else { 8 };
        let mut status = 0;
        for _ in 0..tries {
            attributes.requested_key = match options.requested_key {
                Some(key) => key,
                None if self.info().provider_keys() => 0,
                None => self.next_key(),
            };
            let mut raw = ptr::null_mut();
            // SAFETY: the attributes and what they point to are valid for the call; the memory is (Memory's promise) until it
            // is dropped, which is after the region has been closed.
            status = unsafe { sys::fi_mr_regattr(self.raw(), &attributes, flags, &mut raw) };
            match NonNull::new(raw) {
                Some(raw) if status == 0 => return Ok(raw),
                None if status == 0 => {
                    return Err(Error::Misbehaviour {
                        call: "fi_mr_regattr",
                        what: "success without an object".into(),
                    });
                }
                _ if status != -sys::FI_ENOKEY => break,
                _ => {}
            }
        }
        Err(Error::call(
            "fi_mr_regattr",
            format!("{} bytes in {}", segment.iov_len, self.info().place()),
            status,
        ))
    }

    /// Makes a 64-bit key of a peer's long one ([`Region::raw_key`]).
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said, `ENOSYS` where keys are short.
    pub fn map_raw_key(&self, base: u64, raw_key: &[u8]) -> Result<u64, Error> {
        let mut raw_key = raw_key.to_vec();
        let mut key = 0;
        // SAFETY: the domain is open and the buffer as long as said.
        let status =
            unsafe { sys::fi_mr_map_raw(self.raw(), base, raw_key.as_mut_ptr(), raw_key.len(), &mut key, 0) };
        if status == 0 { Ok(key) } else { Err(Error::call("fi_mr_map_raw", self.info().place(), status)) }
    }
}

/// Whether the memory can be registered at all.
fn check(memory: &impl Memory, access: Access) -> Result<(), Usage> {
    let (address, len) = (memory.address() as usize, memory.len_bytes());
    if len == 0 || len > isize::MAX as usize || address == 0 || address.checked_add(len).is_none() {
        return Err(Usage::BadRange { address, len });
    }
    if access.writes() && !memory.writable() {
        return Err(Usage::ReadOnly);
    }
    Ok(())
}
