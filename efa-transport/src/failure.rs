//! What happens to slices, NICs and peers after a failure, and at a deadline.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::batch::Party;
use crate::batches::Expired;
use crate::core::Core;
use crate::error::Error;
use crate::events::Event;
use crate::lane::{Lane, Left};
use crate::lot::{Lot, Stray};
use crate::peer::Peer;
use crate::scheduler::health::Change;
use crate::scheduler::retry::{Decision, Failure, decide};
use crate::warmup::Probe;

/// Failures in a row before a NIC is set aside.
const NIC_TOLERANCE: u32 = 4;

impl Core {
    /// Deals with what left a lane.
    #[cold]
    pub(crate) fn settle(&self, lane: &Lane, mut left: Box<Left>) {
        let now = self.clock.now();
        for gate in left.started.drain(..) {
            self.route(gate, now);
        }
        for (stray, failure, why) in left.failed.drain(..) {
            self.failed(stray, failure, &why, now);
        }
        if let Some(why) = left.broken.take() {
            self.broken(lane, &why);
        }
        let mut spare = self.left.lock();
        if spare.len() < 64 {
            spare.push(left);
        }
    }

    #[cold]
    pub(crate) fn failed(&self, mut stray: Stray, failure: Failure, why: &str, now: u64) {
        let (peer, table) = (Arc::clone(stray.lot.peer()), Arc::clone(stray.lot.table()));
        peer.counters.failures.fetch_add(1, Ordering::Relaxed);
        if stray.has_ended() {
            return;
        }
        let rail = self.rail(&stray);
        stray.lot.batch.note(stray.piece.request, &format!("over {rail}: {why}"));
        tracing::debug!(peer = %peer.name, %rail, ?failure, why, attempts = stray.lot.attempts, "an attempt failed");
        let local = stray.lot.local_nic as usize;
        if matches!(failure, Failure::Rail)
            && let Some(lane) = self.lanes.get(local)
        {
            self.note_nic_failure(lane, now);
        }
        if peer.table().epoch != table.epoch {
            let why = "it has restarted".to_owned();
            stray.fail(|party| Error::PeerStale { peer: party.peer.name.clone(), why });
            return;
        }
        let attempts = u32::from(stray.lot.attempts);
        if failure == Failure::Peer {
            peer.health().nic_failed(stray.lot.remote_nic as usize, now);
        }
        let locals = stray.lot.locals() & self.usable(now);
        let remotes = stray.lot.remotes() & !peer.health().avoid(now);
        let untried = stray.lot.has_failed(locals, remotes);
        // Another NIC here does not make a peer answer.
        let untried = untried.remote || untried.local && failure != Failure::Peer;
        let unknown = matches!(failure, Failure::Rail | Failure::Peer | Failure::Aborted);
        if stray.lot.gate && stray.lot.sent && unknown {
            // Whether the immediate got through is unknown, and it must not be counted twice.
            let why = format!("{why}; the immediate may or may not have arrived");
            stray.fail(|party| Error::Failed { peer: party.peer.name.clone(), rail, attempts, why });
            return;
        }
        match decide(failure, attempts, self.config.retries, untried, now, stray.lot.batch.deadline()) {
            Decision::Retry { at } => {
                self.retried.fetch_add(1, Ordering::Relaxed);
                metrics::counter!("weft_efa_retries_total").increment(1);
                peer.counters.retries.fetch_add(1, Ordering::Relaxed);
                if at <= now {
                    self.route(stray, now);
                } else {
                    self.retries.lock().push((at, stray));
                    self.retry_count.fetch_add(1, Ordering::AcqRel);
                }
            }
            Decision::GiveUp => {
                let why = why.to_owned();
                match failure {
                    Failure::Key => {
                        // Memory that the peer has taken back since, as its newer descriptor says, makes that one no worse.
                        if Arc::ptr_eq(&peer.table(), &table) && peer.set_stale() {
                            self.events.push(Event::PeerStale { peer: peer.id, name: peer.name.clone() });
                        }
                        stray.fail(|party| Error::PeerStale { peer: party.peer.name.clone(), why });
                    }
                    Failure::Stranger => {
                        if !self.every_rail.swap(true, Ordering::Relaxed) {
                            self.reached_otherwise();
                        }
                        if Arc::ptr_eq(&peer.table(), &table) && peer.set_stale() {
                            self.events.push(Event::PeerStale { peer: peer.id, name: peer.name.clone() });
                        }
                        stray.fail(|party| Error::PeerStale {
                            peer: party.peer.name.clone(),
                            why: format!("{why}; it wants our descriptor"),
                        });
                    }
                    Failure::Peer => {
                        self.note_peer_failure(&peer, now);
                        stray.fail(|party| Error::PeerDown { peer: party.peer.name.clone(), why });
                    }
                    _ => {
                        stray.fail(|party| Error::Failed {
                            peer: party.peer.name.clone(),
                            rail,
                            attempts,
                            why,
                        });
                    }
                }
            }
        }
    }

    /// A peer has restarted: what still runs against a former life fails, and what of it has not been posted is not posted any more.
    /// The memory may be somebody else's by now, under the same key.
    pub(crate) fn restarted(&self, peer: &Arc<Peer>, epoch: u64) {
        let running = self.batches.lock().running();
        let of_former_life = |party: &Party| Arc::ptr_eq(&party.peer, peer) && party.table.epoch != epoch;
        for state in running {
            state.fail_those(of_former_life, |party| Error::PeerStale {
                peer: party.peer.name.clone(),
                why: "it has restarted".into(),
            });
        }
        self.sweep();
    }

    pub(crate) fn rail(&self, stray: &Stray) -> String {
        let Lot { local_nic, remote_nic, .. } = stray.lot;
        let local = self.lanes.get(local_nic as usize).map_or("?", |lane| &lane.nic.name);
        let remote = stray.lot.table().nics.get(remote_nic as usize).map_or("?", |nic| &nic.name);
        format!("{local} to {remote}")
    }

    pub(crate) fn note_nic_failure(&self, lane: &Lane, now: u64) {
        let change = {
            let mut health = lane.health.lock();
            let change = health.failed(now, NIC_TOLERANCE);
            lane.set_aside(&health, 1);
            change
        };
        if change == Change::SetAside {
            metrics::counter!("weft_efa_nic_down_total", "nic" => lane.nic.name.clone()).increment(1);
            tracing::warn!(nic = %lane.nic.name, "set aside after {NIC_TOLERANCE} failures in a row");
            self.events.push(Event::NicDown { nic: lane.nic.name.clone() });
        }
    }

    pub(crate) fn note_peer_failure(&self, peer: &Peer, now: u64) {
        if peer.health().failed(now) == Change::SetAside {
            metrics::counter!("weft_efa_peer_down_total").increment(1);
            tracing::warn!(peer = %peer.name, "does not answer");
            self.events.push(Event::PeerDown { peer: peer.id, name: peer.name.clone() });
            // Whoever carries descriptors may find that it has restarted.
            self.events.push(Event::PeerStale { peer: peer.id, name: peer.name.clone() });
        }
    }

    /// An attempt went well, over a NIC or to a peer that had not been well.
    pub(crate) fn recovered(&self, lane: &Lane, peer: &Peer, remote_nic: usize) {
        let change = {
            let mut health = lane.health.lock();
            let change = health.succeeded();
            lane.set_aside(&health, 0);
            change
        };
        if change == Change::Recovered {
            tracing::info!(nic = %lane.nic.name, "works again");
            self.events.push(Event::NicUp { nic: lane.nic.name.clone() });
        }
        if peer.health().succeeded(remote_nic, self.clock.now()) == Change::Recovered {
            tracing::info!(peer = %peer.name, "answers again");
            self.events.push(Event::PeerUp { peer: peer.id, name: peer.name.clone() });
        }
    }

    /// A probe has failed: what it tells about the NICs at its ends.
    #[cold]
    pub(crate) fn probe_failed(&self, lane: &Lane, probe: &Probe, failure: Failure) {
        let now = self.clock.now();
        match failure {
            Failure::Peer => probe.peer.health().nic_failed(probe.remote_nic, now),
            Failure::Rail => self.note_nic_failure(lane, now),
            _ => {}
        }
    }

    pub(crate) fn pump_retries(&self, now: u64) {
        loop {
            let stray = {
                let mut retries = self.retries.lock();
                let Some(at) = retries.iter().position(|(at, stray)| *at <= now || stray.has_ended()) else {
                    return;
                };
                self.retry_count.fetch_sub(1, Ordering::AcqRel);
                retries.swap_remove(at).1
            };
            if !stray.has_ended() {
                self.route(stray, now);
            }
        }
    }

    /// Drops waiting slices whose request has ended.
    pub(crate) fn sweep(&self) {
        for lane in &self.lanes {
            drop(lane.take_waiting(|lots, slice| lots.has_ended(slice)));
        }
        self.pump_retries(self.clock.now());
    }

    /// Fails requests whose deadline has passed, and reopens endpoints that sit on operations for too long after that.
    /// Returns the next deadline.
    pub(crate) fn expire(&self) -> Option<u64> {
        let now = self.clock.now();
        let Expired { next, any, silent } = self.batches.lock().expire(now);
        for peer in silent {
            self.note_peer_failure(&peer, now);
        }
        if any {
            self.sweep();
        }
        next
    }
}
