//! What can go wrong: one enum for calls, one for operations that were refused, one for operations that ended badly.

use core::fmt;

use fabric_sys as sys;

/// An error number of libfabric: those of the operating system, and its own from 256 on. Always positive.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Errno(i32);

impl Errno {
    /// Try again later.
    pub const EAGAIN: Errno = Errno(sys::FI_EAGAIN);
    /// Not supported by this provider (operating system numbering).
    pub const EOPNOTSUPP: Errno = Errno(sys::FI_EOPNOTSUPP);
    /// Not implemented by this provider.
    pub const ENOSYS: Errno = Errno(sys::FI_ENOSYS);
    /// Something still uses the object.
    pub const EBUSY: Errno = Errno(sys::FI_EBUSY);
    /// An argument that the provider does not take.
    pub const EINVAL: Errno = Errno(sys::FI_EINVAL);
    /// Out of memory, or out of a resource of the card.
    pub const ENOMEM: Errno = Errno(sys::FI_ENOMEM);
    /// Nothing there.
    pub const ENODATA: Errno = Errno(sys::FI_ENODATA);
    /// Cancelled.
    pub const ECANCELED: Errno = Errno(sys::FI_ECANCELED);
    /// A message longer than the receive that met it.
    pub const ETRUNC: Errno = Errno(sys::FI_ETRUNC);
    /// A registration key that is in use already.
    pub const ENOKEY: Errno = Errno(sys::FI_ENOKEY);

    /// From a return value of libfabric, whatever its sign.
    pub fn from_raw(value: i64) -> Errno {
        Errno(i32::try_from(value.unsigned_abs()).unwrap_or(i32::MAX))
    }

    /// The number, positive.
    pub fn raw(self) -> i32 {
        self.0
    }

    /// libfabric's name for it (`FI_EAGAIN`), if it has one.
    pub fn name(self) -> Option<&'static str> {
        sys::errno_name(self.0)
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name} ({}): {}", self.0, sys::errno_text(self.0)),
            // Not libfabric's, so perhaps the operating system's.
            None if self.0 < 256 => {
                write!(f, "error {}: {}", self.0, std::io::Error::from_raw_os_error(self.0))
            }
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            Some(name) => write!(f, "{name}({})", self.0),
            None => write!(f, "Errno({})", self.0),
        }
    }
}

/// A call that failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// There is no libfabric that can be used. The rest of the program can go on without.
    #[error("libfabric cannot be used: {0}")]
    Library(#[from] sys::LoadError),

    /// libfabric or its provider refused a call.
    #[error("{call} failed on {object}: {errno}")]
    Call {
        /// The C function.
        call: &'static str,
        /// What it was called on, in words.
        object: String,
        /// Why.
        errno: Errno,
    },

    /// The provider answered with something that its interface does not allow.
    #[error("the provider broke the rules of {call}: {what}")]
    Misbehaviour {
        /// The C function.
        call: &'static str,
        /// What was wrong with the answer.
        what: String,
    },

    /// The provider or the library does not offer what was asked for.
    #[error("{what} is not offered by provider {provider}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Name of the provider.
        provider: String,
    },

    /// The caller asked for something that cannot be, whatever the provider.
    #[error("{0}")]
    Usage(#[from] Usage),

    /// The operating system refused something that has nothing to do with libfabric.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why it did not work.
        #[source]
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn call(call: &'static str, object: impl fmt::Display, status: impl Into<i64>) -> Error {
        Error::Call { call, object: object.to_string(), errno: Errno::from_raw(status.into()) }
    }

    /// The error number, where a call to libfabric failed with one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Error::Call { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the provider simply does not have the call.
    pub fn is_unsupported(&self) -> bool {
        matches!(self, Error::Unsupported { .. })
            || matches!(self.errno(), Some(Errno::ENOSYS | Errno::EOPNOTSUPP))
    }
}

/// A request that makes no sense, found before the provider was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Usage {
    /// A range outside a region.
    #[error("bytes {start}..{end} are outside a region of {len} bytes")]
    OutOfRange {
        /// First byte, relative to the region.
        start: usize,
        /// One past the last byte.
        end: usize,
        /// Length of the region in bytes.
        len: usize,
    },
    /// More bytes than the endpoint takes in one operation.
    #[error("{len} bytes exceed the limit of {limit} for {what}; split the request")]
    TooLong {
        /// The kind of operation.
        what: &'static str,
        /// Bytes asked for.
        len: usize,
        /// Bytes possible.
        limit: usize,
    },
    /// More pieces than the endpoint takes in one operation.
    #[error("{count} segments exceed the limit of {limit}; split the request")]
    TooManySegments {
        /// Segments asked for.
        count: usize,
        /// Segments possible.
        limit: usize,
    },
    /// An immediate value that needs more bytes than the provider carries.
    #[error("the immediate value {value:#x} needs more than the {bytes} bytes that the provider carries")]
    ImmediateTooWide {
        /// The value.
        value: u64,
        /// Bytes that the provider carries with an operation.
        bytes: usize,
    },
    /// An object of another domain or address vector.
    #[error("the {what} belongs to another {parent} than what it is used with")]
    Foreign {
        /// The object that was passed.
        what: &'static str,
        /// What it should have in common with the endpoint.
        parent: &'static str,
    },
    /// A region that was registered without the access that the operation needs.
    #[error("the region was not registered for {need}; add it to its Access")]
    Access {
        /// The missing right.
        need: &'static str,
    },
    /// Memory that may not be written, with an access that writes to it.
    #[error("the memory is read-only and cannot be registered for writing")]
    ReadOnly,
    /// Memory of no bytes, or past the end of the address space.
    #[error("{len} bytes at {address:#x} cannot be registered")]
    BadRange {
        /// First address.
        address: usize,
        /// Length in bytes.
        len: usize,
    },
    /// An operand of an atomic operation that is not eight aligned bytes.
    #[error("atomic operands are eight bytes at an address that is a multiple of eight")]
    BadOperand,
    /// The bytes are not in memory that the processor can address.
    #[error("device memory cannot be copied by the processor")]
    NotHostMemory,
    /// A completion queue too small for everything that may complete into it.
    #[error(
        "the completion queue has {entries} entries, but the endpoints bound to it may have {need} operations outstanding; open it with more"
    )]
    QueueTooSmall {
        /// Entries that the queue was opened with.
        entries: usize,
        /// Entries needed.
        need: usize,
    },
    /// A part of the endpoint that was bound twice, or not at all.
    #[error("{0}")]
    Binding(&'static str),
    /// Text with a NUL byte in it, which C cannot take.
    #[error("{0:?} contains a NUL byte")]
    Nul(String),
    /// Something that has been closed already.
    #[error("the {0} is closed")]
    Closed(&'static str),
}

/// Why an operation was not accepted. In every case nothing was consumed and it will never complete.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PostError {
    /// The queue is full, here or in the provider. Poll the completion queue and try again.
    #[error("the transmit or receive queue is full; poll the completion queue and try again")]
    Again,
    /// The endpoint has been closed.
    #[error("the endpoint is closed")]
    Closed,
    /// The operation can never be accepted in this form.
    #[error(transparent)]
    Failed(Box<Error>),
}

impl PostError {
    /// Whether it is worth trying again after polling.
    pub fn is_again(&self) -> bool {
        matches!(self, PostError::Again)
    }

    #[cold]
    pub(crate) fn status(call: &'static str, status: isize) -> PostError {
        if status == -(sys::FI_EAGAIN as isize) {
            PostError::Again
        } else {
            PostError::Failed(Box::new(Error::call(call, "the endpoint", status as i64)))
        }
    }
}

impl From<Usage> for PostError {
    #[cold]
    fn from(usage: Usage) -> PostError {
        PostError::Failed(Box::new(Error::Usage(usage)))
    }
}

/// How an operation failed after it had been accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The provider reported an error.
    Provider,
    /// It was cancelled, by [`cancel`](crate::Endpoint::cancel) or by the provider giving up on its queue.
    Cancelled,
    /// The message was longer than the receive; what fitted has been placed.
    Truncated,
    /// Its endpoint was closed before it had ended. Whether it had an effect at the target is unknown.
    Aborted,
}

/// How an operation failed after it had been accepted: everything that the provider told about it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{kind:?}: {errno}, provider error {provider_errno}{}{text}", if text.is_empty() { "" } else { ": " })]
pub struct OperationError {
    pub(crate) kind: ErrorKind,
    pub(crate) errno: Errno,
    pub(crate) provider_errno: i32,
    pub(crate) text: String,
    pub(crate) overflow_bytes: usize,
    pub(crate) quiesced: bool,
}

impl OperationError {
    /// The class of the error.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// libfabric's error number.
    pub fn errno(&self) -> Errno {
        self.errno
    }

    /// The provider's own error number (on EFA, the card's or the provider's status), 0 if it gave none.
    pub fn provider_errno(&self) -> i32 {
        self.provider_errno
    }

    /// The provider's text for its error number, possibly empty.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Bytes of the message that did not fit into the receive.
    pub fn overflow_bytes(&self) -> usize {
        self.overflow_bytes
    }

    /// Whether the local memory of the operation is at rest. False only when the endpoint could not be closed, and for sends,
    /// reads and writes with `shm` that were aborted: the memory is then kept for ever rather than given back.
    pub fn quiesced(&self) -> bool {
        self.quiesced
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_status_becomes_a_positive_number() {
        assert_eq!(Errno::from_raw(-11), Errno::EAGAIN);
        assert_eq!(Errno::from_raw(11), Errno::EAGAIN);
        assert_eq!(Errno::from_raw(i64::MIN).raw(), i32::MAX);
    }

    #[test]
    fn messages_name_the_number_and_say_what_it_means() {
        let text = Error::call("fi_mr_regattr", "domain lo of tcp", -12).to_string();
        assert!(text.contains("fi_mr_regattr") && text.contains("FI_ENOMEM (12)"), "{text}");
        assert!(Errno::from_raw(99_999).to_string().contains("99999"));
    }
}
