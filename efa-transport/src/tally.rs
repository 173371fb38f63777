//! Counting what one reading of a completion queue has brought.
//!
//! Neighbours in the queue mostly belong to the same request: what they share (the request's count, the peer's, the NIC's) is
//! written once for all of them.

use std::sync::atomic::Ordering;

use crate::batch::Part;
use crate::lane::{Context, Lane, Outcome};
use crate::lot::{Cargo, Lot, Lots};
use crate::request::Op;
use crate::slice::Slice;

/// Slices that have ended well and are not accounted yet. [`close`](Self::close) it before the lane's lock is given back.
pub(crate) struct Tally<'a> {
    lane: &'a Lane,
    context: &'a Context<'a>,
    /// Of the same lot, request and remote NIC as this one.
    latest: Slice,
    slices: u32,
    /// Of the same lot.
    requests_ended: u32,
    lot_slices: u32,
    lot_bytes: u64,
    /// Of all.
    weight: u64,
}

impl<'a> Tally<'a> {
    pub(crate) fn new(lane: &'a Lane, context: &'a Context<'a>) -> Self {
        Self {
            lane,
            context,
            latest: Slice::of_probe(),
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
        if let Some(trace) = &self.context.core.trace
            && let Some(Cargo::Lot(lot)) = lots.get(slice.lot)
        {
            trace.ended(self.lane.index, lot, &slice, self.context.core.clock.now());
        }
        let latest = &self.latest;
        if (slice.lot, slice.request) != (latest.lot, latest.request) || slice.remote_nic != latest.remote_nic
        {
            self.close_request(lots, outcome);
            if slice.lot != self.latest.lot {
                self.close_lot(lots);
            }
        }
        self.latest = slice;
        self.slices += 1;
        self.lot_slices += 1;
        self.lot_bytes += slice.len();
        self.weight += Lane::weight(slice.len());
    }

    /// Accounts for all.
    pub(crate) fn close(&mut self, lots: &mut Lots, outcome: &mut Outcome) {
        self.close_request(lots, outcome);
        self.close_lot(lots);
        if self.weight > 0 {
            self.lane.load.fetch_sub(std::mem::take(&mut self.weight), Ordering::Relaxed);
        }
    }

    fn close_request(&mut self, lots: &mut Lots, outcome: &mut Outcome) {
        let slices = std::mem::take(&mut self.slices);
        if slices == 0 {
            return;
        }
        let Some(Cargo::Lot(lot)) = lots.get(self.latest.lot) else { return };
        let lane = self.lane;
        if lane.aside_until.load(Ordering::Relaxed) != 0 || lot.peer().health().is_suspect() {
            self.context.core.recovered(lane, lot.peer(), self.latest.remote_nic as usize);
        }
        match lot.batch.slices_done(self.latest.request, slices) {
            Part::Running => {}
            Part::Ended => self.requests_ended += 1,
            Part::Gate(gate) => {
                if outcome.started.capacity() == 0 {
                    outcome.started = self.context.core.spare_started();
                }
                outcome.started.push(gate);
            }
        }
    }

    fn close_lot(&mut self, lots: &mut Lots) {
        let slices = std::mem::take(&mut self.lot_slices);
        if slices == 0 {
            return;
        }
        let bytes = std::mem::take(&mut self.lot_bytes);
        let number = self.latest.lot;
        match lots.get_mut(number) {
            Some(Cargo::Lot(lot)) => {
                self.count_lot(lot, slices, bytes);
                let ended = std::mem::take(&mut self.requests_ended);
                if ended > 0 {
                    lot.batch.requests_ended(ended as usize);
                }
                lots.end(number, slices);
            }
            Some(Cargo::Probe(_)) => self.probe_ended(lots),
            None => {}
        }
    }

    #[inline]
    fn count_lot(&self, lot: &Lot, slices: u32, bytes: u64) {
        let (peer, lane) = (lot.peer(), &self.lane.counters);
        let (here, there) = match lot.op {
            Op::Read => (&lane.bytes_read, &peer.counters.bytes_read),
            Op::Write => (&lane.bytes_written, &peer.counters.bytes_written),
        };
        here.fetch_add(bytes, Ordering::Relaxed);
        there.fetch_add(bytes, Ordering::Relaxed);
        peer.counters.slices.fetch_add(slices.into(), Ordering::Relaxed);
        peer.last_success.store(self.context.now(), Ordering::Relaxed);
    }

    #[cold]
    fn probe_ended(&self, lots: &mut Lots) {
        if let Some(crate::lot::Taken::Probe(probe)) = lots.take(self.latest) {
            self.context.core.recovered(self.lane, &probe.peer, probe.remote_nic);
            probe.ended(None);
        }
    }
}
