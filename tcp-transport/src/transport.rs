//! The transport: what a process opens once, and everything else hangs from.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::batch::BatchHandle;
use crate::context::{self, Context};
use crate::error::Error;
use crate::events::{Arrivals, Notifications};
use crate::foreign::{Foreign, Foreigners};
use crate::handshake::{MIN_SECRET, Psk};
use crate::io::{IoShared, IoThread, Message};
use crate::memory::Memory;
use crate::peer::{MAX_LANES, Peer, PeerInner};
use crate::region::{Access, Region, RegionTable};
use crate::request::Batch;
use crate::service::Service;
use crate::settings::{Deadlines, Encryption, Limits, LocalPath, Settings, SocketOptions};
use crate::socket;
use crate::stats::{Counters, Statistics};
use crate::submit;
use crate::sync::{lock, random};
use crate::workers::Workers;

/// Answers the calls of peers: the opaque control messages of whoever builds on this transport.
pub trait Handler: Send + Sync + 'static {
    /// Answers one call. Runs on a worker thread of the transport, several at a time; it may block, and may use the
    /// transport itself. An error's words travel to the caller as [`Error::Call`]. A panic becomes an error too.
    fn call(&self, from: Caller, request: &[u8]) -> Result<Vec<u8>, String>;
}

impl<F> Handler for F
where
    F: Fn(Caller, &[u8]) -> Result<Vec<u8>, String> + Send + Sync + 'static,
{
    fn call(&self, from: Caller, request: &[u8]) -> Result<Vec<u8>, String> {
        self(from, request)
    }
}

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// The other end of the connection.
    pub addr: SocketAddr,
    /// Random identity of the caller's transport, the same over all its lanes and reconnections.
    pub session: u128,
}

/// Sets up a [`Transport`]. Every setting has a default.
#[must_use]
#[derive(Default)]
pub struct Builder {
    listen: Vec<SocketAddr>,
    secret: Option<Vec<u8>>,
    handler: Option<Arc<dyn Handler>>,
    settings: Settings,
    foreigners: Foreigners,
}

impl Builder {
    /// Listens on this address; port 0 takes a free one ([`Transport::local_addrs`]). May be called several times. Without
    /// it the transport only connects to others.
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen.push(addr);
        self
    }

    /// The cluster's secret, at least 16 bytes, the same everywhere: peers prove to each other that they know it before
    /// anything else is served. Use random bytes, not a password.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.secret = Some(secret.as_ref().to_vec());
        self
    }

    /// What happens to payload after authentication.
    pub fn encryption(mut self, encryption: Encryption) -> Self {
        self.settings.encryption = encryption;
        self
    }

    /// Threads that move bytes, for all peers together. Default: 2, or 1 on a machine with one core.
    pub fn io_threads(mut self, threads: usize) -> Self {
        self.settings.io_threads = threads;
        self
    }

    /// Threads that run the [`Handler`]. Default 2.
    pub fn workers(mut self, threads: usize) -> Self {
        self.settings.workers = threads;
        self
    }

    /// Connections to one peer, 1 to 16. Default: as many as cores, at most 4.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.settings.lanes = lanes;
        self
    }

    /// Bytes of one request or batch that are worth a lane of their own. Larger requests are spread over the lanes; what is
    /// smaller shares one. Default 1 MiB.
    pub fn stripe_bytes(mut self, bytes: u64) -> Self {
        self.settings.stripe_bytes = bytes;
        self
    }

    /// Whether peers in other processes of this host are served by copying between the processes. Default on.
    pub fn same_host(mut self, on: bool) -> Self {
        self.settings.same_host = on;
        self
    }

    /// Whether a thread stays awake for a copy between two processes of this host rather than sleep until it is woken, which would
    /// take 20 to 50 µs of each request where its core has gone idle: a caller while the peer copies (2 ms at most), an I/O thread
    /// for 50 µs after it has copied. Only as long as nobody else wants the core. Default: yes where there is more than one.
    pub fn stay_awake(mut self, on: bool) -> Self {
        self.settings.stay_awake = on;
        self
    }

    /// Whether peers in this very process are served by plain copying. Default on.
    pub fn same_process(mut self, on: bool) -> Self {
        self.settings.same_process = on;
        self
    }

    /// Time limits.
    pub fn deadlines(mut self, deadlines: Deadlines) -> Self {
        self.settings.deadlines = deadlines;
        self
    }

    /// Bounds on memory and queues.
    pub fn limits(mut self, limits: Limits) -> Self {
        self.settings.limits = limits;
        self
    }

    /// Socket options.
    pub fn sockets(mut self, options: SocketOptions) -> Self {
        self.settings.sockets = options;
        self
    }

    /// Local addresses and interfaces to spread a peer's lanes over, in turn.
    pub fn paths(mut self, paths: impl IntoIterator<Item = LocalPath>) -> Self {
        self.settings.paths = paths.into_iter().collect();
        self
    }

    /// Answers peers' calls. Without one they are refused.
    pub fn handler(mut self, handler: impl Handler) -> Self {
        self.handler = Some(Arc::new(handler));
        self
    }

    /// Serves another protocol on the same port, for connections whose first bytes it recognises.
    pub fn foreign(mut self, protocol: impl Foreign) -> Self {
        self.foreigners.add(Arc::new(protocol));
        self
    }

    /// Serves the data protocol of Mooncake's TCP transport on the same port. It knows neither keys nor authentication: whoever
    /// can connect may use every registered region. Default off.
    #[cfg(feature = "mooncake")]
    pub fn serve_mooncake(mut self, on: bool) -> Self {
        self.settings.mooncake = on;
        self
    }

    /// Opens the sockets and starts the threads.
    ///
    /// # Errors
    /// [`Error::Io`] when an address cannot be listened on; [`Error::Setting`].
    pub fn build(self) -> Result<Transport, Error> {
        let Self { listen, secret, handler, settings, foreigners } = self;
        check(&settings, secret.as_deref())?;
        let psk = match &secret {
            None => None,
            Some(secret) => Some(
                Psk::derive(secret)
                    .ok_or_else(|| Error::Setting("BLAKE2s is missing from this build".into()))?,
            ),
        };
        let mut session = [0; 16];
        random(&mut session)?;
        let session = u128::from_le_bytes(session);

        let mut listeners = Vec::new();
        let mut local_addrs = Vec::new();
        for addr in listen {
            let failed = |e| Error::io(format!("listening on {addr}"), e);
            let listener = socket::listen(addr).map_err(failed)?;
            let local = listener.local_addr().map_err(failed)?;
            if secret.is_none() && !local.ip().is_loopback() {
                tracing::warn!(
                    "listening on {local} WITHOUT A SECRET: whoever can connect can call this process, and read and write \
                     every region whose key it learns; set a secret"
                );
            }
            #[cfg(feature = "mooncake")]
            if settings.mooncake && (secret.is_some() || !local.ip().is_loopback()) {
                tracing::warn!(
                    "serving Mooncake's protocol on {local}: it has NO AUTHENTICATION, so whoever can connect can read and \
                     write every registered region"
                );
            }
            listeners.push(listener);
            local_addrs.push(local);
        }

        let regions = Arc::new(RegionTable::default());
        let counters = Arc::new(Counters::default());
        let service = Arc::new(Service::new(Arc::clone(&regions), settings.limits.clone(), counters));
        let workers = Workers::start(settings.workers, handler)?;
        let io = (0..settings.io_threads).map(|_| IoShared::new()).collect::<Result<Vec<_>, _>>()?;
        let context = Context::new(settings, psk, session, service, workers, io, foreigners);
        let mut threads = Vec::new();
        let mut listeners = Some(listeners);
        for (n, shared) in context.io.iter().enumerate() {
            let listeners = listeners.take().unwrap_or_default();
            let io = IoThread::new(Arc::clone(shared), Arc::clone(&context), listeners)?;
            let thread = std::thread::Builder::new()
                .name(format!("weft-io-{n}"))
                .spawn(move || io.run())
                .map_err(|e| Error::io("starting an I/O thread", e))?;
            threads.push(thread);
        }
        if context.settings.same_process {
            context::announce(session, &context.service);
        }
        let inner =
            Inner { context, regions, local_addrs, peers: Mutex::default(), threads: Mutex::new(threads) };
        Ok(Transport { inner: Arc::new(inner) })
    }
}

fn check(settings: &Settings, secret: Option<&[u8]>) -> Result<(), Error> {
    let bad = |text: String| Err(Error::Setting(text));
    if settings.io_threads == 0 || settings.io_threads > 64 {
        return bad(format!("io_threads is {}, must be 1 to 64", settings.io_threads));
    }
    if settings.lanes == 0 || settings.lanes > MAX_LANES {
        return bad(format!("lanes is {}, must be 1 to {MAX_LANES}", settings.lanes));
    }
    if settings.limits.lane_requests == 0 || settings.limits.message == 0 {
        return bad("limits must not be zero".into());
    }
    if let Some(secret) = secret
        && secret.len() < MIN_SECRET
    {
        return bad(format!("the secret has {} bytes, must have at least {MIN_SECRET}", secret.len()));
    }
    if settings.encryption.is_full() && secret.is_none() {
        return bad("encryption needs a secret".into());
    }
    Ok(())
}

/// Registered memory, peers, and the threads that move bytes between them. Clones are the same transport; the last one
/// dropped shuts it down at once (see [`shutdown`](Self::shutdown) for a graceful end).
#[derive(Clone)]
pub struct Transport {
    inner: Arc<Inner>,
}

struct Inner {
    context: Arc<Context>,
    regions: Arc<RegionTable>,
    local_addrs: Vec<SocketAddr>,
    peers: Mutex<HashMap<SocketAddr, Arc<PeerInner>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Transport {
    /// Starts to set up a transport.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// Where this transport listens.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.inner.local_addrs
    }

    /// Random identity of this transport: new in each process and each life of it.
    pub fn session(&self) -> u128 {
        self.inner.context.session
    }

    /// Registers memory. Costs a key and a table entry, nothing by size.
    ///
    /// # Errors
    /// [`Error::Request`] for empty memory; [`Error::ShutDown`].
    pub fn register(&self, memory: Arc<dyn Memory>, access: Access) -> Result<Region, Error> {
        if self.inner.context.is_closed() {
            return Err(Error::ShutDown);
        }
        self.inner.regions.register(memory, access)
    }

    /// A peer by its listening address. Costs nothing yet: lanes open with the first request. The same address gives the
    /// same peer.
    ///
    /// # Errors
    /// [`Error::ShutDown`].
    pub fn peer(&self, addr: SocketAddr) -> Result<Peer, Error> {
        let context = &self.inner.context;
        if context.is_closed() {
            return Err(Error::ShutDown);
        }
        let mut peers = lock(&self.inner.peers);
        let inner = peers.entry(addr).or_insert_with(|| PeerInner::new(addr, context));
        Ok(Peer { inner: Arc::clone(inner) })
    }

    /// Submits all requests of the batch and empties it. Never blocks on the network: what does not fit the sockets now is
    /// moved by whoever waits for the handle, or else by the I/O threads.
    ///
    /// # Errors
    /// [`Error::QueueFull`] or [`Error::ShutDown`]: nothing was submitted, the batch is as it was. Errors of single
    /// requests are theirs: [`BatchHandle::status`].
    pub fn submit(&self, batch: &mut Batch) -> Result<BatchHandle, Error> {
        submit::submit(&self.inner.context, batch)
    }

    /// Immediates of peers' writes.
    pub fn arrivals(&self) -> &Arrivals {
        &self.inner.context.service.arrivals
    }

    /// Peers' notifications.
    pub fn notifications(&self) -> &Notifications {
        &self.inner.context.service.notifications
    }

    /// Counters since the start.
    pub fn statistics(&self) -> Statistics {
        self.inner.context.counters.snapshot()
    }

    /// Stops accepting, lets requests finish that are running on either side, fails what is left at the deadline, closes
    /// everything and joins the threads. Until then a request that loses its connection is repeated as ever. Each request ends
    /// exactly once. Later submissions fail with [`Error::ShutDown`].
    pub fn shutdown(&self, deadline: Instant) {
        let context = &self.inner.context;
        if context.closed.swap(true, Ordering::AcqRel) {
            return;
        }
        context::withdraw(context.session);
        for io in &context.io {
            io.send(Message::Drain);
        }
        let peers: Vec<_> = lock(&self.inner.peers).values().cloned().collect();
        loop {
            let quiet = context.io.iter().all(|io| io.quiet.load(Ordering::Acquire));
            if quiet && peers.iter().all(|p| p.is_idle()) || Instant::now() >= deadline {
                break;
            }
            // Whoever waits for a batch drives it on; the rest is for the I/O threads.
            peers.iter().for_each(|peer| peer.leave_to_io());
            std::thread::sleep(Duration::from_millis(2));
        }
        self.inner.stop();
    }

    /// As [`shutdown`](Self::shutdown), with the configured time.
    pub fn close(&self) {
        self.shutdown(Instant::now() + self.inner.context.settings.deadlines.shutdown);
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({:?})", self.inner.local_addrs)
    }
}

impl Inner {
    fn stop(&self) {
        self.context.closed.store(true, Ordering::Release);
        self.context.stopped.store(true, Ordering::Release);
        context::withdraw(self.context.session);
        let peers: Vec<_> = lock(&self.peers).drain().map(|(_, p)| p).collect();
        for peer in &peers {
            peer.close(true);
        }
        for io in &self.context.io {
            io.send(Message::Stop);
        }
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // The last handle may be dropped by a callback on such a thread.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
        for peer in &peers {
            peer.close(true); // what came up in between
        }
        self.context.workers.stop();
        self.context.service.arrivals.close();
        self.context.service.notifications.close();
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}
