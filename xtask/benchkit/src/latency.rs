//! Latency percentiles.

use std::time::Duration;

use hdrhistogram::Histogram;

/// Collects durations; percentiles are exact to three significant digits. Recording allocates nothing.
#[derive(Clone, Debug)]
pub struct Latencies {
    nanoseconds: Histogram<u64>,
}

/// Longest duration that is told apart: a minute. Longer ones count as a minute.
const MAX_NS: u64 = 60_000_000_000;

impl Latencies {
    /// An empty collection.
    #[must_use]
    pub fn new() -> Self {
        #[expect(clippy::unwrap_used, reason = "constant bounds that the histogram accepts")]
        Self { nanoseconds: Histogram::new_with_bounds(1, MAX_NS, 3).unwrap() }
    }

    /// One more; below a nanosecond counts as one, above a minute as a minute.
    pub fn record(&mut self, latency: Duration) {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(MAX_NS).clamp(1, MAX_NS);
        self.nanoseconds.saturating_record(ns);
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.nanoseconds.len()
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.nanoseconds.is_empty()
    }

    /// The given percentile (0 to 100) in µs; 0 if there are none.
    #[must_use]
    pub fn percentile_us(&self, percentile: f64) -> f64 {
        self.nanoseconds.value_at_percentile(percentile) as f64 / 1e3
    }

    /// Median in µs.
    #[must_use]
    pub fn p50_us(&self) -> f64 {
        self.percentile_us(50.0)
    }

    /// 99th percentile in µs.
    #[must_use]
    pub fn p99_us(&self) -> f64 {
        self.percentile_us(99.0)
    }

    /// Adds all of another collection.
    pub fn merge(&mut self, other: &Self) {
        // Equal bounds: adding cannot fail.
        let _ = self.nanoseconds.add(&other.nanoseconds);
    }

    /// Forgets all, keeps the memory.
    pub fn clear(&mut self) {
        self.nanoseconds.reset();
    }
}

impl Default for Latencies {
    fn default() -> Self {
        Self::new()
    }
}
