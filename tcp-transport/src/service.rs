//! What the answering sides of all lanes share.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, Weak};

use crate::events::{Arrivals, Notifications};
use crate::region::RegionTable;
use crate::server_lane::ServerLane;
use crate::settings::Limits;
use crate::stats::Counters;
use crate::sync::lock;
use crate::window::Window;

/// See the module.
pub(crate) struct Service {
    pub(crate) regions: Arc<RegionTable>,
    pub(crate) arrivals: Arrivals,
    pub(crate) notifications: Notifications,
    pub(crate) limits: Limits,
    pub(crate) counters: Arc<Counters>,
    /// Calls that wait for the handler or run.
    calls: AtomicUsize,
    sessions: Mutex<HashMap<u128, Arc<Session>>>,
}

/// One transport that has connected here: its lanes, and what it has delivered.
pub(crate) struct Session {
    pub(crate) id: u128,
    pub(crate) events: Mutex<Window>,
    lanes: Mutex<Lanes>,
}

#[derive(Default)]
struct Lanes {
    open: HashMap<u64, Weak<ServerLane>>,
    /// Numbers that were superseded last.
    superseded: VecDeque<u64>,
}

/// Superseded numbers that a session remembers. A lane can be superseded while its own thread has yet to add it, at most one for
/// each connection that is being made; the dialling side makes a few at a time.
const MAX_SUPERSEDED: usize = 256;

/// Sessions without a lane are forgotten when there are more than this, which bounds memory; an event that is sent again
/// after that could be delivered twice, so it is far above what lives within one request's deadline.
const MAX_IDLE_SESSIONS: usize = 4096;

impl Service {
    pub(crate) fn new(regions: Arc<RegionTable>, limits: Limits, counters: Arc<Counters>) -> Self {
        Self {
            regions,
            arrivals: Arrivals::new(limits.events),
            notifications: Notifications::new(limits.events),
            limits,
            counters,
            calls: AtomicUsize::new(0),
            sessions: Mutex::default(),
        }
    }

    /// Makes room for one more call; false if there is none.
    pub(crate) fn reserve_call(&self) -> bool {
        let limit = self.limits.calls;
        self.calls.fetch_update(Ordering::AcqRel, Ordering::Acquire, |n| (n < limit).then_some(n + 1)).is_ok()
    }

    pub(crate) fn release_call(&self) {
        self.calls.fetch_sub(1, Ordering::AcqRel);
    }

    pub(crate) fn session(&self, id: u128) -> Arc<Session> {
        let mut sessions = lock(&self.sessions);
        if sessions.len() > MAX_IDLE_SESSIONS && !sessions.contains_key(&id) {
            sessions.retain(|_, s| s.has_lanes());
        }
        let new = || Arc::new(Session { id, events: Mutex::default(), lanes: Mutex::default() });
        Arc::clone(sessions.entry(id).or_insert_with(new))
    }
}

impl Session {
    /// Adds a lane; false if the number is taken, which only a recording or a liar would try, or has been superseded already.
    pub(crate) fn add(&self, number: u64, lane: &Arc<ServerLane>) -> bool {
        let Lanes { open, superseded } = &mut *lock(&self.lanes);
        open.retain(|_, l| l.strong_count() > 0);
        if open.contains_key(&number) || superseded.contains(&number) {
            return false;
        }
        open.insert(number, Arc::downgrade(lane));
        true
    }

    pub(crate) fn remove(&self, number: u64) {
        lock(&self.lanes).open.remove(&number);
    }

    /// Sees to it that nothing that comes over this lane is applied from now on, also if it is only about to be added.
    pub(crate) fn supersede(&self, number: u64) {
        let lane = {
            let Lanes { open, superseded } = &mut *lock(&self.lanes);
            if superseded.len() == MAX_SUPERSEDED {
                superseded.pop_front();
            }
            superseded.push_back(number);
            open.remove(&number)
        };
        if let Some(lane) = lane.as_ref().and_then(Weak::upgrade) {
            lane.close();
        }
    }

    fn has_lanes(&self) -> bool {
        lock(&self.lanes).open.values().any(|l| l.strong_count() > 0)
    }
}
