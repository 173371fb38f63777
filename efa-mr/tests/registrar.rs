//! The registrar over domains that exist only here: failures, rollback, operations in flight, concurrency.

#![allow(clippy::unwrap_used)]

use efa_mr::registrar::{CloseError, MrDomain, RegisterError, Registrar};
use efa_mr::{Access, Buffer, Error, Location, Nic, PageSize, Policy, Reservation};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What all fake domains of one test share.
#[derive(Default)]
struct World {
    calls: AtomicUsize,
    /// The call that fails, counted from 1; 0 for none.
    fail_at: usize,
    live: AtomicUsize,
    /// Regions that refuse to be closed for now.
    busy: AtomicBool,
    leak: AtomicBool,
    at_once: AtomicUsize,
    most_at_once: AtomicUsize,
    order: Mutex<Vec<(usize, usize)>>,
}

struct Fake {
    nic: usize,
    world: Arc<World>,
    inside: AtomicBool,
    /// Pages that the "card" really has room for.
    room: u64,
}

#[derive(Debug, thiserror::Error)]
#[error("no")]
struct Refused;

#[derive(Debug)]
struct FakeRegion {
    world: Arc<World>,
    range: Range<usize>,
    reservation: Option<Reservation>,
}

impl std::fmt::Debug for World {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("World")
    }
}

impl Drop for FakeRegion {
    fn drop(&mut self) {
        if self.reservation.is_some() {
            self.world.live.fetch_sub(1, SeqCst);
        }
    }
}

impl MrDomain for Fake {
    type Memory = (u64, u64);
    type Region = FakeRegion;
    type Error = Refused;

    fn extent(memory: &Self::Memory) -> (u64, u64) {
        *memory
    }

    fn register(
        &self,
        _: &Self::Memory,
        range: Range<usize>,
        _: Access,
        reservation: Reservation,
    ) -> Result<FakeRegion, Refused> {
        assert!(!self.inside.swap(true, SeqCst), "two calls at once on one domain");
        let at_once = self.world.at_once.fetch_add(1, SeqCst) + 1;
        self.world.most_at_once.fetch_max(at_once, SeqCst);
        std::thread::yield_now();
        self.world.order.lock().unwrap().push((self.nic, range.len()));
        let call = self.world.calls.fetch_add(1, SeqCst) + 1;
        assert!(reservation.pages() <= self.room, "the ledger let too much through");
        assert_eq!(reservation.nic(), self.nic);
        self.world.at_once.fetch_sub(1, SeqCst);
        self.inside.store(false, SeqCst);
        if call == self.world.fail_at {
            return Err(Refused);
        }
        self.world.live.fetch_add(1, SeqCst);
        Ok(FakeRegion { world: Arc::clone(&self.world), range, reservation: Some(reservation) })
    }

    fn close(&self, mut region: FakeRegion) -> Result<(), CloseError<FakeRegion, Refused>> {
        if self.world.busy.load(SeqCst) {
            return Err(CloseError::InUse(region));
        }
        if self.world.leak.load(SeqCst) {
            std::mem::forget(region.reservation.take());
            return Err(CloseError::Leaked(Refused));
        }
        Ok(())
    }
}

fn registrar(nics: usize, pages: u64, world: &Arc<World>) -> Registrar<Fake> {
    let of = |nic| Fake { nic, world: Arc::clone(world), inside: AtomicBool::new(false), room: pages };
    let nic = |nic| Nic { pte_left: pages, ..Nic::new(format!("fake{nic}")) };
    Registrar::new((0..nics).map(of).collect(), (0..nics).map(nic).collect()).unwrap()
}

fn buffers(sizes: &[u64]) -> (Vec<Buffer>, Vec<(u64, u64)>) {
    let at = |index: usize| (index as u64 + 1) << 32;
    let buffers =
        sizes.iter().enumerate().map(|(i, &len)| Buffer::new(at(i), len, PageSize::K4, Location::Gpu(0)));
    (buffers.collect(), sizes.iter().enumerate().map(|(i, &len)| (at(i), len)).collect())
}

fn used(registrar: &Registrar<Fake>) -> Vec<(u64, u64)> {
    (0..registrar.ledger().nics()).map(|nic| registrar.ledger().used(nic)).collect()
}

/// Catches: a card's table that two domains fill each as if it were theirs alone.
#[test]
fn two_registrars_of_the_same_cards_spend_one_budget() {
    let world = Arc::new(World::default());
    let first = registrar(2, 10, &world);
    let second = registrar(2, 10, &world).with_ledger(first.ledger().clone()).unwrap();
    let (buffers, memory) = buffers(&[9 * 4096]);
    let register =
        |by: &Registrar<Fake>| by.register(&buffers, &memory, &Policy::all(), Access::all(), |_| {});
    let held = register(&first).unwrap();
    assert_eq!((used(&first), used(&second)), (vec![(9, 1); 2], vec![(9, 1); 2]));
    let refused = register(&second).unwrap_err().to_string();
    assert!(refused.contains("budget") || refused.contains("room"), "{refused}");
    assert_eq!(used(&second), vec![(9, 1); 2], "as before");
    held.unregister().unwrap();
    let held = register(&second).unwrap();
    assert_eq!(used(&first), vec![(9, 1); 2]);
    drop(held);
    assert_eq!(used(&first), vec![(0, 0); 2]);
    // Accounts of other cards are none of its own.
    let fewer = registrar(1, 10, &world);
    assert!(matches!(
        registrar(2, 10, &world).with_ledger(fewer.ledger().clone()),
        Err(Error::NoSuchNic { .. })
    ));
}

const SIZES: [u64; 5] = [40_000, 5, 9_000, 4096, 100_000];

#[test]
fn the_kth_failure_undoes_everything_for_every_k() {
    let (buffers, memory) = buffers(&SIZES);
    let mrs = SIZES.len() * 3;
    for k in 1..=mrs {
        let world = Arc::new(World { fail_at: k, ..World::default() });
        let registrar = registrar(3, 1000, &world);
        // Something that was there before stays.
        let before = registrar.ledger().reserve(1, 7).unwrap();
        let error = registrar.register(&buffers, &memory, &Policy::all(), Access::LOCAL, |_| {}).unwrap_err();
        let RegisterError::Refused { undone, leaked, unmade, .. } = error else { panic!("{error}") };
        assert_eq!((undone + unmade + 1, leaked), (mrs, 0), "k = {k}");
        assert_eq!(world.live.load(SeqCst), 0, "k = {k}: MRs left behind");
        assert_eq!(used(&registrar), [(0, 0), (7, 1), (0, 0)], "k = {k}: the ledger differs");
        drop(before);
    }
    let world = Arc::new(World { fail_at: mrs + 1, ..World::default() });
    let registrar = registrar(3, 1000, &world);
    let all = registrar.register(&buffers, &memory, &Policy::all(), Access::LOCAL, |_| {}).unwrap();
    assert_eq!((all.mrs(), world.live.load(SeqCst)), (mrs, mrs));
    all.unregister().unwrap();
    assert_eq!(used(&registrar), [(0, 0); 3]);
    assert_eq!(world.live.load(SeqCst), 0);
}

#[test]
fn each_domain_registers_in_ascending_order_and_progress_reaches_the_end() {
    let world = Arc::new(World::default());
    let registrar = registrar(4, 1000, &world).with_parallel(2);
    let (buffers, memory) = buffers(&SIZES);
    let mut reports = Vec::new();
    let all = registrar
        .register(&buffers, &memory, &Policy::all(), Access::LOCAL, |progress| reports.push(progress))
        .unwrap();
    for nic in 0..4 {
        let sizes: Vec<usize> =
            world.order.lock().unwrap().iter().filter(|o| o.0 == nic).map(|o| o.1).collect();
        assert!(sizes.is_sorted(), "{sizes:?}");
        assert_eq!(sizes.len(), SIZES.len());
    }
    assert!(world.most_at_once.load(SeqCst) <= 2, "more domains at once than allowed");
    assert_eq!(reports.len(), 20);
    assert!(reports.iter().enumerate().all(|(i, p)| p.mrs_done == i + 1 && p.mrs == 20));
    assert_eq!(reports[19].bytes_done, reports[19].bytes);
    assert_eq!(all.timing().nics.iter().map(|nic| nic.mrs).sum::<usize>(), 20);
    assert!(all.timing().nics.iter().all(|nic| nic.busy >= nic.slowest));
}

#[test]
fn regions_are_found_by_address() {
    let world = Arc::new(World::default());
    // Two NICs with room for 20 pages each: the 30-page buffer is cut.
    let registrar = registrar(2, 20, &world);
    let (buffers, memory) = buffers(&[30 * 4096]);
    let all = registrar.register(&buffers, &memory, &Policy::all(), Access::LOCAL, |_| {}).unwrap();
    let mut seams = 0;
    for offset in [0, 1, 4095, 12 * 4096, 30 * 4096 - 1] {
        let (index, chunk) = all.chunk_at(0, buffers[0].addr + offset).unwrap();
        let start = (chunk.addr - buffers[0].addr) as usize;
        assert!(all.regions(index).count() > 0);
        for (nic, region) in all.regions(index) {
            assert!(chunk.nics.contains(nic));
            assert_eq!(region.range, start..start + chunk.len_bytes as usize);
        }
        seams += index;
    }
    assert!(seams > 0, "the buffer was not cut");
    assert!(all.chunk_at(0, buffers[0].addr + 30 * 4096).is_none());
    assert!(all.chunk_at(0, buffers[0].addr - 1).is_none());
    assert!(all.chunk_at(1, buffers[0].addr).is_none());
}

#[test]
fn unregister_refuses_while_operations_are_in_flight_and_frees_nothing() {
    let world = Arc::new(World::default());
    let registrar = registrar(2, 1000, &world);
    let (buffers, memory) = buffers(&SIZES);
    let all = registrar.register(&buffers, &memory, &Policy::all(), Access::LOCAL, |_| {}).unwrap();
    let spent = used(&registrar);
    world.busy.store(true, SeqCst);
    let left = all.unregister().unwrap_err();
    assert_eq!((left.mrs(), left.leaked), (10, 0));
    assert_eq!(world.live.load(SeqCst), 10);
    assert_eq!(used(&registrar), spent, "entries were given back under operations in flight");
    world.busy.store(false, SeqCst);
    left.retry().unwrap();
    assert_eq!(used(&registrar), [(0, 0); 2]);
}

#[test]
fn unregister_waits_for_operations_in_flight() {
    let world = Arc::new(World::default());
    let registrar = registrar(2, 1000, &world);
    let (buffers, memory) = buffers(&SIZES);
    let all = registrar.register(&buffers, &memory, &Policy::all(), Access::LOCAL, |_| {}).unwrap();
    world.busy.store(true, SeqCst);
    let mut polls = 0;
    all.unregister_within(Duration::from_secs(60), || {
        polls += 1;
        world.busy.store(polls < 5, SeqCst);
    })
    .unwrap();
    assert_eq!(polls, 5);
    assert_eq!(used(&registrar), [(0, 0); 2]);

    let all = registrar.register(&buffers, &memory, &Policy::all(), Access::LOCAL, |_| {}).unwrap();
    world.busy.store(true, SeqCst);
    let left = all.unregister_within(Duration::ZERO, || {}).unwrap_err();
    assert_eq!(left.mrs(), 10, "the time was over before anything ended");
}

#[test]
fn what_the_provider_will_not_close_stays_on_the_books() {
    let world = Arc::new(World::default());
    let registrar = registrar(1, 1000, &world);
    let (buffers, memory) = buffers(&[4096]);
    let all = registrar.register(&buffers, &memory, &Policy::all(), Access::LOCAL, |_| {}).unwrap();
    world.leak.store(true, SeqCst);
    let left = all.unregister().unwrap_err();
    assert_eq!((left.mrs(), left.leaked), (0, 1));
    assert_eq!(used(&registrar), [(1, 1)], "the card still holds the entry");
    assert!(left.retry().is_err(), "a leak does not heal");
}

#[test]
fn dropping_gives_everything_back() {
    let world = Arc::new(World::default());
    let registrar = registrar(2, 1000, &world);
    let (buffers, memory) = buffers(&SIZES);
    drop(registrar.register(&buffers, &memory, &Policy::all(), Access::LOCAL, |_| {}).unwrap());
    assert_eq!(used(&registrar), [(0, 0); 2]);
    assert_eq!(world.live.load(SeqCst), 0);
}

#[test]
fn threads_that_compete_for_the_last_entries_never_exceed_them() {
    let world = Arc::new(World::default());
    let registrar = registrar(2, 64, &world);
    let (granted, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for thread in 0..4_u64 {
            let (registrar, granted, refused) = (&registrar, &granted, &refused);
            scope.spawn(move || {
                for round in 0..25 {
                    let len = 4096 * (8 + (thread + round) % 24);
                    let addr = (thread + 1) << 40;
                    let buffer = Buffer::host(addr, len, PageSize::K4);
                    let result = registrar.register(
                        &[buffer],
                        &[(addr, len)],
                        &Policy::nics(1),
                        Access::LOCAL,
                        |_| {},
                    );
                    match result {
                        Ok(held) => {
                            granted.fetch_add(1, SeqCst);
                            std::thread::yield_now();
                            held.unregister().unwrap();
                        }
                        Err(RegisterError::Plan(Error::DoesNotFit { .. } | Error::BudgetSpent { .. })) => {
                            refused.fetch_add(1, SeqCst);
                        }
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
    });
    assert_eq!(granted.load(SeqCst) + refused.load(SeqCst), 100);
    assert!(granted.load(SeqCst) > 0);
    assert_eq!(used(&registrar), [(0, 0); 2]);
}

#[test]
fn memory_that_is_not_the_buffer_is_refused() {
    let world = Arc::new(World::default());
    let registrar = registrar(1, 1000, &world);
    let (buffers, memory) = buffers(&[100, 200]);
    let swapped = [memory[0], memory[0]];
    for memory in [&memory[..1], &swapped[..], &[memory[0], (memory[1].0, 199)]] {
        let result = registrar.register(&buffers, memory, &Policy::all(), Access::LOCAL, |_| {});
        assert!(matches!(result, Err(RegisterError::Mismatch { buffer: 1 })));
    }
    assert_eq!(world.calls.load(SeqCst), 0);
}
