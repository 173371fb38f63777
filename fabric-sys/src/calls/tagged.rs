//! Tagged messages.

use core::ffi::c_void;

use libc::iovec;

use super::calls;
use crate::bindings::*;

calls! {
    /// Posts a buffer for a message whose tag equals `tag` in all bits that are not set in `ignore`.
    pub fn fi_trecv(
        ep: *mut fid_ep,
        buf: *mut c_void,
        len: usize,
        desc: *mut c_void,
        src_addr: fi_addr_t,
        tag: u64,
        ignore: u64,
        context: *mut c_void,
    ) -> isize {
        ep.tagged.recv(ep, buf, len, desc, src_addr, tag, ignore, context)
    }

    /// Posts several buffers for one tagged message.
    pub fn fi_trecvv(
        ep: *mut fid_ep,
        iov: *const iovec,
        desc: *mut *mut c_void,
        count: usize,
        src_addr: fi_addr_t,
        tag: u64,
        ignore: u64,
        context: *mut c_void,
    ) -> isize {
        ep.tagged.recvv(ep, iov, desc, count, src_addr, tag, ignore, context)
    }

    /// Posts a tagged receive with flags (`FI_PEEK`, `FI_CLAIM`, `FI_DISCARD`).
    pub fn fi_trecvmsg(ep: *mut fid_ep, msg: *const fi_msg_tagged, flags: u64) -> isize {
        ep.tagged.recvmsg(ep, msg, flags)
    }

    /// Sends `len` bytes with a tag.
    pub fn fi_tsend(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        desc: *mut c_void,
        dest_addr: fi_addr_t,
        tag: u64,
        context: *mut c_void,
    ) -> isize {
        ep.tagged.send(ep, buf, len, desc, dest_addr, tag, context)
    }

    /// Gathers several buffers into one tagged message.
    pub fn fi_tsendv(
        ep: *mut fid_ep,
        iov: *const iovec,
        desc: *mut *mut c_void,
        count: usize,
        dest_addr: fi_addr_t,
        tag: u64,
        context: *mut c_void,
    ) -> isize {
        ep.tagged.sendv(ep, iov, desc, count, dest_addr, tag, context)
    }

    /// Sends a tagged message with flags.
    pub fn fi_tsendmsg(ep: *mut fid_ep, msg: *const fi_msg_tagged, flags: u64) -> isize {
        ep.tagged.sendmsg(ep, msg, flags)
    }

    /// Sends up to the inject size with a tag; the buffer may be reused at once, no completion is reported.
    pub fn fi_tinject(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        dest_addr: fi_addr_t,
        tag: u64,
    ) -> isize {
        ep.tagged.inject(ep, buf, len, dest_addr, tag)
    }

    /// Sends with a tag, and puts `data` into the receiver's completion.
    pub fn fi_tsenddata(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        desc: *mut c_void,
        data: u64,
        dest_addr: fi_addr_t,
        tag: u64,
        context: *mut c_void,
    ) -> isize {
        ep.tagged.senddata(ep, buf, len, desc, data, dest_addr, tag, context)
    }

    /// As [`fi_tinject`], and puts `data` into the receiver's completion.
    pub fn fi_tinjectdata(
        ep: *mut fid_ep,
        buf: *const c_void,
        len: usize,
        data: u64,
        dest_addr: fi_addr_t,
        tag: u64,
    ) -> isize {
        ep.tagged.injectdata(ep, buf, len, data, dest_addr, tag)
    }
}

/// The tag of the format `FI_TAG_MPI`: an MPI tag and a payload type.
#[inline]
#[must_use]
pub const fn fi_tag_mpi(tag: i32, payload_id: u8) -> u64 {
    ((payload_id as u64) << 32) | tag.cast_unsigned() as u64
}
