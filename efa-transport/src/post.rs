//! Posting slices of a lane's queue.
//!
//! What the slices of a lot have in common on their way out (the remote NIC and its address, the keys of both ends) is found
//! once for all of them that are posted in a row: their [`Path`].

use std::sync::atomic::Ordering;

use fabric_safe::{Address, Endpoint, OperationId, PostError, PostFlags, Remote, Transmit, WriteOptions};

use crate::addresses::Addresses;
use crate::lane::{BELL, Context, Lane, LaneState, Outcome, bump};
use crate::lot::{Cargo, Lot, Lots, Taken};
use crate::nic::PROBE_OWN;
use crate::request::Op;
use crate::scheduler::queue::{Queue, Token};
use crate::scheduler::rail::{Set, has_one_partner, partner};
use crate::scheduler::retry::Failure;
use crate::slice::{NONE, Piece, Slice};
use crate::stall::STALL;
use crate::warmup::{LEAST, Probe};

/// Posts between two looks at the completion queue, so that credits come back while a long queue is posted.
const POSTS: usize = 128;

/// How the slices of a lot go out: found by [`Lane::find_path`]. Each lane keeps the latest, for the next lot that goes the same way.
pub(crate) struct Path {
    /// Whose it is; no lot's at first.
    lot: u32,
    /// Good for the lot's next slice, too, and for other lots' between the same [`Ends`]: there is one remote NIC, and it is well.
    pub(crate) steady: bool,
    pub(crate) ends: Ends,
    /// The peer's.
    pub(crate) slot: usize,
    pub(crate) remote_nic: u8,
    /// The local memory's handle, and where that memory begins.
    pub(crate) handle: usize,
    pub(crate) local_base: u64,
    /// What a remote address is counted from (wrapping), and the key.
    remote: Remote,
}

/// What the keys of a path depend on besides the NICs: memory here and there, as it was registered then.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    /// The serial numbers of the region and the peer's table.
    region: u64,
    table: u64,
    local_chunk: u32,
    remote_chunk: u32,
}

impl Ends {
    const NONE: Self = Self { region: 0, table: 0, local_chunk: 0, remote_chunk: 0 };

    #[inline]
    pub(crate) fn of(lot: &Lot) -> Self {
        let Lot { local_chunk, remote_chunk, .. } = *lot;
        Self { region: lot.region.serial, table: lot.table().serial, local_chunk, remote_chunk }
    }
}

impl Path {
    pub(crate) const NONE: Self = Self {
        lot: u32::MAX,
        steady: false,
        ends: Ends::NONE,
        slot: 0,
        remote_nic: NONE,
        handle: 0,
        local_base: 0,
        remote: Remote { address: 0, key: 0 },
    };

    /// The remote side of a piece that goes this way.
    #[inline]
    pub(crate) const fn remote_of(&self, piece: &Piece) -> Remote {
        Remote { address: self.remote.address.wrapping_add(piece.remote), key: self.remote.key }
    }
}

/// What posting works on: a lane's state without the endpoint, whose lock is held meanwhile.
struct Desk<'a> {
    queue: &'a mut Queue<Slice>,
    lots: &'a mut Lots,
    addresses: &'a mut Addresses,
    path: &'a mut Path,
    turn: &'a mut usize,
    owed: &'a mut Option<Owed>,
    bells: &'a mut usize,
}

/// The latest operation was posted with the promise that another one follows ([`PostFlags::MORE`]), and none has: the card may not
/// have been told of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Owed {
    /// The peer's place among the [addresses](Addresses), and its NIC.
    slot: usize,
    remote_nic: u8,
}

impl LaneState {
    /// What is posted with, and what posting works on.
    #[inline]
    fn desk(&mut self) -> (&Endpoint, Desk<'_>) {
        let Self { endpoint, queue, lots, addresses, path, turn, owed, bells, .. } = self;
        (endpoint, Desk { queue, lots, addresses, path, turn, owed, bells })
    }
}

impl Lane {
    /// Posts slices in order while there are credits.
    pub(crate) fn post(&self, state: &mut LaneState, context: &Context<'_>, outcome: &mut Outcome) -> usize {
        // Most readings of a stream find nothing, and its queue is full then.
        if state.queue.queued() == 0 || state.queue.is_full() {
            return 0;
        }
        let (endpoint, desk) = &mut state.desk();
        let Ok(mut transmit) = endpoint.transmit() else { return 0 };
        let now = context.now();
        let mut posted = 0;
        let mut full = 0;
        let mut next = desk.queue.next(now);
        while let Some(token) = next {
            let before = posted;
            let refused = match self.find_path(desk, token, context) {
                Ok(()) => self.post_run(desk, &mut transmit, token, (context, now), &mut posted),
                Err(refused) => Some((token, refused)),
            };
            if posted > before {
                full = 0;
            }
            let Some((token, refused)) = refused else { break };
            match refused {
                // The first slice of another lot.
                Refused::Other => {
                    next = Some(token);
                    continue;
                }
                Refused::Again => {
                    self.counters.again.fetch_add(1, Ordering::Relaxed);
                    if self.is_stalled(desk, token, now) {
                        self.give_up(desk, token, context, outcome);
                    } else {
                        desk.queue.again(token, now);
                        full += 1;
                        // Two peers in a row that cannot take more: it is the card's queue that is full.
                        if full >= 2 && desk.queue.in_flight() > 0 {
                            break;
                        }
                    }
                }
                Refused::Closed => {
                    desk.queue.again(token, now);
                    break;
                }
                // A slice that nobody waits for.
                Refused::Never => drop(self.take(desk, token)),
                Refused::Fail(failure, why) => match self.take(desk, token) {
                    Some(Taken::Stray(mut stray)) => {
                        self.counters.errors.fetch_add(1, Ordering::Relaxed);
                        stray.attempted(self.index);
                        outcome.left(context.core).failed.push((stray, failure, why));
                    }
                    Some(Taken::Probe(probe)) => probe.ended(Some(why)),
                    None => {}
                },
            }
            next = if posted < POSTS { desk.queue.next(now) } else { None };
        }
        if desk.owed.is_some() {
            self.ring(desk, &mut transmit);
        }
        bump(&self.counters.slices, posted as u64);
        posted
    }

    /// Tries again what was refused when it was due.
    #[cold]
    pub(crate) fn keep_promise(&self, state: &mut LaneState) {
        let (endpoint, desk) = &mut state.desk();
        if let Ok(mut transmit) = endpoint.transmit() {
            self.ring(desk, &mut transmit);
        }
    }

    /// Keeps the promise that was made with the latest operation, when what was to follow has been cancelled or refused: a small
    /// read to the same NIC takes its place. If that is refused too, the next look at the lane begins with it.
    #[cold]
    fn ring(&self, desk: &mut Desk<'_>, transmit: &mut Transmit<'_>) {
        let Some(Owed { slot, remote_nic }) = *desk.owed else { return };
        let own = PROBE_OWN..PROBE_OWN + LEAST;
        let (Some((address, nic)), Ok(local)) =
            (desk.addresses.entry(slot, remote_nic.into()), self.nic.probe.slice(own))
        else {
            // The peer has been forgotten meanwhile. A new endpoint ends what the card has not been told of.
            self.flushed.store(true, Ordering::Relaxed);
            *desk.owed = None;
            return;
        };
        let (address_there, key) = nic.probe;
        match transmit.read(address, local, Remote { address: address_there, key }, BELL) {
            Ok(_) => (*desk.owed, *desk.bells) = (None, *desk.bells + 1),
            Err(PostError::Closed) => *desk.owed = None,
            Err(_) => {}
        }
    }

    /// Posts the slice behind `token` and those of the same lot behind it. Comes back when there is nothing more to post, or with
    /// a slice that was not posted.
    fn post_run(
        &self,
        desk: &mut Desk<'_>,
        transmit: &mut Transmit<'_>,
        mut token: Token,
        (context, now): (&Context<'_>, u64),
        posted: &mut usize,
    ) -> Option<(Token, Refused)> {
        let (queue, lots, path) = (&mut *desk.queue, &mut *desk.lots, &*desk.path);
        let Some(address) = desk.addresses.get(path.slot, path.remote_nic.into()) else {
            return Some((token, Refused::Again));
        };
        let lot = match lots.get_mut(path.lot) {
            Some(Cargo::Lot(lot)) => lot,
            Some(Cargo::Probe(probe)) => {
                return match self.post_probe(transmit, address, probe, token) {
                    Ok(()) => {
                        queue.posted(token);
                        *posted += 1;
                        *desk.owed = None;
                        queue.next(now).map(|token| (token, Refused::Other))
                    }
                    Err(refused) => Some((token, refused)),
                };
            }
            None => return Some((token, Refused::Never)),
        };
        let Some(region) = lot.region.handle(path.handle) else {
            return Some((token, Refused::no_key("local")));
        };
        let special = lot.gate || context.doorbell_batching;
        let refusals = std::mem::take(&mut lot.refusals);
        let first = token;
        let mut slice = queue.get_mut(token)?;
        loop {
            if lot.batch.request_has_ended(slice.request()) {
                return Some((token, Refused::Never));
            }
            (slice.since, slice.remote_nic) = (now, path.remote_nic);
            let start = slice.piece.local.wrapping_sub(path.local_base) as usize;
            let local = match region.slice(start..start.wrapping_add(slice.len() as usize)) {
                Ok(local) => local,
                Err(usage) => return Some((token, Refused::operation(&usage))),
            };
            let remote = path.remote_of(&slice.piece);
            let raw = u64::from(token.raw());
            let result = match lot.op {
                _ if special => {
                    let immediate = if lot.gate { lot.immediate(slice.request()) } else { None };
                    // Only if another one can follow: the card is not told of this one before. Should that come to nothing, a
                    // bell is rung, in the place that the other would have had.
                    let more = context.doorbell_batching
                        && *posted + 1 < POSTS
                        && queue.has_another()
                        && queue.in_flight() + *desk.bells < queue.depth();
                    let flags = if more { PostFlags::MORE } else { PostFlags::empty() };
                    let options = WriteOptions { immediate, flags };
                    let posted = post_special(transmit, address, lot.op, local, remote, options, raw);
                    if posted.is_ok() {
                        let Path { slot, remote_nic, .. } = *path;
                        *desk.owed = more.then_some(Owed { slot, remote_nic });
                    }
                    posted
                }
                Op::Write => transmit.write(address, local, remote, raw),
                Op::Read => transmit.read(address, local, remote, raw),
            };
            if let Err(error) = result {
                if token == first {
                    lot.refusals = refusals;
                }
                return Some((token, refused(error)));
            }
            queue.posted(token);
            *posted += 1;
            if *posted >= POSTS {
                return None;
            }
            (token, slice) = queue.take_next(now)?;
            if slice.lot != path.lot || !path.steady {
                return Some((token, Refused::Other));
            }
        }
    }

    #[cold]
    fn post_probe(
        &self,
        transmit: &mut Transmit<'_>,
        address: &Address,
        probe: &Probe,
        token: Token,
    ) -> Result<(), Refused> {
        let own = PROBE_OWN..PROBE_OWN + probe.len;
        let local = self.nic.probe.slice(own).map_err(|usage| Refused::operation(&usage))?;
        let options = WriteOptions::default();
        post_special(transmit, address, probe.op, local, probe.remote(), options, token.raw().into())
            .map(drop)
            .map_err(refused)
    }

    /// The path of the slice behind `token`, with the remote NIC's address in the vector: the latest if it goes between the same ends,
    /// and nothing has failed.
    #[inline]
    fn find_path(&self, desk: &mut Desk<'_>, token: Token, context: &Context<'_>) -> Result<(), Refused> {
        if desk.path.steady
            && let Some(slice) = desk.queue.get(token)
            && let Some(Cargo::Lot(lot)) = desk.lots.get(slice.lot)
            && desk.path.ends == Ends::of(lot)
            && lot.attempts == 0
            && !lot.peer().health().is_suspect()
            && desk.addresses.touch(
                desk.path.slot,
                &lot.table().nics,
                desk.path.remote_nic.into(),
                context.now(),
            )
        {
            desk.path.lot = slice.lot;
            return Ok(());
        }
        self.find_another_path(desk, token, context)
    }

    #[inline(never)]
    fn find_another_path(
        &self,
        desk: &mut Desk<'_>,
        token: Token,
        context: &Context<'_>,
    ) -> Result<(), Refused> {
        *desk.turn = desk.turn.wrapping_add(1);
        let now = context.now();
        let slice = desk.queue.get(token).ok_or(Refused::Never)?;
        let lot = slice.lot;
        let mut path = Path { lot, ..Path::NONE };
        let later;
        let (peer, nics) = match desk.lots.get_mut(lot).ok_or(Refused::Never)? {
            Cargo::Probe(probe) => {
                if probe.is_over() {
                    return Err(Refused::Never);
                }
                probe.since = now;
                path.remote_nic = probe.remote_nic as u8;
                (&probe.peer, &probe.nics)
            }
            Cargo::Lot(lot) => {
                if lot.batch.request_has_ended(slice.request()) {
                    return Err(Refused::Never);
                }
                self.find_rail(lot, &mut path, *desk.turn, context)?;
                later = lot.party().later_nics();
                (lot.peer(), later.as_ref().unwrap_or(&lot.table().nics))
            }
        };
        path.slot = peer.id.slot as usize;
        let remote_nic = path.remote_nic as usize;
        if !desk.addresses.touch(path.slot, nics, remote_nic, now) {
            let entry = nics.get(remote_nic).ok_or(Refused::Never)?;
            desk.addresses.insert(path.slot, (nics, remote_nic), (&self.nic, desk.queue), now).map_err(
                |error| {
                    let why = format!("the address of NIC {} cannot be used: {error}", entry.name);
                    Refused::Fail(Failure::Rail, why)
                },
            )?;
        }
        *desk.path = path;
        Ok(())
    }

    /// The remote NIC, and the keys of both ends.
    fn find_rail(
        &self,
        lot: &Lot,
        path: &mut Path,
        turn: usize,
        context: &Context<'_>,
    ) -> Result<(), Refused> {
        let (all, count) = (lot.remotes(), lot.table().nics.len());
        let all_well = lot.attempts == 0 && !lot.peer().health().is_suspect();
        let eligible = if all_well { all } else { well(lot, all, context.now()) };
        let Some(remote_nic) = partner(self.seat.seat, self.seat.of, count, eligible, turn) else {
            return Err(Refused::Fail(Failure::Operation, "the peer has the memory on no NIC".into()));
        };
        path.remote_nic = remote_nic as u8;
        path.ends = Ends::of(lot);
        path.steady = eligible == all && has_one_partner(self.seat.seat, self.seat.of, count);
        path.handle =
            lot.region.handle_of(lot.local_chunk, self.index).ok_or_else(|| Refused::no_key("local"))?;
        let handle = lot.region.handle(path.handle).ok_or_else(|| Refused::no_key("local"))?;
        path.local_base = handle.address() as u64;
        // Of address 0: the slices' own are added.
        path.remote =
            lot.table().remote(lot.remote_chunk, remote_nic, 0).ok_or_else(|| Refused::no_key("remote"))?;
        Ok(())
    }

    /// Takes the slice behind a token that has not been posted out of the lane.
    #[cold]
    fn take(&self, desk: &mut Desk<'_>, token: Token) -> Option<Taken> {
        let slice = desk.queue.end(token)?;
        self.let_go(slice.len());
        desk.lots.take(&slice)
    }

    /// Whether the provider has had no room for an operation for a long time although nothing else is in flight to that peer. With
    /// providers over TCP that is the only sign of a peer that is gone, with `efa` of a handshake that has been lost.
    #[cold]
    fn is_stalled(&self, desk: &mut Desk<'_>, token: Token, now: u64) -> bool {
        let (queue, lots) = (&*desk.queue, &mut *desk.lots);
        let cargo = queue.get(token).and_then(|slice| lots.get_mut(slice.lot));
        let (flow, refusals) = match cargo {
            Some(Cargo::Lot(lot)) => (lot.peer().id.slot, &mut lot.refusals),
            Some(Cargo::Probe(probe)) => (probe.peer.id.slot, &mut probe.refusals),
            None => return false,
        };
        // The operation itself has a credit.
        let alone = queue.in_flight_of(flow) == 1;
        refusals.refused(now, alone)
    }

    /// Ends the attempt behind `token`, which the provider does not take, and lets go of the address: when it is inserted again,
    /// the provider begins anew with that peer.
    #[cold]
    fn give_up(&self, desk: &mut Desk<'_>, token: Token, context: &Context<'_>, outcome: &mut Outcome) {
        let Some(taken) = self.take(desk, token) else { return };
        self.counters.errors.fetch_add(1, Ordering::Relaxed);
        let (peer, remote_nic) = match &taken {
            Taken::Stray(stray) => (stray.lot.peer(), stray.lot.remote_nic as usize),
            Taken::Probe(probe) => (&probe.peer, probe.remote_nic),
        };
        desk.addresses.remove(peer.id.slot as usize, remote_nic);
        let why = format!("it has taken nothing for {STALL:?}");
        match taken {
            Taken::Stray(mut stray) => {
                stray.attempted(self.index);
                outcome.left(context.core).failed.push((stray, Failure::Peer, why));
            }
            Taken::Probe(probe) => {
                context.core.probe_failed(self, &probe, Failure::Peer);
                probe.ended(Some(why));
            }
        }
    }
}

/// The remote NICs of `all` that answer, and not those that the slice has failed on; those that there are if there are no others.
#[cold]
fn well(lot: &Lot, all: Set, now: u64) -> Set {
    let well = all & !lot.peer().health().avoid(now);
    lot.other_remotes(if well != 0 { well } else { all })
}

/// Posts an operation with an immediate or flags, or a probe.
#[inline(never)] // out of the loop that posts the many without, which alone calls what those need: so it is inlined there
fn post_special(
    transmit: &mut Transmit<'_>,
    address: &Address,
    op: Op,
    local: fabric_safe::Slice<'_>,
    remote: Remote,
    options: WriteOptions,
    token: u64,
) -> Result<OperationId, PostError> {
    match op {
        Op::Write => transmit.write_with(address, &[local], remote, options, token),
        Op::Read => transmit.read_with(address, &[local], remote, options.flags, token),
    }
}

/// Why it was not posted.
enum Refused {
    Again,
    Closed,
    /// Its request has ended: it is not wanted any more.
    Never,
    /// It needs a path of its own.
    Other,
    Fail(Failure, String),
}

impl Refused {
    fn operation(usage: &fabric_safe::Usage) -> Self {
        Self::Fail(Failure::Operation, usage.to_string())
    }

    #[cold]
    fn no_key(what: &str) -> Self {
        Self::Fail(Failure::Operation, format!("no key of the {what} memory"))
    }
}

/// What the provider said.
#[cold]
fn refused(error: PostError) -> Refused {
    match error {
        PostError::Again => Refused::Again,
        PostError::Closed => Refused::Closed,
        PostError::Failed(error) => {
            let failure = match &*error {
                fabric_safe::Error::Usage(_) => Failure::Operation,
                _ => Failure::Rail,
            };
            Refused::Fail(failure, error.to_string())
        }
        other => Refused::Fail(Failure::Operation, other.to_string()),
    }
}
