//! One NIC's account: pages and MRs in use, in one atomic word.
//!
//! Both counts sit in one word so that a reservation is granted or refused in one step. With two words a thread that
//! gets its pages and is refused its MR would hold the pages for a moment, and another thread could be refused for
//! nothing.

use super::sync::{AtomicU64, Ordering};

const PAGE_BITS: u32 = 40;
const MAX_PAGES: u64 = (1 << PAGE_BITS) - 1;
const MAX_MRS: u64 = (1 << (64 - PAGE_BITS)) - 1;

/// Counts of pages and MRs that never exceed their budgets.
#[derive(Debug)]
pub(crate) struct Account {
    /// MRs in the upper 24 bits, pages in the lower 40.
    used: AtomicU64,
    pages: u64,
    mrs: u64,
}

impl Account {
    pub(crate) fn new(pages: u64, mrs: u64) -> Self {
        Self { used: AtomicU64::new(0), pages: pages.min(MAX_PAGES), mrs: mrs.min(MAX_MRS) }
    }

    /// Pages and MRs at most.
    pub(crate) fn budget(&self) -> (u64, u64) {
        (self.pages, self.mrs)
    }

    /// Pages and MRs in use.
    pub(crate) fn used(&self) -> (u64, u64) {
        unpack(self.used.load(Ordering::Acquire))
    }

    /// Takes both or neither.
    #[inline]
    pub(crate) fn take(&self, pages: u64, mrs: u64) -> bool {
        if pages > self.pages || mrs > self.mrs {
            return false;
        }
        let mut seen = self.used.load(Ordering::Relaxed);
        loop {
            let (pages_used, mrs_used) = unpack(seen);
            if pages > self.pages - pages_used || mrs > self.mrs - mrs_used {
                return false;
            }
            let next = pack(pages_used + pages, mrs_used + mrs);
            match self.used.compare_exchange_weak(seen, next, Ordering::AcqRel, Ordering::Relaxed) {
                Ok(_) => return true,
                Err(now) => seen = now,
            }
        }
    }

    /// Gives back what was taken before.
    #[inline]
    pub(crate) fn give(&self, pages: u64, mrs: u64) {
        self.used.fetch_sub(pack(pages, mrs), Ordering::AcqRel);
    }
}

const fn pack(pages: u64, mrs: u64) -> u64 {
    mrs << PAGE_BITS | pages
}

const fn unpack(word: u64) -> (u64, u64) {
    (word & MAX_PAGES, word >> PAGE_BITS)
}
