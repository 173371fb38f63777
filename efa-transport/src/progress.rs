//! Who drives the NICs when nobody waits: one thread, which sleeps whenever it can.
//!
//! Where every NIC has a wait object it sleeps on those; elsewhere on a coarse timer, because with manual progress somebody has
//! to poll even when we have nothing to send: peers' handshakes, and reads and writes that the provider emulates.

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use crate::core::Core;
use crate::sync::lock;

/// Readings without a result before a thread stops spinning.
const SPINS: u32 = 64;
/// … before it stops yielding the processor and sleeps.
const YIELDS: u32 = 256;
/// The first sleep on the timer; doubled each time.
const FIRST: Duration = Duration::from_micros(20);
/// The longest sleep on the timer: first contact is answered within 5 ms.
const LONGEST: Duration = Duration::from_millis(3);
/// The longest sleep while requests of ours are under way that nobody waits for.
const LONGEST_BUSY: Duration = Duration::from_micros(200);
/// The longest sleep on wait objects. Handshakes wake it; this is for deadlines and for providers that forget to.
const LONGEST_BLOCKED: Duration = Duration::from_millis(50);
/// A sleep on wait objects that was shorter was none.
const SHORTEST: Duration = Duration::from_micros(20);
/// How often operations that never end are looked for.
const UNSTICK: Duration = Duration::from_millis(250);

/// Where the progress thread sleeps.
#[derive(Default)]
pub(crate) struct Parking {
    thread: Mutex<Option<Thread>>,
    asleep: AtomicBool,
    /// Wakes that came while it was awake.
    epoch: AtomicU32,
}

impl Core {
    /// Whether sleeping threads hear of completions.
    fn can_block(&self) -> bool {
        self.lanes.iter().all(|lane| lane.nic.has_wait_object)
    }

    /// Makes the progress thread look, if it sleeps.
    #[inline]
    pub(crate) fn wake_progress(&self) {
        self.parking.epoch.fetch_add(1, Ordering::AcqRel);
        if self.parking.asleep.load(Ordering::Acquire) {
            self.wake_now();
        }
    }

    #[cold]
    fn wake_now(&self) {
        // It may be in either kind of sleep.
        if let Some(thread) = &*lock(&self.parking.thread) {
            thread.unpark();
        }
        if self.can_block()
            && let Some(lane) = self.lanes.first()
        {
            lane.nic.queue.signal();
        }
    }

    /// What a thread that drives does after `quiet` readings without a result: spin, yield, then block on the wait objects
    /// or sleep a little, but not past `until`.
    pub(crate) fn relax(&self, quiet: u32, until: Instant) {
        if quiet < SPINS {
            std::hint::spin_loop();
        } else if quiet < YIELDS {
            std::thread::yield_now();
        } else {
            let left = until.saturating_duration_since(Instant::now());
            let blocks = self.can_block() && !self.any_manual();
            if !blocks || !self.block(left.min(Duration::from_millis(10))) {
                let pause = Duration::from_micros(u64::from((quiet - YIELDS + 1).min(50)));
                std::thread::sleep(pause.min(left));
            }
        }
    }

    fn any_manual(&self) -> bool {
        self.lanes.iter().any(|lane| lane.manual)
    }

    fn any_busy(&self) -> bool {
        self.lanes.iter().any(|lane| lane.busy.load(Ordering::Relaxed) > 0)
    }

    /// Blocks until a completion queue has something, or the time is over. False if it did not come to that: then either
    /// something is there, or the provider says so whenever it is asked (`net` of libfabric 1.17 does).
    fn block(&self, limit: Duration) -> bool {
        let began = Instant::now();
        let mut fds: Vec<PollFd<'_>> = Vec::with_capacity(self.lanes.len());
        for lane in &self.lanes {
            match lane.nic.queue.arm() {
                Ok(true) => {}
                _ => return false,
            }
            let Some(fd) = lane.nic.queue.wait_fd() else { return false };
            let fd: BorrowedFd<'_> = fd;
            fds.push(PollFd::from_borrowed_fd(fd, PollFlags::IN));
        }
        let limit = Timespec { tv_sec: limit.as_secs() as _, tv_nsec: limit.subsec_nanos().into() };
        // An error is as good as a time-out: whoever called looks again.
        let _ = rustix::event::poll(&mut fds, Some(&limit));
        began.elapsed() > SHORTEST
    }
}

/// How long it usually takes to find nothing. With manual progress a reading works for peers without telling; that it did can
/// only be seen from the time that it took.
#[derive(Default)]
struct Usual(Option<Duration>);

impl Usual {
    fn was_exceeded(&mut self, took: Duration) -> bool {
        let usual = self.0.unwrap_or(took);
        // Follows the least slowly upwards, so that a change of the usual does not stay an exception.
        self.0 = Some(if took < usual { took } else { usual + usual / 128 });
        took > usual * 2 + Duration::from_nanos(500)
    }
}

/// The progress thread; ends when the transport is shut down.
pub(crate) fn start(core: &Arc<Core>) -> std::io::Result<JoinHandle<()>> {
    let core = Arc::clone(core);
    std::thread::Builder::new().name("efa-progress".into()).spawn(move || run(&core))
}

fn run(core: &Core) {
    *lock(&core.parking.thread) = Some(std::thread::current());
    let mut quiet = 0_u32;
    let mut pause = FIRST;
    let mut usual = Usual::default();
    // Where there are wait objects, work for peers wakes them.
    let guess = core.any_manual() && !core.can_block();
    let mut looked = Instant::now();
    while !core.is_shut() {
        let epoch = core.parking.epoch.load(Ordering::Acquire);
        let next = core.expire();
        if looked.elapsed() >= UNSTICK {
            looked = Instant::now();
            core.unstick();
            core.clear_spare();
        }
        let driven = core.drivers.load(Ordering::Acquire) > 0;
        if !driven {
            let began = Instant::now();
            let happened = core.drive_all();
            if happened > 0 || guess && usual.was_exceeded(began.elapsed()) {
                quiet = 0;
                pause = FIRST;
                // Peers need the processor too, perhaps this very one.
                std::thread::yield_now();
                continue;
            }
        }
        quiet = quiet.saturating_add(1);
        if !driven && quiet < 32 && core.any_busy() {
            std::thread::yield_now();
            continue;
        }
        let deadline = next
            .map_or(LONGEST_BLOCKED, |at| core.clock.instant(at).saturating_duration_since(Instant::now()));
        core.parking.asleep.store(true, Ordering::Release);
        // A wake between the look at the epoch and this line has raised it.
        if core.parking.epoch.load(Ordering::Acquire) == epoch {
            let busy = core.any_busy();
            pause = (pause * 2).min(if busy && !driven { LONGEST_BUSY } else { LONGEST });
            let blocks = core.can_block() && !driven && (!busy || !core.any_manual());
            if !blocks || !core.block(LONGEST_BLOCKED.min(deadline)) {
                std::thread::park_timeout(pause.min(deadline));
            }
        } else {
            pause = FIRST;
        }
        core.parking.asleep.store(false, Ordering::Release);
    }
    *lock(&core.parking.thread) = None;
}
