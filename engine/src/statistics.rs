//! Counters: what an engine has done, for each peer and each NIC.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use tcp_transport::Op;

use crate::protocol::Protocol;

/// What an engine has done since it was built. All counts unless said otherwise; bytes are payload.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Statistics {
    /// The engine's name.
    pub name: String,
    /// The protocol in force.
    pub protocol: Protocol,
    /// The libfabric path in words, or why there is none.
    pub fabric: Result<String, String>,
    /// Generation of this engine's libfabric descriptor; `None` without that path.
    pub descriptor: Option<u64>,
    /// Registrations now.
    pub regions: usize,
    /// Bytes registered now.
    pub registered_bytes: u64,
    /// For each peer that was ever opened, by name.
    pub peers: Vec<PeerStatistics>,
    /// For each NIC of the libfabric path.
    pub nics: Vec<NicStatistics>,
    /// The TCP path, for all peers together.
    pub tcp: TcpStatistics,
}

/// What went over one path.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Traffic {
    /// Requests that ended well.
    pub requests_done: u64,
    /// Requests that failed.
    pub requests_failed: u64,
    /// Bytes of reads that ended well.
    pub bytes_read: u64,
    /// Bytes of writes that ended well.
    pub bytes_written: u64,
}

/// What was done with one peer. Requests count when their batch has ended and been looked at, or dropped.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct PeerStatistics {
    /// The name it was opened by.
    pub name: String,
    /// Which way its requests go now; `closed` if nobody has it open.
    pub path: String,
    /// Why they go that way.
    pub reason: String,
    /// Generation of its libfabric descriptor that is in use here; `None` where it is reached another way.
    pub descriptor: Option<u64>,
    /// Buffers that it has told of.
    pub buffers: usize,
    /// Over libfabric.
    pub fabric: Traffic,
    /// Over TCP, the copy within the host included.
    pub tcp: Traffic,
    /// Slices that libfabric's path tried again.
    pub retries: u64,
    /// Requests that failed on libfabric's path and were moved to TCP.
    pub requests_moved: u64,
    /// Times that the peer's traffic was moved to TCP.
    pub failovers: u64,
    /// Times that it went back.
    pub returns: u64,
    /// Times that the peer was found in another life.
    pub restarts: u64,
}

/// What one NIC has done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct NicStatistics {
    /// Its name.
    pub name: String,
    /// Link speed in Mbit/s, 0 if the provider does not say.
    pub link_mbps: u64,
    /// Bytes written to peers.
    pub bytes_written: u64,
    /// Bytes read from peers.
    pub bytes_read: u64,
    /// Operations posted.
    pub operations: u64,
    /// Attempts that failed.
    pub errors: u64,
    /// Posts that the provider had no room for.
    pub again: u64,
    /// Operations that it takes at a time.
    pub depth: usize,
    /// Operations in flight now: credits in use.
    pub in_flight: usize,
    /// Slices that wait for a credit now.
    pub queued: usize,
    /// Address vector entries in use now.
    pub addresses: usize,
    /// Page table entries in use now: the ledger.
    pub pages: u64,
    /// Page table entries that it may use.
    pub page_budget: u64,
    /// Times that its endpoint had to be closed and opened again.
    pub reopened: u64,
    /// Immediates that arrived.
    pub arrivals: u64,
    /// Whether it is set aside after failures now.
    pub aside: bool,
}

/// What the TCP path has done, for all peers together, both as the one who asks and as the one who serves.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct TcpStatistics {
    /// Bytes read from peers.
    pub bytes_read: u64,
    /// Bytes written to peers.
    pub bytes_written: u64,
    /// Bytes that peers read here.
    pub bytes_served_read: u64,
    /// Bytes that peers wrote here.
    pub bytes_served_written: u64,
    /// Peers' requests that were refused here.
    pub refused: u64,
    /// Slices that were sent again because their lane was lost.
    pub retries: u64,
    /// Lanes opened to peers.
    pub lanes_opened: u64,
    /// Lanes to peers that were lost.
    pub lanes_lost: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections turned away.
    pub turned_away: u64,
    /// Connections that are open now, both directions.
    pub connections: u64,
}

impl From<tcp_transport::Statistics> for TcpStatistics {
    fn from(s: tcp_transport::Statistics) -> Self {
        Self {
            bytes_read: s.bytes_read,
            bytes_written: s.bytes_written,
            bytes_served_read: s.bytes_served_read,
            bytes_served_written: s.bytes_served_written,
            refused: s.refused,
            retries: s.retries,
            lanes_opened: s.lanes_opened,
            lanes_lost: s.lanes_lost,
            accepted: s.accepted,
            turned_away: s.turned_away,
            connections: s.connections,
        }
    }
}

/// Counters of one peer; they outlive its segment.
#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    pub(crate) fabric: PathCounters,
    pub(crate) tcp: PathCounters,
    pub(crate) requests_moved: AtomicU64,
    pub(crate) failovers: AtomicU64,
    pub(crate) returns: AtomicU64,
    pub(crate) restarts: AtomicU64,
}

#[derive(Debug, Default)]
pub(crate) struct PathCounters {
    done: AtomicU64,
    failed: AtomicU64,
    read: AtomicU64,
    written: AtomicU64,
}

impl PathCounters {
    pub(crate) fn ended(&self, op: Op, bytes: u64, well: bool) {
        if !well {
            self.failed.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.done.fetch_add(1, Ordering::Relaxed);
        match op {
            Op::Read => &self.read,
            Op::Write => &self.written,
        }
        .fetch_add(bytes, Ordering::Relaxed);
    }

    fn traffic(&self) -> Traffic {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Traffic {
            requests_done: get(&self.done),
            requests_failed: get(&self.failed),
            bytes_read: get(&self.read),
            bytes_written: get(&self.written),
        }
    }
}

impl PeerCounters {
    pub(crate) fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything that the counters tell; the rest is up to the segment.
    pub(crate) fn snapshot(&self, name: &str) -> PeerStatistics {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        PeerStatistics {
            name: name.to_owned(),
            path: "closed".into(),
            fabric: self.fabric.traffic(),
            tcp: self.tcp.traffic(),
            requests_moved: get(&self.requests_moved),
            failovers: get(&self.failovers),
            returns: get(&self.returns),
            restarts: get(&self.restarts),
            ..PeerStatistics::default()
        }
    }
}
