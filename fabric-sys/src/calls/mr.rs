//! Memory regions.

use core::ffi::{c_int, c_void};
use core::ptr::{from_mut, null_mut};

use libc::iovec;

use super::{calls, fi_control};
use crate::bindings::*;

calls! {
    /// Registers `len` bytes at `buf` for `acs` (`FI_SEND`, `FI_REMOTE_WRITE`, …). May take seconds.
    pub fn fi_mr_reg(
        domain: *mut fid_domain,
        buf: *const c_void,
        len: usize,
        acs: u64,
        offset: u64,
        requested_key: u64,
        flags: u64,
        mr: *mut *mut fid_mr,
        context: *mut c_void,
    ) -> c_int {
        domain.mr.reg(domain.cast(), buf, len, acs, offset, requested_key, flags, mr, context)
    }

    /// Registers several ranges as one region.
    pub fn fi_mr_regv(
        domain: *mut fid_domain,
        iov: *const iovec,
        count: usize,
        acs: u64,
        offset: u64,
        requested_key: u64,
        flags: u64,
        mr: *mut *mut fid_mr,
        context: *mut c_void,
    ) -> c_int {
        domain.mr.regv(domain.cast(), iov, count, acs, offset, requested_key, flags, mr, context)
    }

    /// Registers memory described by attributes: device memory, a dmabuf, authorisation keys.
    pub fn fi_mr_regattr(
        domain: *mut fid_domain,
        attr: *const fi_mr_attr,
        flags: u64,
        mr: *mut *mut fid_mr,
    ) -> c_int {
        domain.mr.regattr(domain.cast(), attr, flags, mr)
    }

    /// Binds a region to an endpoint (`FI_MR_ENDPOINT`) or a counter, before [`fi_mr_enable`].
    pub fn fi_mr_bind(mr: *mut fid_mr, bfid: *mut fid, flags: u64) -> c_int {
        mr.fid.bind(mr.cast(), bfid, flags)
    }

    /// Makes a region usable that was bound to an endpoint.
    pub fn fi_mr_enable(mr: *mut fid_mr) -> c_int { mr.fid.control(mr.cast(), FI_ENABLE, null_mut()) }
}

/// The local descriptor of a region, which data transfers take as `desc` where the provider wants `FI_MR_LOCAL`.
///
/// # Safety
/// `mr` is an open region.
#[inline]
#[must_use]
pub unsafe fn fi_mr_desc(mr: *mut fid_mr) -> *mut c_void {
    // SAFETY: open, says the caller.
    unsafe { (*mr).mem_desc }
}

/// The key that peers need; [`FI_KEY_NOTAVAIL`](crate::FI_KEY_NOTAVAIL) where it is longer (see [`fi_mr_raw_attr()`]).
///
/// # Safety
/// `mr` is an open region.
#[inline]
#[must_use]
pub unsafe fn fi_mr_key(mr: *mut fid_mr) -> u64 {
    // SAFETY: open, says the caller.
    unsafe { (*mr).key }
}

/// Copies out a key that is longer than 64 bits, and the region's base address.
///
/// # Safety
/// [The contract of all calls](super); `raw_key` has room for `*key_size` bytes.
#[inline]
pub unsafe fn fi_mr_raw_attr(
    mr: *mut fid_mr,
    base_addr: *mut u64,
    raw_key: *mut u8,
    key_size: *mut usize,
    flags: u64,
) -> c_int {
    let mut attr = fi_mr_raw_attr { flags, base_addr, raw_key, key_size };
    // SAFETY: the caller's pointers are live; the command reads `attr` during the call only.
    unsafe { fi_control(mr.cast(), FI_GET_RAW_MR, from_mut(&mut attr).cast()) }
}

/// Makes a 64-bit key of a peer's raw key.
///
/// # Safety
/// [The contract of all calls](super); `raw_key` points to `key_size` bytes.
#[inline]
pub unsafe fn fi_mr_map_raw(
    domain: *mut fid_domain,
    base_addr: u64,
    raw_key: *mut u8,
    key_size: usize,
    key: *mut u64,
    flags: u64,
) -> c_int {
    let mut map = fi_mr_map_raw { flags, base_addr, raw_key, key_size, key };
    // SAFETY: as `fi_mr_raw_attr`.
    unsafe { fi_control(domain.cast(), FI_MAP_RAW_MR, from_mut(&mut map).cast()) }
}

/// Gives back a key that [`fi_mr_map_raw()`] made.
///
/// # Safety
/// [The contract of all calls](super).
#[inline]
pub unsafe fn fi_mr_unmap_key(domain: *mut fid_domain, mut key: u64) -> c_int {
    // SAFETY: as `fi_mr_raw_attr`.
    unsafe { fi_control(domain.cast(), FI_UNMAP_KEY, (&raw mut key).cast()) }
}

/// Tells the provider that the pages behind a part of a region have changed (`FI_MR_MMU_NOTIFY`).
///
/// # Safety
/// [The contract of all calls](super); `iov` points to `count` ranges inside the region.
#[inline]
pub unsafe fn fi_mr_refresh(mr: *mut fid_mr, iov: *const iovec, count: usize, flags: u64) -> c_int {
    let mut modify = fi_mr_modify { flags, ..Default::default() };
    modify.attr.__bindgen_anon_1.mr_iov = iov;
    modify.attr.iov_count = count;
    // SAFETY: as `fi_mr_raw_attr`.
    unsafe { fi_control(mr.cast(), FI_REFRESH, from_mut(&mut modify).cast()) }
}
