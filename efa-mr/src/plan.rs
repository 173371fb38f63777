//! The planner's answer: chunks with their NICs, what each NIC pays, and how good that is.

use crate::buffer::{Location, PageSize};
use crate::cost::{CostModel, Registration};
use crate::nic::NicSet;
use std::cmp::{Ordering, Reverse};
use std::time::Duration;

/// A stretch of one buffer that becomes one MR on each NIC of its set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Index of the buffer in the slice that was planned.
    pub buffer: usize,
    /// First byte.
    pub addr: u64,
    /// Length in bytes; never zero.
    pub len_bytes: u64,
    /// Page size of all of it.
    pub page: PageSize,
    /// Page table entries that each of its NICs pays.
    pub pages: u64,
    /// The NICs, never none.
    pub nics: NicSet,
}

/// What the plan takes from one NIC.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NicUse {
    /// Page table entries.
    pub pages: u64,
    /// MRs.
    pub mrs: u64,
    /// Bytes registered.
    pub bytes: u128,
    /// Time to move all those bytes once over the NIC's link, in nanoseconds: its load.
    pub load_ns: u64,
}

/// How good a plan is. Plans are compared in the order of the fields; a greater `Score` is a better plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Score {
    /// Σ over chunks of bytes × min(NICs of the chunk, NICs wanted). More is better.
    pub spread: u128,
    /// Σ over chunks and their NICs of bytes × [distance weight](crate::Distance::weight). Less is better.
    pub far: u128,
    /// The largest [load](NicUse::load_ns) of a NIC. Less is better.
    pub load_ns: u64,
    /// The number of MRs. Fewer are better.
    pub mrs: u64,
}

impl Ord for Score {
    fn cmp(&self, other: &Self) -> Ordering {
        let key =
            |score: &Self| (score.spread, Reverse(score.far), Reverse(score.load_ns), Reverse(score.mrs));
        key(self).cmp(&key(other))
    }
}

impl PartialOrd for Score {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What to register where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Ordered by buffer, then by address. The chunks of a buffer cover it exactly.
    pub chunks: Vec<Chunk>,
    /// One entry for each NIC that was given.
    pub nics: Vec<NicUse>,
    /// How good it is.
    pub score: Score,
    /// How many NICs per byte were wanted, by location, in order of location.
    pub wanted: Vec<(Location, usize)>,
    /// Where the memory of each buffer lies (for costs and reports).
    pub(crate) locations: Vec<Location>,
    /// What a plan without any limit on budgets would have as [`Score::spread`].
    pub(crate) ideal_spread: u128,
}

impl Plan {
    /// The chunks of one buffer, in ascending order of address; none for an index that was not planned.
    #[must_use]
    pub fn chunks_of(&self, buffer: usize) -> &[Chunk] {
        let start = self.chunks.partition_point(|chunk| chunk.buffer < buffer);
        let end = self.chunks.partition_point(|chunk| chunk.buffer <= buffer);
        &self.chunks[start..end]
    }

    /// The share of the wanted spread that the budgets allowed: 1.0 when every byte is on as many NICs as wanted.
    #[must_use]
    pub fn fulfilment(&self) -> f64 {
        if self.ideal_spread == 0 { 1.0 } else { self.score.spread as f64 / self.ideal_spread as f64 }
    }

    /// The registrations in the order in which they should be made: ascending by size on every NIC.
    #[must_use]
    pub fn registrations(&self) -> Vec<(usize, Registration)> {
        let mut order: Vec<usize> = (0..self.chunks.len()).collect();
        order.sort_by_key(|&chunk| (self.chunks[chunk].len_bytes, chunk));
        let of_chunk = |chunk: usize| {
            let Chunk { buffer, len_bytes, pages, nics, .. } = self.chunks[chunk];
            let device = self.locations[buffer].is_device();
            nics.iter().map(move |nic| (chunk, Registration { nic, len_bytes, pages, device }))
        };
        order.into_iter().flat_map(of_chunk).collect()
    }

    /// How long the registrations will take on fresh domains, as the cost model predicts.
    #[must_use]
    pub fn predicted_time(&self, model: &CostModel) -> Duration {
        model.predict(self.nics.len(), self.registrations().into_iter().map(|(_, registration)| registration))
    }
}
