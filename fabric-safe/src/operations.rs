//! The operations in flight on one side (transmit or receive) of an endpoint.
//!
//! A table has one slot for every operation that may be outstanding. The slot's address is the `context` that libfabric gets
//! and gives back, so a slot never moves; it starts with the scratch space that providers with `FI_CONTEXT2` ask for. Slots
//! are handed out in turn, oldest free one first, so that a completion that comes twice meets an empty slot.
//!
//! Two threads at a time work on a table without a lock between them:
//!
//! * the **poster** (whoever holds the endpoint's lock for this side) takes free slots out of the ring and fills them;
//! * the **poller** (whoever holds the lock of the completion queue that this side is bound to) ends operations and puts their
//!   slots back into the ring.
//!
//! A third party, who wants to close a memory region or remove an address, scans the table for slots that still hold it
//! ([`Table::holders`]). This takes the place of a reference count per operation.

use core::cell::UnsafeCell;
use core::ffi::c_void;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};

use fabric_sys as sys;

use crate::completion::OperationKind;
use crate::error::PostError;

/// Local segments of one operation. Providers offer 2 (EFA) to 8 (sockets); four keep a slot within two cache lines.
pub(crate) const MAX_SEGMENTS: usize = 4;

/// What a slot can hold: an address and the regions of every segment.
pub(crate) const MAX_HOLDS: usize = MAX_SEGMENTS + 1;

/// Largest number of slots in a table, whatever the provider reports: 8 MiB of slots.
pub(crate) const MAX_SLOTS: usize = 1 << 16;

/// Not in use.
const FREE: u8 = 0;
/// Posted and not ended: what it holds must stay.
const IN_FLIGHT: u8 = 1;
/// Its endpoint has been closed; the completion queue has not told its owner yet.
const ABORTED: u8 = 2;
/// Its endpoint could not be closed: what it holds must stay for ever. The completion queue has not told its owner yet.
const STRANDED: u8 = 3;
/// As `STRANDED`, and its owner has been told.
const LOST: u8 = 4;

/// What a slot says about its operation, in one word, so that posting and ending are a load and a store each: its state
/// (bits 0 to 7), its kind (8 to 15), how many things it holds (16 to 23), and which user of the slot it is (32 to 63).
#[derive(Clone, Copy)]
struct Word(u64);

impl Word {
    /// The next user's word.
    #[inline(always)]
    fn next(self, kind: OperationKind, holds: usize) -> Word {
        let generation = (self.0 & !0xffff_ffff).wrapping_add(1 << 32);
        Word(generation | (holds as u64) << 16 | (kind as u64) << 8 | u64::from(IN_FLIGHT))
    }

    #[inline(always)]
    fn with_state(self, state: u8) -> Word {
        Word(self.0 & !0xff | u64::from(state))
    }

    #[inline(always)]
    fn state(self) -> u8 {
        self.0 as u8
    }

    /// The [`OperationKind`]'s number.
    #[inline(always)]
    fn kind(self) -> u8 {
        (self.0 >> 8) as u8
    }

    fn holds(self) -> usize {
        usize::from((self.0 >> 16) as u8)
    }

    #[inline(always)]
    fn generation(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whether what it holds must stay.
    fn pinned(self) -> bool {
        matches!(self.state(), IN_FLIGHT | STRANDED | LOST)
    }
}

/// Identifies an object that operations can hold: a region or an address. Never used twice in a process; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HoldId(u64);

impl HoldId {
    /// Nothing.
    pub(crate) const NONE: HoldId = HoldId(0);
}

impl HoldId {
    pub(crate) fn new() -> HoldId {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        HoldId(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

#[repr(C, align(64))]
struct Slot {
    /// Written by the provider alone.
    context: UnsafeCell<sys::fi_context2>,
    /// A [`Word`].
    word: AtomicU64,
    token: AtomicU64,
    holds: [AtomicU64; MAX_HOLDS],
}

const _: () = assert!(size_of::<Slot>() == 128);

impl Slot {
    fn new() -> Slot {
        Slot {
            context: UnsafeCell::new(sys::fi_context2 { internal: [core::ptr::null_mut(); 8] }),
            word: AtomicU64::new(0),
            token: AtomicU64::new(0),
            holds: [const { AtomicU64::new(0) }; MAX_HOLDS],
        }
    }

    /// Acquire: who sees the slot in flight sees what it holds, and who sees it free comes after its operation.
    #[inline(always)]
    fn word(&self) -> Word {
        Word(self.word.load(Ordering::Acquire))
    }

    /// Release: see [`word`](Slot::word).
    #[inline(always)]
    fn set(&self, word: Word) {
        self.word.store(word.0, Ordering::Release);
    }
}

/// A counter alone on its cache line, since poster and poller write one each.
#[repr(align(64))]
struct Cursor(AtomicUsize);

/// Names one operation of one endpoint, for [`Endpoint::cancel`](crate::Endpoint::cancel).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct OperationId {
    /// The slot, and [`RECEIVE`](OperationId::RECEIVE) for the table of the receive side.
    place: u32,
    generation: u32,
}

impl OperationId {
    const RECEIVE: u32 = 1 << 31;

    fn new(slot: usize, generation: u32, kind: OperationKind) -> OperationId {
        let receive = if matches!(kind, OperationKind::Receive) { OperationId::RECEIVE } else { 0 };
        OperationId { place: slot as u32 | receive, generation }
    }

    /// Whether it is a receive.
    pub(crate) fn is_receive(self) -> bool {
        self.place & OperationId::RECEIVE != 0
    }

    fn slot(self) -> usize {
        (self.place & !OperationId::RECEIVE) as usize
    }
}

/// A slot that the poster has taken and not yet handed to the provider.
#[derive(Clone, Copy)]
struct Claim(usize);

/// An operation that has ended.
pub(crate) struct Ended {
    pub(crate) token: u64,
    /// The [`OperationKind`]'s number.
    pub(crate) kind: u8,
}

/// See the module's text.
pub(crate) struct Table {
    slots: Box<[Slot]>,
    /// Free slots; as many entries as the next power of two has.
    ring: Box<[AtomicU32]>,
    /// Slots taken so far; written by the poster.
    taken: Cursor,
    /// Slots put back so far, the initial filling included; written by the poller.
    returned: Cursor,
    /// No more operations will be posted, and those in flight have been marked.
    closed: AtomicBool,
}

// SAFETY: everything but the scratch space is atomic; the scratch space is touched by the provider alone, through raw pointers.
unsafe impl Send for Table {}
// SAFETY: as above.
unsafe impl Sync for Table {}

impl Table {
    pub(crate) fn new(slots: usize) -> Table {
        let count = slots.clamp(1, MAX_SLOTS);
        let ring_len = count.next_power_of_two();
        Table {
            slots: (0..count).map(|_| Slot::new()).collect(),
            // The first `count` entries name the slots; the rest are filled as the ring turns.
            ring: (0..ring_len).map(|index| AtomicU32::new(index as u32)).collect(),
            taken: Cursor(AtomicUsize::new(0)),
            returned: Cursor(AtomicUsize::new(count)),
            closed: AtomicBool::new(false),
        }
    }

    pub(crate) fn depth(&self) -> usize {
        self.slots.len()
    }

    /// Operations posted and not ended. Exact for whoever posts or polls, a snapshot for everyone else.
    pub(crate) fn in_flight(&self) -> usize {
        let taken = self.taken.0.load(Ordering::Acquire);
        let returned = self.returned.0.load(Ordering::Acquire);
        self.depth() - returned.wrapping_sub(taken).min(self.depth())
    }

    // ---- the poster's half -------------------------------------------------------------------------------------------

    /// Takes the oldest free slot. Poster only.
    #[inline(always)]
    fn claim(&self) -> Option<Claim> {
        let taken = self.taken.0.load(Ordering::Relaxed);
        // Acquire: what the poller did to the slot is over before we reuse it.
        if taken == self.returned.0.load(Ordering::Acquire) {
            return None;
        }
        let index = self.ring[taken & (self.ring.len() - 1)].load(Ordering::Relaxed) as usize;
        self.taken.0.store(taken.wrapping_add(1), Ordering::Release);
        Some(Claim(index))
    }

    /// Takes a slot, lets `submit` hand the operation to the provider under the slot's address, and takes the slot back if it
    /// is refused. Poster only.
    #[inline(always)]
    pub(crate) fn post<const N: usize>(
        &self,
        call: &'static str,
        kind: OperationKind,
        token: u64,
        peer: HoldId,
        regions: &[HoldId; N],
        submit: impl FnOnce(*mut c_void) -> isize,
    ) -> Result<OperationId, PostError> {
        let Some(claim) = self.claim() else { return Err(PostError::Again) };
        let (context, id) = self.fill(claim, kind, token, peer, regions);
        match submit(context) {
            0 => Ok(id),
            status => {
                self.retract(claim);
                Err(PostError::status(call, status))
            }
        }
    }

    /// Marks the slot as in flight, holding the peer and the regions. Poster only, before the provider sees the
    /// operation.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // a zip of the two is not unrolled, which costs a third of a post
    fn fill<const N: usize>(
        &self,
        claim: Claim,
        kind: OperationKind,
        token: u64,
        peer: HoldId,
        regions: &[HoldId; N],
    ) -> (*mut c_void, OperationId) {
        const { assert!(N < MAX_HOLDS) };
        let slot = &self.slots[claim.0];
        slot.holds[0].store(peer.0, Ordering::Relaxed);
        for index in 0..N {
            slot.holds[1 + index].store(regions[index].0, Ordering::Relaxed);
        }
        slot.token.store(token, Ordering::Relaxed);
        let word = slot.word().next(kind, 1 + N);
        slot.set(word);
        let id = OperationId::new(claim.0, word.generation(), kind);
        (slot.context.get().cast(), id)
    }

    /// Takes back what [`claim`](Table::claim) and [`fill`](Table::fill) did: the provider has refused the operation. Poster
    /// only, and only for the latest claim.
    ///
    /// A provider that refuses an operation and completes it nevertheless finds the slot free (or, much later, in use by
    /// another operation) when the completion is read.
    #[cold]
    fn retract(&self, claim: Claim) {
        let slot = &self.slots[claim.0];
        let word = slot.word();
        let free = word.with_state(FREE);
        // Exchanged, because a poller may be ending it now.
        if word.state() == IN_FLIGHT
            && slot.word.compare_exchange(word.0, free.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
        {
            let taken = self.taken.0.load(Ordering::Relaxed).wrapping_sub(1);
            // The entry that we gave up has not been overwritten: at most `depth` entries are ever in the ring, ours among them.
            self.ring[taken & (self.ring.len() - 1)].store(claim.0 as u32, Ordering::Relaxed);
            self.taken.0.store(taken, Ordering::Release);
        }
    }

    /// The context of an operation, if it is still the one in flight there.
    pub(crate) fn context_of(&self, id: OperationId) -> Option<*mut c_void> {
        let slot = self.slots.get(id.slot())?;
        let word = slot.word();
        (word.generation() == id.generation && word.state() == IN_FLIGHT).then(|| slot.context.get().cast())
    }

    // ---- the poller's half -------------------------------------------------------------------------------------------

    /// Which slot a context from a completion is, if it is one of ours. The pointer is compared, never followed.
    #[inline(always)]
    pub(crate) fn slot_of(&self, context: *const c_void) -> Option<usize> {
        let offset = (context as usize).wrapping_sub(self.slots.as_ptr() as usize);
        let index = offset / size_of::<Slot>();
        (offset.is_multiple_of(size_of::<Slot>()) && index < self.slots.len()).then_some(index)
    }

    /// Ends the operation in a slot. `None` if there is none: a completion that came twice. Poller only.
    #[inline(always)]
    pub(crate) fn end(&self, index: usize) -> Option<Ended> {
        let slot = &self.slots[index];
        let word = slot.word();
        let ended = Ended { token: slot.token.load(Ordering::Relaxed), kind: word.kind() };
        match word.state() {
            IN_FLIGHT | ABORTED => {
                slot.set(word.with_state(FREE));
                self.give_back(index);
                Some(ended)
            }
            STRANDED => {
                slot.set(word.with_state(LOST));
                Some(ended)
            }
            _ => None,
        }
    }

    #[inline(always)]
    fn give_back(&self, index: usize) {
        let returned = self.returned.0.load(Ordering::Relaxed);
        self.ring[returned & (self.ring.len() - 1)].store(index as u32, Ordering::Relaxed);
        self.returned.0.store(returned.wrapping_add(1), Ordering::Release);
    }

    /// Ends the next operation at or after slot `from` that the closing of the endpoint left behind, and says where it was and
    /// whether its memory is at rest. Poller only.
    pub(crate) fn next_aborted(&self, from: usize) -> Option<(usize, Ended, bool)> {
        let index = (from..self.slots.len())
            .find(|&index| matches!(self.slots[index].word().state(), ABORTED | STRANDED))?;
        let quiesced = self.slots[index].word().state() == ABORTED;
        self.end(index).map(|ended| (index, ended, quiesced))
    }

    // ---- closing -----------------------------------------------------------------------------------------------------

    /// The endpoint is closed (`quiesced`) or could not be closed: marks what is left. Needs the poster's and the poller's
    /// lock.
    pub(crate) fn close(&self, quiesced: bool) {
        let next = if quiesced { ABORTED } else { STRANDED };
        for slot in &self.slots {
            let word = slot.word();
            if word.state() == IN_FLIGHT {
                slot.set(word.with_state(next));
            }
        }
        self.closed.store(true, Ordering::Release);
    }

    /// Whether no operation holds anything. Exact if none is posted or ended meanwhile.
    pub(crate) fn is_empty(&self) -> bool {
        self.slots.iter().all(|slot| !slot.word().pinned())
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    // ---- everyone else's part ----------------------------------------------------------------------------------------

    /// The operations that hold `id`. Exact if no new operation can come to hold it; operations that hold something else by
    /// now may be named too.
    pub(crate) fn holders(&self, id: HoldId) -> Vec<Holder> {
        let mut holders = Vec::new();
        for (index, slot) in self.slots.iter().enumerate() {
            let word = slot.word();
            let mut holds = slot.holds.iter().take(word.holds());
            if word.pinned() && holds.any(|hold| hold.load(Ordering::Relaxed) == id.0) {
                holders.push(Holder { index, generation: word.generation() });
            }
        }
        holders
    }

    pub(crate) fn still_holds(&self, holder: &Holder) -> bool {
        let word = self.slots[holder.index].word();
        word.pinned() && word.generation() == holder.generation
    }
}

/// An operation that was found to hold something.
#[derive(Debug)]
pub(crate) struct Holder {
    index: usize,
    generation: u32,
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use super::*;

    fn post<const N: usize>(
        table: &Table,
        token: u64,
        holds: &[HoldId; N],
    ) -> Result<OperationId, PostError> {
        let kind = OperationKind::Write;
        table.post("test", kind, token, HoldId::NONE, holds, |_| 0)
    }

    /// The context that a provider would hand back.
    fn context(table: &Table, slot: usize) -> *const c_void {
        table.slots[slot].context.get().cast()
    }

    #[test]
    fn as_many_operations_as_slots_and_each_ends_once() {
        let table = Table::new(3);
        let posted: Vec<_> = (0..3).map(|token| post(&table, token, &[]).unwrap()).collect();
        assert!(matches!(post(&table, 9, &[]), Err(PostError::Again)));
        assert_eq!(table.in_flight(), 3);
        for (token, id) in posted.iter().enumerate() {
            let slot = table.slot_of(context(&table, id.slot())).unwrap();
            assert_eq!(table.end(slot).unwrap().token, token as u64);
            assert!(table.end(slot).is_none(), "a completion that comes twice ends nothing");
        }
        assert_eq!(table.in_flight(), 0);
    }

    #[test]
    fn contexts_that_are_not_ours_are_told_apart() {
        let table = Table::new(4);
        let first = context(&table, 0) as usize;
        let wrong = [0, 1, first - 128, first + 1, first + 64, first + 4 * 128, usize::MAX];
        assert!(wrong.iter().all(|address| table.slot_of(*address as *const c_void).is_none()));
        assert_eq!(table.slot_of((first + 3 * 128) as *const c_void), Some(3));
    }

    #[test]
    fn a_refused_operation_leaves_nothing_behind() {
        let table = Table::new(2);
        let id = HoldId::new();
        for _ in 0..100 {
            let refused = table.post("test", OperationKind::Read, 1, HoldId::NONE, &[id], |_| -22);
            assert!(matches!(refused, Err(PostError::Failed(_))));
            let again = table.post("test", OperationKind::Read, 1, HoldId::NONE, &[id], |_| -11);
            assert!(matches!(again, Err(PostError::Again)));
            assert_eq!((table.in_flight(), table.holders(id).len()), (0, 0));
        }
    }

    #[test]
    fn what_is_held_is_found_until_the_operation_has_ended() {
        let table = Table::new(4);
        let (mine, other) = (HoldId::new(), HoldId::new());
        let one = post(&table, 1, &[other, mine]).unwrap();
        post(&table, 2, &[other]).unwrap();
        let holders = table.holders(mine);
        assert_eq!(holders.len(), 1);
        assert!(table.still_holds(&holders[0]));
        table.end(one.slot()).unwrap();
        assert!(!table.still_holds(&holders[0]));
        assert!(table.context_of(one).is_none(), "nothing is left to cancel");
    }

    #[test]
    fn the_next_user_of_a_slot_is_another_operation() {
        let table = Table::new(1);
        let id = HoldId::new();
        let first = post(&table, 1, &[id]).unwrap();
        let holders = table.holders(id);
        table.end(first.slot()).unwrap();
        let second = post(&table, 2, &[id]).unwrap();
        assert_eq!(second.slot(), first.slot());
        assert!(first != second && table.context_of(first).is_none(), "cancelling would meet the wrong one");
        assert!(table.context_of(second).is_some() && !table.still_holds(&holders[0]));
        assert!(!first.is_receive());
    }

    #[test]
    fn closing_leaves_ends_to_be_told() {
        for quiesced in [true, false] {
            let table = Table::new(4);
            let id = HoldId::new();
            let posted: Vec<_> = (0..3).map(|token| post(&table, token, &[id]).unwrap()).collect();
            table.end(posted[1].slot()).unwrap();
            table.close(quiesced);
            assert_eq!(table.holders(id).len(), if quiesced { 0 } else { 2 }, "memory at rest is free");
            let (slot, ended, at_rest) = table.next_aborted(0).unwrap();
            assert_eq!((ended.token, at_rest), (0, quiesced));
            let (slot, ended, _) = table.next_aborted(slot + 1).unwrap();
            assert_eq!(ended.token, 2);
            assert!(table.next_aborted(slot + 1).is_none() && table.next_aborted(0).is_none());
            assert_eq!(
                table.holders(id).len(),
                if quiesced { 0 } else { 2 },
                "stranded memory stays for ever"
            );
        }
    }

    proptest::proptest! {
        /// Any sequence of posting, refusing and ending in any order agrees with a list of what is outstanding.
        #[test]
        fn slots_are_conserved(
            depth in 1usize..9,
            steps in proptest::collection::vec((0u8..3, proptest::prelude::any::<usize>()), 0..200),
        ) {
            let table = Table::new(depth);
            let mut outstanding: VecDeque<(OperationId, u64)> = VecDeque::new();
            for (token, (step, which)) in steps.into_iter().enumerate() {
                match step {
                    0 => match post(&table, token as u64, &[]) {
                        Ok(id) => outstanding.push_back((id, token as u64)),
                        Err(_) => assert_eq!(outstanding.len(), depth),
                    },
                    1 => {
                        let kind = OperationKind::Send;
                        let refused = table.post("test", kind, 0, HoldId::NONE, &[], |_| -11);
                        assert!(refused.is_err());
                    }
                    _ => {
                        let index = which % outstanding.len().max(1);
                        if let Some((id, token)) = outstanding.remove(index) {
                            assert_eq!(table.end(id.slot()).unwrap().token, token);
                        }
                    }
                }
                assert_eq!(table.in_flight(), outstanding.len());
                let mut slots: Vec<_> = outstanding.iter().map(|(id, _)| id.slot()).collect();
                slots.sort_unstable();
                slots.dedup();
                assert_eq!(slots.len(), outstanding.len(), "two operations share a slot");
            }
        }
    }
}
