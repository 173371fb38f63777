//! The answering side of Mooncake's control protocol, on the engine's own port.

use std::io::{self, Read as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use tcp_transport::{Foreign, Recognition};

use super::descriptor::{Connection, Notice, is_json, speaks_efa};
use super::dialogue::Limited;
use super::frame::{self, Kind};
use super::publication;
use crate::node::Node;

/// How long a peer has for its question, the answer, and hanging up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Answers questions about a node.
pub(super) struct Daemon {
    /// Weak, because the node's transport holds the daemon.
    node: Weak<Node>,
}

impl Daemon {
    pub(super) fn new(node: &Arc<Node>) -> Self {
        Self { node: Arc::downgrade(node) }
    }

    fn converse(&self, stream: &TcpStream, head: &[u8]) -> io::Result<()> {
        let mut limited = Limited { stream, deadline: Instant::now() + PATIENCE };
        stream.set_nodelay(true)?;
        let (kind, json) = frame::read(&mut limited, frame::max_length(), head)?;
        let wrong = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
        let node = self.node.upgrade().ok_or_else(|| wrong("the engine is shutting down".into()))?;
        let answer = match kind {
            Kind::Metadata => {
                if !is_json(&json) {
                    return Err(wrong("what it says about itself is not JSON".into()));
                }
                publication::descriptor(&node, speaks_efa(&json))
                    .ok_or_else(|| wrong("the engine is shutting down".into()))?
                    .encode()
            }
            Kind::Notify => {
                let notice = Notice::decode(&json).map_err(wrong)?;
                let taken = node.take_note(notice.name, notice.notify_msg.into_bytes(), limited.deadline);
                let said = taken.map_or_else(|error| error.to_string(), |()| "success".into());
                Notice { name: String::new(), notify_msg: said }.encode()
            }
            Kind::Probe => b"{\"status\":\"success\"}\n".to_vec(),
            Kind::Connection | Kind::Untyped => {
                connect(&node, &Connection::decode(&json).map_err(wrong)?).encode()
            }
        };
        frame::write(&mut limited, kind, &answer)?;
        // The asker hangs up first: then it has read the answer.
        stream.shutdown(Shutdown::Write)?;
        let _ = limited.read(&mut [0])?;
        Ok(())
    }
}

/// The answer to a NIC that wants to be connected.
fn connect(node: &Node, asked: &Connection) -> Connection {
    #[cfg(feature = "efa")]
    let answer = super::efa::connect(node, asked);
    #[cfg(not(feature = "efa"))]
    let answer = {
        let _ = node;
        Err("this node speaks TCP with Mooncake's nodes; use protocol \"tcp\" towards it".to_owned())
    };
    answer.unwrap_or_else(|reason| Connection {
        local_nic_path: asked.peer_nic_path.clone(),
        peer_nic_path: asked.local_nic_path.clone(),
        reply_msg: reason,
        ..Connection::default()
    })
}

impl Foreign for Daemon {
    fn recognise(&self, head: &[u8]) -> Recognition {
        frame::recognise(head)
    }

    fn serve(&self, stream: TcpStream, head: &[u8], from: SocketAddr) {
        if let Err(error) = self.converse(&stream, head) {
            tracing::debug!(%from, %error, "Mooncake's handshake ended early");
        }
    }
}
