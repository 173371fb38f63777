//! Memory that Python or its caller owns: the promise under which it is registered, and copies from and to plain addresses.

use engine::Memory;
use pyo3::prelude::*;

/// A range of memory, and the object that keeps it there. A range without an owner is vouched for by the caller, as in
/// Mooncake's API.
pub(crate) struct Lent {
    addr: u64,
    len: usize,
    // Dropped wherever the last request ends. Without the GIL the reference is put aside until somebody has it.
    _owner: Option<Py<PyAny>>,
}

impl Lent {
    /// `None` for a range that is empty or wraps around the address space.
    pub(crate) fn new(addr: u64, len: u64, owner: Option<Py<PyAny>>) -> Option<Self> {
        let len = usize::try_from(len).ok().filter(|&len| len > 0)?;
        addr.checked_add(len as u64).filter(|_| addr != 0)?;
        Some(Self { addr, len, _owner: owner })
    }
}

// SAFETY: address and length never change. The range stays mapped and writable while the owner lives, because the owner exports
// it (buffer protocol, DLPack, an array that was asked for its address), and it lives as long as this value; without an
// owner the caller of register_memory promises the same until unregister_memory returns. This crate makes no Rust references to
// the bytes: it copies through raw pointers.
#[allow(unsafe_code)]
unsafe impl Memory for Lent {
    fn address(&self) -> u64 {
        self.addr
    }

    fn len(&self) -> usize {
        self.len
    }
}

/// Copies `bytes` to `addr` of this process; an error where that is not mapped and writable. The kernel copies, so a wrong
/// address is an error and not the end of the program.
pub(crate) fn poke(addr: u64, bytes: &[u8]) -> std::io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    through_kernel(local, addr, bytes.len(), libc::process_vm_writev)
}

/// Fills `bytes` from `addr` of this process; an error where that is not mapped.
pub(crate) fn peek(addr: u64, bytes: &mut [u8]) -> std::io::Result<()> {
    let local = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    through_kernel(local, addr, bytes.len(), libc::process_vm_readv)
}

type Copy = unsafe extern "C" fn(
    libc::pid_t,
    *const libc::iovec,
    libc::c_ulong,
    *const libc::iovec,
    libc::c_ulong,
    libc::c_ulong,
) -> libc::ssize_t;

#[allow(unsafe_code)]
fn through_kernel(local: libc::iovec, addr: u64, len: usize, copy: Copy) -> std::io::Result<()> {
    let remote = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len };
    if len == 0 {
        return Ok(());
    }
    // SAFETY: both vectors have one element that lives through the call. `local` is a live slice of the caller's, borrowed as the
    // direction needs it; the kernel checks the other side itself.
    let copied = unsafe { copy(libc::getpid(), &raw const local, 1, &raw const remote, 1, 0) };
    match usize::try_from(copied) {
        Ok(copied) if copied == len => Ok(()),
        Ok(_) => Err(std::io::Error::from_raw_os_error(libc::EFAULT)),
        Err(_) => Err(std::io::Error::last_os_error()),
    }
}
