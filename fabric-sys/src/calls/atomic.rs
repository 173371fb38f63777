//! Atomic operations on remote memory.

use core::ffi::{c_int, c_void};

use super::calls;
use crate::bindings::*;

calls! {
    /// Combines `count` elements at `buf` into the peer's memory.
    pub fn fi_atomic(
        ep: *mut fid_ep,
        buf: *const c_void,
        count: usize,
        desc: *mut c_void,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        datatype: fi_datatype,
        op: fi_op,
        context: *mut c_void,
    ) -> isize {
        ep.atomic.write(ep, buf, count, desc, dest_addr, addr, key, datatype, op, context)
    }

    /// As [`fi_atomic`], from several buffers.
    pub fn fi_atomicv(
        ep: *mut fid_ep,
        iov: *const fi_ioc,
        desc: *mut *mut c_void,
        count: usize,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        datatype: fi_datatype,
        op: fi_op,
        context: *mut c_void,
    ) -> isize {
        ep.atomic.writev(ep, iov, desc, count, dest_addr, addr, key, datatype, op, context)
    }

    /// As [`fi_atomic`], with flags.
    pub fn fi_atomicmsg(ep: *mut fid_ep, msg: *const fi_msg_atomic, flags: u64) -> isize {
        ep.atomic.writemsg(ep, msg, flags)
    }

    /// As [`fi_atomic`]; the buffer may be reused at once and no completion is reported.
    pub fn fi_inject_atomic(
        ep: *mut fid_ep,
        buf: *const c_void,
        count: usize,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        datatype: fi_datatype,
        op: fi_op,
    ) -> isize {
        ep.atomic.inject(ep, buf, count, dest_addr, addr, key, datatype, op)
    }

    /// As [`fi_atomic`], and stores what was there before at `result`.
    pub fn fi_fetch_atomic(
        ep: *mut fid_ep,
        buf: *const c_void,
        count: usize,
        desc: *mut c_void,
        result: *mut c_void,
        result_desc: *mut c_void,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        datatype: fi_datatype,
        op: fi_op,
        context: *mut c_void,
    ) -> isize {
        ep.atomic.readwrite(ep, buf, count, desc, result, result_desc, dest_addr, addr, key, datatype, op, context)
    }

    /// As [`fi_fetch_atomic`], from and to several buffers.
    pub fn fi_fetch_atomicv(
        ep: *mut fid_ep,
        iov: *const fi_ioc,
        desc: *mut *mut c_void,
        count: usize,
        resultv: *mut fi_ioc,
        result_desc: *mut *mut c_void,
        result_count: usize,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        datatype: fi_datatype,
        op: fi_op,
        context: *mut c_void,
    ) -> isize {
        ep.atomic.readwritev(ep, iov, desc, count, resultv, result_desc, result_count, dest_addr, addr, key, datatype, op, context)
    }

    /// As [`fi_fetch_atomic`], with flags.
    pub fn fi_fetch_atomicmsg(
        ep: *mut fid_ep,
        msg: *const fi_msg_atomic,
        resultv: *mut fi_ioc,
        result_desc: *mut *mut c_void,
        result_count: usize,
        flags: u64,
    ) -> isize {
        ep.atomic.readwritemsg(ep, msg, resultv, result_desc, result_count, flags)
    }

    /// Compares and swaps (`FI_CSWAP`, …); stores what was there before at `result`.
    pub fn fi_compare_atomic(
        ep: *mut fid_ep,
        buf: *const c_void,
        count: usize,
        desc: *mut c_void,
        compare: *const c_void,
        compare_desc: *mut c_void,
        result: *mut c_void,
        result_desc: *mut c_void,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        datatype: fi_datatype,
        op: fi_op,
        context: *mut c_void,
    ) -> isize {
        ep.atomic.compwrite(ep, buf, count, desc, compare, compare_desc, result, result_desc, dest_addr, addr, key, datatype, op, context)
    }

    /// As [`fi_compare_atomic`], from and to several buffers.
    pub fn fi_compare_atomicv(
        ep: *mut fid_ep,
        iov: *const fi_ioc,
        desc: *mut *mut c_void,
        count: usize,
        comparev: *const fi_ioc,
        compare_desc: *mut *mut c_void,
        compare_count: usize,
        resultv: *mut fi_ioc,
        result_desc: *mut *mut c_void,
        result_count: usize,
        dest_addr: fi_addr_t,
        addr: u64,
        key: u64,
        datatype: fi_datatype,
        op: fi_op,
        context: *mut c_void,
    ) -> isize {
        ep.atomic.compwritev(ep, iov, desc, count, comparev, compare_desc, compare_count, resultv, result_desc, result_count, dest_addr, addr, key, datatype, op, context)
    }

    /// As [`fi_compare_atomic`], with flags.
    pub fn fi_compare_atomicmsg(
        ep: *mut fid_ep,
        msg: *const fi_msg_atomic,
        comparev: *const fi_ioc,
        compare_desc: *mut *mut c_void,
        compare_count: usize,
        resultv: *mut fi_ioc,
        result_desc: *mut *mut c_void,
        result_count: usize,
        flags: u64,
    ) -> isize {
        ep.atomic.compwritemsg(ep, msg, comparev, compare_desc, compare_count, resultv, result_desc, result_count, flags)
    }

    /// Does the endpoint support this [`fi_atomic`], and on how many elements at once?
    pub fn fi_atomicvalid(ep: *mut fid_ep, datatype: fi_datatype, op: fi_op, count: *mut usize) -> c_int {
        ep.atomic.writevalid(ep, datatype, op, count)
    }

    /// Does the endpoint support this [`fi_fetch_atomic`], and on how many elements at once?
    pub fn fi_fetch_atomicvalid(
        ep: *mut fid_ep,
        datatype: fi_datatype,
        op: fi_op,
        count: *mut usize,
    ) -> c_int {
        ep.atomic.readwritevalid(ep, datatype, op, count)
    }

    /// Does the endpoint support this [`fi_compare_atomic`], and on how many elements at once?
    pub fn fi_compare_atomicvalid(
        ep: *mut fid_ep,
        datatype: fi_datatype,
        op: fi_op,
        count: *mut usize,
    ) -> c_int {
        ep.atomic.compwritevalid(ep, datatype, op, count)
    }

    /// What the domain supports of an atomic operation.
    pub fn fi_query_atomic(
        domain: *mut fid_domain,
        datatype: fi_datatype,
        op: fi_op,
        attr: *mut fi_atomic_attr,
        flags: u64,
    ) -> c_int {
        newer domain.ops.query_atomic(domain, datatype, op, attr, flags)
    }
}
