//! Lanes that come and go: what happens when one comes up, is lost, or cannot be made; how a peer is asked to close a lost
//! lane before anything that was on it is sent again; and the deadlines of what waits for a lane.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{MAX_BACKOFF, MIN_BACKOFF, PeerInner, PeerState, Recovery};
use crate::batch::Ticket;
use crate::error::Error;
use crate::io::Message;
use crate::lane::Lane;
use crate::seldom::Seldom;
use crate::share::Touched;
use crate::slice::Slice;
use crate::sync::{lock, random_u64};
use crate::wire::Kind;

impl PeerInner {
    /// A connection has finished its handshake.
    pub(crate) fn lane_ready(lane: &Arc<Lane>) {
        let Some(peer) = lane.peer.upgrade() else { return };
        if lane.in_flight() == 0 {
            peer.lane_up(lane);
            return;
        }
        // The host probe is out: the lane counts when it is answered.
        match lane.flush() {
            Ok(()) => lane.leave_to_io(),
            Err(cause) => peer.lane_lost(lane, &cause),
        }
    }

    pub(super) fn lane_up(self: &Arc<Self>, lane: &Arc<Lane>) {
        let mut state = lock(&self.state);
        state.dialling = state.dialling.saturating_sub(1);
        state.failures = 0;
        state.next_dial = None;
        state.last_error = None;
        let stopped = self.context.is_stopped();
        if state.session.replace(lane.session).is_some_and(|s| s != lane.session) {
            tracing::info!(peer = %self.addr, "the peer has been restarted");
        }
        // Slices that may have reached another process must not be sent to this one.
        let mut orphans = Vec::new();
        state.recovering.retain_mut(|r| {
            let same = r.session == lane.session;
            if !same {
                orphans.append(&mut r.slices);
            }
            same
        });
        lane.set_up();
        // It may have gone away while it was being probed.
        if !stopped && !lane.is_draining() {
            state.lanes.push(Arc::clone(lane));
        }
        self.ask_supersede(&mut state, lane);
        drop(state);
        for slice in orphans {
            // Most likely the other process is gone. If this address has only come to lead elsewhere, it is not.
            slice.ticket.iter().for_each(Ticket::doubt);
            self.end(slice, Error::PeerRestarted { peer: self.addr });
        }
        if stopped {
            self.lane_lost(lane, "shut down");
            return;
        }
        if let Err(cause) = lane.flush() {
            self.lane_lost(lane, &cause);
            return;
        }
        lane.leave_to_io();
        self.dispatch();
        self.want_lanes();
    }

    /// Asks the peer to close the lanes that were lost, on a lane that is up.
    pub(super) fn ask_supersede(&self, state: &mut PeerState, lane: &Arc<Lane>) {
        let deadline = Instant::now() + Duration::from_secs(3600); // the lane's stall limit comes first
        for recovery in state.recovering.iter_mut().filter(|r| r.asked_on.is_none()) {
            let mut core = lane.core();
            if !lane.is_usable() {
                return; // another lane will be asked
            }
            recovery.asked_on = Some(lane.number);
            lane.begin(&core);
            core.push(&mut Slice::control(Kind::Supersede, recovery.lane, deadline), 0);
            lane.publish(&core);
        }
    }

    /// The peer has confirmed the end of a lost lane.
    pub(super) fn recover(self: &Arc<Self>, number: u64) {
        let mut state = lock(&self.state);
        let Some(at) = state.recovering.iter().position(|r| r.lane == number) else { return };
        let recovery = state.recovering.swap_remove(at);
        for slice in recovery.slices {
            if slice.ticket.as_ref().is_none_or(|t| t.has_ended()) {
                self.finish_event(slice.event);
                continue; // its owner has given up; now it is quiet too
            }
            self.context.counters.retries.add(1);
            state.pending.push_back(slice);
            self.waiting.fetch_add(1, Ordering::AcqRel);
        }
        drop(state);
        self.dispatch();
    }

    /// A lane has ended. What was in flight on it is retried, if that is safe, until its deadline.
    pub(crate) fn lane_lost(self: &Arc<Self>, lane: &Arc<Lane>, cause: &str) {
        if !lane.end() {
            return;
        }
        let slices = {
            let mut core = lane.core();
            let slices = core.initiator.lost();
            lane.publish(&core);
            slices
        };
        self.context.counters.lanes_lost.add(1);
        if slices.is_empty() {
            tracing::debug!(peer = %self.addr, lane = lane.number, "lane ended: {cause}");
        } else {
            static LOST: Seldom = Seldom::new();
            if let Some(nth) = LOST.again() {
                let requests = slices.len();
                tracing::info!(peer = %self.addr, lane = lane.number, requests, "lane lost ({nth} so far): {cause}");
            }
        }
        let stopped = self.context.is_stopped();
        let error = match stopped {
            true => Error::ShutDown,
            false => Error::Disconnected { peer: self.addr, detail: cause.to_owned() },
        };
        let mut state = lock(&self.state);
        state.forget(lane);
        if !lane.has_been_up() {
            // A failed connection.
            state.dialling = state.dialling.saturating_sub(1);
            state.failures += 1;
            state.next_dial = Some(Instant::now() + backoff(state.failures));
        }
        state.last_error = Some(error.clone());
        for recovery in &mut state.recovering {
            if recovery.asked_on == Some(lane.number) {
                recovery.asked_on = None;
            }
        }
        let mut touched = Touched::default();
        let mut ended = Vec::new();
        let mut retry = Vec::new();
        for (slice, touched) in slices {
            if stopped {
                slice.ticket.iter().filter(|_| touched).for_each(Ticket::doubt);
                ended.push(slice);
            } else if touched {
                retry.push(slice);
            } else {
                state.pending.push_back(slice);
                self.waiting.fetch_add(1, Ordering::AcqRel);
            }
        }
        if !retry.is_empty() {
            let recovery =
                Recovery { lane: lane.number, session: lane.session, slices: retry, asked_on: None };
            state.recovering.push(recovery);
        }
        let up = state.lanes.iter().find(|l| l.is_usable()).cloned();
        if let Some(up) = up {
            self.ask_supersede(&mut state, &up);
            touched.add(&up);
        }
        drop(state);
        for slice in ended {
            self.end(slice, error.clone());
        }
        for up in touched.lanes() {
            // The answer is wanted by nobody in particular, so the I/O thread is to see to it.
            let _ = up.flush();
            up.leave_to_io();
        }
        self.dispatch();
        self.want_lanes();
    }

    pub(super) fn end(&self, mut slice: Slice, error: Error) {
        self.finish_event(slice.event);
        slice.local = None;
        if let Some(mut ticket) = slice.ticket.take() {
            drop(ticket.end(Err(error)));
        }
    }

    /// A connection could not be made.
    pub(crate) fn dial_failed(self: &Arc<Self>, error: Error) {
        let mut state = lock(&self.state);
        state.dialling = state.dialling.saturating_sub(1);
        state.failures += 1;
        state.next_dial = Some(Instant::now() + backoff(state.failures));
        tracing::debug!(peer = %self.addr, failures = state.failures, "no connection: {error}");
        // Trying again does not make two secrets equal.
        let hopeless =
            matches!(error, Error::Authentication { .. } | Error::Protocol { .. }) && state.lanes.is_empty();
        let mut ended = Vec::new();
        if hopeless {
            ended.extend(state.pending.drain(..));
            ended.append(&mut state.delayed);
            self.waiting.store(0, Ordering::Release);
            for mut recovery in std::mem::take(&mut state.recovering) {
                recovery.slices.iter().flat_map(|s| &s.ticket).for_each(Ticket::doubt);
                ended.append(&mut recovery.slices);
            }
        }
        state.last_error = Some(error.clone());
        drop(state);
        for slice in ended {
            self.end(slice, error.clone());
        }
        self.home.send(Message::Watch(Arc::downgrade(self)));
    }

    pub(super) fn want_lanes(self: &Arc<Self>) {
        let state = lock(&self.state);
        let few = state.lanes.len() + state.dialling < self.context.settings.lanes;
        drop(state);
        if few {
            self.home.send(Message::Watch(Arc::downgrade(self)));
        }
    }

    /// Looks at deadlines and connects; from the home thread. Returns whether there is more to look at.
    pub(crate) fn tick(self: &Arc<Self>, now: Instant) -> bool {
        if self.context.is_stopped() {
            return false; // whoever closes the peer sees to everything
        }
        let mut state = lock(&self.state);
        let mut ended = Vec::new();
        let detail = state.last_error.as_ref().map(ToString::to_string).unwrap_or_default();
        let timeout = |phase| Error::Timeout { peer: self.addr, phase, detail: detail.clone() };
        let phase =
            if state.lanes.is_empty() { "waiting for a connection" } else { "waiting for a free lane" };
        let overdue = |s: &Slice| s.deadline <= now;
        for _ in 0..state.pending.len() {
            let Some(slice) = state.pending.pop_front() else { break };
            if overdue(&slice) {
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                ended.push((slice, timeout(phase)));
            } else {
                state.pending.push_back(slice);
            }
        }
        let mut at = 0;
        while at < state.delayed.len() {
            let slice = &state.delayed[at];
            if overdue(slice) {
                let slice = state.delayed.swap_remove(at);
                self.waiting.fetch_sub(1, Ordering::AcqRel);
                ended.push((slice, timeout("the peer's queue was full")));
            } else if slice.not_before.is_none_or(|t| t <= now) {
                let slice = state.delayed.swap_remove(at);
                state.pending.push_back(slice);
            } else {
                at += 1;
            }
        }
        for recovery in &mut state.recovering {
            for slice in recovery.slices.iter_mut().filter(|s| s.deadline <= now) {
                // The slice stays: it is not quiet until the peer has closed the lane.
                if let Some(ticket) = &mut slice.ticket {
                    drop(ticket.end(Err(timeout("waiting for a new connection after one was lost"))));
                }
            }
        }
        let wanted = !state.pending.is_empty() || !state.recovering.is_empty() || !state.lanes.is_empty();
        let target = match (state.lanes.is_empty(), state.failures) {
            // One at a time until one succeeds.
            (true, _) => 1,
            (false, _) => self.context.settings.lanes,
        };
        let mut dials = 0;
        if wanted && state.next_dial.is_none_or(|t| t <= now) {
            dials = target.saturating_sub(state.lanes.len() + state.dialling);
            state.dialling += dials;
        }
        let more = !state.pending.is_empty()
            || !state.delayed.is_empty()
            || !state.recovering.is_empty()
            || (!state.lanes.is_empty() && state.lanes.len() < self.context.settings.lanes);
        drop(state);
        for (slice, error) in ended {
            self.end(slice, error);
        }
        for _ in 0..dials {
            self.context.next_io().send(Message::Dial(Arc::clone(self)));
        }
        self.dispatch();
        more
    }
}

fn backoff(failures: u32) -> Duration {
    let full = MIN_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX_BACKOFF);
    full / 2 + full.mul_f64((random_u64() % 1024) as f64 / 2048.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From 20 ms it doubles up to a second, and each time chance takes up to half of it off.
    #[test]
    fn pauses_double_up_to_a_second_and_differ() {
        for (failures, full_ms) in
            [(1, 20), (2, 40), (3, 80), (6, 640), (7, 1000), (40, 1000), (u32::MAX, 1000)]
        {
            let full = Duration::from_millis(full_ms);
            let mut pauses: Vec<_> = (0..100).map(|_| backoff(failures)).collect();
            assert!(pauses.iter().all(|&p| p >= full / 2 && p <= full), "{failures}: {pauses:?}");
            pauses.sort_unstable();
            // Whoever has lost a peer together does not come back to it together.
            assert!(pauses[99] - pauses[0] > full / 8, "{failures}: {pauses:?}");
        }
    }
}
