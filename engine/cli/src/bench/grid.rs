//! The cases: every combination of block size, batch size and threads.

use engine::RemoteBuffer;

use crate::failure::Failure;
use crate::units::{Counts, Sizes, bytes};

/// One combination.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Case {
    /// Bytes of a block.
    pub(crate) block: u64,
    /// Blocks of a batch.
    pub(crate) batch: u64,
    /// Threads.
    pub(crate) threads: u64,
}

impl Case {
    /// Bytes of one batch.
    pub(crate) fn batch_bytes(&self) -> u64 {
        self.block * self.batch
    }

    /// Bytes that the target's buffer must have.
    ///
    /// Threads and batches in flight each have a place of their own there, so that what is verified is not overwritten by
    /// another. Without verification only one batch has to fit: places are shared then.
    fn need(&self, depth: u64, verify: bool) -> u128 {
        let places = if verify { u128::from(self.threads) * u128::from(depth) } else { 1 };
        u128::from(self.block) * u128::from(self.batch) * places
    }

    /// As a heading of progress.
    pub(crate) fn short(&self) -> String {
        format!("{} × {} × {}", bytes(self.block), self.batch, self.threads)
    }
}

/// All combinations.
#[derive(Debug)]
pub(crate) struct Grid {
    cases: Vec<Case>,
}

impl Grid {
    pub(crate) fn new(blocks: &Sizes, batches: &Counts, threads: &Counts) -> Self {
        let mut cases = Vec::new();
        for &threads in &threads.0 {
            for &batch in &batches.0 {
                cases.extend(blocks.0.iter().map(|&block| Case { block, batch, threads }));
            }
        }
        Self { cases }
    }

    pub(crate) fn cases(&self) -> impl Iterator<Item = Case> + '_ {
        self.cases.iter().copied()
    }

    /// Whether the target's buffer is large enough for each case, and there is one.
    pub(crate) fn fits(&self, depth: u64, buffer: &RemoteBuffer, verify: bool) -> Result<(), Failure> {
        if self.cases.is_empty() {
            return Err(Failure::Usage(format!(
                "no case fits into the target's buffer {:?} of {}: start it with `weft serve --size`, or ask for less",
                buffer.label(),
                bytes(buffer.len())
            )));
        }
        for case in &self.cases {
            let need = case.need(depth, verify);
            if need > u128::from(buffer.len()) {
                return Err(Failure::Usage(format!(
                    "batches of {} blocks of {} need {} of memory for all that are in flight; the target's buffer {:?} has {}: \
                     start it with `weft serve --size`, or ask for less",
                    case.batch,
                    bytes(case.block),
                    bytes(u64::try_from(need).unwrap_or(u64::MAX)),
                    buffer.label(),
                    bytes(buffer.len())
                )));
            }
        }
        Ok(())
    }

    /// Leaves out what does not fit into the buffer; returns how many cases that were.
    pub(crate) fn keep_fitting(&mut self, depth: u64, buffer: &RemoteBuffer, verify: bool) -> usize {
        let before = self.cases.len();
        self.cases.retain(|case| case.need(depth, verify) <= u128::from(buffer.len()));
        before - self.cases.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grid_is_every_combination_once() {
        let grid = Grid::new(&Sizes(vec![4096, 65_536]), &Counts(vec![1, 16, 128]), &Counts(vec![1, 2]));
        let cases: Vec<Case> = grid.cases().collect();
        assert_eq!(cases.len(), 12);
        for (index, case) in cases.iter().enumerate() {
            assert!(!cases[index + 1..].contains(case), "{case:?} twice");
        }
        assert_eq!(cases[3].batch_bytes(), 16 * 65_536);
    }
}
