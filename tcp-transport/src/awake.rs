//! A thread that stays awake for a moment instead of sleeping until the other process has copied. Waking a thread whose core
//! has gone idle takes 20 to 50 µs on a virtual machine, as long as copying 100 to 250 KiB, and a copy between two processes takes
//! two wake-ups: the owner's for the request, the caller's for the answer.
//!
//! Only while nobody else wants the core: it is offered again and again, and whoever finds that the offer is taken goes to
//! sleep. So this uses time that would have been idle, and is over at once on a machine that has other work.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use crate::clock::Coarse;
use crate::sync::lock;

/// How long the owner of a region looks for the next request after a copy: a caller that has its answer needs 10 to 20 µs to ask
/// for more.
const AFTER_A_COPY: Duration = Duration::from_micros(50);
/// What a caller adds to the time that the copy itself may take.
const BESIDES_THE_COPY: Duration = Duration::from_micros(100);
/// A slow copy, 1 GB/s: a fifth of what one core of today's servers reaches.
const BYTES_PER_US: u64 = 1000;
/// No caller stays awake longer than this: compared with it, being woken costs nothing.
const LONGEST: Duration = Duration::from_millis(2);
/// An offer of the core that nobody takes is over within 0.5 µs; this long, and another thread has been there, or an interrupt.
const PERHAPS_TAKEN: Duration = Duration::from_micros(2);
/// No interrupt takes this long.
const TAKEN: Duration = Duration::from_micros(15);
/// So many times it may have been an interrupt.
const BENEFIT_OF_DOUBT: u32 = 2;
/// How long no caller stays awake when there have been too many: they are all about to come again.
const AFTER_A_CROWD: Duration = Duration::from_millis(100);

/// The callers of a process that wait for a copy, awake or not. With more of them than half of the cores all sleep: the other
/// half is needed by those who copy for them. The scheduler takes a core for busy on which callers only look, and leaves two
/// copying threads on the other one.
struct Callers {
    waiting: AtomicUsize,
    crowded: Mutex<Option<Coarse>>,
}

static CALLERS: Callers = Callers::new();

impl Callers {
    const fn new() -> Self {
        Self { waiting: AtomicUsize::new(0), crowded: Mutex::new(None) }
    }

    fn most() -> usize {
        static HALF: OnceLock<usize> = OnceLock::new();
        *HALF.get_or_init(|| std::thread::available_parallelism().map_or(0, |cores| cores.get() / 2))
    }

    /// One more; says whether it may stay awake.
    fn come(&self) -> bool {
        let before = self.waiting.fetch_add(1, Ordering::Relaxed);
        if before >= Self::most() {
            *lock(&self.crowded) = Some(Coarse::now());
        }
        !self.are_a_crowd()
    }

    /// Whether there have been too many of them lately.
    fn are_a_crowd(&self) -> bool {
        lock(&self.crowded).is_some_and(|then| Coarse::now().since(then) < AFTER_A_CROWD)
    }

    fn are_too_many(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > Self::most()
    }

    fn go(&self) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Whether more callers have been waiting for copies lately than may stay awake.
pub(crate) fn is_crowded() -> bool {
    CALLERS.are_a_crowd()
}

/// See the module.
pub(crate) struct Awake {
    until: Instant,
    doubts: u32,
    callers: Option<&'static Callers>,
}

impl Awake {
    /// For a thread that has copied for another process.
    pub(crate) fn after_a_copy() -> Self {
        Self { until: Instant::now() + AFTER_A_COPY, doubts: 0, callers: None }
    }

    /// For a caller who waits until so many bytes have been copied; to be kept until it has what it waits for.
    pub(crate) fn for_a_copy(bytes: u64) -> Self {
        Self::among(&CALLERS, bytes)
    }

    fn among(callers: &'static Callers, bytes: u64) -> Self {
        let now = Instant::now();
        let limit = (BESIDES_THE_COPY + Duration::from_micros(bytes / BYTES_PER_US)).min(LONGEST);
        let until = if callers.come() { now + limit } else { now };
        Self { until, doubts: 0, callers: Some(callers) }
    }

    /// Offers the core to others and says whether to look once more: false when the time is over or somebody else uses the core.
    pub(crate) fn go_on(&mut self) -> bool {
        let before = Instant::now();
        if before >= self.until || self.callers.is_some_and(Callers::are_too_many) {
            return false;
        }
        std::thread::yield_now();
        self.offered(before.elapsed())
    }

    /// The core was offered for so long; says whether to go on.
    fn offered(&mut self, time: Duration) -> bool {
        self.doubts += u32::from(time >= PERHAPS_TAKEN);
        time < TAKEN && self.doubts <= BENEFIT_OF_DOUBT
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.callers.iter().for_each(|callers| callers.go());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Callers of one test alone.
    macro_rules! some_callers {
        () => {{
            static SOME: Callers = Callers::new();
            &SOME
        }};
    }

    fn micros(n: u64) -> Duration {
        Duration::from_micros(n)
    }

    #[test]
    fn a_caller_looks_as_long_as_the_copy_may_take_but_not_for_long() {
        if Callers::most() == 0 {
            return eprintln!("SKIP: a_caller_looks_as_long_as_the_copy_may_take_but_not_for_long: one core");
        }
        let callers = some_callers!();
        let limit = |bytes: u64| {
            let before = Instant::now();
            Awake::among(callers, bytes).until - before
        };
        assert!(limit(MIB) >= micros(1100));
        assert!(limit(64 << 10) >= micros(160));
        for much in [1 << 30, u64::MAX] {
            let awake = Awake::among(callers, much);
            assert!(awake.until <= Instant::now() + LONGEST);
        }
    }

    #[test]
    fn the_time_ends() {
        let mut owner = Awake::after_a_copy();
        let mut caller = Awake::among(some_callers!(), u64::MAX);
        let start = Instant::now();
        while owner.go_on() || caller.go_on() {
            assert!(start.elapsed() < Duration::from_secs(5));
        }
        std::thread::sleep(LONGEST);
        assert!(!owner.go_on() && !caller.go_on());
    }

    /// Where more callers wait than there are cores to copy for them, none stays awake, and none of those who come soon after.
    #[test]
    fn many_callers_sleep() {
        let callers = some_callers!();
        let mut all: Vec<_> = (0..=Callers::most()).map(|_| Awake::among(callers, u64::MAX)).collect();
        assert!(all.iter_mut().all(|awake| !awake.go_on()));
        drop(all);
        assert!(!callers.are_too_many() && callers.waiting.load(Ordering::Relaxed) == 0);
        assert!(!Awake::among(callers, MIB).go_on());
        std::thread::sleep(2 * AFTER_A_CROWD);
        assert!(Callers::most() == 0 || callers.come());
    }

    /// An idle core is kept, one that somebody takes is left: at once where that is certain, at the third time where it might have
    /// been an interrupt.
    #[test]
    fn a_core_that_others_want_is_left() {
        let mut awake = Awake::after_a_copy();
        assert!((0..1000).all(|_| awake.offered(Duration::from_nanos(500))));
        assert!(awake.offered(micros(3)) && awake.offered(micros(3)));
        assert!(awake.offered(Duration::from_nanos(500)));
        assert!(!awake.offered(micros(3)));
        assert!(!Awake::after_a_copy().offered(micros(20)));
    }
}
