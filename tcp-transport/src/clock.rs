//! A clock that costs next to nothing and is off by a few milliseconds: fine for limits of seconds. Reading the precise
//! clock takes 25 to 100 ns, which a small request would notice several times over.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds of the kernel's coarse monotonic clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Coarse(u64);

impl Coarse {
    pub(crate) fn now() -> Self {
        let t = clock_gettime(ClockId::MonotonicCoarse);
        Self(t.tv_sec.cast_unsigned() * 1000 + t.tv_nsec.cast_unsigned() / 1_000_000)
    }

    pub(crate) fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
