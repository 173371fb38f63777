//! What the writer of a piece of a peer's memory knows about it: the bytes that must be there, or that nobody knows. Each
//! piece has one writer, so every byte that is not as expected is somebody's bug.

/// A slot: the unit that is known or unknown.
pub(crate) const SLOT: usize = 96 << 10;
/// Slots that one writer has at one peer.
pub(crate) const SLOTS: usize = 16;
/// Lives of a node that have slots of their own, in turn. What a killed process had given to its sockets may be delivered after its
/// successor has begun to write: nobody promises anything across lives, so they must not write to the same bytes.
const LIVES: u64 = 6;
/// Bytes of the slots of one writer.
pub(crate) const AREA: usize = SLOT * SLOTS;

/// Where in a pool the slots of a writer lie that is a node in one of its lives.
pub(crate) fn area(node: usize, life: u64) -> usize {
    (node * LIVES as usize + (life % LIVES) as usize) * AREA
}

/// Length of a pool that so many nodes write to.
pub(crate) fn pool_len(nodes: usize) -> usize {
    area(nodes, 0)
}

/// See the module.
pub(crate) struct Shadow {
    bytes: Vec<u8>,
    known: [bool; SLOTS],
}

impl Shadow {
    pub(crate) fn new() -> Self {
        Self { bytes: vec![0; AREA], known: [false; SLOTS] }
    }

    pub(crate) fn is_known(&self, slot: usize) -> bool {
        self.known[slot]
    }

    /// A write to a part of the slot has ended well; only a whole one makes an unknown slot known.
    pub(crate) fn written(&mut self, slot: usize, at: usize, bytes: &[u8]) {
        self.bytes[slot * SLOT + at..][..bytes.len()].copy_from_slice(bytes);
        self.known[slot] |= bytes.len() == SLOT;
    }

    /// A write has failed: its range holds the old bytes, the new ones, or some of each.
    pub(crate) fn forget(&mut self, slot: usize) {
        self.known[slot] = false;
    }

    /// The peer has begun a new life.
    pub(crate) fn forget_all(&mut self) {
        self.known = [false; SLOTS];
    }

    /// The first byte of what was read that is not as it must be: where, what it is, what it should be.
    pub(crate) fn difference(&self, slot: usize, at: usize, read: &[u8]) -> Option<(usize, u8, u8)> {
        let expected = &self.bytes[slot * SLOT + at..][..read.len()];
        let place = read.iter().zip(expected).position(|(a, b)| a != b)?;
        Some((at + place, read[place], expected[place]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn one_wrong_byte_is_found_where_it_is(slot in 0..SLOTS, at in 0..SLOT, flip in 1_u8..) {
            let mut shadow = Shadow::new();
            let mut bytes: Vec<u8> = (0..SLOT).map(|i| (i * 7 + slot) as u8).collect();
            shadow.written(slot, 0, &bytes);
            prop_assert!(shadow.is_known(slot));
            prop_assert_eq!(shadow.difference(slot, 0, &bytes), None);
            let right = bytes[at];
            bytes[at] ^= flip;
            prop_assert_eq!(shadow.difference(slot, 0, &bytes), Some((at, bytes[at], right)));
            shadow.written(slot, at, &[bytes[at]]);
            prop_assert_eq!(shadow.difference(slot, 0, &bytes), None);
        }
    }

    #[test]
    fn a_part_makes_no_slot_known() {
        let mut shadow = Shadow::new();
        shadow.written(3, 0, &[1; 100]);
        assert!(!shadow.is_known(3));
        shadow.written(3, 0, &[1; SLOT]);
        assert!(shadow.is_known(3) && !shadow.is_known(4));
        shadow.forget(3);
        assert!(!shadow.is_known(3));
    }
}
