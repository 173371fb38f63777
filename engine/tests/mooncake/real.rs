//! Mooncake's own wheel in a process of its own.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use engine::{Batch, Path, Segment, Shape, Status};

use crate::common::{Weft, pattern, soon};

/// A Mooncake node, told what to do line by line.
pub(crate) struct Node {
    child: Child,
    commands: ChildStdin,
    answers: BufReader<ChildStdout>,
    pub(crate) name: String,
    pub(crate) addr: u64,
    pub(crate) len: u64,
}

impl Node {
    /// `None`, with a line that says why, where the wheel is not there.
    pub(crate) fn start(test: &str, host: &str, metadata: &str) -> Option<Self> {
        Self::start_with(test, "WEFT_MOONCAKE_PYTHON", host, metadata, "tcp")
    }

    pub(crate) fn start_with(
        test: &str,
        variable: &str,
        host: &str,
        metadata: &str,
        protocol: &str,
    ) -> Option<Self> {
        let Ok(python) = std::env::var(variable) else {
            eprintln!(
                "SKIP: {test}: {variable} names no Python with Mooncake's wheel; `cargo xtask interop` sets one up"
            );
            return None;
        };
        let mut child = Command::new(&python)
            .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mooncake/node.py"))
            .args([host, metadata, protocol])
            .env("MC_TCP_BIND_ADDRESS", "127.0.0.1")
            .env("MC_LOG_LEVEL", "ERROR")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{variable}={python}: {error}"));
        let commands = child.stdin.take().unwrap();
        let mut answers = BufReader::new(child.stdout.take().unwrap());
        let ready = answer(&mut answers, "READY ");
        let mut words = ready.split(' ').map(str::to_owned);
        let mut next = || words.next().unwrap();
        let (name, addr, len) = (next(), next().parse().unwrap(), next().parse().unwrap());
        Some(Self { child, commands, answers, name, addr, len })
    }

    pub(crate) fn tell(&mut self, command: &str) -> String {
        writeln!(self.commands, "{command}").unwrap();
        answer(&mut self.answers, "ANSWER ")
    }

    fn crc(&mut self, offset: u64, len: usize) -> u32 {
        self.tell(&format!("crc {offset} {len}")).parse().unwrap()
    }

    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn answer(lines: &mut BufReader<ChildStdout>, beginning: &str) -> String {
    let mut line = String::new();
    loop {
        line.clear();
        assert!(lines.read_line(&mut line).unwrap() > 0, "the Mooncake node has ended; see its log above");
        if let Some(answer) = line.trim_end().strip_prefix(beginning) {
            return answer.to_owned();
        }
    }
}

/// CRC-32 as zlib has it.
fn crc(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(
            crc ^ u32::from(*byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}

/// Every byte both ways, asked for by either side: small and large, odd lengths and addresses.
pub(crate) fn both_ways(weft: &Weft, node: &mut Node, segment: &Segment) {
    let weft_name = weft.engine.name().to_owned();
    assert!(segment.path().to_string().to_lowercase().contains("mooncake"), "{}", segment.path());
    let remote = segment.buffers().remove(0);
    assert_eq!((remote.addr(), remote.len()), (node.addr, node.len));
    assert_eq!(node.tell(&format!("first {weft_name}")), weft.open.addr().to_string());
    for (seed, len) in [1_usize, 13, 4096, 65_537, (3 << 20) + 5].into_iter().enumerate() {
        // Weft writes and reads Mooncake's memory.
        let bytes = pattern(seed as u64 + 1, len);
        weft.pool.write(64, &bytes).unwrap();
        let mut batch = Batch::new();
        batch
            .write(&weft.open, weft.open.range(64, len as u64), segment, remote.range(128, len as u64))
            .unwrap();
        weft.engine.submit(&mut batch).unwrap().wait().unwrap();
        assert_eq!(node.crc(128, len), crc(&bytes), "{len} bytes written to Mooncake");
        node.tell(&format!("fill {seed} 256 {len}"));
        let wanted = node.crc(256, len);
        batch
            .read(&weft.open, weft.open.range(0, len as u64), segment, remote.range(256, len as u64))
            .unwrap();
        weft.engine.submit(&mut batch).unwrap().wait().unwrap();
        assert_eq!(crc(&weft.bytes(0, len)), wanted, "{len} bytes read from Mooncake");
        // Mooncake writes and reads Weft's.
        weft.pool.write(0, &vec![0xcc; len + 64]).unwrap();
        assert_eq!(node.tell(&format!("write {weft_name} 256 {} {len}", weft.open.addr() + 32)), "0");
        assert_eq!(crc(&weft.bytes(32, len)), wanted, "{len} bytes written by Mooncake");
        assert_eq!(
            (weft.bytes(0, 32), weft.bytes(32 + len, 32)),
            (vec![0xcc; 32], vec![0xcc; 32]),
            "and no other"
        );
        weft.pool.write(0, &bytes).unwrap();
        assert_eq!(node.tell(&format!("read {weft_name} 512 {} {len}", weft.open.addr())), "0");
        assert_eq!(node.crc(512, len), crc(&bytes), "{len} bytes read by Mooncake");
    }
    // Batches: 128 blocks from Mooncake; pages, strides and scattered ranges to it.
    let (count, block) = (128, 16 << 10);
    node.tell(&format!("fill 77 0 {}", count * block));
    assert_eq!(node.tell(&format!("batch_write {weft_name} {} {count} {block}", weft.open.addr())), "0");
    assert_eq!(crc(&weft.bytes(0, count * block)), node.crc(0, count * block));
    let bytes = pattern(99, 64 << 10);
    weft.pool.write(0, &bytes).unwrap();
    let pages: Vec<u64> = (0..16).map(|n| remote.addr() + (15 - n) * 8192).collect();
    let strided = Shape::Strided { addr: weft.open.addr(), block_len: 4096, stride: 4096, count: 16 };
    let mut batch = Batch::new();
    let paged = Shape::Paged { page_len: 4096, addrs: &pages };
    batch.write(&weft.open, strided, segment, paged).unwrap();
    let handle = weft.engine.submit(&mut batch).unwrap();
    handle.wait().unwrap();
    assert!(handle.quiesced(soon()));
    for (n, page) in bytes.chunks(4096).enumerate() {
        assert_eq!(node.crc((15 - n as u64) * 8192, 4096), crc(page), "page {n}");
    }
}

/// What is not registered is refused by both, and both go on.
fn refusals(weft: &Weft, node: &mut Node, segment: &Segment) {
    let weft_name = weft.engine.name().to_owned();
    for (addr, len) in
        [(weft.open.addr() + weft.open.len() - 8, 16), (weft.private.addr(), 16), (weft.open.addr() - 1, 8)]
    {
        assert_eq!(node.tell(&format!("write {weft_name} 0 {addr} {len}")), "-1", "{addr:#x}+{len}");
        assert_eq!(node.tell(&format!("read {weft_name} 0 {addr} {len}")), "-1", "{addr:#x}+{len}");
    }
    let remote = segment.buffers().remove(0);
    let mut batch = Batch::new();
    let beyond = batch.read(&weft.open, weft.open.range(0, 64), segment, remote.range(node.len - 8, 64));
    assert!(beyond.unwrap_err().to_string().contains(&node.name));
    let outside =
        batch.read(&weft.open, weft.open.range(weft.open.len() - 8, 64), segment, remote.range(0, 64));
    assert!(outside.unwrap_err().to_string().contains("local"));
    assert!(batch.is_empty());
}

fn notifications(weft: &Weft, node: &mut Node, segment: &Segment) {
    segment.notify("page-5-is-there".as_bytes(), soon()).unwrap();
    assert!(node.tell("notifies").contains("page-5-is-there"));
    assert!(segment.notify(&[0xff, 0xfe], soon()).unwrap_err().to_string().contains("UTF-8"));
    let said = node.tell(&format!("notify {} {} layer-3-is-there", weft.engine.name(), weft.open.addr()));
    assert_eq!(said, "0");
    let note = weft.engine.notification(soon()).unwrap();
    assert_eq!((note.from.as_str(), note.payload), ("from mooncake", b"layer-3-is-there".to_vec()));
    // A batch that tells the peer when it is complete.
    let mut batch = Batch::new();
    let remote = segment.buffers().remove(0);
    batch.write(&weft.open, weft.open.range(0, 4096), segment, remote.range(0, 4096)).unwrap();
    batch.notify_on_completion(*b"complete");
    weft.engine.submit(&mut batch).unwrap().wait().unwrap();
    assert!(node.tell("notifies").contains("complete"));
}

#[test]
fn both_systems_read_and_write_each_other_by_handshake() {
    let test = "both_systems_read_and_write_each_other_by_handshake";
    let Some(mut node) = Node::start(test, "127.0.0.1", "P2PHANDSHAKE") else { return };
    let weft = Weft::new();
    let segment = weft.engine.open(&node.name, soon()).unwrap();
    assert!(matches!(segment.path(), Path::Mooncake(2)), "{}", segment.path());
    both_ways(&weft, &mut node, &segment);
    refusals(&weft, &mut node, &segment);
    notifications(&weft, &mut node, &segment);
    assert_eq!(node.tell(&format!("probe {}", weft.engine.name())), "0");
    assert!(segment.probe(soon()).is_ok());
    segment.warm_up(soon()).unwrap();
    // Still the same after all that was refused.
    both_ways(&weft, &mut node, &segment);
}

/// The node dies: requests fail soon and name it. Another one comes in its place: refreshing finds it.
#[test]
fn a_killed_node_fails_requests_and_a_new_one_is_found() {
    let test = "a_killed_node_fails_requests_and_a_new_one_is_found";
    let Some(node) = Node::start(test, "127.0.0.1", "P2PHANDSHAKE") else { return };
    let weft = Weft::new();
    let segment = weft.engine.open(&node.name, soon()).unwrap();
    let remote = segment.buffers().remove(0);
    let mut batch = Batch::new();
    let push = |batch: &mut Batch| {
        batch.write(&weft.open, weft.open.range(0, 4096), &segment, remote.range(0, 4096)).unwrap();
    };
    push(&mut batch);
    weft.engine.submit(&mut batch).unwrap().wait().unwrap();
    node.kill();
    push(&mut batch);
    batch.set_deadline(std::time::Duration::from_secs(5));
    let handle = weft.engine.submit(&mut batch).unwrap();
    let error = handle.wait().unwrap_err().to_string();
    assert!(error.contains("127.0.0.1"), "{error}");
    assert!(matches!(handle.status(0), Status::Failed(_)));
    assert!(segment.probe(soon()).is_err());
    let Some(mut node) = Node::start(test, "127.0.0.1", "P2PHANDSHAKE") else { return };
    let segment = weft.engine.open(&node.name, soon()).unwrap();
    both_ways(&weft, &mut node, &segment);
}
