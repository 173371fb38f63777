//! Which lanes the progress thread reads, where sockets tell.
//!
//! A provider that works over sockets has a descriptor for each of its queues that says at any time, without having been asked
//! to, whether something waits to be read. One system call then tells it of all lanes, and those that have nothing need not be
//! read: with sixteen of them, reading all takes as long as a message, and neither shows beside the other. And what a
//! descriptor tells is a fact about what peers do here, where everything else is a guess at what the time of a reading means.
//!
//! It is not all: a provider may hold something that waits for room in a socket, and not every descriptor tells the truth. So
//! lanes where something has happened are read some more times, and all of them now and then.

use std::time::Duration;

use crate::idle::{CHANCE, Seen, TIMES_USUAL, Usual};
use crate::scheduler::rail::{Set, holds, members};

/// Readings of a lane after the latest sign of something there.
const LINGER: u8 = 2;
/// Looks between two readings of all lanes.
const ALL_LANES: u32 = 16;
/// Readings in a row of a lane whose descriptor says that something is there, and that found nothing, before the descriptor is
/// set right again: a completion leaves it so, with some providers.
const DULL: u8 = 4;
/// … before what it says is no longer a fact.
const UNTRUE: u8 = 64;

/// What is known of one lane.
#[derive(Debug, Default)]
struct Watched {
    usual: Usual,
    /// Readings that are left of [`LINGER`].
    linger: u8,
    /// Readings in a row as [`DULL`] says.
    dull: u8,
}

/// The state of a thread that drives lanes with sockets. Pure: what it sees is handed in.
#[derive(Debug, Default)]
pub(crate) struct Watch {
    lanes: Vec<Watched>,
    looks: u32,
    ready: Set,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// The lanes to read, of so many: those whose descriptors are `ready`, and those that have something of ours to do (`busy`),
    /// and whatever else is due. All of them when `all`.
    pub(crate) fn choose(&mut self, lanes: usize, ready: Set, busy: Set, all: bool) -> Set {
        self.lanes.resize_with(lanes, Watched::default);
        self.looks = self.looks.wrapping_add(1);
        self.ready = ready;
        if all || self.looks.is_multiple_of(ALL_LANES) {
            return if lanes < 128 { (1 << lanes) - 1 } else { Set::MAX };
        }
        let lingering = (0..).zip(&self.lanes).filter(|(_, lane)| lane.linger > 0);
        lingering.fold(ready | busy, |set, (lane, _)| set | 1 << lane)
    }

    /// What the descriptors say by themselves.
    pub(crate) const fn told(&self) -> Seen {
        if self.ready == 0 { Seen::Silence } else { Seen::Nothing }
    }

    /// A lane has been read: what `happened`, how long it `took`, and whether caches were `cold`.
    pub(crate) fn read(&mut self, lane: usize, happened: usize, took: Duration, cold: bool) -> Seen {
        let ready = holds(self.ready, lane);
        let Some(lane) = self.lanes.get_mut(lane) else { return Seen::Silence };
        lane.linger = lane.linger.saturating_sub(1);
        let long = !cold && lane.usual.is_exceeded(took, TIMES_USUAL, CHANCE);
        if happened > 0 || long || !ready {
            lane.dull = 0;
        } else {
            lane.dull = lane.dull.saturating_add(1);
        }
        let seen = if happened > 0 || ready && lane.dull < UNTRUE {
            Seen::Fact
        } else if long {
            Seen::Guess
        } else {
            Seen::Silence
        };
        if seen != Seen::Silence {
            lane.linger = LINGER;
        }
        seen
    }

    /// The lanes whose descriptors may be stuck.
    pub(crate) fn dull(&self) -> impl Iterator<Item = usize> {
        members(self.ready).filter(|&lane| self.lanes.get(lane).is_some_and(|lane| lane.dull >= DULL))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: Duration = Duration::from_nanos(500);
    const MESSAGE: Duration = Duration::from_micros(6);
    const LANES: usize = 16;

    /// A watch that has seen all lanes empty, so that it knows what is usual.
    fn settled() -> Watch {
        let mut watch = Watch::new();
        for lane in members(watch.choose(LANES, 0, 0, true)) {
            assert_eq!(watch.read(lane, 0, EMPTY, false), Seen::Silence);
        }
        watch
    }

    /// Catches: all lanes read each time, whatever the descriptors say; lanes that are never read because nothing tells of them.
    #[test]
    fn only_lanes_with_something_are_read_and_now_and_then_all() {
        let mut watch = settled();
        assert_eq!(watch.told(), Seen::Silence);
        assert_eq!(watch.choose(LANES, 0b100, 0b1000, false), 0b1100);
        assert_eq!(watch.told(), Seen::Nothing);
        let chosen: Vec<Set> = (0..ALL_LANES).map(|_| watch.choose(LANES, 0, 0, false)).collect();
        assert_eq!(chosen.iter().filter(|&&set| set == 0xffff).count(), 1, "{chosen:?}");
        assert_eq!(chosen.iter().filter(|&&set| set == 0).count(), ALL_LANES as usize - 1);
        assert_eq!(watch.choose(128, 0, 0, true), Set::MAX);
    }

    /// Catches: a lane that is left at once although part of its message is still to come, or waits for room in a socket.
    #[test]
    fn a_lane_is_read_some_more_after_something_has_happened() {
        for (ready, happened, took, seen) in
            [(1 << 5, 0, EMPTY, Seen::Fact), (0, 1, EMPTY, Seen::Fact), (0, 0, MESSAGE, Seen::Guess)]
        {
            let mut watch = settled();
            watch.choose(LANES, ready, 1 << 5, false);
            assert_eq!(watch.read(5, happened, took, false), seen);
            for _ in 0..LINGER {
                assert_eq!(watch.choose(LANES, 0, 0, false), 1 << 5, "{seen:?}");
                watch.read(5, 0, EMPTY, false);
            }
            assert_eq!(watch.choose(LANES, 0, 0, false), 0, "{seen:?}");
        }
    }

    /// Catches: times taken over all lanes, in which the message of one does not show; and caches that were cold taken for work.
    #[test]
    fn one_lane_of_many_shows_by_its_own_time() {
        let mut watch = settled();
        for lane in members(watch.choose(LANES, 0, 0, true)) {
            let (took, seen) = if lane == 7 { (MESSAGE, Seen::Guess) } else { (EMPTY, Seen::Silence) };
            assert_eq!(watch.read(lane, 0, took, false), seen);
        }
        watch.choose(LANES, 0, 0, true);
        assert_eq!(watch.read(3, 0, MESSAGE, true), Seen::Silence);
    }

    /// Catches: a descriptor that nobody sets right after a completion; one that keeps a thread awake for ever.
    #[test]
    fn a_descriptor_that_is_stuck_is_set_right_and_soon_no_fact_any_more() {
        let mut watch = settled();
        let mut facts = 0;
        for reading in 1..=300_u32 {
            let chosen = watch.choose(LANES, 0b10, 0, false);
            assert!(holds(chosen, 1), "it is read all the same");
            facts += u32::from(watch.read(1, 0, EMPTY, false) == Seen::Fact);
            let dull: Vec<usize> = watch.dull().collect();
            assert_eq!(dull, if reading < DULL.into() { vec![] } else { vec![1] }, "reading {reading}");
        }
        assert_eq!(facts, u32::from(UNTRUE) - 1);
        // Work that shows makes it a fact again.
        watch.choose(LANES, 0b10, 0, false);
        assert_eq!(watch.read(1, 0, MESSAGE, false), Seen::Fact);
        assert_eq!(watch.dull().count(), 0);
        // So does silence.
        watch.choose(LANES, 0, 0b10, false);
        watch.read(1, 0, EMPTY, false);
        watch.choose(LANES, 0b10, 0, false);
        assert_eq!(watch.read(1, 0, EMPTY, false), Seen::Fact);
    }
}
