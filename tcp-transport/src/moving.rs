//! How bytes are moved by either end's lanes: how much at a time, the buffer into which a thread reads ahead, and sealing.

use crate::cipher::{Cipher, MAX_PLAIN};
use crate::seam::Gather;

/// Room for reading ahead of what is known to come.
pub(crate) const SCRATCH: usize = 64 << 10;
/// Read ahead this much while messages are small: a copy of so few bytes costs less than one more system call.
pub(crate) const AHEAD_SMALL: usize = 16 << 10;
/// And this much behind a large payload, which itself goes straight to its destination.
pub(crate) const AHEAD_LARGE: usize = 512;
/// Payload above this is large.
pub(crate) const LARGE: u64 = 16 << 10;
/// Bytes moved by one system call at most, so that a lane's lock is never held long.
pub(crate) const MAX_MOVE: usize = 1 << 20;

/// Why a lane ended.
pub(crate) type Cause = String;

thread_local! {
    static SCRATCH_BUFFER: std::cell::RefCell<Vec<u8>> = std::cell::RefCell::new(vec![0; SCRATCH]);
}

/// Runs `work` with this thread's read-ahead buffer.
pub(crate) fn with_scratch<T>(work: impl FnOnce(&mut [u8]) -> T) -> T {
    SCRATCH_BUFFER.with(|buffer| work(&mut buffer.borrow_mut()))
}

/// Seals the first of these bytes, if there are any; returns how many.
pub(crate) fn seal(cipher: &mut Cipher, parts: &Gather<'_>) -> Result<usize, crate::wire::Malformed> {
    if parts.is_empty() {
        return Ok(0);
    }
    let mut plain = [0; MAX_PLAIN];
    let n = parts.copy_to(&mut plain, MAX_PLAIN);
    cipher.seal(&plain[..n]).map(|()| n)
}
