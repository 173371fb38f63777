//! Named segments of memory, moved between machines over the best path there is.
//!
//! An [`Engine`] is what a process opens once. It registers memory ([`Engine::register`]) so that peers can read or write it
//! without its program taking part, and opens the memory of peers as [`Segment`]s ([`Engine::open`]). Reads and writes between
//! the two are collected in a [`Batch`], submitted, and followed to their end by a [`BatchHandle`]: by blocking, by polling or by
//! awaiting. [`Segment::notify`] tells a peer's program that something is ready for it.
//!
//! The crate decides and does not move bytes. Which way a segment's requests go is chosen when it is opened, from what both
//! sides have ([`Protocol`]): libfabric through efa-transport, or TCP through tcp-transport, which also knows a shorter way
//! between processes of one host. The choice and its reason are logged, [`Segment::path`] tells it, and a path that was asked
//! for by name is never replaced in silence.
//!
//! It is not a store, a scheduler or a message queue: it knows nothing about keys, pages or models. Names are addresses
//! (`host:port`); no server is needed for peers to find each other.
//!
//! # Example
//!
//! ```
//! use std::time::{Duration, Instant};
//! use engine::{Access, Batch, Engine, HostMemory, Protocol};
//!
//! # fn main() -> Result<(), engine::Error> {
//! // Two engines; in life they are on two machines.
//! let decode = Engine::builder().protocol(Protocol::Tcp).build()?;
//! let prefill = Engine::builder().protocol(Protocol::Tcp).build()?;
//!
//! let pool = HostMemory::new(1 << 20)?;
//! decode.register("kv", pool.clone(), Access::WRITE)?;
//!
//! let source = HostMemory::new(4096)?;
//! source.write(0, b"keys and values")?;
//! let local = prefill.register("staging", source, Access::LOCAL)?;
//!
//! let deadline = Instant::now() + Duration::from_secs(10);
//! let remote = prefill.open(decode.name(), deadline)?;
//! let kv = remote.buffer("kv")?;
//! let mut batch = Batch::new();
//! batch.write(&local, local.range(0, 15), &remote, kv.range(8192, 15))?;
//! prefill.submit(&mut batch)?.wait()?;
//! remote.notify(b"page 2 is there", deadline)?;
//!
//! let note = decode.notification(deadline).expect("the notification is on its way");
//! assert_eq!(note.payload, b"page 2 is there");
//! let mut bytes = [0; 15];
//! pool.read(8192, &mut bytes)?;
//! assert_eq!(&bytes, b"keys and values");
//! # Ok(())
//! # }
//! ```

#![deny(unsafe_code)]

// What a program says and sees.
mod arrivals;
mod builder;
mod engine;
mod error;
mod handle;
mod memory;
pub mod metadata;
#[cfg(feature = "mooncake")]
pub mod mooncake;
mod path;
mod protocol;
mod raw;
mod request;
mod segment;
pub mod settings;
mod statistics;

// What engines tell each other, and what is kept of it.
mod config_file;
mod control;
#[cfg(feature = "efa")]
mod fabric;
mod known;
mod node;
mod regions;

// What happens to a batch, and beside it.
mod backoff;
mod errands;
#[cfg(feature = "efa")]
mod failover;
mod flight;
#[cfg(feature = "efa")]
mod kept;
mod warden;

pub use arrivals::ArrivalCounter;
pub use builder::Builder;
pub use engine::{Buffer, Engine, Notification};
pub use error::Error;
pub use handle::{BatchHandle, Status};
pub use memory::{Access, HostMemory, Memory, Region};
pub use path::Path;
pub use protocol::Protocol;
pub use raw::RawBuffer;
pub use request::{Batch, Shape};
pub use segment::{RemoteBuffer, Segment};
pub use settings::{Settings, Source};
pub use statistics::{NicStatistics, PeerStatistics, Statistics, TcpStatistics, Traffic};
