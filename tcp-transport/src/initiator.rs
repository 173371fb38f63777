//! The asking side of a lane: what is in flight, what is to be sent next, where the bytes that come belong. Pure: it never
//! touches a socket, so whichever thread holds the lane can run it, and a test can cut its streams anywhere.

mod ending;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::decoder::{Decoder, Step};
use crate::error::{Error, Refusal};
use crate::handshake::printable;
use crate::request::Op;
use crate::seam::{self, Gather, Scatter};
use crate::slice::{Cursor, Slice};
use crate::staging::{self, Outgoing};
use crate::wire::{Header, Kind, Malformed};

/// Longest text that explains a refusal.
const MAX_TEXT: u64 = 4096;
/// First pause before a busy peer is asked again; doubles up to 64 times this.
const BUSY_PAUSE: Duration = Duration::from_millis(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Free,
    Queued,
    Sending,
    Sent,
}

struct Slot {
    slice: Slice,
    head: Vec<u8>,
    generation: u32,
    phase: Phase,
}

/// Where incoming payload goes.
#[derive(Debug, Clone, Copy)]
enum Sink {
    /// The local ranges of a read.
    Memory(Cursor),
    /// The message of the slot: a call's answer or a refusal's words.
    Message,
    /// Nowhere: its owner has given up.
    Nowhere,
}

/// The answer whose payload is coming.
#[derive(Debug, Clone, Copy)]
struct Receiving {
    slot: u32,
    code: u16,
    sink: Sink,
}

/// What an internal request has brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Control {
    /// The peer has closed this earlier lane: nothing from it will be applied any more.
    Superseded(u64),
    /// Whether the peer has found the challenge in our memory.
    HostProbed(bool),
    /// The peer takes no new requests on this lane.
    GoAway,
}

/// What a lane leaves behind for its peer to see to. Emptied by whoever drives the lane.
#[derive(Debug, Default)]
pub(crate) struct Leavings {
    /// To be sent now: what was waiting for the end of others.
    pub(crate) next: Vec<Slice>,
    /// To be sent later: the peer was busy.
    pub(crate) later: Vec<Slice>,
    pub(crate) control: Vec<Control>,
    /// Event numbers that are answered for good.
    pub(crate) finished_events: Vec<u64>,
}

impl Leavings {
    pub(crate) fn is_empty(&self) -> bool {
        self.next.is_empty()
            && self.later.is_empty()
            && self.control.is_empty()
            && self.finished_events.is_empty()
    }
}

/// See the module.
pub(crate) struct Initiator {
    peer: SocketAddr,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Slots to be sent, in order; of the first, `front_sent` bytes are out already.
    queue: VecDeque<u32>,
    front_sent: u64,
    front_cursor: Cursor,
    staged: Outgoing,
    decoder: Decoder,
    receiving: Option<Receiving>,
    in_flight: usize,
    bytes_in_flight: u64,
    /// Bytes that answers will bring.
    bytes_expected: u64,
    /// Bytes that the peer is asked to copy between the processes.
    bytes_copied: u64,
    /// Earliest deadline of anything in flight, or earlier.
    next_deadline: Option<Instant>,
    message_limit: u64,
    pub(crate) leavings: Leavings,
}

impl Initiator {
    pub(crate) fn new(peer: SocketAddr, message_limit: u64) -> Self {
        Self {
            peer,
            slots: Vec::new(),
            free: Vec::new(),
            queue: VecDeque::new(),
            front_sent: 0,
            front_cursor: Cursor::default(),
            staged: Outgoing::default(),
            decoder: Decoder::new(),
            receiving: None,
            in_flight: 0,
            bytes_in_flight: 0,
            bytes_expected: 0,
            bytes_copied: 0,
            next_deadline: None,
            message_limit,
            leavings: Leavings::default(),
        }
    }

    /// Requests that have not been answered.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Payload of these, both ways.
    pub(crate) fn bytes_in_flight(&self) -> u64 {
        self.bytes_in_flight
    }

    /// Payload that answers in flight will bring.
    pub(crate) fn bytes_expected(&self) -> u64 {
        self.bytes_expected
    }

    /// Bytes that the peer copies between the processes for requests in flight.
    pub(crate) fn bytes_copied(&self) -> u64 {
        self.bytes_copied
    }

    /// Whether something is in flight whose owner has been told its end already.
    pub(crate) fn has_given_up(&self) -> bool {
        let mut open = self.slots.iter().filter(|s| s.phase != Phase::Free);
        open.any(|s| s.slice.ticket.as_ref().is_some_and(|t| t.has_ended()))
    }

    /// Whether no payload is coming.
    pub(crate) fn is_between_frames(&self) -> bool {
        self.decoder.payload_left() == 0
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.queue.is_empty()
    }

    /// Queues a slice and leaves an empty one in its place.
    pub(crate) fn push(&mut self, slice: &mut Slice, floor: u64) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            let slice = Slice::empty(slice.deadline);
            self.slots.push(Slot { slice, head: Vec::new(), generation: 0, phase: Phase::Free });
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        std::mem::swap(&mut slot.slice, slice);
        slot.phase = Phase::Queued;
        slot.slice.attempts += 1;
        slot.generation = slot.generation.wrapping_add(1);
        let id = u64::from(slot.generation) << 32 | u64::from(index);
        slot.slice.encode(id, floor, &mut slot.head);
        self.in_flight += 1;
        self.bytes_in_flight += slot.slice.bytes;
        match slot.slice.kind {
            Kind::Read => self.bytes_expected += slot.slice.bytes,
            Kind::HostRead | Kind::HostWrite => self.bytes_copied += slot.slice.bytes,
            _ => {}
        }
        let deadline = slot.slice.deadline;
        self.next_deadline = Some(self.next_deadline.map_or(deadline, |d| d.min(deadline)));
        self.queue.push_back(index);
        id
    }

    /// Fetches what is to be sent next if it lies in a device; to be called before [`gather`](Self::gather).
    pub(crate) fn stage(&mut self) -> Result<(), String> {
        let Some(&index) = self.queue.front() else { return Ok(()) };
        let Slot { slice, head, .. } = &self.slots[index as usize];
        let Some(local) = &slice.local else { return Ok(()) };
        match (slice.kind, local.region().device()) {
            (Kind::Write, Some(device)) => {
                let done = self.front_sent.saturating_sub(head.len() as u64);
                self.staged.fill(device, &slice.local_ranges, self.front_cursor, done)
            }
            _ => Ok(()),
        }
    }

    /// Whether the payload that is coming belongs in a device.
    pub(crate) fn is_staging(&self) -> bool {
        let Some(Receiving { slot, sink: Sink::Memory(_), .. }) = self.receiving else { return false };
        let local = &self.slots[slot as usize].slice.local;
        local.as_ref().is_some_and(|l| l.region().device().is_some())
    }

    /// Lists the next bytes to send.
    pub(crate) fn gather<'a>(&'a self, out: &mut Gather<'a>, limit: usize) {
        for (nth, &index) in self.queue.iter().enumerate() {
            if out.is_full() || out.bytes() >= limit {
                return;
            }
            let slot = &self.slots[index as usize];
            let (sent, cursor) =
                if nth == 0 { (self.front_sent, self.front_cursor) } else { (0, Cursor::default()) };
            let device = slot.slice.local.as_ref().is_some_and(|l| l.region().device().is_some());
            let staged = device && slot.slice.kind == Kind::Write;
            if staged && nth > 0 {
                return; // it is staged when it is the first
            }
            let head_sent = usize::try_from(sent).unwrap_or(usize::MAX).min(slot.head.len());
            out.push_bytes(&slot.head[head_sent..]);
            if staged {
                if !out.is_full() {
                    out.push_bytes(self.staged.from(sent.saturating_sub(slot.head.len() as u64)));
                }
                return;
            }
            match (slot.slice.kind, &slot.slice.local) {
                (Kind::Write, Some(local)) => {
                    for r in cursor.rest(&slot.slice.local_ranges) {
                        if out.is_full() {
                            return;
                        }
                        out.push_memory(&*local.region().memory, r.at as usize, r.len as usize);
                    }
                }
                (Kind::Notify | Kind::Call, _) if !out.is_full() => {
                    let done = sent.saturating_sub(slot.head.len() as u64) as usize;
                    out.push_bytes(&slot.slice.message[done..]);
                }
                (Kind::Notify | Kind::Call, _) => return,
                _ => {}
            }
        }
    }

    /// So many of the listed bytes have been sent.
    pub(crate) fn sent(&mut self, mut n: u64) {
        while let Some(&index) = self.queue.front() {
            let slot = &mut self.slots[index as usize];
            let head = slot.head.len() as u64;
            let total = head + slot.slice.payload_len();
            let step = n.min(total - self.front_sent);
            let payload_before = self.front_sent.saturating_sub(head);
            self.front_sent += step;
            n -= step;
            if self.front_sent < total {
                if step > 0 {
                    slot.phase = Phase::Sending;
                    let payload = self.front_sent.saturating_sub(head) - payload_before;
                    self.front_cursor.advance(&slot.slice.local_ranges, payload);
                }
                return;
            }
            slot.phase = Phase::Sent;
            self.queue.pop_front();
            self.front_sent = 0;
            self.front_cursor = Cursor::default();
            self.staged.clear();
        }
    }

    /// Lists where the payload that is coming may be received straight into; nothing if it has to be [fed](Self::feed).
    pub(crate) fn scatter<'a>(&'a self, out: &mut Scatter<'a>, limit: u64) {
        let Some(Receiving { slot, sink: Sink::Memory(cursor), .. }) = self.receiving else { return };
        let slice = &self.slots[slot as usize].slice;
        let Some(local) = slice.local.as_ref().filter(|l| l.region().device().is_none()) else {
            return;
        };
        let mut left = self.decoder.payload_left().min(limit);
        for r in cursor.rest(&slice.local_ranges) {
            if left == 0 || out.is_full() {
                return;
            }
            let len = r.len.min(left);
            out.push_memory(&*local.region().memory, r.at as usize, len as usize);
            left -= len;
        }
    }

    /// So many bytes have been received where [`scatter`](Self::scatter) said.
    pub(crate) fn received(&mut self, n: u64) -> Result<(), Malformed> {
        self.decoder.skip_payload(n);
        if let Some(Receiving { slot, sink: Sink::Memory(cursor), .. }) = &mut self.receiving {
            cursor.advance(&self.slots[*slot as usize].slice.local_ranges, n);
        }
        self.finish_if_whole()
    }

    /// Takes bytes of the stream.
    pub(crate) fn feed(&mut self, mut input: &[u8]) -> Result<(), Malformed> {
        // The decoder is moved out so that what it lends can be used while the rest changes.
        let mut decoder = std::mem::take(&mut self.decoder);
        let result = loop {
            match decoder.step(&mut input) {
                Err(e) => break Err(e),
                Ok(Step::Starved) => break Ok(()),
                Ok(Step::Frame(header, _)) => {
                    if let Err(e) = self.frame(header) {
                        break Err(e);
                    }
                }
                Ok(Step::Payload(bytes)) => self.payload(bytes),
            }
            if decoder.payload_left() == 0
                && let Err(e) = self.finish()
            {
                break Err(e);
            }
        };
        self.decoder = decoder;
        result
    }

    fn frame(&mut self, header: Header) -> Result<(), Malformed> {
        if header.kind == Kind::GoAway as u8 {
            self.leavings.control.push(Control::GoAway);
            return if header.payload_len == 0 { Ok(()) } else { Err(Malformed("go-away with payload")) };
        }
        if header.kind != Kind::Answer as u8 {
            return Err(Malformed("the answering side sent something other than an answer"));
        }
        let (index, generation) = (header.id as u32, (header.id >> 32) as u32);
        let slot = self.slots.get_mut(index as usize).filter(|s| s.generation == generation);
        let Some(slot) = slot.filter(|s| s.phase == Phase::Sent) else {
            return Err(Malformed("an answer to a request that was not asked"));
        };
        let ended = slot.slice.ticket.as_ref().is_some_and(|t| t.has_ended());
        let sink = match (header.code, slot.slice.kind) {
            (0, Kind::Read) if header.payload_len != slot.slice.bytes => {
                return Err(Malformed("a read's answer has another length than was asked for"));
            }
            (0, Kind::Read) if !ended => Sink::Memory(Cursor::default()),
            (0, Kind::Read) => Sink::Nowhere,
            (0, Kind::Call) if header.payload_len > self.message_limit => {
                return Err(Malformed("a call's answer is longer than the limit"));
            }
            (0, Kind::Call) => Sink::Message,
            (0, _) if header.payload_len > 0 => return Err(Malformed("an answer with unexpected payload")),
            (0, _) => Sink::Nowhere,
            (_, _) if header.payload_len > MAX_TEXT => {
                return Err(Malformed("a refusal's text is longer than the limit"));
            }
            // A busy peer is asked again, so the message has to stay.
            (5, _) => Sink::Nowhere,
            (_, _) => Sink::Message,
        };
        if let Sink::Message = sink {
            slot.slice.message.clear();
        }
        self.receiving = Some(Receiving { slot: index, code: header.code, sink });
        Ok(())
    }

    fn payload(&mut self, bytes: &[u8]) {
        let Some(Receiving { slot, sink, .. }) = &mut self.receiving else { return };
        let slice = &mut self.slots[*slot as usize].slice;
        match sink {
            Sink::Nowhere => {}
            Sink::Message => slice.message.extend_from_slice(bytes),
            Sink::Memory(cursor) => {
                if let Some(device) = slice.local.as_ref().and_then(|l| l.region().device()) {
                    if let Err(text) = staging::copy_in(device, &slice.local_ranges, *cursor, bytes) {
                        slice.device_error.get_or_insert(text);
                    }
                } else if let Some(local) = &slice.local {
                    let mut left = bytes;
                    for r in cursor.rest(&slice.local_ranges) {
                        let (now, later) = left.split_at(left.len().min(r.len as usize));
                        seam::copy_in(&*local.region().memory, r.at as usize, now);
                        left = later;
                        if left.is_empty() {
                            break;
                        }
                    }
                }
                cursor.advance(&slice.local_ranges, bytes.len() as u64);
            }
        }
    }

    fn finish_if_whole(&mut self) -> Result<(), Malformed> {
        if self.decoder.payload_left() == 0 { self.finish() } else { Ok(()) }
    }

    /// The answer is whole: its request ends.
    fn finish(&mut self) -> Result<(), Malformed> {
        let Some(Receiving { slot: index, code, .. }) = self.receiving.take() else { return Ok(()) };
        let slot = &mut self.slots[index as usize];
        let slice = &mut slot.slice;
        if code == Refusal::Busy as u16
            && slice.event.is_some()
            && slice.ticket.as_ref().is_some_and(|t| !t.has_ended())
        {
            let mut again = std::mem::replace(slice, Slice::empty(slice.deadline));
            let pause = BUSY_PAUSE * (1 << again.attempts.min(6));
            again.not_before = Some(Instant::now() + pause);
            self.uncount(again.bytes, again.kind);
            if matches!(again.kind, Kind::Write | Kind::HostWrite) {
                // The bytes are in place; only the immediate found no room.
                if let Some(ticket) = &again.ticket {
                    ticket.count(Op::Write, again.bytes);
                }
                again.kind = Kind::Immediate;
                again.argument = std::mem::take(&mut again.bytes);
                again.local = None;
            }
            self.release_slot(index);
            self.leavings.later.push(again);
            return Ok(());
        }
        if let (0, Kind::Read, Some(device)) =
            (code, slice.kind, slice.local.as_ref().and_then(|l| l.region().device()))
            && let Err(text) = device.flush()
        {
            slice.device_error.get_or_insert(text);
        }
        #[cfg(feature = "planted")]
        crate::planted::lose_completion(slice);
        let result = match (code, slice.kind) {
            _ if slice.device_error.is_some() => {
                Err(Error::Device(slice.device_error.take().unwrap_or_default()))
            }
            // A retry of something that had been delivered: that is what was wanted, except that an answer is lost.
            (10, Kind::Call) => Err(Error::AnswerLost { peer: self.peer }),
            (0 | 10, _) => Ok(()),
            (8, _) => Err(Error::Call { peer: self.peer, detail: printable(&slice.message) }),
            (code, _) => Err(Error::Refused { peer: self.peer, reason: Refusal::from_code(code) }),
        };
        match (slice.kind, result.is_ok()) {
            (Kind::Read | Kind::HostRead, true) => {
                slice.ticket.iter().for_each(|t| t.count(Op::Read, slice.bytes));
            }
            (Kind::Write | Kind::HostWrite, true) => {
                slice.ticket.iter().for_each(|t| t.count(Op::Write, slice.bytes));
            }
            (Kind::Supersede, true) => self.leavings.control.push(Control::Superseded(slice.argument)),
            // What was on that lane may still be applied. Whoever else is asked may close it.
            (Kind::Supersede, false) => {
                return Err(Malformed("a lost lane was not closed when it was superseded"));
            }
            (Kind::HostProbe, ok) => self.leavings.control.push(Control::HostProbed(ok)),
            (Kind::Call, true) => {
                if let Some(ticket) = &slice.ticket {
                    ticket.set_answer(&mut slice.message);
                }
            }
            _ => {}
        }
        self.free_slot(index, result);
        Ok(())
    }

    /// Ends a slot's request and empties the slot.
    fn free_slot(&mut self, index: u32, result: Result<(), Error>) {
        let slice = &mut self.slots[index as usize].slice;
        let (bytes, kind) = (slice.bytes, slice.kind);
        if let Some(event) = slice.event {
            self.leavings.finished_events.push(event);
        }
        // The region is let go of before the end is told: whoever is told may take its memory back.
        slice.local = None;
        if let Some(ticket) = &mut slice.ticket
            && let Some(next) = ticket.end(result)
        {
            self.leavings.next.push(*next);
        }
        slice.clear();
        self.uncount(bytes, kind);
        self.release_slot(index);
    }

    fn uncount(&mut self, bytes: u64, kind: Kind) {
        self.in_flight -= 1;
        self.bytes_in_flight -= bytes;
        match kind {
            Kind::Read => self.bytes_expected -= bytes,
            Kind::HostRead | Kind::HostWrite => self.bytes_copied -= bytes,
            _ => {}
        }
    }

    fn release_slot(&mut self, index: u32) {
        self.slots[index as usize].phase = Phase::Free;
        self.free.push(index);
        if self.in_flight == 0 {
            self.next_deadline = None;
        }
    }
}
