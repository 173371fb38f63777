//! Endpoints: every data transfer ends in [`post`] or [`inject`].

use core::ffi::c_void;
use std::sync::LazyLock;

use fabric_sys::*;
use libc::iovec;

use crate::provider::{Any, DEPTH};
use crate::script::{Answer, Call, Placed};
use crate::world::{End, Operation, Span, touch, world};
use crate::{fid_ops, new_fid, objects};

/// Length of an endpoint's name in bytes, the NUL at its end included.
pub(crate) const NAME_LEN: usize = 16;

pub(crate) unsafe extern "C" fn open(
    _domain: *mut fid_domain,
    _info: *mut fi_info,
    endpoint: *mut *mut fid_ep,
    context: Any,
) -> i32 {
    static FID: LazyLock<fi_ops> = LazyLock::new(|| fid_ops(close, Some(bind), Some(control)));
    static OPS: LazyLock<fi_ops_ep> = LazyLock::new(|| fi_ops_ep {
        size: size_of::<fi_ops_ep>(),
        cancel: Some(cancel),
        ..Default::default()
    });
    static NAME: LazyLock<fi_ops_cm> = LazyLock::new(|| fi_ops_cm {
        size: size_of::<fi_ops_cm>(),
        getname: Some(getname),
        ..Default::default()
    });
    static MESSAGES: LazyLock<fi_ops_msg> = LazyLock::new(messages);
    static TAGGED: LazyLock<fi_ops_tagged> = LazyLock::new(tagged);
    static RMA: LazyLock<fi_ops_rma> = LazyLock::new(rma);
    static ATOMIC: LazyLock<fi_ops_atomic> = LazyLock::new(atomic);
    let object = fid_ep {
        fid: new_fid(FI_CLASS_EP, context, &FID),
        ops: core::ptr::from_ref(&*OPS).cast_mut(),
        cm: core::ptr::from_ref(&*NAME).cast_mut(),
        msg: core::ptr::from_ref(&*MESSAGES).cast_mut(),
        rma: core::ptr::from_ref(&*RMA).cast_mut(),
        tagged: core::ptr::from_ref(&*TAGGED).cast_mut(),
        atomic: core::ptr::from_ref(&*ATOMIC).cast_mut(),
        ..Default::default()
    };
    // SAFETY: the caller's out-pointer.
    unsafe {
        objects::open(endpoint, object, |address| {
            world().add_endpoint(address);
        })
    }
}

unsafe extern "C" fn close(fid: *mut fid) -> i32 {
    if world().bound.values().any(|endpoint| *endpoint == fid.addr()) {
        return -FI_EBUSY;
    }
    // SAFETY: the entry of an endpoint.
    unsafe { objects::close::<fid_ep>(fid, Call::CloseEndpoint, |address| world().forget_endpoint(address)) }
}

unsafe extern "C" fn bind(endpoint: *mut fid, to: *mut fid, flags: u64) -> i32 {
    let mut world = world();
    if let Err(status) = world.status(Call::Bind) {
        return status;
    }
    // SAFETY: an open object, says the caller.
    if unsafe { (*to).fclass } == FI_CLASS_CQ
        && let Some(state) = world.endpoints.get_mut(&endpoint.addr())
    {
        if flags & FI_TRANSMIT != 0 {
            state.transmit_queue = to.addr();
        }
        if flags & FI_RECV != 0 {
            state.receive_queue = to.addr();
        }
    }
    0
}

unsafe extern "C" fn control(endpoint: *mut fid, command: i32, _arg: Any) -> i32 {
    if command != FI_ENABLE {
        return -FI_ENOSYS;
    }
    let mut world = world();
    if let Err(status) = world.status(Call::Enable) {
        return status;
    }
    if let Some(state) = world.endpoints.get_mut(&endpoint.addr()) {
        state.enabled = true;
    }
    0
}

unsafe extern "C" fn cancel(endpoint: *mut fid, context: Any) -> isize {
    let mut world = world();
    if let Err(status) = world.status(Call::Cancel) {
        return status as isize;
    }
    let state = world.endpoints.get_mut(&endpoint.addr());
    let operation = state.and_then(|state| state.operations.iter_mut().find(|o| o.context == context.addr()));
    match operation {
        Some(operation) => {
            operation.after = 0;
            operation.end = End::Badly { errno: FI_ECANCELED, provider_errno: 0 };
            0
        }
        None => -(FI_ENOENT as isize),
    }
}

unsafe extern "C" fn getname(endpoint: *mut fid, out: Any, len: *mut usize) -> i32 {
    let number = world().endpoints.get(&endpoint.addr()).map_or(0, |state| state.number);
    // SAFETY: room for `*len` bytes, says the caller.
    unsafe { write_name(number, out, len) }
}

/// Writes a name of [`NAME_LEN`] bytes, or as much as there is room for.
///
/// # Safety
/// `out` has room for `*len` bytes, and `len` can be written.
pub(crate) unsafe fn write_name(number: u64, out: Any, len: *mut usize) -> i32 {
    let mut name = [0_u8; NAME_LEN];
    let text = format!("scripted:{number}");
    let text = &text.as_bytes()[..text.len().min(NAME_LEN - 1)];
    name[..text.len()].copy_from_slice(text);
    // SAFETY: as the caller promises.
    unsafe {
        let room = (*len).min(NAME_LEN);
        if room > 0 {
            core::ptr::copy_nonoverlapping(name.as_ptr(), out.cast(), room);
        }
        let fits = *len >= NAME_LEN;
        *len = NAME_LEN;
        if fits { 0 } else { -FI_ETOOSMALL }
    }
}

/// One contiguous range.
fn span(buffer: *const c_void, len: usize, written: bool) -> Vec<Span> {
    vec![Span { address: buffer.addr(), len, written }]
}

/// Several ranges.
///
/// # Safety
/// `iov` points to `count` ranges.
unsafe fn spans(iov: *const iovec, count: usize, written: bool) -> Vec<Span> {
    // SAFETY: as the caller promises.
    let range = |index| unsafe { *iov.add(index) };
    (0..count).map(range).map(|r| Span { address: r.iov_base.addr(), len: r.iov_len, written }).collect()
}

/// Starts an operation, or does not, as the script says.
fn post(endpoint: *mut fid_ep, call: Call, flags: u64, spans: Vec<Span>, context: Any) -> isize {
    let mut world = world();
    let (after, end) = match world.answer(call) {
        Answer::Fail(errno) => {
            world.refused();
            return errno.wrapping_neg() as isize;
        }
        Answer::Complete { after } => (after, End::Well),
        Answer::Error { errno, provider_errno, after } => (after, End::Badly { errno, provider_errno }),
        Answer::Never => (0, End::Never),
        Answer::Twice => (0, End::Twice),
        _ if call == Call::Receive => (0, End::Never),
        _ => (0, world.usual_end(endpoint.addr())),
    };
    let Some(state) = world.endpoints.get(&endpoint.addr()) else { return -(FI_EINVAL as isize) };
    let queue = if call == Call::Receive { state.receive_queue } else { state.transmit_queue };
    if !state.enabled {
        world.faults.wrong_state += 1;
        return -(FI_EOPBADSTATE as isize);
    }
    let same_side = |operation: &&Operation| (operation.flags & FI_RECV) == (flags & FI_RECV);
    if state.operations.iter().filter(same_side).count() >= DEPTH {
        world.refused();
        return -(FI_EAGAIN as isize);
    }
    world.bell(endpoint.addr(), flags & FI_MORE != 0);
    let flags = flags & !FI_MORE;
    world.accept(endpoint.addr(), Operation { context: context.addr(), flags, spans, queue, after, end });
    0
}

/// Takes the bytes at once, or does not, as the script says.
fn inject(buffer: *const c_void, len: usize) -> isize {
    let mut world = world();
    if let Err(status) = world.status(Call::Inject) {
        world.refused();
        return status as isize;
    }
    world.injected();
    touch(&Span { address: buffer.addr(), len, written: false });
    0
}

const SEND: u64 = FI_SEND | FI_MSG;
const RECEIVE: u64 = FI_RECV | FI_MSG;
const WRITE: u64 = FI_WRITE | FI_RMA;
const READ: u64 = FI_READ | FI_RMA;
const TAG: u64 = FI_TAGGED;

type Ep = *mut fid_ep;
type Buf = *const c_void;
type Descs = *mut *mut c_void;

fn messages() -> fi_ops_msg {
    unsafe extern "C" fn recv(e: Ep, b: Any, n: usize, _: Any, _: u64, c: Any) -> isize {
        post(e, Call::Receive, RECEIVE, span(b, n, true), c)
    }
    unsafe extern "C" fn recvv(e: Ep, v: *const iovec, _: Descs, n: usize, _: u64, c: Any) -> isize {
        // SAFETY: `n` ranges, says the caller. The same holds below.
        post(e, Call::Receive, RECEIVE, unsafe { spans(v, n, true) }, c)
    }
    unsafe extern "C" fn recvmsg(e: Ep, m: *const fi_msg, _: u64) -> isize {
        // SAFETY: a whole message.
        let (m, ranges) = unsafe { (&*m, spans((*m).msg_iov, (*m).iov_count, true)) };
        post(e, Call::Receive, RECEIVE, ranges, m.context)
    }
    unsafe extern "C" fn send(e: Ep, b: Buf, n: usize, _: Any, _: u64, c: Any) -> isize {
        post(e, Call::Post, SEND, span(b, n, false), c)
    }
    unsafe extern "C" fn sendv(e: Ep, v: *const iovec, _: Descs, n: usize, _: u64, c: Any) -> isize {
        // SAFETY: as above.
        post(e, Call::Post, SEND, unsafe { spans(v, n, false) }, c)
    }
    unsafe extern "C" fn sendmsg(e: Ep, m: *const fi_msg, _: u64) -> isize {
        // SAFETY: a whole message.
        let (m, ranges) = unsafe { (&*m, spans((*m).msg_iov, (*m).iov_count, false)) };
        post(e, Call::Post, SEND, ranges, m.context)
    }
    unsafe extern "C" fn injected(_: Ep, b: Buf, n: usize, _: u64) -> isize {
        inject(b, n)
    }
    unsafe extern "C" fn senddata(e: Ep, b: Buf, n: usize, _: Any, _: u64, _: u64, c: Any) -> isize {
        post(e, Call::Post, SEND, span(b, n, false), c)
    }
    unsafe extern "C" fn injectdata(_: Ep, b: Buf, n: usize, _: u64, _: u64) -> isize {
        inject(b, n)
    }
    fi_ops_msg {
        size: size_of::<fi_ops_msg>(),
        recv: Some(recv),
        recvv: Some(recvv),
        recvmsg: Some(recvmsg),
        send: Some(send),
        sendv: Some(sendv),
        sendmsg: Some(sendmsg),
        inject: Some(injected),
        senddata: Some(senddata),
        injectdata: Some(injectdata),
    }
}

fn tagged() -> fi_ops_tagged {
    unsafe extern "C" fn recv(e: Ep, b: Any, n: usize, _: Any, _: u64, _: u64, _: u64, c: Any) -> isize {
        post(e, Call::Receive, RECEIVE | TAG, span(b, n, true), c)
    }
    unsafe extern "C" fn recvmsg(e: Ep, m: *const fi_msg_tagged, _: u64) -> isize {
        // SAFETY: a whole message.
        let (m, ranges) = unsafe { (&*m, spans((*m).msg_iov, (*m).iov_count, true)) };
        post(e, Call::Receive, RECEIVE | TAG, ranges, m.context)
    }
    unsafe extern "C" fn send(e: Ep, b: Buf, n: usize, _: Any, _: u64, _: u64, c: Any) -> isize {
        post(e, Call::Post, SEND | TAG, span(b, n, false), c)
    }
    unsafe extern "C" fn sendmsg(e: Ep, m: *const fi_msg_tagged, _: u64) -> isize {
        // SAFETY: a whole message.
        let (m, ranges) = unsafe { (&*m, spans((*m).msg_iov, (*m).iov_count, false)) };
        post(e, Call::Post, SEND | TAG, ranges, m.context)
    }
    unsafe extern "C" fn injected(_: Ep, b: Buf, n: usize, _: u64, _: u64) -> isize {
        inject(b, n)
    }
    unsafe extern "C" fn injectdata(_: Ep, b: Buf, n: usize, _: u64, _: u64, _: u64) -> isize {
        inject(b, n)
    }
    fi_ops_tagged {
        size: size_of::<fi_ops_tagged>(),
        recv: Some(recv),
        recvmsg: Some(recvmsg),
        send: Some(send),
        sendmsg: Some(sendmsg),
        inject: Some(injected),
        injectdata: Some(injectdata),
        ..Default::default()
    }
}

fn rma() -> fi_ops_rma {
    /// Notes where an operation goes, if it was accepted.
    fn note(e: Ep, status: isize, (peer, address, key): (u64, u64, u64), immediate: bool) -> isize {
        if status == 0 {
            world().placed(e.addr(), Placed { endpoint: 0, peer, address, key, immediate });
        }
        status
    }
    /// Where a message goes.
    ///
    /// # Safety
    /// It is whole.
    unsafe fn way(m: *const fi_msg_rma) -> (u64, u64, u64) {
        // SAFETY: as the caller promises.
        let (m, there) = unsafe { (&*m, (*m).rma_iov.as_ref()) };
        there.map_or((m.addr, 0, 0), |there| (m.addr, there.addr, there.key))
    }
    unsafe extern "C" fn read(e: Ep, b: Any, n: usize, _: Any, p: u64, a: u64, k: u64, c: Any) -> isize {
        note(e, post(e, Call::Post, READ, span(b, n, true), c), (p, a, k), false)
    }
    unsafe extern "C" fn readmsg(e: Ep, m: *const fi_msg_rma, flags: u64) -> isize {
        // SAFETY: a whole message.
        let (way, m, ranges) = unsafe { (way(m), &*m, spans((*m).msg_iov, (*m).iov_count, true)) };
        note(e, post(e, Call::Post, READ | flags & FI_MORE, ranges, m.context), way, false)
    }
    unsafe extern "C" fn write(e: Ep, b: Buf, n: usize, _: Any, p: u64, a: u64, k: u64, c: Any) -> isize {
        note(e, post(e, Call::Post, WRITE, span(b, n, false), c), (p, a, k), false)
    }
    unsafe extern "C" fn writemsg(e: Ep, m: *const fi_msg_rma, flags: u64) -> isize {
        // SAFETY: a whole message.
        let (way, m, ranges) = unsafe { (way(m), &*m, spans((*m).msg_iov, (*m).iov_count, false)) };
        let immediate = flags & FI_REMOTE_CQ_DATA != 0;
        note(e, post(e, Call::Post, WRITE | flags & FI_MORE, ranges, m.context), way, immediate)
    }
    unsafe extern "C" fn injected(_: Ep, b: Buf, n: usize, _: u64, _: u64, _: u64) -> isize {
        inject(b, n)
    }
    unsafe extern "C" fn injectdata(_: Ep, b: Buf, n: usize, _: u64, _: u64, _: u64, _: u64) -> isize {
        inject(b, n)
    }
    fi_ops_rma {
        size: size_of::<fi_ops_rma>(),
        read: Some(read),
        readmsg: Some(readmsg),
        write: Some(write),
        writemsg: Some(writemsg),
        inject: Some(injected),
        injectdata: Some(injectdata),
        ..Default::default()
    }
}

/// Only 64-bit operands.
fn atomic() -> fi_ops_atomic {
    type Op = u32;
    unsafe extern "C" fn fetch(
        e: Ep,
        b: Buf,
        n: usize,
        _: Any,
        r: Any,
        _: Any,
        _: u64,
        _: u64,
        _: u64,
        _: Op,
        _: Op,
        c: Any,
    ) -> isize {
        let ranges = [span(b, n * 8, false), span(r, n * 8, true)].concat();
        post(e, Call::Post, READ | FI_ATOMIC, ranges, c)
    }
    unsafe extern "C" fn compare(
        e: Ep,
        b: Buf,
        n: usize,
        _: Any,
        o: Buf,
        _: Any,
        r: Any,
        _: Any,
        _: u64,
        _: u64,
        _: u64,
        _: Op,
        _: Op,
        c: Any,
    ) -> isize {
        let ranges = [span(b, n * 8, false), span(o, n * 8, false), span(r, n * 8, true)].concat();
        post(e, Call::Post, READ | FI_ATOMIC, ranges, c)
    }
    fi_ops_atomic {
        size: size_of::<fi_ops_atomic>(),
        readwrite: Some(fetch),
        compwrite: Some(compare),
        ..Default::default()
    }
}
