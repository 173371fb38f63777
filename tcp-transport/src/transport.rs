//! The transport: what a process opens once, and everything else hangs from.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::batch::BatchHandle;
use crate::error::Error;
use crate::events::{Arrivals, Notifications};
use crate::memory::Memory;
use crate::peer::Peer;
use crate::region::{Access, Region};
use crate::request::Batch;
use crate::settings::{Deadlines, Encryption, Limits, LocalPath, SocketOptions};
use crate::stats::Statistics;

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
pub struct Builder {}

impl Builder {
    /// Listens on this address; port 0 takes a free one ([`Transport::local_addrs`]). May be called several times. Without
    /// it the transport only connects to others.
    pub fn listen(self, addr: SocketAddr) -> Self {
        let _ = addr;
        self
    }
    /// The cluster's secret, at least 16 bytes, the same everywhere: peers prove to each other that they know it before
    /// anything else is served. Use random bytes, not a password.
    pub fn secret(self, secret: impl AsRef<[u8]>) -> Self {
        let _ = secret;
        self
    }
    /// What happens to payload after authentication.
    pub fn encryption(self, encryption: Encryption) -> Self {
        let _ = encryption;
        self
    }
    /// Threads that move bytes, for all peers together. Default: 2, or 1 on a machine with one core.
    pub fn io_threads(self, threads: usize) -> Self {
        let _ = threads;
        self
    }
    /// Threads that run the [`Handler`]. Default 2.
    pub fn workers(self, threads: usize) -> Self {
        let _ = threads;
        self
    }
    /// Connections to one peer. Default: as many as cores, at most 4.
    pub fn lanes(self, lanes: usize) -> Self {
        let _ = lanes;
        self
    }
    /// Whether peers in other processes of this host are served by copying between the processes. Default on.
    pub fn same_host(self, on: bool) -> Self {
        let _ = on;
        self
    }
    /// Time limits.
    pub fn deadlines(self, deadlines: Deadlines) -> Self {
        let _ = deadlines;
        self
    }
    /// Bounds on memory and queues.
    pub fn limits(self, limits: Limits) -> Self {
        let _ = limits;
        self
    }
    /// Socket options.
    pub fn sockets(self, options: SocketOptions) -> Self {
        let _ = options;
        self
    }
    /// Local addresses and interfaces to spread a peer's lanes over, in turn.
    pub fn paths(self, paths: impl IntoIterator<Item = LocalPath>) -> Self {
        let _ = paths.into_iter();
        self
    }
    /// Answers peers' calls. Without one they are refused.
    pub fn handler(self, handler: impl Handler) -> Self {
        let _ = handler;
        self
    }
    /// Opens the sockets and starts the threads.
    ///
    /// # Errors
    /// [`Error::Io`] when an address cannot be listened on; [`Error::Setting`].
    pub fn build(self) -> Result<Transport, Error> {
        Err(Error::ShutDown)
    }
}

/// Registered memory, peers, and the threads that move bytes between them. Clones are the same transport; the last one
/// dropped shuts it down at once (see [`shutdown`](Self::shutdown) for a graceful end).
#[derive(Clone)]
pub struct Transport {}

impl Transport {
    /// Starts to set up a transport.
    pub fn builder() -> Builder {
        Builder {}
    }
    /// Where this transport listens.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &[]
    }
    /// Random identity of this transport: new in each process and each life of it.
    pub fn session(&self) -> u128 {
        0
    }
    /// Registers memory. Costs a key and a table entry, nothing by size.
    ///
    /// # Errors
    /// [`Error::Request`] for empty memory; [`Error::ShutDown`].
    pub fn register(&self, memory: Arc<dyn Memory>, access: Access) -> Result<Region, Error> {
        let _ = (memory, access);
        Err(Error::ShutDown)
    }
    /// A peer by its listening address. Costs nothing yet: lanes open with the first request. The same address gives the
    /// same peer.
    ///
    /// # Errors
    /// [`Error::ShutDown`].
    pub fn peer(&self, addr: SocketAddr) -> Result<Peer, Error> {
        let _ = addr;
        Err(Error::ShutDown)
    }
    /// Submits all requests of the batch and empties it. Never blocks on the network: what does not fit the sockets now is
    /// moved by whoever waits for the handle, or else by the I/O threads.
    ///
    /// # Errors
    /// [`Error::QueueFull`] or [`Error::ShutDown`]: nothing was submitted, the batch is as it was. Errors of single
    /// requests are theirs: [`BatchHandle::status`].
    pub fn submit(&self, batch: &mut Batch) -> Result<BatchHandle, Error> {
        let _ = batch;
        Err(Error::ShutDown)
    }
    /// Immediates of peers' writes.
    pub fn arrivals(&self) -> &Arrivals {
        unreachable!("no transport can be built yet")
    }
    /// Peers' notifications.
    pub fn notifications(&self) -> &Notifications {
        unreachable!("no transport can be built yet")
    }
    /// Counters since the start.
    pub fn statistics(&self) -> Statistics {
        Statistics::default()
    }
    /// Stops accepting, lets requests finish that are running on either side, fails what is left at the deadline, closes
    /// everything and joins the threads. Each request ends exactly once. Later submissions fail with [`Error::ShutDown`].
    pub fn shutdown(&self, deadline: Instant) {
        let _ = deadline;
    }
    /// As [`shutdown`](Self::shutdown), with the configured time.
    pub fn close(&self) {
        self.shutdown(Instant::now() + Duration::from_secs(5));
    }
}
