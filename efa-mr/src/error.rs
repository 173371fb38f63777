//! Everything that can go wrong, and what to do about it.

use crate::buffer::{Location, PageSize};
use crate::units;

/// Why a plan, a reservation or a registration was refused. Nothing has been changed when one of these is returned.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No NIC was given.
    #[error("there is no NIC to register on; check the filters, or use the TCP transport")]
    NoNics,
    /// More NICs than a plan can hold.
    #[error("{count} NICs are more than the {} that one plan can use; filter them", crate::nic::MAX_NICS)]
    TooManyNics {
        /// How many were given.
        count: usize,
    },
    /// A NIC with a link speed of zero.
    #[error("NIC {nic} reports a link speed of 0; leave it out until its link is up")]
    LinkDown {
        /// The NIC's name.
        nic: String,
    },
    /// A buffer without bytes.
    #[error("buffer {buffer} at {addr:#x} has length 0; there is nothing to register, leave it out")]
    Empty {
        /// Index of the buffer.
        buffer: usize,
        /// Its address.
        addr: u64,
    },
    /// A buffer that reaches past the end of the address space.
    #[error(
        "buffer {buffer} at {addr:#x} with {len_bytes} bytes reaches past 2^64; check address and length"
    )]
    PastTheEnd {
        /// Index of the buffer.
        buffer: usize,
        /// Its address.
        addr: u64,
        /// Its length in bytes.
        len_bytes: u64,
    },
    /// Page runs that do not cover their buffer.
    #[error(
        "the page runs of buffer {buffer} at {addr:#x} do not cover it exactly, or meet inside a page; \
         ask for them again"
    )]
    BadPageRuns {
        /// Index of the buffer.
        buffer: usize,
        /// Its address.
        addr: u64,
    },
    /// No NIC can reach a buffer.
    #[error(
        "no NIC can register buffer {buffer} ({location}, {page} pages): none reaches that memory, or every NIC's \
         longest MR is shorter than one page; stage it through host memory, or use the TCP transport"
    )]
    Unreachable {
        /// Index of the buffer.
        buffer: usize,
        /// Where its memory lies.
        location: Location,
        /// Its page size.
        page: PageSize,
    },
    /// The budgets do not suffice for every byte on the fewest NICs that the policy allows.
    #[error(
        "buffer {buffer} ({location}) does not fit: with what was planned before it, {} page table entries are \
         needed for {at_least} NIC(s) per byte, and the {nics} NIC(s) that can take it have {} left (most on {nic}: \
         {}); {remedy}",
        units::count(*needed), units::count(*left), units::count(*nic_left)
    )]
    DoesNotFit {
        /// Index of the buffer.
        buffer: usize,
        /// Where its memory lies.
        location: Location,
        /// NICs per byte that the policy insists on.
        at_least: usize,
        /// Page table entries needed over all buffers that compete for these NICs.
        needed: u64,
        /// Page table entries left on all NICs that can reach the buffer.
        left: u64,
        /// How many NICs can reach it.
        nics: usize,
        /// The NIC with the most left.
        nic: String,
        /// What it has left.
        nic_left: u64,
        /// What would make it fit.
        remedy: String,
    },
    /// More MRs than a NIC may have.
    #[error(
        "NIC {nic} may take {left} more MRs and the plan needs {needed}; register whole allocations instead of many \
         small buffers, or ask for fewer NICs per byte"
    )]
    TooManyMrs {
        /// The NIC's name.
        nic: String,
        /// MRs that the plan needs there.
        needed: u64,
        /// MRs that it may still take.
        left: u64,
    },
    /// A reservation that the ledger cannot grant.
    #[error(
        "NIC {nic} has {} of {} page table entries left and {} are needed; use huge pages, fewer NICs per byte, or \
         raise the budget if the card has room", units::count(*left), units::count(*budget), units::count(*needed)
    )]
    BudgetSpent {
        /// The NIC's name.
        nic: String,
        /// Entries asked for.
        needed: u64,
        /// Entries left at that moment.
        left: u64,
        /// The budget.
        budget: u64,
    },
    /// A NIC index that the ledger or domain list does not have.
    #[error("there is no NIC number {nic}; there are {count}")]
    NoSuchNic {
        /// The index.
        nic: usize,
        /// How many there are.
        count: usize,
    },
}
