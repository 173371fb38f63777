//! What goes wrong, in whatever order a test likes: on a provider that fails on command, with a clock that the test moves, and with
//! nobody driving the NICs but the test. What happens in such a test happens the same way each time.

mod alone;
mod cases;
mod moved;
mod opening;
mod schedules;
#[path = "../../tests/common/scripted.rs"]
mod scripted;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use fabric_safe::{Mapping, PageKind};
use scripted_provider::{Control, Placed};

use crate::clock::{BY_HAND, nanos};
use crate::core::Core;
use crate::descriptor::Descriptor;
use crate::provider::{Choice, choose};
use crate::{Access, Batch, BatchHandle, Config, Event, PeerId, Provider, Region, Request, Shape, Transport};

const EIO: i32 = 5;
/// Bytes of each request.
const BLOCK: u64 = 64;
/// Blocks of our memory, and of each peer's.
const BLOCKS: u64 = 64;
/// More than any test needs to come to rest: a schedule that does not is one that never would.
const ENOUGH: usize = 20_000;

/// A transport on the scripted provider that nobody drives but the test.
struct Stand {
    transport: Transport,
    region: Region,
    control: Control,
    /// The test makes the provider hang: nobody waits for endpoints that are being opened.
    hangs: AtomicBool,
}

impl Stand {
    fn open(control: Control, provider: &str, nics: usize, change: impl FnOnce(Config) -> Config) -> Self {
        Self::open_with(control, provider, nics, change, |_| {})
    }

    /// The same with other cards than were found, or more.
    fn open_with(
        control: Control,
        provider: &str,
        nics: usize,
        change: impl FnOnce(Config) -> Config,
        rechoose: impl FnOnce(&mut Choice),
    ) -> Self {
        control.reset();
        if BY_HAND.load(Ordering::SeqCst) == 0 {
            BY_HAND.store(1_000_000_000, Ordering::SeqCst);
        }
        let config = Config::new().name("here").provider(Provider::parse(provider));
        let config = config.endpoints_per_nic(nics).same_process_copy(false);
        let config = change(config);
        let mut choice = choose(&config).expect("the scripted provider");
        rechoose(&mut choice);
        let transport = Transport::open_what(choice, config).expect("the scripted provider");
        // For the progress thread somebody else drives from now on. It looks at that each time that it wakes.
        let core = transport.core();
        core.drivers.fetch_add(1, Ordering::SeqCst);
        for _ in 0..2 {
            while !core.parking.is_asleep() {
                std::thread::yield_now();
            }
            core.wake_progress();
        }
        while !core.parking.is_asleep() {
            std::thread::yield_now();
        }
        let mapping = Mapping::anonymous((BLOCK * BLOCKS) as usize, PageKind::Small).unwrap();
        let region = transport.register(Arc::new(mapping), Access::ALL).unwrap();
        Self { transport, region, control, hangs: AtomicBool::new(false) }
    }

    fn core(&self) -> &Arc<Core> {
        self.transport.core()
    }

    fn now(&self) -> u64 {
        self.core().clock.now()
    }

    fn advance(&self, by: Duration) {
        BY_HAND.fetch_add(nanos(by), Ordering::SeqCst);
    }

    /// A peer with as many NICs as we have, and our memory's shape: in one of its lives, with a descriptor of that life. The keys of
    /// its NICs are numbered from `first_key`.
    fn meet(&self, name: &str, life: (u64, u64), first_key: u64) -> PeerId {
        let nics = self.core().lanes.len();
        self.transport.add_or_update_peer(&self.descriptor(name, life, first_key, nics)).unwrap()
    }

    fn descriptor(
        &self,
        name: &str,
        (epoch, generation): (u64, u64),
        first_key: u64,
        nics: usize,
    ) -> Vec<u8> {
        let mut descriptor = Descriptor::decode(&self.transport.local_descriptor()).unwrap();
        (descriptor.name, descriptor.epoch, descriptor.generation) = (name.into(), epoch, generation);
        let fabric = &mut descriptor.fabrics[0];
        fabric.chunks.truncate(1);
        fabric.nics = vec![fabric.nics[0].clone(); nics];
        fabric.chunks[0].nics = (1 << nics) - 1;
        fabric.keys = (first_key..).take(nics).collect();
        descriptor.encode()
    }

    fn requests(&self, to: PeerId, count: u64, limit: Duration) -> Batch {
        let mut batch = Batch::new();
        for number in 0..count {
            let at = self.region.addr() + number % BLOCKS * BLOCK;
            batch.push(Request::write(to, &self.region, at, at, BLOCK)).unwrap();
        }
        batch.set_deadline(limit);
        batch
    }

    /// One request of so many pieces, that touch neither each other nor anything else.
    fn scattered(&self, to: PeerId, pieces: u64, limit: Duration) -> Batch {
        let at = self.region.addr();
        let places: Vec<(u64, u64)> = (0..pieces).map(|piece| (at + piece % BLOCKS * BLOCK, 8)).collect();
        let mut batch = Batch::new();
        let request = Request::write(to, &self.region, at, at, 8 * pieces);
        batch.push(Request { remote_shape: Shape::Scatter(&places), ..request }).unwrap();
        batch.set_deadline(limit);
        batch
    }

    fn send(&self, to: PeerId, count: u64, limit: Duration) -> BatchHandle {
        self.transport.submit(&mut self.requests(to, count, limit)).unwrap()
    }

    /// Drives, and lets 10 ms of back-off pass, so many times.
    fn drive_through(&self, pauses: usize) {
        for _ in 0..pauses {
            self.drive();
            self.advance(Duration::from_millis(10));
        }
    }

    /// Drives the NICs until nothing happens any more at this time.
    fn drive(&self) {
        let mut quiet = 0;
        for _ in 0..ENOUGH {
            quiet = if self.core().drive_all() > 0 || self.settle() { 0 } else { quiet + 1 };
            if quiet > 8 {
                return;
            }
        }
        panic!("it does not come to rest: {:#?}", self.transport.statistics());
    }

    /// Waits until every endpoint that is being opened is, or has failed to. True if there was one.
    fn settle(&self) -> bool {
        let mut any = false;
        while !self.hangs.load(Ordering::SeqCst)
            && self.core().lanes.iter().any(|lane| lane.reopening.is_under_way())
        {
            any = true;
            std::thread::yield_now();
        }
        any
    }

    fn unstick(&self) {
        self.core().unstick();
        self.settle();
    }

    /// The number of the endpoint that a lane has now.
    fn endpoint_of(&self, lane: usize) -> u64 {
        let address = self.core().lanes[lane].nic.address();
        let text: String = address.iter().map(|&byte| byte as char).take_while(|&it| it != '\0').collect();
        text.rsplit(':').next().unwrap().parse().unwrap()
    }

    /// What has been posted since `before` of it.
    fn placed_since(&self, before: usize) -> Vec<Placed> {
        self.control.placed().split_off(before)
    }

    fn events(&self) -> Vec<Event> {
        std::iter::from_fn(|| self.transport.events().try_next()).collect()
    }

    /// Nothing of ours is anywhere any more, and nothing was done wrong on the way.
    fn assert_clean(&self, peers: &[PeerId]) {
        for lane in &self.core().lanes {
            let state = lane.state.lock();
            let left = (state.queue.in_flight(), state.queue.queued(), lane.load.load(Ordering::SeqCst));
            assert_eq!(left, (0, 0, 0), "lane {}", lane.index);
        }
        for &peer in peers {
            assert_eq!(self.transport.peer_state(peer).unwrap().outstanding, 0);
        }
        assert_eq!(self.control.faults().total(), 0, "{:?}", self.control.faults());
    }
}
