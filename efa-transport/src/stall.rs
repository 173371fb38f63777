//! When a peer that takes nothing is given up.

use std::time::Duration;

use crate::clock::nanos;

/// How long a peer may take nothing at all before that counts as a failed attempt. Connections over TCP are set up within a
/// second even when the first packet is lost.
pub(crate) const STALL: Duration = Duration::from_millis(1500);
/// What counts of the time between two refusals. They come some milliseconds apart as long as anybody looks; in more time than that nobody
/// did, and without being driven no provider gets anywhere: this process was kept from its processor, and the peer is well.
const BETWEEN: Duration = Duration::from_millis(20);

/// For how long a provider has had no room for an operation, as far as it was asked. As small as a number, for every lot has one.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Refusals {
    /// When it last had none, and for how long that makes; both in [units](to_units), not 0 if there was a refusal.
    latest: u32,
    time: u32,
}

/// About microseconds, which wrap around after an hour.
const fn to_units(nanos: u64) -> u32 {
    (nanos >> 10) as u32
}

impl Refusals {
    /// It has been refused once more, at this time; whether that has lasted too long. When it is not `alone`, what is under way to the peer
    /// may be what takes the room.
    pub(crate) fn refused(&mut self, now: u64, alone: bool) -> bool {
        let (latest, now) = (self.latest, to_units(now).max(1));
        self.latest = now;
        if latest == 0 || !alone {
            self.time = 0;
        } else {
            self.time += now.wrapping_sub(latest).min(to_units(nanos(BETWEEN)));
        }
        self.time > to_units(nanos(STALL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MILLI: u64 = 1_000_000;

    /// How many refusals, so far apart, it takes.
    fn refusals(apart: u64, from: u64) -> usize {
        let mut refusals = Refusals::default();
        (0..10_000).find(|&nth| refusals.refused(from + nth * apart, true)).unwrap() as usize
    }

    /// Catches: a peer that is given up because this process had no processor; one that is never given up.
    #[test]
    fn only_time_in_which_it_was_asked_counts() {
        assert_eq!(refusals(2 * MILLI, 0), 751);
        assert_eq!(refusals(2 * MILLI, u64::from(u32::MAX) << 10), 751, "when the units wrap around");
        assert!((75..80).contains(&refusals(2_000 * MILLI, 7)), "{}", refusals(2_000 * MILLI, 7));
        let mut refusals = Refusals::default();
        assert!((0..10_000).all(|nth| !refusals.refused(nth * MILLI, nth % 1_000 != 0)));
    }
}
