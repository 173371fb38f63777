//! What arrives without being asked for: immediates of writes, and notifications.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use crate::sync::lock;

/// A write with an immediate has become visible, whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrival {
    /// The writer's value.
    pub immediate: u64,
    /// Bytes that the write brought.
    pub bytes: u64,
    /// The writer's connection.
    pub from: SocketAddr,
    /// Random identity of the writer's transport, the same over all its lanes and reconnections.
    pub session: u128,
}

/// A notification from a peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// What the peer sent.
    pub bytes: Vec<u8>,
    /// The sender's connection.
    pub from: SocketAddr,
    /// Random identity of the sender's transport.
    pub session: u128,
}

/// A bounded queue that ends.
struct Queue<T> {
    state: Mutex<QueueState<T>>,
    changed: Condvar,
    limit: usize,
}

struct QueueState<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    fn new(limit: usize) -> Self {
        let state = QueueState { items: VecDeque::new(), closed: false };
        Self { state: Mutex::new(state), changed: Condvar::new(), limit }
    }

    fn offer(&self, item: T) -> bool {
        let mut state = lock(&self.state);
        if state.items.len() >= self.limit {
            return false;
        }
        state.items.push_back(item);
        drop(state);
        self.changed.notify_one();
        true
    }

    fn try_next(&self) -> Option<T> {
        lock(&self.state).items.pop_front()
    }

    fn next(&self, deadline: Instant) -> Option<T> {
        let mut state = lock(&self.state);
        loop {
            if let Some(item) = state.items.pop_front() {
                return Some(item);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || state.closed {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn close(&self) {
        lock(&self.state).closed = true;
        self.changed.notify_all();
    }
}

/// The queue of [`Arrival`]s. Bounded by [`Limits::events`](crate::Limits); when it is full, writers wait.
pub struct Arrivals {
    queue: Queue<Arrival>,
    watched: Arc<Watched>,
}

impl fmt::Debug for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Arrivals({} waiting)", lock(&self.queue.state).items.len())
    }
}

#[derive(Default)]
struct Watched {
    counts: Mutex<HashMap<u64, (u64, usize)>>,
    changed: Condvar,
}

impl Arrivals {
    pub(crate) fn new(limit: usize) -> Self {
        Self { queue: Queue::new(limit), watched: Arc::default() }
    }

    /// False if there is no room.
    pub(crate) fn offer(&self, arrival: Arrival) -> bool {
        let mut counts = lock(&self.watched.counts);
        if let Some((count, _)) = counts.get_mut(&arrival.immediate) {
            *count += 1;
            drop(counts);
            self.watched.changed.notify_all();
            return true;
        }
        drop(counts);
        self.queue.offer(arrival)
    }

    pub(crate) fn close(&self) {
        self.queue.close();
    }

    /// The oldest, if there is one.
    pub fn try_next(&self) -> Option<Arrival> {
        self.queue.try_next()
    }

    /// The oldest; `None` at the deadline or after shutdown.
    pub fn next(&self, deadline: Instant) -> Option<Arrival> {
        self.queue.next(deadline)
    }

    /// Counts this immediate from now on instead of queueing it. Watching the same value twice gives the same count.
    pub fn watch(&self, immediate: u64) -> Counter {
        lock(&self.watched.counts).entry(immediate).or_insert((0, 0)).1 += 1;
        Counter { immediate, watched: Arc::clone(&self.watched) }
    }
}

/// Counts the arrivals of one immediate; they go to the queue again when the last counter of it is dropped.
pub struct Counter {
    immediate: u64,
    watched: Arc<Watched>,
}

impl fmt::Debug for Counter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Counter({:#x}: {})", self.immediate, self.value())
    }
}

impl Counter {
    /// Arrivals so far.
    pub fn value(&self) -> u64 {
        lock(&self.watched.counts).get(&self.immediate).map_or(0, |c| c.0)
    }

    /// Blocks until there have been `at_least`; `false` at the deadline.
    pub fn wait(&self, at_least: u64, deadline: Instant) -> bool {
        let mut counts = lock(&self.watched.counts);
        loop {
            if counts.get(&self.immediate).map_or(0, |c| c.0) >= at_least {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            counts =
                self.watched.changed.wait_timeout(counts, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        let mut counts = lock(&self.watched.counts);
        if let Some((_, watchers)) = counts.get_mut(&self.immediate) {
            *watchers -= 1;
            if *watchers == 0 {
                counts.remove(&self.immediate);
            }
        }
    }
}

/// The queue of [`Notification`]s. Bounded by [`Limits::events`](crate::Limits); when it is full, senders wait.
pub struct Notifications {
    queue: Queue<Notification>,
}

impl fmt::Debug for Notifications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Notifications({} waiting)", lock(&self.queue.state).items.len())
    }
}

impl Notifications {
    pub(crate) fn new(limit: usize) -> Self {
        Self { queue: Queue::new(limit) }
    }

    /// False if there is no room.
    pub(crate) fn offer(&self, notification: Notification) -> bool {
        self.queue.offer(notification)
    }

    pub(crate) fn close(&self) {
        self.queue.close();
    }

    /// The oldest, if there is one.
    pub fn try_next(&self) -> Option<Notification> {
        self.queue.try_next()
    }

    /// The oldest; `None` at the deadline or after shutdown.
    pub fn next(&self, deadline: Instant) -> Option<Notification> {
        self.queue.next(deadline)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Duration;

    use super::*;

    fn arrival(immediate: u64, bytes: u64) -> Arrival {
        Arrival { immediate, bytes, from: "127.0.0.1:1".parse().unwrap(), session: 7 }
    }

    fn late() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn a_queue_keeps_order_and_refuses_what_does_not_fit() {
        let arrivals = Arrivals::new(2);
        assert!(arrivals.try_next().is_none());
        assert!(arrivals.offer(arrival(1, 10)) && arrivals.offer(arrival(2, 20)));
        assert!(!arrivals.offer(arrival(3, 30)), "full");
        assert_eq!(arrivals.try_next(), Some(arrival(1, 10)));
        assert!(arrivals.offer(arrival(3, 30)), "room again");
        assert_eq!(arrivals.next(late()).unwrap().immediate, 2);
        assert_eq!(arrivals.next(late()).unwrap().immediate, 3);
        assert!(arrivals.next(Instant::now()).is_none());
    }

    #[test]
    fn what_is_watched_is_counted_and_takes_no_room() {
        let arrivals = Arrivals::new(1);
        let counter = arrivals.watch(5);
        let same = arrivals.watch(5);
        assert!((0..3).all(|_| arrivals.offer(arrival(5, 1))));
        assert!(arrivals.offer(arrival(6, 1)), "another immediate is queued");
        assert_eq!((counter.value(), same.value()), (3, 3));
        assert!(counter.wait(3, Instant::now()) && !counter.wait(4, Instant::now()));
        drop(counter);
        assert!(arrivals.offer(arrival(5, 1)) && same.value() == 4, "counted as long as anybody watches");
        drop(same);
        assert!(!arrivals.offer(arrival(5, 1)), "queued again, and the queue is full");
        assert_eq!(arrivals.watch(5).value(), 0, "a new count begins at zero");
    }

    /// Those who wait are woken by what they wait for, and by the end.
    #[test]
    fn waiting_ends_by_an_arrival_or_by_closing() {
        let arrivals = Arrivals::new(10);
        let counter = arrivals.watch(1);
        let waiting = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let counted = scope.spawn(|| counter.wait(2, late()));
            let queued = scope.spawn(|| {
                let first = arrivals.next(late());
                waiting.store(true, Ordering::SeqCst);
                (first, arrivals.next(late()))
            });
            assert!(
                arrivals.offer(arrival(1, 0))
                    && arrivals.offer(arrival(2, 0))
                    && arrivals.offer(arrival(1, 0))
            );
            assert!(counted.join().unwrap());
            while !waiting.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            arrivals.close();
            let (first, second) = queued.join().unwrap();
            assert_eq!((first, second), (Some(arrival(2, 0)), None));
        });
        assert!(
            arrivals.offer(arrival(9, 0)) && arrivals.next(late()).is_some(),
            "what is there can still be taken"
        );
    }

    #[test]
    fn notifications_are_bounded_too() {
        let notifications = Notifications::new(1);
        let one = Notification { bytes: vec![1], from: "[::1]:1".parse().unwrap(), session: 1 };
        assert!(notifications.offer(one.clone()) && !notifications.offer(one.clone()));
        assert_eq!(notifications.next(late()), Some(one));
        notifications.close();
        assert_eq!(notifications.next(late()), None);
        assert_eq!(notifications.try_next(), None);
    }
}
