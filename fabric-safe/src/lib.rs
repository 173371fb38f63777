//! Safe libfabric objects: no unsafe needed by their users.
//!
//! [libfabric] is the interface to networks that move memory by themselves: AWS EFA, InfiniBand, shared memory, and TCP
//! where there is nothing better. Its objects refer to each other by raw pointers, its operations use memory long after the
//! call that started them, and its providers differ in what they promise. This crate makes Rust objects of it that can be
//! dropped in any order, operations that hold what they use and end exactly once, and differences that can be asked for.
//!
//! It is not a transport: it does not connect, retry, stripe, or hide that an operation can be refused because a queue is
//! full. It starts no thread and keeps no global state but the library itself, which is found at run time ([`fabric_sys`]): a
//! program that uses this crate starts on machines without libfabric, and [`Hints::discover`] says so.
//!
//! [libfabric]: https://ofiwg.github.io/libfabric/
//!
//! # A write and its end
//!
//! ```no_run
//! use fabric_safe::*;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let (their_name, their_region) = (vec![0], RemoteRegion::from_bytes([0; 24]));
//! // Discovery: what can do messages and remote memory access? The first entry is the best one.
//! let infos = Hints::new().provider("tcp;ofi_rxm").discover()?;
//! let info = infos.first().ok_or("no such provider here")?;
//!
//! // Objects. Each holds its parents, so nothing has to be kept that is not used.
//! let fabric = Fabric::open(info)?;
//! let domain = Domain::open(&fabric, info)?;
//! let vector = AddressVector::open(&domain, AddressVectorOptions::default())?;
//! let queue = CompletionQueue::open(&domain, CompletionQueueOptions::new(info))?;
//! let endpoint = Endpoint::open(&domain, info)?
//!     .bind_address_vector(&vector)?
//!     .bind_completion_queue(&queue, Direction::Both)?
//!     .enable()?;
//!
//! // What the peer has to know, and we of it, travels by other means: a socket, a file, a database.
//! let our_name = endpoint.name()?;
//! let peer = vector.insert(&their_name)?;
//!
//! // Memory goes into a region and comes back out of it.
//! let region = domain.register(vec![7; 1 << 20], Access::ALL)?;
//! let token = 42; // ours; comes back with the completion
//! while let Err(refused) = endpoint.write(&peer, region.slice(0..4096)?, their_region.at(0), token) {
//!     if !refused.is_again() {
//!         return Err(refused.into());
//!     }
//!     queue.poll(&mut CompletionBatch::new(16))?; // full, or not connected yet
//! }
//! let mut batch = CompletionBatch::new(64); // allocated once
//! while endpoint.transmit_in_flight() > 0 {
//!     for completion in queue.poll(&mut batch)? {
//!         assert_eq!(completion.token(), Some(token));
//!         completion.result().map_err(Clone::clone)?;
//!     }
//! }
//! let bytes: Vec<u8> = region.into_memory()?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/` has this as programs: `info` (what is there), `rma` (one process), `pingpong` (two).
//!
//! # The chapters
//!
//! | | |
//! |---|---|
//! | discovery | [`Hints`], [`Info`], [`Nic`] |
//! | objects | [`Fabric`] ← [`Domain`] ← [`AddressVector`], [`CompletionQueue`], [`Counter`], [`Endpoint`]; [`EventQueue`] |
//! | memory | [`Memory`] (what can be registered), [`Domain::register`], [`Endpoint::register`], [`MemoryRegion`], [`Region`], [`Slice`], [`RemoteRegion`] |
//! | operations | [`Endpoint`]`<`[`Enabled`]`>` and, for many at a time, [`Transmit`]; [`WriteOptions`], [`SendOptions`], [`ReceiveOptions`] |
//! | ends | [`CompletionBatch`], [`Completion`], [`OperationError`] |
//! | settings | [`option`], with a type each; [`Domain::efa_ext`] for what only EFA can be asked |
//! | errors | [`Error`] (a call), [`PostError`] (an operation refused), [`OperationError`] (an operation failed), [`Usage`] (a mistake) |
//!
//! # What holds, whatever the program does
//!
//! **Objects.** Children hold their parents; things are closed when the last handle and the last use are gone, in the order
//! that libfabric wants. What a provider refuses to close is leaked with all that it refers to, and counted
//! ([`leaked_objects`]).
//!
//! **Memory.** A region owns its memory. Nobody can make a Rust reference to registered bytes; they are copied in and out.
//! Memory is deregistered, and given back or freed, after the last operation on it has ended. Dropping a region with operations
//! in flight is fine: the poll that ends the last of them closes it.
//!
//! **Operations.** A post is accepted or refused. Refused ([`PostError`]) means that nothing was consumed:
//! [`PostError::Again`] is worth repeating after polling. Accepted means that exactly one completion with its token comes out
//! of the queue: well, failed, or at the latest [`ErrorKind::Aborted`] after [`Endpoint::close`]. Some operations never
//! complete by themselves (see below), so who waits needs a deadline, and closes the endpoint when it is over. (The *inject*
//! operations have ended when the call returns, and have no completion.)
//!
//! **Addresses.** An entry of the address vector is removed when the last [`Address`] is gone and the last operation to it has
//! ended.
//!
//! **Threads.** Everything can be used from several threads. Threads take turns posting on one endpoint, and polling one queue.
//! Registration holds up nothing else. Nothing blocks but what says so.
//!
//! **Costs.** After set-up nothing is allocated per operation (errors excepted): an operation takes a slot of a table that is
//! as long as the queue is deep. There is no reference count to touch: what operations hold is written into their slot, and
//! whoever wants to close something looks there. One lock per post, or per batch with [`Endpoint::transmit`].
//!
//! # What differs between providers
//!
//! Ask [`Info`]; the crate evens out what it can. Seen with libfabric 1.17 and 2.5:
//!
//! | | |
//! |---|---|
//! | when a write is complete | Visible at the target if [`Info::delivery_complete`]: asked for by default, offered by `tcp;ofi_rxm`, `net`/`tcp`, `shm`, `sockets`, `udp;ofi_rxd`. Otherwise it may be anything from "copied" to "acknowledged". |
//! | keys, addresses | [`Region::remote`] has the right ones for virtual and for offset addressing, our keys and the provider's. |
//! | depth | Reported by the provider, kept by us: [`PostError::Again`] comes at the latest when all slots are taken. |
//! | progress | With [`Info::manual_progress`], *both* sides have to poll, the target of a write too. |
//! | waiting | [`CompletionQueue::wait`] where the provider has a descriptor to wait on; `shm` and `udp;ofi_rxd` have none. |
//! | registering | From several threads at once; one at a time with `net` of 1.17, which cannot. |
//! | a bad key | Reaches nothing, anywhere. `tcp`, `net` and `tcp;ofi_rxm` cancel the operation, `sockets` and EFA 2.x report an error, EFA and `shm` of 1.17 and `udp;ofi_rxd` never complete it, `shm` 2.5 reports success. The `efa` provider of 1.17 may crash in the target. `tcp` and `net` answer [`PostError::Again`] for ever after: set a deadline, close the endpoint. |
//! | immediates | 8 bytes, 4 on EFA ([`Info::immediate_bytes`]). May use up a receive: [`Completion::kind`]. |
//! | a message without a receive | With `net`/`tcp` it holds up everything behind it on the same connection. |
//! | names | With `shm`, endpoints are called after a process for good, not after a number that containers share and the kernel uses again; what killed processes left in `/dev/shm` is removed by the next one. |
//! | cancelling | Receives only, and not everywhere. |
//! | atomics | [`Endpoint::has_atomics`]: the capability bit alone is not enough. |
//!
//! Limits that cannot be evened out from outside: with `shm`, two endpoints *of one process* use each other's memory
//! directly, and the provider crashes if one of them is closed while there is business between them (libfabric 2.5 also
//! with traffic in both directions). Between processes it is sound, but peers may carry out an operation after its endpoint
//! has been closed, so the memory of what is aborted then is kept for ever. The `efa` provider of 1.17 was seen to crash when a
//! peer closed its endpoint in the middle of emulated writes, and when one came with a bad key (2.5 not). Connected endpoints and multi-receive buffers
//! are not offered.

mod address;
mod completion;
mod completion_queue;
mod counter;
mod domain;
mod efa;
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
mod opened;
mod operations;
pub mod option;
mod post;
mod receive;
mod region;
mod register;
mod remote;
mod segments;
mod shared_bytes;
mod shm_name;
mod side;
mod transmit;
mod wait;

pub use address::{Address, AddressVector, AddressVectorOptions, RawAddress};
pub use completion::{Completion, CompletionBatch, CompletionFormat, OperationKind, SourceAddress};
pub use completion_queue::{CompletionQueue, CompletionQueueOptions};
pub use counter::{Counter, CounterEvents};
pub use domain::Domain;
pub use efa::{EfaExtension, EfaInterconnects};
pub use endpoint::{Direction, Enabled, Endpoint, EndpointState};
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
pub use opened::Opened;
pub use operations::OperationId;
pub use receive::{ReceiveOptions, Tag};
pub use region::{MemoryRegion, Region, Slice};
pub use register::{DeregisterError, RegisterError, RegisterOptions};
pub use remote::{Remote, RemoteRegion};
pub use transmit::{SendOptions, Transmit, WriteOptions};

/// The libfabric that this process uses, once something has been discovered: its path and version.
pub use fabric_sys::loaded as library;
