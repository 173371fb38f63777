//! Safe libfabric objects: no unsafe needed by their users

mod address;
mod completion;
mod completion_queue;
mod counter;
mod domain;
mod endpoint;
mod error;
mod event_queue;
mod fabric;
mod flags;
mod hints;
mod info;
mod memory;
mod nic;
mod object;
mod operations;
pub mod option;
mod receive;
mod region;
mod remote;
mod shared_bytes;
mod transmit;
mod wait;

pub use address::{Address, AddressVector, AddressVectorOptions, RawAddress};
pub use completion::{Completion, CompletionBatch, OperationKind, SourceAddress};
pub use completion_queue::{CompletionFormat, CompletionQueue, CompletionQueueOptions};
pub use counter::{Counter, CounterEvents};
pub use domain::Domain;
pub use endpoint::{Direction, Enabled, Endpoint, EndpointState, Opened};
pub use error::{Errno, Error, ErrorKind, OperationError, PostError, Usage};
pub use event_queue::{Event, EventError, EventQueue};
pub use fabric::Fabric;
pub use flags::{Access, Capabilities, MemoryMode, Mode, PostFlags};
pub use hints::{DeliveryComplete, Hints};
pub use info::{EndpointKind, Info};
pub use memory::{
    DeviceMemory, Dmabuf, ForeignMemory, Mapping, Memory, PageKind, Part, Placement, SharedMemory,
};
pub use nic::{BadPciAddress, LinkState, Nic, PciAddress};
pub use object::leaked_objects;
pub use operations::OperationId;
pub use receive::{ReceiveOptions, Tag};
pub use region::{DeregisterError, MemoryRegion, Region, RegisterError, RegisterOptions, Slice};
pub use remote::{Remote, RemoteRegion};
pub use transmit::{SendOptions, Transmit, WriteOptions};

/// The libfabric that this process uses, once something has been discovered: its path and version.
pub use fabric_sys::loaded as library;
