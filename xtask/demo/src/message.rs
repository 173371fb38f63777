//! What the two processes of a run say to each other beside the traffic, as payload of notifications and lines of output.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::PageId;
use crate::pattern::mix;

/// Label under which the target registers its KV pool.
pub(crate) const POOL: &str = "kv-pool";

/// From the initiator to the target: these writes are complete, check them. An empty list ends the run.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) writes: Vec<Write>,
}

/// One completed write.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Write {
    pub(crate) id: u64,
    pub(crate) seed: u64,
    pub(crate) page_bytes: usize,
    pub(crate) pages: Vec<PageId>,
}

/// From the target to the initiator: what it found.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Checked {
    /// Ids of writes whose every byte is right.
    pub(crate) right: Vec<u64>,
    /// What is wrong with another one.
    pub(crate) wrong: Option<String>,
}

/// Seed of the `index`-th page of a request.
pub(crate) fn page_seed(request_seed: u64, index: usize) -> u64 {
    mix(request_seed ^ index as u64)
}

/// A line that a child process prints for the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The target can be reached under this name.
    Listening { name: String },
    /// The initiator is connected.
    Connected { path: String },
    /// So far, all verified.
    Progress { requests: u64, bytes: u64, elapsed: Duration },
    /// One line of the final table.
    Row(Row),
    /// What a libfabric provider looks like from here.
    Provider { name: String, found: Result<String, String> },
}

/// Requests of one kind with one model.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Row {
    pub(crate) model: String,
    pub(crate) page_bytes: usize,
    pub(crate) op: String,
    pub(crate) requests: u64,
    pub(crate) bytes: u64,
    /// Time during which at least one such request was in flight.
    pub(crate) busy: Duration,
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

impl Report {
    /// Prints the line. A supervisor that has gone does not matter: the child is ended with it.
    pub(crate) fn print(&self) {
        use std::io::Write as _;
        if let Ok(line) = serde_json::to_string(self) {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}").and_then(|()| out.flush());
        }
    }
}
