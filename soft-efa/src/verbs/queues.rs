//! Completion channels, completion queues, queue pairs: making, changing, asking, destroying.

use super::context::card_of;
use super::memory::pd_number;
use super::post::Session;
use super::{errno_of, fail, poll, post};
use crate::abi::*;
use crate::card::completion::{Channel, Completion, CompletionQueue};
use crate::card::device::Card;
use crate::card::engine;
use crate::card::queue_pair::{MAX_RECV_SGE, MAX_SEND_SGE, QueuePair, Shape};
use std::collections::VecDeque;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A lock that is taken in one call from C and given back in another.
#[derive(Default)]
pub(crate) struct CallLock(AtomicBool);

impl CallLock {
    /// Takes it, giving the core away while another thread has it.
    pub(crate) fn take(&self) {
        while self.0.swap(true, Ordering::Acquire) {
            std::thread::yield_now();
        }
    }

    /// Gives it back.
    pub(crate) fn give(&self) {
        self.0.store(false, Ordering::Release);
    }
}

/// A completion channel.
#[repr(C)]
pub(crate) struct CompletionChannel {
    base: ibv_comp_channel,
    channel: Arc<Channel>,
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_comp_channel(context: *mut ibv_context) -> *mut ibv_comp_channel {
    match Channel::new() {
        Ok(channel) => {
            let base = ibv_comp_channel { context, fd: channel.fd(), refcnt: 0 };
            Box::into_raw(Box::new(CompletionChannel { base, channel: Arc::new(channel) })).cast()
        }
        Err(error) => fail(errno_of(&error)),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_comp_channel(channel: *mut ibv_comp_channel) -> c_int {
    // SAFETY: from ibv_create_comp_channel.
    if unsafe { (*channel).refcnt } > 0 {
        return libc::EBUSY;
    }
    // SAFETY: as above, given back once.
    drop(unsafe { Box::from_raw(channel.cast::<CompletionChannel>()) });
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_cq_event(
    channel: *mut ibv_comp_channel,
    cq: *mut *mut ibv_cq,
    context: *mut *mut c_void,
) -> c_int {
    // SAFETY: one of our channels.
    let next = unsafe { &*channel.cast::<CompletionChannel>() }.channel.next();
    match next {
        Ok(handle) => {
            // SAFETY: events of destroyed queues are taken out of the channel, so this queue lives; the caller's two pointers.
            unsafe {
                *cq = handle as *mut ibv_cq;
                *context = (**cq).cq_context;
            }
            0
        }
        Err(_) => -1,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_ack_cq_events(cq: *mut ibv_cq, count: c_uint) {
    // SAFETY: a queue of ours; the field is the program's to read.
    unsafe { (*cq).comp_events_completed = (*cq).comp_events_completed.wrapping_add(count) };
}

/// A completion queue as C sees it, and what is behind it.
#[repr(C)]
pub(crate) struct Cq {
    pub(crate) ex: ibv_cq_ex,
    pub(crate) dv: efadv_cq,
    pub(crate) queue: Arc<CompletionQueue>,
    pub(crate) card: Arc<Card>,
    pub(crate) polling: CallLock,
    /// Entries taken from the queue and not yet shown.
    pub(crate) taken: VecDeque<Completion>,
    /// The entry that is shown.
    pub(crate) current: Option<Completion>,
}

pub(crate) fn new_cq(
    context: *mut ibv_context,
    cqe: u32,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
) -> Result<*mut Cq, c_int> {
    if cqe == 0 || cqe > 1 << 22 {
        return Err(libc::EINVAL);
    }
    // SAFETY: an open context; a channel of ours or null.
    let (card, shared) = unsafe {
        let shared = (!channel.is_null()).then(|| {
            (*channel).refcnt += 1;
            (*channel.cast::<CompletionChannel>()).channel.clone()
        });
        (card_of(context), shared)
    };
    let queue = Arc::new(CompletionQueue::new(cqe as usize, shared));
    // SAFETY: all-zero is valid: null pointers, zero integers, unlocked mutexes.
    let mut ex: ibv_cq_ex = unsafe { std::mem::zeroed() };
    ex.base.context = context;
    ex.base.channel = channel;
    ex.base.cq_context = cq_context;
    ex.base.cqe = queue.capacity() as c_int;
    poll::fill(&mut ex);
    let dv = efadv_cq {
        comp_mask: 0,
        wc_read_sgid: poll::wc_read_sgid as Slot,
        wc_is_unsolicited: poll::wc_is_unsolicited as Slot,
    };
    let cq = Box::into_raw(Box::new(Cq {
        ex,
        dv,
        queue,
        card: card.clone(),
        polling: CallLock::default(),
        taken: VecDeque::new(),
        current: None,
    }));
    // SAFETY: fresh.
    unsafe { (*cq).queue.set_handle(cq as usize) };
    Ok(cq)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_cq(
    context: *mut ibv_context,
    cqe: c_int,
    cq_context: *mut c_void,
    channel: *mut ibv_comp_channel,
    _vector: c_int,
) -> *mut ibv_cq {
    new_cq(context, cqe.max(0) as u32, cq_context, channel).map_or_else(fail, |cq| cq.cast())
}

pub(crate) unsafe extern "C" fn create_cq_ex(
    context: *mut ibv_context,
    attr: *mut ibv_cq_init_attr_ex,
) -> *mut ibv_cq_ex {
    // SAFETY: the caller's attributes.
    let attr = unsafe { &*attr };
    if attr.comp_mask != 0 || attr.wc_flags & !IBV_WC_STANDARD_FLAGS != 0 {
        return fail(libc::EOPNOTSUPP);
    }
    new_cq(context, attr.cqe, attr.cq_context, attr.channel).map_or_else(fail, |cq| cq.cast())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_cq(cq: *mut ibv_cq) -> c_int {
    // SAFETY: a queue of ours.
    let own = unsafe { &mut *cq.cast::<Cq>() };
    if own.queue.users.load(Ordering::Acquire) > 0 {
        return libc::EBUSY;
    }
    own.queue.disarm(&own.card.process);
    if let Some(channel) = own.queue.channel() {
        channel.forget(cq as usize);
    }
    // Entries hold their queue pairs, which hold this queue: let go of them.
    own.queue.clear();
    // SAFETY: its channel outlives it, which ibv_destroy_comp_channel checks; the queue itself is given back once.
    unsafe {
        if !own.ex.base.channel.is_null() {
            (*own.ex.base.channel).refcnt -= 1;
        }
        drop(Box::from_raw(cq.cast::<Cq>()));
    }
    0
}

/// A queue pair as C sees it, and what is behind it.
#[repr(C)]
pub(crate) struct Qp {
    pub(crate) ex: ibv_qp_ex,
    pub(crate) qp: Arc<QueuePair>,
    pub(crate) session: Session,
}

/// What the two ways of making a queue pair have in common.
pub(crate) struct Wanted {
    pub(crate) qp_context: *mut c_void,
    pub(crate) send_cq: *mut ibv_cq,
    pub(crate) recv_cq: *mut ibv_cq,
    pub(crate) srq: *mut c_void,
    pub(crate) cap: ibv_qp_cap,
    pub(crate) qp_type: u32,
    pub(crate) all_signaled: bool,
    pub(crate) pd: *mut ibv_pd,
    pub(crate) send_ops: u64,
    pub(crate) unsolicited: bool,
}

pub(crate) fn new_qp(context: *mut ibv_context, wanted: &Wanted) -> Result<*mut Qp, c_int> {
    // SAFETY: an open context.
    let card = unsafe { card_of(context) };
    let profile = &card.process.settings.profile;
    if wanted.send_cq.is_null() || wanted.recv_cq.is_null() || wanted.pd.is_null() || !wanted.srq.is_null() {
        return Err(libc::EINVAL);
    }
    let mut supported = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
    if wanted.qp_type == IBV_QPT_DRIVER {
        if profile.caps & EFADV_CAPS_RDMA_READ != 0 {
            supported |= IBV_QP_EX_WITH_RDMA_READ;
        }
        if profile.caps & EFADV_CAPS_RDMA_WRITE != 0 {
            supported |= IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM;
        }
    } else if wanted.qp_type != IBV_QPT_UD {
        return Err(libc::EOPNOTSUPP);
    }
    if wanted.send_ops & !supported != 0
        || (wanted.unsolicited && profile.caps & EFADV_CAPS_UNSOLICITED_WRITE_RECV == 0)
    {
        return Err(libc::EOPNOTSUPP);
    }
    let cap = &wanted.cap;
    if cap.max_send_sge > MAX_SEND_SGE as u32
        || cap.max_recv_sge > MAX_RECV_SGE as u32
        || cap.max_send_wr > profile.max_sq_wr
        || cap.max_recv_wr.saturating_mul(cap.max_recv_sge.max(1)) > profile.max_rq_wr
        || cap.max_inline_data > profile.inline_bytes.into()
    {
        return Err(libc::EINVAL);
    }
    // SAFETY: a domain of ours.
    let pd = unsafe { pd_number(wanted.pd) };
    let shape = Shape {
        datagram: wanted.qp_type == IBV_QPT_UD,
        pd,
        max_send: cap.max_send_wr.next_power_of_two(),
        max_receive: cap.max_recv_wr.next_power_of_two(),
        max_send_sge: cap.max_send_sge,
        max_recv_sge: cap.max_recv_sge,
        max_inline: cap.max_inline_data,
        unsolicited: wanted.unsolicited,
    };
    // SAFETY: queues of ours.
    let (send_cq, recv_cq) = unsafe {
        ((*wanted.send_cq.cast::<Cq>()).queue.clone(), (*wanted.recv_cq.cast::<Cq>()).queue.clone())
    };
    let qp = card.create_qp(shape, send_cq, recv_cq).map_err(|error| errno_of(&error))?;
    qp.send_cq.users.fetch_add(1, Ordering::AcqRel);
    qp.recv_cq.users.fetch_add(1, Ordering::AcqRel);
    // SAFETY: all-zero is valid: null pointers, zero integers, unlocked mutexes.
    let mut ex: ibv_qp_ex = unsafe { std::mem::zeroed() };
    ex.qp_base.context = context;
    ex.qp_base.qp_context = wanted.qp_context;
    ex.qp_base.pd = wanted.pd;
    ex.qp_base.send_cq = wanted.send_cq;
    ex.qp_base.recv_cq = wanted.recv_cq;
    ex.qp_base.handle = qp.number;
    ex.qp_base.qp_num = qp.number;
    ex.qp_base.state = IBV_QPS_RESET;
    ex.qp_base.qp_type = wanted.qp_type;
    post::fill(&mut ex);
    let session = Session::new(wanted.all_signaled, wanted.send_ops);
    Ok(Box::into_raw(Box::new(Qp { ex, qp, session })))
}

pub(crate) fn wanted_of(attr: &ibv_qp_init_attr_ex, unsolicited: bool) -> Result<Wanted, c_int> {
    if attr.comp_mask & !(IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS) != 0 {
        return Err(libc::EOPNOTSUPP);
    }
    if attr.comp_mask & IBV_QP_INIT_ATTR_PD == 0 {
        return Err(libc::EINVAL);
    }
    let send_ops =
        if attr.comp_mask & IBV_QP_INIT_ATTR_SEND_OPS_FLAGS != 0 { attr.send_ops_flags } else { 0 };
    Ok(Wanted {
        qp_context: attr.qp_context,
        send_cq: attr.send_cq,
        recv_cq: attr.recv_cq,
        srq: attr.srq,
        cap: attr.cap,
        qp_type: attr.qp_type,
        all_signaled: attr.sq_sig_all != 0,
        pd: attr.pd,
        send_ops,
        unsolicited,
    })
}

pub(crate) unsafe extern "C" fn create_qp_ex(
    context: *mut ibv_context,
    attr: *mut ibv_qp_init_attr_ex,
) -> *mut ibv_qp {
    // SAFETY: the caller's attributes.
    let attr = unsafe { &*attr };
    if attr.qp_type != IBV_QPT_UD {
        return fail(libc::EOPNOTSUPP);
    }
    wanted_of(attr, false).and_then(|wanted| new_qp(context, &wanted)).map_or_else(fail, |qp| qp.cast())
}

pub(crate) fn wanted_plain(pd: *mut ibv_pd, attr: &ibv_qp_init_attr, qp_type: u32) -> Wanted {
    Wanted {
        qp_context: attr.qp_context,
        send_cq: attr.send_cq,
        recv_cq: attr.recv_cq,
        srq: attr.srq,
        cap: attr.cap,
        qp_type,
        all_signaled: attr.sq_sig_all != 0,
        pd,
        send_ops: 0,
        unsolicited: false,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_create_qp(pd: *mut ibv_pd, attr: *mut ibv_qp_init_attr) -> *mut ibv_qp {
    // SAFETY: a domain of ours and the caller's attributes.
    let (context, attr) = unsafe { ((*pd).context, &*attr) };
    if attr.qp_type != IBV_QPT_UD {
        return fail(libc::EOPNOTSUPP);
    }
    new_qp(context, &wanted_plain(pd, attr, IBV_QPT_UD)).map_or_else(fail, |qp| qp.cast())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_qp_to_qp_ex(qp: *mut ibv_qp) -> *mut ibv_qp_ex {
    qp.cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_modify_qp(qp: *mut ibv_qp, attr: *mut ibv_qp_attr, mask: c_int) -> c_int {
    // SAFETY: a queue pair of ours and the caller's attributes.
    let (own, attr) = unsafe { (&mut *qp.cast::<Qp>(), &*attr) };
    let shared = &own.qp;
    let from = shared.state.load(Ordering::Acquire);
    let to = if mask & IBV_QP_STATE != 0 { attr.qp_state } else { from };
    let allowed = matches!(
        (from, to),
        (_, IBV_QPS_ERR | IBV_QPS_RESET)
            | (IBV_QPS_RESET | IBV_QPS_INIT, IBV_QPS_INIT)
            | (IBV_QPS_INIT | IBV_QPS_RTR, IBV_QPS_RTR)
            | (IBV_QPS_RTR | IBV_QPS_RTS | IBV_QPS_SQD, IBV_QPS_RTS)
            | (IBV_QPS_RTS | IBV_QPS_SQD, IBV_QPS_SQD)
    );
    if !allowed || (mask & IBV_QP_RNR_RETRY != 0 && attr.rnr_retry > 7) {
        return libc::EINVAL;
    }
    if mask & IBV_QP_QKEY != 0 {
        shared.qkey.store(attr.qkey, Ordering::SeqCst);
    }
    if mask & IBV_QP_RNR_RETRY != 0 {
        shared.rnr_retry.store(attr.rnr_retry.into(), Ordering::SeqCst);
    }
    shared.state.store(to, Ordering::SeqCst);
    own.ex.qp_base.state = to;
    shared.card.publish(shared);
    if to == IBV_QPS_ERR {
        engine::flush(&shared.card, shared);
        shared.flush_receives();
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_qp(
    qp: *mut ibv_qp,
    attr: *mut ibv_qp_attr,
    _mask: c_int,
    init: *mut ibv_qp_init_attr,
) -> c_int {
    // SAFETY: a queue pair of ours.
    let own = unsafe { &*qp.cast::<Qp>() };
    let shape = &own.qp.shape;
    let state = own.qp.state.load(Ordering::Acquire);
    let cap = ibv_qp_cap {
        max_send_wr: shape.max_send,
        max_recv_wr: shape.max_receive,
        max_send_sge: shape.max_send_sge,
        max_recv_sge: shape.max_recv_sge,
        max_inline_data: shape.max_inline,
    };
    // SAFETY: the caller's structures.
    unsafe {
        *attr = ibv_qp_attr {
            qp_state: state,
            cur_qp_state: state,
            qkey: own.qp.qkey.load(Ordering::Acquire),
            cap,
            port_num: 1,
            rnr_retry: own.qp.rnr_retry.load(Ordering::Acquire) as u8,
            ..ibv_qp_attr::default()
        };
        if !init.is_null() {
            *init = ibv_qp_init_attr {
                qp_context: own.ex.qp_base.qp_context,
                send_cq: own.ex.qp_base.send_cq,
                recv_cq: own.ex.qp_base.recv_cq,
                srq: std::ptr::null_mut(),
                cap,
                qp_type: own.ex.qp_base.qp_type,
                sq_sig_all: own.session.all_signaled() as c_int,
            };
        }
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_destroy_qp(qp: *mut ibv_qp) -> c_int {
    // SAFETY: a queue pair of ours, given back once.
    let own = unsafe { Box::from_raw(qp.cast::<Qp>()) };
    own.qp.card.destroy_qp(&own.qp);
    own.qp.send_cq.users.fetch_sub(1, Ordering::AcqRel);
    own.qp.recv_cq.users.fetch_sub(1, Ordering::AcqRel);
    0
}

/// Data is never promised to arrive in order.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_qp_data_in_order(_qp: *mut ibv_qp, _op: c_uint, _flags: u32) -> c_int {
    0
}
