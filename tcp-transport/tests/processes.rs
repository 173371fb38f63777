//! Two processes: the target is this test program once more.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use common::{Asker, pattern, soon};
use tcp_transport::{
    Access, Batch, Deadlines, Error, Limits, OwnedMemory, Path, Peer, Refusal, Region, RegionDescriptor,
    Request, Status, Transport,
};

const ROLE: &str = "TCP_TRANSPORT_TEST_TARGET";
const LEN: usize = 8 << 20;

/// Not a test of its own: what the other process runs.
#[test]
fn target_process() {
    let Ok(addr) = std::env::var(ROLE) else { return };
    let memory = OwnedMemory::new(LEN).unwrap();
    let for_calls = memory.clone();
    let this = Arc::new(OnceLock::<Transport>::new());
    let (transport, lent) = (this.clone(), Lent::default());
    let transport = Transport::builder()
        .listen(addr.parse().unwrap())
        .handler(move |_: tcp_transport::Caller, question: &[u8]| match question {
            b"lend" => Ok(lent.lend(transport.get().unwrap())),
            b"revoke" => Ok(lent.revoke(transport.get().unwrap())),
            b"is it mine" => Ok(vec![u8::from(lent.is_mine())]),
            // A checksum of the memory.
            _ => {
                let mut bytes = vec![0; LEN];
                for_calls.read(0, &mut bytes).map_err(|e| e.to_string())?;
                Ok(sum(&bytes).to_le_bytes().to_vec())
            }
        })
        .build()
        .unwrap();
    this.set(transport.clone()).unwrap();
    let region = transport.register(memory, Access::READ_WRITE).unwrap();
    let hex = hex::encode(region.descriptor().to_bytes());
    println!("\nREADY {} {hex}", transport.local_addrs()[0]);
    std::io::stdout().flush().unwrap();
    std::io::stdin().read_line(&mut String::new()).unwrap();
}

/// Memory that the other process lends out, and takes back while it is in use.
struct Lent {
    memory: Arc<OwnedMemory>,
    region: Mutex<Option<Region>>,
}

/// As much as one copy, so that whatever is copied late ends at the end of it.
const LENT: usize = 1 << 20;
/// What its owner writes into it when it has it back.
const MINE: u8 = 0xa5;

impl Default for Lent {
    fn default() -> Self {
        Self { memory: OwnedMemory::new(LENT).unwrap(), region: Mutex::default() }
    }
}

impl Lent {
    fn lend(&self, transport: &Transport) -> Vec<u8> {
        self.memory.write(0, &vec![0; LENT]).unwrap();
        let region = transport.register(self.memory.clone(), Access::READ_WRITE).unwrap();
        let descriptor = region.descriptor().to_bytes().to_vec();
        *self.region.lock().unwrap() = Some(region);
        descriptor
    }

    /// Takes it back in the middle of being used, and uses it at once. Returns how much of it was copied by then.
    fn revoke(&self, transport: &Transport) -> Vec<u8> {
        let served = || {
            let statistics = transport.statistics();
            statistics.bytes_served_read + statistics.bytes_served_written
        };
        let before = served();
        common::until("it is being used", || served() > before + (8 << 20));
        let region = self.region.lock().unwrap().take().unwrap();
        region.revoke();
        // From the end, which a copy comes to last.
        for at in (0..LENT).step_by(4096).rev() {
            self.memory.write(at, &[MINE; 4096]).unwrap();
        }
        (served() - before).to_le_bytes().to_vec()
    }

    fn is_mine(&self) -> bool {
        let mut bytes = vec![0; LENT];
        self.memory.read(0, &mut bytes).unwrap();
        bytes.iter().all(|&b| b == MINE)
    }
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
            // One that cannot be read has just ended: then not all have stood still while they were listed.
            states
                .map(|p| std::fs::read_to_string(p).unwrap_or_default())
                .all(|s| s.rsplit(')').next().is_some_and(|state| state.starts_with(" T")))
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
        if let (true, Err(why)) = (ip.contains("::1"), std::net::TcpListener::bind(ip)) {
            return eprintln!("SKIP: both_paths_between_two_processes: its IPv6 half, IPv4 passed: {why}");
        }
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

/// The other process takes memory back that this one is reading, or writing: when revoking has returned not one byte of it is copied
/// any more, in or out, and what comes too late is told that.
#[test]
fn nothing_is_copied_after_revoking() {
    const AT_A_TIME: usize = 32;
    let process = Process::start("127.0.0.1:0");
    for lanes in [1, 2] {
        // All of them may wait at the owner.
        let limits = Limits { lane_bytes: u64::MAX, ..Limits::default() };
        let asker = Asker::new(Transport::builder().lanes(lanes).limits(limits), AT_A_TIME * LENT);
        let peer = asker.transport.peer(process.addr).unwrap();
        assert_eq!(peer.connect(soon()).unwrap(), Path::Host);
        let mut let_in = 0;
        for round in 0..20 {
            let read = round % 2 == 0;
            asker.memory.write(0, &vec![1; AT_A_TIME * LENT]).unwrap();
            let lent = RegionDescriptor::from_bytes(&peer.call(b"lend", soon()).unwrap()).unwrap();
            let mut ends = [0; 3];
            std::thread::scope(|scope| {
                let revoking = scope.spawn(|| peer.call(b"revoke", soon()).unwrap());
                // Until it is refused.
                while ends[1] + ends[2] == 0 {
                    let mut batch = Batch::new();
                    for n in 0..AT_A_TIME {
                        let (local, len) = (asker.region.addr() + (n * LENT) as u64, LENT as u64);
                        let request = match read {
                            true => Request::read(&peer, &asker.region, local, lent, lent.addr, len),
                            false => Request::write(&peer, &asker.region, local, lent, lent.addr, len),
                        };
                        batch.push(request).unwrap();
                    }
                    let handle = asker.transport.submit(&mut batch).unwrap();
                    let _ = handle.wait();
                    for n in 0..AT_A_TIME {
                        match handle.status(n) {
                            Status::Done => ends[0] += 1,
                            Status::Failed(Error::Refused { reason: Refusal::Revoked, .. }) => ends[1] += 1,
                            Status::Failed(Error::Refused { reason: Refusal::UnknownKey, .. }) => {
                                ends[2] += 1
                            }
                            other => panic!("round {round}: {other:?}"),
                        }
                    }
                    assert!(handle.quiesced(soon()));
                }
                let copied = u64::from_le_bytes(revoking.join().unwrap().try_into().unwrap());
                assert!(copied >= 8 << 20);
            });
            assert!(ends[0] >= 8, "round {round}: {ends:?}");
            let_in += ends[1];
            if read {
                let mut got = vec![0; AT_A_TIME * LENT];
                asker.memory.read(0, &mut got).unwrap();
                assert!(!got.contains(&MINE), "round {round}: copied out after revoking");
            }
            assert_eq!(
                peer.call(b"is it mine", soon()).unwrap(),
                [1],
                "round {round}: copied in after revoking"
            );
        }
        // Most often some had been let in and wait for their turn; the others find no such key.
        assert!(let_in >= 20, "{lanes} lanes: {let_in}");
    }
}
