//! Everything that can go wrong, in words that say what to do next.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

/// The one error type of this crate. Cheap to clone, because one lost connection can end many requests.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A call into the operating system failed.
    #[error("{action}: {source}")]
    Io {
        /// What was being attempted, with the address or the size that it was attempted on.
        action: String,
        /// The system's error.
        #[source]
        source: Arc<std::io::Error>,
    },
    /// A setting is out of its range or contradicts another one.
    #[error("invalid setting: {0}")]
    Setting(String),
    /// A request was malformed; nothing was sent.
    #[error("invalid request: {0}")]
    Request(String),
    /// The range is not inside the region.
    #[error("range {addr:#x}+{len:#x} is outside of the {side} region {region_addr:#x}+{region_len:#x}")]
    OutOfBounds {
        /// `"local"` or `"remote"`.
        side: &'static str,
        /// First address of the range.
        addr: u64,
        /// Length of the range in bytes.
        len: u64,
        /// First address of the region.
        region_addr: u64,
        /// Length of the region in bytes.
        region_len: u64,
    },
    /// The region does not grant this kind of access.
    #[error("the {side} region does not allow {wanted}; register it with that right")]
    AccessDenied {
        /// `"local"` or `"remote"`.
        side: &'static str,
        /// The right that is missing.
        wanted: &'static str,
    },
    /// The peer refused the request and said why. The connection goes on.
    #[error("{peer} refused the request: {reason}")]
    Refused {
        /// Who refused.
        peer: SocketAddr,
        /// Why.
        reason: Refusal,
    },
    /// The deadline passed.
    #[error("{peer}: deadline passed while {phase}{}", Detail(.detail))]
    Timeout {
        /// Whom the request was for.
        peer: SocketAddr,
        /// What the request was waiting for.
        phase: &'static str,
        /// The last thing that went wrong on the way, if anything did.
        detail: String,
    },
    /// The peer could not be reached or the connection was lost, and retrying is not possible.
    #[error("{peer}: connection lost: {detail}")]
    Disconnected {
        /// The peer.
        peer: SocketAddr,
        /// What happened to the last connection.
        detail: String,
    },
    /// Another process answers at the peer's address now; keys of the earlier one mean nothing to it.
    #[error("{peer} has been restarted; open its regions again")]
    PeerRestarted {
        /// The peer.
        peer: SocketAddr,
    },
    /// The peers could not agree on who they are.
    #[error(
        "{peer}: authentication failed: {detail}; both sides need the same secret and encryption setting"
    )]
    Authentication {
        /// The peer.
        peer: SocketAddr,
        /// What was wrong.
        detail: String,
    },
    /// The peer sent something that the protocol does not allow.
    #[error("{peer} broke the protocol: {detail}")]
    Protocol {
        /// The peer.
        peer: SocketAddr,
        /// What was wrong.
        detail: String,
    },
    /// The handler of the peer answered a call with an error.
    #[error("{peer}: call failed: {detail}")]
    Call {
        /// The peer.
        peer: SocketAddr,
        /// The handler's words.
        detail: String,
    },
    /// The connection was lost after the call had been delivered, so its answer is unknown.
    #[error(
        "{peer}: the call was delivered, but its answer was lost with the connection; ask again if it is safe to"
    )]
    AnswerLost {
        /// The peer.
        peer: SocketAddr,
    },
    /// Copying to or from local device memory failed.
    #[error("copying to or from local device memory failed: {0}")]
    Device(String),
    /// The request was cancelled by its owner.
    #[error("cancelled")]
    Cancelled,
    /// More requests are queued than the limits allow.
    #[error("{queued} requests are queued already (limit {limit}); wait for some to end")]
    QueueFull {
        /// Requests queued at the moment.
        queued: usize,
        /// The limit.
        limit: usize,
    },
    /// The region has been revoked.
    #[error("the region has been revoked")]
    Revoked,
    /// The transport has been shut down.
    #[error("the transport has been shut down")]
    ShutDown,
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

impl Error {
    pub(crate) fn io(action: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::Io { action: action.into(), source: Arc::new(source.into()) }
    }
}

/// Prints `: detail` unless it is empty.
struct Detail<'a>(&'a String);

impl fmt::Display for Detail<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " ({})", self.0) }
    }
}

/// Why a target refused a request: the code of the status frame (docs/tcp-protocol.md, "Status codes").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[repr(u16)]
pub enum Refusal {
    /// No region has this key: it was never registered, has been unregistered, or the key was guessed.
    UnknownKey = 1,
    /// The range is not inside the region.
    OutOfBounds = 2,
    /// The region does not grant this right.
    AccessDenied = 3,
    /// The region was revoked while the request was running.
    Revoked = 4,
    /// The target's queue for immediates, notifications or calls is full.
    Busy = 5,
    /// The message is larger than the target's limit.
    TooLarge = 6,
    /// The target does not know this kind of request, or not in this form.
    Unsupported = 7,
    /// No handler is installed, or it failed; the answer carries its words.
    CallFailed = 8,
    /// The request was cancelled before the target began it.
    Cancelled = 9,
    /// This notification, call or immediate has been delivered before.
    Duplicate = 10,
    /// The target is shutting down.
    ShuttingDown = 11,
    /// The target could not copy between the two processes.
    HostCopy = 12,
    /// Copying to or from the target's device memory failed.
    DeviceCopy = 13,
    /// A reason that this version does not know.
    Other = u16::MAX,
}

impl Refusal {
    /// The reason for a code from the wire; unknown codes become [`Refusal::Other`].
    pub fn from_code(code: u16) -> Self {
        match code {
            1 => Self::UnknownKey,
            2 => Self::OutOfBounds,
            3 => Self::AccessDenied,
            4 => Self::Revoked,
            5 => Self::Busy,
            6 => Self::TooLarge,
            7 => Self::Unsupported,
            8 => Self::CallFailed,
            9 => Self::Cancelled,
            10 => Self::Duplicate,
            11 => Self::ShuttingDown,
            12 => Self::HostCopy,
            13 => Self::DeviceCopy,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::UnknownKey => "no region has this key (unregistered, or the peer has been restarted)",
            Self::OutOfBounds => "the range is outside of the region",
            Self::AccessDenied => "the region does not grant this access",
            Self::Revoked => "the region was revoked",
            Self::Busy => "its queue is full",
            Self::TooLarge => "the message is larger than its limit",
            Self::Unsupported => "it does not support this request",
            Self::CallFailed => "its handler failed",
            Self::Cancelled => "cancelled",
            Self::Duplicate => "delivered before",
            Self::ShuttingDown => "it is shutting down",
            Self::HostCopy => "it could not copy between the two processes",
            Self::DeviceCopy => "it could not copy to or from its device memory",
            Self::Other => "for a reason that this version does not know",
        })
    }
}
