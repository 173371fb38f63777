//! The card's engine: takes requests from the send queues, carries them out in an order of its own, and reports their ends.
//!
//! Posting only puts a request in a list. The engine runs on the card's thread, or on a thread of the program that polls a completion
//! queue and finds it empty (it would only burn the core otherwise): see [`thread`](super::thread). Requests that are in flight are
//! shuffled by the seed; they are carried out each exactly once; nothing orders one before another, as on SRD.

use super::completion::Completion;
use super::copy::Ranges;
use super::device::Card;
use super::faults::Verdict;
use super::message::Unanswered;
use super::peer::Peer;
use super::process::lock;
use super::queue_pair::QueuePair;
use super::request::{Ending, Request};
use super::{pace, trace};
use crate::settings::Settings;
use crate::shared;
use crate::status::Status;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::Instant;

pub(crate) use super::thread::start as start_thread;

/// A request that waits for its time.
struct Delayed {
    due: u64,
    order: u64,
    request: Request,
}

impl PartialEq for Delayed {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}
impl Eq for Delayed {}
impl PartialOrd for Delayed {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Delayed {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        // The heap gives the greatest: the earliest due.
        (other.due, other.order).cmp(&(self.due, self.order))
    }
}

/// One card's engine.
pub(crate) struct Engine {
    pub(super) queue: VecDeque<Request>,
    pub(super) window: Vec<Request>,
    window_size: usize,
    delayed: BinaryHeap<Delayed>,
    /// Requests that a rule keeps, with the rule.
    held: Vec<(Arc<str>, Request)>,
    pub(super) unanswered: Vec<Option<Unanswered>>,
    pub(super) free_tokens: Vec<u32>,
    pub(super) tokens: u32,
    pub(super) generations: u32,
    order: u64,
    random: u64,
    hazards: u64,
    /// When the link has sent what it was given so far (with a bandwidth limit).
    link_free: u64,
    /// Nanoseconds that a byte takes; 0 without a bandwidth limit.
    ns_per_byte: f64,
    latency_ns: u64,
    last_peer: Option<(u64, Arc<Peer>)>,
    pub(super) last_life_check: Option<Instant>,
    pub(super) local: Ranges,
    pub(super) far: Ranges,
    pub(super) batch: Vec<Request>,
    incoming: Vec<Request>,
    pub(super) answers: Vec<(u64, u32)>,
}

impl Engine {
    pub(crate) fn new(settings: &Settings, card: usize) -> Engine {
        let gbps = Settings::per_card(&settings.gbps, card);
        Engine {
            queue: VecDeque::new(),
            window: Vec::new(),
            window_size: settings.window,
            delayed: BinaryHeap::new(),
            held: Vec::new(),
            unanswered: Vec::new(),
            free_tokens: Vec::new(),
            tokens: 0,
            generations: 0,
            order: 0,
            random: mix(settings.seed ^ mix(card as u64 + 1)) | 1 << 63,
            hazards: 0,
            link_free: 0,
            ns_per_byte: if gbps > 0.0 { 8.0 / gbps } else { 0.0 },
            latency_ns: (Settings::per_card(&settings.latency_us, card) * 1e3) as u64,
            last_peer: None,
            last_life_check: None,
            local: Ranges::default(),
            far: Ranges::default(),
            batch: Vec::new(),
            incoming: Vec::new(),
            answers: Vec::new(),
        }
    }

    /// When the next waiting request falls due.
    fn next_due(&self) -> u64 {
        self.delayed.peek().map_or(pace::NEVER, |delayed| delayed.due)
    }

    pub(super) fn random(&mut self, below: usize) -> usize {
        // xorshift64*: small, seeded, good enough to shuffle.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    }
}

/// Spreads a number over all bits (the finisher of splitmix64).
fn mix(number: u64) -> u64 {
    let mut word = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ word >> 31
}

/// When the card's next request that waits for its time falls due.
pub(crate) fn next_due(card: &Card) -> u64 {
    lock(&card.engine).next_due()
}

/// Whether something is under way that does not wait for time or for a rule to go.
pub(crate) fn is_busy(card: &Card) -> bool {
    if card.ready.load(Ordering::SeqCst) > 0 {
        return true;
    }
    let engine = lock(&card.engine);
    engine.unanswered.len() != engine.free_tokens.len() || engine.next_due() <= pace::now(&card.process)
}

/// Hands requests to the card.
pub(crate) fn submit(card: &Card, requests: &mut Vec<Request>) {
    let count = requests.len();
    let Some(first) = requests.first() else { return };
    pace::act(&card.process);
    card.counters().posted.add(count as u64);
    card.entry(&first.qp).posted.fetch_add(count as u64, Ordering::Relaxed);
    lock(&card.submitted).append(requests);
    card.ready.fetch_add(count, Ordering::SeqCst);
    card.process.wake_thread();
}

/// Works on what is ready, at most about `budget` requests or pieces; true when something was done. Returns at once when another thread
/// is at it.
pub(crate) fn run(card: &Arc<Card>, budget: usize) -> bool {
    let faults = &card.process.faults;
    let Ok(mut guard) = card.engine.try_lock() else { return false };
    guard.take_submitted(card);
    if !faults.is_current(&card.process) {
        // A request that was posted after a rule had been set must meet it. Taking the rules in needs the engine.
        drop(guard);
        faults.refresh(&card.process);
        return true;
    }
    let engine = &mut *guard;
    let mut worked = engine.take_answers(card);
    engine.release_due(card);
    engine.check_lives(card);
    for _ in 0..budget {
        engine.fill_window();
        if engine.window.is_empty() {
            break;
        }
        let index = engine.random(engine.window.len());
        let request = engine.window.swap_remove(index);
        if !engine.step(card, request) {
            break;
        }
        worked = true;
    }
    worked
}

/// Drops everything that belongs to a queue pair; waits for what is being carried out just now.
pub(crate) fn forget(card: &Card, qp: &Arc<QueuePair>) {
    let mut engine = lock(&card.engine);
    let theirs = |request: &Request| Arc::ptr_eq(&request.qp, qp);
    let mut gone = 0;
    {
        let mut submitted = lock(&card.submitted);
        let before = submitted.len();
        submitted.retain(|request| !theirs(request));
        gone += before - submitted.len();
    }
    let before = engine.queue.len() + engine.window.len();
    engine.queue.retain(|request| !theirs(request));
    engine.window.retain(|request| !theirs(request));
    gone += before - engine.queue.len() - engine.window.len();
    card.ready.fetch_sub(gone, Ordering::SeqCst);

    let before = engine.delayed.len() + engine.held.len();
    let delayed = std::mem::take(&mut engine.delayed);
    engine.delayed = delayed.into_iter().filter(|delayed| !theirs(&delayed.request)).collect();
    engine.held.retain(|(_, request)| !theirs(request));
    let mut waited = before - engine.delayed.len() - engine.held.len();
    for token in 0..engine.unanswered.len() {
        if engine.unanswered[token].as_ref().is_some_and(|unanswered| theirs(&unanswered.request)) {
            engine.unanswered[token] = None;
            engine.free_tokens.push(token as u32);
            waited += 1;
        }
    }
    card.waiting.fetch_sub(waited, Ordering::SeqCst);
}

/// Ends everything of a queue pair as flushed: it has gone into the error state.
pub(crate) fn flush(card: &Arc<Card>, qp: &Arc<QueuePair>) {
    // The state has been set, and each request looks at it before anything else; those that wait are made ready.
    let mut engine = lock(&card.engine);
    let engine = &mut *engine;
    engine.take_submitted(card);
    let mut freed: Vec<Request> = Vec::new();
    let (theirs, others): (Vec<_>, Vec<_>) = std::mem::take(&mut engine.delayed)
        .into_iter()
        .partition(|delayed| Arc::ptr_eq(&delayed.request.qp, qp));
    engine.delayed = others.into();
    freed.extend(theirs.into_iter().map(|delayed| delayed.request));
    let held = std::mem::take(&mut engine.held);
    let (theirs, others): (Vec<_>, Vec<_>) =
        held.into_iter().partition(|(_, request)| Arc::ptr_eq(&request.qp, qp));
    engine.held = others;
    freed.extend(theirs.into_iter().map(|(_, request)| request));
    for token in 0..engine.unanswered.len() {
        if engine.unanswered[token].as_ref().is_some_and(|unanswered| Arc::ptr_eq(&unanswered.request.qp, qp))
        {
            freed.extend(engine.unanswered[token].take().map(|unanswered| unanswered.request));
            engine.free_tokens.push(token as u32);
        }
    }
    card.waiting.fetch_sub(freed.len(), Ordering::SeqCst);
    for request in freed {
        engine.end(card, request, Status::Flushed, false);
    }
    let ready: Vec<Request> = engine.queue.drain(..).chain(engine.window.drain(..)).collect();
    for request in ready {
        if Arc::ptr_eq(&request.qp, qp) {
            engine.end(card, request, Status::Flushed, true);
        } else {
            engine.queue.push_back(request);
        }
    }
}

/// Lets go of what rules held that are gone.
pub(crate) fn release_held(card: &Card, still_there: impl Fn(&str) -> bool) {
    let mut engine = lock(&card.engine);
    let (kept, freed): (Vec<_>, Vec<_>) =
        std::mem::take(&mut engine.held).into_iter().partition(|(rule, _)| still_there(rule));
    engine.held = kept;
    card.waiting.fetch_sub(freed.len(), Ordering::SeqCst);
    card.ready.fetch_add(freed.len(), Ordering::SeqCst);
    engine.queue.extend(freed.into_iter().map(|(_, request)| request));
}

impl Engine {
    /// Tells everybody whose memory is about to be touched (ours always is).
    pub(super) fn raise_hazard(&mut self, card: &Card, slot: usize) {
        self.hazards += 1;
        card.process.me().hazards[card.index].store(shared::hazard(self.hazards, slot), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    pub(super) fn fill_window(&mut self) {
        while self.window.len() < self.window_size
            && let Some(request) = self.queue.pop_front()
        {
            self.window.push(request);
        }
    }

    fn take_submitted(&mut self, card: &Card) {
        if card.ready.load(Ordering::SeqCst) == 0 {
            return;
        }
        std::mem::swap(&mut *lock(&card.submitted), &mut self.incoming);
        let timed = self.ns_per_byte > 0.0 || self.latency_ns > 0;
        let now = if timed || trace::enabled(&card.process) { pace::now(&card.process) } else { 0 };
        let mut incoming = std::mem::take(&mut self.incoming);
        for mut request in incoming.drain(..) {
            request.trace = now;
            if timed {
                let due = self.time_on_the_wire(now, request.length);
                self.delay(card, request, due);
            } else {
                self.queue.push_back(request);
            }
        }
        self.incoming = incoming;
    }

    /// When a request of that length, posted now, will have arrived.
    fn time_on_the_wire(&mut self, now: u64, length: u32) -> u64 {
        let mut sent = now;
        if self.ns_per_byte > 0.0 {
            sent = self.link_free.max(now).saturating_add((f64::from(length) * self.ns_per_byte) as u64);
            self.link_free = sent;
        }
        sent.saturating_add(self.latency_ns)
    }

    /// Puts a ready request off.
    pub(super) fn delay(&mut self, card: &Card, request: Request, due: u64) {
        self.order += 1;
        self.delayed.push(Delayed { due, order: self.order, request });
        card.waiting.fetch_add(1, Ordering::SeqCst);
        card.ready.fetch_sub(1, Ordering::SeqCst);
    }

    fn release_due(&mut self, card: &Card) {
        if self.delayed.is_empty() {
            return;
        }
        let now = pace::now(&card.process);
        while self.delayed.peek().is_some_and(|delayed| delayed.due <= now)
            && let Some(delayed) = self.delayed.pop()
        {
            self.queue.push_back(delayed.request);
            card.waiting.fetch_sub(1, Ordering::SeqCst);
            card.ready.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Reports the end of a request. `counted` says whether it counts as ready.
    pub(super) fn end(&mut self, card: &Arc<Card>, mut request: Request, mut status: Status, counted: bool) {
        if let Some(ending) = request.ending.take()
            && counted
        {
            card.counters().faults.add(1);
            match ending {
                Ending::Fail(other) => status = other,
                Ending::Delay(by) => {
                    request.finished = Some(status);
                    let due = pace::now(&card.process).saturating_add(by);
                    return self.delay(card, request, due);
                }
                Ending::Hold(rule) => {
                    request.finished = Some(status);
                    return self.hold(card, request, rule);
                }
                Ending::Kill => die(),
            }
        }
        if counted {
            card.ready.fetch_sub(1, Ordering::SeqCst);
        }
        trace::request(card, &request, status);
        let entry = card.entry(&request.qp);
        if status == Status::Ok {
            card.counters().completed.add(1);
            entry.completed.fetch_add(1, Ordering::Relaxed);
        } else {
            card.counters().failed.add(1);
            entry.failed.fetch_add(1, Ordering::Relaxed);
        }
        let cq = request.qp.send_cq.clone();
        cq.push(Completion::sent(request.qp, request.wr_id, status, request.op.completion(), request.length));
    }

    /// Keeps a ready request until a rule is gone.
    fn hold(&mut self, card: &Card, request: Request, rule: Arc<str>) {
        self.held.push((rule, request));
        card.waiting.fetch_add(1, Ordering::SeqCst);
        card.ready.fetch_sub(1, Ordering::SeqCst);
    }

    /// Carries one ready request out, or as much of it as is its turn. False when there is no point in going on for now.
    fn step(&mut self, card: &Arc<Card>, mut request: Request) -> bool {
        if !request.qp.can_send() {
            request.ending = None;
            self.end(card, request, Status::Flushed, true);
            return true;
        }
        if let Some(status) = request.finished {
            self.end(card, request, status, true);
            return true;
        }
        if !request.judged {
            request.judged = true;
            let verdict = card.process.faults.judge(card, &request);
            if !matches!(verdict, Verdict::Pass | Verdict::AtEnd(_)) {
                card.counters().faults.add(1);
            }
            match verdict {
                Verdict::Pass => {}
                Verdict::Fail(status) => {
                    self.end(card, request, status, true);
                    return true;
                }
                Verdict::Delay { by, again } => {
                    request.judged = !again;
                    let due = pace::now(&card.process).saturating_add(by);
                    self.delay(card, request, due);
                    return true;
                }
                Verdict::Hold { rule, again } => {
                    request.judged = !again;
                    self.hold(card, request, rule);
                    return true;
                }
                Verdict::Kill => request.doomed = true,
                Verdict::AtEnd(ending) => request.ending = Some(ending),
            }
        }
        match self.target(card, &request) {
            Ok(peer) if request.op.is_rdma() => self.rdma(card, request, &peer),
            Ok(peer) => self.message(card, request, &peer),
            // Nobody hears of a lost datagram.
            Err(_) if request.qp.shape.datagram => {
                card.counters().datagrams_dropped.add(1);
                self.end(card, request, Status::Ok, true);
                true
            }
            Err(status) => {
                self.end(card, request, status, true);
                true
            }
        }
    }

    /// The process that a request goes to, after all that can be checked before its memory is touched.
    fn target(&mut self, card: &Card, request: &Request) -> Result<Arc<Peer>, Status> {
        let remote = request.remote.as_ref().ok_or(Status::InvalidAh)?;
        let file = remote.file(&card.process).ok_or(Status::UnreachableRemote)?;
        let entry = file.qps.get(request.remote_qpn as usize).ok_or(Status::RemoteBadDestQpn)?;
        let owner = entry.owner.load(Ordering::Acquire);
        if owner == 0 {
            return Err(Status::RemoteBadDestQpn);
        }
        let peer = match &self.last_peer {
            Some((known, peer)) if *known == owner && card.process.holds_slot(owner) => peer.clone(),
            _ => {
                let peer = card.process.peer(owner).ok_or_else(|| request.gone(&card.process, owner))?;
                self.last_peer = Some((owner, peer.clone()));
                peer
            }
        };
        let qkey = entry.qkey.load(Ordering::Acquire);
        if entry.ready.load(Ordering::Acquire) == 0 || qkey != request.remote_qkey {
            // A killed process leaves its queue pairs looking alive.
            return Err(if peer.alive(&card.process) {
                Status::RemoteBadDestQpn
            } else {
                request.gone(&card.process, owner)
            });
        }
        Ok(peer)
    }
}

/// Ends this process as `kill -9` would.
pub(super) fn die() {
    // SAFETY: a signal to ourselves.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}
