//! A message of Mooncake's control protocol: a length of 64 bits that counts a type of one byte and JSON.

use std::io::{self, Read, Write};

use tcp_transport::Recognition;

/// Longest message that is sent or believed, unless `MC_HANDSHAKE_MAX_LENGTH` says otherwise; Mooncake's own limit.
const USUAL_MAX: u64 = 1 << 20;
/// The most that variable may ask for.
const MAX: u64 = 128 << 20;

/// What a message is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Connect a NIC with one of mine.
    Connection,
    /// What have you registered?
    Metadata,
    /// Something for the program.
    Notify,
    /// Are you alive?
    Probe,
    /// A connection, by a peer of before there were types: its JSON follows the length.
    Untyped,
}

impl Kind {
    fn of(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Connection,
            1 => Self::Metadata,
            2 => Self::Notify,
            3 => Self::Probe,
            _ => return None,
        })
    }

    fn byte(self) -> Option<u8> {
        match self {
            Self::Connection => Some(0),
            Self::Metadata => Some(1),
            Self::Notify => Some(2),
            Self::Probe => Some(3),
            Self::Untyped => None,
        }
    }
}

/// The longest message in bytes.
pub(super) fn max_length() -> u64 {
    let set = std::env::var("MC_HANDSHAKE_MAX_LENGTH").ok().and_then(|text| text.parse().ok());
    set.map_or(USUAL_MAX, |length: u64| length.clamp(USUAL_MAX, MAX))
}

/// Whether a connection begins with such a message. The data protocol shares the port; its requests have a size where this
/// has a length, and an address where this has type and JSON. What tells them apart without doubt is the byte at 16, an opcode
/// there and text here.
pub(crate) fn recognise(head: &[u8]) -> Recognition {
    let mut length = [0; 8];
    let known = head.len().min(8);
    length[..known].copy_from_slice(&head[..known]);
    // What has not come yet is zero here, so only what is too long already is.
    let length = u64::from_le_bytes(length);
    if length > MAX || (known == 8 && length == 0) {
        return Recognition::No;
    }
    let typed = match head.get(8) {
        None => return Recognition::Undecided,
        Some(b'{') => false,
        Some(0..=3) => true,
        Some(_) => return Recognition::No,
    };
    match head.get(9) {
        // `{…}`, or `null` where there is nothing to say.
        Some(b'{' | b'n') if typed => {}
        Some(_) if typed => return Recognition::No,
        Some(byte) if !byte.is_ascii() => return Recognition::No,
        _ => {}
    }
    match head.get(16) {
        Some(0 | 1 | 0x80 | 0x81) => Recognition::No,
        Some(_) => Recognition::Yes,
        // Shorter than that, and whole.
        None if head.len() as u64 >= 8 + length => Recognition::Yes,
        None => Recognition::Undecided,
    }
}

/// Reads a message; `head` has come already. Memory is taken as bytes come, not as they are announced.
pub(crate) fn read(stream: &mut impl Read, max: u64, head: &[u8]) -> io::Result<(Kind, Vec<u8>)> {
    let wrong = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut stream = head.chain(stream);
    let mut length = [0; 8];
    stream.read_exact(&mut length)?;
    let length = u64::from_le_bytes(length);
    if length == 0 || length > max {
        return Err(wrong(format!("a message of {length} bytes, where 1 to {max} are allowed")));
    }
    let mut bytes = Vec::new();
    stream.take(length).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < length {
        return Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("{} bytes of a message of {length}", bytes.len()),
        ));
    }
    match bytes.first().copied().map(Kind::of) {
        Some(Some(kind)) => {
            bytes.remove(0);
            Ok((kind, bytes))
        }
        _ => Ok((Kind::Untyped, bytes)),
    }
}

/// Writes a message in one piece.
pub(crate) fn write(stream: &mut impl Write, kind: Kind, json: &[u8]) -> io::Result<()> {
    let kind = kind.byte();
    let length = json.len() as u64 + u64::from(kind.is_some());
    if length > max_length() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!(
                "a message of {length} bytes is longer than peers take ({}); register fewer, larger buffers, or set \
                 MC_HANDSHAKE_MAX_LENGTH on both sides",
                max_length()
            ),
        ));
    }
    let mut bytes = length.to_le_bytes().to_vec();
    bytes.extend(kind);
    bytes.extend(json);
    stream.write_all(&bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [Kind; 5] = [Kind::Connection, Kind::Metadata, Kind::Notify, Kind::Probe, Kind::Untyped];

    fn message(kind: Kind, json: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        write(&mut bytes, kind, json.as_bytes()).unwrap();
        bytes
    }

    proptest! {
        #[test]
        fn messages_survive_the_wire(kind in prop::sample::select(&KINDS[..]), text in "[a-z0-9 ]{0,60}", seen in 0usize..24) {
            let json = format!("{{\"{text}\":1}}");
            let bytes = message(kind, &json);
            let seen = seen.min(bytes.len());
            let read = read(&mut &bytes[seen..], 4096, &bytes[..seen]).unwrap();
            prop_assert_eq!(read, (kind, json.into_bytes()));
        }

        /// However the bytes come, a message is recognised in the end, and nothing before that says it is none.
        #[test]
        fn messages_are_recognised_by_24_bytes(kind in prop::sample::select(&KINDS[..]), text in "[a-z]{0,40}") {
            for json in [format!("{{\"{text}\":\"{text}\"}}\n"), "{}\n".into(), "null\n".into()] {
                if kind == Kind::Untyped && !json.starts_with("{\"") {
                    continue;
                }
                let bytes = message(kind, &json);
                let shown = bytes.len().min(tcp_transport::MAX_HEAD);
                for n in 0..shown {
                    prop_assert_ne!(recognise(&bytes[..n]), Recognition::No, "{} of {:?}", n, bytes);
                }
                prop_assert_eq!(recognise(&bytes[..shown]), Recognition::Yes, "{:?}", bytes);
            }
        }

        /// A request of the data protocol is none, whatever its address is.
        #[test]
        fn data_requests_are_not_messages(size in 1u64..1 << 30, addr: u64, low in prop::sample::select(vec![0u64, 0x7b00, 0x6e01, 0x7b03]), op in prop::sample::select(vec![0u8, 1, 0x80, 0x81])) {
            for addr in [addr, addr & !0xffff | low] {
                let mut head = size.to_le_bytes().to_vec();
                head.extend(addr.to_le_bytes());
                head.push(op);
                head.extend([0; 7]);
                prop_assert_eq!(recognise(&head), Recognition::No);
            }
        }

        #[test]
        fn garbage_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let _ = recognise(&bytes);
            let _ = read(&mut &*bytes, 4096, &[]);
        }
    }

    #[test]
    fn announced_lengths_are_not_believed() {
        for length in [0, 4097, u64::MAX] {
            let mut bytes = length.to_le_bytes().to_vec();
            bytes.extend(b"\x01{}");
            assert_eq!(read(&mut &*bytes, 4096, &[]).unwrap_err().kind(), io::ErrorKind::InvalidData);
        }
        let mut bytes = 4096_u64.to_le_bytes().to_vec();
        bytes.extend(b"\x01{}");
        assert_eq!(read(&mut &*bytes, 4096, &[]).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert!(write(&mut Vec::new(), Kind::Probe, &vec![b' '; 2 << 20]).is_err());
    }
}
