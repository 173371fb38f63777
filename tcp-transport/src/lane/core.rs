//! What a lane's lock guards: the requests in flight, the cipher, and moving their bytes through the socket.

use std::net::TcpStream;
use std::os::fd::AsFd;
use std::sync::Arc;

use crate::cipher::{Cipher, MAX_PLAIN};
use crate::clock::Coarse;
use crate::initiator::{Initiator, Leavings};
use crate::memory::OwnedMemory;
use crate::moving::{Cause, LARGE, MAX_MOVE, ahead, given, seal, send_sealed, taken, with_scratch};
use crate::seam::{Gather, Scatter};
use crate::slice::Slice;

pub(crate) struct LaneCore {
    pub(crate) initiator: Initiator,
    cipher: Option<Cipher>,
    pub(super) last_progress: Coarse,
    pub(super) pinged: bool,
    large: bool,
    /// Cleared when the driver falls asleep in a way that leaves it deaf to unsent bytes.
    pub(super) driver_sends: bool,
    /// Holds the challenge while the peer looks for it.
    pub(super) probe: Option<Arc<OwnedMemory>>,
}

impl LaneCore {
    pub(super) fn new(initiator: Initiator, cipher: Option<Cipher>) -> Self {
        Self {
            initiator,
            cipher,
            last_progress: Coarse::now(),
            pinged: false,
            large: false,
            driver_sends: true,
            probe: None,
        }
    }

    /// Queues a slice; an idle lane's clock starts now.
    pub(crate) fn push(&mut self, slice: &mut Slice, floor: u64) {
        if self.initiator.in_flight() == 0 {
            self.last_progress = Coarse::now();
        }
        self.initiator.push(slice, floor);
    }

    pub(crate) fn has_unsent(&self) -> bool {
        self.initiator.has_unsent() || self.cipher.as_ref().is_some_and(|c| !c.outgoing().is_empty())
    }

    pub(super) fn service(&mut self, socket: &TcpStream, readable: bool) -> Result<(), Cause> {
        if readable {
            with_scratch(|scratch| self.receive(socket, scratch))?;
        }
        if self.has_unsent() { self.flush(socket) } else { Ok(()) }
    }

    pub(super) fn flush(&mut self, socket: &TcpStream) -> Result<(), Cause> {
        let fd = socket.as_fd();
        loop {
            // A copy from the device that fails ends the lane: the frame's header has promised the bytes.
            self.initiator.stage()?;
            let (wanted, sent) = if let Some(cipher) = &mut self.cipher {
                if cipher.outgoing().is_empty() {
                    let mut gather = Gather::new();
                    self.initiator.gather(&mut gather, MAX_PLAIN);
                    let n = seal(cipher, &gather).map_err(|e| e.to_string())?;
                    self.initiator.sent(n as u64);
                }
                let Some(sent) = send_sealed(cipher, fd) else { return Ok(()) };
                sent
            } else {
                let mut gather = Gather::new();
                self.initiator.gather(&mut gather, MAX_MOVE);
                if gather.is_empty() {
                    return Ok(());
                }
                let (wanted, sent) = (gather.bytes(), gather.send(fd));
                if let Ok(n) = sent {
                    self.initiator.sent(n as u64);
                }
                (wanted, sent)
            };
            let Some(n) = taken(sent)? else { return Ok(()) };
            self.last_progress = Coarse::now();
            if n < wanted {
                return Ok(());
            }
        }
    }

    /// Bytes that were received into the read-ahead buffer.
    pub(super) fn take_in(&mut self, mut input: &[u8]) -> Result<(), Cause> {
        self.last_progress = Coarse::now();
        self.pinged = false;
        let broken = |e: crate::wire::Malformed| format!("protocol: {e}");
        let Some(cipher) = &mut self.cipher else { return self.initiator.feed(input).map_err(broken) };
        while let Some(plain) = cipher.open(&mut input).map_err(broken)? {
            self.initiator.feed(plain).map_err(broken)?;
        }
        Ok(())
    }

    pub(super) fn receive(&mut self, socket: &TcpStream, scratch: &mut [u8]) -> Result<(), Cause> {
        let fd = socket.as_fd();
        let mut moved = 0;
        // Bounded, so that others get the lock in between.
        while moved < 4 * MAX_MOVE {
            let (direct, wanted, received) = if self.cipher.is_some() {
                let mut scatter = Scatter::new();
                scatter.push_bytes(scratch);
                (0, scatter.bytes(), scatter.receive(fd))
            } else {
                let mut scatter = Scatter::new();
                self.initiator.scatter(&mut scatter, MAX_MOVE as u64);
                let direct = scatter.bytes();
                if !scatter.is_full() {
                    let ahead = ahead(direct, self.large, self.initiator.is_staging());
                    scatter.push_bytes(&mut scratch[..ahead]);
                }
                (direct, scatter.bytes(), scatter.receive(fd))
            };
            let Some(n) = given(received)? else { return Ok(()) };
            self.last_progress = Coarse::now();
            self.pinged = false;
            moved += n;
            if direct > 0 {
                self.large = direct as u64 > LARGE;
                self.initiator.received(n.min(direct) as u64).map_err(|e| format!("protocol: {e}"))?;
            }
            if n > direct {
                self.take_in(&scratch[..n - direct])?;
            }
            if n < wanted {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Moves what the requests have left to be seen to by others.
    pub(super) fn take_leavings(&mut self, leavings: &mut Leavings) {
        let from = &mut self.initiator.leavings;
        if !from.is_empty() {
            leavings.next.append(&mut from.next);
            leavings.later.append(&mut from.later);
            leavings.control.append(&mut from.control);
            leavings.finished_events.append(&mut from.finished_events);
        }
    }
}
