//! Posting slices of a lane's queue.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use fabric_safe::{PostError, PostFlags, WriteOptions};

use crate::addresses::{PeerAddresses, evict};
use crate::descriptor::NicEntry;
use crate::lane::{Context, Lane, LaneState, Outcome, Work};
use crate::nic::{PROBE_BYTES, PROBE_LANDING};
use crate::peer::Peer;
use crate::request::Op;
use crate::scheduler::queue::{Queue, Token};
use crate::scheduler::rail::partner;
use crate::scheduler::retry::Failure;
use crate::slice::NONE;
use crate::sync::nanos;

/// How long a peer may take nothing at all before that counts as a failed attempt. Connections over TCP are set up within a
/// second even when the first packet is lost.
const STALL: Duration = Duration::from_millis(1500);
/// Posts between two looks at the completion queue, so that credits come back while a long queue is posted.
const POSTS: usize = 128;

impl Lane {
    /// Posts slices in order while there are credits.
    pub(crate) fn post(&self, state: &mut LaneState, context: &Context<'_>, outcome: &mut Outcome) -> usize {
        if state.queue.queued() == 0 {
            return 0;
        }
        let endpoint = Arc::clone(&state.endpoint);
        let Ok(mut transmit) = endpoint.transmit() else { return 0 };
        let mut posted = 0;
        let mut full = 0;
        while posted < POSTS {
            let Some(token) = state.queue.next(context.now) else { break };
            let result = match self.prepare(state, token, context) {
                Ready::Go(remote_nic, remote) => {
                    // Only if another one follows for certain: the card is not told of this one before.
                    let more = context.doorbell_batching && posted + 1 < POSTS && state.queue.has_another();
                    self.hand_over(state, &mut transmit, token, (remote_nic, remote), more)
                }
                Ready::Never => {
                    // Its request has ended: a slice that nobody waits for.
                    if let Some(work) = state.queue.end(token) {
                        self.let_go(work.len());
                    }
                    continue;
                }
                Ready::Fail(failure, why) => Err(Refused::Fail(failure, why)),
            };
            match result {
                Ok(()) => {
                    state.queue.posted(token);
                    posted += 1;
                    full = 0;
                }
                Err(Refused::Again) => {
                    self.counters.again.fetch_add(1, Ordering::Relaxed);
                    if self.is_stalled(&mut state.queue, token, context) {
                        self.give_up(state, token, context, outcome);
                        continue;
                    }
                    state.queue.again(token, context.now);
                    full += 1;
                    // Two peers in a row that cannot take more: it is the card's queue that is full.
                    if full >= 2 && state.queue.in_flight() > 0 {
                        break;
                    }
                }
                Err(Refused::Closed) => {
                    state.queue.again(token, context.now);
                    break;
                }
                Err(Refused::Fail(failure, why)) => match state.queue.end(token) {
                    Some(Work::Slice(mut slice)) => {
                        self.let_go(slice.len);
                        self.counters.errors.fetch_add(1, Ordering::Relaxed);
                        slice.attempts += 1;
                        outcome.failed.push((slice, failure, why));
                    }
                    Some(Work::Probe(probe)) => {
                        self.let_go(0);
                        probe.ended(Some(why));
                    }
                    None => {}
                },
            }
        }
        self.counters.slices.fetch_add(posted as u64, Ordering::Relaxed);
        posted
    }

    /// Whether the provider has had no room for an operation for a long time although nothing else is in flight to that peer. With
    /// providers over TCP that is the only sign of a peer that is gone, with `efa` of a handshake that has been lost.
    #[cold]
    fn is_stalled(&self, queue: &mut Queue<Work>, token: Token, context: &Context<'_>) -> bool {
        let Some(flow) = queue.get(token).map(Work::flow) else { return false };
        // The operation itself has a credit.
        let alone = queue.in_flight_of(flow) == 1;
        let Some(work) = queue.get_mut(token) else { return false };
        let since = match work {
            Work::Slice(slice) => &mut slice.blocked_since,
            Work::Probe(probe) => &mut probe.blocked_since,
        };
        if *since == 0 || !alone {
            *since = context.now.max(1);
        }
        context.now.saturating_sub(*since) > nanos(STALL)
    }

    /// Ends the attempt behind `token`, which the provider does not take, and lets go of the address: when it is inserted again,
    /// the provider begins anew with that peer.
    #[cold]
    fn give_up(&self, state: &mut LaneState, token: Token, context: &Context<'_>, outcome: &mut Outcome) {
        let Some(work) = state.queue.end(token) else { return };
        self.let_go(work.len());
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        let (flow, remote_nic) = match &work {
            Work::Slice(slice) => (work.flow(), slice.remote_nic as usize),
            Work::Probe(probe) => (work.flow(), probe.remote_nic),
        };
        if let Some(known) = state.peers.get_mut(flow as usize)
            && known.addresses.get_mut(remote_nic).and_then(Option::take).is_some()
        {
            state.entries -= 1;
        }
        let why = format!("it has taken nothing for {STALL:?}");
        match work {
            Work::Slice(mut slice) => {
                slice.attempts += 1;
                outcome.failed.push((slice, Failure::Peer, why));
            }
            Work::Probe(probe) => {
                context.core.probe_failed(self, &probe, Failure::Peer);
                probe.ended(Some(why));
            }
        }
    }

    /// The remote NIC and its address for the slice behind `token`.
    fn prepare(&self, state: &mut LaneState, token: Token, context: &Context<'_>) -> Ready {
        let LaneState { queue, peers, entries, turn, .. } = state;
        let (peer, nics, remote_nic): (&Arc<Peer>, &Arc<[NicEntry]>, usize) = match queue.get_mut(token) {
            None => return Ready::Never,
            Some(Work::Probe(probe)) => {
                if probe.is_over() {
                    return Ready::Never;
                }
                probe.since = context.now;
                (&probe.peer, &probe.nics, probe.remote_nic)
            }
            Some(Work::Slice(slice)) => {
                if slice.has_ended() {
                    return Ready::Never;
                }
                let all = slice.remotes();
                let well = all & !slice.request().peer.health().avoid(context.now);
                let remotes = if well != 0 { well } else { all };
                // Not the one that has just failed, if there is another.
                let avoid =
                    if slice.attempts > 0 && slice.remote_nic != NONE { 1 << slice.remote_nic } else { 0 };
                let eligible = if remotes & !avoid != 0 { remotes & !avoid } else { remotes };
                *turn = turn.wrapping_add(1);
                let count = slice.request().table.nics.len();
                let Some(remote) = partner(self.index, context.lanes, count, eligible, *turn) else {
                    return Ready::Fail(Failure::Operation, "the peer has the memory on no NIC".into());
                };
                (slice.remote_nic, slice.local_nic) = (remote as u8, self.index as u8);
                slice.since = context.now;
                let request = slice.request();
                (&request.peer, &request.table.nics, remote)
            }
        };
        let slot = peer.id.slot as usize;
        if peers.len() <= slot {
            peers.resize_with(slot + 1, PeerAddresses::default);
        }
        let known = &mut peers[slot];
        if !known.nics.as_ref().is_some_and(|known| Arc::ptr_eq(known, nics)) {
            *entries -= known.addresses.iter().flatten().count();
            known.addresses.clear();
            known.addresses.resize(nics.len(), None);
            known.nics = Some(Arc::clone(nics));
        }
        known.last_used = context.now;
        let Some(entry) = known.addresses.get_mut(remote_nic) else { return Ready::Never };
        if entry.is_none() {
            match self.nic.insert(&nics[remote_nic].address) {
                Ok(address) => {
                    *entry = Some(address);
                    *entries += 1;
                }
                Err(error) => {
                    let why = format!("the address of NIC {} cannot be used: {error}", nics[remote_nic].name);
                    return Ready::Fail(Failure::Rail, why);
                }
            }
            if *entries > state.max_entries {
                evict(state, slot);
            }
        }
        Ready::Go(slot, remote_nic)
    }

    /// Gives the operation to the provider.
    #[inline]
    fn hand_over(
        &self,
        state: &LaneState,
        transmit: &mut fabric_safe::Transmit<'_>,
        token: Token,
        (slot, remote_nic): (usize, usize),
        more: bool,
    ) -> Result<(), Refused> {
        let address = state.peers.get(slot).and_then(|peer| peer.addresses.get(remote_nic)?.as_ref());
        let Some(address) = address else { return Err(Refused::Again) };
        let raw = u64::from(token.raw());
        let result = match state.queue.get(token) {
            None => return Err(Refused::Again),
            Some(Work::Probe(probe)) => {
                let landing = PROBE_LANDING..PROBE_LANDING + PROBE_BYTES;
                let target = self.nic.probe.slice(landing).map_err(|usage| Refused::operation(&usage))?;
                transmit.read(address, target, probe.remote(), raw)
            }
            Some(Work::Slice(slice)) => {
                let request = slice.request();
                let missing =
                    |what: &str| Refused::Fail(Failure::Operation, format!("no key of the {what} memory"));
                let region =
                    slice.region.mr(slice.local_chunk, self.index).ok_or_else(|| missing("local"))?;
                let start = (slice.local - region.address() as u64) as usize;
                let local = region
                    .slice(start..start + slice.len as usize)
                    .map_err(|usage| Refused::operation(&usage))?;
                let remote = request
                    .table
                    .remote(slice.remote_chunk, remote_nic, slice.remote)
                    .ok_or_else(|| missing("remote"))?;
                let immediate = if slice.gate { request.immediate } else { None };
                match request.op {
                    Op::Write if immediate.is_some() || more => {
                        let flags = if more { PostFlags::MORE } else { PostFlags::empty() };
                        let options = WriteOptions { immediate: immediate.map(u64::from), flags };
                        transmit.write_with(address, &[local], remote, options, raw)
                    }
                    Op::Write => transmit.write(address, local, remote, raw),
                    Op::Read if more => transmit.read_with(address, &[local], remote, PostFlags::MORE, raw),
                    Op::Read => transmit.read(address, local, remote, raw),
                }
            }
        };
        match result {
            Ok(_) => Ok(()),
            Err(PostError::Again) => Err(Refused::Again),
            Err(PostError::Closed) => Err(Refused::Closed),
            Err(PostError::Failed(error)) => {
                let failure = match &*error {
                    fabric_safe::Error::Usage(_) => Failure::Operation,
                    _ => Failure::Rail,
                };
                Err(Refused::Fail(failure, error.to_string()))
            }
            Err(other) => Err(Refused::Fail(Failure::Operation, other.to_string())),
        }
    }
}

/// Whether a slice can be posted now.
enum Ready {
    /// To this slot's peer, over this remote NIC.
    Go(usize, usize),
    /// It is not wanted any more.
    Never,
    Fail(Failure, String),
}

/// Why it was not posted.
enum Refused {
    Again,
    Closed,
    Fail(Failure, String),
}

impl Refused {
    fn operation(usage: &fabric_safe::Usage) -> Self {
        Self::Fail(Failure::Operation, usage.to_string())
    }
}
