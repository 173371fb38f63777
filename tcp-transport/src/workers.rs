//! The threads that run the handler, so that a slow answer never holds up an I/O thread.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, Weak};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender};

use crate::error::Error;
use crate::server_lane::ServerLane;
use crate::sync::lock;
use crate::transport::{Caller, Handler};

/// A call that waits for its answer. How many there can be is bounded by `Service::reserve_call`.
pub(crate) struct CallJob {
    pub(crate) lane: Weak<ServerLane>,
    pub(crate) id: u64,
    pub(crate) caller: Caller,
    pub(crate) request: Vec<u8>,
}

/// See the module.
pub(crate) struct Workers {
    count: usize,
    jobs: Mutex<Option<Sender<CallJob>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Workers {
    pub(crate) fn start(count: usize, handler: Option<Arc<dyn Handler>>) -> Result<Arc<Self>, Error> {
        let (sender, receiver) = crossbeam_channel::unbounded();
        let mut threads = Vec::new();
        for n in 0..count.max(1) {
            let (receiver, handler) = (receiver.clone(), handler.clone());
            let thread = std::thread::Builder::new()
                .name(format!("weft-call-{n}"))
                .spawn(move || work(&receiver, handler.as_deref()))
                .map_err(|e| Error::io("starting a worker thread", e))?;
            threads.push(thread);
        }
        Ok(Arc::new(Self {
            count: threads.len(),
            jobs: Mutex::new(Some(sender)),
            threads: Mutex::new(threads),
        }))
    }

    /// Calls that run at a time.
    pub(crate) fn count(&self) -> usize {
        self.count
    }

    pub(crate) fn submit(&self, job: CallJob) {
        if let Some(jobs) = &*lock(&self.jobs) {
            let _ = jobs.send(job);
        }
    }

    /// Ends the threads when they have run what is queued.
    pub(crate) fn stop(&self) {
        *lock(&self.jobs) = None;
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // A handler may own the last handle of its transport.
            if thread.thread().id() != std::thread::current().id() {
                let _ = thread.join();
            }
        }
    }
}

fn work(jobs: &Receiver<CallJob>, handler: Option<&dyn Handler>) {
    while let Ok(CallJob { lane, id, caller, request }) = jobs.recv() {
        let answer = match handler {
            None => Err("no handler is installed".into()),
            Some(handler) => catch_unwind(AssertUnwindSafe(|| handler.call(caller, &request)))
                .unwrap_or_else(|_| Err("the handler panicked".into())),
        };
        if let Some(lane) = lane.upgrade() {
            lane.answer_call(id, answer);
        }
    }
}
