//! The one place that touches memory through raw pointers. Everything else in this crate is safe code.
//!
//! Soundness rests on two things: [`Memory`] is an unsafe trait whose implementor promises a mapped range that nobody
//! borrows, and each function here takes the `&dyn Memory` itself and checks offset and length against it once more, so
//! that no caller can make it touch a byte outside.
#![allow(unsafe_code)]

use std::io;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};

use crate::memory::Memory;

/// Implements [`Memory`] for a type with a field that knows `address()` and `len()` of memory that it keeps alive.
macro_rules! owned_memory {
    ($type:ty, $field:ident) => {
        // SAFETY: the field keeps the range mapped at the same address until it is dropped, never lends it as a
        // reference, and address and length are fixed when it is made (`Mapping`), or the caller of `foreign_memory`
        // promised so (`ForeignRange`).
        #[allow(unsafe_code)]
        unsafe impl Memory for $type {
            fn address(&self) -> u64 {
                self.$field.address()
            }
            fn len(&self) -> usize {
                self.$field.len()
            }
        }
    };
}
pub(crate) use owned_memory;

/// An anonymous private mapping, unmapped on drop.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    len: usize,
    mapped: usize,
}

// SAFETY: the mapping is plain memory without thread affinity; it is only accessed by copying through raw pointers.
unsafe impl Send for Mapping {}
// SAFETY: as above; concurrent copies are the contract of `Memory`.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(len: usize, huge: bool) -> io::Result<Self> {
        // Huge pages of up to 1 GiB may be the default: unmapping wants a multiple of their size.
        let page = if huge { huge_page_len()? } else { rustix::param::page_size() };
        let mapped =
            len.checked_next_multiple_of(page).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | if huge { libc::MAP_HUGETLB } else { 0 };
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice touches nothing that exists.
        let start =
            unsafe { libc::mmap(ptr::null_mut(), mapped, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or_else(|| io::Error::other("mmap returned null"))?;
        Ok(Self { start, len, mapped })
    }

    pub(crate) fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made; nobody holds a pointer into it once its owner is dropped.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.mapped) };
    }
}

fn huge_page_len() -> io::Result<usize> {
    let text = std::fs::read_to_string("/proc/meminfo")?;
    text.lines()
        .find_map(|l| l.strip_prefix("Hugepagesize:"))
        .and_then(|v| v.trim().strip_suffix("kB"))
        .and_then(|v| v.trim().parse::<usize>().ok())
        .map(|kib| kib * 1024)
        .ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
}

/// A range that somebody else keeps alive.
#[derive(Debug)]
pub(crate) struct ForeignRange {
    start: *mut u8,
    len: usize,
}

// SAFETY: only copied to and from through raw pointers; the maker promised that this is allowed until it is dropped.
unsafe impl Send for ForeignRange {}
// SAFETY: as above.
unsafe impl Sync for ForeignRange {}

impl ForeignRange {
    pub(crate) fn new(start: *mut u8, len: usize) -> Self {
        Self { start, len }
    }
    pub(crate) fn address(&self) -> u64 {
        self.start as u64
    }
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

/// The pointer to `offset..offset + len` of host memory; panics outside, which a caller must have excluded before.
fn pointer(memory: &dyn Memory, offset: usize, len: usize) -> *mut u8 {
    let inside = offset.checked_add(len).is_some_and(|end| end <= memory.len());
    assert!(inside && memory.device().is_none(), "range was not checked against its region");
    (memory.address() as usize + offset) as *mut u8
}

/// Copies `bytes` to `offset` of host memory.
pub(crate) fn copy_in(memory: &dyn Memory, offset: usize, bytes: &[u8]) {
    let to = pointer(memory, offset, bytes.len());
    // SAFETY: `to` is valid for these bytes by `Memory`'s contract and the check in `pointer`; `copy` allows overlap.
    unsafe { ptr::copy(bytes.as_ptr(), to, bytes.len()) };
}

/// Fills `bytes` from `offset` of host memory.
pub(crate) fn copy_out(memory: &dyn Memory, offset: usize, bytes: &mut [u8]) {
    let from = pointer(memory, offset, bytes.len());
    // SAFETY: as in `copy_in`.
    unsafe { ptr::copy(from, bytes.as_mut_ptr(), bytes.len()) };
}

/// Copies between two registered host memories, which may be the same.
pub(crate) fn copy_between(
    from: &dyn Memory,
    from_offset: usize,
    to: &dyn Memory,
    to_offset: usize,
    len: usize,
) {
    let source = pointer(from, from_offset, len);
    let target = pointer(to, to_offset, len);
    // SAFETY: both ranges are valid by `Memory`'s contract and the check in `pointer`; `copy` allows overlap.
    unsafe { ptr::copy(source, target, len) };
}

/// Parts of one vectored call: at most this many; Linux allows 1024 (`IOV_MAX`).
pub(crate) const MAX_PARTS: usize = 256;

/// The list of parts of one vectored read or write. It borrows everything that it points to.
pub(crate) struct Parts<'a> {
    /// The first `count` are initialised; clearing them all first would cost more than a small message.
    list: [MaybeUninit<libc::iovec>; MAX_PARTS],
    count: usize,
    bytes: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Parts<'a> {
    pub(crate) fn new() -> Self {
        Self { list: [const { MaybeUninit::uninit() }; MAX_PARTS], count: 0, bytes: 0, borrowed: PhantomData }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.count == MAX_PARTS
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    fn list(&self) -> &[libc::iovec] {
        // SAFETY: `push` has initialised the first `count` places, and `MaybeUninit` has the layout of what it holds.
        unsafe { std::slice::from_raw_parts(self.list.as_ptr().cast(), self.count) }
    }

    fn push(&mut self, base: *mut u8, len: usize) {
        assert!(self.count < MAX_PARTS, "caller asks is_full() first");
        if len > 0 {
            self.list[self.count].write(libc::iovec { iov_base: base.cast(), iov_len: len });
            self.count += 1;
            self.bytes += len;
        }
    }

    pub(crate) fn push_bytes(&mut self, bytes: &'a mut [u8]) {
        self.push(bytes.as_mut_ptr(), bytes.len());
    }

    /// Adds registered memory, to be sent from or received into.
    pub(crate) fn push_memory(&mut self, memory: &'a dyn Memory, offset: usize, len: usize) {
        self.push(pointer(memory, offset, len), len);
    }
}

/// A list of parts to send.
pub(crate) struct Gather<'a>(Parts<'a>);

impl<'a> Gather<'a> {
    pub(crate) fn new() -> Self {
        Self(Parts::new())
    }
    pub(crate) fn is_full(&self) -> bool {
        self.0.is_full()
    }
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }
    pub(crate) fn push_bytes(&mut self, bytes: &'a [u8]) {
        // The kernel only reads through this pointer: `send` is the one consumer.
        self.0.push(bytes.as_ptr().cast_mut(), bytes.len());
    }
    pub(crate) fn push_memory(&mut self, memory: &'a dyn Memory, offset: usize, len: usize) {
        self.0.push_memory(memory, offset, len);
    }

    /// Copies the first bytes of the parts into `out` instead of sending them, at most `limit`; returns how many.
    pub(crate) fn copy_to(&self, out: &mut [u8], limit: usize) -> usize {
        let room = limit.min(out.len());
        let mut at = 0;
        for part in self.0.list() {
            let n = part.iov_len.min(room - at);
            // SAFETY: the part is valid for reads of `iov_len` bytes while `self` borrows it, and `out` has room for
            // `n` more bytes behind `at`.
            unsafe { ptr::copy(part.iov_base.cast::<u8>(), out[at..at + n].as_mut_ptr(), n) };
            at += n;
        }
        at
    }

    /// Sends without blocking. An error of kind `WouldBlock` says that the socket's buffer is full.
    pub(crate) fn send(&self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
        if let [one] = self.0.list() {
            // SAFETY: the part is valid for reads while `self` borrows it.
            return retry(|| unsafe { send(socket, one.iov_base, one.iov_len, flags) });
        }
        let message = message(&self.0);
        // SAFETY: the header points to `count` parts, each valid for reads while `self` borrows it.
        retry(|| unsafe { libc::syscall(libc::SYS_sendmsg, socket.as_raw_fd(), &raw const message, flags) })
    }
}

/// A list of places to receive into.
pub(crate) struct Scatter<'a>(Parts<'a>);

impl<'a> Scatter<'a> {
    pub(crate) fn new() -> Self {
        Self(Parts::new())
    }
    pub(crate) fn is_full(&self) -> bool {
        self.0.is_full()
    }
    pub(crate) fn bytes(&self) -> usize {
        self.0.bytes()
    }
    pub(crate) fn push_bytes(&mut self, bytes: &'a mut [u8]) {
        self.0.push(bytes.as_mut_ptr(), bytes.len());
    }
    pub(crate) fn push_memory(&mut self, memory: &'a dyn Memory, offset: usize, len: usize) {
        self.0.push_memory(memory, offset, len);
    }

    /// Receives what is there, without blocking. Zero means that the peer has closed its side.
    pub(crate) fn receive(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        if let [one] = self.0.list() {
            let flags = libc::MSG_DONTWAIT;
            // SAFETY: the part is valid for writes while `self` borrows it.
            return retry(|| unsafe { receive(socket, one.iov_base, one.iov_len, flags) });
        }
        let mut message = message(&self.0);
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: the header points to `count` parts, each valid for writes while `self` borrows it.
        retry(|| unsafe { libc::syscall(libc::SYS_recvmsg, socket.as_raw_fd(), &raw mut message, flags) })
    }
}

/// Receives into `room`, blocking until there is something or the socket's receive timeout is over.
pub(crate) fn receive_blocking(socket: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<usize> {
    // SAFETY: `room` is valid for writes of its length.
    retry(|| unsafe { receive(socket, room.as_mut_ptr().cast(), room.len(), 0) })
}

// The C library's own functions can be cancelled by other threads, which costs two more steps around every call: 50 ns that a
// small request would notice. The plain calls cannot.

/// # Safety
/// `from` is valid for reads of `len` bytes.
unsafe fn send(
    socket: BorrowedFd<'_>,
    from: *const libc::c_void,
    len: usize,
    flags: libc::c_int,
) -> libc::c_long {
    let (nobody, none) = (ptr::null::<libc::sockaddr>(), 0_usize);
    // SAFETY: the caller's promise; no address is given.
    unsafe { libc::syscall(libc::SYS_sendto, socket.as_raw_fd(), from, len, flags, nobody, none) }
}

/// # Safety
/// `to` is valid for writes of `len` bytes.
unsafe fn receive(
    socket: BorrowedFd<'_>,
    to: *mut libc::c_void,
    len: usize,
    flags: libc::c_int,
) -> libc::c_long {
    let nobody = ptr::null_mut::<libc::sockaddr>();
    // SAFETY: the caller's promise; no address is asked for.
    unsafe { libc::syscall(libc::SYS_recvfrom, socket.as_raw_fd(), to, len, flags, nobody, nobody) }
}

fn message(parts: &Parts<'_>) -> libc::msghdr {
    // SAFETY: `msghdr` is plain data for which all zeroes mean "nothing".
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.list().as_ptr().cast_mut();
    message.msg_iovlen = parts.count;
    message
}

fn retry(mut call: impl FnMut() -> libc::c_long) -> io::Result<usize> {
    loop {
        if let Ok(n) = usize::try_from(call()) {
            return Ok(n);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Which way a copy between two processes goes, seen from this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HostCopy {
    /// From the other process to our memory.
    In,
    /// From our memory to the other process.
    Out,
}

/// Copies between a list of our registered ranges and a list of ranges of another process, and returns how many bytes
/// were copied. The kernel checks the other side's addresses.
pub(crate) fn host_copy(
    pid: i32,
    way: HostCopy,
    ours: &Parts<'_>,
    theirs: &[(u64, u64)],
) -> io::Result<usize> {
    let mut remote = [libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 }; MAX_PARTS];
    let count = theirs.len().min(MAX_PARTS);
    for (slot, &(addr, len)) in remote.iter_mut().zip(theirs) {
        *slot = libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len as usize };
    }
    let (local, locals) = (ours.list().as_ptr(), ours.count as libc::c_ulong);
    let (other, others) = (remote.as_ptr(), count as libc::c_ulong);
    retry(|| match way {
        // SAFETY: our parts are valid for writes while `ours` borrows them; the kernel validates the other process's.
        HostCopy::In => unsafe {
            libc::process_vm_readv(pid, local, locals, other, others, 0) as libc::c_long
        },
        // SAFETY: our parts are valid for reads while `ours` borrows them; the kernel validates the other process's.
        HostCopy::Out => unsafe {
            libc::process_vm_writev(pid, local, locals, other, others, 0) as libc::c_long
        },
    })
}

/// Sets an option of level `SOL_SOCKET` whose value is a 32-bit number, for the few that no safe wrapper has.
pub(crate) fn set_socket_option(socket: &impl AsRawFd, name: libc::c_int, value: u32) -> io::Result<()> {
    let len = size_of::<u32>() as libc::socklen_t;
    // SAFETY: the value lives through the call and `len` is its length.
    let rc = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw const value).cast(), len)
    };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Reads such an option back.
#[cfg(test)]
pub(crate) fn socket_option(socket: &impl AsRawFd, name: libc::c_int) -> io::Result<u32> {
    let mut value = 0_u32;
    let mut len = size_of::<u32>() as libc::socklen_t;
    // SAFETY: `value` has room for the `len` bytes that the kernel may write.
    let rc = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, name, (&raw mut value).cast(), &raw mut len)
    };
    if rc == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
