//! Peers: what we know about them, and how well they answer.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::descriptor::{ChunkEntry, Descriptor, NicEntry, OnFabric};
use crate::error::Error;
use crate::lane::bump;
use crate::nic::PROBE_BYTES;
use crate::peer_health::PeerHealth;
use crate::request::Op;
use crate::scheduler::fabric::Device;
use crate::scheduler::rail::{Set, rank};
use crate::scheduler::slicer::Chunk;
use crate::serial::serial;
use crate::stats::PeerStatistics;

/// A peer of one transport. Never used twice by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PeerId {
    pub(crate) slot: u32,
    pub(crate) serial: u32,
}

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}.{}", self.slot, self.serial)
    }
}

/// How a peer is reached: on which of our fabrics.
#[derive(Debug, Clone)]
pub(crate) struct Way {
    pub(crate) number: usize,
    pub(crate) fabric: String,
    /// What our cards do on it, and the bytes of an immediate that they take.
    pub(crate) device: Device,
    pub(crate) immediate_bytes: u8,
}

/// A descriptor, prepared for looking addresses up. Never changes; a new one replaces it.
#[derive(Debug)]
pub(crate) struct PeerTable {
    /// No other one has it.
    pub(crate) serial: u64,
    pub(crate) epoch: u64,
    pub(crate) generation: u64,
    /// The same `Arc` over updates that change the regions only, so that address vector entries stay.
    pub(crate) nics: Arc<[NicEntry]>,
    /// Those of them that have another address than in the table before, of the same life.
    pub(crate) moved: Set,
    pub(crate) immediate_bytes: u8,
    /// The number of the fabric that it is reached on, here; and its name.
    pub(crate) fabric: usize,
    pub(crate) fabric_name: String,
    /// What both sides' cards do by themselves.
    pub(crate) device: Device,
    /// Whether that fabric was open there when the descriptor was made. If not, there are neither NICs nor chunks.
    pub(crate) open: bool,
    /// The bytes that are probed there are nobody's and may be written.
    pub(crate) scratch: bool,
    /// Its operations may come over any of its NICs.
    pub(crate) every_rail: bool,
    virtual_addressing: bool,
    chunks: Box<[ChunkEntry]>,
    keys: Box<[u64]>,
    /// The highest end of all chunks up to here: how far back overlapping ones may reach.
    reach: Vec<u64>,
}

impl PeerTable {
    fn new(descriptor: Descriptor, way: Way, before: Option<&PeerTable>) -> Self {
        let Descriptor { epoch, generation, fabrics, .. } = descriptor;
        let on = fabrics.into_iter().find(|on| on.fabric == way.fabric);
        let open = on.is_some();
        let on = on.unwrap_or_else(|| OnFabric::nothing(&way.fabric));
        let mut highest = 0;
        let reach = on
            .chunks
            .iter()
            .map(|chunk| {
                highest = highest.max(chunk.addr + chunk.len);
                highest
            })
            .collect();
        let nics = match before {
            Some(before)
                if (before.epoch, before.fabric) == (epoch, way.number) && *before.nics == *on.nics =>
            {
                Arc::clone(&before.nics)
            }
            _ => on.nics.into(),
        };
        let same = before.filter(|before| (before.epoch, before.fabric) == (epoch, way.number));
        let moved = same.map_or(0, |before| {
            let both = before.nics.iter().zip(nics.iter()).enumerate();
            let moved = both.filter(|(_, (before, now))| before.address != now.address);
            moved.fold(0, |set: Set, (nic, _)| set | 1 << nic)
        });
        Self {
            serial: serial(),
            epoch,
            generation,
            nics,
            moved,
            immediate_bytes: on.immediate_bytes.min(way.immediate_bytes),
            fabric: way.number,
            fabric_name: way.fabric,
            device: way.device.with(on.device),
            open,
            scratch: on.scratch,
            every_rail: on.every_rail,
            virtual_addressing: on.virtual_addressing,
            chunks: on.chunks.into(),
            keys: on.keys.into(),
            reach,
        }
    }

    /// Says which way a peer is reached: one line for each of its lives, and when that has changed. Outside EFA there is one way.
    fn log(&self, peer: &str, before: Option<&PeerTable>) {
        let way = |table: &PeerTable| (table.epoch, table.fabric, table.open);
        if self.fabric_name.is_empty() || before.is_some_and(|before| way(before) == way(self)) {
            return;
        }
        let (fabric, nics) = (&self.fabric_name, self.nics.len());
        if self.open {
            tracing::info!(peer, fabric, nics, "is reached on this fabric");
        } else {
            tracing::info!(peer, fabric, "is to be reached on this fabric, which it has yet to open");
        }
        if self.device.rdma() == Some(false) {
            tracing::warn!(
                peer,
                "one side's cards do not both read and write by themselves: transfers are slow"
            );
        }
    }

    /// Why nothing can be sent to it if its fabric is not open there.
    pub(crate) fn closed(&self) -> String {
        format!(
            "it opens fabric {} when it has our descriptor: give it ours, then take its next one",
            self.fabric_name
        )
    }

    /// The chunk around an address that allows `op`. Of several the last in order of address.
    #[inline]
    pub(crate) fn chunk_at(&self, addr: u64, op: Op) -> Option<Chunk> {
        let allows = |chunk: &ChunkEntry| match op {
            Op::Read => chunk.readable,
            Op::Write => chunk.writable,
        };
        if let [one] = &*self.chunks {
            let before = addr.wrapping_sub(one.addr);
            let left = one.len.checked_sub(before).filter(|&left| left > 0 && allows(one))?;
            return Some(Chunk { index: 0, before, left });
        }
        let mut index = self.chunks.partition_point(|chunk| chunk.addr <= addr);
        while index > 0 {
            index -= 1;
            if self.reach[index] <= addr {
                return None;
            }
            let chunk = &self.chunks[index];
            let before = addr - chunk.addr;
            if allows(chunk) && before < chunk.len {
                return Some(Chunk { index: index as u32, before, left: chunk.len - before });
            }
        }
        None
    }

    /// The NICs that have a chunk registered.
    #[inline]
    pub(crate) fn nics_of(&self, chunk: u32) -> u128 {
        self.chunks.get(chunk as usize).map_or(0, |chunk| chunk.nics)
    }

    /// How operations over a remote NIC name an address in a chunk.
    #[inline]
    pub(crate) fn remote(&self, chunk: u32, nic: usize, addr: u64) -> Option<fabric_safe::Remote> {
        let chunk = self.chunks.get(chunk as usize)?;
        let key = *self.keys.get(chunk.keys as usize + rank(chunk.nics, nic)?)?;
        let address = if self.virtual_addressing { addr } else { addr.wrapping_sub(chunk.addr) };
        Some(fabric_safe::Remote { address, key })
    }

    /// Looks at what requests for its first chunks look at, on one of its NICs.
    pub(crate) fn look_at(&self, nic: usize, chunks: usize) {
        for chunk in self.chunks.iter().take(chunks) {
            for op in [Op::Read, Op::Write] {
                let found = self.chunk_at(chunk.addr, op);
                std::hint::black_box(found.and_then(|found| self.remote(found.index, nic, chunk.addr)));
            }
        }
    }

    /// The same peer with nothing but the bytes of one of its NICs that are there to be probed: the table, and their address.
    pub(crate) fn of_probe(&self, nic: usize) -> Option<(Self, u64)> {
        let (addr, key) = self.nics.get(nic)?.probe;
        let chunk = ChunkEntry {
            addr,
            len: PROBE_BYTES as u64,
            readable: true,
            writable: self.scratch,
            nics: 1 << nic,
            keys: 0,
        };
        let table = Self {
            serial: serial(),
            nics: Arc::clone(&self.nics),
            fabric_name: self.fabric_name.clone(),
            chunks: [chunk].into(),
            keys: [key].into(),
            reach: vec![addr.checked_add(chunk.len)?],
            // The address is as operations want it already.
            virtual_addressing: true,
            ..*self
        };
        Some((table, addr))
    }

    pub(crate) fn regions(&self) -> usize {
        self.chunks.len()
    }
}

/// How a peer is doing.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PeerState {
    /// What it calls itself.
    pub name: String,
    /// It does not answer: requests to it fail at once, but for one now and then that finds out whether it is back. Ends with
    /// [`Event::PeerUp`](crate::Event::PeerUp).
    pub down: bool,
    /// Its descriptor is out of date: requests to it fail at once until a new one is [added](crate::Transport::add_or_update_peer).
    pub stale: bool,
    /// Of its latest descriptor: its [`descriptor_generation`](crate::Transport::descriptor_generation) then.
    pub generation: u64,
    /// The fabric that it is reached on: EFA's `efa` or `efa-direct`, empty with other providers.
    pub fabric: String,
    /// Whether the cards of both sides read and write by themselves; `None` where that question makes no sense or a side does
    /// not say. If not, transfers with this peer are slow.
    pub device_rdma: Option<bool>,
    /// NICs that it has on that fabric.
    pub nics: usize,
    /// Those of them that are in use: the others have not answered when last tried.
    pub nics_well: usize,
    /// Attempts queued or under way, of requests that have ended (by deadline, cancellation or error) too.
    pub outstanding: usize,
}

/// A peer, over all its restarts.
pub(crate) struct Peer {
    pub(crate) id: PeerId,
    pub(crate) name: String,
    table: Mutex<Arc<PeerTable>>,
    /// Another one for each table, and when it has been removed.
    version: AtomicU64,
    health: PeerHealth,
    /// Slices to it that there ever were, but for those that lanes [count](Share); those that are over are counted apart.
    pub(crate) begun: AtomicUsize,
    /// Set while our descriptor of it is known to be out of date.
    stale: AtomicBool,
    pub(crate) counters: PeerCounters,
}

#[derive(Debug, Default)]
pub(crate) struct PeerCounters {
    /// Each lane's share of what is counted for every slice.
    by_lane: Box<[Share]>,
    /// Another number each time that a slice has ended well.
    pub(crate) heard: AtomicU64,
    /// Slices that are over without that.
    pub(crate) lost: AtomicUsize,
    pub(crate) failures: AtomicU64,
    pub(crate) retries: AtomicU64,
}

/// What one lane has counted of a peer. Changed with that lane's lock only: see [`bump`].
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Slices that went the [short way](crate::alone).
    begun: AtomicU64,
    /// Slices that have ended well.
    slices: AtomicU64,
    bytes_written: AtomicU64,
    bytes_read: AtomicU64,
}

impl PeerCounters {
    fn new(lanes: usize) -> Self {
        Self { by_lane: (0..lanes).map(|_| Share::default()).collect(), ..Self::default() }
    }

    /// A lane posts a slice that nobody has counted.
    #[inline]
    pub(crate) fn begins(&self, lane: usize) {
        if let Some(share) = self.by_lane.get(lane) {
            bump(&share.begun, 1);
        }
    }

    /// So many slices have ended well on a lane, with so many bytes.
    #[inline]
    pub(crate) fn ended(&self, lane: usize, op: Op, slices: u32, bytes: u64) {
        let Some(share) = self.by_lane.get(lane) else { return };
        match op {
            Op::Read => bump(&share.bytes_read, bytes),
            Op::Write => bump(&share.bytes_written, bytes),
        }
        // Of two lanes at the same time one may overwrite the other's: that is another number, too.
        bump(&self.heard, 1);
        // Whoever learns by this that nothing is under way any more sees what was moved.
        let before = share.slices.load(Ordering::Relaxed);
        share.slices.store(before.wrapping_add(slices.into()), Ordering::Release);
    }

    fn sum(&self, which: impl Fn(&Share) -> &AtomicU64) -> u64 {
        let each = self.by_lane.iter().map(|share| which(share).load(Ordering::Acquire));
        each.fold(0, u64::wrapping_add)
    }

    pub(crate) fn statistics(&self) -> PeerStatistics {
        PeerStatistics {
            bytes_written: self.sum(|share| &share.bytes_written),
            bytes_read: self.sum(|share| &share.bytes_read),
            slices: self.sum(|share| &share.slices),
            failures: self.failures.load(Ordering::Relaxed),
            retries: self.retries.load(Ordering::Relaxed),
        }
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({}, {})", self.id, self.name)
    }
}

impl Peer {
    pub(crate) fn table(&self) -> Arc<PeerTable> {
        Arc::clone(&self.table.lock())
    }

    /// The table and its version.
    pub(crate) fn table_and_version(&self) -> (u64, Arc<PeerTable>) {
        let table = self.table.lock();
        (self.version.load(Ordering::Relaxed), Arc::clone(&table))
    }

    /// Which table it has, if it is still known: whoever has that one need not ask for it again.
    #[inline]
    pub(crate) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    pub(crate) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// True if that is news.
    pub(crate) fn set_stale(&self) -> bool {
        !self.stale.swap(true, Ordering::AcqRel)
    }

    /// Slices to it that exist: queued, or possibly still touching memory here or there.
    pub(crate) fn alive(&self) -> usize {
        // In this order: what is over has begun, so what is counted here is never too little.
        let ended = self.counters.sum(|share| &share.slices) as usize;
        let over = ended.wrapping_add(self.counters.lost.load(Ordering::Acquire));
        let alone = self.counters.sum(|share| &share.begun) as usize;
        self.begun.load(Ordering::Acquire).wrapping_add(alone).wrapping_sub(over)
    }

    pub(crate) fn health(&self) -> &PeerHealth {
        &self.health
    }
}

/// All peers of a transport.
#[derive(Default)]
pub(crate) struct Peers {
    slots: Vec<Option<Arc<Peer>>>,
    by_name: HashMap<String, u32>,
    serial: u32,
    /// Of ours, on all fabrics that there may be.
    lanes: usize,
}

/// What adding a descriptor came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Added {
    New,
    /// Known already, or older than what we have.
    Unchanged,
    Updated,
    Restarted,
}

impl Peers {
    /// Of a transport with so many lanes, on all fabrics that there may be.
    pub(crate) fn new(lanes: usize) -> Self {
        Self { lanes, ..Self::default() }
    }

    pub(crate) fn get(&self, id: PeerId) -> Result<&Arc<Peer>, Error> {
        let peer = self.slots.get(id.slot as usize).and_then(Option::as_ref);
        peer.filter(|peer| peer.id == id).ok_or(Error::UnknownPeer(id))
    }

    pub(crate) fn add(&mut self, descriptor: Descriptor, way: Way) -> (Arc<Peer>, Added) {
        let known = self.by_name.get(&descriptor.name).and_then(|&slot| self.slots[slot as usize].clone());
        if let Some(peer) = known {
            let mut table = peer.table.lock();
            let same_life = table.epoch == descriptor.epoch;
            let added = if same_life && table.generation == descriptor.generation {
                Added::Unchanged
            } else if same_life && table.generation > descriptor.generation {
                // Two of its descriptors have overtaken each other on their way.
                return (Arc::clone(&peer), Added::Unchanged);
            } else {
                let newer = PeerTable::new(descriptor, way, Some(&table));
                newer.log(&peer.name, Some(&table));
                *table = Arc::new(newer);
                peer.version.fetch_add(1, Ordering::Release);
                if same_life { Added::Updated } else { Added::Restarted }
            };
            peer.stale.store(!table.open, Ordering::Release);
            drop(table);
            peer.health.forgive(added == Added::Restarted);
            return (peer, added);
        }
        self.serial = self.serial.wrapping_add(1);
        let slot = self.slots.iter().position(Option::is_none).unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        }) as u32;
        let name = descriptor.name.clone();
        let table = PeerTable::new(descriptor, way, None);
        table.log(&name, None);
        let open = table.open;
        let peer = Arc::new(Peer {
            id: PeerId { slot, serial: self.serial },
            name: name.clone(),
            table: Mutex::new(Arc::new(table)),
            version: AtomicU64::new(0),
            health: PeerHealth::default(),
            begun: AtomicUsize::new(0),
            stale: AtomicBool::new(!open),
            counters: PeerCounters::new(self.lanes),
        });
        self.slots[slot as usize] = Some(Arc::clone(&peer));
        self.by_name.insert(name, slot);
        (peer, Added::New)
    }

    pub(crate) fn remove(&mut self, id: PeerId) -> Option<Arc<Peer>> {
        self.get(id).ok()?;
        let peer = self.slots[id.slot as usize].take()?;
        self.by_name.remove(&peer.name);
        peer.version.fetch_add(1, Ordering::Release);
        Some(peer)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Peer>> {
        self.slots.iter().flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn descriptor(name: &str, epoch: u64, generation: u64, chunks: &[(u64, u64, bool)]) -> Descriptor {
        let nic = NicEntry { name: "a".into(), address: [1].into(), link_mbps: 1, numa: 0, probe: (0, 0) };
        let on = OnFabric {
            immediate_bytes: 4,
            nics: vec![nic],
            chunks: (0..)
                .zip(chunks)
                .map(|(i, &(addr, len, writable))| ChunkEntry {
                    addr,
                    len,
                    readable: true,
                    writable,
                    nics: 1,
                    keys: i,
                })
                .collect(),
            keys: (100..).take(chunks.len()).collect(),
            ..OnFabric::nothing("efa-direct")
        };
        Descriptor {
            name: name.into(),
            epoch,
            generation,
            provider: "efa".into(),
            on_request: vec!["efa".into()],
            fabrics: vec![on],
        }
    }

    fn way(number: usize) -> Way {
        let fabric = ["efa-direct", "efa"][number].into();
        Way { number, fabric, device: Device::default(), immediate_bytes: 4 }
    }

    #[test]
    fn lookups_find_the_chunk_with_the_right_even_when_chunks_overlap() {
        let chunks = [(0x1000, 0x9000, true), (0x2000, 0x1000, false), (0x20000, 0x1000, true)];
        let table = PeerTable::new(descriptor("p", 1, 1, &chunks), way(0), None);
        let found = |addr, op| table.chunk_at(addr, op).map(|c| (c.index, c.left));
        assert_eq!(found(0xfff, Op::Read), None);
        assert_eq!(found(0x1000, Op::Read), Some((0, 0x9000)));
        assert_eq!(found(0x2800, Op::Read), Some((1, 0x800)));
        assert_eq!(found(0x2800, Op::Write), Some((0, 0x7800)), "the inner one is read-only");
        assert_eq!(found(0x5000, Op::Read), Some((0, 0x5000)), "behind the inner one");
        assert_eq!(found(0xa000, Op::Read), None, "the gap");
        assert_eq!(found(0x20fff, Op::Write), Some((2, 1)));
        assert_eq!(found(u64::MAX, Op::Write), None);
        assert_eq!(table.remote(2, 0, 0x20010), Some(fabric_safe::Remote { address: 0x10, key: 102 }));
        assert_eq!(table.remote(2, 1, 0x20010), None, "no key on that NIC");
    }

    #[test]
    fn restarts_keep_the_id_and_old_news_changes_nothing() {
        let mut peers = Peers::default();
        let (a, added) = peers.add(descriptor("a", 7, 5, &[]), way(0));
        assert_eq!(added, Added::New);
        assert_eq!(peers.add(descriptor("a", 7, 5, &[]), way(0)).1, Added::Unchanged);
        assert_eq!(peers.add(descriptor("a", 7, 4, &[(0, 1, true)]), way(0)).1, Added::Unchanged);
        assert_eq!(a.table().regions(), 0, "an older descriptor does not count");
        let nics = Arc::clone(&a.table().nics);
        assert_eq!(peers.add(descriptor("a", 7, 6, &[(0, 1, true)]), way(0)).1, Added::Updated);
        assert!(Arc::ptr_eq(&nics, &a.table().nics), "the addresses stay");
        a.set_stale();
        let (again, added) = peers.add(descriptor("a", 8, 1, &[]), way(0));
        assert_eq!((again.id, added), (a.id, Added::Restarted));
        assert!(!a.is_stale());
        assert!(peers.remove(a.id).is_some());
        assert!(matches!(peers.get(a.id), Err(Error::UnknownPeer(_))));
        assert_ne!(peers.add(descriptor("a", 8, 1, &[]), way(0)).0.id, a.id, "ids are not used twice");
    }
    #[test]
    fn a_fabric_that_the_peer_has_yet_to_open_makes_it_stale_until_it_has() {
        let mut peers = Peers::default();
        let (a, _) = peers.add(descriptor("a", 7, 1, &[(0, 1, true)]), way(1));
        assert!(a.is_stale() && !a.table().open);
        assert_eq!(
            (a.table().nics.len(), a.table().regions()),
            (0, 0),
            "what it has on the other one is of no use"
        );
        assert_eq!(peers.add(descriptor("a", 7, 1, &[]), way(1)).1, Added::Unchanged);
        assert!(a.is_stale(), "the same again is no cure");
        let mut opened = descriptor("a", 7, 2, &[(0, 1, true)]);
        opened.on_request.clear();
        opened.fabrics.push(OnFabric { fabric: "efa".into(), ..opened.fabrics[0].clone() });
        assert_eq!(peers.add(opened, way(1)).1, Added::Updated);
        assert!(!a.is_stale() && a.table().open);
        assert_eq!((a.table().fabric, a.table().nics.len(), a.table().regions()), (1, 1, 1));
        // It comes back with a newer library: the other fabric's NICs are not those, though they look the same.
        let nics = Arc::clone(&a.table().nics);
        assert_eq!(peers.add(descriptor("a", 7, 3, &[]), way(0)).1, Added::Updated);
        assert!(!Arc::ptr_eq(&nics, &a.table().nics));
    }
}
