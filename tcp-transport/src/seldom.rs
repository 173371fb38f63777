//! Log lines that a peer can cause as often as it likes: the first ten are told, then every time that their number has doubled.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counts what happens; one for each kind of line.
pub(crate) struct Seldom(AtomicU64);

impl Seldom {
    pub(crate) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// How often it has happened, this time included, if that is to be told.
    pub(crate) fn again(&self) -> Option<u64> {
        let count = self.0.fetch_add(1, Ordering::Relaxed) + 1;
        (count <= 10 || count.is_power_of_two()).then_some(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_becomes_a_trickle() {
        let seldom = Seldom::new();
        let told: Vec<u64> = (0..100_000).filter_map(|_| seldom.again()).collect();
        assert_eq!(told[..11], [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16]);
        assert_eq!(told.len(), 10 + 13, "{told:?}");
    }
}
