//! This engine as its peers see it: name, registered memory, libfabric path. Answers their questions.

use std::sync::{Arc, OnceLock, PoisonError, RwLock};

use tcp_transport::Caller;

use crate::control::{self, Answer, Ask, BufferCard, Card};
use crate::error::Error;
#[cfg(feature = "efa")]
use crate::fabric::Fabric;
use crate::memory::Region;
use crate::segment::Chosen;
use crate::settings::Protocol;

/// Why a program has no libfabric path that was built without it.
#[cfg(not(feature = "efa"))]
pub(crate) const WITHOUT_LIBFABRIC: &str = "this program was built without the feature `efa`";

pub(crate) struct Node {
    protocol: Protocol,
    regions: RwLock<Vec<Region>>,
    opened: OnceLock<Opened>,
}

/// What is known once the transports are open. Peers that ask earlier wait for it.
struct Opened {
    name: String,
    /// The libfabric path, or why there is none.
    #[cfg(feature = "efa")]
    fabric: Result<Fabric, String>,
}

impl Node {
    pub(crate) fn new(protocol: Protocol) -> Arc<Self> {
        Arc::new(Self { protocol, regions: RwLock::default(), opened: OnceLock::new() })
    }

    /// Says what has been opened. Must be called once, whatever came of it, because peers' questions wait for it.
    pub(crate) fn set_opened(&self, name: String, #[cfg(feature = "efa")] fabric: Result<Fabric, String>) {
        let _ = self.opened.set(Opened {
            name,
            #[cfg(feature = "efa")]
            fabric,
        });
    }

    pub(crate) fn name(&self) -> &str {
        &self.opened.wait().name
    }

    pub(crate) fn add(&self, region: Region) {
        self.regions.write().unwrap_or_else(PoisonError::into_inner).push(region);
    }

    /// Forgets the region; peers that ask from now on do not hear of it.
    pub(crate) fn remove(&self, region: &Region) {
        let key = region.tcp.descriptor().key;
        let mut regions = self.regions.write().unwrap_or_else(PoisonError::into_inner);
        regions.retain(|known| known.tcp.descriptor().key != key);
    }

    /// What peers are told.
    pub(crate) fn card(&self) -> Card {
        let regions = self.regions.read().unwrap_or_else(PoisonError::into_inner);
        let buffers =
            regions.iter().map(|region| BufferCard::new(region.label(), &region.tcp.descriptor())).collect();
        #[cfg(feature = "efa")]
        let (fabric, no_fabric) = match &self.opened.wait().fabric {
            Ok(fabric) => (Some(fabric.descriptor()), String::new()),
            Err(reason) => (None, reason.clone()),
        };
        #[cfg(not(feature = "efa"))]
        let (fabric, no_fabric) = (None, WITHOUT_LIBFABRIC.to_owned());
        Card { name: self.name().to_owned(), buffers, fabric, no_fabric }
    }

    /// Answers a peer's question; the error's words travel to the peer.
    pub(crate) fn answer(&self, from: Caller, request: &[u8]) -> Result<Vec<u8>, String> {
        let answer = match control::decode(request)? {
            Ask::Probe => Answer::Probe,
            Ask::Describe(card) => {
                // The asker's libfabric addresses must be known here before it sends anything.
                #[cfg(feature = "efa")]
                if let (Ok(fabric), Some(descriptor)) = (&self.opened.wait().fabric, &card.fabric) {
                    fabric.add_peer(descriptor).map_err(|error| error.to_string())?;
                }
                tracing::debug!(peer = %from.addr, name = card.name, "described to");
                Answer::Describe(self.card())
            }
        };
        Ok(control::encode(&answer))
    }

    /// Picks the transport for a peer from what both sides have, and says why.
    pub(crate) fn choose(&self, segment: &str, card: &Card) -> Result<Chosen, Error> {
        if self.protocol == Protocol::Tcp {
            return Ok(Chosen::Tcp);
        }
        #[cfg(feature = "efa")]
        let missing = match (&self.opened.wait().fabric, &card.fabric) {
            (Ok(fabric), Some(descriptor)) => {
                let peer = fabric.add_peer(descriptor)?;
                tracing::info!(segment, path = fabric.name(), "libfabric is on both sides");
                return Ok(Chosen::Fabric(peer));
            }
            (Err(reason), _) => format!("not here: {reason}"),
            (Ok(_), None) => format!("not at {segment}: {}", card.no_fabric),
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
        tracing::info!(segment, reason = missing, "using TCP");
        Ok(Chosen::Tcp)
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
    pub(crate) fn fabric_name(&self) -> String {
        self.fabric().map_or_else(|_| "none".into(), Fabric::name)
    }
}
