//! What the handles of a transport share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, TryLockError, Weak};
use std::time::{Duration, Instant};

use efa_mr::registrar::Registrar;
use fabric_safe::{Access, Domain};

use crate::batch::{BatchHandle, BatchState, RequestState};
use crate::config::Config;
use crate::descriptor::{ChunkEntry, Descriptor, NicEntry};
use crate::error::Error;
use crate::events::{Arrivals, Event, Events};
use crate::lane::{Context, Lane, Outcome, Work};
use crate::peer::{Added, Peer, PeerId, Peers};
use crate::progress::Parking;
use crate::provider::Rejected;
use crate::region::RegionInner;
use crate::request::{Batch, Op};
use crate::scheduler::health::Change;
use crate::scheduler::rail::{Set, cost, least_loaded, members};
use crate::scheduler::retry::{Decision, Failure, decide};
use crate::scheduler::slicer::{Hole, Stretch, longest_slice, slice};
use crate::slice::{NONE, Slice};
use crate::sync::{Clock, lock, nanos};
use crate::trace::Trace;

/// Failures in a row before a NIC is set aside.
const NIC_TOLERANCE: u32 = 4;
/// Failed requests in a row before a peer is taken for down.
const PEER_TOLERANCE: u32 = 1;
/// Batch states that are kept for reuse.
const SPARE: usize = 256;
/// A lane with less than this waiting is not worth taking over from.
const WORTH_TAKING: u64 = 64 << 10;

pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) name: String,
    pub(crate) epoch: u64,
    pub(crate) choice: String,
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) lanes: Vec<Lane>,
    pub(crate) registrar: Registrar<Domain>,
    peers: RwLock<Peers>,
    regions: Mutex<Vec<(u64, Weak<RegionInner>)>>,
    next_region: AtomicU64,
    generation: AtomicU64,
    descriptor: Mutex<Option<(u64, Vec<u8>)>>,
    pub(crate) events: Events,
    pub(crate) arrivals: Arrivals,
    /// Batches whose deadlines are watched.
    watched: Mutex<Watched>,
    spare: Mutex<Vec<Arc<BatchState>>>,
    staging: Mutex<Vec<Staging>>,
    outcomes: Mutex<Vec<Outcome>>,
    retries: Mutex<Vec<(u64, Slice)>>,
    retry_count: AtomicUsize,
    pub(crate) drivers: AtomicUsize,
    pub(crate) parking: Parking,
    shut: AtomicBool,
    turn: AtomicUsize,
    pub(crate) requests_done: AtomicU64,
    pub(crate) requests_failed: AtomicU64,
    pub(crate) retried: AtomicU64,
    pub(crate) trace: Option<Trace>,
    immediate_bytes: usize,
    longest: u64,
}

#[derive(Default)]
struct Watched {
    slots: Vec<Option<Arc<BatchState>>>,
    free: Vec<u32>,
}

/// Slices of one call of submit, by lane.
#[derive(Default)]
struct Staging {
    lanes: Vec<Vec<Slice>>,
}

impl Core {
    pub(crate) fn new(
        config: Config,
        (choice, rejected): (String, Vec<Rejected>),
        (name, epoch): (String, u64),
        lanes: Vec<Lane>,
        registrar: Registrar<Domain>,
    ) -> Result<Self, Error> {
        let parking = Parking::new(&lanes)?;
        let trace = (config.trace_slices > 0).then(|| Trace::new(config.trace_slices));
        let immediate_bytes = lanes.iter().map(|l| l.nic.info.immediate_bytes()).min().unwrap_or(0);
        let longest = lanes
            .iter()
            .map(|lane| {
                let info = &lane.nic.info;
                let endpoint = Arc::clone(&lock(&lane.state).endpoint);
                let rma = endpoint.get(fabric_safe::option::MAX_RMA_BYTES).unwrap_or(usize::MAX);
                // A provider that reports 0 means that it does not know.
                [rma, info.max_message_bytes()].into_iter().filter(|&n| n > 0).min().unwrap_or(1 << 30) as u64
            })
            .min()
            .unwrap_or(1 << 30)
            .min(1 << 30);
        Ok(Self {
            config,
            clock: Clock::start(),
            name,
            epoch,
            choice,
            rejected,
            lanes,
            registrar,
            peers: RwLock::default(),
            regions: Mutex::default(),
            next_region: AtomicU64::new(1),
            generation: AtomicU64::new(1),
            descriptor: Mutex::new(None),
            events: Events::new(),
            arrivals: Arrivals::new(),
            watched: Mutex::default(),
            spare: Mutex::default(),
            staging: Mutex::default(),
            outcomes: Mutex::default(),
            retries: Mutex::default(),
            retry_count: AtomicUsize::new(0),
            drivers: AtomicUsize::new(0),
            parking,
            shut: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            requests_done: AtomicU64::new(0),
            requests_failed: AtomicU64::new(0),
            retried: AtomicU64::new(0),
            trace,
            immediate_bytes,
            longest,
        })
    }

    // ---- descriptors and peers -----------------------------------------------------------------------------------------

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.events.push(Event::DescriptorChanged);
    }

    pub(crate) fn remember_region(&self, inner: &Arc<RegionInner>) -> u64 {
        let id = self.next_region.fetch_add(1, Ordering::Relaxed);
        lock(&self.regions).push((id, Arc::downgrade(inner)));
        self.changed();
        id
    }

    pub(crate) fn forget_region(&self, id: u64) {
        let mut regions = lock(&self.regions);
        let before = regions.len();
        regions.retain(|(other, _)| *other != id);
        let gone = regions.len() != before;
        drop(regions);
        if gone {
            self.changed();
        }
    }

    pub(crate) fn descriptor(&self) -> Vec<u8> {
        let generation = self.generation();
        let mut cached = lock(&self.descriptor);
        if let Some((of, bytes)) = &*cached
            && *of == generation
        {
            return bytes.clone();
        }
        let bytes = self.describe_to_peers(generation).encode();
        *cached = Some((generation, bytes.clone()));
        bytes
    }

    fn describe_to_peers(&self, generation: u64) -> Descriptor {
        let mut regions: Vec<Arc<RegionInner>> =
            lock(&self.regions).iter().filter_map(|(_, region)| region.upgrade()).collect();
        regions.retain(|region| region.access.intersects(Access::REMOTE_READ | Access::REMOTE_WRITE));
        regions.sort_by_key(|region| region.addr);
        let (mut chunks, mut keys) = (Vec::new(), Vec::new());
        for region in &regions {
            for (index, chunk) in region.chunks.iter().enumerate() {
                chunks.push((
                    ChunkEntry {
                        addr: chunk.start,
                        len: chunk.end - chunk.start,
                        readable: region.access.contains(Access::REMOTE_READ),
                        writable: region.access.contains(Access::REMOTE_WRITE),
                        nics: chunk.nics,
                        keys: 0,
                    },
                    region.registered.regions(index).map(|(_, mr)| mr.key()).collect::<Vec<u64>>(),
                ));
            }
        }
        // Overlapping regions interleave their chunks.
        chunks.sort_by_key(|(chunk, _)| chunk.addr);
        let chunks = chunks
            .into_iter()
            .map(|(chunk, its_keys)| {
                let at = keys.len() as u32;
                keys.extend(its_keys);
                ChunkEntry { keys: at, ..chunk }
            })
            .collect();
        let info = &self.lanes[0].nic.info;
        Descriptor {
            name: self.name.clone(),
            epoch: self.epoch,
            generation,
            provider: info.provider_name().to_owned(),
            fabric: self.fabric_kind().to_owned(),
            virtual_addressing: info.virtual_addressing(),
            immediate_bytes: self.immediate_bytes as u8,
            nics: self
                .lanes
                .iter()
                .map(|lane| NicEntry {
                    name: lane.nic.name.clone(),
                    address: lane.nic.address().to_vec().into(),
                    link_mbps: lane.nic.link_mbps,
                    numa: lane.nic.numa.unwrap_or(u16::MAX),
                    probe: lane.nic.probe_served(),
                })
                .collect(),
            chunks,
            keys,
        }
    }

    /// The fabric where its name says how endpoints talk (`efa`, `efa-direct`); elsewhere it names a network.
    fn fabric_kind(&self) -> &str {
        let info = &self.lanes[0].nic.info;
        if info.provider_name() == "efa" { info.fabric_name() } else { "" }
    }

    pub(crate) fn peers(&self) -> RwLockReadGuard<'_, Peers> {
        self.peers.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn add_peer(&self, bytes: &[u8]) -> Result<PeerId, Error> {
        let descriptor = Descriptor::decode(bytes)?;
        let info = &self.lanes[0].nic.info;
        let (ours, theirs) = (info.provider_name(), descriptor.provider.as_str());
        let incompatible = |why: String| Error::Incompatible { peer: descriptor.name.clone(), why };
        if !same_wire(ours, theirs) {
            return Err(incompatible(format!("it uses provider {theirs} and we use {ours}")));
        }
        if descriptor.fabric != self.fabric_kind() {
            let (ours, theirs) = (self.fabric_kind(), &descriptor.fabric);
            return Err(incompatible(format!(
                "it uses fabric {theirs} and we use {ours}; set the same provider on both sides"
            )));
        }
        let mut peers = self.peers.write().unwrap_or_else(PoisonError::into_inner);
        let (peer, added) = peers.add(descriptor);
        drop(peers);
        tracing::debug!(peer = %peer.name, ?added, regions = peer.table().regions(), "peer descriptor");
        // efa-direct: our cards must know the peer's before its first operation arrives.
        if self.fabric_kind() == "efa-direct" {
            let table = peer.table();
            for lane in &self.lanes {
                lane.introduce(&peer, &table.nics, self.clock.now());
            }
        }
        if added == Added::Restarted {
            self.events.push(Event::PeerRestarted { peer: peer.id, name: peer.name.clone() });
        }
        Ok(peer.id)
    }

    pub(crate) fn remove_peer(&self, id: PeerId) -> bool {
        let removed = self.peers.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        if removed.is_some() {
            for lane in &self.lanes {
                lane.forget(id.slot);
            }
        }
        removed.is_some()
    }

    // ---- submitting ----------------------------------------------------------------------------------------------------

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    pub(crate) fn submit(self: &Arc<Self>, batch: &mut Batch) -> Result<BatchHandle, Error> {
        if self.is_shut() {
            return Err(Error::ShutDown);
        }
        for stored in &batch.requests {
            if stored.immediate.is_some() && self.immediate_bytes < 4 {
                return Err(Error::Request(format!(
                    "provider {} carries {} bytes of immediate, not 4",
                    self.lanes[0].nic.info.provider_name(),
                    self.immediate_bytes
                )));
            }
        }
        let limit = batch.deadline.unwrap_or(self.config.request_deadline);
        let now = self.clock.now();
        let deadline = now.saturating_add(nanos(limit));
        let state = {
            let peers = self.peers();
            for stored in &batch.requests {
                peers.get(stored.peer)?;
            }
            let requests = batch.requests.iter().filter_map(|stored| {
                let peer = Arc::clone(peers.get(stored.peer).ok()?);
                let table = peer.table();
                Some(RequestState::new(stored.op, peer, table, stored.immediate, deadline, limit))
            });
            self.take_state(requests)
        };
        let watch = self.watch(&state);
        let mut staging = lock(&self.staging).pop().unwrap_or_default();
        staging.lanes.resize_with(self.lanes.len(), Vec::new);
        let mut start_now = Vec::new();
        for (index, stored) in batch.requests.iter().enumerate() {
            self.stage(&state, index as u32, stored, batch, now, &mut staging, &mut start_now);
        }
        batch.clear();
        for (lane, slices) in self.lanes.iter().zip(&mut staging.lanes) {
            self.hand_to(lane, slices.drain(..), now);
        }
        lock(&self.staging).push(staging);
        for slice in start_now {
            self.route(slice, now);
        }
        Ok(BatchHandle::new(state, Arc::clone(self), watch))
    }

    #[allow(clippy::too_many_arguments)] // all of submit's state
    fn stage(
        &self,
        state: &Arc<BatchState>,
        index: u32,
        stored: &crate::request::Stored,
        batch: &Batch,
        now: u64,
        staging: &mut Staging,
        start_now: &mut Vec<Slice>,
    ) {
        let request = &state.requests[index as usize];
        let peer = &request.peer;
        if peer.is_stale() {
            let why = "a key was refused or it has restarted".to_owned();
            state.fail(index, |r| Error::PeerStale { peer: r.peer.name.clone(), why });
            return;
        }
        if stored.immediate.is_some() && request.table.immediate_bytes < 4 {
            let why = "its NICs cannot receive immediates of 4 bytes".to_owned();
            state.fail(index, |r| Error::Incompatible { peer: r.peer.name.clone(), why });
            return;
        }
        if !peer.health(|health| health.usable(now)) {
            let why = "earlier requests found it so; it is tried again before long".to_owned();
            state.fail(index, |r| Error::PeerDown { peer: r.peer.name.clone(), why });
            return;
        }
        if request.table.epoch == self.epoch && self.config.same_process_copy {
            self.copy_within(state, index, stored, batch);
            return;
        }
        let usable = self.usable(now);
        let region = &stored.region;
        let rails = (region.chunks.first().map_or(0, |chunk| chunk.nics) & usable).count_ones() as usize;
        let longest = longest_slice(
            stored.bytes,
            rails,
            self.config.stripe_bytes,
            self.config.slice_bytes,
            self.longest,
        );
        let stretch = |range: &crate::request::Range| Stretch { at: range.at, len: range.len };
        let mut stranded = None;
        let mut held: Option<Slice> = None;
        let gated = stored.immediate.is_some();
        let sliced = slice(
            batch.local[stored.local.clone()].iter().map(stretch),
            batch.remote[stored.remote.clone()].iter().map(stretch),
            |addr| region.chunk_at(addr),
            |addr| request.table.chunk_at(addr, stored.op),
            longest,
            |cut| {
                request.one_more();
                let mut slice = Slice::new(state, index, region, cut);
                if gated {
                    // The last one waits for all others.
                    match held.replace(slice) {
                        Some(before) => slice = before,
                        None => return,
                    }
                }
                match self.choose(&slice, usable, None) {
                    Some(lane) => {
                        self.lanes[lane].expect(slice.len);
                        staging.lanes[lane].push(slice);
                    }
                    None => stranded = Some(slice),
                }
            },
        );
        if let Some(mut slice) = held {
            slice.gate = true;
            request.set_gate(slice);
        }
        match sliced {
            Ok(()) => {}
            Err(Hole::Remote(stretch)) => {
                let wanted = stored.op.wanted();
                state.fail(index, |r| Error::NotRegistered {
                    peer: r.peer.name.clone(),
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
        if let Some(slice) = stranded {
            slice.fail(|r| Error::NoRail {
                peer: r.peer.name.clone(),
                why: "no NIC here has the local memory registered".into(),
            });
        }
        // The part that stood for "slices are still being made".
        start_now.extend(state.part_done(index));
    }

    fn take_state(&self, requests: impl Iterator<Item = RequestState>) -> Arc<BatchState> {
        let spare = {
            let mut spare = lock(&self.spare);
            // A slice that has just ended may still be about to let go of its batch: then another will do.
            let free = spare.iter().rposition(|state| Arc::strong_count(state) == 1);
            free.map(|at| spare.swap_remove(at))
        };
        let mut state = spare.unwrap_or_else(|| Arc::new(BatchState::new()));
        if Arc::get_mut(&mut state).is_none() {
            state = Arc::new(BatchState::new());
        }
        if let Some(state) = Arc::get_mut(&mut state) {
            state.fill(requests);
        }
        state
    }

    fn watch(&self, state: &Arc<BatchState>) -> u32 {
        let mut watched = lock(&self.watched);
        let slot = watched.free.pop().unwrap_or_else(|| {
            watched.slots.push(None);
            (watched.slots.len() - 1) as u32
        });
        watched.slots[slot as usize] = Some(Arc::clone(state));
        slot
    }

    /// The handle is gone; a batch that still runs is watched on.
    pub(crate) fn unwatch(&self, slot: u32, state: &Arc<BatchState>) {
        if !state.has_ended() {
            self.wake_progress();
        } else {
            let mut watched = lock(&self.watched);
            let ours = watched.slots.get(slot as usize).and_then(Option::as_ref);
            if ours.is_some_and(|s| Arc::ptr_eq(s, state)) {
                watched.slots[slot as usize] = None;
                watched.free.push(slot);
            }
            drop(watched);
            self.count(state);
            self.keep(state);
        }
    }

    fn count(&self, state: &BatchState) {
        let (done, failed) = state.tally();
        self.requests_done.fetch_add(done, Ordering::Relaxed);
        self.requests_failed.fetch_add(failed, Ordering::Relaxed);
        metrics::counter!("weft_efa_requests_total", "result" => "done").increment(done);
        metrics::counter!("weft_efa_requests_total", "result" => "failed").increment(failed);
    }

    /// Keeps a state for reuse.
    fn keep(&self, state: &Arc<BatchState>) {
        let mut spare = lock(&self.spare);
        if spare.len() < SPARE {
            spare.push(Arc::clone(state));
        }
    }

    /// Lets go of what spare states hold, as far as nobody uses them.
    pub(crate) fn clear_spare(&self) {
        for state in lock(&self.spare).iter_mut() {
            if let Some(state) = Arc::get_mut(state) {
                state.clear();
            }
        }
    }

    /// The NICs that are not set aside; all if all are.
    fn usable(&self, now: u64) -> Set {
        let mut set: Set = 0;
        for lane in &self.lanes {
            if lane.aside_until.load(Ordering::Relaxed) <= now {
                set |= 1 << lane.index;
            }
        }
        if set == 0 { Set::MAX } else { set }
    }

    /// The lane for a slice: the least loaded that has its memory, near ones preferred.
    #[inline]
    fn choose(&self, slice: &Slice, usable: Set, avoid: Option<usize>) -> Option<usize> {
        let all = slice.locals();
        let mut eligible = all & usable;
        if let Some(avoid) = avoid
            && eligible & !(1 << avoid) != 0
        {
            eligible &= !(1 << avoid);
        }
        if eligible == 0 {
            eligible = all;
        }
        if eligible.is_power_of_two() {
            return Some(eligible.trailing_zeros() as usize);
        }
        let near = slice.region.near;
        let turn = self.turn.fetch_add(1, Ordering::Relaxed) % self.lanes.len();
        least_loaded(eligible, turn, |index| {
            let lane = &self.lanes[index];
            let waiting = lane.load.load(Ordering::Relaxed);
            cost(waiting, slice.len, lane.nic.link_mbps, near & (1 << index) == 0)
        })
    }

    /// Queues slices on a lane and posts what can be posted.
    fn hand_to(&self, lane: &Lane, slices: impl ExactSizeIterator<Item = Slice>, now: u64) {
        if slices.len() == 0 {
            return;
        }
        let mut outcome = self.take_outcome();
        {
            let mut state = lock(&lane.state);
            for slice in slices {
                let (flow, len) = (slice.request().peer.id.slot, slice.len);
                state.queue.push(flow, len, Work::Slice(slice));
            }
            lane.post(&mut state, &self.context(now), &mut outcome);
        }
        self.settle(lane, outcome);
    }

    /// Puts one slice on the lane that suits it.
    fn route(&self, mut slice: Slice, now: u64) {
        slice.blocked_since = 0;
        let avoid = (slice.attempts > 0 && slice.local_nic != NONE).then_some(slice.local_nic as usize);
        match self.choose(&slice, self.usable(now), avoid) {
            Some(lane) => {
                self.lanes[lane].expect(slice.len);
                self.hand_to(&self.lanes[lane], std::iter::once(slice), now);
            }
            None => {
                slice.fail(|r| Error::NoRail {
                    peer: r.peer.name.clone(),
                    why: "no NIC here has the local memory registered".into(),
                });
            }
        }
    }

    fn context(&self, now: u64) -> Context<'_> {
        Context {
            now,
            lanes: self.lanes.len(),
            doorbell_batching: self.config.doorbell_batching,
            arrivals: &self.arrivals,
            core: self,
        }
    }

    fn take_outcome(&self) -> Outcome {
        lock(&self.outcomes).pop().unwrap_or_default()
    }

    // ---- driving -------------------------------------------------------------------------------------------------------

    /// Drives every lane that nobody else drives, once. Returns how much happened.
    pub(crate) fn drive_all(&self) -> usize {
        let now = self.clock.now();
        let mut happened = 0;
        let mut idle: Set = 0;
        for lane in &self.lanes {
            let mut state = match lane.state.try_lock() {
                Ok(state) => state,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => continue,
            };
            let mut outcome = self.take_outcome();
            lane.counters.polls.fetch_add(1, Ordering::Relaxed);
            happened += lane.drive(&mut state, &self.context(now), &mut outcome);
            if state.queue.queued() == 0 && state.queue.in_flight() < state.queue.depth() {
                idle |= 1 << lane.index;
            }
            drop(state);
            self.settle(lane, outcome);
        }
        if idle != 0 && self.lanes.len() > 1 {
            self.take_over(idle, now);
        }
        if self.retry_count.load(Ordering::Acquire) > 0 {
            self.pump_retries(now);
        }
        happened
    }

    /// Lanes with nothing to do take waiting slices from the one that has most of them.
    fn take_over(&self, idle: Set, now: u64) {
        let usable = self.usable(now);
        let mut busiest: Option<(u64, usize)> = None;
        for lane in &self.lanes {
            let load = lane.load.load(Ordering::Relaxed);
            if idle & (1 << lane.index) == 0
                && load > WORTH_TAKING
                && busiest.is_none_or(|(most, _)| load > most)
            {
                busiest = Some((load, lane.index));
            }
        }
        let Some((_, from)) = busiest else { return };
        for to in members(idle & usable) {
            if to >= self.lanes.len()
                || self.lanes[to].load.load(Ordering::Relaxed) > self.config.window_bytes
            {
                continue;
            }
            let Ok(mut state) = self.lanes[from].state.try_lock() else { return };
            let share = state.queue.queued_bytes() / 2;
            if share < WORTH_TAKING {
                return;
            }
            let mut taken = lock(&self.staging).pop().unwrap_or_default();
            taken.lanes.resize_with(self.lanes.len(), Vec::new);
            let slices = &mut taken.lanes[to];
            state.queue.take_waiting(
                share.min(self.config.window_bytes),
                |work| matches!(work, Work::Slice(slice) if slice.locals() & (1 << to) != 0),
                |_, _, work| {
                    if let Work::Slice(slice) = work {
                        slices.push(slice);
                    }
                },
            );
            drop(state);
            for slice in slices.iter() {
                self.lanes[from].let_go(slice.len);
                self.lanes[to].expect(slice.len);
            }
            self.lanes[to].counters.taken_over.fetch_add(slices.len() as u64, Ordering::Relaxed);
            // They were taken from the end.
            slices.reverse();
            self.hand_to(&self.lanes[to], slices.drain(..), now);
            lock(&self.staging).push(taken);
        }
    }

    /// Deals with what left a lane.
    fn settle(&self, lane: &Lane, mut outcome: Outcome) {
        if !outcome.is_empty() {
            let now = self.clock.now();
            for slice in outcome.started.drain(..) {
                self.route(slice, now);
            }
            for (slice, failure, why) in outcome.failed.drain(..) {
                self.failed(slice, failure, &why, now);
            }
            if let Some(why) = outcome.broken.take() {
                self.broken(lane, &why);
            }
        }
        let mut spare = lock(&self.outcomes);
        if spare.len() < 64 {
            spare.push(outcome);
        }
    }

    #[cold]
    fn failed(&self, slice: Slice, failure: Failure, why: &str, now: u64) {
        let request = slice.request();
        let peer = Arc::clone(&request.peer);
        peer.counters.failures.fetch_add(1, Ordering::Relaxed);
        if slice.has_ended() {
            return;
        }
        let rail = self.rail(&slice);
        request.note(&format!("over {rail}: {why}"));
        tracing::debug!(peer = %peer.name, %rail, ?failure, why, attempts = slice.attempts, "an attempt failed");
        let local = slice.local_nic as usize;
        if matches!(failure, Failure::Rail)
            && let Some(lane) = self.lanes.get(local)
        {
            self.note_nic_failure(lane, now);
        }
        if peer.table().epoch != request.table.epoch {
            let why = "it has restarted".to_owned();
            slice.fail(|r| Error::PeerStale { peer: r.peer.name.clone(), why });
            return;
        }
        if slice.gate && slice.attempts > 0 && failure != Failure::Aborted && request.immediate.is_some() {
            // Whether the immediate got through is unknown, and it must not be counted twice.
            let why = format!("{why}; the immediate may or may not have arrived");
            let attempts = u32::from(slice.attempts);
            slice.fail(|r| Error::Failed { peer: r.peer.name.clone(), rail, attempts, why });
            return;
        }
        let attempts = u32::from(slice.attempts);
        let others = slice.locals().count_ones() > 1 || slice.remotes().count_ones() > 1;
        match decide(failure, attempts, self.config.retries, others, now, request.deadline) {
            Decision::Retry { at } => {
                self.retried.fetch_add(1, Ordering::Relaxed);
                metrics::counter!("weft_efa_retries_total").increment(1);
                peer.counters.retries.fetch_add(1, Ordering::Relaxed);
                if at <= now {
                    self.route(slice, now);
                } else {
                    lock(&self.retries).push((at, slice));
                    self.retry_count.fetch_add(1, Ordering::AcqRel);
                }
            }
            Decision::GiveUp => {
                let why = why.to_owned();
                match failure {
                    Failure::Key => {
                        if peer.set_stale() {
                            self.events.push(Event::PeerStale { peer: peer.id, name: peer.name.clone() });
                        }
                        slice.fail(|r| Error::PeerStale { peer: r.peer.name.clone(), why });
                    }
                    Failure::Peer => {
                        self.note_peer_failure(&peer, now);
                        slice.fail(|r| Error::PeerDown { peer: r.peer.name.clone(), why });
                    }
                    _ => {
                        slice.fail(|r| Error::Failed { peer: r.peer.name.clone(), rail, attempts, why });
                    }
                }
            }
        }
    }

    fn rail(&self, slice: &Slice) -> String {
        let local = self.lanes.get(slice.local_nic as usize).map_or("?", |lane| &lane.nic.name);
        let remote = slice.request().table.nics.get(slice.remote_nic as usize).map_or("?", |nic| &nic.name);
        format!("{local} to {remote}")
    }

    fn note_nic_failure(&self, lane: &Lane, now: u64) {
        let mut health = lock(&lane.health);
        let change = health.failed(now, NIC_TOLERANCE);
        lane.aside_until.store(health.aside_until(), Ordering::Relaxed);
        drop(health);
        if change == Change::SetAside {
            metrics::counter!("weft_efa_nic_down_total", "nic" => lane.nic.name.clone()).increment(1);
            tracing::warn!(nic = %lane.nic.name, "set aside after {NIC_TOLERANCE} failures in a row");
            self.events.push(Event::NicDown { nic: lane.nic.name.clone() });
        }
    }

    fn note_peer_failure(&self, peer: &Peer, now: u64) {
        if peer.health(|health| health.failed(now, PEER_TOLERANCE)) == Change::SetAside {
            metrics::counter!("weft_efa_peer_down_total").increment(1);
            tracing::warn!(peer = %peer.name, "does not answer");
            self.events.push(Event::PeerDown { peer: peer.id, name: peer.name.clone() });
            // Whoever carries descriptors may find that it has restarted.
            self.events.push(Event::PeerStale { peer: peer.id, name: peer.name.clone() });
        }
    }

    pub(crate) fn recovered(&self, lane: &Lane, peer: &Peer) {
        let change = lock(&lane.health).succeeded();
        lane.aside_until.store(0, Ordering::Relaxed);
        if change == Change::Recovered {
            tracing::info!(nic = %lane.nic.name, "works again");
            self.events.push(Event::NicUp { nic: lane.nic.name.clone() });
        }
        if peer.health(|health| health.succeeded()) == Change::Recovered {
            self.events.push(Event::PeerUp { peer: peer.id, name: peer.name.clone() });
        }
    }

    fn pump_retries(&self, now: u64) {
        loop {
            let slice = {
                let mut retries = lock(&self.retries);
                let Some(at) = retries.iter().position(|(at, slice)| *at <= now || slice.has_ended()) else {
                    return;
                };
                self.retry_count.fetch_sub(1, Ordering::AcqRel);
                retries.swap_remove(at).1
            };
            if !slice.has_ended() {
                self.route(slice, now);
            }
        }
    }

    /// A completion queue that has failed: its endpoint is closed, which ends everything that it would have told.
    #[cold]
    fn broken(&self, lane: &Lane, why: &str) {
        tracing::error!(nic = %lane.nic.name, why, "the completion queue has failed");
        self.note_nic_failure(lane, self.clock.now());
        self.reopen(lane);
    }

    pub(crate) fn reopen(&self, lane: &Lane) {
        let result = lane.reopen(&mut lock(&lane.state));
        match result {
            Ok(()) => {
                tracing::warn!(nic = %lane.nic.name, "its endpoint has been closed and opened again");
                self.changed();
            }
            Err(error) => {
                tracing::error!(nic = %lane.nic.name, %error, "cannot be opened again");
                lock(&lane.state).queue.set_closed(true);
                lane.aside_until.store(u64::MAX, Ordering::Relaxed);
                self.events.push(Event::NicDown { nic: lane.nic.name.clone() });
            }
        }
    }

    /// Drops waiting slices whose request has ended.
    pub(crate) fn sweep(&self) {
        let mut dropped = Vec::new();
        for lane in &self.lanes {
            lane.sweep(&mut dropped);
            dropped.clear();
        }
        self.pump_retries(self.clock.now());
    }

    /// Fails requests whose deadline has passed, and reopens endpoints that sit on operations for too long after that.
    /// Returns the next deadline.
    pub(crate) fn expire(&self) -> Option<u64> {
        let now = self.clock.now();
        let mut next: Option<u64> = None;
        let mut any = false;
        let mut ended = Vec::new();
        let mut silent = Vec::new();
        {
            let mut watched = lock(&self.watched);
            let Watched { slots, free } = &mut *watched;
            for (index, slot) in slots.iter_mut().enumerate() {
                let Some(state) = slot else { continue };
                if state.expire(now) {
                    any = true;
                    silent.extend(state.silent_peers());
                }
                if let Some(deadline) = state.first_deadline() {
                    next = Some(next.map_or(deadline, |n| n.min(deadline)));
                } else if Arc::strong_count(state) == 1 {
                    // Its handle is gone and nothing of it is left.
                    ended.extend(slot.take());
                    free.push(index as u32);
                }
            }
        }
        for state in ended {
            self.count(&state);
            self.keep(&state);
        }
        for peer in silent {
            self.note_peer_failure(&peer, now);
        }
        if any {
            self.sweep();
        }
        next
    }

    /// Reopens the endpoint of every lane that holds an operation long after its request has ended.
    pub(crate) fn unstick(&self) {
        let now = self.clock.now();
        let patience = nanos(self.config.stuck_after);
        for lane in &self.lanes {
            if let Some(trouble) = lane.nic.trouble() {
                tracing::warn!(nic = %lane.nic.name, trouble, "the provider reports");
            }
            let Ok(state) = lane.state.try_lock() else { continue };
            let stuck = state.queue.flying().any(|(_, work)| match work {
                Work::Slice(slice) => {
                    let request = slice.request();
                    request.has_ended()
                        && now.saturating_sub(request.deadline.max(slice.since)) > patience
                        && now > request.deadline
                }
                Work::Probe(_) => false,
            });
            drop(state);
            if stuck {
                self.reopen(lane);
            }
        }
    }

    // ---- waiting -------------------------------------------------------------------------------------------------------

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
        self.drivers.fetch_add(1, Ordering::AcqRel);
        let mut quiet = 0_u32;
        let mut idler = self.idler();
        let outcome = loop {
            if done(state) {
                break true;
            }
            if self.drive_all() > 0 {
                if quiet > 0 {
                    idler.active();
                    quiet = 0;
                }
                continue;
            }
            quiet = quiet.saturating_add(1);
            if quiet.is_multiple_of(32) {
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
            if quiet > 256 && self.drivers.load(Ordering::Relaxed) > 1 {
                // Others drive too: one of them will tell.
                state.sleep(done, Duration::from_micros(100));
            } else {
                let next = state.first_deadline().map(|at| self.clock.instant(at));
                let until = [deadline, next].into_iter().flatten().min();
                self.relax(
                    &mut idler,
                    quiet,
                    until.unwrap_or_else(|| Instant::now() + Duration::from_millis(1)),
                );
            }
        };
        if self.drivers.fetch_sub(1, Ordering::AcqRel) == 1 && self.lanes.iter().any(Lane::is_busy) {
            self.wake_progress();
        }
        outcome
    }

    pub(crate) fn shut(&self, deadline: Instant) {
        if self.shut.swap(true, Ordering::AcqRel) {
            return;
        }
        while self.lanes.iter().any(|lane| lane.busy.load(Ordering::Relaxed) > 0) && Instant::now() < deadline
        {
            if self.drive_all() == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        let running: Vec<_> = lock(&self.watched).slots.iter().flatten().cloned().collect();
        for state in running {
            state.fail_all(&Error::ShutDown);
        }
        self.sweep();
        lock(&self.retries).clear();
        self.wake_progress();
    }

    // ---- within this process ---------------------------------------------------------------------------------------------

    /// Copies where both sides are this process: no NIC could do it faster.
    fn copy_within(
        &self,
        state: &Arc<BatchState>,
        index: u32,
        stored: &crate::request::Stored,
        batch: &Batch,
    ) {
        let request = &state.requests[index as usize];
        let regions: Vec<Arc<RegionInner>> =
            lock(&self.regions).iter().filter_map(|(_, region)| region.upgrade()).collect();
        let right = match stored.op {
            Op::Read => Access::REMOTE_READ,
            Op::Write => Access::REMOTE_WRITE,
        };
        let find = |addr: u64| regions.iter().position(|r| r.access.contains(right) && r.contains(addr, 1));
        let stretch = |range: &crate::request::Range| Stretch { at: range.at, len: range.len };
        let mut buffer = vec![0; 128 << 10];
        let mut problem = None;
        let region = &stored.region;
        let sliced = slice(
            batch.local[stored.local.clone()].iter().map(stretch),
            batch.remote[stored.remote.clone()].iter().map(stretch),
            |addr| region.chunk_at(addr),
            |addr| {
                let index = find(addr)?;
                let left = regions[index].addr + regions[index].len - addr;
                Some(crate::scheduler::slicer::Chunk { index: index as u32, left })
            },
            buffer.len() as u64,
            |cut| {
                if problem.is_some() {
                    return;
                }
                let there = &regions[cut.remote_chunk as usize];
                let bytes = &mut buffer[..cut.len as usize];
                let (local, remote) = (cut.local - region.addr, cut.remote - there.addr);
                problem = match stored.op {
                    Op::Write => region.copy_out(local, bytes).and_then(|()| there.copy_in(remote, bytes)),
                    Op::Read => there.copy_out(remote, bytes).and_then(|()| region.copy_in(local, bytes)),
                }
                .err();
            },
        );
        if let Err(hole) = sliced {
            let (Hole::Local(stretch) | Hole::Remote(stretch)) = hole;
            let wanted = stored.op.wanted();
            problem.get_or_insert_with(|| Error::NotRegistered {
                peer: request.peer.name.clone(),
                addr: stretch.at,
                len: stretch.len,
                wanted,
            });
        }
        match problem {
            Some(error) => {
                state.fail(index, |_| error);
            }
            None => {
                if let Some(immediate) = stored.immediate {
                    self.arrivals.arrived(immediate);
                }
                state.part_done(index);
            }
        }
    }
}

/// Whether endpoints of two providers understand each other. What 1.17 calls `net` became `tcp` in 2.0; the `tcp` of 1.17 is no
/// provider of datagrams by itself.
fn same_wire(ours: &str, theirs: &str) -> bool {
    let native = |name: &str| matches!(name, "net" | "tcp");
    ours == theirs || (native(ours) && native(theirs))
}
