//! Endpoints: open, bind, options, cancel.

use core::ffi::{c_int, c_void};
use core::ptr::null_mut;

use super::{calls, fi_alias};
use crate::bindings::*;

calls! {
    /// Opens an endpoint as `info` describes it. It is not enabled yet.
    pub fn fi_endpoint(
        domain: *mut fid_domain,
        info: *mut fi_info,
        ep: *mut *mut fid_ep,
        context: *mut c_void,
    ) -> c_int {
        domain.ops.endpoint(domain, info, ep, context)
    }

    /// Opens an endpoint that listens for connections.
    pub fn fi_passive_ep(
        fabric: *mut fid_fabric,
        info: *mut fi_info,
        pep: *mut *mut fid_pep,
        context: *mut c_void,
    ) -> c_int {
        fabric.ops.passive_ep(fabric, info, pep, context)
    }

    /// Binds an address vector, queue or counter to an endpoint, before [`fi_enable`].
    pub fn fi_ep_bind(ep: *mut fid_ep, bfid: *mut fid, flags: u64) -> c_int {
        ep.fid.bind(ep.cast(), bfid, flags)
    }

    /// Binds an event queue to a listening endpoint.
    pub fn fi_pep_bind(pep: *mut fid_pep, bfid: *mut fid, flags: u64) -> c_int {
        pep.fid.bind(pep.cast(), bfid, flags)
    }

    /// Makes an endpoint ready for data transfers.
    pub fn fi_enable(ep: *mut fid_ep) -> c_int { ep.fid.control(ep.cast(), FI_ENABLE, null_mut()) }

    /// Asks for an operation (by its context) to be cancelled; if it is, it completes with `FI_ECANCELED`.
    pub fn fi_cancel(fid: fid_t, context: *mut c_void) -> isize {
        (fid as fid_ep).ops.cancel(fid, context)
    }

    /// Sets an option, e.g. `FI_OPT_EFA_USE_DEVICE_RDMA` at level `FI_OPT_ENDPOINT`; some only before [`fi_enable`].
    pub fn fi_setopt(
        fid: fid_t,
        level: c_int,
        optname: c_int,
        optval: *const c_void,
        optlen: usize,
    ) -> c_int {
        (fid as fid_ep).ops.setopt(fid, level, optname, optval, optlen)
    }

    /// Reads an option; `optlen` is the room at `optval` and becomes the option's length.
    pub fn fi_getopt(
        fid: fid_t,
        level: c_int,
        optname: c_int,
        optval: *mut c_void,
        optlen: *mut usize,
    ) -> c_int {
        (fid as fid_ep).ops.getopt(fid, level, optname, optval, optlen)
    }
}

/// Makes another name for an endpoint, with default flags of its own.
///
/// # Safety
/// [The contract of all calls](super).
#[inline]
pub unsafe fn fi_ep_alias(ep: *mut fid_ep, alias_ep: *mut *mut fid_ep, flags: u64) -> c_int {
    let mut alias: *mut fid = null_mut();
    // SAFETY: the same contract; an endpoint begins with its `fid`.
    let ret = unsafe { fi_alias(ep.cast(), &raw mut alias, flags) };
    if ret == 0 {
        // SAFETY: the caller's out-pointer.
        unsafe { *alias_ep = alias.cast() };
    }
    ret
}

/// As [`fi_endpoint`], with flags (not in every library; 0 always works).
///
/// # Safety
/// [The contract of all calls](super).
#[inline]
pub unsafe fn fi_endpoint2(
    domain: *mut fid_domain,
    info: *mut fi_info,
    ep: *mut *mut fid_ep,
    flags: u64,
    context: *mut c_void,
) -> c_int {
    if flags == 0 {
        // SAFETY: the same contract.
        unsafe { fi_endpoint(domain, info, ep, context) }
    } else {
        // SAFETY: the same contract.
        unsafe { endpoint2(domain, info, ep, flags, context) }
    }
}

calls! {
    /// The entry behind [`fi_endpoint2`].
    fn endpoint2(
        domain: *mut fid_domain,
        info: *mut fi_info,
        ep: *mut *mut fid_ep,
        flags: u64,
        context: *mut c_void,
    ) -> c_int {
        newer domain.ops.endpoint2(domain, info, ep, flags, context)
    }
}
