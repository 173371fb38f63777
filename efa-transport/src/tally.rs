//! Counting what one reading of a completion queue has brought.
//!
//! Neighbours in the queue mostly belong to the same request: what they share (the request's count, the peer's, the NIC's) is
//! written once for all of them.

use std::sync::atomic::Ordering;

use crate::batch::Part;
use crate::lane::{Context, Lane, Outcome, bump};
use crate::lot::{Cargo, Lot, Lots, Taken};
use crate::request::Op;
use crate::slice::{NONE, Slice};

/// Slices that have ended well and are not accounted yet. [`close`](Self::close) it before the lane's lock is given back.
pub(crate) struct Tally<'a> {
    lane: &'a Lane,
    context: &'a Context<'a>,
    trace: bool,
    /// Lot, request and remote NIC of the latest slices.
    latest: (u32, u32, u8),
    slices: u32,
    /// Of the same lot.
    requests_ended: u32,
    lot_slices: u32,
    lot_bytes: u64,
    /// Of all: what they count in the lane's load.
    weight: u64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(lane: &'a Lane, context: &'a Context<'a>) -> Self {
        Self {
            lane,
            context,
            trace: context.core.trace.is_some(),
            latest: (u32::MAX, 0, NONE),
            slices: 0,
            requests_ended: 0,
            lot_slices: 0,
            lot_bytes: 0,
            weight: 0,
        }
    }

    /// Counts a slice that has ended well, or a probe.
    #[inline]
    pub(crate) fn count(&mut self, slice: Slice, lots: &mut Lots, outcome: &mut Outcome) {
        if self.trace {
            self.trace(&slice, lots);
        }
        let (lot, request, remote_nic) = self.latest;
        if slice.lot != lot || slice.request() != request || slice.remote_nic != remote_nic {
            if self.slices + self.lot_slices > 0 {
                if slice.lot == lot {
                    self.close_request(lots, outcome);
                } else {
                    self.close(lots, outcome);
                }
            }
            self.latest = (slice.lot, slice.request(), slice.remote_nic);
        }
        self.slices += 1;
        self.lot_bytes += slice.len();
    }

    #[cold]
    fn trace(&self, slice: &Slice, lots: &Lots) {
        if let (Some(trace), Some(Cargo::Lot(lot))) = (&self.context.core.trace, lots.get(slice.lot)) {
            trace.ended(self.lane.index, lot, slice, self.context.core.clock.now());
        }
    }

    /// Accounts for all.
    pub(crate) fn close(&mut self, lots: &mut Lots, outcome: &mut Outcome) {
        if self.slices == 1 && self.lot_slices == 0 && self.close_alone(lots) {
            return;
        }
        if self.slices + self.lot_slices > 0 {
            self.close_request(lots, outcome);
            self.close_lot(lots);
            self.lane.unload(std::mem::take(&mut self.weight));
        }
    }

    /// Accounts for the only slice of a batch that was sent alone, if it is one: everybody else's counts come first, the request's end
    /// last, in one step.
    #[inline]
    fn close_alone(&mut self, lots: &mut Lots) -> bool {
        let (number, _, remote_nic) = self.latest;
        let Some(Cargo::Lot(lot)) = lots.get(number) else { return false };
        if !lot.batch.is_sent_alone() {
            return false;
        }
        self.see_recovered(lot, remote_nic);
        self.slices = 0;
        let bytes = std::mem::take(&mut self.lot_bytes);
        self.count_lot(lot, 1, bytes);
        self.lane.unload(Lane::weight(bytes));
        lots.end_alone(number);
        true
    }

    /// What has ended well may have been in doubt.
    #[inline]
    fn see_recovered(&self, lot: &Lot, remote_nic: u8) {
        let lane = self.lane;
        if lane.aside_until.load(Ordering::Relaxed) != 0 || lot.peer().health().is_suspect() {
            self.context.core.recovered(lane, lot.peer(), remote_nic.into());
        }
    }

    #[inline(never)] // once for many slices
    fn close_request(&mut self, lots: &mut Lots, outcome: &mut Outcome) {
        let slices = std::mem::take(&mut self.slices);
        if slices == 0 {
            return;
        }
        self.lot_slices += slices;
        let (lot, request, remote_nic) = self.latest;
        let Some(Cargo::Lot(lot)) = lots.get(lot) else { return };
        self.see_recovered(lot, remote_nic);
        match lot.batch.slices_done(request, slices) {
            Part::Running => {}
            Part::Ended => self.requests_ended += 1,
            Part::Gate(gate) => {
                outcome.left(self.context.core).started.push(gate);
            }
        }
    }

    #[inline(never)]
    fn close_lot(&mut self, lots: &mut Lots) {
        let slices = std::mem::take(&mut self.lot_slices);
        if slices == 0 {
            return;
        }
        let bytes = std::mem::take(&mut self.lot_bytes);
        self.weight += bytes + u64::from(slices) * Lane::weight(0);
        let number = self.latest.0;
        match lots.get_mut(number) {
            Some(Cargo::Lot(lot)) => {
                self.count_lot(lot, slices, bytes);
                lots.end(number, slices, std::mem::take(&mut self.requests_ended));
            }
            Some(Cargo::Probe(_)) => self.probe_ended(number, lots),
            None => {}
        }
    }

    #[inline]
    fn count_lot(&self, lot: &Lot, slices: u32, bytes: u64) {
        let Lane { index, counters, .. } = self.lane;
        match lot.op {
            Op::Read => bump(&counters.bytes_read, bytes),
            Op::Write => bump(&counters.bytes_written, bytes),
        }
        lot.peer().counters.ended(*index, lot.op, slices, bytes);
    }

    #[cold]
    fn probe_ended(&self, number: u32, lots: &mut Lots) {
        if let Some(Taken::Probe(probe)) = lots.take(&Slice::of_probe(number)) {
            self.context.core.recovered(self.lane, &probe.peer, probe.remote_nic);
            probe.ended(None);
        }
    }
}
