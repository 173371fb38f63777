//! Waiting: the caller's thread drives the NICs.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::batch::BatchState;
use crate::core::Core;
use crate::error::Error;
use crate::idle::Idler;
use crate::lane::Lane;
use crate::peer::PeerId;
use crate::progress::{SPINS, YIELDS};

/// Looks at nothing but the lane of a request that is alone. After those it takes its time, and others' traffic is looked after as well.
const LOOKS_ALONE: u32 = 64;

impl Core {
    pub(crate) fn peer_quiesced(&self, id: PeerId, deadline: Instant) -> Result<bool, Error> {
        let peer = Arc::clone(self.peers().get(id)?);
        let mut quiet = 0_u32;
        let mut idler = None;
        while peer.alive() > 0 {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            quiet = if self.drive_all() > 0 { 0 } else { quiet.saturating_add(1) };
            self.relax(&mut idler, (quiet, SPINS), || deadline);
        }
        Ok(true)
    }

    /// Drives the lanes on this thread until `done`, or the deadline. True if done.
    pub(crate) fn wait_for(
        &self,
        state: &BatchState,
        done: fn(&BatchState) -> bool,
        deadline: Option<Instant>,
    ) -> bool {
        if done(state) {
            return true;
        }
        // What is alone may end at once, and nobody needs to know then that this thread has driven. With more to do the progress thread
        // must know first: it would get in the way.
        if state.is_alone() && self.drive_for(state) > 0 && done(state) {
            return true;
        }
        self.drivers.fetch_add(1, Ordering::AcqRel);
        let mut quiet = 0_u32;
        let mut idler = None;
        let mut lively = 0_u32;
        let mut looks = 0_u32;
        let spins = if state.is_alone() { self.parking.spins_alone() } else { SPINS };
        let outcome = loop {
            if done(state) {
                break true;
            }
            // On the verge of sleeping it is worth the clock to see whether the provider is busy with something that is not complete
            // yet: a long read comes in over many readings.
            let began = (quiet >= YIELDS).then(Instant::now);
            looks = looks.saturating_add(1);
            let happened = if quiet % 16 == 15 {
                self.drive_all()
            } else if looks < LOOKS_ALONE {
                self.drive_for(state)
            } else {
                self.drive_busy()
            };
            if let (Some(began), Some(idler)) = (began, &mut idler) {
                Idler::read(idler, happened, began, Instant::now());
            }
            let is_time_to_look = if happened > 0 {
                if quiet > 0 {
                    quiet = 0;
                    if let Some(idler) = &mut idler {
                        Idler::active(idler);
                    }
                }
                // What happens may be others' traffic, which need not pause before our time is over.
                lively = lively.wrapping_add(1);
                lively.is_multiple_of(64)
            } else {
                quiet = quiet.saturating_add(1);
                quiet.is_multiple_of(32)
            };
            if is_time_to_look {
                let now = Instant::now();
                let at = self.clock.at(now);
                if state.expire(at) {
                    for peer in state.silent_peers() {
                        self.note_peer_failure(&peer, at);
                    }
                    self.sweep();
                }
                if deadline.is_some_and(|deadline| now >= deadline) {
                    break done(state);
                }
            }
            if happened > 0 {
                continue;
            }
            if quiet > 256 && self.drivers.load(Ordering::Relaxed) > 1 {
                // Others drive too: one of them will tell.
                state.sleep(done, Duration::from_micros(100));
            } else {
                self.relax(&mut idler, (quiet, spins), || {
                    let next = state.first_deadline().map(|at| self.clock.instant(at));
                    let until = [deadline, next].into_iter().flatten().min();
                    until.unwrap_or_else(|| Instant::now() + Duration::from_millis(1))
                });
            }
        };
        if self.drivers.fetch_sub(1, Ordering::AcqRel) == 1 && self.lanes.iter().any(Lane::is_busy) {
            self.wake_progress();
        }
        outcome
    }
}
