//! Posting sends, writes, reads and atomic operations.

use fabric_sys as sys;
use parking_lot::MutexGuard;

use crate::address::Address;
use crate::completion::OperationKind;
use crate::endpoint::{Enabled, Endpoint};
use crate::error::{Error, PostError, Usage};
use crate::flags::{Access, PostFlags};
use crate::operations::{MAX_SEGMENTS, OperationId};
use crate::region::Slice;
use crate::remote::Remote;
use crate::segments::{self, Segments};

/// What a write may have besides source and target.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct WriteOptions {
    /// Raises a completion with this value at the target, after the bytes are there.
    /// [`Info::immediate_bytes`](crate::Info::immediate_bytes) says how wide it may be (4 bytes on EFA).
    pub immediate: Option<u64>,
    /// Wishes. Without one about completion, the write completes when its bytes are visible at the target if the provider
    /// offers that.
    pub flags: PostFlags,
}

/// What a message may have besides its bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SendOptions {
    /// A value that the completion of the receive carries.
    pub immediate: Option<u64>,
    /// Makes it a tagged message, which only a tagged receive can match.
    pub tag: Option<u64>,
    /// Wishes.
    pub flags: PostFlags,
}

/// The right to post on an endpoint, for a batch of operations: one locking instead of one per operation.
///
/// Other threads that want to post wait meanwhile, so do not keep it for long; polling needs no lock of the endpoint. It stays
/// with the thread that got it:
///
/// ```compile_fail
/// # fn show(endpoint: &fabric_safe::Endpoint) {
/// let transmit = endpoint.transmit().unwrap();
/// std::thread::scope(|scope| {
///     scope.spawn(move || drop(transmit)); // not Send
/// });
/// # }
/// ```
pub struct Transmit<'e> {
    endpoint: &'e Enabled,
    /// Whether `owner` of the gate is ours to clear.
    owner: bool,
    _gate: MutexGuard<'e, bool>,
}

impl Drop for Transmit<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.owner {
            self.endpoint.transmit.clear_owner();
        }
    }
}

impl Endpoint<Enabled> {
    /// Takes the right to post for a batch of operations. Blocks while another thread has it.
    ///
    /// # Errors
    ///
    /// [`PostError::Closed`]; [`PostError::Failed`] if this thread has it already.
    pub fn transmit(&self) -> Result<Transmit<'_>, PostError> {
        let mut transmit = self.one()?;
        transmit.owner = true;
        self.state.transmit.set_owner();
        Ok(transmit)
    }

    /// As [`transmit`](Endpoint::transmit), for a single post, during which none of the caller's code runs.
    #[inline]
    pub(crate) fn one(&self) -> Result<Transmit<'_>, PostError> {
        let gate = self.state.transmit.enter()?;
        Ok(Transmit { endpoint: &self.state, owner: false, _gate: gate })
    }
}

/// As the methods of the same names of [`Endpoint`].
impl Transmit<'_> {
    /// As [`Endpoint::write`].
    #[inline]
    pub fn write(
        &mut self,
        to: &Address,
        source: Slice<'_>,
        target: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(to)?;
        let source = self.segment(source, Access::WRITE)?;
        if self.endpoint.limits.delivery_complete {
            let flags = sys::FI_COMPLETION | sys::FI_DELIVERY_COMPLETE;
            return self.rma(&WRITE, to, source, target, flags, 0, token);
        }
        let (endpoint, [iov]) = (self.endpoint, source.iov);
        let table = &endpoint.transmit.table;
        table.post("fi_write", OperationKind::Write, token, to.id(), &source.regions, |context| {
            // SAFETY: the endpoint is open; source and peer are held by the operation until it has ended.
            unsafe {
                sys::fi_write(
                    endpoint.raw.as_ptr(),
                    iov.iov_base,
                    iov.iov_len,
                    source.descriptors[0],
                    to.raw(),
                    target.address,
                    target.key,
                    context,
                )
            }
        })
    }

    /// As [`Endpoint::write_with`].
    #[inline]
    pub fn write_with(
        &mut self,
        to: &Address,
        sources: &[Slice<'_>],
        target: Remote,
        options: WriteOptions,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(to)?;
        let sources = self.segments(sources, Access::WRITE)?;
        let data = self.check_immediate(options.immediate)?;
        let mut flags = self.flags(options.flags, options.immediate)?;
        if self.endpoint.limits.delivery_complete && !options.flags.intersects(PostFlags::COMPLETION_LEVEL) {
            flags |= sys::FI_DELIVERY_COMPLETE;
        }
        self.rma(&WRITE, to, sources, target, flags, data, token)
    }

    /// As [`Endpoint::read`].
    #[inline]
    pub fn read(
        &mut self,
        from: &Address,
        target: Slice<'_>,
        source: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(from)?;
        let target = self.segment(target, Access::READ)?;
        self.rma(&READ, from, target, source, sys::FI_COMPLETION, 0, token)
    }

    /// As [`Endpoint::read_with`].
    #[inline]
    pub fn read_with(
        &mut self,
        from: &Address,
        targets: &[Slice<'_>],
        source: Remote,
        flags: PostFlags,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(from)?;
        let targets = self.segments(targets, Access::READ)?;
        // A read that has completed has been delivered; some providers refuse to be asked for it.
        let flags = self.flags(flags.difference(PostFlags::COMPLETION_LEVEL), None)?;
        self.rma(&READ, from, targets, source, flags, 0, token)
    }

    /// As [`Endpoint::inject_write`].
    #[inline]
    pub fn inject_write(
        &mut self,
        to: &Address,
        bytes: &[u8],
        target: Remote,
        immediate: Option<u64>,
    ) -> Result<(), PostError> {
        self.check_peer(to)?;
        self.check_inject(bytes.len())?;
        let data = self.check_immediate(immediate)?;
        let (raw, at, len, peer) = (self.raw(), bytes.as_ptr().cast(), bytes.len(), to.raw());
        // SAFETY: the endpoint is open; the bytes are copied during the call.
        let status = unsafe {
            match immediate {
                None => sys::fi_inject_write(raw, at, len, peer, target.address, target.key),
                Some(_) => sys::fi_inject_writedata(raw, at, len, data, peer, target.address, target.key),
            }
        };
        if status == 0 { Ok(()) } else { Err(PostError::status("fi_inject_write", status)) }
    }

    /// As [`Endpoint::send`].
    #[inline]
    pub fn send(&mut self, to: &Address, message: Slice<'_>, token: u64) -> Result<OperationId, PostError> {
        self.check_peer(to)?;
        let message = self.segment(message, Access::SEND)?;
        self.message(to, message, None, sys::FI_COMPLETION, 0, token)
    }

    /// As [`Endpoint::send_with`].
    #[inline]
    pub fn send_with(
        &mut self,
        to: &Address,
        message: &[Slice<'_>],
        options: SendOptions,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(to)?;
        let message = self.segments(message, Access::SEND)?;
        let data = self.check_immediate(options.immediate)?;
        let flags = self.flags(options.flags, options.immediate)?;
        self.message(to, message, options.tag, flags, data, token)
    }

    /// As [`Endpoint::inject`].
    #[inline]
    pub fn inject(&mut self, to: &Address, bytes: &[u8], options: SendOptions) -> Result<(), PostError> {
        self.check_peer(to)?;
        self.check_inject(bytes.len())?;
        let data = self.check_immediate(options.immediate)?;
        let (raw, at, len, peer) = (self.raw(), bytes.as_ptr().cast(), bytes.len(), to.raw());
        // SAFETY: the endpoint is open; the bytes are copied during the call.
        let status = unsafe {
            match (options.tag, options.immediate) {
                (None, None) => sys::fi_inject(raw, at, len, peer),
                (None, Some(_)) => sys::fi_injectdata(raw, at, len, data, peer),
                (Some(tag), None) => sys::fi_tinject(raw, at, len, peer, tag),
                (Some(tag), Some(_)) => sys::fi_tinjectdata(raw, at, len, data, peer, tag),
            }
        };
        if status == 0 { Ok(()) } else { Err(PostError::status("fi_inject", status)) }
    }

    /// As [`Endpoint::fetch_add`].
    pub fn fetch_add(
        &mut self,
        to: &Address,
        operand: Slice<'_>,
        result: Slice<'_>,
        target: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(to)?;
        self.check_operand(operand, Access::WRITE)?;
        self.check_operand(result, Access::READ)?;
        let endpoint = self.endpoint;
        let holds = [operand.region.id, result.region.id];
        let (call, kind) = ("fi_fetch_atomic", OperationKind::Atomic);
        endpoint.transmit.table.post(call, kind, token, to.id(), &holds, |context| {
            // SAFETY: the endpoint is open; operands and peer are held by the operation until it has ended.
            unsafe {
                sys::fi_fetch_atomic(
                    endpoint.raw.as_ptr(),
                    operand.address.cast(),
                    1,
                    operand.region.descriptor,
                    result.address.cast(),
                    result.region.descriptor,
                    to.raw(),
                    target.address,
                    target.key,
                    sys::FI_UINT64,
                    sys::FI_SUM,
                    context,
                )
            }
        })
    }

    /// As [`Endpoint::compare_swap`].
    pub fn compare_swap(
        &mut self,
        to: &Address,
        operand: Slice<'_>,
        compare: Slice<'_>,
        result: Slice<'_>,
        target: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(to)?;
        self.check_operand(operand, Access::WRITE)?;
        self.check_operand(compare, Access::WRITE)?;
        self.check_operand(result, Access::READ)?;
        let endpoint = self.endpoint;
        let holds = [operand.region.id, compare.region.id, result.region.id];
        let (call, kind) = ("fi_compare_atomic", OperationKind::Atomic);
        endpoint.transmit.table.post(call, kind, token, to.id(), &holds, |context| {
            // SAFETY: the endpoint is open; operands and peer are held by the operation until it has ended.
            unsafe {
                sys::fi_compare_atomic(
                    endpoint.raw.as_ptr(),
                    operand.address.cast(),
                    1,
                    operand.region.descriptor,
                    compare.address.cast(),
                    compare.region.descriptor,
                    result.address.cast(),
                    result.region.descriptor,
                    to.raw(),
                    target.address,
                    target.key,
                    sys::FI_UINT64,
                    sys::FI_CSWAP,
                    context,
                )
            }
        })
    }
}

/// One of the two calls that reach a peer's memory.
struct RmaCall {
    name: &'static str,
    kind: OperationKind,
    call: unsafe fn(*mut sys::fid_ep, *const sys::fi_msg_rma, u64) -> isize,
}

const WRITE: RmaCall = RmaCall { name: "fi_writemsg", kind: OperationKind::Write, call: sys::fi_writemsg };
const READ: RmaCall = RmaCall { name: "fi_readmsg", kind: OperationKind::Read, call: sys::fi_readmsg };

/// The few ways to the provider, after everything has been checked.
impl Transmit<'_> {
    #[inline(always)]
    #[allow(clippy::too_many_arguments)] // all of what such an operation has
    fn rma<const N: usize>(
        &mut self,
        rma: &RmaCall,
        peer: &Address,
        mut local: Segments<N>,
        remote: Remote,
        flags: u64,
        data: u64,
        token: u64,
    ) -> Result<OperationId, PostError> {
        let raw = self.raw();
        let rma_iov = sys::fi_rma_iov { addr: remote.address, len: local.len_bytes, key: remote.key };
        let table = &self.endpoint.transmit.table;
        table.post(rma.name, rma.kind, token, peer.id(), &local.regions, |context| {
            let message = sys::fi_msg_rma {
                msg_iov: local.iov.as_ptr(),
                desc: local.descriptors.as_mut_ptr(),
                iov_count: local.count,
                addr: peer.raw(),
                rma_iov: &raw const rma_iov,
                rma_iov_count: 1,
                context,
                data,
            };
            // SAFETY: the endpoint is open; local memory and peer are held by the operation until it has ended; what the
            // message points to is read during the call only (no FI_ASYNC_IOV).
            unsafe { (rma.call)(raw, &raw const message, flags) }
        })
    }

    #[inline(always)]
    fn message<const N: usize>(
        &mut self,
        peer: &Address,
        mut local: Segments<N>,
        tag: Option<u64>,
        flags: u64,
        data: u64,
        token: u64,
    ) -> Result<OperationId, PostError> {
        let raw = self.raw();
        let (table, kind) = (&self.endpoint.transmit.table, OperationKind::Send);
        let (msg_iov, desc, iov_count) = (local.iov.as_ptr(), local.descriptors.as_mut_ptr(), local.count);
        let addr = peer.raw();
        match tag {
            None => table.post("fi_sendmsg", kind, token, peer.id(), &local.regions, |context| {
                let message = sys::fi_msg { msg_iov, desc, iov_count, addr, context, data };
                // SAFETY: as in `rma`.
                unsafe { sys::fi_sendmsg(raw, &raw const message, flags) }
            }),
            Some(tag) => table.post("fi_tsendmsg", kind, token, peer.id(), &local.regions, |context| {
                let message =
                    sys::fi_msg_tagged { msg_iov, desc, iov_count, addr, tag, ignore: 0, context, data };
                // SAFETY: as in `rma`.
                unsafe { sys::fi_tsendmsg(raw, &raw const message, flags) }
            }),
        }
    }

    #[inline]
    fn raw(&self) -> *mut sys::fid_ep {
        self.endpoint.raw.as_ptr()
    }
}

/// The checks.
impl Transmit<'_> {
    #[inline]
    fn check_peer(&self, peer: &Address) -> Result<(), Usage> {
        self.endpoint.check_peer(peer)
    }

    #[inline]
    fn check_len(&self, len: usize) -> Result<(), Usage> {
        let limit = self.endpoint.limits.message_bytes;
        if len > limit { Err(Usage::TooLong { what: "one operation", len, limit }) } else { Ok(()) }
    }

    #[inline]
    fn check_inject(&self, len: usize) -> Result<(), Usage> {
        let limit = self.endpoint.limits.inject_bytes;
        if len > limit { Err(Usage::TooLong { what: "inject", len, limit }) } else { Ok(()) }
    }

    fn check_operand(&self, slice: Slice<'_>, access: Access) -> Result<(), Usage> {
        segments::check(self.endpoint, slice, access)?;
        if slice.len_bytes == 8 && (slice.address as usize).is_multiple_of(8) {
            Ok(())
        } else {
            Err(Usage::BadOperand)
        }
    }

    /// The value to send along, 0 for none.
    #[inline]
    fn check_immediate(&self, immediate: Option<u64>) -> Result<u64, Usage> {
        let Some(value) = immediate else { return Ok(0) };
        let bytes = self.endpoint.limits.immediate_bytes;
        if bytes >= 8 || value >> (8 * bytes) == 0 && bytes > 0 {
            Ok(value)
        } else {
            Err(Usage::ImmediateTooWide { value, bytes })
        }
    }

    /// What the provider is to know: the wishes, and whether there is an immediate value.
    #[inline]
    fn flags(&self, flags: PostFlags, immediate: Option<u64>) -> Result<u64, PostError> {
        if flags.contains(PostFlags::DELIVERY_COMPLETE) && !self.endpoint.limits.delivery_complete {
            return Err(self.endpoint.unsupported("delivery completion"));
        }
        let immediate = if immediate.is_some() { sys::FI_REMOTE_CQ_DATA } else { 0 };
        Ok(flags.bits() | immediate | sys::FI_COMPLETION)
    }

    #[inline(always)]
    fn segment(&self, slice: Slice<'_>, access: Access) -> Result<Segments<1>, Usage> {
        let segment = Segments::one(self.endpoint, slice, access)?;
        self.check_len(segment.len_bytes)?;
        Ok(segment)
    }

    #[inline]
    fn segments(&self, slices: &[Slice<'_>], access: Access) -> Result<Segments<MAX_SEGMENTS>, Usage> {
        let limit = self.endpoint.limits.transmit_segments;
        let segments = Segments::many(self.endpoint, slices, limit, access)?;
        self.check_len(segments.len_bytes)?;
        Ok(segments)
    }
}

impl Enabled {
    #[inline]
    pub(crate) fn check_peer(&self, peer: &Address) -> Result<(), Usage> {
        if peer.is_in(&self.vector) {
            Ok(())
        } else {
            Err(Usage::Foreign { what: "address", parent: "address vector" })
        }
    }

    #[cold]
    pub(crate) fn unsupported(&self, what: &'static str) -> PostError {
        let provider = self.domain.info().provider_name().to_owned();
        PostError::Failed(Box::new(Error::Unsupported { what, provider }))
    }
}
