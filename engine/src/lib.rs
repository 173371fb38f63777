//! Named segments of memory, moved between machines over the best path there is.
//!
//! An [`Engine`] is what a process opens once. It registers memory ([`Engine::register`]) so that peers can read or write it
//! without its program taking part, and opens the memory of peers as [`Segment`]s ([`Engine::open`]). Reads and writes between
//! the two are collected in a [`Batch`], submitted, and followed to their end by a [`BatchHandle`]: by blocking, by polling or by
//! awaiting. [`Segment::notify`], [`Batch::notify_on_completion`] and [`Engine::arrivals`] tell a peer's program that something is
//! ready for it.
//!
//! The crate decides and does not move bytes. Which way a segment's requests go is chosen when it is opened, from what both
//! sides have ([`Protocol`]): libfabric through efa-transport, or TCP through tcp-transport, which also knows a shorter way
//! between processes of one host. The choice and its reason are logged, [`Segment::path`] and [`Segment::path_reason`] tell them, and a
//! path that was asked for by name is never replaced in silence.
//!
//! It is not a store, a scheduler or a message queue: it knows nothing about keys, pages or models. Names are addresses
//! (`host:port`), and no server is needed for peers to find each other; with a [metadata] server names can be anything.
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

//! # When something fails
//!
//! Each request ends exactly once, at its deadline at the latest, and [`BatchHandle::quiesced`] says whether its memory is free of the
//! network. A request is for the registration that it was made for: if the peer has unregistered that memory, or has been restarted,
//! it fails, and nothing is written to whatever lies at the address now.
//!
//! What can be put right without the program is: a peer that was restarted, or has registered anew, is asked for its buffers again, and one
//! that does not answer is looked for until it does, so later batches succeed. With [`Protocol::Auto`], requests that fail because a
//! peer's last libfabric rail has died are sent over TCP, when nothing of the first attempt can touch memory any more; the peer's
//! traffic stays there until a rail works again. The log, the path and [`Engine::statistics`] say so.
//!
//! # Where to read on
//!
//! A batch's way: `request` (what is asked for) → `segment` and `known` (which peer, which buffer, which way) → `flight` (what becomes
//! of it) → `failover`, `kept` (if that is TCP in the end). `node` and `control` are what engines tell each other; `warden` and `errands` do
//! what nobody waits for. [`settings`] lists every setting, [`metadata`] the stores.

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
#[cfg(feature = "efa")]
mod audience;
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
