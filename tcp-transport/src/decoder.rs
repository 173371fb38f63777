//! Finds frames in a stream of bytes that may be cut anywhere. Pure: bytes in, frames and payload out.

use crate::wire::{HEADER_LEN, Header, MAX_META, Malformed};

/// What the next bytes of the stream are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    /// The input is used up.
    Starved,
    /// A frame begins; its payload follows.
    Frame(Header, &'a [u8]),
    /// Some payload of the frame that began last; never empty.
    Payload(&'a [u8]),
}

/// The state between two pieces of input: at most one incomplete header with its metadata.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    partial: Vec<u8>,
    /// `partial` was handed out whole and is to be emptied.
    spent: bool,
    payload_left: u64,
}

impl Decoder {
    /// With room for a usual header and its metadata, so that the first that is cut in two allocates nothing.
    pub(crate) fn new() -> Self {
        Self { partial: Vec::with_capacity(128), ..Self::default() }
    }

    /// Payload of the current frame that has not come yet. The caller may receive it straight into its destination and
    /// [say so](Self::skip_payload).
    pub(crate) fn payload_left(&self) -> u64 {
        self.payload_left
    }

    /// Whether the stream stands between two frames.
    pub(crate) fn is_idle(&self) -> bool {
        self.payload_left == 0 && (self.partial.is_empty() || self.spent)
    }

    /// `n` bytes of payload went past this decoder. `n` is at most [`payload_left`](Self::payload_left).
    pub(crate) fn skip_payload(&mut self, n: u64) {
        self.payload_left = self.payload_left.saturating_sub(n);
    }

    /// Takes the next step's bytes off the front of `input`.
    pub(crate) fn step<'a, 'i: 'a>(&'a mut self, input: &mut &'i [u8]) -> Result<Step<'a>, Malformed> {
        if self.spent {
            self.partial.clear();
            self.spent = false;
            if self.partial.capacity() > 4096 {
                self.partial = Vec::new(); // an idle connection keeps no large buffer
            }
        }
        if input.is_empty() {
            return Ok(Step::Starved);
        }
        if self.payload_left > 0 {
            let n = usize::try_from(self.payload_left).unwrap_or(usize::MAX).min(input.len());
            let (head, tail) = input.split_at(n);
            *input = tail;
            self.payload_left -= n as u64;
            return Ok(Step::Payload(head));
        }
        if self.partial.is_empty() {
            // The usual case: header and metadata lie in the input, in one piece.
            if let Some((head, tail)) = input.split_first_chunk::<HEADER_LEN>() {
                let header = check(Header::from_bytes(head))?;
                if let Some((meta, rest)) = tail.split_at_checked(header.meta_len as usize) {
                    *input = rest;
                    self.payload_left = header.payload_len;
                    return Ok(Step::Frame(header, meta));
                }
            }
        }
        self.fill(input, HEADER_LEN);
        let Some(head) = self.partial.first_chunk::<HEADER_LEN>() else { return Ok(Step::Starved) };
        let header = check(Header::from_bytes(head))?;
        let whole = HEADER_LEN + header.meta_len as usize;
        self.fill(input, whole);
        if self.partial.len() < whole {
            return Ok(Step::Starved);
        }
        self.payload_left = header.payload_len;
        self.spent = true;
        Ok(Step::Frame(header, &self.partial[HEADER_LEN..]))
    }

    /// Moves input to `partial` until that is `len` long.
    fn fill(&mut self, input: &mut &[u8], len: usize) {
        let n = len.saturating_sub(self.partial.len()).min(input.len());
        let (head, tail) = input.split_at(n);
        self.partial.extend_from_slice(head);
        *input = tail;
    }
}

fn check(header: Header) -> Result<Header, Malformed> {
    if header.meta_len as usize > MAX_META {
        return Err(Malformed("metadata is longer than the limit"));
    }
    Ok(header)
}
