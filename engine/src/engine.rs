//! The engine: what a process opens once.

use std::collections::HashMap;
use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::control::{self, Note};
use crate::error::Error;
use crate::handle::BatchHandle;
use crate::memory::{Access, Memory, Region};
use crate::node::Node;
use crate::request::Batch;
use crate::segment::{self, Segment};
use crate::settings::{Protocol, Source};

/// How long unregistering waits for requests in flight; they have a deadline of 30 s themselves.
const UNREGISTER_WAIT: Duration = Duration::from_secs(35);

/// Sets up an [`Engine`]. Every setting has a default.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Builder {
    listen: Vec<SocketAddr>,
    name: Option<String>,
    secret: Option<Vec<u8>>,
    protocol: Option<Protocol>,
    provider: Option<String>,
    same_host: Option<bool>,
    io_threads: Option<usize>,
    lanes: Option<usize>,
}

impl Builder {
    /// Where peers reach this engine; port 0 takes a free one. Default: a free port of 127.0.0.1. May be called several times.
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.listen.push(addr);
        self
    }

    /// The name that peers open, `host:port`. Default: the first listening address. Must be given when that is a wildcard
    /// such as `0.0.0.0`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// The cluster's secret, at least 16 random bytes, the same everywhere: peers prove to each other that they know it before
    /// anything else is served. The libfabric path's keys travel under it too.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.secret = Some(secret.as_ref().to_vec());
        self
    }

    /// Which transport to use. Without this call the environment decides (`WEFT_PROTOCOL`, `MOONCAKE_PROTOCOL`,
    /// `MC_FORCE_TCP`, in this order), and else it is [`Protocol::Auto`].
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.protocol = Some(protocol);
        self
    }

    /// Uses this libfabric provider (such as `tcp;ofi_rxm` or `shm`) instead of EFA: for tests, and for fabrics that are not
    /// AWS's. Both sides must name the same one.
    pub fn provider(mut self, provider: impl Into<String>) -> Self {
        self.provider = Some(provider.into());
        self
    }

    /// Whether TCP peers on the same host copy between the two processes instead of going through sockets. Default on.
    pub fn same_host(mut self, on: bool) -> Self {
        self.same_host = Some(on);
        self
    }

    /// Threads that serve TCP peers, for all of them together.
    pub fn io_threads(mut self, threads: usize) -> Self {
        self.io_threads = Some(threads);
        self
    }

    /// TCP connections to one peer.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.lanes = Some(lanes);
        self
    }

    /// Opens the transports.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::Tcp`] when the listening address is taken; [`Error::Unavailable`] when [`Protocol::Efa`] was
    /// asked for and there is no such path.
    pub fn build(self) -> Result<Engine, Error> {
        let (protocol, source) = crate::settings::protocol(self.protocol, |name| std::env::var(name).ok())?;
        let listen = match self.listen.as_slice() {
            [] => &[SocketAddr::from(([127, 0, 0, 1], 0))],
            given => given,
        };
        #[cfg(not(feature = "efa"))]
        if protocol == Protocol::Efa {
            return Err(Error::Unavailable {
                path: self.provider.map_or("efa".into(), |name| format!("libfabric provider {name}")),
                reason: crate::node::WITHOUT_LIBFABRIC.into(),
            });
        }
        require_name(self.name.as_deref(), listen)?;
        let node = Node::new(protocol);
        let answering = Arc::clone(&node);
        let mut transport = tcp_transport::Transport::builder()
            .handler(move |from, request: &[u8]| answering.answer(from, request));
        for &addr in listen {
            transport = transport.listen(addr);
        }
        if let Some(secret) = self.secret {
            transport = transport.secret(secret);
        }
        if let Some(on) = self.same_host {
            transport = transport.same_host(on);
        }
        if let Some(threads) = self.io_threads {
            transport = transport.io_threads(threads);
        }
        if let Some(lanes) = self.lanes {
            transport = transport.lanes(lanes);
        }
        let transport = transport.build()?;
        // Always a listening address: there is at least the default one.
        let own = || transport.local_addrs().first().map(ToString::to_string);
        let name = self.name.or_else(own).unwrap_or_default();
        #[cfg(feature = "efa")]
        match crate::fabric::open(
            protocol,
            self.provider.as_deref(),
            &name,
            listen.first().map(SocketAddr::ip),
        ) {
            Ok(fabric) => node.set_opened(name, fabric),
            Err(error) => {
                node.set_opened(name, Err(error.to_string()));
                return Err(error);
            }
        }
        #[cfg(not(feature = "efa"))]
        node.set_opened(name);
        tracing::info!(name = node.name(), %protocol, %source, "engine is up");
        Ok(Engine {
            inner: Arc::new(Inner { transport, node, protocol, source, segments: Mutex::default() }),
        })
    }
}

/// An address that stands for all of them is none that peers could connect to.
fn require_name(name: Option<&str>, listen: &[SocketAddr]) -> Result<(), Error> {
    match listen.first() {
        Some(addr) if name.is_none() && addr.ip().is_unspecified() => Err(Error::Setting(format!(
            "an engine that listens on the wildcard address {addr} needs a name that peers can connect to: \
             Builder::name(\"host:port\")"
        ))),
        _ => Ok(()),
    }
}

/// Registered memory, peers' segments, and the transports between them. Clones are the same engine; the last one dropped
/// ends it.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    transport: tcp_transport::Transport,
    node: Arc<Node>,
    protocol: Protocol,
    source: Source,
    segments: Mutex<HashMap<String, Weak<segment::Inner>>>,
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
        (self.inner.protocol, self.inner.source)
    }

    /// The libfabric path that this engine has, in words, or why it has none.
    ///
    /// # Errors
    /// [`Error::Unavailable`] with the reason.
    pub fn fabric(&self) -> Result<String, Error> {
        self.inner.node.describe_fabric()
    }

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
        let memory = memory.into();
        #[cfg(feature = "efa")]
        let fabric = match self.inner.node.fabric() {
            // Device memory needs its placement and a dmabuf, which this trait does not carry: TCP stages it.
            Ok(fabric) if memory.device().is_none() => Some(fabric.register(Arc::clone(&memory), access)?),
            _ => None,
        };
        let tcp = self.inner.transport.register(memory, access)?;
        let region = Region {
            label: label.into(),
            tcp,
            #[cfg(feature = "efa")]
            fabric,
        };
        self.inner.node.add(region.clone());
        Ok(region)
    }

    /// Takes peers' access away, waits for requests in flight that use the region, and lets go of the memory. When it returns
    /// well, no peer touches the memory any more.
    ///
    /// # Errors
    /// [`Error::InUse`] when own requests were still running after 35 s; peers' access is gone all the same.
    pub fn unregister(&self, region: Region) -> Result<(), Error> {
        self.inner.node.remove(&region);
        region.close(UNREGISTER_WAIT)
    }

    /// Opens a peer's memory by the peer's name, `host:port`. One round trip: it tells both sides everything and decides the
    /// path. Opening a name again gives the same segment.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::Tcp`] when the peer cannot be reached until `deadline`, [`Error::Control`],
    /// [`Error::Unavailable`] when the protocol that is in force has no path to it.
    pub fn open(&self, name: &str, deadline: Instant) -> Result<Segment, Error> {
        if let Some(segment) = self.segments().get(name).and_then(Segment::upgrade) {
            return Ok(segment);
        }
        let peer = self.inner.transport.peer(resolve(name)?)?;
        let segment = Segment::open(name, peer, Arc::clone(&self.inner.node), deadline)?;
        let mut segments = self.segments();
        // Another thread may have been faster; then its segment is everybody's.
        if let Some(earlier) = segments.get(name).and_then(Segment::upgrade) {
            return Ok(earlier);
        }
        segments.retain(|_, known| known.strong_count() > 0);
        segments.insert(name.to_owned(), segment.downgrade());
        Ok(segment)
    }

    fn segments(&self) -> std::sync::MutexGuard<'_, HashMap<String, Weak<segment::Inner>>> {
        self.inner.segments.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Submits all requests of the batch and empties it. Never blocks on the network.
    ///
    /// # Errors
    /// When a transport takes nothing at all (it is full or has been shut down). If the batch held requests for two transports
    /// and the second one refused, those of the first have been cancelled. Errors of single requests are theirs:
    /// [`BatchHandle::status`].
    pub fn submit(&self, batch: &mut Batch) -> Result<BatchHandle, Error> {
        let tcp =
            if batch.tcp.is_empty() { None } else { Some(self.inner.transport.submit(&mut batch.tcp)?) };
        #[cfg(feature = "efa")]
        let fabric = if batch.fabric.is_empty() {
            None
        } else {
            match self.inner.node.fabric().and_then(|fabric| fabric.submit(&mut batch.fabric)) {
                Ok(handle) => Some(handle),
                Err(error) => {
                    if let Some(handle) = tcp {
                        handle.cancel();
                    }
                    return Err(error);
                }
            }
        };
        let slots = std::mem::take(&mut batch.slots);
        Ok(BatchHandle {
            tcp,
            #[cfg(feature = "efa")]
            fabric,
            slots,
        })
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

    /// Stops accepting, lets running requests finish until `deadline`, ends the rest, closes everything. Each request ends
    /// exactly once.
    pub fn shutdown(&self, deadline: Instant) {
        self.inner.transport.shutdown(deadline);
        #[cfg(feature = "efa")]
        if let Ok(fabric) = self.inner.node.fabric() {
            fabric.shutdown(deadline);
        }
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Engine({} protocol={})", self.name(), self.inner.protocol)
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

    #[test]
    fn a_wildcard_needs_a_name() {
        let wildcard = [SocketAddr::from(([0, 0, 0, 0], 9000))];
        assert!(require_name(None, &wildcard).unwrap_err().to_string().contains("0.0.0.0:9000"));
        assert!(require_name(Some("node7:9000"), &wildcard).is_ok());
        assert!(require_name(None, &[SocketAddr::from(([127, 0, 0, 1], 9))]).is_ok());
    }
}
