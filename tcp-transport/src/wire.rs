//! The frames of the native protocol, byte by byte as in `docs/tcp-protocol.md`. Pure: no sockets, no clocks.
//!
//! Every frame is a [`Header`] of 24 bytes, `meta_len` bytes of metadata, `payload_len` bytes of payload. Integers are
//! little-endian. Whatever comes from a peer goes through [`Reader`], which never reads past its end.

use crate::region::RegionKey;
use crate::request::Range;

/// First bytes of a native connection, from the side that dialled. Read as a little-endian number they are far larger than
/// any length that Mooncake's protocols start with, so that one port can serve both.
pub(crate) const MAGIC: [u8; 7] = *b"\x89WEFT\r\n";
/// Version of everything after the magic.
pub(crate) const VERSION: u8 = 1;

/// Length of [`Header`] on the wire.
pub(crate) const HEADER_LEN: usize = 24;
/// Most ranges of one side of one frame.
pub(crate) const MAX_RANGES: usize = 4000;
/// Longest metadata: two sides of [`MAX_RANGES`] scattered ranges, and the fixed parts.
pub(crate) const MAX_META: usize = 2 * (MAX_RANGES * 16 + 64) + 64;

/// What a frame asks for or answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    Read = 0x01,
    Write = 0x02,
    HostRead = 0x03,
    HostWrite = 0x04,
    Notify = 0x05,
    Call = 0x06,
    Ping = 0x07,
    Cancel = 0x08,
    Supersede = 0x09,
    Immediate = 0x0a,
    HostProbe = 0x0b,
    Answer = 0x80,
    GoAway = 0x81,
}

impl Kind {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0x01 => Self::Read,
            0x02 => Self::Write,
            0x03 => Self::HostRead,
            0x04 => Self::HostWrite,
            0x05 => Self::Notify,
            0x06 => Self::Call,
            0x07 => Self::Ping,
            0x08 => Self::Cancel,
            0x09 => Self::Supersede,
            0x0a => Self::Immediate,
            0x0b => Self::HostProbe,
            0x80 => Self::Answer,
            0x81 => Self::GoAway,
            _ => return None,
        })
    }
}

/// Flag of a write: the metadata carries an [`Event`] and an immediate before the shape.
pub(crate) const FLAG_IMMEDIATE: u8 = 1;

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    /// Of answers: zero, or the code of a refusal.
    pub(crate) code: u16,
    pub(crate) meta_len: u32,
    /// Chosen by the asking side, repeated in the answer.
    pub(crate) id: u64,
    pub(crate) payload_len: u64,
}

impl Header {
    pub(crate) fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut out = [0; HEADER_LEN];
        out[0] = self.kind;
        out[1] = self.flags;
        out[2..4].copy_from_slice(&self.code.to_le_bytes());
        out[4..8].copy_from_slice(&self.meta_len.to_le_bytes());
        out[8..16].copy_from_slice(&self.id.to_le_bytes());
        out[16..24].copy_from_slice(&self.payload_len.to_le_bytes());
        out
    }

    pub(crate) fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut r = Reader(bytes);
        // Cannot fail: the array is long enough for the six fields.
        Self {
            kind: r.u8().unwrap_or_default(),
            flags: r.u8().unwrap_or_default(),
            code: r.u16().unwrap_or_default(),
            meta_len: r.u32().unwrap_or_default(),
            id: r.u64().unwrap_or_default(),
            payload_len: r.u64().unwrap_or_default(),
        }
    }

    /// An answer with a code; its payload, if any, follows.
    pub(crate) fn answer(id: u64, code: u16, payload_len: u64) -> Self {
        Self { kind: Kind::Answer as u8, flags: 0, code, meta_len: 0, id, payload_len }
    }
}

/// Bytes that do not follow the protocol; the text says where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Malformed(pub(crate) &'static str);

impl std::fmt::Display for Malformed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }
}

/// Takes fixed-size fields off the front of a byte string.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn bytes(&mut self, n: usize) -> Result<&'a [u8], Malformed> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(Malformed("metadata ends early"))?;
        self.0 = tail;
        Ok(head)
    }
    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let mut out = [0; N];
        out.copy_from_slice(self.bytes(N)?);
        Ok(out)
    }
    pub(crate) fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(self.array::<1>()?[0])
    }
    pub(crate) fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }
    pub(crate) fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }
    pub(crate) fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }
    pub(crate) fn end(&self) -> Result<(), Malformed> {
        if self.0.is_empty() { Ok(()) } else { Err(Malformed("metadata is longer than its fields")) }
    }
}

/// Identifies something that must be delivered once: its number within the sender's session, and the lowest number that
/// the sender still has no answer for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Event {
    pub(crate) number: u64,
    pub(crate) floor: u64,
}

impl Event {
    pub(crate) fn put(self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.number.to_le_bytes());
        out.extend_from_slice(&self.floor.to_le_bytes());
    }
    pub(crate) fn get(r: &mut Reader<'_>) -> Result<Self, Malformed> {
        let (number, floor) = (r.u64()?, r.u64()?);
        if floor > number {
            return Err(Malformed("event number below its floor"));
        }
        Ok(Self { number, floor })
    }
}

pub(crate) fn put_key(out: &mut Vec<u8>, key: RegionKey) {
    out.extend_from_slice(&key.0);
}

pub(crate) fn get_key(r: &mut Reader<'_>) -> Result<RegionKey, Malformed> {
    Ok(RegionKey(r.array()?))
}

const SHAPE_CONTIGUOUS: u8 = 0;
const SHAPE_PAGED: u8 = 1;
const SHAPE_STRIDED: u8 = 2;
const SHAPE_SCATTER: u8 = 3;

/// Writes a list of ranges in the shortest of the four forms that fits it.
pub(crate) fn put_ranges(out: &mut Vec<u8>, ranges: &[Range]) {
    put_ranges_at(out, ranges, 0);
}

/// As [`put_ranges`], for offsets in a region that begins at `base`. The region's end is an address, so no sum overflows.
pub(crate) fn put_ranges_at(out: &mut Vec<u8>, ranges: &[Range], base: u64) {
    let word = |out: &mut Vec<u8>, v: u64| out.extend_from_slice(&v.to_le_bytes());
    let count = |out: &mut Vec<u8>| out.extend_from_slice(&(ranges.len() as u32).to_le_bytes());
    if let [one] = ranges {
        out.push(SHAPE_CONTIGUOUS);
        word(out, base + one.at);
        word(out, one.len);
        return;
    }
    let first = ranges.first().copied().unwrap_or_default();
    if ranges.iter().all(|r| r.len == first.len) {
        let stride = ranges.get(1).and_then(|r| r.at.checked_sub(first.at)).filter(|&s| s >= first.len);
        let steady = |s: u64| ranges.windows(2).all(|w| w[1].at.checked_sub(w[0].at) == Some(s));
        if let Some(stride) = stride.filter(|&s| steady(s)) {
            out.push(SHAPE_STRIDED);
            word(out, base + first.at);
            word(out, first.len);
            word(out, stride);
            count(out);
            return;
        }
        out.push(SHAPE_PAGED);
        word(out, first.len);
        count(out);
        ranges.iter().for_each(|r| word(out, base + r.at));
        return;
    }
    out.push(SHAPE_SCATTER);
    count(out);
    for r in ranges {
        word(out, base + r.at);
        word(out, r.len);
    }
}

/// Reads a list of ranges into `into`, which it empties first, and returns their total length. Ranges are neither empty nor
/// wrap around, and there are at most [`MAX_RANGES`].
pub(crate) fn get_ranges(r: &mut Reader<'_>, into: &mut Vec<Range>) -> Result<u64, Malformed> {
    into.clear();
    let mut total = 0_u64;
    let mut push = |at: u64, len: u64| {
        let wraps = len == 0 || at.checked_add(len).is_none();
        total =
            total.checked_add(len).filter(|_| !wraps).ok_or(Malformed("a range is empty or wraps around"))?;
        into.push(Range { at, len });
        Ok(())
    };
    let counted = |n: u32| match n as usize {
        1..=MAX_RANGES => Ok(n),
        _ => Err(Malformed("number of ranges is zero or above the limit")),
    };
    match r.u8()? {
        SHAPE_CONTIGUOUS => push(r.u64()?, r.u64()?)?,
        SHAPE_PAGED => {
            let (len, n) = (r.u64()?, counted(r.u32()?)?);
            for _ in 0..n {
                push(r.u64()?, len)?;
            }
        }
        SHAPE_STRIDED => {
            let (addr, len, stride, n) = (r.u64()?, r.u64()?, r.u64()?, counted(r.u32()?)?);
            if stride < len {
                return Err(Malformed("stride is shorter than its block"));
            }
            for i in 0..u64::from(n) {
                let at = i.checked_mul(stride).and_then(|d| addr.checked_add(d));
                push(at.ok_or(Malformed("a strided range wraps around"))?, len)?;
            }
        }
        SHAPE_SCATTER => {
            let n = counted(r.u32()?)?;
            for _ in 0..n {
                push(r.u64()?, r.u64()?)?;
            }
        }
        _ => return Err(Malformed("unknown shape")),
    }
    Ok(total)
}
