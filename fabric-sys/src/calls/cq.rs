//! Completion queues.

use core::ffi::{c_char, c_int, c_void};

use super::calls;
use crate::FI_ADDR_NOTAVAIL;
use crate::bindings::*;

calls! {
    /// Opens a completion queue.
    pub fn fi_cq_open(
        domain: *mut fid_domain,
        attr: *mut fi_cq_attr,
        cq: *mut *mut fid_cq,
        context: *mut c_void,
    ) -> c_int {
        domain.ops.cq_open(domain, attr, cq, context)
    }

    /// Reads up to `count` completions in the format of the queue; also drives the provider's progress.
    /// `-FI_EAGAIN`: none there. `-FI_EAVAIL`: an error is first, see [`fi_cq_readerr`].
    pub fn fi_cq_read(cq: *mut fid_cq, buf: *mut c_void, count: usize) -> isize {
        cq.ops.read(cq, buf, count)
    }

    /// As [`fi_cq_read`], with the source of each received message.
    pub fn fi_cq_readfrom(
        cq: *mut fid_cq,
        buf: *mut c_void,
        count: usize,
        src_addr: *mut fi_addr_t,
    ) -> isize {
        cq.ops.readfrom(cq, buf, count, src_addr)
    }

    /// As [`fi_cq_read`], but waits up to `timeout` milliseconds (negative: for ever) for the first.
    pub fn fi_cq_sread(
        cq: *mut fid_cq,
        buf: *mut c_void,
        count: usize,
        cond: *const c_void,
        timeout: c_int,
    ) -> isize {
        cq.ops.sread(cq, buf, count, cond, timeout)
    }

    /// As [`fi_cq_readfrom`], but waits up to `timeout` milliseconds (negative: for ever) for the first.
    pub fn fi_cq_sreadfrom(
        cq: *mut fid_cq,
        buf: *mut c_void,
        count: usize,
        src_addr: *mut fi_addr_t,
        cond: *const c_void,
        timeout: c_int,
    ) -> isize {
        cq.ops.sreadfrom(cq, buf, count, src_addr, cond, timeout)
    }

    /// Wakes up whoever waits in [`fi_cq_sread`].
    pub fn fi_cq_signal(cq: *mut fid_cq) -> c_int { cq.ops.signal(cq) }

    /// The provider's text for a `prov_errno`; written to `buf` where there is room, valid until the next call.
    pub fn fi_cq_strerror(
        cq: *mut fid_cq,
        prov_errno: c_int,
        err_data: *const c_void,
        buf: *mut c_char,
        len: usize,
    ) -> *const c_char {
        cq.ops.strerror(cq, prov_errno, err_data, buf, len)
    }
}

/// Reads the error completion that is first in the queue; returns 1, or `-FI_EAGAIN` if there is none.
///
/// `src_addr` is preset to "not available", as the C function does, for providers that leave it alone. The caller sets
/// `err_data_size` (0: a pointer into the provider's memory comes back, valid until the next read).
///
/// # Safety
/// [The contract of all calls](super); `buf` is null or points to a whole entry.
#[inline]
pub unsafe fn fi_cq_readerr(cq: *mut fid_cq, buf: *mut fi_cq_err_entry, flags: u64) -> isize {
    if !buf.is_null() {
        // SAFETY: not null, so a whole entry, says the caller.
        unsafe { (*buf).src_addr = FI_ADDR_NOTAVAIL };
    }
    // SAFETY: the same contract.
    unsafe { readerr(cq, buf, flags) }
}

calls! {
    /// The entry behind [`fi_cq_readerr`].
    fn readerr(cq: *mut fid_cq, buf: *mut fi_cq_err_entry, flags: u64) -> isize {
        cq.ops.readerr(cq, buf, flags)
    }
}
