//! How bytes are moved by either end's lanes: how much at a time, the buffer into which a thread reads ahead, and sealing.

use std::io;
use std::os::fd::BorrowedFd;

use crate::cipher::{Cipher, MAX_PLAIN};
use crate::seam::Gather;

/// Room for reading ahead of what is known to come.
const SCRATCH: usize = 64 << 10;
/// Read ahead this much while messages are small: a copy of so few bytes costs less than one more system call.
pub(crate) const AHEAD_SMALL: usize = 16 << 10;
/// And this much behind a large payload, which itself goes straight to its destination.
const AHEAD_LARGE: usize = 512;
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

/// Sends what has been sealed: how much there was, and what became of it; `None` if there was nothing.
pub(crate) fn send_sealed(cipher: &mut Cipher, fd: BorrowedFd<'_>) -> Option<(usize, io::Result<usize>)> {
    let mut gather = Gather::new();
    gather.push_bytes(cipher.outgoing());
    if gather.is_empty() {
        return None;
    }
    let (wanted, sent) = (gather.bytes(), gather.send(fd));
    if let Ok(n) = sent {
        cipher.sent(n);
    }
    Some((wanted, sent))
}

/// How far to read ahead behind `direct` bytes of payload that go straight to their destination. `large`: the latest ones were many;
/// `staging`: the payload goes through the read-ahead buffer on its way to a device.
pub(crate) fn ahead(direct: usize, large: bool, staging: bool) -> usize {
    match direct as u64 {
        0 if staging => SCRATCH,
        0 if large => AHEAD_LARGE,
        n if n > LARGE => AHEAD_LARGE,
        _ => AHEAD_SMALL,
    }
}

/// Bytes that the socket took; `None` if it is full.
pub(crate) fn taken(sent: io::Result<usize>) -> Result<Option<usize>, Cause> {
    match sent {
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(format!("sending: {e}")),
    }
}

/// Bytes that the socket gave; `None` if it is empty. The end of the stream is an error.
pub(crate) fn given(received: io::Result<usize>) -> Result<Option<usize>, Cause> {
    match received {
        Ok(0) => Err("closed by the peer".into()),
        Ok(n) => Ok(Some(n)),
        Err(e) if e.kind() == io::ErrorKind::WouldBlock => Ok(None),
        Err(e) => Err(format!("receiving: {e}")),
    }
}
