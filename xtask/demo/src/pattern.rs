//! What a page holds: bytes that follow from a seed, so that the receiving side can check every one of them.

/// SplitMix64's finaliser: spreads a counter over all 64 bits.
pub(crate) fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Step between neighbouring words: odd, so that no two words of a page are equal.
const STEP: u64 = 0xD6E8_FEB8_6659_FD93;

/// Fills `page` with the bytes that belong to `seed`.
pub(crate) fn fill(page: &mut [u8], seed: u64) {
    let mut word = mix(seed);
    let mut chunks = page.chunks_exact_mut(8);
    for chunk in &mut chunks {
        chunk.copy_from_slice(&word.to_le_bytes());
        word = word.wrapping_add(STEP);
    }
    let rest = chunks.into_remainder();
    rest.copy_from_slice(&word.to_le_bytes()[..rest.len()]);
}

/// Offset of the first byte of `page` that differs from what belongs to `seed`.
pub(crate) fn first_difference(page: &[u8], seed: u64) -> Option<usize> {
    let mut word = mix(seed);
    let chunks = page.chunks_exact(8);
    let rest = chunks.remainder();
    for (index, chunk) in chunks.enumerate() {
        if chunk != word.to_le_bytes() {
            return difference(chunk, word).map(|offset| index * 8 + offset);
        }
        word = word.wrapping_add(STEP);
    }
    difference(rest, word).map(|offset| page.len() - rest.len() + offset)
}

fn difference(bytes: &[u8], word: u64) -> Option<usize> {
    bytes.iter().zip(word.to_le_bytes()).position(|(&found, wanted)| found != wanted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_single_wrong_byte_is_found_where_it_is(
            len in 1usize..300, seed: u64, position: prop::sample::Index, flip in 1u8..,
        ) {
            let mut page = vec![0; len];
            fill(&mut page, seed);
            prop_assert_eq!(first_difference(&page, seed), None);
            let at = position.index(len);
            page[at] ^= flip;
            prop_assert_eq!(first_difference(&page, seed), Some(at));
        }

        #[test]
        fn pages_of_different_seeds_differ_in_every_word(a: u64, b: u64) {
            prop_assume!(a != b);
            let mut page = vec![0; 64];
            fill(&mut page, a);
            prop_assert_eq!(first_difference(&page, b).map(|at| at < 8), Some(true));
        }
    }
}
