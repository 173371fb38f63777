//! The answering side of one connection, moved by an I/O thread.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use super::frame::{HEAD_LEN, Head, Status};
use crate::clock::Coarse;
use crate::io::Interest;
use crate::region::{Access, RegionInner};
use crate::request::Op;
use crate::seam::{Gather, Scatter};
use crate::service::Service;

/// Bytes that one connection may move before the others get their turn.
const TURN: u64 = 4 << 20;
const MAX_MOVE: u64 = 1 << 20;

enum State {
    /// So many bytes of the header have come.
    Head(usize),
    /// Payload of a write: region, offset, bytes left.
    Receiving(Arc<RegionInner>, u64, u64),
    /// Payload of a refused write.
    Discarding(u64),
    /// Status, sent so far; then payload of a read, if any.
    Answering(Status, usize, Option<(Arc<RegionInner>, u64, u64)>),
    /// Payload of a read.
    Sending(Arc<RegionInner>, u64, u64),
}

/// See the module.
pub(crate) struct Session {
    socket: TcpStream,
    from: SocketAddr,
    service: Arc<Service>,
    state: State,
    head: [u8; HEAD_LEN],
    version_2: bool,
    last_progress: Coarse,
}

impl Session {
    /// `head` are bytes that have been taken off the socket already, at most a header.
    pub(crate) fn new(socket: TcpStream, from: SocketAddr, service: Arc<Service>, head: &[u8]) -> Self {
        let mut this = Self {
            socket,
            from,
            service,
            state: State::Head(0),
            head: [0; HEAD_LEN],
            version_2: false,
            last_progress: Coarse::now(),
        };
        let n = head.len().min(HEAD_LEN);
        this.head[..n].copy_from_slice(&head[..n]);
        this.state = State::Head(n);
        this
    }

    pub(crate) fn socket(&self) -> &TcpStream {
        &self.socket
    }

    pub(crate) fn from(&self) -> SocketAddr {
        self.from
    }

    /// What the session waits for.
    pub(crate) fn interest(&self) -> Interest {
        match self.state {
            State::Answering(..) | State::Sending(..) => Interest::WRITE,
            _ => Interest::READ,
        }
    }

    pub(crate) fn is_busy(&self) -> bool {
        !matches!(self.state, State::Head(0))
    }

    pub(crate) fn tick(&self, stall: Duration) -> Result<(), String> {
        if self.is_busy() && Coarse::now().since(self.last_progress) >= stall {
            return Err("stalled in the middle of a request".into());
        }
        Ok(())
    }

    /// Moves what is possible without blocking; true if it could go on at once.
    pub(crate) fn turn(&mut self) -> Result<bool, String> {
        let mut budget = TURN;
        while budget > 0 {
            match self.step() {
                Ok(n) => {
                    self.last_progress = Coarse::now();
                    budget = budget.saturating_sub(n.max(1));
                }
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(false),
                Err(e) => return Err(e.to_string()),
            }
        }
        Ok(true)
    }

    fn step(&mut self) -> io::Result<u64> {
        let closed = || io::Error::from(io::ErrorKind::UnexpectedEof);
        let fd = self.socket.as_fd();
        match &mut self.state {
            State::Head(HEAD_LEN) => {
                self.state = self.begin()?;
                Ok(0)
            }
            State::Head(have) => {
                let mut scatter = Scatter::new();
                scatter.push_bytes(&mut self.head[*have..]);
                match scatter.receive(fd)? {
                    0 => Err(closed()),
                    n => {
                        *have += n;
                        Ok(n as u64)
                    }
                }
            }
            State::Receiving(region, offset, left) => {
                let mut scatter = Scatter::new();
                scatter.push_memory(&*region.memory, *offset as usize, (*left).min(MAX_MOVE) as usize);
                let Ok(received) = region.enter(|| scatter.receive(fd)) else {
                    self.state = State::Discarding(*left);
                    return Ok(0);
                };
                let n = received? as u64;
                if n == 0 {
                    return Err(closed());
                }
                (*offset, *left) = (*offset + n, *left - n);
                if *left == 0 {
                    self.state = self.answer(Status::Ok, None)?;
                }
                Ok(n)
            }
            State::Discarding(left) => {
                let room = (*left).min(16 << 10) as usize;
                let mut waste = [0; 16 << 10];
                let mut scatter = Scatter::new();
                scatter.push_bytes(&mut waste[..room]);
                let n = scatter.receive(fd)? as u64;
                if n == 0 {
                    return Err(closed());
                }
                *left -= n;
                if *left == 0 {
                    self.state = self.answer(Status::Refused, None)?;
                }
                Ok(n)
            }
            State::Answering(status, sent, then) => {
                let bytes = status.to_bytes();
                let mut gather = Gather::new();
                gather.push_bytes(&bytes[*sent..]);
                let n = gather.send(fd)?;
                *sent += n;
                if *sent == bytes.len() {
                    self.state = match then.take() {
                        Some((region, offset, len)) => State::Sending(region, offset, len),
                        None => State::Head(0),
                    };
                }
                Ok(n as u64)
            }
            State::Sending(region, offset, left) => {
                let mut gather = Gather::new();
                gather.push_memory(&*region.memory, *offset as usize, (*left).min(MAX_MOVE) as usize);
                // The promised bytes cannot be taken back, so only closing ends a read of a revoked region.
                let sent = region.enter(|| gather.send(fd)).map_err(|_| closed())?;
                let n = sent? as u64;
                (*offset, *left) = (*offset + n, *left - n);
                if *left == 0 {
                    self.state = State::Head(0);
                }
                Ok(n)
            }
        }
    }

    /// A header is whole.
    fn begin(&mut self) -> io::Result<State> {
        let head = Head::from_bytes(&self.head)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "protocol: unknown opcode"))?;
        self.version_2 = head.version_2;
        let access = if head.op == Op::Read { Access::READ } else { Access::WRITE };
        let found = match head.len {
            0 => None,
            len => self.service.regions.find_address(head.addr, len, access),
        };
        let counters = &self.service.counters;
        match (found, head.op) {
            (Some((region, offset)), Op::Write) => {
                counters.bytes_served_written.add(head.len);
                Ok(State::Receiving(region, offset, head.len))
            }
            (Some((region, offset)), Op::Read) => {
                counters.bytes_served_read.add(head.len);
                self.answer(Status::Ok, Some((region, offset, head.len)))
            }
            (None, op) => {
                counters.refused.add(1);
                if !self.version_2 {
                    return Err(io::Error::new(
                        io::ErrorKind::PermissionDenied,
                        "refused, by closing: version 1",
                    ));
                }
                match op {
                    Op::Write if head.len > 0 => Ok(State::Discarding(head.len)),
                    _ => self.answer(Status::Refused, None),
                }
            }
        }
    }

    fn answer(&self, status: Status, then: Option<(Arc<RegionInner>, u64, u64)>) -> io::Result<State> {
        Ok(match (self.version_2, then) {
            (true, then) => State::Answering(status, 0, then),
            (false, Some((region, offset, len))) => State::Sending(region, offset, len),
            (false, None) if status == Status::Refused => {
                return Err(io::Error::new(
                    io::ErrorKind::PermissionDenied,
                    "refused, by closing: version 1",
                ));
            }
            (false, None) => State::Head(0),
        })
    }
}
