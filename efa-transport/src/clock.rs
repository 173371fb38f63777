//! The transport's clock.

#[cfg(test)]
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// The time of all clocks of this process if it is not 0: a test moves it by hand.
#[cfg(test)]
pub(crate) static BY_HAND: AtomicU64 = AtomicU64::new(0);

/// Time in nanoseconds since the transport was opened, which is what the scheduler reckons in.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Clock(Instant);

impl Clock {
    pub(crate) fn start() -> Self {
        Self(Instant::now())
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
        nanos(instant.saturating_duration_since(self.0))
    }

    pub(crate) fn instant(self, nanos: u64) -> Instant {
        self.0.checked_add(Duration::from_nanos(nanos)).unwrap_or_else(Instant::now)
    }
}

#[inline]
pub(crate) fn nanos(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000_000).saturating_add(duration.subsec_nanos().into())
}
