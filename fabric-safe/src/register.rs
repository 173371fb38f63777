//! Registering memory and letting go of it.

use core::fmt;
use core::marker::PhantomData;
use core::ptr::{self, NonNull};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use fabric_sys as sys;
use parking_lot::{Mutex, MutexGuard};

use crate::domain::Domain;
use crate::endpoint::{Enabled, Endpoint};
use crate::flags::Access;
use crate::memory::{Memory, Placement};
use crate::object::close;
use crate::operations::HoldId;
use crate::region::{MemoryRegion, Region, RegionInner};
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

/// A region as the provider knows it. Closed once: when nobody needs it any more, or by the endpoint that it is bound to, which
/// cannot be closed before.
pub(crate) struct Registration {
    state: Mutex<State>,
    registry: Registry,
}

/// Taken around registering and deregistering with providers that would have several threads spoil their list of regions.
/// `net` of libfabric 1.17 is one: threads were seen to run in circles in it.
#[derive(Clone, Default)]
pub(crate) struct Registry(Option<Arc<Mutex<()>>>);

impl Registry {
    /// The registry of a domain of this provider.
    pub(crate) fn of(provider: &str) -> Registry {
        Registry((provider == "net").then(Arc::default))
    }

    fn lock(&self) -> Option<MutexGuard<'_, ()>> {
        self.0.as_ref().map(|mutex| mutex.lock())
    }
}

#[derive(Clone, Copy)]
enum State {
    Open(NonNull<sys::fid_mr>),
    Closed,
    /// The provider did not let go of it, with this status: its memory must never be freed.
    Stuck(i32),
}

// SAFETY: regions belong to a thread-safe domain, and the pointer is only used under the lock.
unsafe impl Send for Registration {}
// SAFETY: as above.
unsafe impl Sync for Registration {}

impl Registration {
    /// Closes it, if it is open. Afterwards peers cannot reach the memory; operations of our own may still use it.
    pub(crate) fn close(&self) -> Result<(), Error> {
        let mut state = self.state.lock();
        if let State::Open(raw) = *state {
            let _registry = self.registry.lock();
            // SAFETY: open, and not used after this.
            *state = match unsafe { close(raw.as_ptr().cast()) } {
                Ok(()) => State::Closed,
                Err(status) => State::Stuck(status),
            };
        }
        match *state {
            State::Stuck(status) => Err(Error::call("fi_close", "a memory region", status)),
            _ => Ok(()),
        }
    }

    /// Closes it and gives the memory back, or leaks it. No operation uses it any more.
    pub(crate) fn give_back(&self, memory: Box<dyn Memory>) -> Result<Box<dyn Memory>, Error> {
        match self.close() {
            Ok(()) => Ok(memory),
            Err(error) => {
                core::mem::forget(memory);
                Err(error)
            }
        }
    }

    /// Calls something on the region, unless it is closed.
    pub(crate) fn with_open<R>(&self, call: impl FnOnce(*mut sys::fid_mr) -> R) -> Option<R> {
        match *self.state.lock() {
            State::Open(raw) => Some(call(raw.as_ptr())),
            _ => None,
        }
    }
}

impl Domain {
    /// Registers memory for `access` (or with [`RegisterOptions`]).
    ///
    /// Blocks for as long as the provider needs to pin pages and tell the card: from microseconds to seconds. Other threads
    /// can use the domain meanwhile.
    ///
    /// All endpoints of the domain can use the region, unless the provider binds regions to endpoints
    /// ([`Info::endpoint_regions`](crate::Info::endpoint_regions)): then use [`Endpoint::register`].
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
        self.register_for(memory, options.into(), None)
    }

    /// Registers memory, for all endpoints of the domain or for one of them.
    fn register_for<M: Memory>(
        &self,
        memory: M,
        options: RegisterOptions,
        endpoint: Option<&Enabled>,
    ) -> Result<MemoryRegion<M>, RegisterError<M>> {
        // Attributes first: if they are wrong, the memory goes back before it has been boxed.
        let (address, len_bytes) = (memory.address(), memory.len_bytes());
        if let Err(usage) = check(&memory, options.access) {
            return Err(RegisterError { error: usage.into(), memory });
        }
        if self.info().endpoint_regions() && endpoint.is_none() {
            let what = "regions of this provider belong to an endpoint: register with Endpoint::register";
            return Err(RegisterError { error: Usage::Binding(what).into(), memory });
        }
        let registered = self.register_raw(&memory, options).and_then(|raw| {
            let registration = Arc::new(Registration {
                state: Mutex::new(State::Open(raw)),
                registry: self.0.registry.clone(),
            });
            if let Some(endpoint) = endpoint {
                endpoint.bind_region(raw, &registration)?;
            }
            Ok((raw, registration))
        });
        match registered {
            Err(error) => Err(RegisterError { error, memory }),
            Ok((raw, registration)) => {
                // SAFETY: the region is open: its endpoint, if it has one, only closes it when this thread lets it.
                let (descriptor, key) =
                    unsafe { (sys::fi_mr_desc(raw.as_ptr()), sys::fi_mr_key(raw.as_ptr())) };
                let inner = RegionInner {
                    id: HoldId::new(),
                    home: endpoint.map_or(self.0.id, |endpoint| endpoint.home),
                    descriptor,
                    access: options.access,
                    address,
                    len_bytes,
                    placement: memory.placement(),
                    key,
                    registration,
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
            let _registry = self.0.registry.lock();
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

impl Endpoint<Enabled> {
    /// As [`Domain::register`], with every provider: where regions belong to an endpoint
    /// ([`Info::endpoint_regions`](crate::Info::endpoint_regions)), the region is bound to this one. Other endpoints cannot use
    /// it then, and closing the endpoint ends what peers can do with it.
    ///
    /// # Errors
    ///
    /// As for [`Domain::register`]; [`Usage::Closed`].
    pub fn register<M: Memory>(
        &self,
        memory: M,
        options: impl Into<RegisterOptions>,
    ) -> Result<MemoryRegion<M>, RegisterError<M>> {
        let bound = self.state.domain.info().endpoint_regions().then_some(&self.state);
        self.state.domain.register_for(memory, options.into(), bound)
    }
}

impl Enabled {
    /// Binds a region that has just been registered, and enables it. Closes it if that fails.
    fn bind_region(&self, raw: NonNull<sys::fid_mr>, registration: &Arc<Registration>) -> Result<(), Error> {
        let bind = |endpoint: *mut sys::fid| {
            // SAFETY: endpoint and region are open, and the endpoint closes the region before itself.
            match unsafe { sys::fi_mr_bind(raw.as_ptr(), endpoint, 0) } {
                0 => {}
                status => return Err(Error::call("fi_mr_bind", self.domain.info().place(), status)),
            }
            // SAFETY: as above.
            match unsafe { sys::fi_mr_enable(raw.as_ptr()) } {
                0 => {}
                status => return Err(Error::call("fi_mr_enable", self.domain.info().place(), status)),
            }
            let mut regions = self.regions.lock();
            regions.retain(|region| region.strong_count() > 0);
            regions.push(Arc::downgrade(registration));
            Ok(())
        };
        let bound = self.while_open(bind).unwrap_or(Err(Usage::Closed("endpoint").into()));
        if bound.is_err() {
            // What was bound in part is closed like any other; a failure has been counted as a leak.
            let _ = registration.close();
        }
        bound
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
