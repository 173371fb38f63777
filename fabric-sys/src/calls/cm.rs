//! Names of endpoints, and connections of those that need them.

use core::ffi::{c_int, c_void};

use super::calls;
use crate::bindings::*;

calls! {
    /// Copies the endpoint's own address to `addr`; `addrlen` is the room there and becomes the full length.
    /// `-FI_ETOOSMALL` if it did not fit.
    pub fn fi_getname(fid: fid_t, addr: *mut c_void, addrlen: *mut usize) -> c_int {
        (fid as fid_ep).cm.getname(fid, addr, addrlen)
    }

    /// Gives the endpoint an address, before it is enabled.
    pub fn fi_setname(fid: fid_t, addr: *mut c_void, addrlen: usize) -> c_int {
        (fid as fid_ep).cm.setname(fid, addr, addrlen)
    }

    /// Copies the address of a connected endpoint's peer.
    pub fn fi_getpeer(ep: *mut fid_ep, addr: *mut c_void, addrlen: *mut usize) -> c_int {
        ep.cm.getpeer(ep, addr, addrlen)
    }

    /// Listens for connection requests.
    pub fn fi_listen(pep: *mut fid_pep) -> c_int { pep.cm.listen(pep) }

    /// Connects to a listening endpoint.
    pub fn fi_connect(
        ep: *mut fid_ep,
        addr: *const c_void,
        param: *const c_void,
        paramlen: usize,
    ) -> c_int {
        ep.cm.connect(ep, addr, param, paramlen)
    }

    /// Accepts a connection request.
    pub fn fi_accept(ep: *mut fid_ep, param: *const c_void, paramlen: usize) -> c_int {
        ep.cm.accept(ep, param, paramlen)
    }

    /// Refuses a connection request.
    pub fn fi_reject(pep: *mut fid_pep, handle: fid_t, param: *const c_void, paramlen: usize) -> c_int {
        pep.cm.reject(pep, handle, param, paramlen)
    }

    /// Ends a connection.
    pub fn fi_shutdown(ep: *mut fid_ep, flags: u64) -> c_int { ep.cm.shutdown(ep, flags) }

    /// Joins a multicast group.
    pub fn fi_join(
        ep: *mut fid_ep,
        addr: *const c_void,
        flags: u64,
        mc: *mut *mut fid_mc,
        context: *mut c_void,
    ) -> c_int {
        newer ep.cm.join(ep, addr, flags, mc, context)
    }
}

/// The address of a multicast group.
///
/// # Safety
/// `mc` is an open group.
#[inline]
#[must_use]
pub unsafe fn fi_mc_addr(mc: *mut fid_mc) -> fi_addr_t {
    // SAFETY: open, says the caller.
    unsafe { (*mc).fi_addr }
}
