//! How well a peer answers, as a whole and over each of its NICs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::scheduler::health::{Change, Health};
use crate::scheduler::rail::Set;

/// Attempts over one remote NIC that may fail in a row before the others are preferred.
const NIC_TOLERANCE: u32 = 1;
/// Failed requests in a row before the peer is taken for down.
const PEER_TOLERANCE: u32 = 1;

/// Costs the hot path one relaxed load as long as nothing has failed.
#[derive(Debug, Default)]
pub(crate) struct PeerHealth {
    /// Something has failed since the last success.
    suspect: AtomicBool,
    /// The remote NICs that are set aside, low and high half of the set, until one of them may be tried again.
    aside: [AtomicU64; 2],
    aside_until: AtomicU64,
    details: Mutex<Details>,
    /// A probe of ours is under way.
    pub(crate) probing: AtomicBool,
}

#[derive(Debug, Default)]
struct Details {
    whole: Health,
    nics: Vec<Health>,
}

impl PeerHealth {
    #[inline]
    pub(crate) fn is_suspect(&self) -> bool {
        self.suspect.load(Ordering::Relaxed)
    }

    /// Whether requests may be sent to it.
    #[inline]
    pub(crate) fn usable(&self, now: u64) -> bool {
        !self.is_suspect() || self.details.lock().whole.usable(now)
    }

    /// Whether its last answer was none: it has been taken for down, and no success has come since.
    pub(crate) fn is_down(&self) -> bool {
        self.is_suspect() && self.details.lock().whole.is_suspect()
    }

    /// The remote NICs that had better not be used now.
    #[inline]
    pub(crate) fn avoid(&self, now: u64) -> Set {
        if self.is_suspect() { self.avoid_some(now) } else { 0 }
    }

    #[cold]
    fn avoid_some(&self, now: u64) -> Set {
        if now >= self.aside_until.load(Ordering::Relaxed) {
            self.summarize(&self.details.lock(), now);
        }
        let [low, high] = &self.aside;
        Set::from(low.load(Ordering::Relaxed)) | Set::from(high.load(Ordering::Relaxed)) << 64
    }

    /// An attempt over a remote NIC has failed because nobody answered.
    pub(crate) fn nic_failed(&self, nic: usize, now: u64) {
        let mut details = self.details.lock();
        if details.nics.len() <= nic {
            details.nics.resize(nic + 1, Health::default());
        }
        details.nics[nic].failed(now, NIC_TOLERANCE);
        self.summarize(&details, now);
    }

    /// A request has failed because nobody answered.
    pub(crate) fn failed(&self, now: u64) -> Change {
        let mut details = self.details.lock();
        let change = details.whole.failed(now, PEER_TOLERANCE);
        self.summarize(&details, now);
        change
    }

    /// An attempt over a remote NIC went well.
    pub(crate) fn succeeded(&self, nic: usize, now: u64) -> Change {
        let mut details = self.details.lock();
        if let Some(nic) = details.nics.get_mut(nic) {
            nic.succeeded();
        }
        let change = details.whole.succeeded();
        self.summarize(&details, now);
        change
    }

    /// There is news about it: it may be tried again. With new NICs nothing is known about those.
    pub(crate) fn forgive(&self, new_nics: bool) {
        let mut details = self.details.lock();
        details.whole.forgive();
        if new_nics {
            details.nics.clear();
        }
        details.nics.iter_mut().for_each(Health::forgive);
        self.summarize(&details, 0);
    }

    fn summarize(&self, details: &Details, now: u64) {
        let mut aside: Set = 0;
        let mut until = u64::MAX;
        for (index, nic) in details.nics.iter().enumerate().take(128) {
            if !nic.usable(now) {
                aside |= 1 << index;
                until = until.min(nic.aside_until());
            }
        }
        self.aside[0].store(aside as u64, Ordering::Relaxed);
        self.aside[1].store((aside >> 64) as u64, Ordering::Relaxed);
        self.aside_until.store(until, Ordering::Relaxed);
        let suspect = details.whole.is_suspect() || details.nics.iter().any(Health::is_suspect);
        self.suspect.store(suspect, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_is_avoided_for_a_while_and_the_peer_recovers_with_any_success() {
        let health = PeerHealth::default();
        assert_eq!(health.avoid(0), 0);
        health.nic_failed(70, 10);
        health.nic_failed(3, 10);
        assert_eq!(health.avoid(11), 1 << 70 | 1 << 3);
        assert!(health.usable(11), "the others may do");
        assert_eq!(health.avoid(1 << 40), 0, "to be tried again");
        assert!(health.is_suspect() && !health.is_down());
        assert_eq!(health.failed(20), Change::SetAside);
        assert!(!health.usable(21) && health.is_down());
        assert_eq!(health.succeeded(3, 30), Change::Recovered);
        assert!(health.usable(31) && !health.is_down());
        assert_eq!(health.avoid(31), 1 << 70, "that one has not answered yet");
        assert_eq!(health.succeeded(70, 40), Change::None);
        assert!(!health.is_suspect());
    }

    #[test]
    fn a_new_descriptor_gives_another_chance_and_is_no_proof() {
        let health = PeerHealth::default();
        health.nic_failed(0, 10);
        health.failed(10);
        health.forgive(false);
        assert!(health.usable(11) && health.is_down());
        assert_eq!(health.avoid(11), 0);
        assert_eq!(health.succeeded(0, 12), Change::Recovered, "now it is known");
        health.nic_failed(5, 20);
        health.forgive(true);
        assert!(!health.is_suspect(), "those were other NICs");
    }
}
