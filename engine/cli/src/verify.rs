//! Verification of what has been moved: a pattern that is different everywhere, and how an initiator asks a `weft serve` to check it.
//!
//! A target that is `weft serve` checks its own memory: the initiator notifies it of a range and a seed, and the target puts the outcome
//! into a small buffer of its own (the mailbox), which the initiator reads. So what is compared is what the target's program
//! sees, not what a read over the same path says. Any other target is read back instead.

use engine::HostMemory;
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

/// Label of the mailbox's buffer.
pub(crate) const MAILBOX: &str = "weft-checks";
/// Checks whose outcome can be there at a time.
const SLOTS: u64 = 256;
/// Bytes of an outcome: ticket, verdict, position, and the exclusive-or of the three, because a reader may see half of it.
pub(crate) const SLOT_BYTES: usize = 32;
/// Bytes of the mailbox.
pub(crate) const MAILBOX_BYTES: usize = SLOTS as usize * SLOT_BYTES;
/// Memory is compared in pieces of this size.
pub(crate) const PIECE: usize = 1 << 20;

/// What an initiator asks a target to check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Check {
    /// Random; the outcome carries it.
    pub(crate) ticket: u64,
    /// Label of the buffer.
    pub(crate) buffer: String,
    /// First byte in it.
    pub(crate) offset: u64,
    /// Bytes.
    pub(crate) len: u64,
    /// Of the pattern that should be there.
    pub(crate) seed: u64,
}

/// What came of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Every byte is as it should be.
    Right,
    /// The first wrong byte of the buffer.
    WrongAt(u64),
    /// There is no such range.
    NoSuchRange,
}

impl Check {
    /// Where in the mailbox the outcome will be.
    pub(crate) fn slot(&self) -> u64 {
        self.ticket % SLOTS * SLOT_BYTES as u64
    }

    /// As a notification.
    pub(crate) fn to_bytes(&self) -> Result<Vec<u8>, Failure> {
        serde_json::to_vec(self).map_err(|error| Failure::Transfer(format!("cannot encode a check: {error}")))
    }

    /// From a notification; `None` if it is something else.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }

    /// Compares the target's own memory with the pattern.
    pub(crate) fn carry_out(&self, memory: &HostMemory) -> Verdict {
        let end = self.offset.checked_add(self.len).filter(|end| *end <= memory.len() as u64);
        let Some(end) = end else { return Verdict::NoSuchRange };
        let mut piece = vec![0; PIECE];
        let mut at = self.offset;
        while at < end {
            let len = (PIECE as u64).min(end - at) as usize;
            if memory.read(at as usize, &mut piece[..len]).is_err() {
                return Verdict::NoSuchRange;
            }
            if let Some(difference) = first_difference(&piece[..len], at, self.seed) {
                return Verdict::WrongAt(difference);
            }
            at += len as u64;
        }
        Verdict::Right
    }

    /// The bytes of the outcome's slot.
    pub(crate) fn outcome(&self, verdict: Verdict) -> [u8; SLOT_BYTES] {
        let (code, at) = match verdict {
            Verdict::Right => (1, 0),
            Verdict::WrongAt(at) => (2, at),
            Verdict::NoSuchRange => (3, 0),
        };
        let mut bytes = [0; SLOT_BYTES];
        for (word, value) in [self.ticket, code, at, self.ticket ^ code ^ at].iter().enumerate() {
            bytes[8 * word..8 * word + 8].copy_from_slice(&value.to_le_bytes());
        }
        bytes
    }

    /// The outcome, if these bytes of the mailbox are it.
    pub(crate) fn read_outcome(&self, bytes: &[u8; SLOT_BYTES]) -> Option<Verdict> {
        let word = |index: usize| {
            bytes[8 * index..].first_chunk::<8>().map_or(0, |bytes| u64::from_le_bytes(*bytes))
        };
        if word(0) != self.ticket || word(3) != word(0) ^ word(1) ^ word(2) {
            return None;
        }
        match word(1) {
            1 => Some(Verdict::Right),
            2 => Some(Verdict::WrongAt(word(2))),
            _ => Some(Verdict::NoSuchRange),
        }
    }
}

/// Eight bytes of the pattern: a mix of the seed and the place, so that nothing repeats (the finaliser of SplitMix64).
fn word(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add(index.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn byte(seed: u64, offset: u64) -> u8 {
    word(seed, offset / 8).to_le_bytes()[(offset % 8) as usize]
}

/// Fills `bytes`, which lie at `offset` of the target's buffer.
pub(crate) fn fill(bytes: &mut [u8], offset: u64, seed: u64) {
    let head = ((8 - offset % 8) % 8).min(bytes.len() as u64) as usize;
    let (head, rest) = bytes.split_at_mut(head);
    for (index, byte_at) in head.iter_mut().enumerate() {
        *byte_at = byte(seed, offset + index as u64);
    }
    let start = offset + head.len() as u64;
    let mut words = rest.chunks_exact_mut(8);
    let mut index = start / 8;
    for eight in &mut words {
        eight.copy_from_slice(&word(seed, index).to_le_bytes());
        index += 1;
    }
    for (at, byte_at) in words.into_remainder().iter_mut().enumerate() {
        *byte_at = byte(seed, index * 8 + at as u64);
    }
}

/// The offset in the buffer of the first byte that is not the pattern's.
pub(crate) fn first_difference(bytes: &[u8], offset: u64, seed: u64) -> Option<u64> {
    let mut wanted = [0; 4096];
    for (index, piece) in bytes.chunks(wanted.len()).enumerate() {
        let start = offset + (index * wanted.len()) as u64;
        let wanted = &mut wanted[..piece.len()];
        fill(wanted, start, seed);
        if wanted != piece {
            return piece.iter().zip(&*wanted).position(|(a, b)| a != b).map(|at| start + at as u64);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check() -> Check {
        Check { ticket: 77, buffer: "pool".into(), offset: 100, len: 5000, seed: 9 }
    }

    #[test]
    fn a_target_finds_the_first_wrong_byte_and_nothing_else() {
        let memory = HostMemory::new(3 << 20).unwrap();
        let check = Check { len: (2 << 20) + 11, ..check() };
        let mut bytes = vec![0; check.len as usize];
        fill(&mut bytes, check.offset, check.seed);
        memory.write(100, &bytes).unwrap();
        assert_eq!(check.carry_out(&memory), Verdict::Right);
        memory.write(99, &[1]).unwrap();
        memory.write(100 + bytes.len(), &[1]).unwrap();
        assert_eq!(check.carry_out(&memory), Verdict::Right, "beside the range");
        memory.write((1 << 20) + 200, &[bytes[(1 << 20) + 100] ^ 1]).unwrap();
        assert_eq!(check.carry_out(&memory), Verdict::WrongAt((1 << 20) + 200));
        for (offset, len) in [(u64::MAX, 1), (0, u64::MAX), (3 << 20, 1)] {
            assert_eq!(Check { offset, len, ..check.clone() }.carry_out(&memory), Verdict::NoSuchRange);
        }
    }

    #[test]
    fn outcomes_are_read_whole_or_not_at_all() {
        for verdict in [Verdict::Right, Verdict::WrongAt(12_345), Verdict::NoSuchRange] {
            let bytes = check().outcome(verdict);
            assert_eq!(check().read_outcome(&bytes), Some(verdict));
            for cut in 1..SLOT_BYTES / 8 {
                let mut torn = [0; SLOT_BYTES];
                torn[..8 * cut].copy_from_slice(&bytes[..8 * cut]);
                assert_eq!(check().read_outcome(&torn), None, "{verdict:?} cut after {cut} words");
            }
        }
        assert_eq!(Check { ticket: 78, ..check() }.read_outcome(&check().outcome(Verdict::Right)), None);
    }

    proptest! {
        #[test]
        fn the_pattern_does_not_depend_on_where_a_piece_begins(
            offset in 0_u64..10_000, len in 0_usize..9_000, cut in 0_usize..9_000, seed: u64,
        ) {
            let mut whole = vec![0; len];
            fill(&mut whole, offset, seed);
            let cut = cut.min(len);
            let mut parts = vec![0; len];
            fill(&mut parts[..cut], offset, seed);
            fill(&mut parts[cut..], offset + cut as u64, seed);
            prop_assert_eq!(&whole, &parts);
            prop_assert_eq!(first_difference(&whole, offset, seed), None);
        }

        #[test]
        fn every_changed_byte_is_found(
            offset in 0_u64..10_000, len in 1_usize..9_000, at in 0_usize..9_000, change in 1_u8.., seed: u64,
        ) {
            let mut bytes = vec![0; len];
            fill(&mut bytes, offset, seed);
            let at = at % len;
            bytes[at] ^= change;
            prop_assert_eq!(first_difference(&bytes, offset, seed), Some(offset + at as u64));
        }

        #[test]
        fn any_notification_is_a_check_or_none(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = Check::from_bytes(&bytes);
            prop_assert_eq!(Check::from_bytes(&check().to_bytes().unwrap()), Some(check()));
        }
    }
}
