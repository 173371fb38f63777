//! The transport's clock.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_getres, clock_gettime};

/// The kernel's time as of its latest tick: read from memory.
const LATELY: ClockId = ClockId::CLOCK_MONOTONIC_COARSE;

/// The time of all clocks of this process if it is not 0: a test moves it by hand.
#[cfg(test)]
pub(crate) static BY_HAND: AtomicU64 = AtomicU64::new(0);

/// Time in nanoseconds since the transport was opened, which is what the scheduler reckons in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock {
    start: Instant,
    /// The same, a moment later, as the kernel counts since some time.
    start_nanos: u64,
    /// What [`lately`](Self::lately) may be late by.
    tick: u64,
}

impl Clock {
    pub(crate) fn start() -> Self {
        let (start, tick) = (Instant::now(), clock_getres(LATELY).map_or(0, of));
        let start_nanos = clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(u64::MAX, of);
        Self { start, start_nanos, tick }
    }

    /// The time at the kernel's latest tick, and how long that may have been ago: some milliseconds. A quarter of what it takes to read
    /// the processor's counter.
    #[inline]
    pub(crate) fn lately(self) -> (u64, u64) {
        #[cfg(test)]
        if let by_hand @ 1.. = BY_HAND.load(Ordering::SeqCst) {
            return (by_hand, 0);
        }
        match clock_gettime(LATELY) {
            Ok(now) => (of(now).saturating_sub(self.start_nanos), self.tick),
            Err(_) => (self.now(), 0),
        }
    }

    #[inline]
    pub(crate) fn now(self) -> u64 {
        self.at(Instant::now())
    }

    #[inline]
    pub(crate) fn at(self, instant: Instant) -> u64 {
        #[cfg(test)]
        if let by_hand @ 1.. = BY_HAND.load(Ordering::SeqCst) {
            return by_hand;
        }
        nanos(instant.saturating_duration_since(self.start))
    }

    pub(crate) fn instant(self, nanos: u64) -> Instant {
        self.start.checked_add(Duration::from_nanos(nanos)).unwrap_or_else(Instant::now)
    }
}

/// Of the kernel's clocks none is below zero.
#[inline]
const fn of(time: TimeSpec) -> u64 {
    (time.tv_sec() as u64).wrapping_mul(1_000_000_000).wrapping_add(time.tv_nsec() as u64)
}

#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: a cheap time that runs ahead of the true one, or counts from another moment: deadlines would be too early, or never come.
    #[test]
    fn the_cheap_time_is_a_little_late() {
        let clock = Clock::start();
        let mut before = 0;
        while clock.now() < 30_000_000 {
            let ((lately, tick), now) = (clock.lately(), clock.now());
            assert!(lately >= before && lately <= now, "{before} {lately} {now}");
            assert!((1..=10_000_000).contains(&tick));
            before = lately;
        }
        // A machine that has no time for us may not have ticked for a while.
        let patience = Instant::now() + Duration::from_secs(10);
        while clock.lately().0 < 30_000_000 {
            assert!(Instant::now() < patience, "it does not go on");
        }
    }
}
