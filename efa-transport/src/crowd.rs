//! Whether others want the processor that a thread waits on.
//!
//! A thread that yields lets everybody else have the processor first, for a whole turn each: among sixteen busy programs that is tens of
//! milliseconds, and a write of a hundred looks at a socket took more than ten seconds. A thread that sleeps until there is something is
//! let on soon after. So when a yield has taken long, threads sleep instead for a while, each time shortly: what waits for room in a socket
//! wakes nobody.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// A yield that took longer has let somebody compute for a whole turn: Linux gives 0.7 to 3 ms.
const LONG: Duration = Duration::from_millis(2);
/// So many times sleeping takes the place of yielding after that: the yield that tries again costs little beside as many short sleeps.
const TIMES: u32 = 64;
/// Of the yields in a row only every so many-eth is timed, the first one included: most are short and followed by others.
const TIMED: u32 = 4;

/// What the threads of a transport have seen of it.
#[derive(Debug, Default)]
pub(crate) struct Crowd {
    /// How many times more to sleep.
    left: AtomicU32,
}

impl Crowd {
    /// Lets others have the processor, for the `nth` time in a row; `false` if the thread had better sleep. (Threads that count at once
    /// may count one for two.)
    #[inline]
    pub(crate) fn yields(&self, nth: u32) -> bool {
        let left = self.left.load(Ordering::Relaxed);
        if left > 0 {
            self.left.store(left - 1, Ordering::Relaxed);
            return false;
        }
        if nth.is_multiple_of(TIMED) {
            let began = Instant::now();
            std::thread::yield_now();
            self.took(began.elapsed());
        } else {
            std::thread::yield_now();
        }
        true
    }

    fn took(&self, time: Duration) {
        if time > LONG {
            self.left.store(TIMES, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Catches: threads that yield on and on among busy programs; threads that never yield again after that.
    #[test]
    fn after_a_long_yield_threads_sleep_for_a_while() {
        let crowd = Crowd::default();
        crowd.took(LONG);
        assert!(crowd.yields(1));
        crowd.took(LONG * 2);
        assert_eq!((0..10_000).find(|_| crowd.yields(1)), Some(TIMES as usize));
        assert!(crowd.yields(1));
    }
}
