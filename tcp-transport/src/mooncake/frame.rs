//! The two fixed frames of the protocol. Pure.

use crate::foreign::Recognition;
use crate::request::{MAX_REQUEST_BYTES, Op};

pub(crate) const HEAD_LEN: usize = 24;
pub(crate) const STATUS_LEN: usize = 8;
/// Bit of the opcode that asks for version 2.
const VERSION_2: u8 = 0x80;
/// Upper half of a status.
const MAGIC: u64 = 0x4D43_5456;

/// A request: size at 0, address at 8, opcode at 16 (0 read, 1 write, bit 7 for version 2), seven bytes of padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) op: Op,
    pub(crate) version_2: bool,
    pub(crate) addr: u64,
    pub(crate) len: u64,
}

impl Head {
    pub(crate) fn to_bytes(self) -> [u8; HEAD_LEN] {
        let mut out = [0; HEAD_LEN];
        out[..8].copy_from_slice(&self.len.to_le_bytes());
        out[8..16].copy_from_slice(&self.addr.to_le_bytes());
        out[16] = u8::from(self.op == Op::Write) | if self.version_2 { VERSION_2 } else { 0 };
        out
    }

    /// `None` for an unknown opcode. The padding may hold anything.
    pub(crate) fn from_bytes(bytes: &[u8; HEAD_LEN]) -> Option<Self> {
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(w)
        };
        let op = match bytes[16] & !VERSION_2 {
            0 => Op::Read,
            1 => Op::Write,
            _ => return None,
        };
        Some(Self { op, version_2: bytes[16] & VERSION_2 != 0, addr: word(8), len: word(0) })
    }
}

/// The answer of version 2.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Ok,
    /// The address is not registered.
    Refused,
}

impl Status {
    pub(crate) fn to_bytes(self) -> [u8; STATUS_LEN] {
        (MAGIC << 32 | u64::from(self == Self::Refused)).to_le_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; STATUS_LEN]) -> Option<Self> {
        match u64::from_le_bytes(bytes) {
            n if n == MAGIC << 32 => Some(Self::Ok),
            n if n == (MAGIC << 32 | 1) => Some(Self::Refused),
            _ => None,
        }
    }
}

/// Whether a connection begins with a request of this protocol. Its own handshake protocol begins with a length, a type and
/// then JSON, so an address may look like its beginning; but where this protocol has its opcode the other one has text.
pub(crate) fn recognise(head: &[u8]) -> Recognition {
    let Some(bytes) = head.first_chunk::<HEAD_LEN>() else { return Recognition::Undecided };
    match Head::from_bytes(bytes) {
        Some(h) if h.len <= MAX_REQUEST_BYTES => Recognition::Yes,
        _ => Recognition::No,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn heads_survive_the_wire(len: u64, addr: u64, write: bool, version_2: bool) {
            let op = if write { Op::Write } else { Op::Read };
            let head = Head { op, version_2, addr, len };
            prop_assert_eq!(Head::from_bytes(&head.to_bytes()), Some(head));
        }

        #[test]
        fn only_the_two_statuses_are_statuses(bytes: [u8; 8]) {
            let known = [Status::Ok, Status::Refused].into_iter().find(|s| s.to_bytes() == bytes);
            prop_assert_eq!(Status::from_bytes(bytes), known);
        }
    }

    #[test]
    fn bytes_are_where_the_other_side_expects_them() {
        let head = Head { op: Op::Write, version_2: true, addr: 0x1122_3344_5566_7788, len: 5 };
        let bytes = head.to_bytes();
        assert_eq!(bytes[..8], [5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[8..16], [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11]);
        assert_eq!(bytes[16], 0x81);
        assert_eq!(Status::Refused.to_bytes(), [1, 0, 0, 0, 0x56, 0x54, 0x43, 0x4d]);
    }

    #[test]
    fn the_handshake_and_the_native_preface_are_not_taken_for_data() {
        let mut control = 12_u64.to_le_bytes().to_vec();
        control.push(1);
        control.extend(b"{\"a\": 12345678}");
        assert_eq!(recognise(&control), Recognition::No);
        assert_eq!(recognise(&control[..10]), Recognition::Undecided);
        let mut native = crate::handshake::preface(true).to_vec();
        native.extend([0; 8]);
        assert_eq!(recognise(&native), Recognition::No);
        let data = Head { op: Op::Read, version_2: true, addr: 0x7f00_0000_1000, len: 4096 }.to_bytes();
        assert_eq!(recognise(&data), Recognition::Yes);
        assert_eq!(recognise(&data[..23]), Recognition::Undecided);
        // An address that looks like a type and the beginning of JSON.
        let data = Head { op: Op::Write, version_2: true, addr: 0x7f00_1234_7b00, len: 64 }.to_bytes();
        assert_eq!(recognise(&data), Recognition::Yes);
    }
}
