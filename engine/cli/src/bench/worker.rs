//! The traffic of a case: threads that each keep batches in flight.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use engine::{Access, Batch, BatchHandle, HostMemory, Region, Shape};

use super::grid::Case;
use super::measure::{Latencies, Measured};
use super::{Op, Setting};
use crate::failure::Failure;
use crate::units::bytes;

/// How often progress is told.
const TICK: Duration = Duration::from_millis(100);

/// The memory of a case, and where each thread's batches go.
pub(crate) struct Traffic {
    pub(crate) case: Case,
    pub(crate) lines: Vec<Line>,
}

/// What one thread has: memory for each of its batches in flight, and their places at the target.
pub(crate) struct Line {
    pub(crate) memory: HostMemory,
    pub(crate) region: Region,
    /// For each batch in flight: offset in the target's buffer.
    pub(crate) places: Vec<u64>,
}

/// A batch on its way.
struct InFlight {
    handle: BatchHandle,
    slot: usize,
    could_begin: Instant,
    submitted: Instant,
    posted: Instant,
}

impl Traffic {
    /// Registers memory for every thread.
    pub(crate) fn set_up(setting: &Setting, case: Case) -> Result<Self, Failure> {
        let batch = case.batch_bytes();
        let depth = setting.depth as u64;
        // Places repeat where the buffer has not room for all (which Grid::fits allows without verification only).
        let room = (setting.buffer.len() / batch).max(1);
        let line = |thread: u64| {
            let len = batch
                .checked_mul(depth)
                .and_then(|len| usize::try_from(len).ok())
                .ok_or_else(|| Failure::Usage("batches that large do not fit into memory".into()))?;
            let memory = HostMemory::new(len).map_err(|error| {
                Failure::Unavailable(format!("{} of memory for a thread: {error}", bytes(len as u64)))
            })?;
            let region = setting
                .engine
                .register("bench", memory.clone(), Access::LOCAL)
                .map_err(|error| Failure::opening(&error))?;
            let places = (0..depth).map(|slot| (thread * depth + slot) % room * batch).collect();
            Ok(Line { memory, region, places })
        };
        Ok(Self { case, lines: (0..case.threads).map(line).collect::<Result<_, Failure>>()? })
    }

    /// Gives the memory back.
    pub(crate) fn tear_down(self, setting: &Setting) -> Result<(), Failure> {
        for line in self.lines {
            setting.engine.unregister(line.region).map_err(|error| Failure::transferring(&error))?;
        }
        Ok(())
    }

    /// Moves as much as it can for `time`, after one batch for each thread that is not counted. `progress` hears of the
    /// time and of bytes moved.
    pub(crate) fn measure(
        &self,
        setting: &Setting,
        time: Duration,
        progress: impl Fn(Duration, u64),
    ) -> Result<Measured, Failure> {
        let stop = AtomicBool::new(false);
        let moved = AtomicU64::new(0);
        let running = AtomicUsize::new(self.lines.len());
        let failure = Mutex::new(None);
        let all = Mutex::new(Latencies::new());
        let last_end = Mutex::new(None::<Instant>);
        let barrier = Barrier::new(self.lines.len() + 1);
        let begin = thread::scope(|scope| {
            for line in &self.lines {
                scope.spawn(|| {
                    let mut runner =
                        Runner { setting, case: self.case, line, batch: Batch::new(), moved: &moved };
                    let warm = runner.once(0);
                    barrier.wait();
                    let ended = warm.and_then(|()| runner.run(time, &stop));
                    match ended {
                        Ok((latencies, end)) => {
                            lock(&all).add(&latencies);
                            let mut last = lock(&last_end);
                            *last = (*last).max(Some(end));
                        }
                        Err(error) => {
                            stop.store(true, Ordering::Relaxed);
                            lock(&failure).get_or_insert(error);
                        }
                    }
                    running.fetch_sub(1, Ordering::Release);
                });
            }
            barrier.wait();
            moved.store(0, Ordering::Relaxed);
            let begin = Instant::now();
            while running.load(Ordering::Acquire) > 0 {
                thread::park_timeout(TICK.min(time / 4));
                progress(begin.elapsed(), moved.load(Ordering::Relaxed));
            }
            begin
        });
        if let Some(failure) = lock(&failure).take() {
            return Err(failure);
        }
        let latencies = lock(&all).clone();
        let batches = latencies.count();
        let elapsed = lock(&last_end).map_or(time, |end| end.saturating_duration_since(begin));
        Ok(Measured {
            elapsed,
            bytes: batches * self.case.batch_bytes(),
            blocks: batches * self.case.batch,
            latencies,
        })
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread at work.
struct Runner<'a> {
    setting: &'a Setting,
    case: Case,
    line: &'a Line,
    batch: Batch,
    moved: &'a AtomicU64,
}

impl Runner<'_> {
    fn run(&mut self, time: Duration, stop: &AtomicBool) -> Result<(Latencies, Instant), Failure> {
        let mut latencies = Latencies::new();
        let begin = Instant::now();
        let over = begin + time;
        let mut in_flight = VecDeque::with_capacity(self.setting.depth);
        for slot in 0..self.setting.depth {
            in_flight.push_back(self.submit(slot, Instant::now())?);
        }
        let mut end = begin;
        while let Some(oldest) = in_flight.pop_front() {
            let InFlight { handle, slot, could_begin, submitted, posted } = oldest;
            if let Err(error) = handle.wait() {
                in_flight.iter().for_each(|other| other.handle.cancel());
                return Err(self.failed(&error));
            }
            end = Instant::now();
            latencies.record(submitted - could_begin, posted - submitted, end - posted);
            self.moved.fetch_add(self.case.batch_bytes(), Ordering::Relaxed);
            if end < over && !stop.load(Ordering::Relaxed) {
                in_flight.push_back(self.submit(slot, end)?);
            }
        }
        Ok((latencies, end))
    }

    /// One batch, to its end.
    fn once(&mut self, slot: usize) -> Result<(), Failure> {
        let batch = self.submit(slot, Instant::now())?;
        batch.handle.wait().map_err(|error| self.failed(&error))
    }

    fn submit(&mut self, slot: usize, could_begin: Instant) -> Result<InFlight, Failure> {
        let Setting { engine, op, .. } = self.setting;
        fill(&mut self.batch, self.setting, self.case, self.line, slot, *op)?;
        let submitted = Instant::now();
        let handle = engine.submit(&mut self.batch).map_err(|error| self.failed(&error))?;
        Ok(InFlight { handle, slot, could_begin, submitted, posted: Instant::now() })
    }

    fn failed(&self, error: &engine::Error) -> Failure {
        failed(self.setting, self.case, self.setting.op, error)
    }
}

/// A transfer's error with what it was about.
pub(crate) fn failed(setting: &Setting, case: Case, op: Op, error: &engine::Error) -> Failure {
    let direction = match op {
        Op::Read => "from",
        Op::Write => "to",
    };
    Failure::Transfer(format!(
        "{op} of {} × {} {direction} {} failed: {error}",
        case.batch,
        bytes(case.block),
        setting.segment.name()
    ))
}

/// Makes up the batch of a slot.
pub(crate) fn fill(
    batch: &mut Batch,
    setting: &Setting,
    case: Case,
    line: &Line,
    slot: usize,
    op: Op,
) -> Result<(), Failure> {
    batch.clear();
    batch.set_deadline(setting.deadline);
    let local = line.region.addr() + slot as u64 * case.batch_bytes();
    let remote = setting.buffer.addr() + line.places[slot];
    let mut add = |ours: Shape<'_>, theirs: Shape<'_>| {
        match op {
            Op::Read => batch.read(&line.region, ours, &setting.segment, theirs),
            Op::Write => batch.write(&line.region, ours, &setting.segment, theirs),
        }
        .map_err(|error| failed(setting, case, op, &error))
    };
    if setting.paged {
        let pages: Vec<u64> = (0..case.batch).map(|block| remote + block * case.block).collect();
        let theirs = Shape::Paged { page_len: case.block, addrs: &pages };
        add(Shape::contiguous(local, case.batch_bytes()), theirs)?;
        return Ok(());
    }
    for block in 0..case.batch {
        let offset = block * case.block;
        add(Shape::contiguous(local + offset, case.block), Shape::contiguous(remote + offset, case.block))?;
    }
    Ok(())
}
