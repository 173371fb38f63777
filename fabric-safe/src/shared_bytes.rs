//! Copying to and from bytes that the network (or another thread) may change at the same time.
//!
//! Rust calls it undefined when two threads touch the same bytes and one of them writes, unless both do so atomically. All
//! accesses that this crate makes to registered bytes are therefore relaxed atomic ones, a word at a time where the address
//! allows it. What is written by the card is outside the language and arrives as if by another thread.

use core::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

const WORD: usize = size_of::<usize>();

/// Bytes before the first address that is a multiple of the word size.
fn head(address: *mut u8, len: usize) -> usize {
    ((address as usize).wrapping_neg() % WORD).min(len)
}

/// Copies `bytes` to `target`.
///
/// # Safety
///
/// `bytes.len()` bytes at `target` are mapped and writable, and never accessed through references.
pub(crate) unsafe fn copy_in(target: *mut u8, bytes: &[u8]) {
    // SAFETY: all addresses are inside the range that the caller vouches for; words are aligned.
    unsafe {
        let mut at = target;
        let (front, rest) = bytes.split_at(head(target, bytes.len()));
        let (words, back) = rest.as_chunks::<WORD>();
        for byte in front {
            AtomicU8::from_ptr(at).store(*byte, Ordering::Relaxed);
            at = at.add(1);
        }
        for word in words {
            AtomicUsize::from_ptr(at.cast()).store(usize::from_ne_bytes(*word), Ordering::Relaxed);
            at = at.add(WORD);
        }
        for byte in back {
            AtomicU8::from_ptr(at).store(*byte, Ordering::Relaxed);
            at = at.add(1);
        }
    }
}

/// Copies from `source` to `bytes`.
///
/// # Safety
///
/// `bytes.len()` bytes at `source` are mapped, and never accessed through references.
pub(crate) unsafe fn copy_out(source: *mut u8, bytes: &mut [u8]) {
    let head = head(source, bytes.len());
    // SAFETY: all addresses are inside the range that the caller vouches for; words are aligned. A relaxed load of a byte or
    // word is an ordinary load on the machines that we run on, so read-only memory will do.
    unsafe {
        let mut at = source;
        let (front, rest) = bytes.split_at_mut(head);
        let (words, back) = rest.as_chunks_mut::<WORD>();
        for byte in front {
            *byte = AtomicU8::from_ptr(at).load(Ordering::Relaxed);
            at = at.add(1);
        }
        for word in words {
            *word = AtomicUsize::from_ptr(at.cast()).load(Ordering::Relaxed).to_ne_bytes();
            at = at.add(WORD);
        }
        for byte in back {
            *byte = AtomicU8::from_ptr(at).load(Ordering::Relaxed);
            at = at.add(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alignment_and_length_copies_exactly() {
        let pattern: Vec<u8> = (1..=64).collect();
        for start in 0..9 {
            for len in 0..40 {
                let mut memory = vec![0u8; 64];
                let base = memory.as_mut_ptr();
                let mut out = vec![0; len];
                // SAFETY: inside the vector, which is not otherwise used meanwhile.
                unsafe {
                    copy_in(base.add(start), &pattern[..len]);
                    copy_out(base.add(start), &mut out);
                }
                assert_eq!(out, pattern[..len]);
                assert!(memory[..start].iter().chain(&memory[start + len..]).all(|b| *b == 0));
            }
        }
    }
}
