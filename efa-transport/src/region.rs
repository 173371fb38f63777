//! Registered memory.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Instant;

use efa_mr::registrar::Registered;
use efa_mr::{Location, PageSize, Policy};
use fabric_safe::{Domain, Memory, SharedMemory};

pub use fabric_safe::Access;

use parking_lot::Mutex;

use crate::core::Core;
use crate::error::Error;
use crate::fabric::OpenFabric;
use crate::lane::Lane;
use crate::request::Range;
use crate::scheduler::rail::{Set, rank};
use crate::scheduler::slicer::Chunk;
use crate::serial::serial;

/// How to register memory.
#[derive(Debug, Clone, Copy)]
pub struct RegisterOptions {
    /// What the memory may be used for, by us and by peers.
    pub access: Access,
    /// Where it lies, if that is known better than from the memory itself (NUMA node, GPU).
    pub location: Option<Location>,
    /// The size of its pages; decides what it costs on EFA cards. 4 KiB unless said otherwise, which is never too little.
    pub page: PageSize,
    /// On how many NICs; the transport's [`Config::policy`](crate::Config::policy) unless said otherwise.
    pub policy: Option<Policy>,
}

impl From<Access> for RegisterOptions {
    fn from(access: Access) -> Self {
        Self { access, location: None, page: PageSize::K4, policy: None }
    }
}

/// A piece of registered memory. Cheap to clone.
///
/// [`unregister`](Self::unregister) says when the memory is free of the network; dropping the last clone deregisters as
/// soon as nothing uses it.
#[derive(Clone)]
pub struct Region(Arc<RegionShared>);

struct RegionShared {
    /// Taken when it is unregistered.
    inner: Mutex<Option<Arc<RegionInner>>>,
    /// The same, for requests: without the lock. Whoever has got it from here in time counts among those that still use it.
    in_use: Weak<RegionInner>,
    unregistered: AtomicBool,
    core: Weak<Core>,
    id: u64,
    addr: u64,
    len: u64,
    access: Access,
}

/// What slices refer to. Deregisters when the last one is gone.
pub(crate) struct RegionInner {
    /// No other one has it.
    pub(crate) serial: u64,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) access: Access,
    pub(crate) chunks: Vec<LocalChunk>,
    /// NICs that are as near to the memory as any.
    pub(crate) near: Set,
    /// Handles of the memory regions, for each chunk in ascending order of its NICs: what slices look up. Before `registered`, so
    /// that they are gone when that is dropped.
    handles: Vec<fabric_safe::Region>,
    /// `None` if nobody has to deregister it: a lane's [probe memory](Self::of_probes).
    pub(crate) registered: Option<Registered<Domain>>,
    again: Again,
}

/// What registering the same memory with another fabric takes, and what came of it.
struct Again {
    memory: Arc<dyn SharedMemory>,
    options: RegisterOptions,
    second: OnceLock<Arc<RegionInner>>,
    /// Why there is no second one although that fabric is open. Locked while it is being registered.
    refused: Mutex<Option<String>>,
}

/// A part of a region that is registered on a set of NICs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalChunk {
    pub(crate) start: u64,
    pub(crate) end: u64,
    pub(crate) nics: Set,
    /// The first of its handles.
    first: u32,
}

impl fmt::Debug for RegionInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionInner({} bytes at {:#x}, {} chunks)", self.len, self.addr, self.chunks.len())
    }
}

impl RegionInner {
    /// The memory, as addresses.
    pub(crate) const fn range(&self) -> Range {
        Range { at: self.addr, len: self.len }
    }

    /// The chunk around an address.
    #[inline]
    pub(crate) fn chunk_at(&self, addr: u64) -> Option<Chunk> {
        let after = self.chunks.partition_point(|chunk| chunk.start <= addr);
        let index = after.checked_sub(1)?;
        let chunk = &self.chunks[index];
        let left = chunk.end.checked_sub(addr).filter(|&left| left > 0)?;
        Some(Chunk { index: index as u32, before: addr - chunk.start, left })
    }

    /// The number of the handle of a chunk's memory region on a NIC.
    pub(crate) fn handle_of(&self, chunk: u32, nic: usize) -> Option<usize> {
        let chunk = self.chunks.get(chunk as usize)?;
        Some(chunk.first as usize + rank(chunk.nics, nic)?)
    }

    #[inline]
    pub(crate) fn handle(&self, number: usize) -> Option<&fabric_safe::Region> {
        self.handles.get(number)
    }

    /// Looks at what a request looks at, on a NIC.
    pub(crate) fn look_at(&self, nic: usize) -> Option<usize> {
        let chunk = self.chunk_at(self.addr)?;
        let handle = self.handle(self.handle_of(chunk.index, nic)?)?;
        handle.slice(0..0).ok()?;
        Some(handle.address())
    }

    /// The same memory on the second fabric.
    ///
    /// # Errors
    /// Why it is not there, in words.
    pub(crate) fn second(&self) -> Result<Arc<RegionInner>, String> {
        if let Some(second) = self.again.second.get() {
            return Ok(Arc::clone(second));
        }
        match self.again.refused.try_lock() {
            Some(refused) => Err(refused.clone().unwrap_or_else(|| "it is not open".into())),
            None => Err("that is going on; try again".into()),
        }
    }

    /// The same as far as it is there.
    pub(crate) fn on(&self, fabric: usize) -> Option<&RegionInner> {
        if fabric == 0 { Some(self) } else { self.again.second.get().map(|second| &**second) }
    }

    /// Registers the memory with the second fabric unless that has been done. True if it is new there.
    pub(crate) fn second_or(
        &self,
        register: impl FnOnce(&Arc<dyn SharedMemory>, RegisterOptions) -> Result<RegionInner, Error>,
    ) -> Result<bool, Error> {
        let mut refused = self.again.refused.lock();
        if self.again.second.get().is_some() {
            return Ok(false);
        }
        match register(&self.again.memory, self.again.options) {
            Ok(second) => {
                // Nobody else can have set it: the lock is ours.
                let _ = self.again.second.set(Arc::new(second));
                *refused = None;
                Ok(true)
            }
            Err(error) => {
                *refused = Some(error.to_string());
                Err(error)
            }
        }
    }

    /// A lane's probe memory, so that requests can use it. Peers never hear of it.
    pub(crate) fn of_probes(lane: &Lane, fabric: usize) -> Arc<Self> {
        let probe = &lane.nic.probe;
        let addr = probe.region().address() as u64;
        let len = probe.region().len_bytes() as u64;
        let nics = 1 << lane.index;
        let of_second = (fabric > 0).then(|| Self::of_probes(lane, 0));
        Arc::new(Self {
            serial: serial(),
            addr,
            len,
            access: Access::empty(),
            chunks: vec![LocalChunk { start: addr, end: addr + len, nics, first: 0 }],
            near: nics,
            handles: vec![probe.region().clone()],
            registered: None,
            again: Again {
                memory: Arc::clone(&lane.nic.probe_memory) as Arc<dyn SharedMemory>,
                options: Access::empty().into(),
                second: of_second.map_or_else(OnceLock::new, OnceLock::from),
                refused: Mutex::default(),
            },
        })
    }

    /// MRs on all fabrics.
    fn mrs(&self) -> usize {
        let own = self.registered.as_ref().map_or(0, Registered::mrs);
        own + self.again.second.get().map_or(0, |second| second.mrs())
    }

    /// The keys of a chunk, in ascending order of its NICs.
    pub(crate) fn keys_of(&self, chunk: usize) -> Vec<u64> {
        let registered = self.registered.iter();
        registered.flat_map(|registered| registered.regions(chunk)).map(|(_, mr)| mr.key()).collect()
    }

    /// Calls `each` with the parts of a range that lie in one chunk: a region handle, the offset in it, and the part of
    /// the range.
    fn parts(
        &self,
        offset: u64,
        len: usize,
        mut each: impl FnMut(
            &fabric_safe::Region,
            usize,
            std::ops::Range<usize>,
        ) -> Result<(), fabric_safe::Usage>,
    ) -> Result<(), Error> {
        let region_addr = self.addr;
        let outside = || Error::OutOfBounds {
            addr: region_addr.wrapping_add(offset),
            len: len as u64,
            region_addr,
            region_len: self.len,
        };
        let start = region_addr.checked_add(offset).ok_or_else(outside)?;
        if !self.range().contains(&Range { at: start, len: len as u64 }) {
            return Err(outside());
        }
        let mut done = 0;
        while done < len {
            let addr = start + done as u64;
            let chunk = self.chunk_at(addr).ok_or_else(outside)?;
            let part = (len - done).min(usize::try_from(chunk.left).unwrap_or(usize::MAX));
            let local = &self.chunks[chunk.index as usize];
            let region = self.handle(local.first as usize).ok_or_else(outside)?;
            let at = (addr - local.start) as usize;
            each(region, at, done..done + part).map_err(|usage| Error::Request(usage.to_string()))?;
            done += part;
        }
        Ok(())
    }

    pub(crate) fn copy_out(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.parts(offset, bytes.len(), |region, at, part| region.copy_out(at, &mut bytes[part]))
    }

    pub(crate) fn copy_in(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.parts(offset, bytes.len(), |region, at, part| region.copy_in(at, &bytes[part]))
    }
}

impl Region {
    pub(crate) fn new(core: &Arc<Core>, id: u64, inner: Arc<RegionInner>) -> Self {
        let (addr, len, access) = (inner.addr, inner.len, inner.access);
        Self(Arc::new(RegionShared {
            in_use: Arc::downgrade(&inner),
            inner: Mutex::new(Some(inner)),
            unregistered: AtomicBool::new(false),
            core: Arc::downgrade(core),
            id,
            addr,
            len,
            access,
        }))
    }

    /// First address.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.0.addr
    }

    /// Length in bytes.
    #[must_use]
    #[allow(clippy::len_without_is_empty)] // there is no registered memory without bytes
    pub fn len(&self) -> u64 {
        self.0.len
    }

    /// What it was registered for.
    #[must_use]
    pub fn access(&self) -> Access {
        self.0.access
    }

    #[inline]
    pub(crate) fn inner(&self) -> Result<Arc<RegionInner>, Error> {
        self.in_use().ok_or_else(|| self.gone())
    }

    /// What slices refer to, unless it has been unregistered.
    #[inline]
    pub(crate) fn in_use(&self) -> Option<Arc<RegionInner>> {
        if self.0.unregistered.load(Ordering::Acquire) { None } else { self.0.in_use.upgrade() }
    }

    #[cold]
    fn gone(&self) -> Error {
        Error::Unregistered { addr: self.0.addr, len: self.0.len }
    }

    /// Copies bytes out of the memory, from `offset` on. Host memory only. If peers write there meanwhile, the bytes are some
    /// mixture.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::Unregistered`], [`Error::Request`] for device memory.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) -> Result<(), Error> {
        self.inner()?.copy_out(offset, bytes)
    }

    /// Copies bytes into the memory, from `offset` on. Host memory only.
    ///
    /// # Errors
    /// As [`read`](Self::read), and [`Error::Request`] for memory that is read-only.
    pub fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        self.inner()?.copy_in(offset, bytes)
    }

    /// Number of memory regions that the provider holds for it, over all NICs and fabrics.
    #[must_use]
    pub fn registrations(&self) -> usize {
        self.inner().map_or(0, |inner| inner.mrs())
    }

    /// Takes the memory off the network: no further requests, and after `Ok` no byte of it is read or written by any NIC.
    /// Peers' operations on it fail from then on. Blocks while operations of ours use it, driving them on.
    ///
    /// # Errors
    /// [`Error::StillInUse`] at the deadline: it is deregistered as soon as the last operation has ended (and the memory kept
    /// until then). [`Error::Register`] if the provider refused: the memory is kept for ever. [`Error::Unregistered`] if it
    /// has been unregistered before.
    pub fn unregister(&self, deadline: Instant) -> Result<(), Error> {
        let (addr, len) = (self.0.addr, self.0.len);
        let inner = self.0.inner.lock().take().ok_or(Error::Unregistered { addr, len })?;
        self.0.unregistered.store(true, Ordering::Release);
        let core = self.0.core.upgrade();
        if let Some(core) = &core {
            core.forget_region(self.0.id);
        }
        let core = core.as_deref();
        let (first, second) = close(inner, core, deadline)?;
        // Whatever has become of the first fabric's, the second's is closed too.
        let second = second.map_or(Ok(()), |second| close(second, core, deadline)?.0);
        first.and(second)
    }
}

/// How closing the MRs on one fabric went, and what there is on the second.
type Closed = (Result<(), Error>, Option<Arc<RegionInner>>);

/// Waits for operations in flight, then closes the MRs on one fabric.
///
/// # Errors
/// [`Error::StillInUse`] at the deadline: nothing has been closed.
fn close(mut inner: Arc<RegionInner>, core: Option<&Core>, deadline: Instant) -> Result<Closed, Error> {
    let (addr, len) = (inner.addr, inner.len);
    let RegionInner { handles, registered, again, .. } = loop {
        match Arc::try_unwrap(inner) {
            Ok(inner) => break inner,
            Err(shared) => inner = shared,
        }
        if Instant::now() >= deadline {
            return Err(Error::StillInUse { addr, len });
        }
        if core.is_none_or(|core| core.drive_all() == 0) {
            std::thread::sleep(std::time::Duration::from_micros(50));
        }
    };
    drop(handles);
    let left = deadline.saturating_duration_since(Instant::now());
    let Some(registered) = registered else { return Ok((Ok(()), again.second.into_inner())) };
    let closed = registered
        .unregister_within(left, || {
            if core.is_none_or(|core| core.drive_all() == 0) {
                std::thread::yield_now();
            }
        })
        .map_err(|rest| match rest.mrs() {
            0 => Error::Register { addr, len, why: rest.to_string() },
            _ => Error::StillInUse { addr, len },
        });
    Ok((closed, again.second.into_inner()))
}

impl Drop for RegionShared {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.forget_region(self.id);
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({} bytes at {:#x})", self.0.len, self.0.addr)
    }
}

impl Core {
    /// Plans and registers; see [`Transport::register`](crate::Transport::register).
    pub(crate) fn register(
        self: &Arc<Self>,
        memory: Arc<dyn SharedMemory>,
        options: RegisterOptions,
    ) -> Result<Region, Error> {
        let inner = Arc::new(self.register_on(self.lanes.first(), &memory, options)?);
        let id = self.remember_region(&inner);
        // If it is opened just now, whoever opens it finds this region in the list, or this call finds it open.
        if self.register_second(&inner) {
            self.changed();
        }
        Ok(Region::new(self, id, inner))
    }

    /// Plans and registers with one fabric.
    pub(crate) fn register_on(
        &self,
        fabric: &OpenFabric,
        memory: &Arc<dyn SharedMemory>,
        options: RegisterOptions,
    ) -> Result<RegionInner, Error> {
        let mut buffer = efa_mr::registrar::fabric::buffer_of(memory, options.page);
        if let Some(location) = options.location {
            buffer.location = location;
        }
        let (addr, len) = (buffer.addr, buffer.len_bytes);
        let fail = |why: String| Error::Register { addr, len, why };
        if options.access.writes() && !Memory::writable(memory) {
            return Err(fail("the memory is read-only; ask for Access::SOURCE".into()));
        }
        let location = buffer.location;
        let policy = options.policy.unwrap_or(self.config.policy);
        let registered = fabric
            .registrar
            .register(
                &[buffer],
                std::slice::from_ref(memory),
                &policy,
                planner_access(options.access),
                |_| {},
            )
            .map_err(|error| fail(error.to_string()))?;
        let mut handles = Vec::new();
        let chunks: Vec<LocalChunk> = registered
            .plan()
            .chunks
            .iter()
            .enumerate()
            .map(|(index, chunk)| {
                let first = handles.len() as u32;
                handles.extend(registered.regions(index).map(|(_, region)| region.region().clone()));
                LocalChunk {
                    start: chunk.addr,
                    end: chunk.addr + chunk.len_bytes,
                    nics: chunk.nics.iter().fold(0, |set: Set, nic| set | 1 << (fabric.range.start + nic)),
                    first,
                }
            })
            .collect();
        let distances: Vec<_> = fabric.registrar.nics().iter().map(|nic| nic.distance(location)).collect();
        let nearest = distances.iter().min().copied();
        let near = distances
            .iter()
            .enumerate()
            .filter(|(_, d)| Some(**d) == nearest)
            .fold(0, |set: Set, (nic, _)| set | 1 << (fabric.range.start + nic));
        let memory = Arc::clone(memory);
        let again = Again { memory, options, second: OnceLock::new(), refused: Mutex::default() };
        Ok(RegionInner {
            serial: serial(),
            addr,
            len,
            access: options.access,
            chunks,
            near,
            handles,
            registered: Some(registered),
            again,
        })
    }
}

fn planner_access(access: Access) -> efa_mr::Access {
    use efa_mr::Access as Mr;
    let pairs = [
        (Access::SEND, Mr::SEND),
        (Access::RECV, Mr::RECV),
        (Access::READ, Mr::READ),
        (Access::WRITE, Mr::WRITE),
        (Access::REMOTE_READ, Mr::REMOTE_READ),
        (Access::REMOTE_WRITE, Mr::REMOTE_WRITE),
    ];
    pairs.into_iter().filter(|(ours, _)| access.contains(*ours)).map(|(_, theirs)| theirs).collect()
}
