//! The I/O threads: a fixed number of them, each waiting on one epoll for listeners, handshakes, lanes from peers, and those
//! lanes to peers that no caller drives. A thread with nothing to do sleeps without a timer.

mod connections;

use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Instant;

use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime,
};

use crate::accepting::Accepting;
use crate::awake::Awake;
use crate::clock::TICK;
use crate::context::Context;
use crate::dialling::Dialling;
use crate::error::Error;
use crate::initiator::Leavings;
use crate::lane::Lane;
use crate::peer::PeerInner;
use crate::seldom::Seldom;
use crate::server_lane::{ServerLane, Turn};
use crate::sync::lock;

/// Connections taken off a listener before other work gets its turn.
const ACCEPTS: usize = 64;
/// Messages that can wait for an I/O thread without an allocation.
const MESSAGES: usize = 32;
const WAKER: u64 = u64::MAX;
const TIMER: u64 = u64::MAX - 1;

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Interest {
    pub(crate) read: bool,
    pub(crate) write: bool,
}

impl Interest {
    pub(crate) const READ: Self = Self { read: true, write: false };
    pub(crate) const WRITE: Self = Self { read: false, write: true };
    pub(crate) const BOTH: Self = Self { read: true, write: true };
    pub(crate) const NONE: Self = Self { read: false, write: false };

    fn flags(self) -> EventFlags {
        let mut flags = EventFlags::RDHUP;
        flags.set(EventFlags::IN, self.read);
        flags.set(EventFlags::OUT, self.write);
        flags
    }
}

/// Work for an I/O thread.
pub(crate) enum Message {
    /// Take over an accepted connection.
    Accepted(TcpStream, SocketAddr),
    /// Connect to a peer.
    Dial(Arc<PeerInner>),
    /// Look at this peer's deadlines until it has none.
    Watch(Weak<PeerInner>),
    /// Begin to look at deadlines.
    Tick,
    /// Stop listening, and tell connected peers to send nothing new.
    Drain,
    /// Close everything and end.
    Stop,
}

/// The part of an I/O thread that others may use.
pub(crate) struct IoShared {
    epoll: OwnedFd,
    waker: OwnedFd,
    inbox: Mutex<Vec<Message>>,
    /// Set while draining, when nothing is half-done on any lane from a peer.
    pub(crate) quiet: AtomicBool,
}

impl IoShared {
    pub(crate) fn new() -> Result<Arc<Self>, Error> {
        let failed = |e| Error::io("creating an I/O thread's epoll", e);
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(failed)?;
        let waker =
            rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(failed)?;
        epoll::add(&epoll, &waker, EventData::new_u64(WAKER), EventFlags::IN).map_err(failed)?;
        let inbox = Mutex::new(Vec::with_capacity(MESSAGES));
        Ok(Arc::new(Self { epoll, waker, inbox, quiet: AtomicBool::new(false) }))
    }

    pub(crate) fn send(&self, message: Message) {
        lock(&self.inbox).push(message);
        let _ = rustix::io::write(&self.waker, &1_u64.to_ne_bytes());
    }

    /// Waits for one event of a lane to a peer; after it the lane is not watched until the next call. Always reports a
    /// hang-up.
    pub(crate) fn rearm(&self, socket: &TcpStream, token: u64, interest: Interest) {
        let flags = interest.flags() | EventFlags::ONESHOT;
        // Fails only for a socket that was removed meanwhile: then there is nothing to wait for.
        let _ = epoll::modify(&self.epoll, socket, EventData::new_u64(token), flags);
    }

    /// Waits for every change of a lane from a peer: it is told once when there is more to do than before, and at once if there
    /// is something to do now. Whoever is told has to go on until nothing is left. This saves a small request the second look
    /// that the kernel would take at the socket before it sleeps.
    pub(crate) fn watch_changes(&self, socket: &TcpStream, token: u64, interest: Interest) {
        let flags = interest.flags() | EventFlags::ET;
        let _ = epoll::modify(&self.epoll, socket, EventData::new_u64(token), flags);
    }

    /// Waits for every event.
    pub(crate) fn watch_steadily(&self, socket: &TcpStream, token: u64, interest: Interest) {
        let _ = epoll::modify(&self.epoll, socket, EventData::new_u64(token), interest.flags());
    }

    fn add(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), interest.flags())?)
    }

    fn add_changes(&self, fd: impl AsFd, token: u64, interest: Interest) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, EventData::new_u64(token), interest.flags() | EventFlags::ET)?)
    }

    fn remove(&self, fd: impl AsFd) {
        let _ = epoll::delete(&self.epoll, fd);
    }
}

pub(crate) enum Source {
    Listener(TcpListener),
    Accepting(Box<Accepting>),
    Dialling(Box<Dialling>),
    Server(Arc<ServerLane>),
    Client(Arc<Lane>),
    #[cfg(feature = "mooncake")]
    Mooncake(Box<crate::mooncake::Session>),
}

struct Entry {
    generation: u32,
    source: Option<Source>,
}

/// One I/O thread.
pub(crate) struct IoThread {
    shared: Arc<IoShared>,
    /// Says when to look at deadlines. A time limit for every single wait would cost a small request 0.2 µs each time.
    timer: OwnedFd,
    context: Arc<Context>,
    entries: Vec<Entry>,
    free: Vec<u32>,
    watched: Vec<Weak<PeerInner>>,
    /// Lanes that had more to do when their turn was over.
    again: Vec<u64>,
    messages: Vec<Message>,
    /// Events are looked for rather than waited for.
    awake: Option<Awake>,
    /// Accepted connections in the handshake, oldest first.
    handshakes: std::collections::VecDeque<u64>,
    draining: bool,
    stop: bool,
}

impl IoThread {
    pub(crate) fn new(
        shared: Arc<IoShared>,
        context: Arc<Context>,
        listeners: Vec<TcpListener>,
    ) -> Result<Self, Error> {
        let failed = |e| Error::io("creating an I/O thread's timer", e);
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags).map_err(failed)?;
        epoll::add(&shared.epoll, &timer, EventData::new_u64(TIMER), EventFlags::IN).map_err(failed)?;
        let mut this = Self {
            shared,
            timer,
            context,
            entries: Vec::new(),
            free: Vec::new(),
            watched: Vec::new(),
            again: Vec::new(),
            messages: Vec::with_capacity(MESSAGES),
            awake: None,
            handshakes: std::collections::VecDeque::new(),
            draining: false,
            stop: false,
        };
        for listener in listeners {
            let token = this.reserve();
            this.shared
                .add(&listener, token, Interest::READ)
                .map_err(|e| Error::io("waiting for connections", e))?;
            this.put(token, Source::Listener(listener));
        }
        Ok(this)
    }

    pub(crate) fn run(mut self) {
        let mut events = [Event { flags: EventFlags::empty(), data: EventData::new_u64(0) }; 64];
        let mut ticking = false;
        // The read-ahead buffer is made now rather than under the first lane that this thread happens to drive.
        crate::moving::with_scratch(|_| ());
        while !self.stop {
            let now = Timespec { tv_sec: 0, tv_nsec: 0 };
            if self.again.is_empty() {
                self.awake.take_if(|awake| !awake.go_on());
            }
            let timeout = if self.again.is_empty() && self.awake.is_none() { None } else { Some(&now) };
            let count = match epoll::wait(&self.shared.epoll, &mut events[..], timeout) {
                Ok(n) => n,
                Err(rustix::io::Errno::INTR) => 0,
                Err(e) => {
                    tracing::error!("an I/O thread cannot wait for events and ends: {e}");
                    break;
                }
            };
            for _ in 0..self.again.len() {
                let token = self.again.swap_remove(0);
                self.serve(token, EventFlags::IN);
            }
            let mut ticked = false;
            for event in &events[..count] {
                match event.data.u64() {
                    WAKER => self.messages(),
                    TIMER => ticked = true,
                    token => self.serve(token, event.flags),
                }
            }
            if ticked {
                let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                ticking = self.tick(Instant::now()) && self.set_timer();
            } else if !ticking && count > 0 {
                ticking = self.set_timer();
            }
        }
        self.close_all();
    }

    /// Has the thread woken for the next tick; false if that failed, to be tried again at the next event.
    fn set_timer(&self) -> bool {
        let once = Timespec { tv_sec: 0, tv_nsec: 0 };
        let soon = Timespec { tv_sec: TICK.as_secs().cast_signed(), tv_nsec: TICK.subsec_nanos().into() };
        let times = Itimerspec { it_interval: once, it_value: soon };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &times).is_ok()
    }

    // ---- the table of sources ------------------------------------------------------------------------------------

    /// Takes a free place; the token names it until the source is gone.
    fn reserve(&mut self) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry { generation: 0, source: None });
            (self.entries.len() - 1) as u32
        });
        u64::from(self.entries[index as usize].generation) << 32 | u64::from(index)
    }

    fn put(&mut self, token: u64, source: Source) {
        self.entries[token as u32 as usize].source = Some(source);
    }

    fn get(&mut self, token: u64) -> Option<&mut Source> {
        let entry = self.entries.get_mut(token as u32 as usize)?;
        if entry.generation != (token >> 32) as u32 { None } else { entry.source.as_mut() }
    }

    /// Takes a source out and frees its place.
    fn take(&mut self, token: u64) -> Option<Source> {
        self.get(token)?;
        let entry = &mut self.entries[token as u32 as usize];
        // The generation wraps before it could meet the waker's token.
        entry.generation = (entry.generation + 1) & 0x7fff_ffff;
        self.free.push(token as u32);
        entry.source.take()
    }

    /// The token of the source at a place of the table.
    fn token_at(&self, index: usize) -> Option<u64> {
        let entry = self.entries.get(index).filter(|e| e.source.is_some())?;
        Some(u64::from(entry.generation) << 32 | index as u64)
    }

    // ---- events --------------------------------------------------------------------------------------------------

    fn serve(&mut self, token: u64, flags: EventFlags) {
        match self.get(token) {
            None => {}
            Some(Source::Listener(_)) => self.accept(token),
            Some(Source::Accepting(_)) => self.serve_accepting(token),
            Some(Source::Dialling(_)) => self.serve_dialling(token),
            Some(Source::Server(lane)) => {
                let lane = Arc::clone(lane);
                let over = flags.intersects(EventFlags::RDHUP | EventFlags::HUP | EventFlags::ERR);
                match lane.turn(over) {
                    Ok(Turn::Waiting | Turn::Copied) if flags.contains(EventFlags::HUP) => {
                        self.drop_server(token, "closed by the peer");
                    }
                    Ok(Turn::Waiting) => {}
                    Ok(Turn::Copied) if self.context.settings.stay_awake => {
                        self.awake = Some(Awake::after_a_copy());
                    }
                    Ok(Turn::Copied) => {}
                    Ok(Turn::Again) => self.again.push(token),
                    Err(cause) => self.drop_server(token, &cause),
                }
            }
            Some(Source::Client(lane)) => {
                let lane = Arc::clone(lane);
                self.serve_client(token, &lane, |lane, leavings| lane.service(true, leavings));
            }
            #[cfg(feature = "mooncake")]
            Some(Source::Mooncake(_)) => self.serve_mooncake(token),
        }
    }

    #[cfg(feature = "mooncake")]
    fn serve_mooncake(&mut self, token: u64) {
        let shared = Arc::clone(&self.shared);
        let Some(Source::Mooncake(session)) = self.get(token) else { return };
        let before = session.interest();
        match session.turn() {
            Ok(again) => {
                if session.interest() != before {
                    shared.watch_steadily(session.socket(), token, session.interest());
                }
                if again {
                    self.again.push(token);
                }
            }
            Err(cause) => self.drop_mooncake(token, &cause),
        }
    }

    #[cfg(feature = "mooncake")]
    fn drop_mooncake(&mut self, token: u64, cause: &str) {
        if let Some(Source::Mooncake(session)) = self.take(token) {
            tracing::debug!(peer = %session.from(), "Mooncake connection ended: {cause}");
            self.shared.remove(session.socket());
            self.context.counters.connections.down();
        }
    }

    /// Runs `work` on a lane to a peer unless a caller drives it, who then sees to everything.
    fn serve_client(
        &mut self,
        token: u64,
        lane: &Arc<Lane>,
        work: impl FnOnce(&Lane, &mut Leavings) -> Result<(), String>,
    ) {
        if !lane.try_drive() {
            // The driver receives; but it may be asleep without knowing that somebody else could not send everything.
            if let Err(cause) = lane.send_for_driver()
                && let Some(peer) = lane.peer.upgrade()
            {
                peer.lane_lost(lane, &cause);
            }
            return;
        }
        let mut leavings = Leavings::default();
        let result = work(lane, &mut leavings);
        let Some(peer) = lane.peer.upgrade() else {
            lane.end();
            self.drop_client(token);
            return;
        };
        peer.tidy(lane, &mut leavings);
        match result {
            Ok(()) => {
                lane.stop_driving();
                lane.rest();
                peer.dispatch();
            }
            Err(cause) => {
                lane.stop_driving();
                peer.lane_lost(lane, &cause);
                self.drop_client(token);
            }
        }
    }

    fn drop_client(&mut self, token: u64) {
        if let Some(Source::Client(lane)) = self.take(token) {
            self.shared.remove(lane.socket());
            self.context.counters.connections.down();
        }
    }

    fn drop_server(&mut self, token: u64, cause: &str) {
        if let Some(Source::Server(lane)) = self.take(token) {
            if cause.starts_with("protocol") {
                self.context.counters.turned_away.add(1);
                static BROKEN: Seldom = Seldom::new();
                if let Some(nth) = BROKEN.again() {
                    tracing::warn!(peer = %lane.from(), "closing a connection ({nth} so far): {cause}");
                }
            } else {
                tracing::debug!(peer = %lane.from(), "connection ended: {cause}");
            }
            lane.close();
            lane.session().remove(lane.number());
            self.shared.remove(lane.socket());
            self.context.counters.connections.down();
        }
    }

    fn messages(&mut self) {
        let mut count = [0; 8];
        let _ = rustix::io::read(&self.shared.waker, &mut count);
        // The two lists change places, so that neither is allocated again.
        let mut messages = std::mem::take(&mut self.messages);
        std::mem::swap(&mut messages, &mut *lock(&self.shared.inbox));
        for message in messages.drain(..) {
            match message {
                Message::Accepted(stream, from) => self.begin_accepting(stream, from),
                Message::Dial(peer) => self.begin_dialling(&peer),
                Message::Watch(peer) => {
                    // At once, too: the first request to a peer waits for its connection, and the others for theirs.
                    let more = peer.upgrade().is_some_and(|p| p.tick(Instant::now()));
                    if more && !self.watched.iter().any(|w| w.ptr_eq(&peer)) {
                        self.watched.push(peer);
                    }
                }
                Message::Tick => {} // being awake is enough
                Message::Drain => self.drain(),
                Message::Stop => self.stop = true,
            }
        }
        self.messages = messages;
    }

    // ---- time ----------------------------------------------------------------------------------------------------

    /// Looks at every deadline; returns whether there are any left to look at.
    fn tick(&mut self, now: Instant) -> bool {
        let mut more = false;
        let stall = self.context.settings.deadlines.stall;
        for index in 0..self.entries.len() {
            let Some(token) = self.token_at(index) else { continue };
            match self.get(token) {
                Some(Source::Accepting(a)) => {
                    more = true;
                    if a.deadline() <= now {
                        self.handshakes.retain(|&t| t != token);
                        self.drop_accepting(token, "the handshake took too long");
                    }
                }
                Some(Source::Dialling(d)) => {
                    more = true;
                    if let Some(error) = d.overdue(now) {
                        self.drop_dialling(token, error);
                    }
                }
                Some(Source::Server(lane)) => {
                    more |= lane.is_busy();
                    if let Err(cause) = lane.tick(stall) {
                        self.drop_server(token, &cause);
                    }
                }
                Some(Source::Client(lane)) => {
                    let lane = Arc::clone(lane);
                    if lane.in_flight() > 0 {
                        more = true;
                        self.serve_client(token, &lane, |lane, leavings| lane.tick(now, leavings));
                    } else if lane.peer.strong_count() == 0 || !lane.is_usable() {
                        lane.end();
                        lane.peer.upgrade().iter().for_each(|peer| peer.lane_left(&lane));
                        self.drop_client(token);
                    }
                }
                #[cfg(feature = "mooncake")]
                Some(Source::Mooncake(session)) => {
                    more |= session.is_busy();
                    if let Err(cause) = session.tick(stall) {
                        self.drop_mooncake(token, &cause);
                    }
                }
                Some(Source::Listener(_)) | None => {}
            }
        }
        self.watched.retain(|peer| peer.upgrade().is_some_and(|p| p.tick(now)));
        if self.draining {
            self.drain();
        }
        more || !self.watched.is_empty() || self.draining
    }

    fn drain(&mut self) {
        self.draining = true;
        let mut quiet = true;
        for index in 0..self.entries.len() {
            let Some(token) = self.token_at(index) else { continue };
            match self.get(token) {
                Some(Source::Listener(_)) => {
                    if let Some(Source::Listener(listener)) = self.take(token) {
                        self.shared.remove(&listener);
                    }
                }
                Some(Source::Server(lane)) => quiet &= Arc::clone(lane).go_away(),
                _ => {}
            }
        }
        self.shared.quiet.store(quiet, Ordering::Release);
    }

    fn close_all(&mut self) {
        for index in 0..self.entries.len() {
            let Some(token) = self.token_at(index) else { continue };
            match self.get(token) {
                Some(Source::Server(_)) => self.drop_server(token, "shut down"),
                Some(Source::Client(lane)) => {
                    let lane = Arc::clone(lane);
                    if let Some(peer) = lane.peer.upgrade() {
                        peer.lane_lost(&lane, "shut down");
                    }
                    self.drop_client(token);
                }
                Some(Source::Dialling(_)) => self.drop_dialling(token, Error::ShutDown),
                Some(Source::Accepting(_)) => self.drop_accepting(token, "shut down"),
                #[cfg(feature = "mooncake")]
                Some(Source::Mooncake(_)) => self.drop_mooncake(token, "shut down"),
                Some(Source::Listener(_)) | None => drop(self.take(token)),
            }
        }
    }
}
