//! Completion queues.

use core::ffi::{c_char, c_void};
use std::sync::LazyLock;

use fabric_sys::*;

use crate::provider::Any;
use crate::script::{Answer, Call};
use crate::world::{Entry, QueueState, world};
use crate::{fid_ops, new_fid, objects};

pub(crate) unsafe extern "C" fn open(
    _domain: *mut fid_domain,
    attr: *mut fi_cq_attr,
    queue: *mut *mut fid_cq,
    context: Any,
) -> i32 {
    static FID: LazyLock<fi_ops> = LazyLock::new(|| fid_ops(close, None, None));
    static OPS: LazyLock<fi_ops_cq> = LazyLock::new(|| fi_ops_cq {
        size: size_of::<fi_ops_cq>(),
        read: Some(read),
        readfrom: Some(readfrom),
        readerr: Some(readerr),
        strerror: Some(strerror),
        ..Default::default()
    });
    // SAFETY: whole attributes, says the caller.
    let (format, size, wait) = unsafe { ((*attr).format, (*attr).size, (*attr).wait_obj) };
    if wait != FI_WAIT_NONE {
        return -FI_ENOSYS;
    }
    let object =
        fid_cq { fid: new_fid(FI_CLASS_CQ, context, &FID), ops: core::ptr::from_ref(&*OPS).cast_mut() };
    let state = QueueState { format, size, ..Default::default() };
    // SAFETY: the caller's out-pointer.
    unsafe {
        objects::open(queue, object, |address| {
            world().queues.insert(address, state);
        })
    }
}

unsafe extern "C" fn close(fid: *mut fid) -> i32 {
    // SAFETY: the entry of a queue.
    unsafe { objects::close::<fid_cq>(fid, Call::Close, |address| world().forget_queue(address)) }
}

unsafe extern "C" fn read(queue: *mut fid_cq, buffer: Any, count: usize) -> isize {
    // SAFETY: the same contract; no sources are wanted.
    unsafe { readfrom(queue, buffer, count, core::ptr::null_mut()) }
}

unsafe extern "C" fn readfrom(
    queue: *mut fid_cq,
    buffer: Any,
    count: usize,
    sources: *mut fi_addr_t,
) -> isize {
    let mut world = world();
    let (mut limit, mut stray) = (count, None);
    match world.answer(Call::Read) {
        Answer::Fail(errno) => return errno.wrapping_neg() as isize,
        Answer::Limit(most) => limit = count.min(most as usize),
        Answer::Stray(context) => stray = Some(context),
        _ => {}
    }
    world.progress(queue.addr());
    let Some(state) = world.queues.get_mut(&queue.addr()) else { return -(FI_EINVAL as isize) };
    if let Some(context) = stray {
        let entry =
            Entry { context: context as usize, flags: FI_SEND | FI_MSG, len: 0, error: None, ends: false };
        state.entries.push_front(entry);
    }
    let format = state.format;
    let mut done = 0;
    while done < limit
        && let Some(state) = world.queues.get_mut(&queue.addr())
        && let Some(entry) = state.take(false)
    {
        // SAFETY: room for `count` entries of the queue's format, and as many sources unless null.
        unsafe {
            write_entry(buffer, format, done, entry);
            if !sources.is_null() {
                *sources.add(done) = FI_ADDR_NOTAVAIL;
            }
        }
        world.handed_out(entry);
        done += 1;
    }
    let left = world.queues.get(&queue.addr()).and_then(|state| state.entries.front());
    match (done, left) {
        (0, Some(entry)) if entry.error.is_some() => -(FI_EAVAIL as isize),
        (0, _) => -(FI_EAGAIN as isize),
        _ => done as isize,
    }
}

/// Writes one entry.
///
/// # Safety
/// `buffer` has room for `index + 1` entries of the format.
unsafe fn write_entry(buffer: Any, format: u32, index: usize, entry: Entry) {
    let full = fi_cq_tagged_entry {
        op_context: entry.context as *mut c_void,
        flags: entry.flags,
        len: entry.len,
        buf: core::ptr::null_mut(),
        data: 0,
        tag: 0,
    };
    let size = match format {
        FI_CQ_FORMAT_CONTEXT => size_of::<fi_cq_entry>(),
        FI_CQ_FORMAT_MSG => size_of::<fi_cq_msg_entry>(),
        FI_CQ_FORMAT_DATA => size_of::<fi_cq_data_entry>(),
        _ => size_of::<fi_cq_tagged_entry>(),
    };
    // SAFETY: as the caller promises; shorter formats are the beginnings of the longest.
    unsafe {
        let to = buffer.cast::<u8>().add(index * size);
        core::ptr::copy_nonoverlapping((&raw const full).cast::<u8>(), to, size);
    }
}

unsafe extern "C" fn readerr(queue: *mut fid_cq, buffer: *mut fi_cq_err_entry, _flags: u64) -> isize {
    let mut world = world();
    if let Answer::Fail(errno) = world.answer(Call::ReadError) {
        return errno.wrapping_neg() as isize;
    }
    let Some(state) = world.queues.get_mut(&queue.addr()) else { return -(FI_EINVAL as isize) };
    let Some(entry) = state.take(true) else {
        return -(FI_EAGAIN as isize);
    };
    world.handed_out(entry);
    let (err, prov_errno) = entry.error.unwrap_or_default();
    // SAFETY: a whole entry, says the caller. The fields exist since 1.17.
    unsafe {
        (*buffer).op_context = entry.context as *mut c_void;
        (*buffer).flags = entry.flags;
        (*buffer).len = 0;
        (*buffer).olen = 0;
        (*buffer).err = err;
        (*buffer).prov_errno = prov_errno;
        (*buffer).err_data = core::ptr::null_mut();
        (*buffer).err_data_size = 0;
    }
    1
}

unsafe extern "C" fn strerror(
    _queue: *mut fid_cq,
    prov_errno: i32,
    _err_data: *const c_void,
    buffer: *mut c_char,
    len: usize,
) -> *const c_char {
    // An odd number has no text at all, which providers may do.
    if prov_errno % 2 != 0 {
        return core::ptr::null();
    }
    let text = c"as the script says";
    if !buffer.is_null() && len > 0 {
        let room = text.count_bytes().min(len - 1);
        // SAFETY: room for `len` bytes, says the caller.
        unsafe {
            core::ptr::copy_nonoverlapping(text.as_ptr(), buffer, room);
            *buffer.add(room) = 0;
        }
    }
    text.as_ptr()
}
