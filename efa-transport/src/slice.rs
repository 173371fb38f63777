//! A slice: what one operation transfers.

use crate::scheduler::slicer::Cut;

/// No NIC.
pub(crate) const NONE: u8 = u8::MAX;

/// The longest slice in bytes, whatever a provider would take.
pub(crate) const LONGEST: u64 = 1 << 30;

/// Part of a request, inside one chunk on either side.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub(crate) local: u64,
    pub(crate) remote: u64,
    /// Never more than [`LONGEST`].
    len: u32,
    /// Which of the batch.
    pub(crate) request: u32,
}

impl Piece {
    /// A cut of at most [`LONGEST`] bytes.
    #[inline]
    pub(crate) const fn new(request: u32, cut: &Cut) -> Self {
        debug_assert!(cut.len <= LONGEST);
        Self { local: cut.local, remote: cut.remote, len: cut.len as u32, request }
    }

    /// Length in bytes.
    #[inline]
    pub(crate) const fn len(&self) -> u64 {
        self.len as u64
    }
}

/// A piece on its way through a lane: plain data. What it shares with its neighbours is in their [lot](crate::lot).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice {
    pub(crate) piece: Piece,
    /// When it was posted; for latencies.
    pub(crate) since: u64,
    pub(crate) lot: u32,
    /// The remote NIC of the current attempt.
    pub(crate) remote_nic: u8,
}

impl Slice {
    #[inline]
    pub(crate) const fn new(piece: Piece, lot: u32) -> Self {
        Self { piece, since: 0, lot, remote_nic: NONE }
    }

    /// What stands for a probe in the queue: it has no bytes of its own.
    pub(crate) const fn of_probe(lot: u32) -> Self {
        Self::new(Piece { local: 0, remote: 0, len: 0, request: 0 }, lot)
    }

    /// Length in bytes.
    #[inline]
    pub(crate) const fn len(&self) -> u64 {
        self.piece.len()
    }

    /// Which of its batch it belongs to.
    #[inline]
    pub(crate) const fn request(&self) -> u32 {
        self.piece.request
    }
}
