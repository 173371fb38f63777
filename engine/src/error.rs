//! Everything that can go wrong, in words that say what to do next.

use std::time::Duration;

/// The error type of the engine. Cheap to clone: one lost peer can end many requests.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is out of its range, or two settings contradict each other.
    #[error("{0}")]
    Setting(String),
    /// A segment's name is not an address that can be connected to.
    #[error(
        "segment {name:?}: {reason}; peer-to-peer names are host:port, as the peer's Engine::name() prints them"
    )]
    Name {
        /// The name that was asked for.
        name: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The peer answered, but not as an engine would.
    #[error("segment {segment}: {reason}; both sides must run compatible versions of this crate")]
    Control {
        /// The segment.
        segment: String,
        /// What was wrong with the answer.
        reason: String,
    },
    /// The addresses of a request lie in no registered buffer of the segment.
    #[error(
        "segment {segment} has no registered buffer that holds {addr:#x}+{len:#x} ({buffers} buffers are known); \
         Segment::refresh() fetches the current list"
    )]
    NotInSegment {
        /// The segment.
        segment: String,
        /// First address that was asked for.
        addr: u64,
        /// Bytes from the lowest to the highest address of the request.
        len: u64,
        /// How many buffers the segment has.
        buffers: usize,
    },
    /// The peer has been restarted since its addresses were looked up: they mean nothing in its new life, so nothing was sent
    /// there.
    #[error(
        "segment {segment} has been restarted since this request was made; it has been opened again, so look its \
         buffers up again and make the request anew"
    )]
    Restarted {
        /// The segment.
        segment: String,
    },
    /// A request failed over libfabric, and then over TCP, too.
    #[error("{second}; before that, over libfabric: {first}")]
    BothPaths {
        /// What libfabric's path said.
        first: Box<Error>,
        /// What TCP said.
        #[source]
        second: Box<Error>,
    },
    /// A path was asked for that is not there. It is never replaced by another one in silence.
    #[error("{path} is not available: {reason}")]
    Unavailable {
        /// The path, such as `efa` or `libfabric provider shm`.
        path: String,
        /// Why, and what would help.
        reason: String,
    },
    /// The metadata store failed, or has no such name.
    #[error("metadata store {store}: {action}: {reason}")]
    Metadata {
        /// The store, as a URL without secrets.
        store: String,
        /// What was being done, with the name.
        action: String,
        /// What was wrong, and what would help.
        reason: String,
    },
    /// A Mooncake node cannot be used, or did not do what was asked of it.
    #[cfg(feature = "mooncake")]
    #[error("Mooncake node {peer}: {reason}")]
    Mooncake {
        /// The name that it was opened by.
        peer: String,
        /// What was wrong, and what would help.
        reason: String,
    },
    /// Memory is still in use.
    #[error(
        "the region at {addr:#x} is still used by requests in flight after {waited:?}; it is freed when they have ended"
    )]
    InUse {
        /// First address of the region.
        addr: u64,
        /// How long was waited.
        waited: Duration,
    },
    /// The TCP path failed; the message names the peer.
    #[error(transparent)]
    Tcp(#[from] tcp_transport::Error),
    /// The libfabric path failed; the message names the peer.
    #[cfg(feature = "efa")]
    #[error(transparent)]
    Fabric(#[from] efa_transport::Error),
    /// Several requests of a batch failed; this is the first of them.
    #[error("{failed} of {total} requests failed, the first is request {index}: {source}")]
    Batch {
        /// How many failed.
        failed: usize,
        /// How many there were.
        total: usize,
        /// Index of the first that failed.
        index: usize,
        /// Its error.
        #[source]
        source: Box<Error>,
    },
}
