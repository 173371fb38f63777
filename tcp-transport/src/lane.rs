//! A lane to a peer: one connection and the [`Initiator`] that runs on it. Whichever thread holds the lane moves its bytes:
//! a caller that waits, or an I/O thread when nobody does.

mod core;

use std::io;
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::{Duration, Instant};

use crate::awake::Awake;
use crate::batch::BatchState;
use crate::cipher::Cipher;
use crate::clock::{Coarse, TICK};
use crate::initiator::{Initiator, Leavings};
use crate::io::{Interest, IoShared, Message};
use crate::memory::OwnedMemory;
use crate::moving::{AHEAD_SMALL, Cause, with_scratch};
use crate::peer::PeerInner;
use crate::seam::Scatter;
use crate::slice::Slice;
use crate::sync::lock;
use crate::wire::Kind;

use self::core::LaneCore;

/// Answers that may wait in the socket when nobody drives the lane; above, an I/O thread takes over.
const LAZY_BYTES: u64 = 64 << 10;
/// Waiters that can be parked on a lane without an allocation.
const PARKED: usize = 8;
/// How long a driver blocks in the socket before it looks at deadlines.
pub(crate) const BLOCKING_RECEIVE: Duration = TICK;

/// See the module.
pub(crate) struct Lane {
    /// Never used twice within a transport.
    pub(crate) number: u64,
    pub(crate) peer: Weak<PeerInner>,
    /// The peer's identity.
    pub(crate) session: u128,
    socket: TcpStream,
    core: Mutex<LaneCore>,
    /// Mirrors `Initiator::in_flight`, for a look without the lock.
    in_flight: AtomicUsize,
    driven: AtomicBool,
    /// Waiters who found the lane driven.
    parked: Mutex<Vec<Arc<BatchState>>>,
    pub(crate) io: Arc<IoShared>,
    pub(crate) token: u64,
    /// An I/O thread is to look after the lane until nothing is in flight.
    background: AtomicBool,
    dead: AtomicBool,
    draining: AtomicBool,
    /// Its peer has been told that it can be used.
    been_up: AtomicBool,
    /// The peer copies between the processes for requests on this lane.
    host: AtomicBool,
    /// The core on which the last answer to a copy was sent, which is where the peer's thread copies; none is `usize::MAX`.
    copied_on: AtomicUsize,
    limits: Window,
}

/// How much may be in flight.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Window {
    pub(crate) requests: usize,
    pub(crate) bytes: u64,
    pub(crate) stall: Duration,
    /// See [`Builder::stay_awake`](crate::Builder::stay_awake).
    pub(crate) stay_awake: bool,
}

impl Lane {
    #[allow(clippy::too_many_arguments)] // made in one place
    pub(crate) fn new(
        number: u64,
        peer: &Arc<PeerInner>,
        session: u128,
        socket: TcpStream,
        initiator: Initiator,
        cipher: Option<Cipher>,
        io: Arc<IoShared>,
        token: u64,
        limits: Window,
    ) -> Arc<Self> {
        Arc::new(Self {
            number,
            peer: Arc::downgrade(peer),
            session,
            socket,
            core: Mutex::new(LaneCore::new(initiator, cipher)),
            in_flight: AtomicUsize::new(0),
            driven: AtomicBool::new(false),
            parked: Mutex::new(Vec::with_capacity(PARKED)),
            io,
            token,
            background: AtomicBool::new(false),
            dead: AtomicBool::new(false),
            draining: AtomicBool::new(false),
            been_up: AtomicBool::new(false),
            host: AtomicBool::new(false),
            copied_on: AtomicUsize::new(usize::MAX),
            limits,
        })
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(crate) fn core(&self) -> MutexGuard<'_, LaneCore> {
        lock(&self.core)
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight.load(Ordering::SeqCst)
    }

    pub(crate) fn is_host(&self) -> bool {
        self.host.load(Ordering::Acquire)
    }

    pub(crate) fn is_usable(&self) -> bool {
        !self.dead.load(Ordering::Acquire) && !self.draining.load(Ordering::Acquire)
    }

    pub(crate) fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// No new requests go on this lane; an I/O thread closes it when nothing is in flight.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.io.send(Message::Tick);
    }

    pub(crate) fn has_been_up(&self) -> bool {
        self.been_up.load(Ordering::Acquire)
    }

    pub(crate) fn set_up(&self) {
        self.been_up.store(true, Ordering::Release);
    }

    /// Marks the lane as ended; false if it was already.
    pub(crate) fn end(&self) -> bool {
        if self.dead.swap(true, Ordering::AcqRel) {
            return false;
        }
        let _ = self.socket.shutdown(Shutdown::Both);
        true
    }

    /// Shows the challenge to the peer, so that it can prove to itself which process this is.
    pub(crate) fn probe_host(&self, challenge: &[u8; 32]) {
        let Ok(memory) = OwnedMemory::new(challenge.len()) else { return };
        if memory.write(0, challenge).is_err() {
            return;
        }
        let address = crate::memory::Memory::address(&*memory);
        let mut core = self.core();
        core.probe = Some(memory);
        let deadline = Instant::now() + Duration::from_secs(3600); // the stall limit comes first
        let mut slice = Slice::control(Kind::HostProbe, address, deadline);
        core.push(&mut slice, 0);
        self.publish(&core);
    }

    pub(crate) fn set_host(&self, on: bool) {
        self.core().probe = None;
        self.host.store(on, Ordering::Release);
    }

    /// An idle lane gets its first request: whoever had left it to the I/O threads did so for earlier ones.
    pub(crate) fn begin(&self, core: &LaneCore) {
        if core.initiator.in_flight() == 0 {
            self.background.store(false, Ordering::Release);
        }
    }

    /// Whether one more slice may be put in flight.
    pub(crate) fn has_room(&self, core: &LaneCore, bytes: u64) -> bool {
        let initiator = &core.initiator;
        initiator.in_flight() < self.limits.requests
            && (initiator.bytes_in_flight() == 0 || initiator.bytes_in_flight() + bytes <= self.limits.bytes)
    }

    /// Whether the peer's thread for this lane was seen to copy on this core.
    pub(crate) fn is_copied_on(&self, core: usize) -> bool {
        self.copied_on.load(Ordering::Relaxed) == core
    }

    pub(crate) fn set_copied_on(&self, core: usize) {
        self.copied_on.store(core, Ordering::Relaxed);
    }

    /// To be called before the core is let go of, after anything may have changed.
    pub(crate) fn publish(&self, core: &LaneCore) {
        self.in_flight.store(core.initiator.in_flight(), Ordering::SeqCst);
    }

    // ---- who drives ----------------------------------------------------------------------------------------------
    //
    // While something is in flight, at least one of these holds, so that nothing that has to go on waits for a timer:
    // - somebody drives the lane, and passes it on when leaving it (`stop_driving`);
    // - a waiter has been called, which means taken off the list of the parked and nudged: it looks at the lane before it sleeps
    //   again, and if it leaves instead, it passes the call on (`leave`);
    // - nobody is parked, and an I/O thread is armed, unless the few bytes to come can wait until somebody wants them.
    // A waiter sleeps only parked on every lane that has something of it, or that is in the way of what waits for room. What is
    // put on a lane later by somebody else is left to the I/O threads (`leave_to_io`).
    // Bytes that found no room in the socket belong to the driver, to whoever is armed, or, if the driver sleeps deaf to them, to
    // an I/O thread (`send_for_driver`).
    //
    // `in_flight`, `driven` and `background` are each written by one side before it reads the other's: they share one order.

    pub(crate) fn try_drive(&self) -> bool {
        !self.driven.swap(true, Ordering::SeqCst)
    }

    pub(crate) fn is_driven(&self) -> bool {
        self.driven.load(Ordering::SeqCst)
    }

    /// Puts a waiter on the list of those who may take over; it must try once more before it sleeps.
    pub(crate) fn park(&self, batch: &Arc<BatchState>) {
        let mut parked = lock(&self.parked);
        if !parked.iter().any(|b| Arc::ptr_eq(b, batch)) {
            parked.push(Arc::clone(batch));
        }
    }

    #[cfg(test)]
    pub(crate) fn has_parked(&self) -> bool {
        !lock(&self.parked).is_empty()
    }

    #[cfg(test)]
    pub(crate) fn is_parked(&self, batch: &Arc<BatchState>) -> bool {
        lock(&self.parked).iter().any(|b| Arc::ptr_eq(b, batch))
    }

    /// A waiter goes. If it has been called, another one gets the call.
    pub(crate) fn leave(&self, batch: &Arc<BatchState>) {
        let mut parked = lock(&self.parked);
        if let Some(at) = parked.iter().position(|b| Arc::ptr_eq(b, batch)) {
            parked.swap_remove(at);
            return;
        }
        drop(parked);
        if !self.is_driven() && self.in_flight() > 0 {
            self.pass_on();
        }
    }

    /// Lets the lane go: to a parked waiter, or to the I/O thread if something must go on without one.
    pub(crate) fn stop_driving(&self) {
        self.driven.swap(false, Ordering::SeqCst);
        if self.in_flight() > 0 {
            self.pass_on();
        }
    }

    fn pass_on(&self) {
        loop {
            let Some(next) = lock(&self.parked).pop() else { break };
            if !next.has_ended() {
                next.nudge();
                return;
            }
        }
        if self.core().initiator.has_given_up() {
            // Nobody waits for it any more, but it is not quiet before its answer or the end of the lane.
            self.leave_to_io();
        } else {
            self.arm_if_needed();
        }
    }

    /// Has the I/O thread look after the lane until nothing is in flight.
    pub(crate) fn leave_to_io(&self) {
        if self.in_flight() > 0 {
            let before = self.background.swap(true, Ordering::SeqCst);
            if !self.is_driven() {
                self.arm_if_needed();
            }
            if !before {
                // An I/O thread that sleeps without a timer would not see a deadline pass.
                self.io.send(Message::Tick);
            }
        }
    }

    /// Arms the I/O thread if bytes have to move that nobody else will move.
    pub(crate) fn arm_if_needed(&self) {
        self.arm(&self.core());
    }

    fn arm(&self, core: &LaneCore) {
        let (unsent, expected, in_flight) =
            (core.has_unsent(), core.initiator.bytes_expected(), core.initiator.in_flight());
        if self.dead.load(Ordering::Acquire) {
            return;
        }
        if in_flight == 0 {
            self.background.store(false, Ordering::Release);
        } else if unsent || expected > LAZY_BYTES || self.background.load(Ordering::SeqCst) {
            let interest = if unsent { Interest::BOTH } else { Interest::READ };
            self.io.rearm(&self.socket, self.token, interest);
        }
    }

    /// With nothing in flight an I/O thread only waits for a hang-up.
    pub(crate) fn rest(&self) {
        let core = self.core();
        // Under the lock, where others arm.
        if core.initiator.in_flight() == 0 {
            self.io.rearm(&self.socket, self.token, Interest::NONE);
        }
    }

    /// The driver is about to wait for what comes; says whether it is to wait for room in the socket, too.
    pub(crate) fn will_send(&self) -> bool {
        let mut core = self.core();
        core.driver_sends = core.has_unsent();
        core.driver_sends
    }

    /// Sends, if the driver sleeps and does not know that there is something to send.
    pub(crate) fn send_for_driver(&self) -> Result<(), Cause> {
        let mut core = self.core();
        if core.driver_sends || !core.has_unsent() {
            return Ok(());
        }
        let result = core.flush(&self.socket);
        if result.is_ok() && core.has_unsent() {
            self.io.rearm(&self.socket, self.token, Interest::WRITE);
        }
        result
    }

    // ---- moving bytes --------------------------------------------------------------------------------------------

    /// Receives and sends what is possible without blocking; hands over what is left for the peer to see to.
    pub(crate) fn service(&self, readable: bool, leavings: &mut Leavings) -> Result<(), Cause> {
        let mut core = self.core();
        core.driver_sends = true;
        let result = core.service(&self.socket, readable);
        core.take_leavings(leavings);
        self.publish(&core);
        result
    }

    /// Whether the next bytes may be received without holding the core: everything is sent, and no payload is expected that has
    /// a place of its own. If so, the driver is taken to be asleep. Says how many bytes of copying between the processes are worth
    /// to [stay awake](Awake) for.
    pub(crate) fn begin_blocking(&self) -> Option<u64> {
        let mut core = self.core();
        core.driver_sends = core.has_unsent() || !core.initiator.is_between_frames();
        if core.driver_sends {
            return None;
        }
        let bytes = core.initiator.bytes_copied();
        // Not again and again for a peer that has stopped.
        let fresh = || Coarse::now().since(core.last_progress) < TICK;
        Some(if bytes > 0 && self.limits.stay_awake && fresh() { bytes } else { 0 })
    }

    /// Blocks in the socket for [`BLOCKING_RECEIVE`] at most; only for the driver, and only after
    /// [`begin_blocking`](Self::begin_blocking).
    /// This saves a small request the system call that would ask whether there is something to receive.
    pub(crate) fn receive_blocking(&self, copying: u64, leavings: &mut Leavings) -> Result<(), Cause> {
        with_scratch(|scratch| {
            // More than this would be copied from here to its place in vain.
            let room = &mut scratch[..AHEAD_SMALL];
            let received = self.receive_awake(copying, room);
            let n = match received {
                Ok(0) => return Err("closed by the peer".into()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(e) => return Err(format!("receiving: {e}")),
            };
            if copying > 0
                && let Ok(core) = rustix::net::sockopt::socket_incoming_cpu(&self.socket)
            {
                self.set_copied_on(core as usize);
            }
            let mut core = self.core();
            core.driver_sends = true;
            let mut result = core.take_in(&room[..n]);
            if result.is_ok() && n == AHEAD_SMALL {
                result = core.receive(&self.socket, scratch);
            }
            if result.is_ok() && core.has_unsent() {
                result = core.flush(&self.socket);
            }
            core.take_leavings(leavings);
            self.publish(&core);
            result
        })
    }

    /// Looks for what comes while the peer may be copying so many bytes, and only then sleeps.
    fn receive_awake(&self, copying: u64, room: &mut [u8]) -> io::Result<usize> {
        let mut awake = (copying > 0).then(|| Awake::for_a_copy(copying));
        while awake.as_mut().is_some_and(Awake::go_on) {
            let mut scatter = Scatter::new();
            scatter.push_bytes(room);
            match scatter.receive(self.socket.as_fd()) {
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
                received => return received,
            }
        }
        crate::seam::receive_blocking(self.socket.as_fd(), room)
    }

    /// Sends what is possible without blocking.
    pub(crate) fn flush(&self) -> Result<(), Cause> {
        self.flush_and(false)
    }

    /// As [`flush`](Self::flush); if `arm`, an I/O thread is armed for the rest unless somebody drives the lane.
    pub(crate) fn flush_and(&self, arm: bool) -> Result<(), Cause> {
        let mut core = self.core();
        let result = core.flush(&self.socket);
        self.publish(&core);
        let needed = match self.is_driven() {
            true => core.has_unsent() && !core.driver_sends,
            false => arm,
        };
        if needed && result.is_ok() {
            self.arm(&core);
        }
        result
    }

    /// Ends what is past its deadline, asks a quiet peer for a sign of life, and gives up on a silent one. Returns when to
    /// look again.
    pub(crate) fn tick(&self, now: Instant, leavings: &mut Leavings) -> Result<(), Cause> {
        let mut core = self.core();
        core.initiator.expire(now);
        let quiet = Coarse::now().since(core.last_progress);
        let mut result = Ok(());
        if core.initiator.in_flight() > 0 {
            if quiet >= self.limits.stall {
                result = Err(format!("no byte moved for {:.1} s", quiet.as_secs_f64()));
            } else if quiet >= self.limits.stall / 2 && !core.pinged {
                core.pinged = true;
                let mut ping = Slice::control(Kind::Ping, 0, now + Duration::from_secs(3600));
                core.push(&mut ping, 0);
                result = core.flush(&self.socket);
            }
        }
        core.take_leavings(leavings);
        self.publish(&core);
        result
    }
}
