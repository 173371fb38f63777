//! Reading completion queues.

use super::queues::Cq;
use crate::abi::*;
use crate::card::completion::{Completion, Queue};
use crate::card::thread;
use std::ffi::{c_int, c_void};
use std::mem::offset_of;
use std::sync::atomic::Ordering;

/// Fills in the functions of an extended queue.
pub(crate) fn fill(ex: &mut ibv_cq_ex) {
    ex.start_poll = start_poll as Slot;
    ex.next_poll = next_poll as Slot;
    ex.end_poll = end_poll as Slot;
    ex.read_opcode = read_opcode as Slot;
    ex.read_vendor_err = read_vendor_err as Slot;
    ex.read_byte_len = read_byte_len as Slot;
    ex.read_imm_data = read_imm_data as Slot;
    ex.read_qp_num = read_qp_num as Slot;
    ex.read_src_qp = read_src_qp as Slot;
    ex.read_wc_flags = read_wc_flags as Slot;
    ex.read_slid = read_slid as Slot;
    ex.read_sl = read_nothing as Slot;
    ex.read_dlid_path_bits = read_nothing as Slot;
}

impl Cq {
    /// The next entry whose queue pair still lives.
    fn next(&mut self) -> Option<Completion> {
        loop {
            if self.taken.is_empty() {
                if self.queue.is_empty() {
                    return None;
                }
                self.queue.take(&mut self.taken);
            }
            let completion = self.taken.pop_front()?;
            self.queue.consumed(&completion);
            if !completion.qp.destroyed.load(Ordering::Acquire) {
                return Some(completion);
            }
        }
    }

    /// As `next`, and lets the card work on the caller's time when there is nothing.
    fn next_or_work(&mut self) -> Option<Completion> {
        self.next().or_else(|| {
            thread::lend(&self.card, &self.queue);
            self.next()
        })
    }

    fn show(&mut self, completion: Option<Completion>) -> c_int {
        let Some(completion) = completion else { return libc::ENOENT };
        self.ex.wr_id = completion.wr_id;
        self.ex.status = completion.status.wc_status();
        self.current = Some(completion);
        0
    }
}

/// # Safety
/// `cq` must be a queue of ours whose poll lock the caller's thread holds (or takes here).
unsafe fn own<'a>(cq: *mut ibv_cq_ex) -> &'a mut Cq {
    // SAFETY: by contract.
    unsafe { &mut *cq.cast::<Cq>() }
}

unsafe extern "C" fn start_poll(cq: *mut ibv_cq_ex, attr: *mut c_void) -> c_int {
    // SAFETY: the lock lies inside the queue and may be used by any thread.
    unsafe { (*cq.cast::<Cq>()).polling.take() };
    // SAFETY: the lock is held.
    let own = unsafe { own(cq) };
    let _ = attr;
    let next = own.next_or_work();
    let result = own.show(next);
    if result != 0 {
        own.polling.give();
    }
    result
}

unsafe extern "C" fn next_poll(cq: *mut ibv_cq_ex) -> c_int {
    // SAFETY: between start_poll and end_poll the lock is held.
    let own = unsafe { own(cq) };
    let next = own.next();
    own.show(next)
}

unsafe extern "C" fn end_poll(cq: *mut ibv_cq_ex) {
    // SAFETY: as next_poll.
    unsafe { own(cq) }.polling.give();
}

/// Reads something of the entry that is shown.
unsafe fn shown<T>(cq: *mut ibv_cq_ex, default: T, read: impl FnOnce(&Completion) -> T) -> T {
    // SAFETY: called between start_poll and end_poll; `current` is only replaced there.
    match unsafe { &(*cq.cast::<Cq>()).current } {
        Some(completion) => read(completion),
        None => default,
    }
}

unsafe extern "C" fn read_opcode(cq: *mut ibv_cq_ex) -> u32 {
    // SAFETY: forwarded, as for all readers below.
    unsafe { shown(cq, 0, |entry| entry.opcode) }
}

unsafe extern "C" fn read_vendor_err(cq: *mut ibv_cq_ex) -> u32 {
    // SAFETY: as above.
    unsafe { shown(cq, 0, |entry| entry.status.vendor()) }
}

unsafe extern "C" fn read_byte_len(cq: *mut ibv_cq_ex) -> u32 {
    // SAFETY: as above. Lengths are of receives only, as rdma-core has it.
    unsafe { shown(cq, 0, |entry| if entry.queue == Queue::Send { 0 } else { entry.byte_len }) }
}

unsafe extern "C" fn read_imm_data(cq: *mut ibv_cq_ex) -> u32 {
    // SAFETY: as above.
    unsafe { shown(cq, 0, |entry| entry.imm) }
}

unsafe extern "C" fn read_qp_num(cq: *mut ibv_cq_ex) -> u32 {
    // SAFETY: as above.
    unsafe { shown(cq, 0, |entry| entry.qp.number) }
}

unsafe extern "C" fn read_src_qp(cq: *mut ibv_cq_ex) -> u32 {
    // SAFETY: as above.
    unsafe { shown(cq, 0, |entry| entry.src_qp) }
}

unsafe extern "C" fn read_wc_flags(cq: *mut ibv_cq_ex) -> u32 {
    // SAFETY: as above.
    unsafe { shown(cq, 0, |entry| entry.flags) }
}

unsafe extern "C" fn read_slid(cq: *mut ibv_cq_ex) -> u32 {
    // SAFETY: as above.
    unsafe { shown(cq, 0xffff, |entry| entry.slid.into()) }
}

unsafe extern "C" fn read_nothing(_cq: *mut ibv_cq_ex) -> u8 {
    0
}

fn cq_of(dv: *mut efadv_cq) -> *mut ibv_cq_ex {
    dv.wrapping_byte_sub(offset_of!(Cq, dv)).cast()
}

pub(crate) unsafe extern "C" fn wc_read_sgid(dv: *mut efadv_cq, sgid: *mut ibv_gid) -> c_int {
    // SAFETY: the structure lies inside a queue of ours; the entry is shown.
    match unsafe { shown(cq_of(dv), None, |entry| (entry.slid == 0xffff).then_some(entry.sgid)) } {
        // SAFETY: the caller's sixteen bytes.
        Some(from) => unsafe {
            *sgid = from;
            0
        },
        // The sender is known by its address handle: the card then does not say its GID.
        None => -libc::ENOENT,
    }
}

pub(crate) unsafe extern "C" fn wc_is_unsolicited(dv: *mut efadv_cq) -> bool {
    // SAFETY: as wc_read_sgid.
    unsafe { shown(cq_of(dv), false, |entry| entry.queue == Queue::Neither) }
}

/// `ibv_poll_cq`.
pub(crate) unsafe extern "C" fn poll_cq(cq: *mut ibv_cq, room: c_int, entries: *mut ibv_wc) -> c_int {
    let cq = cq.cast::<ibv_cq_ex>();
    // SAFETY: the lock may be used by any thread; the queue is ours while it is held.
    let own = unsafe {
        (*cq.cast::<Cq>()).polling.take();
        own(cq)
    };
    let mut count = 0;
    while count < room {
        let next = if count == 0 { own.next_or_work() } else { own.next() };
        let Some(entry) = next else { break };
        let wc = ibv_wc {
            wr_id: entry.wr_id,
            status: entry.status.wc_status(),
            opcode: entry.opcode,
            vendor_err: entry.status.vendor(),
            byte_len: entry.byte_len,
            imm_data: entry.imm,
            qp_num: entry.qp.number,
            src_qp: entry.src_qp,
            wc_flags: entry.flags,
            slid: entry.slid,
            ..ibv_wc::default()
        };
        // SAFETY: the caller has room for `room` entries.
        unsafe { *entries.add(count as usize) = wc };
        count += 1;
    }
    own.polling.give();
    count
}

/// `ibv_req_notify_cq`.
pub(crate) unsafe extern "C" fn req_notify_cq(cq: *mut ibv_cq, solicited_only: c_int) -> c_int {
    if solicited_only != 0 {
        return libc::EOPNOTSUPP;
    }
    // SAFETY: a queue of ours; both fields may be used by any thread.
    let (queue, card) = unsafe { (&(*cq.cast::<Cq>()).queue, &(*cq.cast::<Cq>()).card) };
    queue.arm(&card.process);
    // The program is about to sleep: from now on the card's thread does the work.
    card.process.rouse_thread();
    0
}
