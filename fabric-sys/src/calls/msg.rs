//! Messages.

use core::ffi::c_void;

use libc::iovec;

use super::calls;
use crate::bindings::*;

calls! {
    /// Posts a buffer for one message (or several, with `FI_MULTI_RECV`).
    pub fn fi_recv(
        ep: *mut fid_ep,
        buf: *mut c_void,
        len: usize,
        desc: *mut c_void,
        src_addr: fi_addr_t,
        context: *mut c_void,
    ) -> isize {
        ep.msg.recv(ep, buf, len, desc, src_addr, context)
    }

    /// Posts several buffers for one message.
    pub fn fi_recvv(
        ep: *mut fid_ep,
        iov: *const iovec,
        desc: *mut *mut c_void,
        count: usize,
        src_addr: fi_addr_t,
        context: *mut c_void,
    ) -> isize {
        ep.msg.recvv(ep, iov, desc, count, src_addr, context)
    }

    /// Posts a receive with flags.
    pub fn fi_recvmsg(ep: *mut fid_ep, msg: *const fi_msg, flags: u64) -> isize {
        ep.msg.recvmsg(ep, msg, flags)
    }

    /// Sends `len` bytes.
    pub fn fi_send(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        desc: *mut c_void,
        dest_addr: fi_addr_t,
        context: *mut c_void,
    ) -> isize {
        ep.msg.send(ep, buf, len, desc, dest_addr, context)
    }

    /// Gathers several buffers into one message.
    pub fn fi_sendv(
        ep: *mut fid_ep,
        iov: *const iovec,
        desc: *mut *mut c_void,
        count: usize,
        dest_addr: fi_addr_t,
        context: *mut c_void,
    ) -> isize {
        ep.msg.sendv(ep, iov, desc, count, dest_addr, context)
    }

    /// Sends with flags.
    pub fn fi_sendmsg(ep: *mut fid_ep, msg: *const fi_msg, flags: u64) -> isize {
        ep.msg.sendmsg(ep, msg, flags)
    }

    /// Sends up to the inject size; the buffer may be reused at once and no completion is reported.
    pub fn fi_inject(ep: *mut fid_ep, buf: *const c_void, len: usize, dest_addr: fi_addr_t) -> isize {
        ep.msg.inject(ep, buf, len, dest_addr)
    }

    /// Sends, and puts `data` into the receiver's completion.
    pub fn fi_senddata(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        desc: *mut c_void,
        data: u64,
        dest_addr: fi_addr_t,
        context: *mut c_void,
    ) -> isize {
        ep.msg.senddata(ep, buf, len, desc, data, dest_addr, context)
    }

    /// As [`fi_inject`], and puts `data` into the receiver's completion.
    pub fn fi_injectdata(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        data: u64,
        dest_addr: fi_addr_t,
    ) -> isize {
        ep.msg.injectdata(ep, buf, len, data, dest_addr)
    }
}
