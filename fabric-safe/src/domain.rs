//! A domain: one card (or interface) of a fabric, and everything that shares its resources.

use core::ptr::{self, NonNull};
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::Arc;

use fabric_sys as sys;
use parking_lot::Mutex;

use crate::fabric::Fabric;
use crate::object::close;
use crate::operations::{HoldId, Holder, Table};
use crate::register::Registry;
use crate::{Error, Info};

/// An open domain. Cheap to clone; closed when the last object that came from it is gone.
///
/// Everything may be done from several threads at once. In particular registration, which can take seconds, holds up
/// nothing else.
#[derive(Clone)]
pub struct Domain(pub(crate) Arc<DomainInner>);

pub(crate) struct DomainInner {
    pub(crate) id: HoldId,
    pub(crate) raw: NonNull<sys::fid_domain>,
    pub(crate) info: Info,
    /// Tables of all endpoints whose operations can still hold something.
    tables: Mutex<Vec<Arc<Table>>>,
    /// What was let go while operations held it.
    graves: Mutex<Vec<Grave>>,
    grave_count: AtomicUsize,
    next_key: AtomicU64,
    pub(crate) registry: Registry,
    // Last: closed after the domain.
    pub(crate) fabric: Fabric,
}

// SAFETY: the domain is opened FI_THREAD_SAFE (checked in `open`), so its calls may be made from any thread at any time.
unsafe impl Send for DomainInner {}
// SAFETY: as above.
unsafe impl Sync for DomainInner {}

/// Something to be closed when no operation holds it any more.
struct Grave {
    holders: Vec<(Arc<Table>, Vec<Holder>)>,
    /// Closes it.
    bury: Box<dyn FnOnce() + Send>,
}

impl Grave {
    /// Whether operations still hold it. Forgets those that have ended.
    fn held(&mut self) -> bool {
        self.holders.retain_mut(|(table, holders)| {
            holders.retain(|holder| table.still_holds(holder));
            !holders.is_empty()
        });
        !self.holders.is_empty()
    }
}

impl Domain {
    /// Opens the domain that `info` describes.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] if the provider wants its domains used by one thread at a time (do not remove
    /// `FI_THREAD_SAFE`, which [`Hints`](crate::Hints) always asks for); [`Error::Call`] with what the provider said.
    pub fn open(fabric: &Fabric, info: &Info) -> Result<Domain, Error> {
        if !info.thread_safe() {
            return Err(Error::Unsupported {
                what: "use by several threads",
                provider: info.provider_name().to_owned(),
            });
        }
        let mut raw = ptr::null_mut();
        let status = info.with_copy(|copy| {
            // SAFETY: the fabric is open and the copy valid for the call.
            unsafe { sys::fi_domain(fabric.raw(), copy, &mut raw, ptr::null_mut()) }
        })?;
        match NonNull::new(raw) {
            Some(raw) if status == 0 => Ok(Domain(Arc::new(DomainInner {
                id: HoldId::new(),
                raw,
                info: info.clone(),
                tables: Mutex::default(),
                graves: Mutex::default(),
                grave_count: AtomicUsize::new(0),
                next_key: AtomicU64::new(1),
                registry: Registry::of(info.provider_name()),
                fabric: fabric.clone(),
            }))),
            None if status == 0 => {
                Err(Error::Misbehaviour { call: "fi_domain", what: "success without an object".into() })
            }
            _ => Err(Error::call("fi_domain", info.place(), status)),
        }
    }

    /// What the domain was opened with.
    pub fn info(&self) -> &Info {
        &self.0.info
    }

    /// The fabric that it belongs to.
    pub fn fabric(&self) -> &Fabric {
        &self.0.fabric
    }

    pub(crate) fn raw(&self) -> *mut sys::fid_domain {
        self.0.raw.as_ptr()
    }

    /// A key for a region, where the provider leaves the choice to us: never the same twice in a domain, and within the
    /// length that the provider takes.
    pub(crate) fn next_key(&self) -> u64 {
        let key = self.0.next_key.fetch_add(1, Ordering::Relaxed);
        match self.0.info.key_bytes() {
            bytes @ 1..8 => key & ((1 << (bytes * 8)) - 1),
            _ => key,
        }
    }

    pub(crate) fn add_table(&self, table: &Arc<Table>) {
        self.0.tables.lock().push(table.clone());
    }
}

impl DomainInner {
    /// The operations of a closed table hold nothing more.
    pub(crate) fn remove_table(&self, table: &Arc<Table>) {
        self.tables.lock().retain(|other| !Arc::ptr_eq(other, table));
    }

    /// Calls `bury` now if no operation holds `id`, otherwise when the last one has ended. No operation may come to hold `id`
    /// any more: its owner has let go of it.
    pub(crate) fn bury_when_free(&self, id: HoldId, bury: Box<dyn FnOnce() + Send>) {
        let holders: Vec<_> = self
            .tables
            .lock()
            .iter()
            .map(|table| (table.clone(), table.holders(id)))
            .filter(|(_, holders)| !holders.is_empty())
            .collect();
        let mut grave = Grave { holders, bury };
        // Operations may have ended since; who ends one after this looks at the graves.
        if !grave.held() {
            return (grave.bury)();
        }
        let mut graves = self.graves.lock();
        graves.push(grave);
        self.grave_count.store(graves.len(), Ordering::Release);
    }

    /// Whether any operation holds `id`.
    pub(crate) fn is_held(&self, id: HoldId) -> bool {
        self.tables.lock().iter().any(|table| !table.holders(id).is_empty())
    }

    /// Closes what no operation holds any more. Called after operations have ended, without any lock held: closing runs
    /// the owners' code.
    #[inline]
    pub(crate) fn reap(&self) {
        if self.grave_count.load(Ordering::Acquire) != 0 {
            self.reap_now();
        }
    }

    #[cold]
    fn reap_now(&self) {
        let mut free = Vec::new();
        {
            let mut graves = self.graves.lock();
            let mut index = 0;
            while index < graves.len() {
                if graves[index].held() {
                    index += 1;
                } else {
                    free.push(graves.swap_remove(index));
                }
            }
            self.grave_count.store(graves.len(), Ordering::Release);
        }
        for grave in free {
            (grave.bury)();
        }
    }
}

impl Drop for DomainInner {
    fn drop(&mut self) {
        // Endpoints hold the domain, so all are closed by now, and operations hold things only if theirs could not be closed.
        self.reap();
        let stranded = core::mem::take(self.graves.get_mut());
        if stranded.is_empty() {
            // SAFETY: everything opened from the domain held an Arc of it, so nothing is left.
            let _ = unsafe { close(self.raw.as_ptr().cast()) };
        } else {
            // The provider may still use this memory: it is leaked, not freed.
            core::mem::forget(stranded);
        }
    }
}

impl core::fmt::Debug for Domain {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Domain").field("info", &self.0.info).finish_non_exhaustive()
    }
}
