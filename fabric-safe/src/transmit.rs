//! Posting sends, writes, reads and atomic operations.

use core::ffi::c_void;
use core::ptr;

use fabric_sys as sys;
use libc::iovec;
use parking_lot::MutexGuard;

use crate::address::Address;
use crate::completion::OperationKind;
use crate::domain::Domain;
use crate::endpoint::{Enabled, Endpoint};
use crate::error::{Error, PostError, Usage};
use crate::flags::{Access, PostFlags};
use crate::operations::{HoldId, MAX_HOLDS, MAX_SEGMENTS, OperationId};
use crate::region::Slice;
use crate::remote::Remote;

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
    fn one(&self) -> Result<Transmit<'_>, PostError> {
        let gate = self.state.transmit.enter()?;
        Ok(Transmit { endpoint: &self.state, owner: false, _gate: gate })
    }
}

macro_rules! both {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty;)*) => {
        impl Endpoint<Enabled> {
            $(
                $(#[$doc])*
                ///
                /// See [`Transmit`] for posting many at a time.
                #[inline]
                pub fn $name(&self, $($arg: $ty),*) -> Result<$ret, PostError> {
                    self.one()?.$name($($arg),*)
                }
            )*
        }
    };
}

both! {
    /// Writes `source` to the peer's memory. Completes when the bytes are visible there, if the provider offers that
    /// ([`Info::delivery_complete`](crate::Info::delivery_complete)).
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn write(to: &Address, source: Slice<'_>, target: Remote, token: u64) -> OperationId;

    /// Writes several slices, one after the other, to one range of the peer's memory.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn write_with(
        to: &Address,
        sources: &[Slice<'_>],
        target: Remote,
        options: WriteOptions,
        token: u64,
    ) -> OperationId;

    /// Reads from the peer's memory into `target`. Completes when the bytes are here.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn read(from: &Address, target: Slice<'_>, source: Remote, token: u64) -> OperationId;

    /// Reads one range of the peer's memory into several slices, one after the other.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn read_with(
        from: &Address,
        targets: &[Slice<'_>],
        source: Remote,
        flags: PostFlags,
        token: u64,
    ) -> OperationId;

    /// Writes a few bytes ([`Info::inject_bytes`](crate::Info::inject_bytes)) that may be reused at once. There is no
    /// completion: as far as this side is concerned, it has ended when the call returns.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn inject_write(to: &Address, bytes: &[u8], target: Remote, immediate: Option<u64>) -> ();

    /// Sends a message. Completes when the provider has no more need of the memory.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn send(to: &Address, message: Slice<'_>, token: u64) -> OperationId;

    /// Sends several slices as one message.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn send_with(
        to: &Address,
        message: &[Slice<'_>],
        options: SendOptions,
        token: u64,
    ) -> OperationId;

    /// Sends a few bytes ([`Info::inject_bytes`](crate::Info::inject_bytes)) that may be reused at once. There is no
    /// completion: as far as this side is concerned, it has ended when the call returns. Flags of the options are ignored.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn inject(to: &Address, bytes: &[u8], options: SendOptions) -> ();

    /// Adds the 64-bit number in `operand` to the one in the peer's memory, atomically with respect to other such operations
    /// there, and puts what was there before into `result`.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn fetch_add(
        to: &Address,
        operand: Slice<'_>,
        result: Slice<'_>,
        target: Remote,
        token: u64,
    ) -> OperationId;

    /// Puts the 64-bit number in `operand` into the peer's memory if the one in `compare` is there, atomically with respect to
    /// other such operations there, and puts what was there before into `result`.
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    fn compare_swap(
        to: &Address,
        operand: Slice<'_>,
        compare: Slice<'_>,
        result: Slice<'_>,
        target: Remote,
        token: u64,
    ) -> OperationId;
}

impl Transmit<'_> {
    /// See [`Endpoint::write`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    #[inline]
    pub fn write(
        &mut self,
        to: &Address,
        source: Slice<'_>,
        target: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(to)?;
        self.check_slice(source, Access::WRITE)?;
        self.check_len(source.len_bytes)?;
        let raw = self.raw();
        let descriptor = source.region.descriptor;
        let holds = [to.id(), source.region.id];
        if !self.endpoint.limits.delivery_complete {
            return self.post("fi_write", OperationKind::Write, token, &holds, |context| {
                // SAFETY: the endpoint is open; source and peer are held by the operation until it has ended.
                unsafe {
                    sys::fi_write(
                        raw,
                        source.address.cast(),
                        source.len_bytes,
                        descriptor,
                        to.raw(),
                        target.address,
                        target.key,
                        context,
                    )
                }
            });
        }
        let iov = iovec { iov_base: source.address.cast(), iov_len: source.len_bytes };
        let rma_iov = sys::fi_rma_iov { addr: target.address, len: source.len_bytes, key: target.key };
        let mut descriptor = descriptor;
        let flags = sys::FI_DELIVERY_COMPLETE | sys::FI_COMPLETION;
        self.post("fi_writemsg", OperationKind::Write, token, &holds, |context| {
            let message = rma_message(&iov, &mut descriptor, 1, to, &rma_iov, context, 0);
            // SAFETY: as above; what the message points to is read during the call only (no FI_ASYNC_IOV).
            unsafe { sys::fi_writemsg(raw, &message, flags) }
        })
    }

    /// See [`Endpoint::write_with`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
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
        let mut segments = self.segments(sources, Access::WRITE)?;
        let data = self.check_immediate(options.immediate)?;
        let mut flags = self.flags(options.flags)? | immediate_flag(options.immediate);
        if self.endpoint.limits.delivery_complete && !options.flags.intersects(PostFlags::COMPLETION_LEVEL) {
            flags |= sys::FI_DELIVERY_COMPLETE;
        }
        let rma_iov = sys::fi_rma_iov { addr: target.address, len: segments.len_bytes, key: target.key };
        let raw = self.raw();
        let holds = &segments.holds(Some(to));
        self.post("fi_writemsg", OperationKind::Write, token, holds, |context| {
            let message = rma_message(
                segments.iov.as_ptr(),
                segments.descriptors.as_mut_ptr(),
                segments.count,
                to,
                &rma_iov,
                context,
                data,
            );
            // SAFETY: as in `write`.
            unsafe { sys::fi_writemsg(raw, &message, flags) }
        })
    }

    /// See [`Endpoint::read`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    #[inline]
    pub fn read(
        &mut self,
        from: &Address,
        target: Slice<'_>,
        source: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(from)?;
        self.check_slice(target, Access::READ)?;
        self.check_len(target.len_bytes)?;
        let raw = self.raw();
        let holds = [from.id(), target.region.id];
        self.post("fi_read", OperationKind::Read, token, &holds, |context| {
            // SAFETY: the endpoint is open; target and peer are held by the operation until it has ended.
            unsafe {
                sys::fi_read(
                    raw,
                    target.address.cast(),
                    target.len_bytes,
                    target.region.descriptor,
                    from.raw(),
                    source.address,
                    source.key,
                    context,
                )
            }
        })
    }

    /// See [`Endpoint::read_with`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
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
        let mut segments = self.segments(targets, Access::READ)?;
        // A read that has completed has been delivered; some providers refuse to be asked for it.
        let flags = self.flags(flags.difference(PostFlags::COMPLETION_LEVEL))?;
        let rma_iov = sys::fi_rma_iov { addr: source.address, len: segments.len_bytes, key: source.key };
        let raw = self.raw();
        let holds = &segments.holds(Some(from));
        self.post("fi_readmsg", OperationKind::Read, token, holds, |context| {
            let message = rma_message(
                segments.iov.as_ptr(),
                segments.descriptors.as_mut_ptr(),
                segments.count,
                from,
                &rma_iov,
                context,
                0,
            );
            // SAFETY: as in `read`; what the message points to is read during the call only.
            unsafe { sys::fi_readmsg(raw, &message, flags) }
        })
    }

    /// See [`Endpoint::inject_write`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
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
        let (at, len) = (bytes.as_ptr().cast(), bytes.len());
        // SAFETY: the endpoint is open; the bytes are copied during the call.
        let status = unsafe {
            match immediate {
                None => sys::fi_inject_write(self.raw(), at, len, to.raw(), target.address, target.key),
                Some(_) => {
                    sys::fi_inject_writedata(self.raw(), at, len, data, to.raw(), target.address, target.key)
                }
            }
        };
        if status == 0 { Ok(()) } else { Err(PostError::status("fi_inject_write", status)) }
    }

    /// See [`Endpoint::send`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    #[inline]
    pub fn send(&mut self, to: &Address, message: Slice<'_>, token: u64) -> Result<OperationId, PostError> {
        self.check_peer(to)?;
        self.check_slice(message, Access::SEND)?;
        self.check_len(message.len_bytes)?;
        let raw = self.raw();
        let holds = [to.id(), message.region.id];
        self.post("fi_send", OperationKind::Send, token, &holds, |context| {
            // SAFETY: the endpoint is open; message and peer are held by the operation until it has ended.
            unsafe {
                sys::fi_send(
                    raw,
                    message.address.cast(),
                    message.len_bytes,
                    message.region.descriptor,
                    to.raw(),
                    context,
                )
            }
        })
    }

    /// See [`Endpoint::send_with`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
    pub fn send_with(
        &mut self,
        to: &Address,
        message: &[Slice<'_>],
        options: SendOptions,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.check_peer(to)?;
        let mut segments = self.segments(message, Access::SEND)?;
        let data = self.check_immediate(options.immediate)?;
        let flags = self.flags(options.flags)? | immediate_flag(options.immediate);
        let raw = self.raw();
        let holds = &segments.holds(Some(to));
        if let Some(tag) = options.tag {
            return self.post("fi_tsendmsg", OperationKind::Send, token, holds, |context| {
                let message = sys::fi_msg_tagged {
                    msg_iov: segments.iov.as_ptr(),
                    desc: segments.descriptors.as_mut_ptr(),
                    iov_count: segments.count,
                    addr: to.raw(),
                    tag,
                    ignore: 0,
                    context,
                    data,
                };
                // SAFETY: as in `send`; what the message points to is read during the call only.
                unsafe { sys::fi_tsendmsg(raw, &message, flags) }
            });
        }
        self.post("fi_sendmsg", OperationKind::Send, token, holds, |context| {
            let message = sys::fi_msg {
                msg_iov: segments.iov.as_ptr(),
                desc: segments.descriptors.as_mut_ptr(),
                iov_count: segments.count,
                addr: to.raw(),
                context,
                data,
            };
            // SAFETY: as in `send`; what the message points to is read during the call only.
            unsafe { sys::fi_sendmsg(raw, &message, flags) }
        })
    }

    /// See [`Endpoint::inject`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
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

    /// See [`Endpoint::fetch_add`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
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
        let raw = self.raw();
        let holds = [to.id(), operand.region.id, result.region.id];
        self.post("fi_fetch_atomic", OperationKind::Atomic, token, &holds, |context| {
            // SAFETY: the endpoint is open; operands and peer are held by the operation until it has ended.
            unsafe {
                sys::fi_fetch_atomic(
                    raw,
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

    /// See [`Endpoint::compare_swap`].
    ///
    /// # Errors
    ///
    /// [`PostError`]: in every case nothing was consumed, and the same call can be made again.
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
        let raw = self.raw();
        let holds = [to.id(), operand.region.id, compare.region.id, result.region.id];
        self.post("fi_compare_atomic", OperationKind::Atomic, token, &holds, |context| {
            // SAFETY: the endpoint is open; operands and peer are held by the operation until it has ended.
            unsafe {
                sys::fi_compare_atomic(
                    raw,
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

    // ---- posting -----------------------------------------------------------------------------------------------------

    #[inline]
    fn raw(&self) -> *mut sys::fid_ep {
        self.endpoint.raw.as_ptr()
    }

    /// Takes a slot, lets the provider have the operation, and takes the slot back if it does not want it.
    #[inline(always)]
    fn post<const N: usize>(
        &mut self,
        call: &'static str,
        kind: OperationKind,
        token: u64,
        holds: &[HoldId; N],
        submit: impl FnOnce(*mut c_void) -> isize,
    ) -> Result<OperationId, PostError> {
        self.endpoint.transmit.table.post(call, kind, token, holds, submit)
    }

    // ---- checking ----------------------------------------------------------------------------------------------------

    #[inline]
    fn check_peer(&self, peer: &Address) -> Result<(), Usage> {
        self.endpoint.check_peer(peer)
    }

    #[inline]
    fn check_slice(&self, slice: Slice<'_>, access: Access) -> Result<(), Usage> {
        check_slice(&self.endpoint.domain, slice, access)
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
        self.check_slice(slice, access)?;
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

    #[inline]
    fn flags(&self, flags: PostFlags) -> Result<u64, PostError> {
        if flags.contains(PostFlags::DELIVERY_COMPLETE) && !self.endpoint.limits.delivery_complete {
            return Err(self.endpoint.unsupported("delivery completion"));
        }
        Ok(flags.bits() | sys::FI_COMPLETION)
    }

    #[inline]
    fn segments(&self, slices: &[Slice<'_>], access: Access) -> Result<Segments, Usage> {
        let segments =
            Segments::new(&self.endpoint.domain, slices, self.endpoint.limits.transmit_segments, access)?;
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

#[inline]
pub(crate) fn check_slice(domain: &Domain, slice: Slice<'_>, access: Access) -> Result<(), Usage> {
    if !std::sync::Arc::ptr_eq(&slice.region.domain.0, &domain.0) {
        return Err(Usage::Foreign { what: "memory region", parent: "domain" });
    }
    if !slice.region.access.contains(access) {
        return Err(missing(access));
    }
    Ok(())
}

#[cold]
fn missing(access: Access) -> Usage {
    Usage::Access {
        need: match access {
            Access::SEND => "SEND",
            Access::RECV => "RECV",
            Access::READ => "READ",
            _ => "WRITE",
        },
    }
}

#[inline]
pub(crate) fn immediate_flag(immediate: Option<u64>) -> u64 {
    if immediate.is_some() { sys::FI_REMOTE_CQ_DATA } else { 0 }
}

#[inline]
fn rma_message(
    iov: *const iovec,
    descriptors: *mut *mut c_void,
    count: usize,
    peer: &Address,
    rma_iov: &sys::fi_rma_iov,
    context: *mut c_void,
    data: u64,
) -> sys::fi_msg_rma {
    sys::fi_msg_rma {
        msg_iov: iov,
        desc: descriptors,
        iov_count: count,
        addr: peer.raw(),
        rma_iov,
        rma_iov_count: 1,
        context,
        data,
    }
}

/// The local segments of an operation, as libfabric wants them.
pub(crate) struct Segments {
    pub(crate) iov: [iovec; MAX_SEGMENTS],
    pub(crate) descriptors: [*mut c_void; MAX_SEGMENTS],
    regions: [HoldId; MAX_SEGMENTS],
    pub(crate) count: usize,
    pub(crate) len_bytes: usize,
}

impl Segments {
    #[inline]
    pub(crate) fn new(
        domain: &Domain,
        slices: &[Slice<'_>],
        limit: usize,
        access: Access,
    ) -> Result<Segments, Usage> {
        if slices.len() > limit {
            return Err(Usage::TooManySegments { count: slices.len(), limit });
        }
        let mut segments = Segments {
            iov: [const { iovec { iov_base: ptr::null_mut(), iov_len: 0 } }; MAX_SEGMENTS],
            descriptors: [ptr::null_mut(); MAX_SEGMENTS],
            regions: [HoldId::NONE; MAX_SEGMENTS],
            count: slices.len(),
            len_bytes: 0,
        };
        for (index, slice) in slices.iter().enumerate() {
            check_slice(domain, *slice, access)?;
            segments.iov[index] = iovec { iov_base: slice.address.cast(), iov_len: slice.len_bytes };
            segments.descriptors[index] = slice.region.descriptor;
            segments.regions[index] = slice.region.id;
            segments.len_bytes = segments.len_bytes.saturating_add(slice.len_bytes);
        }
        Ok(segments)
    }

    /// What the operation holds: every region, and the peer. The rest of the array holds nothing.
    #[inline]
    pub(crate) fn holds(&self, peer: Option<&Address>) -> [HoldId; MAX_HOLDS] {
        let mut holds = [HoldId::NONE; MAX_HOLDS];
        holds[..MAX_SEGMENTS].copy_from_slice(&self.regions);
        holds[MAX_SEGMENTS] = peer.map_or(HoldId::NONE, Address::id);
        holds
    }
}
