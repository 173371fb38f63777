//! Messages: on their way to another process, and what becomes of them.

use super::device::Card;
use super::engine::{Engine, die};
use super::pace;
use super::peer::Peer;
use super::request::{Op, Request};
use super::ring::{DATAGRAM, HAS_IMM, Packet, SEND, WRITE_IMM};
use crate::shared;
use crate::status::Status;
use crate::verbs::context::MAX_MESSAGE;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// First pause before a message is tried again whose target had no receive; it doubles up to [`RNR_PAUSE_MAX`].
const RNR_PAUSE: Duration = Duration::from_micros(50);
const RNR_PAUSE_MAX: Duration = Duration::from_millis(5);
/// How often the engine looks whether a process still lives that owes an answer.
const LIFE_CHECK: Duration = Duration::from_millis(5);

/// A message that has been sent and not been answered.
pub(crate) struct Unanswered {
    pub(crate) request: Request,
    to: u64,
}

impl Engine {
    /// Sends a message, or the immediate of a write whose bytes have arrived.
    pub(super) fn message(&mut self, card: &Arc<Card>, request: Request, peer: &Arc<Peer>) -> bool {
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
                let Some(address) = request.qp.local_address(sge, 0) else {
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
                let status = if datagram { Status::Ok } else { request.gone(&card.process, peer.owner()) };
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

    /// Takes in what other processes have answered.
    pub(super) fn take_answers(&mut self, card: &Arc<Card>) -> bool {
        std::mem::swap(&mut *super::process::lock(&card.answers), &mut self.answers);
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
        let due = pace::now(&card.process).saturating_add(pause.as_nanos() as u64);
        self.delay(card, request, due);
    }

    /// Ends messages to processes that have died.
    pub(super) fn check_lives(&mut self, card: &Arc<Card>) {
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
                    if !alive {
                        // It may have answered before that.
                        if !card.process.receive_last_of(to) {
                            return;
                        }
                        self.take_answers(card);
                    }
                    checked = Some((to, alive));
                    alive
                }
            };
            if !alive && let Some(unanswered) = self.unanswered[token].take() {
                self.free_tokens.push(token as u32);
                card.waiting.fetch_sub(1, Ordering::SeqCst);
                card.ready.fetch_add(1, Ordering::SeqCst);
                let status = unanswered.request.gone(&card.process, to);
                self.end(card, unanswered.request, status, true);
            }
        }
    }
}
