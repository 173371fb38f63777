//! What to do with a slice whose attempt has ended in an error.

use super::rail::{Set, holds};

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
/// The same while there are NICs that the slice has not failed on: 15 of 16 dead cards cost it an eighth of a second.
const LONGEST_UNTRIED: u64 = 10_000_000;
/// Attempts with a peer that answers over none of its NICs. More would only keep its callers from knowing.
const PEER_ATTEMPTS: u32 = 3;
/// Pause after the first of them in nanoseconds; longer each time.
const PEER_PAUSE: u64 = 20_000_000;

/// Decides after the `attempts`-th attempt (counted from 1) has *ended*; there is never a second attempt while the first one
/// might still write. `untried`: there are NICs that the slice [has not failed on](Tried). Each of those gets a chance, whatever
/// `retries` says unless it is 0: that many cards may have died at once. NICs of a peer that does not answer do not: as many as
/// there are would take their time to say so, one after another.
#[must_use]
pub fn decide(
    failure: Failure,
    attempts: u32,
    retries: u32,
    untried: bool,
    now: u64,
    deadline: u64,
) -> Decision {
    let chance = untried && retries > 0 && failure != Failure::Peer;
    if matches!(failure, Failure::Key | Failure::Operation) || attempts > retries && !chance {
        return Decision::GiveUp;
    }
    if failure == Failure::Peer && attempts >= PEER_ATTEMPTS && !untried {
        return Decision::GiveUp;
    }
    // The first move to another rail costs no time; nor does one to a NIC of the peer that has not failed yet.
    let longest = if untried { LONGEST_UNTRIED } else { LONGEST };
    let pause = match failure {
        Failure::Rail | Failure::Aborted | Failure::Stranger if attempts == 1 && untried => 0,
        Failure::Peer if untried => 0,
        Failure::Peer => PEER_PAUSE.saturating_mul(u64::from(attempts)),
        _ => FIRST.saturating_mul(1 << (attempts - 1).min(16)).min(longest),
    };
    let at = now.saturating_add(pause);
    if at >= deadline { Decision::GiveUp } else { Decision::Retry { at } }
}

/// The NICs that one slice has failed on, here and there. Which end of a rail it was, an error seldom tells: both are avoided as
/// long as there are others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tried {
    locals: Side,
    remotes: Side,
}

/// Where a slice that has failed could go that it has never failed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Untried {
    /// Over another local NIC.
    pub local: bool,
    /// To another remote NIC.
    pub remote: bool,
}

impl Tried {
    /// An attempt has failed, over this rail; `locals` and `remotes` are the NICs that the slice may use now.
    pub fn fail(
        &mut self,
        (local, remote): (Option<usize>, Option<usize>),
        (locals, remotes): (Set, Set),
    ) -> Untried {
        Untried { local: self.locals.fail(local, locals), remote: self.remotes.fail(remote, remotes) }
    }

    /// The local NICs of `usable` that it has not failed on; `usable` if there are none.
    #[must_use]
    pub const fn other_locals(&self, usable: Set) -> Set {
        self.locals.others(usable)
    }

    /// The remote NICs of `usable` that it has not failed on; `usable` if there are none.
    #[must_use]
    pub const fn other_remotes(&self, usable: Set) -> Set {
        self.remotes.others(usable)
    }

    /// Whether it has failed on this local NIC, and has others to try first.
    #[must_use]
    pub const fn holds_local(&self, nic: usize) -> bool {
        holds(self.locals.tried, nic)
    }
}

/// One end's part of that.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Side {
    tried: Set,
    /// It has failed on all that there were: what it tries since is nothing new.
    all: bool,
}

impl Side {
    const fn others(&self, usable: Set) -> Set {
        if usable & !self.tried != 0 { usable & !self.tried } else { usable }
    }

    /// Adds a NIC. If it was the last of `usable`, only this one is avoided, so that all others have their turn again. Whether there
    /// are some that are new.
    fn fail(&mut self, nic: Option<usize>, usable: Set) -> bool {
        let latest = nic.and_then(|nic| Set::from(1_u8).checked_shl(nic as u32)).unwrap_or(0);
        self.tried |= latest;
        if usable & !self.tried == 0 {
            *self = Self { tried: latest, all: true };
        }
        !self.all
    }
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
        assert_eq!(decide(Failure::Rail, 8, 7, false, 5, u64::MAX), Decision::GiveUp);
        assert_eq!(
            decide(Failure::Peer, 1, 7, false, 5, PEER_PAUSE),
            Decision::GiveUp,
            "the deadline comes first"
        );
        assert_eq!(decide(Failure::Rail, 40, 99, false, 0, u64::MAX), Decision::Retry { at: LONGEST });
        assert_eq!(decide(Failure::Rail, 1, 0, true, 0, u64::MAX), Decision::GiveUp, "no retries asked for");
    }

    /// Catches: a slice that is given up, or waits for long, although there are cards that it has not failed on.
    #[test]
    fn every_card_has_its_chance_soon() {
        for failure in [Failure::Rail, Failure::Aborted, Failure::Stranger] {
            let waited = (1..16).map(|attempts| match decide(failure, attempts, 7, true, 0, u64::MAX) {
                Decision::Retry { at } => at,
                Decision::GiveUp => panic!("{failure:?}: given up after {attempts} of 16 cards"),
            });
            assert!(waited.sum::<u64>() <= 125_000_000);
            assert_eq!(decide(failure, 16, 7, false, 0, u64::MAX), Decision::GiveUp);
        }
    }

    /// Catches: NICs that a slice has failed on chosen before others; one that is forgotten for good.
    #[test]
    fn what_was_tried_is_avoided_until_all_were() {
        let mut tried = Tried::default();
        assert_eq!(tried.other_locals(0b1111), 0b1111);
        let fail = |tried: &mut Tried, nic| tried.fail((Some(nic), None), (0b1111, 0)).local;
        assert!(fail(&mut tried, 1));
        assert!(fail(&mut tried, 3));
        assert_eq!(tried.other_locals(0b1111), 0b0101);
        assert_eq!(tried.other_locals(0b1010), 0b1010, "there are no others");
        assert!(fail(&mut tried, 0));
        assert!(!fail(&mut tried, 2), "that was the last");
        assert_eq!(tried.other_locals(0b1111), 0b1011, "a second round, from the others");
        assert!(tried.holds_local(2) && !tried.holds_local(1));
        assert!(!fail(&mut tried, 1), "none of those is new");
        assert_eq!(tried.other_locals(0b1111), 0b1001);
        // One NIC here, several there.
        let mut tried = Tried::default();
        let there = 1 << 127 | 1;
        let untried = tried.fail((Some(0), Some(127)), (1, there));
        assert_eq!(untried, Untried { local: false, remote: true });
        assert_eq!((tried.other_locals(1), tried.other_remotes(there)), (1, 1));
        let untried = tried.fail((Some(0), Some(0)), (1, there));
        assert_eq!(untried, Untried { local: false, remote: false });
        // A slice that had no rail at all, or whose NICs nobody has.
        let nowhere = Untried { local: true, remote: true };
        assert_eq!(Tried::default().fail((None, None), (1, 1)), nowhere);
        assert_eq!(Tried::default().fail((Some(128), Some(usize::MAX)), (1, 1)), nowhere);
    }
}
