//! A lane: one NIC with its queue of slices, and the loop that posts them and reads completions.
//!
//! One lock a lane, held by whoever drives it: a thread that waits, one that submits, or the progress thread. Nothing in here
//! takes another lane's lock; what has to move to another NIC leaves through [`Outcome`].

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fabric_safe::{
    Address, Completion, CompletionBatch, Endpoint, OperationError, OperationKind, PostError, PostFlags,
    WriteOptions,
};

use crate::classify::classify;
use crate::config::Config;
use crate::descriptor::NicEntry;
use crate::events::Arrivals;
use crate::nic::{Nic, PROBE_BYTES, PROBE_LANDING};
use crate::peer::Peer;
use crate::request::Op;
use crate::scheduler::health::Health;
use crate::scheduler::queue::{Queue, Token};
use crate::scheduler::rail::partner;
use crate::scheduler::retry::Failure;
use crate::slice::{NONE, Slice};
use crate::sync::{lock, nanos};
use crate::warmup::Probe;

/// Marks the token of a receive; all other tokens are the queue's.
pub(crate) const RECEIVE: u64 = 1 << 63;
/// Completions read at a time.
const COMPLETIONS: usize = 64;
/// How long a peer may take nothing at all before that counts as a failed attempt. Connections over TCP are set up within a
/// second even when the first packet is lost.
const STALL: Duration = Duration::from_millis(1500);
/// Posts between two looks at the completion queue, so that credits come back while a long queue is posted.
const POSTS: usize = 128;

/// What a NIC does.
pub(crate) enum Work {
    Slice(Slice),
    /// A small read that warms a rail up.
    Probe(Probe),
}

/// What has left the lane while it was driven, for whoever drove it to deal with when the lane's lock is open again.
#[derive(Default)]
pub(crate) struct Outcome {
    /// Slices whose attempt has ended in an error.
    pub(crate) failed: Vec<(Slice, Failure, String)>,
    /// Slices that may start now: the one with the immediate, when all others are there.
    pub(crate) started: Vec<Slice>,
    /// The completion queue itself has failed.
    pub(crate) broken: Option<String>,
}

impl Outcome {
    pub(crate) fn is_empty(&self) -> bool {
        self.failed.is_empty() && self.started.is_empty() && self.broken.is_none()
    }
}

pub(crate) struct Lane {
    pub(crate) index: usize,
    pub(crate) nic: Nic,
    pub(crate) state: Mutex<LaneState>,
    /// Bytes queued and in flight, and so much for each slice; what the choice of rails goes by.
    pub(crate) load: AtomicU64,
    /// Until when the NIC is set aside; a copy of what `health` says.
    pub(crate) aside_until: AtomicU64,
    pub(crate) health: Mutex<Health>,
    pub(crate) counters: LaneCounters,
    /// Slices queued or in flight: whether there is anything to drive. A hint.
    pub(crate) busy: AtomicU64,
    /// Whether immediates and handshakes arrive only if somebody polls.
    pub(crate) manual: bool,
}

#[derive(Debug, Default)]
pub(crate) struct LaneCounters {
    pub(crate) bytes_written: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) slices: AtomicU64,
    pub(crate) again: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) arrivals: AtomicU64,
    pub(crate) taken_over: AtomicU64,
    pub(crate) reopened: AtomicU64,
    pub(crate) polls: AtomicU64,
}

pub(crate) struct LaneState {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) queue: Queue<Work>,
    completions: CompletionBatch,
    /// By the peer's slot.
    peers: Vec<PeerAddresses>,
    /// Address vector entries that we hold.
    entries: usize,
    max_entries: usize,
    /// Rotates over remote NICs.
    turn: usize,
}

/// Addresses of one peer's NICs in our vector, inserted when they are first used.
#[derive(Default)]
struct PeerAddresses {
    /// Whose they are: the list that they came from.
    nics: Option<Arc<[NicEntry]>>,
    addresses: Vec<Option<Address>>,
    last_used: u64,
}

impl Lane {
    pub(crate) fn new(index: usize, nic: Nic, endpoint: Endpoint, config: &Config) -> Self {
        let depth = config.depth.unwrap_or(usize::MAX).min(endpoint.transmit_depth());
        let manual = nic.info.manual_progress();
        Self {
            index,
            state: Mutex::new(LaneState {
                endpoint: Arc::new(endpoint),
                queue: Queue::new(depth, config.window_bytes),
                completions: CompletionBatch::new(COMPLETIONS),
                peers: Vec::new(),
                entries: 0,
                max_entries: config.max_peers.max(1),
                turn: index,
            }),
            nic,
            load: AtomicU64::new(0),
            aside_until: AtomicU64::new(0),
            health: Mutex::default(),
            counters: LaneCounters::default(),
            busy: AtomicU64::new(0),
            manual,
        }
    }

    /// What a slice counts in the lane's load.
    #[inline]
    pub(crate) const fn weight(len: u64) -> u64 {
        len + crate::scheduler::rail::PER_SLICE
    }

    /// Counts a slice before it is pushed, so that the next choice knows of it.
    #[inline]
    pub(crate) fn expect(&self, len: u64) {
        self.load.fetch_add(Self::weight(len), Ordering::Relaxed);
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    #[inline]
    pub(crate) fn let_go(&self, len: u64) {
        self.load.fetch_sub(Self::weight(len), Ordering::Relaxed);
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    /// Whether slices are queued or in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) > 0
    }

    /// Reads completions and posts what can be posted. Returns how much happened.
    pub(crate) fn drive(&self, state: &mut LaneState, context: &Context<'_>, outcome: &mut Outcome) -> usize {
        let mut happened = self.poll(state, context, outcome);
        happened += self.post(state, context, outcome);
        happened
    }

    /// One reading of the completion queue.
    pub(crate) fn poll(&self, state: &mut LaneState, context: &Context<'_>, outcome: &mut Outcome) -> usize {
        let LaneState { endpoint, queue, completions, .. } = state;
        let completions = match self.nic.queue.poll(completions) {
            Ok(completions) => completions,
            Err(error) => {
                outcome.broken = Some(error.to_string());
                return 0;
            }
        };
        let mut happened = 0;
        for completion in completions {
            happened += 1;
            self.completed(endpoint, queue, completion, context, outcome);
        }
        happened
    }

    fn completed(
        &self,
        endpoint: &Endpoint,
        queue: &mut Queue<Work>,
        completion: &Completion,
        context: &Context<'_>,
        outcome: &mut Outcome,
    ) {
        if completion.kind() == OperationKind::RemoteWrite
            && let Some(immediate) = completion.immediate()
        {
            self.counters.arrivals.fetch_add(1, Ordering::Relaxed);
            context.arrivals.arrived(immediate as u32);
        }
        let Some(token) = completion.token() else { return };
        if token & RECEIVE != 0 {
            // Aborted receives belong to an endpoint that is closed; its successor has its own.
            if completion.result().is_ok() {
                self.nic.post_receive(endpoint, token & !RECEIVE);
            }
            return;
        }
        let Some(work) = queue.end(Token::from_raw(token as u32)) else { return };
        match (work, completion.result()) {
            (Work::Slice(slice), Ok(())) => {
                let request = slice.request();
                let (lane, peer) = match request.op {
                    Op::Read => (&self.counters.bytes_read, &request.peer.counters.bytes_read),
                    Op::Write => (&self.counters.bytes_written, &request.peer.counters.bytes_written),
                };
                lane.fetch_add(slice.len, Ordering::Relaxed);
                peer.fetch_add(slice.len, Ordering::Relaxed);
                request.peer.counters.slices.fetch_add(1, Ordering::Relaxed);
                request.peer.last_success.store(context.now, Ordering::Relaxed);
                self.let_go(slice.len);
                context.trace(self.index, &slice);
                if self.aside_until.load(Ordering::Relaxed) != 0 || slice.attempts > 0 {
                    context.recovered(self, &slice);
                }
                if let Some(next) = slice.done() {
                    outcome.started.push(next);
                }
            }
            (Work::Slice(slice), Err(error)) => self.failed(slice, error, outcome),
            (Work::Probe(probe), Ok(())) => {
                self.let_go(0);
                probe.ended(None);
            }
            (Work::Probe(probe), Err(error)) => {
                self.let_go(0);
                probe.ended(Some(error.to_string()));
            }
        }
    }

    #[cold]
    fn failed(&self, mut slice: Slice, error: &OperationError, outcome: &mut Outcome) {
        self.let_go(slice.len);
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        slice.attempts += 1;
        let failure = classify(self.nic.info.provider_name(), error);
        outcome.failed.push((slice, failure, error.to_string()));
    }

    /// Posts slices in order while there are credits.
    pub(crate) fn post(&self, state: &mut LaneState, context: &Context<'_>, outcome: &mut Outcome) -> usize {
        if state.queue.queued() == 0 {
            return 0;
        }
        let endpoint = Arc::clone(&state.endpoint);
        let Ok(mut transmit) = endpoint.transmit() else { return 0 };
        let mut posted = 0;
        let mut full = 0;
        while posted < POSTS {
            let Some(token) = state.queue.next(context.now) else { break };
            let result = match self.prepare(state, token, context) {
                Ready::Go(remote_nic, remote) => {
                    let more = context.doorbell_batching && state.queue.queued() > 0 && posted + 1 < POSTS;
                    self.hand_over(state, &mut transmit, token, (remote_nic, remote), more)
                }
                Ready::Never => {
                    // Its request has ended: a slice that nobody waits for.
                    if let Some(work) = state.queue.end(token) {
                        self.let_go(work.len());
                    }
                    continue;
                }
                Ready::Fail(failure, why) => Err(Refused::Fail(failure, why)),
            };
            match result {
                Ok(()) => {
                    state.queue.posted(token);
                    posted += 1;
                    full = 0;
                }
                Err(Refused::Again) => {
                    self.counters.again.fetch_add(1, Ordering::Relaxed);
                    if self.is_stalled(&mut state.queue, token, context)
                        && let Some(Work::Slice(mut slice)) = state.queue.end(token)
                    {
                        self.let_go(slice.len);
                        slice.attempts += 1;
                        let why = format!("it has taken nothing for {STALL:?}");
                        outcome.failed.push((slice, Failure::Peer, why));
                        continue;
                    }
                    state.queue.again(token, context.now);
                    full += 1;
                    // Two peers in a row that cannot take more: it is the card's queue that is full.
                    if full >= 2 && state.queue.in_flight() > 0 {
                        break;
                    }
                }
                Err(Refused::Closed) => {
                    state.queue.again(token, context.now);
                    break;
                }
                Err(Refused::Fail(failure, why)) => match state.queue.end(token) {
                    Some(Work::Slice(mut slice)) => {
                        self.let_go(slice.len);
                        self.counters.errors.fetch_add(1, Ordering::Relaxed);
                        slice.attempts += 1;
                        outcome.failed.push((slice, failure, why));
                    }
                    Some(Work::Probe(probe)) => {
                        self.let_go(0);
                        probe.ended(Some(why));
                    }
                    None => {}
                },
            }
        }
        self.counters.slices.fetch_add(posted as u64, Ordering::Relaxed);
        posted
    }

    /// Whether the provider has had no room for this slice for a long time although nothing else is in flight: with providers over
    /// TCP the only sign of a peer that is gone.
    #[cold]
    fn is_stalled(&self, queue: &mut Queue<Work>, token: Token, context: &Context<'_>) -> bool {
        // The slice itself has a credit.
        let alone = queue.in_flight() == 1;
        let Some(Work::Slice(slice)) = queue.get_mut(token) else { return false };
        if slice.blocked_since == 0 || !alone {
            slice.blocked_since = context.now.max(1);
        }
        let last = slice.blocked_since.max(slice.request().peer.last_success.load(Ordering::Relaxed));
        context.now.saturating_sub(last) > nanos(STALL)
    }

    /// The remote NIC and its address for the slice behind `token`.
    fn prepare(&self, state: &mut LaneState, token: Token, context: &Context<'_>) -> Ready {
        let LaneState { queue, peers, entries, turn, .. } = state;
        let (peer, nics, remote_nic): (&Arc<Peer>, &Arc<[NicEntry]>, usize) = match queue.get_mut(token) {
            None => return Ready::Never,
            Some(Work::Probe(probe)) => {
                if probe.is_over() {
                    return Ready::Never;
                }
                (&probe.peer, &probe.nics, probe.remote_nic)
            }
            Some(Work::Slice(slice)) => {
                if slice.has_ended() {
                    return Ready::Never;
                }
                let remotes = slice.remotes();
                // Not the one that has just failed, if there is another.
                let avoid =
                    if slice.attempts > 0 && slice.remote_nic != NONE { 1 << slice.remote_nic } else { 0 };
                let eligible = if remotes & !avoid != 0 { remotes & !avoid } else { remotes };
                *turn = turn.wrapping_add(1);
                let count = slice.request().table.nics.len();
                let Some(remote) = partner(self.index, context.lanes, count, eligible, *turn) else {
                    return Ready::Fail(Failure::Operation, "the peer has the memory on no NIC".into());
                };
                (slice.remote_nic, slice.local_nic) = (remote as u8, self.index as u8);
                slice.since = context.now;
                let request = slice.request();
                (&request.peer, &request.table.nics, remote)
            }
        };
        let slot = peer.id.slot as usize;
        if peers.len() <= slot {
            peers.resize_with(slot + 1, PeerAddresses::default);
        }
        let known = &mut peers[slot];
        if !known.nics.as_ref().is_some_and(|known| Arc::ptr_eq(known, nics)) {
            *entries -= known.addresses.iter().flatten().count();
            known.addresses.clear();
            known.addresses.resize(nics.len(), None);
            known.nics = Some(Arc::clone(nics));
        }
        known.last_used = context.now;
        let Some(entry) = known.addresses.get_mut(remote_nic) else { return Ready::Never };
        if entry.is_none() {
            match self.nic.insert(&nics[remote_nic].address) {
                Ok(address) => {
                    *entry = Some(address);
                    *entries += 1;
                }
                Err(error) => {
                    let why = format!("the address of NIC {} cannot be used: {error}", nics[remote_nic].name);
                    return Ready::Fail(Failure::Rail, why);
                }
            }
            if *entries > state.max_entries {
                evict(state, slot);
            }
        }
        Ready::Go(slot, remote_nic)
    }

    /// Gives the operation to the provider.
    #[inline]
    fn hand_over(
        &self,
        state: &LaneState,
        transmit: &mut fabric_safe::Transmit<'_>,
        token: Token,
        (slot, remote_nic): (usize, usize),
        more: bool,
    ) -> Result<(), Refused> {
        let address = state.peers.get(slot).and_then(|peer| peer.addresses.get(remote_nic)?.as_ref());
        let Some(address) = address else { return Err(Refused::Again) };
        let raw = u64::from(token.raw());
        let result = match state.queue.get(token) {
            None => return Err(Refused::Again),
            Some(Work::Probe(probe)) => {
                let landing = PROBE_LANDING..PROBE_LANDING + PROBE_BYTES;
                let target = self.nic.probe.slice(landing).map_err(|usage| Refused::operation(&usage))?;
                transmit.read(address, target, probe.remote(), raw)
            }
            Some(Work::Slice(slice)) => {
                let request = slice.request();
                let missing =
                    |what: &str| Refused::Fail(Failure::Operation, format!("no key of the {what} memory"));
                let region =
                    slice.region.mr(slice.local_chunk, self.index).ok_or_else(|| missing("local"))?;
                let start = (slice.local - region.address() as u64) as usize;
                let local = region
                    .slice(start..start + slice.len as usize)
                    .map_err(|usage| Refused::operation(&usage))?;
                let remote = request
                    .table
                    .remote(slice.remote_chunk, remote_nic, slice.remote)
                    .ok_or_else(|| missing("remote"))?;
                let immediate = if slice.gate { request.immediate } else { None };
                match request.op {
                    Op::Write if immediate.is_some() || more => {
                        let flags = if more { PostFlags::MORE } else { PostFlags::empty() };
                        let options = WriteOptions { immediate: immediate.map(u64::from), flags };
                        transmit.write_with(address, &[local], remote, options, raw)
                    }
                    Op::Write => transmit.write(address, local, remote, raw),
                    Op::Read if more => transmit.read_with(address, &[local], remote, PostFlags::MORE, raw),
                    Op::Read => transmit.read(address, local, remote, raw),
                }
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(PostError::Again) => Err(Refused::Again),
            Err(PostError::Closed) => Err(Refused::Closed),
            Err(PostError::Failed(error)) => {
                let failure = match &*error {
                    fabric_safe::Error::Usage(_) => Failure::Operation,
                    _ => Failure::Rail,
                };
                Err(Refused::Fail(failure, error.to_string()))
            }
            Err(other) => Err(Refused::Fail(Failure::Operation, other.to_string())),
        }
    }

    /// Takes away waiting slices whose request has ended, and gives them back to be dropped outside the lock.
    pub(crate) fn sweep(&self, dropped: &mut Vec<Work>) {
        lock(&self.state).queue.take_waiting(
            u64::MAX,
            |work| match work {
                Work::Slice(slice) => slice.has_ended(),
                Work::Probe(probe) => probe.is_over(),
            },
            |_, _, work| dropped.push(work),
        );
        for work in dropped.iter() {
            self.let_go(work.len());
        }
    }

    /// Closes the endpoint, which ends everything in flight, and opens another. For operations that the provider never ends.
    pub(crate) fn reopen(&self, state: &mut LaneState) -> Result<(), crate::Error> {
        state.endpoint.close().map_err(|error| {
            crate::Error::fabric(format!("closing the endpoint of NIC {}", self.nic.name), error)
        })?;
        state.endpoint = Arc::new(self.nic.open_endpoint()?);
        self.counters.reopened.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Inserts all addresses of a peer now, for cards that must know who writes to them.
    pub(crate) fn introduce(&self, peer: &Peer, nics: &Arc<[NicEntry]>, now: u64) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        let slot = peer.id.slot as usize;
        if state.peers.len() <= slot {
            state.peers.resize_with(slot + 1, PeerAddresses::default);
        }
        let known = &mut state.peers[slot];
        if !known.nics.as_ref().is_some_and(|known| Arc::ptr_eq(known, nics)) {
            state.entries -= known.addresses.iter().flatten().count();
            known.addresses.clear();
            known.addresses.resize(nics.len(), None);
            known.nics = Some(Arc::clone(nics));
        }
        known.last_used = now;
        for (entry, nic) in known.addresses.iter_mut().zip(nics.iter()) {
            if entry.is_none()
                && let Ok(address) = self.nic.insert(&nic.address)
            {
                *entry = Some(address);
                state.entries += 1;
            }
        }
    }

    /// Address vector entries in use.
    pub(crate) fn addresses(&self) -> usize {
        lock(&self.state).entries
    }

    /// Forgets the addresses of a peer that has been removed.
    pub(crate) fn forget(&self, slot: u32) {
        let mut state = lock(&self.state);
        let state = &mut *state;
        if let Some(known) = state.peers.get_mut(slot as usize) {
            state.entries -= known.addresses.iter().flatten().count();
            *known = PeerAddresses::default();
        }
    }
}

impl Work {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Slice(slice) => slice.len,
            Self::Probe(_) => 0,
        }
    }
}

/// Lets go of the addresses of the peer that has been idle longest. fabric-safe removes an entry when the last operation to it
/// has ended, so operations in flight are safe.
#[cold]
fn evict(state: &mut LaneState, keep: usize) {
    let in_use: Vec<usize> = state
        .queue
        .flying()
        .map(|(_, work)| match work {
            Work::Slice(slice) => slice.request().peer.id.slot as usize,
            Work::Probe(probe) => probe.peer.id.slot as usize,
        })
        .collect();
    let oldest = state
        .peers
        .iter()
        .enumerate()
        .filter(|(slot, peer)| *slot != keep && peer.nics.is_some() && !in_use.contains(slot))
        .min_by_key(|(_, peer)| peer.last_used)
        .map(|(slot, _)| slot);
    if let Some(slot) = oldest {
        state.entries -= state.peers[slot].addresses.iter().flatten().count();
        state.peers[slot] = PeerAddresses::default();
    }
}

/// Whether a slice can be posted now.
enum Ready {
    /// To this slot's peer, over this remote NIC.
    Go(usize, usize),
    /// It is not wanted any more.
    Never,
    Fail(Failure, String),
}

/// Why it was not posted.
enum Refused {
    Again,
    Closed,
    Fail(Failure, String),
}

impl Refused {
    fn operation(usage: &fabric_safe::Usage) -> Self {
        Self::Fail(Failure::Operation, usage.to_string())
    }
}

/// What driving a lane needs to know from outside.
pub(crate) struct Context<'a> {
    pub(crate) now: u64,
    pub(crate) lanes: usize,
    pub(crate) doorbell_batching: bool,
    pub(crate) arrivals: &'a Arrivals,
    pub(crate) core: &'a crate::core::Core,
}

impl Context<'_> {
    #[inline]
    fn trace(&self, lane: usize, slice: &Slice) {
        if let Some(trace) = &self.core.trace {
            trace.ended(lane, slice, self.core.clock.now());
        }
    }

    #[cold]
    fn recovered(&self, lane: &Lane, slice: &Slice) {
        self.core.recovered(lane, &slice.request().peer);
    }
}
