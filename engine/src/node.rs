//! This engine as its peers see it: name, registered memory, libfabric path. Answers their questions.

use std::sync::{Arc, OnceLock, Weak};

use tcp_transport::Caller;

use crate::arrivals::Arrivals;
use crate::control::{self, Answer, Ask, Card};
use crate::engine::Inner as Engine;
use crate::error::Error;
#[cfg(feature = "efa")]
use crate::fabric::Fabric;
use crate::path::Chosen;
use crate::protocol::Protocol;
use crate::regions::Regions;

/// Why a program has no libfabric path that was built without it.
#[cfg(not(feature = "efa"))]
pub(crate) const WITHOUT_LIBFABRIC: &str = "this program was built without the feature `efa`";

pub(crate) struct Node {
    protocol: Protocol,
    pub(crate) regions: Regions,
    pub(crate) arrivals: Arc<Arrivals>,
    /// Who has this engine's libfabric descriptor.
    #[cfg(feature = "efa")]
    pub(crate) audience: crate::audience::Audience,
    opened: OnceLock<Opened>,
    /// Weak, because the engine's transport calls the node.
    engine: OnceLock<Weak<Engine>>,
}

/// What is known once the transports are open. Peers that ask earlier wait for it.
struct Opened {
    name: String,
    epoch: u128,
    /// The libfabric path, or why there is none.
    #[cfg(feature = "efa")]
    fabric: Result<Fabric, String>,
}

impl Node {
    pub(crate) fn new(protocol: Protocol) -> Arc<Self> {
        Arc::new(Self {
            protocol,
            regions: Regions::default(),
            arrivals: Arc::default(),
            #[cfg(feature = "efa")]
            audience: Default::default(),
            opened: OnceLock::new(),
            engine: OnceLock::new(),
        })
    }

    /// Says what has been opened. Must be called once, whatever came of it, because peers' questions wait for it.
    pub(crate) fn set_opened(
        &self,
        name: String,
        epoch: u128,
        #[cfg(feature = "efa")] fabric: Result<Fabric, String>,
    ) {
        let _ = self.opened.set(Opened {
            name,
            epoch,
            #[cfg(feature = "efa")]
            fabric,
        });
    }

    pub(crate) fn set_engine(&self, engine: &Arc<Engine>) {
        let _ = self.engine.set(Arc::downgrade(engine));
    }

    /// Puts a notification of a peer that does not speak this crate's protocol into the engine's queue. It takes the same way as
    /// all others, from this process to itself, so there is one queue with one limit.
    #[cfg(feature = "mooncake")]
    pub(crate) fn take_note(
        &self,
        from: String,
        payload: Vec<u8>,
        deadline: std::time::Instant,
    ) -> Result<(), Error> {
        let gone = || Error::Tcp(tcp_transport::Error::ShutDown);
        let engine = self.engine().ok_or_else(gone)?;
        let mut own = *engine.transport.local_addrs().first().ok_or_else(gone)?;
        match own.ip() {
            std::net::IpAddr::V4(ip) if ip.is_unspecified() => {
                own.set_ip(std::net::Ipv4Addr::LOCALHOST.into())
            }
            std::net::IpAddr::V6(ip) if ip.is_unspecified() => {
                own.set_ip(std::net::Ipv6Addr::LOCALHOST.into())
            }
            _ => {}
        }
        let note = control::encode(&control::Note { from, payload });
        Ok(engine.transport.peer(own)?.notify(&note, deadline)?)
    }

    /// The engine, while it is up.
    #[cfg(any(feature = "mooncake", feature = "efa"))]
    pub(crate) fn engine(&self) -> Option<Arc<Engine>> {
        self.engine.get().and_then(Weak::upgrade)
    }

    pub(crate) fn name(&self) -> &str {
        &self.opened.wait().name
    }

    /// What peers are told.
    pub(crate) fn card(&self) -> Card {
        let opened = self.opened.wait();
        let buffers = self.regions.cards();
        #[cfg(feature = "efa")]
        let (fabric, no_fabric) = match &opened.fabric {
            Ok(fabric) => (Some(fabric.descriptor()), String::new()),
            Err(reason) => (None, reason.clone()),
        };
        #[cfg(not(feature = "efa"))]
        let (fabric, no_fabric) = (None, WITHOUT_LIBFABRIC.to_owned());
        Card { name: opened.name.clone(), epoch: opened.epoch, buffers, fabric, no_fabric }
    }

    /// Answers a peer's question; the error's words travel to the peer.
    pub(crate) fn answer(&self, from: Caller, request: &[u8]) -> Result<Vec<u8>, String> {
        let answer = match control::decode(request)? {
            Ask::Probe => Answer::Probe,
            Ask::Describe(card) => {
                // The asker's libfabric addresses must be known here before it sends anything.
                #[cfg(feature = "efa")]
                if let (Ok(fabric), Some(descriptor)) = (&self.opened.wait().fabric, &card.fabric)
                    && let Err(error) = fabric.add_peer(descriptor)
                {
                    // It will find for itself that there is no way, and say why.
                    tracing::warn!(peer = %from.addr, name = card.name, %error, "its libfabric descriptor is of no use");
                }
                tracing::debug!(peer = %from.addr, name = card.name, "described to");
                if let Some(engine) = self.engine.get().and_then(Weak::upgrade) {
                    engine.met(&card.name, card.epoch);
                }
                #[cfg(feature = "efa")]
                if let (Ok(fabric), true) = (self.fabric(), card.fabric.is_some()) {
                    self.audience.given(&card.name, fabric.reach());
                }
                Answer::Describe { number: self.arrivals.number(&card.name), card: self.card() }
            }
        };
        Ok(control::encode(&answer))
    }

    /// Picks the transport for a peer from what both sides have, and says why.
    pub(crate) fn choose(&self, segment: &str, card: &Card) -> Result<(Chosen, String), Error> {
        if self.protocol == Protocol::Tcp {
            return Ok((Chosen::Tcp, "protocol tcp is in force here".into()));
        }
        #[cfg(feature = "efa")]
        let missing = match (&self.opened.wait().fabric, &card.fabric) {
            (Ok(fabric), Some(descriptor)) => match fabric.add_peer(descriptor) {
                Ok(peer) => {
                    tracing::debug!(segment, path = fabric.name_to(peer), "libfabric is on both sides");
                    return Ok((Chosen::Fabric(peer), "libfabric is on both sides".into()));
                }
                Err(error) => error.to_string(),
            },
            (Err(reason), _) => format!("no libfabric here: {reason}"),
            (Ok(_), None) => format!("no libfabric at {segment}: {}", card.no_fabric),
        };
        #[cfg(not(feature = "efa"))]
        let missing = {
            let _ = card;
            WITHOUT_LIBFABRIC.to_owned()
        };
        if self.protocol == Protocol::Efa {
            return Err(Error::Unavailable {
                path: format!("the libfabric path to {segment}"),
                reason: missing,
            });
        }
        Ok((Chosen::Tcp, missing))
    }

    /// The libfabric path in words.
    pub(crate) fn describe_fabric(&self) -> Result<String, Error> {
        #[cfg(feature = "efa")]
        return self.fabric().map(Fabric::describe);
        #[cfg(not(feature = "efa"))]
        Err(Error::Unavailable { path: "the libfabric path".into(), reason: WITHOUT_LIBFABRIC.into() })
    }

    #[cfg(feature = "efa")]
    pub(crate) fn fabric(&self) -> Result<&Fabric, Error> {
        self.opened.wait().fabric.as_ref().map_err(|reason| Error::Unavailable {
            path: "the libfabric path".into(),
            reason: reason.clone(),
        })
    }

    #[cfg(feature = "efa")]
    pub(crate) fn fabric_name(&self, peer: efa_transport::PeerId) -> String {
        self.fabric().map_or_else(|_| "none".into(), |fabric| fabric.name_to(peer))
    }

    #[cfg(feature = "efa")]
    pub(crate) fn retries(&self, peer: efa_transport::PeerId) -> u64 {
        self.fabric().map_or(0, |fabric| fabric.retries(peer))
    }
}
