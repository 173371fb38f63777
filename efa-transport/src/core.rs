//! What the handles of a transport share.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use fabric_safe::Access;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};

use crate::batches::{Batches, Latest};
use crate::clock::Clock;
use crate::config::Config;
use crate::descriptor::{ChunkEntry, Descriptor, NicEntry, OnFabric};
use crate::error::Error;
use crate::events::{Arrivals, Event, Events};
use crate::fabric::OpenFabric;
use crate::gauges::TransportGauges;
use crate::lane::Left;
use crate::lanes::Lanes;
use crate::lot::Stray;
use crate::peer::{Added, Peer, PeerId, PeerState, Peers};
use crate::progress::Parking;
use crate::provider::Rejected;
use crate::region::RegionInner;
use crate::route::Staging;
use crate::scheduler::fabric::DIRECT;
use crate::scheduler::rail::partners;
use crate::second::Second;
use crate::trace::Trace;

pub(crate) struct Core {
    pub(crate) config: Config,
    pub(crate) clock: Clock,
    pub(crate) name: String,
    pub(crate) epoch: u64,
    pub(crate) choice: String,
    pub(crate) rejected: Vec<Rejected>,
    pub(crate) lanes: Lanes,
    /// A fabric that peers may ask for, or have asked for.
    pub(crate) second: Option<Second>,
    peers: RwLock<Peers>,
    pub(crate) regions: Mutex<Vec<(u64, Weak<RegionInner>)>>,
    next_region: AtomicU64,
    generation: AtomicU64,
    /// Changes of how peers reach us.
    reach: AtomicU64,
    descriptor: Mutex<Option<(u64, Vec<u8>)>>,
    pub(crate) events: Events,
    pub(crate) arrivals: Arrivals,
    pub(crate) batches: Mutex<Batches>,
    pub(crate) latest_batch: Latest,
    pub(crate) staging: Mutex<Vec<Staging>>,
    /// Peers' cards have refused ours as strangers.
    pub(crate) every_rail: AtomicBool,
    /// Emptied ones.
    #[allow(clippy::vec_box)] // they come and go in their boxes
    pub(crate) left: Mutex<Vec<Box<Left>>>,
    pub(crate) retries: Mutex<Vec<(u64, Stray)>>,
    pub(crate) retry_count: AtomicUsize,
    pub(crate) drivers: AtomicUsize,
    pub(crate) parking: Parking,
    shut: AtomicBool,
    pub(crate) turn: AtomicUsize,
    pub(crate) gauges: TransportGauges,
    pub(crate) retried: AtomicU64,
    pub(crate) trace: Option<Trace>,
    /// For threads that outlast who starts them.
    me: OnceLock<Weak<Core>>,
}

impl Core {
    pub(crate) fn new(
        config: Config,
        (choice, rejected): (String, Vec<Rejected>),
        (name, epoch): (String, u64),
        first: OpenFabric,
        second: Option<Second>,
    ) -> Result<Self, Error> {
        let parking = Parking::new(&first.lanes)?;
        // A second fabric has as many as the first.
        let lanes = first.lanes.len() * if second.is_some() { 2 } else { 1 };
        let trace = (config.trace_slices > 0).then(|| Trace::new(config.trace_slices));
        Ok(Self {
            config,
            clock: Clock::start(),
            name,
            epoch,
            choice,
            rejected,
            lanes: Lanes::new(first),
            second,
            peers: RwLock::new(Peers::new(lanes)),
            regions: Mutex::default(),
            next_region: AtomicU64::new(1),
            generation: AtomicU64::new(1),
            reach: AtomicU64::new(0),
            descriptor: Mutex::new(None),
            events: Events::new(),
            arrivals: Arrivals::new(),
            batches: Mutex::default(),
            latest_batch: Latest::default(),
            staging: Mutex::default(),
            every_rail: AtomicBool::new(false),
            left: Mutex::default(),
            retries: Mutex::default(),
            retry_count: AtomicUsize::new(0),
            drivers: AtomicUsize::new(0),
            parking,
            shut: AtomicBool::new(false),
            turn: AtomicUsize::new(0),
            gauges: TransportGauges::new(),
            retried: AtomicU64::new(0),
            trace,
            me: OnceLock::new(),
        })
    }

    /// Shared from now on.
    pub(crate) fn share(self) -> Arc<Self> {
        let core = Arc::new(self);
        let _ = core.me.set(Arc::downgrade(&core));
        core
    }

    /// Itself, shared; `None` when its last owner is just letting go of it.
    pub(crate) fn shared(&self) -> Option<Arc<Self>> {
        self.me.get().and_then(Weak::upgrade)
    }

    // ---- descriptors and peers -----------------------------------------------------------------------------------------

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(crate) fn changed(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        self.events.push(Event::DescriptorChanged);
    }

    pub(crate) fn reach(&self) -> u64 {
        self.reach.load(Ordering::Acquire)
    }

    /// The descriptor has changed, and what peers have of the former one does not lead here any more, or not the best way.
    pub(crate) fn reached_otherwise(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // Whoever sees this one sees the other.
        self.reach.fetch_add(1, Ordering::AcqRel);
        self.events.push(Event::DescriptorChanged);
    }

    pub(crate) fn remember_region(&self, inner: &Arc<RegionInner>) -> u64 {
        let id = self.next_region.fetch_add(1, Ordering::Relaxed);
        self.regions.lock().push((id, Arc::downgrade(inner)));
        self.changed();
        id
    }

    pub(crate) fn forget_region(&self, id: u64) {
        let mut regions = self.regions.lock();
        let before = regions.len();
        regions.retain(|(other, _)| *other != id);
        let gone = regions.len() != before;
        drop(regions);
        if gone {
            self.changed();
        }
    }

    pub(crate) fn descriptor(&self) -> Vec<u8> {
        let generation = self.generation();
        let mut cached = self.descriptor.lock();
        if let Some((of, bytes)) = &*cached
            && *of == generation
        {
            return bytes.clone();
        }
        let bytes = self.describe_to_peers(generation).encode();
        *cached = Some((generation, bytes.clone()));
        bytes
    }

    fn describe_to_peers(&self, generation: u64) -> Descriptor {
        let mut regions: Vec<Arc<RegionInner>> =
            self.regions.lock().iter().filter_map(|(_, region)| region.upgrade()).collect();
        regions.retain(|region| region.access.intersects(Access::REMOTE_READ | Access::REMOTE_WRITE));
        regions.sort_by_key(|region| region.addr);
        Descriptor {
            name: self.name.clone(),
            epoch: self.epoch,
            generation,
            provider: self.lanes[0].nic.info.provider_name().to_owned(),
            on_request: self.on_request().map(str::to_owned).into_iter().collect(),
            fabrics: (0..)
                .zip(self.lanes.fabrics())
                .map(|(number, it)| self.on_fabric(number, it, &regions))
                .collect(),
        }
    }

    fn on_fabric(&self, number: usize, fabric: &OpenFabric, regions: &[Arc<RegionInner>]) -> OnFabric {
        let (mut chunks, mut keys) = (Vec::new(), Vec::new());
        for region in regions.iter().filter_map(|region| region.on(number)) {
            for (index, chunk) in region.chunks.iter().enumerate() {
                chunks.push((
                    ChunkEntry {
                        addr: chunk.start,
                        len: chunk.end - chunk.start,
                        readable: region.access.contains(Access::REMOTE_READ),
                        writable: region.access.contains(Access::REMOTE_WRITE),
                        // Peers number the NICs of each fabric from 0.
                        nics: chunk.nics >> fabric.range.start,
                        keys: 0,
                    },
                    region.keys_of(index),
                ));
            }
        }
        // Overlapping regions interleave their chunks.
        chunks.sort_by_key(|(chunk, _)| chunk.addr);
        let chunks = chunks
            .into_iter()
            .map(|(chunk, its_keys)| {
                let at = keys.len() as u32;
                keys.extend(its_keys);
                ChunkEntry { keys: at, ..chunk }
            })
            .collect();
        let nics = fabric.lanes.iter().map(|lane| NicEntry {
            name: lane.nic.name.clone(),
            address: lane.nic.address().to_vec().into(),
            link_mbps: lane.nic.link_mbps,
            numa: lane.nic.numa.unwrap_or(u16::MAX),
            probe: lane.nic.probe_served(),
        });
        OnFabric {
            fabric: fabric.name.clone(),
            device: fabric.device,
            virtual_addressing: fabric.lanes[0].nic.info.virtual_addressing(),
            scratch: true,
            every_rail: self.every_rail.load(Ordering::Relaxed),
            immediate_bytes: fabric.immediate_bytes as u8,
            nics: nics.collect(),
            chunks,
            keys,
        }
    }

    pub(crate) fn peers(&self) -> RwLockReadGuard<'_, Peers> {
        self.peers.read()
    }

    /// Takes a descriptor, and says what that has changed. From now on this is the peer's; nothing has been done about it yet.
    pub(crate) fn learn(
        self: &Arc<Self>,
        bytes: &[u8],
        deadline: Instant,
    ) -> Result<(Arc<Peer>, Added), Error> {
        let descriptor = Descriptor::decode(bytes)?;
        let (ours, theirs) = (self.lanes[0].nic.info.provider_name(), descriptor.provider.as_str());
        if !same_wire(ours, theirs) {
            let why = format!("it uses provider {theirs} and we use {ours}");
            return Err(Error::Incompatible { peer: descriptor.name, why });
        }
        let way = self.way_to(&descriptor, deadline)?;
        Ok(self.peers.write().add(descriptor, way))
    }

    pub(crate) fn add_peer(self: &Arc<Self>, bytes: &[u8], deadline: Instant) -> Result<PeerId, Error> {
        let (peer, added) = self.learn(bytes, deadline)?;
        let table = peer.table();
        tracing::debug!(peer = %peer.name, ?added, regions = table.regions(), "peer descriptor");
        let fabric = self.lanes.fabric(table.fabric);
        if added == Added::Updated && table.moved != 0 {
            for lane in &fabric.lanes {
                lane.follow(&peer, &table, self.clock.now());
            }
        }
        // efa-direct: our cards must know those of the peer that will write to them before the first operation arrives.
        if table.fabric_name == DIRECT {
            let theirs = table.nics.len();
            for lane in &fabric.lanes {
                let over = |nic: usize| partners(nic, theirs, lane.seat.of) & (1 << lane.seat.seat) != 0;
                lane.introduce(&peer, &table.nics, |nic| table.every_rail || over(nic), self.clock.now());
            }
        }
        if added == Added::Restarted {
            self.restarted(&peer, table.epoch);
            // It may have come back on another fabric.
            for lane in self.lanes.iter().filter(|lane| !fabric.range.contains(&lane.index)) {
                lane.forget(peer.id.slot);
            }
        }
        if added != Added::Unchanged {
            // It will call before long, and wants an answer then. Where nothing tells the progress thread that it does, the pauses
            // begin with short ones.
            self.wake_progress();
        }
        if !table.open {
            self.events.push(Event::PeerStale { peer: peer.id, name: peer.name.clone() });
        }
        if added == Added::Restarted {
            self.events.push(Event::PeerRestarted { peer: peer.id, name: peer.name.clone() });
        }
        Ok(peer.id)
    }

    pub(crate) fn peer_state(&self, id: PeerId) -> Result<PeerState, Error> {
        let peer = Arc::clone(self.peers().get(id)?);
        let table = peer.table();
        let nics = table.nics.len();
        let aside = peer.health().avoid(self.clock.now()).count_ones() as usize;
        Ok(PeerState {
            name: peer.name.clone(),
            down: peer.health().is_down(),
            stale: peer.is_stale(),
            generation: table.generation,
            fabric: table.fabric_name.clone(),
            device_rdma: table.device.rdma(),
            nics,
            nics_well: nics - aside.min(nics),
            outstanding: peer.alive(),
        })
    }

    pub(crate) fn remove_peer(&self, id: PeerId) -> bool {
        let removed = self.peers.write().remove(id);
        if removed.is_some() {
            for lane in &self.lanes {
                lane.forget(id.slot);
            }
        }
        removed.is_some()
    }

    pub(crate) fn is_shut(&self) -> bool {
        self.shut.load(Ordering::Acquire)
    }

    pub(crate) fn shut(&self, deadline: Instant) {
        if self.shut.swap(true, Ordering::AcqRel) {
            return;
        }
        if let Some(second) = &self.second {
            second.shut();
        }
        while self.lanes.iter().any(|lane| lane.is_busy()) && Instant::now() < deadline {
            if self.drive_all() == 0 {
                std::thread::sleep(Duration::from_micros(50));
            }
        }
        let running = self.batches.lock().running();
        for state in running {
            state.fail_all(&Error::ShutDown);
        }
        self.sweep();
        self.retries.lock().clear();
        self.publish();
        self.wake_progress();
    }
}

/// Whether endpoints of two providers understand each other. What 1.17 calls `net` became `tcp` in 2.0; the `tcp` of 1.17 is no
/// provider of datagrams by itself.
fn same_wire(ours: &str, theirs: &str) -> bool {
    let native = |name: &str| matches!(name, "net" | "tcp");
    ours == theirs || (native(ours) && native(theirs))
}
