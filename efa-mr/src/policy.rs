//! How many NICs a byte should be reachable through.

use crate::cost::CostModel;
use std::time::Duration;

/// What the caller wants from a plan. Budgets come first: a policy is a wish, except for [`at_least`](Self::at_least).
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// How many NICs each byte is wanted on.
    pub wanted: Wanted,
    /// On fewer NICs than this a byte must not be, or the plan is refused. 1 unless set; 0 reads as 1. Where fewer NICs
    /// can reach the memory at all, their number counts instead.
    pub at_least: usize,
}

/// How many NICs each byte is wanted on.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Wanted {
    /// Every NIC that can reach the memory: the most bandwidth, the most registrations.
    All,
    /// As many NICs as are nearest to the memory (all equally near ones). When those are full, farther ones stand in.
    Near,
    /// This many NICs, the nearest first. 0 reads as 1.
    Nics(usize),
    /// As many NICs per byte as can be registered within the time that the cost model predicts, and at least one.
    Within(Duration, CostModel),
}

impl Policy {
    /// Every byte on every NIC that can reach it.
    #[must_use]
    pub const fn all() -> Self {
        Self { wanted: Wanted::All, at_least: 1 }
    }

    /// Every byte on the NICs nearest to it.
    #[must_use]
    pub const fn near() -> Self {
        Self { wanted: Wanted::Near, at_least: 1 }
    }

    /// Every byte on `count` NICs.
    #[must_use]
    pub const fn nics(count: usize) -> Self {
        Self { wanted: Wanted::Nics(count), at_least: 1 }
    }

    /// As many NICs per byte as the default cost model says can be registered within `time`.
    #[must_use]
    pub const fn within(time: Duration) -> Self {
        Self { wanted: Wanted::Within(time, CostModel::DEFAULT), at_least: 1 }
    }

    /// Refuse rather than put a byte on fewer than `count` NICs.
    #[must_use]
    pub const fn with_at_least(mut self, count: usize) -> Self {
        self.at_least = count;
        self
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self::all()
    }
}
