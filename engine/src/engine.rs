//! The engine: what a process opens once.

use std::collections::HashMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::arrivals::{ArrivalCounter, immediate};
use crate::builder::Builder;
use crate::control::{self, Note};
use crate::errands::Errands;
use crate::error::Error;
use crate::flight::Flight;
use crate::handle::BatchHandle;
use crate::memory::{Access, Memory, Region};
use crate::metadata::{Directory, Lease};
use crate::node::Node;
#[cfg(any(feature = "efa", feature = "mooncake"))]
use crate::path::Chosen;
use crate::protocol::Protocol;
use crate::request::{Batch, Parts};
use crate::segment::{self, Segment};
use crate::settings::{Settings, Source};
use crate::statistics::{PeerCounters, PeerStatistics, Statistics};
use crate::warden::{self, Warden};

/// How long unregistering waits for requests in flight; they have a deadline of 30 s themselves.
const UNREGISTER_WAIT: Duration = Duration::from_secs(35);
/// Emptied batches that are kept for reuse.
const SPARE: usize = 256;

/// Registered memory, peers' segments, and the transports between them. Clones are the same engine; the last one dropped
/// ends it at once (see [`shutdown`](Self::shutdown) for a graceful end). All calls may come from any thread.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    // The name goes first, then whatever serves it.
    lease: Mutex<Option<Lease>>,
    pub(crate) transport: tcp_transport::Transport,
    pub(crate) node: Arc<Node>,
    pub(crate) settings: Settings,
    pub(crate) errands: Errands,
    /// Where peers connect to, `host:port`.
    #[cfg_attr(not(feature = "mooncake"), allow(dead_code))] // others have it from the store
    pub(crate) address: String,
    pub(crate) directory: Option<Directory>,
    /// Requests to Mooncake's nodes, and what they find of this engine in the store.
    #[cfg(feature = "mooncake")]
    pub(crate) mooncake: crate::mooncake::Runner,
    #[cfg(feature = "mooncake")]
    publication: std::sync::OnceLock<crate::mooncake::Publication>,
    segments: Mutex<HashMap<String, Weak<segment::Inner>>>,
    peers: Mutex<HashMap<String, Arc<PeerCounters>>>,
    spare: Mutex<Vec<Parts>>,
    warden: Mutex<Warden>,
}

impl Inner {
    pub(crate) fn start(
        settings: Settings,
        transport: tcp_transport::Transport,
        node: Arc<Node>,
        address: String,
        directory: Option<Directory>,
        lease: Option<Lease>,
    ) -> Result<Engine, Error> {
        let (warden, post) = warden::post();
        let inner = Arc::new(Self {
            lease: Mutex::new(lease),
            transport,
            node,
            settings,
            errands: Errands::default(),
            address,
            directory,
            #[cfg(feature = "mooncake")]
            mooncake: crate::mooncake::Runner::default(),
            #[cfg(feature = "mooncake")]
            publication: std::sync::OnceLock::new(),
            segments: Mutex::default(),
            peers: Mutex::default(),
            spare: Mutex::default(),
            warden: Mutex::new(warden),
        });
        inner.node.set_engine(&inner);
        warden::start(&inner, post)?;
        #[cfg(feature = "mooncake")]
        if inner.speaks_mooncake()
            && let Some(directory) = &inner.directory
        {
            let publication = crate::mooncake::Publication::new(directory, &inner.node)?;
            let _ = inner.publication.set(publication);
        }
        Ok(Engine { inner })
    }

    /// Whether this engine deals with Mooncake's nodes.
    #[cfg(feature = "mooncake")]
    pub(crate) fn speaks_mooncake(&self) -> bool {
        self.settings.mooncake.value != crate::settings::Mooncake::Off
    }

    /// What others find of this engine in a store has changed.
    pub(crate) fn republish(&self) {
        #[cfg(feature = "mooncake")]
        if let Some(publication) = self.publication.get() {
            publication.update(&self.node);
        }
    }

    /// Where the engine of this name is.
    pub(crate) fn resolve(&self, name: &str) -> Result<SocketAddr, Error> {
        let Some(directory) = &self.directory else { return resolve(name) };
        match directory.lookup(name)? {
            Some(record) => resolve(&record.address),
            None => Err(Error::Metadata {
                store: directory.server().to_owned(),
                action: format!("looking {name:?} up"),
                reason: "there is no such name; its engine has not started yet, or its lease has ended"
                    .into(),
            }),
        }
    }

    /// The counters of a peer; they stay when its segment goes.
    pub(crate) fn counters(&self, name: &str) -> Arc<PeerCounters> {
        Arc::clone(lock(&self.peers).entry(name.to_owned()).or_default())
    }

    pub(crate) fn open_segments(&self) -> Vec<Segment> {
        lock(&self.segments).values().filter_map(Segment::upgrade).collect()
    }

    /// A peer has called, in this life. If we know it from another one, its segment is fetched again.
    pub(crate) fn met(&self, name: &str, epoch: u128) {
        let known = lock(&self.segments).get(name).and_then(Segment::upgrade);
        if let Some(segment) = known.filter(|segment| segment.epoch() != epoch) {
            self.errands.run(move || {
                let now = Instant::now();
                segment.mend(now, now + Duration::from_secs(3), |_| None);
            });
        }
    }

    /// Looks after a flight whose handle is gone.
    pub(crate) fn adopt(&self, flight: Arc<Flight>) {
        // The thread is there as long as the engine is.
        let _ = lock(&self.warden).send(flight);
    }

    pub(crate) fn keep_parts(&self, mut parts: Parts) {
        parts.clear();
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE {
            spare.push(parts);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Memory to be registered with others, all or nothing: [`Engine::register_many`].
#[derive(Clone)]
pub struct Buffer {
    /// What peers look it up by.
    pub label: String,
    /// The memory.
    pub memory: Arc<dyn Memory>,
    /// What peers may do with it.
    pub access: Access,
}

impl Buffer {
    /// Memory with a label and rights.
    pub fn new(label: impl Into<String>, memory: impl Into<Arc<dyn Memory>>, access: Access) -> Self {
        Self { label: label.into(), memory: memory.into(), access }
    }
}

impl fmt::Debug for Buffer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (addr, len) = (self.memory.address(), self.memory.len());
        write!(f, "Buffer({:?} {addr:#x}+{len:#x} {:?})", self.label, self.access)
    }
}

/// A notification from a peer engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Name of the engine that sent it, as that engine says.
    pub from: String,
    /// What it sent.
    pub payload: Vec<u8>,
}

impl Engine {
    /// Starts to set up an engine.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The name by which peers open this engine's memory.
    pub fn name(&self) -> &str {
        self.inner.node.name()
    }

    /// The protocol in force, and who chose it.
    pub fn protocol(&self) -> (Protocol, Source) {
        let protocol = &self.inner.settings.protocol;
        (protocol.value, protocol.source)
    }

    /// Every setting in force, and who chose it.
    pub fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    /// The libfabric path that this engine has, in words, or why it has none.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason.
    pub fn fabric(&self) -> Result<String, Error> {
        self.inner.node.describe_fabric()
    }

    /// What has been done so far. Takes each NIC's lock for a moment.
    pub fn statistics(&self) -> Statistics {
        let inner = &self.inner;
        let open: HashMap<String, Segment> =
            inner.open_segments().into_iter().map(|segment| (segment.name().to_owned(), segment)).collect();
        let mut peers: Vec<PeerStatistics> = lock(&inner.peers)
            .iter()
            .map(|(name, counters)| match open.get(name) {
                Some(segment) => segment.statistics(),
                None => counters.snapshot(name),
            })
            .collect();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        let (regions, registered_bytes) = inner.node.regions.size();
        Statistics {
            name: self.name().to_owned(),
            protocol: inner.settings.protocol.value,
            fabric: self.fabric().map_err(|error| error.to_string()),
            #[cfg(feature = "efa")]
            descriptor: inner.node.fabric().ok().map(crate::fabric::Fabric::generation),
            #[cfg(not(feature = "efa"))]
            descriptor: None,
            regions,
            registered_bytes,
            peers,
            #[cfg(feature = "efa")]
            nics: inner.node.fabric().map(crate::fabric::Fabric::nics).unwrap_or_default(),
            #[cfg(not(feature = "efa"))]
            nics: Vec::new(),
            tcp: inner.transport.statistics().into(),
        }
    }

    // ---- memory ----------------------------------------------------------------------------------------------------------

    /// Registers memory with every transport under a label of the caller's. `access` says what peers may do with it; the
    /// engine's own requests may always use it. May block for as long as NICs pin pages.
    ///
    /// # Errors
    /// What the transport says; nothing is registered then.
    pub fn register(
        &self,
        label: &str,
        memory: impl Into<Arc<dyn Memory>>,
        access: Access,
    ) -> Result<Region, Error> {
        let region = self.enter(label, memory.into(), access)?;
        self.inner.node.regions.add(region.clone());
        self.inner.republish();
        Ok(region)
    }

    /// Registers all of these, or none. Peers that ask from then on hear of all of them. NICs register small buffers first, which is faster.
    /// The regions come in the order of the buffers.
    ///
    /// # Errors
    /// As [`register`](Self::register); nothing is registered then.
    pub fn register_many(&self, buffers: impl IntoIterator<Item = Buffer>) -> Result<Vec<Region>, Error> {
        let mut order: Vec<(usize, Buffer)> = buffers.into_iter().enumerate().collect();
        order.sort_by_key(|(_, buffer)| buffer.memory.len());
        let mut regions: Vec<(usize, Region)> = Vec::with_capacity(order.len());
        for (index, Buffer { label, memory, access }) in order {
            match self.enter(&label, memory, access) {
                Ok(region) => regions.push((index, region)),
                Err(error) => {
                    for (_, region) in regions {
                        // Nobody has used it yet, so it is free at once.
                        if let Err(left) = region.close(UNREGISTER_WAIT) {
                            tracing::warn!(error = %left, "left over by a registration that failed");
                        }
                    }
                    return Err(error);
                }
            }
        }
        regions.sort_by_key(|(index, _)| *index);
        let regions: Vec<Region> = regions.into_iter().map(|(_, region)| region).collect();
        for region in &regions {
            self.inner.node.regions.add(region.clone());
        }
        self.inner.republish();
        Ok(regions)
    }

    /// Registers with the transports; peers do not hear of it yet.
    fn enter(&self, label: &str, memory: Arc<dyn Memory>, access: Access) -> Result<Region, Error> {
        #[cfg(feature = "efa")]
        let fabric = match self.inner.node.fabric() {
            // Device memory needs its placement and a dmabuf, which this trait does not carry: TCP stages it.
            Ok(fabric) if memory.device().is_none() => Some(fabric.register(Arc::clone(&memory), access)?),
            _ => None,
        };
        let tcp = self.inner.transport.register(memory, access)?;
        #[cfg(feature = "efa")]
        return Ok(Region::new(label, tcp, fabric));
        #[cfg(not(feature = "efa"))]
        Ok(Region::new(label, tcp))
    }

    /// Takes peers' access away, waits for requests in flight that use the region, and lets go of the memory. When it returns
    /// well, no peer touches the memory any more.
    ///
    /// # Errors
    /// [`Error::InUse`] when own requests were still running after 35 s; peers' access is gone all the same.
    pub fn unregister(&self, region: Region) -> Result<(), Error> {
        self.inner.node.regions.remove(&region);
        self.inner.republish();
        region.close(UNREGISTER_WAIT)
    }

    /// As [`unregister`](Self::unregister) for all of these: peers' access to all is taken away first, then all are waited for.
    ///
    /// # Errors
    /// The first of [`unregister`](Self::unregister)'s; all others have been unregistered all the same.
    pub fn unregister_many(&self, regions: impl IntoIterator<Item = Region>) -> Result<(), Error> {
        let regions: Vec<Region> = regions.into_iter().collect();
        for region in &regions {
            self.inner.node.regions.remove(region);
            region.revoke();
        }
        self.inner.republish();
        let began = Instant::now();
        let mut outcome = Ok(());
        for region in regions {
            let closed = region.close(UNREGISTER_WAIT.saturating_sub(began.elapsed()));
            outcome = outcome.and(closed);
        }
        outcome
    }

    /// The registration that holds the local bytes `addr..addr + len`, and their offset in it; of several the one that begins
    /// last. For callers that address memory by pointer.
    pub fn region_at(&self, addr: u64, len: u64) -> Option<(Region, u64)> {
        self.inner.node.regions.at(addr, len)
    }

    // ---- peers -----------------------------------------------------------------------------------------------------------

    /// Opens a peer's memory by the peer's name: `host:port`, or whatever name it has in the metadata store. One round trip: it
    /// tells both sides everything and decides the path. Opening a name again gives the same segment.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Metadata`], [`Error::Tcp`] when the peer cannot be reached until `deadline`, [`Error::Control`],
    /// [`Error::Unavailable`] when the protocol that is in force has no path to it.
    pub fn open(&self, name: &str, deadline: Instant) -> Result<Segment, Error> {
        if let Some(segment) = lock(&self.inner.segments).get(name).and_then(Segment::upgrade) {
            return Ok(segment);
        }
        let segment = Segment::open(name, &self.inner, deadline)?;
        let mut segments = lock(&self.inner.segments);
        // Another thread may have been faster; then its segment is everybody's.
        if let Some(earlier) = segments.get(name).and_then(Segment::upgrade) {
            return Ok(earlier);
        }
        segments.retain(|_, known| known.strong_count() > 0);
        segments.insert(name.to_owned(), segment.downgrade());
        drop(segments);
        let (path, reason) = (segment.path(), segment.path_reason());
        tracing::info!(segment = name, %path, reason, "opened");
        Ok(segment)
    }

    /// Forgets a peer: closes its connections, which fails what runs over them, and gives its place on the NICs to others.
    /// Segments are closed by themselves when the last clone is dropped, but their connections stay for the next time.
    pub fn close(&self, segment: Segment) {
        lock(&self.inner.segments).remove(segment.name());
        let known = segment.known();
        known.peer().disconnect();
        #[cfg(feature = "mooncake")]
        if let Chosen::Mooncake(remote) = &known.path {
            self.inner.mooncake.forget(remote);
        }
        #[cfg(feature = "efa")]
        if let (Chosen::Fabric(peer), Ok(fabric)) = (known.path, self.inner.node.fabric()) {
            fabric.remove_peer(peer);
            self.inner.node.audience.forget(segment.name());
        }
    }

    // ---- transfers -------------------------------------------------------------------------------------------------------

    /// Submits all requests of the batch and empties it. Never blocks on the network.
    ///
    /// # Errors
    /// When a transport takes nothing at all (it is full or has been shut down). If the batch held requests for two transports
    /// and the second one refused, those of the first have been cancelled. Errors of single requests are theirs:
    /// [`BatchHandle::status`].
    pub fn submit(&self, batch: &mut Batch) -> Result<BatchHandle, Error> {
        let inner = &self.inner;
        let limit = batch.deadline.unwrap_or(inner.settings.timeout.value);
        let now = Instant::now();
        // A limit that is beyond what the clock can count is none.
        let deadline = now.checked_add(limit).unwrap_or(now + Duration::from_secs(u64::from(u32::MAX)));
        batch.tcp.set_deadline(limit);
        #[cfg(feature = "efa")]
        batch.fabric.set_deadline(limit);
        let tcp = if batch.tcp.is_empty() { None } else { Some(inner.transport.submit(&mut batch.tcp)?) };
        #[cfg(feature = "efa")]
        let fabric = if batch.fabric.is_empty() {
            None
        } else {
            match inner.node.fabric().and_then(|fabric| fabric.submit(&mut batch.fabric)) {
                Ok(handle) => Some(handle),
                Err(error) => {
                    if let Some(handle) = tcp {
                        handle.cancel();
                    }
                    batch.clear();
                    return Err(error);
                }
            }
        };
        #[cfg(feature = "mooncake")]
        let mooncake =
            (!batch.mooncake.is_empty()).then(|| inner.mooncake.submit(&mut batch.mooncake, deadline));
        let parts = std::mem::replace(&mut batch.parts, lock(&inner.spare).pop().unwrap_or_default());
        let flight = Flight::new(
            Arc::downgrade(inner),
            parts,
            deadline,
            batch.notification.take(),
            tcp,
            #[cfg(feature = "efa")]
            fabric,
            #[cfg(feature = "mooncake")]
            mooncake,
        );
        Ok(BatchHandle::new(flight))
    }

    /// Counts the writes with `tag` ([`Batch::write_with_tag`]) that arrive from the engine called `peer` (its
    /// [`name`](Self::name)), those included that came before this call. Costs no thread and no message of the peer's program.
    ///
    /// ```
    /// # use std::time::{Duration, Instant};
    /// # use engine::{Access, Batch, Engine, HostMemory};
    /// # let deadline = Instant::now() + Duration::from_secs(10);
    /// # let (decode, prefill) = (Engine::builder().build()?, Engine::builder().build()?);
    /// decode.register("kv", HostMemory::new(1 << 20)?, Access::WRITE)?;
    /// let layers = decode.arrivals(prefill.name(), 7)?;
    ///
    /// # let local = prefill.register("staging", HostMemory::new(4096)?, Access::LOCAL)?;
    /// # let segment = prefill.open(decode.name(), deadline)?;
    /// # let kv = segment.buffer("kv")?;
    /// let mut batch = Batch::new();
    /// for layer in 0..80 {
    ///     batch.write_with_tag(&local, local.range(0, 4096), &segment, kv.range(layer * 4096, 4096), 7)?;
    /// }
    /// prefill.submit(&mut batch)?;
    ///
    /// assert!(layers.wait(80, deadline), "all layers are there");
    /// # Ok::<(), engine::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unavailable`] when 65 536 other peers have been counted or met, or for a name of more than 300 bytes.
    pub fn arrivals(&self, peer: &str, tag: u16) -> Result<ArrivalCounter, Error> {
        let inner = &self.inner;
        let number = inner.node.arrivals.number(peer).ok_or_else(|| Error::Unavailable {
            path: format!("counting arrivals from {peer:?}"),
            reason: "65536 other peers are counted, or that is no engine's name".into(),
        })?;
        Ok(inner.node.arrivals.watch(
            immediate(number, tag),
            inner.transport.arrivals(),
            #[cfg(feature = "efa")]
            inner.node.fabric().ok().map(crate::fabric::Fabric::arrivals),
        ))
    }

    /// The oldest notification of a peer; waits for one until `deadline`, then `None`.
    pub fn notification(&self, deadline: Instant) -> Option<Notification> {
        loop {
            let next = self.inner.transport.notifications().next(deadline)?;
            if let Some(notification) = read_note(&next) {
                return Some(notification);
            }
        }
    }

    /// The oldest notification of a peer, if there is one.
    pub fn try_notification(&self) -> Option<Notification> {
        loop {
            let next = self.inner.transport.notifications().try_next()?;
            if let Some(notification) = read_note(&next) {
                return Some(notification);
            }
        }
    }

    /// Removes the name from the metadata store, stops accepting, lets running requests finish until `deadline`, ends the rest,
    /// closes everything. Each request ends exactly once; later calls fail.
    pub fn shutdown(&self, deadline: Instant) {
        drop(lock(&self.inner.lease).take());
        self.inner.transport.shutdown(deadline);
        #[cfg(feature = "efa")]
        if let Ok(fabric) = self.inner.node.fabric() {
            fabric.shutdown(deadline);
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({} protocol={})", self.name(), self.protocol().0)
    }
}

fn read_note(notification: &tcp_transport::Notification) -> Option<Notification> {
    match control::decode::<Note>(&notification.bytes) {
        Ok(Note { from, payload }) => Some(Notification { from, payload }),
        Err(reason) => {
            tracing::warn!(peer = %notification.from, reason, "notification dropped");
            None
        }
    }
}

fn resolve(name: &str) -> Result<SocketAddr, Error> {
    let wrong = |reason: String| Error::Name { name: name.to_owned(), reason };
    let mut addrs = name.to_socket_addrs().map_err(|error| wrong(error.to_string()))?;
    addrs.next().ok_or_else(|| wrong("it resolves to no address".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_lead_nowhere_say_so() {
        for name in ["", "nowhere", "127.0.0.1", "127.0.0.1:port", "host.invalid:1"] {
            let error = resolve(name).unwrap_err().to_string();
            assert!(error.contains("host:port"), "{error}");
        }
        assert_eq!(resolve("127.0.0.1:80").unwrap(), SocketAddr::from(([127, 0, 0, 1], 80)));
    }
}
