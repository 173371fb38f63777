//! One-sided transfers over every EFA card (or any libfabric RDM provider) at once.
//!
//! A [`Transport`] opens the NICs of one libfabric provider, registers memory on them through [`efa_mr`], and moves bytes
//! between that memory and the memory of peers: over every NIC at once, each request spread over the NICs that can take it,
//! tried again elsewhere when a NIC fails, ended exactly once, at its deadline at the latest.
//!
//! What it is not: a way to find peers. A transport makes a descriptor of itself (opaque bytes) and takes those of others;
//! who carries them is the caller's business. It opens no sockets of its own.
//!
//! ```no_run
//! use std::sync::Arc;
//! use std::time::{Duration, Instant};
//! use efa_transport::{Access, Batch, Config, Request, Transport};
//! use fabric_safe::{Mapping, PageKind};
//!
//! # fn exchange(ours: &[u8]) -> Vec<u8> { ours.to_vec() }
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let transport = Transport::open(Config::new().name("prefill-0"))?;
//! println!("{}", transport.describe());
//! let memory = Arc::new(Mapping::anonymous(1 << 20, PageKind::Small)?);
//! let region = transport.register(memory, Access::ALL)?;
//!
//! // One round trip tells each side everything about the other.
//! let peer = transport.add_or_update_peer(&exchange(&transport.local_descriptor()))?;
//! transport.warm_up(peer, Instant::now() + Duration::from_secs(5))?;
//!
//! let mut batch = Batch::new();
//! # let remote_addr = region.addr();
//! batch.push(Request::write(peer, &region, region.addr(), remote_addr, 4096))?;
//! transport.submit(&mut batch)?.wait()?;
//! # Ok(())
//! # }
//! ```
//!
//! # Where a byte goes
//!
//! `request` collects what is asked for. `submit` looks up the peer's memory, lets the [`scheduler`] cut each request into
//! slices that straddle no seam of either side, and gives every slice to a `lane`, the queue of one NIC; slices that have all
//! but their place in common travel as one `lot`. (A request that is alone in its batch, and short, is one slice: it is
//! posted without being gathered or queued, as long as nothing is out of the ordinary, see `alone`; what comes of it is dealt with as
//! with all.) Whoever drives a lane (a thread that waits, or the thread
//! of `progress`) `post`s slices against credits and reads completions; those that went well are added up in a `tally` and
//! accounted in their `batch`, which the [`BatchHandle`] follows, and which `batches` watches and keeps for reuse. A slice that
//! fails leaves its lane as a stray; it is `classify`-ed and, once its attempt has ended, tried again over another rail.
//!
//! # Which fabric
//!
//! EFA cards have two, whose endpoints do not understand each other: `efa-direct`, where the card does everything, and `efa`, where
//! the provider's protocols help. A transport with [`Provider::Auto`] or [`Provider::EfaAuto`] opens the first that its cards
//! are good for and says in its descriptor what else it could open. Each pair of transports takes the best that both have
//! ([`scheduler::fabric`]); the first peer that needs the other one makes a transport open it and register its memory there too.
//! [`PeerState::fabric`] says which it is.

#![forbid(unsafe_code)]

// What callers say and see.
mod config;
mod describe;
mod error;
mod events;
mod gauges;
mod request;
#[cfg(test)]
mod scripted_tests;
mod stall;
mod stats;
mod transport;
#[cfg(test)]
mod transport_tests;

// Memory and peers.
mod descriptor;
mod parts;
mod peer;
mod peer_health;
mod region;
mod warmup;

// The way of a slice.
mod alone;
mod batch;
mod batches;
mod copy;
mod core;
mod crowd;
mod lot;
mod route;
mod slice;
mod submit;
mod tally;
mod wait;
mod watch;

// One NIC's part of it.
mod addresses;
mod lane;
mod post;

// All NICs of a fabric, and a second fabric for peers that need it.
mod fabric;
mod lanes;
mod second;

// When things go wrong, and when nothing goes on.
mod classify;
mod failure;
mod idle;
mod progress;
mod reopen;

// Deciding, without doing.
pub mod scheduler;
pub mod simulator;
mod trace;

// Cards and clocks.
mod clock;
mod nic;
mod provider;
mod serial;

pub use batch::{BatchHandle, Status};
pub use config::{Config, NicSelection, Provider};
pub use describe::{Description, NicDescription};
pub use descriptor::MAX_DESCRIPTOR_BYTES;
#[doc(hidden)]
pub use descriptor::check_descriptor;
pub use error::Error;
pub use events::{Arrivals, Counter, Event, Events};
pub use parts::{Parts, PartsChunk, PartsNic};
pub use peer::{PeerId, PeerState};
pub use provider::Rejected;
pub use region::{Access, Region, RegisterOptions};
pub use request::{Batch, MAX_PIECES, MAX_REQUEST_BYTES, Op, Request, Shape};
pub use stats::{NicStatistics, PeerStatistics, Statistics};
pub use transport::Transport;
pub use warmup::WarmUp;
