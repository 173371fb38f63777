//! What every benchmark of this repository shares: the way it measures and the rows it reports.
//!
//! A benchmark is a program (`benches/NAME.rs`, `harness = false`) that builds a [`Bench`] and gives it pairs of
//! closures: ours, and a bare loop over the same primitive. Machines are noisy, so figures alone say little:
//!
//! - both are measured in the same run, in interleaved rounds (A B A B …, [`Options::rounds`]);
//! - the [`Row`] carries the ratio of the medians and a bootstrap confidence interval ([`stats`]);
//! - it also carries the ratio of the baseline to itself (A/A). Where that is off by more than half of the margin
//!   that is being judged, the row is *inconclusive*: neither met nor missed;
//! - what noise hides is counted: allocations ([`CountingAllocator`]), instructions ([`callgrind`]), CPU time
//!   ([`CpuClock`]).
//!
//! ```no_run
//! use benchkit::{Bench, Metric, Result, throughput_gb_per_s};
//! use std::time::Instant;
//!
//! fn main() -> Result<()> {
//!     let mut bench = Bench::from_args("copy");
//!     let (from, mut ours, mut bare) = (vec![1_u8; 1 << 20], vec![0_u8; 1 << 20], vec![0_u8; 1 << 20]);
//!     bench
//!         .case(format!("op=copy size={}", from.len()))
//!         .target(0.97)
//!         .compare(
//!             Metric::Throughput,
//!             "byte loop",
//!             || {
//!                 let start = Instant::now();
//!                 ours.copy_from_slice(&from);
//!                 Ok(throughput_gb_per_s(from.len() as u64, start.elapsed()))
//!             },
//!             || {
//!                 let start = Instant::now();
//!                 bare.iter_mut().zip(&from).for_each(|(to, from)| *to = *from);
//!                 Ok(throughput_gb_per_s(from.len() as u64, start.elapsed()))
//!             },
//!         )?;
//!     bench.finish()
//! }
//! ```
//!
//! It is not a general benchmark framework: nothing is calibrated or guessed. A closure decides how much work one
//! round is ([`Options::round_time`] is a suggestion) and returns the figure that it measured.

pub mod callgrind;
pub mod stats;

mod alloc;
mod bench;
mod cpu;
mod latency;
mod options;
mod other_end;
mod row;
mod table;

pub use alloc::{CountingAllocator, allocations};
pub use bench::{Bench, Case};
pub use cpu::CpuClock;
pub use latency::Latencies;
pub use options::Options;
pub use other_end::OtherEnd;
pub use row::{Metric, Row};

use std::time::Duration;

/// Whatever a benchmark can fail with; `?` takes any error.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A benchmark's result.
pub type Result<T> = std::result::Result<T, Error>;

/// Throughput in GB/s (10⁹ bytes per second); 0 for no time at all, which [`Case::compare`] refuses.
#[must_use]
pub fn throughput_gb_per_s(bytes: u64, elapsed: Duration) -> f64 {
    per_second(bytes, elapsed) / 1e9
}

/// Operations per second; 0 for no time at all, which [`Case::compare`] refuses.
#[must_use]
pub fn per_second(operations: u64, elapsed: Duration) -> f64 {
    let seconds = elapsed.as_secs_f64();
    if seconds > 0.0 { operations as f64 / seconds } else { 0.0 }
}
