//! Completion queues and the channels that wake those who sleep on them.

use super::pace;
use super::process::{Process, lock};
use super::queue_pair::QueuePair;
use crate::abi::{self, ibv_gid};
use crate::status::Status;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Which queue's slot a completion gives back when it is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Queue {
    Send,
    Receive,
    /// None: an unsolicited receive.
    Neither,
}

/// The end of a work request.
pub(crate) struct Completion {
    pub(crate) qp: Arc<QueuePair>,
    pub(crate) queue: Queue,
    pub(crate) wr_id: u64,
    pub(crate) status: Status,
    /// `enum ibv_wc_opcode`. Reads are reported as sends, as rdma-core's efa provider does.
    pub(crate) opcode: u32,
    pub(crate) byte_len: u32,
    /// In network byte order, as the sender gave it.
    pub(crate) imm: u32,
    pub(crate) flags: u32,
    pub(crate) src_qp: u32,
    /// Number of our address handle for the sender; 0xffff for none.
    pub(crate) slid: u16,
    pub(crate) sgid: ibv_gid,
}

impl Completion {
    /// The end of a request of the send queue.
    pub(crate) fn sent(
        qp: Arc<QueuePair>,
        wr_id: u64,
        status: Status,
        opcode: u32,
        byte_len: u32,
    ) -> Completion {
        Completion {
            qp,
            queue: Queue::Send,
            wr_id,
            status,
            opcode,
            byte_len,
            imm: 0,
            flags: 0,
            src_qp: 0,
            slid: 0xffff,
            sgid: [0; 16],
        }
    }

    /// The end of a posted receive that took nothing in.
    pub(crate) fn receive_failed(qp: Arc<QueuePair>, wr_id: u64, status: Status) -> Completion {
        Completion {
            queue: Queue::Receive,
            opcode: abi::IBV_WC_RECV,
            ..Completion::sent(qp, wr_id, status, 0, 0)
        }
    }
}

/// A completion queue.
pub(crate) struct CompletionQueue {
    entries: Mutex<VecDeque<Completion>>,
    /// Entries written and not yet read by the program.
    count: AtomicUsize,
    capacity: usize,
    armed: AtomicBool,
    overrun: AtomicBool,
    channel: Option<Arc<Channel>>,
    /// What the channel reports: the address of the program's `ibv_cq`.
    handle: AtomicUsize,
    /// Queue pairs that report here.
    pub(crate) users: AtomicUsize,
    /// What the program had done and learnt when it last found the queue empty: see [`pace`].
    pub(crate) empty_at: AtomicU64,
}

impl CompletionQueue {
    /// A queue with room for at least `capacity` entries (a power of two, as the card rounds).
    pub(crate) fn new(capacity: usize, channel: Option<Arc<Channel>>) -> CompletionQueue {
        CompletionQueue {
            entries: Mutex::default(),
            count: AtomicUsize::new(0),
            capacity: capacity.next_power_of_two(),
            armed: AtomicBool::new(false),
            overrun: AtomicBool::new(false),
            channel,
            handle: AtomicUsize::new(0),
            users: AtomicUsize::new(0),
            empty_at: AtomicU64::new(0),
        }
    }

    /// Entries that fit.
    pub(crate) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Says what the channel shall report.
    pub(crate) fn set_handle(&self, handle: usize) {
        self.handle.store(handle, Ordering::Release);
    }

    /// Adds an entry. A full queue loses it, says so once on standard error, and stays marked as overrun, as hardware does.
    pub(crate) fn push(&self, completion: Completion) {
        if self.count.load(Ordering::Acquire) >= self.capacity {
            if !self.overrun.swap(true, Ordering::AcqRel) {
                eprintln!(
                    "soft-efa: a completion queue of {} entries has overrun: completions are lost",
                    self.capacity
                );
                completion.qp.card.counters().cq_overruns.add(1);
            }
            return;
        }
        let card = completion.qp.card.clone();
        {
            let mut entries = lock(&self.entries);
            pace::act(&card.process);
            entries.push_back(completion);
            self.count.fetch_add(1, Ordering::SeqCst);
        }
        if self.disarm(&card.process) {
            self.notify();
        }
    }

    /// Takes back what [`CompletionQueue::arm`] asked for; false when that was nothing.
    pub(crate) fn disarm(&self, process: &Process) -> bool {
        let armed = self.armed.load(Ordering::SeqCst) && self.armed.swap(false, Ordering::SeqCst);
        if armed {
            process.pace.sleeps(false);
        }
        armed
    }

    fn notify(&self) {
        if let Some(channel) = &self.channel {
            channel.push(self.handle.load(Ordering::Acquire));
        }
    }

    /// Asks for one event on the channel: for the next entry, or at once when one is there that has not been read.
    pub(crate) fn arm(&self, process: &Process) {
        if !self.armed.swap(true, Ordering::SeqCst) {
            process.pace.sleeps(true);
        }
        if !self.is_empty() && self.disarm(process) {
            self.notify();
        }
    }

    /// Whether there is nothing to read.
    pub(crate) fn is_empty(&self) -> bool {
        self.count.load(Ordering::SeqCst) == 0
    }

    /// Moves everything there is into `taken`, the reader's own list (which must be empty).
    pub(crate) fn take(&self, taken: &mut VecDeque<Completion>) {
        std::mem::swap(&mut *lock(&self.entries), taken);
    }

    /// Says that the program has read an entry, and gives back the queue slot that it held.
    pub(crate) fn consumed(&self, completion: &Completion) {
        self.count.fetch_sub(1, Ordering::SeqCst);
        pace::act(&completion.qp.card.process);
        completion.qp.give_back(completion.queue);
    }

    /// Throws everything away: the queue is being destroyed.
    pub(crate) fn clear(&self) {
        lock(&self.entries).clear();
    }

    /// The channel, if it has one.
    pub(crate) fn channel(&self) -> Option<&Arc<Channel>> {
        self.channel.as_ref()
    }
}

/// A completion channel: an eventfd that counts, and the queues that it counts for.
pub(crate) struct Channel {
    fd: OwnedFd,
    events: Mutex<VecDeque<usize>>,
}

impl Channel {
    /// A channel with nothing in it.
    pub(crate) fn new() -> io::Result<Channel> {
        // SAFETY: eventfd takes integers and gives a new descriptor or -1.
        let fd = unsafe { libc::eventfd(0, libc::EFD_SEMAPHORE | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: fresh from eventfd.
        Ok(Channel { fd: unsafe { OwnedFd::from_raw_fd(fd) }, events: Mutex::default() })
    }

    /// The descriptor that becomes readable.
    pub(crate) fn fd(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    fn push(&self, handle: usize) {
        lock(&self.events).push_back(handle);
        self.ring();
    }

    /// Makes the descriptor readable once more.
    pub(crate) fn ring(&self) {
        let one = 1u64;
        // SAFETY: eight bytes of a local. It cannot overflow: events are at most one per arming.
        unsafe { libc::write(self.fd(), (&raw const one).cast(), 8) };
    }

    /// Next event. Waits unless the program has made the descriptor non-blocking.
    pub(crate) fn next(&self) -> io::Result<usize> {
        loop {
            let mut count = 0u64;
            // SAFETY: eight bytes into a local.
            let got = unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
            if got != 8 {
                return Err(io::Error::last_os_error());
            }
            // Events of a destroyed queue have been taken out; its count remains and is skipped here.
            if let Some(handle) = lock(&self.events).pop_front() {
                return Ok(handle);
            }
        }
    }

    /// Takes out the events of a queue that is going away.
    pub(crate) fn forget(&self, handle: usize) {
        lock(&self.events).retain(|&event| event != handle);
    }
}
