//! The scheduler: which bytes go over which rail, when, and what happens after a failure.
//!
//! Everything here is a pure state machine: no clock, no I/O, no randomness of its own. Time comes in as nanoseconds since
//! whenever. The [`Transport`](crate::Transport) drives it with a provider's completions, a simulator with
//! those of cards that exist in virtual time only, and the property tests with whatever they think of.
//!
//! * [`slicer`] cuts two lists of ranges into slices that straddle no seam of either side;
//! * [`rail`] chooses a local NIC for each slice, and a remote NIC for that;
//! * [`queue`] holds the slices of one NIC in order, hands them out against credits, and takes them back;
//! * [`health`] sets NICs and peers aside after failures and lets them back in;
//! * [`fabric`] chooses between the two of EFA for each peer;
//! * [`retry`] decides whether a failed slice gets another attempt, and when.

pub mod fabric;
pub mod health;
pub mod queue;
pub mod rail;
pub mod retry;
pub mod slicer;
