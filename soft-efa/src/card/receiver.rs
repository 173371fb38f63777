//! What comes in from other processes: messages and immediates for our queue pairs, answers to our own.

use super::completion::{Completion, Queue};
use super::device::Card;
use super::process::{Process, lock};
use super::queue_pair::{DATAGRAM_PREFIX, QueuePair};
use super::remote;
use super::ring::{ACK, DATAGRAM, HAS_IMM, Packet, SEND, WRITE_IMM};
use crate::abi::{self, ibv_sge};
use crate::shared;
use crate::status::Status;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// The hazard word of the receiving side, which is one for all cards.
const RECEIVER: usize = crate::settings::MAX_CARDS;

/// Takes in a packet of process `from`.
pub(crate) fn take_in(process: &Arc<Process>, from: u64, packet: &Packet, payload: &[u8]) {
    let card = process.open_cards().find(|card| card.index == packet.card as usize);
    if packet.kind == ACK {
        if let Some(card) = card {
            lock(&card.answers).push((packet.token, packet.word));
            card.ready.fetch_add(1, Ordering::SeqCst);
        }
        return;
    }
    let (status, completion) = match card {
        Some(card) => deliver(card, packet, payload),
        None => (Status::RemoteBadDestQpn, None),
    };
    // First the answer, as a card's hardware gives it: the program may exit as soon as it sees the completion.
    if packet.word & DATAGRAM == 0 {
        let answer = Packet {
            kind: ACK,
            card: packet.from_card,
            word: status.vendor(),
            token: packet.token,
            ..Packet::default()
        };
        process.answer(from, answer);
    }
    if let Some(completion) = completion {
        let cq = completion.qp.recv_cq.clone();
        cq.push(completion);
    }
}

/// Hands a message or an immediate to its queue pair: what the sender hears, and what our program does.
fn deliver(card: &Arc<Card>, packet: &Packet, payload: &[u8]) -> (Status, Option<Completion>) {
    let refused = |status| (status, None);
    let Some(qp) = card.qp(packet.qpn) else { return refused(Status::RemoteBadDestQpn) };
    if !qp.can_receive() || qp.qkey.load(Ordering::Acquire) != packet.qkey {
        return refused(Status::RemoteBadDestQpn);
    }
    let unsolicited = packet.kind == WRITE_IMM && qp.shape.unsolicited;
    let prefix = if qp.shape.datagram { DATAGRAM_PREFIX } else { 0 };
    let receive = if unsolicited { None } else { qp.next_receive() };
    if receive.is_none() && !unsolicited {
        if qp.shape.datagram {
            card.counters().datagrams_dropped.add(1);
        }
        return refused(Status::RemoteRnr);
    }
    let mut status = Status::Ok;
    if let Some(receive) = &receive
        && packet.kind == SEND
    {
        let sges = &receive.sges[..receive.num_sge as usize];
        let room: usize = sges.iter().map(|sge| sge.length as usize).sum();
        if room < prefix + payload.len() {
            qp.return_receive(*receive);
            return refused(Status::RemoteBadLength);
        }
        let hazard = &card.process.me().hazards[RECEIVER];
        let count = shared::hazard_count(hazard.load(Ordering::Relaxed)) + 1;
        hazard.store(shared::hazard(count, card.process.slot), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        status = scatter(&qp, sges, prefix, payload);
        hazard.store(shared::hazard_idle(count), Ordering::SeqCst);
    }
    let sgid = remote::gid(packet.from_host, packet.from_card);
    let write = packet.kind == WRITE_IMM;
    card.counters().received.add(1);
    card.entry(&qp).received.fetch_add(1, Ordering::Relaxed);
    let completion = Completion {
        queue: if unsolicited { Queue::Neither } else { Queue::Receive },
        wr_id: receive.map_or(0, |receive| receive.wr_id),
        status,
        opcode: if write { abi::IBV_WC_RECV_RDMA_WITH_IMM } else { abi::IBV_WC_RECV },
        byte_len: if write { packet.length } else { (prefix + payload.len()) as u32 },
        imm: packet.imm,
        flags: if packet.word & HAS_IMM != 0 { abi::IBV_WC_WITH_IMM } else { 0 },
        src_qp: packet.from_qpn,
        slid: card.handle_number(&sgid),
        sgid,
        qp,
    };
    // The sender hears that its message did not arrive whole; which of our keys was wrong is our business.
    let heard = if status == Status::Ok { Status::Ok } else { Status::RemoteAbort };
    (heard, Some(completion))
}

/// Writes a payload into a posted receive's memory, after a prefix that is left alone.
fn scatter(qp: &QueuePair, sges: &[ibv_sge], prefix: usize, payload: &[u8]) -> Status {
    let (mut skip, mut rest) = (prefix, payload);
    for sge in sges {
        let length = sge.length as usize;
        if skip >= length {
            skip -= length;
            continue;
        }
        if rest.is_empty() {
            break;
        }
        let Some(address) = qp.local_address(sge, abi::IBV_ACCESS_LOCAL_WRITE) else {
            return Status::InvalidLkey;
        };
        let part = rest.len().min(length - skip);
        // SAFETY: inside a live registration with local write access, whose memory the program has handed to the card by posting it.
        unsafe { std::ptr::copy_nonoverlapping(rest.as_ptr(), (address as *mut u8).add(skip), part) };
        rest = &rest[part..];
        skip = 0;
    }
    Status::Ok
}
