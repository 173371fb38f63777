//! Who drives the NICs when nobody waits: one thread, which sleeps whenever it can.
//!
//! Where every NIC has a wait object it sleeps on those; elsewhere on a coarse timer, because with manual progress somebody has
//! to poll even when we have nothing to send: peers' handshakes, and reads and writes that the provider emulates. When to do
//! what is decided in [`idle`](crate::idle).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, epoll};

use crate::core::Core;
use crate::crowd::Crowd;
use crate::error::Error;
use crate::idle::{Idler, LONGEST, Next, SHORTEST, Slept};
use crate::lane::Lane;
use crate::scheduler::rail::{Set, holds};
use crate::watch::Watch;

/// Readings without a result before a thread yields the processor: of many operations the next one ends soon.
pub(crate) const SPINS: u32 = 8;
/// The same for a thread that waits for a single one. The peer may have to do something first, on this very processor.
const SPINS_ALONE: u32 = 2;
/// … where there are no wait objects: a peer that answers looks without a pause too, on a processor of its own more likely than on
/// this one, and what it does takes as long as some readings. To yield costs several.
const SPINS_ALONE_ON_TIMER: u32 = 16;
/// … before it stops yielding the processor and sleeps.
pub(crate) const YIELDS: u32 = 256;
/// The longest sleep on wait objects. Handshakes wake it; this is for deadlines and for providers that forget to.
const LONGEST_BLOCKED: Duration = Duration::from_millis(50);
/// The longest sleep on wait objects while requests of ours are under way: what happens by time (a slice that the provider had no
/// room for, a provider that repeats a message which found no receiver) no wait object tells.
const LONGEST_BUSY: Duration = Duration::from_micros(500);
/// The longest sleep on the timer of a thread that waits: a socket's buffer is empty before long.
const LONGEST_WAITING: Duration = Duration::from_micros(50);
/// How long the progress thread sleeps at most where it would look again, were it not for others that want the processor.
const SHORT_NAP: Duration = Duration::from_micros(200);
/// How often operations that never end are looked for.
const UNSTICK: Duration = Duration::from_millis(250);
/// Looks at the completion queues between two looks at deadlines, while there is traffic.
const LOOKS: u32 = 64;

/// Where threads sleep.
pub(crate) struct Parking {
    /// Watches the wait objects of all NICs; `None` if not all have one.
    queues: Option<OwnedFd>,
    /// Calls the progress thread.
    bell: OwnedFd,
    asleep: AtomicBool,
    /// Calls that came while it was awake.
    epoch: AtomicU32,
    crowd: Crowd,
}

impl Parking {
    pub(crate) fn new(lanes: &[Lane]) -> Result<Self, Error> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(fail("eventfd"))?;
        let queues = if lanes.iter().all(|lane| lane.nic.has_wait_object) {
            Some(epoll::create(epoll::CreateFlags::CLOEXEC).map_err(fail("epoll_create"))?)
        } else {
            None
        };
        let parking = Self {
            queues,
            bell,
            asleep: AtomicBool::new(false),
            epoch: AtomicU32::new(0),
            crowd: Crowd::default(),
        };
        parking.watch(lanes)?;
        Ok(parking)
    }

    /// Wakes for these lanes' completions too. If one of them has no wait object, nobody sleeps on the others' from then on:
    /// [`Core::block`] finds that out each time.
    pub(crate) fn watch(&self, lanes: &[Lane]) -> Result<(), Error> {
        let Some(queues) = &self.queues else { return Ok(()) };
        for lane in lanes {
            let Some(fd) = lane.nic.wait_fd() else { continue };
            epoll::add(queues, fd, epoll::EventData::new_u64(lane.index as u64), epoll::EventFlags::IN)
                .map_err(fail("epoll_ctl"))?;
        }
        Ok(())
    }

    /// Whether the progress thread sleeps, or is about to.
    #[cfg(test)]
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::SeqCst)
    }

    /// The lanes whose wait objects say that something is there.
    fn ready(&self) -> Set {
        let Some(queues) = &self.queues else { return 0 };
        let mut events = [const { MaybeUninit::<epoll::Event>::uninit() }; 128];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        match epoll::wait(queues, &mut events[..], Some(&at_once)) {
            Ok((events, _)) => events.iter().fold(0, |set, event| set | 1 << (event.data.u64() & 127)),
            Err(_) => 0,
        }
    }

    /// How often a thread that waits for a single operation reads in vain before it yields.
    #[inline]
    pub(crate) const fn spins_alone(&self) -> u32 {
        if self.queues.is_some() { SPINS_ALONE } else { SPINS_ALONE_ON_TIMER }
    }

    /// Sleeps until a completion queue has something (if `queues`), the bell rings (if `bell`), or the time is over.
    fn sleep(&self, queues: bool, bell: bool, limit: Duration) -> Slept {
        let began = Instant::now();
        let limit = Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos().into() };
        let queues = self.queues.as_ref().filter(|_| queues);
        let mut fds = [
            PollFd::from_borrowed_fd(queues.unwrap_or(&self.bell).as_fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.bell.as_fd(), PollFlags::IN),
        ];
        let fds = match (queues.is_some(), bell) {
            (true, true) => &mut fds[..],
            (true, false) => &mut fds[..1],
            (false, true) => &mut fds[1..],
            (false, false) => &mut fds[..0],
        };
        // An error is as good as the end of the time: whoever called looks again.
        let ready = rustix::event::poll(fds, Some(&limit)).unwrap_or(0);
        let rung = bell && fds.last().is_some_and(|fd| fd.revents().contains(PollFlags::IN));
        if rung {
            // It was readable; if somebody else was first, so much the better.
            let _ = rustix::io::read(&self.bell, &mut [0; 8]);
        }
        match ready {
            0 => Slept::ToTheEnd,
            _ if rung => Slept::UntilCalled,
            _ if began.elapsed() < SHORTEST => Slept::NotAtAll,
            _ => Slept::UntilReady,
        }
    }
}

fn fail(what: &'static str) -> impl Fn(rustix::io::Errno) -> Error {
    move |errno| {
        let source = fabric_safe::Error::System { what, source: errno.into() };
        Error::fabric("preparing to sleep", source)
    }
}

impl Core {
    /// Makes the progress thread look, if it sleeps.
    #[inline]
    pub(crate) fn wake_progress(&self) {
        self.parking.epoch.fetch_add(1, Ordering::SeqCst);
        if self.parking.asleep.load(Ordering::SeqCst) {
            // Fails only when it has been rung 2^64 - 2 times already.
            let _ = rustix::io::write(&self.parking.bell, &1_u64.to_ne_bytes());
        }
    }

    /// For a thread that drives.
    pub(crate) fn idler(&self) -> Idler {
        Idler::new(self.parking.queues.is_some(), Instant::now())
    }

    /// What a thread that drives does after `quiet` readings without a result: look again `spins` times (a reading is a pause in
    /// itself), yield, then sleep a little, but not past `until`.
    #[inline]
    pub(crate) fn relax(
        &self,
        idler: &mut Option<Idler>,
        (quiet, spins): (u32, u32),
        until: impl FnOnce() -> Instant,
    ) {
        if quiet >= YIELDS || quiet >= spins && !self.parking.crowd.yields(quiet - spins) {
            self.nap(idler.get_or_insert_with(|| self.idler()), until());
        }
    }

    #[cold]
    fn nap(&self, idler: &mut Idler, until: Instant) {
        let now = Instant::now();
        let left = until.saturating_duration_since(now);
        // Other threads' completions wake this one as well, and the other way round.
        let next = match idler.next(true, now) {
            Next::Look if !self.parking.crowd.yields(0) => idler.rest(true),
            next => next,
        };
        match next {
            Next::Look => {}
            Next::Block => {
                let slept = self.block(false, left.min(LONGEST_BUSY));
                idler.blocked(slept);
                if slept == Slept::UntilReady {
                    idler.told(Instant::now());
                }
            }
            Next::Pause(pause) => {
                std::thread::sleep(pause.min(LONGEST_WAITING).min(left));
                idler.paused();
            }
        }
    }

    fn any_busy(&self) -> bool {
        self.lanes.iter().any(Lane::is_busy)
    }

    /// What peers have read and written here so far, where that can be known.
    fn served(&self) -> u64 {
        self.lanes.iter().map(|lane| lane.nic.served()).fold(0, u64::wrapping_add)
    }

    /// One reading by the progress thread, which tells the idler what came of it; `served` is what peers had done here before.
    /// Returns the time.
    fn look(&self, idler: &mut Idler, served: &mut u64) -> Instant {
        let began = Instant::now();
        let completed = self.drive_all();
        let before = std::mem::replace(served, self.served());
        let now = Instant::now();
        idler.read(completed + usize::from(*served != before), began, now);
        now
    }

    /// The same where the lanes' wait objects tell at any time what is there: reads those only that have something, and `all` when
    /// asked to or when it is time to.
    fn look_where_told(&self, idler: &mut Idler, watch: &mut Watch, all: bool) -> Instant {
        let cold = idler.has_slept();
        let busy = self.lanes.iter().filter(|lane| lane.is_busy()).fold(0, |set, lane| set | 1 << lane.index);
        let chosen = watch.choose(self.lanes.len(), self.parking.ready(), busy, all);
        let mut began = Instant::now();
        let mut seen = watch.told();
        if chosen != 0 {
            self.drive(
                |lane| holds(chosen, lane.index),
                |lane, happened| {
                    let now = Instant::now();
                    seen = seen.max(watch.read(lane.index, happened, now - began, cold));
                    began = now;
                },
            );
            for lane in watch.dull() {
                // Whether there is something is seen at the next look.
                if !self.lanes[lane].reopening.is_closing() {
                    let _ = self.lanes[lane].nic.queue.arm();
                }
            }
        }
        idler.saw(seen, began);
        began
    }

    /// Sleeps on the wait objects.
    fn block(&self, bell: bool, limit: Duration) -> Slept {
        // The provider has the queue of an endpoint that is being closed; the bell rings when it is done.
        if self
            .lanes
            .iter()
            .all(|lane| lane.reopening.is_closing() || matches!(lane.nic.queue.arm(), Ok(true)))
        {
            self.parking.sleep(true, bell, limit)
        } else {
            Slept::NotAtAll
        }
    }
}

/// The progress thread; ends when the transport is shut down.
pub(crate) fn start(core: &Arc<Core>) -> std::io::Result<JoinHandle<()>> {
    let core = Arc::clone(core);
    std::thread::Builder::new().name("efa-progress".into()).spawn(move || run(&core))
}

fn run(core: &Core) {
    let mut idler = core.idler();
    let mut looks = 0_u32;
    let mut looked = Instant::now();
    let mut next_deadline = None;
    let mut served = 0;
    let mut watch = core.lanes.iter().all(|lane| lane.nic.tells_unasked()).then(Watch::new);
    let mut slept = Slept::NotAtAll;
    while !core.is_shut() {
        let epoch = core.parking.epoch.load(Ordering::Acquire);
        if looks.is_multiple_of(LOOKS) {
            next_deadline = core.expire();
            if looked.elapsed() >= UNSTICK {
                looked = Instant::now();
                core.unstick();
                core.probe_the_suspect();
                core.publish();
                core.clear_spare();
            }
        }
        let driven = core.drivers.load(Ordering::Acquire) > 0;
        if !driven {
            let now = match &mut watch {
                Some(watch) => {
                    let all = idler.has_slept() && slept != Slept::UntilReady;
                    core.look_where_told(&mut idler, watch, all)
                }
                None => core.look(&mut idler, &mut served),
            };
            if idler.next(core.any_busy(), now) == Next::Look {
                looks = looks.wrapping_add(1);
                // Peers need the processor too, perhaps this very one.
                if !core.parking.crowd.yields(looks) {
                    core.parking.sleep(true, true, SHORT_NAP);
                }
                continue;
            }
        }
        looks = 0;
        let now = Instant::now();
        let left = next_deadline.map_or(LONGEST_BLOCKED, |at| {
            core.clock.instant(at).saturating_duration_since(now).min(LONGEST_BLOCKED)
        });
        core.parking.asleep.store(true, Ordering::SeqCst);
        // A call between the look at the epoch and this line has raised it.
        if core.parking.epoch.load(Ordering::SeqCst) == epoch {
            let busy = core.any_busy();
            slept = match idler.next(busy, now) {
                // Whoever drives needs no help; but it may stop at any time, and nobody tells.
                _ if driven => {
                    core.parking.sleep(false, true, left.min(LONGEST));
                    Slept::ToTheEnd
                }
                Next::Look | Next::Block => {
                    let limit = if busy { LONGEST_BUSY } else { LONGEST_BLOCKED };
                    let slept = core.block(true, left.min(limit));
                    idler.blocked(slept);
                    slept
                }
                Next::Pause(pause) => {
                    let slept = core.parking.sleep(false, true, left.min(pause));
                    idler.paused();
                    slept
                }
            };
            if slept == Slept::UntilCalled {
                idler.called();
            }
        } else {
            slept = Slept::UntilCalled;
            idler.called();
        }
        core.parking.asleep.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Access, Batch, Config, Provider, Region, Request, Transport};
    use fabric_safe::{Mapping, PageKind};

    const LEN: usize = 1 << 20;

    fn open(test: &str, name: &str) -> Option<(Transport, Region)> {
        let config =
            Config::new().name(name).provider(Provider::Shm).same_process_copy(false).wait_objects(false);
        match Transport::open(config) {
            Ok(transport) => {
                let memory = Mapping::anonymous(LEN, PageKind::Small).unwrap();
                let region = transport.register(Arc::new(memory), Access::ALL).unwrap();
                Some((transport, region))
            }
            Err(error @ (Error::NoLibrary(_) | Error::NoProvider { .. })) => {
                eprintln!("SKIP: {test}: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Catches: a wait object that says for ever that something is there, which costs the progress thread its sleep; and one that
    /// never says so.
    #[test]
    fn the_descriptors_of_sockets_tell_of_messages_and_are_silent_afterwards() {
        let test = "the_descriptors_of_sockets_tell_of_messages_and_are_silent_afterwards";
        for provider in [Provider::Net, Provider::TcpRxm] {
            let open = |name| {
                let config = Config::new().name(name).provider(provider.clone()).source("127.0.0.1");
                Transport::open(config.endpoints_per_nic(3).same_process_copy(false))
            };
            let (Ok(from), Ok(to)) = (open("from"), open("to")) else {
                eprintln!("SKIP: {test}: {provider:?} is not here");
                continue;
            };
            let memory = |transport: &Transport| {
                let memory = Mapping::anonymous(LEN, PageKind::Small).unwrap();
                transport.register(Arc::new(memory), Access::ALL).unwrap()
            };
            let (ours, theirs) = (memory(&from), memory(&to));
            let peer = from.add_or_update_peer(&to.local_descriptor()).unwrap();
            to.add_or_update_peer(&from.local_descriptor()).unwrap();
            // Only its own thread reads the target's queues: what is ready shows for a moment at least.
            let core = Arc::clone(to.core());
            let stop = AtomicBool::new(false);
            let told = std::thread::scope(|scope| {
                let watcher = scope.spawn(|| {
                    let mut told: Set = 0;
                    while !stop.load(Ordering::Acquire) {
                        told |= core.parking.ready();
                    }
                    told
                });
                let deadline = Instant::now() + Duration::from_secs(20);
                for len in [64, LEN as u64] {
                    for round in 0..200 {
                        let mut batch = Batch::new();
                        let request = if round % 2 == 0 { Request::write } else { Request::read };
                        batch.push(request(peer, &ours, ours.addr(), theirs.addr(), len)).unwrap();
                        let done = from.submit(&mut batch).unwrap();
                        done.wait_until(deadline).expect("in time").unwrap();
                    }
                }
                stop.store(true, Ordering::Release);
                watcher.join().unwrap()
            });
            assert_ne!(told, 0, "{provider:?}: 400 requests, and nothing was ever ready");
            assert_eq!(told & !0b111, 0, "{provider:?}: lanes that there are not");
            let deadline = Instant::now() + Duration::from_secs(10);
            for (side, transport) in [("from", &from), ("to", &to)] {
                while transport.core().parking.ready() != 0 {
                    assert!(Instant::now() < deadline, "{provider:?}: {side} is never silent");
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Catches: a counter that is not bound, counts something else than what peers do, or that nobody looks at. Where nothing
    /// wakes a target, it is all that tells it of traffic for certain.
    #[test]
    fn what_peers_do_here_is_counted_and_keeps_the_progress_thread_awake() {
        let test = "what_peers_do_here_is_counted_and_keeps_the_progress_thread_awake";
        let (Some((from, ours)), Some((to, theirs))) = (open(test, "from"), open(test, "to")) else { return };
        let target = to.core();
        if !target.lanes.iter().all(|lane| lane.nic.counts_served()) {
            eprintln!("SKIP: {test}: this libfabric's shm does not count what peers do");
            return;
        }
        assert_eq!((from.core().served(), target.served()), (0, 0), "nothing has happened yet");
        let peer = from.add_or_update_peer(&to.local_descriptor()).unwrap();
        to.add_or_update_peer(&from.local_descriptor()).unwrap();
        let mut counted = 0;
        for len in [64, LEN as u64] {
            for write in [true, false] {
                let mut idler = target.idler();
                // A reading that found nothing, as one before traffic comes.
                idler.read(0, Instant::now(), Instant::now());
                let mut batch = Batch::new();
                let request = if write { Request::write } else { Request::read };
                batch.push(request(peer, &ours, ours.addr(), theirs.addr(), len)).unwrap();
                from.submit(&mut batch).unwrap().wait().unwrap();
                // The target's own thread may be a moment behind.
                let deadline = Instant::now() + Duration::from_secs(10);
                let mut served = counted;
                while target.served() == counted {
                    assert!(Instant::now() < deadline, "write {write} of {len} bytes has not been counted");
                    std::thread::yield_now();
                }
                let now = target.look(&mut idler, &mut served);
                assert!(served > counted);
                counted = served;
                // Longer than after a guess at what the reading's time means.
                let later = now + Duration::from_micros(150);
                assert_eq!(idler.next(false, later), Next::Look, "write {write} of {len} bytes");
            }
        }
        assert_eq!(from.core().served(), 0, "its own operations are not what peers do");
    }
}
