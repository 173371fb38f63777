//! The calls of a lane from a peer: they wait here for the handler, which is given no more than it can run at a time, and none
//! while too many answers wait for the peer.

use super::{Body, MAX_HELD_BYTES, Responder};
use crate::error::Refusal;
use crate::wire::Header;

/// A call for the handler.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Call {
    pub(crate) id: u64,
    pub(crate) request: Vec<u8>,
}

impl Responder {
    pub(super) fn queue_call(&mut self, call: Call) {
        self.calls_bytes += call.request.len() as u64;
        self.open_calls += 1;
        self.calls.push_back(call);
    }

    /// The next call for the handler, which runs so many at a time; its answer is to be [given](Self::answer_call).
    pub(crate) fn next_call(&mut self, at_a_time: usize) -> Option<Call> {
        let at_handler = self.open_calls - self.calls.len();
        if at_handler >= at_a_time || self.held_bytes >= MAX_HELD_BYTES {
            return None;
        }
        let call = self.calls.pop_front()?;
        self.calls_bytes -= call.request.len() as u64;
        Some(call)
    }

    /// Queues the answer of a call.
    pub(crate) fn answer_call(&mut self, id: u64, answer: Result<Vec<u8>, String>) {
        self.open_calls = self.open_calls.saturating_sub(1);
        self.service.release_call();
        let (code, bytes) = match answer {
            Ok(bytes) if bytes.len() <= self.service.limits.message => (0, bytes),
            Ok(_) => (Refusal::TooLarge as u16, Vec::new()),
            Err(mut text) => {
                let end = (0..=text.len().min(2000)).rev().find(|&i| text.is_char_boundary(i)).unwrap_or(0);
                text.truncate(end);
                (Refusal::CallFailed as u16, text.into_bytes())
            }
        };
        self.reply(Header::answer(id, code, bytes.len() as u64), Body::Bytes(bytes));
    }
}
