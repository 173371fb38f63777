//! What every mechanism does the same way: one connection's half of the bare protocol, without any I/O. A header of 24 bytes
//! (what, offset, length), a write's payload behind it; a write is answered by its header, a read by header and bytes.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

pub(crate) const HEADER: usize = 24;
/// Bytes that each connection can read and write.
pub(crate) const MEMORY: usize = 4 << 20;
/// Read ahead of what is known to come; what is longer goes straight to its place.
const AHEAD: usize = 16 << 10;
/// Most bytes of one call.
const MOST: usize = 1 << 20;

pub(crate) fn header(read: bool, at: usize, len: usize) -> [u8; HEADER] {
    let mut out = [0; HEADER];
    out[..8].copy_from_slice(&u64::from(read).to_le_bytes());
    out[8..16].copy_from_slice(&(at as u64).to_le_bytes());
    out[16..].copy_from_slice(&(len as u64).to_le_bytes());
    out
}

/// The answering side of a connection.
pub(crate) struct Conn {
    memory: Vec<u8>,
    ahead: Vec<u8>,
    head: Vec<u8>,
    /// What is still to come of a write.
    payload: Range<usize>,
    replies: VecDeque<([u8; HEADER], Range<usize>)>,
    sent: usize,
}

impl Conn {
    pub(crate) fn new() -> Self {
        let (head, replies) = (Vec::with_capacity(HEADER), VecDeque::with_capacity(64));
        Self { memory: vec![1; MEMORY], ahead: vec![0; AHEAD], head, payload: 0..0, replies, sent: 0 }
    }

    /// Where the next bytes belong.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        if self.payload.is_empty() {
            return &mut self.ahead;
        }
        let end = self.payload.end.min(self.payload.start + MOST);
        &mut self.memory[self.payload.start..end]
    }

    /// So many have been received there.
    pub(crate) fn received(&mut self, n: usize) {
        if !self.payload.is_empty() {
            self.payload.start += n;
            return self.finish();
        }
        let ahead = std::mem::take(&mut self.ahead);
        let mut input = &ahead[..n];
        while !input.is_empty() {
            if !self.payload.is_empty() {
                let (now, later) = input.split_at(input.len().min(self.payload.len()));
                self.memory[self.payload.start..][..now.len()].copy_from_slice(now);
                self.payload.start += now.len();
                input = later;
                self.finish();
                continue;
            }
            let (now, later) = input.split_at(input.len().min(HEADER - self.head.len()));
            self.head.extend_from_slice(now);
            input = later;
            if self.head.len() == HEADER {
                let word =
                    |i: usize| u64::from_le_bytes(self.head[i * 8..][..8].try_into().unwrap_or_default());
                let range = word(1) as usize..(word(1) + word(2)) as usize;
                if word(0) == 1 {
                    self.reply(range);
                } else {
                    self.payload = range;
                }
            }
        }
        self.ahead = ahead;
    }

    fn finish(&mut self) {
        if self.payload.is_empty() {
            self.reply(0..0);
        }
    }

    fn reply(&mut self, range: Range<usize>) {
        let head: [u8; HEADER] = self.head.as_slice().try_into().unwrap_or([0; HEADER]);
        self.head.clear();
        self.replies.push_back((head, range));
    }

    /// Lists what is to be sent next.
    pub(crate) fn gather<'a>(&'a self, out: &mut Vec<IoSlice<'a>>) {
        let (mut skip, mut bytes) = (self.sent, 0);
        for (head, range) in self.replies.iter().take(64) {
            for part in [&head[..], &self.memory[range.clone()]] {
                let done = skip.min(part.len());
                skip -= done;
                let part = &part[done..];
                if !part.is_empty() && bytes < MOST {
                    out.push(IoSlice::new(part));
                    bytes += part.len();
                }
            }
        }
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.replies.is_empty()
    }

    pub(crate) fn sent(&mut self, n: usize) {
        self.sent += n;
        while let Some((_, range)) = self.replies.front() {
            let total = HEADER + range.len();
            if self.sent < total {
                return;
            }
            self.sent -= total;
            self.replies.pop_front();
        }
    }
}
