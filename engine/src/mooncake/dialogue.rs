//! One question and its answer, on a connection of their own, within a deadline.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::frame::{self, Kind};

/// A socket whose every call ends at the deadline.
pub(super) struct Limited<'a> {
    pub(super) stream: &'a TcpStream,
    pub(super) deadline: Instant,
}

impl Limited<'_> {
    fn left(&self) -> io::Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
    }
}

impl Read for Limited<'_> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(Some(self.left()?))?;
        self.stream.read(bytes).map_err(name_timeout)
    }
}

impl Write for Limited<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(Some(self.left()?))?;
        self.stream.write(bytes).map_err(name_timeout)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Linux says "try again" when a socket's time limit has passed.
fn name_timeout(error: io::Error) -> io::Error {
    match error.kind() {
        io::ErrorKind::WouldBlock => io::ErrorKind::TimedOut.into(),
        _ => error,
    }
}

/// Asks the daemon at `addr`; returns the JSON of its answer.
pub(super) fn ask(addr: SocketAddr, kind: Kind, json: &[u8], deadline: Instant) -> io::Result<Vec<u8>> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    let stream = TcpStream::connect_timeout(&addr, left)?;
    stream.set_nodelay(true)?;
    let mut limited = Limited { stream: &stream, deadline };
    frame::write(&mut limited, kind, json)?;
    let (answered, json) = frame::read(&mut limited, frame::max_length(), &[])?;
    if answered != kind {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("it answered a question about {kind:?} with {answered:?}"),
        ));
    }
    // It waits for this end before it serves the next one.
    let _ = stream.shutdown(Shutdown::Both);
    Ok(json)
}
