//! What to register where: PTE budgets, chunk-to-NIC assignment, MR cache, topology, CUDA pointers.

pub mod access;
pub mod buffer;
pub mod cache;
pub mod cost;
mod error;
pub mod ledger;
pub mod nic;
pub mod pages;
pub mod plan;
pub mod planner;
pub mod policy;
#[cfg(feature = "registrar")]
pub mod registrar;
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
