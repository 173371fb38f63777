//! The native protocol by hand, for tests that break it, or want to see what is said and when: a dialler and an acceptor that do
//! what the test says and nothing else.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use tcp_transport::RegionDescriptor;

use super::until;

/// A connection whose other side says nothing for so long is taken to be mute.
const MUTE: Duration = Duration::from_secs(10);

pub(crate) fn preface(mode: u8) -> Vec<u8> {
    let mut bytes = b"\x89WEFT\r\n\x01".to_vec();
    bytes.push(mode);
    bytes.extend([0; 7]);
    bytes
}

/// Reads until the other side closes; panics if it does not in time.
pub(crate) fn is_closed(mut stream: TcpStream) -> Vec<u8> {
    stream.set_read_timeout(Some(MUTE)).unwrap();
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(e) => {
            assert_eq!(e.kind(), ErrorKind::ConnectionReset, "the connection was left open: {e}")
        }
    }
    said
}

/// Speaks the native protocol just far enough to lie in it.
pub(crate) struct Liar(pub(crate) TcpStream);

impl Liar {
    pub(crate) fn new(addr: SocketAddr) -> Self {
        Self::introduced(addr, |_| {}).0
    }

    /// What it says about itself can be changed; returns what the target said.
    pub(crate) fn introduced(addr: SocketAddr, change: impl FnOnce(&mut [u8])) -> (Self, [u8; 104]) {
        let mut stream = TcpStream::connect(addr).unwrap();
        let mut introduction = [0; 104];
        introduction[..8].copy_from_slice(&[7; 8]); // a session
        introduction[16..20].copy_from_slice(&std::process::id().to_le_bytes());
        let port = stream.local_addr().unwrap().port();
        introduction[20..22].copy_from_slice(&port.to_le_bytes()); // a lane
        change(&mut introduction);
        let mut hello = preface(0);
        hello.extend([104, 0]);
        hello.extend(introduction);
        stream.write_all(&hello).unwrap();
        let mut welcome = [0; 107];
        stream.read_exact(&mut welcome).unwrap();
        assert_eq!(welcome[2], 0, "the handshake was refused");
        (Self(stream), welcome[3..].try_into().unwrap())
    }

    pub(crate) fn frame(kind: u8, flags: u8, id: u64, meta: &[u8], payload_len: u64) -> Vec<u8> {
        let mut out = vec![kind, flags, 0, 0];
        out.extend((meta.len() as u32).to_le_bytes());
        out.extend(id.to_le_bytes());
        out.extend(payload_len.to_le_bytes());
        out.extend(meta);
        out
    }

    pub(crate) fn range(key: &[u8], addr: u64, len: u64) -> Vec<u8> {
        let mut meta = key.to_vec();
        meta.push(0);
        meta.extend(addr.to_le_bytes());
        meta.extend(len.to_le_bytes());
        meta
    }

    /// The code of the next answer, which must have no payload.
    pub(crate) fn code(&mut self) -> u16 {
        let mut answer = [0; 24];
        self.0.set_read_timeout(Some(MUTE)).unwrap();
        self.0.read_exact(&mut answer).unwrap();
        assert_eq!((answer[0], &answer[16..]), (0x80, &[0; 8][..]));
        u16::from_le_bytes([answer[2], answer[3]])
    }
}

/// Accepts what a transport dials, and answers when the test says so.
pub(crate) struct Acceptor {
    listener: TcpListener,
    /// What it says about itself, the same to everyone.
    introduction: [u8; 104],
}

impl Acceptor {
    /// A region of so many bytes, at an address that is as large: acceptors look at no key.
    pub(crate) fn region(len: u64) -> RegionDescriptor {
        let number = len.to_le_bytes();
        let bytes = [[3; 16].as_slice(), &number, &number, &[3, 0, 0, 0, 0, 0, 0, 0]];
        RegionDescriptor::from_bytes(&bytes.concat()).unwrap()
    }

    pub(crate) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let mut introduction = [0; 104];
        introduction[..16].copy_from_slice(&[9; 16]); // a session
        introduction[32..40].copy_from_slice(&1_000_000_u64.to_le_bytes());
        introduction[40..44].copy_from_slice(&100_u32.to_le_bytes());
        Self { listener, introduction }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.listener.local_addr().unwrap()
    }

    /// The next connection, of which nothing has been read.
    pub(crate) fn connection(&self) -> TcpStream {
        let mut found = None;
        until("a connection is made", || {
            found = self.listener.accept().ok();
            found.is_some()
        });
        let (stream, _) = found.unwrap();
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(MUTE)).unwrap();
        stream
    }

    /// Whether nobody has connected.
    pub(crate) fn is_left_alone(&self) -> bool {
        self.listener.accept().is_err()
    }

    /// The next connection, after its handshake.
    pub(crate) fn lane(&self) -> Served {
        self.lane_with(|_, _| {})
    }

    /// As [`lane`](Self::lane); what it says about itself can be changed, knowing what the dialler has said.
    pub(crate) fn lane_with(&self, change: impl FnOnce(&[u8], &mut [u8])) -> Served {
        let mut stream = self.connection();
        let mut hello = [0; 16 + 2 + 104];
        stream.read_exact(&mut hello).unwrap();
        let mut ours = self.introduction;
        change(&hello[18..], &mut ours);
        stream.write_all(&welcome(&ours)).unwrap();
        Served { stream, number: u64::from_le_bytes(hello[18 + 16..][..8].try_into().unwrap()) }
    }

    /// What it would say in a handshake.
    pub(crate) fn welcome(&self) -> Vec<u8> {
        welcome(&self.introduction)
    }
}

fn welcome(introduction: &[u8; 104]) -> Vec<u8> {
    let mut bytes = vec![105, 0, 0];
    bytes.extend(introduction);
    bytes
}

/// A lane from a transport to the test.
pub(crate) struct Served {
    pub(crate) stream: TcpStream,
    /// The dialler's name for it.
    pub(crate) number: u64,
}

/// A request, whole.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub(crate) kind: u8,
    pub(crate) id: u64,
    pub(crate) meta: Vec<u8>,
    pub(crate) payload: Vec<u8>,
}

impl Served {
    /// The next request.
    pub(crate) fn asked(&mut self) -> Asked {
        let mut head = [0; 24];
        self.stream.read_exact(&mut head).unwrap();
        let word = |at: usize| u64::from_le_bytes(head[at..at + 8].try_into().unwrap());
        let mut meta = vec![0; u32::from_le_bytes(head[4..8].try_into().unwrap()) as usize];
        self.stream.read_exact(&mut meta).unwrap();
        let mut payload = vec![0; word(16) as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Asked { kind: head[0], id: word(8), meta, payload }
    }

    /// Panics if anything is asked meanwhile. That nothing is can only be seen for a while: what should not be asked, and is
    /// asked later than this, goes unseen.
    pub(crate) fn is_asked_nothing(&mut self, what: &str) {
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        match self.stream.peek(&mut [0; 24]) {
            Ok(n) => panic!("{what}: {n} bytes came"),
            Err(e) => assert!(matches!(e.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut), "{what}: {e}"),
        }
        self.stream.set_read_timeout(Some(MUTE)).unwrap();
    }

    pub(crate) fn answer(&mut self, id: u64, code: u16) {
        self.stream.write_all(&answer(id, code)).unwrap();
    }

    /// Dies.
    pub(crate) fn close(self) {
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

/// An answer without payload.
pub(crate) fn answer(id: u64, code: u16) -> Vec<u8> {
    let mut bytes = Liar::frame(0x80, 0, id, &[], 0);
    bytes[2..4].copy_from_slice(&code.to_le_bytes());
    bytes
}

/// The word that no new requests are taken.
pub(crate) fn go_away() -> Vec<u8> {
    Liar::frame(0x81, 0, 0, &[], 0)
}
