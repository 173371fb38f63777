//! What a caller asks for: requests, and batches of them.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::peer::{PeerId, PeerTable};
use crate::region::{Access, Region, RegionInner};
use crate::route::Staging;

/// Where the bytes of one side lie, as absolute addresses in that side's address space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape<'a> {
    /// One range.
    Contiguous {
        /// First address.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Pages of equal length, in this order.
    Paged {
        /// Length of each page in bytes.
        page_len: u64,
        /// First address of each page.
        addrs: &'a [u64],
    },
    /// `count` blocks of `block_len` bytes, `stride` bytes from the start of one to the start of the next.
    Strided {
        /// First address of the first block.
        addr: u64,
        /// Length of each block in bytes.
        block_len: u64,
        /// Distance between the starts of two blocks in bytes; at least `block_len`.
        stride: u64,
        /// Number of blocks.
        count: u64,
    },
    /// Any ranges, (address, length in bytes), in this order.
    Scatter(&'a [(u64, u64)]),
}

impl Shape<'_> {
    /// One range.
    #[must_use]
    pub const fn contiguous(addr: u64, len: u64) -> Self {
        Self::Contiguous { addr, len }
    }

    /// Total length in bytes; `None` if it does not fit 64 bits.
    #[inline]
    #[must_use]
    pub fn len(&self) -> Option<u64> {
        match *self {
            Self::Contiguous { len, .. } => Some(len),
            Self::Paged { page_len, addrs } => page_len.checked_mul(addrs.len() as u64),
            Self::Strided { block_len, count, .. } => block_len.checked_mul(count),
            Self::Scatter(ranges) => ranges.iter().try_fold(0_u64, |sum, r| sum.checked_add(r.1)),
        }
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Appends the ranges in order; those that touch become one, and empty ones vanish. `Ok(false)` if not all lie `within`.
    #[inline]
    fn push_to(&self, ranges: &mut Vec<Range>, within: Range) -> Result<bool, Error> {
        if let Self::Contiguous { addr, len } = *self {
            let range = Range { at: addr, len };
            ranges.push(range);
            return Ok(within.contains(&range));
        }
        self.push_several_to(ranges, within)
    }

    fn push_several_to(&self, ranges: &mut Vec<Range>, within: Range) -> Result<bool, Error> {
        let from = ranges.len();
        match *self {
            Self::Contiguous { addr, len } => ranges.push(Range { at: addr, len }),
            Self::Paged { page_len, addrs } => {
                ranges.extend(addrs.iter().map(|&at| Range { at, len: page_len }));
                let (inside, mergeable) = look_at_pages(addrs, page_len, within);
                if inside && mergeable {
                    merge(ranges, from);
                }
                return Ok(inside);
            }
            Self::Strided { addr, block_len, stride, count } if stride == block_len => {
                ranges.push(Range { at: addr, len: block_len * count });
            }
            Self::Strided { addr, block_len, stride, count } => {
                for i in 0..count {
                    let at = i.checked_mul(stride).and_then(|d| addr.checked_add(d));
                    let wraps = || Error::Request("a strided range wraps around the address space".into());
                    ranges.push(Range { at: at.ok_or_else(wraps)?, len: block_len });
                }
            }
            Self::Scatter(list) => ranges.extend(list.iter().map(|&(at, len)| Range { at, len })),
        }
        let inside = ranges[from..].iter().all(|range| within.contains(range));
        if inside {
            merge(ranges, from);
        }
        Ok(inside)
    }

    #[inline]
    fn check(&self) -> Result<(), Error> {
        let Self::Strided { block_len, stride, count, .. } = *self else { return Ok(()) };
        let why = if stride < block_len && count > 1 {
            format!("stride {stride} is shorter than its block of {block_len}")
        } else if count > MAX_PIECES {
            format!("{count} blocks are more than {MAX_PIECES}; split the request")
        } else {
            return Ok(());
        };
        Err(Error::Request(why))
    }
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// From the peer's memory to local memory.
    Read,
    /// From local memory to the peer's memory.
    Write,
}

impl Op {
    /// What the local memory must allow.
    const fn needs(self) -> Access {
        match self {
            Self::Read => Access::READ,
            Self::Write => Access::WRITE,
        }
    }

    pub(crate) const fn wanted(self) -> &'static str {
        match self {
            Self::Read => "reading by peers",
            Self::Write => "writing by peers",
        }
    }
}

/// One read or write between a local region and a peer's memory. Both sides may have any [`Shape`], of the same total
/// length; the n-th byte of one side belongs to the n-th byte of the other.
///
/// Remote addresses are the peer's own virtual addresses. They may span several of its regions if those touch.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Which way the bytes go.
    pub op: Op,
    /// The peer that owns the remote memory.
    pub peer: PeerId,
    /// The local region.
    pub local: &'a Region,
    /// Where in the local region.
    pub local_shape: Shape<'a>,
    /// Where in the peer's memory.
    pub remote_shape: Shape<'a>,
    /// Writes only: delivered once to the peer's [`Arrivals`](crate::Arrivals) after all the bytes are there. EFA carries 32
    /// bits.
    pub immediate: Option<u32>,
}

impl<'a> Request<'a> {
    /// Reads `len` bytes from `remote_addr` to `local_addr`.
    #[must_use]
    pub fn read(peer: PeerId, local: &'a Region, local_addr: u64, remote_addr: u64, len: u64) -> Self {
        let (local_shape, remote_shape) =
            (Shape::contiguous(local_addr, len), Shape::contiguous(remote_addr, len));
        Self { op: Op::Read, peer, local, local_shape, remote_shape, immediate: None }
    }

    /// Writes `len` bytes from `local_addr` to `remote_addr`.
    #[must_use]
    pub fn write(peer: PeerId, local: &'a Region, local_addr: u64, remote_addr: u64, len: u64) -> Self {
        Self { op: Op::Write, ..Self::read(peer, local, local_addr, remote_addr, len) }
    }

    /// The same request with an immediate.
    #[must_use]
    pub fn with_immediate(self, immediate: u32) -> Self {
        Self { immediate: Some(immediate), ..self }
    }
}

/// The most blocks of one strided range; keeps one request's list below 1 GiB.
pub const MAX_PIECES: u64 = 1 << 26;

/// The longest request, in bytes: what an x86-64 process can address.
pub const MAX_REQUEST_BYTES: u64 = 1 << 47;

/// Requests to be submitted together. A batch can be reused: submitting empties it and keeps its allocations.
///
/// A request in a batch keeps its local region registered; [`clear`](Self::clear) lets go.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) requests: Vec<Stored>,
    pub(crate) local: Vec<Range>,
    pub(crate) remote: Vec<Range>,
    pub(crate) deadline: Option<Duration>,
    /// What its only peer is to be taken for, if not for what its descriptor says: a rehearsal's.
    pub(crate) table: Option<Arc<PeerTable>>,
    /// Kept for its allocations.
    pub(crate) staging: Staging,
}

/// A range of absolute addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Range {
    pub(crate) at: u64,
    pub(crate) len: u64,
}

impl Range {
    /// All addresses.
    const ALL: Self = Self { at: 0, len: u64::MAX };

    #[inline]
    pub(crate) const fn contains(&self, other: &Self) -> bool {
        other.len <= self.len && other.at.wrapping_sub(self.at) <= self.len - other.len
    }
}

/// A request of a batch; its ranges lie in the batch's lists.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) op: Op,
    pub(crate) peer: PeerId,
    pub(crate) region: Arc<RegionInner>,
    pub(crate) bytes: u64,
    pub(crate) immediate: Option<u32>,
    pub(crate) local: std::ops::Range<usize>,
    pub(crate) remote: std::ops::Range<usize>,
}

impl Batch {
    /// An empty batch.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of requests.
    #[must_use]
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there are no requests.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Removes all requests, keeps the allocations and the deadline.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.local.clear();
        self.remote.clear();
    }

    /// A write of memory that nobody else may use, to a peer that is taken for what `table` says.
    pub(crate) fn rehearsal(
        peer: PeerId,
        region: Arc<RegionInner>,
        table: Arc<PeerTable>,
        op: Op,
        (here, there): (u64, u64),
        len: u64,
    ) -> Self {
        let stored = Stored { op, peer, region, bytes: len, immediate: None, local: 0..1, remote: 0..1 };
        Self {
            requests: vec![stored],
            local: vec![Range { at: here, len }],
            remote: vec![Range { at: there, len }],
            table: Some(table),
            ..Self::default()
        }
    }

    /// Time from submission to the end of each request, at the latest;
    /// [`Config::request_deadline`](crate::Config::request_deadline) unless set. From a second on, a request that is alone in its batch may
    /// end with the kernel's next tick after that, at most 10 ms later.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = Some(deadline);
    }

    /// Adds a request and returns its index. The local side is checked here, the remote side when the batch is submitted.
    ///
    /// # Errors
    /// The batch stays as it was.
    /// - [`Error::Request`]: no bytes, sides of different length, an immediate on a read, a stride shorter than its
    ///   block;
    /// - [`Error::OutOfBounds`], [`Error::AccessDenied`], [`Error::Unregistered`]: the local region does not allow it.
    #[inline]
    pub fn push(&mut self, request: Request<'_>) -> Result<usize, Error> {
        if let Some(index) = self.push_plain(&request) {
            return Ok(index);
        }
        let (locals, remotes) = (self.local.len(), self.remote.len());
        let result = self.try_push(request);
        if result.is_err() {
            self.local.truncate(locals);
            self.remote.truncate(remotes);
        }
        result
    }

    /// Adds a request that is one range on either side. `None` if it is not, or if there is something to be said about it: then
    /// nothing has happened.
    #[inline]
    fn push_plain(&mut self, request: &Request<'_>) -> Option<usize> {
        let &Request { op, peer, local, local_shape, remote_shape, immediate } = request;
        let (Shape::Contiguous { addr: here, len: bytes }, Shape::Contiguous { addr: there, len }) =
            (local_shape, remote_shape)
        else {
            return None;
        };
        let (here, there) = (Range { at: here, len: bytes }, Range { at: there, len });
        let fits = bytes == len && (1..=MAX_REQUEST_BYTES).contains(&bytes) && immediate.is_none();
        if !fits || !Range::ALL.contains(&there) || !local.access().contains(op.needs()) {
            return None;
        }
        let region = local.in_use()?;
        if !region.range().contains(&here) {
            return None;
        }
        let (locals, remotes) = (self.local.len(), self.remote.len());
        self.local.push(here);
        self.remote.push(there);
        let (local, remote) = (locals..locals + 1, remotes..remotes + 1);
        self.requests.push(Stored { op, peer, region, bytes, immediate, local, remote });
        Some(self.requests.len() - 1)
    }

    #[inline(never)]
    fn try_push(&mut self, request: Request<'_>) -> Result<usize, Error> {
        let Request { op, peer, local, local_shape, remote_shape, immediate } = request;
        local_shape.check()?;
        remote_shape.check()?;
        let bytes = local_shape
            .len()
            .filter(|&n| n > 0 && n <= MAX_REQUEST_BYTES)
            .ok_or_else(|| Error::Request(format!("a request must have 1 to {MAX_REQUEST_BYTES} bytes")))?;
        if remote_shape.len() != Some(bytes) {
            return Err(Error::Request(format!(
                "the local side has {bytes} bytes and the remote side {:?}",
                remote_shape.len()
            )));
        }
        if immediate.is_some() && op == Op::Read {
            return Err(Error::Request("a read cannot carry an immediate".into()));
        }
        if !local.access().contains(op.needs()) {
            let wanted = match op {
                Op::Read => "being read into",
                Op::Write => "being written from",
            };
            return Err(Error::AccessDenied { wanted });
        }
        let inner = local.inner()?;
        let (locals, remotes) = (self.local.len(), self.remote.len());
        let region = inner.range();
        if !local_shape.push_to(&mut self.local, region)? {
            let outside = self.local[locals..].iter().find(|range| !region.contains(range));
            let Range { at: addr, len } = outside.copied().unwrap_or(region);
            return Err(Error::OutOfBounds { addr, len, region_addr: region.at, region_len: region.len });
        }
        if !remote_shape.push_to(&mut self.remote, Range::ALL)? {
            return Err(Error::Request("a remote range reaches past 2^64".into()));
        }
        self.requests.push(Stored {
            op,
            peer,
            region: inner,
            bytes,
            immediate,
            local: locals..self.local.len(),
            remote: remotes..self.remote.len(),
        });
        Ok(self.requests.len() - 1)
    }
}

/// Whether all pages lie `within`, and whether some of them touch (or have no bytes). Without a way out of the loop: pages of a
/// cache are hardly ever outside or neighbours.
fn look_at_pages(addrs: &[u64], page_len: u64, within: Range) -> (bool, bool) {
    let Some(room) = within.len.checked_sub(page_len) else { return (addrs.is_empty(), false) };
    let (mut outside, mut touching, mut end) = (0, u64::from(page_len == 0), u64::MAX);
    for &at in addrs {
        outside |= u64::from(at.wrapping_sub(within.at) > room);
        touching |= u64::from(at == end);
        end = at.wrapping_add(page_len);
    }
    (outside == 0, touching != 0)
}

/// From index `from` on, joins ranges that touch and drops empty ones. None reaches past 2^64.
fn merge(ranges: &mut Vec<Range>, from: usize) {
    let mut kept = from;
    for index in from..ranges.len() {
        let range = ranges[index];
        if range.len == 0 {
            continue;
        }
        if kept > from && ranges[kept - 1].at.wrapping_add(ranges[kept - 1].len) == range.at {
            ranges[kept - 1].len += range.len;
        } else {
            ranges[kept] = range;
            kept += 1;
        }
    }
    ranges.truncate(kept);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_are_joined_within_a_request_only() {
        let all = Range { at: 0, len: u64::MAX };
        let mut ranges = vec![Range { at: 0, len: 10 }];
        let scattered = Shape::Scatter(&[(10, 5), (15, 5), (30, 0), (19, 5), (24, 1)]);
        assert!(scattered.push_to(&mut ranges, all).unwrap());
        let expected = [(0, 10), (10, 10), (19, 6)].map(|(at, len)| Range { at, len });
        assert_eq!(ranges, expected);
        ranges.clear();
        assert!(Shape::Scatter(&[(0, 0), (0, 5)]).push_to(&mut ranges, all).unwrap());
        assert_eq!(ranges, [Range { at: 0, len: 5 }], "from address 0");
        ranges.clear();
        assert!(Shape::Paged { page_len: 8, addrs: &[8, 16, 0] }.push_to(&mut ranges, all).unwrap());
        assert_eq!(ranges, [(8, 16), (0, 8)].map(|(at, len)| Range { at, len }));
    }

    #[test]
    fn ranges_outside_are_found() {
        let inside = |within: (u64, u64), range: (u64, u64)| {
            let within = Range { at: within.0, len: within.1 };
            Shape::Scatter(&[range]).push_to(&mut Vec::new(), within).unwrap()
        };
        assert!(inside((100, 10), (100, 10)) && inside((100, 10), (105, 5)) && inside((100, 10), (110, 0)));
        assert!(!inside((100, 10), (99, 5)) && !inside((100, 10), (105, 6)) && !inside((100, 10), (0, 200)));
        assert!(inside((0, u64::MAX), (u64::MAX - 2, 2)) && !inside((0, u64::MAX), (u64::MAX - 1, 2)));
    }

    #[test]
    fn lengths_that_overflow_are_no_lengths() {
        assert_eq!(Shape::Paged { page_len: u64::MAX, addrs: &[0, 0] }.len(), None);
        assert_eq!(Shape::Strided { addr: 0, block_len: 1 << 40, stride: 0, count: 1 << 40 }.len(), None);
        assert_eq!(Shape::Scatter(&[(0, u64::MAX), (0, 1)]).len(), None);
        assert!(Shape::contiguous(5, 0).is_empty());
        assert!(Shape::Strided { addr: 0, block_len: 8, stride: 7, count: 2 }.check().is_err());
        assert!(Shape::Strided { addr: 0, block_len: 0, stride: 7, count: u64::MAX }.check().is_err());
    }
}
