//! Posting work requests.

use super::memory::Handle;
use super::queues::{CallLock, Qp};
use crate::abi::*;
use crate::card::engine;
use crate::card::queue_pair::{MAX_RECV_SGE, Receive};
use crate::card::request::{INLINE, Op, Request};
use std::ffi::{c_int, c_void};
use std::sync::atomic::Ordering;

/// What goes on between `wr_start` and `wr_complete`.
pub(crate) struct Session {
    open: CallLock,
    error: c_int,
    requests: Vec<Request>,
    all_signaled: bool,
    allowed: u64,
}

impl Session {
    /// `allowed`: the send operations (`IBV_QP_EX_WITH_*`) that were asked for.
    pub(crate) fn new(all_signaled: bool, allowed: u64) -> Session {
        Session { open: CallLock::default(), error: 0, requests: Vec::new(), all_signaled, allowed }
    }

    /// Whether each request is signaled.
    pub(crate) fn all_signaled(&self) -> bool {
        self.all_signaled
    }
}

/// Fills in the functions of an extended queue pair. Operations that EFA has not stay null, as with rdma-core.
pub(crate) fn fill(ex: &mut ibv_qp_ex) {
    ex.wr_rdma_read = wr_rdma_read as Slot;
    ex.wr_rdma_write = wr_rdma_write as Slot;
    ex.wr_rdma_write_imm = wr_rdma_write_imm as Slot;
    ex.wr_send = wr_send as Slot;
    ex.wr_send_imm = wr_send_imm as Slot;
    ex.wr_set_ud_addr = wr_set_ud_addr as Slot;
    ex.wr_set_inline_data = wr_set_inline_data as Slot;
    ex.wr_set_inline_data_list = wr_set_inline_data_list as Slot;
    ex.wr_set_sge = wr_set_sge as Slot;
    ex.wr_set_sge_list = wr_set_sge_list as Slot;
    ex.wr_start = wr_start as Slot;
    ex.wr_complete = wr_complete as Slot;
    ex.wr_abort = wr_abort as Slot;
}

/// # Safety
/// `qp` must be a queue pair of ours in a session of the calling thread.
unsafe fn own<'a>(qp: *mut ibv_qp_ex) -> &'a mut Qp {
    // SAFETY: by contract.
    unsafe { &mut *qp.cast::<Qp>() }
}

impl Qp {
    fn begin(&mut self, op: Op, flag: u64, rkey: u32, remote_address: u64, imm: u32) {
        let flags = self.ex.wr_flags;
        let wr_id = self.ex.wr_id;
        if self.session.error != 0 {
            return;
        }
        if !self.qp.can_send()
            || self.session.allowed & flag == 0
            || (flags & IBV_SEND_SIGNALED == 0 && !self.session.all_signaled)
            || flags & !(IBV_SEND_SIGNALED | IBV_SEND_INLINE) != 0
        {
            self.session.error = libc::EINVAL;
            return;
        }
        if self.session.requests.len() as u32 >= self.qp.send_room() {
            self.session.error = libc::ENOMEM;
            return;
        }
        self.session.requests.push(Request {
            qp: self.qp.clone(),
            remote: None,
            wr_id,
            op,
            num_sge: 0,
            inline_len: 0,
            refusals: 0,
            remote_qpn: 0,
            remote_qkey: 0,
            rkey,
            imm,
            length: 0,
            done: 0,
            doomed: false,
            judged: false,
            remote_address,
            sges: [ibv_sge::default(); 2],
            inline: [0; INLINE],
            age: 0,
            trace: 0,
            ending: None,
            finished: None,
        });
    }

    /// The request that the setters are about.
    fn current(&mut self) -> Option<&mut Request> {
        if self.session.error != 0 {
            return None;
        }
        self.session.requests.last_mut()
    }

    fn set_sges(&mut self, sges: &[ibv_sge]) {
        let most = self.qp.shape.max_send_sge as usize;
        let Some(request) = self.current() else { return };
        // One local range for RDMA, as EFA_IO_TX_DESC_NUM_RDMA_BUFS says.
        let most = if request.op.is_rdma() { most.min(1) } else { most.min(2) };
        let total: u64 = sges.iter().map(|sge| u64::from(sge.length)).sum();
        if sges.len() > most || total > u32::MAX.into() {
            self.session.error = libc::EINVAL;
            return;
        }
        request.sges[..sges.len()].copy_from_slice(sges);
        request.num_sge = sges.len() as u8;
        request.length = total as u32;
    }

    /// # Safety
    /// The parts must be readable.
    unsafe fn set_inline(&mut self, parts: impl Iterator<Item = (*const u8, usize)>) {
        let most = self.qp.shape.max_inline as usize;
        let Some(request) = self.current() else { return };
        let mut length = 0;
        let mut fits = !request.op.is_rdma();
        for (from, bytes) in parts {
            if !fits || bytes > most.min(INLINE) - length {
                fits = false;
                break;
            }
            // SAFETY: by contract; there is room, as was just checked.
            unsafe { request.inline.as_mut_ptr().add(length).copy_from_nonoverlapping(from, bytes) };
            length += bytes;
        }
        request.num_sge = 0;
        request.inline_len = length as u8;
        request.length = length as u32;
        if !fits {
            self.session.error = libc::EINVAL;
        }
    }

    fn finish(&mut self) -> c_int {
        let mut error = self.session.error;
        if error == 0 && !self.qp.take_send_slots(self.session.requests.len() as u32) {
            error = libc::ENOMEM;
        }
        if error == 0 {
            engine::submit(&self.qp.card, &mut self.session.requests);
        } else {
            self.session.requests.clear();
        }
        self.session.open.give();
        error
    }
}

unsafe extern "C" fn wr_start(qp: *mut ibv_qp_ex) {
    // SAFETY: the lock may be used by any thread; the rest is ours while it is held.
    unsafe {
        (*qp.cast::<Qp>()).session.open.take();
        let session = &mut own(qp).session;
        session.error = 0;
        session.requests.clear();
    }
}

unsafe extern "C" fn wr_complete(qp: *mut ibv_qp_ex) -> c_int {
    // SAFETY: in a session, as for all functions below.
    unsafe { own(qp) }.finish()
}

unsafe extern "C" fn wr_abort(qp: *mut ibv_qp_ex) {
    // SAFETY: in a session.
    let session = unsafe { &mut own(qp).session };
    session.requests.clear();
    session.open.give();
}

unsafe extern "C" fn wr_send(qp: *mut ibv_qp_ex) {
    // SAFETY: in a session.
    unsafe { own(qp) }.begin(Op::Send, IBV_QP_EX_WITH_SEND, 0, 0, 0);
}

unsafe extern "C" fn wr_send_imm(qp: *mut ibv_qp_ex, imm: u32) {
    // SAFETY: in a session.
    unsafe { own(qp) }.begin(Op::SendImm, IBV_QP_EX_WITH_SEND_WITH_IMM, 0, 0, imm);
}

unsafe extern "C" fn wr_rdma_read(qp: *mut ibv_qp_ex, rkey: u32, address: u64) {
    // SAFETY: in a session.
    unsafe { own(qp) }.begin(Op::Read, IBV_QP_EX_WITH_RDMA_READ, rkey, address, 0);
}

unsafe extern "C" fn wr_rdma_write(qp: *mut ibv_qp_ex, rkey: u32, address: u64) {
    // SAFETY: in a session.
    unsafe { own(qp) }.begin(Op::Write, IBV_QP_EX_WITH_RDMA_WRITE, rkey, address, 0);
}

unsafe extern "C" fn wr_rdma_write_imm(qp: *mut ibv_qp_ex, rkey: u32, address: u64, imm: u32) {
    // SAFETY: in a session.
    unsafe { own(qp) }.begin(Op::WriteImm, IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM, rkey, address, imm);
}

unsafe extern "C" fn wr_set_ud_addr(qp: *mut ibv_qp_ex, ah: *mut ibv_ah, remote_qpn: u32, remote_qkey: u32) {
    // SAFETY: in a session; an address handle of ours.
    let (own, handle) = unsafe { (own(qp), &*ah.cast::<Handle>()) };
    if let Some(request) = own.current() {
        request.remote = Some(handle.remote.clone());
        request.remote_qpn = remote_qpn;
        request.remote_qkey = remote_qkey;
    }
}

unsafe extern "C" fn wr_set_inline_data(qp: *mut ibv_qp_ex, address: *mut c_void, length: usize) {
    // SAFETY: in a session; the caller's bytes are readable.
    unsafe { own(qp).set_inline(std::iter::once((address.cast_const().cast(), length))) };
}

unsafe extern "C" fn wr_set_inline_data_list(qp: *mut ibv_qp_ex, count: usize, list: *const ibv_data_buf) {
    // SAFETY: in a session; the caller's list and its bytes are readable.
    unsafe {
        let list = std::slice::from_raw_parts(list, count);
        own(qp).set_inline(list.iter().map(|part| (part.addr.cast_const().cast(), part.length)));
    }
}

unsafe extern "C" fn wr_set_sge(qp: *mut ibv_qp_ex, lkey: u32, addr: u64, length: u32) {
    // SAFETY: in a session.
    unsafe { own(qp) }.set_sges(&[ibv_sge { addr, length, lkey }]);
}

unsafe extern "C" fn wr_set_sge_list(qp: *mut ibv_qp_ex, count: usize, list: *const ibv_sge) {
    let list = if count == 0 {
        &[]
    } else {
        // SAFETY: the caller's list.
        unsafe { std::slice::from_raw_parts(list, count) }
    };
    // SAFETY: in a session.
    unsafe { own(qp) }.set_sges(list);
}

/// `ibv_post_send`: sends only, as EFA's.
pub(crate) unsafe extern "C" fn post_send(
    qp: *mut ibv_qp,
    wr: *mut ibv_send_wr,
    bad: *mut *mut ibv_send_wr,
) -> c_int {
    let ex = qp.cast::<ibv_qp_ex>();
    let mut next = wr;
    while !next.is_null() {
        // SAFETY: the caller's chain of requests; each is posted in a session of its own.
        let result = unsafe {
            let wr = &*next;
            wr_start(ex);
            let own = own(ex);
            own.ex.wr_id = wr.wr_id;
            own.ex.wr_flags = wr.send_flags;
            let allowed = std::mem::replace(
                &mut own.session.allowed,
                IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM,
            );
            match wr.opcode {
                IBV_WR_SEND => wr_send(ex),
                IBV_WR_SEND_WITH_IMM => wr_send_imm(ex, wr.imm_data),
                _ => own.session.error = libc::EINVAL,
            }
            wr_set_ud_addr(ex, wr.ud.ah, wr.ud.remote_qpn, wr.ud.remote_qkey);
            let list: &[ibv_sge] = if wr.num_sge > 0 {
                std::slice::from_raw_parts(wr.sg_list, wr.num_sge as usize)
            } else {
                &[]
            };
            if wr.send_flags & IBV_SEND_INLINE != 0 {
                own.set_inline(list.iter().map(|sge| (sge.addr as *const u8, sge.length as usize)));
            } else {
                own.set_sges(list);
            }
            own.session.allowed = allowed;
            next = wr.next;
            let result = own.finish();
            if result != 0 && !bad.is_null() {
                *bad = std::ptr::from_ref(wr).cast_mut();
            }
            result
        };
        if result != 0 {
            return result;
        }
    }
    0
}

/// `ibv_post_recv`.
pub(crate) unsafe extern "C" fn post_recv(
    qp: *mut ibv_qp,
    wr: *mut ibv_recv_wr,
    bad: *mut *mut ibv_recv_wr,
) -> c_int {
    // SAFETY: a queue pair of ours, whose shared part may be used by any thread.
    let shared = unsafe { &(*qp.cast::<Qp>()).qp };
    let most = (shared.shape.max_recv_sge as usize).min(MAX_RECV_SGE);
    let mut next = wr;
    while !next.is_null() {
        // SAFETY: the caller's chain of requests.
        let wr = unsafe { &*next };
        let state = shared.state.load(Ordering::Acquire);
        let count = wr.num_sge.max(0) as usize;
        let mut error = 0;
        if state == IBV_QPS_RESET || state == IBV_QPS_ERR || count > most {
            error = libc::EINVAL;
        } else {
            let mut receive =
                Receive { wr_id: wr.wr_id, sges: [ibv_sge::default(); MAX_RECV_SGE], num_sge: count as u8 };
            for index in 0..count {
                // SAFETY: the list has num_sge entries.
                receive.sges[index] = unsafe { *wr.sg_list.add(index) };
            }
            if shared.post(&[receive]) == 0 {
                error = libc::ENOMEM;
            }
        }
        if error != 0 {
            if !bad.is_null() {
                // SAFETY: the caller's pointer.
                unsafe { *bad = next };
            }
            return error;
        }
        next = wr.next;
    }
    0
}
