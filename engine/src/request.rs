//! Batches of reads and writes: what a program asks for.

use std::time::Duration;

use tcp_transport::Op;

use crate::arrivals::immediate;
use crate::error::Error;
use crate::memory::{Access, Region};
use crate::path::Chosen;
use crate::segment::Segment;

pub use tcp_transport::Shape;

/// Reads and writes to be submitted together, to one segment or to many. Both sides of a request may have any [`Shape`] of the
/// same total length; addresses are absolute, each in its own process. The remote side of a request lies in one buffer of its
/// segment. A batch can be reused: submitting empties it and keeps its allocations.
///
/// A request is for the registration that the segment knew when the request was added. If the peer has unregistered that memory
/// or has been restarted since, the request fails; it is never carried out on whatever lies at the address now.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) tcp: tcp_transport::Batch,
    #[cfg(feature = "efa")]
    pub(crate) fabric: efa_transport::Batch,
    #[cfg(feature = "mooncake")]
    pub(crate) mooncake: crate::mooncake::Batch,
    pub(crate) parts: Parts,
    pub(crate) deadline: Option<Duration>,
    pub(crate) notification: Option<Vec<u8>>,
}

/// What the engine remembers of the requests of a batch. Reused, so that steady traffic allocates nothing for it.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    pub(crate) slots: Vec<Slot>,
    /// The segments that requests go to, each once.
    pub(crate) segments: Vec<Segment>,
    /// What it takes to send requests over TCP that are on their way over libfabric.
    #[cfg(feature = "efa")]
    pub(crate) kept: crate::kept::Kept,
}

/// One request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slot {
    pub(crate) place: Place,
    pub(crate) op: Op,
    pub(crate) bytes: u64,
    /// Index into [`Parts::segments`].
    pub(crate) segment: u32,
}

/// Which transport has a request, and its index there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Place {
    Tcp(usize),
    #[cfg(feature = "mooncake")]
    Mooncake(usize),
    #[cfg(feature = "efa")]
    Fabric {
        at: usize,
        /// Index into [`Parts::kept`], where it may go over TCP in the end.
        kept: Option<u32>,
    },
}

impl Parts {
    pub(crate) fn clear(&mut self) {
        self.slots.clear();
        self.segments.clear();
        #[cfg(feature = "efa")]
        self.kept.clear();
    }

    /// The segment's index, a new one if it is new. Usually it is the one of the request before.
    fn segment(&mut self, segment: &Segment) -> u32 {
        let at = self.segments.iter().rposition(|known| known.is(segment)).unwrap_or_else(|| {
            self.segments.push(segment.clone());
            self.segments.len() - 1
        });
        at as u32
    }
}

/// A request as the program states it.
#[derive(Clone, Copy)]
struct Asked<'a> {
    op: Op,
    local: &'a Region,
    local_shape: Shape<'a>,
    segment: &'a Segment,
    remote_shape: Shape<'a>,
    tag: Option<u16>,
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.parts.slots.len()
    }

    /// Whether there are no requests.
    pub fn is_empty(&self) -> bool {
        self.parts.slots.is_empty()
    }

    /// Removes all requests and the notification, keeps the allocations and the deadline.
    pub fn clear(&mut self) {
        self.tcp.clear();
        #[cfg(feature = "efa")]
        self.fabric.clear();
        #[cfg(feature = "mooncake")]
        self.mooncake.clear();
        self.parts.clear();
        self.notification = None;
    }

    /// Time from submission to the end of each request, at the latest; the setting `timeout_seconds` unless set here. Stays when
    /// the batch is reused.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.tcp.set_deadline(deadline);
        #[cfg(feature = "efa")]
        self.fabric.set_deadline(deadline);
        self.deadline = Some(deadline);
    }

    /// When all requests of the batch have ended well, and only then, puts `payload` into the queue of notifications of every
    /// peer that they went to, once. The batch ends when it is there. Delivered by whoever waits for the batch, or in the
    /// background when it is polled, awaited or dropped. For this submission only.
    pub fn notify_on_completion(&mut self, payload: impl Into<Vec<u8>>) {
        self.notification = Some(payload.into());
    }

    /// Adds a write of local memory to the segment's memory; returns the request's index. A write that is done is visible
    /// at the segment's owner.
    ///
    /// # Errors
    /// [`Error::NotInSegment`], or what the transport says of the request (empty, sides of different length, outside of the
    /// region, no such right); the batch stays as it was.
    pub fn write(
        &mut self,
        local: &Region,
        from: Shape<'_>,
        segment: &Segment,
        to: Shape<'_>,
    ) -> Result<usize, Error> {
        self.push(Asked { op: Op::Write, local, local_shape: from, segment, remote_shape: to, tag: None })
    }

    /// As [`write`](Self::write); when all bytes are visible, the peer's [`Engine::arrivals`](crate::Engine::arrivals) of this
    /// engine's name and `tag` count one more, without a message of the peer's program. If such a write fails when it has been
    /// tried, it may or may not have been counted; it is not tried over another path.
    ///
    /// # Errors
    /// As [`write`](Self::write); [`Error::Unavailable`] if the peer has given this engine no number, because 65 536 others have one.
    pub fn write_with_tag(
        &mut self,
        local: &Region,
        from: Shape<'_>,
        segment: &Segment,
        to: Shape<'_>,
        tag: u16,
    ) -> Result<usize, Error> {
        self.push(Asked {
            op: Op::Write,
            local,
            local_shape: from,
            segment,
            remote_shape: to,
            tag: Some(tag),
        })
    }

    /// Adds a read of the segment's memory into local memory; returns the request's index.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn read(
        &mut self,
        local: &Region,
        to: Shape<'_>,
        segment: &Segment,
        from: Shape<'_>,
    ) -> Result<usize, Error> {
        self.push(Asked { op: Op::Read, local, local_shape: to, segment, remote_shape: from, tag: None })
    }

    fn push(&mut self, asked: Asked<'_>) -> Result<usize, Error> {
        let Asked { op, local, local_shape, segment, remote_shape, tag } = asked;
        let known = segment.known();
        let remote = known.buffer_around(segment.name(), &remote_shape).inspect_err(|_| segment.doubt())?;
        let (right, wanted) = match op {
            Op::Write => (Access::WRITE, "writing"),
            Op::Read => (Access::READ, "reading"),
        };
        if !remote.access().allows(right) {
            return Err(tcp_transport::Error::AccessDenied { side: "remote", wanted }.into());
        }
        let immediate = match tag {
            Some(tag) => Some(immediate(known.number(segment.name())?, tag)),
            None => None,
        };
        let place = match segment.way(&known, local, remote)? {
            Chosen::Tcp => Place::Tcp(self.tcp.push(tcp_transport::Request {
                op,
                peer: known.peer(),
                local: local.tcp(),
                local_shape,
                remote: remote.tcp,
                remote_shape,
                immediate: immediate.map(u64::from),
            })?),
            #[cfg(feature = "mooncake")]
            Chosen::Mooncake(remote) => {
                let local = local.tcp();
                Place::Mooncake(self.mooncake.push(op, local, &local_shape, remote, &remote_shape)?)
            }
            #[cfg(all(feature = "mooncake", feature = "efa"))]
            Chosen::MooncakeFabric(peer, _) => {
                let request = (op, local_shape, remote_shape, immediate);
                Place::Fabric { at: crate::fabric::push(&mut self.fabric, local, peer, request)?, kept: None }
            }
            #[cfg(feature = "efa")]
            Chosen::Fabric(peer) => {
                let request = (op, local_shape, remote_shape, immediate);
                let at = crate::fabric::push(&mut self.fabric, local, peer, request)?;
                // Whether an immediate has been counted cannot be known, so such a request has one path.
                let movable = immediate.is_none() && segment.failover().is_allowed();
                let kept =
                    movable.then(|| self.parts.kept.keep(op, local, remote.tcp, (local_shape, remote_shape)));
                Place::Fabric { at, kept }
            }
        };
        let segment = self.parts.segment(segment);
        // The transport has found that the length fits.
        let bytes = local_shape.len().unwrap_or(0);
        self.parts.slots.push(Slot { place, op, bytes, segment });
        Ok(self.parts.slots.len() - 1)
    }
}
