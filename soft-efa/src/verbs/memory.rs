//! Protection domains, memory registrations, address handles.

use super::context::card_of;
use super::{fail, refuse};
use crate::abi::*;
use crate::card::device::Card;
use crate::card::region::Region;
use crate::card::remote::Remote;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::{Arc, OnceLock};

/// A protection domain.
#[repr(C)]
struct Domain {
    base: ibv_pd,
}

/// The number of a protection domain.
///
/// # Safety
/// `pd` must be one of ours.
pub(crate) unsafe fn pd_number(pd: *mut ibv_pd) -> u32 {
    // SAFETY: by contract.
    unsafe { (*pd).handle }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_alloc_pd(context: *mut ibv_context) -> *mut ibv_pd {
    // SAFETY: an open context.
    let handle = unsafe { card_of(context) }.new_pd();
    Box::into_raw(Box::new(Domain { base: ibv_pd { context, handle } })).cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dealloc_pd(pd: *mut ibv_pd) -> c_int {
    // SAFETY: from ibv_alloc_pd, given back once.
    drop(unsafe { Box::from_raw(pd.cast::<Domain>()) });
    0
}

/// A registration.
#[repr(C)]
struct Registration {
    base: ibv_mr,
    card: Arc<Card>,
    pages: u64,
}

fn register(pd: *mut ibv_pd, address: u64, length: usize, iova: u64, access: u32) -> *mut ibv_mr {
    // SAFETY: a domain of ours, and its context is open.
    let (context, card, pd_number) = unsafe { ((*pd).context, card_of((*pd).context), pd_number(pd)) };
    let settings = &card.process.settings;
    let mut allowed =
        IBV_ACCESS_LOCAL_WRITE | IBV_ACCESS_REMOTE_READ | IBV_ACCESS_HUGETLB | IBV_ACCESS_OPTIONAL_RANGE;
    if settings.profile.caps & EFADV_CAPS_RDMA_WRITE != 0 {
        allowed |= IBV_ACCESS_REMOTE_WRITE;
    }
    if access & !allowed != 0 {
        return fail(libc::EOPNOTSUPP);
    }
    if length == 0 || length as u64 > settings.max_mr_size || address.checked_add(length as u64).is_none() {
        return fail(libc::EINVAL);
    }
    if let Some(errno) = card.process.faults.registration(card, length as u64) {
        return fail(errno);
    }
    if !is_mapped(address, length) {
        return fail(libc::EFAULT);
    }
    let region =
        Region { card: card.index as u32, pd: pd_number, access, iova, address, length: length as u64 };
    let pages = region.pages(page_size(address, length, access));
    if !card.spend(pages) {
        return fail(libc::ENOMEM);
    }
    let Some(key) = card.process.regions.insert(&region) else {
        card.give_back(pages);
        return fail(libc::ENOMEM);
    };
    card.counters().registered.add(1);
    card.counters().regions.add(1);
    let base =
        ibv_mr { context, pd, addr: address as *mut c_void, length, handle: key, lkey: key, rkey: key };
    Box::into_raw(Box::new(Registration { base, card: card.clone(), pages })).cast()
}

/// Whether all of the range is mapped: a card pins the pages, so it notices at once.
fn is_mapped(address: u64, length: usize) -> bool {
    const PAGE: u64 = 4096;
    const STEP: usize = 1 << 30;
    let mut marks = vec![0u8; length.min(STEP) / PAGE as usize + 2];
    let start = address & !(PAGE - 1);
    let end = address + length as u64;
    (start..end).step_by(STEP).all(|at| {
        let part = (end - at).min(STEP as u64) as usize;
        // SAFETY: mincore writes a byte a page into `marks`, which has room, and only looks at the range.
        unsafe { libc::mincore(at as *mut c_void, part, marks.as_mut_ptr()) == 0 }
    })
}

/// Size of the pages behind a range. Only long, aligned ranges are worth the look.
fn page_size(address: u64, length: usize, access: u32) -> u64 {
    const HUGE: u64 = 2 << 20;
    if access & IBV_ACCESS_HUGETLB != 0 {
        return HUGE;
    }
    if (length as u64) < HUGE || !address.is_multiple_of(HUGE) {
        return 4096;
    }
    let Ok(maps) = std::fs::read_to_string("/proc/self/smaps") else { return 4096 };
    let mut inside = false;
    for line in maps.lines() {
        if let Some((range, _)) = line.split_once(' ')
            && let Some((start, end)) = range.split_once('-')
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            inside = (start..end).contains(&address);
        } else if inside && let Some(size) = line.strip_prefix("KernelPageSize:") {
            let kib: u64 = size.trim().trim_end_matches(" kB").parse().unwrap_or(4);
            return kib << 10;
        }
    }
    4096
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_mr(
    pd: *mut ibv_pd,
    address: *mut c_void,
    length: usize,
    access: c_int,
) -> *mut ibv_mr {
    register(pd, address as u64, length, address as u64, access as u32)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_mr_iova(
    pd: *mut ibv_pd,
    address: *mut c_void,
    length: usize,
    iova: u64,
    access: c_int,
) -> *mut ibv_mr {
    register(pd, address as u64, length, iova, access as u32)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_mr_iova2(
    pd: *mut ibv_pd,
    address: *mut c_void,
    length: usize,
    iova: u64,
    access: c_uint,
) -> *mut ibv_mr {
    register(pd, address as u64, length, iova, access)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_reg_dmabuf_mr(
    _pd: *mut ibv_pd,
    _offset: u64,
    _length: usize,
    _iova: u64,
    _fd: c_int,
    _access: c_int,
) -> *mut ibv_mr {
    static SAID: OnceLock<()> = OnceLock::new();
    SAID.get_or_init(|| {
        refuse("dmabuf registration is refused: a software card reaches host memory only, no device memory");
    });
    fail(libc::EOPNOTSUPP)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_dereg_mr(mr: *mut ibv_mr) -> c_int {
    // SAFETY: from one of the registering calls, given back once.
    let registration = unsafe { Box::from_raw(mr.cast::<Registration>()) };
    let process = &registration.card.process;
    process.regions.revoke(registration.base.lkey);
    process.wait_for_copies();
    process.regions.recycle(registration.base.lkey);
    registration.card.give_back(registration.pages);
    registration.card.counters().regions.take(1);
    0
}

/// An address handle.
#[repr(C)]
pub(crate) struct Handle {
    base: ibv_ah,
    pub(crate) remote: Arc<Remote>,
    pub(crate) number: u16,
    gid: ibv_gid,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_ah(pd: *mut ibv_pd, attr: *mut ibv_ah_attr) -> *mut ibv_ah {
    // SAFETY: a domain of ours, its open context, and the caller's attributes.
    let (context, card, attr) = unsafe { ((*pd).context, card_of((*pd).context), &*attr) };
    if attr.port_num != 1 || attr.is_global == 0 {
        return fail(libc::EINVAL);
    }
    let gid = attr.grh.dgid.raw;
    let Some((number, remote)) = card.create_handle(&gid) else { return fail(libc::ENOMEM) };
    let base = ibv_ah { context, pd, handle: number.into() };
    Box::into_raw(Box::new(Handle { base, remote, number, gid })).cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_ah(ah: *mut ibv_ah) -> c_int {
    // SAFETY: from ibv_create_ah, given back once; its context is open.
    unsafe {
        let handle = Box::from_raw(ah.cast::<Handle>());
        card_of(handle.base.context).destroy_handle(&handle.gid);
    }
    0
}
