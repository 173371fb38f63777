//! What the server holds. Pure: the caller says what time it is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hyper::body::Bytes;

use super::Options;

/// Bytes that an entry costs beside key and value.
const OVERHEAD: usize = 128;

/// Why an entry was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Full {
    Entries,
    Bytes,
}

struct Entry {
    value: Bytes,
    until: Option<Instant>,
}

impl Entry {
    fn lives(&self, now: Instant) -> bool {
        self.until.is_none_or(|until| now < until)
    }
}

/// Entries with their ends.
#[derive(Default)]
pub(super) struct Table {
    entries: HashMap<String, Entry>,
    bytes: usize,
}

impl Table {
    pub(super) fn get(&self, key: &str, now: Instant) -> Option<Bytes> {
        self.entries.get(key).filter(|entry| entry.lives(now)).map(|entry| entry.value.clone())
    }

    pub(super) fn put(
        &mut self,
        key: &str,
        value: Bytes,
        ttl: Option<Duration>,
        now: Instant,
        limits: &Options,
    ) -> Result<(), Full> {
        let cost = |value: &Bytes| key.len() + value.len() + OVERHEAD;
        let freed = self.entries.get(key).map_or(0, |earlier| cost(&earlier.value));
        let bytes = self.bytes - freed + cost(&value);
        if freed == 0 && self.entries.len() >= limits.max_entries {
            return Err(Full::Entries);
        }
        if bytes > limits.max_total_bytes {
            return Err(Full::Bytes);
        }
        self.bytes = bytes;
        let until = ttl.and_then(|ttl| now.checked_add(ttl));
        self.entries.insert(key.to_owned(), Entry { value, until });
        Ok(())
    }

    /// Whether there was such a key.
    pub(super) fn remove(&mut self, key: &str, now: Instant) -> bool {
        match self.entries.remove(key) {
            Some(entry) => {
                self.bytes -= key.len() + entry.value.len() + OVERHEAD;
                entry.lives(now)
            }
            None => false,
        }
    }

    /// Forgets what has ended.
    pub(super) fn sweep(&mut self, now: Instant) {
        let bytes = &mut self.bytes;
        self.entries.retain(|key, entry| {
            let lives = entry.lives(now);
            if !lives {
                *bytes -= key.len() + entry.value.len() + OVERHEAD;
            }
            lives
        });
    }

    /// How many entries there are, those that have ended since the last sweep included, and what they cost.
    pub(super) fn size(&self) -> (usize, usize) {
        (self.entries.len(), self.bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Step {
        Put(u8, usize, Option<u64>),
        Remove(u8),
        Sweep,
        Pass(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            3 => (0u8..6, 0usize..300, prop::option::of(0u64..50)).prop_map(|(k, n, t)| Step::Put(k, n, t)),
            1 => (0u8..6).prop_map(Step::Remove),
            1 => Just(Step::Sweep),
            2 => (0u64..30).prop_map(Step::Pass),
        ]
    }

    proptest! {
        /// Against the obvious model: what was put last is there until its end, the limits hold, and nothing leaks.
        #[test]
        fn the_table_is_a_map_with_ends_and_limits(steps in prop::collection::vec(step(), 0..60)) {
            let limits = Options { max_entries: 4, max_total_bytes: 1000, ..Options::default() };
            let (mut table, mut model) = (Table::default(), HashMap::<u8, (usize, Option<Instant>)>::new());
            let mut now = Instant::now();
            for step in steps {
                match step {
                    Step::Put(key, len, ttl) => {
                        let ttl = ttl.map(Duration::from_millis);
                        if table.put(&key.to_string(), vec![key; len].into(), ttl, now, &limits).is_ok() {
                            model.insert(key, (len, ttl.map(|ttl| now + ttl)));
                        }
                    }
                    Step::Remove(key) => {
                        let there = model.remove(&key).is_some_and(|(_, end)| end.is_none_or(|end| now < end));
                        prop_assert_eq!(table.remove(&key.to_string(), now), there);
                    }
                    Step::Sweep => {
                        table.sweep(now);
                        model.retain(|_, (_, end)| end.is_none_or(|end| now < end));
                    }
                    Step::Pass(millis) => now += Duration::from_millis(millis),
                }
                for key in 0..6 {
                    let there = model.get(&key).filter(|(_, end)| end.is_none_or(|end| now < end));
                    prop_assert_eq!(table.get(&key.to_string(), now).map(|v| v.len()), there.map(|(len, _)| *len));
                }
                let cost = model.values().map(|(len, _)| 1 + len + OVERHEAD).sum::<usize>();
                prop_assert_eq!(table.size(), (model.len(), cost));
                prop_assert!(model.len() <= 4 && cost <= 1000);
            }
        }
    }
}
