//! A connection to a peer on its way up: connecting, then the handshake.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Instant;

use crate::context::Context;
use crate::error::Error;
use crate::handshake::{Agreed, Failure, Handshake};
use crate::host;
use crate::initiator::Initiator;
use crate::io::IoShared;
use crate::lane::{BLOCKING_RECEIVE, Lane, Window};
use crate::peer::PeerInner;
use crate::socket;

/// See the module.
pub(crate) struct Dialling {
    stream: TcpStream,
    peer: Arc<PeerInner>,
    number: u64,
    handshake: Handshake,
    connected: bool,
    connect_deadline: Instant,
    hello_deadline: Instant,
}

impl Dialling {
    pub(crate) fn begin(context: &Context, peer: &Arc<PeerInner>) -> Result<Self, Error> {
        let addr = peer.addr();
        let settings = &context.settings;
        let number = context.next_lane();
        let paths = &settings.paths;
        let path = paths.get(number as usize % paths.len().max(1)).cloned().unwrap_or_default();
        let stream = socket::dial(addr, &path, &settings.sockets)
            .map_err(|e| Error::io(format!("connecting to {addr}"), e))?;
        let mut ours = context.introduction();
        ours.lane = number;
        if ours.host {
            host::introduce(&mut ours);
        }
        let handshake = Handshake::dial(ours, context.psk.clone()).map_err(|f| failed(peer, f))?;
        let now = Instant::now();
        let deadlines = &settings.deadlines;
        Ok(Self {
            stream,
            peer: Arc::clone(peer),
            number,
            handshake,
            connected: false,
            connect_deadline: now + deadlines.connect,
            hello_deadline: now + deadlines.connect + deadlines.hello,
        })
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn peer(&self) -> &Arc<PeerInner> {
        &self.peer
    }

    pub(crate) fn has_unsent(&self) -> bool {
        !self.connected || !self.handshake.outgoing().is_empty()
    }

    /// What it has been waiting for too long, if so.
    pub(crate) fn overdue(&self, now: Instant) -> Option<Error> {
        let (deadline, phase) = match self.connected {
            false => (self.connect_deadline, "connecting"),
            true => (self.hello_deadline, "waiting for the handshake"),
        };
        (deadline <= now).then(|| Error::Timeout { peer: self.peer.addr(), phase, detail: String::new() })
    }

    /// Moves what is possible; some when the handshake is over.
    pub(crate) fn go_on(&mut self) -> Result<Option<Agreed>, Error> {
        let addr = self.peer.addr();
        if !self.connected {
            if let Some(e) = self.stream.take_error().unwrap_or_else(Some) {
                return Err(Error::io(format!("connecting to {addr}"), e));
            }
            match self.stream.peer_addr() {
                Ok(_) => {
                    self.connected = true;
                    socket::connected(&self.stream, &self.peer.context.settings.sockets);
                }
                Err(e) if e.kind() == io::ErrorKind::NotConnected => return Ok(None),
                Err(e) => return Err(Error::io(format!("connecting to {addr}"), e)),
            }
        }
        let broken = |e: io::Error| Error::io(format!("handshake with {addr}"), e);
        let mut buffer = [0; 512];
        loop {
            while !self.handshake.outgoing().is_empty() {
                match (&self.stream).write(self.handshake.outgoing()) {
                    Ok(n) => self.handshake.sent(n),
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(broken(e)),
                }
            }
            let want = self.handshake.wants().clamp(1, buffer.len());
            match (&self.stream).read(&mut buffer[..want]) {
                Ok(0) => {
                    return Err(Error::Disconnected {
                        peer: addr,
                        detail: "closed during the handshake".into(),
                    });
                }
                Ok(n) => {
                    let agreed = self.handshake.feed(&buffer[..n]).map_err(|f| failed(&self.peer, f))?;
                    if agreed.is_some() {
                        return Ok(agreed);
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(broken(e)),
            }
        }
    }

    /// Makes a lane of it.
    pub(crate) fn finish(
        self,
        agreed: Agreed,
        context: &Context,
        io: &Arc<IoShared>,
        token: u64,
    ) -> Option<Arc<Lane>> {
        let Agreed { theirs, cipher } = agreed;
        // From now on every call says itself that it must not block, except the one of a waiting caller.
        let blocking = self.stream.set_nonblocking(false);
        if blocking.and_then(|()| self.stream.set_read_timeout(Some(BLOCKING_RECEIVE))).is_err() {
            return None;
        }
        let limits = &context.settings.limits;
        let window = Window {
            requests: limits.lane_requests.min(theirs.lane_requests as usize).max(1),
            bytes: limits.lane_bytes,
            stall: context.settings.deadlines.stall,
            stay_awake: context.settings.stay_awake,
        };
        let initiator = Initiator::new(self.peer.addr(), limits.message as u64);
        let lane = Lane::new(
            self.number,
            &self.peer,
            theirs.session,
            self.stream,
            initiator,
            cipher,
            Arc::clone(io),
            token,
            window,
        );
        context.counters.lanes_opened.add(1);
        if context.settings.same_process {
            self.peer.set_loopback(crate::context::find(theirs.session));
        }
        if context.settings.same_host && host::is_near(&theirs) && !self.peer.is_loopback() {
            lane.probe_host(&theirs.challenge);
        }
        Some(lane)
    }
}

fn failed(peer: &PeerInner, failure: Failure) -> Error {
    let peer = peer.addr();
    match failure {
        Failure::Malformed(detail) => Error::Protocol { peer, detail: detail.into() },
        Failure::Authentication(detail) => Error::Authentication { peer, detail },
        Failure::Rejected(detail) => Error::Authentication { peer, detail: format!("it said: {detail}") },
    }
}
