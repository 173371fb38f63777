//! Endpoints before they are enabled: what is bound to them, and what closes one that never is.

use core::fmt;
use core::ptr::{self, NonNull};
use std::sync::Arc;

use fabric_sys as sys;
use parking_lot::Mutex;

use crate::address::AddressVector;
use crate::completion_queue::CompletionQueue;
use crate::counter::{Counter, CounterEvents};
use crate::domain::Domain;
use crate::endpoint::{Direction, Enabled, Endpoint, Limits, sealed};
use crate::event_queue::EventQueue;
use crate::flags::Capabilities;
use crate::info::EndpointKind;
use crate::object::close;
use crate::operations::HoldId;
use crate::shm_name;
use crate::side::Side;
use crate::{Error, Info, Usage};

/// An endpoint that is being set up.
pub struct Opened {
    raw: RawEndpoint,
    info: Info,
    transmit: Option<CompletionQueue>,
    receive: Option<CompletionQueue>,
    counters: Vec<Counter>,
    events: Option<EventQueue>,
    // Last: outlives the endpoint.
    domain: Domain,
}

// SAFETY: the endpoint belongs to a thread-safe domain, and nothing is shared before it is enabled.
unsafe impl Send for Opened {}
// SAFETY: as above.
unsafe impl Sync for Opened {}

/// Closes an endpoint that was never enabled.
struct RawEndpoint {
    raw: NonNull<sys::fid_ep>,
    /// Somebody else closes it now.
    given_away: bool,
    vector: Option<AddressVector>,
    // Last: outlives the endpoint.
    domain: Domain,
}

impl RawEndpoint {
    fn as_ptr(&self) -> *mut sys::fid_ep {
        self.raw.as_ptr()
    }
}

impl Drop for RawEndpoint {
    fn drop(&mut self) {
        if self.given_away {
            return;
        }
        // `tcp;ofi_rxm` of 1.17 looks into the address vector of an endpoint that it closes, whether there is one or not.
        let spare = match &self.vector {
            Some(_) => None,
            None => AddressVector::open(&self.domain, Default::default()).ok(),
        };
        if let Some(spare) = &spare {
            // SAFETY: both are open. If it fails, the endpoint is as it was.
            unsafe { sys::fi_ep_bind(self.as_ptr(), spare.raw().cast(), 0) };
        }
        // SAFETY: open, not enabled, and nobody else has it. What is bound to it is still open.
        let _ = unsafe { close(self.as_ptr().cast()) };
    }
}

impl Endpoint<Opened> {
    /// Opens an endpoint. `info` is usually that of the domain.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] for connected endpoints; [`Error::Call`] with what the provider said.
    pub fn open(domain: &Domain, info: &Info) -> Result<Endpoint<Opened>, Error> {
        if info.endpoint_kind() == Some(EndpointKind::Connected) {
            return Err(Error::Unsupported {
                what: "opening a connected endpoint with this crate",
                provider: info.provider_name().to_owned(),
            });
        }
        let mut raw = ptr::null_mut();
        let status = info.with_copy(|copy| {
            // SAFETY: domain and copy are valid for the call. Writes ask for delivery completion one by one; sends should not
            // have it as a default.
            unsafe {
                (*(*copy).tx_attr).op_flags &= !sys::FI_DELIVERY_COMPLETE;
                sys::fi_endpoint(domain.raw(), copy, &mut raw, ptr::null_mut())
            }
        })?;
        let raw = match NonNull::new(raw) {
            Some(raw) if status == 0 => {
                RawEndpoint { raw, given_away: false, vector: None, domain: domain.clone() }
            }
            None if status == 0 => {
                return Err(Error::Misbehaviour {
                    call: "fi_endpoint",
                    what: "success without an object".into(),
                });
            }
            _ => return Err(Error::call("fi_endpoint", info.place(), status)),
        };
        if let Some(mut name) = shm_name::name(info) {
            // SAFETY: the endpoint is open, and the name as long as said.
            let status =
                unsafe { sys::fi_setname(raw.as_ptr().cast(), name.as_mut_ptr().cast(), name.len()) };
            if status != 0 {
                return Err(Error::call("fi_setname", info.place(), status));
            }
        }
        Ok(Endpoint {
            state: Opened {
                raw,
                info: info.clone(),
                transmit: None,
                receive: None,
                counters: Vec::new(),
                events: None,
                domain: domain.clone(),
            },
        })
    }

    /// Says where the peers' addresses are kept. Must be called once.
    ///
    /// # Errors
    ///
    /// [`Usage`] if it is of another domain or there is one already; [`Error::Call`] with what the provider said. The
    /// endpoint is closed then, as with all errors of this kind.
    pub fn bind_address_vector(mut self, vector: &AddressVector) -> Result<Self, Error> {
        self.same_domain("address vector", vector.domain())?;
        if self.state.raw.vector.is_some() {
            return Err(Usage::Binding("the endpoint has an address vector already").into());
        }
        self.bind("fi_ep_bind(av)", vector.raw().cast(), 0)?;
        self.state.raw.vector = Some(vector.clone());
        Ok(self)
    }

    /// Says where operations complete. Must be called for both directions, once or twice.
    ///
    /// # Errors
    ///
    /// [`Usage`] if the queue is of another domain, or there is one for this direction; [`Error::Call`] with what the
    /// provider said.
    pub fn bind_completion_queue(
        mut self,
        queue: &CompletionQueue,
        direction: Direction,
    ) -> Result<Self, Error> {
        self.same_domain("completion queue", &queue.0.domain)?;
        let (transmit, receive) = match direction {
            Direction::Transmit => (true, false),
            Direction::Receive => (false, true),
            Direction::Both => (true, true),
        };
        if transmit && self.state.transmit.is_some() || receive && self.state.receive.is_some() {
            return Err(
                Usage::Binding("the endpoint has a completion queue for this direction already").into()
            );
        }
        let flags = if transmit { sys::FI_TRANSMIT } else { 0 } | if receive { sys::FI_RECV } else { 0 };
        self.bind("fi_ep_bind(cq)", queue.raw().cast(), flags)?;
        if transmit {
            self.state.transmit = Some(queue.clone());
        }
        if receive {
            self.state.receive = Some(queue.clone());
        }
        Ok(self)
    }

    /// Lets a counter count `events` of the endpoint.
    ///
    /// # Errors
    ///
    /// [`Usage`] if it is of another domain; [`Error::Call`] with what the provider said.
    pub fn bind_counter(mut self, counter: &Counter, events: CounterEvents) -> Result<Self, Error> {
        self.same_domain("counter", counter.domain())?;
        self.bind("fi_ep_bind(cntr)", counter.raw().cast(), events.bits())?;
        self.state.counters.push(counter.clone());
        Ok(self)
    }

    /// Lets the endpoint report into an event queue.
    ///
    /// What the `efa` provider reports is what peers did wrong: read the queue now and then. (Without one it would end the
    /// process, so [`enable`](Endpoint::enable) binds one that nobody reads.)
    ///
    /// # Errors
    ///
    /// [`Usage`] if it is of another fabric; [`Error::Call`] with what the provider said.
    pub fn bind_event_queue(mut self, queue: &EventQueue) -> Result<Self, Error> {
        if !Arc::ptr_eq(&queue.fabric().0, &self.state.domain.fabric().0) {
            return Err(Usage::Foreign { what: "event queue", parent: "fabric" }.into());
        }
        self.bind("fi_ep_bind(eq)", queue.raw().cast(), 0)?;
        self.state.events = Some(queue.clone());
        Ok(self)
    }

    /// Makes the endpoint ready for operations.
    ///
    /// # Errors
    ///
    /// [`Usage`] if something has not been bound, or a completion queue is too small for everything that can complete into
    /// it; [`Error::Call`] with what the provider said.
    pub fn enable(mut self) -> Result<Endpoint<Enabled>, Error> {
        self.give_somewhere_to_report();
        let (Some(vector), Some(transmit), Some(receive)) =
            (&self.state.raw.vector, &self.state.transmit, &self.state.receive)
        else {
            let what = "bind an address vector, and completion queues for both directions, before enabling";
            return Err(Usage::Binding(what).into());
        };
        let (info, domain) = (self.state.info.clone(), self.state.domain.clone());
        // SAFETY: the endpoint is open.
        let status = unsafe { sys::fi_enable(self.state.raw.as_ptr()) };
        if status != 0 {
            return Err(Error::call("fi_enable", info.place(), status));
        }
        let vector = vector.clone();
        let transmit = Side::new(transmit.clone(), info.transmit_depth());
        let receive = Side::new(receive.clone(), info.receive_depth());
        transmit.attach()?;
        if let Err(usage) = receive.attach() {
            transmit.detach();
            return Err(usage.into());
        }
        domain.add_table(&transmit.table);
        domain.add_table(&receive.table);
        let limits = Limits {
            inject_bytes: info.inject_bytes(),
            message_bytes: info.max_message_bytes(),
            transmit_segments: info.transmit_segments(),
            receive_segments: info.receive_segments(),
            immediate_bytes: info.immediate_bytes(),
            delivery_complete: info.delivery_complete(),
            directed_receive: info.capabilities().contains(Capabilities::DIRECTED_RECV),
        };
        // Nothing fails from here on. `Enabled` closes the endpoint instead of `RawEndpoint`.
        let Opened { raw: mut opened, counters, events, .. } = self.state;
        opened.given_away = true;
        let raw = opened.raw;
        let home = if domain.info().endpoint_regions() { HoldId::new() } else { domain.0.id };
        let regions = Mutex::default();
        let state =
            Enabled { raw, home, limits, transmit, receive, vector, regions, counters, events, info, domain };
        Ok(Endpoint { state })
    }

    /// The `efa` provider ends the process when a peer does something wrong (names a key that nobody gave it) and there is no
    /// event queue to report that to. So there always is one.
    fn give_somewhere_to_report(&mut self) {
        if self.state.events.is_some() || self.state.info.provider_name() != "efa" {
            return;
        }
        let Ok(queue) = EventQueue::open(self.state.domain.fabric()) else { return };
        if self.bind("fi_ep_bind(eq)", queue.raw().cast(), 0).is_ok() {
            self.state.events = Some(queue);
        }
    }

    fn same_domain(&self, what: &'static str, domain: &Domain) -> Result<(), Usage> {
        if Arc::ptr_eq(&self.state.domain.0, &domain.0) {
            Ok(())
        } else {
            Err(Usage::Foreign { what, parent: "domain" })
        }
    }

    fn bind(&self, call: &'static str, object: *mut sys::fid, flags: u64) -> Result<(), Error> {
        // SAFETY: both are open, and the endpoint will hold a handle of the object.
        let status = unsafe { sys::fi_ep_bind(self.state.raw.as_ptr(), object, flags) };
        if status == 0 { Ok(()) } else { Err(Error::call(call, self.state.info.place(), status)) }
    }
}

impl sealed::State for Opened {
    fn call<R>(&self, call: impl FnOnce(*mut sys::fid) -> R) -> Option<R> {
        Some(call(self.raw.as_ptr().cast()))
    }
    fn info(&self) -> &Info {
        &self.info
    }
}

impl fmt::Debug for Endpoint<Opened> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint<Opened>").field("info", &self.state.info).finish_non_exhaustive()
    }
}
