//! One operation at a time: a lock of the endpoint for each. [`Transmit`] posts many under one.

use crate::address::Address;
use crate::endpoint::{Enabled, Endpoint};
use crate::error::PostError;
use crate::flags::PostFlags;
use crate::operations::OperationId;
use crate::region::Slice;
use crate::remote::Remote;
#[allow(unused_imports)] // for the documentation
use crate::transmit::Transmit;
use crate::transmit::{SendOptions, WriteOptions};

/// Operations, all with the same rules: a [`PostError`] means that nothing was consumed, and the same call can be made again.
/// The token comes back with the completion. [`Transmit`] has the same ones for many at a time.
impl Endpoint<Enabled> {
    /// Writes `source` to the peer's memory. Completes when the bytes are visible there, if the provider offers that
    /// ([`Info::delivery_complete`](crate::Info::delivery_complete)).
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn write(
        &self,
        to: &Address,
        source: Slice<'_>,
        target: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.one()?.write(to, source, target, token)
    }

    /// Writes several slices, one after the other, to one range of the peer's memory.
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn write_with(
        &self,
        to: &Address,
        sources: &[Slice<'_>],
        target: Remote,
        options: WriteOptions,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.one()?.write_with(to, sources, target, options, token)
    }

    /// Reads from the peer's memory into `target`. Completes when the bytes are here.
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn read(
        &self,
        from: &Address,
        target: Slice<'_>,
        source: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.one()?.read(from, target, source, token)
    }

    /// Reads one range of the peer's memory into several slices, one after the other.
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn read_with(
        &self,
        from: &Address,
        targets: &[Slice<'_>],
        source: Remote,
        flags: PostFlags,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.one()?.read_with(from, targets, source, flags, token)
    }

    /// Writes a few bytes ([`Info::inject_bytes`](crate::Info::inject_bytes)) that may be reused at once. There is no
    /// completion: as far as this side is concerned, it has ended when the call returns.
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn inject_write(
        &self,
        to: &Address,
        bytes: &[u8],
        target: Remote,
        immediate: Option<u64>,
    ) -> Result<(), PostError> {
        self.one()?.inject_write(to, bytes, target, immediate)
    }

    /// Sends a message. Completes when the provider has no more need of the memory.
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn send(&self, to: &Address, message: Slice<'_>, token: u64) -> Result<OperationId, PostError> {
        self.one()?.send(to, message, token)
    }

    /// Sends several slices as one message.
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn send_with(
        &self,
        to: &Address,
        message: &[Slice<'_>],
        options: SendOptions,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.one()?.send_with(to, message, options, token)
    }

    /// Sends a few bytes ([`Info::inject_bytes`](crate::Info::inject_bytes)) that may be reused at once. There is no
    /// completion: as far as this side is concerned, it has ended when the call returns. Flags of the options are ignored.
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn inject(&self, to: &Address, bytes: &[u8], options: SendOptions) -> Result<(), PostError> {
        self.one()?.inject(to, bytes, options)
    }

    /// Adds the 64-bit number in `operand` to the one in the peer's memory, atomically with respect to other such operations
    /// there, and puts what was there before into `result`.
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn fetch_add(
        &self,
        to: &Address,
        operand: Slice<'_>,
        result: Slice<'_>,
        target: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.one()?.fetch_add(to, operand, result, target, token)
    }

    /// Puts the 64-bit number in `operand` into the peer's memory if the one in `compare` is there, atomically with respect to
    /// other such operations there, and puts what was there before into `result`.
    ///
    /// # Errors
    ///
    /// [`PostError`].
    #[inline]
    pub fn compare_swap(
        &self,
        to: &Address,
        operand: Slice<'_>,
        compare: Slice<'_>,
        result: Slice<'_>,
        target: Remote,
        token: u64,
    ) -> Result<OperationId, PostError> {
        self.one()?.compare_swap(to, operand, compare, result, target, token)
    }
}
