//! The answering side of a lane: checks what a peer asks for, says where its bytes belong, queues the answers. Pure except
//! for the memory itself: it never touches the socket, so a test can cut its streams anywhere.

mod answers;
mod calls;
mod spare;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;

use crate::decoder::{Decoder, Step};
use crate::error::Refusal;
use crate::events::{Arrival, Notification};
use crate::host::{HostJob, HostPeer};
use crate::region::{Access, RegionInner, RegionKey};
use crate::request::Range;
use crate::seam::{self, HostCopy, Scatter};
use crate::seldom::Seldom;
use crate::service::{Service, Session};
use crate::slice::Cursor;
use crate::staging::{self, Outgoing};
use crate::window::Seen;
use crate::wire::{self, Event, FLAG_IMMEDIATE, HEADER_LEN, Header, Kind, Malformed, Reader};

pub(crate) use calls::Call;
use spare::Spare;

/// Memory that calls, lists of ranges and answers of one lane may take before no more requests are taken off the socket.
pub(crate) const MAX_HELD_BYTES: u64 = 64 << 20;

/// What the payload that is coming is for.
enum Task {
    Idle,
    Write {
        id: u64,
        region: Arc<RegionInner>,
        cursor: Cursor,
        bytes: u64,
        event: Option<(Event, u64)>,
    },
    Message {
        kind: Kind,
        id: u64,
        event: Event,
        bytes: Vec<u8>,
    },
    /// Refused: the payload is thrown away, then the answer goes out.
    Refused {
        id: u64,
        code: Refusal,
    },
}

enum Body {
    None,
    Memory(Arc<RegionInner>, Vec<Range>),
    Bytes(Vec<u8>),
}

struct Reply {
    head: [u8; HEADER_LEN],
    body: Body,
    payload_len: u64,
}

/// What only the lane's holder can do.
#[derive(Debug)]
pub(crate) enum Errand {
    /// Close this lane of the same session, then [`Responder::answer`].
    Supersede { id: u64, lane: u64 },
    /// Look for the challenge at this address of the peer's process, then [`Responder::set_host`].
    HostProbe { id: u64, address: u64 },
}

/// See the module.
pub(crate) struct Responder {
    service: Arc<Service>,
    session: Arc<Session>,
    from: SocketAddr,
    decoder: Decoder,
    task: Task,
    /// Ranges of the write that is coming, as offsets in its region.
    ranges: Vec<Range>,
    replies: VecDeque<Reply>,
    front_sent: u64,
    front_cursor: Cursor,
    staged: Outgoing,
    /// Memory of answers that wait for the peer, and of lists of ranges.
    held_bytes: u64,
    spare: Spare,
    host: Option<HostPeer>,
    jobs: VecDeque<HostJob>,
    /// For the handler; `open_calls` has those in it that are there already.
    calls: VecDeque<Call>,
    calls_bytes: u64,
    open_calls: usize,
    going_away: bool,
    pub(crate) errands: Vec<Errand>,
}

impl Responder {
    pub(crate) fn new(service: Arc<Service>, session: Arc<Session>, from: SocketAddr) -> Self {
        Self {
            service,
            session,
            from,
            decoder: Decoder::new(),
            task: Task::Idle,
            ranges: Vec::new(),
            replies: VecDeque::new(),
            front_sent: 0,
            front_cursor: Cursor::default(),
            staged: Outgoing::default(),
            held_bytes: 0,
            spare: Spare::default(),
            host: None,
            jobs: VecDeque::new(),
            calls: VecDeque::new(),
            calls_bytes: 0,
            open_calls: 0,
            going_away: false,
            errands: Vec::new(),
        }
    }

    /// Whether more requests should be taken off the socket: false while too much waits for the handler or the peer.
    pub(crate) fn wants_input(&self) -> bool {
        let limit = self.service.limits.lane_requests.max(1);
        self.held_bytes + self.calls_bytes < MAX_HELD_BYTES
            && self.replies.len() + self.jobs.len() + self.open_calls < 2 * limit
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.replies.is_empty()
    }

    /// Whether a frame has come in part: the peer owes bytes.
    pub(crate) fn is_mid_frame(&self) -> bool {
        !self.decoder.is_idle()
    }

    /// Whether nothing is half-done: the lane could be closed without loss.
    pub(crate) fn is_idle(&self) -> bool {
        !self.is_mid_frame() && self.replies.is_empty() && self.jobs.is_empty() && self.open_calls == 0
    }

    /// Tells the peer to send no more requests.
    pub(crate) fn go_away(&mut self) {
        if !std::mem::replace(&mut self.going_away, true) {
            let header =
                Header { kind: Kind::GoAway as u8, flags: 0, code: 0, meta_len: 0, id: 0, payload_len: 0 };
            self.reply(header, Body::None);
        }
    }

    // ---- incoming ------------------------------------------------------------------------------------------------

    /// The region that the payload that is coming belongs to, and where in it; see [`Initiator::scatter`].
    ///
    /// [`Initiator::scatter`]: crate::initiator::Initiator::scatter
    pub(crate) fn scatter<'a>(&'a self, out: &mut Scatter<'a>, limit: u64) -> Option<&'a RegionInner> {
        let Task::Write { region, cursor, .. } = &self.task else { return None };
        if region.device().is_some() {
            return None;
        }
        let mut left = self.decoder.payload_left().min(limit);
        for r in cursor.rest(&self.ranges) {
            if left == 0 || out.is_full() {
                break;
            }
            let len = r.len.min(left);
            out.push_memory(&*region.memory, r.at as usize, len as usize);
            left -= len;
        }
        Some(region)
    }

    /// Whether the payload that is coming belongs in a device.
    pub(crate) fn is_staging(&self) -> bool {
        matches!(&self.task, Task::Write { region, .. } if region.device().is_some())
    }

    /// So many bytes have been received where [`scatter`](Self::scatter) said.
    pub(crate) fn received(&mut self, n: u64) {
        self.decoder.skip_payload(n);
        if let Task::Write { cursor, .. } = &mut self.task {
            cursor.advance(&self.ranges, n);
        }
        if self.decoder.payload_left() == 0 {
            self.finish();
        }
    }

    /// The region was revoked while its payload was coming: the rest goes nowhere.
    pub(crate) fn write_revoked(&mut self) {
        if let Task::Write { id, .. } = self.task {
            self.task = Task::Refused { id, code: Refusal::Revoked };
        }
    }

    /// Takes bytes of the stream.
    pub(crate) fn feed(&mut self, mut input: &[u8]) -> Result<(), Malformed> {
        let mut decoder = std::mem::take(&mut self.decoder);
        let result = loop {
            match decoder.step(&mut input) {
                Err(e) => break Err(e),
                Ok(Step::Starved) => break Ok(()),
                Ok(Step::Frame(header, meta)) => {
                    if let Err(e) = self.frame(header, meta) {
                        break Err(e);
                    }
                }
                Ok(Step::Payload(bytes)) => self.payload(bytes),
            }
            if decoder.payload_left() == 0 {
                self.finish();
            }
        };
        self.decoder = decoder;
        result
    }

    fn frame(&mut self, header: Header, meta: &[u8]) -> Result<(), Malformed> {
        let id = header.id;
        let mut r = Reader(meta);
        let Some(kind) = Kind::from_byte(header.kind) else {
            // A later version's request: its length is known, so it can be refused and skipped.
            self.task = Task::Refused { id, code: Refusal::Unsupported };
            return Ok(());
        };
        if header.code != 0 || header.flags & !FLAG_IMMEDIATE != 0 {
            return Err(Malformed("unknown flags or a code in a request"));
        }
        let has_payload = matches!(kind, Kind::Write | Kind::Notify | Kind::Call);
        if !has_payload && header.payload_len > 0 {
            return Err(Malformed("payload where there is none"));
        }
        match kind {
            Kind::Read => {
                let (key, mut ranges) = (wire::get_key(&mut r)?, self.spare.take());
                let bytes = wire::get_ranges(&mut r, &mut ranges)?;
                r.end()?;
                match self.resolve(key, Access::READ, &mut ranges) {
                    Ok(region) => {
                        self.service.counters.bytes_served_read.add(bytes);
                        self.reply(Header::answer(id, 0, bytes), Body::Memory(region, ranges));
                    }
                    Err(code) => {
                        self.spare.keep(ranges);
                        self.refuse(id, code);
                    }
                }
            }
            Kind::Write => {
                let key = wire::get_key(&mut r)?;
                let event = get_immediate(&mut r, header.flags)?;
                let mut ranges = std::mem::take(&mut self.ranges);
                let bytes = wire::get_ranges(&mut r, &mut ranges)?;
                r.end()?;
                if bytes != header.payload_len {
                    return Err(Malformed("a write's payload is not as long as its ranges"));
                }
                self.task = match self.resolve(key, Access::WRITE, &mut ranges) {
                    Ok(region) => Task::Write { id, region, cursor: Cursor::default(), bytes, event },
                    Err(code) => Task::Refused { id, code },
                };
                self.ranges = ranges;
            }
            Kind::HostRead | Kind::HostWrite => {
                let key = wire::get_key(&mut r)?;
                let event = get_immediate(&mut r, header.flags)?;
                let (mut ours, mut theirs) = (self.spare.take(), self.spare.take());
                let bytes = wire::get_ranges(&mut r, &mut ours)?;
                if wire::get_ranges(&mut r, &mut theirs)? != bytes {
                    return Err(Malformed("the two sides of a copy differ in length"));
                }
                r.end()?;
                let (way, access) = match kind {
                    Kind::HostRead => (HostCopy::Out, Access::READ),
                    _ => (HostCopy::In, Access::WRITE),
                };
                let region = if self.host.is_some() {
                    self.resolve(key, access, &mut ours)
                } else {
                    Err(Refusal::Unsupported)
                };
                match region {
                    Ok(region) => {
                        let job = HostJob::new(id, way, region, ours, theirs, bytes, event);
                        self.held_bytes += job.held();
                        self.jobs.push_back(job);
                    }
                    Err(code) => {
                        self.spare.keep(ours);
                        self.spare.keep(theirs);
                        self.refuse(id, code);
                    }
                }
            }
            Kind::Notify | Kind::Call => {
                let event = Event::get(&mut r)?;
                r.end()?;
                self.task = if header.payload_len > self.service.limits.message as u64 {
                    Task::Refused { id, code: Refusal::TooLarge }
                } else {
                    Task::Message { kind, id, event, bytes: Vec::new() }
                };
            }
            Kind::Ping => {
                r.end()?;
                self.answer(id, 0);
            }
            Kind::Cancel => {
                let target = r.u64()?;
                r.end()?;
                self.cancel(target);
                self.answer(id, 0);
            }
            Kind::Supersede => {
                let lane = r.u64()?;
                r.end()?;
                self.errands.push(Errand::Supersede { id, lane });
            }
            Kind::Immediate => {
                let event = Event::get(&mut r)?;
                let (immediate, bytes) = (r.u64()?, r.u64()?);
                r.end()?;
                let code = self.deliver(event, immediate, bytes);
                self.answer(id, code);
            }
            Kind::HostProbe => {
                let address = r.u64()?;
                r.end()?;
                self.errands.push(Errand::HostProbe { id, address });
            }
            Kind::Answer | Kind::GoAway => return Err(Malformed("the asking side sent an answer")),
        }
        Ok(())
    }

    /// Checks key, right and bounds, and turns addresses into offsets.
    fn resolve(
        &self,
        key: RegionKey,
        wanted: Access,
        ranges: &mut [Range],
    ) -> Result<Arc<RegionInner>, Refusal> {
        let region = self.service.regions.find(key, wanted)?;
        for r in ranges {
            r.at = region.offset(r.at, r.len).ok_or(Refusal::OutOfBounds)?;
        }
        Ok(region)
    }

    fn payload(&mut self, bytes: &[u8]) {
        let mut refusal = None;
        match &mut self.task {
            Task::Idle | Task::Refused { .. } => {}
            Task::Message { bytes: message, .. } => message.extend_from_slice(bytes),
            Task::Write { region, cursor, .. } => {
                let ranges = &self.ranges;
                let copied = region.enter(|| {
                    if let Some(device) = region.device() {
                        return staging::copy_in(device, ranges, *cursor, bytes);
                    }
                    let mut left = bytes;
                    for r in cursor.rest(ranges) {
                        let (now, later) = left.split_at(left.len().min(r.len as usize));
                        seam::copy_in(&*region.memory, r.at as usize, now);
                        left = later;
                        if left.is_empty() {
                            break;
                        }
                    }
                    Ok(())
                });
                cursor.advance(ranges, bytes.len() as u64);
                refusal = match copied {
                    Ok(Ok(())) => None,
                    Ok(Err(text)) => {
                        static FAILED: Seldom = Seldom::new();
                        if let Some(nth) = FAILED.again() {
                            tracing::warn!(peer = %self.from, "copying to device memory failed ({nth} so far): {text}");
                        }
                        Some(Refusal::DeviceCopy)
                    }
                    Err(revoked) => Some(revoked),
                };
            }
        }
        if let (Some(code), Task::Write { id, .. }) = (refusal, &self.task) {
            self.task = Task::Refused { id: *id, code };
        }
    }

    /// The current frame's payload is whole.
    fn finish(&mut self) {
        match std::mem::replace(&mut self.task, Task::Idle) {
            Task::Idle => {}
            Task::Refused { id, code } => self.refuse(id, code),
            Task::Write { id, region, bytes, event, .. } => {
                if let Some(device) = region.device() {
                    // Complete means visible, and revoking waits for it.
                    match region.enter(|| device.flush()) {
                        Ok(Ok(())) => {}
                        Ok(Err(_)) => return self.refuse(id, Refusal::DeviceCopy),
                        Err(revoked) => return self.refuse(id, revoked),
                    }
                }
                #[cfg(feature = "planted")]
                crate::planted::late_write(&region, &self.ranges);
                self.service.counters.bytes_served_written.add(bytes);
                let code = event.map_or(0, |(event, immediate)| self.deliver(event, immediate, bytes));
                self.answer(id, code);
            }
            Task::Message { kind: Kind::Call, id, event, bytes } => {
                let code = self.session.once(event, || self.service.reserve_call());
                if code == 0 {
                    self.queue_call(Call { id, request: bytes });
                } else {
                    self.answer(id, code);
                }
            }
            Task::Message { id, event, bytes, .. } => {
                let (from, session) = (self.from, self.session.id);
                let queue = &self.service.notifications;
                let code = self.session.once(event, || queue.offer(Notification { bytes, from, session }));
                self.answer(id, code);
            }
        }
    }

    fn deliver(&self, event: Event, immediate: u64, bytes: u64) -> u16 {
        let arrival = Arrival { immediate, bytes, from: self.from, session: self.session.id };
        self.session.once(event, || self.service.arrivals.offer(arrival))
    }

    /// Forgets what has not been begun: after this, nothing is done for `id` any more.
    fn cancel(&mut self, id: u64) {
        let first = usize::from(self.front_sent > 0);
        for reply in self.replies.iter_mut().skip(first) {
            let header = Header::from_bytes(&reply.head);
            if header.id == id && header.payload_len > 0 {
                reply.head = Header::answer(id, Refusal::Cancelled as u16, 0).to_bytes();
                self.held_bytes -= reply.body.held();
                reply.payload_len = 0;
                reply.body = Body::None;
            }
        }
        if let Some(job) = self.jobs.iter().position(|j| j.id == id).and_then(|at| self.jobs.remove(at)) {
            self.held_bytes -= job.held();
            self.answer(id, Refusal::Cancelled as u16);
        }
    }

    // ---- the same-host path --------------------------------------------------------------------------------------

    /// The other process has proved who it is, or not.
    pub(crate) fn set_host(&mut self, id: u64, host: Option<HostPeer>) {
        let code = if host.is_some() { 0 } else { Refusal::HostCopy as u16 };
        self.host = host;
        self.answer(id, code);
    }

    pub(crate) fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Copies up to `budget` bytes between the two processes; a job that ends is answered.
    pub(crate) fn run_jobs(&mut self, mut budget: u64) {
        while budget > 0 {
            let (Some(job), Some(host)) = (self.jobs.front_mut(), &self.host) else { return };
            let copied = job.run(host, budget);
            budget = budget.saturating_sub(copied.as_ref().map_or(budget, |&n| n));
            let code = match copied {
                Ok(_) if job.is_done() => None,
                Ok(_) => continue,
                Err(code) => Some(code),
            };
            let Some(job) = self.jobs.pop_front() else { return };
            self.held_bytes -= job.held();
            let code = match code {
                Some(code) => code as u16,
                None => {
                    let counter = match job.way {
                        HostCopy::In => &self.service.counters.bytes_served_written,
                        HostCopy::Out => &self.service.counters.bytes_served_read,
                    };
                    counter.add(job.bytes);
                    job.event.map_or(0, |(event, immediate)| self.deliver(event, immediate, job.bytes))
                }
            };
            self.answer(job.id, code);
            let (ours, theirs) = job.into_ranges();
            self.spare.keep(ours);
            self.spare.keep(theirs);
        }
    }
}

fn get_immediate(r: &mut Reader<'_>, flags: u8) -> Result<Option<(Event, u64)>, Malformed> {
    if flags & FLAG_IMMEDIATE == 0 {
        return Ok(None);
    }
    Ok(Some((Event::get(r)?, r.u64()?)))
}

impl Session {
    /// Runs `deliver` unless it has been run for this event before; returns the code of the answer.
    pub(crate) fn once(&self, event: Event, deliver: impl FnOnce() -> bool) -> u16 {
        let mut window = crate::sync::lock(&self.events);
        window.raise(event.floor);
        match window.seen(event.number) {
            Seen::Before => Refusal::Duplicate as u16,
            Seen::TooFar => Refusal::Unsupported as u16,
            Seen::New if deliver() => {
                window.finish(event.number);
                0
            }
            Seen::New => Refusal::Busy as u16,
        }
    }
}

impl Drop for Responder {
    /// Calls whose lane is gone no longer take room.
    fn drop(&mut self) {
        for _ in 0..self.open_calls {
            self.service.release_call();
        }
    }
}
