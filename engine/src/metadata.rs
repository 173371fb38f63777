//! Where engines find each other by name: a metadata server, or none.
//!
//! Without a server ([`Location::PeerToPeer`], the default) a segment's name is its engine's address, and peers connect to it
//! directly. With one, engines have names of any kind: each publishes a small [`Record`] under its name, with a lease that it
//! renews in the background, so that a node that dies vanishes when its lease ends. Whoever opens a name looks the record up
//! and asks that engine for everything else: keys and descriptors never lie in the store, and a store that lies leads at most
//! to a peer that cannot authenticate itself.
//!
//! [`Directory`] is what the engine uses; it works on any [`Store`]. Three are here, each behind a feature and on a client that
//! others look after: `etcd` (its HTTP gateway), `redis`, and `http` (the protocol of Mooncake's HTTP metadata server, of
//! which [`http_server`] is an implementation, behind `http-server`). All calls block and are bounded by [`Options::timeout`];
//! there is no runtime. Everything here may be shared between threads.
//!
//! A server that goes away is no reason to stop: what was opened stays open, renewals are tried again with growing pauses, and
//! what the server has forgotten is published again when it is back.
//!
//! ```
//! use engine::metadata::{Directory, Location, Options};
//!
//! # fn main() -> Result<(), engine::Error> {
//! assert_eq!("p2p".parse::<Location>()?, Location::PeerToPeer);
//! assert!(Directory::connect("p2p", Options::default())?.is_none(), "no server, no directory");
//! let error = "gopher://somewhere".parse::<Location>().unwrap_err();
//! assert!(error.to_string().contains("etcd://"), "{error}");
//! # Ok(())
//! # }
//! ```

mod directory;
#[cfg(feature = "etcd")]
mod etcd;
#[cfg(feature = "http")]
mod http;
#[cfg(feature = "http-server")]
pub mod http_server;
mod keeper;
mod location;
mod record;
#[cfg(feature = "redis")]
mod redis;
mod store;
#[cfg(any(feature = "etcd", feature = "http"))]
mod web;

pub use directory::Directory;
pub use keeper::Lease;
pub use location::{Location, Options};
pub use record::Record;
pub use store::{MAX_KEY_BYTES, MAX_VALUE_BYTES, Renewal, Store};

use crate::error::Error;

/// [`Directory::connect`] with the default options.
///
/// # Errors
/// As there.
pub fn open(url: &str) -> Result<Option<Directory>, Error> {
    Directory::connect(url, Options::default())
}
