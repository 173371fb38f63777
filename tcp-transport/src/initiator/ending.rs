//! Requests that end without their answer: past the deadline, cancelled, or with the lane.

use std::time::{Duration, Instant};

use super::{Initiator, Phase, Receiving, Sink};
use crate::batch::BatchState;
use crate::error::Error;
use crate::slice::Slice;
use crate::wire::Kind;

impl Initiator {
    /// Ends what is past its deadline; returns the next one.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<Instant> {
        if self.next_deadline.is_some_and(|d| d <= now) {
            let peer = self.peer;
            self.give_up(
                |slice| slice.deadline <= now,
                |phase| {
                    let phase = match phase {
                        Phase::Free | Phase::Queued => "waiting to be sent",
                        Phase::Sending => "being sent",
                        Phase::Sent => "waiting for the answer",
                    };
                    Error::Timeout { peer, phase, detail: String::new() }
                },
            );
            let open = self.slots.iter().filter(|s| s.phase != Phase::Free);
            self.next_deadline = open
                .filter(|s| !s.slice.ticket.as_ref().is_some_and(|t| t.has_ended()))
                .map(|s| s.slice.deadline)
                .min();
        }
        self.next_deadline
    }

    /// Ends the requests of one batch.
    pub(crate) fn cancel(&mut self, batch: &BatchState) {
        self.give_up(
            |s| s.ticket.as_ref().is_some_and(|t| std::ptr::eq(&raw const **t.batch(), batch)),
            |_| Error::Cancelled,
        );
    }

    pub(super) fn give_up(&mut self, which: impl Fn(&Slice) -> bool, error: impl Fn(Phase) -> Error) {
        for index in 0..self.slots.len() as u32 {
            let slot = &mut self.slots[index as usize];
            let ended = slot.slice.ticket.as_ref().is_none_or(|t| t.has_ended());
            if slot.phase == Phase::Free || ended || !which(&slot.slice) {
                continue;
            }
            let error = error(slot.phase);
            if slot.phase == Phase::Queued {
                self.queue.retain(|&i| i != index);
                self.free_slot(index, Err(error));
                continue;
            }
            // Bytes are on their way: the slot stays until the answer comes or the lane has been superseded.
            if let Some(ticket) = &mut slot.slice.ticket {
                ticket.end(Err(error));
            }
            let unanswered = u64::from(slot.generation) << 32 | u64::from(index);
            let wants_cancel =
                slot.phase == Phase::Sent && matches!(slot.slice.kind, Kind::Read | Kind::Call);
            if let Some(Receiving { slot, sink, .. }) = &mut self.receiving
                && *slot == index
            {
                *sink = Sink::Nowhere;
            }
            if wants_cancel {
                let deadline = self.slots[index as usize].slice.deadline;
                let mut cancel =
                    Slice::control(Kind::Cancel, unanswered, deadline + Duration::from_secs(3600));
                self.push(&mut cancel, 0);
            }
        }
    }

    /// The connection is gone: hands over everything that was in flight. Of each slice, whether some of it may have reached
    /// the peer.
    pub(crate) fn lost(&mut self) -> Vec<(Slice, bool)> {
        let mut out = Vec::with_capacity(self.in_flight);
        for index in 0..self.slots.len() {
            let slot = &mut self.slots[index];
            if slot.phase == Phase::Free {
                continue;
            }
            let touched = slot.phase != Phase::Queued;
            slot.phase = Phase::Free;
            let empty = Slice::empty(slot.slice.deadline);
            let slice = std::mem::replace(&mut slot.slice, empty);
            // Internal requests die with their lane.
            if slice.ticket.is_some() {
                out.push((slice, touched));
            }
        }
        self.slots.clear();
        self.free.clear();
        self.queue.clear();
        self.staged.clear();
        self.receiving = None;
        (self.in_flight, self.bytes_in_flight) = (0, 0);
        (self.bytes_expected, self.bytes_copied) = (0, 0);
        self.next_deadline = None;
        out
    }
}
