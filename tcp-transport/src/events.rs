//! What arrives without being asked for: immediates of writes, and notifications.

use std::net::SocketAddr;
use std::time::Instant;

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

/// The queue of [`Arrival`]s. Bounded by [`Limits::events`](crate::Limits); when it is full, writers wait.
#[derive(Debug)]
pub struct Arrivals {}

impl Arrivals {
    /// The oldest, if there is one.
    pub fn try_next(&self) -> Option<Arrival> {
        None
    }
    /// The oldest; `None` at the deadline or after shutdown.
    pub fn next(&self, deadline: Instant) -> Option<Arrival> {
        let _ = deadline;
        None
    }
    /// Counts this immediate from now on instead of queueing it.
    pub fn watch(&self, immediate: u64) -> Counter {
        let _ = immediate;
        Counter {}
    }
}

/// Counts the arrivals of one immediate; they go to the queue again when it is dropped.
#[derive(Debug)]
pub struct Counter {}

impl Counter {
    /// Arrivals so far.
    pub fn value(&self) -> u64 {
        0
    }
    /// Blocks until there have been `at_least`; `false` at the deadline.
    pub fn wait(&self, at_least: u64, deadline: Instant) -> bool {
        let _ = (at_least, deadline);
        false
    }
}

/// The queue of [`Notification`]s. Bounded by [`Limits::events`](crate::Limits); when it is full, senders wait.
#[derive(Debug)]
pub struct Notifications {}

impl Notifications {
    /// The oldest, if there is one.
    pub fn try_next(&self) -> Option<Notification> {
        None
    }
    /// The oldest; `None` at the deadline or after shutdown.
    pub fn next(&self, deadline: Instant) -> Option<Notification> {
        let _ = deadline;
        None
    }
}
