//! An endpoint that is closed and opened again: what ends operations that a provider never ends, and what follows when a card's queue
//! pair or completion queue has failed.
//!
//! A provider may take its time for either, or for ever, so a thread of its own does both, `efa-reopen`, one for each such card. Nobody
//! waits for it, and it holds no lock that driving takes. Meanwhile the card is set aside: what waits for it and can go over another card goes there at
//! once, the rest waits where it is and ends at its deadline as any request does. When the endpoint is open, or has failed to
//! open, that is taken in; a failure is tried again with the next look at what is [stuck](Core::unstick), a success changes our
//! descriptor. Never are two openings of one card under way. If the transport is shut down in between, the thread keeps what the provider
//! still has in its hands until that comes back, and nothing else waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use fabric_safe::Endpoint;
use parking_lot::Mutex;

use crate::clock::nanos;
use crate::core::Core;
use crate::error::Error;
use crate::events::Event;
use crate::lane::Lane;
use crate::lot::{Cargo, Taken};
use crate::scheduler::health::Health;
use crate::scheduler::retry::Failure;

/// Longer than this no card takes to open: it is said that it does.
const LONG: Duration = Duration::from_secs(1);

/// Whether a lane's endpoint is being replaced.
#[derive(Debug, Default)]
pub(crate) struct Reopening {
    /// Since when a thread has been at it, if one is.
    since: Mutex<Option<Instant>>,
    /// There is no endpoint to post on: it is being replaced, or that has failed. Changed with the lane's health locked.
    out: AtomicBool,
    /// The provider has the endpoint, and so its completion queue: neither can be touched. Set with the lane's lock.
    closing: AtomicBool,
    /// `NicDown` has been said because of it.
    told: AtomicBool,
}

impl Reopening {
    /// Whether endpoint and completion queue are the provider's, and whoever touches them would wait for it.
    #[inline]
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.load(Ordering::Acquire)
    }

    /// Whether a thread is at it.
    #[cfg(test)]
    pub(crate) fn is_under_way(&self) -> bool {
        self.since.lock().is_some()
    }

    /// Takes the place of the one thread that may be at it.
    fn claim(&self) -> bool {
        let mut since = self.since.lock();
        let free = since.is_none();
        if free {
            *since = Some(Instant::now());
        }
        free
    }
}

impl Lane {
    /// Sets it aside for as long as its health says; at least `least`, where not 0 means that its next success is to be noticed. A
    /// lane without an endpoint stays aside until it has one.
    pub(crate) fn set_aside(&self, health: &Health, least: u64) {
        let out = self.reopening.out.load(Ordering::Relaxed);
        // Far beyond every back-off.
        let until = if out { u64::MAX } else { health.aside_until().max(least) };
        self.aside_until.store(until, Ordering::Relaxed);
    }

    fn set_out(&self, out: bool) {
        let health = self.health.lock();
        self.reopening.out.store(out, Ordering::Relaxed);
        // As after any failure: what it does well next is noticed.
        self.set_aside(&health, 1);
    }
}

impl Core {
    /// A completion queue that has failed: its endpoint is closed, which ends everything that it would have told.
    #[cold]
    pub(crate) fn broken(&self, lane: &Lane, why: &str) {
        if lane.reopening.out.load(Ordering::Relaxed) {
            // That is known, and being dealt with.
            return;
        }
        tracing::error!(nic = %lane.nic.name, why, "the completion queue has failed");
        self.note_nic_failure(lane, self.clock.now());
        self.reopen(lane);
    }

    /// Reopens the endpoint of every lane that holds an operation long after its request has ended, or to where nobody is any more, or
    /// whose provider has lost a message of its own; and tries those again that could not be opened.
    pub(crate) fn unstick(&self) {
        let now = self.clock.now();
        let patience = nanos(self.config.stuck_after);
        for lane in &self.lanes {
            if let Some(since) = *lane.reopening.since.lock() {
                if since.elapsed() > LONG {
                    self.out_of_service(lane, "its endpoint has been being opened for long");
                }
                continue;
            }
            if let Some((trouble, fatal)) = lane.nic.trouble() {
                tracing::warn!(nic = %lane.nic.name, trouble, "the provider reports");
                lane.flushed.fetch_or(fatal, Ordering::Relaxed);
            }
            let Some(mut state) = lane.state.try_lock() else { continue };
            let deserted = state.sits_on_deserted(now);
            let stuck = deserted
                || state.queue.flying().any(|(_, slice)| match state.lots.get(slice.lot) {
                    Some(Cargo::Lot(lot)) => {
                        let deadline = lot.batch.deadline();
                        lot.batch.request_has_ended(slice.request())
                            && now.saturating_sub(deadline.max(slice.since)) > patience
                            && now > deadline
                    }
                    Some(Cargo::Probe(probe)) => {
                        probe.is_unattended() && now.saturating_sub(probe.since) > patience
                    }
                    None => false,
                });
            drop(state);
            if stuck || lane.flushed.swap(false, Ordering::Relaxed) {
                self.reopen(lane);
            }
        }
    }

    /// Has the endpoint closed, which ends everything in flight, and another one opened. Does not wait for it; does nothing if that is under
    /// way.
    pub(crate) fn reopen(&self, lane: &Lane) {
        // While the last owner lets go there is nothing to be mended.
        let Some(core) = self.shared() else { return };
        if !lane.reopening.claim() {
            return;
        }
        let endpoint = {
            let mut state = lane.state.lock();
            state.queue.set_closed(true);
            state.owed = None;
            lane.reopening.closing.store(true, Ordering::Release);
            Arc::clone(&state.endpoint)
        };
        lane.set_out(true);
        let index = lane.index;
        let thread = std::thread::Builder::new().name("efa-reopen".into());
        if let Err(source) = thread.spawn(move || core.close_and_open(&core.lanes[index], &endpoint)) {
            lane.reopening.closing.store(false, Ordering::Release);
            let error = fabric_safe::Error::System { what: "thread", source };
            self.not_opened(lane, &Error::fabric("starting a thread", error));
            *lane.reopening.since.lock() = None;
            return;
        }
        self.move_on(lane);
    }

    /// What waits for a lane and can go over another one goes there.
    fn move_on(&self, lane: &Lane) {
        let now = self.clock.now();
        let others = self.lanes.iter().filter(|other| other.index != lane.index && other.is_usable(now));
        let others = others.fold(0, |set, other| set | 1 << other.index);
        let waiting = lane.take_waiting(|lots, slice| match lots.get(slice.lot) {
            Some(Cargo::Lot(lot)) => lot.other_locals(lot.locals() & others) != 0,
            _ => false,
        });
        for taken in waiting {
            if let Taken::Stray(stray) = taken {
                self.route(stray, now);
            }
        }
    }

    /// What the thread does.
    fn close_and_open(&self, lane: &Lane, endpoint: &Endpoint) {
        let closed = endpoint.close();
        lane.reopening.closing.store(false, Ordering::Release);
        // What has been under way can be told of.
        self.wake_progress();
        let closed = closed
            .map_err(|error| Error::fabric(format!("closing the endpoint of NIC {}", lane.nic.name), error));
        let opened = match closed {
            Ok(()) if self.is_shut() => Err(Error::ShutDown),
            closed => closed.and_then(|()| lane.nic.open_endpoint()),
        };
        match opened {
            Ok(endpoint) => self.opened(lane, endpoint),
            Err(error) => self.not_opened(lane, &error),
        }
        *lane.reopening.since.lock() = None;
        self.wake_progress();
    }

    fn opened(&self, lane: &Lane, endpoint: Endpoint) {
        let mut state = lane.state.lock();
        state.endpoint = Arc::new(endpoint);
        state.owed = None;
        state.queue.set_closed(false);
        // Said of the endpoint before.
        lane.flushed.store(false, Ordering::Relaxed);
        lane.counters.reopened.fetch_add(1, Ordering::Relaxed);
        drop(state);
        lane.set_out(false);
        tracing::warn!(nic = %lane.nic.name, "its endpoint has been closed and opened again");
        if lane.reopening.told.swap(false, Ordering::Relaxed) {
            self.events.push(Event::NicUp { nic: lane.nic.name.clone() });
        }
        self.reached_otherwise();
    }

    fn not_opened(&self, lane: &Lane, error: &Error) {
        if self.is_shut() {
            return;
        }
        tracing::error!(nic = %lane.nic.name, %error, "cannot be opened again");
        self.out_of_service(lane, "its endpoint cannot be opened");
        // It is tried again with the next look at what is stuck.
        lane.flushed.store(true, Ordering::Relaxed);
        let now = self.clock.now();
        for taken in lane.take_waiting(|_, _| true) {
            if let Taken::Stray(mut stray) = taken {
                stray.attempted(lane.index);
                self.failed(stray, Failure::Aborted, &error.to_string(), now);
            }
        }
    }

    /// Says once that a card has no endpoint.
    fn out_of_service(&self, lane: &Lane, why: &str) {
        if !lane.reopening.told.swap(true, Ordering::Relaxed) {
            tracing::warn!(nic = %lane.nic.name, why, "out of service");
            self.events.push(Event::NicDown { nic: lane.nic.name.clone() });
        }
    }
}
