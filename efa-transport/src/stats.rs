//! Counters.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::core::Core;
use crate::error::Error;
use crate::peer::PeerId;

/// What a transport has done since it was opened. All counts; bytes are payload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Requests that ended well, of batches whose handle is gone.
    pub requests_done: u64,
    /// Requests that failed, of batches whose handle is gone.
    pub requests_failed: u64,
    /// Attempts of slices that were repeated.
    pub retries: u64,
    /// For each NIC; for each once more when a second fabric is open, then called `CARD/FABRIC`.
    pub nics: Vec<NicStatistics>,
}

/// What one NIC has done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct NicStatistics {
    /// Its name.
    pub name: String,
    /// Bytes written to peers.
    pub bytes_written: u64,
    /// Bytes read from peers.
    pub bytes_read: u64,
    /// Operations posted.
    pub slices: u64,
    /// Posts that the provider had no room for.
    pub again: u64,
    /// Attempts that failed.
    pub errors: u64,
    /// Immediates that arrived.
    pub arrivals: u64,
    /// Slices taken over from busier NICs.
    pub taken_over: u64,
    /// Times that its endpoint had to be closed and opened again.
    pub reopened: u64,
    /// Readings of its completion queue.
    pub polls: u64,
    /// Operations in flight now.
    pub in_flight: usize,
    /// Slices waiting now.
    pub queued: usize,
    /// Address vector entries in use now.
    pub addresses: usize,
    /// Page table entries of the card in use, and the budget. Where it has two fabrics, of both together.
    pub pages: (u64, u64),
}

/// What has been done with one peer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerStatistics {
    /// Bytes written to it.
    pub bytes_written: u64,
    /// Bytes read from it.
    pub bytes_read: u64,
    /// Slices that ended well.
    pub slices: u64,
    /// Attempts that failed.
    pub failures: u64,
    /// Attempts that were repeated.
    pub retries: u64,
}

fn get(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

impl Core {
    pub(crate) fn statistics(&self) -> Statistics {
        let nics = self
            .lanes
            .iter()
            .map(|lane| {
                let (in_flight, queued) = {
                    let state = lane.state.lock();
                    (state.queue.in_flight(), state.queue.queued())
                };
                let c = &lane.counters;
                // The card's, whichever fabric has used them.
                let ledger = self.lanes.first().registrar.ledger();
                let used = ledger.used(lane.seat.seat).0;
                NicStatistics {
                    name: lane.nic.name.clone(),
                    bytes_written: get(&c.bytes_written),
                    bytes_read: get(&c.bytes_read),
                    slices: get(&c.slices),
                    again: get(&c.again),
                    errors: get(&c.errors),
                    arrivals: get(&c.arrivals),
                    taken_over: get(&c.taken_over),
                    reopened: get(&c.reopened),
                    polls: get(&c.polls),
                    in_flight,
                    queued,
                    addresses: lane.addresses(),
                    pages: (used, used.saturating_add(ledger.pages_left(lane.seat.seat))),
                }
            })
            .collect();
        let (requests_done, requests_failed) = self.batches.lock().ended();
        Statistics { requests_done, requests_failed, retries: get(&self.retried), nics }
    }

    pub(crate) fn peer_statistics(&self, id: PeerId) -> Result<PeerStatistics, Error> {
        let peers = self.peers();
        Ok(peers.get(id)?.counters.statistics())
    }
}
