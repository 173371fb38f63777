//! Every operation between two processes, with the data checked, on every provider of every libfabric that is here.
//!
//! On software EFA cards it is run by soft-efa's test `fabric_safe`. `FABRIC_TEST_LARGE=1` adds transfers of 1 GiB and says how long the steps take.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use fabric_safe::{
    Access, Address, Capabilities, ErrorKind, MemoryRegion, OperationKind, PostError, PostFlags,
    ReceiveOptions, RemoteRegion, SendOptions, Tag, WriteOptions, option,
};
use support::line::{Line, PATIENCE};
use support::node::{Node, discover};
use support::{libraries, pattern, skip};

const ROLE: &str = "FABRIC_SAFE_TEST_ROLE";
const LINE: &str = "FABRIC_SAFE_TEST_LINE";
const PROVIDER: &str = "FABRIC_SAFE_TEST_PROVIDER";
/// Set to test transfers of up to 1 GiB.
const LARGE: &str = "FABRIC_TEST_LARGE";
/// What a child exits with when its provider is not there.
const ABSENT: i32 = 77;

macro_rules! providers {
    ($($test:ident: $provider:literal,)*) => {
        $(
            #[test]
            fn $test() {
                two_processes(stringify!($test), $provider);
            }
        )*
    };
}

providers! {
    tcp: "tcp",
    tcp_rxm: "tcp;ofi_rxm",
    net: "net",
    shm: "shm",
    sockets: "sockets",
    udp_rxd: "udp;ofi_rxd",
    efa: "efa/efa",
    efa_direct: "efa/efa-direct",
}

/// Runs both roles on every libfabric.
fn two_processes(test: &str, provider: &str) {
    if !libraries::wanted(provider) {
        return skip(test, "not in FABRIC_TEST_PROVIDERS");
    }
    let libraries = libraries::all();
    if libraries.is_empty() {
        return skip(test, "no libfabric here");
    }
    // One pair at a time: two processes that wait for each other are enough for a small machine.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut places = Vec::new();
    for library in &libraries {
        let folder = tempfile::tempdir().unwrap();
        let start = |role: &str| {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
            child.env(ROLE, role).env(LINE, folder.path().join("line")).env(PROVIDER, provider);
            library.choose(&mut child);
            Running(child.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
        };
        let (mut target, mut initiator) = (start("target"), start("initiator"));
        let (first, second) = (initiator.wait(), target.wait());
        if first == Some(ABSENT) && second == Some(ABSENT) {
            continue;
        }
        assert_eq!((first, second), (Some(0), Some(0)), "{provider} on {}", library.name);
        places.push(&library.name);
    }
    if places.is_empty() {
        skip(test, &format!("no libfabric here has provider {provider}"));
    } else {
        eprintln!("{test}: well on {places:?}");
    }
}

/// A child process that does not outlive the test.
struct Running(Child);

impl Running {
    fn wait(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < 2 * PATIENCE, "a child does not come to an end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both roles; does nothing unless started by `two_processes`.
#[test]
fn child() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let provider = std::env::var(PROVIDER).unwrap();
    let path = PathBuf::from(std::env::var_os(LINE).unwrap());
    let Some(info) = discover(&provider) else { std::process::exit(ABSENT) };
    let target = role == "target";
    let line = if target { Line::listen(&path) } else { Line::call(&path) };
    let node = Node::open(&info);
    let mut side = Side::meet(node, line, info.capabilities(), target, &provider);
    let steps: [(&str, Step); 10] = [
        ("messages", Side::messages),
        ("tagged messages", Side::tagged_messages),
        ("injected messages", Side::injected_messages),
        ("writes", Side::writes),
        ("reads", Side::reads),
        ("vectors", Side::vectors),
        ("immediates", Side::immediates),
        ("atomics", Side::atomics),
        ("saturation", Side::saturation),
        ("closing", Side::closing),
    ];
    for (name, step) in steps {
        let start = Instant::now();
        step(&mut side);
        if std::env::var_os(LARGE).is_some() && target {
            eprintln!("  {provider}: {name} {:?}", start.elapsed());
        }
    }
    drop(side);
    assert_eq!(fabric_safe::leaked_objects(), 0);
}

/// One of the two processes.
struct Side {
    node: Node,
    line: Line,
    peer: Address,
    capabilities: Capabilities,
    target: bool,
    /// Longest transfer that is reasonable with this provider.
    longest: usize,
    token: u64,
}

/// One of the things to do together.
type Step = fn(&mut Side);

/// Bytes around every range that a test writes, which must not change.
const MARGIN: usize = 64;

impl Side {
    fn meet(node: Node, mut line: Line, capabilities: Capabilities, target: bool, provider: &str) -> Side {
        line.tell(&node.endpoint.name().unwrap());
        let peer = node.insert(&line.hear(|| {}));
        let longest = match provider {
            // Datagrams of a few KiB with acknowledgements in software.
            "udp;ofi_rxd" => 1 << 20,
            // A gigabyte takes seconds with each provider on a small machine, so it is for those who ask.
            _ if std::env::var_os(LARGE).is_some() => 1 << 30,
            _ => 16 << 20,
        };
        Side { node, line, peer, capabilities, target, longest, token: 0 }
    }

    fn token(&mut self) -> u64 {
        self.token += 1;
        self.token
    }

    fn tell(&mut self, message: &[u8]) {
        self.line.tell(message);
    }

    fn hear(&mut self) -> Vec<u8> {
        let Side { line, node, .. } = self;
        line.hear(|| {
            node.poll();
        })
    }

    /// Waits for each other, making progress.
    fn together(&mut self) {
        self.tell(b"here");
        assert_eq!(self.hear(), b"here");
    }

    fn register(&self, bytes: Vec<u8>) -> MemoryRegion<Vec<u8>> {
        self.node.domain.register(bytes, Access::ALL).unwrap()
    }

    /// The target's region, as it told.
    fn remote(&mut self) -> RemoteRegion {
        RemoteRegion::from_bytes(self.hear().try_into().unwrap())
    }

    fn sizes(&self, longest: usize) -> Vec<usize> {
        let longest = longest.min(self.longest);
        [1, 64, 4096, 65_536 + 3, 1 << 20, 16 << 20, 1 << 30]
            .into_iter()
            .filter(|size| *size <= longest)
            .collect()
    }

    fn messages(&mut self) {
        // Messages may be far shorter than writes (EFA's own fabric: one packet).
        let longest = self.node.endpoint.get(option::MAX_MESSAGE_BYTES).unwrap_or(usize::MAX);
        for size in self.sizes(longest.min(16 << 20)) {
            let token = self.token();
            let peer = self.peer.clone();
            if self.target {
                let region = self.register(vec![0; size + 5]);
                self.node.post(|e| e.receive(None, region.slice(0..size + 5).unwrap(), token));
                self.together();
                let end = self.node.good_end(token);
                assert_eq!((end.kind, end.len_bytes), (OperationKind::Receive, size));
                let bytes = region.into_memory().unwrap();
                assert!(bytes[..size] == pattern(size as u64, size), "{size} bytes received wrong");
                assert_eq!(bytes[size..], [0; 5]);
            } else {
                let region = self.register(pattern(size as u64, size));
                self.together();
                self.node.post(|e| e.send(&peer, region.as_slice(), token));
                assert_eq!(self.node.good_end(token).kind, OperationKind::Send);
            }
            self.together();
        }
    }

    fn tagged_messages(&mut self) {
        if !self.capabilities.contains(Capabilities::TAGGED) {
            return;
        }
        let (one, two) = (self.token(), self.token());
        let peer = self.peer.clone();
        let region = self.register(pattern(9, 200));
        if self.target {
            // The second message meets the first receive, because the tags say so.
            for (token, tag, at) in [(two, 22, 100), (one, 11, 0)] {
                let options = ReceiveOptions { tag: Some(Tag::exactly(tag)), ..Default::default() };
                self.node
                    .post(|e| e.receive_with(None, &[region.slice(at..at + 100).unwrap()], options, token));
            }
            self.together();
            assert_eq!(self.node.good_end(one).len_bytes, 50);
            let end = self.node.good_end(two);
            assert_eq!(end.len_bytes, 60);
            assert!(end.tag.is_none_or(|tag| tag == 22), "{end:?}");
            let mut bytes = [0; 60];
            region.copy_out(100, &mut bytes).unwrap();
            assert_eq!(bytes, pattern(9, 200)[50..110]);
        } else {
            self.together();
            for (token, tag, range) in [(one, 11, 0..50), (two, 22, 50..110)] {
                let options = SendOptions { tag: Some(tag), ..Default::default() };
                self.node
                    .post(|e| e.send_with(&peer, &[region.slice(range.clone()).unwrap()], options, token));
                self.node.good_end(token);
            }
        }
        self.together();
    }

    fn injected_messages(&mut self) {
        let size = self.node.endpoint.info().inject_bytes().min(48);
        let immediate = self.node.endpoint.info().immediate_bytes() > 0;
        let token = self.token();
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0; 48]);
            self.node.post(|e| e.receive(None, region.as_slice(), token));
            self.together();
            let end = self.node.good_end(token);
            assert_eq!(end.len_bytes, size);
            assert_eq!(end.immediate, immediate.then_some(0x1234_5678));
            assert_eq!(region.into_memory().unwrap()[..size], pattern(3, size));
        } else {
            self.together();
            let mut bytes = pattern(3, size);
            let options = SendOptions { immediate: immediate.then_some(0x1234_5678), ..Default::default() };
            self.node.post(|e| e.inject(&peer, &bytes, options));
            // Free to be reused as soon as the call has returned.
            bytes.fill(0);
            self.node.poll();
        }
        self.together();
    }

    /// The target waits until the bytes are there (at once, where writes complete when visible), and checks that nothing
    /// around them has changed.
    fn check_written(&mut self, region: &MemoryRegion<Vec<u8>>, seed: u64, size: usize) {
        let expected = pattern(seed, size);
        let mut bytes = vec![0; 1 << 20];
        let mut same = |at: usize| {
            let len = bytes.len().min(size - at);
            region.copy_out(MARGIN + at, &mut bytes[..len]).unwrap();
            bytes[..len] == expected[at..at + len]
        };
        let start = Instant::now();
        for at in (0..size).step_by(1 << 20) {
            while !same(at) {
                assert!(
                    !self.node.endpoint.info().delivery_complete(),
                    "a write of {size} bytes completed before the bytes were there"
                );
                assert!(start.elapsed() < PATIENCE, "the bytes of a write do not come");
                self.node.poll();
            }
        }
        let mut margins = [0; 2 * MARGIN];
        region.copy_out(0, &mut margins[..MARGIN]).unwrap();
        region.copy_out(MARGIN + size, &mut margins[MARGIN..]).unwrap();
        assert_eq!(margins, [0xee; 2 * MARGIN]);
    }

    fn writes(&mut self) {
        for size in self.sizes(1 << 30) {
            let peer = self.peer.clone();
            if self.target {
                let region = self.register(vec![0xee; size + 2 * MARGIN]);
                self.tell(&region.remote().to_bytes());
                self.hear();
                self.check_written(&region, size as u64, size);
            } else {
                let region = self.register(pattern(size as u64, size));
                let remote = self.remote();
                assert_eq!(remote.len_bytes, (size + 2 * MARGIN) as u64);
                let token = self.token();
                self.node.post(|e| e.write(&peer, region.as_slice(), remote.at(MARGIN as u64), token));
                assert_eq!(self.node.good_end(token).kind, OperationKind::Write);
                self.tell(b"written");
            }
            self.together();
        }
        // A few bytes without a completion, where writes can be injected at all (on EFA's own fabric they cannot).
        let endpoint = &self.node.endpoint;
        let size = endpoint.get(option::INJECT_RMA_BYTES).unwrap_or(endpoint.info().inject_bytes()).min(32);
        if size == 0 {
            return;
        }
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0xee; size + 2 * MARGIN]);
            self.tell(&region.remote().to_bytes());
            let start = Instant::now();
            let mut bytes = vec![0; size];
            while bytes != pattern(5, size) {
                self.node.poll();
                region.copy_out(MARGIN, &mut bytes).unwrap();
                assert!(start.elapsed() < PATIENCE, "injected bytes do not come");
            }
            self.tell(b"seen");
        } else {
            let remote = self.remote();
            let bytes = pattern(5, size);
            match self.node.endpoint.inject_write(&peer, &bytes, remote.at(MARGIN as u64), None) {
                Ok(()) => {}
                Err(_) => {
                    self.node.post(|e| e.inject_write(&peer, &bytes, remote.at(MARGIN as u64), None));
                }
            }
            self.hear();
        }
        self.together();
    }

    fn reads(&mut self) {
        for size in self.sizes(16 << 20) {
            let peer = self.peer.clone();
            if self.target {
                let region = self.register(pattern(size as u64 + 1, size));
                self.tell(&region.remote().to_bytes());
                self.hear();
            } else {
                let region = self.register(vec![0xee; size + 2 * MARGIN]);
                let remote = self.remote();
                let token = self.token();
                let slice = region.slice(MARGIN..MARGIN + size).unwrap();
                self.node.post(|e| e.read(&peer, slice, remote.at(0), token));
                assert_eq!(self.node.good_end(token).kind, OperationKind::Read);
                let bytes = region.into_memory().unwrap();
                assert!(bytes[MARGIN..MARGIN + size] == pattern(size as u64 + 1, size));
                assert!(bytes[..MARGIN].iter().chain(&bytes[MARGIN + size..]).all(|byte| *byte == 0xee));
                self.tell(b"read");
            }
            self.together();
        }
    }

    fn vectors(&mut self) {
        let info = self.node.endpoint.info();
        let most = info.transmit_segments();
        // What `tx_attr.iov_limit` promises holds for sends; an EFA card takes one local range for a read or write.
        let segments = if info.fabric_name() == "efa-direct" { 1 } else { most };
        let size = 1000 * segments;
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0xee; size + 2 * MARGIN]);
            self.tell(&region.remote().to_bytes());
            self.hear();
            self.check_written(&region, 77, size);
            self.hear();
        } else {
            // Every second block of a region, backwards in memory, and two regions where that is possible.
            let bytes = pattern(77, size);
            let mut regions = Vec::new();
            for segment in bytes.chunks(1000) {
                let mut memory = vec![0; 1500];
                memory[500..].copy_from_slice(segment);
                regions.push(self.register(memory));
            }
            let slices: Vec<_> = regions.iter().map(|region| region.slice(500..1500).unwrap()).collect();
            let remote = self.remote();
            let token = self.token();
            let options = WriteOptions::default();
            self.node.post(|e| e.write_with(&peer, &slices, remote.at(MARGIN as u64), options, token));
            self.node.good_end(token);
            self.tell(b"written");
            let into: Vec<_> = regions.iter().rev().map(|region| region.slice(0..400).unwrap()).collect();
            let token = self.token();
            self.node.post(|e| {
                e.read_with(&peer, &into, remote.at(MARGIN as u64 + 100), PostFlags::empty(), token)
            });
            self.node.good_end(token);
            for (index, region) in regions.iter().rev().enumerate() {
                let mut read = [0; 400];
                region.copy_out(0, &mut read).unwrap();
                assert_eq!(read, bytes[100 + 400 * index..][..400]);
            }
            let many = vec![slices[0]; most + 1];
            let refused = self.node.endpoint.write_with(&peer, &many, remote.at(0), options, 0);
            assert!(matches!(refused, Err(PostError::Failed(_))));
            self.tell(b"read");
        }
        self.together();
    }

    fn immediates(&mut self) {
        let width = self.node.endpoint.info().immediate_bytes();
        if width == 0 {
            return;
        }
        let widest = u64::MAX >> (64 - 8 * width as u32);
        let values = [0, 1, widest];
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0xee; 3000 + 2 * MARGIN]);
            // Some providers use up a receive for each.
            let spare = self.register(vec![0; 64]);
            let tokens: Vec<u64> = values.iter().map(|_| self.token()).collect();
            for token in &tokens {
                self.node.post(|e| e.receive(None, spare.as_slice(), *token));
            }
            self.tell(&region.remote().to_bytes());
            self.node.until("three immediates", |node| node.immediates.len() >= 3);
            let mut came = core::mem::take(&mut self.node.immediates);
            came.sort_unstable();
            assert_eq!(came, values);
            // The bytes come before the immediate.
            self.check_written(&region, 6, 3000);
            self.tell(b"seen");
            // Messages for the receives that are left.
            let left = tokens.iter().filter(|token| !self.node.ended.contains_key(token)).count();
            self.tell(&[left as u8]);
            for token in tokens {
                self.node.good_end(token);
            }
        } else {
            let region = self.register(pattern(6, 3000));
            let remote = self.remote();
            for (index, value) in values.into_iter().enumerate() {
                let (token, at) = (self.token(), 1000 * index);
                let options = WriteOptions { immediate: Some(value), ..Default::default() };
                let slice = region.slice(at..at + 1000).unwrap();
                self.node
                    .post(|e| e.write_with(&peer, &[slice], remote.at((MARGIN + at) as u64), options, token));
                self.node.good_end(token);
            }
            if width < 8 {
                let options = WriteOptions { immediate: Some(widest + 1), ..Default::default() };
                let slice = [region.slice(0..8).unwrap()];
                assert!(self.node.endpoint.write_with(&peer, &slice, remote.at(0), options, 0).is_err());
            }
            self.hear();
            for _ in 0..self.hear()[0] {
                let token = self.token();
                self.node.post(|e| e.send(&peer, region.slice(0..4).unwrap(), token));
                self.node.good_end(token);
            }
        }
        self.together();
    }

    fn atomics(&mut self) {
        if !self.node.endpoint.has_atomics() {
            return;
        }
        let peer = self.peer.clone();
        if self.target {
            // Aligned, which a vector of bytes need not be.
            let region = self.node.domain.register(
                fabric_safe::Mapping::anonymous(64, fabric_safe::PageKind::Small).unwrap(),
                Access::ALL,
            );
            let region = region.unwrap();
            region.copy_in(8, &40u64.to_ne_bytes()).unwrap();
            self.tell(&region.remote().to_bytes());
            self.hear();
            let mut value = [0; 8];
            region.copy_out(8, &mut value).unwrap();
            assert_eq!(u64::from_ne_bytes(value), 7);
        } else {
            let memory = fabric_safe::Mapping::anonymous(64, fabric_safe::PageKind::Small).unwrap();
            let region = self.node.domain.register(memory, Access::ALL).unwrap();
            let remote = self.remote();
            let number = |at: usize| region.slice(at..at + 8).unwrap();
            let result = || {
                let mut value = [0; 8];
                region.copy_out(16, &mut value).unwrap();
                u64::from_ne_bytes(value)
            };
            region.copy_in(0, &2u64.to_ne_bytes()).unwrap();
            let token = self.token();
            self.node.post(|e| e.fetch_add(&peer, number(0), number(16), remote.at(8), token));
            assert_eq!(self.node.good_end(token).kind, OperationKind::Atomic);
            assert_eq!(result(), 40);
            // Refused because the value is 42 by now, then accepted.
            region.copy_in(0, &7u64.to_ne_bytes()).unwrap();
            for (expected, found) in [(40u64, 42), (42, 42)] {
                region.copy_in(8, &expected.to_ne_bytes()).unwrap();
                let token = self.token();
                self.node
                    .post(|e| e.compare_swap(&peer, number(0), number(8), number(16), remote.at(8), token));
                self.node.good_end(token);
                assert_eq!(result(), found);
            }
            let odd = region.slice(1..9).unwrap();
            assert!(self.node.endpoint.fetch_add(&peer, odd, number(16), remote.at(8), 0).is_err());
            self.tell(b"done");
        }
        self.together();
    }

    /// As many writes as go in, then all of them again while some complete: each ends once.
    fn saturation(&mut self) {
        const BLOCK: usize = 512;
        let blocks = 64;
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0xee; blocks * BLOCK + 2 * MARGIN]);
            self.tell(&region.remote().to_bytes());
            self.hear();
            self.check_written(&region, 8, blocks * BLOCK);
        } else {
            let region = self.register(pattern(8, blocks * BLOCK));
            let remote = self.remote();
            let depth = self.node.endpoint.transmit_depth();
            let total = (2 * depth + 100).min(if self.longest < 16 << 20 { 500 } else { 10_000 });
            let first = self.token();
            self.token += total as u64;
            let mut posted = 0;
            let mut ended = 0;
            let mut again = 0;
            let start = Instant::now();
            while ended < total {
                let mut transmit = self.node.endpoint.transmit().unwrap();
                while posted < total {
                    let at = posted % blocks * BLOCK;
                    let target = remote.at((MARGIN + at) as u64);
                    let slice = region.slice(at..at + BLOCK).unwrap();
                    match transmit.write(&peer, slice, target, first + posted as u64) {
                        Ok(_) => posted += 1,
                        Err(PostError::Again) => {
                            again += 1;
                            break;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                drop(transmit);
                assert!(self.node.endpoint.transmit_in_flight() <= depth);
                ended += self.node.poll();
                assert!(start.elapsed() < PATIENCE, "{ended} of {posted} writes have ended");
            }
            assert_eq!(posted, total);
            assert!(again > 0 || total < depth, "no limit was met");
            for token in first..first + total as u64 {
                self.node.good_end(token);
            }
            assert_eq!(self.node.endpoint.transmit_in_flight(), 0);
            self.tell(b"written");
        }
        self.together();
    }

    /// Receives that nobody sends to end when the endpoint is closed, and give their memory back.
    fn closing(&mut self) {
        let region = self.register(vec![0; 4096]);
        let tokens: Vec<u64> = (0..3).map(|_| self.token()).collect();
        for token in &tokens {
            self.node.post(|e| e.receive(None, region.as_slice(), *token));
        }
        self.together();
        let Err(fabric_safe::DeregisterError::InUse(region)) = region.into_memory() else {
            panic!("memory was given back under a receive");
        };
        assert_eq!(self.node.endpoint.receive_in_flight(), tokens.len());
        self.node.endpoint.close().unwrap();
        self.node.endpoint.close().unwrap();
        assert!(matches!(self.node.endpoint.receive(None, region.as_slice(), 0), Err(PostError::Closed)));
        for token in tokens {
            let error = self.node.end(token).result.unwrap_err();
            assert!(matches!(error.kind(), ErrorKind::Aborted | ErrorKind::Cancelled), "{error}");
            assert!(error.quiesced());
        }
        assert_eq!(region.into_memory().unwrap(), vec![0; 4096]);
        self.tell(b"closed");
        assert_eq!(self.line.hear(|| {}), b"closed");
    }
}
