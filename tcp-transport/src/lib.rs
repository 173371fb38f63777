//! One-sided reads and writes over TCP lanes, authenticated, without libfabric.

#![deny(unsafe_code)]

mod accepting;
mod batch;
mod cipher;
mod clock;
mod context;
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
mod peer;
mod region;
mod request;
mod responder;
mod seam;
mod server_lane;
mod service;
mod settings;
mod slice;
mod socket;
mod stats;
mod submit;
mod sync;
mod transport;
mod window;
mod wire;
mod workers;

pub use batch::{BatchHandle, Status};
pub use error::{Error, Refusal};
pub use events::{Arrival, Arrivals, Counter, Notification, Notifications};
pub use foreign::{Foreign, MAX_HEAD, Recognition};
pub use memory::{DeviceCopy, ForeignMemory, Memory, OwnedMemory, foreign_memory};
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
#[allow(clippy::unwrap_used)] // tests
mod model_tests;
