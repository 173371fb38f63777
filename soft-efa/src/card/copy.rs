//! Copying between two processes' memory without the other program's help: `process_vm_readv` and `process_vm_writev`.
//!
//! The kernel allows it between processes of one user (and one PID namespace). Where the Yama security module restricts it, each
//! process of a run has named "any" as its tracer (`PR_SET_PTRACER`), which lifts the restriction for itself only.

use std::sync::OnceLock;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    /// From our memory to the other process.
    Write,
    /// From the other process to ours.
    Read,
}

/// Why a copy did not happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CopyError {
    /// The other process has ended.
    Gone,
    /// An address on either side is not mapped, or not with the access that is needed.
    Fault,
    /// The kernel does not let us.
    Refused,
}

/// A list of ranges that is handed to the kernel.
#[derive(Default)]
pub(crate) struct Ranges(Vec<libc::iovec>);

// SAFETY: the pointers are addresses for the kernel; nobody here dereferences them.
unsafe impl Send for Ranges {}

impl Ranges {
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }

    pub(crate) fn push(&mut self, address: u64, length: usize) {
        self.0.push(libc::iovec { iov_base: address as *mut _, iov_len: length });
    }
}

/// Copies all of `local` from or to all of `remote` in process `pid`; both lists have the same total length. Gives the number of
/// bytes that were copied, which is less than all when an address in the middle is bad.
pub(crate) fn copy(
    direction: Direction,
    pid: libc::pid_t,
    local: &Ranges,
    remote: &Ranges,
) -> Result<usize, CopyError> {
    let (local_count, remote_count) = (local.0.len() as libc::c_ulong, remote.0.len() as libc::c_ulong);
    // SAFETY: the kernel checks every address on both sides and fails with EFAULT; the local ranges belong to registrations of
    // the program, which has handed them to the card until the request's completion.
    let result = unsafe {
        match direction {
            Direction::Write => libc::process_vm_writev(
                pid,
                local.0.as_ptr(),
                local_count,
                remote.0.as_ptr(),
                remote_count,
                0,
            ),
            Direction::Read => {
                libc::process_vm_readv(pid, local.0.as_ptr(), local_count, remote.0.as_ptr(), remote_count, 0)
            }
        }
    };
    if result >= 0 {
        return Ok(result as usize);
    }
    let error = std::io::Error::last_os_error();
    Err(match error.raw_os_error() {
        Some(libc::ESRCH) => CopyError::Gone,
        Some(libc::EPERM | libc::ENOSYS | libc::EACCES) => {
            say_refused(pid, &error);
            CopyError::Refused
        }
        _ => CopyError::Fault,
    })
}

fn say_refused(pid: libc::pid_t, error: &std::io::Error) {
    static SAID: OnceLock<()> = OnceLock::new();
    SAID.get_or_init(|| {
        eprintln!(
            "soft-efa: the kernel refuses process_vm_* to process {pid} ({error}): RDMA between these processes fails. Both must \
             have the same user and PID namespace, be dumpable, and a container's seccomp profile must allow the call \
             (--security-opt seccomp=unconfined or --cap-add SYS_PTRACE)."
        );
    });
}
