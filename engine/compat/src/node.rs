//! The whole: memory, transfers, notifications.

use std::collections::HashMap;
use std::net::{TcpStream, ToSocketAddrs as _};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use engine::{Access, Batch, Engine, HostMemory, Region, Segment, Shape};

use crate::fault::Fault;
use crate::note::Note;
use crate::setup::{Look, Setup, connect_timeout};
use crate::table::Table;
use crate::transfer::{Op, Transfer};

/// How long running transfers get when the node ends.
const GRACE: Duration = Duration::from_secs(2);

/// Peers that are kept open. A cluster has fewer; names that were used once and never again do not pile up.
const SESSIONS: usize = 4096;

/// How long opening a peer may take before it is looked at whether anybody listens there. Far more than a handshake takes, so that
/// peers that are there do not see connections that only look.
const AT_ONCE: Duration = Duration::from_millis(250);

/// Batches whose allocations are kept for reuse.
const SPARE: usize = 16;

/// An engine under Mooncake's conventions. All methods may be called from any thread; those that wait block the calling thread
/// alone.
#[derive(Debug)]
pub struct Node {
    engine: Engine,
    registered: Mutex<Table<Region>>,
    managed: Mutex<HashMap<u64, HostMemory>>,
    /// Peers that were opened; the engine itself forgets those that nobody holds.
    sessions: Mutex<HashMap<String, Segment>>,
    spare: Mutex<Vec<Batch>>,
    connect: Duration,
}

impl Node {
    /// Opens an engine as `initialize` was asked to. `env` looks a variable of Mooncake's up; the engine reads its own by itself.
    ///
    /// # Errors
    /// [`Fault::Argument`], [`Fault::Engine`]: the message says what is wrong.
    pub fn start(setup: &Setup, env: Look<'_>) -> Result<Self, Fault> {
        Ok(Self {
            engine: setup.build(env)?,
            registered: Mutex::default(),
            managed: Mutex::default(),
            sessions: Mutex::default(),
            spare: Mutex::default(),
            connect: connect_timeout(env),
        })
    }

    /// The engine, for what has no equivalent here.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// How peers call this node: `host:port`, or its name in the metadata store.
    pub fn session(&self) -> String {
        self.engine.name().to_owned()
    }

    /// The port that peers connect to.
    pub fn port(&self) -> u16 {
        let settings = self.engine.settings();
        let reached = settings.advertise.value.as_deref().unwrap_or(self.engine.name());
        reached.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or_default()
    }

    // ---- memory --------------------------------------------------------------------------------------------------------

    /// Registers memory. Peers may do with it what `access` says; the node's own transfers may always use it.
    ///
    /// # Safety
    /// `addr..addr + len` stays mapped, readable and writable, and no Rust reference to its bytes is used, until
    /// [`unregister`](Self::unregister) has returned well or the node and its transfers are gone.
    ///
    /// # Errors
    /// [`Fault::Argument`], [`Fault::Overlap`], [`Fault::Engine`]; nothing is registered then.
    #[allow(unsafe_code)] // the caller's promise is handed on
    pub unsafe fn register(&self, addr: u64, len: u64, label: &str, access: Access) -> Result<(), Fault> {
        // SAFETY: as the caller promises.
        unsafe { self.register_many(&[(addr, len)], label, access) }
    }

    /// Registers all of these ranges, each (address, length), or none.
    ///
    /// # Safety
    /// As [`register`](Self::register), for each of them.
    ///
    /// # Errors
    /// As [`register`](Self::register); nothing is registered then.
    #[allow(unsafe_code)] // the caller's promise is handed on
    pub unsafe fn register_many(
        &self,
        ranges: &[(u64, u64)],
        label: &str,
        access: Access,
    ) -> Result<(), Fault> {
        self.reserve(ranges)?;
        // Registering can take seconds, so the table is not locked meanwhile; what was reserved keeps others out.
        // SAFETY: as the caller promises.
        match unsafe { self.register_reserved(ranges, label, access) } {
            Ok(regions) => {
                let mut table = self.registered();
                for region in regions {
                    table.fill(region.addr(), region);
                }
                Ok(())
            }
            Err(fault) => {
                let mut table = self.registered();
                ranges.iter().for_each(|&(addr, _)| table.release(addr));
                Err(fault)
            }
        }
    }

    /// # Safety
    /// As [`register`](Self::register), for each of them.
    #[allow(unsafe_code)] // the caller's promise is handed on
    unsafe fn register_reserved(
        &self,
        ranges: &[(u64, u64)],
        label: &str,
        access: Access,
    ) -> Result<Vec<Region>, Fault> {
        let raw = ranges.iter().map(|&(addr, len)| {
            let (start, len) = pointer(addr, len)?;
            Ok(engine::RawBuffer { label: label.to_owned(), start, len, access })
        });
        let raw = raw.collect::<Result<Vec<_>, Fault>>()?;
        // SAFETY: as the caller promises, for each of them; a region leaves this node through `unregister` only.
        Ok(unsafe { self.engine.register_raw_many(&raw) }?)
    }

    fn reserve(&self, ranges: &[(u64, u64)]) -> Result<(), Fault> {
        let mut table = self.registered();
        for (index, &(addr, len)) in ranges.iter().enumerate() {
            if let Err(fault) = table.reserve(addr, len) {
                ranges[..index].iter().for_each(|&(addr, _)| table.release(addr));
                return Err(fault);
            }
        }
        Ok(())
    }

    /// Takes peers' access to the memory at `addr` away and waits for requests that use it.
    ///
    /// # Errors
    /// [`Fault::NotRegistered`]; [`Fault::Engine`] if own requests kept using it.
    pub fn unregister(&self, addr: u64) -> Result<(), Fault> {
        let region = self.registered().take(addr)?;
        Ok(self.engine.unregister(region)?)
    }

    /// As [`unregister`](Self::unregister) for all of these; none if one of them is not registered.
    ///
    /// # Errors
    /// As [`unregister`](Self::unregister).
    pub fn unregister_many(&self, addrs: &[u64]) -> Result<(), Fault> {
        let mut table = self.registered();
        if let Some(&unknown) = addrs.iter().find(|&&addr| !table.holds(addr)) {
            return Err(Fault::NotRegistered(unknown));
        }
        // An address that is named twice is there once.
        let regions: Vec<Region> = addrs.iter().filter_map(|&addr| table.take(addr).ok()).collect();
        drop(table);
        Ok(self.engine.unregister_many(regions)?)
    }

    /// Allocates memory of the node's own, registers it, and returns its address.
    ///
    /// # Errors
    /// [`Fault::Memory`], [`Fault::Engine`].
    pub fn allocate(&self, len: usize) -> Result<u64, Fault> {
        // Mooncake gives out an address for zero bytes, too.
        let memory = HostMemory::new(len.max(1)).map_err(Fault::Memory)?;
        let region = self.engine.register("*", memory.clone(), Access::READ_WRITE)?;
        let (addr, len) = (region.addr(), region.len());
        let mut table = self.registered();
        table.reserve(addr, len)?;
        table.fill(addr, region);
        drop(table);
        lock(&self.managed).insert(addr, memory);
        Ok(addr)
    }

    /// Frees what [`allocate`](Self::allocate) gave.
    ///
    /// # Errors
    /// [`Fault::NotRegistered`] for another address; [`Fault::Engine`].
    pub fn free(&self, addr: u64) -> Result<(), Fault> {
        let memory = lock(&self.managed).remove(&addr).ok_or(Fault::NotRegistered(addr))?;
        let freed = self.unregister(addr);
        drop(memory);
        freed
    }

    /// Copies into memory that [`allocate`](Self::allocate) gave, or anywhere inside it.
    ///
    /// # Errors
    /// [`Fault::NotRegistered`] for other memory, which the caller copies itself; [`Fault::Engine`] past its end.
    pub fn copy_in(&self, addr: u64, bytes: &[u8]) -> Result<(), Fault> {
        let (memory, offset) = self.managed_at(addr, bytes.len())?;
        Ok(memory.write(offset, bytes)?)
    }

    /// Copies out of memory that [`allocate`](Self::allocate) gave.
    ///
    /// # Errors
    /// As [`copy_in`](Self::copy_in).
    pub fn copy_out(&self, addr: u64, bytes: &mut [u8]) -> Result<(), Fault> {
        let (memory, offset) = self.managed_at(addr, bytes.len())?;
        Ok(memory.read(offset, bytes)?)
    }

    fn managed_at(&self, addr: u64, len: usize) -> Result<(HostMemory, usize), Fault> {
        let table = self.registered();
        let start = table.around(addr, len as u64).map(Region::addr).ok_or(Fault::NotRegistered(addr))?;
        drop(table);
        let memory = lock(&self.managed).get(&start).cloned().ok_or(Fault::NotRegistered(addr))?;
        // Inside a buffer of this process, so it fits.
        Ok((memory, (addr - start) as usize))
    }

    // ---- peers ---------------------------------------------------------------------------------------------------------

    /// A peer's memory; the first time it is connected to. Nobody listening there is an error soon (a quarter of a second), not only
    /// when the time for connecting is over.
    ///
    /// # Errors
    /// [`Fault::Name`], [`Fault::Unreachable`].
    pub fn open(&self, session: &str) -> Result<Segment, Fault> {
        if let Some(segment) = lock(&self.sessions).get(session) {
            return Ok(segment.clone());
        }
        let deadline = Instant::now() + self.connect;
        let segment = match self.engine.open(session, deadline.min(Instant::now() + AT_ONCE)) {
            Err(error) if !matches!(error, engine::Error::Name { .. }) => match self.refused(session) {
                Some(refused) => Err(refused),
                None => self.engine.open(session, deadline),
            },
            opened => opened,
        };
        let segment = segment.map_err(Fault::of_peer)?;
        let mut sessions = lock(&self.sessions);
        if sessions.len() >= SESSIONS {
            sessions.clear();
        }
        Ok(sessions.entry(session.to_owned()).or_insert(segment).clone())
    }

    /// The engine waits for a peer that is about to start; callers of this API try again themselves. So when a peer does not answer
    /// at once, this finds out whether anybody listens there. Names in a store are none of its business.
    fn refused(&self, session: &str) -> Option<engine::Error> {
        let addr = session.to_socket_addrs().ok()?.next()?;
        let error = TcpStream::connect_timeout(&addr, self.connect).err()?;
        let action = format!("connecting to {session}");
        Some(engine::Error::Tcp(tcp_transport::Error::Io { action, source: Arc::new(error) }))
    }

    /// Forgets a peer; the next use opens it anew.
    pub fn close(&self, session: &str) {
        lock(&self.sessions).remove(session);
    }

    /// The address of a peer's first buffer.
    ///
    /// # Errors
    /// As [`open`](Self::open); [`Fault::Argument`] if it has none.
    pub fn first_buffer(&self, session: &str) -> Result<u64, Fault> {
        let segment = self.open(session)?;
        if segment.buffers().is_empty() {
            segment.refresh(Instant::now() + self.connect).map_err(Fault::of_peer)?;
        }
        let first = segment.buffers().first().map(engine::RemoteBuffer::addr);
        first.ok_or_else(|| Fault::Argument(format!("{session} has registered no memory")))
    }

    /// Opens connections and rails to a peer now.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn warm_up(&self, session: &str) -> Result<(), Fault> {
        let deadline = Instant::now() + self.connect.max(Duration::from_secs(30));
        self.open(session)?.warm_up(deadline).map_err(Fault::of_peer)
    }

    /// Whether a peer answers.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn probe(&self, session: &str) -> Result<(), Fault> {
        let deadline = Instant::now() + self.connect;
        self.open(session)?.probe(deadline).map(drop).map_err(Fault::of_peer)
    }

    // ---- transfers -----------------------------------------------------------------------------------------------------

    /// Starts as many requests as there are addresses: `lens[i]` bytes between `locals[i]` here and `remotes[i]` at the peer. Requests of
    /// no bytes end well at once. Local memory should be registered; what is not is registered for this transfer, which is
    /// slower, and has to stay where it is until the transfer is dropped.
    ///
    /// # Errors
    /// [`Fault::Argument`], what [`open`](Self::open) says, [`Fault::Engine`] for addresses that the peer has not registered. Nothing
    /// has been started then.
    pub fn transfer(
        &self,
        op: Op,
        session: &str,
        locals: &[u64],
        remotes: &[u64],
        lens: &[u64],
    ) -> Result<Transfer, Fault> {
        self.transfer_and_notify(op, session, locals, remotes, lens, None)
    }

    /// As [`transfer`](Self::transfer); when all has ended well the peer gets the note, and the transfer ends when it has.
    ///
    /// # Errors
    /// As [`transfer`](Self::transfer).
    pub fn transfer_and_notify(
        &self,
        op: Op,
        session: &str,
        locals: &[u64],
        remotes: &[u64],
        lens: &[u64],
        note: Option<&Note>,
    ) -> Result<Transfer, Fault> {
        if locals.len() != remotes.len() || locals.len() != lens.len() {
            return Err(Fault::Argument(format!(
                "{} local addresses, {} remote addresses and {} lengths",
                locals.len(),
                remotes.len(),
                lens.len()
            )));
        }
        let requests = || {
            locals.iter().zip(remotes).zip(lens).map(|((&l, &r), &n)| Request {
                op,
                local: l,
                remote: r,
                len: n,
            })
        };
        let segment = self.open(session)?;
        let mut started = self.begin(requests(), &segment, note);
        if let Err(Fault::Engine(engine::Error::NotInSegment { .. })) = started {
            // The peer may have registered more since it was asked.
            segment.refresh(Instant::now() + self.connect).map_err(Fault::of_peer)?;
            started = self.begin(requests(), &segment, note);
        }
        started
    }

    /// Requests with peers of their own, started together.
    ///
    /// # Errors
    /// As [`transfer`](Self::transfer).
    pub fn transfer_each(
        &self,
        requests: &[(Op, Segment, u64, u64, u64)],
        note: Option<&Note>,
    ) -> Result<Transfer, Fault> {
        let mut filled = self.fill(note);
        for (op, segment, local, remote, len) in requests {
            let request = Request { op: *op, local: *local, remote: *remote, len: *len };
            let mut added = self.add(&mut filled, request, segment);
            if let Err(Fault::Engine(engine::Error::NotInSegment { .. })) = added {
                segment.refresh(Instant::now() + self.connect).map_err(Fault::of_peer)?;
                added = self.add(&mut filled, request, segment);
            }
            if let Err(fault) = added {
                return self.abandon(filled, fault);
            }
        }
        self.submit(filled)
    }

    fn begin(
        &self,
        requests: impl Iterator<Item = Request>,
        segment: &Segment,
        note: Option<&Note>,
    ) -> Result<Transfer, Fault> {
        let mut filled = self.fill(note);
        for request in requests {
            if let Err(fault) = self.add(&mut filled, request, segment) {
                return self.abandon(filled, fault);
            }
        }
        self.submit(filled)
    }

    fn fill(&self, note: Option<&Note>) -> Filled {
        let mut batch = lock(&self.spare).pop().unwrap_or_default();
        if let Some(note) = note {
            batch.notify_on_completion(note.encode());
        }
        Filled { batch, places: Vec::new(), borrowed: Vec::new(), near: None }
    }

    fn add(&self, filled: &mut Filled, request: Request, segment: &Segment) -> Result<(), Fault> {
        let Request { op, local, remote, len } = request;
        if len == 0 {
            filled.places.push(None);
            return Ok(());
        }
        let near = filled.near.take().filter(|region| holds(region, local, len));
        let region = match near {
            Some(region) => region,
            None => self.local(local, len, &mut filled.borrowed)?,
        };
        let (here, there) = (Shape::contiguous(local, len), Shape::contiguous(remote, len));
        let place = match op {
            Op::Write => filled.batch.write(&region, here, segment, there),
            Op::Read => filled.batch.read(&region, here, segment, there),
        };
        filled.near = Some(region);
        filled.places.push(Some(place?));
        Ok(())
    }

    /// The registration that holds local bytes. As with Mooncake over TCP, memory that nobody has registered can be the local
    /// side, too.
    #[allow(unsafe_code)] // the caller's promise is handed on
    fn local(&self, addr: u64, len: u64, borrowed: &mut Vec<Region>) -> Result<Region, Fault> {
        if let Some((region, _)) = self.engine.region_at(addr, len) {
            return Ok(region);
        }
        let (start, bytes) = pointer(addr, len)?;
        if !is_mapped(addr, len) {
            return Err(Fault::Argument(format!("local memory {addr:#x}+{len:#x} is not mapped")));
        }
        tracing::debug!(addr, len, "local memory is not registered; registering it for this transfer");
        // SAFETY: mapped as just seen; `transfer` asks its caller to leave it in place until the transfer is dropped, which
        // unregisters it and waits.
        let region = unsafe { self.engine.register_raw("", start, bytes, Access::LOCAL) }?;
        borrowed.push(region.clone());
        Ok(region)
    }

    fn submit(&self, mut filled: Filled) -> Result<Transfer, Fault> {
        if filled.batch.is_empty() {
            filled.batch.clear();
            self.put_away(filled.batch);
            return Ok(Transfer::new(self.engine.clone(), None, filled.places, filled.borrowed));
        }
        match self.engine.submit(&mut filled.batch) {
            Ok(handle) => {
                self.put_away(filled.batch);
                Ok(Transfer::new(self.engine.clone(), Some(handle), filled.places, filled.borrowed))
            }
            Err(error) => self.abandon(filled, error.into()),
        }
    }

    fn abandon(&self, mut filled: Filled, fault: Fault) -> Result<Transfer, Fault> {
        filled.batch.clear();
        self.put_away(filled.batch);
        // Gives back what was registered for it.
        drop(Transfer::new(self.engine.clone(), None, Vec::new(), filled.borrowed));
        Err(fault)
    }

    fn put_away(&self, batch: Batch) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE {
            spare.push(batch);
        }
    }

    // ---- notifications -------------------------------------------------------------------------------------------------

    /// Sends a peer a note; returns when it is in its queue.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn notify(&self, session: &str, note: &Note) -> Result<(), Fault> {
        let deadline = Instant::now() + self.connect;
        self.open(session)?.notify(&note.encode(), deadline).map_err(Fault::of_peer)
    }

    /// The notes that have come since it was asked last, oldest first.
    pub fn notes(&self) -> Vec<Note> {
        std::iter::from_fn(|| self.engine.try_notification())
            .map(|note| Note::decode(&note.from, &note.payload))
            .collect()
    }

    fn registered(&self) -> MutexGuard<'_, Table<Region>> {
        lock(&self.registered)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.engine.shutdown(Instant::now() + GRACE);
    }
}

/// One request as the caller names it.
#[derive(Debug, Clone, Copy)]
struct Request {
    op: Op,
    local: u64,
    remote: u64,
    len: u64,
}

/// A batch on its way to being submitted.
struct Filled {
    batch: Batch,
    places: Vec<Option<usize>>,
    borrowed: Vec<Region>,
    /// The region of the request before, which is usually this one's, too.
    near: Option<Region>,
}

fn holds(region: &Region, addr: u64, len: u64) -> bool {
    let offset = addr.checked_sub(region.addr());
    offset.and_then(|offset| offset.checked_add(len)).is_some_and(|end| end <= region.len())
}

fn pointer(addr: u64, len: u64) -> Result<(NonNull<u8>, usize), Fault> {
    let wrong = || Fault::Argument(format!("{addr:#x}+{len:#x} is no range of memory"));
    let start =
        usize::try_from(addr).ok().and_then(|addr| NonNull::new(addr as *mut u8)).ok_or_else(wrong)?;
    Ok((start, usize::try_from(len).map_err(|_| wrong())?))
}

/// Whether every page of a range is mapped: a wrong address is an error and not the end of the program.
#[allow(unsafe_code)] // asks the kernel about addresses
fn is_mapped(addr: u64, len: u64) -> bool {
    let page = rustix::param::page_size() as u64;
    let first = addr & !(page - 1);
    let Some(end) = addr.checked_add(len) else { return false };
    let (Ok(start), Ok(bytes)) = (usize::try_from(first), usize::try_from(end - first)) else { return false };
    // SAFETY: with MS_ASYNC alone the kernel looks whether the pages are mapped and changes nothing.
    unsafe { rustix::mm::msync(start as *mut std::ffi::c_void, bytes, rustix::mm::MsyncFlags::ASYNC) }.is_ok()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
