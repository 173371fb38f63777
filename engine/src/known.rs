//! What a peer said last: its buffers, its life, its path.

use std::sync::Arc;

use tcp_transport::{Peer, RegionDescriptor, Shape};

use crate::control::{Card, MAX_BUFFERS};
use crate::error::Error;
use crate::path::Chosen;

/// A peer's answer, prepared for looking addresses up. Never changes; the next answer replaces it.
pub(crate) struct Known {
    /// In ascending order of address; they do not overlap unless the peer registered the same memory twice.
    buffers: Vec<RemoteBuffer>,
    /// The length of the longest: how far back one that holds an address can begin.
    longest: u64,
    pub(crate) path: Chosen,
    /// Why that path.
    pub(crate) why: String,
    pub(crate) epoch: u128,
    peer: Peer,
    number: Option<u16>,
}

/// A buffer that the peer has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteBuffer {
    label: Arc<str>,
    pub(crate) tcp: RegionDescriptor,
    #[cfg_attr(not(feature = "efa"), allow(dead_code))] // there is one path then
    pub(crate) on_fabric: bool,
}

impl RemoteBuffer {
    /// First address, in the peer's address space.
    pub fn addr(&self) -> u64 {
        self.tcp.addr
    }

    /// Length in bytes; never zero.
    #[allow(clippy::len_without_is_empty)] // the peer cannot register an empty buffer
    pub fn len(&self) -> u64 {
        self.tcp.len
    }

    /// What its owner called it.
    pub fn label(&self) -> &str {
        &self.label
    }

    /// What its owner allows.
    pub fn access(&self) -> tcp_transport::Access {
        self.tcp.access
    }

    /// The range of `len` bytes at `offset` of the buffer, as an absolute shape.
    pub fn range(&self, offset: u64, len: u64) -> Shape<'static> {
        Shape::contiguous(self.addr().wrapping_add(offset), len)
    }
}

impl Known {
    pub(crate) fn new(
        segment: &str,
        card: Card,
        peer: Peer,
        number: Option<u16>,
        (path, why): (Chosen, String),
    ) -> Result<Self, Error> {
        let broken = |reason| Error::Control { segment: segment.to_owned(), reason };
        if card.buffers.len() > MAX_BUFFERS {
            return Err(broken(format!("it claims {} buffers, more than {MAX_BUFFERS}", card.buffers.len())));
        }
        let mut buffers = Vec::with_capacity(card.buffers.len());
        for buffer in card.buffers {
            let tcp = RegionDescriptor::from_bytes(&buffer.tcp)
                .map_err(|error| broken(format!("buffer {:?}: {error}", buffer.label)))?;
            buffers.push(RemoteBuffer { label: buffer.label.into(), tcp, on_fabric: buffer.on_fabric });
        }
        buffers.sort_by_key(|buffer| (buffer.addr(), buffer.len()));
        let longest = buffers.iter().map(RemoteBuffer::len).max().unwrap_or(0);
        Ok(Self { buffers, longest, path, why, epoch: card.epoch, peer, number })
    }

    pub(crate) fn buffers(&self) -> &[RemoteBuffer] {
        &self.buffers
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// What immediates to this peer begin with.
    pub(crate) fn number(&self, segment: &str) -> Result<u16, Error> {
        self.number.ok_or_else(|| Error::Unavailable {
            path: format!("counting arrivals at {segment}"),
            reason: "it counts those of 65536 other engines already, or this engine has no name".into(),
        })
    }

    /// Whether this very registration is among the buffers.
    #[cfg(feature = "efa")]
    pub(crate) fn has(&self, registration: &RegionDescriptor) -> bool {
        let first = self.buffers.partition_point(|buffer| buffer.addr() < registration.addr);
        let same = self.buffers[first..].iter().take_while(|buffer| buffer.addr() == registration.addr);
        same.map(|buffer| buffer.tcp.key).any(|key| key == registration.key)
    }

    /// The buffer that holds every range of `shape`; of several the one that begins last.
    pub(crate) fn buffer_around(&self, segment: &str, shape: &Shape<'_>) -> Result<&RemoteBuffer, Error> {
        let (low, high) = crate::segment::bounds(shape);
        // Buffers may overlap, so the nearest one below is not always the one; a longer one may begin further down.
        let candidates = &self.buffers[..self.buffers.partition_point(|buffer| buffer.addr() <= low)];
        let near = candidates.iter().rev().take_while(|buffer| low - buffer.addr() <= self.longest);
        let mut around = near.filter(|buffer| high - buffer.addr() <= buffer.len());
        around.next().ok_or_else(|| Error::NotInSegment {
            segment: segment.to_owned(),
            addr: low,
            len: high - low,
            buffers: self.buffers.len(),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::control::BufferCard;
    use crate::segment::bounds;

    fn known_of(card: Card) -> Result<Known, Error> {
        let transport = tcp_transport::Transport::builder().build().unwrap();
        let peer = transport.peer(([127, 0, 0, 1], 9).into()).unwrap();
        Known::new("peer", card, peer, None, (Chosen::Tcp, String::new()))
    }

    fn known(ranges: &[(u64, u64)]) -> Known {
        let buffers = ranges.iter().map(|&(addr, len)| {
            let mut tcp = vec![7; 16];
            tcp.extend(addr.to_le_bytes());
            tcp.extend(len.to_le_bytes());
            tcp.extend([3, 0, 0, 0, 0, 0, 0, 0]);
            BufferCard { label: format!("{addr:x}"), tcp, on_fabric: false }
        });
        known_of(Card { buffers: buffers.collect(), ..Card::default() }).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against the obvious search over all buffers, overlapping ones too.
        #[test]
        fn a_buffer_is_found_exactly_if_one_holds_the_range(
            ranges in prop::collection::vec((0u64..200, 1u64..100), 0..12),
            asked in prop::collection::vec((0u64..300, 1u64..120), 1..30),
        ) {
            let known = known(&ranges);
            for (addr, len) in asked {
                let holds = |a: u64, l: u64| a <= addr && addr + len <= a + l;
                let wanted = ranges.iter().filter(|&&(a, l)| holds(a, l)).map(|r| r.0).max();
                match known.buffer_around("peer", &Shape::contiguous(addr, len)) {
                    Ok(found) => prop_assert_eq!(Some(found.addr()), wanted),
                    Err(_) => prop_assert_eq!(wanted, None),
                }
            }
        }

        #[test]
        fn bounds_enclose_every_range(ranges in prop::collection::vec((0u64..1000, 1u64..50), 1..10)) {
            let (low, high) = bounds(&Shape::Scatter(&ranges));
            prop_assert_eq!(low, ranges.iter().map(|r| r.0).min().unwrap());
            prop_assert_eq!(high, ranges.iter().map(|r| r.0 + r.1).max().unwrap());
            let (addr, stride) = (ranges[0].0, 100);
            let count = ranges.len() as u64;
            let strided = Shape::Strided { addr, block_len: 10, stride, count };
            prop_assert_eq!(bounds(&strided), (addr, addr + stride * (count - 1) + 10));
        }
    }

    #[test]
    fn hostile_cards_are_refused() {
        let buffers = vec![BufferCard { label: "x".into(), tcp: vec![1; 39], on_fabric: true }];
        let short = known_of(Card { buffers, ..Card::default() });
        assert!(matches!(short, Err(Error::Control { .. })));
        let k = known(&[(u64::MAX - 100, 50)]);
        assert!(k.buffer_around("peer", &Shape::contiguous(u64::MAX - 60, 50)).is_err());
        assert!(k.buffer_around("peer", &Shape::Paged { page_len: 1, addrs: &[] }).is_err());
    }
}
