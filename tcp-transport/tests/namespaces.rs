//! Two network namespaces with two wires between them: a slow wire, one that loses packets, one that swallows everything, and
//! both used at once.
//! Needs root, `ip`, `tc` and `nft`.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Asker, builder, pattern, soon, until};
use tcp_transport::{Access, Batch, Deadlines, Error, LocalPath, OwnedMemory, Peer, RegionDescriptor};

const ROLE: &str = "TCP_TRANSPORT_NAMESPACE_ROLE";
const LEN: usize = 4 << 20;

fn run(command: &str) -> Result<(), String> {
    let output = Command::new("sh").args(["-c", command]).output().map_err(|e| e.to_string())?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("`{command}`: {}", String::from_utf8_lossy(&output.stderr).trim()))
}

/// Two namespaces, removed in the end.
struct Namespaces {
    a: String,
    b: String,
}

impl Namespaces {
    fn new() -> Result<Self, String> {
        let id = std::process::id();
        let this = Self { a: format!("wefta{id}"), b: format!("weftb{id}") };
        run("command -v ip && command -v tc && command -v nft")?;
        let (a, b) = (&this.a, &this.b);
        run(&format!("ip netns add {a} && ip netns add {b}"))?;
        run(&format!("ip link add va netns {a} type veth peer name vb netns {b}"))?;
        for (name, link, ip) in [(a, "va", "10.99.0.1/24"), (b, "vb", "10.99.0.2/24")] {
            run(&format!("ip -n {name} addr add {ip} dev {link} && ip -n {name} link set {link} up"))?;
            run(&format!("ip -n {name} link set lo up"))?;
        }
        // A second wire, over which the same address can be reached by whoever binds to it.
        run(&format!("ip link add vc netns {a} type veth peer name vd netns {b}"))?;
        run(&format!("ip -n {a} addr add 10.98.0.1/24 dev vc && ip -n {a} link set vc up"))?;
        run(&format!("ip -n {b} addr add 10.98.0.2/24 dev vd && ip -n {b} link set vd up"))?;
        run(&format!("ip -n {a} route add 10.99.0.2/32 via 10.98.0.2 dev vc metric 500"))?;
        Ok(this)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        let _ = run(&format!("ip netns del {}", self.a));
        let _ = run(&format!("ip netns del {}", self.b));
    }
}

#[test]
fn slow_lossy_and_dead_wires() {
    if std::env::var_os(ROLE).is_some() {
        return;
    }
    let namespaces = match Namespaces::new() {
        Ok(n) => n,
        Err(why) => {
            eprintln!("SKIP: slow_lossy_and_dead_wires: {why}");
            return;
        }
    };
    let program = std::env::current_exe().unwrap();
    let role = |name: &str, test: &str| {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", name])
            .arg(&program)
            .args(["--exact", test, "--nocapture"])
            .env(ROLE, name);
        command
    };
    let mut target = role(&namespaces.b, "in_the_second_namespace")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(target.stdout.take().unwrap());
    let line = output.lines().map(Result::unwrap).find(|l| l.starts_with("READY ")).unwrap();
    let asker = role(&namespaces.a, "in_the_first_namespace").env("TARGET", &line[6..]).output().unwrap();
    let _ = target.kill();
    let _ = target.wait();
    assert!(asker.status.success(), "{}", String::from_utf8_lossy(&asker.stderr));
}

/// Not a test of its own.
#[test]
fn in_the_second_namespace() {
    if std::env::var(ROLE).is_ok_and(|r| r.starts_with("weftb")) {
        let memory = OwnedMemory::new(LEN).unwrap();
        let transport = builder().listen("10.99.0.2:0".parse().unwrap()).build().unwrap();
        let region = transport.register(memory, Access::READ_WRITE).unwrap();
        let hex = hex::encode(region.descriptor().to_bytes());
        println!("\nREADY {} {hex}", transport.local_addrs()[0]);
        std::io::stdout().flush().unwrap();
        std::io::stdin().read_line(&mut String::new()).unwrap();
    }
}

/// Not a test of its own.
#[test]
fn in_the_first_namespace() {
    if !std::env::var(ROLE).is_ok_and(|r| r.starts_with("wefta")) {
        return;
    }
    let target = std::env::var("TARGET").unwrap();
    let (addr, hex) = target.split_once(' ').unwrap();
    let bytes = hex::decode(hex).unwrap();
    let remote = RegionDescriptor::from_bytes(&bytes).unwrap();
    let deadlines = Deadlines { stall: Duration::from_millis(700), ..Deadlines::default() };
    let asker = Asker::new(builder().lanes(2).deadlines(deadlines), LEN);
    let peer = asker.transport.peer(addr.parse().unwrap()).unwrap();

    there_and_back(&asker, &peer, remote, LEN, 1);
    run("tc qdisc add dev va root tbf rate 400mbit burst 64kb latency 20ms").unwrap();
    there_and_back(&asker, &peer, remote, LEN, 2);
    run("tc qdisc del dev va root").unwrap();

    several_interfaces(&addr.parse().unwrap(), remote);

    run("nft add table inet weft").unwrap();
    run("nft 'add chain inet weft in { type filter hook input priority 0; }'").unwrap();
    run("nft 'add rule inet weft in numgen random mod 100 < 2 drop'").unwrap();
    there_and_back(&asker, &peer, remote, LEN / 4, 3);

    // A black hole: deadlines are kept, and what has time left is finished on a new lane.
    let lost = asker.transport.statistics().lanes_lost;
    run("nft flush chain inet weft in && nft 'add rule inet weft in drop'").unwrap();
    let bytes = pattern(LEN, 4);
    asker.memory.write(0, &bytes).unwrap();
    let mut short = Batch::new();
    short.set_deadline(Duration::from_millis(400));
    asker.write(&mut short, &peer, remote, 0, 1 << 20);
    let mut long = Batch::new();
    asker.write(&mut long, &peer, remote, 0, LEN as u64);
    let start = Instant::now();
    let short = asker.transport.submit(&mut short).unwrap();
    let long = asker.transport.submit(&mut long).unwrap();
    let error = short.wait().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(long.poll().is_none());
    until("the dead lanes are given up", || asker.transport.statistics().lanes_lost > lost);
    run("nft flush chain inet weft in").unwrap();
    long.wait().unwrap();
    assert!(short.quiesced(soon()));
    asker.memory.write(0, &vec![0; LEN]).unwrap();
    let mut batch = Batch::new();
    asker.read(&mut batch, &peer, remote, 0, LEN as u64);
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
    let mut back = vec![0; LEN];
    asker.memory.read(0, &mut back).unwrap();
    assert!(back == bytes, "what the black hole had swallowed arrived in the end");
}

/// Lanes are spread over the interfaces, and both carry a good part of the bytes.
fn several_interfaces(addr: &std::net::SocketAddr, remote: RegionDescriptor) {
    let sent = |interface: &str| {
        let path = format!("/sys/class/net/{interface}/statistics/tx_bytes");
        // A namespace entered by `ip netns exec` has its own view of /sys.
        std::fs::read_to_string(path).unwrap().trim().parse::<usize>().unwrap()
    };
    let path = |name: &str, source: &str| LocalPath {
        source: Some(source.parse().unwrap()),
        interface: Some(name.into()),
    };
    let paths = [path("va", "10.99.0.1"), path("vc", "10.98.0.1")];
    let asker = Asker::new(builder().lanes(2).paths(paths), LEN);
    let peer = asker.transport.peer(*addr).unwrap();
    peer.connect(soon()).unwrap();
    until("both lanes are up", || asker.transport.statistics().lanes_opened == 2);
    let before = [sent("va"), sent("vc")];
    there_and_back(&asker, &peer, remote, LEN, 9);
    for (interface, before) in ["va", "vc"].into_iter().zip(before) {
        let share = sent(interface) - before;
        assert!(share > LEN / 4, "{interface} carried {share} of {LEN} bytes");
    }
}

fn there_and_back(asker: &Asker, peer: &Peer, remote: RegionDescriptor, len: usize, seed: u64) {
    let bytes = pattern(len, seed);
    asker.memory.write(0, &bytes).unwrap();
    let mut batch = Batch::new();
    for i in 0..16 {
        asker.write(&mut batch, peer, remote, i * (len as u64 / 16), len as u64 / 16);
    }
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
    asker.memory.write(0, &vec![0; len]).unwrap();
    asker.read(&mut batch, peer, remote, 0, len as u64);
    asker.transport.submit(&mut batch).unwrap().wait().unwrap();
    let mut back = vec![0; len];
    asker.memory.read(0, &mut back).unwrap();
    assert!(back == bytes, "round {seed}");
}
