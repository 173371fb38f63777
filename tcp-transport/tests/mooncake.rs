//! Mooncake's data protocol: our client against our server, and raw bytes against our server.
#![cfg(feature = "mooncake")]
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use common::raw::is_closed;
use common::{Asker, Target, builder, pattern, soon, until};
use tcp_transport::mooncake::{Client, Version};
use tcp_transport::{Access, Batch, Deadlines, Error, Foreign, OwnedMemory, Recognition, Refusal};

const SECOND: Duration = Duration::from_secs(1);

fn head(len: u64, addr: u64, opcode: u8) -> Vec<u8> {
    let mut bytes = len.to_le_bytes().to_vec();
    bytes.extend(addr.to_le_bytes());
    bytes.push(opcode);
    bytes.extend([0xaa; 7]); // the other side does not clear its padding
    bytes
}

#[test]
fn both_versions_read_and_write_beside_the_native_protocol() {
    let target = Target::new(builder().serve_mooncake(true), 8 << 20);
    let asker = Asker::new(builder(), 8 << 20);
    for version in [Version::V1, Version::V2] {
        let client = Client::new(target.addr(), version, SECOND);
        for len in [1_u64, 24, 65_536, (5 << 20) + 1] {
            let bytes = pattern(len as usize, len);
            asker.memory.write(64, &bytes).unwrap();
            let (l, r) = (asker.region.addr() + 64, target.region.addr() + 128);
            client.write(&asker.region, l, r, len, soon()).unwrap();
            assert_eq!(target.bytes(128, len as usize), bytes, "{version:?}: complete means there");
            asker.memory.write(64, &vec![0; len as usize]).unwrap();
            client.read(&asker.region, l, r, len, soon()).unwrap();
            let mut back = vec![0; len as usize];
            asker.memory.read(64, &mut back).unwrap();
            assert_eq!(back, bytes);
        }
    }
    let peer = asker.transport.peer(target.addr()).unwrap();
    let mut batch = Batch::new();
    asker.write(&mut batch, &peer, target.region.descriptor(), 0, 4096);
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
}

#[test]
fn addresses_outside_are_refused_and_version_2_goes_on() {
    let target = Target::new(builder().serve_mooncake(true), 4096);
    let read_only = target.transport.register(OwnedMemory::new(4096).unwrap(), Access::READ).unwrap();
    let asker = Asker::new(builder(), 1 << 20);
    let (l, r) = (asker.region.addr(), target.region.addr());
    let v2 = Client::new(target.addr(), Version::V2, SECOND);
    for (addr, len) in [(r + 4000, 200), (r - 1, 8), (0, 8), (u64::MAX - 4, 8), (r, 1 << 20)] {
        for result in
            [v2.write(&asker.region, l, addr, len, soon()), v2.read(&asker.region, l, addr, len, soon())]
        {
            assert!(matches!(result, Err(Error::Refused { reason: Refusal::OutOfBounds, .. })), "{result:?}");
        }
    }
    assert!(v2.write(&asker.region, l, read_only.addr(), 8, soon()).is_err());
    v2.write(&asker.region, l, r, 4096, soon()).unwrap();
    let v1 = Client::new(target.addr(), Version::V1, SECOND);
    assert!(matches!(v1.read(&asker.region, l, r + 4000, 200, soon()), Err(Error::Disconnected { .. })));
    assert!(v1.write(&asker.region, l, r + 4000, 200, soon()).is_err());
    assert_eq!(target.bytes(4000, 96), [0; 96]);
    // A size of zero is refused too.
    let mut raw = TcpStream::connect(target.addr()).unwrap();
    raw.write_all(&head(0, r, 0x80)).unwrap();
    let mut status = [0; 8];
    raw.read_exact(&mut status).unwrap();
    assert_eq!(u64::from_le_bytes(status), 0x4D43_5456 << 32 | 1);
}

#[test]
fn bytes_on_the_wire_are_those_of_the_protocol() {
    let target = Target::new(builder().serve_mooncake(true), 4096);
    let mut raw = TcpStream::connect(target.addr()).unwrap();
    let r = target.region.addr();
    // Version 2, cut in the middle of everything.
    let mut bytes = head(5, r + 10, 0x81);
    bytes.extend(b"hello");
    for piece in bytes.chunks(3) {
        raw.write_all(piece).unwrap();
    }
    let mut status = [0; 8];
    raw.read_exact(&mut status).unwrap();
    assert_eq!(u64::from_le_bytes(status), 0x4D43_5456 << 32);
    assert_eq!(target.bytes(10, 5), b"hello");
    raw.write_all(&head(5, r + 10, 0x80)).unwrap();
    let mut answer = [0; 13];
    raw.read_exact(&mut answer).unwrap();
    assert_eq!(&answer[8..], b"hello");
    // Version 1 on the same connection.
    raw.write_all(&head(5, r + 10, 0)).unwrap();
    let mut answer = [0; 5];
    raw.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"hello");
    // An unknown opcode ends the connection.
    raw.write_all(&head(5, r, 7)).unwrap();
    assert_eq!(raw.read(&mut [0; 8]).unwrap_or(0), 0);
}

#[test]
fn it_is_off_unless_asked_for_and_a_deadline_is_kept() {
    let target = Target::new(builder(), 4096);
    let asker = Asker::new(builder(), 4096);
    let client = Client::new(target.addr(), Version::V2, SECOND);
    let error = client.read(&asker.region, asker.region.addr(), target.region.addr(), 8, soon()).unwrap_err();
    assert!(matches!(error, Error::Disconnected { .. }), "{error}");
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::new(mute.local_addr().unwrap(), Version::V2, SECOND);
    let start = Instant::now();
    let deadline = start + Duration::from_millis(200);
    let error = client.read(&asker.region, asker.region.addr(), 4096, 8, deadline).unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && start.elapsed() < SECOND, "{error}");
}

/// Something like Mooncake's handshake: a length, a type, JSON.
struct Handshake;

impl Foreign for Handshake {
    fn recognise(&self, head: &[u8]) -> Recognition {
        match head.get(8..10) {
            None => Recognition::Undecided,
            Some(&[0..=3, b'{']) => Recognition::Yes,
            Some(_) => Recognition::No,
        }
    }
    fn serve(&self, mut stream: TcpStream, head: &[u8], _: std::net::SocketAddr) {
        stream.write_all(format!("served {}", head.len()).as_bytes()).unwrap();
    }
}

#[test]
fn a_foreign_protocol_shares_the_port() {
    let target = Target::new(builder().serve_mooncake(true).foreign(Handshake), 4096);
    let mut raw = TcpStream::connect(target.addr()).unwrap();
    let mut bytes = 9_u64.to_le_bytes().to_vec();
    bytes.extend(b"\x01{\"a\": 1}");
    raw.write_all(&bytes).unwrap();
    let mut said = String::new();
    raw.read_to_string(&mut said).unwrap();
    assert!(said.starts_with("served 1"), "{said}");
    // The other two are served on the same port still.
    let asker = Asker::new(builder(), 4096);
    let client = Client::new(target.addr(), Version::V2, SECOND);
    client.write(&asker.region, asker.region.addr(), target.region.addr(), 4096, soon()).unwrap();
    asker.transport.peer(target.addr()).unwrap().ping(soon()).unwrap();
}

/// Who stops in the middle of a request is given up, wherever that is.
#[test]
fn a_client_that_stalls_is_given_up() {
    let deadlines = Deadlines { stall: Duration::from_millis(200), ..Deadlines::default() };
    let target = Target::new(builder().serve_mooncake(true).deadlines(deadlines), 32 << 20);
    let write = [head(100, target.region.addr(), 0x81), vec![1; 100]].concat();
    // A connection is this protocol's from its first header on.
    let ask = head(1, target.region.addr(), 0);
    for cut in [1, 12, 24, 60] {
        let mut raw = TcpStream::connect(target.addr()).unwrap();
        raw.write_all(&ask).unwrap();
        raw.read_exact(&mut [0]).unwrap();
        raw.write_all(&write[..cut]).unwrap();
        assert!(is_closed(raw).is_empty(), "{cut} bytes");
    }
    // Takes no answer. Reading would be progress, so it is the other side that is looked at.
    let mut raw = TcpStream::connect(target.addr()).unwrap();
    raw.write_all(&head(32 << 20, target.region.addr(), 0)).unwrap();
    until("it has been served", || target.transport.statistics().bytes_served_read >= 32 << 20);
    until("it is given up", || target.transport.statistics().connections == 0);
}

/// Revoking is a barrier for this protocol, too: the rest of a write is thrown away, a read ends with its connection.
#[test]
fn a_revoked_region_is_neither_written_nor_read() {
    let target = Target::new(builder().serve_mooncake(true), 4096);
    let memory = OwnedMemory::new(32 << 20).unwrap();
    let region = target.transport.register(memory.clone(), Access::READ_WRITE).unwrap();
    let (mut writer, mut reader) =
        (TcpStream::connect(target.addr()).unwrap(), TcpStream::connect(target.addr()).unwrap());
    writer.write_all(&[head(100, region.addr(), 0x81), vec![1; 40]].concat()).unwrap();
    let byte = |at: usize| {
        let mut byte = [0];
        memory.read(at, &mut byte).unwrap();
        byte[0]
    };
    until("a part is there", || byte(39) == 1);
    reader.write_all(&head(32 << 20, region.addr(), 0x80)).unwrap();
    let mut status = [0; 8];
    reader.read_exact(&mut status).unwrap();
    assert_eq!(u64::from_le_bytes(status), 0x4D43_5456 << 32);
    region.revoke();
    writer.write_all(&[1; 60]).unwrap();
    writer.read_exact(&mut status).unwrap();
    assert_eq!(u64::from_le_bytes(status), 0x4D43_5456 << 32 | 1);
    assert_eq!((byte(39), byte(40), byte(99)), (1, 0, 0));
    assert!(is_closed(reader).len() < 32 << 20, "read to its end after revocation");
}

/// A connection that is kept may have been closed by the other side meanwhile: another one is made. One whose answer has not come
/// is not used for the next request, which would take that answer for its own.
#[test]
fn kept_connections_are_used_while_they_are_in_step() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let asker = Asker::new(builder(), 4096);
    let client = Client::new(listener.local_addr().unwrap(), Version::V2, SECOND);
    let serve = |stream: &mut TcpStream, byte: u8| {
        stream.read_exact(&mut [0; 24]).unwrap();
        let answer = [(0x4D43_5456_u64 << 32).to_le_bytes().as_slice(), &[byte]].concat();
        stream.write_all(&answer).unwrap();
    };
    let read = |deadline| client.read(&asker.region, asker.region.addr(), 4096, 1, deadline);
    let is = |byte: u8| {
        let mut found = [0];
        asker.memory.read(0, &mut found).unwrap();
        assert_eq!(found, [byte]);
    };
    listener.set_nonblocking(true).unwrap();
    let accept = || {
        let mut stream = None;
        until("a connection is made", || {
            stream = listener.accept().ok();
            stream.is_some()
        });
        let (stream, _) = stream.unwrap();
        stream.set_nonblocking(false).unwrap();
        stream
    };
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            let mut first = accept();
            serve(&mut first, 1);
            serve(&mut first, 2);
            drop(first);
            let mut second = accept();
            serve(&mut second, 3);
            second
        });
        for byte in [1, 2, 3] {
            read(soon()).unwrap();
            is(byte);
        }
        let mut late = server.join().unwrap();
        let error = read(Instant::now() + Duration::from_millis(50)).unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        serve(&mut late, 4);
        let server = scope.spawn(|| serve(&mut accept(), 5));
        read(soon()).unwrap();
        is(5);
        server.join().unwrap();
    });
}
