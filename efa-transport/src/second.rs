//! The second fabric: opened when the first peer comes that the first cannot reach.
//!
//! EFA cards have two fabrics whose endpoints do not understand each other ([`fabric`](crate::scheduler::fabric)). Everything about
//! the second costs as much again: endpoints, completion queues and, above all, page table entries, since memory must be
//! registered with the domain that carries it. So there is nothing of it until a descriptor comes that calls for it; then it is
//! opened on every card, all memory is registered with it too, out of the same budget, and our own descriptor changes.
//!
//! Once open, it stays. That nobody here talks to a peer on it any more does not mean that nobody needs it: transfers are one-sided,
//! and whoever has our descriptor may write to us over these endpoints without asking, so that only the end of every such peer
//! would tell, and that end is not told. Closing it would change the descriptor for all peers, those on the first fabric too; and
//! a peer that restarts, which is when it would seem to be gone, would have all memory registered once more, for seconds, while it
//! waits. What it costs meanwhile is its share of the page table entries. When they are scarce, name one fabric in the settings.
//!
//! A thread of its own opens it, `efa-second`, for a provider may take its time, or for ever, and registering takes as long as there is
//! memory. The call that adds the peer waits for that, because what is answered to the peer is the descriptor that names the new
//! endpoints; but not past its deadline. Then it fails, nothing else does, and the thread goes on: when it is done the descriptor
//! changes, and the peer can be added. Meanwhile there are no requests to that peer that could be late, as it has not been added, or is still reached
//! the way it was; transfers with others go on, and other peers are added: only those that need the same fabric wait for it.
//!
//! What there is no room for, or what cannot be opened, is said where it matters: to whoever adds the peer, or uses the memory.

use std::sync::Arc;
use std::time::Instant;

use fabric_safe::Info;
use parking_lot::{Condvar, Mutex};

use crate::core::Core;
use crate::descriptor::Descriptor;
use crate::error::Error;
use crate::fabric::OpenFabric;
use crate::peer::Way;
use crate::provider::Rejected;
use crate::region::RegionInner;
use crate::scheduler::fabric::{Device, Offer, choose};

/// A fabric that is not open yet.
pub(crate) struct Second {
    pub(crate) fabric: String,
    /// In the order of the first fabric's lanes.
    infos: Vec<Info>,
    opening: Mutex<Opening>,
    opened: Condvar,
    /// Why it could not be opened when last tried. It is not on offer then.
    failed: Mutex<Option<String>>,
}

/// What is being done about it.
#[derive(Default)]
struct Opening {
    /// Since when a thread has been opening it, if one has.
    since: Option<Instant>,
    /// Times that it has been opened, or tried to; and how the latest went.
    times: u64,
    outcome: Option<Error>,
}

impl Second {
    pub(crate) fn new(fabric: String, infos: Vec<Info>) -> Self {
        let (opening, opened) = (Mutex::default(), Condvar::new());
        Self { fabric, infos, opening, opened, failed: Mutex::default() }
    }

    /// Lets those go that wait for it, since the transport is shut down.
    pub(crate) fn shut(&self) {
        // Under the lock: whoever has seen that it is not shut down sleeps by now.
        let _opening = self.opening.lock();
        self.opened.notify_all();
    }
}

impl Core {
    /// The fabric that peers may ask for, if it is not open yet.
    pub(crate) fn on_request(&self) -> Option<&str> {
        let second = self.second.as_ref()?;
        (self.lanes.second().is_none() && second.failed.lock().is_none()).then_some(&second.fabric)
    }

    /// How a peer is reached, from what both sides have. Has the fabric opened that it takes, and waits for that until `deadline`.
    ///
    /// # Errors
    /// [`Error::Incompatible`]: there is no such fabric, or it cannot be opened, or not in time.
    pub(crate) fn way_to(self: &Arc<Self>, descriptor: &Descriptor, deadline: Instant) -> Result<Way, Error> {
        let first = self.lanes.first();
        let mut ours = vec![first.offer()];
        if let Some(second) = &self.second {
            // One that has failed before is tried again.
            ours.push(Offer { fabric: &second.fabric, device: Device::default() });
        }
        let incompatible = |why: String| Error::Incompatible { peer: descriptor.name.clone(), why };
        let theirs = descriptor.offers();
        let chosen = choose(&ours, &theirs).ok_or_else(|| {
            let list = |offers: &[Offer<'_>]| {
                offers.iter().map(|offer| offer.fabric).collect::<Vec<_>>().join(" and ")
            };
            incompatible(format!("it has fabric {} and we have {}", list(&theirs), list(&ours)))
        })?;
        let number = usize::from(chosen != first.name);
        if number == 1 {
            self.have_second_opened(deadline)
                .map_err(|why| incompatible(format!("it takes fabric {chosen}, which {why}")))?;
        }
        let fabric = self.lanes.fabric(number);
        Ok(Way {
            number,
            fabric: chosen.to_owned(),
            device: fabric.device,
            immediate_bytes: u8::try_from(fabric.immediate_bytes).unwrap_or(u8::MAX),
        })
    }

    /// Why the second fabric could not be opened when that was last tried.
    pub(crate) fn second_failed(&self) -> Option<Rejected> {
        let second = self.second.as_ref()?;
        let why = second.failed.lock().clone()?;
        Some(Rejected { what: format!("fabric {} besides", second.fabric), why })
    }

    /// Idempotent. Blocks until a thread has opened the second fabric and registered the memory with it, at most until `deadline`; and
    /// no longer than requests take at most if that has been going on for as long already.
    fn have_second_opened(self: &Arc<Self>, deadline: Instant) -> Result<(), String> {
        let Some(second) = &self.second else { return Ok(()) };
        let cannot = |error: &Error| format!("cannot be opened here: {error}");
        let mut opening = second.opening.lock();
        // Mostly it is open, and there is nothing to do; whoever has opened it may not have said so here yet.
        if self.lanes.second().is_some() && self.not_on_second().is_empty() {
            return Ok(());
        }
        let since = match opening.since {
            Some(since) => since,
            None => {
                let core = Arc::clone(self);
                let thread = std::thread::Builder::new().name("efa-second".into());
                thread.spawn(move || core.open_and_tell()).map_err(|source| {
                    let error = fabric_safe::Error::System { what: "thread", source };
                    cannot(&Error::fabric("starting a thread", error))
                })?;
                *opening.since.insert(Instant::now())
            }
        };
        let times = opening.times;
        let patience = since.checked_add(self.config.request_deadline).unwrap_or(deadline);
        while opening.times == times {
            if self.is_shut() {
                return Err(cannot(&Error::ShutDown));
            }
            if second.opened.wait_until(&mut opening, deadline.min(patience)).timed_out() {
                let took = since.elapsed();
                return Err(format!(
                    "has been being opened here for {took:?}; add it again when our descriptor has changed"
                ));
            }
        }
        opening.outcome.as_ref().map_or(Ok(()), |error| Err(cannot(error)))
    }

    /// What the thread does.
    fn open_and_tell(&self) {
        let outcome = self.open_second();
        let Some(second) = &self.second else { return };
        let mut opening = second.opening.lock();
        opening.since = None;
        opening.times += 1;
        opening.outcome = outcome.err();
        second.opened.notify_all();
    }

    /// Memory that is not registered with the second fabric.
    fn not_on_second(&self) -> Vec<Arc<RegionInner>> {
        let regions = self.regions.lock();
        let regions = regions.iter().filter_map(|(_, region)| region.upgrade());
        regions.filter(|region| region.on(1).is_none()).collect()
    }

    /// Idempotent. Blocks while NICs are opened and memory is registered, however long a provider takes.
    fn open_second(&self) -> Result<(), Error> {
        let Some(second) = &self.second else { return Ok(()) };
        let mut news = self.lanes.second().is_none();
        if news {
            let opened = self.add_lanes(second);
            let failed = opened.as_ref().err().map(ToString::to_string);
            let failed_before = std::mem::replace(&mut *second.failed.lock(), failed).is_some();
            if opened.is_err() && !failed_before {
                // It is not on offer any more.
                self.reached_otherwise();
            }
            opened?;
        }
        // Whoever registers from now on sees it; what was registered before, or found no room, is in the list.
        for region in self.not_on_second() {
            news |= self.register_second(&region);
        }
        if news {
            self.reached_otherwise();
            self.wake_progress();
        }
        Ok(())
    }

    fn add_lanes(&self, second: &Second) -> Result<(), Error> {
        if self.is_shut() {
            return Err(Error::ShutDown);
        }
        let first = self.lanes.first();
        let ledger = first.registrar.ledger();
        let fabric = OpenFabric::open_further(&second.infos, first.range.end, ledger, &self.config)?;
        if self.is_shut() {
            return Err(Error::ShutDown);
        }
        self.parking.watch(&fabric.lanes)?;
        self.lanes.add(fabric);
        tracing::info!(fabric = second.fabric, "opened for a peer that needs it");
        self.description().log(first.range.end);
        Ok(())
    }

    /// Registers memory with the second fabric too, if that is open. True if that is news.
    pub(crate) fn register_second(&self, region: &RegionInner) -> bool {
        let Some(fabric) = self.lanes.second() else { return false };
        let registered = region.second_or(|memory, options| self.register_on(fabric, memory, options));
        if let Err(error) = &registered {
            tracing::warn!(fabric = fabric.name, %error, "peers on this fabric cannot use this memory");
        }
        registered.unwrap_or(false)
    }
}
