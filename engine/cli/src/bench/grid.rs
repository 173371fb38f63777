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

    /// Whether the target's buffer is large enough for each case.
    ///
    /// Threads and batches in flight each have a place of their own there, so that what is verified is not overwritten by
    /// another. Without verification only one batch has to fit: places are shared then.
    pub(crate) fn fits(&self, depth: u64, buffer: &RemoteBuffer, verify: bool) -> Result<(), Failure> {
        for case in &self.cases {
            let batch = u128::from(case.block) * u128::from(case.batch);
            let places = if verify { u128::from(case.threads) * u128::from(depth) } else { 1 };
            if batch * places > u128::from(buffer.len()) {
                return Err(Failure::Usage(format!(
                    "batches of {} blocks of {}, {places} at a time, need {} of memory; the target's buffer {:?} has {}: \
                     start it with `weft serve --size`, or ask for less",
                    case.batch,
                    bytes(case.block),
                    bytes(u64::try_from(batch * places).unwrap_or(u64::MAX)),
                    buffer.label(),
                    bytes(buffer.len())
                )));
            }
        }
        Ok(())
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
