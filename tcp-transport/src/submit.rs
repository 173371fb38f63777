//! From a batch to slices on lanes.

use std::sync::Arc;

use crate::batch::{BatchHandle, Ticket};
use crate::clock;
use crate::context::Context;
use crate::error::{Error, Refusal};
use crate::peer::{Peer, PeerInner};
use crate::region::Access;
use crate::request::{Batch, Op, Range, Stored};
use crate::seam;
use crate::service::Service;
use crate::share::Touched;
use crate::slice::{Cursor, LocalUse, Slice, cut};
use crate::wire::{Kind, MAX_RANGES};

/// Longest slice: large enough that its frame costs nothing, small enough to be spread over lanes and to share them.
pub(crate) const MAX_SLICE: u64 = 1 << 20;

/// Shortest part of a submission that is worth a second thread of the peer, where that copies between the two processes, however
/// `stripe_bytes` is set. Halves of 1 MiB on two threads were slower than the whole on one on a machine with other work,
/// because the second one has to be woken, too.
const HOST_STRIPE: u64 = 1 << 20;

/// Cuts a request into slices: at most `longest` bytes and [`MAX_RANGES`] ranges a side each. Pure.
pub(crate) struct Cutter<'a> {
    local: &'a [Range],
    remote: &'a [Range],
    local_at: Cursor,
    remote_at: Cursor,
    left: u64,
    longest: u64,
}

impl<'a> Cutter<'a> {
    pub(crate) fn new(local: &'a [Range], remote: &'a [Range], bytes: u64, longest: u64) -> Self {
        let (local_at, remote_at) = (Cursor::default(), Cursor::default());
        Self { local, remote, local_at, remote_at, left: bytes, longest: longest.min(MAX_SLICE) }
    }

    /// Fills the lists with the next slice's ranges and returns its length; zero at the end.
    pub(crate) fn next(&mut self, local: &mut Vec<Range>, remote: &mut Vec<Range>) -> u64 {
        let fits = |cursor: &Cursor, ranges| cursor.rest(ranges).take(MAX_RANGES).map(|r: Range| r.len).sum();
        let wanted = self.left.min(self.longest);
        let take = wanted.min(fits(&self.local_at, self.local)).min(fits(&self.remote_at, self.remote));
        cut(self.local, &mut self.local_at, take, local);
        cut(self.remote, &mut self.remote_at, take, remote);
        self.left -= take;
        take
    }

    pub(crate) fn is_done(&self) -> bool {
        self.left == 0
    }
}

pub(crate) fn submit(context: &Arc<Context>, batch: &mut Batch) -> Result<BatchHandle, Error> {
    if context.is_closed() {
        return Err(Error::ShutDown);
    }
    let limit = context.settings.limits.queued;
    for stored in &batch.requests {
        let queued = stored.peer.inner.queued();
        if queued >= limit {
            return Err(Error::QueueFull { queued, limit });
        }
    }
    let deadline = clock::deadline_in(batch.deadline.unwrap_or(context.settings.deadlines.request));
    let Some(first) = batch.requests.first() else {
        return Err(Error::Request("the batch has no requests".into()));
    };
    let state = context.pool.take(batch.requests.len(), &first.peer.inner);
    let handle = BatchHandle::new(Arc::clone(&state), Arc::clone(&context.pool));
    let mut at = 0;
    while at < batch.requests.len() {
        // Requests for the same peer in a row share one turn with its lock.
        let peer = &batch.requests[at].peer;
        let run = batch.requests[at..].iter().take_while(|r| Arc::ptr_eq(&r.peer.inner, &peer.inner)).count();
        let total = batch.requests[at..at + run].iter().map(|r| r.bytes).sum();
        let loopback = peer.inner.loopback();
        let mut touched = Touched::default();
        {
            let inner: &PeerInner = &peer.inner;
            let mut locked = inner.state();
            let stripe = match PeerInner::is_host(&locked) {
                true => context.settings.stripe_bytes.min(HOST_STRIPE),
                false => context.settings.stripe_bytes,
            };
            let mut share = PeerInner::spread(&locked, total, stripe);
            for (index, stored) in batch.requests.iter().enumerate().skip(at).take(run) {
                // The request cannot end before this one has: the last of its slices gets it.
                let mut first = state.first_ticket(index);
                if let Some(service) = &loopback
                    && copy_here(&mut first, stored, batch, service, peer)
                {
                    continue;
                }
                let mut cutter = Cutter::new(
                    &batch.local[stored.local.clone()],
                    &batch.remote[stored.remote.clone()],
                    stored.bytes,
                    share.quota(),
                );
                let mut event = None;
                if stored.immediate.is_some() {
                    match inner.take_event() {
                        Ok(number) => event = Some(number),
                        Err(e) => {
                            drop(first.end(Err(e)));
                            continue;
                        }
                    }
                }
                let mut first = Some(first);
                while let Some(ticket) = first.take() {
                    let mut slice = PeerInner::spare(&mut locked, deadline);
                    slice.bytes = cutter.next(&mut slice.local_ranges, &mut slice.remote_ranges);
                    slice.deadline = deadline;
                    slice.key = stored.remote_key;
                    slice.kind = match stored.op {
                        Op::Read => Kind::Read,
                        Op::Write => Kind::Write,
                    };
                    slice.local = Some(LocalUse::new(&stored.region));
                    slice.ticket = Some(if cutter.is_done() {
                        ticket
                    } else {
                        first = Some(ticket);
                        state.ticket(index)
                    });
                    if event.is_some() && cutter.is_done() {
                        slice.event = event.take();
                        slice.immediate = stored.immediate;
                    } else if let Some(event) = event.take() {
                        // The immediate follows when the last of the slices is in place.
                        let mut gate = Slice::control(Kind::Immediate, stored.bytes, deadline);
                        gate.event = Some(event);
                        gate.immediate = stored.immediate;
                        gate.ticket = Some(state.ticket(index));
                        state.set_gate(index, Box::new(gate));
                    }
                    inner.place(&mut locked, slice, &mut touched, &mut share);
                }
            }
        }
        if at > 0 {
            state.add_peer(&peer.inner);
        }
        peer.inner.flush(&touched, true);
        at += run;
    }
    state.seal();
    batch.clear();
    Ok(handle)
}

/// Serves a request of a peer that lives in this process; false if it has to travel after all.
fn copy_here(ticket: &mut Ticket, stored: &Stored, batch: &Batch, service: &Service, peer: &Peer) -> bool {
    let local = &stored.region;
    let access = match stored.op {
        Op::Read => Access::READ,
        Op::Write => Access::WRITE,
    };
    if stored.immediate.is_some() || local.device().is_some() {
        return false;
    }
    let result = service.regions.find(stored.remote_key, access).and_then(|region| {
        if region.device().is_some() {
            return Err(Refusal::Unsupported);
        }
        let (locals, remotes) = (&batch.local[stored.local.clone()], &batch.remote[stored.remote.clone()]);
        if remotes.iter().any(|r| region.offset(r.at, r.len).is_none()) {
            return Err(Refusal::OutOfBounds);
        }
        let (mut here, mut there) = (Cursor::default(), Cursor::default());
        let mut left = stored.bytes;
        while left > 0 {
            let (Some(l), Some(r)) = (here.rest(locals).next(), there.rest(remotes).next()) else { break };
            // Pieces, so that revoking the region waits for a millisecond at most.
            let len = l.len.min(r.len).min(MAX_SLICE);
            let offset = region.offset(r.at, len).ok_or(Refusal::OutOfBounds)? as usize;
            region.enter(|| match stored.op {
                Op::Write => {
                    seam::copy_between(&*local.memory, l.at as usize, &*region.memory, offset, len as usize);
                }
                Op::Read => {
                    seam::copy_between(&*region.memory, offset, &*local.memory, l.at as usize, len as usize);
                }
            })?;
            here.advance(locals, len);
            there.advance(remotes, len);
            left -= len;
        }
        Ok(())
    });
    if result == Err(Refusal::Unsupported) {
        return false;
    }
    let addr = peer.addr();
    if result.is_ok() {
        ticket.count(stored.op, stored.bytes);
        let served = match stored.op {
            Op::Read => &service.counters.bytes_served_read,
            Op::Write => &service.counters.bytes_served_written,
        };
        served.add(stored.bytes);
    }
    let result = result.map_err(|reason| Error::Refused { peer: addr, reason });
    drop(ticket.end(result));
    true
}
