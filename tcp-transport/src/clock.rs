//! A clock that costs next to nothing and is off by a few milliseconds: fine for limits of seconds. Reading the precise
//! clock takes 25 to 100 ns, which a small request would notice several times over.

use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

/// The coarse clock may lag behind by one of the kernel's ticks, 10 ms at most; twice, because two readings are compared.
const LAG: Duration = Duration::from_millis(20);

/// How often deadlines are looked at while there are any. Never in the unit tests: whatever goes on only because somebody happens
/// to look hangs there, and is found.
pub(crate) const TICK: Duration =
    if cfg!(test) { Duration::from_secs(3600) } else { Duration::from_millis(20) };

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

/// The instant that is `limit` from now: never earlier, and for limits of more than a second up to 40 ms later.
pub(crate) fn deadline_in(limit: Duration) -> Instant {
    static ANCHOR: OnceLock<(Coarse, Instant)> = OnceLock::new();
    if limit < Duration::from_secs(1) {
        return Instant::now() + limit;
    }
    let (coarse, precise) = *ANCHOR.get_or_init(|| (Coarse::now(), Instant::now()));
    precise + Coarse::now().since(coarse) + LAG + limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_is_never_early_and_hardly_late() {
        for limit in
            [Duration::ZERO, Duration::from_millis(300), Duration::from_secs(1), Duration::from_secs(3600)]
        {
            for _ in 0..200 {
                let (before, deadline) = (Instant::now(), deadline_in(limit));
                assert!(deadline >= before + limit, "{limit:?}");
                assert!(deadline <= Instant::now() + limit + 2 * LAG, "{limit:?}");
                std::thread::yield_now();
            }
        }
    }
}
