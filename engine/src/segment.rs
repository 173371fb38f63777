//! Another engine's memory: what is known of it, and which way leads there.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tcp_transport::{Peer, RegionDescriptor, Shape};

use crate::control::{self, Answer, Ask, Card, MAX_BUFFERS, Note};
use crate::error::Error;
use crate::node::Node;

/// A peer engine's registered memory. Clones are the same segment; opening the same name twice gives the same one.
#[derive(Clone)]
pub struct Segment {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    name: Arc<str>,
    peer: Peer,
    node: Arc<Node>,
    known: RwLock<Arc<Known>>,
}

/// What the peer said last.
pub(crate) struct Known {
    /// In ascending order of address; they do not overlap unless the peer registered the same memory twice.
    pub(crate) buffers: Vec<RemoteBuffer>,
    pub(crate) path: Chosen,
}

/// The transport that carries this segment's requests.
pub(crate) enum Chosen {
    Tcp,
    #[cfg(feature = "efa")]
    Fabric(efa_transport::PeerId),
}

/// A buffer that the peer has registered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteBuffer {
    label: Arc<str>,
    pub(crate) tcp: RegionDescriptor,
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

    /// The range of `len` bytes at `offset` of the buffer, as an absolute shape.
    pub fn range(&self, offset: u64, len: u64) -> Shape<'static> {
        Shape::contiguous(self.addr().wrapping_add(offset), len)
    }
}

/// Which way the bytes of a segment's requests go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Path {
    /// TCP, or the copy within the host that the TCP peers have agreed on.
    Tcp(tcp_transport::Path),
    /// libfabric, by its provider; EFA with its fabric, `efa/efa-direct` or `efa/efa`.
    Fabric(String),
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(path) => write!(f, "tcp/{path}"),
            Self::Fabric(what) => f.write_str(what),
        }
    }
}

impl Segment {
    /// Asks the peer who it is; the answer decides the path.
    pub(crate) fn open(name: &str, peer: Peer, node: Arc<Node>, deadline: Instant) -> Result<Self, Error> {
        let known = Arc::new(describe(name, &peer, &node, deadline)?);
        let inner = Inner { name: name.into(), peer, node, known: RwLock::new(known) };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn downgrade(&self) -> std::sync::Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    pub(crate) fn upgrade(inner: &std::sync::Weak<Inner>) -> Option<Self> {
        inner.upgrade().map(|inner| Self { inner })
    }

    /// The name it was opened by.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The peer's buffers as last heard, in ascending order of address.
    pub fn buffers(&self) -> Vec<RemoteBuffer> {
        self.known().buffers.clone()
    }

    /// The buffer with this label.
    ///
    /// # Errors
    /// [`Error::Control`] if the peer has none.
    pub fn buffer(&self, label: &str) -> Result<RemoteBuffer, Error> {
        let known = self.known();
        known.buffers.iter().find(|buffer| buffer.label() == label).cloned().ok_or_else(|| Error::Control {
            segment: self.name().to_owned(),
            reason: format!("it has no buffer called {label:?}"),
        })
    }

    /// Which way its requests go at the moment.
    pub fn path(&self) -> Path {
        match &self.known().path {
            Chosen::Tcp => Path::Tcp(self.inner.peer.path()),
            #[cfg(feature = "efa")]
            Chosen::Fabric(_) => Path::Fabric(self.inner.node.fabric_name()),
        }
    }

    /// Fetches the peer's current list of buffers, and tells it ours: one round trip. Needed after the peer has registered
    /// more memory or has been restarted.
    ///
    /// # Errors
    /// [`Error::Tcp`] when it cannot be reached until `deadline`, [`Error::Control`], [`Error::Unavailable`].
    pub fn refresh(&self, deadline: Instant) -> Result<(), Error> {
        let known = describe(self.name(), &self.inner.peer, &self.inner.node, deadline)?;
        *self.inner.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
        Ok(())
    }

    /// Opens connections and rails now rather than with the first request. Idempotent.
    ///
    /// # Errors
    /// As [`refresh`](Self::refresh).
    pub fn warm_up(&self, deadline: Instant) -> Result<(), Error> {
        match &self.known().path {
            Chosen::Tcp => self.inner.peer.connect(deadline).map(|_| ()).map_err(Error::from),
            #[cfg(feature = "efa")]
            Chosen::Fabric(peer) => self.inner.node.fabric()?.warm_up(*peer, deadline),
        }
    }

    /// Puts `payload` into the peer engine's queue of notifications, exactly once, and returns when it is there.
    ///
    /// # Errors
    /// [`Error::Tcp`]: the peer could not be reached, or its queue stayed full, until `deadline`.
    pub fn notify(&self, payload: &[u8], deadline: Instant) -> Result<(), Error> {
        let note = Note { from: self.inner.node.name().to_owned(), payload: payload.to_vec() };
        Ok(self.inner.peer.notify(&control::encode(&note), deadline)?)
    }

    /// Whether the peer engine answers, and how long that takes.
    ///
    /// # Errors
    /// [`Error::Tcp`] if it does not until `deadline`.
    pub fn probe(&self, deadline: Instant) -> Result<Duration, Error> {
        let start = Instant::now();
        match ask(self.name(), &self.inner.peer, &Ask::Probe, deadline)? {
            Answer::Probe => Ok(start.elapsed()),
            Answer::Describe(_) => Err(wrong_answer(self.name())),
        }
    }

    pub(crate) fn peer(&self) -> &Peer {
        &self.inner.peer
    }

    pub(crate) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.inner.known.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({} path={} buffers={})", self.name(), self.path(), self.known().buffers.len())
    }
}

impl Known {
    fn new(segment: &str, card: Card, path: Chosen) -> Result<Self, Error> {
        let broken = |reason| Error::Control { segment: segment.to_owned(), reason };
        if card.buffers.len() > MAX_BUFFERS {
            return Err(broken(format!("it claims {} buffers, more than {MAX_BUFFERS}", card.buffers.len())));
        }
        let mut buffers = Vec::with_capacity(card.buffers.len());
        for buffer in card.buffers {
            let tcp = RegionDescriptor::from_bytes(&buffer.tcp)
                .map_err(|error| broken(format!("buffer {:?}: {error}", buffer.label)))?;
            buffers.push(RemoteBuffer { label: buffer.label.into(), tcp });
        }
        buffers.sort_by_key(|buffer| (buffer.addr(), buffer.len()));
        Ok(Self { buffers, path })
    }

    /// The buffer that holds every range of `shape`.
    pub(crate) fn buffer_around(&self, segment: &str, shape: &Shape<'_>) -> Result<&RemoteBuffer, Error> {
        let (low, high) = bounds(shape);
        // Buffers may overlap, so the nearest one below is not always the one; a longer one may begin further down.
        let candidates = &self.buffers[..self.buffers.partition_point(|buffer| buffer.addr() <= low)];
        let holds = |buffer: &&RemoteBuffer| high - buffer.addr() <= buffer.len();
        candidates.iter().rev().find(holds).ok_or_else(|| Error::NotInSegment {
            segment: segment.to_owned(),
            addr: low,
            len: high - low,
            buffers: self.buffers.len(),
        })
    }
}

/// Lowest address of a shape and the one past its highest.
fn bounds(shape: &Shape<'_>) -> (u64, u64) {
    let span = |(low, high): (u64, u64), (addr, len): (u64, u64)| {
        (low.min(addr), high.max(addr.saturating_add(len)))
    };
    let nothing = (u64::MAX, 0);
    let (low, high) = match *shape {
        Shape::Contiguous { addr, len } => span(nothing, (addr, len)),
        Shape::Paged { page_len, addrs } => addrs.iter().map(|&addr| (addr, page_len)).fold(nothing, span),
        Shape::Strided { addr, block_len, stride, count } => {
            let last = addr.saturating_add(stride.saturating_mul(count.saturating_sub(1)));
            span(span(nothing, (addr, block_len)), (last, block_len))
        }
        Shape::Scatter(ranges) => ranges.iter().copied().fold(nothing, span),
    };
    (low, high.max(low))
}

/// One round trip that tells both sides everything; then the path is chosen.
fn describe(name: &str, peer: &Peer, node: &Arc<Node>, deadline: Instant) -> Result<Known, Error> {
    let Answer::Describe(card) = ask(name, peer, &Ask::Describe(node.card()), deadline)? else {
        return Err(wrong_answer(name));
    };
    let path = node.choose(name, &card)?;
    Known::new(name, card, path)
}

fn ask(segment: &str, peer: &Peer, ask: &Ask, deadline: Instant) -> Result<Answer, Error> {
    let answer = peer.call(&control::encode(ask), deadline)?;
    control::decode(&answer).map_err(|reason| Error::Control { segment: segment.to_owned(), reason })
}

fn wrong_answer(segment: &str) -> Error {
    Error::Control {
        segment: segment.to_owned(),
        reason: "it answered another question than the one asked".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::BufferCard;
    use proptest::prelude::*;

    fn known(ranges: &[(u64, u64)]) -> Known {
        let buffers = ranges.iter().map(|&(addr, len)| {
            let mut tcp = vec![7; 16];
            tcp.extend(addr.to_le_bytes());
            tcp.extend(len.to_le_bytes());
            tcp.extend([3, 0, 0, 0, 0, 0, 0, 0]);
            BufferCard { label: format!("{addr:x}"), tcp }
        });
        Known::new("peer", Card { buffers: buffers.collect(), ..Card::default() }, Chosen::Tcp).unwrap()
    }

    proptest! {
        /// Against the obvious search over all buffers, overlapping ones too.
        #[test]
        fn a_buffer_is_found_exactly_if_one_holds_the_range(
            ranges in prop::collection::vec((0u64..200, 1u64..100), 0..12), addr in 0u64..300, len in 1u64..120,
        ) {
            let known = known(&ranges);
            let holds = |a: u64, l: u64| a <= addr && addr + len <= a + l;
            let wanted = ranges.iter().any(|&(a, l)| holds(a, l));
            match known.buffer_around("peer", &Shape::contiguous(addr, len)) {
                Ok(found) => prop_assert!(holds(found.addr(), found.len())),
                Err(_) => prop_assert!(!wanted),
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
        let short =
            Card { buffers: vec![BufferCard { label: "x".into(), tcp: vec![1; 39] }], ..Card::default() };
        assert!(matches!(Known::new("peer", short, Chosen::Tcp), Err(Error::Control { .. })));
        let k = known(&[(u64::MAX - 100, 50)]);
        assert!(k.buffer_around("peer", &Shape::contiguous(u64::MAX - 60, 50)).is_err());
        assert!(k.buffer_around("peer", &Shape::Paged { page_len: 1, addrs: &[] }).is_err());
    }
}
