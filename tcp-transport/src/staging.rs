//! Payload of memory that the CPU cannot address goes through a buffer: from the socket piece by piece into the device, and from
//! the device into a buffer that the socket sends. While the socket moves one piece, the device copies the other.

use crate::memory::DeviceCopy;
use crate::request::Range;
use crate::slice::Cursor;

/// Bytes taken from the device at a time.
const STAGE: u64 = 256 << 10;

/// The payload that is being sent from a device: a window on it.
#[derive(Debug, Default)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    /// Where the window begins in the payload.
    at: u64,
}

impl Outgoing {
    /// Makes sure that the window holds the byte at `done`, which `cursor` points to, unless the payload ends there.
    pub(crate) fn fill(
        &mut self,
        device: &dyn DeviceCopy,
        ranges: &[Range],
        cursor: Cursor,
        done: u64,
    ) -> Result<(), String> {
        if done >= self.at && done < self.at + self.bytes.len() as u64 {
            return Ok(());
        }
        self.bytes.clear();
        self.at = done;
        for r in cursor.rest(ranges) {
            let have = self.bytes.len();
            let len = r.len.min(STAGE - have as u64) as usize;
            if len == 0 {
                break;
            }
            self.bytes.resize(have + len, 0);
            device.copy_out(r.at as usize, &mut self.bytes[have..])?;
        }
        Ok(())
    }

    /// The bytes from `done` on, as far as the window reaches.
    pub(crate) fn from(&self, done: u64) -> &[u8] {
        let skip = done.checked_sub(self.at).and_then(|n| usize::try_from(n).ok());
        skip.and_then(|n| self.bytes.get(n..)).unwrap_or_default()
    }

    /// The payload has ended.
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
    }
}

/// Copies a piece of payload to where it belongs in a device.
pub(crate) fn copy_in(
    device: &dyn DeviceCopy,
    ranges: &[Range],
    cursor: Cursor,
    mut bytes: &[u8],
) -> Result<(), String> {
    for r in cursor.rest(ranges) {
        let (now, later) = bytes.split_at(bytes.len().min(r.len as usize));
        device.copy_in(r.at as usize, now)?;
        bytes = later;
        if bytes.is_empty() {
            break;
        }
    }
    Ok(())
}
