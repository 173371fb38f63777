//! Names of `shm` endpoints that no other process has had, and an end to what dead ones left behind.
//!
//! The provider keeps an endpoint in a file of `/dev/shm` that is called after the process: `7:0:0` for the first one of
//! process 7 of user 0. Three things come of that:
//!
//! - Containers that share `/dev/shm` number their processes alike, and the second one overwrites the first one's endpoint,
//!   whose process it takes for dead.
//! - A process that is killed leaves its files, and they keep their memory (4 MiB each).
//! - One that later gets the same number finds them: it is itself the process they name, so they are "in use", and libfabric
//!   1.17 refuses to enable its endpoint (`EBUSY`).
//!
//! So endpoints get names here that tell processes apart for good: `fabric-safe.SPACE.PROCESS.START.INDEX`, with the number
//! of the process's pid namespace and the time it was started. The same name tells who is dead, and the first endpoint of a
//! process removes the files of those.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::Info;

/// Where the C library keeps shared memory with a name.
const FOLDER: &str = "/dev/shm";
const PREFIX: &str = "fabric-safe.";

/// A name for an endpoint to be opened with `info`, with its NUL; `None` where the provider's will do: it is not `shm`, the
/// caller has asked for another one ([`Hints::source`](crate::Hints::source)), or there is no `/proc` of ours to read.
pub(crate) fn name(info: &Info) -> Option<Vec<u8>> {
    static OPENED: AtomicU64 = AtomicU64::new(0);
    static SWEPT: Once = Once::new();
    if info.provider_name() != "shm" {
        return None;
    }
    let address = info.source_address()?;
    let address = address.split(|byte| *byte == 0).next()?;
    if address != format!("fi_shm://{}", std::process::id()).as_bytes() {
        return None;
    }
    let own = Process::own()?;
    SWEPT.call_once(|| sweep(Path::new(FOLDER), &own));
    let index = OPENED.fetch_add(1, Ordering::Relaxed);
    let Process { space, pid, start } = own;
    Some(format!("{PREFIX}{space}.{pid}.{start}.{index}\0").into_bytes())
}

/// A process, told apart from all that live now or have lived since the machine was started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Process {
    /// The inode of its pid namespace. When it is used again, all processes of the earlier one are dead.
    space: u64,
    pid: u32,
    /// When it was started, in clock ticks.
    start: u64,
}

impl Process {
    fn own() -> Option<Process> {
        let pid = std::process::id();
        // It may be that of another pid namespace, where our number is somebody else's.
        if fs::read_link("/proc/self").ok()? != Path::new(&pid.to_string()) {
            return None;
        }
        let space = fs::metadata("/proc/self/ns/pid").ok()?.ino();
        Some(Process { space, pid, start: start_of(pid)? })
    }

    /// Whose file has this name.
    fn of_file(name: &str) -> Option<Process> {
        let mut parts = name.strip_prefix(PREFIX)?.split('.');
        let mut next = || parts.next()?.parse::<u64>().ok();
        let (space, pid, start, _index) = (next()?, next()?, next()?, next()?);
        let pid = u32::try_from(pid).ok()?;
        parts.next().is_none().then_some(Process { space, pid, start })
    }
}

/// When the process with this number was started, in clock ticks; `None` if there is none that we may see.
fn start_of(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the program's name in parentheses, which may hold anything; the start is the 22nd.
    stat.rsplit_once(')')?.1.split_whitespace().nth(22 - 3)?.parse().ok()
}

/// Removes the files of dead processes. Only those of our own user, whose processes we can see, and of our own pid namespace:
/// what the number of another one's process means is not known here. A peer that still has such a file mapped keeps it.
fn sweep(folder: &Path, own: &Process) {
    let Ok(own_user) = fs::metadata("/proc/self").map(|own| own.uid()) else { return };
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let Some(owner) = entry.file_name().to_str().and_then(Process::of_file) else { continue };
        let is_ours = entry.metadata().is_ok_and(|file| file.is_file() && file.uid() == own_user);
        if is_ours && owner.space == own.space && start_of(owner.pid) != Some(owner.start) {
            // If it cannot be removed, it costs memory and nothing else.
            let _ = fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn only_files_of_dead_processes_of_our_own_namespace_are_removed() {
        let folder = tempfile::tempdir().unwrap();
        let own = Process::own().unwrap();
        let Process { space, pid, start } = own;
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let child_pid = child.id();
        child.wait().unwrap();
        let dead = [
            format!("{PREFIX}{space}.{pid}.{}.0", start - 1), // had our number before us
            format!("{PREFIX}{space}.{child_pid}.{start}.3"), // none has that number
        ];
        let kept = [
            format!("{PREFIX}{space}.{pid}.{start}.0"),
            format!("{PREFIX}{space}.1.{}.0", start_of(1).unwrap()),
            format!("{PREFIX}{}.{child_pid}.{start}.0", space + 1),
            format!("{child_pid}:0:0"),
            format!("{PREFIX}{space}.{child_pid}.{start}"),
            format!("{PREFIX}{space}.{child_pid}.{start}.0.0"),
            "something else".to_owned(),
        ];
        for name in dead.iter().chain(&kept) {
            fs::write(folder.path().join(name), "").unwrap();
        }
        sweep(folder.path(), &own);
        for name in dead {
            assert!(!folder.path().join(&name).exists(), "{name} is left");
        }
        for name in kept {
            assert!(folder.path().join(&name).exists(), "{name} is gone");
        }
        sweep(&folder.path().join("no such folder"), &own);
    }

    proptest! {
        #[test]
        fn a_name_says_whose_it_is(space: u64, pid: u32, start: u64, index: u64) {
            let name = format!("{PREFIX}{space}.{pid}.{start}.{index}");
            prop_assert_eq!(Process::of_file(&name), Some(Process { space, pid, start }));
        }

        #[test]
        fn no_name_is_too_strange(name in "(fabric-safe.)?[0-9a-z.:-]{0,40}") {
            let _ = Process::of_file(&name);
        }
    }
}
