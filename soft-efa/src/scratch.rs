//! The directory that the processes of one run share, and its end.
//!
//! The launcher makes one per run below the temporary directory and removes it afterwards; nothing is put into /dev/shm. Everybody
//! who uses it holds a shared lock on one file in it. A launcher that was killed leaves its directory behind; the next launcher
//! removes every directory whose lock nobody holds.

use crate::error::Error;
use std::fs::{self, File, OpenOptions};
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

/// The file that everybody holds a shared lock on.
pub(crate) const LOCK_FILE: &str = "in-use";
const PREFIX: &str = "soft-efa-run-";

/// A run's directory, removed when dropped.
#[derive(Debug)]
pub struct Scratch {
    dir: PathBuf,
    _lock: File,
}

impl Scratch {
    /// Makes a fresh one and removes those that dead launchers have left.
    ///
    /// # Errors
    /// When the temporary directory cannot be written.
    pub fn new() -> Result<Scratch, Error> {
        let base = std::env::temp_dir();
        fs::create_dir_all(&base)
            .map_err(|error| Error::Io { what: format!("make {}", base.display()), error })?;
        sweep(&base);
        static COUNT: AtomicU32 = AtomicU32::new(0);
        loop {
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let dir = base.join(format!("{PREFIX}{}-{number}", std::process::id()));
            let io = |error| Error::Io { what: format!("make {}", dir.display()), error };
            match fs::create_dir(&dir) {
                // Of a dead process that had our pid, or of a living one that has it in another container.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                made => made.map_err(io)?,
            }
            let lock = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(dir.join(LOCK_FILE))
                .map_err(io)?;
            // SAFETY: flock on a descriptor that we own.
            unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_SH) };
            // Another launcher may have found the file before it was locked: then it has removed it while we waited for the lock.
            if lock.metadata().map_err(io)?.nlink() > 0 {
                return Ok(Scratch { dir, _lock: lock });
            }
        }
    }

    /// The directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// Removes the directories of this user that nobody uses any more.
fn sweep(base: &Path) {
    // SAFETY: getuid takes nothing and cannot fail.
    let user = unsafe { libc::getuid() };
    let Ok(entries) = fs::read_dir(base) else { return };
    for entry in entries.flatten() {
        let ours = entry.file_name().to_string_lossy().starts_with(PREFIX)
            && entry.metadata().is_ok_and(|meta| meta.is_dir() && meta.uid() == user);
        if !ours {
            continue;
        }
        let Ok(lock) = File::open(entry.path().join(LOCK_FILE)) else { continue };
        // SAFETY: flock on a descriptor that we own.
        if unsafe { libc::flock(lock.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } == 0 {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_removes_its_directory_and_that_of_a_dead_one_but_not_of_a_live_one() {
        let live = Scratch::new().unwrap();
        let dead = std::env::temp_dir().join(format!("{PREFIX}test-{}", std::process::id()));
        fs::create_dir_all(&dead).unwrap();
        fs::write(dead.join(LOCK_FILE), "").unwrap();
        let second = Scratch::new().unwrap();
        assert!(!dead.exists());
        assert!(live.dir().join(LOCK_FILE).exists());
        let path = second.dir().to_path_buf();
        drop(second);
        assert!(!path.exists());
    }

    /// A launcher that starts while another one sweeps: what it has made is there, and locked.
    #[test]
    fn launchers_that_start_at_the_same_time_leave_each_other_alone() {
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..300 {
                        let made = Scratch::new().unwrap();
                        assert!(made.dir().join(LOCK_FILE).exists(), "{} was swept", made.dir().display());
                    }
                });
            }
        });
    }
}
