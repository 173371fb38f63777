//! The data protocol of Mooncake's TCP transport, versions 1 and 2, as both client and server, so that nodes of both kinds can
//! serve side by side while a cluster moves from one to the other.
//!
//! One request at a time on a connection: a header of 24 bytes, then payload. Version 2 has a status of 8 bytes; version 1
//! has none, so it can only refuse by closing. There are no keys: a request names an absolute address, and whoever can connect
//! may use every region that is registered with the right. That is why it has to be asked for
//! ([`Builder::serve_mooncake`](crate::Builder::serve_mooncake)), and why it warns.

mod client;
mod frame;
mod server;

pub use client::{Client, Version};
pub(crate) use frame::recognise;
#[cfg(feature = "fuzzing")]
pub(crate) use frame::{Head, Status};
pub(crate) use server::Session;
