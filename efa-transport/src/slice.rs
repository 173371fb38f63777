//! A slice: what one operation transfers.

use std::sync::Arc;

use crate::batch::{BatchState, RequestState};
use crate::error::Error;
use crate::region::RegionInner;

/// No NIC.
pub(crate) const NONE: u8 = u8::MAX;

/// Part of a request, inside one chunk on either side. Dropping one that has not been [done](Self::done) fails its request, so
/// nothing is ever lost.
pub(crate) struct Slice {
    batch: Arc<BatchState>,
    /// Keeps the memory registered; the slice alone does, so that a batch that has ended holds nothing.
    pub(crate) region: Arc<RegionInner>,
    pub(crate) local: u64,
    pub(crate) remote: u64,
    pub(crate) len: u64,
    request: u32,
    pub(crate) local_chunk: u32,
    pub(crate) remote_chunk: u32,
    /// When it was queued or posted last; for latencies.
    pub(crate) since: u64,
    /// Since when the provider has had no room for it; 0 for never.
    pub(crate) blocked_since: u64,
    /// Attempts that have ended.
    pub(crate) attempts: u16,
    /// The remote NIC of the current or latest attempt.
    pub(crate) remote_nic: u8,
    /// The local NIC of the latest attempt.
    pub(crate) local_nic: u8,
    /// Carries the request's immediate.
    pub(crate) gate: bool,
    done: bool,
}

impl Slice {
    /// It must be [counted](BatchState::add_slices) before it can end.
    pub(crate) fn new(
        batch: &Arc<BatchState>,
        request: u32,
        region: &Arc<RegionInner>,
        cut: crate::scheduler::slicer::Cut,
    ) -> Self {
        Self {
            batch: Arc::clone(batch),
            region: Arc::clone(region),
            local: cut.local,
            remote: cut.remote,
            len: cut.len,
            request,
            local_chunk: cut.local_chunk,
            remote_chunk: cut.remote_chunk,
            since: 0,
            blocked_since: 0,
            attempts: 0,
            remote_nic: NONE,
            local_nic: NONE,
            gate: false,
            done: false,
        }
    }

    #[inline]
    pub(crate) fn request(&self) -> &RequestState {
        // The index came with the batch, whose requests stay as long as slices exist.
        &self.batch.requests[self.request as usize]
    }

    #[inline]
    pub(crate) fn has_ended(&self) -> bool {
        self.request().has_ended()
    }

    /// It went well. What comes back is to be started now.
    #[inline]
    pub(crate) fn done(mut self) -> Option<Slice> {
        self.done = true;
        self.batch.part_done(self.request)
    }

    pub(crate) fn fail(mut self, error: impl FnOnce(&RequestState) -> Error) -> bool {
        self.done = true;
        self.batch.fail(self.request, error)
    }

    /// The NICs on this side that can carry it.
    #[inline]
    pub(crate) fn locals(&self) -> u128 {
        self.region.chunks.get(self.local_chunk as usize).map_or(0, |chunk| chunk.nics)
    }

    #[inline]
    pub(crate) fn remotes(&self) -> u128 {
        self.request().table.nics_of(self.remote_chunk)
    }
}

impl Drop for Slice {
    fn drop(&mut self) {
        if !self.done {
            self.batch.fail(self.request, |_| Error::ShutDown);
        }
        self.batch.slice_gone(self.request);
    }
}
