//! What a card has done: plain counts, kept where the control socket can read them.

use std::sync::atomic::{AtomicU64, Ordering};

/// One count.
#[repr(transparent)]
pub(crate) struct Count(AtomicU64);

impl Count {
    /// Adds to it.
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Takes from it: for counts of what is there now.
    pub(crate) fn take(&self, amount: u64) {
        self.0.fetch_sub(amount, Ordering::Relaxed);
    }

    /// Its value.
    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The counts of one card in one process.
        #[repr(C)]
        pub(crate) struct Counters {
            $($(#[$doc])* pub(crate) $name: Count,)*
        }

        impl Counters {
            /// Names and values.
            pub(crate) fn all(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name.get()),)*]
            }
        }
    };
}

counters! {
    /// Requests that the program posted.
    posted,
    /// Requests that ended well.
    completed,
    /// Requests that ended badly.
    failed,
    /// Bytes written to other processes.
    write_bytes,
    /// Bytes read from other processes.
    read_bytes,
    /// Bytes sent in messages.
    send_bytes,
    /// Messages and immediates that were taken in.
    received,
    /// Times that a message found no posted receive.
    receiver_not_ready,
    /// Datagrams lost.
    datagrams_dropped,
    /// Completions lost because their queue was full.
    cq_overruns,
    /// Requests that a fault rule touched.
    faults,
    /// Memory registrations that are there now.
    regions,
    /// Memory registrations ever made.
    registered,
}
