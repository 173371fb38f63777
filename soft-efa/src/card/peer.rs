//! Another process of the run (or this one, which is a peer like any other): its registrations, its life, the way to it.

use super::process::{Process, lock, regions_path};
use super::ring::{Packet, Ring};
use crate::shared::{Mapped, ProcessFile};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// A process that we reach.
pub(crate) struct Peer {
    pub(crate) slot: usize,
    pub(crate) generation: u32,
    pub(crate) pid: libc::pid_t,
    pub(crate) regions: Mapped<ProcessFile>,
    pidfd: Option<OwnedFd>,
    dead: AtomicBool,
    ring: Mutex<Option<Ring>>,
}

impl Peer {
    /// Opens what the process in that slot shares; `None` when it is gone.
    pub(crate) fn open(process: &Process, slot: usize, generation: u32) -> Option<Peer> {
        let entry = &process.registry.slots[slot];
        let pid = entry.pid.load(Ordering::Acquire) as libc::pid_t;
        // SAFETY: pidfd_open takes integers and gives a new descriptor or -1.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32;
        // SAFETY: a non-negative result is a descriptor that nobody else owns.
        let pidfd = (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) });
        // The pid may have been given to somebody else before pidfd_open: only its start time tells.
        if !super::process::slot_alive(entry) {
            return None;
        }
        let regions = Mapped::open(&regions_path(process, slot, generation), 0, false).ok()?;
        Some(Peer {
            slot,
            generation,
            pid,
            regions,
            pidfd,
            dead: AtomicBool::new(false),
            ring: Mutex::new(None),
        })
    }

    /// Its owner word.
    pub(crate) fn owner(&self) -> u64 {
        crate::shared::owner(self.slot, self.generation)
    }

    /// Whether the process still runs. A system call (unless it is known to be dead): not for every operation.
    pub(crate) fn alive(&self, process: &Process) -> bool {
        if self.dead.load(Ordering::Acquire) {
            return false;
        }
        let alive = process.holds_slot(self.owner())
            && match &self.pidfd {
                Some(pidfd) => {
                    let mut poll = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                    // SAFETY: one valid pollfd, no waiting. The descriptor becomes readable when the process has ended.
                    // A call that fails says nothing about the process.
                    unsafe { libc::poll(&mut poll, 1, 0) <= 0 }
                }
                None => super::process::slot_alive(&process.registry.slots[self.slot]),
            };
        if !alive {
            self.dead.store(true, Ordering::Release);
        }
        alive
    }

    /// What was learnt from an ESRCH.
    pub(crate) fn mark_dead(&self) {
        self.dead.store(true, Ordering::Release);
    }

    /// Sends a packet; false when its ring is full (we are rung when there is room) or cannot be made.
    ///
    /// # Safety
    /// As [`Ring::push`]: the parts must be readable and add up to the payload.
    pub(crate) unsafe fn send(
        &self,
        process: &Process,
        packet: &Packet,
        parts: &[(*const u8, usize)],
    ) -> bool {
        let mut ring = lock(&self.ring);
        if ring.is_none() {
            match process.ring_to(self.slot, self.generation) {
                Ok(opened) => *ring = Some(opened),
                Err(_) => {
                    self.mark_dead();
                    return false;
                }
            }
        }
        // SAFETY: by contract; the lock makes this process's one writer of the ring.
        let sent = ring.as_ref().is_some_and(|ring| unsafe { ring.push(packet, parts) });
        drop(ring);
        if sent {
            process.ring_bell(self.slot);
        }
        sent
    }
}
