//! Setting something aside after failures, and letting it back in.

/// First time aside in nanoseconds; doubled with each further failure up to [`LONGEST`].
const FIRST: u64 = 50_000_000;
const LONGEST: u64 = 10_000_000_000;

/// The health of a NIC, or of a peer: how many attempts have failed in a row, and until when it is set aside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Health {
    failures: u32,
    aside_until: u64,
    times_aside: u32,
}

/// What a change meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing that others need to know.
    None,
    /// It has been set aside just now.
    SetAside,
    /// It works again.
    Recovered,
}

impl Health {
    /// An attempt has failed. With the `tolerated`-th failure in a row it is set aside, each time for longer.
    pub fn failed(&mut self, now: u64, tolerated: u32) -> Change {
        self.failures = self.failures.saturating_add(1);
        if self.failures < tolerated.max(1) || now < self.aside_until {
            return Change::None;
        }
        let pause = FIRST.saturating_mul(1 << self.times_aside.min(16)).min(LONGEST);
        self.times_aside = self.times_aside.saturating_add(1);
        self.aside_until = now.saturating_add(pause);
        if self.times_aside == 1 { Change::SetAside } else { Change::None }
    }

    /// An attempt went well.
    pub fn succeeded(&mut self) -> Change {
        let change = if self.times_aside > 0 { Change::Recovered } else { Change::None };
        *self = Self::default();
        change
    }

    /// It may be tried again at once. What it has done is not forgotten: only a success makes it [`Change::Recovered`].
    pub const fn forgive(&mut self) {
        self.failures = 0;
        self.aside_until = 0;
    }

    /// Whether anything has failed since the last success.
    #[must_use]
    pub const fn is_suspect(&self) -> bool {
        self.failures > 0 || self.times_aside > 0
    }

    /// Whether it may be used. What has been set aside may be tried again when its time is over.
    #[must_use]
    pub const fn usable(&self, now: u64) -> bool {
        now >= self.aside_until
    }

    /// Until when it is set aside, if it is.
    #[must_use]
    pub const fn aside_until(&self) -> u64 {
        self.aside_until
    }

    /// Failures since the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn aside_for_longer_each_time_and_back_after_a_success() {
        let mut health = Health::default();
        assert_eq!(health.failed(0, 2), Change::None);
        assert!(health.usable(0));
        assert_eq!(health.failed(0, 2), Change::SetAside);
        assert!(!health.usable(FIRST - 1));
        assert!(health.usable(FIRST), "may be tried again");
        assert_eq!(health.failed(FIRST, 2), Change::None, "said once");
        assert!(!health.usable(FIRST + 2 * FIRST - 1));
        assert_eq!(health.failed(FIRST + 1, 2), Change::None, "a straggler does not make it longer");
        assert!(health.usable(FIRST + 2 * FIRST));
        assert_eq!(health.succeeded(), Change::Recovered);
        assert_eq!(health.succeeded(), Change::None);
        assert!(health.usable(0));
    }

    #[test]
    fn the_time_aside_is_bounded() {
        let mut health = Health::default();
        let mut now = 0;
        for _ in 0..100 {
            health.failed(now, 1);
            assert!(health.aside_until() - now <= LONGEST);
            now = health.aside_until();
        }
    }
}
