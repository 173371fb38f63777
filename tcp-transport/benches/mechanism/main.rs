//! `cargo xtask bench mechanism`: how the answering side of a bare protocol should wait for its sockets. A blocking thread for
//! each connection, readiness (epoll), and io_uring, in turn, between two processes; what is chosen from it is said in
//! `docs/tcp-measurements.md`.

mod conn;
mod serve;
mod uring;

use std::io::{self, IoSlice, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use benchkit::{Bench, Latencies, Metric, OtherEnd, Result, throughput_gb_per_s};
use conn::{HEADER, MEMORY, header};

const CHILD: &str = "MECHANISM_BENCH_SERVER";

fn main() -> Result<()> {
    if std::env::var_os(CHILD).is_some() {
        return serve_all();
    }
    let mut bench = Bench::from_args("mechanism");
    let server = Server::start()?;
    if let Err(e) = uring::ring() {
        println!("io_uring is refused here ({e}): only blocking threads and readiness are compared");
    }
    latency(&mut bench, &server)?;
    for (size, batch, connections) in [(65_536, 16, 1), (1 << 20, 16, 1), (4096, 1, 64), (65_536, 1, 64)] {
        throughput(&mut bench, &server, size, batch, connections)?;
    }
    bench.finish()
}

// ---- the other process ---------------------------------------------------------------------------------------------------

fn serve_all() -> Result<()> {
    let bind = || TcpListener::bind("127.0.0.1:0");
    let (blocking, readiness, uring) = (bind()?, bind()?, bind()?);
    let offered = uring::ring().is_ok();
    let line =
        format!("{} {} {} {offered}", blocking.local_addr()?, readiness.local_addr()?, uring.local_addr()?);
    OtherEnd::say(&line)?;
    std::thread::spawn(move || serve::blocking(&blocking));
    std::thread::spawn(move || report("readiness", serve::readiness(&readiness)));
    if offered {
        std::thread::spawn(move || report("io_uring", uring::serve(&uring)));
    }
    OtherEnd::stay()
}

fn report(what: &str, result: io::Result<()>) {
    if let Err(e) = result {
        eprintln!("the {what} server ended: {e}");
    }
}

struct Server {
    _process: OtherEnd,
    blocking: SocketAddr,
    readiness: SocketAddr,
    /// Where the kernel offers it.
    uring: Option<SocketAddr>,
}

impl Server {
    fn start() -> Result<Self> {
        let mut process = OtherEnd::start(CHILD, "1")?;
        let [blocking, readiness, uring, offered] = process.words()?;
        let uring = if offered == "true" { Some(uring.parse()?) } else { None };
        Ok(Self { _process: process, blocking: blocking.parse()?, readiness: readiness.parse()?, uring })
    }

    fn others(&self) -> impl Iterator<Item = (&'static str, SocketAddr)> {
        [("readiness", Some(self.readiness)), ("io_uring", self.uring)]
            .into_iter()
            .filter_map(|(n, a)| Some((n, a?)))
    }
}

// ---- this process --------------------------------------------------------------------------------------------------------

struct Lane {
    stream: TcpStream,
    memory: Vec<u8>,
}

impl Lane {
    fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, memory: vec![2; MEMORY] })
    }

    fn send(&mut self, read: bool, size: usize, nth: usize) -> Result<()> {
        let at = nth % (MEMORY / size) * size;
        let head = header(read, at, size);
        let payload: &[u8] = if read { &[] } else { &self.memory[at..at + size] };
        let mut parts = [IoSlice::new(&head), IoSlice::new(payload)];
        let mut rest = &mut parts[..];
        while !rest.is_empty() {
            let n = self.stream.write_vectored(rest)?;
            IoSlice::advance_slices(&mut rest, n);
        }
        Ok(())
    }

    fn answer(&mut self, read: bool, size: usize, nth: usize) -> Result<()> {
        self.stream.read_exact(&mut [0; HEADER])?;
        if read {
            let at = nth % (MEMORY / size) * size;
            self.stream.read_exact(&mut self.memory[at..at + size])?;
        }
        Ok(())
    }

    fn ask_with(&mut self, asker: &mut uring::Asker, read: bool, size: usize) -> Result<()> {
        let head = header(read, 0, size);
        let mut back = [0; HEADER + 4096];
        let (payload, back) =
            if read { (&[][..], &mut back[..]) } else { (&self.memory[..size], &mut back[..HEADER]) };
        asker.ask(&self.stream, &[IoSlice::new(&head), IoSlice::new(payload)], back)?;
        Ok(())
    }
}

fn percentiles(time: Duration, mut work: impl FnMut() -> Result<()>) -> Result<[f64; 2]> {
    let mut latencies = Latencies::new();
    let start = Instant::now();
    while start.elapsed() < time {
        let before = Instant::now();
        work()?;
        latencies.record(before.elapsed());
    }
    Ok([latencies.p50_us(), latencies.p99_us()])
}

/// One request of 4 KiB at a time.
fn latency(bench: &mut Bench, server: &Server) -> Result<()> {
    let time = bench.options().round_time();
    for (op, read) in [("write", false), ("read", true)] {
        let ask = |lane: &mut Lane| -> Result<()> {
            lane.send(read, 4096, 0)?;
            lane.answer(read, 4096, 0)
        };
        for (name, addr) in server.others() {
            let (mut ours, mut bare) = (Lane::connect(addr)?, Lane::connect(server.blocking)?);
            bench
                .case(format!("op={op} size=4096 batch=1 connections=1 client=blocking server={name}"))
                .compare_all(
                    [Metric::LatencyP50, Metric::LatencyP99],
                    "blocking threads",
                    || percentiles(time, || ask(&mut ours)),
                    || percentiles(time, || ask(&mut bare)),
                )?;
        }
        if let Some(addr) = server.uring {
            let (mut ours, mut bare) = (Lane::connect(addr)?, Lane::connect(server.blocking)?);
            let mut asker = uring::Asker::new()?;
            bench
                .case(format!("op={op} size=4096 batch=1 connections=1 client=io_uring server=io_uring"))
                .compare_all(
                    [Metric::LatencyP50, Metric::LatencyP99],
                    "blocking threads",
                    || percentiles(time, || ours.ask_with(&mut asker, read, 4096)),
                    || percentiles(time, || ask(&mut bare)),
                )?;
        }
    }
    Ok(())
}

/// `batch` requests in flight on each of the connections; one thread asks.
fn throughput(
    bench: &mut Bench,
    server: &Server,
    size: usize,
    batch: usize,
    connections: usize,
) -> Result<()> {
    let time = bench.options().round_time();
    for (op, read) in [("write", false), ("read", true)] {
        for (name, addr) in server.others() {
            let case = format!(
                "op={op} size={size} batch={batch} connections={connections} client=blocking server={name}"
            );
            if !bench.wants(&case) {
                continue;
            }
            let connect = |addr| (0..connections).map(|_| Lane::connect(addr)).collect::<Result<Vec<_>>>();
            let round = |lanes: &mut [Lane]| -> Result<f64> {
                let (start, mut moved) = (Instant::now(), 0);
                while moved == 0 || start.elapsed() < time {
                    for lane in lanes.iter_mut() {
                        (0..batch).try_for_each(|i| lane.send(read, size, i))?;
                    }
                    for lane in lanes.iter_mut() {
                        (0..batch).try_for_each(|i| lane.answer(read, size, i))?;
                    }
                    moved += (size * batch * connections) as u64;
                }
                Ok(throughput_gb_per_s(moved, start.elapsed()))
            };
            let (mut ours, mut bare) = (connect(addr)?, connect(server.blocking)?);
            bench.case(case).compare(
                Metric::Throughput,
                "blocking threads",
                || round(&mut ours),
                || round(&mut bare),
            )?;
        }
    }
    Ok(())
}
