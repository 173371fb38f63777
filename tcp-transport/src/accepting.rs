//! An accepted connection in its handshake.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use crate::context::Context;
use crate::foreign::{Foreign, MAX_HEAD, Recognition};
use crate::handshake::{Agreed, Failure, Handshake};
use crate::host;
use crate::io::IoShared;
use crate::responder::Responder;
use crate::server_lane::ServerLane;
use crate::socket;
use crate::wire::MAGIC;

/// See the module.
pub(crate) struct Accepting {
    stream: TcpStream,
    from: SocketAddr,
    handshake: Handshake,
    challenge: [u8; 32],
    deadline: Instant,
    agreed: Option<Agreed>,
    /// First bytes, until it is clear whose they are.
    head: Option<Vec<u8>>,
    foreign: Option<Whose>,
}

/// Whose connection it is, if not the native protocol's.
enum Whose {
    Foreign(Arc<dyn Foreign>),
    #[cfg(feature = "mooncake")]
    Mooncake,
}

/// What an accepted connection has become.
pub(crate) enum Accepted {
    Lane(Arc<ServerLane>),
    #[cfg(feature = "mooncake")]
    Mooncake(crate::mooncake::Session),
    /// Somebody else has taken it.
    Gone,
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
        Ok(Self {
            stream,
            from,
            handshake,
            challenge,
            deadline,
            agreed: None,
            head: Some(Vec::new()),
            foreign: None,
        })
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
    pub(crate) fn go_on(&mut self, context: &Context) -> Result<Option<()>, String> {
        let mut buffer = [0; 512];
        while self.agreed.is_none() {
            if let Some(head) = &mut self.head {
                match look(&self.stream, head, context) {
                    Ok(None) => return Ok(None),
                    Ok(Some(whose)) => {
                        self.foreign = whose;
                        if self.foreign.is_some() {
                            return Ok(Some(()));
                        }
                    }
                    Err(text) => return Err(text),
                }
            }
            let want = self.handshake.wants().clamp(1, buffer.len());
            let taken = match self.head.take() {
                Some(head) => {
                    buffer[..head.len()].copy_from_slice(&head);
                    Ok(head.len())
                }
                None => (&self.stream).read(&mut buffer[..want]),
            };
            match taken {
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

    /// Makes of it what it has turned out to be.
    pub(crate) fn finish(
        mut self,
        context: &Context,
        io: &Arc<IoShared>,
        token: u64,
    ) -> Result<Accepted, (SocketAddr, String)> {
        let head = self.head.take().unwrap_or_default();
        match self.foreign {
            Some(Whose::Foreign(protocol)) => {
                return match context.foreigners.serve(protocol, self.stream, head, self.from) {
                    true => Ok(Accepted::Gone),
                    false => Err((self.from, "too many connections of a foreign protocol".into())),
                };
            }
            #[cfg(feature = "mooncake")]
            Some(Whose::Mooncake) => {
                let service = Arc::clone(&context.service);
                return Ok(Accepted::Mooncake(crate::mooncake::Session::new(
                    self.stream,
                    self.from,
                    service,
                    &head,
                )));
            }
            None => {}
        }
        let Some(Agreed { theirs, cipher }) = self.agreed else {
            return Err((self.from, "the handshake is not over".into()));
        };
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
        Ok(Accepted::Lane(lane))
    }
}

/// Takes the first bytes off the socket, no more than the native preface or a foreign header, until it is clear whose they
/// are; `Some(None)` means the native protocol's.
fn look(
    mut stream: &TcpStream,
    head: &mut Vec<u8>,
    context: &Context,
) -> Result<Option<Option<Whose>>, String> {
    loop {
        let native = head.iter().zip(&MAGIC).all(|(a, b)| a == b);
        if native && head.len() >= MAGIC.len() {
            return Ok(Some(None));
        }
        if !native {
            #[cfg(feature = "mooncake")]
            let mooncake = match context.settings.mooncake {
                true => crate::mooncake::recognise(head),
                false => Recognition::No,
            };
            #[cfg(not(feature = "mooncake"))]
            let mooncake = Recognition::No;
            match (context.foreigners.recognise(head), mooncake) {
                (Ok(Some(protocol)), _) => return Ok(Some(Some(Whose::Foreign(protocol)))),
                #[cfg(feature = "mooncake")]
                (_, Recognition::Yes) => return Ok(Some(Some(Whose::Mooncake))),
                (Err(()), m) if m != Recognition::Undecided => {
                    return Err("handshake: not this protocol".into());
                }
                _ => {}
            }
        }
        let room = if native { MAGIC.len() } else { MAX_HEAD } - head.len();
        let mut buffer = [0; MAX_HEAD];
        match stream.read(&mut buffer[..room]) {
            Ok(0) => return Err("closed in the handshake".into()),
            Ok(n) => head.extend_from_slice(&buffer[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e.to_string()),
        }
    }
}
