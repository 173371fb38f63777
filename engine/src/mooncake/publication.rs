//! This engine as Mooncake's nodes see it, in the handshake and in a metadata store.

use std::sync::Mutex;

use super::descriptor::{Buffer, Descriptor, Place, Protocols};
use crate::error::Error;
use crate::metadata::{Directory, Lease};
use crate::node::Node;

/// What the engine says of itself in Mooncake's words, to a node that speaks EFA or to another one; `None` before it is up and
/// when it has gone.
pub(super) fn descriptor(node: &Node, efa: bool) -> Option<Descriptor> {
    #[cfg(feature = "efa")]
    if efa && let Some(descriptor) = super::efa::descriptor(node) {
        return Some(descriptor);
    }
    #[cfg(not(feature = "efa"))]
    let _ = efa;
    let (_, port) = address(node)?;
    let buffers = node.regions.cards().into_iter().filter_map(|card| {
        let region = tcp_transport::RegionDescriptor::from_bytes(&card.tcp).ok()?;
        // Mooncake refuses a buffer without a name.
        let name = if card.label.is_empty() { "*".to_owned() } else { card.label };
        Some(Buffer { name, addr: region.addr, length: region.len, rkey: Vec::new(), lkey: Vec::new() })
    });
    Some(Descriptor {
        name: node.name().to_owned(),
        protocol: Protocols::One("tcp".into()),
        tcp_data_port: port,
        tcp_proto_version: 2,
        timestamp: String::new(),
        devices: Vec::new(),
        buffers: buffers.collect(),
        priority_matrix: None,
        weft: Some(1),
    })
}

/// Where peers reach the engine: handshake and data are on one port.
fn address(node: &Node) -> Option<(String, u16)> {
    let engine = node.engine()?;
    let (host, port) = engine.address.rsplit_once(':')?;
    Some((host.trim_matches(['[', ']']).to_owned(), port.parse().ok()?))
}

/// The engine's entries in a store, under Mooncake's keys, for as long as this lives.
#[derive(Debug)]
pub(crate) struct Publication {
    segment: Lease,
    _place: Lease,
    /// Updates one at a time, the newest last.
    turn: Mutex<()>,
}

impl Publication {
    pub(crate) fn new(directory: &Directory, node: &Node) -> Result<Self, Error> {
        let wrong = || Error::Metadata {
            store: directory.server().to_owned(),
            action: "publishing this engine for Mooncake's nodes".into(),
            reason: "the engine's address is not host:port; set Builder::advertise".into(),
        };
        let (host, rpc_port) = address(node).ok_or_else(wrong)?;
        let segment = descriptor(node, true).ok_or_else(wrong)?;
        let place = Place { ip_or_host_name: host, rpc_port };
        let place =
            directory.publish_at(directory.key("mooncake", "rpc_meta", node.name()), place.encode())?;
        let segment =
            directory.publish_at(directory.key("mooncake", "ram", node.name()), segment.encode())?;
        Ok(Self { segment, _place: place, turn: Mutex::default() })
    }

    /// Publishes what is registered now.
    pub(crate) fn update(&self, node: &Node) {
        let _turn = self.turn.lock();
        let Some(descriptor) = descriptor(node, true) else { return };
        if let Err(error) = self.segment.update(descriptor.encode()) {
            tracing::warn!(%error, "Mooncake's nodes do not hear of this engine's buffers yet");
        }
    }
}
