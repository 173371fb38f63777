//! Reads and writes of another process's memory.

use super::copy::{CopyError, Direction, copy};
use super::device::Card;
use super::engine::{Engine, die};
use super::peer::Peer;
use super::region::{Region, find};
use super::request::{Op, Request};
use crate::abi;
use crate::shared;
use crate::status::Status;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes that one system call copies at most: enough that the call itself does not show, little enough that a poller comes back soon.
const COPY_BYTES: usize = 1 << 20;
/// Requests that one system call carries out at most.
const COPY_REQUESTS: usize = 64;

impl Engine {
    /// Copies for `first` and for others of the window that go the same way, in one system call.
    pub(super) fn rdma(&mut self, card: &Arc<Card>, first: Request, peer: &Arc<Peer>) -> bool {
        let direction = if first.op == Op::Read { Direction::Read } else { Direction::Write };
        // The hazard goes up before the keys are looked at: see `Process::wait_for_copies`.
        self.raise_hazard(card, peer.slot);
        self.local.clear();
        self.far.clear();
        let mut batch = std::mem::take(&mut self.batch);
        let mut bytes = self.admit(card, first, peer, COPY_BYTES, &mut batch);
        let mut misses = 0;
        while bytes < COPY_BYTES && batch.len() < COPY_REQUESTS && misses < 4 {
            self.fill_window();
            if self.window.is_empty() {
                break;
            }
            let index = self.random(self.window.len());
            if self.goes_along(card, &self.window[index], direction, peer) {
                let request = self.window.swap_remove(index);
                bytes += self.admit(card, request, peer, COPY_BYTES - bytes, &mut batch);
            } else {
                misses += 1;
            }
        }
        if bytes > 0 {
            self.transfer(card, direction, peer, &mut batch, bytes);
        } else {
            for request in batch.drain(..) {
                self.copied(card, request, peer);
            }
        }
        self.batch = batch;
        card.process.me().hazards[card.index].store(0, Ordering::SeqCst);
        true
    }

    /// Whether a request of the window can share the system call.
    fn goes_along(&self, card: &Card, request: &Request, direction: Direction, peer: &Peer) -> bool {
        let same_way = match request.op {
            Op::Read => direction == Direction::Read,
            Op::Write | Op::WriteImm => direction == Direction::Write,
            Op::Send | Op::SendImm => false,
        };
        same_way
            && request.qp.can_send()
            && (request.judged || !card.process.faults.active())
            && request.remote.as_ref().is_some_and(|remote| {
                remote.file(&card.process).is_some_and(|file| {
                    file.qps.get(request.remote_qpn as usize).is_some_and(|entry| {
                        entry.owner.load(Ordering::Acquire) == shared::owner(peer.slot, peer.generation)
                            && entry.ready.load(Ordering::Acquire) == 1
                            && entry.qkey.load(Ordering::Acquire) == request.remote_qkey
                    })
                })
            })
    }

    /// Checks a request's keys on both sides and adds at most `room` of its bytes to the copy. A request that fails ends here.
    fn admit(
        &mut self,
        card: &Arc<Card>,
        mut request: Request,
        peer: &Peer,
        room: usize,
        batch: &mut Vec<Request>,
    ) -> usize {
        request.judged = true;
        match self.check(card, &request, peer) {
            Ok(far) => {
                let done = request.done as usize;
                let mut bytes = (request.length as usize - done).min(room);
                if request.doomed {
                    bytes = bytes.min(request.length.div_ceil(2) as usize);
                }
                if bytes > 0 {
                    self.far.push(far + done as u64, bytes);
                    let (mut skip, mut left) = (done, bytes);
                    for position in 0..request.num_sge as usize {
                        let sge = request.sges[position];
                        let length = sge.length as usize;
                        if skip >= length {
                            skip -= length;
                            continue;
                        }
                        let part = (length - skip).min(left);
                        // Checked just now, in `check`.
                        let address = request.qp.local_address(&sge, 0).unwrap_or(0);
                        self.local.push(address + skip as u64, part);
                        left -= part;
                        skip = 0;
                        if left == 0 {
                            break;
                        }
                    }
                    request.done += bytes as u32;
                }
                batch.push(request);
                bytes
            }
            Err(status) => {
                self.end(card, request, status, true);
                0
            }
        }
    }

    /// The address in the target's memory, if everything about an RDMA request is in order.
    fn check(&self, card: &Card, request: &Request, peer: &Peer) -> Result<u64, Status> {
        let remote = request.remote.as_ref().ok_or(Status::InvalidAh)?;
        let file = remote.file(&card.process).ok_or(Status::UnreachableRemote)?;
        let (_, target_card) = remote.at.ok_or(Status::UnreachableRemote)?;
        if card.process.settings.peer_check && !remote.knows(card, &file) {
            return Err(Status::RemoteUnknownPeer);
        }
        let local_access = if request.op == Op::Read { abi::IBV_ACCESS_LOCAL_WRITE } else { 0 };
        for sge in &request.sges[..request.num_sge as usize] {
            request.qp.local_address(sge, local_access).ok_or(Status::InvalidLkey)?;
        }
        if request.length > card.process.settings.profile.max_rdma_bytes {
            return Err(Status::BadLength);
        }
        let access =
            if request.op == Op::Read { abi::IBV_ACCESS_REMOTE_READ } else { abi::IBV_ACCESS_REMOTE_WRITE };
        let pd = file.qps[request.remote_qpn as usize].pd.load(Ordering::Acquire);
        if request.length == 0 {
            return Ok(0);
        }
        find(&peer.regions, request.rkey)
            .filter(|region: &Region| region.card == u32::from(target_card) && region.pd == pd)
            .and_then(|region| region.resolve(request.remote_address, request.length.into(), access))
            .ok_or(Status::RemoteBadAddress)
    }

    fn transfer(
        &mut self,
        card: &Arc<Card>,
        direction: Direction,
        peer: &Arc<Peer>,
        batch: &mut Vec<Request>,
        bytes: usize,
    ) {
        let count = match direction {
            Direction::Read => &card.counters().read_bytes,
            Direction::Write => &card.counters().write_bytes,
        };
        match copy(direction, peer.pid, &self.local, &self.far) {
            Ok(copied) if copied == bytes => {
                count.add(bytes as u64);
                for request in batch.drain(..) {
                    self.copied(card, request, peer);
                }
            }
            Err(CopyError::Gone) => {
                peer.mark_dead();
                for request in batch.drain(..) {
                    let status = request.gone(&card.process, peer.owner());
                    self.end(card, request, status, true);
                }
            }
            Err(CopyError::Refused) => {
                for request in batch.drain(..) {
                    self.end(card, request, Status::UnreachableRemote, true);
                }
            }
            // An address is bad although its registration is good: the program has unmapped it. Find out whose.
            Ok(_) | Err(CopyError::Fault) if batch.len() > 1 => {
                let requests: Vec<Request> = std::mem::take(batch);
                for mut request in requests {
                    request.done = 0;
                    self.local.clear();
                    self.far.clear();
                    let mut alone = Vec::new();
                    let bytes = self.admit(card, request, peer, COPY_BYTES, &mut alone);
                    if bytes > 0 {
                        self.transfer(card, direction, peer, &mut alone, bytes);
                    } else {
                        alone.drain(..).for_each(|request| self.copied(card, request, peer));
                    }
                }
            }
            Ok(_) | Err(CopyError::Fault) => {
                for request in batch.drain(..) {
                    self.end(card, request, Status::RemoteBadAddress, true);
                }
            }
        }
    }

    /// What comes after a request's bytes (or some of them) have been copied.
    fn copied(&mut self, card: &Arc<Card>, request: Request, peer: &Arc<Peer>) {
        if let Some(remote) = &request.remote {
            remote.answered.store(true, Ordering::Relaxed);
        }
        if request.doomed {
            die();
        }
        if request.done < request.length {
            self.window.push(request);
        } else if request.op == Op::WriteImm {
            self.message(card, request, peer);
        } else {
            self.end(card, request, Status::Ok, true);
        }
    }
}
