//! Everything that can go wrong, with what to do about it.

use std::sync::Arc;
use std::time::Duration;

use crate::provider::Rejected;

/// Why a call, a request or a batch failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no libfabric in this process and none was found.
    #[error(
        "no libfabric: {0}; install it (`libfabric1`, or AWS's EFA installer), point FABRIC_LIBRARY at it, or use TCP"
    )]
    NoLibrary(Arc<fabric_safe::Error>),
    /// libfabric is there, but none of the providers that were allowed can be used.
    #[error("no libfabric provider can be used: {}", list(.tried))]
    NoProvider {
        /// What was considered, and why it was not taken.
        tried: Vec<Rejected>,
    },
    /// A setting that makes no sense.
    #[error("setting {name}: {why}")]
    Setting {
        /// Name of the setting, or of the environment variable.
        name: String,
        /// What is wrong with it.
        why: String,
    },
    /// A call into libfabric failed.
    #[error("{what}: {source}")]
    Fabric {
        /// What was being done, and to which NIC or peer.
        what: String,
        /// What libfabric said.
        source: Arc<fabric_safe::Error>,
    },
    /// Memory could not be registered; nothing was changed.
    #[error("registering {len} bytes at {addr:#x}: {why}")]
    Register {
        /// First address.
        addr: u64,
        /// Length in bytes.
        len: u64,
        /// What the planner, the ledger or the provider said.
        why: String,
    },
    /// A request that can never work.
    #[error("bad request: {0}")]
    Request(String),
    /// A local range outside its region.
    #[error(
        "{len} bytes at {addr:#x} are outside the local region of {region_len} bytes at {region_addr:#x}"
    )]
    OutOfBounds {
        /// First address asked for.
        addr: u64,
        /// Bytes asked for.
        len: u64,
        /// First address of the region.
        region_addr: u64,
        /// Length of the region in bytes.
        region_len: u64,
    },
    /// The region was registered without the right that the request needs.
    #[error("the local region was not registered for {wanted}; add it to its Access")]
    AccessDenied {
        /// The right.
        wanted: &'static str,
    },
    /// The region has been unregistered.
    #[error("the region of {len} bytes at {addr:#x} has been unregistered")]
    Unregistered {
        /// First address.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Operations in flight still used a region at the deadline. It will be deregistered when they have ended.
    #[error(
        "the region of {len} bytes at {addr:#x} is still used by operations in flight; wait for `quiesced`, or longer"
    )]
    StillInUse {
        /// First address.
        addr: u64,
        /// Length in bytes.
        len: u64,
    },
    /// A remote range that the peer has not registered, or not for this.
    #[error(
        "peer {peer} has not registered {len} bytes at {addr:#x} for {wanted}; check the address, or fetch its descriptor again"
    )]
    NotRegistered {
        /// The peer's name.
        peer: String,
        /// First address asked for.
        addr: u64,
        /// Bytes asked for.
        len: u64,
        /// What was to be done there.
        wanted: &'static str,
    },
    /// A peer id that this transport does not know, or not any more.
    #[error("there is no peer {0}; add it with its descriptor first")]
    UnknownPeer(crate::PeerId),
    /// Bytes that are not a descriptor that this version understands.
    #[error("not a usable peer descriptor: {0}")]
    Descriptor(String),
    /// The peer cannot be reached with the provider that this transport uses.
    #[error("peer {peer} cannot be reached: {why}")]
    Incompatible {
        /// The peer's name.
        peer: String,
        /// In words.
        why: String,
    },
    /// No local NIC and remote NIC have both the memory of a slice registered.
    #[error("no way to peer {peer}: {why}")]
    NoRail {
        /// The peer's name.
        peer: String,
        /// In words.
        why: String,
    },
    /// The peer's descriptor does not fit any more.
    #[error("the descriptor of peer {peer} is stale ({why}); fetch a new one")]
    PeerStale {
        /// The peer's name.
        peer: String,
        /// In words.
        why: String,
    },
    /// The peer does not answer on any rail.
    #[error("peer {peer} does not answer: {why}")]
    PeerDown {
        /// The peer's name.
        peer: String,
        /// What the last attempt said.
        why: String,
    },
    /// An operation failed in a way that another attempt would not cure, or all attempts are used up.
    #[error("{attempts} attempt(s) of a transfer with peer {peer} failed, the last one over {rail}: {why}")]
    Failed {
        /// The peer's name.
        peer: String,
        /// Local and remote NIC of the last attempt.
        rail: String,
        /// Attempts made.
        attempts: u32,
        /// What the provider said.
        why: String,
    },
    /// The deadline passed first.
    #[error("the transfer with peer {peer} did not end within {limit:?}{}", last.as_ref().map(|l| format!("; the last error was: {l}")).unwrap_or_default())]
    Timeout {
        /// The peer's name.
        peer: String,
        /// Time that it had.
        limit: Duration,
        /// What went wrong before, if anything.
        last: Option<String>,
    },
    /// Cancelled by the caller.
    #[error("cancelled")]
    Cancelled,
    /// Some requests of a batch failed.
    #[error("{failed} of {total} requests failed, the first of them number {index}: {source}")]
    Batch {
        /// Requests that failed.
        failed: usize,
        /// Requests in the batch.
        total: usize,
        /// Index of the first that failed.
        index: usize,
        /// Its error.
        source: Box<Error>,
    },
    /// The transport has been shut down.
    #[error("the transport has been shut down")]
    ShutDown,
}

impl Error {
    pub(crate) fn fabric(what: impl Into<String>, source: fabric_safe::Error) -> Self {
        Self::Fabric { what: what.into(), source: Arc::new(source) }
    }

    pub(crate) fn setting(name: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Setting { name: name.into(), why: why.into() }
    }

    /// Whether the peer is the trouble, so that another peer or another transport may still work.
    #[must_use]
    pub fn is_about_peer(&self) -> bool {
        match self {
            Self::PeerStale { .. }
            | Self::PeerDown { .. }
            | Self::UnknownPeer(_)
            | Self::Incompatible { .. }
            | Self::NoRail { .. }
            | Self::Timeout { .. }
            | Self::Failed { .. } => true,
            Self::Batch { source, .. } => source.is_about_peer(),
            _ => false,
        }
    }
}

fn list(tried: &[Rejected]) -> String {
    if tried.is_empty() {
        return "nothing was offered".into();
    }
    tried.iter().map(|r| format!("{}: {}", r.what, r.why)).collect::<Vec<_>>().join("; ")
}
