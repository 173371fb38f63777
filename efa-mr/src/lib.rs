//! What to register where.
//!
//! A network card translates addresses by a table of its own, and the table is small: an EFA card holds about 24 Mi entries, one
//! for each page that is registered with it. A pool of 400 GB in 4 KiB pages is four times what one card can take, and on a machine with 16
//! or 32 cards every byte that is on more cards can move faster. This crate decides which bytes are registered on which cards, carries that
//! out, and keeps the books.
//!
//! It is of use without the rest of Weft: the planning half (everything without a feature) is plain computation over numbers, knows
//! neither libfabric nor CUDA, and can plan for ibverbs just as well. It is *not* a transport and moves no bytes, and it does
//! not hook memory allocators.
//!
//! # Chapters
//!
//! | module | what it is |
//! |---|---|
//! | [`buffer`], [`nic`], [`access`] | the vocabulary: [`Buffer`], [`PageSize`], [`Location`]; [`Nic`], [`NicSet`], [`Distance`]; [`Access`] |
//! | [`policy`], [`cost`] | what is wanted: all NICs, the near ones, a number, or as many as some time allows |
//! | [`planner`], [`plan`](mod@plan) | **the planner** (start here) and its answer |
//! | [`ledger`] | what each NIC has left, over all live registrations |
//! | [`cache`] | what is registered already needs no second registration |
//! | [`pages`] | the page sizes of memory, from the kernel; prefault |
//! | [`topology`] | NICs, GPUs and NUMA nodes from sysfs; Mooncake's priority matrix |
//! | [`report`] | plans and topologies as tables and sentences |
//! | `registrar` (feature `registrar`) | carries plans out, all or nothing; with the feature `fabric` over libfabric's domains |
//! | `cuda` (feature `cuda`) | what a pointer is, dmabufs, contexts, copies; the driver is opened at run time |
//!
//! # Example
//!
//! Where do a host pool and a GPU's weights go on a machine with four cards, two on each NUMA node?
//!
//! ```
//! use efa_mr::{Buffer, CostModel, Distance, Ledger, Location, Nic, PageSize, Policy, plan};
//!
//! let mut nics: Vec<Nic> = (0..4)
//!     .map(|card| Nic { numa: Some(card / 2), ..Nic::new(format!("rdmap{card}s0")) })
//!     .collect();
//! nics[3].distances = vec![(Location::Gpu(1), Distance::SameSwitch)];
//!
//! let buffers = [
//!     Buffer::new(0x7e00_0000_0000, 100 << 30, PageSize::K4, Location::Numa(0)),
//!     Buffer::new(0x7f00_0000_0000, 16 << 30, PageSize::M2, Location::Gpu(1)),
//! ];
//! let plan = plan(&buffers, &nics, &Policy::near())?;
//!
//! // The weights are on the card next to their GPU. The pool would need 25 Mi entries on each near card, which has 22 Mi: what
//! // is too much goes to the other node, so that every byte still has its two cards.
//! assert_eq!(plan.chunks_of(1)[0].nics.to_string(), "3");
//! assert_eq!(plan.fulfilment(), 1.0);
//! assert!(plan.chunks_of(0).iter().all(|chunk| chunk.nics.len() == 2));
//!
//! // Before registering, the entries are reserved; dropping the reservations gives them back.
//! let ledger = Ledger::new(&nics);
//! let reservations = ledger.reserve_plan(&plan)?;
//! assert_eq!(ledger.used(0).0, plan.nics[0].pages);
//! drop(reservations);
//! assert_eq!(ledger.used(0), (0, 0));
//!
//! println!("{}", plan.explain(&buffers, &nics, &CostModel::DEFAULT));
//! # Ok::<(), efa_mr::Error>(())
//! ```

pub mod access;
pub mod buffer;
pub mod cache;
pub mod cost;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
pub mod ledger;
pub mod nic;
pub mod pages;
pub mod plan;
pub mod planner;
pub mod policy;
#[cfg(feature = "registrar")]
pub mod registrar;
pub mod report;
pub mod topology;
mod units;

pub use access::Access;
pub use buffer::{Buffer, Location, PageRun, PageSize, Pages, ParseLocationError};
pub use cache::Cache;
pub use cost::CostModel;
pub use error::Error;
pub use ledger::{Ledger, Reservation};
pub use nic::{DEFAULT_PTE_BUDGET, Distance, MAX_NICS, Nic, NicSet};
pub use plan::{Chunk, NicUse, Plan, Score};
pub use planner::plan;
pub use policy::{Policy, Wanted};
pub use topology::Topology;
