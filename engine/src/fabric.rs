//! The libfabric path: efa-transport behind the engine's words, and the engine's memory behind libfabric's.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use efa_transport::{Arrivals, Config, Events, PeerId, Provider, Transport};
use tcp_transport::Op;

use crate::error::Error;
use crate::memory::{Access, Memory, Region};
use crate::protocol::Protocol;
use crate::request::Shape;
use crate::settings::{EFA, Settings};
use crate::statistics::NicStatistics;

/// An open libfabric transport.
pub(crate) struct Fabric {
    transport: Transport,
    name: String,
}

/// Opens the libfabric transport that the settings call for: EFA, or the provider that was named.
///
/// The inner result is the reason why there is none, where the settings allow that.
pub(crate) fn open(settings: &Settings, name: &str) -> Result<Result<Fabric, String>, Error> {
    let protocol = settings.protocol.value;
    if protocol == Protocol::Tcp {
        return Ok(Err("protocol tcp is in force".into()));
    }
    let provider = settings.provider.value.as_deref();
    let source = settings.listen.value.first().map(SocketAddr::ip);
    let config = config(settings)?.name(name);
    let opened = match provider {
        Some(wanted) => Transport::open(with_source(config.provider(Provider::parse(wanted)), source)),
        // What Mooncake's nodes use, and can be used with.
        #[cfg(feature = "mooncake")]
        None if settings.mooncake.value != crate::settings::Mooncake::Off => {
            Transport::open(config.provider(Provider::Efa))
        }
        // The card alone where it can read and write by itself, on both sides, or else with the provider's protocols.
        None => Transport::open(config.provider(Provider::EfaAuto)),
    };
    match opened {
        Ok(transport) => {
            let description = transport.describe();
            tracing::info!(%description, "libfabric is open");
            // EFA has two fabrics of the same provider; elsewhere the fabric is a network's address.
            let name = match description.provider.as_str() {
                "efa" => of_efa(&description.fabric),
                other => other.to_owned(),
            };
            Ok(Ok(Fabric { transport, name }))
        }
        Err(error) if protocol == Protocol::Efa => Err(Error::Unavailable {
            path: provider.map_or("efa".into(), |name| format!("libfabric provider {name}")),
            reason: error.to_string(),
        }),
        Err(error) => Ok(Err(error.to_string())),
    }
}

fn of_efa(fabric: &str) -> String {
    format!("efa/{fabric}")
}

/// efa-transport's own settings: the file's table before the variables of the same names, and what is the engine's to say.
fn config(settings: &Settings) -> Result<Config, Error> {
    let config = Config::from_vars(|name| {
        let key = EFA.iter().find(|(_, variable)| *variable == name).map(|(key, _)| *key);
        let given = settings.efa.iter().find(|(given, _)| Some(*given) == key);
        given.map(|(_, value)| value.value.clone()).or_else(|| std::env::var(name).ok())
    })?;
    if settings.efa.iter().any(|(key, _)| *key == "deadline_ms") {
        return Ok(config);
    }
    Ok(config.request_deadline(settings.timeout.value))
}

/// Providers over sockets take every interface but the loopback unless they are told which.
fn with_source(config: Config, source: Option<IpAddr>) -> Config {
    match source {
        Some(ip) if !ip.is_unspecified() => config.source(ip.to_string()),
        _ => config,
    }
}

impl Fabric {
    /// The provider, and EFA's fabric that it prefers.
    pub(crate) fn name(&self) -> String {
        self.name.clone()
    }

    /// The provider, and the fabric of EFA's that a peer is reached on.
    pub(crate) fn name_to(&self, peer: PeerId) -> String {
        let fabric = self.transport.peer_state(peer).map(|state| state.fabric).unwrap_or_default();
        if fabric.is_empty() { self.name() } else { of_efa(&fabric) }
    }

    /// Provider, fabric, NICs and what is slow about them.
    pub(crate) fn describe(&self) -> String {
        self.transport.describe().to_string()
    }

    /// Counts the changes of how peers reach this engine, which want to know of each.
    pub(crate) fn reach(&self) -> u64 {
        self.transport.reach_generation()
    }

    /// Which of our descriptors is the latest.
    pub(crate) fn generation(&self) -> u64 {
        self.transport.descriptor_generation()
    }

    /// Which of a peer's descriptors is in use here.
    pub(crate) fn generation_of(&self, peer: PeerId) -> Option<u64> {
        self.transport.peer_state(peer).ok().map(|state| state.generation)
    }

    /// What a peer needs to know; efa-transport's own bytes.
    pub(crate) fn descriptor(&self) -> Vec<u8> {
        self.transport.local_descriptor()
    }

    pub(crate) fn add_peer(&self, descriptor: &[u8]) -> Result<PeerId, Error> {
        Ok(self.transport.add_or_update_peer(descriptor)?)
    }

    pub(crate) fn warm_up(&self, peer: PeerId, deadline: Instant) -> Result<(), Error> {
        self.transport.warm_up(peer, deadline)?;
        Ok(())
    }

    pub(crate) fn register(
        &self,
        memory: Arc<dyn Memory>,
        access: Access,
    ) -> Result<efa_transport::Region, Error> {
        let mut rights = efa_transport::Access::LOCAL;
        if access.allows(Access::READ) {
            rights |= efa_transport::Access::REMOTE_READ;
        }
        if access.allows(Access::WRITE) {
            rights |= efa_transport::Access::REMOTE_WRITE;
        }
        Ok(self.transport.register(Arc::new(Shared(memory)), rights)?)
    }

    pub(crate) fn submit(
        &self,
        batch: &mut efa_transport::Batch,
    ) -> Result<efa_transport::BatchHandle, Error> {
        Ok(self.transport.submit(batch)?)
    }

    pub(crate) fn remove_peer(&self, peer: PeerId) {
        self.transport.remove_peer(peer);
    }

    pub(crate) fn events(&self) -> &Events {
        self.transport.events()
    }

    pub(crate) fn arrivals(&self) -> &Arrivals {
        self.transport.arrivals()
    }

    /// Slices that were tried again with a peer.
    pub(crate) fn retries(&self, peer: PeerId) -> u64 {
        self.transport.peer_statistics(peer).map_or(0, |peer| peer.retries)
    }

    pub(crate) fn nics(&self) -> Vec<NicStatistics> {
        let described = self.transport.describe().nics;
        let counted = self.transport.statistics().nics;
        let nics = described.into_iter().zip(counted).map(|(nic, counted)| NicStatistics {
            name: nic.name,
            link_mbps: nic.link_mbps,
            depth: nic.depth,
            aside: nic.aside,
            bytes_written: counted.bytes_written,
            bytes_read: counted.bytes_read,
            operations: counted.slices,
            errors: counted.errors,
            again: counted.again,
            in_flight: counted.in_flight,
            queued: counted.queued,
            addresses: counted.addresses,
            pages: counted.pages.0,
            page_budget: counted.pages.1,
            reopened: counted.reopened,
            arrivals: counted.arrivals,
        });
        nics.collect()
    }

    pub(crate) fn shutdown(&self, deadline: Instant) {
        self.transport.shutdown(deadline);
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Fabric({})", self.name)
    }
}

/// Adds a request to the batch of efa-transport; its index there.
pub(crate) fn push(
    batch: &mut efa_transport::Batch,
    local: &Region,
    peer: PeerId,
    (op, local_shape, remote_shape, immediate): (Op, Shape<'_>, Shape<'_>, Option<u32>),
) -> Result<usize, Error> {
    let Some(region) = local.fabric() else {
        return Err(Error::Unavailable {
            path: "the libfabric path".into(),
            reason: format!("{local:?} is not registered with it"),
        });
    };
    let op = match op {
        Op::Read => efa_transport::Op::Read,
        Op::Write => efa_transport::Op::Write,
    };
    let (local_shape, remote_shape) = (translate(local_shape), translate(remote_shape));
    Ok(batch.push(efa_transport::Request {
        op,
        peer,
        local: region,
        local_shape,
        remote_shape,
        immediate,
    })?)
}

/// The transports do not know each other, so each has a type of its own for the same thing.
fn translate(shape: Shape<'_>) -> efa_transport::Shape<'_> {
    match shape {
        Shape::Contiguous { addr, len } => efa_transport::Shape::Contiguous { addr, len },
        Shape::Paged { page_len, addrs } => efa_transport::Shape::Paged { page_len, addrs },
        Shape::Strided { addr, block_len, stride, count } => {
            efa_transport::Shape::Strided { addr, block_len, stride, count }
        }
        Shape::Scatter(ranges) => efa_transport::Shape::Scatter(ranges),
    }
}

/// The engine's memory as libfabric wants it.
struct Shared(Arc<dyn Memory>);

// SAFETY: tcp-transport's `Memory` promises the same: address and length never change, the range stays mapped for the
// life of the value, and nobody holds a reference to its bytes while it is registered. Memory with a device copier is
// not host memory; `placement` would have to say so, and `Fabric::register` is only reached with host memory (see `Engine::register`).
#[allow(unsafe_code)]
unsafe impl fabric_safe::Memory for Shared {
    fn address(&self) -> *mut u8 {
        self.0.address() as *mut u8
    }

    fn len_bytes(&self) -> usize {
        self.0.len()
    }
}

// SAFETY: `Shared` has no method that lends the bytes, and the trait inside has none either.
#[allow(unsafe_code)]
unsafe impl fabric_safe::SharedMemory for Shared {}
