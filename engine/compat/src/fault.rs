//! What can go wrong, and Mooncake's number for it.

/// An error with its cause in words. [`code`](Self::code) is what Mooncake's callers look at.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// An argument makes no sense.
    #[error("{0}")]
    Argument(String),
    /// Nothing is registered at this address.
    #[error("nothing is registered at {0:#x}")]
    NotRegistered(u64),
    /// Part of the range is registered already.
    #[error("{addr:#x}+{len:#x} overlaps {other:#x}+{other_len:#x}, which is registered already")]
    Overlap {
        /// First address asked for.
        addr: u64,
        /// Bytes asked for.
        len: u64,
        /// First address of the one that is there.
        other: u64,
        /// Its length in bytes.
        other_len: u64,
    },
    /// The peer's name leads nowhere.
    #[error("{0}")]
    Name(engine::Error),
    /// The peer does not answer.
    #[error("{0}")]
    Unreachable(engine::Error),
    /// Memory cannot be allocated.
    #[error("{0}")]
    Memory(engine::Error),
    /// A transfer did not end in time.
    #[error("{0}")]
    Timeout(engine::Error),
    /// Everything else that the engine says.
    #[error("{0}")]
    Engine(#[from] engine::Error),
}

impl Fault {
    /// Mooncake's number: -1 invalid argument or failed transfer, -3 address not registered, -7 address overlaps, -101 name, -102
    /// connection, -302 memory.
    pub fn code(&self) -> i32 {
        match self {
            Self::NotRegistered(_) => -3,
            Self::Overlap { .. } => -7,
            Self::Name(_) => -101,
            Self::Unreachable(_) => -102,
            Self::Memory(_) => -302,
            Self::Argument(_) | Self::Timeout(_) | Self::Engine(_) => -1,
        }
    }

    /// Of an attempt to reach a peer.
    pub(crate) fn of_peer(error: engine::Error) -> Self {
        match error {
            engine::Error::Name { .. } => Self::Name(error),
            _ => Self::Unreachable(error),
        }
    }
}
