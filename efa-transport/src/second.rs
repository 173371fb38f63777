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
//! It is opened in the call that adds the peer, which blocks for that long. Nothing is won by doing it elsewhere: that peer cannot be
//! reached before, nor reach us, and what is answered to it is the descriptor that names the new endpoints. Transfers with others
//! go on meanwhile, and other peers are added: only those that need the same fabric wait for it.
//!
//! What there is no room for, or what cannot be opened, is said where it matters: to whoever adds the peer, or uses the memory.

use std::sync::Arc;

use fabric_safe::Info;
use parking_lot::Mutex;

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
    opening: Mutex<()>,
    /// Why it could not be opened when last tried. It is not on offer then.
    failed: Mutex<Option<String>>,
}

impl Second {
    pub(crate) fn new(fabric: String, infos: Vec<Info>) -> Self {
        Self { fabric, infos, opening: Mutex::default(), failed: Mutex::default() }
    }
}

impl Core {
    /// The fabric that peers may ask for, if it is not open yet.
    pub(crate) fn on_request(&self) -> Option<&str> {
        let second = self.second.as_ref()?;
        (self.lanes.second().is_none() && second.failed.lock().is_none()).then_some(&second.fabric)
    }

    /// How a peer is reached, from what both sides have. Opens the fabric that it takes.
    ///
    /// # Errors
    /// [`Error::Incompatible`]: there is no such fabric, or it cannot be opened.
    pub(crate) fn way_to(&self, descriptor: &Descriptor) -> Result<Way, Error> {
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
            self.open_second().map_err(|error| {
                incompatible(format!("it takes fabric {chosen}, which cannot be opened here: {error}"))
            })?;
        }
        let fabric = self.lanes.fabric(number);
        Ok(Way {
            number,
            fabric: fabric.name.clone(),
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

    /// Idempotent. Blocks while NICs are opened and memory is registered.
    fn open_second(&self) -> Result<(), Error> {
        let Some(second) = &self.second else { return Ok(()) };
        let _opening = second.opening.lock();
        let mut news = self.lanes.second().is_none();
        if news {
            let opened = self.add_lanes(second);
            let failed = opened.as_ref().err().map(ToString::to_string);
            let failed_before = std::mem::replace(&mut *second.failed.lock(), failed).is_some();
            if opened.is_err() && !failed_before {
                // It is not on offer any more.
                self.changed();
            }
            opened?;
        }
        // Whoever registers from now on sees it; what was registered before, or found no room, is in the list.
        let regions: Vec<Arc<RegionInner>> =
            self.regions.lock().iter().filter_map(|(_, region)| region.upgrade()).collect();
        for region in regions {
            news |= self.register_second(&region);
        }
        if news {
            self.changed();
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
