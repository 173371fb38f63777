//! The baseline: the same requests over one socket, each acknowledged when its bytes are there.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, SyncSender, channel, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use benchkit::{Error, Result};

use crate::plan::Op;

/// Bytes before each request: which way, where, how much.
const HEADER: usize = 24;

fn header(op: Op, at: usize, len: usize) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = u8::from(op == Op::Read);
    header[8..16].copy_from_slice(&(at as u64).to_le_bytes());
    header[16..].copy_from_slice(&(len as u64).to_le_bytes());
    header
}

/// Serves one connection after the other.
pub(crate) fn serve(listener: &TcpListener, mut pool: Vec<u8>) {
    for stream in listener.incoming().flatten() {
        match serve_one(stream, &mut pool) {
            Err(error) if error.kind() != ErrorKind::UnexpectedEof => eprintln!("bare socket: {error}"),
            _ => {}
        }
    }
}

fn serve_one(mut stream: TcpStream, pool: &mut [u8]) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    loop {
        let mut header = [0; HEADER];
        stream.read_exact(&mut header)?;
        let word = |at: usize| u64::from_le_bytes(core::array::from_fn(|i| header[at + i])) as usize;
        let (at, len) = (word(8), word(16));
        let range = at.checked_add(len).and_then(|end| pool.get_mut(at..end));
        let range = range.ok_or(ErrorKind::InvalidInput)?;
        if header[0] == 0 {
            stream.read_exact(range)?;
            stream.write_all(&[1])?;
        } else {
            stream.write_all(range)?;
        }
    }
}

/// The initiator's end.
pub(crate) struct Bare {
    stream: TcpStream,
    /// Requests on their way; as long as the window, so that sending blocks when it is full.
    sent: SyncSender<(Op, Instant)>,
    ended: Receiver<std::io::Result<Duration>>,
    _receiver: JoinHandle<()>,
}

impl Bare {
    pub(crate) fn connect(port: u16, window: usize, request_bytes: usize) -> Result<Bare> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        let mut answers = stream.try_clone()?;
        let (sent, requests) = sync_channel::<(Op, Instant)>(window);
        let (end, ended) = channel();
        let receiver = std::thread::spawn(move || {
            let mut page = vec![0; request_bytes];
            for (op, start) in requests {
                let answer = match op {
                    Op::Write => answers.read_exact(&mut page[..1]),
                    Op::Read => answers.read_exact(&mut page),
                };
                if end.send(answer.map(|()| start.elapsed())).is_err() {
                    return;
                }
            }
        });
        Ok(Bare { stream, sent, ended, _receiver: receiver })
    }

    /// Sends one request; blocks while the window is full.
    pub(crate) fn send(&mut self, op: Op, at: usize, source: &[u8]) -> Result<()> {
        self.sent.send((op, Instant::now())).map_err(|_| Error::from("the socket has broken"))?;
        self.stream.write_all(&header(op, at, source.len()))?;
        if op == Op::Write {
            self.stream.write_all(source)?;
        }
        Ok(())
    }

    /// Waits for the end of one request; how long it took.
    pub(crate) fn end(&mut self) -> Result<Duration> {
        Ok(self.ended.recv()??)
    }
}
