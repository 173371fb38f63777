//! The clock that bandwidth, latency and timed faults go by: the machine's, or one that the run keeps for itself.
//!
//! | `SOFT_EFA_CLOCK` | how time passes |
//! |---|---|
//! | `wall` (default) | as it does |
//! | `virtual` | it stands still while any process of the run can do something, and then jumps to the next moment at which a request falls due |
//! | `manual` | it moves when it is told to: `soft-efa ctl clock advance us=100`, or [`Clock::advance`] |
//!
//! With the latter two the run has one clock for all its processes, which starts at zero. They also make the cards work in step with the
//! program: requests are carried out while the program polls a completion queue and finds it empty (or sleeps on one), and by nobody
//! else. So a program of one thread that posts and polls in the same order gets the same completions in the same order at the same
//! times, whatever else the machine does, and a year of latency costs nothing. Timing is then a pure function of what was posted: a card
//! sends one request after the other at its bandwidth, each arrives its latency later, and the work itself takes no time.
//!
//! A process can do something until it has polled one completion queue twice in vain, with no request posted and no completion read in
//! between, or sleeps on a completion channel. One that does neither for half a second of the machine's time (it waits for something
//! else) is no longer waited for. What several threads or several processes race for remains a race.
//!
//! ```no_run
//! use soft_efa::{Network, Profile, clock::Clock};
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let mut network = Network::new(2, Profile::p5())?;
//! network.set(soft_efa::settings::CLOCK, "virtual").set(soft_efa::settings::GBPS, "100,50");
//! let clock = Clock::open(network.dir())?;
//! assert!(network.command("my-scheduler-test").status()?.success());
//! println!("the schedule took {:?} of the cards' time", clock.now());
//! # Ok(())
//! # }
//! ```

use crate::error::Error;
use crate::shared::{self, Mapped, Registry};
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Which clock a run goes by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The machine's.
    Wall,
    /// The run's own, which jumps over idle time.
    Virtual,
    /// The run's own, which moves when it is told to.
    Manual,
}

impl Kind {
    /// The kind of that name, as `SOFT_EFA_CLOCK` takes it.
    pub fn named(name: &str) -> Option<Kind> {
        match name {
            "wall" => Some(Kind::Wall),
            "virtual" => Some(Kind::Virtual),
            "manual" => Some(Kind::Manual),
            _ => None,
        }
    }

    /// Whether the cards work in step with the program.
    pub fn is_stepped(self) -> bool {
        self != Kind::Wall
    }
}

/// The own clock of a run, for whoever wants to read or move it: a test, or a program on the cards.
pub struct Clock {
    registry: Mapped<Registry>,
}

impl Clock {
    /// The clock of the run in `dir` ([`Network::dir`](crate::Network::dir), or the variable `SOFT_EFA_DIR` in a program on the cards).
    ///
    /// # Errors
    /// [`Error::Io`] when there is no such directory.
    pub fn open(dir: &Path) -> Result<Clock, Error> {
        let registry = Mapped::open(&dir.join(shared::REGISTRY_FILE), 0, true);
        let io = |error| Error::Io { what: format!("open the clock of {}", dir.display()), error };
        Ok(Clock { registry: registry.map_err(io)? })
    }

    /// Time since the run began. Stays zero on a run that goes by the machine's clock.
    pub fn now(&self) -> Duration {
        Duration::from_nanos(self.registry.clock_ns.load(Ordering::SeqCst))
    }

    /// Moves the clock on and gives the new time. What falls due is carried out when its program polls next (or by its card, if the program
    /// sleeps): this call does not wait for it.
    pub fn advance(&self, by: Duration) -> Duration {
        let by = u64::try_from(by.as_nanos()).unwrap_or(u64::MAX);
        let step = |now: u64| Some(now.saturating_add(by));
        let before = self.registry.clock_ns.fetch_update(Ordering::SeqCst, Ordering::SeqCst, step);
        shared::ring_all_bells(&self.registry);
        Duration::from_nanos(before.unwrap_or_default().saturating_add(by))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_moves_for_all_who_see_it_and_never_back() {
        let scratch = crate::scratch::Scratch::new().unwrap();
        let (one, other) = (Clock::open(scratch.dir()).unwrap(), Clock::open(scratch.dir()).unwrap());
        assert_eq!(one.now(), Duration::ZERO);
        assert_eq!(one.advance(Duration::from_micros(3)), Duration::from_micros(3));
        assert_eq!(other.now(), Duration::from_micros(3));
        let end = Duration::from_nanos(u64::MAX);
        assert_eq!((other.advance(Duration::MAX), one.advance(Duration::MAX), one.now()), (end, end, end));
    }
}
