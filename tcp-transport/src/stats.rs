//! Counters.

/// What a transport has done since it was built. All counts; bytes are payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Statistics {
    /// Own requests that ended well.
    pub requests_done: u64,
    /// Own requests that failed.
    pub requests_failed: u64,
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
    /// Lanes opened to peers.
    pub lanes_opened: u64,
    /// Lanes lost.
    pub lanes_lost: u64,
    /// Slices that were sent again on another lane.
    pub retries: u64,
    /// Connections accepted.
    pub accepted: u64,
    /// Connections turned away: bad handshake, too many, too slow.
    pub turned_away: u64,
    /// Connections that are open now, both directions.
    pub connections: u64,
}
