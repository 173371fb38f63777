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
    /// A bit for each lane that may have a part.
    lanes: u32,
}

impl Share {
    /// Everything on the lane of the calling thread.
    pub(crate) fn single() -> Self {
        Self { lane: thread_number(), bytes: 0, quota: u64::MAX, lanes: u32::MAX }
    }

    /// `total` bytes over those of these `count` lanes that are free, beginning with one that is near, but not in smaller parts than
    /// `stripe`. Where none is free, all on the lane of the calling thread.
    pub(crate) fn spread(
        total: u64,
        count: usize,
        free: impl Fn(usize) -> bool,
        near: impl Fn(usize) -> bool,
        stripe: u64,
    ) -> Self {
        let count = count.max(1);
        let home = thread_number() % count;
        let lanes = (0..count.min(MAX_LANES)).filter(|&n| free(n)).fold(0_u32, |all, n| all | 1 << n);
        let lanes = if lanes == 0 { 1 << home } else { lanes };
        let turns = || (0..count).map(|step| (home + step) % count).filter(|n| lanes & 1 << n != 0);
        let first = turns().find(|&n| near(n)).or_else(|| turns().next()).unwrap_or(home);
        let quota = total.div_ceil(u64::from(lanes.count_ones())).max(stripe);
        Self { lane: first, bytes: 0, quota, lanes }
    }

    /// `bytes` on one lane, then the next one's turn.
    pub(crate) fn every(bytes: u64) -> Self {
        Self { quota: bytes, ..Self::single() }
    }

    /// Which of `count` lanes has its turn.
    pub(crate) fn turn(&mut self, count: usize) -> usize {
        if self.bytes >= self.quota {
            self.bytes = 0;
            let later = (1..=count).map(|step| (self.lane + step) % count);
            self.lane = { later }.find(|n| self.lanes & 1 << n != 0).unwrap_or(self.lane);
        }
        self.lane % count
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Which lanes get how many bytes of `slices` slices of 1000.
    fn parts(mut share: Share, count: usize, slices: usize) -> Vec<u64> {
        let mut parts = vec![0; count];
        for _ in 0..slices {
            parts[share.turn(count)] += 1000;
            share.used(0, 1000);
        }
        parts
    }

    proptest! {
        /// A submission goes on free lanes alone, a near one first, evenly, in parts of at least a stripe; on one lane where none is free.
        #[test]
        fn only_free_lanes_get_a_part(count in 1_usize..=MAX_LANES, free: u32, near: u32, slices in 1_usize..200, stripe in 0_u64..50_000) {
            let is_free = |n: usize| free & 1 << n != 0;
            let is_near = |n: usize| near & 1 << n != 0;
            let mut share = Share::spread(slices as u64 * 1000, count, is_free, is_near, stripe);
            let first = share.turn(count);
            let parts = parts(share, count, slices);
            let used: Vec<_> = (0..count).filter(|&n| parts[n] > 0).collect();
            let open = (0..count).filter(|&n| is_free(n)).count();
            if open == 0 {
                prop_assert_eq!(used.len(), 1);
                return Ok(());
            }
            prop_assert!(used.iter().all(|&n| is_free(n)), "{:?} of {:?}", used, free);
            // One of those that are near, if it is free.
            prop_assert!(is_free(first) && (is_near(first) || !(0..count).any(|n| is_free(n) && is_near(n))));
            let quota = (slices as u64 * 1000).div_ceil(open as u64).max(stripe);
            prop_assert!(parts.iter().all(|&p| p < quota + 1000), "{:?}", parts);
            prop_assert!(parts.iter().filter(|&&p| p > 0 && p < stripe).count() <= 1, "{:?}", parts);
        }
    }
}
