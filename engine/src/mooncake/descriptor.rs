//! The JSON that Mooncake's nodes tell each other, and leave in stores.

use std::collections::BTreeMap;

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};

use crate::control::MAX_BUFFERS;

/// Longest text of any kind in these messages; names and messages are far shorter.
const MAX_TEXT: usize = 1 << 20;
/// Longest name of a segment or host.
const MAX_NAME: usize = 1024;

/// Kinds of memory, and for each the NICs that are near and the others.
type PriorityMatrix = BTreeMap<String, (Vec<String>, Vec<String>)>;

/// What a node has registered, and how it is reached.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Descriptor {
    pub(crate) name: String,
    pub(crate) protocol: Protocols,
    #[serde(default)]
    pub(crate) tcp_data_port: u16,
    #[serde(default = "first_version")]
    pub(crate) tcp_proto_version: u8,
    /// Date and time for people; nobody reads it.
    #[serde(default)]
    pub(crate) timestamp: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) devices: Vec<Device>,
    #[serde(default)]
    pub(crate) buffers: Vec<Buffer>,
    /// Which NICs are near which memory: names of the near ones, then of the others. Nobody reads that of others here.
    #[serde(skip_deserializing, skip_serializing_if = "Option::is_none")]
    pub(crate) priority_matrix: Option<PriorityMatrix>,
    /// Present, as the version of the control protocol, when the node is an engine of this crate, which can be talked to in
    /// better ways.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) weft: Option<u32>,
}

fn first_version() -> u8 {
    1
}

/// One protocol, or several in nodes that were built for that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub(crate) enum Protocols {
    One(String),
    Several(Vec<String>),
}

impl Protocols {
    pub(crate) fn has(&self, name: &str) -> bool {
        match self {
            Self::One(one) => one == name,
            Self::Several(all) => all.iter().any(|one| one == name),
        }
    }
}

impl std::fmt::Display for Protocols {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::One(one) => f.write_str(one),
            Self::Several(all) => f.write_str(&all.join(",")),
        }
    }
}

/// A NIC. Of an EFA node, `gid` is its endpoint's address in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) lid: u16,
    pub(crate) gid: String,
}

/// Registered memory. The keys are one for each device, 0 where it has none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Buffer {
    pub(crate) name: String,
    pub(crate) addr: u64,
    pub(crate) length: u64,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) rkey: Vec<u64>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lkey: Vec<u64>,
}

impl Descriptor {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads a descriptor; the error says what is wrong with it.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let descriptor: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("not a segment's descriptor ({error})"))?;
        name("segment", &descriptor.name)?;
        if descriptor.buffers.len() > MAX_BUFFERS {
            return Err(format!("{} buffers, more than {MAX_BUFFERS}", descriptor.buffers.len()));
        }
        for buffer in &descriptor.buffers {
            let Buffer { addr, length, .. } = *buffer;
            if addr == 0 || length == 0 || addr.checked_add(length).is_none() {
                return Err(format!("a buffer at {addr:#x} of {length} bytes"));
            }
            if buffer.name.len() > MAX_NAME {
                return Err(format!("a buffer's name of {} bytes", buffer.name.len()));
            }
            let keys = (buffer.rkey.len(), buffer.lkey.len());
            if buffer.rkey.len() > descriptor.devices.len() || keys.0 != keys.1 {
                return Err(format!("{keys:?} keys of a buffer for {} devices", descriptor.devices.len()));
            }
        }
        Ok(descriptor)
    }
}

/// Where a node's handshake daemon is: what lies in stores under `rpc_meta`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Place {
    pub(crate) ip_or_host_name: String,
    pub(crate) rpc_port: u16,
}

impl Place {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let place: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("not a node's place ({error})"))?;
        name("host", &place.ip_or_host_name)?;
        if place.rpc_port == 0 {
            return Err("a node at port 0".into());
        }
        Ok(place)
    }
}

/// A notification.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Notice {
    #[serde(default)]
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) notify_msg: String,
}

impl Notice {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// A text that is a notification with both its fields and nothing else.
    pub(crate) fn named(text: &str) -> Option<Self> {
        let fields: BTreeMap<String, String> = serde_json::from_str(text).ok()?;
        let notice =
            Self { name: fields.get("name")?.clone(), notify_msg: fields.get("notify_msg")?.clone() };
        (fields.len() == 2).then_some(notice)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let notice: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("not a notification ({error})"))?;
        if notice.name.len() > MAX_NAME || notice.notify_msg.len() > MAX_TEXT {
            return Err(format!(
                "a notification of {} bytes from a name of {}",
                notice.notify_msg.len(),
                notice.name.len()
            ));
        }
        Ok(notice)
    }
}

/// A NIC that wants to be connected with one of ours, and the answer.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Connection {
    #[serde(default)]
    pub(crate) payload: String,
    /// `host:port@nic` of whoever speaks.
    #[serde(default)]
    pub(crate) local_nic_path: String,
    #[serde(default)]
    pub(crate) local_lid: u32,
    #[serde(default)]
    pub(crate) local_gid: String,
    #[serde(default)]
    pub(crate) peer_nic_path: String,
    #[serde(default)]
    pub(crate) qp_num: Vec<u32>,
    /// The endpoint's address in hexadecimal.
    #[serde(default)]
    pub(crate) efa_addr: String,
    /// Not empty: refused, for this reason.
    #[serde(default)]
    pub(crate) reply_msg: String,
}

impl Connection {
    pub(crate) fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, String> {
        let connection: Self =
            serde_json::from_slice(bytes).map_err(|error| format!("not a connection ({error})"))?;
        name("NIC", &connection.local_nic_path)?;
        Ok(connection)
    }
}

/// Whether it is JSON at all.
pub(crate) fn is_json(bytes: &[u8]) -> bool {
    serde_json::from_slice::<IgnoredAny>(bytes).is_ok()
}

/// Whether a node that says this of itself wants to hear of EFA.
pub(crate) fn speaks_efa(bytes: &[u8]) -> bool {
    #[derive(Deserialize)]
    struct Asker {
        protocol: Protocols,
    }
    serde_json::from_slice(bytes).is_ok_and(|asker: Asker| asker.protocol.has("efa"))
}

fn name(what: &str, name: &str) -> Result<(), String> {
    if name.len() > MAX_NAME || name.chars().any(char::is_control) {
        return Err(format!("the {what}'s name has {} bytes or control characters", name.len()));
    }
    Ok(())
}

/// Cannot fail: texts, numbers and lists of them.
fn encode(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn descriptor() -> impl Strategy<Value = Descriptor> {
        let buffer = (".{0,8}", 1u64..1 << 48, 1u64..1 << 40);
        let buffers = prop::collection::vec(buffer, 0..6);
        ("[a-z.:0-9]{1,20}", any::<u16>(), 0u8..4, buffers, 0usize..3, any::<Option<u32>>()).prop_map(
            |(name, port, version, buffers, devices, weft)| Descriptor {
                name,
                protocol: Protocols::One(if devices > 0 { "efa".into() } else { "tcp".into() }),
                tcp_data_port: port,
                tcp_proto_version: version,
                timestamp: String::new(),
                devices: (0..devices)
                    .map(|n| Device { name: format!("efa_{n}"), lid: 0, gid: "00ff".into() })
                    .collect(),
                buffers: buffers
                    .into_iter()
                    .map(|(name, addr, length)| {
                        let keys = vec![7; devices];
                        Buffer { name, addr, length, rkey: keys.clone(), lkey: keys }
                    })
                    .collect(),
                priority_matrix: None,
                weft,
            },
        )
    }

    proptest! {
        #[test]
        fn descriptors_survive(descriptor in descriptor()) {
            prop_assert_eq!(Descriptor::decode(&descriptor.encode()), Ok(descriptor));
        }

        /// Cut short or changed anywhere: refused, or well-formed all the same.
        #[test]
        fn damaged_descriptors_never_panic(descriptor in descriptor(), cut: prop::sample::Index, at: prop::sample::Index, to: u8) {
            let whole = descriptor.encode();
            prop_assert!(Descriptor::decode(&whole[..cut.index(whole.len() - 1)]).is_err());
            let mut changed = whole;
            let at = at.index(changed.len());
            changed[at] = to;
            if let Ok(read) = Descriptor::decode(&changed) {
                prop_assert!(read.buffers.iter().all(|b| b.addr.checked_add(b.length).is_some() && b.length > 0));
            }
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Descriptor::decode(&bytes);
            let _ = Place::decode(&bytes);
            let _ = Notice::decode(&bytes);
            let _ = Connection::decode(&bytes);
        }
    }

    /// As a node of Mooncake 0.3.13 writes them.
    #[test]
    fn what_mooncake_writes_is_read() {
        let tcp = br#"{"buffers":[{"addr":140245678080000,"length":1048576,"name":"127.0.0.1:15540"}],"name":"127.0.0.1:15540",
            "protocol":"tcp","tcp_data_port":15789,"tcp_proto_version":2,"timestamp":"2026-08-01 00:00:00"}"#;
        let tcp = Descriptor::decode(tcp).unwrap();
        assert!(tcp.protocol.has("tcp") && !tcp.protocol.has("efa"));
        assert_eq!((tcp.tcp_data_port, tcp.tcp_proto_version, tcp.weft), (15789, 2, None));
        assert_eq!(tcp.buffers[0].addr, 140_245_678_080_000);
        let efa = br#"{"name":"h:1","protocol":"efa","tcp_data_port":0,"devices":[{"name":"rdmap0s6","lid":0,"gid":"fe80"}],
            "buffers":[{"name":"cpu:0","addr":4096,"length":10,"rkey":[12345678901234],"lkey":[0]}],
            "priority_matrix":{"cpu:0":[["rdmap0s6"],[]]}}"#;
        let efa = Descriptor::decode(efa).unwrap();
        assert_eq!((efa.tcp_proto_version, efa.buffers[0].rkey[0]), (1, 12_345_678_901_234));
        let several = br#"{"name":"h:1","protocol":["tcp","hip"],"buffers":[]}"#;
        assert!(Descriptor::decode(several).unwrap().protocol.has("hip"));
        let place = Place::decode(br#"{"ip_or_host_name":"10.0.0.1","rpc_port":15001}"#).unwrap();
        assert_eq!((place.ip_or_host_name.as_str(), place.rpc_port), ("10.0.0.1", 15001));
    }

    #[test]
    fn descriptors_that_lie_are_refused() {
        for (buffers, word) in [
            (r#"[{"name":"x","addr":0,"length":1}]"#, "0x0"),
            (r#"[{"name":"x","addr":1,"length":0}]"#, "0 bytes"),
            (r#"[{"name":"x","addr":18446744073709551615,"length":2}]"#, "buffer"),
            (r#"[{"name":"x","addr":1,"length":2,"rkey":[1],"lkey":[1]}]"#, "keys"),
            (r#"[{"name":"x","addr":-1,"length":2}]"#, "descriptor"),
            (r#"{"name":"x"}"#, "descriptor"),
        ] {
            let json = format!(r#"{{"name":"h:1","protocol":"tcp","buffers":{buffers}}}"#);
            let error = Descriptor::decode(json.as_bytes()).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
        let nested = [b'['; 100_000];
        assert!(Descriptor::decode(&nested).is_err() && !is_json(&nested));
        assert!(Place::decode(br#"{"ip_or_host_name":"h","rpc_port":0}"#).is_err());
        assert!(Place::decode(br#"{"ip_or_host_name":"h","rpc_port":70000}"#).is_err());
    }
}
