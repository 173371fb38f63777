//! Time as the cards see it, and who may move it: see [`clock`](crate::clock).
//!
//! On a run with a clock of its own, a process tells the others (in its slot of the registry) whether it can still do something before
//! time moves, and when its next request falls due. Whoever finds that nobody can do anything moves the clock to the earliest of
//! these moments.

use super::completion::CompletionQueue;
use super::engine;
use super::process::{Process, lock, slot_alive};
use crate::clock::Kind;
use crate::shared::{LIVE, ProcessSlot};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Never.
pub(crate) const NEVER: u64 = u64::MAX;
/// A program that has been still for so long waits for something that is not a completion.
const STILL_NS: u64 = 500_000_000;
/// A program that has not polled for so long does something else just now.
const ABSENT_NS: u64 = 5_000_000;
/// How long a poll waits for another process's card to answer a message.
const ANSWER: Duration = Duration::from_secs(1);
/// Requests that one turn works on when the card works in step: all there are.
const ALL: usize = 1 << 20;

/// What a process's pace depends on.
pub(crate) struct Pace {
    kind: Kind,
    /// Grows with everything that the program does and learns: requests posted, completions written and read.
    acts: AtomicU64,
    /// Completion queues that are armed: somebody sleeps.
    sleepers: AtomicUsize,
    /// Held while the cards work: in step, one thread at a time does, so that nothing depends on who is faster.
    turn: Mutex<()>,
}

/// Nanoseconds of the clock that all processes of the machine share.
pub(crate) fn machine_ns() -> u64 {
    // SAFETY: fills a local structure.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time
    };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

impl Pace {
    pub(crate) fn new(kind: Kind) -> Pace {
        Pace { kind, acts: AtomicU64::new(1), sleepers: AtomicUsize::new(0), turn: Mutex::default() }
    }

    /// Whether the cards work only when the program waits for them.
    pub(crate) fn is_stepped(&self) -> bool {
        self.kind.is_stepped()
    }

    /// What the program has done and learnt so far, as a number that grows.
    pub(crate) fn acts(&self) -> u64 {
        self.acts.load(Ordering::SeqCst)
    }

    /// A completion queue has been armed (or has told its sleeper).
    pub(crate) fn sleeps(&self, more: bool) {
        if more {
            self.sleepers.fetch_add(1, Ordering::SeqCst);
        } else {
            self.sleepers.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// The time, in nanoseconds.
pub(crate) fn now(process: &Process) -> u64 {
    match process.pace.kind {
        Kind::Wall => machine_ns(),
        Kind::Virtual | Kind::Manual => process.registry.clock_ns.load(Ordering::SeqCst),
    }
}

/// How long it is until that moment of the machine's clock.
pub(crate) fn until(due: u64) -> Duration {
    Duration::from_nanos(due.saturating_sub(machine_ns()))
}

/// The program has done something, or has something new to look at: time does not move before it has polled in vain.
pub(crate) fn act(process: &Process) {
    if process.pace.is_stepped() {
        process.pace.acts.fetch_add(1, Ordering::SeqCst);
        let me = process.me();
        me.active_ns.store(machine_ns(), Ordering::SeqCst);
        me.waiting.store(0, Ordering::SeqCst);
    }
}

/// How long the program has not polled, in nanoseconds.
fn still_ns(process: &Process) -> u64 {
    machine_ns().saturating_sub(process.me().active_ns.load(Ordering::SeqCst))
}

/// Whether the program leaves the work to the card's thread: it sleeps on a queue, or has not polled for long.
pub(crate) fn is_left_to_the_card(process: &Process) -> bool {
    process.pace.sleepers.load(Ordering::SeqCst) > 0 || still_ns(process) > STILL_NS
}

/// Takes in what comes from others while the program does something else than polling, so that they get their answers.
pub(crate) fn receive_for_others(process: &Arc<Process>) -> bool {
    if still_ns(process) < ABSENT_NS {
        return false;
    }
    process.pace.turn.try_lock().is_ok_and(|_turn| process.receive())
}

/// Does everything that can be done at this moment, and waits for the answers of other processes' cards.
pub(crate) fn work(process: &Arc<Process>) -> bool {
    let _turn = lock(&process.pace.turn);
    let start = Instant::now();
    let mut any = false;
    loop {
        let mut worked = process.receive();
        for card in process.open_cards() {
            worked |= engine::run(card, ALL);
        }
        any |= worked;
        if worked {
            continue;
        }
        let busy = process.open_cards().any(|card| engine::is_busy(card));
        if !busy || start.elapsed() > ANSWER {
            return any;
        }
        std::thread::yield_now();
    }
}

/// The program has polled a completion queue, and there is nothing in it.
pub(crate) fn polled_in_vain(process: &Arc<Process>, queue: &CompletionQueue) {
    process.me().active_ns.store(machine_ns(), Ordering::SeqCst);
    work(process);
    let acts = process.pace.acts();
    if queue.is_empty() && queue.empty_at.swap(acts, Ordering::SeqCst) == acts {
        wait(process);
    }
}

/// Says that this process can do nothing at this moment; moves the clock if none can, and then does what has fallen due. True when the
/// clock has moved.
pub(crate) fn wait(process: &Arc<Process>) -> bool {
    let acts = process.pace.acts();
    if process.open_cards().any(|card| engine::is_busy(card)) {
        return false;
    }
    let due = process.open_cards().map(|card| engine::next_due(card)).min().unwrap_or(NEVER);
    let me = process.me();
    me.due_ns.store(due, Ordering::SeqCst);
    me.waiting.store(1, Ordering::SeqCst);
    if process.pace.acts() != acts {
        me.waiting.store(0, Ordering::SeqCst);
        return false;
    }
    let moved = process.pace.kind == Kind::Virtual && move_clock(process);
    if moved {
        work(process);
    }
    moved
}

/// Moves the clock to the next moment at which a request of any process falls due, if all of them wait for it.
fn move_clock(process: &Process) -> bool {
    let registry = &process.registry;
    let now = registry.clock_ns.load(Ordering::SeqCst);
    let mut next = NEVER;
    for entry in registry.slots.iter().filter(|entry| entry.state.load(Ordering::Acquire) == LIVE) {
        match state(entry, now) {
            State::Due(due) => next = next.min(due),
            State::Busy if slot_alive(entry) => return false,
            State::Busy | State::Still => {}
        }
    }
    let moved = next != NEVER
        && registry.clock_ns.compare_exchange(now, next, Ordering::SeqCst, Ordering::SeqCst).is_ok();
    if moved {
        crate::shared::ring_all_bells(registry);
    }
    moved
}

/// What a process says of itself.
enum State {
    /// It waits for that moment.
    Due(u64),
    /// It may do something now.
    Busy,
    /// It has not done anything for long.
    Still,
}

fn state(entry: &ProcessSlot, now: u64) -> State {
    if entry.waiting.load(Ordering::SeqCst) == 1 {
        let due = entry.due_ns.load(Ordering::SeqCst);
        return if due <= now { State::Busy } else { State::Due(due) };
    }
    let still = machine_ns().saturating_sub(entry.active_ns.load(Ordering::SeqCst)) > STILL_NS;
    if still { State::Still } else { State::Busy }
}
