//! One direction of an endpoint: who may post, what is in flight, and where it completes.

use core::ptr;
use core::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::Usage;
use crate::completion_queue::CompletionQueue;
use crate::error::PostError;
use crate::operations::Table;

/// One direction of an endpoint.
pub(crate) struct Side {
    pub(crate) gate: Gate,
    pub(crate) table: Arc<Table>,
    pub(crate) queue: CompletionQueue,
}

/// The lock of the posters, which knows when a thread would wait for itself.
pub(crate) struct Gate {
    /// Whether posts are still possible.
    open: Mutex<bool>,
    /// The thread that has handed the lock to its caller, 0 for none.
    owner: AtomicUsize,
}

impl Side {
    pub(crate) fn new(queue: CompletionQueue, depth: usize) -> Side {
        Side {
            gate: Gate { open: Mutex::new(true), owner: AtomicUsize::new(0) },
            table: Arc::new(Table::new(depth)),
            queue,
        }
    }

    /// Makes the queue know the operations.
    pub(crate) fn attach(&self) -> Result<(), Usage> {
        self.queue.0.lock().reserve(self.queue.0.capacity(), &self.table)
    }

    pub(crate) fn detach(&self) {
        self.queue.0.lock().close(&self.table, true);
    }

    /// The right to post, or to close.
    #[inline]
    pub(crate) fn enter(&self) -> Result<MutexGuard<'_, bool>, PostError> {
        let open = self.gate.enter()?;
        if *open { Ok(open) } else { Err(PostError::Closed) }
    }

    /// Remembers that the calling thread keeps the lock while its own code runs.
    pub(crate) fn set_owner(&self) {
        self.gate.owner.store(this_thread(), Ordering::Relaxed);
    }

    pub(crate) fn clear_owner(&self) {
        self.gate.owner.store(0, Ordering::Relaxed);
    }

    pub(crate) fn queue_wake(&self) {
        self.queue.0.wake();
    }
}

impl Gate {
    #[inline]
    pub(crate) fn enter(&self) -> Result<MutexGuard<'_, bool>, Usage> {
        match self.open.try_lock() {
            Some(guard) => Ok(guard),
            None => self.enter_slowly(),
        }
    }

    #[cold]
    fn enter_slowly(&self) -> Result<MutexGuard<'_, bool>, Usage> {
        // Only this thread writes its own number there, so a match cannot be stale.
        if self.owner.load(Ordering::Relaxed) == this_thread() {
            return Err(Usage::Binding(
                "this thread holds the endpoint's Transmit guard: use or drop that first",
            ));
        }
        Ok(self.open.lock())
    }
}

/// A number that no other living thread has, and not 0.
fn this_thread() -> usize {
    thread_local!(static HERE: u8 = const { 0 });
    HERE.with(|here| ptr::from_ref(here) as usize)
}
