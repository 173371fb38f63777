//! What the supervisor and its nodes say to each other: lines of JSON.

use serde::{Deserialize, Serialize};

/// What a node is to be.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Its number.
    pub(crate) node: usize,
    /// Which of its lives this is.
    pub(crate) life: u64,
    /// The names of all nodes, its own among them.
    pub(crate) names: Vec<String>,
    /// Whether it has cards.
    pub(crate) cards: bool,
    /// Whether it copies within the host.
    pub(crate) same_host: bool,
    pub(crate) seed: u64,
}

/// What a node says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Report {
    /// It serves its memory now.
    Ready,
    /// Once a second.
    Alive(Alive),
    /// A promise has been broken.
    Violation(String),
}

/// How a node is.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Alive {
    pub(crate) life: u64,
    /// Requests that ended well, and that failed; every one that was submitted has ended.
    pub(crate) done: u64,
    pub(crate) failed: u64,
    /// Bytes compared with what they should be.
    pub(crate) verified: u64,
    /// Ranges that are set aside because nobody knows yet whether they are quiet.
    pub(crate) aside: usize,
    /// Milliseconds since the last request to each node that ended well; its own is zero.
    pub(crate) quiet_ms: Vec<u64>,
    /// Which way requests to each node go.
    pub(crate) paths: Vec<String>,
    /// The last error with each node.
    pub(crate) errors: Vec<String>,
    /// The process itself.
    pub(crate) memory_kib: u64,
    pub(crate) threads: u64,
    pub(crate) descriptors: u64,
}

/// What a node is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Take the memory back and register it again.
    Reregister,
}

impl Report {
    /// Prints the line. A supervisor that has gone does not matter: the node ends with it.
    pub(crate) fn print(&self) {
        use std::io::Write as _;
        if let Ok(line) = serde_json::to_string(self) {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }
}
