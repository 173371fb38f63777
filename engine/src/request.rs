//! Batches of reads and writes: what a program asks for.

use std::time::Duration;

use tcp_transport::Op;

use crate::error::Error;
use crate::memory::Region;
use crate::segment::{Chosen, Segment};

pub use tcp_transport::Shape;

/// Reads and writes to be submitted together, to one segment or to many. Both sides of a request may have any [`Shape`] of the
/// same total length; addresses are absolute, each in its own process. A batch can be reused: submitting empties it and keeps
/// its allocations.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) tcp: tcp_transport::Batch,
    #[cfg(feature = "efa")]
    pub(crate) fabric: efa_transport::Batch,
    /// Where each request of this batch lies in those of the transports.
    pub(crate) slots: Vec<Slot>,
}

/// A request's place: which transport, which index there.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Slot {
    Tcp(usize),
    #[cfg(feature = "efa")]
    Fabric(usize),
}

impl Batch {
    /// An empty batch.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of requests.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

    /// Whether there are no requests.
    pub fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    /// Removes all requests, keeps the allocations.
    pub fn clear(&mut self) {
        self.tcp.clear();
        #[cfg(feature = "efa")]
        self.fabric.clear();
        self.slots.clear();
    }

    /// Time from submission to the end of each request, at the latest; 30 s unless set.
    pub fn set_deadline(&mut self, deadline: Duration) {
        self.tcp.set_deadline(deadline);
        #[cfg(feature = "efa")]
        self.fabric.set_deadline(deadline);
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
        self.push(Op::Write, local, from, segment, to)
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
        self.push(Op::Read, local, to, segment, from)
    }

    fn push(
        &mut self,
        op: Op,
        local: &Region,
        local_shape: Shape<'_>,
        segment: &Segment,
        remote_shape: Shape<'_>,
    ) -> Result<usize, Error> {
        let known = segment.known();
        let slot = match &known.path {
            Chosen::Tcp => {
                let remote = known.buffer_around(segment.name(), &remote_shape)?;
                Slot::Tcp(self.tcp.push(tcp_transport::Request {
                    op,
                    peer: segment.peer(),
                    local: &local.tcp,
                    local_shape,
                    remote: remote.tcp,
                    remote_shape,
                    immediate: None,
                })?)
            }
            #[cfg(feature = "efa")]
            Chosen::Fabric(peer) => Slot::Fabric(crate::fabric::push(
                &mut self.fabric,
                op,
                local,
                local_shape,
                *peer,
                remote_shape,
            )?),
        };
        self.slots.push(slot);
        Ok(self.slots.len() - 1)
    }
}
