//! One-sided reads and writes over TCP lanes, authenticated, without libfabric.

#![deny(unsafe_code)]

mod batch;
mod error;
mod events;
mod memory;
mod peer;
mod region;
mod request;
mod seam;
mod settings;
mod stats;
mod sync;
mod transport;

pub use batch::{BatchHandle, Status};
pub use error::{Error, Refusal};
pub use events::{Arrival, Arrivals, Counter, Notification, Notifications};
pub use memory::{DeviceCopy, ForeignMemory, Memory, OwnedMemory, foreign_memory};
pub use peer::{Path, Peer};
pub use region::{Access, Region, RegionDescriptor, RegionKey};
pub use request::{Batch, Op, Request, Shape};
pub use settings::{Deadlines, Encryption, Limits, LocalPath, SocketOptions};
pub use stats::Statistics;
pub use transport::{Builder, Caller, Handler, Transport};
