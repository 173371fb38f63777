//! Latencies by stage, and what they come to.

use std::time::Duration;

use hdrhistogram::Histogram;

/// The longest latency that is told from a longer one: an hour, in nanoseconds.
const LONGEST: u64 = 3_600_000_000_000;

/// What became of a batch's time, in the order of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// From when it could begin to its submission.
    Queue,
    /// Its submission.
    Post,
    /// From then to its end.
    Transfer,
    /// All of it.
    Total,
}

impl Stage {
    pub(crate) const ALL: [Self; 4] = [Self::Queue, Self::Post, Self::Transfer, Self::Total];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Queue => "queue",
            Self::Post => "post",
            Self::Transfer => "transfer",
            Self::Total => "total",
        }
    }
}

/// Latencies of batches, to three digits.
#[derive(Debug, Clone)]
pub(crate) struct Latencies {
    stages: [Histogram<u64>; 4],
}

impl Latencies {
    pub(crate) fn new() -> Self {
        // The bounds are constants that a test has tried.
        let histogram = || Histogram::new_with_bounds(1, LONGEST, 3).unwrap_or_else(|_| unreachable!());
        Self { stages: [histogram(), histogram(), histogram(), histogram()] }
    }

    pub(crate) fn record(&mut self, queue: Duration, post: Duration, transfer: Duration) {
        let nanos = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(LONGEST);
        for (histogram, time) in self.stages.iter_mut().zip([queue, post, transfer, queue + post + transfer])
        {
            histogram.saturating_record(nanos(time).clamp(1, LONGEST));
        }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (ours, theirs) in self.stages.iter_mut().zip(&other.stages) {
            // Same bounds, so it fits.
            let _ = ours.add(theirs);
        }
    }

    /// Batches recorded.
    pub(crate) fn count(&self) -> u64 {
        self.stages[0].len()
    }

    /// Microseconds below which this share of the batches took.
    pub(crate) fn micros(&self, stage: Stage, quantile: f64) -> f64 {
        self.stages[stage as usize].value_at_quantile(quantile) as f64 / 1e3
    }
}

/// The result of a case.
#[derive(Debug, Clone)]
pub(crate) struct Measured {
    /// From the common start to the last end.
    pub(crate) elapsed: Duration,
    /// Payload of all threads.
    pub(crate) bytes: u64,
    /// Blocks of all threads.
    pub(crate) blocks: u64,
    pub(crate) latencies: Latencies,
}

impl Measured {
    /// GB/s, of 10⁹ bytes.
    pub(crate) fn throughput(&self) -> f64 {
        self.bytes as f64 / self.elapsed.as_secs_f64().max(1e-9) / 1e9
    }

    /// Blocks per second.
    pub(crate) fn rate(&self) -> f64 {
        self.blocks as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stages_add_up_and_percentiles_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::new();
        for micros in 1..=1000 {
            let transfer = Duration::from_micros(micros);
            latencies.record(Duration::from_micros(1), Duration::from_micros(2), transfer);
        }
        let near = |value: f64, wanted: f64| assert!((value / wanted - 1.0).abs() < 2e-3, "{value} {wanted}");
        near(latencies.micros(Stage::Transfer, 0.5), 500.0);
        near(latencies.micros(Stage::Transfer, 0.99), 990.0);
        near(latencies.micros(Stage::Total, 0.999), 1002.0);
        near(latencies.micros(Stage::Queue, 0.5), 1.0);
        near(latencies.micros(Stage::Post, 0.5), 2.0);
        let mut both = latencies.clone();
        both.add(&latencies);
        assert_eq!(both.count(), 2000);
        near(both.micros(Stage::Transfer, 0.9), 900.0);
    }

    #[test]
    fn times_beyond_the_scale_are_kept_at_its_end() {
        let mut latencies = Latencies::new();
        latencies.record(Duration::ZERO, Duration::ZERO, Duration::MAX / 4);
        assert!(latencies.micros(Stage::Total, 1.0) >= LONGEST as f64 / 1e3);
    }

    #[test]
    fn rates_are_decimal() {
        let measured = Measured {
            elapsed: Duration::from_secs(2),
            bytes: 4_000_000_000,
            blocks: 10,
            latencies: Latencies::new(),
        };
        assert_eq!((measured.throughput(), measured.rate()), (2.0, 5.0));
    }
}
