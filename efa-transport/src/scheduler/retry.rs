//! What to do with a slice whose attempt has ended in an error.

/// What kind of failure it was, as far as the next step depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Failure {
    /// The way between two NICs, or one of them: another rail may do.
    Rail,
    /// The peer does not answer over this NIC of its: another one may, or another time.
    Peer,
    /// The peer's card does not know ours, over this rail: one that both sides expect will do.
    Stranger,
    /// The peer refuses the key or the range: its descriptor is out of date, no attempt will do.
    Key,
    /// Something about the operation itself: no attempt will do.
    Operation,
    /// The endpoint was closed under it.
    Aborted,
}

/// The next step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Another attempt at that time or later, on another rail if there is one.
    Retry {
        /// Nanoseconds, as `now`.
        at: u64,
    },
    /// The request fails.
    GiveUp,
}

/// First pause between two attempts in nanoseconds; doubled each time up to [`LONGEST`].
const FIRST: u64 = 1_000_000;
const LONGEST: u64 = 250_000_000;
/// Attempts with a peer that answers over none of its NICs. More would only keep its callers from knowing.
const PEER_ATTEMPTS: u32 = 3;
/// Pause after the first of them in nanoseconds; longer each time.
const PEER_PAUSE: u64 = 20_000_000;

/// Decides after the `attempts`-th attempt (counted from 1) has *ended*; there is never a second attempt while the first one
/// might still write.
#[must_use]
pub fn decide(
    failure: Failure,
    attempts: u32,
    retries: u32,
    other_rails: bool,
    now: u64,
    deadline: u64,
) -> Decision {
    if matches!(failure, Failure::Key | Failure::Operation) || attempts > retries {
        return Decision::GiveUp;
    }
    if failure == Failure::Peer && attempts >= PEER_ATTEMPTS && !other_rails {
        return Decision::GiveUp;
    }
    // The first move to another rail costs no time; nor does one to a NIC of the peer that has not failed yet.
    let pause = match failure {
        Failure::Rail | Failure::Aborted | Failure::Stranger if attempts == 1 && other_rails => 0,
        Failure::Peer if other_rails => 0,
        Failure::Peer => PEER_PAUSE.saturating_mul(u64::from(attempts)),
        _ => FIRST.saturating_mul(1 << (attempts - 1).min(16)).min(LONGEST),
    };
    let at = now.saturating_add(pause);
    if at >= deadline { Decision::GiveUp } else { Decision::Retry { at } }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_cured_is_not_retried() {
        for failure in [Failure::Key, Failure::Operation] {
            assert_eq!(decide(failure, 1, 7, true, 0, u64::MAX), Decision::GiveUp);
        }
    }

    #[test]
    fn a_peer_that_does_not_answer_is_given_up_soon() {
        assert_eq!(decide(Failure::Peer, 2, 7, false, 0, u64::MAX), Decision::Retry { at: 2 * PEER_PAUSE });
        assert_eq!(decide(Failure::Peer, 3, 7, false, 0, u64::MAX), Decision::GiveUp);
        assert_eq!(decide(Failure::Peer, 3, 7, true, 0, u64::MAX), Decision::Retry { at: 0 }, "its next NIC");
        assert_eq!(decide(Failure::Peer, 8, 7, true, 0, u64::MAX), Decision::GiveUp);
    }

    #[test]
    fn attempts_and_time_are_bounded() {
        assert_eq!(decide(Failure::Rail, 1, 7, true, 5, 100), Decision::Retry { at: 5 });
        assert_eq!(decide(Failure::Rail, 8, 7, true, 5, u64::MAX), Decision::GiveUp);
        assert_eq!(
            decide(Failure::Peer, 1, 7, false, 5, PEER_PAUSE),
            Decision::GiveUp,
            "the deadline comes first"
        );
        assert!(matches!(decide(Failure::Rail, 40, 99, true, 0, u64::MAX), Decision::Retry { at: LONGEST }));
        assert_eq!(decide(Failure::Rail, 1, 0, true, 0, u64::MAX), Decision::GiveUp, "no retries asked for");
    }
}
