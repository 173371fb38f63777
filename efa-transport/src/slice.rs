//! A slice: what one operation transfers.

/// No NIC.
pub(crate) const NONE: u8 = u8::MAX;

/// Part of a request, inside one chunk on either side, on its way through a lane: plain data, moved in and out of the lane's
/// queue once. What it shares with its neighbours is in their [lot](crate::lot).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Slice {
    pub(crate) local: u64,
    pub(crate) remote: u64,
    /// When it was posted; for latencies.
    pub(crate) since: u64,
    /// Never more than [`LONGEST`].
    len: u32,
    pub(crate) lot: u32,
    /// Which of the batch.
    pub(crate) request: u32,
    /// The remote NIC of the current attempt.
    pub(crate) remote_nic: u8,
}

/// The longest slice in bytes, whatever a provider would take.
pub(crate) const LONGEST: u64 = 1 << 30;

impl Slice {
    /// Of at most [`LONGEST`] bytes.
    #[inline]
    pub(crate) const fn new(request: u32, local: u64, remote: u64, len: u64) -> Self {
        debug_assert!(len <= LONGEST);
        Self { local, remote, since: 0, len: len as u32, lot: u32::MAX, request, remote_nic: NONE }
    }

    /// What stands for a probe in the queue: it has no bytes of its own.
    pub(crate) const fn of_probe() -> Self {
        Self::new(0, 0, 0, 0)
    }

    /// The same with the number of its lot.
    #[inline]
    pub(crate) const fn of_lot(self, lot: u32) -> Self {
        Self { lot, ..self }
    }

    /// Length in bytes.
    #[inline]
    pub(crate) const fn len(&self) -> u64 {
        self.len as u64
    }
}
