//! Counts heap allocations.

use std::alloc::System;

use stats_alloc::{Region, StatsAlloc};

/// The system's allocator with counters. Install it in the benchmark or test:
///
/// ```
/// use benchkit::{CountingAllocator, allocations};
///
/// #[global_allocator]
/// static ALLOCATOR: CountingAllocator = CountingAllocator::system();
///
/// let (text, count) = allocations(&ALLOCATOR, || String::from("one allocation"));
/// assert_eq!((text.len(), count), (14, 1));
/// ```
pub type CountingAllocator = StatsAlloc<System>;

/// Runs `work` and returns how many allocations and reallocations the whole process made meanwhile, other threads
/// included.
pub fn allocations<T>(allocator: &'static CountingAllocator, work: impl FnOnce() -> T) -> (T, u64) {
    let region = Region::new(allocator);
    let result = work();
    let change = region.change();
    (result, (change.allocations + change.reallocations) as u64)
}
