//! What a node of a test can be told, and what it answers.

use serde::{Deserialize, Serialize};

/// How a node's engine is set up.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Setup {
    pub(crate) name: Option<String>,
    /// `host:port`; a free port of 127.0.0.1 without it.
    pub(crate) listen: Option<String>,
    /// `auto`, `efa` or `tcp`; without it the environment decides.
    pub(crate) protocol: Option<String>,
    pub(crate) provider: Option<String>,
    pub(crate) same_host: bool,
    pub(crate) secret: Option<String>,
    pub(crate) encrypt: bool,
    pub(crate) timeout_ms: Option<u64>,
    /// Registered at this address, so that a process that takes the place of another one has its memory where that had it.
    pub(crate) fixed: Option<u64>,
}

/// Ranges of a buffer, by offset.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Where {
    Range { at: u64, len: u64 },
    Pages { page_len: u64, at: Vec<u64> },
    Strided { at: u64, block_len: u64, stride: u64, count: u64 },
    Scatter(Vec<(u64, u64)>),
}

/// One request of a batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Request {
    pub(crate) write: bool,
    pub(crate) local: (String, Where),
    /// The segment's name, the buffer's label there.
    pub(crate) segment: String,
    pub(crate) remote: (String, Where),
    pub(crate) tag: Option<u16>,
}

/// How a batch is followed to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Follow {
    Wait,
    WaitUntil,
    Poll,
    Await,
    /// The handle is dropped at once.
    Drop,
    /// Cancelled right after it was submitted.
    Cancel,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct BatchOrder {
    pub(crate) requests: Vec<Request>,
    pub(crate) follow: Follow,
    pub(crate) deadline_ms: Option<u64>,
    pub(crate) notify: Option<Vec<u8>>,
}

/// What became of a batch.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) result: Result<(), String>,
    /// Of each request.
    pub(crate) statuses: Vec<Result<(), String>>,
    pub(crate) quiesced: bool,
    pub(crate) ms: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    Register {
        label: String,
        len: usize,
        access: u8,
        seed: u64,
    },
    RegisterMany {
        prefix: String,
        count: usize,
        len: usize,
        access: u8,
    },
    Unregister(String),
    UnregisterMany {
        prefix: String,
    },
    /// Registers the same memory anew, after unregistering it if need be.
    RegisterAgain(String),
    Fill {
        label: String,
        seed: u64,
    },
    Write {
        label: String,
        at: usize,
        bytes: Vec<u8>,
    },
    Bytes {
        label: String,
        at: usize,
        len: usize,
    },
    Checksum(String),
    RegionAt {
        label: String,
        offset: u64,
        len: u64,
    },
    Open(String),
    Close(String),
    Refresh(String),
    Probe(String),
    WarmUp(String),
    Path(String),
    Batch(BatchOrder),
    /// Starts a batch again and again until it is stopped; each outcome is kept.
    Traffic(BatchOrder),
    StopTraffic,
    Notify {
        segment: String,
        payload: Vec<u8>,
    },
    NextNote {
        wait_ms: u64,
    },
    Arrivals {
        peer: String,
        tag: u16,
        at_least: u64,
        wait_ms: u64,
    },
    Statistics,
    Settings,
    Shutdown {
        wait_ms: u64,
    },
}

/// What a segment looks like from a node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct View {
    pub(crate) path: String,
    pub(crate) reason: String,
    pub(crate) epoch: u128,
    pub(crate) buffers: Vec<(String, u64, u64)>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Answer {
    Ok,
    Failed(String),
    Number(u64),
    Bytes(Vec<u8>),
    Text(String),
    View(View),
    Ended(Ended),
    Note(Option<(String, Vec<u8>)>),
    /// Outcomes of traffic: batches that ended well, and the errors of the others.
    Traffic {
        well: u64,
        errors: Vec<String>,
    },
}

/// Bytes that are different everywhere and for every seed.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A checksum that notices every changed, moved or missing byte (64-bit polynomial over words).
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = bytes.len() as u64;
    for word in words {
        sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(23);
    }
    for byte in rest {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(23);
    }
    sum
}
