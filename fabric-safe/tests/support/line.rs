//! A line between two test processes, to tell each other addresses and whose turn it is.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

/// Nothing in a test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Line(UnixStream);

impl Line {
    pub(crate) fn listen(path: &Path) -> Line {
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        let start = Instant::now();
        loop {
            match listener.accept() {
                Ok((stream, _)) => return Line::new(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed() < PATIENCE, "the other process has not called");
            std::thread::yield_now();
        }
    }

    pub(crate) fn call(path: &Path) -> Line {
        let start = Instant::now();
        loop {
            match UnixStream::connect(path) {
                Ok(stream) => return Line::new(stream),
                Err(_) if start.elapsed() < PATIENCE => std::thread::yield_now(),
                Err(error) => panic!("the other process does not answer: {error}"),
            }
        }
    }

    fn new(stream: UnixStream) -> Line {
        stream.set_nonblocking(true).unwrap();
        Line(stream)
    }

    pub(crate) fn tell(&mut self, message: &[u8]) {
        let mut frame = (message.len() as u32).to_le_bytes().to_vec();
        frame.extend_from_slice(message);
        // Messages are far shorter than the socket's buffer.
        self.0.write_all(&frame).unwrap();
    }

    /// The other side's next message; meanwhile calls `progress` over and over.
    pub(crate) fn hear(&mut self, mut progress: impl FnMut()) -> Vec<u8> {
        let mut len = [0; 4];
        self.fill(&mut len, &mut progress);
        let mut message = vec![0; u32::from_le_bytes(len) as usize];
        self.fill(&mut message, &mut progress);
        message
    }

    fn fill(&mut self, buffer: &mut [u8], progress: &mut impl FnMut()) {
        let start = Instant::now();
        let mut filled = 0;
        while filled < buffer.len() {
            match self.0.read(&mut buffer[filled..]) {
                Ok(0) => panic!("the other process has hung up"),
                Ok(count) => filled += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    progress();
                    // Two processes on few cores: let the other one run.
                    std::thread::yield_now();
                }
                Err(error) => panic!("{error}"),
            }
            assert!(start.elapsed() < PATIENCE, "the other process says nothing");
        }
    }
}
