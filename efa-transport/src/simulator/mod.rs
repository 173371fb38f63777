//! The scheduler in virtual time: the machines that EFA runs on, without them.
//!
//! [`run`] drives the [`scheduler`](crate::scheduler) exactly as the transport does (slice, choose a lane, queue, post
//! against credits, take over from busy lanes, retry, set aside), against cards that exist on a virtual clock only. A
//! second of traffic over 16 cards of 400 Gbit/s, or three months of dying cards, takes seconds; everything follows from one
//! seed, so a run that went wrong can be run again.
//!
//! What it models: cards that serve one operation after the other (a cost for each, and its bytes at line speed) on both
//! sides, a latency with jitter, queue depths, cards at part speed, operations that fail, cards that die and come back. What
//! it does not: switches, congestion, memory bandwidth, the processor. So utilisation says how well the *scheduling* does, and
//! is an upper bound for what a machine does.
//!
//! ```
//! use efa_transport::simulator::{Machine, Scenario, run};
//!
//! let report = run(&Scenario::stream(Machine::p5en(), 1 << 20, 2_000, 1));
//! assert!(report.violations.is_empty());
//! assert!(report.utilisation() > 0.95, "{report}");
//! ```

mod machine;
mod report;
mod world;

pub use machine::{Card, Machine};
pub use report::{CardReport, Report};
pub use world::run;

/// What to simulate.
#[derive(Debug, Clone, PartialEq)]
pub struct Scenario {
    /// The machine that sends.
    pub local: Machine,
    /// The machine that is written to.
    pub remote: Machine,
    /// Length of each request in bytes.
    pub request_bytes: u64,
    /// Requests in all.
    pub requests: u64,
    /// Requests in flight at a time.
    pub outstanding: usize,
    /// Time between the end of a request and the submission of the next in its place, in nanoseconds.
    pub pause_ns: u64,
    /// Time from submission to the end of each request, in nanoseconds.
    pub deadline_ns: u64,
    /// What goes wrong.
    pub faults: Faults,
    /// Settings of the transport.
    pub settings: Settings,
    /// All randomness follows from it.
    pub seed: u64,
}

impl Scenario {
    /// A steady stream of requests between two machines of a kind, 512 at a time, without faults.
    pub fn stream(machine: Machine, request_bytes: u64, requests: u64, seed: u64) -> Self {
        Self {
            local: machine.clone(),
            remote: machine,
            request_bytes,
            requests,
            outstanding: 512,
            pause_ns: 0,
            deadline_ns: 30_000_000_000,
            faults: Faults::default(),
            settings: Settings::default(),
            seed,
        }
    }

    /// A batch now and then while cards die and come back: `days` of it.
    pub fn months(machine: Machine, days: u64, seed: u64) -> Self {
        const MINUTE: u64 = 60_000_000_000;
        Self {
            outstanding: 4,
            pause_ns: 2 * MINUTE,
            requests: days * 24 * 60 * 2,
            faults: Faults {
                mean_ns_between_deaths: 30 * MINUTE,
                mean_ns_dead: 5 * MINUTE,
                failures_per_million: 2_000,
                ..Faults::default()
            },
            ..Self::stream(machine, 4 << 20, 0, seed)
        }
    }
}

/// What goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Faults {
    /// Mean time between deaths of some card of the sender, 0 for never.
    pub mean_ns_between_deaths: u64,
    /// Mean time until a dead card comes back.
    pub mean_ns_dead: u64,
    /// Cards of the sender that are dead from the start and stay so, one bit each.
    pub dead: u128,
    /// Operations that end in an error for no reason, of a million.
    pub failures_per_million: u32,
    /// Of a million posts, how many the provider has no room for (`EAGAIN`) although there is a credit.
    pub agains_per_million: u32,
}

/// The transport's settings, with its defaults.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// As [`Config::window_bytes`](crate::Config::window_bytes).
    pub window_bytes: u64,
    /// As [`Config::stripe_bytes`](crate::Config::stripe_bytes).
    pub stripe_bytes: u64,
    /// As [`Config::slice_bytes`](crate::Config::slice_bytes).
    pub slice_bytes: u64,
    /// As [`Config::retries`](crate::Config::retries).
    pub retries: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self { window_bytes: 32 << 20, stripe_bytes: 256 << 10, slice_bytes: 1 << 20, retries: 7 }
    }
}
