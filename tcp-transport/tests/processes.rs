//! Two processes: the target is this test program once more.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::{Asker, pattern, soon};
use tcp_transport::{Access, Batch, Deadlines, Error, OwnedMemory, Path, Peer, RegionDescriptor, Transport};

const ROLE: &str = "TCP_TRANSPORT_TEST_TARGET";
const LEN: usize = 8 << 20;

/// Not a test of its own: what the other process runs.
#[test]
fn target_process() {
    let Ok(addr) = std::env::var(ROLE) else { return };
    let memory = OwnedMemory::new(LEN).unwrap();
    let for_calls = memory.clone();
    let transport = Transport::builder()
        .listen(addr.parse().unwrap())
        // The caller asks for a checksum of the memory.
        .handler(move |_: tcp_transport::Caller, _: &[u8]| {
            let mut bytes = vec![0; LEN];
            for_calls.read(0, &mut bytes).map_err(|e| e.to_string())?;
            Ok(sum(&bytes).to_le_bytes().to_vec())
        })
        .build()
        .unwrap();
    let region = transport.register(memory, Access::READ_WRITE).unwrap();
    let hex = hex::encode(region.descriptor().to_bytes());
    println!("\nREADY {} {hex}", transport.local_addrs()[0]);
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

fn sum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(7, |s, &b| s.wrapping_mul(31).wrapping_add(u64::from(b)))
}

struct Process {
    child: Child,
    addr: SocketAddr,
    remote: RegionDescriptor,
}

impl Process {
    fn start(addr: &str) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "target_process", "--nocapture"])
            .env(ROLE, addr)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let line = output.lines().map(Result::unwrap).find(|l| l.starts_with("READY ")).unwrap();
        let mut words = line.split(' ').skip(1);
        let addr = words.next().unwrap().parse().unwrap();
        let hex = words.next().unwrap();
        let bytes = hex::decode(hex).unwrap();
        Self { child, addr, remote: RegionDescriptor::from_bytes(&bytes).unwrap() }
    }
}

impl Process {
    fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    /// Stops it, and returns when every thread of it stands still.
    fn stop(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::STOP).unwrap();
        let tasks = format!("/proc/{}/task", self.child.id());
        common::until("the process is stopped", || {
            let states = std::fs::read_dir(&tasks).unwrap().flatten().map(|t| t.path().join("stat"));
            states
                .map(|p| std::fs::read_to_string(p).unwrap())
                .all(|s| s.rsplit(')').next().unwrap().starts_with(" T"))
        });
    }

    fn go_on(&self) {
        rustix::process::kill_process(self.pid(), rustix::process::Signal::CONT).unwrap();
    }

    /// Processor time of all its threads so far.
    fn cpu(&self) -> Option<Duration> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.flatten().map(|task| cpu(&task.path())).sum()
    }
}

/// Processor time of one thread so far, where the kernel tells it.
fn cpu(task: &std::path::Path) -> Option<Duration> {
    let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
    text.split(' ').next()?.parse().map(Duration::from_nanos).ok()
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn there_and_back(asker: &Asker, peer: &Peer, remote: RegionDescriptor, seed: u64) {
    let bytes = pattern(LEN, seed);
    asker.memory.write(0, &bytes).unwrap();
    let mut batch = Batch::new();
    for i in 0..32 {
        asker.write(&mut batch, peer, remote, i * (LEN as u64 / 32), LEN as u64 / 32);
    }
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
    assert_eq!(peer.call(b"sum", soon()).unwrap(), sum(&bytes).to_le_bytes());
    asker.memory.write(0, &vec![0; LEN]).unwrap();
    asker.read(&mut batch, peer, remote, 0, LEN as u64);
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
    let mut back = vec![0; LEN];
    asker.memory.read(0, &mut back).unwrap();
    assert!(back == bytes);
}

#[test]
fn both_paths_between_two_processes() {
    for ip in ["127.0.0.1:0", "[::1]:0"] {
        let process = Process::start(ip);
        for host in [true, false] {
            let asker = Asker::new(Transport::builder().same_host(host), LEN);
            let peer = asker.transport.peer(process.addr).unwrap();
            assert_eq!(peer.connect(soon()).unwrap(), if host { Path::Host } else { Path::Net }, "{ip}");
            there_and_back(&asker, &peer, process.remote, 1 + u64::from(host));
        }
    }
}

#[test]
fn a_killed_process_fails_requests_in_time_and_a_new_one_is_found() {
    for host in [true, false] {
        let process = Process::start("127.0.0.1:0");
        let (addr, old) = (process.addr, process.remote);
        let deadlines = Deadlines { stall: Duration::from_millis(500), ..Deadlines::default() };
        let asker = Asker::new(Transport::builder().same_host(host).deadlines(deadlines), LEN);
        let peer = asker.transport.peer(addr).unwrap();
        there_and_back(&asker, &peer, old, 3);
        drop(process);
        let mut batch = Batch::new();
        batch.set_deadline(Duration::from_millis(500));
        asker.write(&mut batch, &peer, old, 0, 1 << 20);
        let error = asker.transport.submit(&mut batch).unwrap().wait().unwrap_err();
        assert!(matches!(error, Error::Timeout { .. }), "{error}");
        let second = Process::start(&addr.to_string());
        there_and_back(&asker, &peer, second.remote, 4);
    }
}

/// A process that is stopped in the middle and goes on later must not bring back what was given up meanwhile.
#[test]
fn a_process_that_was_stopped_applies_nothing_late() {
    let process = Process::start("127.0.0.1:0");
    let deadlines = Deadlines {
        stall: Duration::from_millis(300),
        hello: Duration::from_millis(300),
        ..Deadlines::default()
    };
    let asker = Asker::new(Transport::builder().same_host(false).lanes(1).deadlines(deadlines), LEN);
    let peer = asker.transport.peer(process.addr).unwrap();
    there_and_back(&asker, &peer, process.remote, 5);
    process.stop();
    asker.memory.write(0, &vec![0xbb; LEN]).unwrap();
    let mut batch = Batch::new();
    batch.set_deadline(Duration::from_millis(100));
    asker.write(&mut batch, &peer, process.remote, 0, 64 << 10);
    let handle = asker.transport.submit(&mut batch).unwrap();
    let ended = handle.wait();
    assert!(matches!(ended, Err(Error::Timeout { .. })), "{ended:?}");
    common::until("the lane is given up", || asker.transport.statistics().lanes_lost > 0);
    process.go_on();
    assert!(handle.quiesced(soon()));
    there_and_back(&asker, &peer, process.remote, 6);
}

/// Threads that stay awake for copies between the processes do so for a moment, whether they are asked for more or not, and whether
/// the other process goes on or not.
#[test]
fn nobody_stays_awake_for_long() {
    let this = std::path::Path::new("/proc/thread-self");
    if cpu(this).is_none() {
        return eprintln!("SKIP: nobody_stays_awake_for_long: the kernel does not tell processor times");
    }
    let process = Process::start("127.0.0.1:0");
    let asker = Asker::new(Transport::builder().stay_awake(true), LEN);
    let peer = asker.transport.peer(process.addr).unwrap();
    there_and_back(&asker, &peer, process.remote, 7);
    let mut batch = Batch::new();
    let mut write_one = |limit| {
        batch.set_deadline(limit);
        asker.write(&mut batch, &peer, process.remote, 0, 1 << 20);
        let before = cpu(this).unwrap();
        let result = asker.transport.submit(&mut batch).unwrap().wait();
        (result, cpu(this).unwrap() - before)
    };
    for _ in 0..20 {
        write_one(Duration::from_secs(20)).0.unwrap();
    }
    // The owner, when nothing follows: 50 µs of the half second, and what else it does.
    let before = process.cpu().unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let spent = process.cpu().unwrap() - before;
    assert!(spent < Duration::from_millis(10), "the idle owner used {spent:?}");
    // The caller, when no answer comes: 1.1 ms, and then it looks at deadlines 25 times.
    process.stop();
    let (result, spent) = write_one(Duration::from_millis(500));
    assert!(matches!(result, Err(Error::Timeout { .. })), "{result:?}");
    assert!(spent < Duration::from_millis(12), "the waiting caller used {spent:?}");
    process.go_on();
    there_and_back(&asker, &peer, process.remote, 8);
}
