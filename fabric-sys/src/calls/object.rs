//! Every object: close, bind, control and the operations by name.

use core::ffi::{c_char, c_int, c_void};
use core::ptr::from_mut;

use super::calls;
use crate::bindings::*;

calls! {
    /// Closes an object. With `-FI_EBUSY` it stays open, because something else still uses it.
    pub fn fi_close(fid: *mut fid) -> c_int { fid.ops.close(fid) }

    /// Runs one of the commands `FI_GETWAIT`, `FI_ENABLE`, … on an object; `arg` is what the command says.
    pub fn fi_control(fid: *mut fid, command: c_int, arg: *mut c_void) -> c_int {
        fid.ops.control(fid, command, arg)
    }

    /// Asks for a set of operations of the provider or the library by name, e.g. [`FI_EFA_DOMAIN_OPS`].
    pub fn fi_open_ops(
        fid: *mut fid,
        name: *const c_char,
        flags: u64,
        ops: *mut *mut c_void,
        context: *mut c_void,
    ) -> c_int {
        fid.ops.ops_open(fid, name, flags, ops, context)
    }

    /// Replaces a set of operations by name.
    pub fn fi_set_ops(
        fid: *mut fid,
        name: *const c_char,
        flags: u64,
        ops: *mut c_void,
        context: *mut c_void,
    ) -> c_int {
        newer fid.ops.ops_set(fid, name, flags, ops, context)
    }
}

/// Makes another name for an object; for endpoints see [`fi_ep_alias`](super::fi_ep_alias).
///
/// # Safety
/// [The contract of all calls](super).
#[inline]
pub unsafe fn fi_alias(fid: *mut fid, alias_fid: *mut *mut fid, flags: u64) -> c_int {
    let mut alias = fi_alias { fid: alias_fid, flags };
    // SAFETY: the caller's object and out-pointer are live; the command reads `alias` during the call only.
    unsafe { fi_control(fid, FI_ALIAS, from_mut(&mut alias).cast()) }
}

/// Reads a value of an object by its provider-specific name.
///
/// # Safety
/// [The contract of all calls](super); `val` has the type that the name stands for.
#[inline]
pub unsafe fn fi_get_val(fid: *mut fid, name: c_int, val: *mut c_void) -> c_int {
    let mut var = fi_fid_var { name, val };
    // SAFETY: as `fi_alias`.
    unsafe { fi_control(fid, FI_GET_VAL, from_mut(&mut var).cast()) }
}

/// Sets a value of an object by its provider-specific name.
///
/// # Safety
/// [The contract of all calls](super); `val` has the type that the name stands for.
#[inline]
pub unsafe fn fi_set_val(fid: *mut fid, name: c_int, val: *mut c_void) -> c_int {
    let mut var = fi_fid_var { name, val };
    // SAFETY: as `fi_alias`.
    unsafe { fi_control(fid, FI_SET_VAL, from_mut(&mut var).cast()) }
}
