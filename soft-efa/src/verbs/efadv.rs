//! The functions of libefa.so.1, under names of their own: see the [module](super).

use super::context::card_of;
use super::memory::Handle;
use super::queues::{Cq, new_cq, new_qp, wanted_of, wanted_plain};
use super::{fail, refuse};
use crate::abi::*;
use crate::card::queue_pair::{MAX_RECV_SGE, MAX_SEND_SGE};
use std::ffi::{c_int, c_void};

#[unsafe(no_mangle)]
pub unsafe extern "C" fn soft_efa_query_device(
    context: *mut ibv_context,
    attr: *mut efadv_device_attr,
    size: u32,
) -> c_int {
    // SAFETY: an open context.
    let profile = unsafe { card_of(context) }.process.settings.profile;
    let full = efadv_device_attr {
        comp_mask: 0,
        max_sq_wr: profile.max_sq_wr,
        max_rq_wr: profile.max_rq_wr,
        max_sq_sge: MAX_SEND_SGE as u16,
        max_rq_sge: MAX_RECV_SGE as u16,
        inline_buf_size: profile.inline_bytes,
        inline_buf_size_ex: profile.inline_bytes,
        device_caps: profile.caps,
        max_rdma_size: profile.max_rdma_bytes,
    };
    let known = (size as usize).min(size_of::<efadv_device_attr>());
    // SAFETY: the caller's structure of that size; no more is written than both know.
    unsafe { attr.cast::<u8>().copy_from_nonoverlapping((&raw const full).cast(), known) };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn soft_efa_query_ah(ah: *mut ibv_ah, attr: *mut efadv_ah_attr, size: u32) -> c_int {
    if (size as usize) < size_of::<efadv_ah_attr>() {
        return libc::EINVAL;
    }
    // SAFETY: an address handle of ours and the caller's structure.
    unsafe { *attr = efadv_ah_attr { comp_mask: 0, ahn: (*ah.cast::<Handle>()).number, reserved: [0; 6] } };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn soft_efa_create_cq(
    context: *mut ibv_context,
    attr: *mut ibv_cq_init_attr_ex,
    efa_attr: *mut efadv_cq_init_attr,
    size: u32,
) -> *mut ibv_cq_ex {
    if (size as usize) < size_of::<u64>() * 2 {
        return fail(libc::EINVAL);
    }
    // SAFETY: the caller's structures; `flags` is only read where the caller's version has it.
    let (attr, wc_flags, flags) = unsafe {
        let flags = if size as usize >= size_of::<efadv_cq_init_attr>() { (*efa_attr).flags } else { 0 };
        (&*attr, (*efa_attr).wc_flags, flags)
    };
    if flags != 0 {
        refuse("completion queues in external memory are not modelled");
        return fail(libc::EOPNOTSUPP);
    }
    if attr.comp_mask != 0
        || attr.wc_flags & !IBV_WC_STANDARD_FLAGS != 0
        || wc_flags & !(EFADV_WC_EX_WITH_SGID | EFADV_WC_EX_WITH_IS_UNSOLICITED) != 0
    {
        return fail(libc::EOPNOTSUPP);
    }
    new_cq(context, attr.cqe, attr.cq_context, attr.channel).map_or_else(fail, |cq| cq.cast())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn soft_efa_cq_from_ibv_cq_ex(cq: *mut ibv_cq_ex) -> *mut efadv_cq {
    // SAFETY: a queue of ours.
    unsafe { &raw mut (*cq.cast::<Cq>()).dv }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn soft_efa_create_qp_ex(
    context: *mut ibv_context,
    attr: *mut ibv_qp_init_attr_ex,
    efa_attr: *mut efadv_qp_init_attr,
    size: u32,
) -> *mut ibv_qp {
    if (size as usize) < size_of::<u64>() * 2 {
        return fail(libc::EINVAL);
    }
    // SAFETY: the caller's structures, of at least sixteen bytes.
    let (attr, driver_type, flags) = unsafe { (&*attr, (*efa_attr).driver_qp_type, (*efa_attr).flags) };
    if (attr.qp_type == IBV_QPT_DRIVER && driver_type != EFADV_QP_DRIVER_TYPE_SRD)
        || flags & !EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV != 0
    {
        return fail(libc::EOPNOTSUPP);
    }
    wanted_of(attr, flags & EFADV_QP_FLAGS_UNSOLICITED_WRITE_RECV != 0)
        .and_then(|wanted| new_qp(context, &wanted))
        .map_or_else(fail, |qp| qp.cast())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn soft_efa_create_driver_qp(
    pd: *mut ibv_pd,
    attr: *mut ibv_qp_init_attr,
    driver_type: u32,
) -> *mut ibv_qp {
    if driver_type != EFADV_QP_DRIVER_TYPE_SRD {
        return fail(libc::EINVAL);
    }
    // SAFETY: a domain of ours and the caller's attributes.
    let (context, attr) = unsafe { ((*pd).context, &*attr) };
    new_qp(context, &wanted_plain(pd, attr, IBV_QPT_DRIVER)).map_or_else(fail, |qp| qp.cast())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn soft_efa_query_mr(_mr: *mut ibv_mr, attr: *mut efadv_mr_attr, size: u32) -> c_int {
    if (size as usize) < size_of::<efadv_mr_attr>() {
        return libc::EINVAL;
    }
    // SAFETY: the caller's structure. A software card has no interconnect to tell about, and says that no field is valid.
    unsafe {
        *attr = efadv_mr_attr {
            comp_mask: 0,
            ic_id_validity: 0,
            recv_ic_id: 0,
            rdma_read_ic_id: 0,
            rdma_recv_ic_id: 0,
        }
    };
    0
}

/// Queues that a program could drive without us do not exist: libfabric then uses the verbs.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn soft_efa_query_cq(_cq: *mut ibv_cq, _attr: *mut c_void, _size: u32) -> c_int {
    libc::EOPNOTSUPP
}

/// As [`soft_efa_query_cq`].
#[unsafe(no_mangle)]
pub unsafe extern "C" fn soft_efa_query_qp_wqs(
    _qp: *mut ibv_qp,
    _send: *mut c_void,
    _receive: *mut c_void,
    _size: u32,
) -> c_int {
    libc::EOPNOTSUPP
}
