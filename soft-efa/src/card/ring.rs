//! Packets from one process to another: a ring in a shared file with one writer and one reader.
//!
//! The writer publishes a packet by moving the tail past it, so a writer that dies in the middle has written nothing. The
//! reader trusts nothing that it reads: lengths are checked against what the ring can hold.

use crate::shared::Mapped;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Bytes of packets that a ring holds. A power of two.
const CAPACITY: usize = 1 << 20;
/// Packets start at multiples of this.
const ALIGN: usize = 64;

/// Head and tail, on cache lines of their own.
#[repr(C, align(64))]
pub(crate) struct RingHeader {
    tail: AtomicU64,
    _pad: [u64; 7],
    head: AtomicU64,
    /// 1 when the writer found the ring full and wants the bell when there is room.
    writer_waits: AtomicU32,
    _pad2: [u32; 13],
}

/// What a packet says about itself; its payload follows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Packet {
    pub(crate) kind: u32,
    /// Bytes after this header.
    pub(crate) payload: u32,
    /// Card of the receiver.
    pub(crate) card: u16,
    /// Card of the sender.
    pub(crate) from_card: u16,
    pub(crate) from_host: u32,
    pub(crate) qpn: u32,
    pub(crate) from_qpn: u32,
    pub(crate) qkey: u32,
    pub(crate) imm: u32,
    /// Length that a write with immediate reports.
    pub(crate) length: u32,
    /// Status of an acknowledgement; flags of a message.
    pub(crate) word: u32,
    /// What the sender finds its request by.
    pub(crate) token: u64,
}

/// A message for a queue pair.
pub(crate) const SEND: u32 = 1;
/// The immediate of a write that has been done.
pub(crate) const WRITE_IMM: u32 = 2;
/// The end of a message or an immediate.
pub(crate) const ACK: u32 = 3;
/// Skip to the start of the ring.
const WRAP: u32 = 4;

/// [`Packet::word`] of a message that carries an immediate.
pub(crate) const HAS_IMM: u32 = 1;
/// [`Packet::word`] of a datagram, which nobody acknowledges.
pub(crate) const DATAGRAM: u32 = 2;

const HEADER: usize = size_of::<Packet>();

/// One end of a ring. Which end is the caller's business: one process only pushes, the other only pops.
pub(crate) struct Ring {
    mapped: Mapped<RingHeader>,
}

impl Ring {
    /// Opens the ring's file, making it when `create` is set.
    pub(crate) fn open(path: &Path, create: bool) -> io::Result<Ring> {
        Ok(Ring { mapped: Mapped::open(path, CAPACITY, create)? })
    }

    fn at(&self, position: u64) -> *mut u8 {
        // SAFETY: masked to the capacity, and the mapping has CAPACITY bytes after the header.
        unsafe { self.mapped.tail().add(position as usize & (CAPACITY - 1)) }
    }

    /// Puts a packet with the bytes of `parts` in; false when there is no room (the reader will ring back).
    ///
    /// # Safety
    /// The parts must be readable, their lengths must add up to `packet.payload`, and this must be the ring's only writer.
    pub(crate) unsafe fn push(&self, packet: &Packet, parts: &[(*const u8, usize)]) -> bool {
        let need = (HEADER + packet.payload as usize).next_multiple_of(ALIGN);
        let mut tail = self.mapped.tail.load(Ordering::Relaxed);
        let room_to_end = CAPACITY - (tail as usize & (CAPACITY - 1));
        let total = if room_to_end < need { room_to_end + need } else { need };
        for attempt in 0..2 {
            let head = self.mapped.head.load(Ordering::SeqCst);
            // What the reader says is not believed: a head that cannot be is no room.
            if tail.wrapping_sub(head) <= (CAPACITY - total) as u64 {
                break;
            }
            if attempt == 1 {
                return false;
            }
            self.mapped.writer_waits.store(1, Ordering::SeqCst);
        }
        if room_to_end < need {
            let wrap = Packet { kind: WRAP, payload: (room_to_end - HEADER) as u32, ..Packet::default() };
            // SAFETY: room_to_end is a multiple of ALIGN, which is at least HEADER, so a header fits before the end.
            unsafe { self.at(tail).cast::<Packet>().write_unaligned(wrap) };
            tail = tail.wrapping_add(room_to_end as u64);
        }
        let start = self.at(tail);
        // SAFETY: `need` bytes from here on lie before the end of the ring and are free; the caller vouches for the parts.
        unsafe {
            start.cast::<Packet>().write_unaligned(*packet);
            let mut to = start.add(HEADER);
            for &(from, length) in parts {
                std::ptr::copy_nonoverlapping(from, to, length);
                to = to.add(length);
            }
        }
        self.mapped.tail.store(tail.wrapping_add(need as u64), Ordering::Release);
        true
    }

    /// Takes the next packet and shows it, with its payload, to `consume`. `None` when the ring is empty, and when what is in
    /// it cannot have been written by `push`.
    pub(crate) fn pop<R>(&self, consume: impl FnOnce(&Packet, &[u8]) -> R) -> Option<R> {
        loop {
            let head = self.mapped.head.load(Ordering::Relaxed);
            let tail = self.mapped.tail.load(Ordering::Acquire);
            let filled = tail.wrapping_sub(head);
            if filled == 0 || filled > CAPACITY as u64 || !head.is_multiple_of(ALIGN as u64) {
                return None;
            }
            // SAFETY: positions are multiples of ALIGN, which is at least HEADER, so a header fits before the end of the ring.
            let packet = unsafe { self.at(head).cast::<Packet>().read_unaligned() };
            let need = (HEADER + packet.payload as usize).next_multiple_of(ALIGN);
            let room_to_end = CAPACITY - (head as usize & (CAPACITY - 1));
            if need > room_to_end || need as u64 > filled {
                return None;
            }
            if packet.kind == WRAP {
                self.mapped.head.store(head.wrapping_add(need as u64), Ordering::SeqCst);
                continue;
            }
            // SAFETY: need was checked against the end of the ring; the writer leaves these bytes alone until head moves.
            let payload =
                unsafe { std::slice::from_raw_parts(self.at(head).add(HEADER), packet.payload as usize) };
            let result = consume(&packet, payload);
            self.mapped.head.store(head.wrapping_add(need as u64), Ordering::SeqCst);
            return Some(result);
        }
    }

    /// All of its memory.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn bytes(&self) -> *mut [u8] {
        let (base, length) = self.mapped.bytes();
        std::ptr::slice_from_raw_parts_mut(base, length)
    }

    /// Puts a packet in whose header is the first bytes and whose payload is the others.
    ///
    /// # Safety
    /// As [`Ring::push`]: this must be the only writer.
    #[cfg(feature = "fuzzing")]
    pub(crate) unsafe fn push_raw(&self, bytes: &[u8]) {
        let mut header = [0u8; HEADER];
        let (head, payload) = bytes.split_at(bytes.len().min(HEADER));
        header[..head.len()].copy_from_slice(head);
        let payload = &payload[..payload.len().min(10_000)];
        // SAFETY: a Packet consists of integers, for which all bytes are valid.
        let mut packet = unsafe { header.as_ptr().cast::<Packet>().read_unaligned() };
        packet.payload = payload.len() as u32;
        // SAFETY: one part, of the payload's length; the caller vouches for the rest.
        unsafe { self.push(&packet, &[(payload.as_ptr(), payload.len())]) };
    }

    /// Whether the writer has asked to be rung; asking again clears it.
    pub(crate) fn take_writer_waits(&self) -> bool {
        self.mapped.writer_waits.load(Ordering::SeqCst) == 1
            && self.mapped.writer_waits.swap(0, Ordering::SeqCst) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fresh(name: &str) -> (Ring, Ring, std::path::PathBuf) {
        let path = std::env::temp_dir().join(format!("soft-efa-ring-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        (Ring::open(&path, true).unwrap(), Ring::open(&path, false).unwrap(), path)
    }

    fn push(ring: &Ring, token: u64, bytes: &[u8]) -> bool {
        let packet = Packet { kind: SEND, payload: bytes.len() as u32, token, ..Packet::default() };
        // SAFETY: one part, of the payload's length; the tests have one writer.
        unsafe { ring.push(&packet, &[(bytes.as_ptr(), bytes.len())]) }
    }

    #[test]
    fn packets_of_all_sizes_come_out_whole_and_in_order_many_times_around() {
        let (writer, reader, path) = fresh("order");
        let bytes: Vec<u8> = (0..9000).map(|i| (i * 7) as u8).collect();
        let (mut next_in, mut next_out) = (0u64, 0u64);
        while next_out < 3000 {
            while next_in < next_out + 90 && push(&writer, next_in, &bytes[..(next_in as usize * 37) % 9000])
            {
                next_in += 1;
            }
            let popped = reader.pop(|packet, payload| {
                assert_eq!(packet.token, next_out);
                assert_eq!(payload, &bytes[..(next_out as usize * 37) % 9000]);
            });
            assert!(popped.is_some());
            next_out += 1;
        }
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn a_full_ring_refuses_and_asks_to_be_rung() {
        let (writer, reader, path) = fresh("full");
        let bytes = [1u8; 8192];
        while push(&writer, 0, &bytes) {}
        assert!(reader.take_writer_waits() && !reader.take_writer_waits());
        reader.pop(|_, _| ()).unwrap();
        assert!(push(&writer, 1, &bytes[..64]));
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn positions_that_cannot_be_stop_the_ring() {
        let (writer, reader, path) = fresh("positions");
        assert!(push(&writer, 0, b"x"));
        // A writer that claims more than fits, a reader's position between packets, a tail behind the head.
        for (head, tail) in [(0, u64::MAX), (0, CAPACITY as u64 + 64), (1, 64), (64, 0)] {
            writer.mapped.head.store(head, Ordering::SeqCst);
            writer.mapped.tail.store(tail, Ordering::SeqCst);
            assert!(reader.pop(|_, _| ()).is_none(), "head {head}, tail {tail}");
        }
        writer.mapped.head.store(64, Ordering::SeqCst);
        assert!(!push(&writer, 0, b"x"), "no room");
        std::fs::remove_file(path).unwrap();
    }

    #[test]
    fn nonsense_in_the_ring_stops_it_and_nothing_else() {
        let (writer, reader, path) = fresh("nonsense");
        assert!(push(&writer, 0, b"x"));
        // SAFETY: the first packet's header lies at position 0.
        unsafe {
            writer.at(0).cast::<Packet>().write(Packet { kind: SEND, payload: u32::MAX, ..Packet::default() })
        };
        assert!(reader.pop(|_, _| ()).is_none());
        std::fs::remove_file(path).unwrap();
    }
}
