//! Fabric and domain: what is opened first.

use core::ffi::{c_int, c_void};

use super::calls;
use crate::bindings::*;

calls! {
    /// Opens a domain (a network card, or a part of one) of the fabric, as `info` describes it.
    pub fn fi_domain(
        fabric: *mut fid_fabric,
        info: *mut fi_info,
        domain: *mut *mut fid_domain,
        context: *mut c_void,
    ) -> c_int {
        fabric.ops.domain(fabric, info, domain, context)
    }

    /// Binds an event queue to the domain, for asynchronous registrations (`FI_REG_MR` in `flags`).
    pub fn fi_domain_bind(domain: *mut fid_domain, fid: *mut fid, flags: u64) -> c_int {
        domain.fid.bind(domain.cast(), fid, flags)
    }

    /// May the caller block on the wait objects of these queues? `-FI_EAGAIN` if events are there already.
    pub fn fi_trywait(fabric: *mut fid_fabric, fids: *mut *mut fid, count: c_int) -> c_int {
        fabric.ops.trywait(fabric, fids, count)
    }
}

/// As [`fi_domain`], with flags (not in every library; 0 always works).
///
/// # Safety
/// [The contract of all calls](super).
#[inline]
pub unsafe fn fi_domain2(
    fabric: *mut fid_fabric,
    info: *mut fi_info,
    domain: *mut *mut fid_domain,
    flags: u64,
    context: *mut c_void,
) -> c_int {
    if flags == 0 {
        // SAFETY: the same contract.
        unsafe { fi_domain(fabric, info, domain, context) }
    } else {
        // SAFETY: the same contract.
        unsafe { domain2(fabric, info, domain, flags, context) }
    }
}

calls! {
    /// The entry behind [`fi_domain2`].
    fn domain2(
        fabric: *mut fid_fabric,
        info: *mut fi_info,
        domain: *mut *mut fid_domain,
        flags: u64,
        context: *mut c_void,
    ) -> c_int {
        newer fabric.ops.domain2(fabric, info, domain, flags, context)
    }
}
