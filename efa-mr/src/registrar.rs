//! The registrar: carries a plan out.
//!
//! [`Registrar::register`] plans, reserves everything in the [`Ledger`], and then makes the MRs: on several domains at once,
//! one call at a time on each, and in ascending order of size, because a domain gets slower with what it holds already
//! (see [`crate::cost`]). It is all or nothing: after a failure every MR that had been made is closed again and the
//! ledger reads as before.
//!
//! A [`Reservation`] travels with each MR and is dropped when the *card* is done with it, not when we are: an MR that operations
//! in flight still use keeps its entries, and one that the provider refuses to close keeps them for good.
//!
//! What makes an MR is behind the small trait [`MrDomain`]; the module `fabric` (feature of the same name) implements it for libfabric's domains.

#[cfg(feature = "fabric")]
pub mod fabric;
mod registered;

pub use registered::{Registered, StillInUse};

use self::registered::{RegionOn, close_all};
use crate::access::Access;
use crate::buffer::Buffer;
use crate::cost::{CostModel, Registration};
use crate::error::Error;
use crate::ledger::{Ledger, Reservation};
use crate::nic::Nic;
use crate::plan::{Chunk, Plan};
use crate::planner::plan;
use crate::policy::Policy;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How many domains register at a time unless said otherwise. More hardly help: the kernel serialises much of the work.
pub const DEFAULT_PARALLEL: usize = 8;

/// How often a plan is made anew because another thread took the room in between.
const MAX_RACES: usize = 16;

/// Something that registers memory for one NIC.
pub trait MrDomain: Send + Sync {
    /// A shared handle of the memory to register; it stays valid as long as a clone of it exists.
    type Memory: Clone + Send + Sync;
    /// One MR. Dropping it closes it as soon as nothing uses it any more.
    type Region: Send + Sync;
    /// Why the provider refused.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Address and length in bytes of the memory.
    fn extent(memory: &Self::Memory) -> (u64, u64);

    /// Registers a range (in bytes from the start of the memory). Keeps `reservation` until the MR is closed; may block.
    ///
    /// # Errors
    /// Whatever the provider says. Memory and reservation have been let go then.
    fn register(
        &self,
        memory: &Self::Memory,
        range: Range<usize>,
        access: Access,
        reservation: Reservation,
    ) -> Result<Self::Region, Self::Error>;

    /// Closes an MR.
    ///
    /// # Errors
    /// [`CloseError::InUse`] gives it back unharmed; [`CloseError::Leaked`] means that the provider failed to close it, and
    /// memory and reservation are held for ever.
    fn close(&self, region: Self::Region) -> Result<(), CloseError<Self::Region, Self::Error>>;
}

/// Why an MR was not closed.
#[derive(Debug)]
pub enum CloseError<R, E> {
    /// Operations in flight or other handles use it. Here it is again.
    InUse(R),
    /// The provider refused. The memory is kept for ever, because the card may still use it.
    Leaked(E),
}

/// Why a registration was refused. Everything is as it was before, save for MRs that could not be closed again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegisterError<E: std::error::Error + 'static> {
    /// There is no plan, or no room.
    #[error(transparent)]
    Plan(#[from] Error),
    /// The buffer's memory does not lie where the buffer says.
    #[error("buffer {buffer} is not the memory that came with it; describe the memory anew")]
    Mismatch {
        /// Index of the buffer.
        buffer: usize,
    },
    /// A domain refused an MR. All others of the same call have been closed again.
    #[error(
        "NIC {nic} refused to register {len_bytes} bytes at {addr:#x} of buffer {buffer} ({pages} pages): {source}; \
         the {undone} MR(s) made before were closed again{}{}",
        if *leaked > 0 { format!(", except for {leaked} that the provider would not close") } else { String::new() },
        if *unmade > 0 { format!(", {unmade} were not tried") } else { String::new() }
    )]
    Refused {
        /// The NIC's name.
        nic: String,
        /// Index of the buffer.
        buffer: usize,
        /// First byte of the chunk.
        addr: u64,
        /// Length of the chunk in bytes.
        len_bytes: u64,
        /// Page table entries of the chunk.
        pages: u64,
        /// MRs that were closed again.
        undone: usize,
        /// MRs that could not be closed again; their budget stays spent.
        leaked: usize,
        /// MRs that had not been tried yet.
        unmade: usize,
        /// What the provider said.
        source: E,
    },
}

/// What a progress callback is told after each MR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// MRs made.
    pub mrs_done: usize,
    /// MRs in all.
    pub mrs: usize,
    /// Bytes registered, counted once for each NIC.
    pub bytes_done: u128,
    /// Bytes in all, counted likewise.
    pub bytes: u128,
    /// Time since the first MR was begun.
    pub elapsed: Duration,
}

/// How long the registrations took.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Timing {
    /// From the first call to the last, in wall-clock time.
    pub total: Duration,
    /// What the cost model said for domains that held nothing before; see [`CostModel::fitted`].
    pub predicted: Duration,
    /// One entry for each NIC.
    pub nics: Vec<NicTiming>,
}

/// How long the registrations on one NIC took.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NicTiming {
    /// MRs made.
    pub mrs: usize,
    /// Time inside the provider, all calls together.
    pub busy: Duration,
    /// The longest call.
    pub slowest: Duration,
}

/// Plans and registers for a fixed set of NICs. Used from any thread; concurrent calls take turns on each domain.
pub struct Registrar<D: MrDomain> {
    domains: Vec<Lane<D>>,
    nics: Vec<Nic>,
    ledger: Ledger,
    parallel: usize,
    model: CostModel,
}

/// A domain and the lock that lets one registration at a time through.
struct Lane<D> {
    domain: Arc<D>,
    turn: Mutex<()>,
}

impl<D: MrDomain> fmt::Debug for Registrar<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registrar")
            .field("nics", &self.nics)
            .field("ledger", &self.ledger)
            .finish_non_exhaustive()
    }
}

impl<D: MrDomain> Registrar<D> {
    /// A registrar for domains and their NICs, in the same order. The ledger starts with what the NICs have left.
    ///
    /// # Errors
    /// [`Error::NoNics`]; [`Error::NoSuchNic`] if there are more or fewer domains than NICs.
    pub fn new(domains: Vec<D>, nics: Vec<Nic>) -> Result<Self, Error> {
        if nics.is_empty() {
            return Err(Error::NoNics);
        }
        if domains.len() != nics.len() {
            return Err(Error::NoSuchNic { nic: domains.len().min(nics.len()), count: domains.len() });
        }
        let ledger = Ledger::new(&nics);
        let lane = |domain| Lane { domain: Arc::new(domain), turn: Mutex::new(()) };
        let domains = domains.into_iter().map(lane).collect();
        Ok(Self { domains, nics, ledger, parallel: DEFAULT_PARALLEL, model: CostModel::DEFAULT })
    }

    /// Registers on at most `domains` domains at a time; 0 reads as 1.
    #[must_use]
    pub const fn with_parallel(mut self, domains: usize) -> Self {
        self.parallel = if domains == 0 { 1 } else { domains };
        self
    }

    /// Keeps its books in another registrar's ledger: for further domains of the same NICs, in the same order. A card has one table of
    /// pages, whichever domain fills it.
    ///
    /// # Errors
    /// [`Error::NoSuchNic`] if the ledger has more or fewer accounts than this registrar NICs.
    pub fn with_ledger(mut self, ledger: Ledger) -> Result<Self, Error> {
        if ledger.nics() != self.nics.len() {
            return Err(Error::NoSuchNic { nic: ledger.nics().min(self.nics.len()), count: ledger.nics() });
        }
        self.ledger = ledger;
        Ok(self)
    }

    /// Predicts with another cost model.
    #[must_use]
    pub const fn with_model(mut self, model: CostModel) -> Self {
        self.model = model;
        self
    }

    /// The accounts of the NICs.
    #[must_use]
    pub const fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// The domains, in order of the NICs.
    pub fn domains(&self) -> impl Iterator<Item = &D> {
        self.domains.iter().map(|lane| &*lane.domain)
    }

    /// The NICs with what they have left at this moment.
    #[must_use]
    pub fn nics(&self) -> Vec<Nic> {
        let mut nics = self.nics.clone();
        self.ledger.update(&mut nics);
        nics
    }

    /// What [`register`](Self::register) would do now.
    ///
    /// # Errors
    /// As [`plan`].
    pub fn plan(&self, buffers: &[Buffer], policy: &Policy) -> Result<Plan, Error> {
        plan(buffers, &self.nics(), policy)
    }

    /// Plans and registers the buffers, each of which is `memory` from its first byte on. Blocks until all is registered
    /// or undone. `progress` is called on this thread after each MR.
    ///
    /// # Errors
    /// [`RegisterError`]; nothing is registered then and the ledger is as before.
    pub fn register(
        &self,
        buffers: &[Buffer],
        memory: &[D::Memory],
        policy: &Policy,
        access: Access,
        progress: impl FnMut(Progress),
    ) -> Result<Registered<D>, RegisterError<D::Error>> {
        if let Some(buffer) = (buffers.len() != memory.len()).then(|| buffers.len().min(memory.len())) {
            return Err(RegisterError::Mismatch { buffer });
        }
        let mismatch = |(buffer, memory): (&Buffer, &D::Memory)| {
            let (addr, len_bytes) = D::extent(memory);
            buffer.addr != addr || buffer.len_bytes > len_bytes
        };
        if let Some(buffer) = buffers.iter().zip(memory).position(mismatch) {
            return Err(RegisterError::Mismatch { buffer });
        }
        for _ in 0..MAX_RACES {
            let plan = self.plan(buffers, policy)?;
            match self.ledger.reserve_plan(&plan) {
                Ok(reservations) => {
                    return self.carry_out(plan, reservations, buffers, memory, access, progress);
                }
                // Another thread took the room after the plan was made. What is left now decides.
                Err(_) => continue,
            }
        }
        let plan = self.plan(buffers, policy)?;
        let reservations = self.ledger.reserve_plan(&plan)?;
        self.carry_out(plan, reservations, buffers, memory, access, progress)
    }

    fn carry_out(
        &self,
        plan: Plan,
        reservations: Vec<Reservation>,
        buffers: &[Buffer],
        memory: &[D::Memory],
        access: Access,
        mut progress: impl FnMut(Progress),
    ) -> Result<Registered<D>, RegisterError<D::Error>> {
        let order = plan.registrations();
        let bytes: u128 = order.iter().map(|(_, registration)| u128::from(registration.len_bytes)).sum();
        // Each NIC's jobs, still in ascending order of size.
        let mut queues: Vec<Vec<Job>> = self.domains.iter().map(|_| Vec::new()).collect();
        for (&(chunk, registration), reservation) in order.iter().zip(reservations) {
            queues[registration.nic].push(Job { chunk, registration, reservation });
        }
        let busy: Vec<usize> = (0..queues.len()).filter(|&nic| !queues[nic].is_empty()).collect();
        let queues: Vec<Mutex<Vec<Job>>> = queues.into_iter().map(Mutex::new).collect();
        let (next, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
        let (sender, results) = crossbeam_channel::unbounded();
        let began = Instant::now();
        let mut made: Vec<(usize, RegionOn<D>)> = Vec::with_capacity(order.len());
        let mut timing = Timing {
            nics: vec![NicTiming::default(); self.domains.len()],
            predicted: self
                .model
                .predict(self.nics.len(), order.iter().map(|(_, registration)| *registration)),
            ..Timing::default()
        };
        let mut failure = None;
        let work = |sender: &crossbeam_channel::Sender<Done<D>>| {
            while let Some(&nic) = busy.get(next.fetch_add(1, Ordering::Relaxed)) {
                let jobs = std::mem::take(&mut *lock(&queues[nic]));
                self.run_queue(nic, jobs, &plan, buffers, memory, access, &stop, sender);
            }
        };
        std::thread::scope(|scope| {
            let work = &work;
            let workers = self.parallel.min(busy.len());
            let mut started = 0;
            for _ in 0..workers {
                let sender = sender.clone();
                let thread = std::thread::Builder::new().name("efa-mr".into());
                // A machine that cannot start a thread still registers, on this one.
                if thread.spawn_scoped(scope, move || work(&sender)).is_ok() {
                    started += 1;
                }
            }
            if started == 0 {
                work(&sender);
            }
            drop(sender);
            let mut bytes_done = 0;
            for done in &results {
                let Done { chunk, nic, took, outcome } = done;
                let of_nic = &mut timing.nics[nic];
                of_nic.busy += took;
                of_nic.slowest = of_nic.slowest.max(took);
                match outcome {
                    Ok(region) => {
                        of_nic.mrs += 1;
                        bytes_done += u128::from(plan.chunks[chunk].len_bytes);
                        let domain = Arc::clone(&self.domains[nic].domain);
                        made.push((chunk, RegionOn { nic, domain, region }));
                        if failure.is_none() {
                            let (mrs_done, mrs) = (made.len(), order.len());
                            let elapsed = began.elapsed();
                            progress(Progress { mrs_done, mrs, bytes_done, bytes, elapsed });
                        }
                    }
                    Err(error) => {
                        stop.store(true, Ordering::Relaxed);
                        failure.get_or_insert((chunk, nic, error));
                    }
                }
            }
        });
        timing.total = began.elapsed();
        if let Some((chunk, nic, source)) = failure {
            let unmade = order.len().saturating_sub(made.len() + 1);
            let undone = made.len();
            let left = close_all(made.into_iter().map(|(_, region)| region));
            let leaked = left.as_ref().map_or(0, |left| left.leaked + left.rest.len());
            let Chunk { buffer, addr, len_bytes, pages, .. } = plan.chunks[chunk];
            return Err(RegisterError::Refused {
                nic: self.nics[nic].name.clone(),
                buffer,
                addr,
                len_bytes,
                pages,
                undone: undone - leaked,
                leaked,
                unmade,
                source,
            });
        }
        made.sort_by_key(|(chunk, on)| (*chunk, on.nic));
        let starts =
            (0..=plan.chunks.len()).map(|chunk| made.partition_point(|(of, _)| *of < chunk)).collect();
        let regions = made.into_iter().map(|(_, region)| region).collect();
        Ok(Registered { plan, regions, starts, timing })
    }

    /// All jobs of one NIC, one after the other.
    #[allow(clippy::too_many_arguments)] // Everything of `carry_out` that a worker needs.
    fn run_queue(
        &self,
        nic: usize,
        jobs: Vec<Job>,
        plan: &Plan,
        buffers: &[Buffer],
        memory: &[D::Memory],
        access: Access,
        stop: &AtomicBool,
        results: &crossbeam_channel::Sender<Done<D>>,
    ) {
        let lane = &self.domains[nic];
        for job in jobs {
            if stop.load(Ordering::Relaxed) {
                return; // Dropping the remaining jobs gives their entries back.
            }
            let Chunk { buffer, addr, len_bytes, .. } = plan.chunks[job.chunk];
            // Inside the buffer, which is memory of this process: offsets fit a usize.
            let start = (addr - buffers[buffer].addr) as usize;
            let range = start..start + len_bytes as usize;
            let (took, outcome) = {
                let _turn = lock(&lane.turn);
                let began = Instant::now();
                let outcome = lane.domain.register(&memory[buffer], range, access, job.reservation);
                (began.elapsed(), outcome)
            };
            let failed = outcome.is_err();
            let _ = results.send(Done { chunk: job.chunk, nic: job.registration.nic, took, outcome });
            if failed {
                stop.store(true, Ordering::Relaxed);
                return;
            }
        }
    }
}

/// One MR to make.
struct Job {
    chunk: usize,
    registration: Registration,
    reservation: Reservation,
}

/// One MR made, or not.
struct Done<D: MrDomain> {
    chunk: usize,
    nic: usize,
    took: Duration,
    outcome: Result<D::Region, D::Error>,
}

/// Nothing under these locks can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
