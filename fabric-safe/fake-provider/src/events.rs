//! Event queues: what the caller writes into them comes out again, and errors as the script says.

use core::ffi::c_void;
use std::sync::LazyLock;

use fabric_sys::*;

use crate::provider::Any;
use crate::script::{Answer, Call};
use crate::world::world;
use crate::{fid_ops, new_fid, objects};

pub(crate) unsafe extern "C" fn open(
    _fabric: *mut fid_fabric,
    _attr: *mut fi_eq_attr,
    queue: *mut *mut fid_eq,
    context: Any,
) -> i32 {
    static FID: LazyLock<fi_ops> = LazyLock::new(|| fid_ops(close, None, None));
    static OPS: LazyLock<fi_ops_eq> = LazyLock::new(|| fi_ops_eq {
        size: size_of::<fi_ops_eq>(),
        read: Some(read),
        readerr: Some(readerr),
        write: Some(write),
        sread: Some(sread),
        ..Default::default()
    });
    let object =
        fid_eq { fid: new_fid(FI_CLASS_EQ, context, &FID), ops: core::ptr::from_ref(&*OPS).cast_mut() };
    // SAFETY: the caller's out-pointer.
    unsafe { objects::open(queue, object, |_| ()) }
}

unsafe extern "C" fn close(fid: *mut fid) -> i32 {
    // SAFETY: the entry of an event queue.
    unsafe { objects::close::<fid_eq>(fid, Call::Close, |_| world().events.clear()) }
}

unsafe extern "C" fn read(
    _queue: *mut fid_eq,
    event: *mut u32,
    buffer: Any,
    len: usize,
    _flags: u64,
) -> isize {
    let mut world = world();
    match world.answer(Call::Event) {
        Answer::Fail(errno) => return errno.wrapping_neg() as isize,
        Answer::Error { errno, provider_errno, .. } => {
            world.event_error = Some((errno, provider_errno));
            return -(FI_EAVAIL as isize);
        }
        _ => {}
    }
    let Some((number, data)) = world.events.pop_front() else { return -(FI_EAGAIN as isize) };
    let entry = fi_eq_entry { data, ..Default::default() };
    if len < size_of::<fi_eq_entry>() {
        return -(FI_ETOOSMALL as isize);
    }
    // SAFETY: room for an entry, as just seen.
    unsafe {
        *event = number;
        buffer.cast::<fi_eq_entry>().write_unaligned(entry);
    }
    size_of::<fi_eq_entry>() as isize
}

unsafe extern "C" fn sread(
    queue: *mut fid_eq,
    event: *mut u32,
    buffer: Any,
    len: usize,
    _timeout: i32,
    flags: u64,
) -> isize {
    // SAFETY: the same contract. Nobody else writes meanwhile, so there is nothing to wait for.
    unsafe { read(queue, event, buffer, len, flags) }
}

unsafe extern "C" fn readerr(_queue: *mut fid_eq, entry: *mut fi_eq_err_entry, _flags: u64) -> isize {
    let Some((err, prov_errno)) = world().event_error.take() else { return -(FI_EAGAIN as isize) };
    // SAFETY: a whole entry, says the caller.
    unsafe { *entry = fi_eq_err_entry { err, prov_errno, data: 7, ..Default::default() } };
    size_of::<fi_eq_err_entry>() as isize
}

unsafe extern "C" fn write(
    _queue: *mut fid_eq,
    event: u32,
    buffer: *const c_void,
    len: usize,
    _flags: u64,
) -> isize {
    if len < size_of::<fi_eq_entry>() {
        return -(FI_EINVAL as isize);
    }
    // SAFETY: so many bytes, says the caller.
    let entry = unsafe { buffer.cast::<fi_eq_entry>().read_unaligned() };
    world().events.push_back((event, entry.data));
    len as isize
}
