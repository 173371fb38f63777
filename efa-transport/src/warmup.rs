//! Warming a peer up: one small operation over each rail that will be used.
//!
//! It makes the provider do everything that the first operation between two endpoints needs (addresses, connections,
//! handshakes), so that the first real one does not wait for it. Nor for code and tables that nobody has touched yet: reads and
//! writes take turns, and over the rail that the caller's first request will take go requests like any other
//! ([`Core::rehearse`]). What is written is memory that both sides keep for it. A peer whose descriptor was made of
//! [`Parts`](crate::Parts) may have none: it is only read.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::batch::Party;
use crate::core::Core;
use crate::descriptor::NicEntry;
use crate::error::Error;
use crate::lane::Lane;
use crate::nic::{PROBE_BYTES, PROBE_OWN};
use crate::peer::{Peer, PeerId, PeerTable};
use crate::progress::SPINS;
use crate::region::RegionInner;
use crate::request::{Batch, Op};
use crate::scheduler::rail::partner;
use crate::stall::Refusals;

/// How a warm-up went.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct WarmUp {
    /// Rails that work now.
    pub rails: usize,
    /// Rails that do not: local and remote NIC, and why.
    pub failed: Vec<(String, String)>,
    /// How long it took.
    pub took: Duration,
}

/// Bytes that every peer lets us read.
pub(crate) const LEAST: usize = 8;
/// What is rehearsed. Over sockets the caller's first request took three to four times as long as later ones after one of
/// these, about twice as long after two, a little less after four, and the same after sixteen.
const REHEARSAL: [Op; 4] = [Op::Read, Op::Write, Op::Read, Op::Write];
/// Regions of either side whose keys are looked at before the first request.
const LOOKED_AT: usize = 64;
/// Peers that are probed in one round.
const PROBED_AT_ONCE: usize = 64;

struct Shared {
    /// In the background: for nobody in particular, one round at a time for each peer.
    background: bool,
    left: AtomicUsize,
    over: std::sync::atomic::AtomicBool,
    failed: Mutex<Vec<(String, String)>>,
}

/// One small operation on its way. Dropping it counts as a failure.
pub(crate) struct Probe {
    pub(crate) peer: Arc<Peer>,
    pub(crate) nics: Arc<[NicEntry]>,
    pub(crate) remote_nic: usize,
    pub(crate) op: Op,
    /// Bytes.
    pub(crate) len: usize,
    pub(crate) refusals: Refusals,
    /// When it was posted.
    pub(crate) since: u64,
    rail: String,
    shared: Arc<Shared>,
    told: bool,
}

impl Probe {
    pub(crate) fn remote(&self) -> fabric_safe::Remote {
        let (address, key) = self.nics[self.remote_nic].probe;
        fabric_safe::Remote { address, key }
    }

    /// Whether nobody waits for it but time.
    pub(crate) fn is_unattended(&self) -> bool {
        self.shared.background || self.is_over()
    }

    pub(crate) fn is_over(&self) -> bool {
        self.shared.over.load(Ordering::Relaxed)
    }

    pub(crate) fn ended(mut self, error: Option<String>) {
        self.tell(error);
    }

    fn tell(&mut self, error: Option<String>) {
        if std::mem::replace(&mut self.told, true) {
            return;
        }
        if let Some(error) = error {
            self.shared.failed.lock().push((std::mem::take(&mut self.rail), error));
        }
        if self.shared.left.fetch_sub(1, Ordering::AcqRel) == 1 && self.shared.background {
            self.peer.health().probing.store(false, Ordering::Release);
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.tell(Some("given up".into()));
    }
}

impl Core {
    pub(crate) fn warm_up(self: &Arc<Self>, id: PeerId, deadline: Instant) -> Result<WarmUp, Error> {
        let began = Instant::now();
        let peer = Arc::clone(self.peers().get(id)?);
        let table = peer.table();
        if table.epoch == self.epoch && self.config.same_process_copy {
            return Ok(WarmUp { rails: 0, failed: Vec::new(), took: began.elapsed() });
        }
        if !table.open {
            let why = table.closed();
            return Err(Error::PeerStale { peer: peer.name.clone(), why });
        }
        let mut rails = self.rails(&table);
        // The one that the caller's first request would take comes last, and is rehearsed.
        let first = self.lanes.fabric(table.fabric).range.start + self.place_of_one();
        if let Some(at) = rails.iter().position(|&(lane, _)| lane == first) {
            rails[at..].rotate_left(1);
        }
        let fits = table.scratch && !peer.is_stale() && peer.health().usable(self.clock.now());
        let (last, probed) = match rails.split_last() {
            Some((&last, others)) if fits => (Some(last), others),
            _ => (None, &rails[..]),
        };
        let mut warm = self.probe(&peer, &table, probed, deadline);
        if let Some((lane, remote_nic)) = last {
            // A peer that answers nowhere is not asked to rehearse.
            let deaf = warm.failed.len() == probed.len() && !probed.is_empty();
            let outcome = if deaf {
                let one = self.probe(&peer, &table, &[(lane, remote_nic)], deadline);
                warm.failed.extend(one.failed);
                Ok(one.rails > 0)
            } else {
                self.rehearse(&peer, &table, (lane, remote_nic), deadline)
            };
            match outcome {
                Ok(works) => warm.rails += usize::from(works),
                Err(error) => warm.failed.push((self.rail_to(&table, lane, remote_nic), error.to_string())),
            }
        }
        if let Some((lane, remote_nic)) = last {
            self.look_ahead(id, &table, (lane, remote_nic));
        }
        warm.took = began.elapsed();
        if warm.rails == 0 {
            let why = match warm.failed.first() {
                Some((rail, why)) => format!("warming up {rail}: {why}"),
                None => format!("none of {} rails was warm within {:?}", rails.len(), warm.took),
            };
            return Err(Error::PeerDown { peer: peer.name.clone(), why });
        }
        Ok(warm)
    }

    /// Probes rails at the same time, and waits for the answers. Those that have none at the deadline are in neither list.
    fn probe(
        &self,
        peer: &Arc<Peer>,
        table: &PeerTable,
        rails: &[(usize, usize)],
        deadline: Instant,
    ) -> WarmUp {
        let began = Instant::now();
        let shared = Arc::new(Shared {
            background: false,
            left: AtomicUsize::new(rails.len()),
            over: false.into(),
            failed: Mutex::default(),
        });
        self.send_probes(peer, table, rails, &shared);
        let mut quiet = 0;
        let mut idler = None;
        while shared.left.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            quiet = if self.drive_all() > 0 { 0 } else { quiet + 1 };
            self.relax(&mut idler, (quiet, SPINS), || deadline);
        }
        let left = shared.left.load(Ordering::Acquire);
        shared.over.store(true, Ordering::Relaxed);
        if left > 0 {
            self.sweep();
        }
        let failed = shared.failed.lock().clone();
        let working = rails.len().saturating_sub(left).saturating_sub(failed.len());
        WarmUp { rails: working, failed, took: began.elapsed() }
    }

    /// Requests over one rail, one after another, of the memory that is there for probes. They go the way of all requests from
    /// end to end, so that the first one of the caller finds it trodden, be it a read or a write.
    fn rehearse(
        self: &Arc<Self>,
        peer: &Peer,
        table: &PeerTable,
        (lane, remote_nic): (usize, usize),
        deadline: Instant,
    ) -> Result<bool, Error> {
        let Some((table, there)) = table.of_probe(remote_nic) else { return Ok(false) };
        let region = RegionInner::of_probes(&self.lanes[lane], table.fabric);
        let (ranges, table) = ((region.addr + PROBE_OWN as u64, there), Arc::new(table));
        for op in REHEARSAL {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let (region, table) = (Arc::clone(&region), Arc::clone(&table));
            let mut batch = Batch::rehearsal(peer.id, region, table, op, ranges, PROBE_BYTES as u64);
            batch.set_deadline(left);
            self.submit(&mut batch)?.wait()?;
        }
        Ok(true)
    }

    /// Looks at what the caller's first request will look at: sixteen rails later, none of it is in the caches any more.
    fn look_ahead(&self, id: PeerId, table: &PeerTable, (lane, remote_nic): (usize, usize)) {
        let _ = std::hint::black_box(Party::new(id, &self.peers()));
        table.look_at(remote_nic, LOOKED_AT);
        let latest: Vec<_> = {
            let regions = self.regions.lock();
            regions.iter().rev().take(LOOKED_AT).filter_map(|(_, region)| region.upgrade()).collect()
        };
        for region in latest {
            let _ = std::hint::black_box(region.on(table.fabric).map(|region| region.look_at(lane)));
        }
    }

    fn rail_to(&self, table: &PeerTable, lane: usize, remote_nic: usize) -> String {
        format!("{} to {}", self.lanes[lane].nic.name, table.nics[remote_nic].name)
    }
}

impl Core {
    /// The pairs of a lane and a remote NIC that traffic with a peer will use.
    fn rails(&self, table: &PeerTable) -> Vec<(usize, usize)> {
        let lanes = &self.lanes.fabric(table.fabric).range;
        let mut rails = rails(lanes.len(), table.nics.len());
        rails.iter_mut().for_each(|(local, _)| *local += lanes.start);
        rails
    }

    fn send_probes(
        &self,
        peer: &Arc<Peer>,
        table: &PeerTable,
        rails: &[(usize, usize)],
        shared: &Arc<Shared>,
    ) {
        for (index, &(local, remote_nic)) in rails.iter().enumerate() {
            let rail = self.rail_to(table, local, remote_nic);
            let write = table.scratch && index % 2 == 0 && !shared.background;
            let probe = Probe {
                peer: Arc::clone(peer),
                nics: Arc::clone(&table.nics),
                remote_nic,
                op: if write { Op::Write } else { Op::Read },
                len: if table.scratch { PROBE_BYTES } else { LEAST },
                refusals: Refusals::default(),
                since: 0,
                rail,
                shared: Arc::clone(shared),
                told: false,
            };
            let mut state = self.lanes[local].state.lock();
            self.lanes[local].expect(Lane::weight(0));
            state.admit_probe(probe);
        }
    }

    /// Tries NICs that have been set aside, and peers that are down, when their time is over: so they come back although
    /// everybody avoids them. On EFA only: other providers may never end an operation to a peer that is gone.
    pub(crate) fn probe_the_suspect(&self) {
        let now = self.clock.now();
        if self.lanes[0].nic.info.provider_name() != "efa" {
            return;
        }
        let due: Vec<usize> = self
            .lanes
            .iter()
            .filter(|lane| (1..=now).contains(&lane.aside_until.load(Ordering::Relaxed)))
            .map(|lane| lane.index)
            .collect();
        let peers: Vec<Arc<Peer>> = self
            .peers()
            .iter()
            .filter(|peer| !peer.is_stale() && (!due.is_empty() || peer.health().is_suspect()))
            .take(PROBED_AT_ONCE)
            .cloned()
            .collect();
        for peer in peers {
            let table = peer.table();
            if table.epoch == self.epoch && self.config.same_process_copy
                || !peer.health().usable(now)
                || peer.health().probing.swap(true, Ordering::AcqRel)
            {
                continue;
            }
            let avoid = peer.health().avoid(now);
            let suspect = peer.health().is_suspect();
            let mut rails = self.rails(&table);
            rails.retain(|&(local, remote)| {
                avoid & (1 << remote) == 0
                    && self.lanes[local].aside_until.load(Ordering::Relaxed) <= now
                    && (suspect || due.contains(&local))
            });
            if rails.is_empty() {
                peer.health().probing.store(false, Ordering::Release);
                continue;
            }
            let shared = Arc::new(Shared {
                background: true,
                left: AtomicUsize::new(rails.len()),
                over: false.into(),
                failed: Mutex::default(),
            });
            self.send_probes(&peer, &table, &rails, &shared);
        }
    }
}

/// The pairs of NICs that traffic will use: each local NIC with every remote one that it may be paired with.
fn rails(locals: usize, remotes: usize) -> Vec<(usize, usize)> {
    let all = if remotes >= 128 { u128::MAX } else { (1 << remotes) - 1 };
    let mut rails = Vec::new();
    for local in 0..locals {
        let turns = remotes.div_ceil(locals.max(1)).max(1);
        for turn in 0..turns {
            if let Some(remote) = partner(local, locals, remotes, all, turn)
                && !rails.contains(&(local, remote))
            {
                rails.push((local, remote));
            }
        }
    }
    rails
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_rails_as_the_larger_side_has_nics() {
        for (locals, remotes) in [(1, 1), (16, 16), (4, 16), (16, 4), (1, 32), (3, 7)] {
            let rails = rails(locals, remotes);
            assert_eq!(rails.len(), locals.max(remotes), "{locals} by {remotes}: {rails:?}");
            for remote in 0..remotes {
                assert!(rails.iter().any(|r| r.1 == remote), "{locals} by {remotes} leaves {remote} out");
            }
        }
    }
}
