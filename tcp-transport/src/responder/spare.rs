//! Lists of ranges that requests have used, kept for later ones, so that a request allocates nothing.

use crate::request::Range;

/// Memory that one lane keeps in such lists: enough for twice as many short ones as it takes requests, by default.
const ENOUGH: usize = 1 << 20;

#[derive(Default)]
pub(super) struct Spare {
    lists: Vec<Vec<Range>>,
    bytes: usize,
}

impl Spare {
    fn bytes_of(list: &Vec<Range>) -> usize {
        list.capacity() * size_of::<Range>()
    }

    /// An empty list.
    pub(super) fn take(&mut self) -> Vec<Range> {
        let list = self.lists.pop().unwrap_or_default();
        self.bytes -= Self::bytes_of(&list);
        list
    }

    /// Takes a list back.
    pub(super) fn keep(&mut self, mut list: Vec<Range>) {
        if self.bytes + Self::bytes_of(&list) <= ENOUGH {
            list.clear();
            self.bytes += Self::bytes_of(&list);
            self.lists.push(list);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(ranges: usize) -> Vec<Range> {
        let mut list = Vec::with_capacity(ranges);
        list.resize(ranges, Range { at: 0, len: 1 });
        list
    }

    /// Catches: a lane that allocates anew for many requests at a time, and one that keeps all that a peer has made it allocate.
    #[test]
    fn short_lists_of_many_requests_are_kept_and_long_ones_are_not() {
        let mut spare = Spare::default();
        (0..2 * 1024).for_each(|_| spare.keep(list(16)));
        for _ in 0..2 * 1024 {
            let kept = spare.take();
            assert!(kept.is_empty() && kept.capacity() >= 16);
        }
        assert_eq!((spare.take().capacity(), spare.bytes), (0, 0));
        (0..10_000).for_each(|_| spare.keep(list(4000)));
        assert!(spare.bytes <= ENOUGH && !spare.lists.is_empty());
    }
}
