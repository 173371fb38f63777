//! What the network tests share: a target, a TCP proxy that misbehaves on demand.
#![allow(dead_code, clippy::unwrap_used)] // each test program uses its part of it; tests

pub(crate) mod raw;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tcp_transport::{
    Access, Batch, Builder, OwnedMemory, Peer, Region, RegionDescriptor, Request, Transport,
};

pub(crate) fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

pub(crate) fn builder() -> Builder {
    Transport::builder().same_host(false).same_process(false)
}

/// A transport that listens, with one region that anybody may use.
pub(crate) struct Target {
    pub(crate) transport: Transport,
    pub(crate) memory: Arc<OwnedMemory>,
    pub(crate) region: Region,
}

impl Target {
    pub(crate) fn new(builder: Builder, len: usize) -> Self {
        let transport = builder.listen("127.0.0.1:0".parse().unwrap()).build().unwrap();
        let memory = OwnedMemory::new(len).unwrap();
        let region = transport.register(memory.clone(), Access::READ_WRITE).unwrap();
        Self { transport, memory, region }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.transport.local_addrs()[0]
    }

    pub(crate) fn bytes(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(offset, &mut bytes).unwrap();
        bytes
    }
}

/// A transport that asks, with a region of its own.
pub(crate) struct Asker {
    pub(crate) transport: Transport,
    pub(crate) memory: Arc<OwnedMemory>,
    pub(crate) region: Region,
}

impl Asker {
    pub(crate) fn new(builder: Builder, len: usize) -> Self {
        let transport = builder.build().unwrap();
        let memory = OwnedMemory::new(len).unwrap();
        let region = transport.register(memory.clone(), Access::LOCAL).unwrap();
        Self { transport, memory, region }
    }

    /// Adds a write of `len` bytes between equal offsets.
    pub(crate) fn write(&self, batch: &mut Batch, peer: &Peer, remote: RegionDescriptor, at: u64, len: u64) {
        let (l, r) = (self.region.addr() + at, remote.addr + at);
        batch.push(Request::write(peer, &self.region, l, remote, r, len)).unwrap();
    }

    pub(crate) fn read(&self, batch: &mut Batch, peer: &Peer, remote: RegionDescriptor, at: u64, len: u64) {
        let (l, r) = (self.region.addr() + at, remote.addr + at);
        batch.push(Request::read(peer, &self.region, l, remote, r, len)).unwrap();
    }
}

pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) as u8
        })
        .collect()
}

/// Waits until `done`; panics after a while.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = soon();
    while !done() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// How the proxy treats its connections.
#[repr(u8)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Forwards.
    Pass = 0,
    /// Takes bytes and forwards none: the other side hears nothing and nobody closes.
    Stall = 1,
    /// Forwards to the target, but not back.
    HalfOpen = 2,
    /// Forwards in pieces of a few bytes.
    Split = 3,
    /// Waits a little before every piece.
    Delay = 4,
    /// Keeps what goes to the target until it is told to let go, whatever becomes of the other side and of the mode.
    Hold = 5,
    /// Keeps everything, in its order, until the mode is another one.
    Pause = 6,
}

/// What [`Mode::Hold`] keeps.
#[derive(Default)]
struct Held {
    bytes: AtomicU64,
    released: AtomicBool,
}

pub(crate) struct Proxy {
    pub(crate) addr: SocketAddr,
    mode: Arc<AtomicU8>,
    accepting: Arc<AtomicBool>,
    target: Arc<Mutex<SocketAddr>>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    /// After so many more bytes towards the target, everything is reset.
    fuse: Arc<AtomicU64>,
    held: Arc<Held>,
    pub(crate) connections: Arc<AtomicU64>,
}

impl Proxy {
    pub(crate) fn new(target: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let this = Self {
            addr: listener.local_addr().unwrap(),
            mode: Arc::default(),
            accepting: Arc::new(AtomicBool::new(true)),
            target: Arc::new(Mutex::new(target)),
            streams: Arc::default(),
            fuse: Arc::new(AtomicU64::new(u64::MAX)),
            held: Arc::default(),
            connections: Arc::default(),
        };
        let (mode, streams, target) = (this.mode.clone(), this.streams.clone(), this.target.clone());
        let held = this.held.clone();
        let (accepting, fuse, connections) =
            (this.accepting.clone(), this.fuse.clone(), this.connections.clone());
        std::thread::spawn(move || {
            for a in listener.incoming().flatten() {
                connections.fetch_add(1, Ordering::SeqCst);
                let to = *target.lock().unwrap();
                let Ok(b) = TcpStream::connect(to) else { continue };
                if !accepting.load(Ordering::SeqCst) {
                    continue;
                }
                a.set_nodelay(true).unwrap();
                b.set_nodelay(true).unwrap();
                streams.lock().unwrap().extend([a.try_clone().unwrap(), b.try_clone().unwrap()]);
                for (from, to, forward) in
                    [(a.try_clone().unwrap(), b.try_clone().unwrap(), true), (b, a, false)]
                {
                    let (mode, streams, fuse) = (mode.clone(), streams.clone(), fuse.clone());
                    let held = held.clone();
                    std::thread::spawn(move || pump(from, to, forward, &mode, &streams, &fuse, &held));
                }
            }
        });
        this
    }

    pub(crate) fn set(&self, mode: Mode) {
        self.mode.store(mode as u8, Ordering::SeqCst);
    }

    pub(crate) fn accept(&self, on: bool) {
        self.accepting.store(on, Ordering::SeqCst);
    }

    pub(crate) fn retarget(&self, to: SocketAddr) {
        *self.target.lock().unwrap() = to;
    }

    pub(crate) fn cut_after(&self, bytes: u64) {
        self.fuse.store(bytes, Ordering::SeqCst);
    }

    /// Bytes that are held up, or have been let go and may still be on their way into the target.
    pub(crate) fn holds(&self) -> u64 {
        self.held.bytes.load(Ordering::SeqCst)
    }

    pub(crate) fn release(&self) {
        self.held.released.store(true, Ordering::SeqCst);
    }

    pub(crate) fn cut(&self) {
        reset(&self.streams);
    }
}

fn reset(streams: &Mutex<Vec<TcpStream>>) {
    for stream in streams.lock().unwrap().drain(..) {
        let _ = stream.shutdown(Shutdown::Both);
    }
}

fn pump(
    mut from: TcpStream,
    mut to: TcpStream,
    forward: bool,
    mode: &AtomicU8,
    streams: &Mutex<Vec<TcpStream>>,
    fuse: &AtomicU64,
    held: &Held,
) {
    let mut buffer = vec![0; 64 << 10];
    // TCP never loses the middle of a stream: a connection that has lost bytes stays silent.
    let mut silent = false;
    loop {
        let now = mode.load(Ordering::SeqCst);
        let room = if now == Mode::Split as u8 { 7 } else { buffer.len() };
        let n = match from.read(&mut buffer[..room]) {
            Ok(n) if n > 0 => n,
            _ => break,
        };
        let now = || mode.load(Ordering::SeqCst);
        until("the pause is over", || now() != Mode::Pause as u8);
        let now = now();
        silent |= now == Mode::Stall as u8 || (now == Mode::HalfOpen as u8 && !forward);
        if silent {
            continue; // swallowed
        }
        if now == Mode::Hold as u8 && forward {
            let mut kept = buffer[..n].to_vec();
            held.bytes.fetch_add(n as u64, Ordering::SeqCst);
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                kept.extend_from_slice(&buffer[..n]);
                held.bytes.fetch_add(n as u64, Ordering::SeqCst);
            }
            until("what is held is let go", || held.released.load(Ordering::SeqCst));
            // The target closes its side when it has taken all of it in, or has done so before.
            let _ = to.write_all(&kept).and_then(|()| to.shutdown(Shutdown::Write));
            while let Ok(1..) = to.read(&mut buffer) {}
            held.bytes.fetch_sub(kept.len() as u64, Ordering::SeqCst);
            break;
        }
        if now == Mode::Delay as u8 {
            std::thread::sleep(Duration::from_micros(300));
        }
        if forward {
            let left = fuse.load(Ordering::SeqCst);
            if left != u64::MAX {
                let pass = (n as u64).min(left) as usize;
                let _ = to.write_all(&buffer[..pass]);
                if pass as u64 == left {
                    fuse.store(u64::MAX, Ordering::SeqCst);
                    reset(streams);
                    break;
                }
                fuse.store(left - pass as u64, Ordering::SeqCst);
                continue;
            }
        }
        if to.write_all(&buffer[..n]).is_err() {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
