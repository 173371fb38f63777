//! What a caller asks for: requests, and batches of them.

use std::sync::Arc;
use std::time::Duration;

use crate::error::Error;
use crate::peer::Peer;
use crate::region::{Access, Region, RegionDescriptor, RegionInner, RegionKey};

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
    pub const fn contiguous(addr: u64, len: u64) -> Self {
        Self::Contiguous { addr, len }
    }

    /// Total length in bytes; `None` if it does not fit 64 bits.
    pub fn len(&self) -> Option<u64> {
        match *self {
            Self::Contiguous { len, .. } => Some(len),
            Self::Paged { page_len, addrs } => page_len.checked_mul(addrs.len() as u64),
            Self::Strided { block_len, count, .. } => block_len.checked_mul(count),
            Self::Scatter(ranges) => ranges.iter().try_fold(0_u64, |sum, r| sum.checked_add(r.1)),
        }
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// Calls `each` with every range in order; stops at the first error.
    pub(crate) fn for_each(&self, mut each: impl FnMut(u64, u64) -> Result<(), Error>) -> Result<(), Error> {
        let wraps = || Error::Request("a strided range wraps around the address space".into());
        match *self {
            Self::Contiguous { addr, len } => each(addr, len),
            Self::Paged { page_len, addrs } => addrs.iter().try_for_each(|&a| each(a, page_len)),
            Self::Strided { addr, block_len, stride, count } => (0..count).try_for_each(|i| {
                let at = i.checked_mul(stride).and_then(|d| addr.checked_add(d)).ok_or_else(wraps)?;
                each(at, block_len)
            }),
            Self::Scatter(ranges) => ranges.iter().try_for_each(|&(a, l)| each(a, l)),
        }
    }
}

/// Which way the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Op {
    /// From the peer's memory to local memory.
    Read,
    /// From local memory to the peer's memory. Complete means visible there.
    Write,
}

/// One read or write between a local region and a remote one. Both sides may have any [`Shape`], of the same total length;
/// the n-th byte of one side belongs to the n-th byte of the other.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// Which way the bytes go.
    pub op: Op,
    /// The peer that owns the remote region.
    pub peer: &'a Peer,
    /// The local region.
    pub local: &'a Region,
    /// Where in the local region.
    pub local_shape: Shape<'a>,
    /// The remote region.
    pub remote: RegionDescriptor,
    /// Where in the remote region.
    pub remote_shape: Shape<'a>,
    /// Writes only: delivered once to the peer's [`Arrivals`](crate::Arrivals) after all the bytes are visible there.
    pub immediate: Option<u64>,
}

impl<'a> Request<'a> {
    /// Reads `len` bytes from `remote_addr` to `local_addr`.
    pub fn read(
        peer: &'a Peer,
        local: &'a Region,
        local_addr: u64,
        remote: RegionDescriptor,
        remote_addr: u64,
        len: u64,
    ) -> Self {
        let (local_shape, remote_shape) =
            (Shape::contiguous(local_addr, len), Shape::contiguous(remote_addr, len));
        Self { op: Op::Read, peer, local, local_shape, remote, remote_shape, immediate: None }
    }

    /// Writes `len` bytes from `local_addr` to `remote_addr`.
    pub fn write(
        peer: &'a Peer,
        local: &'a Region,
        local_addr: u64,
        remote: RegionDescriptor,
        remote_addr: u64,
        len: u64,
    ) -> Self {
        Self { op: Op::Write, ..Self::read(peer, local, local_addr, remote, remote_addr, len) }
    }

    /// The same request with an immediate.
    #[must_use]
    pub fn with_immediate(self, immediate: u64) -> Self {
        Self { immediate: Some(immediate), ..self }
    }
}

/// The longest request, in bytes: what an x86-64 process can address.
pub(crate) const MAX_REQUEST_BYTES: u64 = 1 << 47;

/// Requests to be submitted together. A batch can be reused: submitting empties it and keeps its allocations.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) requests: Vec<Stored>,
    pub(crate) local: Vec<Range>,
    pub(crate) remote: Vec<Range>,
    pub(crate) deadline: Option<Duration>,
}

/// A range of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Range {
    /// Local: offset in the region. Remote: absolute address.
    pub(crate) at: u64,
    pub(crate) len: u64,
}

/// A request of a batch; its ranges lie in the batch's lists.
#[derive(Debug)]
pub(crate) struct Stored {
    pub(crate) op: Op,
    pub(crate) peer: Peer,
    pub(crate) region: Arc<RegionInner>,
    pub(crate) remote_key: RegionKey,
    pub(crate) bytes: u64,
    pub(crate) immediate: Option<u64>,
    pub(crate) local: std::ops::Range<usize>,
    pub(crate) remote: std::ops::Range<usize>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.requests.len()
    }

    /// Whether there are no requests.
    pub fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    /// Removes all requests, keeps the allocations and the deadline.
    pub fn clear(&mut self) {
        self.requests.clear();
        self.local.clear();
        self.remote.clear();
    }

    /// Time from submission to the end of each request, at the latest; [`Deadlines::request`](crate::Deadlines) unless set.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.deadline = Some(deadline);
    }

    /// Adds a request and returns its index.
    ///
    /// # Errors
    /// The batch stays as it was.
    /// - [`Error::Request`]: no bytes, sides of different length, an immediate on a read, a stride shorter than its
    ///   block;
    /// - [`Error::OutOfBounds`]: a range is not inside its region;
    /// - [`Error::AccessDenied`]: the descriptor does not grant the right.
    pub fn push(&mut self, request: Request<'_>) -> Result<usize, Error> {
        let (locals, remotes) = (self.local.len(), self.remote.len());
        let result = self.try_push(request);
        if result.is_err() {
            self.local.truncate(locals);
            self.remote.truncate(remotes);
        }
        result
    }

    fn try_push(&mut self, request: Request<'_>) -> Result<usize, Error> {
        let Request { op, peer, local, local_shape, remote, remote_shape, immediate } = request;
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
        for shape in [local_shape, remote_shape] {
            if let Shape::Strided { block_len, stride, count, .. } = shape
                && (stride < block_len && count > 1)
            {
                return Err(Error::Request(format!(
                    "stride {stride} is shorter than its block of {block_len}"
                )));
            }
        }
        let (right, name) = match op {
            Op::Read => (Access::READ, "reading"),
            Op::Write => (Access::WRITE, "writing"),
        };
        if !remote.access.allows(right) {
            return Err(Error::AccessDenied { side: "remote", wanted: name });
        }
        let outside = |side, addr, len, region_addr, region_len| {
            Err(Error::OutOfBounds { side, addr, len, region_addr, region_len })
        };
        let locals = self.local.len();
        local_shape.for_each(|addr, len| match local.inner.offset(addr, len) {
            Some(at) => {
                push_merged(&mut self.local, locals, Range { at, len });
                Ok(())
            }
            None => outside("local", addr, len, local.addr(), local.len()),
        })?;
        let remotes = self.remote.len();
        remote_shape.for_each(|addr, len| {
            let inside = addr.checked_sub(remote.addr).and_then(|o| o.checked_add(len));
            if inside.is_none_or(|end| end > remote.len) {
                return outside("remote", addr, len, remote.addr, remote.len);
            }
            push_merged(&mut self.remote, remotes, Range { at: addr, len });
            Ok(())
        })?;
        self.requests.push(Stored {
            op,
            peer: peer.clone(),
            region: Arc::clone(&local.inner),
            remote_key: remote.key,
            bytes,
            immediate,
            local: locals..self.local.len(),
            remote: remotes..self.remote.len(),
        });
        Ok(self.requests.len() - 1)
    }
}

/// Appends a range, joining it to the last one behind `floor` if they touch; empty ranges vanish.
pub(crate) fn push_merged(ranges: &mut Vec<Range>, floor: usize, range: Range) {
    if range.len == 0 {
        return;
    }
    if ranges.len() > floor
        && let Some(last) = ranges.last_mut()
        && last.at.checked_add(last.len) == Some(range.at)
    {
        last.len += range.len;
        return;
    }
    ranges.push(range);
}
