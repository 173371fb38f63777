//! An accepted connection in its handshake.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use crate::context::Context;
use crate::handshake::{Agreed, Failure, Handshake};
use crate::host;
use crate::io::IoShared;
use crate::responder::Responder;
use crate::server_lane::ServerLane;
use crate::socket;

/// See the module.
pub(crate) struct Accepting {
    stream: TcpStream,
    from: SocketAddr,
    handshake: Handshake,
    challenge: [u8; 32],
    deadline: Instant,
    agreed: Option<Agreed>,
}

impl Accepting {
    pub(crate) fn begin(context: &Context, stream: TcpStream, from: SocketAddr) -> io::Result<Self> {
        let stream = socket::accepted(stream, &context.settings.sockets)?;
        let mut ours = context.introduction();
        if ours.host {
            crate::sync::random(&mut ours.challenge).map_err(io::Error::other)?;
            host::introduce(&mut ours);
        }
        let challenge = ours.challenge;
        let handshake = Handshake::accept(ours, context.psk.clone());
        let deadline = Instant::now() + context.settings.deadlines.hello;
        Ok(Self { stream, from, handshake, challenge, deadline, agreed: None })
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.stream
    }

    pub(crate) fn from(&self) -> SocketAddr {
        self.from
    }

    pub(crate) fn deadline(&self) -> Instant {
        self.deadline
    }

    /// Moves what is possible; some when the handshake is over.
    pub(crate) fn go_on(&mut self) -> Result<Option<()>, String> {
        let mut buffer = [0; 512];
        while self.agreed.is_none() {
            let want = self.handshake.wants().clamp(1, buffer.len());
            match (&self.stream).read(&mut buffer[..want]) {
                Ok(0) => return Err("closed in the handshake".into()),
                Ok(n) => match self.handshake.feed(&buffer[..n]) {
                    Ok(agreed) => self.agreed = agreed,
                    Err(failure) => {
                        // Words for the other side, if there are any; it is told once and then closed.
                        let _ = (&self.stream).write(self.handshake.outgoing());
                        return Err(match failure {
                            Failure::Malformed(text) => format!("handshake: {text}"),
                            Failure::Authentication(text) | Failure::Rejected(text) => text,
                        });
                    }
                },
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.to_string()),
            }
            self.flush()?;
        }
        self.flush()?;
        Ok(self.agreed.is_some().then_some(()))
    }

    fn flush(&mut self) -> Result<(), String> {
        while !self.handshake.outgoing().is_empty() {
            match (&self.stream).write(self.handshake.outgoing()) {
                Ok(n) => self.handshake.sent(n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // A few hundred bytes into an empty socket always fit, unless the peer plays games.
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(())
    }

    /// Makes a lane of it.
    #[allow(clippy::type_complexity)] // who, and what is wrong with them
    pub(crate) fn finish(
        self,
        context: &Context,
        io: &Arc<IoShared>,
        token: u64,
    ) -> Result<Option<Arc<ServerLane>>, (SocketAddr, String)> {
        let Some(Agreed { theirs, cipher }) = self.agreed else { return Ok(None) };
        let session = context.service.session(theirs.session);
        let responder = Responder::new(Arc::clone(&context.service), Arc::clone(&session), self.from);
        let number = theirs.lane;
        let lane = ServerLane::new(
            self.from,
            Arc::clone(&session),
            theirs,
            self.challenge,
            self.stream,
            responder,
            cipher,
            Arc::clone(io),
            token,
            Arc::clone(&context.workers),
        );
        if !session.add(number, &lane) {
            return Err((self.from, format!("lane {number} of its session exists already")));
        }
        Ok(Some(lane))
    }
}
