//! The card's engine: takes requests from the send queues, carries them out in an order of its own, and reports their ends.
//!
//! Posting only puts a request in a list. The engine runs on the card's thread, or on a thread of the program that polls a completion
//! queue and finds it empty (it would only burn the core otherwise): see [`thread`](super::thread). Requests that are in flight are
//! shuffled by the seed; they are carried out each exactly once; nothing orders one before another, as on SRD.

use super::completion::{Completion, Queue};
use super::copy::{CopyError, Direction, Ranges, copy};
use super::device::Card;
use super::faults::Verdict;
use super::peer::Peer;
use super::process::{Process, lock};
use super::queue_pair::{DATAGRAM_PREFIX, QueuePair};
use super::region::{Region, find};
use super::remote::Remote;
use super::ring::{ACK, DATAGRAM, HAS_IMM, Packet, SEND, WRITE_IMM};
use super::{remote, trace};
use crate::abi::{self, ibv_sge};
use crate::settings::Settings;
use crate::shared;
use crate::status::Status;
use crate::verbs::context::MAX_MESSAGE;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

pub(crate) use super::thread::start as start_thread;

/// Bytes that one system call copies at most: enough that the call itself does not show, little enough that a poller comes back soon.
const COPY_BYTES: usize = 1 << 20;
/// Requests that one system call carries out at most.
const COPY_REQUESTS: usize = 64;
/// First pause before a message is tried again whose target had no receive; it doubles up to [`RNR_PAUSE_MAX`].
const RNR_PAUSE: Duration = Duration::from_micros(50);
const RNR_PAUSE_MAX: Duration = Duration::from_millis(5);
/// The hazard word of the receiving side, which is one for all cards.
const RECEIVER: usize = crate::settings::MAX_CARDS;
/// How often the engine looks whether a process still lives that owes an answer.
const LIFE_CHECK: Duration = Duration::from_millis(5);

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Send,
    SendImm,
    Read,
    Write,
    WriteImm,
}

impl Op {
    /// Whether it goes at the target's memory by a key.
    pub(crate) fn is_rdma(self) -> bool {
        !matches!(self, Op::Send | Op::SendImm)
    }

    /// Opcode of its completion. rdma-core's efa provider reports device reads as sends, and libfabric counts on it.
    fn completion(self) -> u32 {
        match self {
            Op::Write | Op::WriteImm => abi::IBV_WC_RDMA_WRITE,
            Op::Send | Op::SendImm | Op::Read => abi::IBV_WC_SEND,
        }
    }

    /// Name in rules and traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::Send => "send",
            Op::SendImm => "send_imm",
            Op::Read => "read",
            Op::Write => "write",
            Op::WriteImm => "write_imm",
        }
    }
}

/// Bytes that fit inside a request.
pub(crate) const INLINE: usize = 32;

/// A work request of a send queue.
pub(crate) struct Request {
    pub(crate) qp: Arc<QueuePair>,
    pub(crate) remote: Option<Arc<Remote>>,
    pub(crate) wr_id: u64,
    pub(crate) op: Op,
    pub(crate) num_sge: u8,
    /// Bytes in `inline`; only looked at without scatter entries.
    pub(crate) inline_len: u8,
    /// Times that the target had no receive.
    pub(crate) refusals: u8,
    pub(crate) remote_qpn: u32,
    pub(crate) remote_qkey: u32,
    pub(crate) rkey: u32,
    pub(crate) imm: u32,
    pub(crate) length: u32,
    /// Bytes already copied.
    pub(crate) done: u32,
    /// Whether a rule wants the process to die in the middle of it.
    pub(crate) doomed: bool,
    /// Whether timing and faults have had their say.
    pub(crate) judged: bool,
    pub(crate) remote_address: u64,
    pub(crate) sges: [ibv_sge; 2],
    pub(crate) inline: [u8; INLINE],
    /// Age of the token under which an answer is awaited.
    pub(crate) age: u32,
    /// When the engine first saw it, in nanoseconds of the trace's clock.
    pub(crate) trace: u64,
}

/// A request that waits for its time.
struct Delayed {
    due: Instant,
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

/// A message that has been sent and not been answered.
struct Unanswered {
    request: Request,
    to: u64,
}

/// One card's engine.
pub(crate) struct Engine {
    queue: VecDeque<Request>,
    window: Vec<Request>,
    window_size: usize,
    delayed: BinaryHeap<Delayed>,
    held: Vec<Request>,
    unanswered: Vec<Option<Unanswered>>,
    free_tokens: Vec<u32>,
    tokens: u32,
    generations: u32,
    order: u64,
    random: u64,
    hazards: u64,
    /// When the link has sent what it was given so far (with a bandwidth limit).
    link_free: Option<Instant>,
    bytes_per_second: f64,
    latency: Duration,
    last_peer: Option<(u64, Arc<Peer>)>,
    last_life_check: Option<Instant>,
    local: Ranges,
    far: Ranges,
    batch: Vec<Request>,
    incoming: Vec<Request>,
    answers: Vec<(u64, u32)>,
}

impl Engine {
    pub(crate) fn new(settings: &Settings, card: usize) -> Engine {
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
            random: settings.seed.wrapping_add((card as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15)) | 1,
            hazards: 0,
            link_free: None,
            bytes_per_second: Settings::per_card(&settings.gbps, card) * 1e9 / 8.0,
            latency: Duration::from_secs_f64(Settings::per_card(&settings.latency_us, card) * 1e-6),
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
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.peek().map(|delayed| delayed.due)
    }

    fn random(&mut self, below: usize) -> usize {
        // xorshift64*: small, seeded, good enough to shuffle.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        (self.random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    }
}

/// Hands requests to the card.
pub(crate) fn submit(card: &Card, requests: &mut Vec<Request>) {
    let count = requests.len();
    let Some(first) = requests.first() else { return };
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
    engine.held.retain(|request| !theirs(request));
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
        held.into_iter().partition(|request| Arc::ptr_eq(&request.qp, qp));
    engine.held = others;
    freed.extend(theirs);
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

/// Lets go of everything that a rule held.
pub(crate) fn release_held(card: &Card) {
    let mut engine = lock(&card.engine);
    let held = std::mem::take(&mut engine.held);
    card.waiting.fetch_sub(held.len(), Ordering::SeqCst);
    card.ready.fetch_add(held.len(), Ordering::SeqCst);
    engine.queue.extend(held);
}

impl Engine {
    /// Tells everybody whose memory is about to be touched (ours always is).
    fn raise_hazard(&mut self, card: &Card, slot: usize) {
        self.hazards += 1;
        card.process.me().hazards[card.index].store(shared::hazard(self.hazards, slot), Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    fn fill_window(&mut self) {
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
        let timed = self.bytes_per_second > 0.0 || self.latency > Duration::ZERO;
        let mut incoming = std::mem::take(&mut self.incoming);
        for mut request in incoming.drain(..) {
            if trace::enabled(&card.process) {
                request.trace = trace::now();
            }
            if timed {
                let due = self.time_on_the_wire(request.length);
                self.delay(card, request, due);
            } else {
                self.queue.push_back(request);
            }
        }
        self.incoming = incoming;
    }

    /// When a request of that length will have gone over the link.
    fn time_on_the_wire(&mut self, length: u32) -> Instant {
        let now = Instant::now();
        let mut at = self.link_free.map_or(now, |free| free.max(now));
        if self.bytes_per_second > 0.0 {
            at += Duration::from_secs_f64(length as f64 / self.bytes_per_second);
            self.link_free = Some(at);
        }
        at + self.latency
    }

    /// Puts a ready request off.
    fn delay(&mut self, card: &Card, request: Request, due: Instant) {
        self.order += 1;
        self.delayed.push(Delayed { due, order: self.order, request });
        card.waiting.fetch_add(1, Ordering::SeqCst);
        card.ready.fetch_sub(1, Ordering::SeqCst);
    }

    fn release_due(&mut self, card: &Card) {
        if self.delayed.is_empty() {
            return;
        }
        let now = Instant::now();
        while self.delayed.peek().is_some_and(|delayed| delayed.due <= now)
            && let Some(delayed) = self.delayed.pop()
        {
            self.queue.push_back(delayed.request);
            card.waiting.fetch_sub(1, Ordering::SeqCst);
            card.ready.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Takes in what other processes have answered.
    fn take_answers(&mut self, card: &Arc<Card>) -> bool {
        std::mem::swap(&mut *lock(&card.answers), &mut self.answers);
        let answers = std::mem::take(&mut self.answers);
        for &(token, status) in &answers {
            card.ready.fetch_sub(1, Ordering::SeqCst);
            let index = token as u32 as usize;
            // A token of another age: the request has been forgotten meanwhile.
            let ours = self.unanswered.get(index).and_then(Option::as_ref);
            if ours.is_none_or(|unanswered| u64::from(unanswered.request.age) != token >> 32) {
                continue;
            }
            let Some(unanswered) = self.unanswered[index].take() else { continue };
            self.free_tokens.push(index as u32);
            card.waiting.fetch_sub(1, Ordering::SeqCst);
            card.ready.fetch_add(1, Ordering::SeqCst);
            self.answered(card, unanswered.request, status);
        }
        let any = !answers.is_empty();
        self.answers = answers;
        self.answers.clear();
        any
    }

    fn answered(&mut self, card: &Arc<Card>, mut request: Request, status: u32) {
        if let Some(remote) = &request.remote {
            remote.answered.store(true, Ordering::Relaxed);
        }
        let status = Status::from_vendor(status).unwrap_or(Status::RemoteBadStatus);
        if status != Status::RemoteRnr {
            return self.end(card, request, status, true);
        }
        card.counters().receiver_not_ready.add(1);
        let allowed = request.qp.rnr_retry.load(Ordering::Relaxed);
        if allowed < 7 && u32::from(request.refusals) >= allowed {
            return self.end(card, request, Status::RemoteRnr, true);
        }
        let pause = (RNR_PAUSE * (1 << request.refusals.min(10))).min(RNR_PAUSE_MAX);
        request.refusals = request.refusals.saturating_add(1);
        self.delay(card, request, Instant::now() + pause);
    }

    /// Ends messages to processes that have died.
    fn check_lives(&mut self, card: &Arc<Card>) {
        if self.unanswered.len() == self.free_tokens.len() {
            self.last_life_check = None;
            return;
        }
        let now = Instant::now();
        match self.last_life_check {
            Some(last) if now < last + LIFE_CHECK => return,
            Some(_) => self.last_life_check = Some(now),
            None => {
                self.last_life_check = Some(now);
                return;
            }
        }
        let mut checked: Option<(u64, bool)> = None;
        for token in 0..self.unanswered.len() {
            let Some(to) = self.unanswered[token].as_ref().map(|unanswered| unanswered.to) else { continue };
            let alive = match checked {
                Some((owner, alive)) if owner == to => alive,
                _ => {
                    let alive = card.process.peer(to).is_some_and(|peer| peer.alive(&card.process));
                    checked = Some((to, alive));
                    alive
                }
            };
            if !alive && let Some(unanswered) = self.unanswered[token].take() {
                self.free_tokens.push(token as u32);
                card.waiting.fetch_sub(1, Ordering::SeqCst);
                card.ready.fetch_add(1, Ordering::SeqCst);
                let status = silence(&unanswered.request);
                self.end(card, unanswered.request, status, true);
            }
        }
    }

    /// Reports the end of a request. `counted` says whether it counts as ready.
    fn end(&mut self, card: &Arc<Card>, request: Request, status: Status, counted: bool) {
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

    /// Carries one ready request out, or as much of it as is its turn. False when there is no point in going on for now.
    fn step(&mut self, card: &Arc<Card>, mut request: Request) -> bool {
        if !request.qp.can_send() {
            self.end(card, request, Status::Flushed, true);
            return true;
        }
        if !request.judged {
            request.judged = true;
            match card.process.faults.judge(card, &request) {
                Verdict::Pass => {}
                Verdict::Fail(status) => {
                    card.counters().faults.add(1);
                    self.end(card, request, status, true);
                    return true;
                }
                Verdict::Delay(by) => {
                    card.counters().faults.add(1);
                    self.delay(card, request, Instant::now() + by);
                    return true;
                }
                Verdict::Hold => {
                    card.counters().faults.add(1);
                    request.judged = false;
                    self.held.push(request);
                    card.waiting.fetch_add(1, Ordering::SeqCst);
                    card.ready.fetch_sub(1, Ordering::SeqCst);
                    return true;
                }
                Verdict::Kill => request.doomed = true,
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
                let peer = card.process.peer(owner).ok_or_else(|| silence(request))?;
                self.last_peer = Some((owner, peer.clone()));
                peer
            }
        };
        let qkey = entry.qkey.load(Ordering::Acquire);
        if entry.ready.load(Ordering::Acquire) == 0 || qkey != request.remote_qkey {
            // A killed process leaves its queue pairs looking alive.
            return Err(if peer.alive(&card.process) { Status::RemoteBadDestQpn } else { silence(request) });
        }
        Ok(peer)
    }

    /// Sends a message, or the immediate of a write whose bytes have arrived.
    fn message(&mut self, card: &Arc<Card>, request: Request, peer: &Arc<Peer>) -> bool {
        self.raise_hazard(card, card.process.slot);
        let more = self.put_message(card, request, peer);
        card.process.me().hazards[card.index].store(0, Ordering::SeqCst);
        more
    }

    fn put_message(&mut self, card: &Arc<Card>, request: Request, peer: &Arc<Peer>) -> bool {
        if request.doomed {
            die();
        }
        if request.length > MAX_MESSAGE && !request.op.is_rdma() {
            self.end(card, request, Status::BadLength, true);
            return true;
        }
        let datagram = request.qp.shape.datagram;
        let mut parts = [(std::ptr::null::<u8>(), 0usize); 2];
        let mut count = 0;
        let (kind, payload) = if request.op == Op::WriteImm {
            (WRITE_IMM, 0)
        } else if request.num_sge == 0 {
            parts[0] = (request.inline.as_ptr(), request.inline_len as usize);
            count = 1;
            (SEND, request.inline_len as usize)
        } else {
            for sge in &request.sges[..request.num_sge as usize] {
                let Some(address) = local_address(card, &request.qp, sge, 0) else {
                    self.end(card, request, Status::InvalidLkey, true);
                    return true;
                };
                parts[count] = (address as *const u8, sge.length as usize);
                count += 1;
            }
            (SEND, request.length as usize)
        };
        let token = if datagram { 0 } else { self.new_token() };
        let has_imm = matches!(request.op, Op::SendImm | Op::WriteImm);
        let packet = Packet {
            kind,
            payload: payload as u32,
            card: request.remote.as_ref().and_then(|remote| remote.at).map_or(0, |(_, card)| card),
            from_card: card.index as u16,
            from_host: card.process.host,
            qpn: request.remote_qpn,
            from_qpn: request.qp.number,
            qkey: request.remote_qkey,
            imm: request.imm,
            length: request.length,
            word: if has_imm { HAS_IMM } else { 0 } | if datagram { DATAGRAM } else { 0 },
            token,
        };
        // SAFETY: the parts are the request's own inline bytes or lie inside live registrations of this process, whose program
        // must leave them mapped until the completion, as with any card.
        if !unsafe { peer.send(&card.process, &packet, &parts[..count]) } {
            if !datagram {
                self.free_tokens.push(token as u32);
            }
            if !peer.alive(&card.process) {
                let status = if datagram { Status::Ok } else { silence(&request) };
                self.end(card, request, status, true);
                return true;
            }
            self.queue.push_front(request);
            card.stalled.store(true, Ordering::SeqCst);
            return false;
        }
        card.counters().send_bytes.add(payload as u64);
        if datagram {
            self.end(card, request, Status::Ok, true);
            return true;
        }
        let mut request = request;
        request.age = (token >> 32) as u32;
        self.unanswered[token as u32 as usize] =
            Some(Unanswered { request, to: shared::owner(peer.slot, peer.generation) });
        card.waiting.fetch_add(1, Ordering::SeqCst);
        card.ready.fetch_sub(1, Ordering::SeqCst);
        true
    }

    fn new_token(&mut self) -> u64 {
        self.generations = self.generations.wrapping_add(1);
        let index = self.free_tokens.pop().unwrap_or_else(|| {
            self.unanswered.push(None);
            self.tokens += 1;
            self.tokens - 1
        });
        (self.generations as u64) << 32 | index as u64
    }

    /// Copies for `first` and for others of the window that go the same way, in one system call.
    fn rdma(&mut self, card: &Arc<Card>, first: Request, peer: &Arc<Peer>) -> bool {
        let direction = if first.op == Op::Read { Direction::Read } else { Direction::Write };
        // The hazard goes up before the keys are looked at: see `Process::wait_for_copies`.
        self.raise_hazard(card, peer.slot);
        self.local.clear();
        self.far.clear();
        let mut batch = std::mem::take(&mut self.batch);
        let mut bytes = self.admit(card, first, peer, COPY_BYTES, &mut batch);
        let mut misses = 0;
        while bytes < COPY_BYTES && batch.len() < COPY_REQUESTS && misses < 4 {
            self.fill_window();
            if self.window.is_empty() {
                break;
            }
            let index = self.random(self.window.len());
            if self.goes_along(card, &self.window[index], direction, peer) {
                let request = self.window.swap_remove(index);
                bytes += self.admit(card, request, peer, COPY_BYTES - bytes, &mut batch);
            } else {
                misses += 1;
            }
        }
        if bytes > 0 {
            self.transfer(card, direction, peer, &mut batch, bytes);
        } else {
            for request in batch.drain(..) {
                self.copied(card, request, peer);
            }
        }
        self.batch = batch;
        card.process.me().hazards[card.index].store(0, Ordering::SeqCst);
        true
    }

    /// Whether a request of the window can share the system call.
    fn goes_along(&self, card: &Card, request: &Request, direction: Direction, peer: &Peer) -> bool {
        let same_way = match request.op {
            Op::Read => direction == Direction::Read,
            Op::Write | Op::WriteImm => direction == Direction::Write,
            Op::Send | Op::SendImm => false,
        };
        same_way
            && request.qp.can_send()
            && (request.judged || !card.process.faults.active())
            && request.remote.as_ref().is_some_and(|remote| {
                remote.file(&card.process).is_some_and(|file| {
                    file.qps.get(request.remote_qpn as usize).is_some_and(|entry| {
                        entry.owner.load(Ordering::Acquire) == shared::owner(peer.slot, peer.generation)
                            && entry.ready.load(Ordering::Acquire) == 1
                            && entry.qkey.load(Ordering::Acquire) == request.remote_qkey
                    })
                })
            })
    }

    /// Checks a request's keys on both sides and adds at most `room` of its bytes to the copy. A request that fails ends here.
    fn admit(
        &mut self,
        card: &Arc<Card>,
        mut request: Request,
        peer: &Peer,
        room: usize,
        batch: &mut Vec<Request>,
    ) -> usize {
        request.judged = true;
        match self.check(card, &request, peer) {
            Ok(far) => {
                let done = request.done as usize;
                let mut bytes = (request.length as usize - done).min(room);
                if request.doomed {
                    bytes = bytes.min(request.length.div_ceil(2) as usize);
                }
                if bytes > 0 {
                    self.far.push(far + done as u64, bytes);
                    let (mut skip, mut left) = (done, bytes);
                    for position in 0..request.num_sge as usize {
                        let sge = request.sges[position];
                        let length = sge.length as usize;
                        if skip >= length {
                            skip -= length;
                            continue;
                        }
                        let part = (length - skip).min(left);
                        // Checked just now, in `check`.
                        let address = local_address(card, &request.qp, &sge, 0).unwrap_or(0);
                        self.local.push(address + skip as u64, part);
                        left -= part;
                        skip = 0;
                        if left == 0 {
                            break;
                        }
                    }
                    request.done += bytes as u32;
                }
                batch.push(request);
                bytes
            }
            Err(status) => {
                self.end(card, request, status, true);
                0
            }
        }
    }

    /// The address in the target's memory, if everything about an RDMA request is in order.
    fn check(&self, card: &Card, request: &Request, peer: &Peer) -> Result<u64, Status> {
        let remote = request.remote.as_ref().ok_or(Status::InvalidAh)?;
        let file = remote.file(&card.process).ok_or(Status::UnreachableRemote)?;
        let (_, target_card) = remote.at.ok_or(Status::UnreachableRemote)?;
        if card.process.settings.peer_check && !remote.knows(card, &file) {
            return Err(Status::RemoteUnknownPeer);
        }
        let local_access = if request.op == Op::Read { abi::IBV_ACCESS_LOCAL_WRITE } else { 0 };
        for sge in &request.sges[..request.num_sge as usize] {
            local_address(card, &request.qp, sge, local_access).ok_or(Status::InvalidLkey)?;
        }
        if request.length > card.process.settings.profile.max_rdma_bytes {
            return Err(Status::BadLength);
        }
        let access =
            if request.op == Op::Read { abi::IBV_ACCESS_REMOTE_READ } else { abi::IBV_ACCESS_REMOTE_WRITE };
        let pd = file.qps[request.remote_qpn as usize].pd.load(Ordering::Acquire);
        if request.length == 0 {
            return Ok(0);
        }
        find(&peer.regions, request.rkey)
            .filter(|region: &Region| region.card == u32::from(target_card) && region.pd == pd)
            .and_then(|region| region.resolve(request.remote_address, request.length.into(), access))
            .ok_or(Status::RemoteBadAddress)
    }

    fn transfer(
        &mut self,
        card: &Arc<Card>,
        direction: Direction,
        peer: &Arc<Peer>,
        batch: &mut Vec<Request>,
        bytes: usize,
    ) {
        let count = match direction {
            Direction::Read => &card.counters().read_bytes,
            Direction::Write => &card.counters().write_bytes,
        };
        match copy(direction, peer.pid, &self.local, &self.far) {
            Ok(copied) if copied == bytes => {
                count.add(bytes as u64);
                for request in batch.drain(..) {
                    self.copied(card, request, peer);
                }
            }
            Err(CopyError::Gone) => {
                peer.mark_dead();
                for request in batch.drain(..) {
                    let status = silence(&request);
                    self.end(card, request, status, true);
                }
            }
            Err(CopyError::Refused) => {
                for request in batch.drain(..) {
                    self.end(card, request, Status::UnreachableRemote, true);
                }
            }
            // An address is bad although its registration is good: the program has unmapped it. Find out whose.
            Ok(_) | Err(CopyError::Fault) if batch.len() > 1 => {
                let requests: Vec<Request> = std::mem::take(batch);
                for mut request in requests {
                    request.done = 0;
                    self.local.clear();
                    self.far.clear();
                    let mut alone = Vec::new();
                    let bytes = self.admit(card, request, peer, COPY_BYTES, &mut alone);
                    if bytes > 0 {
                        self.transfer(card, direction, peer, &mut alone, bytes);
                    } else {
                        alone.drain(..).for_each(|request| self.copied(card, request, peer));
                    }
                }
            }
            Ok(_) | Err(CopyError::Fault) => {
                for request in batch.drain(..) {
                    self.end(card, request, Status::RemoteBadAddress, true);
                }
            }
        }
    }

    /// What comes after a request's bytes (or some of them) have been copied.
    fn copied(&mut self, card: &Arc<Card>, request: Request, peer: &Arc<Peer>) {
        if let Some(remote) = &request.remote {
            remote.answered.store(true, Ordering::Relaxed);
        }
        if request.doomed {
            die();
        }
        if request.done < request.length {
            self.window.push(request);
        } else if request.op == Op::WriteImm {
            self.message(card, request, peer);
        } else {
            self.end(card, request, Status::Ok, true);
        }
    }
}

/// Ends this process as `kill -9` would.
fn die() {
    // SAFETY: a signal to ourselves.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

/// What becomes of a request whose target does not answer.
pub(crate) fn silence(request: &Request) -> Status {
    match &request.remote {
        Some(remote) if remote.answered.load(Ordering::Relaxed) => Status::UnresponsiveRemote,
        _ => Status::UnreachableRemote,
    }
}

/// Where a local scatter/gather entry lies, if its key is good for it.
fn local_address(card: &Card, qp: &QueuePair, sge: &ibv_sge, access: u32) -> Option<u64> {
    if sge.length == 0 {
        return Some(sge.addr);
    }
    card.process
        .regions
        .find(sge.lkey)
        .filter(|region| region.card as usize == card.index && region.pd == qp.shape.pd)
        .and_then(|region| region.resolve(sge.addr, sge.length.into(), access))
}

/// Takes in a packet of process `from`.
pub(crate) fn take_in(process: &Arc<Process>, from: u64, packet: &Packet, payload: &[u8]) {
    let card = process.open_cards().find(|card| card.index == packet.card as usize);
    if packet.kind == ACK {
        if let Some(card) = card {
            lock(&card.answers).push((packet.token, packet.word));
            card.ready.fetch_add(1, Ordering::SeqCst);
        }
        return;
    }
    let status = match card {
        Some(card) => deliver(card, packet, payload),
        None => Status::RemoteBadDestQpn,
    };
    if packet.word & DATAGRAM != 0 {
        return;
    }
    let answer = Packet {
        kind: ACK,
        card: packet.from_card,
        word: status.vendor(),
        token: packet.token,
        ..Packet::default()
    };
    process.answer(from, answer);
}

/// Hands a message or an immediate to its queue pair.
fn deliver(card: &Arc<Card>, packet: &Packet, payload: &[u8]) -> Status {
    let Some(qp) = card.qp(packet.qpn) else { return Status::RemoteBadDestQpn };
    if !qp.can_receive() || qp.qkey.load(Ordering::Acquire) != packet.qkey {
        return Status::RemoteBadDestQpn;
    }
    let unsolicited = packet.kind == WRITE_IMM && qp.shape.unsolicited;
    let prefix = if qp.shape.datagram { DATAGRAM_PREFIX } else { 0 };
    let receive = if unsolicited { None } else { qp.next_receive() };
    if receive.is_none() && !unsolicited {
        if qp.shape.datagram {
            card.counters().datagrams_dropped.add(1);
        }
        return Status::RemoteRnr;
    }
    let mut status = Status::Ok;
    if let Some(receive) = &receive
        && packet.kind == SEND
    {
        let sges = &receive.sges[..receive.num_sge as usize];
        let room: usize = sges.iter().map(|sge| sge.length as usize).sum();
        if room < prefix + payload.len() {
            qp.return_receive(*receive);
            return Status::RemoteBadLength;
        }
        let hazard = &card.process.me().hazards[RECEIVER];
        let count = shared::hazard_count(hazard.load(Ordering::Relaxed)) + 1;
        hazard.store(shared::hazard(count, card.process.slot), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        status = scatter(card, &qp, sges, prefix, payload);
        hazard.store(shared::hazard_idle(count), Ordering::SeqCst);
    }
    let sgid = remote::gid(packet.from_host, packet.from_card);
    let write = packet.kind == WRITE_IMM;
    card.counters().received.add(1);
    card.entry(&qp).received.fetch_add(1, Ordering::Relaxed);
    let cq = qp.recv_cq.clone();
    cq.push(Completion {
        queue: if unsolicited { Queue::Neither } else { Queue::Receive },
        wr_id: receive.map_or(0, |receive| receive.wr_id),
        status,
        opcode: if write { abi::IBV_WC_RECV_RDMA_WITH_IMM } else { abi::IBV_WC_RECV },
        byte_len: if write { packet.length } else { (prefix + payload.len()) as u32 },
        imm: packet.imm,
        flags: if packet.word & HAS_IMM != 0 { abi::IBV_WC_WITH_IMM } else { 0 },
        src_qp: packet.from_qpn,
        slid: card.handle_number(&sgid),
        sgid,
        qp,
    });
    // The sender hears that its message did not arrive whole; which of our keys was wrong is our business.
    if status == Status::Ok { Status::Ok } else { Status::RemoteAbort }
}

/// Writes a payload into a posted receive's memory, after a prefix that is left alone.
fn scatter(card: &Card, qp: &QueuePair, sges: &[ibv_sge], prefix: usize, payload: &[u8]) -> Status {
    let (mut skip, mut rest) = (prefix, payload);
    for sge in sges {
        let length = sge.length as usize;
        if skip >= length {
            skip -= length;
            continue;
        }
        if rest.is_empty() {
            break;
        }
        let Some(address) = local_address(card, qp, sge, abi::IBV_ACCESS_LOCAL_WRITE) else {
            return Status::InvalidLkey;
        };
        let part = rest.len().min(length - skip);
        // SAFETY: inside a live registration with local write access, whose memory the program has handed to the card by posting it.
        unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), (address as *mut u8).add(skip), part) };
        rest = &rest[part..];
        skip = 0;
    }
    Status::Ok
}
