//! Which blocks the target holds, and in which pages: the initiator's view of the target's KV pool.

use std::collections::HashMap;

/// Index of a page in a pool.
pub(crate) type PageId = u32;

/// Hands out the pages of one pool, the one freed last first, so that pages are reused as early as possible.
#[derive(Debug)]
pub(crate) struct PageAllocator {
    free: Vec<PageId>,
    total: usize,
}

impl PageAllocator {
    pub(crate) fn new(pages: usize) -> Self {
        let total = pages.min(PageId::MAX as usize);
        Self { free: (0..total as PageId).rev().collect(), total }
    }

    pub(crate) fn total(&self) -> usize {
        self.total
    }

    /// `count` pages, or none at all.
    pub(crate) fn allocate(&mut self, count: usize) -> Option<Vec<PageId>> {
        let rest = self.free.len().checked_sub(count)?;
        Some(self.free.split_off(rest))
    }

    pub(crate) fn release(&mut self, pages: &[PageId]) {
        self.free.extend_from_slice(pages);
    }
}

/// A block that lies in the target's pool, verified.
#[derive(Debug, Clone)]
pub(crate) struct Block {
    /// Page seeds follow from this one.
    pub(crate) seed: u64,
    /// Pages of all requests of the block, in request order.
    pub(crate) pages: Vec<PageId>,
    /// Requests that move this block right now; such a block is not evicted.
    pins: usize,
    /// Place in its prompt: late blocks are shared least and are evicted first, as radix caches do.
    depth: usize,
    last_use: u64,
}

/// Resident blocks by their trace id.
#[derive(Debug, Default)]
pub(crate) struct BlockCache {
    blocks: HashMap<u64, Block>,
    clock: u64,
}

impl BlockCache {
    /// Looks a block up and pins it.
    pub(crate) fn pin(&mut self, id: u64) -> Option<&Block> {
        self.clock += 1;
        let clock = self.clock;
        self.blocks.get_mut(&id).map(|block| {
            block.pins += 1;
            block.last_use = clock;
            &*block
        })
    }

    /// Undoes one [`BlockCache::pin`].
    pub(crate) fn unpin(&mut self, id: u64) {
        if let Some(block) = self.blocks.get_mut(&id) {
            block.pins = block.pins.saturating_sub(1);
        }
    }

    pub(crate) fn insert(&mut self, id: u64, seed: u64, pages: Vec<PageId>, depth: usize) {
        self.clock += 1;
        let block = Block { seed, pages, pins: 0, depth, last_use: self.clock };
        self.blocks.insert(id, block);
    }

    /// Gives up the block that is least likely to be asked for again; its pages are the caller's.
    pub(crate) fn evict(&mut self) -> Option<Vec<PageId>> {
        let unpinned = self.blocks.iter().filter(|(_, block)| block.pins == 0);
        let (&id, _) = unpinned.max_by_key(|(_, block)| (block.depth, u64::MAX - block.last_use))?;
        self.blocks.remove(&id).map(|block| block.pages)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    proptest! {
        /// No page is ever in two hands, and none is lost.
        #[test]
        fn pages_are_conserved(pages in 1usize..200, steps in prop::collection::vec((any::<bool>(), 0usize..40), 1..60)) {
            let mut allocator = PageAllocator::new(pages);
            let mut held: Vec<Vec<PageId>> = Vec::new();
            for (allocate, n) in steps {
                if allocate {
                    let before = allocator.free.len();
                    match allocator.allocate(n) {
                        Some(got) => { prop_assert_eq!(got.len(), n); held.push(got); }
                        None => { prop_assert!(n > before); prop_assert_eq!(allocator.free.len(), before); }
                    }
                } else if !held.is_empty() {
                    let given = held.swap_remove(n % held.len());
                    allocator.release(&given);
                }
                let distinct: HashSet<_> = held.iter().flatten().collect();
                let count: usize = held.iter().map(Vec::len).sum();
                prop_assert_eq!(distinct.len(), count);
                prop_assert_eq!(count + allocator.free.len(), allocator.total());
            }
        }
    }

    #[test]
    fn the_deepest_unpinned_block_goes_first() {
        let mut cache = BlockCache::default();
        cache.insert(0, 10, vec![0], 0);
        cache.insert(1, 11, vec![1], 1);
        cache.insert(2, 12, vec![2], 2);
        assert_eq!(cache.pin(2).unwrap().seed, 12);
        assert_eq!(cache.evict(), Some(vec![1]));
        cache.unpin(2);
        assert_eq!(cache.evict(), Some(vec![2]));
        cache.pin(0);
        assert_eq!(cache.evict(), None);
    }
}
