//! A Mooncake node: finding out what it is, and talking to it.

use std::hash::{Hash as _, Hasher as _};
use std::io;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::time::{Duration, Instant};

use super::descriptor::{Descriptor, Notice, Place};
use super::dialogue;
use super::frame::Kind;
use crate::control::{BufferCard, Card};
use crate::error::Error;
use crate::metadata::Directory;
use crate::node::Node;
use crate::path::Chosen;

/// How long one that may not speak the protocol at all has to answer: it is asked before the engine's own is tried.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// Rights in a region's descriptor.
const READ_WRITE: u8 = 3;

/// Where a Mooncake node is, and how it is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Remote {
    /// Its handshake daemon.
    pub(crate) control: SocketAddr,
    /// Its data port.
    pub(crate) data: SocketAddr,
    /// Which data protocol.
    pub(crate) version: u8,
}

impl Remote {
    /// The Mooncake node behind `name`, and its buffers; `None` if it is an engine of this crate, or nothing that speaks Mooncake's
    /// protocol.
    ///
    /// # Errors
    /// It is a Mooncake node, but not one that can be used.
    pub(crate) fn find(
        name: &str,
        directory: Option<&Directory>,
        node: &Node,
        deadline: Instant,
    ) -> Result<Option<(Chosen, Self, Card)>, Error> {
        let failed = |reason: String| Error::Mooncake { peer: name.to_owned(), reason };
        let (control, bytes) = match directory {
            None => {
                // What is wrong with the name is said when the engine's own protocol is tried.
                let Ok(control) = resolve(name) else { return Ok(None) };
                let protocol = if speaks_efa(node) { "efa" } else { "tcp" };
                let head = serde_json::json!({ "name": node.name(), "protocol": protocol, "buffers": [] });
                let head = format!("{head}\n");
                let limit = deadline.min(Instant::now() + FIRST_ANSWER);
                match dialogue::ask(control, Kind::Metadata, head.as_bytes(), limit) {
                    Ok(bytes) => (control, bytes),
                    Err(error) => {
                        tracing::debug!(segment = name, %error, "is no Mooncake node");
                        return Ok(None);
                    }
                }
            }
            Some(directory) => {
                // A name with a slash is a key already.
                let key = match name.contains('/') {
                    true => directory.key("mooncake", "", name).replace("//", "/"),
                    false => directory.key("mooncake", "ram", name),
                };
                let Some(bytes) = directory.get(&key)? else { return Ok(None) };
                let place = directory.get(&directory.key("mooncake", "rpc_meta", name))?;
                let place = place.ok_or_else(|| failed("its place (rpc_meta) is not in the store".into()))?;
                let place = Place::decode(&place).map_err(failed)?;
                let host = place.ip_or_host_name.trim_matches(['[', ']']);
                (resolve_host(host, place.rpc_port).map_err(failed)?, bytes)
            }
        };
        let descriptor = Descriptor::decode(&bytes).map_err(failed)?;
        if descriptor.weft.is_some() {
            return Ok(None);
        }
        #[cfg(feature = "efa")]
        if descriptor.protocol.has("efa") && speaks_efa(node) {
            let peer = super::efa::add_peer(node, control, &descriptor, deadline).map_err(failed)?;
            let remote = Self { control, data: control, version: 0 };
            let card = remote.card(name, &descriptor, true);
            return Ok(Some((Chosen::MooncakeFabric(peer, remote), remote, card)));
        }
        let remote = Self::of(&descriptor, control).map_err(failed)?;
        let card = remote.card(name, &descriptor, false);
        Ok(Some((Chosen::Mooncake(remote), remote, card)))
    }

    fn of(descriptor: &Descriptor, control: SocketAddr) -> Result<Self, String> {
        if !descriptor.protocol.has("tcp") || descriptor.tcp_data_port == 0 {
            return Err(format!(
                "it speaks {} and no TCP; start it with protocol \"tcp\" (MC_FORCE_TCP=1) while the cluster is mixed",
                descriptor.protocol
            ));
        }
        let mut data = control;
        data.set_port(descriptor.tcp_data_port);
        Ok(Self { control, data, version: descriptor.tcp_proto_version })
    }

    /// What it has, in the engine's own words.
    fn card(&self, name: &str, descriptor: &Descriptor, on_fabric: bool) -> Card {
        let buffers = descriptor.buffers.iter().map(|buffer| {
            // A region's descriptor with the key zero: the data protocol knows no keys.
            let mut tcp = vec![0; 16];
            tcp.extend(buffer.addr.to_le_bytes());
            tcp.extend(buffer.length.to_le_bytes());
            tcp.extend([READ_WRITE, 0, 0, 0, 0, 0, 0, 0]);
            BufferCard { label: buffer.name.clone(), tcp, on_fabric }
        });
        // It has no number for its life, but another data port in each.
        let mut epoch = std::hash::DefaultHasher::new();
        self.hash(&mut epoch);
        // Or other endpoints.
        for device in &descriptor.devices {
            device.gid.hash(&mut epoch);
        }
        Card {
            name: name.to_owned(),
            epoch: epoch.finish().into(),
            buffers: buffers.collect(),
            fabric: None,
            no_fabric: "it is a Mooncake node".into(),
        }
    }

    /// Puts a notification into its queue.
    pub(crate) fn notify(
        &self,
        segment: &str,
        from: &str,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<(), Error> {
        let failed = |reason: String| Error::Mooncake { peer: segment.to_owned(), reason };
        let text = std::str::from_utf8(payload)
            .map_err(|_| failed("its notifications are text, and this payload is not UTF-8".into()))?;
        // What is such a notification already, with a name of its own (weft-compat's are), goes as it is.
        let own = || Notice { name: from.to_owned(), notify_msg: text.to_owned() };
        let notice = Notice::named(text).unwrap_or_else(own);
        let answer = dialogue::ask(self.control, Kind::Notify, &notice.encode(), deadline)
            .map_err(|error| failed(explain("it did not take the notification", &error)))?;
        match Notice::decode(&answer).map_err(failed)?.notify_msg.as_str() {
            "success" | "" => Ok(()),
            said => Err(failed(format!("it refused the notification: {}", said.escape_debug()))),
        }
    }

    /// Whether its daemon answers, and how long that takes. Old ones do not know the question and are asked for their metadata.
    pub(crate) fn probe(&self, segment: &str, deadline: Instant) -> Result<Duration, Error> {
        let start = Instant::now();
        dialogue::ask(self.control, Kind::Probe, b"{}\n", deadline).map_err(|error| Error::Mooncake {
            peer: segment.to_owned(),
            reason: explain("its handshake daemon does not answer", &error),
        })?;
        Ok(start.elapsed())
    }
}

/// Whether Mooncake's nodes can be reached over EFA from here.
fn speaks_efa(node: &Node) -> bool {
    #[cfg(feature = "efa")]
    return super::efa::is_spoken(node);
    #[cfg(not(feature = "efa"))]
    {
        let _ = node;
        false
    }
}

fn explain(what: &str, error: &io::Error) -> String {
    format!("{what}: {error}; is it running?")
}

fn resolve(name: &str) -> Result<SocketAddr, String> {
    let mut addrs = name.to_socket_addrs().map_err(|error| error.to_string())?;
    addrs.next().ok_or_else(|| "its name resolves to no address".into())
}

fn resolve_host(host: &str, port: u16) -> Result<SocketAddr, String> {
    let mut addrs = (host, port).to_socket_addrs().map_err(|error| format!("{host}: {error}"))?;
    addrs.next().ok_or_else(|| format!("{host} resolves to no address"))
}
