//! Memory registrations: keys, rights, bounds, and the page table entries that they cost.

use super::process::lock;
use crate::counters::Counters;
use crate::shared::{Mapped, ProcessFile, REGIONS, RegionEntry};
use std::io;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::Ordering;

const LIVE_TAG: u32 = 1 << 31;

/// What a registration covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Region {
    pub(crate) card: u32,
    pub(crate) pd: u32,
    pub(crate) access: u32,
    /// Address by which work requests name its first byte.
    pub(crate) iova: u64,
    /// Address of its first byte in the process.
    pub(crate) address: u64,
    pub(crate) length: u64,
}

impl Region {
    /// Where in the process's memory `length` bytes from `iova` lie, if all of them are inside and the rights are there.
    pub(crate) fn resolve(&self, iova: u64, length: u64, access: u32) -> Option<u64> {
        let offset = iova.checked_sub(self.iova)?;
        let end = offset.checked_add(length)?;
        (end <= self.length && self.access & access == access).then(|| self.address.wrapping_add(offset))
    }

    /// Page table entries that the card spends on it, with pages of `page` bytes.
    pub(crate) fn pages(&self, page: u64) -> u64 {
        let first = self.address / page;
        let last = (self.address.saturating_add(self.length.max(1)) - 1) / page;
        last - first + 1
    }
}

/// The registrations of this process, where all others can look them up.
pub(crate) struct Regions {
    file: Mapped<ProcessFile>,
    free: Mutex<Free>,
}

struct Free {
    /// Entries given back, oldest first, so that a stale key stays stale for long.
    returned: std::collections::VecDeque<u32>,
    /// Entries never used start here.
    fresh: u32,
    /// Upper half of the next key.
    tag: u32,
}

impl Regions {
    /// Makes the file. `seed` starts the sequence of key tags, so that two lives of one program do not share keys.
    pub(crate) fn create(path: &Path, seed: u64) -> io::Result<Regions> {
        let tag = (seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 49) as u32;
        Ok(Regions {
            file: Mapped::open(path, 0, true)?,
            free: Mutex::new(Free { returned: Default::default(), fresh: 0, tag }),
        })
    }

    /// Enters a registration and gives its key, or `None` when the table is full.
    pub(crate) fn insert(&self, region: &Region) -> Option<u32> {
        let mut free = lock(&self.free);
        let index = if (free.fresh as usize) < REGIONS - 1 {
            free.fresh += 1;
            free.fresh
        } else {
            free.returned.pop_front()?
        };
        // 15 bits, never zero: a key is never 0 and never all ones.
        free.tag = if free.tag + 1 >= 0x7fff { 1 } else { free.tag + 1 };
        let tag = free.tag;
        let entry = &self.file.regions[index as usize];
        entry.card.store(region.card, Ordering::Relaxed);
        entry.access.store(region.access, Ordering::Relaxed);
        entry.pd.store(region.pd, Ordering::Relaxed);
        entry.iova.store(region.iova, Ordering::Relaxed);
        entry.address.store(region.address, Ordering::Relaxed);
        entry.length.store(region.length, Ordering::Relaxed);
        entry.tag.store(tag | LIVE_TAG, Ordering::SeqCst);
        Some(tag << 16 | index)
    }

    /// Revokes a key. Copies that have begun may still go on: see `Process::wait_for_copies`.
    pub(crate) fn revoke(&self, key: u32) {
        self.file.regions[key as usize & 0xffff].tag.store(0, Ordering::SeqCst);
    }

    /// The counts of a card.
    pub(crate) fn counts(&self, card: usize) -> &Counters {
        &self.file.counts[card]
    }

    /// Gives a revoked key's entry back for reuse.
    pub(crate) fn recycle(&self, key: u32) {
        lock(&self.free).returned.push_back(key & 0xffff);
    }

    /// What a key of ours stands for.
    pub(crate) fn find(&self, key: u32) -> Option<Region> {
        find(&self.file, key)
    }
}

/// What a key stands for in some process's table; `None` for one that is unknown, stale, or changing just now.
pub(crate) fn find(file: &ProcessFile, key: u32) -> Option<Region> {
    let entry: &RegionEntry = &file.regions[key as usize & 0xffff];
    let tag = key >> 16 | LIVE_TAG;
    if entry.tag.load(Ordering::SeqCst) != tag {
        return None;
    }
    let region = Region {
        card: entry.card.load(Ordering::Relaxed),
        pd: entry.pd.load(Ordering::Relaxed),
        access: entry.access.load(Ordering::Relaxed),
        iova: entry.iova.load(Ordering::Relaxed),
        address: entry.address.load(Ordering::Relaxed),
        length: entry.length.load(Ordering::Relaxed),
    };
    std::sync::atomic::fence(Ordering::SeqCst);
    (entry.tag.load(Ordering::SeqCst) == tag).then_some(region)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region() -> Region {
        Region { card: 0, pd: 1, access: 0b110, iova: 0x1000, address: 0x7000_1000, length: 0x2000 }
    }

    #[test]
    fn bounds_and_rights_are_exact() {
        let region = region();
        assert_eq!(region.resolve(0x1000, 0x2000, 0b10), Some(0x7000_1000));
        assert_eq!(region.resolve(0x2fff, 1, 0b100), Some(0x7000_2fff));
        assert_eq!(region.resolve(0x3000, 0, 0), Some(0x7000_3000));
        assert_eq!(region.resolve(0x0fff, 1, 0), None);
        assert_eq!(region.resolve(0x2fff, 2, 0), None);
        assert_eq!(region.resolve(u64::MAX, 2, 0), None);
        assert_eq!(region.resolve(0x1001, u64::MAX, 0), None);
        assert_eq!(region.resolve(0x1000, 1, 0b1), None);
    }

    #[test]
    fn pages_count_what_is_touched() {
        let pages = |address, length| Region { address, length, ..region() }.pages(4096);
        assert_eq!((pages(0, 1), pages(0, 4096), pages(4095, 2), pages(1, 4096)), (1, 1, 2, 2));
        assert_eq!(pages(4096, 0), 1);
    }

    #[test]
    fn a_revoked_key_is_unknown_even_after_its_entry_is_used_again() {
        let path = std::env::temp_dir().join(format!("soft-efa-regions-{}", std::process::id()));
        let regions = Regions::create(&path, 7).unwrap();
        let key = regions.insert(&region()).unwrap();
        assert_eq!(regions.find(key), Some(region()));
        regions.revoke(key);
        regions.recycle(key);
        assert_eq!(regions.find(key), None);
        for _ in 0..REGIONS - 1 {
            let other = regions.insert(&region()).unwrap();
            assert_ne!(other, key);
        }
        assert!(regions.insert(&region()).is_none(), "the table is full");
        assert_eq!(regions.find(key), None);
        std::fs::remove_file(path).unwrap();
    }
}
