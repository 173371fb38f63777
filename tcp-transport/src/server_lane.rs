//! A lane from a peer: one accepted connection and the [`Responder`] that runs on it. An I/O thread moves its bytes; workers
//! add the answers of calls.

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::cipher::{Cipher, MAX_PLAIN};
use crate::clock::Coarse;
use crate::handshake::Introduction;
use crate::host::{self, HostPeer};
use crate::io::{Interest, IoShared};
use crate::moving::{Cause, LARGE, MAX_MOVE, ahead, given, seal, send_sealed, taken, with_scratch};
use crate::responder::{Call, Errand, Responder};
use crate::seam::{Gather, Scatter};
use crate::service::Session;
use crate::sync::lock;
use crate::wire::Malformed;
use crate::workers::{CallJob, Workers};

/// Bytes that one lane may move before the others get their turn.
const TURN: usize = 4 << 20;

/// See the module.
pub(crate) struct ServerLane {
    number: u64,
    from: SocketAddr,
    session: Arc<Session>,
    /// What the peer said about itself, and what it was to show in its memory.
    theirs: Introduction,
    challenge: [u8; 32],
    socket: TcpStream,
    core: Mutex<ServerCore>,
    io: Arc<IoShared>,
    token: u64,
    workers: Arc<Workers>,
    closed: AtomicBool,
}

struct ServerCore {
    responder: Responder,
    cipher: Option<Cipher>,
    last_progress: Coarse,
    interest: Interest,
    large: bool,
    /// The end of the stream is in the socket: it has to be read, for it is not told a second time.
    over: bool,
}

/// What has become of a lane after its turn.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Turn {
    /// It waits for its socket.
    Waiting,
    /// It waits for its socket, and has copied between the processes: whoever was waiting for that may ask for more at once.
    Copied,
    /// It could go on at once.
    Again,
}

impl ServerLane {
    #[allow(clippy::too_many_arguments)] // made in one place
    pub(crate) fn new(
        from: SocketAddr,
        session: Arc<Session>,
        theirs: Introduction,
        challenge: [u8; 32],
        socket: TcpStream,
        responder: Responder,
        cipher: Option<Cipher>,
        io: Arc<IoShared>,
        token: u64,
        workers: Arc<Workers>,
    ) -> Arc<Self> {
        let core = ServerCore {
            responder,
            cipher,
            last_progress: Coarse::now(),
            interest: Interest::READ,
            large: false,
            over: false,
        };
        Arc::new(Self {
            number: theirs.lane,
            from,
            session,
            theirs,
            challenge,
            socket,
            core: Mutex::new(core),
            io,
            token,
            workers,
            closed: AtomicBool::new(false),
        })
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    pub(crate) fn session(&self) -> &Arc<Session> {
        &self.session
    }

    pub(crate) fn from(&self) -> SocketAddr {
        self.from
    }

    /// Closes the lane. A barrier: when it returns, nothing that came over it will be applied any more.
    pub(crate) fn close(&self) {
        let _turn = lock(&self.core);
        self.closed.store(true, Ordering::Release);
        // The I/O thread sees the hang-up and drops the lane.
        let _ = self.socket.shutdown(Shutdown::Both);
    }

    /// Tells the peer to send no more requests; true if nothing is half-done.
    pub(crate) fn go_away(&self) -> bool {
        let mut core = lock(&self.core);
        core.responder.go_away();
        let _ = core.flush(&self.socket);
        self.update_interest(&mut core);
        core.responder.is_idle() || self.closed.load(Ordering::Acquire)
    }

    /// Whether a tick is worth while: the peer owes bytes, or takes none.
    pub(crate) fn is_busy(&self) -> bool {
        let core = lock(&self.core);
        core.responder.is_mid_frame() || core.has_unsent()
    }

    /// Gives up on a peer that stalls in the middle of something.
    pub(crate) fn tick(&self, stall: Duration) -> Result<(), Cause> {
        let core = lock(&self.core);
        let owes = core.responder.is_mid_frame() || core.has_unsent();
        let quiet = Coarse::now().since(core.last_progress);
        if owes && quiet >= stall {
            return Err(format!("stalled for {:.1} s", quiet.as_secs_f64()));
        }
        Ok(())
    }

    /// Moves what is possible without blocking. `over`: the peer will send nothing more than what is in the socket now.
    pub(crate) fn turn(self: &Arc<Self>, over: bool) -> Result<Turn, Cause> {
        let mut core = lock(&self.core);
        core.over |= over;
        if self.closed.load(Ordering::Acquire) {
            return Err("superseded or shut down".into());
        }
        let drained = with_scratch(|scratch| core.receive(&self.socket, scratch))?;
        while !core.responder.errands.is_empty() {
            // Errands may lock other lanes, so never under this one's lock.
            let errands = std::mem::take(&mut core.responder.errands);
            drop(core);
            let done: Vec<_> = errands.into_iter().map(|e| self.run(e)).collect();
            core = lock(&self.core);
            for result in done.into_iter().flatten() {
                match result {
                    Done::Answer(id, code) => core.responder.answer(id, code),
                    Done::Host(id, host) => core.responder.set_host(id, host),
                }
            }
        }
        let copied = core.responder.has_jobs();
        if copied {
            core.responder.run_jobs(TURN as u64);
        }
        core.flush(&self.socket)?;
        self.hand_over_calls(&mut core);
        let again = !drained && core.responder.wants_input() || core.responder.has_jobs();
        self.update_interest(&mut core);
        Ok(match (again, copied) {
            (true, _) => Turn::Again,
            (false, true) => Turn::Copied,
            (false, false) => Turn::Waiting,
        })
    }

    /// Adds the answer of a call, from a worker.
    pub(crate) fn answer_call(self: &Arc<Self>, id: u64, answer: Result<Vec<u8>, String>) {
        let mut core = lock(&self.core);
        core.responder.answer_call(id, answer);
        if !self.closed.load(Ordering::Acquire) {
            let _ = core.flush(&self.socket);
            self.hand_over_calls(&mut core);
            self.update_interest(&mut core);
        }
    }

    /// Gives the workers as many calls as they may have of this lane.
    fn hand_over_calls(self: &Arc<Self>, core: &mut ServerCore) {
        while let Some(Call { id, request }) = core.responder.next_call(self.workers.count()) {
            let caller = crate::transport::Caller { addr: self.from, session: self.session.id };
            self.workers.submit(CallJob { lane: Arc::downgrade(self), id, caller, request });
        }
    }

    fn update_interest(&self, core: &mut ServerCore) {
        let interest = Interest { read: core.responder.wants_input(), write: core.has_unsent() };
        if interest != core.interest {
            core.interest = interest;
            self.io.watch_changes(&self.socket, self.token, interest);
        }
    }

    fn run(self: &Arc<Self>, errand: Errand) -> Option<Done> {
        match errand {
            Errand::Supersede { id, lane } => {
                if lane == self.number {
                    return Some(Done::Answer(id, crate::Refusal::Unsupported as u16));
                }
                self.session.supersede(lane);
                Some(Done::Answer(id, 0))
            }
            Errand::HostProbe { id, address } => {
                let near = host::is_near(&self.theirs) && self.challenge != [0; 32];
                let host = near.then(|| HostPeer::probe(self.theirs.pid, address, &self.challenge)).flatten();
                Some(Done::Host(id, host))
            }
        }
    }
}

enum Done {
    Answer(u64, u16),
    Host(u64, Option<HostPeer>),
}

impl ServerCore {
    fn has_unsent(&self) -> bool {
        self.responder.has_unsent() || self.cipher.as_ref().is_some_and(|c| !c.outgoing().is_empty())
    }

    /// Returns whether the socket has been emptied.
    fn receive(&mut self, socket: &TcpStream, scratch: &mut [u8]) -> Result<bool, Cause> {
        let fd = socket.as_fd();
        let broken = |e: Malformed| format!("protocol: {e}");
        let mut moved = 0;
        while self.responder.wants_input() && self.responder.errands.is_empty() {
            if moved >= TURN {
                return Ok(false);
            }
            let (direct, wanted, received) = if self.cipher.is_some() {
                let mut scatter = Scatter::new();
                scatter.push_bytes(scratch);
                (0, scatter.bytes(), scatter.receive(fd))
            } else {
                let mut scatter = Scatter::new();
                let region = self.responder.scatter(&mut scatter, MAX_MOVE as u64);
                let direct = scatter.bytes();
                if !scatter.is_full() {
                    let ahead = ahead(direct, self.large, self.responder.is_staging());
                    scatter.push_bytes(&mut scratch[..ahead]);
                }
                let wanted = scatter.bytes();
                let received = match region {
                    Some(region) => region.enter(|| scatter.receive(fd)),
                    None => Ok(scatter.receive(fd)),
                };
                match received {
                    Ok(received) => (direct, wanted, received),
                    Err(_) => {
                        self.responder.write_revoked();
                        continue;
                    }
                }
            };
            let Some(n) = given(received)? else { return Ok(true) };
            self.last_progress = Coarse::now();
            moved += n;
            if let Some(cipher) = &mut self.cipher {
                let mut input = &scratch[..n];
                while let Some(plain) = cipher.open(&mut input).map_err(broken)? {
                    self.responder.feed(plain).map_err(broken)?;
                }
            } else {
                if direct > 0 {
                    self.large = direct as u64 > LARGE;
                    self.responder.received(n.min(direct) as u64);
                }
                if n > direct {
                    self.responder.feed(&scratch[..n - direct]).map_err(broken)?;
                }
            }
            if n < wanted && !self.over {
                return Ok(true);
            }
            if moved >= MAX_MOVE {
                self.flush(socket)?; // the peer gets to know about what is done
            }
        }
        Ok(false)
    }

    fn flush(&mut self, socket: &TcpStream) -> Result<(), Cause> {
        let fd = socket.as_fd();
        loop {
            self.responder.stage()?;
            let (wanted, sent) = if let Some(cipher) = &mut self.cipher {
                if cipher.outgoing().is_empty() {
                    let mut gather = Gather::new();
                    let region = self.responder.gather(&mut gather, MAX_PLAIN);
                    let mut seal = || seal(cipher, &gather);
                    let sealed = match region {
                        Some(region) => region.enter(seal),
                        None => Ok(seal()),
                    };
                    match sealed {
                        Ok(n) => self.responder.sent(n.map_err(|e| e.to_string())? as u64),
                        Err(_) if self.responder.read_revoked() => continue,
                        Err(_) => return Err("a region was revoked while its bytes were being sent".into()),
                    }
                }
                let Some(sent) = send_sealed(cipher, fd) else { return Ok(()) };
                sent
            } else {
                let mut gather = Gather::new();
                let region = self.responder.gather(&mut gather, MAX_MOVE);
                if gather.is_empty() {
                    return Ok(());
                }
                let wanted = gather.bytes();
                let sent = match region {
                    Some(region) => region.enter(|| gather.send(fd)),
                    None => Ok(gather.send(fd)),
                };
                match sent {
                    Ok(sent) => {
                        if let Ok(n) = sent {
                            self.responder.sent(n as u64);
                        }
                        (wanted, sent)
                    }
                    Err(_) if self.responder.read_revoked() => continue,
                    Err(_) => return Err("a region was revoked while its bytes were being sent".into()),
                }
            };
            let Some(n) = taken(sent)? else { return Ok(()) };
            self.last_progress = Coarse::now();
            if n < wanted {
                return Ok(());
            }
        }
    }
}
