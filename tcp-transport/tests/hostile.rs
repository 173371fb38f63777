//! Clients that mean harm: each gets a clear refusal or a closed connection, memory stays bounded, and others are served as
//! if nothing had happened.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::raw::{Liar, is_closed, preface};
use common::{Asker, Target, builder, pattern, soon, until};
use tcp_transport::{
    Access, Batch, Deadlines, Encryption, Error, Limits, OwnedMemory, Refusal, RegionDescriptor, Request,
    Transport,
};

const SECRET: &[u8] = b"a secret of some length";

fn quick() -> Deadlines {
    Deadlines { hello: Duration::from_millis(300), stall: Duration::from_millis(300), ..Deadlines::default() }
}

/// The honest client that must not notice anything.
struct Honest {
    asker: Asker,
    addr: SocketAddr,
    remote: RegionDescriptor,
}

impl Honest {
    fn new(target: &Target) -> Self {
        let asker = Asker::new(builder().secret(SECRET), 1 << 20);
        Self { asker, addr: target.addr(), remote: target.region.descriptor() }
    }

    fn check(&self) {
        let peer = self.asker.transport.peer(self.addr).unwrap();
        let mut batch = Batch::new();
        self.asker.write(&mut batch, &peer, self.remote, 0, 1 << 20);
        self.asker.transport.submit(&mut batch).unwrap().wait().unwrap();
        assert_eq!(self.asker.transport.statistics().lanes_lost, 0);
    }
}

#[test]
fn strangers_are_turned_away_before_anything_is_served() {
    let target = Target::new(builder().secret(SECRET).deadlines(quick()), 1 << 20);
    let honest = Honest::new(&target);
    honest.check();
    let mut noise = preface(1);
    noise.extend([48, 0]);
    noise.extend(pattern(48, 9));
    let mut long = preface(1);
    long.extend([0xff, 0xff]);
    let mut open = preface(0);
    open.extend([104, 0]);
    open.extend([0; 104]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", vec![]),
        ("one byte", vec![0x89]),
        ("garbage", pattern(4096, 1)),
        ("an HTTP request", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec()),
        ("half a preface", preface(1)[..9].to_vec()),
        ("the wrong version", {
            let mut p = preface(1);
            p[7] = 9;
            p
        }),
        ("no secret", open),
        ("a forged first message", noise),
        ("a huge length", long),
    ];
    for (name, bytes) in cases {
        let before = target.transport.statistics().turned_away;
        let mut stream = TcpStream::connect(target.addr()).unwrap();
        stream.write_all(&bytes).unwrap();
        let said = is_closed(stream);
        assert!(said.len() < 400, "{name}: a stranger was told {} bytes", said.len());
        until(name, || target.transport.statistics().turned_away > before);
        honest.check();
    }
}

#[test]
fn a_wrong_secret_and_a_wrong_encryption_setting_are_named() {
    let target = Target::new(builder().secret(SECRET), 4096);
    let refused = |builder: tcp_transport::Builder| {
        let asker = Asker::new(builder, 4096);
        let start = Instant::now();
        let error = asker.transport.peer(target.addr()).unwrap().connect(soon()).unwrap_err();
        assert!(start.elapsed() < Duration::from_secs(5), "an authentication failure is not retried");
        assert!(matches!(error, Error::Authentication { .. }), "{error}");
        error.to_string()
    };
    assert!(refused(builder().secret("another secret of some length")).contains("wrong secret"));
    assert!(refused(builder()).contains("a secret is required"));
    assert!(refused(builder().secret(SECRET).encryption(Encryption::Full)).contains("encryption"));
    let open = Target::new(builder(), 4096);
    let asker = Asker::new(builder().secret(SECRET), 4096);
    let error = asker.transport.peer(open.addr()).unwrap().connect(soon()).unwrap_err().to_string();
    assert!(error.contains("no secret is configured"), "{error}");
}

#[test]
fn encrypted_lanes_carry_everything_and_nothing_in_the_clear() {
    let builder = || builder().secret(SECRET).encryption(Encryption::Full);
    let echo = |_: tcp_transport::Caller, request: &[u8]| Ok(request.to_vec());
    let target = Target::new(builder().handler(echo), 4 << 20);
    // A tap between the two.
    let proxy = common::Proxy::new(target.addr());
    let asker = Asker::new(builder(), 4 << 20);
    let peer = asker.transport.peer(proxy.addr).unwrap();
    let bytes = pattern(4 << 20, 77);
    asker.memory.write(0, &bytes).unwrap();
    let mut batch = Batch::new();
    asker.write(&mut batch, &peer, target.region.descriptor(), 0, 4 << 20);
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
    assert_eq!(target.bytes(0, 4 << 20), bytes);
    asker.memory.write(0, &vec![0; 4 << 20]).unwrap();
    asker.read(&mut batch, &peer, target.region.descriptor(), 0, 4 << 20);
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
    let mut back = vec![0; 4 << 20];
    asker.memory.read(0, &mut back).unwrap();
    assert_eq!(back, bytes);
    assert_eq!(peer.call(b"hello", soon()).unwrap(), b"hello");
    peer.notify(b"note", soon()).unwrap();
    assert_eq!(target.transport.notifications().next(soon()).unwrap().bytes, b"note");
    // A flipped bit on the way ends the lane; the request is retried and arrives.
    proxy.cut();
    asker.write(&mut batch, &peer, target.region.descriptor(), 0, 4096);
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
}

#[test]
fn liars_inside_are_refused_or_closed_and_the_others_are_unharmed() {
    let target = Target::new(builder().deadlines(quick()), 1 << 20);
    let asker = Asker::new(builder(), 1 << 20);
    let peer = asker.transport.peer(target.addr()).unwrap();
    peer.connect(soon()).unwrap();
    let good = target.region.descriptor();
    let key = &good.to_bytes()[..16];

    // Refusals, after which the same connection still works.
    let mut liar = Liar::new(target.addr());
    let mut ask = |frame: Vec<u8>, payload: &[u8]| {
        liar.0.write_all(&frame).unwrap();
        liar.0.write_all(payload).unwrap();
        liar.code()
    };
    let read = |key: &[u8], addr, len| Liar::frame(1, 0, 1, &Liar::range(key, addr, len), 0);
    let write = |key: &[u8], addr, len| Liar::frame(2, 0, 1, &Liar::range(key, addr, len), len);
    assert_eq!(ask(read(&[9; 16], good.addr, 8), &[]), Refusal::UnknownKey as u16);
    assert_eq!(ask(write(&[9; 16], good.addr, 8), &[1; 8]), Refusal::UnknownKey as u16);
    assert_eq!(ask(read(key, good.addr + good.len - 4, 8), &[]), Refusal::OutOfBounds as u16);
    assert_eq!(ask(write(key, good.addr - 1, 8), &[1; 8]), Refusal::OutOfBounds as u16);
    assert_eq!(ask(read(key, good.addr, 1 << 46), &[]), Refusal::OutOfBounds as u16);
    assert_eq!(ask(Liar::frame(0x60, 0, 1, b"later version", 5), b"12345"), Refusal::Unsupported as u16);
    let event = [0; 16];
    assert_eq!(ask(Liar::frame(5, 0, 1, &event, 2), b"hi"), 0, "an honest notification is accepted");
    assert_eq!(target.transport.notifications().next(soon()).unwrap().bytes, b"hi");
    peer.ping(soon()).unwrap();
    assert_eq!(asker.transport.statistics().lanes_lost, 0);
}

/// Copying between processes is for those who show the challenge in their own memory, and have said that they want it.
#[test]
fn who_names_another_process_gets_no_copy_between_processes() {
    let target = Target::new(builder().same_host(true), 1 << 20);
    let good = target.region.descriptor();
    let key = &good.to_bytes()[..16];
    // Where this process runs is what the target, which lives in it, says of itself.
    let (_, of_target) = Liar::introduced(target.addr(), |_| {});
    let here = of_target[44..72].to_vec();
    let near = |willing: bool, pid: u32| {
        let here = here.clone();
        move |introduction: &mut [u8]| {
            introduction[25] = u8::from(willing);
            introduction[44..72].copy_from_slice(&here);
            introduction[44..48].copy_from_slice(&pid.to_le_bytes());
        }
    };
    let ask = |liar: &mut Liar, memory: &[u8]| {
        let address = (memory.as_ptr() as u64).to_le_bytes();
        liar.0.write_all(&Liar::frame(0x0b, 0, 1, &address, 0)).unwrap();
        let probed = liar.code();
        let mut copy = Liar::range(key, good.addr, 16);
        copy.extend(&Liar::range(&[], memory.as_ptr() as u64, 16));
        liar.0.write_all(&Liar::frame(4, 0, 2, &copy, 0)).unwrap();
        (probed, liar.code())
    };
    let (no_copy, unsupported) = (Refusal::HostCopy as u16, Refusal::Unsupported as u16);
    let us = std::process::id();

    let (mut wrong_bytes, challenge) = Liar::introduced(target.addr(), near(true, us));
    assert_ne!(challenge[72..], [0; 32]);
    assert_eq!(ask(&mut wrong_bytes, &[1; 32]), (no_copy, unsupported));
    let (mut another, challenge) =
        Liar::introduced(target.addr(), near(true, std::os::unix::process::parent_id()));
    assert_eq!(ask(&mut another, &challenge[72..]), (no_copy, unsupported));
    let (mut unwilling, challenge) = Liar::introduced(target.addr(), near(false, us));
    assert_eq!(ask(&mut unwilling, &challenge[72..]), (no_copy, unsupported));
    assert_eq!(target.bytes(0, 16), [0; 16]);

    let (mut honest, challenge) = Liar::introduced(target.addr(), near(true, us));
    assert_eq!(ask(&mut honest, &challenge[72..]), (0, 0));
    assert_eq!(target.bytes(0, 16), challenge[72..88]);
}

#[test]
fn broken_frames_close_the_connection() {
    let target = Target::new(builder().deadlines(quick()), 1 << 20);
    let good = target.region.descriptor();
    let key = &good.to_bytes()[..16];
    let mut count = Liar::range(key, 0, 0);
    count.truncate(16);
    count.push(3);
    count.extend(u32::MAX.to_le_bytes());
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("an answer from the asking side", Liar::frame(0x80, 0, 1, &[], 0)),
        ("unknown flags", Liar::frame(1, 0x80, 1, &Liar::range(key, good.addr, 8), 0)),
        ("payload of another length", Liar::frame(2, 0, 1, &Liar::range(key, good.addr, 8), 9)),
        ("payload of a read", Liar::frame(1, 0, 1, &Liar::range(key, good.addr, 8), 8)),
        ("a range that wraps around", Liar::frame(1, 0, 1, &Liar::range(key, u64::MAX - 2, 8), 0)),
        ("an empty range", Liar::frame(1, 0, 1, &Liar::range(key, good.addr, 0), 0)),
        ("four thousand million ranges", Liar::frame(1, 0, 1, &count, 0)),
        ("short metadata", Liar::frame(1, 0, 1, key, 0)),
        ("long metadata", {
            let mut meta = Liar::range(key, good.addr, 8);
            meta.push(0);
            Liar::frame(1, 0, 1, &meta, 0)
        }),
        ("huge metadata", {
            let mut frame = Liar::frame(1, 0, 1, &[], 0);
            frame[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
            frame
        }),
    ];
    for (name, mut bytes) in cases {
        let mut liar = Liar::new(target.addr());
        // With what a payload may need, so that it is not closed for owing that.
        bytes.extend([0x5a; 16]);
        liar.0.write_all(&bytes).unwrap();
        assert!(is_closed(liar.0).is_empty(), "{name}: was answered");
    }
    assert_eq!(target.bytes(0, 4096), [0; 4096]);
    // Slow loris: a header, half a header, half a payload, and then silence.
    for cut in [1, 12, 24, 40, 60] {
        let mut bytes = Liar::frame(2, 0, 1, &Liar::range(key, good.addr, 100), 100);
        bytes.extend([1; 100]);
        let mut liar = Liar::new(target.addr());
        liar.0.write_all(&bytes[..cut]).unwrap();
        is_closed(liar.0);
    }
    // A message that is announced as larger than the limit is never stored.
    let small = Target::new(builder().limits(Limits { message: 1000, ..Limits::default() }), 4096);
    let mut liar = Liar::new(small.addr());
    liar.0.write_all(&Liar::frame(5, 0, 1, &[0; 16], 1001)).unwrap();
    liar.0.write_all(&[0; 1001]).unwrap();
    assert_eq!(liar.code(), Refusal::TooLarge as u16);
    assert_eq!(small.transport.notifications().try_next(), None);
}

#[test]
fn revoking_is_a_barrier_while_peers_write() {
    for host in [false, true] {
        let builder = || Transport::builder().same_process(false).same_host(host);
        let target = Target::new(builder(), 4096);
        let memory = OwnedMemory::new(8 << 20).unwrap();
        let region = target.transport.register(memory.clone(), Access::READ_WRITE).unwrap();
        let remote = region.descriptor();
        let asker = Asker::new(builder(), 8 << 20);
        asker.memory.write(0, &vec![0x77; 8 << 20]).unwrap();
        let peer = asker.transport.peer(target.addr()).unwrap();
        peer.connect(soon()).unwrap();
        let writer = std::thread::spawn(move || {
            let mut batch = Batch::new();
            loop {
                for i in 0..8 {
                    let (l, r) = (asker.region.addr() + (i << 20), remote.addr + (i << 20));
                    batch.push(Request::write(&peer, &asker.region, l, remote, r, 1 << 20)).unwrap();
                }
                if let Err(e) = asker.transport.submit(&mut batch).unwrap().wait() {
                    return e;
                }
            }
        });
        until("the first bytes are there", || {
            let mut byte = [0];
            memory.read(0, &mut byte).unwrap();
            byte == [0x77]
        });
        region.revoke();
        memory.write(0, &vec![0; 8 << 20]).unwrap();
        let error = writer.join().unwrap();
        let Error::Batch { source, .. } = &error else { panic!("{error}") };
        assert!(
            matches!(**source, Error::Refused { reason: Refusal::Revoked | Refusal::UnknownKey, .. }),
            "host={host}: {error}"
        );
        let mut bytes = vec![1; 8 << 20];
        memory.read(0, &mut bytes).unwrap();
        assert!(bytes.iter().all(|&b| b == 0), "host={host}: written after revocation");
    }
}

const FLOODED: &str = "TCP_TRANSPORT_TEST_FLOODED";

/// Not a test of its own: the process that the ten thousand connections go to, so that neither end needs more open files than a
/// process may have. It answers each line with how it stands.
#[test]
fn flooded_process() {
    if std::env::var_os(FLOODED).is_none() {
        return;
    }
    open_files(10_000).unwrap();
    let deadlines = Deadlines { hello: Duration::from_secs(2), ..Deadlines::default() };
    let limits = Limits { handshakes: 500, ..Limits::default() };
    let target = Target::new(builder().secret(SECRET).deadlines(deadlines).limits(limits), 1 << 20);
    let hex = hex::encode(target.region.descriptor().to_bytes());
    println!("\nREADY {} {hex}", target.addr());
    for _ in std::io::stdin().lines().map_while(Result::ok) {
        let statistics = target.transport.statistics();
        println!("STANDS {} {} {}", statistics.turned_away, statistics.connections, resident());
    }
}

struct Flooded {
    child: std::process::Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    addr: SocketAddr,
    remote: RegionDescriptor,
}

impl Flooded {
    fn start() -> Self {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "flooded_process", "--nocapture"])
            .env(FLOODED, "1")
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let ready = lines.by_ref().map(Result::unwrap).find(|l| l.starts_with("READY ")).unwrap();
        let words: Vec<&str> = ready.split(' ').collect();
        let bytes = hex::decode(words[2]).unwrap();
        let (addr, remote) = (words[1].parse().unwrap(), RegionDescriptor::from_bytes(&bytes).unwrap());
        Self { child, lines, addr, remote }
    }

    /// Connections turned away so far, connections open now, bytes of memory in use.
    fn stands(&mut self) -> [u64; 3] {
        self.child.stdin.as_mut().unwrap().write_all(b"?\n").unwrap();
        let line = self.lines.by_ref().map(Result::unwrap).find(|l| l.starts_with("STANDS ")).unwrap();
        let mut words = line.split(' ').skip(1).map(|w| w.parse().unwrap());
        std::array::from_fn(|_| words.next().unwrap())
    }
}

impl Drop for Flooded {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Makes sure that this process may open so many files, or says how many it may.
fn open_files(count: u64) -> Result<(), String> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    if limit.current.is_none_or(|n| n >= count) {
        return Ok(());
    }
    let most = limit.maximum;
    let raised = rustix::process::Rlimit { current: most, maximum: most };
    match rustix::process::setrlimit(rustix::process::Resource::Nofile, raised) {
        Ok(()) if most.is_none_or(|n| n >= count) => Ok(()),
        _ => Err(format!("needs {count} open files, may open {most:?}")),
    }
}

#[test]
fn ten_thousand_connections_leave_others_unharmed() {
    let count = 10_000;
    if let Err(reason) = open_files(count + 500) {
        return eprintln!("SKIP: ten_thousand_connections_leave_others_unharmed: {reason}");
    }
    let mut target = Flooded::start();
    let asker = Asker::new(builder().secret(SECRET), 1 << 20);
    let honest = Honest { asker, addr: target.addr, remote: target.remote };
    honest.check();
    let [_, _, before] = target.stands();
    let mut open = Vec::new();
    for i in 0..count {
        let mut stream = TcpStream::connect(target.addr).unwrap();
        if i % 2 == 0 {
            // May have been closed already to make room.
            let _ = stream.write_all(&preface(1));
        }
        open.push(stream);
        if i % 1000 == 999 {
            honest.check();
        }
    }
    until("most have been turned away", || target.stands()[0] >= count - 500);
    let [_, connections, after] = target.stands();
    assert!(connections <= 500 + 16, "{connections} strangers are still there");
    let grown = after.saturating_sub(before);
    assert!(grown < 64 << 20, "{count} connections took {grown} bytes");
    honest.check();
    drop(open);
    until("all are gone", || target.stands()[1] <= 4);
    honest.check();
}

/// Bytes of memory that this process has in use.
fn resident() -> u64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 4096
}

/// The answers of calls that their caller does not read: the handler is not asked for more of them than a lane may hold.
#[test]
fn who_reads_no_answers_fills_no_memory() {
    let answered = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&answered);
    let handler = move |_: tcp_transport::Caller, request: &[u8]| {
        if request == b"much" {
            count.fetch_add(1, Ordering::SeqCst);
            return Ok(vec![7; 1 << 20]);
        }
        Ok(Vec::new())
    };
    let target = Target::new(builder().handler(handler), 4096);
    let asker = Asker::new(builder(), 4096);
    let peer = asker.transport.peer(target.addr()).unwrap();
    peer.connect(soon()).unwrap();
    let calls = 200_u64;
    let asked: Vec<u8> = (0..calls)
        .flat_map(|n| {
            let event = [n.to_le_bytes(), 0_u64.to_le_bytes()].concat();
            [Liar::frame(6, 0, n, &event, 4), b"much".to_vec()].concat()
        })
        .collect();
    let mut liar = Liar::new(target.addr());
    liar.0.write_all(&asked).unwrap();
    let answers = || answered.load(Ordering::SeqCst);
    until("as many as may wait have been asked for", || answers() >= 64);
    // If more had been handed to the handler, these would have to wait for them.
    (0..4).for_each(|_| assert!(peer.call(b"little", soon()).unwrap().is_empty()));
    // 64 MiB wait, and some are in the buffers of the two sockets.
    assert!(answers() < 100, "{} answers of 1 MiB that nobody reads", answers());
    // Whoever reads after all gets every one of them.
    liar.0.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut answer = vec![0; 24 + (1 << 20)];
    for _ in 0..calls {
        liar.0.read_exact(&mut answer).unwrap();
        assert_eq!((answer[0], &answer[2..4], answer[24]), (0x80, &[0, 0][..], 7));
    }
    assert_eq!(answers() as u64, calls);
}

/// Who asks and takes no answers is given up like one who does not finish its requests.
#[test]
fn who_takes_no_answers_is_given_up() {
    let target = Target::new(builder().deadlines(quick()), 1 << 20);
    let good = target.region.descriptor();
    let read = Liar::frame(1, 0, 1, &Liar::range(&good.to_bytes()[..16], good.addr, 1 << 20), 0);
    let mut liar = Liar::new(target.addr());
    until("it is there", || target.transport.statistics().connections == 1);
    // More than the buffers of both sockets hold.
    liar.0.write_all(&read.repeat(64)).unwrap();
    until("it is given up", || target.transport.statistics().connections == 0);
    assert!(target.transport.statistics().bytes_served_read >= 1 << 20);
}

/// Calls take room at the handler until they are answered, or nobody is there any more to be answered.
#[test]
fn who_leaves_gives_back_the_room_of_its_calls() {
    let (release, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let handler = move |_: tcp_transport::Caller, request: &[u8]| {
        if request == b"slow" {
            let _ = gate.lock().unwrap().recv_timeout(Duration::from_secs(20));
        }
        Ok(request.to_vec())
    };
    let limits = Limits { calls: 3, ..Limits::default() };
    let target = Target::new(builder().handler(handler).limits(limits), 4096);
    let mut liar = Liar::new(target.addr());
    for n in 0..4_u64 {
        let event = [n.to_le_bytes(), 0_u64.to_le_bytes()].concat();
        liar.0.write_all(&[Liar::frame(6, 0, n, &event, 4), b"slow".to_vec()].concat()).unwrap();
    }
    assert_eq!(liar.code(), Refusal::Busy as u16, "there is room for three");
    drop(liar);
    until("it is gone", || target.transport.statistics().connections == 0);
    (0..3).for_each(|_| release.send(()).unwrap());
    let asker = Asker::new(builder(), 4096);
    let peer = asker.transport.peer(target.addr()).unwrap();
    assert_eq!(peer.call(b"quick", soon()).unwrap(), b"quick");
}

/// No more connections than the limit, of which one that ends leaves room for another.
#[test]
fn connections_above_the_limit_are_closed() {
    let limits = Limits { connections: 2, ..Limits::default() };
    let target = Target::new(builder().limits(limits), 4096);
    let (first, mut second) = (Liar::new(target.addr()), Liar::new(target.addr()));
    let mut third = TcpStream::connect(target.addr()).unwrap();
    // May find it closed already.
    let _ = third.write_all(&[&preface(0), [104, 0].as_slice(), &[3; 24], &[0; 80]].concat());
    assert!(is_closed(third).is_empty(), "was answered");
    drop(first);
    until("there is room", || target.transport.statistics().connections == 1);
    let mut third = Liar::new(target.addr());
    for liar in [&mut second, &mut third] {
        liar.0.write_all(&Liar::frame(7, 0, 1, &[], 0)).unwrap();
        assert_eq!(liar.code(), 0);
    }
}
