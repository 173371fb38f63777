//! The record layer of encrypted lanes: Noise transport messages, each preceded by its length (two bytes,
//! little-endian). Pure: plain bytes on one side, records on the other.

use crate::wire::Malformed;

/// Plain bytes of one record at most: the Noise limit of 65 535 less the tag, rounded down.
pub(crate) const MAX_PLAIN: usize = 65_000;
const TAG: usize = 16;

/// Both directions of one lane.
pub(crate) struct Cipher {
    noise: snow::TransportState,
    /// Records that wait to be sent, from `out_at`.
    out: Vec<u8>,
    out_at: usize,
    /// A record that has come in part.
    inbox: Vec<u8>,
    plain: Vec<u8>,
}

impl Cipher {
    pub(crate) fn new(noise: snow::TransportState) -> Self {
        Self { noise, out: Vec::new(), out_at: 0, inbox: Vec::new(), plain: Vec::new() }
    }

    /// Ciphertext that waits to be sent.
    pub(crate) fn outgoing(&self) -> &[u8] {
        &self.out[self.out_at..]
    }

    pub(crate) fn sent(&mut self, n: usize) {
        self.out_at += n;
        if self.out_at >= self.out.len() {
            self.out.clear();
            self.out_at = 0;
        }
    }

    /// Seals `plain`, at most [`MAX_PLAIN`] bytes, behind what waits.
    pub(crate) fn seal(&mut self, plain: &[u8]) -> Result<(), Malformed> {
        let at = self.out.len();
        let len = plain.len() + TAG;
        self.out.resize(at + 2 + len, 0);
        self.out[at..at + 2].copy_from_slice(&(len as u16).to_le_bytes());
        let sealed = self.noise.write_message(plain, &mut self.out[at + 2..]);
        match sealed {
            Ok(n) if n == len => Ok(()),
            _ => Err(Malformed("a record could not be sealed")),
        }
    }

    /// Takes ciphertext off the front of `input`; gives plain bytes when a record is whole.
    pub(crate) fn open<'a>(&'a mut self, input: &mut &[u8]) -> Result<Option<&'a [u8]>, Malformed> {
        take(&mut self.inbox, input, 2);
        let Some(len) = self.inbox.first_chunk::<2>() else { return Ok(None) };
        let len = usize::from(u16::from_le_bytes(*len));
        if len <= TAG {
            return Err(Malformed("an encrypted record is too short"));
        }
        take(&mut self.inbox, input, 2 + len);
        if self.inbox.len() < 2 + len {
            return Ok(None);
        }
        self.plain.resize(len, 0);
        let n = self
            .noise
            .read_message(&self.inbox[2..], &mut self.plain)
            .map_err(|_| Malformed("an encrypted record is forged or damaged"))?;
        self.inbox.clear();
        Ok(Some(&self.plain[..n]))
    }
}

fn take(into: &mut Vec<u8>, input: &mut &[u8], len: usize) {
    let n = len.saturating_sub(into.len()).min(input.len());
    let (head, tail) = input.split_at(n);
    into.extend_from_slice(head);
    *input = tail;
}
