//! Numbers for things: a stale or foreign one is found out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::error::Failure;

/// Things by number. Numbers begin at 1 and are not used twice.
pub(crate) struct Ids<T> {
    what: &'static str,
    known: Mutex<Known<T>>,
}

struct Known<T> {
    last: u64,
    things: HashMap<u64, Arc<T>>,
}

impl<T> Ids<T> {
    pub(crate) fn new(what: &'static str) -> Self {
        Self { what, known: Mutex::new(Known { last: 0, things: HashMap::new() }) }
    }

    fn known(&self) -> MutexGuard<'_, Known<T>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add(&self, thing: T) -> u64 {
        let mut known = self.known();
        known.last += 1;
        let id = known.last;
        known.things.insert(id, Arc::new(thing));
        id
    }

    pub(crate) fn get(&self, id: u64) -> Result<Arc<T>, Failure> {
        self.known().things.get(&id).cloned().ok_or_else(|| self.unknown(id))
    }

    pub(crate) fn remove(&self, id: u64) -> Result<Arc<T>, Failure> {
        self.known().things.remove(&id).ok_or_else(|| self.unknown(id))
    }

    pub(crate) fn all(&self) -> Vec<Arc<T>> {
        self.known().things.values().cloned().collect()
    }

    fn unknown(&self, id: u64) -> Failure {
        Failure::argument(format!("there is no {} {id}", self.what))
    }
}
