//! Peers that have been given this engine's libfabric descriptor hear by themselves when it leads nowhere any more: an endpoint has been
//! opened again, a second fabric opened or closed. They are told before they fail.
//!
//! Who asks gets this engine's card, and who is asked gets it with the question; either way the peer is in the audience. When
//! efa-transport's descriptor changes in how this engine is reached, each of them is asked who it is, which tells it who we are: the same round trip as
//! [`Segment::refresh`]. Few at a time, in the background; one that does not answer is tried again for a while and then left out: it asks by itself
//! when it comes back or fails. So is one whose name leads nowhere, because it does not listen.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::control::Ask;
use crate::engine::Inner as Engine;
use crate::error::Error;
use crate::segment::{Segment, ask};

/// Most peers that are kept: as many as EFA's address vector has room for.
const MOST: usize = 65_536;
/// Peers told at a time.
const AT_A_TIME: usize = 2;
/// How long one has to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// Attempts with one peer, and the pause after the first; twice as long after each further one.
const ATTEMPTS: u32 = 6;
const PAUSE: Duration = Duration::from_millis(250);

/// Who has been given the descriptor.
#[derive(Debug, Default)]
pub(crate) struct Audience(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By name; how this engine was reached, by its count, when the peer was last given the descriptor.
    given: HashMap<Arc<str>, u64>,
    /// Up to which count the peers have been queued.
    queued: u64,
    waiting: VecDeque<Waiting>,
    telling: usize,
}

#[derive(Debug, Clone)]
struct Waiting {
    name: Arc<str>,
    due: Instant,
    attempts: u32,
}

impl Audience {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A peer of this name has been given, or is about to be, the descriptor of when the count was this. Peers without a name cannot be
    /// told anything.
    pub(crate) fn given(&self, name: &str, reach: u64) {
        let mut state = self.state();
        if let Some(given) = state.given.get_mut(name) {
            *given = (*given).max(reach);
        } else if !name.is_empty() && state.given.len() < MOST {
            state.given.insert(name.into(), reach);
            if reach < state.queued {
                state.waiting.push_back(Waiting { name: name.into(), due: Instant::now(), attempts: 0 });
            }
        }
    }

    /// A peer is not interested any more.
    pub(crate) fn forget(&self, name: &str) {
        self.state().given.remove(name);
    }

    /// The count is this now: whoever has an older descriptor is to be told. True if that is news.
    pub(crate) fn changed(&self, reach: u64, now: Instant) -> bool {
        let mut state = self.state();
        if state.queued >= reach {
            return false;
        }
        state.queued = reach;
        let State { given, waiting, .. } = &mut *state;
        // Those that wait for another try have it now.
        waiting.clear();
        let behind = given.iter().filter(|(_, given)| **given < reach);
        waiting.extend(behind.map(|(name, _)| Waiting { name: Arc::clone(name), due: now, attempts: 0 }));
        true
    }

    /// The next one to be told, if one is due and not too many are being told.
    fn next(&self, now: Instant) -> Option<Waiting> {
        let mut state = self.state();
        while state.telling < AT_A_TIME {
            let due = state.waiting.iter().position(|waiting| waiting.due <= now)?;
            let next = state.waiting.remove(due)?;
            // It may have asked meanwhile.
            if state.given.get(&next.name).is_some_and(|given| *given < state.queued) {
                state.telling += 1;
                return Some(next);
            }
        }
        None
    }

    /// How telling it went.
    fn told(&self, mut who: Waiting, reach: Option<u64>, now: Instant) {
        if let Some(reach) = reach {
            self.given(&who.name, reach);
        }
        let mut state = self.state();
        state.telling = state.telling.saturating_sub(1);
        if reach.is_some() || state.waiting.iter().any(|other| other.name == who.name) {
            return;
        }
        who.attempts += 1;
        if who.attempts < ATTEMPTS {
            who.due = now + PAUSE * (1 << who.attempts.min(8));
            state.waiting.push_back(who);
        } else {
            state.given.remove(&who.name);
        }
    }
}

impl Engine {
    /// Tells those of the audience who have an older descriptor, as far as they are due. Blocks on nothing.
    pub(crate) fn tell(&self) {
        let Ok(fabric) = self.node.fabric() else { return };
        let audience = &self.node.audience;
        if audience.changed(fabric.reach(), Instant::now()) {
            tracing::info!("peers reach this engine in another way over libfabric: they are being told");
            self.republish();
        }
        while let Some(who) = audience.next(Instant::now()) {
            let Some(engine) = self.node.engine() else { return };
            self.errands.run(move || {
                let reach = engine.tell_one(&who.name);
                if let Err(error) = &reach {
                    tracing::debug!(peer = &*who.name, %error, "could not be told how this engine is reached now");
                }
                engine.node.audience.told(who, reach.ok(), Instant::now());
                // There may be more.
                engine.tell();
            });
        }
    }

    /// Asks a peer who it is, which tells it who we are. Returns which descriptor it has now.
    fn tell_one(&self, name: &str) -> Result<u64, Error> {
        let deadline = Instant::now() + PATIENCE;
        let reach = self.node.fabric()?.reach();
        let open = |segment: &Segment| segment.name() == name;
        match self.open_segments().into_iter().find(open) {
            Some(segment) => segment.refresh(deadline)?,
            None => {
                let peer = self.transport.peer(self.resolve(name)?)?;
                ask(name, &peer, &Ask::Describe(self.node.card()), deadline)?;
            }
        }
        Ok(reach)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(audience: &Audience, now: Instant) -> Vec<String> {
        let mut names: Vec<String> = std::iter::from_fn(|| {
            let next = audience.next(now)?;
            audience.state().telling -= 1;
            Some(next.name.to_string())
        })
        .collect();
        names.sort();
        names
    }

    /// Catches: a peer that is not told, told twice, or told what it has; nameless ones.
    #[test]
    fn those_are_told_that_have_an_older_one() {
        let audience = Audience::default();
        let now = Instant::now();
        audience.given("a", 0);
        audience.given("b", 0);
        audience.given("", 0);
        assert!(!audience.changed(0, now) && names(&audience, now).is_empty());
        audience.given("c", 1);
        assert!(audience.changed(1, now) && !audience.changed(1, now));
        audience.given("b", 1);
        audience.given("late", 0);
        assert_eq!(
            names(&audience, Instant::now()),
            ["a", "late"],
            "it has been given what was the latest when it asked"
        );
        assert!(audience.changed(2, now));
        audience.forget("a");
        assert_eq!(names(&audience, now), ["b", "c", "late"]);
        audience.given("b", 1);
        assert!(names(&audience, now).is_empty());
    }

    /// Catches: too many at a time; one that does not answer and is tried for ever, or not again.
    #[test]
    fn who_does_not_answer_is_tried_again_for_a_while() {
        let audience = Audience::default();
        let mut now = Instant::now();
        for name in ["a", "b", "c"] {
            audience.given(name, 0);
        }
        audience.changed(1, now);
        let (one, two) = (audience.next(now).unwrap(), audience.next(now).unwrap());
        assert!(audience.next(now).is_none(), "two at a time");
        audience.told(two, Some(1), now);
        let three = audience.next(now).unwrap();
        audience.told(three, Some(1), now);
        let (mut who, name) = (one.clone(), one.name);
        for attempt in 1..=ATTEMPTS {
            audience.told(who.clone(), None, now);
            assert!(audience.next(now).is_none(), "not at once");
            now += Duration::from_secs(60);
            match audience.next(now) {
                Some(again) if attempt < ATTEMPTS => who = again,
                None if attempt == ATTEMPTS => {}
                other => panic!("{other:?} after {attempt} attempts"),
            }
        }
        assert!(!audience.state().given.contains_key(&name));
        // The next change is told to the others.
        audience.changed(2, now);
        assert_eq!(names(&audience, now).len(), 2);
    }
}
