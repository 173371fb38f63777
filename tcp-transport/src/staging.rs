//! Payload of memory that the CPU cannot address goes through a buffer: from the socket piece by piece into the device, and from
//! the device into a buffer that the socket sends. While the socket moves one piece, the device copies the other.

use std::collections::VecDeque;
use std::fmt;

use crate::memory::{AheadCopy, DeviceCopy};
use crate::request::Range;
use crate::slice::Cursor;

/// Bytes taken from the device at a time.
pub(crate) const STAGE: u64 = 256 << 10;
/// Ranges of the next window that are fetched ahead at most: a window of many short ranges gains nothing.
const MAX_AHEAD: usize = 16;

/// The payload that is being sent from a device: a window on it, and the next one on its way.
#[derive(Default)]
pub(crate) struct Outgoing {
    bytes: Vec<u8>,
    /// Where the window begins in the payload.
    at: u64,
    /// Copies that have been begun, in the order in which they will be wanted.
    ahead: VecDeque<(Range, Box<dyn AheadCopy>)>,
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Outgoing({}+{}, {} ahead)", self.at, self.bytes.len(), self.ahead.len())
    }
}

impl Outgoing {
    /// Makes sure that the window holds the byte at `done`, which `cursor` points to, unless the payload ends there.
    pub(crate) fn fill(
        &mut self,
        device: &dyn DeviceCopy,
        ranges: &[Range],
        mut cursor: Cursor,
        done: u64,
    ) -> Result<(), String> {
        if done >= self.at && done < self.at + self.bytes.len() as u64 {
            return Ok(());
        }
        self.bytes.clear();
        self.at = done;
        for r in window(ranges, cursor) {
            let have = self.bytes.len();
            self.bytes.resize(have + r.len as usize, 0);
            let room = &mut self.bytes[have..];
            match self.ahead.pop_front() {
                Some((begun, copy)) if begun == r => copy.finish(room)?,
                _ => {
                    self.ahead.clear(); // of another place
                    device.copy_out(r.at as usize, room)?;
                }
            }
        }
        cursor.advance(ranges, self.bytes.len() as u64);
        self.ahead.clear();
        for r in window(ranges, cursor).take(MAX_AHEAD) {
            let Some(copy) = device.copy_out_ahead(r.at as usize, r.len as usize) else { break };
            self.ahead.push_back((r, copy));
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
        self.ahead.clear();
    }
}

/// The ranges from `cursor` on, at most [`STAGE`] bytes of them.
fn window(ranges: &[Range], cursor: Cursor) -> impl Iterator<Item = Range> {
    let mut left = STAGE;
    cursor.rest(ranges).map_while(move |r| {
        let len = r.len.min(left);
        left -= len;
        (len > 0).then_some(Range { at: r.at, len })
    })
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
