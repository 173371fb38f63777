//! Event queues.

use core::ffi::{c_char, c_int, c_void};

use super::calls;
use crate::bindings::*;

calls! {
    /// Opens an event queue: connection events, asynchronous registrations and insertions, link errors.
    pub fn fi_eq_open(
        fabric: *mut fid_fabric,
        attr: *mut fi_eq_attr,
        eq: *mut *mut fid_eq,
        context: *mut c_void,
    ) -> c_int {
        fabric.ops.eq_open(fabric, attr, eq, context)
    }

    /// Reads one event; returns the length of what it wrote to `buf`.
    /// `-FI_EAGAIN`: none there. `-FI_EAVAIL`: an error is first, see [`fi_eq_readerr`].
    pub fn fi_eq_read(
        eq: *mut fid_eq,
        event: *mut u32,
        buf: *mut c_void,
        len: usize,
        flags: u64,
    ) -> isize {
        eq.ops.read(eq, event, buf, len, flags)
    }

    /// Reads the error event that is first in the queue.
    pub fn fi_eq_readerr(eq: *mut fid_eq, buf: *mut fi_eq_err_entry, flags: u64) -> isize {
        eq.ops.readerr(eq, buf, flags)
    }

    /// Puts an event of the application into the queue.
    pub fn fi_eq_write(eq: *mut fid_eq, event: u32, buf: *const c_void, len: usize, flags: u64) -> isize {
        eq.ops.write(eq, event, buf, len, flags)
    }

    /// As [`fi_eq_read`], but waits up to `timeout` milliseconds (negative: for ever).
    pub fn fi_eq_sread(
        eq: *mut fid_eq,
        event: *mut u32,
        buf: *mut c_void,
        len: usize,
        timeout: c_int,
        flags: u64,
    ) -> isize {
        eq.ops.sread(eq, event, buf, len, timeout, flags)
    }

    /// The provider's text for a `prov_errno`.
    pub fn fi_eq_strerror(
        eq: *mut fid_eq,
        prov_errno: c_int,
        err_data: *const c_void,
        buf: *mut c_char,
        len: usize,
    ) -> *const c_char {
        eq.ops.strerror(eq, prov_errno, err_data, buf, len)
    }
}
