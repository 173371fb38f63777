//! Posting receives.

use fabric_sys as sys;

use crate::address::Address;
use crate::completion::OperationKind;
use crate::endpoint::{Enabled, Endpoint};
use crate::error::PostError;
use crate::flags::{Access, PostFlags};
use crate::operations::{HoldId, OperationId};
use crate::region::Slice;
use crate::transmit::{Segments, check_slice};

/// Which tags a tagged receive matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Tag {
    /// The tag wanted.
    pub value: u64,
    /// Bits that do not matter.
    pub ignore: u64,
}

impl Tag {
    /// Exactly this tag.
    pub fn exactly(value: u64) -> Tag {
        Tag { value, ignore: 0 }
    }

    /// Any tag.
    pub fn any() -> Tag {
        Tag { value: 0, ignore: u64::MAX }
    }
}

/// What a receive may have besides its memory.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReceiveOptions {
    /// Makes it a tagged receive, which only tagged messages match.
    pub tag: Option<Tag>,
    /// Wishes: [`PostFlags::MORE`] is the only one that means something here.
    pub flags: PostFlags,
}

impl Endpoint<Enabled> {
    /// Waits for a message, from a certain peer or from anyone. Messages meet receives in the order in which both were
    /// posted; one that is longer than `target` ends as [`ErrorKind::Truncated`](crate::ErrorKind::Truncated).
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again. Naming a peer needs
    /// [`Capabilities::DIRECTED_RECV`](crate::Capabilities::DIRECTED_RECV).
    pub fn receive(
        &self,
        from: Option<&Address>,
        target: Slice<'_>,
        token: u64,
    ) -> Result<OperationId, PostError> {
        let side = &self.state.receive;
        let _gate = side.enter()?;
        self.state.check_sender(from)?;
        check_slice(&self.state.domain, target, Access::RECV)?;
        let peer = from.map_or(HoldId::NONE, Address::id);
        let holds = [target.region.id, peer];
        side.table.post("fi_recv", OperationKind::Receive, token, &holds, |context| {
            // SAFETY: the endpoint is open; target and peer are held by the operation until it has ended.
            unsafe {
                sys::fi_recv(
                    self.state.raw.as_ptr(),
                    target.address.cast(),
                    target.len_bytes,
                    target.region.descriptor,
                    sender(from),
                    context,
                )
            }
        })
    }

    /// As [`receive`](Endpoint::receive), into several slices, or for a tagged message.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    pub fn receive_with(
        &self,
        from: Option<&Address>,
        targets: &[Slice<'_>],
        options: ReceiveOptions,
        token: u64,
    ) -> Result<OperationId, PostError> {
        let side = &self.state.receive;
        let _gate = side.enter()?;
        self.state.check_sender(from)?;
        let limit = self.state.limits.receive_segments;
        let mut segments = Segments::new(&self.state.domain, targets, limit, Access::RECV)?;
        let raw = self.state.raw.as_ptr();
        let flags = (options.flags & PostFlags::MORE).bits() | sys::FI_COMPLETION;
        let holds = &segments.holds(from);
        match options.tag {
            Some(tag) => side.table.post("fi_trecvmsg", OperationKind::Receive, token, holds, |context| {
                let message = sys::fi_msg_tagged {
                    msg_iov: segments.iov.as_ptr(),
                    desc: segments.descriptors.as_mut_ptr(),
                    iov_count: segments.count,
                    addr: sender(from),
                    tag: tag.value,
                    ignore: tag.ignore,
                    context,
                    data: 0,
                };
                // SAFETY: as in `receive`; what the message points to is read during the call only.
                unsafe { sys::fi_trecvmsg(raw, &message, flags) }
            }),
            None => side.table.post("fi_recvmsg", OperationKind::Receive, token, holds, |context| {
                let message = sys::fi_msg {
                    msg_iov: segments.iov.as_ptr(),
                    desc: segments.descriptors.as_mut_ptr(),
                    iov_count: segments.count,
                    addr: sender(from),
                    context,
                    data: 0,
                };
                // SAFETY: as in `receive`; what the message points to is read during the call only.
                unsafe { sys::fi_recvmsg(raw, &message, flags) }
            }),
        }
    }
}

impl Enabled {
    fn check_sender(&self, from: Option<&Address>) -> Result<(), PostError> {
        let Some(from) = from else { return Ok(()) };
        if !self.limits.directed_receive {
            return Err(self.unsupported("receiving from one peer only (ask for DIRECTED_RECV)"));
        }
        Ok(self.check_peer(from)?)
    }
}

fn sender(from: Option<&Address>) -> sys::fi_addr_t {
    from.map_or(sys::FI_ADDR_UNSPEC, Address::raw)
}
