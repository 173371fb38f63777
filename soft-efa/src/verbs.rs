//! The verbs: the functions of libibverbs.so.1 and, under the prefix `soft_efa_`, those of libefa.so.1.
//!
//! libefa.so.1 itself is a file of jumps to the latter (`native/libefa.c`): the cards' state must exist once in a process, so it lives
//! behind one of the two names. What these functions do with wrong arguments is what rdma-core's efa provider does: an errno.
//!
//! Each is called by C code, which vouches for its pointers as the verbs' manual pages say; the functions' own `# Safety` is that.
#![allow(clippy::missing_safety_doc, missing_docs, unreachable_pub)]

pub mod context;
pub mod efadv;
pub mod memory;
pub mod poll;
pub mod post;
pub mod queues;
pub mod unsupported;

use std::ffi::c_int;

/// Sets the calling thread's errno.
pub(crate) fn set_errno(errno: c_int) {
    // SAFETY: the location is valid for the calling thread.
    unsafe { *libc::__errno_location() = errno };
}

/// Null, with errno set: how verbs that make things fail.
pub(crate) fn fail<T>(errno: c_int) -> *mut T {
    set_errno(errno);
    std::ptr::null_mut()
}

/// The errno of an I/O error.
pub(crate) fn errno_of(error: &std::io::Error) -> c_int {
    error.raw_os_error().unwrap_or(libc::EIO)
}

/// Says once what the program asked of us that a card cannot do.
pub(crate) fn refuse(what: &str) -> c_int {
    eprintln!("soft-efa: {what}");
    libc::EOPNOTSUPP
}
