//! Endpoints: opened, bound, enabled, used, closed.

use core::ffi::c_int;
use core::fmt;
use core::ptr::{self, NonNull};
use std::sync::{Arc, Weak};

use fabric_sys as sys;
use parking_lot::Mutex;

use crate::address::{AddressVector, RawAddress, read_address};
use crate::counter::Counter;
use crate::domain::Domain;
use crate::event_queue::EventQueue;
use crate::flags::Capabilities;
use crate::object::close;
use crate::opened::Opened;
use crate::operations::{HoldId, OperationId};
use crate::option::{EndpointOption, OptionValue};
use crate::register::Registration;
use crate::side::Side;
use crate::{Error, Info, Usage};

/// Which operations complete into a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Direction {
    /// Sends, reads, writes and atomic operations.
    Transmit,
    /// Receives, and what peers write with an immediate value.
    Receive,
    /// All of them.
    Both,
}

/// An endpoint: the thing that operations are posted to.
///
/// It begins as `Endpoint<Opened>`, to which queues and an address vector are bound, and becomes an `Endpoint<Enabled>`, to
/// which operations can be posted. The type keeps the two apart:
///
/// ```compile_fail
/// # fn show(endpoint: fabric_safe::Endpoint<fabric_safe::Opened>, to: fabric_safe::Address,
/// #     region: fabric_safe::Region, remote: fabric_safe::Remote) {
/// endpoint.write(&to, region.as_slice(), remote, 7); // not enabled: there is no `write`
/// # }
/// ```
///
/// Put it into an `Arc` to use it from several threads. They take turns posting; transmitting and receiving do not wait for
/// each other.
///
/// Dropping an endpoint closes it, see [`close`](Endpoint::close).
pub struct Endpoint<State = Enabled> {
    pub(crate) state: State,
}

/// An endpoint that operations can be posted to.
pub struct Enabled {
    pub(crate) raw: NonNull<sys::fid_ep>,
    /// The home of the regions that operations may use: the endpoint's own, or all of the domain.
    pub(crate) home: HoldId,
    pub(crate) limits: Limits,
    pub(crate) transmit: Side,
    pub(crate) receive: Side,
    pub(crate) vector: AddressVector,
    /// Regions that are bound to the endpoint, to be closed before it.
    pub(crate) regions: Mutex<Vec<Weak<Registration>>>,
    pub(crate) counters: Vec<Counter>,
    pub(crate) events: Option<EventQueue>,
    pub(crate) info: Info,
    // Last: outlives the endpoint.
    pub(crate) domain: Domain,
}

/// What every post checks against, read once.
pub(crate) struct Limits {
    pub(crate) inject_bytes: usize,
    pub(crate) message_bytes: usize,
    pub(crate) transmit_segments: usize,
    pub(crate) receive_segments: usize,
    pub(crate) immediate_bytes: usize,
    pub(crate) delivery_complete: bool,
    pub(crate) directed_receive: bool,
}

// SAFETY: the endpoint belongs to a thread-safe domain; posting is serialised by the gates besides.
unsafe impl Send for Enabled {}
// SAFETY: as above.
unsafe impl Sync for Enabled {}
/// The two states of an endpoint. Not to be implemented elsewhere.
pub trait EndpointState: sealed::State {}

impl EndpointState for Opened {}
impl EndpointState for Enabled {}

pub(crate) mod sealed {
    /// What both states can do.
    pub trait State {
        /// Calls something on the endpoint while nobody posts; `None` if it is closed.
        fn call<R>(&self, call: impl FnOnce(*mut super::sys::fid) -> R) -> Option<R>;
        fn info(&self) -> &super::Info;
    }
}

impl sealed::State for Enabled {
    fn call<R>(&self, call: impl FnOnce(*mut sys::fid) -> R) -> Option<R> {
        self.while_open(call)
    }
    fn info(&self) -> &Info {
        &self.info
    }
}

impl<S: EndpointState> Endpoint<S> {
    /// What the endpoint was opened with.
    pub fn info(&self) -> &Info {
        self.state.info()
    }

    /// The endpoint's address, for peers to insert. Most providers know it only when the endpoint is enabled.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said; [`Usage::Closed`].
    pub fn name(&self) -> Result<RawAddress, Error> {
        self.state
            .call(|endpoint| {
                read_address("fi_getname", |buffer, len| {
                    // SAFETY: the endpoint is open, the buffer as long as said.
                    unsafe { sys::fi_getname(endpoint, buffer, len) }
                })
            })
            .unwrap_or(Err(Usage::Closed("endpoint").into()))
    }

    /// Sets an option (see [`option`](crate::option)). Most take effect only before [`enable`](Endpoint::enable).
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said: `ENOPROTOOPT` if it does not know the option.
    pub fn set<T: OptionValue>(&self, option: EndpointOption<T>, value: T) -> Result<(), Error> {
        let raw = value.to_raw();
        let status = self.state.call(|endpoint| {
            // SAFETY: the endpoint is open and the value as long as said.
            unsafe {
                sys::fi_setopt(
                    endpoint,
                    sys::FI_OPT_ENDPOINT,
                    option.number,
                    (&raw const raw).cast(),
                    size_of_val(&raw),
                )
            }
        });
        self.option_result("fi_setopt", status)
    }

    /// Reads an option (see [`option`](crate::option)).
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said: `ENOPROTOOPT` if it does not know the option.
    pub fn get<T: OptionValue>(&self, option: EndpointOption<T>) -> Result<T, Error> {
        let mut raw = T::Raw::default();
        let mut len = size_of_val(&raw);
        let status = self.state.call(|endpoint| {
            // SAFETY: the endpoint is open and the buffer as long as said.
            unsafe {
                sys::fi_getopt(endpoint, sys::FI_OPT_ENDPOINT, option.number, (&raw mut raw).cast(), &mut len)
            }
        });
        self.option_result("fi_getopt", status)?;
        Ok(T::from_raw(raw))
    }

    fn option_result(&self, call: &'static str, status: Option<c_int>) -> Result<(), Error> {
        match status {
            Some(0) => Ok(()),
            Some(status) => Err(Error::call(call, self.info().place(), status)),
            None => Err(Usage::Closed("endpoint").into()),
        }
    }
}

impl Endpoint<Enabled> {
    /// Operations that can be outstanding on the transmit side.
    pub fn transmit_depth(&self) -> usize {
        self.state.transmit.table.depth()
    }

    /// Operations outstanding on the transmit side. A snapshot.
    pub fn transmit_in_flight(&self) -> usize {
        self.state.transmit.table.in_flight()
    }

    /// Receives that can be outstanding.
    pub fn receive_depth(&self) -> usize {
        self.state.receive.table.depth()
    }

    /// Receives outstanding. A snapshot.
    pub fn receive_in_flight(&self) -> usize {
        self.state.receive.table.in_flight()
    }

    /// Whether the provider has [`fetch_add`](Endpoint::fetch_add) and [`compare_swap`](Endpoint::compare_swap). Some
    /// (`net` of libfabric 1.17) list the capability without having the operations.
    pub fn has_atomics(&self) -> bool {
        let valid = |ask: unsafe fn(*mut sys::fid_ep, sys::fi_datatype, sys::fi_op, *mut usize) -> c_int,
                     op| {
            let mut count = 0;
            sealed::State::call(&self.state, |_| {
                // SAFETY: the endpoint is open; the call only writes the count.
                unsafe { ask(self.state.raw.as_ptr(), sys::FI_UINT64, op, &mut count) }
            }) == Some(0)
                && count > 0
        };
        self.info().capabilities().contains(Capabilities::ATOMIC)
            && valid(sys::fi_fetch_atomicvalid, sys::FI_SUM)
            && valid(sys::fi_compare_atomicvalid, sys::FI_CSWAP)
    }

    /// The address vector that the endpoint looks peers up in.
    pub fn address_vector(&self) -> &AddressVector {
        &self.state.vector
    }

    /// The domain that it belongs to.
    pub fn domain(&self) -> &Domain {
        &self.state.domain
    }

    /// Asks the provider to give up on an operation, usually a receive. The operation still ends exactly once: as
    /// [`ErrorKind::Cancelled`](crate::ErrorKind::Cancelled), or as it would have otherwise if that comes first. Nothing
    /// happens if it has ended already.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] if the provider cannot do that: most cannot cancel anything but receives.
    pub fn cancel(&self, operation: OperationId) -> Result<(), Error> {
        let side = if operation.is_receive() { &self.state.receive } else { &self.state.transmit };
        let open = side.gate.enter()?;
        let Some(context) = side.table.context_of(operation).filter(|_| *open) else {
            return Ok(());
        };
        // SAFETY: the endpoint is open. The operation may end meanwhile; its slot is not used again before we let go of the
        // lock, and the provider only compares the pointer.
        let status = unsafe { sys::fi_cancel(self.state.raw.as_ptr().cast(), context) };
        match status {
            0 => Ok(()),
            // It has ended between our look and the provider's.
            status if status == -(sys::FI_ENOENT as isize) => Ok(()),
            status => Err(Error::call("fi_cancel", self.info().place(), status as i64)),
        }
    }

    /// Closes the endpoint. Posting gives [`PostError::Closed`](crate::PostError::Closed) from now on; operations whose end has not been polled come out
    /// of the completion queue as [`ErrorKind::Aborted`](crate::ErrorKind::Aborted), whatever they did at the target. When it
    /// returns, the provider has let go of the memory of all operations, except with `shm`: its peers carry out what they have
    /// been asked for later, so the memory of operations that are aborted is kept for ever
    /// ([`OperationError::quiesced`](crate::OperationError::quiesced)).
    ///
    /// Poll first to hear about what has completed: closing itself does not poll, because that would let peers' requests in.
    ///
    /// Blocks for as long as the provider needs for it, and for threads that are posting. Closing twice does nothing.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] if the provider refuses. Operations are aborted nevertheless, but their memory is kept for ever
    /// ([`OperationError::quiesced`](crate::OperationError::quiesced) is false). [`Usage`] if this thread holds the
    /// endpoint's [`Transmit`](crate::Transmit) guard.
    pub fn close(&self) -> Result<(), Error> {
        self.state.close()
    }
}

impl Enabled {
    /// What a region must have in common with the endpoint.
    pub(crate) fn parent(&self) -> &'static str {
        if self.domain.info().endpoint_regions() { "endpoint" } else { "domain" }
    }

    /// Whether peers carry out our operations on our memory, and perhaps after we have gone. With `shm` of libfabric 2.5 they
    /// were seen to: a target copied from memory whose owner had closed its endpoint.
    fn peers_reach_in(&self) -> bool {
        self.info.provider_name() == "shm"
    }

    /// Calls something on the endpoint while nobody posts or closes it; `None` if it is closed, or if this thread has a
    /// [`Transmit`](crate::Transmit).
    pub(crate) fn while_open<R>(&self, call: impl FnOnce(*mut sys::fid) -> R) -> Option<R> {
        let open = self.transmit.gate.enter().ok()?;
        open.then(|| call(self.raw.as_ptr().cast()))
    }

    fn close(&self) -> Result<(), Error> {
        let mut transmit = self.transmit.gate.enter()?;
        let mut receive = self.receive.gate.enter()?;
        if !*transmit {
            return Ok(());
        }
        *transmit = false;
        *receive = false;
        // Nobody polls meanwhile: not all providers expect their endpoints to vanish under a reader. In the order of their
        // addresses, because another endpoint may have the same two queues the other way round.
        let queues = [&self.transmit.queue.0, &self.receive.queue.0];
        let same = Arc::ptr_eq(queues[0], queues[1]);
        let swap = Arc::as_ptr(queues[1]) < Arc::as_ptr(queues[0]);
        let mut first = queues[usize::from(swap)].lock();
        let mut second = if same { None } else { Some(queues[usize::from(!swap)].lock()) };
        // Nobody binds any more either. What cannot be closed is leaked, and then most likely the endpoint too.
        for region in self.regions.lock().drain(..).filter_map(|region| region.upgrade()) {
            let _ = region.close();
        }
        // SAFETY: nobody posts any more; queues and vector are still open.
        let closed = unsafe { close(self.raw.as_ptr().cast()) };
        for (side, is_second) in [(&self.transmit, swap), (&self.receive, !swap)] {
            let state = match &mut second {
                Some(second) if is_second => second,
                _ => &mut first,
            };
            let at_rest = closed.is_ok() && !(ptr::eq(side, &self.transmit) && self.peers_reach_in());
            state.close(&side.table, at_rest);
        }
        drop((first, second));
        drop((transmit, receive));
        match closed {
            Ok(()) => {
                for side in [&self.transmit, &self.receive] {
                    // What is not at rest is looked for there as long as the domain lives.
                    if side.table.is_empty() {
                        self.domain.0.remove_table(&side.table);
                    }
                }
            }
            Err(_) => {
                // The endpoint lives on in the provider, and so must all that it refers to.
                core::mem::forget((
                    [self.transmit.table.clone(), self.receive.table.clone()],
                    [self.transmit.queue.clone(), self.receive.queue.clone()],
                    self.vector.clone(),
                    self.counters.clone(),
                    self.events.clone(),
                    self.domain.clone(),
                ));
            }
        }
        self.transmit.queue_wake();
        self.receive.queue_wake();
        self.domain.0.reap();
        closed.map_err(|status| {
            Error::call("fi_close", format!("the endpoint in {}", self.info.place()), status)
        })
    }
}

impl Drop for Enabled {
    fn drop(&mut self) {
        // Errors have been dealt with inside. No guard can be alive: it would borrow the endpoint.
        let _ = self.close();
    }
}

impl fmt::Debug for Endpoint<Enabled> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Endpoint")
            .field("info", &self.state.info)
            .field("transmit_in_flight", &self.transmit_in_flight())
            .field("receive_in_flight", &self.receive_in_flight())
            .finish_non_exhaustive()
    }
}
