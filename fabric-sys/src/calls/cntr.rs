//! Counters.

use core::ffi::{c_int, c_void};

use super::calls;
use crate::bindings::*;

calls! {
    /// Opens a counter of completed operations (or bytes).
    pub fn fi_cntr_open(
        domain: *mut fid_domain,
        attr: *mut fi_cntr_attr,
        cntr: *mut *mut fid_cntr,
        context: *mut c_void,
    ) -> c_int {
        domain.ops.cntr_open(domain, attr, cntr, context)
    }

    /// The number of successes so far; also drives the provider's progress. 0 where the provider has no such entry.
    pub fn fi_cntr_read(cntr: *mut fid_cntr) -> u64 { cntr.ops.read(cntr) }

    /// The number of errors so far. 0 where the provider has no such entry.
    pub fn fi_cntr_readerr(cntr: *mut fid_cntr) -> u64 { cntr.ops.readerr(cntr) }

    /// Adds to the successes.
    pub fn fi_cntr_add(cntr: *mut fid_cntr, value: u64) -> c_int { cntr.ops.add(cntr, value) }

    /// Adds to the errors.
    pub fn fi_cntr_adderr(cntr: *mut fid_cntr, value: u64) -> c_int {
        newer cntr.ops.adderr(cntr, value)
    }

    /// Sets the successes.
    pub fn fi_cntr_set(cntr: *mut fid_cntr, value: u64) -> c_int { cntr.ops.set(cntr, value) }

    /// Sets the errors.
    pub fn fi_cntr_seterr(cntr: *mut fid_cntr, value: u64) -> c_int {
        newer cntr.ops.seterr(cntr, value)
    }

    /// Waits until the successes reach `threshold`, up to `timeout` milliseconds (negative: for ever).
    pub fn fi_cntr_wait(cntr: *mut fid_cntr, threshold: u64, timeout: c_int) -> c_int {
        cntr.ops.wait(cntr, threshold, timeout)
    }
}
