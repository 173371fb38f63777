//! The transport: the handle that everything starts from.

use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use fabric_safe::SharedMemory;
use parking_lot::Mutex;

use crate::batch::BatchHandle;
use crate::config::Config;
use crate::core::Core;
use crate::describe::Description;
use crate::error::Error;
use crate::events::{Arrivals, Events};
use crate::fabric::OpenFabric;
use crate::peer::{PeerId, PeerState};
use crate::provider::{Choice, Rejected, choose, of_the_same_cards};
use crate::region::{Region, RegisterOptions};
use crate::request::Batch;
use crate::second::Second;
use crate::stats::{PeerStatistics, Statistics};
use crate::warmup::WarmUp;

/// NICs, registered memory, peers, and the requests between them. Cheap to clone; the last clone shuts it down.
///
/// Everything may be called from any thread. Calls that block say so.
#[derive(Clone)]
pub struct Transport(Arc<Handle>);

struct Handle {
    core: Arc<Core>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// How long dropping the last handle waits for requests that are running.
const LAST_WORDS: Duration = Duration::from_millis(100);
/// Far enough away for a deadline that is further than the clock can tell.
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

impl Transport {
    /// Finds a provider, opens its NICs, and starts the progress thread. Blocks for some milliseconds.
    ///
    /// # Errors
    /// [`Error::NoLibrary`], [`Error::NoProvider`] (with what was tried, and why it was not taken), [`Error::Fabric`] if not
    /// one NIC can be opened.
    pub fn open(config: Config) -> Result<Self, Error> {
        let choice = choose(&config)?;
        Self::open_what(choice, config)
    }

    /// Opens what was chosen.
    pub(crate) fn open_what(choice: Choice, config: Config) -> Result<Self, Error> {
        let Choice { first, second, mut rejected } = choice;
        let (first, why, second) = match (OpenFabric::open(&first.infos, &config, &mut rejected), second) {
            (Ok(open), second) => (open, first.why, second),
            // EFA's other fabric may still work.
            (Err(error), Some(second)) => {
                rejected.push(Rejected { what: first.label, why: error.to_string() });
                (OpenFabric::open(&second.infos, &config, &mut rejected)?, second.why, None)
            }
            (Err(error), None) => return Err(error),
        };
        let second = second.and_then(|second| {
            let infos = of_the_same_cards(&second.infos, &first.lanes);
            if infos.is_none() || 2 * first.lanes.len() > efa_mr::MAX_NICS {
                let why = "not all of the cards have it, or they are too many for two fabrics".into();
                rejected.push(Rejected { what: format!("a second fabric, {}", second.label), why });
                return None;
            }
            infos.map(|infos| Second::new(second.label, infos))
        });
        let epoch = random()?;
        let name = config.name.clone().unwrap_or_else(default_name);
        let core = Core::new(config, (why, rejected), (name, epoch), first, second)?.share();
        core.description().log(0);
        let thread = crate::progress::start(&core).map_err(|source| {
            Error::fabric("starting a thread", fabric_safe::Error::System { what: "thread", source })
        })?;
        Ok(Self(Arc::new(Handle { core, thread: Mutex::new(Some(thread)) })))
    }

    /// What the handles share.
    #[cfg(test)]
    pub(crate) fn core(&self) -> &Arc<Core> {
        &self.0.core
    }

    /// Which path transfers take.
    #[must_use]
    pub fn describe(&self) -> Description {
        self.0.core.description()
    }

    /// What has been done since it was opened. Takes each NIC's lock for a moment.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        self.0.core.statistics()
    }

    /// What has been done with one peer.
    ///
    /// # Errors
    /// [`Error::UnknownPeer`].
    pub fn peer_statistics(&self, peer: PeerId) -> Result<PeerStatistics, Error> {
        self.0.core.peer_statistics(peer)
    }

    /// What peers call us.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.core.name
    }

    /// Random identity of this transport; a restart has another one.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.0.core.epoch
    }

    // ---- memory ----------------------------------------------------------------------------------------------------------

    /// Registers memory with the NICs. Blocks while pages are pinned: microseconds to seconds; transfers go on meanwhile.
    /// Peers can use it when they have the new [`local_descriptor`](Self::local_descriptor).
    ///
    /// # Errors
    /// [`Error::Register`] with what the planner, the ledger or the provider said. Nothing is registered then.
    pub fn register(
        &self,
        memory: Arc<dyn SharedMemory>,
        options: impl Into<RegisterOptions>,
    ) -> Result<Region, Error> {
        if self.0.core.is_shut() {
            return Err(Error::ShutDown);
        }
        self.0.core.register(memory, options.into())
    }

    // ---- peers -----------------------------------------------------------------------------------------------------------

    /// Everything that peers need to know about us, to be carried to them by whoever likes. Starts with a version; changes
    /// when [`descriptor_generation`](Self::descriptor_generation) does.
    #[must_use]
    pub fn local_descriptor(&self) -> Vec<u8> {
        self.0.core.descriptor()
    }

    /// Counts changes of the descriptor.
    #[must_use]
    pub fn descriptor_generation(&self) -> u64 {
        self.0.core.generation()
    }

    /// Counts changes of how peers reach us: endpoints that were opened again, fabrics that were opened or closed. Memory that is registered or
    /// unregistered changes the descriptor only. What peers have of an earlier one leads nowhere, so they want the new one soon.
    /// Read it before the descriptor to know which one a peer has been given. Starts at 0.
    #[must_use]
    pub fn reach_generation(&self) -> u64 {
        self.0.core.reach()
    }

    /// Takes a peer's descriptor. Idempotent; older ones of the same life of a peer change nothing. A peer of a known name
    /// with a new epoch has restarted: it keeps its id, and requests that still run against its former life fail.
    ///
    /// On EFA this also chooses the fabric ([`scheduler::fabric`](crate::scheduler::fabric)). The first peer that cannot be reached on
    /// `efa-direct` makes it open `efa` and register all memory there, which takes its time and changes our own descriptor. So
    /// whoever answers a peer takes the peer's descriptor first and gives its own then. A peer that has yet to do so is
    /// [stale](PeerState::stale) from the beginning.
    ///
    /// Blocks for that only, and no longer than [`Config::request_deadline`].
    ///
    /// # Errors
    /// [`Error::Descriptor`] whatever the bytes are; [`Error::Incompatible`] if its provider is not ours, or there is no fabric that
    /// both sides have and that can be opened here in time. What takes longer goes on: when it is done the descriptor changes, and the
    /// peer can be added.
    pub fn add_or_update_peer(&self, descriptor: &[u8]) -> Result<PeerId, Error> {
        let limit = self.0.core.config.request_deadline;
        let deadline = Instant::now().checked_add(limit).unwrap_or_else(|| Instant::now() + A_YEAR);
        self.add_or_update_peer_until(descriptor, deadline)
    }

    /// The same with a deadline of the caller's. One that has passed already does not block at all.
    ///
    /// # Errors
    /// As [`add_or_update_peer`](Self::add_or_update_peer).
    pub fn add_or_update_peer_until(&self, descriptor: &[u8], deadline: Instant) -> Result<PeerId, Error> {
        self.0.core.add_peer(descriptor, deadline)
    }

    /// Forgets a peer. Requests that are running run on.
    pub fn remove_peer(&self, peer: PeerId) -> bool {
        self.0.core.remove_peer(peer)
    }

    /// What the peer calls itself.
    #[must_use]
    pub fn peer_name(&self, peer: PeerId) -> Option<String> {
        self.0.core.peers().get(peer).ok().map(|peer| peer.name.clone())
    }

    /// The peer's epoch, as its latest descriptor has it.
    #[must_use]
    pub fn peer_epoch(&self, peer: PeerId) -> Option<u64> {
        self.0.core.peers().get(peer).ok().map(|peer| peer.table().epoch)
    }

    /// All peers.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerId> {
        self.0.core.peers().iter().map(|peer| peer.id).collect()
    }

    /// How a peer is doing, and how much of ours still is on its way to it.
    ///
    /// # Errors
    /// [`Error::UnknownPeer`].
    pub fn peer_state(&self, peer: PeerId) -> Result<PeerState, Error> {
        self.0.core.peer_state(peer)
    }

    /// Blocks until no attempt of any request to the peer is queued or under way, driving the NICs: from then on no byte moves
    /// between it and us, unless something new is submitted. `false` if that has not come at `deadline`; attempts that a provider
    /// never ends are ended [`Config::stuck_after`] their request's deadline.
    ///
    /// # Errors
    /// [`Error::UnknownPeer`].
    pub fn peer_quiesced(&self, peer: PeerId, deadline: Instant) -> Result<bool, Error> {
        self.0.core.peer_quiesced(peer, deadline)
    }

    /// Completes one small operation over each rail that will be used, so that the first transfer does not wait for
    /// connections and handshakes. Blocks until they have ended, at most until the deadline. Idempotent. What the operations move
    /// is memory that both sides keep for that. Over the rail that the first transfer would take go some requests like any other,
    /// which are counted as such.
    ///
    /// # Errors
    /// [`Error::UnknownPeer`]; [`Error::PeerDown`] if not one rail works. Rails that fail while others work are in the answer.
    pub fn warm_up(&self, peer: PeerId, deadline: Instant) -> Result<WarmUp, Error> {
        self.0.core.warm_up(peer, deadline)
    }

    // ---- transfers -------------------------------------------------------------------------------------------------------

    /// Starts all requests of a batch and empties it. Does not block (another thread that drives the same NIC may hold it up
    /// for microseconds; requests within this process are copied at once).
    ///
    /// Requests fail one by one, in their [`status`](BatchHandle::status): remote memory that is not registered, peers that
    /// are down.
    ///
    /// # Errors
    /// [`Error::UnknownPeer`], [`Error::ShutDown`], [`Error::Request`] for an immediate that the provider cannot carry. Nothing
    /// has been started then and the batch is as before.
    pub fn submit(&self, batch: &mut Batch) -> Result<BatchHandle, Error> {
        self.0.core.submit(batch)
    }

    /// News about peers and NICs.
    #[must_use]
    pub fn events(&self) -> &Events {
        &self.0.core.events
    }

    /// Writes of peers that carry an immediate.
    #[must_use]
    pub fn arrivals(&self) -> &Arrivals {
        &self.0.core.arrivals
    }

    /// Reads completions and posts what waits, once, for callers with an event loop of their own. Returns how much happened.
    pub fn progress(&self) -> usize {
        self.0.core.drive_all()
    }

    /// The latest slices as a JSON trace for Perfetto or Chrome; `None` unless
    /// [`Config::trace_slices`](crate::Config::trace_slices) is set.
    #[must_use]
    pub fn slice_trace(&self) -> Option<String> {
        let core = &self.0.core;
        let names: Vec<&str> = core.lanes.iter().map(|lane| lane.nic.name.as_str()).collect();
        core.trace.as_ref().map(|trace| trace.to_json(&names))
    }

    /// Lets running requests finish until the deadline, fails the rest with [`Error::ShutDown`], and stops the progress
    /// thread. Memory of operations that the card still has is kept until they have ended. Idempotent.
    pub fn shutdown(&self, deadline: Instant) {
        self.0.shutdown(deadline);
    }
}

impl Handle {
    fn shutdown(&self, deadline: Instant) {
        self.core.shut(deadline);
        if let Some(thread) = self.thread.lock().take() {
            // It does not panic; if it did, there is nothing left to do about it.
            let _ = thread.join();
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shutdown(Instant::now() + LAST_WORDS);
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let core = &self.0.core;
        write!(f, "Transport({}, {} NICs of {})", core.name, core.lanes.len(), core.choice)
    }
}

fn default_name() -> String {
    let system = rustix::system::uname();
    format!("{}:{}", system.nodename().to_string_lossy(), rustix::process::getpid().as_raw_nonzero())
}

fn random() -> Result<u64, Error> {
    let mut bytes = [0; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += rustix::rand::getrandom(&mut bytes[filled..], rustix::rand::GetRandomFlags::empty())
            .map_err(|errno| {
                let source = fabric_safe::Error::System { what: "getrandom", source: errno.into() };
                Error::fabric("choosing an epoch", source)
            })?;
    }
    Ok(u64::from_le_bytes(bytes))
}
