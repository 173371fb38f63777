//! Counters.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// What a transport has done since it was built. All counts; bytes are payload.
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Statistics {
            $($(#[$doc])* pub $name: u64,)*
        }

        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn snapshot(&self) -> Statistics {
                Statistics { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Own requests that ended well.
    requests_done,
    /// Own requests that failed.
    requests_failed,
    /// Bytes read from peers.
    bytes_read,
    /// Bytes written to peers.
    bytes_written,
    /// Bytes that peers read here.
    bytes_served_read,
    /// Bytes that peers wrote here.
    bytes_served_written,
    /// Peers' requests that were refused here.
    refused,
    /// Lanes opened to peers.
    lanes_opened,
    /// Lanes to peers that were lost.
    lanes_lost,
    /// Slices that were sent again because their lane was lost.
    retries,
    /// Connections accepted.
    accepted,
    /// Connections turned away: bad handshake, too many, too slow, a broken protocol.
    turned_away,
    /// Connections that are open now, both directions, in the handshake or after it.
    connections,
}

impl Counters {
    pub(crate) fn add(counter: &AtomicU64, n: u64) {
        counter.fetch_add(n, Ordering::Relaxed);
    }
}
