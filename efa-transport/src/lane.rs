//! A lane: one NIC with its queue of slices, and the loop that posts them and reads completions.
//!
//! One lock a lane, held by whoever drives it: a thread that waits, one that submits, or the progress thread. Nothing in here
//! takes another lane's lock; what has to move to another NIC leaves through [`Outcome`].

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fabric_safe::{Completion, CompletionBatch, Endpoint, OperationError, OperationKind};

use crate::addresses::PeerAddresses;
use crate::classify::{classify, is_flushed};
use crate::config::Config;
use crate::events::Arrivals;
use crate::gauges::NicGauges;
use crate::nic::Nic;
use crate::request::Op;
use crate::scheduler::health::Health;
use crate::scheduler::queue::{Queue, Token};
use crate::scheduler::rail::Pace;
use crate::scheduler::retry::Failure;
use crate::slice::Slice;
use crate::sync::lock;
use crate::warmup::Probe;

/// Marks the token of a receive; all other tokens are the queue's.
pub(crate) const RECEIVE: u64 = 1 << 63;
/// Completions read at a time.
const COMPLETIONS: usize = 64;
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
    pub(crate) gauges: NicGauges,
    pub(crate) pace: Pace,
    /// The endpoint has stopped working.
    pub(crate) flushed: AtomicBool,
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
    pub(crate) peers: Vec<PeerAddresses>,
    /// Address vector entries that we hold.
    pub(crate) entries: usize,
    pub(crate) max_entries: usize,
    /// Rotates over remote NICs.
    pub(crate) turn: usize,
}
impl Lane {
    pub(crate) fn new(index: usize, nic: Nic, endpoint: Endpoint, config: &Config) -> Self {
        let depth = config.depth.unwrap_or(usize::MAX).min(endpoint.transmit_depth());
        let manual = nic.info.manual_progress();
        let pace = Pace::of(nic.link_mbps);
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
            gauges: NicGauges::new(&nic.name),
            nic,
            load: AtomicU64::new(0),
            aside_until: AtomicU64::new(0),
            health: Mutex::default(),
            counters: LaneCounters::default(),
            pace,
            flushed: AtomicBool::new(false),
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
    }

    #[inline]
    pub(crate) fn let_go(&self, len: u64) {
        self.load.fetch_sub(Self::weight(len), Ordering::Relaxed);
    }

    /// Whether slices are queued or in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.load.load(Ordering::Relaxed) > 0
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
                if self.aside_until.load(Ordering::Relaxed) != 0 || request.peer.health().is_suspect() {
                    context.core.recovered(self, &request.peer, slice.remote_nic as usize);
                }
                if let Some(next) = slice.done() {
                    if outcome.started.capacity() == 0 {
                        outcome.started = context.core.spare_started();
                    }
                    outcome.started.push(next);
                }
            }
            (Work::Slice(slice), Err(error)) => self.failed(slice, error, outcome),
            (Work::Probe(probe), Ok(())) => {
                self.let_go(0);
                context.core.recovered(self, &probe.peer, probe.remote_nic);
                probe.ended(None);
            }
            (Work::Probe(probe), Err(error)) => {
                self.let_go(0);
                let failure = classify(self.nic.info.provider_name(), error);
                context.core.probe_failed(self, &probe, failure);
                probe.ended(Some(error.to_string()));
            }
        }
    }

    #[cold]
    fn failed(&self, mut slice: Slice, error: &OperationError, outcome: &mut Outcome) {
        self.let_go(slice.len);
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        slice.attempts += 1;
        let provider = self.nic.info.provider_name();
        let failure = classify(provider, error);
        if is_flushed(provider, error) {
            self.flushed.store(true, Ordering::Relaxed);
        }
        outcome.failed.push((slice, failure, error.to_string()));
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
}

impl Work {
    /// Its flow in the queue: the peer's slot.
    pub(crate) fn flow(&self) -> u32 {
        match self {
            Self::Slice(slice) => slice.request().peer.id.slot,
            Self::Probe(probe) => probe.peer.id.slot,
        }
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Slice(slice) => slice.len,
            Self::Probe(_) => 0,
        }
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
}
