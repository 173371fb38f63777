//! Posting receives.

use fabric_sys as sys;

use crate::address::Address;
use crate::completion::OperationKind;
use crate::endpoint::{Enabled, Endpoint};
use crate::error::PostError;
use crate::flags::{Access, PostFlags};
use crate::operations::{HoldId, OperationId};
use crate::region::Slice;
use crate::segments::Segments;

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
        let target = Segments::one(&self.state, target, Access::RECV)?;
        self.post_receive(from, target, None, sys::FI_COMPLETION, token)
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
        let limit = self.state.limits.receive_segments;
        let targets = Segments::many(&self.state, targets, limit, Access::RECV)?;
        let flags = (options.flags & PostFlags::MORE).bits() | sys::FI_COMPLETION;
        self.post_receive(from, targets, options.tag, flags, token)
    }

    #[inline]
    fn post_receive<const N: usize>(
        &self,
        from: Option<&Address>,
        mut local: Segments<N>,
        tag: Option<Tag>,
        flags: u64,
        token: u64,
    ) -> Result<OperationId, PostError> {
        let side = &self.state.receive;
        let _gate = side.enter()?;
        self.state.check_sender(from)?;
        let raw = self.state.raw.as_ptr();
        let peer = from.map_or(HoldId::NONE, Address::id);
        let addr = from.map_or(sys::FI_ADDR_UNSPEC, Address::raw);
        let (msg_iov, desc, iov_count) = (local.iov.as_ptr(), local.descriptors.as_mut_ptr(), local.count);
        let (kind, data) = (OperationKind::Receive, 0);
        match tag {
            None => side.table.post("fi_recvmsg", kind, token, peer, &local.regions, |context| {
                let message = sys::fi_msg { msg_iov, desc, iov_count, addr, context, data };
                // SAFETY: the endpoint is open; memory and peer are held by the operation until it has ended; what the message
                // points to is read during the call only (no FI_ASYNC_IOV).
                unsafe { sys::fi_recvmsg(raw, &raw const message, flags) }
            }),
            Some(Tag { value: tag, ignore }) => {
                side.table.post("fi_trecvmsg", kind, token, peer, &local.regions, |context| {
                    let message =
                        sys::fi_msg_tagged { msg_iov, desc, iov_count, addr, tag, ignore, context, data };
                    // SAFETY: as above.
                    unsafe { sys::fi_trecvmsg(raw, &raw const message, flags) }
                })
            }
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
