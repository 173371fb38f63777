//! A peer: another transport, reached by the address that it listens on.

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use crate::error::Error;

/// Which way the bytes of a peer's requests go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Path {
    /// Not connected yet.
    Unknown,
    /// TCP.
    Net,
    /// Another process on this host: the region's owner copies between the two processes.
    Host,
    /// This very transport: a plain copy.
    Loopback,
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unknown => "unknown",
            Self::Net => "net",
            Self::Host => "host",
            Self::Loopback => "loopback",
        })
    }
}

/// Another transport. Clones are the same peer. Lanes open on demand, stay open, and reopen by themselves.
#[derive(Clone)]
pub struct Peer {
    addr: SocketAddr,
}

impl Peer {
    /// The address that it listens on.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }
    /// Which way bytes go to it at the moment.
    pub fn path(&self) -> Path {
        Path::Unknown
    }
    /// Opens the lanes now rather than with the first request, and waits until one is up; returns the path.
    ///
    /// # Errors
    /// [`Error::Timeout`] with the last thing that went wrong, [`Error::Authentication`], [`Error::ShutDown`].
    pub fn connect(&self, deadline: Instant) -> Result<Path, Error> {
        let _ = deadline;
        Err(Error::ShutDown)
    }
    /// One round trip to the peer's I/O thread.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub fn ping(&self, deadline: Instant) -> Result<Duration, Error> {
        let _ = deadline;
        Err(Error::ShutDown)
    }
    /// Puts `bytes` into the peer's queue of notifications, exactly once, and returns when they are there.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`Error::Refused`] when they are too long, [`Error::Timeout`] while its queue is full.
    pub fn notify(&self, bytes: &[u8], deadline: Instant) -> Result<(), Error> {
        let _ = (bytes, deadline);
        Err(Error::ShutDown)
    }
    /// Has the peer's [`Handler`](crate::Handler) answer `request`. At most once: a call whose connection is lost after it
    /// was delivered fails with [`Error::AnswerLost`] rather than being run again.
    ///
    /// # Errors
    /// As [`connect`](Self::connect); [`Error::Call`] with the handler's words; [`Error::AnswerLost`].
    pub fn call(&self, request: &[u8], deadline: Instant) -> Result<Vec<u8>, Error> {
        let _ = (request, deadline);
        Err(Error::ShutDown)
    }
    /// Closes all lanes; requests in flight fail with [`Error::Disconnected`]. The next request opens new ones.
    pub fn disconnect(&self) {}
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer({} path={})", self.addr, self.path())
    }
}
