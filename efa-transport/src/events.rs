//! What happens besides: news about peers and NICs, and writes that arrive with an immediate.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

use crate::peer::PeerId;

/// News that whoever carries descriptors and answers for peers wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The peer's descriptor does not fit any more: fetch it again. Said once until that has been done.
    PeerStale {
        /// Which.
        peer: PeerId,
        /// Its name.
        name: String,
    },
    /// The peer has stopped answering; requests to it fail fast until it is tried again or its descriptor comes anew.
    PeerDown {
        /// Which.
        peer: PeerId,
        /// Its name.
        name: String,
    },
    /// The peer answers again.
    PeerUp {
        /// Which.
        peer: PeerId,
        /// Its name.
        name: String,
    },
    /// A peer came back with a new epoch; requests that were running have failed or will.
    PeerRestarted {
        /// Which.
        peer: PeerId,
        /// Its name.
        name: String,
    },
    /// A NIC has been set aside after failures; it is tried again from time to time.
    NicDown {
        /// Its name.
        nic: String,
    },
    /// A NIC works again.
    NicUp {
        /// Its name.
        nic: String,
    },
    /// Our own descriptor has changed: peers want the new one.
    DescriptorChanged,
}

/// Events kept while nobody takes them; the oldest go first.
const LIMIT: usize = 4096;

/// The queue of [`Event`]s.
pub struct Events {
    queue: Mutex<VecDeque<Event>>,
    changed: Condvar,
}

impl Events {
    pub(crate) fn new() -> Self {
        Self { queue: Mutex::default(), changed: Condvar::new() }
    }

    pub(crate) fn push(&self, event: Event) {
        let mut queue = self.queue.lock();
        // Twice in a row says no more than once.
        if queue.back() == Some(&event) {
            return;
        }
        if queue.len() >= LIMIT {
            queue.pop_front();
        }
        queue.push_back(event);
        drop(queue);
        self.changed.notify_one();
    }

    /// The oldest, if there is one.
    pub fn try_next(&self) -> Option<Event> {
        self.queue.lock().pop_front()
    }

    /// Blocks for the oldest; `None` at the deadline.
    pub fn next(&self, deadline: Instant) -> Option<Event> {
        let mut queue = self.queue.lock();
        loop {
            if let Some(event) = queue.pop_front() {
                return Some(event);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.changed.wait_for(&mut queue, left);
        }
    }
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Events({} waiting)", self.queue.lock().len())
    }
}

/// Different immediates that are remembered without a counter; further ones are dropped and counted as such.
const UNWATCHED: usize = 65_536;

/// Writes that arrived with an immediate, counted by its value.
pub struct Arrivals {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Arrivals of a value, and how many counters look at it.
    counts: HashMap<u32, (u64, usize)>,
    dropped: u64,
}

impl Arrivals {
    pub(crate) fn new() -> Self {
        Self { shared: Arc::new(Shared { state: Mutex::default(), changed: Condvar::new() }) }
    }

    pub(crate) fn arrived(&self, immediate: u32) {
        let mut state = self.shared.state.lock();
        if state.counts.len() >= UNWATCHED && !state.counts.contains_key(&immediate) {
            state.dropped += 1;
            return;
        }
        state.counts.entry(immediate).or_insert((0, 0)).0 += 1;
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Counts writes that arrive with this immediate, those included that came before anyone asked. The count begins again at
    /// zero when the last counter of a value is dropped. Peers agree on values: give each sender its own.
    #[must_use]
    pub fn watch(&self, immediate: u32) -> Counter {
        self.shared.state.lock().counts.entry(immediate).or_insert((0, 0)).1 += 1;
        Counter { immediate, shared: Arc::clone(&self.shared) }
    }

    /// Arrivals that were not counted because 65 536 other values were waiting for a counter.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.shared.state.lock().dropped
    }
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arrivals({} values)", self.shared.state.lock().counts.len())
    }
}

/// Counts the arrivals of one immediate.
pub struct Counter {
    immediate: u32,
    shared: Arc<Shared>,
}

impl Counter {
    /// Arrivals so far.
    #[must_use]
    pub fn value(&self) -> u64 {
        self.shared.state.lock().counts.get(&self.immediate).map_or(0, |c| c.0)
    }

    /// Blocks until there have been `at_least`; `false` at the deadline.
    #[must_use]
    pub fn wait(&self, at_least: u64, deadline: Instant) -> bool {
        let mut state = self.shared.state.lock();
        loop {
            if state.counts.get(&self.immediate).map_or(0, |c| c.0) >= at_least {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            self.shared.changed.wait_for(&mut state, left);
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if let Some((_, watchers)) = state.counts.get_mut(&self.immediate) {
            *watchers -= 1;
            if *watchers == 0 {
                state.counts.remove(&self.immediate);
            }
        }
    }
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counter({:#x}: {})", self.immediate, self.value())
    }
}
