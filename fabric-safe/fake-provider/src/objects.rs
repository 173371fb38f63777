//! Fabric, domain, address vector, region: what is opened, counted and closed.

use core::ffi::{c_char, c_void};

use fabric_sys::*;

use crate::provider::Any;
use crate::script::{Answer, Call};
use crate::world::{Span, hang, world};
use crate::{endpoint, events, fid_ops, give, new_fid, queue, take};

/// Opens one more object, unless the script says no.
fn opened() -> Result<(), i32> {
    let mut world = world();
    match world.answer(Call::Open) {
        Answer::Fail(errno) => return Err(errno.wrapping_neg()),
        Answer::Hang => world = hang(world),
        _ => {}
    }
    world.objects += 1;
    Ok(())
}

/// Opens an object of this type and hands it out.
///
/// # Safety
/// `out` can be written.
pub(crate) unsafe fn open<T>(out: *mut *mut T, object: T, then: impl FnOnce(usize)) -> i32 {
    if let Err(status) = opened() {
        return status;
    }
    // SAFETY: as the caller promises.
    then(unsafe { give(out, object) }.addr());
    0
}

/// Closes an object of this type, unless the script says no.
///
/// # Safety
/// `fid` is an open object of type `T`.
pub(crate) unsafe fn close<T>(fid: *mut fid, call: Call, then: impl FnOnce(usize)) -> i32 {
    {
        let mut world = world();
        match world.answer(call) {
            Answer::Fail(errno) => return errno.wrapping_neg(),
            Answer::Hang => world = hang(world),
            _ => {}
        }
        world.objects -= 1;
    }
    then(fid.addr());
    // SAFETY: as the caller promises; it is closed once.
    unsafe { take::<T>(fid) };
    0
}

macro_rules! closer {
    ($name:ident, $ty:ty) => {
        unsafe extern "C" fn $name(fid: *mut fid) -> i32 {
            // SAFETY: the entry of an object of this type.
            unsafe { close::<$ty>(fid, Call::Close, |_| ()) }
        }
    };
}

closer!(close_fabric, fid_fabric);
closer!(close_vector, fid_av);

unsafe extern "C" fn close_domain(fid: *mut fid) -> i32 {
    let forget = |address| {
        world().bound_domains.remove(&address);
    };
    // SAFETY: the entry of a domain.
    unsafe { close::<fid_domain>(fid, Call::Close, forget) }
}

/// Binds anything to anything, unless the script says no.
unsafe extern "C" fn bind(_fid: *mut fid, _to: *mut fid, _flags: u64) -> i32 {
    world().status(Call::Bind).err().unwrap_or(0)
}

pub(crate) unsafe extern "C" fn open_fabric(
    _attr: *mut fi_fabric_attr,
    fabric: *mut *mut fid_fabric,
    context: Any,
) -> i32 {
    static FID: std::sync::LazyLock<fi_ops> = std::sync::LazyLock::new(|| fid_ops(close_fabric, None, None));
    static OPS: std::sync::LazyLock<fi_ops_fabric> = std::sync::LazyLock::new(|| fi_ops_fabric {
        size: size_of::<fi_ops_fabric>(),
        domain: Some(open_domain),
        eq_open: Some(events::open),
        trywait: Some(trywait),
        ..Default::default()
    });
    let object = fid_fabric {
        fid: new_fid(FI_CLASS_FABRIC, context, &FID),
        ops: core::ptr::from_ref(&*OPS).cast_mut(),
        api_version: API_VERSIONS[0].raw(),
    };
    // SAFETY: the caller's out-pointer.
    unsafe { open(fabric, object, |_| ()) }
}

unsafe extern "C" fn trywait(_fabric: *mut fid_fabric, _fids: *mut *mut fid, _count: i32) -> i32 {
    0
}

unsafe extern "C" fn open_domain(
    _fabric: *mut fid_fabric,
    info: *mut fi_info,
    domain: *mut *mut fid_domain,
    context: Any,
) -> i32 {
    static FID: std::sync::LazyLock<fi_ops> = std::sync::LazyLock::new(|| fi_ops {
        ops_open: Some(efa_ops),
        ..fid_ops(close_domain, Some(bind), None)
    });
    static OPS: std::sync::LazyLock<fi_ops_domain> = std::sync::LazyLock::new(|| fi_ops_domain {
        size: size_of::<fi_ops_domain>(),
        av_open: Some(open_vector),
        cq_open: Some(queue::open),
        endpoint: Some(endpoint::open),
        ..Default::default()
    });
    static REGIONS: std::sync::LazyLock<fi_ops_mr> = std::sync::LazyLock::new(|| fi_ops_mr {
        size: size_of::<fi_ops_mr>(),
        regattr: Some(register),
        ..Default::default()
    });
    let object = fid_domain {
        fid: new_fid(FI_CLASS_DOMAIN, context, &FID),
        ops: core::ptr::from_ref(&*OPS).cast_mut(),
        mr: core::ptr::from_ref(&*REGIONS).cast_mut(),
    };
    // SAFETY: a whole fi_info; the caller's out-pointer.
    unsafe {
        let bound = (*(*info).domain_attr).mr_mode & FI_MR_ENDPOINT != 0;
        open(domain, object, |address| {
            if bound {
                world().bound_domains.insert(address);
            }
        })
    }
}

/// EFA's operations on a domain, for who asks for them by name.
unsafe extern "C" fn efa_ops(
    _domain: *mut fid,
    name: *const c_char,
    _flags: u64,
    ops: *mut Any,
    _context: Any,
) -> i32 {
    /// Says something that can be recognised: the key, one more, and nothing about the third.
    unsafe extern "C" fn query_mr(region: *mut fid_mr, attributes: *mut fi_efa_mr_attr) -> i32 {
        // SAFETY: an open region; the caller's attributes.
        unsafe {
            let key = (*region).key as u16;
            *attributes = fi_efa_mr_attr {
                ic_id_validity: FI_EFA_MR_ATTR_RECV_IC_ID | FI_EFA_MR_ATTR_RDMA_READ_IC_ID,
                recv_ic_id: key,
                rdma_read_ic_id: key + 1,
                rdma_recv_ic_id: 99,
            };
        }
        0
    }
    static OPS: fi_efa_ops_domain = fi_efa_ops_domain { query_mr: Some(query_mr) };
    // SAFETY: a text that ends with NUL, and the caller's out-pointer.
    unsafe {
        if core::ffi::CStr::from_ptr(name).to_bytes_with_nul() != FI_EFA_DOMAIN_OPS {
            return -FI_EINVAL;
        }
        *ops = core::ptr::from_ref(&OPS).cast_mut().cast();
    }
    0
}

unsafe extern "C" fn open_vector(
    _domain: *mut fid_domain,
    _attr: *mut fi_av_attr,
    vector: *mut *mut fid_av,
    context: Any,
) -> i32 {
    static FID: std::sync::LazyLock<fi_ops> =
        std::sync::LazyLock::new(|| fid_ops(close_vector, Some(bind), None));
    static OPS: std::sync::LazyLock<fi_ops_av> = std::sync::LazyLock::new(|| fi_ops_av {
        size: size_of::<fi_ops_av>(),
        insert: Some(insert),
        remove: Some(remove),
        lookup: Some(lookup),
        straddr: Some(straddr),
        ..Default::default()
    });
    let object =
        fid_av { fid: new_fid(FI_CLASS_AV, context, &FID), ops: core::ptr::from_ref(&*OPS).cast_mut() };
    // SAFETY: the caller's out-pointer.
    unsafe { open(vector, object, |_| ()) }
}

unsafe extern "C" fn insert(
    _vector: *mut fid_av,
    _addresses: *const c_void,
    count: usize,
    out: *mut fi_addr_t,
    _flags: u64,
    _context: Any,
) -> i32 {
    let mut world = world();
    let limit = match world.answer(Call::Insert) {
        Answer::Fail(errno) => return errno.wrapping_neg(),
        Answer::Limit(limit) => count.min(limit as usize),
        _ => count,
    };
    for index in 0..count {
        let address = if index < limit { world.next_address } else { FI_ADDR_NOTAVAIL };
        world.next_address += u64::from(index < limit);
        if !out.is_null() {
            // SAFETY: room for `count` addresses, says the caller.
            unsafe { *out.add(index) = address };
        }
    }
    i32::try_from(limit).unwrap_or(i32::MAX)
}

unsafe extern "C" fn remove(
    _vector: *mut fid_av,
    _addresses: *mut fi_addr_t,
    _count: usize,
    _flags: u64,
) -> i32 {
    world().status(Call::Remove).err().unwrap_or(0)
}

unsafe extern "C" fn lookup(_vector: *mut fid_av, address: fi_addr_t, out: Any, len: *mut usize) -> i32 {
    // SAFETY: room for `*len` bytes, says the caller.
    unsafe { endpoint::write_name(address, out, len) }
}

unsafe extern "C" fn straddr(
    _vector: *mut fid_av,
    address: *const c_void,
    out: *mut c_char,
    len: *mut usize,
) -> *const c_char {
    // SAFETY: names are texts of at most NAME_LEN bytes; room for `*len` bytes, says the caller.
    unsafe {
        let room = (*len).min(endpoint::NAME_LEN);
        core::ptr::copy_nonoverlapping(address.cast::<c_char>(), out, room);
        *len = endpoint::NAME_LEN;
    }
    out
}

unsafe extern "C" fn register(
    domain: *mut fid,
    attr: *const fi_mr_attr,
    _flags: u64,
    region: *mut *mut fid_mr,
) -> i32 {
    static FID: std::sync::LazyLock<fi_ops> =
        std::sync::LazyLock::new(|| fid_ops(close_region, Some(bind_region), Some(control)));
    let mut world = world();
    if let Err(status) = world.status(Call::Register) {
        return status;
    }
    // SAFETY: whole attributes with one range, says the caller (mr_iov_limit is 1).
    let (range, context) = unsafe { (*(*attr).__bindgen_anon_1.mr_iov, (*attr).context) };
    world.next_key += 1;
    let key = world.next_key;
    let bound = world.bound_domains.contains(&domain.addr());
    let usable = if bound { &mut world.disabled } else { &mut world.regions };
    usable.insert(key, (range.iov_base.addr(), range.iov_len));
    let object = fid_mr {
        fid: new_fid(FI_CLASS_MR, context, &FID),
        mem_desc: core::ptr::without_provenance_mut(key as usize),
        key,
    };
    // SAFETY: the caller's out-pointer.
    unsafe { give(region, object) };
    0
}

/// Binds a region to an endpoint.
unsafe extern "C" fn bind_region(region: *mut fid, endpoint: *mut fid, _flags: u64) -> i32 {
    let mut world = world();
    if let Err(status) = world.status(Call::Bind) {
        return status;
    }
    // SAFETY: the entry of a region.
    let key = unsafe { (*region.cast::<fid_mr>()).key };
    world.bound.insert(key, endpoint.addr());
    0
}

unsafe extern "C" fn control(region: *mut fid, command: i32, _arg: Any) -> i32 {
    if command != FI_ENABLE {
        return -FI_ENOSYS;
    }
    let mut world = world();
    if let Err(status) = world.status(Call::Enable) {
        return status;
    }
    // SAFETY: the entry of a region.
    let key = unsafe { (*region.cast::<fid_mr>()).key };
    match world.disabled.remove(&key) {
        Some(range) if world.bound.contains_key(&key) => {
            world.regions.insert(key, range);
        }
        _ => world.faults.wrong_state += 1,
    }
    0
}

unsafe extern "C" fn close_region(fid: *mut fid) -> i32 {
    let mut world = world();
    // SAFETY: the entry of a region.
    let key = unsafe { (*fid.cast::<fid_mr>()).key };
    if let Err(status) = world.status(Call::CloseRegion) {
        if let Some((address, len)) = world.regions.get(&key).copied() {
            world.unclosed.push(Span { address, len, written: true });
        }
        return status;
    }
    // SAFETY: as above; it is closed once.
    unsafe {
        world.forget_region(key);
        take::<fid_mr>(fid);
    }
    0
}
