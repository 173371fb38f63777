//! Address handles: a card of some host as one of our cards sees it.

use super::device::Card;
use super::process::{Process, lock};
use crate::abi::ibv_gid;
use crate::shared::CardFile;
use crate::shared::Mapped;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

/// GIDs of software cards: link-local, "SE" for software EFA, the host, the card.
pub(crate) fn gid(host: u32, card: u16) -> ibv_gid {
    let mut gid = [0; 16];
    gid[..2].copy_from_slice(&[0xfe, 0x80]);
    gid[8..10].copy_from_slice(b"SE");
    gid[10..14].copy_from_slice(&host.to_be_bytes());
    gid[14..].copy_from_slice(&card.to_be_bytes());
    gid
}

/// The host and card of a GID, or `None` for one that is not a software card's.
pub(crate) fn parts(of: &ibv_gid) -> Option<(u32, u16)> {
    let host = u32::from_be_bytes([of[10], of[11], of[12], of[13]]);
    let card = u16::from_be_bytes([of[14], of[15]]);
    (gid(host, card) == *of).then_some((host, card))
}

/// Where an address handle leads.
pub(crate) struct Remote {
    /// Host and card, or `None` for an address that no software card has: it is unreachable.
    pub(crate) at: Option<(u32, u16)>,
    file: Mutex<Option<Arc<Mapped<CardFile>>>>,
    /// Epoch of the target's list of known peers at which we were on it, plus one.
    known_at: AtomicU64,
    /// Whether it has ever answered us: tells "unresponsive" from "unreachable".
    pub(crate) answered: AtomicBool,
}

impl Remote {
    pub(crate) fn new(gid: &ibv_gid) -> Remote {
        Remote {
            at: parts(gid),
            file: Mutex::new(None),
            known_at: AtomicU64::new(0),
            answered: AtomicBool::new(false),
        }
    }

    /// The target card's shared file; `None` while no process of that host has opened the card.
    pub(crate) fn file(&self, process: &Process) -> Option<Arc<Mapped<CardFile>>> {
        let mut file = lock(&self.file);
        if file.is_none() {
            let (host, card) = self.at?;
            *file = process.card_file(host, card, false).ok();
        }
        file.clone()
    }

    /// Whether the target has an address handle for `card` of ours, as RDMA needs.
    pub(crate) fn knows(&self, card: &Card, file: &CardFile) -> bool {
        let epoch = file.handle_epoch.load(Ordering::Acquire) as u64 + 1;
        if self.known_at.load(Ordering::Relaxed) == epoch {
            return true;
        }
        let us = (card.process.host as u64) << 16 | card.index as u64;
        let used = (file.handles_used.load(Ordering::Acquire) as usize).min(file.handles.len());
        let known = file.handles[..used].iter().any(|entry| {
            entry.peer.load(Ordering::Acquire) == us
                && card.process.holds_slot(entry.owner.load(Ordering::Acquire))
        });
        if known {
            self.known_at.store(epoch, Ordering::Relaxed);
        }
        known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gids_say_host_and_card_and_nothing_else_passes_for_one() {
        assert_eq!(parts(&gid(0x1_0203, 15)), Some((0x1_0203, 15)));
        assert_eq!(parts(&[0; 16]), None);
        let mut other = gid(1, 1);
        other[5] = 1;
        assert_eq!(parts(&other), None);
    }
}
