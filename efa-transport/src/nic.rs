//! One NIC, opened: domain, address vector, completion queue, endpoint.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use fabric_safe::{
    Address, AddressVector, AddressVectorOptions, Capabilities, CompletionFormat, CompletionQueue,
    CompletionQueueOptions, Counter, CounterEvents, Direction, Domain, Endpoint, EventQueue, Fabric, Info,
    Mapping, MemoryRegion, Mode, PageKind, RawAddress, option,
};

use parking_lot::Mutex;

use crate::classify::has_lost_a_message;
use crate::error::Error;
use crate::provider::{nic_name, numa_of};

/// Bytes of the area that peers read, and write, to warm a rail up. Nobody looks at what is there. A page of it, because what
/// providers keep for small operations is touched then as the first real one will.
pub(crate) const PROBE_BYTES: usize = 4096;
/// Offsets in the probe memory: what peers read and write, and what our own probes use.
const PROBE_SERVED: usize = 0;
pub(crate) const PROBE_OWN: usize = PROBE_BYTES;
const PROBE_MEMORY: usize = 2 * PROBE_BYTES;
/// Receives that are kept posted where immediates use them up.
const RECEIVES: usize = 512;
const RECEIVE_BYTES: usize = 64;

/// A NIC that is open. The endpoint can be replaced; everything else stays.
pub(crate) struct Nic {
    pub(crate) name: String,
    pub(crate) info: Info,
    pub(crate) numa: Option<u16>,
    pub(crate) link_mbps: u32,
    pub(crate) domain: Domain,
    vector: AddressVector,
    /// Where the `efa` provider reports what belongs to no operation. Without one it ends the process instead.
    troubles: Option<EventQueue>,
    /// Counts what peers have written and read here, where no wait object tells of it and the provider can.
    served: Option<Counter>,
    pub(crate) queue: CompletionQueue,
    pub(crate) has_wait_object: bool,
    /// Tells of the sockets alone: the wait object of a queue that no completion comes to. `net` of 1.17 never resets the signal
    /// that a completion leaves in the other.
    sockets: Option<CompletionQueue>,
    pub(crate) probe: MemoryRegion<Arc<Mapping>>,
    pub(crate) probe_memory: Arc<Mapping>,
    bounce: Option<MemoryRegion<Arc<Mapping>>>,
    address: Mutex<RawAddress>,
}

/// What the endpoint says about how it does reads and writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Emulation {
    pub(crate) read: Option<bool>,
    pub(crate) write: Option<bool>,
}

impl Nic {
    pub(crate) fn open(info: &Info, max_peers: usize, wait: bool) -> Result<(Self, Endpoint), Error> {
        let name = nic_name(info);
        let fail = |error| Error::fabric(format!("opening NIC {name}"), error);
        let fabric = Fabric::open(info).map_err(fail)?;
        let domain = Domain::open(&fabric, info).map_err(fail)?;
        let vector = AddressVectorOptions { count: max_peers.min(1024) };
        let vector = AddressVector::open(&domain, vector).map_err(fail)?;
        // Two endpoints' worth of operations: those of a closed one are told about while its successor works.
        let own = info.transmit_depth() + info.receive_depth();
        let options = CompletionQueueOptions {
            entries: 2 * own + own.min(4096),
            format: CompletionFormat::Data,
            wait,
            ..CompletionQueueOptions::new(info)
        };
        let (queue, has_wait_object) = match CompletionQueue::open(&domain, options) {
            Ok(queue) => (queue, wait),
            Err(_) if wait => {
                let options = CompletionQueueOptions { wait: false, ..options };
                (CompletionQueue::open(&domain, options).map_err(fail)?, false)
            }
            Err(error) => return Err(fail(error)),
        };
        let sockets = (has_wait_object && info.provider_name() == "net")
            .then(|| CompletionQueue::open(&domain, CompletionQueueOptions { entries: 1, ..options }).ok());
        let efa = info.provider_name().contains("efa");
        let troubles = if efa { EventQueue::open(&fabric).ok() } else { None };
        let tells = !has_wait_object && info.capabilities().contains(Capabilities::RMA_EVENT);
        let served = if tells { Counter::without_wait(&domain).ok() } else { None };
        let probe_memory = memory(PROBE_MEMORY)?;
        let probe = domain
            .register(Arc::clone(&probe_memory), fabric_safe::Access::ALL)
            .map_err(|failed| fail(failed.error))?;
        let wants_receives = info.mode().contains(Mode::RX_CQ_DATA) || efa;
        let bounce = if wants_receives && info.immediate_bytes() > 0 {
            let bounce = domain.register(memory(RECEIVES * RECEIVE_BYTES)?, fabric_safe::Access::RECV);
            Some(bounce.map_err(|failed| fail(failed.error))?)
        } else {
            None
        };
        let mbps = info.link_bits_per_second() / 1_000_000;
        let nic = Self {
            numa: numa_of(info),
            // Speeds matter relative to each other only.
            link_mbps: if mbps == 0 { 10_000 } else { u32::try_from(mbps).unwrap_or(u32::MAX) },
            info: info.clone(),
            domain,
            vector,
            troubles,
            served,
            queue,
            has_wait_object,
            sockets: sockets.flatten(),
            probe,
            probe_memory,
            bounce,
            address: Mutex::new(RawAddress::new([])),
            name,
        };
        let endpoint = nic.open_endpoint()?;
        Ok((nic, endpoint))
    }

    /// An endpoint on this NIC, with its receives posted.
    pub(crate) fn open_endpoint(&self) -> Result<Endpoint, Error> {
        let fail = |error| Error::fabric(format!("opening an endpoint on NIC {}", self.name), error);
        let endpoint =
            with_what_is_taken(self.troubles.as_ref(), self.served.as_ref(), |troubles, served| {
                self.enable(troubles, served)
            })
            .map_err(fail)?;
        *self.address.lock() = endpoint.name().map_err(fail)?;
        if self.bounce.is_some() {
            for index in 0..RECEIVES.min(endpoint.receive_depth()) {
                self.post_receive(&endpoint, index as u64);
            }
        }
        Ok(endpoint)
    }

    fn enable(
        &self,
        troubles: Option<&EventQueue>,
        served: Option<&Counter>,
    ) -> Result<Endpoint, fabric_safe::Error> {
        let mut endpoint = Endpoint::open(&self.domain, &self.info)?
            .bind_address_vector(&self.vector)?
            .bind_completion_queue(&self.queue, Direction::Both)?;
        if let Some(troubles) = troubles {
            endpoint = endpoint.bind_event_queue(troubles)?;
        }
        if let Some(served) = served {
            endpoint =
                endpoint.bind_counter(served, CounterEvents::REMOTE_READ | CounterEvents::REMOTE_WRITE)?;
        }
        endpoint.enable()
    }

    /// What becomes readable when there is something to read.
    pub(crate) fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        self.sockets.as_ref().unwrap_or(&self.queue).wait_fd()
    }

    /// Whether that tells at any time, and not only after [`CompletionQueue::arm`]: it stands for sockets.
    pub(crate) fn tells_unasked(&self) -> bool {
        self.has_wait_object && matches!(self.info.provider_name(), "net" | "tcp" | "tcp;ofi_rxm")
    }

    /// Reads and writes of peers that have ended here, where the provider counts them; 0 elsewhere.
    pub(crate) fn served(&self) -> u64 {
        self.served.as_ref().map_or(0, Counter::value)
    }

    /// Whether it does.
    #[cfg(test)]
    pub(crate) fn counts_served(&self) -> bool {
        self.served.is_some()
    }

    /// What the provider has reported besides completions, and whether only a new endpoint helps.
    pub(crate) fn trouble(&self) -> Option<(String, bool)> {
        match self.troubles.as_ref()?.read() {
            Ok(None) => None,
            Ok(Some(Err(error))) => Some((error.to_string(), has_lost_a_message(&error))),
            Ok(Some(Ok(event))) => Some((format!("{event:?}"), false)),
            Err(error) => Some((error.to_string(), false)),
        }
    }

    /// Posts a receive again. A queue that is full has enough of them.
    pub(crate) fn post_receive(&self, endpoint: &Endpoint, index: u64) {
        let Some(bounce) = &self.bounce else { return };
        let at = (index as usize % RECEIVES) * RECEIVE_BYTES;
        if let Ok(slice) = bounce.slice(at..at + RECEIVE_BYTES) {
            // A refusal costs an immediate's place in the queue, nothing else.
            let _ = endpoint.receive(None, slice, crate::lane::RECEIVE | index);
        }
    }

    /// The endpoint's address in the provider's form.
    pub(crate) fn address(&self) -> RawAddress {
        self.address.lock().clone()
    }

    /// Where peers read and write to warm up: address and key, as their operations want them.
    pub(crate) fn probe_served(&self) -> (u64, u64) {
        let at = self.probe.remote().at(PROBE_SERVED as u64);
        (at.address, at.key)
    }

    pub(crate) fn emulation(&self, endpoint: &Endpoint) -> Emulation {
        if !self.info.provider_name().contains("efa") {
            return Emulation::default();
        }
        Emulation {
            read: endpoint.get(option::EFA_EMULATED_READ).ok(),
            write: endpoint.get(option::EFA_EMULATED_WRITE).ok(),
        }
    }

    pub(crate) fn insert(&self, address: &[u8]) -> Result<Address, fabric_safe::Error> {
        self.vector.insert(address)
    }
}

/// Opens with both, or with the one that the provider takes, or with neither: each is refused for itself. Without the counter a
/// target is slower; without the queue the `efa` provider ends the process where it would have reported. So the queue comes first.
fn with_what_is_taken<Q, C, T, E>(
    troubles: Option<&Q>,
    served: Option<&C>,
    mut open: impl FnMut(Option<&Q>, Option<&C>) -> Result<T, E>,
) -> Result<T, E> {
    let mut outcome = open(troubles, served);
    if troubles.is_some() && served.is_some() {
        outcome = outcome.or_else(|_| open(troubles, None)).or_else(|_| open(None, served));
    }
    if troubles.is_some() || served.is_some() {
        outcome = outcome.or_else(|_| open(None, None));
    }
    outcome
}

fn memory(len: usize) -> Result<Arc<Mapping>, Error> {
    let mapping = Mapping::anonymous(len, PageKind::Small).map_err(|source| {
        Error::fabric("allocating a page", fabric_safe::Error::System { what: "mmap", source })
    })?;
    Ok(Arc::new(mapping))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is bound in the end, by a provider that refuses some, and how often was tried.
    fn bound(has: (bool, bool), refuses: (bool, bool), broken: bool) -> (Result<(bool, bool), ()>, usize) {
        let mut tries = 0;
        let (troubles, served) = (has.0.then_some(()), has.1.then_some(()));
        let outcome = with_what_is_taken(troubles.as_ref(), served.as_ref(), |troubles, served| {
            tries += 1;
            let refused = broken || troubles.is_some() && refuses.0 || served.is_some() && refuses.1;
            if refused { Err(()) } else { Ok((troubles.is_some(), served.is_some())) }
        });
        (outcome, tries)
    }

    /// Catches: an event queue that is lost because of the counter beside it, or the other way round.
    #[test]
    fn each_extra_is_given_up_for_itself() {
        let both = (true, true);
        assert_eq!(bound(both, (false, false), false), (Ok(both), 1));
        assert_eq!(bound(both, (false, true), false), (Ok((true, false)), 2), "the queue stays");
        assert_eq!(bound(both, (true, false), false), (Ok((false, true)), 3), "the counter stays");
        assert_eq!(bound(both, both, false), (Ok((false, false)), 4));
        assert_eq!(bound((true, false), both, false), (Ok((false, false)), 2));
        assert_eq!(bound((false, true), both, false), (Ok((false, false)), 2));
        assert_eq!(bound((false, false), both, false), (Ok((false, false)), 1));
        assert_eq!(bound(both, both, true), (Err(()), 4));
    }
}
