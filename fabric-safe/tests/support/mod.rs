//! What the tests share: which libfabrics and providers to run on, an endpoint with everything it needs, and a line between
//! two processes.

#![allow(dead_code)] // each test program uses its part
#![allow(clippy::unwrap_used)] // a test fails by panicking

pub(crate) mod libraries;
pub(crate) mod line;
pub(crate) mod node;

/// Says on stderr that a test could not run here.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("SKIP: {test}: {reason}");
}

/// Says on stderr that a test runs on the other providers only.
pub(crate) fn without(test: &str, provider: &str, reason: &str) {
    eprintln!("{test}: without {provider}: {reason}");
}

/// `len` bytes that differ from place to place and from seed to seed.
pub(crate) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    // A block of a prime length over and over, so that no two pages are alike.
    const BLOCK: usize = 65_521;
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len.max(BLOCK) + 8);
    while bytes.len() < len.min(BLOCK) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len.min(BLOCK));
    while bytes.len() < len {
        bytes.extend_from_within(..bytes.len().min(len - bytes.len()));
    }
    bytes
}
