//! When to try again what did not work.

use std::time::{Duration, Instant};

/// The first pause: soon enough that nobody has to ask for it.
const FIRST: Duration = Duration::from_millis(250);
/// The longest: a peer that comes back after a long time is found within it.
const LONGEST: Duration = Duration::from_secs(5);
/// An attempt that has not reported after this long never will.
const GIVEN_UP: Duration = Duration::from_secs(30);

/// Attempts with growing pauses, one at a time.
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Instant,
    pause: Duration,
}

impl Backoff {
    pub(crate) fn new(now: Instant) -> Self {
        Self { next: now + FIRST, pause: FIRST }
    }

    /// Whether it is time for an attempt; then not again until [`failed`](Self::failed).
    pub(crate) fn is_due(&mut self, now: Instant) -> bool {
        let due = self.next <= now;
        if due {
            self.next = now + GIVEN_UP;
        }
        due
    }

    /// The attempt has failed: the next one comes later.
    pub(crate) fn failed(&mut self, now: Instant) {
        self.pause = (self.pause * 2).min(LONGEST);
        self.next = now + self.pause;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_come_one_at_a_time_ever_later_but_not_too_late() {
        let mut now = Instant::now();
        let mut backoff = Backoff::new(now);
        assert!(!backoff.is_due(now));
        now += FIRST;
        let mut last = FIRST;
        for _ in 0..10 {
            assert!(backoff.is_due(now) && !backoff.is_due(now), "one attempt at a time");
            backoff.failed(now);
            assert!(backoff.pause >= last && backoff.pause <= LONGEST);
            assert!(!backoff.is_due(now + backoff.pause - Duration::from_millis(1)));
            (now, last) = (now + backoff.pause, backoff.pause);
        }
        assert_eq!(last, LONGEST);
        assert!(backoff.is_due(now) && backoff.is_due(now + GIVEN_UP), "an attempt that never reported");
    }
}
