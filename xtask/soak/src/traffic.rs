//! One writer: a node's requests to one other node. Every byte that it reads is compared, every request that it submits must
//! end in time, and what has been said to be quiet must stay so.

use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::{Batch, BatchHandle, Engine, Error, HostMemory, Region, RemoteBuffer, Segment, Status};
use fastrand::Rng;

use crate::node::{Meters, POOL};
use crate::shadow::{SLOT, SLOTS, Shadow};

/// How long after its deadline a request may end: a busy machine is no bug.
const GRACE: Duration = Duration::from_secs(20);
/// After this long what could not be settled is used again: nobody can be asked any more.
const GIVE_UP: Duration = Duration::from_secs(60);
/// What local memory holds before a read.
const CANARY: u8 = 0xc5;

/// See the module.
pub(crate) struct Writer {
    pub(crate) engine: Engine,
    pub(crate) meters: Arc<Meters>,
    pub(crate) me: usize,
    /// Where its slots lie in the peer's pool.
    pub(crate) area: usize,
    pub(crate) peer: usize,
    pub(crate) name: String,
    /// One slot of local memory for each of the peer's.
    pub(crate) staging: HostMemory,
    pub(crate) local: Region,
    pub(crate) rng: Rng,
}

/// The peer's memory in one of its lives.
struct Open {
    segment: Segment,
    pool: RemoteBuffer,
    epoch: u128,
}

/// A slot that is set aside.
struct Aside {
    handle: Arc<BatchHandle>,
    slot: usize,
    since: Instant,
    epoch: u128,
}

/// What one request of a batch does.
struct Plan {
    slot: usize,
    at: usize,
    len: usize,
    /// The bytes, if it writes.
    bytes: Option<Vec<u8>>,
}

type Violation = String;

impl Writer {
    /// Until something is wrong.
    pub(crate) fn run(mut self) -> Violation {
        let mut shadow = Shadow::new();
        let mut open: Option<Open> = None;
        let mut aside: Vec<Aside> = Vec::new();
        // Local bytes that were quiet when they were last looked at.
        let mut settled: Vec<Option<Vec<u8>>> = (0..SLOTS).map(|_| None).collect();
        loop {
            aside.retain(|a| {
                let restarted = open.as_ref().is_some_and(|o| o.epoch != a.epoch);
                let keep = !a.handle.quiesced(Instant::now()) && !restarted && a.since.elapsed() < GIVE_UP;
                if !keep {
                    settled[a.slot] = None;
                }
                keep
            });
            self.meters.aside[self.peer].store(aside.len());
            let current = match self.look_up(open.take(), &mut shadow) {
                Ok(current) => open.insert(current),
                Err(error) => {
                    self.failed(&error);
                    continue;
                }
            };
            self.meters.path(self.peer, &current.segment.path());
            let plans = self.plan(&shadow, &aside);
            if plans.is_empty() {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            for plan in &plans {
                if let Some(violation) = self.check_settled(plan.slot, &mut settled) {
                    return violation;
                }
            }
            match self.go(current, plans, &mut shadow, &mut aside, &mut settled) {
                Ok(()) => {}
                Err(violation) => return violation,
            }
            // Not as fast as possible: the machine has other processes to serve.
            std::thread::sleep(Duration::from_micros(self.rng.u64(0..2000)));
        }
    }

    fn failed(&mut self, error: &Error) {
        self.meters.error(self.peer, error);
        std::thread::sleep(Duration::from_millis(self.rng.u64(10..80)));
    }

    /// The peer's memory as it is now.
    fn look_up(&mut self, open: Option<Open>, shadow: &mut Shadow) -> Result<Open, Error> {
        let soon = Instant::now() + Duration::from_secs(3);
        let segment = match open {
            Some(open) if open.segment.epoch() == open.epoch => return Ok(open),
            Some(open) => open.segment,
            None => self.engine.open(&self.name, soon)?,
        };
        // First the life, then the buffer: if the peer restarts in between, the next look sees another life.
        let epoch = segment.epoch();
        shadow.forget_all();
        let pool = match segment.buffer(POOL) {
            Ok(pool) => pool,
            Err(_) => {
                segment.refresh(soon)?;
                segment.buffer(POOL)?
            }
        };
        Ok(Open { segment, pool, epoch })
    }

    fn plan(&mut self, shadow: &Shadow, aside: &[Aside]) -> Vec<Plan> {
        let mut slots: Vec<usize> = (0..SLOTS).filter(|s| aside.iter().all(|a| a.slot != *s)).collect();
        self.rng.shuffle(&mut slots);
        slots.truncate(self.rng.usize(1..=6));
        let plan = |slot: usize| {
            let rng = &mut self.rng;
            let whole = !shadow.is_known(slot) || rng.u8(0..4) == 0;
            let (at, len) = if whole {
                (0, SLOT)
            } else {
                let at = rng.usize(0..SLOT);
                (at, rng.usize(1..=SLOT - at))
            };
            let writes = !shadow.is_known(slot) || rng.bool();
            let bytes = writes.then(|| {
                let mut bytes = vec![0; len];
                rng.fill(&mut bytes);
                bytes
            });
            Plan { slot, at, len, bytes }
        };
        slots.into_iter().map(plan).collect()
    }

    /// What was quiet must not have changed.
    fn check_settled(&self, slot: usize, settled: &mut [Option<Vec<u8>>]) -> Option<Violation> {
        let before = settled[slot].take()?;
        (self.local_slot(slot) != before).then(|| {
            format!(
                "node {} from {}: local memory of slot {slot} changed after its request had been said to be quiet",
                self.me, self.peer
            )
        })
    }

    fn local_slot(&self, slot: usize) -> Vec<u8> {
        let mut bytes = vec![0; SLOT];
        // The slot lies within the memory by construction.
        self.staging.read(slot * SLOT, &mut bytes).unwrap_or_default();
        bytes
    }

    fn go(
        &mut self,
        open: &Open,
        plans: Vec<Plan>,
        shadow: &mut Shadow,
        aside: &mut Vec<Aside>,
        settled: &mut [Option<Vec<u8>>],
    ) -> Result<(), Violation> {
        let mut batch = Batch::new();
        let limit = Duration::from_millis([150, 500, 2000, 8000][self.rng.usize(0..4)]);
        batch.set_deadline(limit);
        let base = open.pool.addr() + self.area as u64;
        let mut asked = Vec::new();
        for plan in plans {
            let here = plan.slot * SLOT;
            let prepared = match &plan.bytes {
                Some(bytes) => self.staging.write(here + plan.at, bytes),
                None => self.staging.write(here, &vec![CANARY; SLOT]),
            };
            let from = self.local.range((here + plan.at) as u64, plan.len as u64);
            let there = engine::Shape::contiguous(base + (here + plan.at) as u64, plan.len as u64);
            let added = prepared.and_then(|()| match plan.bytes {
                Some(_) => batch.write(&self.local, from, &open.segment, there),
                None => batch.read(&self.local, from, &open.segment, there),
            });
            match added {
                Ok(_) => asked.push(plan),
                // Nothing was submitted: the peer has taken its memory back for a moment.
                Err(error) => self.failed(&error),
            }
        }
        if asked.is_empty() {
            let _ = open.segment.refresh(Instant::now() + Duration::from_secs(2));
            return Ok(());
        }
        let start = Instant::now();
        let handle = match self.engine.submit(&mut batch) {
            Ok(handle) => Arc::new(handle),
            Err(error) => {
                self.failed(&error);
                return Ok(());
            }
        };
        if handle.wait_until(start + limit + GRACE).is_none() {
            return Err(format!(
                "node {} to {}: a batch of {} requests with a deadline of {limit:?} has not ended after {:?}: lost",
                self.me,
                self.peer,
                asked.len(),
                start.elapsed()
            ));
        }
        // Whatever was read or written counts for this life only.
        let same_life = open.segment.epoch() == open.epoch;
        let mut failed = Vec::new();
        for (index, plan) in asked.iter().enumerate() {
            match handle.status(index) {
                Status::Done => {
                    self.meters.done(self.peer);
                    if same_life {
                        self.apply(plan, shadow)?;
                    }
                }
                Status::Failed(error) => {
                    self.meters.request_failed(self.peer, &error);
                    failed.push(plan);
                }
                Status::Pending => {
                    return Err(format!(
                        "node {} to {}: a request is pending although its batch has ended",
                        self.me, self.peer
                    ));
                }
            }
        }
        if failed.is_empty() {
            return Ok(());
        }
        let quiet = handle.quiesced(Instant::now() + Duration::from_millis(500));
        for plan in failed {
            if plan.bytes.is_some() {
                shadow.forget(plan.slot);
            }
            if quiet {
                settled[plan.slot] = Some(self.local_slot(plan.slot));
            } else {
                let (handle, epoch) = (Arc::clone(&handle), open.epoch);
                aside.push(Aside { handle, slot: plan.slot, since: Instant::now(), epoch });
            }
        }
        Ok(())
    }

    /// A request has ended well.
    fn apply(&self, plan: &Plan, shadow: &mut Shadow) -> Result<(), Violation> {
        let Plan { slot, at, len, bytes } = plan;
        if let Some(bytes) = bytes {
            shadow.written(*slot, *at, bytes);
            return Ok(());
        }
        let read = self.local_slot(*slot);
        self.meters.verified(*len);
        if let Some((place, found, wanted)) = shadow.difference(*slot, *at, &read[*at..at + len]) {
            return Err(format!(
                "node {} from {}: byte {place} of slot {slot} is {found:#04x}, must be {wanted:#04x} (read of {len} bytes at \
                 {at}): a wrong byte",
                self.me, self.peer
            ));
        }
        let outside = read[..*at].iter().chain(&read[at + len..]);
        if outside.into_iter().any(|&b| b != CANARY) {
            return Err(format!(
                "node {} from {}: a read of {len} bytes at {at} of slot {slot} wrote outside of its range",
                self.me, self.peer
            ));
        }
        Ok(())
    }
}
