//! What the processes of one run share: files in the run's directory, mapped by whoever needs them.
//!
//! Each file has one writer or is written under a file lock, and every field is an atomic, so a reader never sees a torn
//! value and a process killed at any instruction leaves nothing that the next one cannot recognise and take over:
//!
//! | file | holds | written by |
//! |---|---|---|
//! | `registry` | one slot a process: pid, start time, generation, doorbell | slot owner; slots change hands under `flock` |
//! | `card-HOST-CARD` | queue pairs and known peers of one card of one host | their owners; claimed under `flock` |
//! | `proc-SLOT-GEN` | memory registrations of one process | that process |
//! | `ring-SRC.GEN-DST.GEN` | packets from one process to another | source (tail), destination (head) |
//!
//! A slot's generation grows each time it is taken, so whatever names (slot, generation) of a dead process is stale for good.

use crate::counters::Counters;
use crate::settings::MAX_CARDS;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

/// Processes that a run can have at one time.
pub(crate) const SLOTS: usize = 256;
/// Queue pairs of one card (all processes of its host together).
pub(crate) const QPS: usize = 4096;
/// Peers that one card knows (address handles, all processes of its host together).
pub(crate) const HANDLES: usize = 65536;
/// Memory registrations of one process.
pub(crate) const REGIONS: usize = 65536;

/// Name of the file of processes in a run's directory.
pub(crate) const REGISTRY_FILE: &str = "registry";

/// Nobody holds this slot or entry.
pub(crate) const FREE: u32 = 0;
/// Held.
pub(crate) const LIVE: u32 = 1;

/// The file `registry`.
#[repr(C)]
pub(crate) struct Registry {
    /// Grows when the fault rules change.
    pub(crate) fault_epoch: AtomicU64,
    /// Hosts given out so far to processes that asked for one of their own.
    pub(crate) hosts: AtomicU32,
    pub(crate) _pad: u32,
    /// The run's own clock, in nanoseconds since the run began: see [`clock`](crate::clock).
    pub(crate) clock_ns: AtomicU64,
    pub(crate) _pad2: [u32; 1018],
    pub(crate) slots: [ProcessSlot; SLOTS],
}

/// One process.
#[repr(C, align(64))]
pub(crate) struct ProcessSlot {
    pub(crate) state: AtomicU32,
    pub(crate) generation: AtomicU32,
    pub(crate) pid: AtomicU32,
    pub(crate) host: AtomicU32,
    /// Start time of the process in clock ticks since boot (`/proc/PID/stat`, field 22): tells a reused pid.
    pub(crate) start_time: AtomicU64,
    /// Futex word that the card thread sleeps on; grows with each ring of the bell.
    pub(crate) doorbell: AtomicU32,
    /// 1 while the card thread sleeps and wants the bell.
    pub(crate) sleeping: AtomicU32,
    /// 1 while the process can do nothing until the run's own clock moves (with such a clock).
    pub(crate) waiting: AtomicU32,
    pub(crate) _pad: u32,
    /// When its next request falls due on the run's own clock; all ones for never. Good while `waiting`.
    pub(crate) due_ns: AtomicU64,
    /// When its program last did something, in nanoseconds of the machine's clock.
    pub(crate) active_ns: AtomicU64,
    pub(crate) _pad3: u64,
    /// One bit for each source slot that has put packets in its ring to us.
    pub(crate) inbound: [AtomicU64; SLOTS / 64],
    pub(crate) _pad2: [u64; 4],
    /// For each of our cards, and last for the receiving side: which process's memory it copies from or to now (see [`hazard`]).
    pub(crate) hazards: [AtomicU64; MAX_CARDS + 1],
}

/// A hazard word: a count, so that two copies in a row differ, and the slot whose memory is touched.
pub(crate) fn hazard(count: u64, slot: usize) -> u64 {
    count << 16 | (slot as u64 + 1)
}

/// A hazard word that names nobody and keeps the count.
pub(crate) fn hazard_idle(count: u64) -> u64 {
    count << 16
}

/// The count of a hazard word.
pub(crate) fn hazard_count(word: u64) -> u64 {
    word >> 16
}

/// The slot that a hazard word names.
pub(crate) fn hazard_slot(word: u64) -> Option<usize> {
    ((word & 0xffff) as usize).checked_sub(1)
}

/// Wakes whoever sleeps on a slot's doorbell.
pub(crate) fn ring_bell(slot: &ProcessSlot) {
    slot.doorbell.fetch_add(1, Ordering::SeqCst);
    // SAFETY: FUTEX_WAKE on a mapped word.
    unsafe { libc::syscall(libc::SYS_futex, slot.doorbell.as_ptr(), libc::FUTEX_WAKE, 1, 0, 0, 0) };
}

/// Wakes every process of a run.
pub(crate) fn ring_all_bells(registry: &Registry) {
    for slot in registry.slots.iter().filter(|slot| slot.state.load(Ordering::Acquire) == LIVE) {
        ring_bell(slot);
    }
}

/// Where the file of a process's registrations and counts lies.
pub(crate) fn process_path(dir: &Path, slot: usize, generation: u32) -> PathBuf {
    dir.join(format!("proc-{slot}-{generation}"))
}

/// The file `card-HOST-CARD`.
#[repr(C)]
pub(crate) struct CardFile {
    /// Where the search for a free queue pair number starts, so that numbers are reused late.
    pub(crate) next_qpn: AtomicU32,
    /// Grows when the list of known peers changes.
    pub(crate) handle_epoch: AtomicU32,
    /// Entries of `handles` that have ever been used.
    pub(crate) handles_used: AtomicU32,
    /// Number of the first queue pair of the process that made the last ones, and its owner word: see the rule `restart`.
    pub(crate) first_qpn: AtomicU32,
    pub(crate) first_owner: AtomicU64,
    pub(crate) _pad: [u32; 1018],
    pub(crate) qps: [QpEntry; QPS],
    pub(crate) handles: [HandleEntry; HANDLES],
}

/// One queue pair; its number is its index.
#[repr(C)]
pub(crate) struct QpEntry {
    /// Who holds it, or 0: see [`owner`].
    pub(crate) owner: AtomicU64,
    pub(crate) qkey: AtomicU32,
    pub(crate) pd: AtomicU32,
    /// Whether it takes packets (state RTR or RTS).
    pub(crate) ready: AtomicU32,
    pub(crate) _pad: [u32; 3],
    /// Requests posted, ended well, ended badly; messages taken in.
    pub(crate) posted: AtomicU64,
    pub(crate) completed: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) received: AtomicU64,
}

/// One peer that a card has an address handle for.
#[repr(C)]
pub(crate) struct HandleEntry {
    pub(crate) owner: AtomicU64,
    /// The peer's card: host << 16 | card.
    pub(crate) peer: AtomicU64,
}

/// An owner word: (slot, generation), never 0.
pub(crate) fn owner(slot: usize, generation: u32) -> u64 {
    (generation as u64) << 32 | (slot as u64 + 1)
}

/// The slot and generation that an owner word names.
pub(crate) fn owner_parts(word: u64) -> Option<(usize, u32)> {
    let slot = ((word & 0xffff_ffff) as usize).checked_sub(1)?;
    (slot < SLOTS).then_some((slot, (word >> 32) as u32))
}

/// The file `proc-SLOT-GEN`: see [`process_path`].
#[repr(C)]
pub(crate) struct ProcessFile {
    /// What each of its cards has done.
    pub(crate) counts: [Counters; MAX_CARDS],
    pub(crate) regions: [RegionEntry; REGIONS],
}

/// One memory registration. `tag` is stored last when it is made and cleared first when it goes.
#[repr(C, align(64))]
pub(crate) struct RegionEntry {
    /// Upper half of the key, with bit 31 set while registered; 0 otherwise.
    pub(crate) tag: AtomicU32,
    pub(crate) card: AtomicU32,
    pub(crate) access: AtomicU32,
    pub(crate) pd: AtomicU32,
    pub(crate) iova: AtomicU64,
    pub(crate) address: AtomicU64,
    pub(crate) length: AtomicU64,
}

/// A shared mapping of a whole file, as a `T` that consists of atomics.
pub(crate) struct Mapped<T> {
    base: *mut T,
    length: usize,
}

// SAFETY: T consists of atomics only (all users are in this module and in `ring`), so it may be used from any thread.
unsafe impl<T> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Mapped<T> {}

impl<T> Mapped<T> {
    /// Maps `path`, made as long as a `T` (plus `extra` bytes) when `create` is set.
    pub(crate) fn open(path: &Path, extra: usize, create: bool) -> io::Result<Mapped<T>> {
        let file = OpenOptions::new().read(true).write(true).create(create).truncate(false).open(path)?;
        Self::of(&file, extra, create)
    }

    /// Maps an open file.
    pub(crate) fn of(file: &File, extra: usize, create: bool) -> io::Result<Mapped<T>> {
        let length = size_of::<T>() + extra;
        let present = file.metadata()?.len();
        if present < length as u64 {
            if !create {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "a file of another version, or not ready",
                ));
            }
            file.set_len(length as u64)?;
        }
        // SAFETY: a fresh shared mapping of `length` bytes, all inside the file; zero bytes are a valid T (atomics).
        let base = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Mapped { base: base.cast(), length })
    }

    /// Where it lies, and how many bytes.
    #[cfg(feature = "fuzzing")]
    pub(crate) fn bytes(&self) -> (*mut u8, usize) {
        (self.base.cast(), self.length)
    }

    /// First byte after the `T`.
    pub(crate) fn tail(&self) -> *mut u8 {
        // SAFETY: the mapping is at least as long as a T, so one past the T is in bounds or one past the end.
        unsafe { self.base.add(1).cast() }
    }
}

impl<T> std::ops::Deref for Mapped<T> {
    type Target = T;

    fn deref(&self) -> &T {
        // SAFETY: mapped for as long as self lives, page-aligned, atomics only.
        unsafe { &*self.base }
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: base and length are those of the mapping made in `of`; nothing borrows from it any more.
        unsafe { libc::munmap(self.base.cast(), self.length) };
    }
}

/// An exclusive lock on a file, given back when dropped and by the kernel when the process dies.
pub(crate) struct FileLock {
    file: File,
}

impl FileLock {
    /// Waits for the lock.
    pub(crate) fn exclusive(path: &Path) -> io::Result<FileLock> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        loop {
            // SAFETY: flock on a descriptor that we own.
            if unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX) } == 0 {
                return Ok(FileLock { file });
            }
            let error = io::Error::last_os_error();
            if error.kind() != io::ErrorKind::Interrupted {
                return Err(error);
            }
        }
    }

    /// The locked file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }
}

impl Drop for FileLock {
    fn drop(&mut self) {
        // Closing is not enough: a mapping of the file keeps what the lock belongs to alive.
        // SAFETY: flock on a descriptor that we own.
        unsafe { libc::flock(self.file.as_raw_fd(), libc::LOCK_UN) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_say_what_was_put_into_them() {
        assert_eq!(owner_parts(owner(255, u32::MAX)), Some((255, u32::MAX)));
        assert_eq!(owner_parts(0), None);
        assert_eq!(owner_parts(u64::MAX), None, "a slot beyond the table is refused");
        assert_eq!(hazard_slot(hazard(7, 0)), Some(0));
        assert_eq!(hazard_slot(0), None);
    }

    #[test]
    fn a_short_file_is_refused_rather_than_mapped() {
        let path = std::env::temp_dir().join(format!("soft-efa-short-{}", std::process::id()));
        std::fs::write(&path, b"x").unwrap();
        assert!(Mapped::<RegionEntry>::open(&path, 0, false).is_err());
        std::fs::remove_file(&path).unwrap();
    }
}
