//! Renewal in the background: one thread for all leases of a directory.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::store::{Renewal, Store, check};
use crate::error::Error;

/// Shortest pause after a renewal that failed; it doubles up to a third of the lease.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// Renews leases. The last clone of its owner ends the thread.
pub(super) struct Keeper {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    store: Arc<dyn Store>,
    ttl: Duration,
    plan: Mutex<Plan>,
    changed: Condvar,
}

/// Which entry is renewed when.
#[derive(Default)]
struct Plan {
    due: HashMap<u64, (Instant, Arc<Mutex<Entry>>)>,
    next_id: u64,
    closed: bool,
}

/// One published value. Its lock is held across calls to the store, so that no renewal is on its way while the value
/// changes or goes.
struct Entry {
    key: String,
    value: Vec<u8>,
    failures: u32,
    taken: bool,
    withdrawn: bool,
    /// The server has not taken the value yet; what lies there is an older one of ours.
    changed: bool,
}

impl Keeper {
    pub(super) fn new(store: Arc<dyn Store>, ttl: Duration) -> Self {
        let shared = Shared { store, ttl, plan: Mutex::default(), changed: Condvar::new() };
        Self { shared: Arc::new(shared), thread: Mutex::default() }
    }

    pub(super) fn store(&self) -> &dyn Store {
        &*self.shared.store
    }

    /// Puts the value and keeps it there.
    pub(super) fn publish(self: &Arc<Self>, key: String, value: Vec<u8>) -> Result<Lease, Error> {
        check(self.store().server(), &key, &value)?;
        self.start()?;
        self.store().publish(&key, &value, self.shared.ttl)?;
        let entry = Entry { key, value, failures: 0, taken: false, withdrawn: false, changed: false };
        let entry = Arc::new(Mutex::new(entry));
        let mut plan = lock(&self.shared.plan);
        let id = plan.next_id;
        plan.next_id += 1;
        plan.due.insert(id, (Instant::now() + self.shared.ttl / 3, Arc::clone(&entry)));
        self.shared.changed.notify_one();
        Ok(Lease { keeper: Arc::clone(self), id, entry })
    }

    fn start(&self) -> Result<(), Error> {
        let mut thread = lock(&self.thread);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let started =
                std::thread::Builder::new().name("weft-metadata".into()).spawn(move || shared.run());
            *thread = Some(started.map_err(|error| Error::Metadata {
                store: self.store().server().into(),
                action: "starting the thread that renews leases".into(),
                reason: error.to_string(),
            })?);
        }
        Ok(())
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        lock(&self.shared.plan).closed = true;
        self.shared.changed.notify_one();
        if let Some(thread) = lock(&self.thread).take() {
            // It has no panic to report that the log has not seen.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self) {
        let mut plan = lock(&self.plan);
        while !plan.closed {
            let next = plan.due.iter().min_by_key(|(_, (due, _))| *due).map(|(id, (due, _))| (*id, *due));
            let now = Instant::now();
            plan = match next {
                None => self.changed.wait(plan).unwrap_or_else(PoisonError::into_inner),
                Some((_, due)) if due > now => {
                    self.changed.wait_timeout(plan, due - now).unwrap_or_else(PoisonError::into_inner).0
                }
                Some((id, _)) => {
                    let entry = plan.due.get(&id).map(|(_, entry)| Arc::clone(entry));
                    drop(plan);
                    let pause = entry.map(|entry| self.renew(&mut lock(&entry)));
                    let mut plan = lock(&self.plan);
                    if let (Some(pause), Some((due, _))) = (pause, plan.due.get_mut(&id)) {
                        *due = Instant::now() + pause;
                    }
                    plan
                }
            };
        }
    }

    /// Renews one entry; returns the time until the next attempt. Says a trouble once when it begins and once when it ends.
    fn renew(&self, entry: &mut Entry) -> Duration {
        let pause = self.ttl / 3;
        if entry.withdrawn {
            return pause;
        }
        let (key, server) = (&entry.key, self.store.server());
        let renewed = match entry.changed {
            true => self.store.publish(key, &entry.value, self.ttl).map(|()| Renewal::Kept),
            false => self.store.renew(key, &entry.value, self.ttl),
        };
        match renewed {
            Ok(found) => {
                entry.changed = false;
                if entry.failures > 0 {
                    tracing::info!(key, server, failures = entry.failures, "metadata server is back");
                }
                match found {
                    Renewal::Restored => {
                        tracing::info!(key, server, "published again: the server had lost it")
                    }
                    Renewal::Taken if !entry.taken => tracing::warn!(
                        key,
                        server,
                        "another node has published itself under the same name; it is the one that peers find now. Give each \
                         node a name of its own"
                    ),
                    Renewal::Kept | Renewal::Taken => {}
                }
                entry.taken = found == Renewal::Taken;
                entry.failures = 0;
                pause
            }
            Err(error) => {
                if entry.failures == 0 {
                    tracing::warn!(%error, "renewing a lease failed; peers that know this node are not affected, trying again");
                }
                entry.failures = entry.failures.saturating_add(1);
                pause.min(FIRST_PAUSE.saturating_mul(1 << entry.failures.min(10)))
            }
        }
    }
}

/// Something published that is renewed until this is dropped. Dropping it removes it from the server, which blocks for at
/// most two of the store's time limits; a server that cannot be reached then forgets it when the lease ends.
#[must_use = "dropping a lease removes what was published"]
pub struct Lease {
    keeper: Arc<Keeper>,
    id: u64,
    entry: Arc<Mutex<Entry>>,
}

impl Lease {
    /// The key that it holds.
    pub fn key(&self) -> String {
        lock(&self.entry).key.clone()
    }

    /// Replaces the value. Where it cannot be put now, it will be with the next renewal.
    ///
    /// # Errors
    /// [`Error::Metadata`]: the server did not take it yet, or it is too long and nothing has changed.
    pub fn update(&self, value: Vec<u8>) -> Result<(), Error> {
        let shared = &self.keeper.shared;
        let mut entry = lock(&self.entry);
        check(shared.store.server(), &entry.key, &value)?;
        let put = shared.store.publish(&entry.key, &value, shared.ttl);
        entry.value = value;
        entry.taken = false;
        entry.changed = put.is_err();
        put
    }

    /// Removes it from the server now, which dropping does too, but without saying how that went.
    ///
    /// # Errors
    /// [`Error::Metadata`]: it goes when the lease ends.
    pub fn withdraw(self) -> Result<(), Error> {
        self.end()
    }

    fn end(&self) -> Result<(), Error> {
        let shared = &self.keeper.shared;
        lock(&shared.plan).due.remove(&self.id);
        let mut entry = lock(&self.entry);
        if std::mem::replace(&mut entry.withdrawn, true) {
            return Ok(());
        }
        shared.store.remove(&entry.key, &entry.value)
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::debug!(%error, "not removed; it goes when its lease ends");
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Lease({:?} at {})", self.key(), self.keeper.store().server())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    const TTL: Duration = Duration::from_millis(60);

    /// A server in memory, without leases, that can be switched off.
    #[derive(Debug, Default)]
    struct Shelf {
        entries: Mutex<HashMap<String, Vec<u8>>>,
        off: AtomicBool,
        calls: AtomicUsize,
    }

    impl Shelf {
        fn answer(&self) -> Result<MutexGuard<'_, HashMap<String, Vec<u8>>>, Error> {
            self.calls.fetch_add(1, Ordering::Relaxed);
            if self.off.load(Ordering::Relaxed) {
                let (store, action) = ("shelf".into(), "anything".into());
                return Err(Error::Metadata { store, action, reason: "it is off".into() });
            }
            Ok(lock(&self.entries))
        }

        fn holds(&self, key: &str) -> Option<Vec<u8>> {
            lock(&self.entries).get(key).cloned()
        }
    }

    impl Store for Arc<Shelf> {
        fn server(&self) -> &str {
            "shelf"
        }
        fn lookup(&self, key: &str) -> Result<Option<Vec<u8>>, Error> {
            Ok(self.answer()?.get(key).cloned())
        }
        fn publish(&self, key: &str, value: &[u8], _: Duration) -> Result<(), Error> {
            self.answer()?.insert(key.into(), value.into());
            Ok(())
        }
        fn renew(&self, key: &str, value: &[u8], _: Duration) -> Result<Renewal, Error> {
            let mut entries = self.answer()?;
            match entries.get(key) {
                Some(there) if there != value => Ok(Renewal::Taken),
                Some(_) => Ok(Renewal::Kept),
                None => {
                    entries.insert(key.into(), value.into());
                    Ok(Renewal::Restored)
                }
            }
        }
        fn remove(&self, key: &str, value: &[u8]) -> Result<(), Error> {
            let mut entries = self.answer()?;
            if entries.get(key).is_some_and(|there| there == value) {
                entries.remove(key);
            }
            Ok(())
        }
    }

    fn keeper() -> (Arc<Shelf>, Arc<Keeper>) {
        let shelf = Arc::new(Shelf::default());
        (Arc::clone(&shelf), Arc::new(Keeper::new(Arc::new(Arc::clone(&shelf)), TTL)))
    }

    fn until(what: &str, is_so: impl Fn() -> bool) {
        let end = Instant::now() + Duration::from_secs(20);
        while !is_so() {
            assert!(Instant::now() < end, "{what}");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    #[test]
    fn a_value_that_was_not_taken_comes_later_and_is_not_mistaken_for_another_node() {
        let (shelf, keeper) = keeper();
        let lease = keeper.publish("k".into(), b"old".to_vec()).unwrap();
        shelf.off.store(true, Ordering::Relaxed);
        assert!(lease.update(b"new".to_vec()).is_err());
        assert_eq!(shelf.holds("k").as_deref(), Some(&b"old"[..]));
        shelf.off.store(false, Ordering::Relaxed);
        until("the new value is published", || shelf.holds("k").as_deref() == Some(b"new"));
    }

    #[test]
    fn every_lease_is_renewed_and_none_after_its_end() {
        let (shelf, keeper) = keeper();
        let leases: Vec<_> = (0..20).map(|n| keeper.publish(format!("k{n}"), vec![n]).unwrap()).collect();
        lock(&shelf.entries).clear();
        until("all are there again", || lock(&shelf.entries).len() == 20);
        for lease in leases {
            // Renewals are going on meanwhile; none of them may bring it back.
            lease.withdraw().unwrap();
        }
        assert!(lock(&shelf.entries).is_empty());
        let seen = shelf.calls.load(Ordering::Relaxed);
        drop(keeper);
        assert_eq!(shelf.calls.load(Ordering::Relaxed), seen, "the thread has ended");
        assert!(lock(&shelf.entries).is_empty());
    }

    /// A server that is away is asked often enough to be noticed when it is back, and not without pause.
    #[test]
    fn failures_are_tried_again_with_pauses() {
        let (shelf, keeper) = keeper();
        let _lease = keeper.publish("k".into(), b"v".to_vec()).unwrap();
        shelf.off.store(true, Ordering::Relaxed);
        lock(&shelf.entries).clear();
        let (before, begun) = (shelf.calls.load(Ordering::Relaxed), Instant::now());
        until("it is tried again", || shelf.calls.load(Ordering::Relaxed) >= before + 5);
        assert!(begun.elapsed() >= TTL, "5 attempts in {:?}", begun.elapsed());
        shelf.off.store(false, Ordering::Relaxed);
        until("it is published again", || shelf.holds("k").is_some());
    }

    #[test]
    fn what_no_server_should_see_is_refused() {
        let (shelf, keeper) = keeper();
        let lease = keeper.publish("k".into(), b"v".to_vec()).unwrap();
        for (key, value) in
            [("k\n".to_owned(), 1), ("k".repeat(1025), 1), ("big".into(), super::super::MAX_VALUE_BYTES + 1)]
        {
            assert!(keeper.publish(key, vec![0; value]).is_err());
        }
        assert!(lease.update(vec![0; super::super::MAX_VALUE_BYTES + 1]).is_err());
        assert_eq!(shelf.holds("k").as_deref(), Some(&b"v"[..]), "and nothing has changed");
        assert_eq!(lock(&shelf.entries).len(), 1);
    }
}
