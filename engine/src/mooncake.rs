//! Mooncake's peers, so that a cluster can move from one to the other node by node.
//!
//! With [`Builder::mooncake`](crate::Builder::mooncake) an engine answers Mooncake's handshake and serves its TCP data protocol,
//! both on the engine's own port, so Mooncake's nodes open it by its name, `host:port`. And [`Engine::open`](crate::Engine::open)
//! opens them: whoever does not say in the handshake that it is an engine of this crate is read and written by Mooncake's
//! data protocol; [`Path::Mooncake`](crate::Path::Mooncake) says so. Notifications go both ways.
//!
//! With a metadata server, both systems' entries lie beside each other: an engine publishes itself for Mooncake's nodes too,
//! under their keys and in their JSON, with the same lease.
//!
//! None of this is authenticated: whoever can connect may read and write every registered buffer that allows it to anybody.
//! That is why it is off by default, and refused beside a secret unless that is asked for in so many words.
//!
//! Over EFA too: such an engine opens the fabric `efa` rather than `efa-direct`, for that is what Mooncake's nodes use, and
//! tells whoever speaks EFA its cards' addresses and its keys. A node that speaks only TCP is told the TCP port.

mod daemon;
mod descriptor;
mod dialogue;
#[cfg(feature = "efa")]
mod efa;
mod frame;
mod pieces;
mod publication;
mod remote;
mod runner;

use std::sync::Arc;

pub(crate) use publication::Publication;
pub(crate) use remote::Remote;
pub(crate) use runner::{Batch, Handle, Runner};

use crate::error::Error;
use crate::node::Node;

/// Parsers for the fuzzer, which must neither panic nor believe a length.
#[cfg(feature = "fuzzing")]
pub mod fuzzing {
    /// Anything that a peer may say first, and anything that may lie in a store.
    pub fn fuzz_mooncake(data: &[u8]) {
        use super::{descriptor, frame};
        let _ = frame::recognise(data);
        let _ = frame::read(&mut &*data, 4096, &[]);
        if let Ok(descriptor) = descriptor::Descriptor::decode(data) {
            let again = descriptor.encode();
            assert_eq!(descriptor::Descriptor::decode(&again).as_ref(), Ok(&descriptor));
        }
        let _ = descriptor::Place::decode(data);
        let _ = descriptor::Notice::decode(data);
        let _ = descriptor::Connection::decode(data);
    }
}

/// Has the transport serve Mooncake's protocols beside its own.
pub(crate) fn serve(
    builder: tcp_transport::Builder,
    _: &crate::settings::Settings,
    node: &Arc<Node>,
) -> Result<tcp_transport::Builder, Error> {
    Ok(builder.serve_mooncake(true).foreign(daemon::Daemon::new(node)))
}
