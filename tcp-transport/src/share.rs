//! How a submission is spread over the lanes of a peer, and which of them it has used.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::lane::Lane;
use crate::peer::MAX_LANES;

/// The lanes that a placement has put something on.
#[derive(Default)]
pub(crate) struct Touched {
    lanes: [Option<Arc<Lane>>; MAX_LANES],
    count: usize,
}

impl Touched {
    pub(crate) fn add(&mut self, lane: &Arc<Lane>) {
        if self.lanes[..self.count].iter().flatten().any(|known| Arc::ptr_eq(known, lane)) {
            return;
        }
        // A peer has no more lanes than there are places.
        if let Some(place) = self.lanes.get_mut(self.count) {
            *place = Some(Arc::clone(lane));
            self.count += 1;
        }
    }

    pub(crate) fn lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.lanes[..self.count].iter().flatten()
    }
}

/// How a submission is spread: which lane comes first, and after how many bytes the next one's turn is.
pub(crate) struct Share {
    lane: usize,
    bytes: u64,
    quota: u64,
}

impl Share {
    /// Everything on the lane of the calling thread.
    pub(crate) fn single() -> Self {
        Self { lane: thread_number(), bytes: 0, quota: u64::MAX }
    }

    /// `total` bytes over `lanes`, but not in smaller parts than `stripe`.
    pub(crate) fn spread(total: u64, lanes: usize, stripe: u64) -> Self {
        let quota = total.div_ceil(lanes.max(1) as u64).max(stripe);
        Self { lane: thread_number(), bytes: 0, quota }
    }

    /// `bytes` on one lane, then the next one's turn.
    pub(crate) fn every(bytes: u64) -> Self {
        Self { quota: bytes, ..Self::single() }
    }

    /// The lane whose turn it is; to be taken modulo their number.
    pub(crate) fn turn(&mut self) -> usize {
        if self.bytes >= self.quota {
            self.bytes = 0;
            self.lane += 1;
        }
        self.lane
    }

    /// So many bytes went on the lane that is `step` places further, because those before had no room.
    pub(crate) fn used(&mut self, step: usize, bytes: u64) {
        self.lane += step;
        self.bytes += bytes;
    }

    /// Bytes of one lane's part.
    pub(crate) fn quota(&self) -> u64 {
        self.quota
    }
}

/// Numbers threads, so that several submitters begin with different lanes.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: usize = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    NUMBER.with(|n| *n)
}
