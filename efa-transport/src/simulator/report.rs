//! What came out of a simulation.

use std::fmt;

/// One card of the sender.
#[derive(Debug, Clone, PartialEq)]
pub struct CardReport {
    /// Bytes that it delivered.
    pub bytes: u64,
    /// Operations that ended, well or badly.
    pub operations: u64,
    /// Share of the time that it was sending.
    pub busy: f64,
    /// What it really can do, in bytes a second.
    pub bytes_per_second: f64,
    /// Times that it died.
    pub deaths: u64,
    /// Slices that it took over from others.
    pub taken_over: u64,
}

/// The outcome.
#[derive(Debug, Clone, PartialEq)]
pub struct Report {
    /// The sender's type.
    pub machine: String,
    /// Seed, to run it again.
    pub seed: u64,
    /// Virtual time from the first submission to the last end, in nanoseconds.
    pub elapsed_ns: u64,
    /// Requests that ended well.
    pub done: u64,
    /// Requests that failed, deadlines included.
    pub failed: u64,
    /// Bytes of requests that ended well.
    pub bytes: u64,
    /// Attempts that were repeated.
    pub retries: u64,
    /// Attempts of the slice that needed most of them.
    pub most_attempts: u32,
    /// By card of the sender.
    pub cards: Vec<CardReport>,
    /// Latency of requests, in nanoseconds: median and 99th percentile.
    pub latency_ns: (u64, u64),
    /// Rules that were broken. Always empty, unless the scheduler is wrong.
    pub violations: Vec<String>,
}

impl Report {
    /// Bytes of completed requests a second.
    pub fn bytes_per_second(&self) -> f64 {
        self.bytes as f64 / (self.elapsed_ns.max(1) as f64 / 1e9)
    }

    /// Throughput over what all cards of the sender together can do.
    pub fn utilisation(&self) -> f64 {
        let possible: f64 = self.cards.iter().map(|card| card.bytes_per_second).sum();
        self.bytes_per_second() / possible
    }

    /// The busiest card's bytes over the mean.
    pub fn imbalance(&self) -> f64 {
        let most = self.cards.iter().map(|card| card.bytes).max().unwrap_or(0);
        let mean =
            self.cards.iter().map(|card| card.bytes).sum::<u64>() as f64 / self.cards.len().max(1) as f64;
        if mean > 0.0 { most as f64 / mean } else { 1.0 }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} (seed {}): {} done, {} failed, {} retries in {:.3} s; {:.1} GB/s, {:.1} % of the cards; p50 {:.1} µs, p99 {:.1} µs",
            self.machine,
            self.seed,
            self.done,
            self.failed,
            self.retries,
            self.elapsed_ns as f64 / 1e9,
            self.bytes_per_second() / 1e9,
            100.0 * self.utilisation(),
            self.latency_ns.0 as f64 / 1e3,
            self.latency_ns.1 as f64 / 1e3,
        )?;
        for (index, card) in self.cards.iter().enumerate() {
            writeln!(
                f,
                "  card {index:2}: {:5.1} % busy, {:10.3} GB, {:9} operations, {} deaths, {} taken over",
                100.0 * card.busy,
                card.bytes as f64 / 1e9,
                card.operations,
                card.deaths,
                card.taken_over,
            )?;
        }
        for violation in &self.violations {
            writeln!(f, "  BROKEN: {violation}")?;
        }
        Ok(())
    }
}
