//! Threads for what may block and must not hold anybody up: looking for a peer again, moving requests to another path.
//!
//! There are none until something is to be done, at most [`MOST`] at a time, and none again soon after.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Most threads at a time. Errands wait for peers, so they need no cores.
const MOST: usize = 8;
/// How long a thread waits for more to do.
const LINGER: Duration = Duration::from_secs(2);

type Errand = Box<dyn FnOnce() + Send>;

/// The threads and what waits for them.
#[derive(Clone, Default)]
pub(crate) struct Errands(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Errand>,
    threads: usize,
    idle: usize,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Errands {
    /// Runs it on some thread, soon. Where the system has no thread to give, on this one.
    pub(crate) fn run(&self, errand: impl FnOnce() + Send + 'static) {
        let mut state = self.0.lock();
        state.waiting.push_back(Box::new(errand));
        if state.idle >= state.waiting.len() {
            self.0.more.notify_one();
            return;
        }
        if state.threads >= MOST {
            return;
        }
        state.threads += 1;
        drop(state);
        let shared = Arc::clone(&self.0);
        let started = std::thread::Builder::new().name("weft-errand".into()).spawn(move || work(&shared));
        if started.is_err() {
            let mut state = self.0.lock();
            state.threads -= 1;
            if state.threads == 0 {
                let waiting = std::mem::take(&mut state.waiting);
                drop(state);
                waiting.into_iter().for_each(|errand| errand());
            }
        }
    }
}

fn work(shared: &Shared) {
    let mut state = shared.lock();
    loop {
        if let Some(errand) = state.waiting.pop_front() {
            drop(state);
            // A panic is a bug; it must not take the thread's place in the count with it.
            if std::panic::catch_unwind(std::panic::AssertUnwindSafe(errand)).is_err() {
                tracing::error!("an errand of the engine panicked");
            }
            state = shared.lock();
            continue;
        }
        state.idle += 1;
        let (next, timeout) = shared.more.wait_timeout(state, LINGER).unwrap_or_else(PoisonError::into_inner);
        state = next;
        state.idle -= 1;
        if timeout.timed_out() && state.waiting.is_empty() {
            state.threads -= 1;
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[test]
    fn every_errand_is_run_even_beside_ones_that_block_or_panic() {
        let errands = Errands::default();
        let (tell, told) = mpsc::channel();
        let (hold, held) = mpsc::channel::<()>();
        errands.run(move || {
            let _ = held.recv();
        });
        errands.run(|| panic!("on purpose"));
        for number in 0..100 {
            let tell = tell.clone();
            errands.run(move || tell.send(number).unwrap());
        }
        let mut seen: Vec<i32> =
            (0..100).map(|_| told.recv_timeout(Duration::from_secs(10)).unwrap()).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
        assert!(errands.0.lock().threads <= MOST);
        drop(hold);
    }
}
