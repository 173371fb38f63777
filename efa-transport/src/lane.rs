//! A lane: one NIC with its queue of slices, and the loop that posts them and reads completions.
//!
//! One lock a lane, held by whoever drives it: a thread that waits, one that submits, or the progress thread. Nothing in here
//! takes another lane's lock; what has to move to another NIC leaves through [`Outcome`].

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fabric_safe::{CompletionBatch, Endpoint, OperationError, OperationKind};
use parking_lot::Mutex;

use crate::addresses::{Addresses, Deserted};
use crate::classify::{classify, is_flushed};
use crate::config::Config;
use crate::core::Core;
use crate::events::Arrivals;
use crate::gauges::NicGauges;
use crate::lot::{Cargo, Lot, Lots, Stray, Taken};
use crate::nic::Nic;
use crate::post::{Owed, Path};
use crate::reopen::Reopening;
use crate::scheduler::health::Health;
use crate::scheduler::queue::{Queue, Token};
use crate::scheduler::rail::Pace;
use crate::scheduler::retry::Failure;
use crate::slice::{Piece, Slice};
use crate::tally::Tally;
use crate::warmup::Probe;

/// Marks the token of a receive; all other tokens are the queue's.
pub(crate) const RECEIVE: u64 = 1 << 63;
/// Marks the token of an operation that only rings the bell.
pub(crate) const BELL: u64 = 1 << 62;
/// Completions read at a time.
const COMPLETIONS: usize = 64;

/// What has left the lane while it was driven, for whoever drove it to deal with when the lane's lock is open again. Nothing, most
/// of the time.
#[derive(Default)]
pub(crate) struct Outcome(Option<Box<Left>>);

/// See [`Outcome`].
#[derive(Default)]
pub(crate) struct Left {
    /// Slices whose attempt has ended in an error.
    pub(crate) failed: Vec<(Stray, Failure, String)>,
    /// Slices that may start now: the one with the immediate, when all others are there.
    pub(crate) started: Vec<Stray>,
    /// The completion queue itself has failed.
    pub(crate) broken: Option<String>,
}

impl Outcome {
    /// To add to.
    #[cold]
    pub(crate) fn left(&mut self, core: &Core) -> &mut Left {
        self.0.get_or_insert_with(|| core.spare_left())
    }

    /// All of it, if there is any.
    #[inline]
    pub(crate) const fn take(&mut self) -> Option<Box<Left>> {
        self.0.take()
    }
}

/// A lane's place among those of its fabric.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seat {
    pub(crate) seat: usize,
    pub(crate) of: usize,
}

pub(crate) struct Lane {
    /// Its number among all of the transport's.
    pub(crate) index: usize,
    pub(crate) seat: Seat,
    pub(crate) nic: Nic,
    pub(crate) state: Mutex<LaneState>,
    /// Bytes queued and in flight, and so much for each slice; what the choice of rails goes by. Changed with the lane's lock only.
    pub(crate) load: AtomicU64,
    /// Until when the NIC is set aside; a copy of what `health` says.
    pub(crate) aside_until: AtomicU64,
    pub(crate) health: Mutex<Health>,
    pub(crate) counters: LaneCounters,
    pub(crate) gauges: NicGauges,
    pub(crate) pace: Pace,
    /// The endpoint has stopped working.
    pub(crate) flushed: AtomicBool,
    pub(crate) reopening: Reopening,
    /// Whether immediates and handshakes arrive only if somebody polls.
    pub(crate) manual: bool,
}

#[derive(Debug, Default)]
pub(crate) struct LaneCounters {
    /// These four are changed with the lane's lock only, as is its load: see [`bump`].
    pub(crate) bytes_written: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    pub(crate) slices: AtomicU64,
    pub(crate) polls: AtomicU64,
    pub(crate) again: AtomicU64,
    pub(crate) errors: AtomicU64,
    pub(crate) arrivals: AtomicU64,
    pub(crate) taken_over: AtomicU64,
    pub(crate) reopened: AtomicU64,
    /// Slices that went the [short way](crate::alone).
    #[cfg(test)]
    pub(crate) alone: AtomicU64,
}

/// Adds to one of those counters that nobody changes without the lane's lock: cheaper than an addition that is atomic.
#[inline]
pub(crate) fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

pub(crate) struct LaneState {
    pub(crate) endpoint: Arc<Endpoint>,
    pub(crate) queue: Queue<Slice>,
    pub(crate) lots: Lots,
    completions: CompletionBatch,
    /// Slices that are being taken over; empty otherwise.
    pub(crate) taken: Vec<Slice>,
    pub(crate) addresses: Addresses,
    /// Where operations may be under way to although nobody is there any more.
    pub(crate) deserted: Vec<Deserted>,
    /// How the latest lot went out.
    pub(crate) path: Path,
    /// Rotates over remote NICs.
    pub(crate) turn: usize,
    /// An operation that the card may not have been told of.
    pub(crate) owed: Option<Owed>,
    /// Operations under way that only ring the bell: each takes a place of the card's queue that [`Queue`] does not know of.
    pub(crate) bells: usize,
}

impl LaneState {
    /// Queues the slices of a lot.
    #[inline]
    pub(crate) fn admit(&mut self, mut lot: Lot, pieces: &[Piece]) {
        lot.set_slices(pieces.len() as u32);
        let flow = lot.peer().id.slot;
        let lot = self.lots.insert(Cargo::Lot(lot));
        self.queue.push_all(flow, pieces.iter().map(|&piece| (piece.len(), Slice::new(piece, lot))));
    }

    /// Queues a probe.
    pub(crate) fn admit_probe(&mut self, probe: Probe) {
        let flow = probe.peer.id.slot;
        let lot = self.lots.insert(Cargo::Probe(Box::new(probe)));
        self.queue.push(flow, 0, Slice::of_probe(lot));
    }
}

impl Lane {
    pub(crate) fn new(index: usize, seat: Seat, nic: Nic, endpoint: Endpoint, config: &Config) -> Self {
        let depth = config.depth.unwrap_or(usize::MAX).min(endpoint.transmit_depth());
        let manual = nic.info.manual_progress();
        let pace = Pace::of(nic.link_mbps);
        Self {
            index,
            seat,
            state: Mutex::new(LaneState {
                endpoint: Arc::new(endpoint),
                queue: Queue::new(depth, config.window_bytes),
                lots: Lots::default(),
                completions: CompletionBatch::new(COMPLETIONS),
                taken: Vec::new(),
                addresses: Addresses::new(config.max_peers.max(1)),
                deserted: Vec::new(),
                path: Path::NONE,
                turn: seat.seat,
                owed: None,
                bells: 0,
            }),
            gauges: NicGauges::new(&nic.name),
            nic,
            load: AtomicU64::new(0),
            aside_until: AtomicU64::new(0),
            health: Mutex::default(),
            counters: LaneCounters::default(),
            pace,
            flushed: AtomicBool::new(false),
            reopening: Reopening::default(),
            manual,
        }
    }

    /// What a slice counts in the lane's load.
    #[inline]
    pub(crate) const fn weight(len: u64) -> u64 {
        len + crate::scheduler::rail::PER_SLICE
    }

    /// Counts slices of this [weight](Self::weight), with the lane's lock, when they are pushed.
    #[inline]
    pub(crate) fn expect(&self, weight: u64) {
        bump(&self.load, weight);
    }

    /// Slices of this weight have left, whichever way. With the lane's lock.
    #[inline]
    pub(crate) fn unload(&self, weight: u64) {
        bump(&self.load, weight.wrapping_neg());
    }

    #[inline]
    pub(crate) fn let_go(&self, len: u64) {
        self.unload(Self::weight(len));
    }

    /// Whether it is not set aside.
    #[inline]
    pub(crate) fn is_usable(&self, now: u64) -> bool {
        self.aside_until.load(Ordering::Relaxed) <= now
    }

    /// Whether slices are queued or in flight.
    pub(crate) fn is_busy(&self) -> bool {
        self.load.load(Ordering::Relaxed) > 0
    }

    /// Reads completions and posts what can be posted. Returns how much happened.
    pub(crate) fn drive(&self, state: &mut LaneState, context: &Context<'_>, outcome: &mut Outcome) -> usize {
        if self.reopening.is_closing() {
            return 0;
        }
        if state.owed.is_some() {
            self.keep_promise(state);
        }
        let mut happened = self.poll(state, context, outcome);
        happened += self.post(state, context, outcome);
        happened
    }

    /// One reading of the completion queue.
    pub(crate) fn poll(&self, state: &mut LaneState, context: &Context<'_>, outcome: &mut Outcome) -> usize {
        let LaneState { endpoint, queue, lots, completions, bells, .. } = state;
        let completions = match self.nic.queue.poll(completions) {
            Ok(completions) => completions,
            Err(error) => {
                outcome.left(context.core).broken = Some(error.to_string());
                return 0;
            }
        };
        if completions.is_empty() {
            return 0;
        }
        let mut tally = Tally::new(self, context);
        for completion in completions {
            if completion.kind() == OperationKind::RemoteWrite
                && let Some(immediate) = completion.immediate()
            {
                self.counters.arrivals.fetch_add(1, Ordering::Relaxed);
                context.arrivals.arrived(immediate as u32);
            }
            let Some(token) = completion.token() else { continue };
            if token & BELL != 0 {
                // Told is told: whatever has become of it.
                *bells = bells.saturating_sub(1);
                continue;
            }
            if token & RECEIVE != 0 {
                // Aborted receives belong to an endpoint that is closed; its successor has its own.
                if completion.result().is_ok() {
                    self.nic.post_receive(endpoint, token & !RECEIVE);
                }
                continue;
            }
            let token = Token::from_raw(token as u32);
            // Read where it lies: moved out of the queue, it costs more.
            let Some(&slice) = queue.get(token) else { continue };
            queue.end(token);
            match completion.result() {
                Ok(()) => tally.count(slice, lots, outcome),
                Err(error) => {
                    tally.close(lots, outcome);
                    self.failed(slice, lots, error, context, outcome);
                }
            }
        }
        tally.close(lots, outcome);
        completions.len()
    }

    #[cold]
    fn failed(
        &self,
        slice: Slice,
        lots: &mut Lots,
        error: &OperationError,
        context: &Context<'_>,
        outcome: &mut Outcome,
    ) {
        self.let_go(slice.len());
        let provider = self.nic.info.provider_name();
        let failure = classify(provider, error);
        match lots.take(&slice) {
            Some(Taken::Stray(mut stray)) => {
                self.counters.errors.fetch_add(1, Ordering::Relaxed);
                stray.attempted(self.index);
                stray.lot.sent = true;
                if is_flushed(provider, error) {
                    self.flushed.store(true, Ordering::Relaxed);
                }
                outcome.left(context.core).failed.push((stray, failure, error.to_string()));
            }
            Some(Taken::Probe(probe)) => {
                context.core.probe_failed(self, &probe, failure);
                probe.ended(Some(error.to_string()));
            }
            None => {}
        }
    }

    /// Takes away waiting slices for which `which` holds, and gives them back to be dropped outside the lock.
    pub(crate) fn take_waiting(&self, which: impl Fn(&Lots, &Slice) -> bool) -> Vec<Taken> {
        let mut state = self.state.lock();
        let LaneState { queue, lots, .. } = &mut *state;
        let mut slices = Vec::new();
        queue.take_waiting(u64::MAX, |slice| which(lots, slice), |_, _, slice| slices.push(slice));
        let taken = slices.into_iter().filter_map(|slice| {
            self.let_go(slice.len());
            lots.take(&slice)
        });
        taken.collect()
    }
}

/// What driving a lane needs to know from outside.
pub(crate) struct Context<'a> {
    /// The time, once somebody has asked for it.
    now: Cell<Option<u64>>,
    pub(crate) doorbell_batching: bool,
    pub(crate) arrivals: &'a Arrivals,
    pub(crate) core: &'a Core,
}

impl<'a> Context<'a> {
    pub(crate) fn new(core: &'a Core, now: Option<u64>) -> Self {
        Self {
            now: Cell::new(now),
            doorbell_batching: core.config.doorbell_batching,
            arrivals: &core.arrivals,
            core,
        }
    }

    /// The time when this was first asked. Most readings of a completion queue find nothing and never ask.
    #[inline]
    pub(crate) fn now(&self) -> u64 {
        self.now.get().unwrap_or_else(|| {
            let now = self.core.clock.now();
            self.now.set(Some(now));
            now
        })
    }
}
