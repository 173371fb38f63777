//! `cargo xtask bench tcp`: this crate between two processes of this machine, against bare loops over the same primitive.
//!
//! `path=net` against blocking sockets with as many connections, the same footprint and the system's congestion control;
//! `path=host` against a loop over `process_vm_readv`/`writev` with the same sizes.

mod bare;
mod instructions;
mod vm;

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use benchkit::callgrind;
use benchkit::{
    Bench, CountingAllocator, CpuClock, Latencies, Metric, Result, allocations, throughput_gb_per_s,
};
use tcp_transport::{Access, Batch, OwnedMemory, Path, Peer, Region, RegionDescriptor, Request, Transport};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::system();

/// Memory on each side; larger batches go around in it.
const FOOTPRINT: usize = 256 << 20;
/// Most bytes of one round, unless the case was asked for by name: more would take seconds a round and show nothing else, for it
/// goes around in the same memory.
const MOST: usize = 1 << 30;
/// Bytes for which both sides use one more lane.
const STRIPE: usize = 1 << 20;
const CHILD: &str = "TCP_BENCH_SERVER";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    Read,
    Write,
}

impl Op {
    const BOTH: [Self; 2] = [Self::Write, Self::Read];
    fn name(self) -> &'static str {
        if self == Self::Read { "read" } else { "write" }
    }
}

fn main() -> Result<()> {
    if std::env::var_os(CHILD).is_some() {
        return serve();
    }
    if let Some(child) = callgrind::child() {
        return instructions::run(&child);
    }
    let mut bench = Bench::from_args("tcp");
    let server = Server::start()?;
    for path in [Path::Net, Path::Host] {
        latency(&mut bench, &server, path)?;
        for threads in [1, 4] {
            let mut ours = None;
            for op in Op::BOTH {
                for size in [4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20] {
                    for batch in [1, 16, 128] {
                        throughput(&mut bench, &server, &mut ours, path, op, size, batch, threads)?;
                    }
                }
            }
        }
    }
    counted(&mut bench, &server)?;
    instructions::compare(&mut bench)?;
    idle(&mut bench, &server)?;
    many_peers(&mut bench)?;
    bench.finish()
}

// ---- the other process ---------------------------------------------------------------------------------------------------

fn serve() -> Result<()> {
    let memory = OwnedMemory::new(FOOTPRINT)?;
    memory.write(0, &vec![3; FOOTPRINT])?;
    let transport = Transport::builder().listen("127.0.0.1:0".parse()?).build()?;
    let region = transport.register(memory, Access::READ_WRITE)?;
    let bare = TcpListener::bind("127.0.0.1:0")?;
    let hex: String = region.descriptor().to_bytes().iter().map(|b| format!("{b:02x}")).collect();
    println!("{} {} {hex}", transport.local_addrs()[0], bare.local_addr()?);
    std::io::stdout().flush()?;
    std::thread::spawn(move || bare::serve(bare));
    // Ends when the benchmark does.
    std::io::stdin().read_line(&mut String::new())?;
    Ok(())
}

struct Server {
    child: Child,
    addr: SocketAddr,
    bare: SocketAddr,
    remote: RegionDescriptor,
}

impl Server {
    fn start() -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut line = String::new();
        let output = child.stdout.take().ok_or("the server has no output")?;
        BufReader::new(output).read_line(&mut line)?;
        let mut words = line.split_whitespace();
        let mut word = || words.next().ok_or("the server said too little");
        let (addr, bare) = (word()?.parse()?, word()?.parse()?);
        let hex = word()?;
        let bytes: Vec<u8> = (0..hex.len() / 2)
            .map(|i| u8::from_str_radix(&hex[2 * i..][..2], 16))
            .collect::<std::result::Result<_, _>>()?;
        Ok(Self { child, addr, bare, remote: RegionDescriptor::from_bytes(&bytes)? })
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

// ---- ours ----------------------------------------------------------------------------------------------------------------

struct Ours {
    transport: Transport,
    peer: Peer,
    local: Region,
    memory: std::sync::Arc<OwnedMemory>,
    remote: RegionDescriptor,
}

impl Ours {
    fn connect(server: &Server, path: Path, lanes: usize) -> Result<Self> {
        let transport = Transport::builder().same_host(path == Path::Host).lanes(lanes).build()?;
        let peer = transport.peer(server.addr)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        let found = peer.connect(deadline)?;
        if found != path {
            return Err(format!("wanted path {path}, got {found}").into());
        }
        while transport.statistics().lanes_opened < lanes as u64 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let memory = OwnedMemory::new(FOOTPRINT)?;
        memory.write(0, &vec![4; FOOTPRINT])?;
        let local = transport.register(memory.clone(), Access::LOCAL)?;
        Ok(Self { transport, peer, local, memory, remote: server.remote })
    }

    /// One batch of `count` requests in the part of the memory that begins at `base`.
    fn run(
        &self,
        batch: &mut Batch,
        op: Op,
        size: usize,
        count: usize,
        base: usize,
        room: usize,
    ) -> Result<()> {
        let slots = (room / size).max(1);
        for i in 0..count {
            let at = (base + i % slots * size) as u64;
            let (l, r) = (self.local.addr() + at, self.remote.addr + at);
            let size = size as u64;
            batch.push(match op {
                Op::Write => Request::write(&self.peer, &self.local, l, self.remote, r, size),
                Op::Read => Request::read(&self.peer, &self.local, l, self.remote, r, size),
            })?;
        }
        self.transport.submit(batch)?.wait()?;
        Ok(())
    }
}

/// Short rounds, because there are a hundred cases of them.
fn round_time(bench: &Bench) -> Duration {
    bench.options().round_time().min(Duration::from_millis(50))
}

/// Repeats `work`, which moves `bytes` each time, for about `time`.
fn repeat(time: Duration, bytes: u64, mut work: impl FnMut() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    let mut moved = 0;
    while moved == 0 || start.elapsed() < time {
        work()?;
        moved += bytes;
    }
    Ok(throughput_gb_per_s(moved, start.elapsed()))
}

#[allow(clippy::too_many_arguments)] // one for each dimension
fn throughput(
    bench: &mut Bench,
    server: &Server,
    connected: &mut Option<Ours>,
    path: Path,
    op: Op,
    size: usize,
    batch: usize,
    threads: usize,
) -> Result<()> {
    let case = format!("op={} size={size} batch={batch} threads={threads} path={path}", op.name());
    let total = size * batch * threads;
    let most = match (&bench.options().filter, bench.options().quick) {
        (Some(filter), _) if case.starts_with(filter.as_str()) => usize::MAX,
        (_, true) => MOST / 4,
        (_, false) => MOST,
    };
    if !bench.wants(&case) || total > most {
        return Ok(());
    }
    let time = round_time(bench);
    // As many lanes as submitters, and at least the two that the machine's cores can use.
    let lanes = threads.max(2);
    let ours = match connected {
        Some(ours) => ours,
        None => connected.insert(Ours::connect(server, path, lanes)?),
    };
    let ours = &*ours;
    let room = FOOTPRINT / threads;
    let bytes = (size * batch) as u64;
    // What is promised: batches from 64 KiB on the network, requests from 1 MiB between the processes.
    let target = match path {
        Path::Host => (size >= 1 << 20).then_some(0.90),
        _ if size * batch >= 1 << 20 => Some(0.95),
        _ => (size * batch >= 64 << 10).then_some(0.90),
    };
    let parallel = |work: &(dyn Fn(usize) -> Result<f64> + Sync)| -> Result<f64> {
        if threads == 1 {
            return work(0);
        }
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..threads).map(|n| scope.spawn(move || work(n))).collect();
            all.into_iter().map(|t| t.join().map_err(|_| "a thread panicked")?).sum()
        })
    };
    let ours_round = || {
        parallel(&|n| {
            let mut requests = Batch::new();
            repeat(time, bytes, || ours.run(&mut requests, op, size, batch, n * room, room))
        })
    };
    let case = match target {
        Some(target) => bench.case(case).target(target),
        None => bench.case(case),
    };
    match path {
        Path::Host => {
            let bare = vm::Remote::new(server.child.id(), &ours.memory, server.remote.addr);
            case.compare(Metric::Throughput, "bare process_vm loop", ours_round, || {
                parallel(&|n| repeat(time, bytes, || bare.run(op, size, batch, n * room, room)))
            })
        }
        _ => {
            let footprint = (size * batch).min(room);
            let per_thread = lanes / threads;
            let all: Vec<_> = (0..threads)
                .map(|_| bare::Lanes::connect(server.bare, per_thread, footprint).map(std::sync::Mutex::new))
                .collect::<Result<_>>()?;
            case.compare(Metric::Throughput, "bare socket loop", ours_round, || {
                parallel(&|n| {
                    let mut lanes = all[n].lock().map_err(|_| "a round panicked")?;
                    repeat(time, bytes, || lanes.run(op, size, batch, STRIPE))
                })
            })
        }
    }
}

/// One request of 4 KiB at a time.
fn latency(bench: &mut Bench, server: &Server, path: Path) -> Result<()> {
    for op in Op::BOTH {
        let case = format!("op={} size=4096 batch=1 threads=1 path={path}", op.name());
        if !bench.wants(&case) {
            continue;
        }
        let ours = Ours::connect(server, path, 1)?;
        let mut bare = bare::Lane::connect(server.bare, 4096)?;
        let mut requests = Batch::new();
        let time = bench.options().round_time();
        let measure = |work: &mut dyn FnMut() -> Result<()>| -> Result<[f64; 2]> {
            let mut latencies = Latencies::new();
            let start = Instant::now();
            while start.elapsed() < time {
                let before = Instant::now();
                work()?;
                latencies.record(before.elapsed());
            }
            Ok([latencies.p50_us(), latencies.p99_us()])
        };
        bench.case(case).target(0.8).compare_all(
            [Metric::LatencyP50, Metric::LatencyP99],
            "bare blocking ping-pong",
            || measure(&mut || ours.run(&mut requests, op, 4096, 1, 0, FOOTPRINT)),
            || measure(&mut || bare.run(op, 4096, 1)),
        )?;
    }
    Ok(())
}

/// Heap allocations per request when everything has been used once.
fn counted(bench: &mut Bench, server: &Server) -> Result<()> {
    for path in [Path::Net, Path::Host] {
        let counted = [
            (Op::Write, 4096, 1),
            (Op::Read, 4096, 1),
            (Op::Write, 65_536, 128),
            (Op::Read, 65_536, 128),
            (Op::Write, 16 << 20, 16),
        ];
        for (op, size, batch) in counted {
            let case = format!("op={} size={size} batch={batch} threads=1 path={path}", op.name());
            if !bench.wants(&case) {
                continue;
            }
            let ours = Ours::connect(server, path, 2)?;
            let mut requests = Batch::new();
            let mut run = |times: usize| -> Result<()> {
                (0..times).try_for_each(|_| ours.run(&mut requests, op, size, batch, 0, FOOTPRINT))
            };
            let times = 1000_usize.div_ceil(batch);
            run(times)?;
            let (result, count) = allocations(&ALLOCATOR, || run(times));
            result?;
            let value = count as f64 / (times * batch) as f64;
            bench.case(case).at_most(0.001).count(Metric::Allocations, value, None)?;
        }
    }
    Ok(())
}

/// What an open but unused connection costs.
fn idle(bench: &mut Bench, server: &Server) -> Result<()> {
    let case = "op=idle lanes=4 path=net";
    if !bench.wants(case) {
        return Ok(());
    }
    let ours = Ours::connect(server, Path::Net, 4)?;
    ours.run(&mut Batch::new(), Op::Write, 4096, 1, 0, FOOTPRINT)?;
    std::thread::sleep(Duration::from_millis(100));
    let clock = CpuClock::process();
    std::thread::sleep(Duration::from_secs(if bench.options().quick { 1 } else { 5 }));
    bench.case(case).at_most(0.5).count(Metric::Cpu, clock.percent(), None)
}

/// 256 peers served by two I/O threads on each side: time for a 4 KiB write to each of them, all at once.
fn many_peers(bench: &mut Bench) -> Result<()> {
    let case = "op=write size=4096 batch=256 peers=256 io_threads=2 path=net";
    if !bench.wants(case) {
        return Ok(());
    }
    let mut builder = Transport::builder().io_threads(2).same_process(false).same_host(false);
    for _ in 0..256 {
        builder = builder.listen("127.0.0.1:0".parse()?);
    }
    let target = builder.build()?;
    let remote = target.register(OwnedMemory::new(256 * 4096)?, Access::READ_WRITE)?.clone();
    let ours = Transport::builder().io_threads(2).lanes(1).same_process(false).same_host(false).build()?;
    let local = ours.register(OwnedMemory::new(4096)?, Access::LOCAL)?;
    let peers: Vec<_> =
        target.local_addrs().iter().map(|&a| ours.peer(a)).collect::<std::result::Result<_, _>>()?;
    let mut batch = Batch::new();
    bench.case(case).record(Metric::Time, || {
        let start = Instant::now();
        for (i, peer) in peers.iter().enumerate() {
            let at = remote.addr() + i as u64 * 4096;
            batch.push(Request::write(peer, &local, local.addr(), remote.descriptor(), at, 4096))?;
        }
        ours.submit(&mut batch)?.wait()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })
}
