//! `cargo xtask bench tcp`: this crate between two processes of this machine, against bare loops over the same primitive.
//!
//! `path=net` against blocking sockets with as many connections, the same footprint and the system's congestion control;
//! `path=host` against a loop over `process_vm_readv`/`writev` with the same sizes. What is promised of which rows: `promise.rs`.

mod bare;
mod counted;
mod instructions;
mod pair;
mod promise;
mod vm;

use std::sync::Mutex;
use std::time::{Duration, Instant};

use benchkit::callgrind;
use benchkit::{Bench, CountingAllocator, Latencies, Metric, Result, throughput_gb_per_s};
use tcp_transport::{Batch, Path};

use bare::Op;
use pair::{FOOTPRINT, Ours, Server};
use promise::Kept;

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::system();

/// Most bytes of one round, unless the case was asked for by name: more would take seconds a round and show nothing else, for it
/// goes around in the same memory.
const MOST: usize = 1 << 30;
/// Memory that a thread goes around in at least, on either side, with requests that follow each other: more than a core's own cache
/// holds, because nobody moves the same megabyte again and again. Where the last request was still in that cache, a row says so.
const AROUND: usize = 32 << 20;
/// Bytes for which both sides use one more lane.
const STRIPE: usize = 1 << 20;
const SIZES: [usize; 5] = [4 << 10, 64 << 10, 1 << 20, 16 << 20, 256 << 20];

fn main() -> Result<()> {
    if std::env::var_os(pair::CHILD).is_some() {
        return pair::serve();
    }
    if let Some(child) = callgrind::child() {
        return instructions::run(&child);
    }
    let mut bench = Bench::from_args("tcp");
    let mut kept = Kept::default();
    let mut server = Server::start()?;
    for path in [Path::Net, Path::Host] {
        latency(&mut bench, &mut kept, &server, path)?;
        for threads in [1, 4] {
            let mut ours = None;
            for op in Op::BOTH {
                for size in SIZES {
                    for batch in [1, 16, 128] {
                        let what = What { op, size, batch, threads, hot: false };
                        throughput(&mut bench, &mut kept, &server, &mut ours, path, what)?;
                    }
                }
            }
        }
    }
    for op in Op::BOTH {
        let what = What { op, size: 1 << 20, batch: 1, threads: 1, hot: true };
        throughput(&mut bench, &mut kept, &server, &mut None, Path::Host, what)?;
    }
    longest(&mut bench, &server)?;
    counted::allocated(&mut bench, &mut kept, &mut server)?;
    instructions::compare(&mut bench)?;
    counted::idle(&mut bench, &mut kept, &server)?;
    counted::many_peers(&mut bench)?;
    kept.summarise(&bench);
    bench.finish()
}

/// One case of the matrix: what each thread asks for.
#[derive(Debug, Clone, Copy)]
struct What {
    op: Op,
    size: usize,
    batch: usize,
    threads: usize,
    /// The same memory for each request.
    hot: bool,
}

impl What {
    fn case(&self, path: Path) -> String {
        let Self { op, size, batch, threads, hot } = self;
        let hot = if *hot { " memory=hot" } else { "" };
        format!("op={} size={size} batch={batch} threads={threads} path={path}{hot}", op.name())
    }

    /// Bytes of one batch.
    fn bytes(&self) -> usize {
        self.size * self.batch
    }

    /// Memory that one thread may go around in: a quarter of a GiB in all, or one request.
    fn room(&self) -> usize {
        (FOOTPRINT / 4 / self.threads).max(self.size)
    }

    /// Memory that one thread touches, on either side.
    fn footprint(&self) -> usize {
        if self.hot { self.size } else { self.bytes().max(AROUND).min(self.room()) }
    }

    /// As many lanes as submitters, and at least the two that the machine's cores can use.
    fn lanes(&self) -> usize {
        self.threads.max(2)
    }

    /// Runs `work` on as many threads, each with its number, and sums up what they say.
    fn parallel(&self, work: &(dyn Fn(usize) -> Result<f64> + Sync)) -> Result<f64> {
        if self.threads == 1 {
            return work(0);
        }
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..self.threads).map(|n| scope.spawn(move || work(n))).collect();
            all.into_iter().map(|t| t.join().map_err(|_| "a thread panicked")?).sum()
        })
    }

    fn bare_lanes(&self, server: &Server) -> Result<Vec<Mutex<bare::Lanes>>> {
        let each = self.lanes() / self.threads;
        (0..self.threads)
            .map(|_| bare::Lanes::connect(server.bare, each, self.footprint()).map(Mutex::new))
            .collect()
    }

    /// One batch, whose first request is the thread's `first`.
    fn run_bare(&self, lanes: &[Mutex<bare::Lanes>], thread: usize, first: usize) -> Result<()> {
        let mut lanes = lanes[thread].lock().map_err(|_| "a round panicked")?;
        lanes.run(self.op, self.size, self.batch, STRIPE, first)
    }

    fn run_ours(&self, ours: &Ours, batch: &mut Batch, thread: usize, first: usize) -> Result<()> {
        let start = thread * self.room();
        ours.run(batch, self.op, self.size, self.batch, start..start + self.footprint(), first)
    }

    /// Repeats `work`, which moves one batch from the given request on, for about `time`.
    fn repeat(&self, time: Duration, mut work: impl FnMut(usize) -> Result<()>) -> Result<f64> {
        let start = Instant::now();
        let mut first = 0;
        while first == 0 || start.elapsed() < time {
            work(first)?;
            first += self.batch;
        }
        Ok(throughput_gb_per_s((first * self.size) as u64, start.elapsed()))
    }
}

/// Short rounds, because there are a hundred cases of them.
fn round_time(bench: &Bench) -> Duration {
    bench.options().round_time().min(Duration::from_millis(25))
}

fn throughput(
    bench: &mut Bench,
    kept: &mut Kept,
    server: &Server,
    connected: &mut Option<Ours>,
    path: Path,
    what: What,
) -> Result<()> {
    let case = what.case(path);
    let most = match (&bench.options().filter, bench.options().quick) {
        (Some(filter), _) if case.starts_with(filter.as_str()) => usize::MAX,
        (_, true) => MOST / 4,
        (_, false) => MOST,
    };
    if !bench.wants(&case) || what.bytes() * what.threads > most {
        return Ok(());
    }
    let time = round_time(bench);
    let ours = match connected {
        Some(ours) => ours,
        // As much memory as the largest case of so many threads needs.
        None => {
            let footprint = (FOOTPRINT / 4).max(what.threads * SIZES[SIZES.len() - 1]);
            connected.insert(Ours::connect(server, path, what.lanes(), footprint)?)
        }
    };
    let ours = &*ours;
    let ours_round = || {
        what.parallel(&|n| {
            let mut requests = Batch::new();
            what.repeat(time, |first| what.run_ours(ours, &mut requests, n, first))
        })
    };
    let promise = promise::of_throughput(path, what.size, what.batch).filter(|_| !what.hot);
    if let Some(promise) = promise {
        kept.add(&case, Metric::Throughput, promise);
    }
    let case = match promise {
        Some(promise) => bench.case(case).target(promise.figure),
        None => bench.case(case),
    };
    match path {
        Path::Host => {
            let (pid, addr) = (server.process.id(), server.remote.addr);
            let bare = vm::Remote::new(pid, addr, what.threads, what.footprint(), what.room());
            case.compare(Metric::Throughput, "bare process_vm loop", ours_round, || {
                what.parallel(&|n| {
                    what.repeat(time, |first| bare.run(what.op, what.size, what.batch, n, first))
                })
            })
        }
        _ => {
            let lanes = what.bare_lanes(server)?;
            case.compare(Metric::Throughput, "bare socket loop", ours_round, || {
                what.parallel(&|n| what.repeat(time, |first| what.run_bare(&lanes, n, first)))
            })
        }
    }
}

/// One request of 4 KiB at a time.
fn latency(bench: &mut Bench, kept: &mut Kept, server: &Server, path: Path) -> Result<()> {
    for op in Op::BOTH {
        let case = What { op, size: 4096, batch: 1, threads: 1, hot: false }.case(path);
        if !bench.wants(&case) {
            continue;
        }
        let ours = Ours::connect(server, path, 1, 1 << 20)?;
        let mut bare = bare::Lane::connect(server.bare, 4096)?;
        let mut requests = Batch::new();
        let time = bench.options().round_time().min(Duration::from_millis(100));
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
        kept.add(&case, Metric::LatencyP50, &promise::LATENCY);
        bench.case(case).target(promise::LATENCY.figure).compare_all(
            [Metric::LatencyP50, Metric::LatencyP99],
            "bare blocking ping-pong",
            || measure(&mut || ours.run(&mut requests, op, 4096, 1, 0..4096, 0)),
            || measure(&mut || bare.run(op, 4096, 1, 0)),
        )?;
    }
    Ok(())
}

/// The longest that one batch has taken, with two threads at work: a hand-over that is lost would show here as tens of milliseconds
/// that the bare loop has not.
fn longest(bench: &mut Bench, server: &Server) -> Result<()> {
    for op in Op::BOTH {
        let what = What { op, size: 1 << 20, batch: 16, threads: 2, hot: false };
        let case = format!("longest of {}", what.case(Path::Net));
        if !bench.wants(&case) {
            continue;
        }
        let ours = Ours::connect(server, Path::Net, what.lanes(), FOOTPRINT / 4)?;
        let lanes = what.bare_lanes(server)?;
        let time = round_time(bench);
        let worst = |work: &(dyn Fn(&mut Batch, usize, usize) -> Result<()> + Sync)| -> Result<f64> {
            let worst = Mutex::new(0.0_f64);
            what.parallel(&|n| {
                let mut requests = Batch::new();
                what.repeat(time, |first| {
                    let start = Instant::now();
                    work(&mut requests, n, first)?;
                    let mut worst = worst.lock().map_err(|_| "a round panicked")?;
                    *worst = worst.max(start.elapsed().as_secs_f64() * 1e3);
                    Ok(())
                })
            })?;
            worst.into_inner().map_err(|_| "a round panicked".into())
        };
        let (mut most, mut most_bare) = (0.0_f64, 0.0_f64);
        for _ in 0..2 * bench.options().rounds() {
            most = most.max(worst(&|requests, n, first| what.run_ours(&ours, requests, n, first))?);
            most_bare = most_bare.max(worst(&|_, n, first| what.run_bare(&lanes, n, first))?);
        }
        bench.case(case).count(Metric::Time, most, Some(("bare socket loop", most_bare)))?;
    }
    Ok(())
}
