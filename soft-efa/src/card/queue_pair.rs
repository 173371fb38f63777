//! Queue pairs: states, posted receives, depths.

use super::completion::{Completion, CompletionQueue, Queue};
use super::device::Card;
use super::process::lock;
use crate::abi::{self, ibv_sge};
use crate::status::Status;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};

/// Most scatter entries of a receive: what the card says of itself (`max_rq_sge`).
pub(crate) const MAX_RECV_SGE: usize = 3;
/// Most gather entries of a send (`max_sq_sge`).
pub(crate) const MAX_SEND_SGE: usize = 2;
/// Bytes at the start of a datagram's receive buffer that the card leaves alone.
pub(crate) const DATAGRAM_PREFIX: usize = 40;

/// A posted receive.
#[derive(Clone, Copy)]
pub(crate) struct Receive {
    pub(crate) wr_id: u64,
    pub(crate) sges: [ibv_sge; MAX_RECV_SGE],
    pub(crate) num_sge: u8,
}

/// Unchanging facts of a queue pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Shape {
    pub(crate) datagram: bool,
    pub(crate) pd: u32,
    pub(crate) max_send: u32,
    pub(crate) max_receive: u32,
    pub(crate) max_send_sge: u32,
    pub(crate) max_recv_sge: u32,
    pub(crate) max_inline: u32,
    /// Writes with immediate need no posted receive.
    pub(crate) unsolicited: bool,
}

/// A queue pair.
pub(crate) struct QueuePair {
    pub(crate) card: Arc<Card>,
    pub(crate) number: u32,
    pub(crate) shape: Shape,
    pub(crate) send_cq: Arc<CompletionQueue>,
    pub(crate) recv_cq: Arc<CompletionQueue>,
    pub(crate) state: AtomicU32,
    pub(crate) qkey: AtomicU32,
    /// How often the card tries again when the target has no receive posted; 7 is for ever.
    pub(crate) rnr_retry: AtomicU32,
    pub(crate) destroyed: AtomicBool,
    sends: AtomicU32,
    receives: AtomicU32,
    posted: Mutex<VecDeque<Receive>>,
}

impl QueuePair {
    pub(crate) fn new(
        card: Arc<Card>,
        number: u32,
        shape: Shape,
        send_cq: Arc<CompletionQueue>,
        recv_cq: Arc<CompletionQueue>,
    ) -> QueuePair {
        QueuePair {
            card,
            number,
            shape,
            send_cq,
            recv_cq,
            state: AtomicU32::new(abi::IBV_QPS_RESET),
            qkey: AtomicU32::new(0),
            rnr_retry: AtomicU32::new(7),
            destroyed: AtomicBool::new(false),
            sends: AtomicU32::new(0),
            receives: AtomicU32::new(0),
            posted: Mutex::default(),
        }
    }

    /// Takes `count` slots of the send queue; false when there are not as many.
    pub(crate) fn take_send_slots(&self, count: u32) -> bool {
        let taken = self.sends.fetch_add(count, Ordering::AcqRel);
        let fits = taken + count <= self.shape.max_send;
        if !fits {
            self.sends.fetch_sub(count, Ordering::AcqRel);
        }
        fits
    }

    /// Free slots of the send queue.
    pub(crate) fn send_room(&self) -> u32 {
        self.shape.max_send.saturating_sub(self.sends.load(Ordering::Acquire))
    }

    /// Gives a slot back: the program has read the completion.
    pub(crate) fn give_back(&self, queue: Queue) {
        match queue {
            Queue::Send => self.sends.fetch_sub(1, Ordering::AcqRel),
            Queue::Receive => self.receives.fetch_sub(1, Ordering::AcqRel),
            Queue::Neither => 0,
        };
    }

    /// Posts receives; the number that was taken is less when the queue is full.
    pub(crate) fn post(&self, receives: &[Receive]) -> usize {
        let taken = self.receives.load(Ordering::Acquire);
        let count = receives.len().min(self.shape.max_receive.saturating_sub(taken) as usize);
        self.receives.fetch_add(count as u32, Ordering::AcqRel);
        lock(&self.posted).extend(&receives[..count]);
        count
    }

    /// The oldest posted receive.
    pub(crate) fn next_receive(&self) -> Option<Receive> {
        lock(&self.posted).pop_front()
    }

    /// Puts a receive back that was not used after all.
    pub(crate) fn return_receive(&self, receive: Receive) {
        lock(&self.posted).push_front(receive);
    }

    /// Whether it may send.
    pub(crate) fn can_send(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), abi::IBV_QPS_RTS | abi::IBV_QPS_SQD)
    }

    /// Whether it may receive.
    pub(crate) fn can_receive(&self) -> bool {
        matches!(self.state.load(Ordering::Acquire), abi::IBV_QPS_RTR | abi::IBV_QPS_RTS | abi::IBV_QPS_SQD)
    }

    /// Where a local scatter/gather entry lies, if its key is good for it.
    pub(crate) fn local_address(&self, sge: &ibv_sge, access: u32) -> Option<u64> {
        if sge.length == 0 {
            return Some(sge.addr);
        }
        let regions = &self.card.process.regions;
        regions
            .find(sge.lkey)
            .filter(|region| region.card as usize == self.card.index && region.pd == self.shape.pd)
            .and_then(|region| region.resolve(sge.addr, sge.length.into(), access))
    }

    /// Ends all posted receives as flushed: the queue pair has gone into the error state.
    pub(crate) fn flush_receives(self: &Arc<Self>) {
        for receive in std::mem::take(&mut *lock(&self.posted)) {
            self.recv_cq.push(Completion::receive_failed(self.clone(), receive.wr_id, Status::Flushed));
        }
    }

    /// Drops all posted receives without a word: the queue pair is destroyed.
    pub(crate) fn drop_receives(&self) {
        lock(&self.posted).clear();
    }
}
