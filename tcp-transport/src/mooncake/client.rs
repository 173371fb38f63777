//! The asking side: blocking requests over connections that are kept.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::AsFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};

use super::frame::{Head, STATUS_LEN, Status};
use crate::error::{Error, Refusal};
use crate::region::Region;
use crate::request::Op;
use crate::seam::{Gather, Scatter};
use crate::slice::LocalUse;
use crate::sync::lock;

/// Connections that are kept while nobody uses them.
const MAX_IDLE: usize = 8;
const MAX_MOVE: u64 = 1 << 20;

/// Which version of the data protocol the peer speaks (`tcp_proto_version` of its segment descriptor).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// No status: a refusal is a closed connection. A write is followed by a read of its last byte, which the peer answers only
    /// when it has applied the write.
    V1,
    /// A status for each request.
    V2,
}

/// A peer that speaks Mooncake's data protocol. Threads may share it: each request takes a connection of its own and gives
/// it back. Every call blocks until its end or its deadline.
#[derive(Debug)]
pub struct Client {
    addr: SocketAddr,
    version: Version,
    connect: Duration,
    idle: Mutex<Vec<TcpStream>>,
}

impl Client {
    /// A peer by its data port (`tcp_data_port`). Connects with the first request, for `connect` at most.
    pub fn new(addr: SocketAddr, version: Version, connect: Duration) -> Self {
        Self { addr, version, connect, idle: Mutex::default() }
    }

    /// Reads `len` bytes at `remote_addr` into the region at `local_addr`.
    ///
    /// # Errors
    /// [`Error::OutOfBounds`], [`Error::Refused`], [`Error::Timeout`], [`Error::Disconnected`], [`Error::Protocol`].
    pub fn read(
        &self,
        local: &Region,
        local_addr: u64,
        remote_addr: u64,
        len: u64,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.run(Op::Read, local, local_addr, remote_addr, len, deadline)
    }

    /// Writes `len` bytes of the region at `local_addr` to `remote_addr`; returns when they are there.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(
        &self,
        local: &Region,
        local_addr: u64,
        remote_addr: u64,
        len: u64,
        deadline: Instant,
    ) -> Result<(), Error> {
        self.run(Op::Write, local, local_addr, remote_addr, len, deadline)
    }

    fn run(
        &self,
        op: Op,
        local: &Region,
        local_addr: u64,
        remote_addr: u64,
        len: u64,
        deadline: Instant,
    ) -> Result<(), Error> {
        if len == 0 {
            return Err(Error::Request("a request must have at least one byte".into()));
        }
        let offset = local.inner.offset(local_addr, len).ok_or(Error::OutOfBounds {
            side: "local",
            addr: local_addr,
            len,
            region_addr: local.addr(),
            region_len: local.len(),
        })?;
        if local.inner.memory.device().is_some() {
            return Err(Error::Request("Mooncake's protocol is served from host memory only".into()));
        }
        let using = LocalUse::new(&local.inner);
        let head = Head { op, version_2: self.version == Version::V2, addr: remote_addr, len };
        let kept = lock(&self.idle).pop();
        let fresh = kept.is_none();
        let stream = match kept {
            Some(stream) => stream,
            None => self.connect(deadline)?,
        };
        let mut turn = Turn { client: self, stream, deadline, begun: false };
        let mut result = turn.request(&head, &using, offset);
        if !fresh && !turn.begun && matches!(result, Err(Error::Disconnected { .. })) {
            // The peer had closed the kept connection before it took anything of this request.
            turn = Turn { client: self, stream: self.connect(deadline)?, deadline, begun: false };
            result = turn.request(&head, &using, offset);
        }
        // After anything else the connection's place in the protocol is unknown.
        let refused = matches!(result, Err(Error::Refused { .. })) && self.version == Version::V2;
        let usable = result.is_ok() || refused;
        if usable {
            let mut idle = lock(&self.idle);
            if idle.len() < MAX_IDLE {
                idle.push(turn.stream);
            }
        }
        result
    }

    fn connect(&self, deadline: Instant) -> Result<TcpStream, Error> {
        let left = deadline.saturating_duration_since(Instant::now()).min(self.connect);
        if left.is_zero() {
            return Err(self.timeout("connecting"));
        }
        let failed = |e: io::Error| match e.kind() {
            io::ErrorKind::TimedOut => self.timeout("connecting"),
            _ => Error::io(format!("connecting to {}", self.addr), e),
        };
        let stream = TcpStream::connect_timeout(&self.addr, left).map_err(failed)?;
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        Ok(stream)
    }

    fn timeout(&self, phase: &'static str) -> Error {
        Error::Timeout { peer: self.addr, phase, detail: String::new() }
    }
}

/// One request on one connection.
struct Turn<'a> {
    client: &'a Client,
    stream: TcpStream,
    deadline: Instant,
    /// The peer has said something, so it has taken at least part of the request.
    begun: bool,
}

impl Turn<'_> {
    fn request(&mut self, head: &Head, local: &LocalUse, offset: u64) -> Result<(), Error> {
        self.send(&head.to_bytes(), "sending")?;
        match (head.op, self.client.version) {
            (Op::Write, version) => {
                self.memory(head.op, local, offset, head.len)?;
                if version == Version::V2 {
                    return self.status();
                }
                let last = Head { op: Op::Read, addr: head.addr + head.len - 1, len: 1, ..*head };
                self.send(&last.to_bytes(), "sending")?;
                let mut byte = [0];
                self.receive(&mut byte, "waiting for the write to be applied")
            }
            (Op::Read, Version::V2) => {
                self.status()?;
                self.memory(head.op, local, offset, head.len)
            }
            (Op::Read, Version::V1) => self.memory(head.op, local, offset, head.len),
        }
    }

    fn status(&mut self) -> Result<(), Error> {
        let mut bytes = [0; STATUS_LEN];
        self.receive(&mut bytes, "waiting for the status")?;
        let peer = self.client.addr;
        match Status::from_bytes(bytes) {
            Some(Status::Ok) => Ok(()),
            Some(Status::Refused) => Err(Error::Refused { peer, reason: Refusal::OutOfBounds }),
            None => Err(Error::Protocol { peer, detail: "what it sent is no status".into() }),
        }
    }

    /// Payload, straight from or to the region.
    fn memory(&mut self, op: Op, local: &LocalUse, mut offset: u64, mut left: u64) -> Result<(), Error> {
        let memory = &*local.region().memory;
        while left > 0 {
            let len = left.min(MAX_MOVE) as usize;
            let moved = match op {
                Op::Write => {
                    let mut gather = Gather::new();
                    gather.push_memory(memory, offset as usize, len);
                    gather.send(self.stream.as_fd())
                }
                Op::Read => {
                    let mut scatter = Scatter::new();
                    scatter.push_memory(memory, offset as usize, len);
                    scatter.receive(self.stream.as_fd())
                }
            };
            let n = self.settle(moved, op == Op::Read, "moving the payload")? as u64;
            offset += n;
            left -= n;
        }
        Ok(())
    }

    fn send(&mut self, mut bytes: &[u8], phase: &'static str) -> Result<(), Error> {
        while !bytes.is_empty() {
            let sent = (&self.stream).write(bytes);
            bytes = &bytes[self.settle(sent, false, phase)?..];
        }
        Ok(())
    }

    fn receive(&mut self, mut bytes: &mut [u8], phase: &'static str) -> Result<(), Error> {
        while !bytes.is_empty() {
            let received = (&self.stream).read(bytes);
            let n = self.settle(received, true, phase)?;
            bytes = &mut bytes[n..];
        }
        Ok(())
    }

    /// Waits if the socket was not ready; says what went wrong otherwise.
    fn settle(
        &mut self,
        moved: io::Result<usize>,
        reading: bool,
        phase: &'static str,
    ) -> Result<usize, Error> {
        let peer = self.client.addr;
        match moved {
            Ok(0) if reading => {
                Err(Error::Disconnected { peer, detail: format!("closed by the peer while {phase}") })
            }
            Ok(n) => {
                self.begun |= reading;
                Ok(n)
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => Ok(0),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                let left = self.deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    return Err(self.client.timeout(phase));
                }
                let flags = if reading { PollFlags::IN } else { PollFlags::OUT };
                let timeout = Timespec { tv_sec: left.as_secs() as i64, tv_nsec: left.subsec_nanos().into() };
                let _ = rustix::event::poll(&mut [PollFd::new(&self.stream, flags)], Some(&timeout));
                Ok(0)
            }
            Err(e) => Err(Error::Disconnected { peer, detail: format!("{phase}: {e}") }),
        }
    }
}
