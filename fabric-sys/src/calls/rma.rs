//! Remote memory access.

use core::ffi::c_void;

use libc::iovec;

use super::calls;
use crate::bindings::*;

calls! {
    /// Reads `len` bytes at the peer's `addr` (virtual or an offset, by the domain's MR mode) into `buf`.
    pub fn fi_read(
        ep: *mut fid_ep,
        buf: *mut c_void,
        len: usize,
        desc: *mut c_void,
        src_addr: fi_addr_t,
        addr: u64,
        key: u64,
        context: *mut c_void,
    ) -> isize {
        ep.rma.read(ep, buf, len, desc, src_addr, addr, key, context)
    }

    /// Reads into several buffers.
    pub fn fi_readv(
        ep: *mut fid_ep,
        iov: *const iovec,
        desc: *mut *mut c_void,
        count: usize,
        src_addr: fi_addr_t,
        addr: u64,
        key: u64,
        context: *mut c_void,
    ) -> isize {
        ep.rma.readv(ep, iov, desc, count, src_addr, addr, key, context)
    }

    /// Reads with flags and several remote ranges.
    pub fn fi_readmsg(ep: *mut fid_ep, msg: *const fi_msg_rma, flags: u64) -> isize {
        ep.rma.readmsg(ep, msg, flags)
    }

    /// Writes `len` bytes to the peer's `addr` (virtual or an offset, by the domain's MR mode).
    pub fn fi_write(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        desc: *mut c_void,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        context: *mut c_void,
    ) -> isize {
        ep.rma.write(ep, buf, len, desc, dest_addr, addr, key, context)
    }

    /// Writes from several buffers.
    pub fn fi_writev(
        ep: *mut fid_ep,
        iov: *const iovec,
        desc: *mut *mut c_void,
        count: usize,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        context: *mut c_void,
    ) -> isize {
        ep.rma.writev(ep, iov, desc, count, dest_addr, addr, key, context)
    }

    /// Writes with flags (`FI_MORE`, `FI_DELIVERY_COMPLETE`, …) and several remote ranges.
    pub fn fi_writemsg(ep: *mut fid_ep, msg: *const fi_msg_rma, flags: u64) -> isize {
        ep.rma.writemsg(ep, msg, flags)
    }

    /// Writes up to the inject size; the buffer may be reused at once and no completion is reported.
    pub fn fi_inject_write(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
    ) -> isize {
        ep.rma.inject(ep, buf, len, dest_addr, addr, key)
    }

    /// Writes, and raises a completion with `data` at the peer.
    pub fn fi_writedata(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        desc: *mut c_void,
        data: u64,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        context: *mut c_void,
    ) -> isize {
        ep.rma.writedata(ep, buf, len, desc, data, dest_addr, addr, key, context)
    }

    /// As [`fi_inject_write`], and raises a completion with `data` at the peer.
    pub fn fi_inject_writedata(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        data: u64,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
    ) -> isize {
        ep.rma.injectdata(ep, buf, len, data, dest_addr, addr, key)
    }
}
