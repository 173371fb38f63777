//! Moving a peer's traffic from libfabric to TCP when its last rail dies, and back when one works again.
//!
//! Only [`Protocol::Auto`] does that, and it says so: in the log, in [`Segment::path`] and its reason, in the statistics. What is on
//! its way when it happens is dealt with by its batch (`flight::aftermath`).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::path::Chosen;
use crate::protocol::Protocol;
use crate::segment::{MENDING, Segment};
use crate::settings::Settings;
use crate::statistics::PeerCounters;

/// How long rails have to complete one small read each when they are tried.
const TRYING: Duration = Duration::from_millis(700);
/// Whether a segment's traffic that should go over libfabric goes over TCP.
#[derive(Debug)]
pub(crate) struct Failover {
    protocol: Protocol,
    allowed: bool,
    /// Whether `moved` is there, for a look without the lock.
    is_moved: AtomicBool,
    moved: Mutex<Option<Moved>>,
}

#[derive(Debug)]
struct Moved {
    reason: String,
    /// When its rails are tried.
    backoff: Backoff,
}

impl Failover {
    pub(crate) fn new(settings: &Settings) -> Self {
        let protocol = settings.protocol.value;
        Self {
            protocol,
            allowed: protocol == Protocol::Auto && settings.failover.value,
            is_moved: AtomicBool::new(false),
            moved: Mutex::default(),
        }
    }

    pub(crate) fn is_auto(&self) -> bool {
        self.protocol == Protocol::Auto
    }

    /// Whether requests that fail over libfabric may go over TCP.
    pub(crate) fn is_allowed(&self) -> bool {
        self.allowed
    }

    pub(crate) fn is_moved(&self) -> bool {
        self.is_moved.load(Ordering::Acquire)
    }

    fn moved(&self) -> MutexGuard<'_, Option<Moved>> {
        self.moved.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Why the traffic was moved, if it is.
    pub(crate) fn reason(&self) -> Option<String> {
        self.moved().as_ref().map(|moved| moved.reason.clone())
    }

    /// Moves it; false if it is already.
    fn begin(&self, reason: &str) -> bool {
        let mut moved = self.moved();
        if moved.is_some() {
            return false;
        }
        *moved = Some(Moved { reason: reason.to_owned(), backoff: Backoff::new(Instant::now()) });
        self.is_moved.store(true, Ordering::Release);
        true
    }

    /// Undoes a move; false if there was none.
    pub(crate) fn undo(&self) -> bool {
        let mut moved = self.moved();
        self.is_moved.store(false, Ordering::Release);
        moved.take().is_some()
    }

    /// Whether it is time to try the rails; then not again until that has failed.
    fn is_due(&self, now: Instant) -> bool {
        self.moved().as_mut().is_some_and(|moved| moved.backoff.is_due(now))
    }

    fn try_failed(&self, now: Instant) {
        if let Some(moved) = &mut *self.moved() {
            moved.backoff.failed(now);
        }
    }
}

impl Segment {
    /// Moves the peer's traffic to TCP if not one rail works.
    pub(crate) fn try_rails(&self, reason: &str) {
        let Chosen::Fabric(peer) = self.known().path else { return };
        if !self.failover().is_allowed() || self.is_moved() {
            return;
        }
        let Ok(engine) = self.engine() else { return };
        let Ok(fabric) = engine.node.fabric() else { return };
        if fabric.warm_up(peer, Instant::now() + TRYING).is_err() && self.failover().begin(reason) {
            PeerCounters::count(&self.counters().failovers);
            metrics::counter!("weft_failovers_total", "peer" => self.name().to_owned()).increment(1);
            tracing::warn!(
                segment = self.name(),
                reason,
                "its last libfabric rail has failed: moved to TCP until one works again"
            );
        }
    }

    /// Whether it is time to [try](Self::try_return) to return.
    pub(crate) fn return_is_due(&self) -> bool {
        self.is_moved() && self.failover().is_due(Instant::now())
    }

    /// Tries the rails of a peer whose traffic was moved, and moves it back if one works.
    pub(crate) fn try_return(&self) {
        let Ok(engine) = self.engine() else { return };
        // The peer may have other endpoints by now.
        let refreshed = self.refresh(Instant::now() + MENDING);
        let Chosen::Fabric(peer) = self.known().path else { return };
        let works = refreshed.and_then(|()| engine.node.fabric()?.warm_up(peer, Instant::now() + TRYING));
        match works {
            Ok(()) if self.failover().undo() => {
                PeerCounters::count(&self.counters().returns);
                metrics::counter!("weft_returns_total", "peer" => self.name().to_owned()).increment(1);
                tracing::info!(segment = self.name(), "libfabric works again: moved back from TCP");
            }
            Ok(()) => {}
            Err(error) => {
                tracing::debug!(segment = self.name(), %error, "not back on libfabric yet");
                self.failover().try_failed(Instant::now());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Engine;

    fn failover(protocol: Protocol, on: bool) -> Failover {
        Failover::new(&Engine::builder().protocol(protocol).failover(on).settings().unwrap())
    }

    #[test]
    fn only_auto_moves_and_only_if_it_may() {
        assert!(failover(Protocol::Auto, true).is_allowed());
        assert!(!failover(Protocol::Auto, false).is_allowed());
        assert!(!failover(Protocol::Efa, true).is_allowed());
    }

    #[test]
    fn a_move_is_said_once_and_undone_once() {
        let failover = failover(Protocol::Auto, true);
        assert!(failover.begin("a") && !failover.begin("b"));
        assert!(failover.is_moved());
        assert_eq!(failover.reason().as_deref(), Some("a"));
        let now = Instant::now() + Duration::from_secs(1);
        assert!(failover.is_due(now) && !failover.is_due(now));
        assert!(failover.undo() && !failover.undo() && !failover.is_moved());
        assert!(!failover.is_due(now + Duration::from_secs(60)));
    }
}
