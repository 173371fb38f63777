//! Who goes on with a lane when the one who drove it leaves, with every timer of the transport stopped ([`TICK`](crate::clock::TICK)):
//! a hand-over that is lost hangs. The tests are a driver themselves, so that each order of events is made, not hoped for.

use std::future::Future;
use std::pin::pin;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Wake, Waker};
use std::time::{Duration, Instant};

use crate::awake::Awake;
use crate::initiator::Leavings;
use crate::lane::Lane;
use crate::memory::OwnedMemory;
use crate::peer::BEFORE_WAITING;
use crate::settings::Limits;
use crate::share::{Share, Touched};
use crate::slice::Slice;
use crate::sync::lock;
use crate::wire::Kind;
use crate::{Access, Batch, BatchHandle, Builder, Peer, Region, Request, Transport};

/// Runs `test`; one that hangs fails.
fn bounded(test: impl FnOnce() + Send + 'static) {
    let (done, result) = channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match result.recv_timeout(Duration::from_secs(20)) {
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("a hand-over was lost"),
        _ => thread.join().unwrap(),
    }
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

fn hour() -> Instant {
    Instant::now() + Duration::from_secs(3600)
}

struct World {
    /// Kept for as long as anything is asked of it.
    _target: Transport,
    asker: Transport,
    remote: Region,
    local: Region,
    peer: Peer,
}

const LEN: usize = 32 << 20;

impl World {
    /// One lane that takes `requests` at a time.
    fn new(requests: usize) -> Self {
        Self::with(1, requests, |builder| builder)
    }

    fn with(lanes: usize, requests: usize, change: impl FnOnce(Builder) -> Builder) -> Self {
        Self::build(lanes, requests, |builder| builder.same_host(false), change)
    }

    /// `both` is for both sides, `change` for the target.
    fn build(
        lanes: usize,
        requests: usize,
        both: impl Fn(Builder) -> Builder,
        change: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        let limits = Limits { lane_requests: requests, lane_bytes: u64::MAX, ..Limits::default() };
        let builder =
            || both(Transport::builder().same_process(false).lanes(lanes).stripe_bytes(4096).io_threads(1));
        let target = change(builder()).listen("127.0.0.1:0".parse().unwrap()).build().unwrap();
        let asker = builder().limits(limits).build().unwrap();
        let remote = target.register(OwnedMemory::new(LEN).unwrap(), Access::READ_WRITE).unwrap();
        let local = asker.register(OwnedMemory::new(LEN).unwrap(), Access::LOCAL).unwrap();
        let peer = asker.peer(target.local_addrs()[0]).unwrap();
        Self { _target: target, remote, asker, local, peer }
    }

    fn connected(requests: usize) -> (Self, Arc<Lane>) {
        let this = Self::new(requests);
        let [lane] = this.idle_lanes();
        (this, lane)
    }

    /// Connects, and returns the lanes when nothing is going on any more.
    fn idle_lanes<const COUNT: usize>(&self) -> [Arc<Lane>; COUNT] {
        self.peer.connect(hour()).unwrap();
        loop {
            let mut lanes = Vec::new();
            self.peer.inner.lanes(|lane| lanes.push(Arc::clone(lane)));
            if let Ok(lanes) = <[Arc<Lane>; COUNT]>::try_from(lanes)
                && lanes.iter().all(|l| l.in_flight() == 0 && !l.is_driven())
            {
                return lanes;
            }
            std::thread::yield_now();
        }
    }

    fn write(&self, len: u64) -> BatchHandle {
        let mut batch = Batch::new();
        self.push(&mut batch, len);
        self.asker.submit(&mut batch).unwrap()
    }

    fn push(&self, batch: &mut Batch, len: u64) {
        let request = Request::write(
            &self.peer,
            &self.local,
            self.local.addr(),
            self.remote.descriptor(),
            self.remote.addr(),
            len,
        );
        batch.push(request).unwrap();
    }
}

/// Takes answers, as a driver does, until nothing is in flight.
fn drive_dry(lane: &Lane) {
    let mut leavings = Leavings::default();
    while lane.in_flight() > 0 {
        lane.service(true, &mut leavings).unwrap();
        std::thread::yield_now();
    }
    assert!(leavings.is_empty());
}

struct Told(Mutex<Sender<()>>);

impl Wake for Told {
    fn wake(self: Arc<Self>) {
        let _ = lock(&self.0).send(());
    }
}

/// The first request to a peer is what its connection is made for.
#[test]
fn the_first_connection_does_not_wait_for_a_tick() {
    bounded(|| {
        let world = World::new(8);
        world.peer.ping(hour()).unwrap();
        world.write(4096).wait().unwrap();
    });
}

/// A slice that waited for room is put on a lane by the driver of that lane, who has what it wants itself and leaves. Nobody is
/// parked: the slice's owner awaits it.
#[test]
fn what_is_placed_on_a_driven_lane_goes_on_when_the_driver_leaves() {
    bounded(|| {
        let (world, lane) = World::connected(1);
        assert!(lane.try_drive());
        let first = world.write(4096);
        let mut second = pin!(world.write(4096));
        assert_eq!(world.peer.inner.queued(), 1, "there is room for one");
        let (told, wakes) = channel();
        let waker = Waker::from(Arc::new(Told(Mutex::new(told))));
        let mut context = Context::from_waker(&waker);
        assert!(second.as_mut().poll(&mut context).is_pending());
        drive_dry(&lane);
        world.peer.inner.dispatch();
        assert_eq!(world.peer.inner.queued(), 0);
        lane.stop_driving();
        // Not polled before: that would leave the lane to the I/O threads once more.
        wakes.recv().unwrap();
        assert!(second.as_mut().poll(&mut context).is_ready());
        assert!(matches!(first.poll(), Some(Ok(()))));
    });
}

/// The lane is full of requests that nobody waits for, so nobody would take their answers but the one who waits for room.
#[test]
fn who_waits_for_room_makes_it() {
    bounded(|| {
        let (world, _) = World::connected(1);
        let _nobody_waits = world.write(4096);
        world.write(4096).wait().unwrap();
    });
}

/// Two wait for a lane; the one who is called when the driver leaves has ended meanwhile, and leaves, too.
#[test]
fn who_is_called_and_leaves_passes_the_call_on() {
    bounded(|| {
        let (world, lane) = World::connected(8);
        assert!(lane.try_drive());
        let (sleeper, other) = (world.write(4096), world.write(4096));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sleeper.wait());
            until(|| lane.is_parked(sleeper.state()) && sleeper.state().is_watched());
            lane.park(other.state());
            lane.stop_driving();
            assert!(other.state().is_nudged() && !sleeper.state().is_nudged(), "the last to come is called");
            lane.leave(other.state());
            waiting.join().unwrap().unwrap();
        });
    });
}

/// Who is not called any more is not in the way of those who wait.
#[test]
fn who_leaves_uncalled_is_not_called_later() {
    bounded(|| {
        let (world, lane) = World::connected(8);
        assert!(lane.try_drive());
        let (sleeper, other) = (world.write(4096), world.write(4096));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sleeper.wait());
            until(|| lane.is_parked(sleeper.state()) && sleeper.state().is_watched());
            lane.park(other.state());
            assert!(matches!(other.wait_until(Instant::now()), None | Some(Ok(()))));
            lane.leave(other.state());
            lane.stop_driving();
            waiting.join().unwrap().unwrap();
        });
    });
}

/// A driver blocks in its socket. What somebody else could not send whole is sent all the same.
#[test]
fn a_sleeping_driver_does_not_keep_others_from_sending() {
    bounded(|| {
        let (world, lane) = World::connected(64);
        assert!(lane.try_drive() && lane.begin_blocking().is_some());
        let large = world.write(LEN as u64);
        until(|| !lane.core().has_unsent());
        lane.stop_driving();
        large.wait().unwrap();
    });
}

/// A driver stays awake while the peer copies between the processes, for as many bytes as that is, and for nothing else.
#[test]
fn a_driver_stays_awake_for_copies_alone() {
    bounded(|| {
        for stay_awake in [true, false] {
            let world = World::build(1, 64, |b| b.same_host(true).stay_awake(stay_awake), |b| b);
            let [lane] = world.idle_lanes();
            assert!(lane.is_host() && lane.try_drive());
            let for_copies = |bytes: u64| Some(if stay_awake { bytes } else { 0 });
            let drive_one = || {
                let copying = lane.begin_blocking().unwrap();
                lane.receive_blocking(copying, &mut Leavings::default()).unwrap();
            };
            let small = world.write(4096);
            assert_eq!(lane.begin_blocking(), Some(0));
            let large = [world.write(1 << 20), world.write(100_000)];
            assert_eq!(lane.begin_blocking(), for_copies((1 << 20) + 100_000));
            while lane.in_flight() > 0 {
                drive_one();
            }
            assert_eq!(lane.begin_blocking(), Some(0));
            assert!([&small, &large[0], &large[1]].iter().all(|h| matches!(h.poll(), Some(Ok(())))));
            lane.stop_driving();
        }
    });
}

/// The last answer comes, and makes room, between the look for room and the word that somebody waits for it.
#[test]
fn room_that_is_made_meanwhile_is_found() {
    bounded(|| {
        let (world, lane) = World::connected(1);
        assert!(lane.try_drive());
        let first = world.write(4096);
        let (driven, peer) = (Arc::clone(&lane), Arc::clone(&world.peer.inner));
        let between = move || {
            drive_dry(&driven);
            peer.dispatch(); // nobody waits, so far
            driven.stop_driving();
        };
        BEFORE_WAITING.set(Some(Box::new(between)));
        world.write(4096).wait().unwrap();
        assert!(BEFORE_WAITING.take().is_none() && matches!(first.poll(), Some(Ok(()))));
    });
}

/// A waiter blocks on one of its lanes, which is slow, when it is called to the other.
#[test]
fn who_is_called_while_driving_another_lane_comes() {
    bounded(|| {
        let (release, gate) = channel::<()>();
        let gate = Mutex::new(gate);
        let handler = move |_, _: &[u8]| {
            let _ = lock(&gate).recv();
            Ok(Vec::new())
        };
        let world = World::with(2, 8, |builder| builder.handler(handler));
        let lanes = world.idle_lanes::<2>();
        let mut batch = Batch::new();
        world.push(&mut batch, 4096);
        world.push(&mut batch, 4096);
        let both = world.asker.submit(&mut batch).unwrap();
        assert!(lanes.iter().all(|lane| lane.in_flight() == 1 && lane.try_drive()));
        std::thread::scope(|scope| {
            let call = scope.spawn(|| world.peer.call(&[], hour()));
            until(|| lanes.iter().any(|lane| lane.in_flight() == 2 && lane.has_parked()));
            let slow = lanes.iter().position(|lane| lane.in_flight() == 2).unwrap();
            let (slow, quick) = (&lanes[slow], &lanes[1 - slow]);
            let state = Arc::clone(both.state());
            let waiting = scope.spawn(move || both.wait());
            until(|| slow.is_parked(&state) && quick.is_parked(&state) && state.is_watched());
            slow.stop_driving();
            until(|| slow.is_driven() && slow.in_flight() == 1);
            quick.stop_driving();
            waiting.join().unwrap().unwrap();
            release.send(()).unwrap();
            call.join().unwrap().unwrap();
        });
    });
}

#[test]
fn many_threads_with_little_room_all_get_on() {
    bounded(|| {
        let (world, _) = World::connected(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        let handles: Vec<_> = (0..3).map(|_| world.write(4096)).collect();
                        handles.iter().for_each(|h| h.wait().unwrap());
                    }
                });
            }
        });
    });
}

/// Two callers on one lane stand in each other's way, so a lane that a caller drives gets nothing from others while there is a
/// free one; where there is none, a submission keeps to the lane of its own thread.
#[test]
fn a_lane_that_a_caller_drives_is_left_to_it() {
    bounded(|| {
        let world = World::with(3, 64, |builder| builder);
        let lanes = world.idle_lanes::<3>();
        let used = || lanes.iter().map(|l| l.in_flight() > 0).collect::<Vec<_>>();
        for driven in [0b000, 0b001, 0b010, 0b110, 0b111_u32] {
            let is_driven = |n: usize| driven & 1 << n != 0;
            assert!((0..3).filter(|&n| is_driven(n)).all(|n| lanes[n].try_drive()));
            let handle = world.write(48 << 10);
            match driven {
                0b111 => assert_eq!(used().iter().filter(|&&u| u).count(), 1),
                _ => assert_eq!(used(), (0..3).map(|n| !is_driven(n)).collect::<Vec<_>>()),
            }
            (0..3).filter(|&n| is_driven(n)).for_each(|n| lanes[n].stop_driving());
            handle.wait().unwrap();
        }
    });
}

/// Two threads that fill all lanes and wait for room, with large payloads in both directions.
#[test]
fn large_batches_of_two_threads_get_on_without_a_timer() {
    bounded(|| {
        let world = World::with(2, 4, |builder| builder);
        std::thread::scope(|scope| {
            for write in [true, false] {
                let world = &world;
                scope.spawn(move || {
                    let mut batch = Batch::new();
                    for _ in 0..20 {
                        for at in (0..16_u64).map(|i| i << 20) {
                            let (local, remote) = (world.local.addr() + at, world.remote.addr() + at);
                            let (peer, region, key) = (&world.peer, &world.local, world.remote.descriptor());
                            let request = match write {
                                true => Request::write(peer, region, local, key, remote, 1 << 20),
                                false => {
                                    Request::read(peer, region, local + (16 << 20), key, remote, 1 << 20)
                                }
                            };
                            batch.push(request).unwrap();
                        }
                        world.asker.submit(&mut batch).unwrap().wait().unwrap();
                    }
                });
            }
        });
    });
}

/// Threads with one small request at a time each, alternately waiting, polling for a while and then waiting, and awaiting: a lane
/// goes from one to the other, and to the I/O thread and back, thousands of times.
#[test]
fn small_requests_of_several_threads_get_on_without_a_timer() {
    for lanes in [1, 2] {
        bounded(move || {
            let world = World::with(lanes, 64, |builder| builder);
            world.peer.connect(hour()).unwrap();
            std::thread::scope(|scope| {
                for thread in 0..3 {
                    let world = &world;
                    scope.spawn(move || {
                        let (told, wakes) = channel();
                        let waker = Waker::from(Arc::new(Told(Mutex::new(told))));
                        for n in 0..600 {
                            let mut handle = pin!(world.write(4096));
                            match (n + thread) % 7 {
                                0 => {
                                    let mut context = Context::from_waker(&waker);
                                    while handle.as_mut().poll(&mut context).is_pending() {
                                        wakes.recv().unwrap();
                                    }
                                }
                                1 => {
                                    let _ = BatchHandle::poll(&handle);
                                    handle.wait().unwrap();
                                }
                                2 => {
                                    let _ = handle.wait_until(Instant::now());
                                    handle.wait().unwrap();
                                }
                                _ => handle.wait().unwrap(),
                            }
                        }
                    });
                }
            });
        });
    }
}

/// An I/O thread may look at an idle lane between the moment that its first request is put on it and the moment that it is sent:
/// the time before that does not count as silence of the peer, and what was asked of it then is not asked for.
#[test]
fn an_idle_lane_is_not_silent() {
    bounded(|| {
        let stall = Duration::from_millis(200);
        let deadlines = crate::Deadlines { stall, ..crate::Deadlines::default() };
        let world = World::build(1, 8, |b| b.same_host(false).deadlines(deadlines.clone()), |b| b);
        let [lane] = world.idle_lanes();
        assert!(lane.try_drive());
        let mut leavings = Leavings::default();
        let put = || {
            let mut core = lane.core();
            core.push(&mut Slice::control(Kind::Ping, 0, hour()), 0);
            lane.publish(&core);
        };
        for _ in 0..2 {
            std::thread::sleep(2 * stall);
            put();
            lane.tick(Instant::now(), &mut leavings).unwrap();
            assert_eq!(lane.in_flight(), 1, "a sign of life was asked for at once");
            // Half the time without a sign: it is asked for one.
            while lane.in_flight() == 1 {
                lane.tick(Instant::now(), &mut leavings).unwrap();
            }
            drive_dry(&lane);
        }
        std::thread::sleep(2 * stall);
        let begin = Instant::now();
        put();
        while lane.tick(Instant::now(), &mut leavings).is_ok() {
            std::thread::yield_now();
        }
        assert!(begin.elapsed() >= stall - Duration::from_millis(20), "{:?}", begin.elapsed());
    });
}

/// What was submitted before the end was known, and finds the transport stopped, ends then.
#[test]
fn what_comes_after_the_end_ends() {
    bounded(|| {
        for busy in [false, true] {
            let (world, lane) = World::connected(1);
            let kept = busy.then(|| {
                assert!(lane.try_drive());
                world.write(4096)
            });
            let transport = world.asker.clone();
            let peer = Arc::clone(&world.peer.inner);
            transport.shutdown(Instant::now());
            let batch = peer.context.pool.take(1, &peer);
            let mut slice = Slice::control(Kind::Ping, 0, hour());
            slice.ticket = Some(batch.first_ticket(0));
            let mut touched = Touched::default();
            peer.place(&mut peer.state(), slice, &mut touched, &mut Share::single());
            batch.seal();
            assert!(!batch.has_ended());
            peer.flush(&touched, true);
            assert!(batch.has_ended() && peer.is_idle());
            assert!(kept.is_none_or(|handle| matches!(handle.poll(), Some(Err(crate::Error::ShutDown)))));
        }
    });
}

/// Sets where the calling thread, and those that it starts, may run.
fn run_on(cores: impl IntoIterator<Item = usize>) {
    let mut set = rustix::thread::CpuSet::new();
    cores.into_iter().for_each(|core| set.set(core));
    rustix::thread::sched_setaffinity(None, &set).unwrap();
}

fn cores() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// A lane knows on which core the peer's thread copies for it.
#[test]
fn a_lane_knows_where_its_peer_copies() {
    bounded(|| {
        let all = cores();
        for &core in &all {
            run_on([core]);
            let world = World::build(1, 8, |b| b.same_host(true).stay_awake(true), |b| b);
            run_on(all.clone());
            let [lane] = world.idle_lanes();
            assert!(!all.iter().any(|&core| lane.is_copied_on(core)), "nothing has been copied");
            world.write(1 << 20).wait().unwrap();
            assert!(lane.is_copied_on(core));
        }
    });
}

/// Among many, a caller takes the lane that is copied for on its own core; alone, it does not look.
#[test]
fn one_of_many_callers_keeps_to_its_core() {
    if cores().len() < 2 {
        return eprintln!("SKIP: one_of_many_callers_keeps_to_its_core: one core");
    }
    bounded(|| {
        let all = cores();
        let whole = |b: Builder| b.same_host(true).stay_awake(true).stripe_bytes(1 << 20);
        let world = World::build(3, 8, whole, |b| b);
        let lanes = world.idle_lanes::<3>();
        let lane_taken = || {
            let handle = world.write(100_000);
            let taken = lanes.iter().position(|lane| lane.in_flight() > 0).unwrap();
            handle.wait().unwrap();
            taken
        };
        let home = lane_taken();
        run_on([all[0]]);
        for near in 0..3 {
            let place = || (0..3).for_each(|n| lanes[n].set_copied_on(all[usize::from(n != near)]));
            let crowd: Vec<_> = (0..=all.len()).map(|_| Awake::for_a_copy(1)).collect();
            place();
            assert_eq!(lane_taken(), near);
            place();
            assert!(lanes[near].try_drive(), "another caller has it");
            assert_ne!(lane_taken(), near);
            lanes[near].stop_driving();
            drop(crowd);
            // Other tests may make a crowd meanwhile, which would be seen for a while.
            let alone = loop {
                until(|| !crate::awake::is_crowded());
                place();
                let taken = lane_taken();
                if !crate::awake::is_crowded() {
                    break taken;
                }
            };
            assert_eq!(alone, home);
        }
    });
}
