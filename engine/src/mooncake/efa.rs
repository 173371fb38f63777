//! EFA between both systems: Mooncake's nodes use the fabric `efa` of libfabric's provider, virtual addresses and the provider's
//! keys, and so does an engine that deals with them. What they tell each other is what efa-transport's descriptors say, in
//! other words.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::net::SocketAddr;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use efa_transport::{Parts, PartsChunk, PartsNic, PeerId};

use super::descriptor::{Buffer, Connection, Descriptor, Device, Protocols};
use super::dialogue;
use super::frame::Kind;
use crate::node::Node;

/// Where buffers are, in Mooncake's words. It chooses NICs by that; here all are as near.
const LOCATION: &str = "cpu:0";

/// The engine's endpoints, if they are such as Mooncake's nodes can write to.
fn endpoints(node: &Node) -> Option<Parts> {
    let parts = Parts::read(&node.fabric().ok()?.descriptor()).ok()?;
    let alike = parts.provider == "efa" && parts.fabric == "efa" && parts.virtual_addressing;
    alike.then_some(parts)
}

/// Whether this engine can be reached over EFA by Mooncake's nodes.
pub(super) fn is_spoken(node: &Node) -> bool {
    endpoints(node).is_some()
}

/// What the engine says of itself to nodes that speak EFA; `None` where it cannot.
pub(super) fn descriptor(node: &Node) -> Option<Descriptor> {
    let parts = endpoints(node)?;
    let count = parts.nics.len();
    let open = parts.chunks.iter().filter(|chunk| chunk.readable || chunk.writable);
    let buffers = open.map(|chunk| {
        let mut rkey = vec![0; count];
        for &(nic, key) in &chunk.keys {
            if let Some(place) = rkey.get_mut(nic) {
                *place = key;
            }
        }
        // The local keys are nobody else's business, but there must be as many.
        Buffer { name: LOCATION.into(), addr: chunk.addr, length: chunk.len, rkey, lkey: vec![0; count] }
    });
    let names: Vec<String> = parts.nics.iter().map(|nic| nic.name.clone()).collect();
    let devices = parts.nics.iter().map(|nic| Device {
        name: nic.name.clone(),
        lid: 0,
        gid: hex::encode(&nic.address),
    });
    Some(Descriptor {
        name: node.name().to_owned(),
        protocol: Protocols::One("efa".into()),
        tcp_data_port: 0,
        tcp_proto_version: 2,
        timestamp: String::new(),
        devices: devices.collect(),
        buffers: buffers.collect(),
        priority_matrix: Some([(LOCATION.to_owned(), (names, Vec::new()))].into()),
        weft: Some(1),
    })
}

/// Answers a NIC that wants to be connected with one of ours. The provider learns a peer's address from what it sends, so
/// nothing has to be kept.
pub(super) fn connect(node: &Node, asked: &Connection) -> Result<Connection, String> {
    let parts = endpoints(node)
        .ok_or("this node speaks TCP with Mooncake's nodes; use protocol \"tcp\" towards it")?;
    let wanted = asked.peer_nic_path.rsplit_once('@').map_or("", |(_, nic)| nic);
    let ours = parts.nics.iter().find(|nic| nic.name == wanted);
    let ours = ours.ok_or_else(|| format!("this node has no NIC called {wanted:?}"))?;
    unhex(&asked.efa_addr).ok_or("the address of the endpoint is not hexadecimal")?;
    Ok(Connection {
        local_nic_path: asked.peer_nic_path.clone(),
        peer_nic_path: asked.local_nic_path.clone(),
        efa_addr: hex::encode(&ours.address),
        ..Connection::default()
    })
}

/// Makes a Mooncake node a peer of the libfabric path: every pair of NICs introduces itself, as Mooncake's own do.
pub(super) fn add_peer(
    node: &Node,
    control: SocketAddr,
    descriptor: &Descriptor,
    deadline: Instant,
) -> Result<PeerId, String> {
    let own = endpoints(node).ok_or("this engine has no EFA endpoint that Mooncake's nodes could talk to")?;
    let mut nics = Vec::with_capacity(descriptor.devices.len());
    for (index, device) in descriptor.devices.iter().enumerate() {
        let mut address = unhex(&device.gid)
            .ok_or_else(|| format!("the address of its NIC {} is not hexadecimal", device.name))?;
        for nic in &own.nics {
            let question = Connection {
                local_nic_path: format!("{}@{}", node.name(), nic.name),
                peer_nic_path: format!("{}@{}", descriptor.name, device.name),
                efa_addr: hex::encode(&nic.address),
                ..Connection::default()
            };
            let answer = dialogue::ask(control, Kind::Connection, &question.encode(), deadline)
                .map_err(|error| format!("connecting {} with its NIC {}: {error}", nic.name, device.name))?;
            let answer = Connection::decode(&answer)?;
            if !answer.reply_msg.is_empty() {
                let said: String = answer.reply_msg.chars().take(200).collect();
                return Err(format!(
                    "it refuses to connect {} with its NIC {}: {said}",
                    nic.name, device.name
                ));
            }
            if let Some(newer) = unhex(&answer.efa_addr) {
                address = newer;
            }
        }
        let key = |buffer: &Buffer| buffer.rkey.get(index).copied().filter(|key| *key != 0);
        let probe = descriptor
            .buffers
            .iter()
            .filter(|buffer| buffer.length >= 8)
            .find_map(|b| Some((b.addr, key(b)?)));
        nics.push(PartsNic { name: device.name.clone(), address, probe: probe.unwrap_or_default() });
    }
    let chunks = descriptor.buffers.iter().map(|buffer| PartsChunk {
        addr: buffer.addr,
        len: buffer.length,
        readable: true,
        writable: true,
        keys: buffer.rkey.iter().copied().enumerate().filter(|(_, key)| *key != 0).collect(),
    });
    let mut epoch = DefaultHasher::new();
    for nic in &nics {
        nic.address.hash(&mut epoch);
    }
    let parts = Parts {
        name: format!("mooncake {}", descriptor.name),
        epoch: epoch.finish(),
        // Later answers replace earlier ones.
        generation: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros() as u64),
        provider: own.provider,
        fabric: own.fabric,
        virtual_addressing: true,
        nics,
        chunks: chunks.filter(|chunk| !chunk.keys.is_empty()).collect(),
    };
    let bytes = parts.descriptor().map_err(|error| error.to_string())?;
    node.fabric().and_then(|fabric| fabric.add_peer(&bytes)).map_err(|error| error.to_string())
}

/// Bytes of a NIC's name in hexadecimal digits; at least one and at most 512.
fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.is_empty() || text.len() > 1024 {
        return None;
    }
    hex::decode(text).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn addresses_survive_hexadecimal(bytes in prop::collection::vec(any::<u8>(), 1..64), text in ".{0,20}") {
            prop_assert_eq!(unhex(&hex::encode(&bytes)), Some(bytes));
            if let Some(read) = unhex(&text) {
                prop_assert_eq!(hex::encode(&read), text.to_lowercase());
            }
        }
    }
}
