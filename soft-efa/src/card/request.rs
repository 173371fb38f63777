//! A request on its way: what a work request of a send queue says, and what has become of it so far.

use super::process::Process;
use super::queue_pair::QueuePair;
use super::remote::Remote;
use crate::abi::{self, ibv_sge};
use crate::status::Status;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// What a request does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Send,
    SendImm,
    Read,
    Write,
    WriteImm,
}

impl Op {
    /// Whether it goes at the target's memory by a key.
    pub(crate) fn is_rdma(self) -> bool {
        !matches!(self, Op::Send | Op::SendImm)
    }

    /// Opcode of its completion. rdma-core's efa provider reports device reads as sends, and libfabric counts on it.
    pub(crate) fn completion(self) -> u32 {
        match self {
            Op::Write | Op::WriteImm => abi::IBV_WC_RDMA_WRITE,
            Op::Send | Op::SendImm | Op::Read => abi::IBV_WC_SEND,
        }
    }

    /// Name in rules and traces.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Op::Send => "send",
            Op::SendImm => "send_imm",
            Op::Read => "read",
            Op::Write => "write",
            Op::WriteImm => "write_imm",
        }
    }
}

/// What becomes of a completion.
#[derive(Debug, Clone)]
pub(crate) enum Ending {
    /// It has another status.
    Fail(Status),
    /// It comes so many nanoseconds later.
    Delay(u64),
    /// It comes when that rule is gone.
    Hold(Arc<str>),
    /// The process dies before it comes.
    Kill,
}

/// Bytes that fit inside a request.
pub(crate) const INLINE: usize = 32;

/// A work request of a send queue.
pub(crate) struct Request {
    pub(crate) qp: Arc<QueuePair>,
    pub(crate) remote: Option<Arc<Remote>>,
    pub(crate) wr_id: u64,
    pub(crate) op: Op,
    pub(crate) num_sge: u8,
    /// Bytes in `inline`; only looked at without scatter entries.
    pub(crate) inline_len: u8,
    /// Times that the target had no receive.
    pub(crate) refusals: u8,
    pub(crate) remote_qpn: u32,
    pub(crate) remote_qkey: u32,
    pub(crate) rkey: u32,
    pub(crate) imm: u32,
    pub(crate) length: u32,
    /// Bytes already copied.
    pub(crate) done: u32,
    /// Whether a rule wants the process to die in the middle of it.
    pub(crate) doomed: bool,
    /// Whether timing and faults have had their say.
    pub(crate) judged: bool,
    pub(crate) remote_address: u64,
    pub(crate) sges: [ibv_sge; 2],
    pub(crate) inline: [u8; INLINE],
    /// Age of the token under which an answer is awaited.
    pub(crate) age: u32,
    /// When the engine first saw it, in nanoseconds.
    pub(crate) trace: u64,
    /// What a rule wants to become of its completion.
    pub(crate) ending: Option<Ending>,
    /// It has been carried out, with that status, and its completion waits.
    pub(crate) finished: Option<Status>,
}

impl Request {
    /// How it ends when `owner`, the process that had its target queue pair, is gone: a card whose host goes on without that process says
    /// that the queue pair does not exist; a host that is gone says nothing.
    pub(crate) fn gone(&self, process: &Process, owner: u64) -> Status {
        match self.remote.as_ref().and_then(|remote| remote.at) {
            Some((host, _)) if process.host_lives_without(host, owner) => Status::RemoteBadDestQpn,
            _ => self.silence(),
        }
    }

    /// How it ends when its target does not answer.
    pub(crate) fn silence(&self) -> Status {
        match &self.remote {
            Some(remote) if remote.answered.load(Ordering::Relaxed) => Status::UnresponsiveRemote,
            _ => Status::UnreachableRemote,
        }
    }
}
