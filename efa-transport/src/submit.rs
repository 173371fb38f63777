//! From a batch to slices on lanes.

use std::sync::Arc;
use std::time::Duration;

use crate::batch::{BatchHandle, BatchState, Party};
use crate::clock::nanos;
use crate::core::Core;
use crate::error::Error;
use crate::lot::Stray;
use crate::region::RegionInner;
use crate::request::{Batch, Range, Stored};
use crate::route::{Kind, Staged};
use crate::scheduler::rail::{Chooser, Set, only};
use crate::scheduler::slicer::{Cut, Hole, Stretch, longest_slice, slice};
use crate::slice::Piece;

/// A batch while it is cut into slices.
struct Stage<'a> {
    state: &'a Arc<BatchState>,
    now: u64,
    usable: Set,
    chooser: Chooser,
    turn: usize,
    lanes: &'a mut [Staged],
    /// Slices with an immediate that wait for no others.
    gates: Vec<Stray>,
    /// Bytes of the batch that have not been cut yet, if there are NICs that could share them.
    ahead: u64,
    /// Slices to the current peer that have not been counted yet.
    uncounted: usize,
    /// The latest request that was cut: its slices, whether some could go nowhere, and where the latest of them could go.
    latest: Option<u32>,
    slices: u32,
    stranded: bool,
    rails: Rails,
    /// Of the rails: lots do not reach over a change.
    serial: u32,
}

impl Stage<'_> {
    /// Gives a slice to the lane that suits it.
    #[inline(always)] // into the loop that cuts, which has the slice in registers
    fn place(&mut self, core: &Core, request: u32, kind: &Kind<'_>, cut: &Cut) {
        if self.rails.chunks != (cut.local_chunk, cut.remote_chunk) {
            self.find_rails(core, kind, cut);
        }
        let mut lane = self.rails.only;
        if lane >= self.lanes.len() {
            lane = self.choose(core, kind, cut);
        }
        match self.lanes.get_mut(lane) {
            Some(lane) => {
                lane.add(request, self.serial, kind, cut);
                self.slices += 1;
            }
            None => self.stranded = true,
        }
    }

    #[inline(never)] // it happens at seams
    fn find_rails(&mut self, core: &Core, kind: &Kind<'_>, cut: &Cut) {
        let chunks = (cut.local_chunk, cut.remote_chunk);
        let party = &kind.batch.parties[kind.party as usize];
        let eligible = core.eligible(kind.region, party, chunks, self.usable, self.now);
        self.rails = Rails::new(chunks, eligible, core.lanes.fabric(party.table.fabric).range.start);
        self.serial += 1;
    }

    /// One of several lanes; no lane's number if there is none.
    #[inline(never)]
    fn choose(&mut self, core: &Core, kind: &Kind<'_>, cut: &Cut) -> usize {
        // All fabrics have as many lanes.
        self.turn = if self.turn + 1 >= core.lanes.first().range.end { 0 } else { self.turn + 1 };
        let turn = (&mut self.chooser, self.rails.first + self.turn);
        let staged = |lane: usize| self.lanes[lane].weight();
        core.choose(self.rails.eligible, kind.region.near, cut.len, turn, staged).unwrap_or(usize::MAX)
    }
}

/// Where the slices between two chunks can go.
#[derive(Clone, Copy)]
struct Rails {
    chunks: (u32, u32),
    eligible: Set,
    /// The first lane of the peer's fabric.
    first: usize,
    /// The lane, if there is one only; no lane's number otherwise.
    only: usize,
}

impl Rails {
    /// Of no chunks.
    const NONE: Self = Self { chunks: (u32::MAX, u32::MAX), eligible: 0, first: 0, only: usize::MAX };

    fn new(chunks: (u32, u32), eligible: Set, first: usize) -> Self {
        let only = only(eligible).unwrap_or(usize::MAX);
        Self { chunks, eligible, first, only }
    }
}

/// Limits from which on a request that is alone ends with the kernel's tick that comes next after its deadline.
const LONG: Duration = Duration::from_secs(1);

/// A request has come to its end before it had slices.
pub(crate) struct Ended;

impl Core {
    pub(crate) fn submit(self: &Arc<Self>, batch: &mut Batch) -> Result<BatchHandle, Error> {
        self.submit_by(batch, true)
    }

    /// `shortcut`: whether a request that is alone may take the short way, which leads to the same place.
    pub(crate) fn submit_by(
        self: &Arc<Self>,
        batch: &mut Batch,
        shortcut: bool,
    ) -> Result<BatchHandle, Error> {
        if self.is_shut() {
            return Err(Error::ShutDown);
        }
        if self.lanes.first().immediate_bytes < 4
            && batch.requests.iter().any(|stored| stored.immediate.is_some())
        {
            return Err(self.no_immediates());
        }
        let limit = batch.deadline.unwrap_or(self.config.request_deadline);
        let alone = shortcut && batch.requests.len() == 1;
        // Next to a long limit a few milliseconds are nothing, and next to a short way the clock is much.
        let (now, late) = match alone && limit >= LONG && self.trace.is_none() {
            true => self.clock.lately(),
            false => (self.clock.now(), 0),
        };
        let deadline = now.saturating_add(late).saturating_add(nanos(limit));
        let (slot, state) = self.begin(batch, (deadline, limit))?;
        if !(alone && self.send_alone(&state, batch, now)) {
            let now = if late > 0 { self.clock.now() } else { now };
            self.send_all(&state, batch, now);
        }
        Ok(BatchHandle::new(state, Arc::clone(self), slot))
    }

    #[cold]
    fn no_immediates(&self) -> Error {
        Error::Request(format!(
            "provider {} carries {} bytes of immediate, not 4",
            self.lanes[0].nic.info.provider_name(),
            self.lanes.first().immediate_bytes
        ))
    }

    /// Cuts all requests of a batch into slices, gathers them for each lane, and hands them over.
    fn send_all(&self, state: &Arc<BatchState>, batch: &mut Batch, now: u64) {
        let mut staging = std::mem::take(&mut batch.staging);
        staging.lanes.resize_with(self.lanes.len(), Staged::default);
        let shared = self.lanes.first().lanes.len() > 1;
        let mut stage = Stage {
            state,
            now,
            usable: self.usable(now),
            chooser: Chooser::default(),
            turn: self.next_turn(),
            lanes: &mut staging.lanes,
            gates: Vec::new(),
            ahead: if shared { batch.requests.iter().map(|stored| stored.bytes).sum() } else { 0 },
            uncounted: 0,
            latest: None,
            slices: 0,
            stranded: false,
            rails: Rails::NONE,
            serial: 0,
        };
        let mut party = 0;
        for (index, stored) in batch.requests.iter().enumerate() {
            let its_party = state.requests[index].party;
            if its_party != party {
                state.add_slices(party, std::mem::take(&mut stage.uncounted));
                party = its_party;
            }
            self.stage(&mut stage, index as u32, stored, batch);
            stage.ahead = stage.ahead.saturating_sub(stored.bytes);
        }
        state.add_slices(party, stage.uncounted);
        let gates = stage.gates;
        batch.clear();
        for (lane, staged) in self.lanes.iter().zip(&mut staging.lanes) {
            self.hand_to(lane, staged, now);
        }
        batch.staging = staging;
        for gate in gates {
            self.route(gate, now);
        }
    }

    /// What every request begins with: the checks, and the copy within a process. Gives its local memory on the second fabric if
    /// the peer is reached there.
    pub(crate) fn prepare(
        &self,
        state: &BatchState,
        index: u32,
        stored: &Stored,
        batch: &Batch,
        now: u64,
    ) -> Result<Option<Arc<RegionInner>>, Ended> {
        let party = state.party_of(index);
        if party.peer.is_stale() || stored.immediate.is_some() || !party.peer.health().usable(now) {
            self.check(stored, party, now).map_err(|error| {
                state.fail(index, |_| error);
                Ended
            })?;
        }
        if party.table.epoch == self.epoch && self.config.same_process_copy {
            self.copy_within(state, index, stored, batch);
            return Err(Ended);
        }
        if party.table.fabric == 0 {
            return Ok(None);
        }
        stored.region.second().map(Some).map_err(|why| {
            let fabric = &self.lanes.fabric(party.table.fabric).name;
            let why = format!("the local memory is not registered with fabric {fabric}: {why}");
            state.fail(index, |party| Error::NoRail { peer: party.peer.name.clone(), why });
            Ended
        })
    }

    /// Cuts one request into slices, and stages them for lanes.
    fn stage(&self, stage: &mut Stage<'_>, index: u32, stored: &Stored, batch: &Batch) {
        let state = stage.state;
        let party_number = state.requests[index as usize].party;
        let party = &state.parties[party_number as usize];
        let Ok(second) = self.prepare(state, index, stored, batch, stage.now) else { return };
        let region = second.as_ref().unwrap_or(&stored.region);
        let fabric = self.lanes.fabric(party.table.fabric);
        // Counting NICs takes longer than all the rest of this.
        let longest = if stored.bytes <= self.config.stripe_bytes {
            fabric.longest.max(1)
        } else {
            let rails = region.chunks.first().map_or(0, |chunk| chunk.nics) & stage.usable;
            let rails = rails.count_ones() as usize;
            longest_slice(
                stored.bytes,
                stage.ahead,
                (rails, rails.div_ceil(self.config.endpoints_per_nic.max(1))),
                self.config.stripe_bytes,
                self.config.slice_bytes,
                fabric.longest,
            )
        };
        // Often the request is like the one before.
        let same =
            stage.latest.and_then(|latest| batch.requests.get(latest as usize)).is_some_and(|before| {
                Arc::ptr_eq(&before.region, &stored.region)
                    && (before.peer, before.op) == (stored.peer, stored.op)
            });
        if !same {
            stage.rails = Rails::NONE;
        }
        (stage.latest, stage.slices, stage.stranded) = (Some(index), 0, false);
        let kind = Kind { batch: state, region, party: party_number, op: stored.op };
        let sliced = if stored.immediate.is_none() {
            cut_up(batch, stored, party, longest, |cut| stage.place(self, index, &kind, &cut))
        } else {
            // The last one waits for all others, if there are any.
            let mut last: Option<Cut> = None;
            let sliced = cut_up(batch, stored, party, longest, |cut| {
                if let Some(before) = last.replace(cut) {
                    stage.place(self, index, &kind, &before);
                }
            });
            if let Some(cut) = last {
                let gate = Stray::gate(kind.lot(&cut), Piece::new(index, &cut));
                stage.slices += 1;
                if stage.slices > 1 {
                    state.set_gate(index, gate);
                } else {
                    stage.gates.push(gate);
                }
            }
            sliced
        };
        stage.uncounted += stage.slices as usize;
        state.set_slices(index, stage.slices);
        match sliced {
            Ok(()) if stage.stranded => {
                state.fail(index, |party| Error::NoRail {
                    peer: party.peer.name.clone(),
                    why: "no NIC here has the local memory registered".into(),
                });
            }
            Ok(()) => {}
            Err(Hole::Remote(stretch)) => {
                let wanted = stored.op.wanted();
                state.fail(index, |party| Error::NotRegistered {
                    peer: party.peer.name.clone(),
                    addr: stretch.at,
                    len: stretch.len,
                    wanted,
                });
            }
            Err(Hole::Local(stretch)) => {
                let (region_addr, region_len) = (region.addr, region.len);
                state.fail(index, |_| Error::OutOfBounds {
                    addr: stretch.at,
                    len: stretch.len,
                    region_addr,
                    region_len,
                });
            }
        }
    }

    /// Whether anything can be sent to the peer now.
    #[cold]
    fn check(&self, stored: &Stored, party: &Party, now: u64) -> Result<(), Error> {
        let Party { peer, table, .. } = party;
        if peer.is_stale() {
            let why = match table.open {
                true => "a key was refused or it has restarted".to_owned(),
                false => table.closed(),
            };
            return Err(Error::PeerStale { peer: peer.name.clone(), why });
        }
        if stored.immediate.is_some() && table.immediate_bytes < 4 {
            let why = "its NICs cannot receive immediates of 4 bytes".to_owned();
            return Err(Error::Incompatible { peer: peer.name.clone(), why });
        }
        if !peer.health().usable(now) {
            let why = "earlier requests found it so; it is tried again before long".to_owned();
            return Err(Error::PeerDown { peer: peer.name.clone(), why });
        }
        Ok(())
    }
}

/// Cuts a request at every seam of either side.
#[inline]
fn cut_up(
    batch: &Batch,
    stored: &Stored,
    party: &Party,
    longest: u64,
    each: impl FnMut(Cut),
) -> Result<(), Hole> {
    let stretch = |range: &Range| Stretch { at: range.at, len: range.len };
    slice(
        batch.local[stored.local.clone()].iter().map(stretch),
        batch.remote[stored.remote.clone()].iter().map(stretch),
        |addr| stored.region.chunk_at(addr),
        |addr| party.table.chunk_at(addr, stored.op),
        longest,
        each,
    )
}
