//! The provider's state: answers to give, operations outstanding, what is open. One lock around all of it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError};

use crate::script::{Answer, Call, Counts, Faults, Placed};

/// Reads and writes whose way is remembered.
pub const PLACED: usize = 4096;

/// A range of local memory of an operation.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Span {
    pub(crate) address: usize,
    pub(crate) len: usize,
    /// Does the operation write to it?
    pub(crate) written: bool,
}

/// How an operation ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum End {
    Well,
    Badly { errno: i32, provider_errno: i32 },
    Twice,
    Never,
}

/// An operation that has been accepted and has not ended.
#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) context: usize,
    pub(crate) flags: u64,
    pub(crate) spans: Vec<Span>,
    pub(crate) queue: usize,
    pub(crate) after: u32,
    pub(crate) end: End,
}

/// A completion that can be read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Entry {
    pub(crate) context: usize,
    pub(crate) flags: u64,
    pub(crate) len: usize,
    /// `(err, prov_errno)` of an error entry.
    pub(crate) error: Option<(i32, i32)>,
    /// Is it the one that ends an accepted operation?
    pub(crate) ends: bool,
}

/// An endpoint.
#[derive(Debug, Default)]
pub(crate) struct EndpointState {
    /// How many were opened before it.
    pub(crate) number: u64,
    pub(crate) transmit_queue: usize,
    pub(crate) receive_queue: usize,
    pub(crate) enabled: bool,
    /// The latest operation was posted with `FI_MORE`: a card would not have been told of it yet.
    pub(crate) untold: bool,
    pub(crate) operations: Vec<Operation>,
}

/// A completion queue.
#[derive(Debug, Default)]
pub(crate) struct QueueState {
    pub(crate) format: u32,
    pub(crate) size: usize,
    pub(crate) entries: VecDeque<Entry>,
}

impl QueueState {
    /// Takes the first entry if it is an error, or if it is none.
    pub(crate) fn take(&mut self, error: bool) -> Option<Entry> {
        self.entries.front().filter(|entry| entry.error.is_some() == error)?;
        self.entries.pop_front()
    }
}

/// Tells calls that hang that the answers have been forgotten.
static FORGOTTEN: Condvar = Condvar::new();

/// Everything.
#[derive(Default)]
pub(crate) struct World {
    answers: [VecDeque<(Answer, u32)>; Call::COUNT],
    /// How often they have been forgotten.
    forgotten: u64,
    happened: Counts,
    pub(crate) faults: Faults,
    /// Open objects that are not regions.
    pub(crate) objects: u64,
    /// Open regions: first address and length by key.
    pub(crate) regions: BTreeMap<u64, (usize, usize)>,
    /// Domains whose regions belong to an endpoint.
    pub(crate) bound_domains: BTreeSet<usize>,
    /// Their regions that have not been enabled.
    pub(crate) disabled: BTreeMap<u64, (usize, usize)>,
    /// Which endpoint a region belongs to, by key.
    pub(crate) bound: BTreeMap<u64, usize>,
    /// Regions that a script has kept from closing: a card may use them for ever.
    pub(crate) unclosed: Vec<Span>,
    pub(crate) endpoints: BTreeMap<usize, EndpointState>,
    /// Endpoints that were opened so far.
    next_endpoint: u64,
    /// How operations of endpoints end, by number, if not well.
    ruined: BTreeMap<u64, (i32, i32)>,
    /// The latest reads and writes that were accepted.
    pub(crate) placed: VecDeque<Placed>,
    pub(crate) queues: BTreeMap<usize, QueueState>,
    /// Events that have been written: number and data.
    pub(crate) events: VecDeque<(u32, u64)>,
    /// `(err, prov_errno)` of the error event that is to be read.
    pub(crate) event_error: Option<(i32, i32)>,
    pub(crate) next_key: u64,
    pub(crate) next_address: u64,
}

/// The state, locked.
pub(crate) fn world() -> MutexGuard<'static, World> {
    static WORLD: LazyLock<Mutex<World>> = LazyLock::new(Mutex::default);
    WORLD.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the provider writes into a context, to see whether it stays: 32 bytes (`FI_CONTEXT`).
const PATTERN: [u64; 4] = [0x5c71_97ed_0000_0001, 2, 3, 0x5c71_97ed_0000_0004];

/// Waits as long as a call hangs that has been answered so.
pub(crate) fn hang(world: MutexGuard<'static, World>) -> MutexGuard<'static, World> {
    let since = world.forgotten;
    FORGOTTEN.wait_while(world, |world| world.forgotten == since).unwrap_or_else(PoisonError::into_inner)
}

impl World {
    pub(crate) fn tell(&mut self, call: Call, answer: Answer, times: u32) {
        if times > 0 {
            self.answers[call as usize].push_back((answer, times));
        }
    }

    pub(crate) fn forget_answers(&mut self) {
        self.answers = Default::default();
        self.ruined.clear();
        self.forgotten += 1;
        FORGOTTEN.notify_all();
    }

    pub(crate) fn reset(&mut self) {
        self.forget_answers();
        self.happened = Counts::default();
        self.faults = Faults::default();
        self.placed.clear();
    }

    pub(crate) fn ruin(&mut self, endpoint: u64, errno: i32, provider_errno: i32) {
        self.ruined.remove(&endpoint);
        if errno != 0 {
            self.ruined.insert(endpoint, (errno, provider_errno));
        }
    }

    /// How an operation of an endpoint ends that is not answered in particular.
    pub(crate) fn usual_end(&self, endpoint: usize) -> End {
        let number = self.endpoints.get(&endpoint).map(|state| state.number);
        match number.and_then(|number| self.ruined.get(&number)) {
            Some(&(errno, provider_errno)) => End::Badly { errno, provider_errno },
            None => End::Well,
        }
    }

    /// Opens an endpoint.
    pub(crate) fn add_endpoint(&mut self, address: usize) {
        let state = EndpointState { number: self.next_endpoint, ..EndpointState::default() };
        self.endpoints.insert(address, state);
        self.next_endpoint += 1;
    }

    /// A read or write has been accepted, that went this way but for the endpoint's number.
    pub(crate) fn placed(&mut self, endpoint: usize, placed: Placed) {
        if self.placed.len() >= PLACED {
            self.placed.pop_front();
        }
        let number = self.endpoints.get(&endpoint).map_or(u64::MAX, |state| state.number);
        self.placed.push_back(Placed { endpoint: number, ..placed });
    }

    pub(crate) fn counts(&self) -> Counts {
        let outstanding =
            self.endpoints.values().map(|endpoint| endpoint.operations.len() as u64).sum::<u64>();
        let unread = self.queues.values().flat_map(|queue| &queue.entries).filter(|entry| entry.ends).count();
        Counts {
            outstanding: outstanding + unread as u64,
            objects: self.objects,
            regions: (self.regions.len() + self.disabled.len()) as u64,
            ..self.happened
        }
    }

    /// The answer to give now.
    pub(crate) fn answer(&mut self, call: Call) -> Answer {
        let queue = &mut self.answers[call as usize];
        let Some((answer, times)) = queue.front_mut() else { return Answer::Usual };
        let answer = *answer;
        *times -= 1;
        if *times == 0 {
            queue.pop_front();
        }
        answer
    }

    /// The answer to a call that can only succeed or fail.
    pub(crate) fn status(&mut self, call: Call) -> Result<(), i32> {
        match self.answer(call) {
            Answer::Fail(errno) => Err(errno.wrapping_neg()),
            _ => Ok(()),
        }
    }

    pub(crate) fn refused(&mut self) {
        self.happened.refused += 1;
    }

    pub(crate) fn injected(&mut self) {
        self.happened.injected += 1;
    }

    /// Begins an operation.
    /// An operation is accepted: another one is promised to follow, or the card is told of all so far.
    pub(crate) fn bell(&mut self, endpoint: usize, more: bool) {
        if let Some(state) = self.endpoints.get_mut(&endpoint) {
            state.untold = more;
        }
        self.happened.promised += u64::from(more);
    }

    pub(crate) fn accept(&mut self, endpoint: usize, operation: Operation) {
        self.happened.accepted += 1;
        for span in &operation.spans {
            let inside = |(start, len): &(usize, usize)| {
                span.address >= *start && span.address + span.len <= start + len
            };
            if span.len > 0 && !self.regions.values().any(inside) {
                self.faults.unregistered += 1;
            }
        }
        let context = operation.context;
        let mut all = self.endpoints.values().flat_map(|endpoint| &endpoint.operations);
        if context == 0 || all.any(|other| other.context == context) {
            self.faults.contexts_reused += 1;
        } else {
            // SAFETY: the provider has asked for FI_CONTEXT, so the caller gives it 32 bytes until the operation ends.
            unsafe { (context as *mut [u64; 4]).write_unaligned(PATTERN) };
        }
        if let Some(endpoint) = self.endpoints.get_mut(&endpoint) {
            endpoint.operations.push(operation);
        }
    }

    /// Touches the memory of everything that is outstanding into a queue, and moves what is due into the queue.
    pub(crate) fn progress(&mut self, queue_address: usize) {
        self.unclosed.iter().for_each(touch);
        let untold = |e: &EndpointState| e.untold && e.transmit_queue == queue_address;
        self.happened.untold += u64::from(self.endpoints.values().any(untold));
        let Some(queue) = self.queues.get_mut(&queue_address) else { return };
        for endpoint in self.endpoints.values_mut() {
            endpoint.operations.retain_mut(|operation| {
                if operation.queue != queue_address {
                    return true;
                }
                operation.spans.iter().for_each(touch);
                if matches!(operation.end, End::Never) {
                    return true;
                }
                if operation.after > 0 {
                    operation.after -= 1;
                    return true;
                }
                // SAFETY: the operation has not ended, so the context is the provider's.
                let found = unsafe { (operation.context as *const [u64; 4]).read_unaligned() };
                if operation.context != 0 && found != PATTERN {
                    self.faults.contexts_changed += 1;
                }
                let error = match operation.end {
                    End::Badly { errno, provider_errno } => Some((errno, provider_errno)),
                    _ => None,
                };
                let len = operation.spans.iter().map(|span| span.len).sum();
                let (context, flags) = (operation.context, operation.flags);
                let entry = Entry { context, flags, len, error, ends: true };
                queue.entries.push_back(entry);
                if matches!(operation.end, End::Twice) {
                    queue.entries.push_back(Entry { ends: false, ..entry });
                }
                if queue.entries.iter().filter(|entry| entry.ends).count() > queue.size {
                    self.faults.overruns += 1;
                }
                false
            });
        }
    }

    /// An entry has been handed out.
    pub(crate) fn handed_out(&mut self, entry: Entry) {
        self.happened.completed += u64::from(entry.ends);
    }

    /// An endpoint is gone with what was outstanding on it.
    pub(crate) fn forget_endpoint(&mut self, endpoint: usize) {
        if let Some(state) = self.endpoints.remove(&endpoint) {
            self.happened.forgotten += state.operations.len() as u64;
        }
    }

    /// A queue is gone with what nobody has read.
    pub(crate) fn forget_queue(&mut self, queue: usize) {
        if let Some(state) = self.queues.remove(&queue) {
            self.happened.forgotten += state.entries.iter().filter(|entry| entry.ends).count() as u64;
        }
        let bound = |e: &EndpointState| e.transmit_queue == queue || e.receive_queue == queue;
        if self.endpoints.values().any(bound) {
            self.faults.wrong_state += 1;
        }
    }

    /// A region is gone.
    pub(crate) fn forget_region(&mut self, key: u64) {
        self.disabled.remove(&key);
        // An endpoint's own regions are closed before it, with operations in flight.
        let bound = self.bound.remove(&key).is_some();
        let Some((start, len)) = self.regions.remove(&key).filter(|_| !bound) else { return };
        let used =
            |span: &Span| span.len > 0 && span.address < start + len && start < span.address + span.len;
        // Another registration of the same memory may be the one that the operation uses.
        let others = |span: &Span| {
            self.regions.values().any(|(s, l)| span.address >= *s && span.address + span.len <= s + l)
        };
        let operations = self.endpoints.values().flat_map(|endpoint| &endpoint.operations);
        if operations.flat_map(|operation| &operation.spans).any(|span| used(span) && !others(span)) {
            self.faults.regions_closed_in_use += 1;
        }
    }
}

/// Reads or writes the first and the last byte, as a card would.
pub(crate) fn touch(span: &Span) {
    if span.len == 0 {
        return;
    }
    for address in [span.address, span.address + span.len - 1] {
        let byte = address as *mut u8;
        // SAFETY: the caller of libfabric keeps the memory valid, and unaliased where it is written, until the end.
        unsafe {
            if span.written {
                byte.write_volatile(0x5c);
            } else {
                byte.read_volatile();
            }
        }
    }
}
