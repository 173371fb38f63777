//! Part of some shared memory, registered by itself.

use core::fmt;
use core::ops::Range;
use std::sync::Arc;

use super::{Dmabuf, Memory, Placement, SharedMemory};
use crate::Usage;

/// A range of shared memory that counts as memory of its own, so that it can be registered without the rest.
///
/// A long buffer is often registered in pieces, with different cards for each: the card's room for page table entries and
/// its longest region set limits.
pub struct Part {
    whole: Arc<dyn SharedMemory>,
    offset: usize,
    len_bytes: usize,
    _guard: Option<Box<dyn Send + Sync>>,
}

impl Part {
    /// The bytes `range` of `whole`.
    ///
    /// # Errors
    ///
    /// [`Usage::OutOfRange`] if they are not inside.
    pub fn new(whole: Arc<dyn SharedMemory>, range: Range<usize>) -> Result<Self, Usage> {
        if range.start > range.end || range.end > whole.len_bytes() {
            let (start, end, len) = (range.start, range.end, whole.len_bytes());
            return Err(Usage::OutOfRange { start, end, len });
        }
        Ok(Part { whole, offset: range.start, len_bytes: range.end - range.start, _guard: None })
    }

    /// Ties something to the part that is dropped together with it: for a registered part, after it has been deregistered;
    /// for one that could not be deregistered, never.
    #[must_use]
    pub fn with_guard(mut self, guard: impl Send + Sync + 'static) -> Self {
        self._guard = Some(Box::new(guard));
        self
    }
}

impl fmt::Debug for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Part")
            .field("address", &self.address())
            .field("len_bytes", &self.len_bytes)
            .finish_non_exhaustive()
    }
}

// SAFETY: a range inside memory that keeps the promise, kept alive by the `Arc`.
unsafe impl Memory for Part {
    fn address(&self) -> *mut u8 {
        self.whole.address().wrapping_add(self.offset)
    }
    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
    fn placement(&self) -> Placement {
        self.whole.placement()
    }
    fn writable(&self) -> bool {
        self.whole.writable()
    }
    fn dmabuf(&self) -> Option<Dmabuf<'_>> {
        let whole = self.whole.dmabuf()?;
        Some(Dmabuf { fd: whole.fd, offset: whole.offset + self.offset as u64 })
    }
}

// SAFETY: no method lends the bytes, and the whole does not either.
unsafe impl SharedMemory for Part {}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::{Mapping, PageKind};

    #[test]
    fn a_part_is_inside_the_whole_and_lets_go_of_its_guard_last() {
        let whole: Arc<dyn SharedMemory> = Arc::new(Mapping::anonymous(8192, PageKind::Small).unwrap());
        let guard = Arc::new(());
        let part = Part::new(whole.clone(), 4096..8192).unwrap().with_guard(guard.clone());
        assert_eq!(part.address() as usize, whole.address() as usize + 4096);
        assert_eq!(part.len_bytes(), 4096);
        assert_eq!(Arc::strong_count(&guard), 2);
        drop(part);
        assert_eq!(Arc::strong_count(&guard), 1);
    }

    #[test]
    #[allow(clippy::reversed_empty_ranges)]
    fn ranges_outside_are_refused() {
        let whole: Arc<dyn SharedMemory> = Arc::new(Mapping::anonymous(100, PageKind::Small).unwrap());
        for bad in [0..101, 101..101, 50..49] {
            assert!(matches!(Part::new(whole.clone(), bad), Err(Usage::OutOfRange { .. })));
        }
        assert!(Part::new(whole, 100..100).is_ok());
    }
}
