//! A slice: the part of a request that travels in one frame over one lane. Retried whole, on whichever lane.

use std::sync::Arc;
use std::time::Instant;

use crate::batch::Ticket;
use crate::region::{RegionInner, RegionKey};
use crate::request::Range;
use crate::wire::{self, Event, FLAG_IMMEDIATE, HEADER_LEN, Header, Kind};

/// A region while a slice uses it as its local side.
#[derive(Debug)]
pub(crate) struct LocalUse(Arc<RegionInner>);

impl LocalUse {
    pub(crate) fn new(region: &Arc<RegionInner>) -> Self {
        region.local_begin();
        Self(Arc::clone(region))
    }
    pub(crate) fn region(&self) -> &RegionInner {
        &self.0
    }
}

impl Drop for LocalUse {
    fn drop(&mut self) {
        self.0.local_end();
    }
}

/// See the module. Reused: [`clear`](Slice::clear) keeps the allocations.
#[derive(Debug)]
pub(crate) struct Slice {
    pub(crate) kind: Kind,
    /// To be told how it ends; internal requests have none.
    pub(crate) ticket: Option<Ticket>,
    pub(crate) local: Option<LocalUse>,
    /// Offsets in the local region.
    pub(crate) local_ranges: Vec<Range>,
    pub(crate) key: RegionKey,
    /// Absolute addresses at the peer.
    pub(crate) remote_ranges: Vec<Range>,
    /// Bytes read or written.
    pub(crate) bytes: u64,
    /// Notification, call, or the call's answer.
    pub(crate) message: Vec<u8>,
    /// Number within the session of what must be delivered once.
    pub(crate) event: Option<u64>,
    pub(crate) immediate: Option<u64>,
    /// Cancel: the wire id. Supersede: the lane. Host probe: the address. Immediate: bytes that it stands for.
    pub(crate) argument: u64,
    pub(crate) deadline: Instant,
    /// Not to be sent before: the peer was busy.
    pub(crate) not_before: Option<Instant>,
    /// How often it has been tried.
    pub(crate) attempts: u32,
    /// The first copy to its local device memory that failed.
    pub(crate) device_error: Option<String>,
}

impl Slice {
    pub(crate) fn empty(now: Instant) -> Self {
        Self {
            kind: Kind::Ping,
            ticket: None,
            local: None,
            local_ranges: Vec::new(),
            key: RegionKey([0; 16]),
            remote_ranges: Vec::new(),
            bytes: 0,
            message: Vec::new(),
            event: None,
            immediate: None,
            argument: 0,
            deadline: now,
            not_before: None,
            attempts: 0,
            device_error: None,
        }
    }

    /// An internal request.
    pub(crate) fn control(kind: Kind, argument: u64, deadline: Instant) -> Self {
        Self { kind, argument, ..Self::empty(deadline) }
    }

    pub(crate) fn clear(&mut self) {
        self.ticket = None;
        self.local = None;
        self.local_ranges.clear();
        self.remote_ranges.clear();
        self.message.clear();
        if self.message.capacity() > 1 << 16 {
            self.message = Vec::new();
        }
        self.event = None;
        self.immediate = None;
        self.argument = 0;
        self.bytes = 0;
        self.not_before = None;
        self.attempts = 0;
        self.device_error = None;
    }

    /// Whether another process could copy its local side.
    pub(crate) fn is_host_capable(&self) -> bool {
        self.local.as_ref().is_some_and(|l| l.region().device().is_none())
    }

    /// Payload bytes that follow its header.
    pub(crate) fn payload_len(&self) -> u64 {
        match self.kind {
            Kind::Write => self.bytes,
            Kind::Notify | Kind::Call => self.message.len() as u64,
            _ => 0,
        }
    }

    /// Writes header and metadata into `head`, which it empties first.
    pub(crate) fn encode(&self, id: u64, floor: u64, head: &mut Vec<u8>) {
        head.clear();
        head.resize(HEADER_LEN, 0);
        let event = self.event.map(|number| Event { number, floor: floor.min(number) });
        let mut flags = 0;
        match self.kind {
            Kind::Read | Kind::Write | Kind::HostRead | Kind::HostWrite => {
                wire::put_key(head, self.key);
                if let (Some(event), Some(immediate)) = (event, self.immediate) {
                    flags = FLAG_IMMEDIATE;
                    event.put(head);
                    head.extend_from_slice(&immediate.to_le_bytes());
                }
                wire::put_ranges(head, &self.remote_ranges);
                if matches!(self.kind, Kind::HostRead | Kind::HostWrite) {
                    let base = self.local.as_ref().map_or(0, |l| l.region().addr);
                    wire::put_ranges_at(head, &self.local_ranges, base);
                }
            }
            Kind::Notify | Kind::Call => {
                if let Some(event) = event {
                    event.put(head);
                }
            }
            Kind::Immediate => {
                if let (Some(event), Some(immediate)) = (event, self.immediate) {
                    event.put(head);
                    head.extend_from_slice(&immediate.to_le_bytes());
                    head.extend_from_slice(&self.argument.to_le_bytes());
                }
            }
            Kind::Cancel | Kind::Supersede | Kind::HostProbe => {
                head.extend_from_slice(&self.argument.to_le_bytes());
            }
            Kind::Ping | Kind::Answer | Kind::GoAway => {}
        }
        let header = Header {
            kind: self.kind as u8,
            flags,
            code: 0,
            meta_len: (head.len() - HEADER_LEN) as u32,
            id,
            payload_len: self.payload_len(),
        };
        head[..HEADER_LEN].copy_from_slice(&header.to_bytes());
    }
}

/// A place in a list of ranges.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Cursor {
    index: usize,
    within: u64,
}

impl Cursor {
    /// Moves forward by `n` bytes.
    pub(crate) fn advance(&mut self, ranges: &[Range], mut n: u64) {
        while n > 0 {
            let Some(range) = ranges.get(self.index) else { return };
            let left = range.len - self.within;
            if n < left {
                self.within += n;
                return;
            }
            n -= left;
            self.index += 1;
            self.within = 0;
        }
    }

    /// The ranges from here on.
    pub(crate) fn rest<'a>(&self, ranges: &'a [Range]) -> impl Iterator<Item = Range> + use<'a> {
        let Self { index, within } = *self;
        ranges.get(index..).unwrap_or_default().iter().enumerate().map(move |(i, r)| {
            let skip = if i == 0 { within } else { 0 };
            Range { at: r.at + skip, len: r.len - skip }
        })
    }
}

/// Copies the sub-range `skip..skip + take` (in bytes of the concatenation) of `ranges` to `out`.
pub(crate) fn cut(ranges: &[Range], cursor: &mut Cursor, take: u64, out: &mut Vec<Range>) {
    let mut left = take;
    for r in cursor.rest(ranges) {
        if left == 0 {
            break;
        }
        let len = r.len.min(left);
        out.push(Range { at: r.at, len });
        left -= len;
    }
    cursor.advance(ranges, take);
}
