//! One-sided reads and writes between the memory of processes, over TCP, without libfabric.
//!
//! A [`Transport`] registers memory and gets a [`Region`] with an unguessable key. Whoever is given its [`RegionDescriptor`]
//! can read and write it from another process or host, as far as its [`Access`] goes: contiguous, paged, strided, scattered, in
//! batches, with immediates. Lanes (connections) open by themselves, stay open, and reopen; large requests are spread over them.
//! A write is complete when its bytes are there. Each request ends exactly once, at its deadline at the latest.
//!
//! ```
//! use std::time::{Duration, Instant};
//! use tcp_transport::{Access, Batch, OwnedMemory, Request, Transport};
//!
//! # fn main() -> Result<(), tcp_transport::Error> {
//! let soon = Instant::now() + Duration::from_secs(5);
//! // One process serves memory …
//! let target = Transport::builder().listen(([127, 0, 0, 1], 0).into()).secret("sixteen bytes or more").build()?;
//! let cache = OwnedMemory::new(1 << 20)?;
//! let region = target.register(cache.clone(), Access::READ_WRITE)?;
//! let (addr, descriptor) = (target.local_addrs()[0], region.descriptor().to_bytes());
//!
//! // … and another one, which has been told address and descriptor, writes to it.
//! let transport = Transport::builder().secret("sixteen bytes or more").build()?;
//! let memory = OwnedMemory::new(4096)?;
//! memory.write(0, b"hello")?;
//! let local = transport.register(memory, Access::LOCAL)?;
//! let remote = tcp_transport::RegionDescriptor::from_bytes(&descriptor)?;
//! let peer = transport.peer(addr)?;
//! peer.connect(soon)?;
//! let mut batch = Batch::new();
//! batch.push(Request::write(&peer, &local, local.addr(), remote, remote.addr + 100, 5))?;
//! transport.submit(&mut batch)?.wait()?;
//!
//! let mut seen = [0; 5];
//! cache.read(100, &mut seen)?;
//! assert_eq!(&seen, b"hello");
//! # Ok(())
//! # }
//! ```
//!
//! What it is not: a message queue (there are small [notifications](Peer::notify) and [calls](Peer::call) for control, so that what is
//! built on top needs no second port), a name service (peers are socket addresses), or RDMA (the target's CPU moves the bytes).
//!
//! # Where a byte goes
//!
//! [`Batch`] → `submit` cuts requests into slices → `peer` puts slices on lanes → `initiator` turns them into frames (`wire`) → `lane`
//! sends them, from the source memory itself → `server_lane` receives → `responder` checks key, right and bounds and says where the
//! bytes belong, which is where the socket puts them → the answer goes back the same way. The parts named `initiator`,
//! `responder`, `decoder`, `handshake`, `cipher`, `window` never touch a socket or a clock of their own; `model_tests` drives them with streams that
//! are cut and lost anywhere. All work with raw memory is in `seam`.
//!
//! # Threads
//!
//! A fixed number of I/O threads serves all peers. A caller that [waits](BatchHandle::wait) takes the lanes that its batch uses and moves
//! the bytes itself, so that a small request costs no wake-up of another thread; I/O threads drive what nobody waits for. Within a host,
//! where processes copy from one to the other, both sides [stay awake](Builder::stay_awake) for a moment. Everything is
//! `Send + Sync`. Steady traffic allocates nothing. The protocol is in `docs/tcp-protocol.md`, measurements in `docs/tcp-measurements.md`.

#![deny(unsafe_code)]

mod accepting;
mod awake;
mod batch;
mod cipher;
mod clock;
mod context;
#[cfg(feature = "cuda")]
mod cuda;
mod decoder;
mod dialling;
mod drive;
mod error;
mod events;
mod foreign;
mod handshake;
mod host;
mod initiator;
mod io;
mod lane;
mod memory;
#[cfg(feature = "mooncake")]
pub mod mooncake;
mod moving;
mod peer;
#[cfg(feature = "planted")]
mod planted;
mod region;
mod request;
mod responder;
mod seam;
mod seldom;
mod server_lane;
mod service;
mod settings;
mod share;
mod slice;
mod socket;
mod staging;
mod stats;
mod submit;
mod sync;
mod transport;
mod window;
mod wire;
mod workers;

pub use batch::{BatchHandle, Status};
#[cfg(feature = "cuda")]
pub use cuda::CudaMemory;
pub use error::{Error, Refusal};
pub use events::{Arrival, Arrivals, Counter, Notification, Notifications};
pub use foreign::{Foreign, MAX_HEAD, Recognition};
pub use memory::{AheadCopy, DeviceCopy, ForeignMemory, Memory, OwnedMemory, foreign_memory};
pub use peer::{Path, Peer};
pub use region::{Access, Region, RegionDescriptor, RegionKey};
pub use request::{Batch, Op, Request, Shape};
pub use settings::{Deadlines, Encryption, Limits, LocalPath, SocketOptions};
pub use stats::Statistics;
pub use transport::{Builder, Caller, Handler, Transport};

#[cfg(feature = "fuzzing")]
#[doc(hidden)]
pub mod fuzzing;
#[cfg(test)]
mod handover_tests;
#[cfg(test)]
mod model_tests;
