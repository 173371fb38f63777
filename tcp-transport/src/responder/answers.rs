//! The answers of a lane from a peer: queued, listed for the socket, and turned into refusals when a region is revoked.

use std::sync::Arc;

use super::{Body, Reply, Responder};
use crate::error::Refusal;
use crate::region::RegionInner;
use crate::seam::Gather;
use crate::slice::Cursor;
use crate::wire::{HEADER_LEN, Header};

impl Body {
    /// Bytes of this process's memory that it takes, besides the region's.
    pub(super) fn held(&self) -> u64 {
        match self {
            Self::None => 0,
            Self::Memory(_, ranges) => size_of_val(&**ranges) as u64,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

impl Responder {
    /// Queues an answer without payload.
    pub(crate) fn answer(&mut self, id: u64, code: u16) {
        if code != 0 && code != Refusal::Busy as u16 {
            self.service.counters.refused.add(1);
        }
        self.reply(Header::answer(id, code, 0), Body::None);
    }

    pub(super) fn refuse(&mut self, id: u64, code: Refusal) {
        self.answer(id, code as u16);
    }

    pub(super) fn reply(&mut self, header: Header, body: Body) {
        self.held_bytes += body.held();
        self.replies.push_back(Reply { head: header.to_bytes(), body, payload_len: header.payload_len });
    }

    /// Fetches what is to be sent next if it lies in a device; to be called before [`gather`](Self::gather).
    pub(crate) fn stage(&mut self) -> Result<(), String> {
        let Some(Reply { body: Body::Memory(region, ranges), .. }) = self.replies.front() else {
            return Ok(());
        };
        let Some(device) = region.device() else { return Ok(()) };
        let done = self.front_sent.saturating_sub(HEADER_LEN as u64);
        // A revoked region is noticed where its bytes are about to be sent.
        region.enter(|| self.staged.fill(device, ranges, self.front_cursor, done)).unwrap_or(Ok(()))
    }

    /// Lists the next bytes to send. All registered memory among them is of the one region that is returned, so that
    /// the caller can [enter](RegionInner::enter) it.
    pub(crate) fn gather<'a>(&'a self, out: &mut Gather<'a>, limit: usize) -> Option<&'a RegionInner> {
        let mut inside: Option<&'a Arc<RegionInner>> = None;
        for (nth, reply) in self.replies.iter().enumerate() {
            if out.is_full() || out.bytes() >= limit {
                break;
            }
            let (sent, cursor) =
                if nth == 0 { (self.front_sent, self.front_cursor) } else { (0, Cursor::default()) };
            if let Body::Memory(region, _) = &reply.body {
                if inside.is_some_and(|other| !Arc::ptr_eq(other, region)) {
                    break;
                }
                inside = Some(region);
            }
            let staged = matches!(&reply.body, Body::Memory(region, _) if region.device().is_some());
            if staged && nth > 0 {
                break; // it is staged when it is the first
            }
            let head_sent = usize::try_from(sent).unwrap_or(usize::MAX).min(HEADER_LEN);
            out.push_bytes(&reply.head[head_sent..]);
            if staged {
                if !out.is_full() {
                    out.push_bytes(self.staged.from(sent.saturating_sub(HEADER_LEN as u64)));
                }
                break;
            }
            match &reply.body {
                Body::None => {}
                Body::Bytes(_) if out.is_full() => break,
                Body::Bytes(bytes) => {
                    out.push_bytes(&bytes[sent.saturating_sub(HEADER_LEN as u64) as usize..]);
                }
                Body::Memory(region, ranges) => {
                    let mut left = reply.payload_len - sent.saturating_sub(HEADER_LEN as u64);
                    for r in cursor.rest(ranges) {
                        if out.is_full() || out.bytes() >= limit {
                            break;
                        }
                        let len = r.len.min((limit - out.bytes()) as u64);
                        out.push_memory(&*region.memory, r.at as usize, len as usize);
                        left -= len;
                    }
                    if left > 0 {
                        break; // the next reply may only follow when this one is listed whole
                    }
                }
            }
        }
        inside.map(|r| &**r)
    }

    /// So many of the listed bytes have been sent.
    pub(crate) fn sent(&mut self, mut n: u64) {
        while let Some(front) = self.replies.front() {
            let total = HEADER_LEN as u64 + front.payload_len;
            let step = n.min(total - self.front_sent);
            let payload_before = self.front_sent.saturating_sub(HEADER_LEN as u64);
            self.front_sent += step;
            n -= step;
            if self.front_sent < total {
                if let Body::Memory(_, ranges) = &front.body {
                    let payload = self.front_sent.saturating_sub(HEADER_LEN as u64) - payload_before;
                    self.front_cursor.advance(ranges, payload);
                }
                return;
            }
            self.front_sent = 0;
            self.front_cursor = Cursor::default();
            self.staged.clear();
            self.held_bytes -= front.body.held();
            if let Some(Reply { body: Body::Memory(_, ranges), .. }) = self.replies.pop_front() {
                self.spare.keep(ranges);
            }
        }
    }

    /// A region was revoked before its bytes went out. Answers that have not begun become refusals; false if one has begun,
    /// which only closing the lane can end.
    pub(crate) fn read_revoked(&mut self) -> bool {
        for (nth, reply) in self.replies.iter_mut().enumerate() {
            if !matches!(&reply.body, Body::Memory(region, _) if region.is_revoked()) {
                continue;
            }
            if nth == 0 && self.front_sent > 0 {
                return false;
            }
            let id = Header::from_bytes(&reply.head).id;
            reply.head = Header::answer(id, Refusal::Revoked as u16, 0).to_bytes();
            self.held_bytes -= reply.body.held();
            reply.payload_len = 0;
            reply.body = Body::None;
        }
        true
    }
}
