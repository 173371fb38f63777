//! Counting writes that arrive with an immediate, whichever path they took.
//!
//! A NIC carries 32 bits with a write. The upper half is the writer's number, which the receiver gave it when the two met; the
//! lower half is the tag that the program chose. So two peers' equal tags are told apart on every path.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
#[cfg(feature = "efa")]
use std::time::Duration;
use std::time::Instant;

use crate::control::MAX_NAME;

/// Values that are remembered while nobody counts them; further ones are not, so that peers cannot fill the memory.
const REMEMBERED: usize = 65_536;
/// How long the path that the latest write came by is watched before the other one is looked at.
#[cfg(feature = "efa")]
const TURN: Duration = Duration::from_millis(1);

/// The value that travels.
pub(crate) const fn immediate(number: u16, tag: u16) -> u32 {
    (number as u32) << 16 | tag as u32
}

/// All that this engine knows of immediates.
#[derive(Default)]
pub(crate) struct Arrivals(Mutex<State>);

#[derive(Default)]
struct State {
    numbers: HashMap<String, u16>,
    /// Arrivals over TCP before somebody counted them.
    earlier: HashMap<u32, u64>,
    counters: HashMap<u32, Weak<Watch>>,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The number of the peer called `name`, a new one if it has none; `None` if 65 536 have one, or for a name that is none.
    pub(crate) fn number(&self, name: &str) -> Option<u16> {
        if name.is_empty() || name.len() > MAX_NAME {
            return None;
        }
        let mut state = self.lock();
        if let Some(&number) = state.numbers.get(name) {
            return Some(number);
        }
        let number = u16::try_from(state.numbers.len()).ok()?;
        state.numbers.insert(name.to_owned(), number);
        Some(number)
    }

    /// A counter for a value. `fabric` counts what comes over libfabric.
    pub(crate) fn watch(
        self: &Arc<Self>,
        value: u32,
        tcp: &tcp_transport::Arrivals,
        #[cfg(feature = "efa")] fabric: Option<&efa_transport::Arrivals>,
    ) -> ArrivalCounter {
        let mut state = self.lock();
        if let Some(watch) = state.counters.get(&value).and_then(Weak::upgrade) {
            return ArrivalCounter(watch);
        }
        // First watched, then taken out of the queue: whatever comes in between is counted by one of the two.
        let counter = tcp.watch(u64::from(value));
        state.take_in(tcp);
        let watch = Arc::new(Watch {
            value,
            earlier: state.earlier.remove(&value).unwrap_or(0),
            tcp: counter,
            #[cfg(feature = "efa")]
            fabric: fabric.map(|arrivals| arrivals.watch(value)),
        });
        state.counters.retain(|_, counter| counter.strong_count() > 0);
        state.counters.insert(value, Arc::downgrade(&watch));
        ArrivalCounter(watch)
    }

    /// Takes what nobody counts yet out of the transport's queue, which would fill up and hold writers back.
    pub(crate) fn take_in(&self, tcp: &tcp_transport::Arrivals) {
        self.lock().take_in(tcp);
    }
}

impl State {
    fn take_in(&mut self, tcp: &tcp_transport::Arrivals) {
        while let Some(arrival) = tcp.try_next() {
            // Longer ones were not sent by an engine.
            let Ok(value) = u32::try_from(arrival.immediate) else { continue };
            if self.earlier.len() < REMEMBERED || self.earlier.contains_key(&value) {
                *self.earlier.entry(value).or_insert(0) += 1;
            }
        }
    }
}

/// Counts the writes of one peer that arrived with one tag ([`Batch::write_with_tag`](crate::Batch::write_with_tag)), each once
/// and only when all of its bytes are visible. Clones count together; when the last one has been dropped, counting begins
/// again at zero. May be shared between threads.
#[derive(Clone)]
pub struct ArrivalCounter(Arc<Watch>);

struct Watch {
    value: u32,
    earlier: u64,
    tcp: tcp_transport::Counter,
    #[cfg(feature = "efa")]
    fabric: Option<efa_transport::Counter>,
}

impl ArrivalCounter {
    /// Arrivals so far, those included that came before anyone asked.
    pub fn value(&self) -> u64 {
        self.0.earlier + self.0.tcp.value() + self.over_fabric()
    }

    fn over_fabric(&self) -> u64 {
        #[cfg(feature = "efa")]
        return self.0.fabric.as_ref().map_or(0, efa_transport::Counter::value);
        #[cfg(not(feature = "efa"))]
        0
    }

    /// Blocks until there have been `at_least`; `false` at the deadline.
    pub fn wait(&self, at_least: u64, deadline: Instant) -> bool {
        #[cfg(feature = "efa")]
        if let Some(fabric) = &self.0.fabric {
            let mut before = (self.0.tcp.value(), fabric.value());
            let mut watch_fabric = before.1 >= before.0;
            loop {
                let now = Instant::now();
                let left = at_least.saturating_sub(self.value());
                if left == 0 || now >= deadline {
                    return left == 0;
                }
                let turn = deadline.min(now + TURN);
                // The bool is asked again above, over both.
                let _ = if watch_fabric {
                    fabric.wait(fabric.value() + left, turn)
                } else {
                    self.0.tcp.wait(self.0.tcp.value() + left, turn)
                };
                let after = (self.0.tcp.value(), fabric.value());
                if after != before {
                    watch_fabric = after.1 > before.1;
                    before = after;
                }
            }
        }
        self.0.tcp.wait(at_least.saturating_sub(self.0.earlier), deadline)
    }
}

impl fmt::Debug for ArrivalCounter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (peer, tag) = (self.0.value >> 16, self.0.value & 0xffff);
        write!(f, "ArrivalCounter(peer #{peer} tag {tag}: {})", self.value())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_keep_their_numbers_and_there_is_an_end_to_them() {
        let arrivals = Arrivals::default();
        assert_eq!(arrivals.number(""), None);
        assert_eq!(arrivals.number(&"x".repeat(MAX_NAME + 1)), None);
        assert_eq!(
            (arrivals.number("a"), arrivals.number("b"), arrivals.number("a")),
            (Some(0), Some(1), Some(0))
        );
        for peer in 2..65_536 {
            assert_eq!(arrivals.number(&peer.to_string()), Some(peer as u16));
        }
        assert_eq!(arrivals.number("one too many"), None);
        assert_eq!(arrivals.number("b"), Some(1));
        assert_eq!(immediate(0x1234, 0x5678), 0x1234_5678);
    }
}
