//! `cargo xtask bench overhead`: what the transport itself costs per slice: allocations, and instructions of the scheduler.

#[allow(dead_code)] // the bare loop is for the other benchmarks
#[path = "common/mod.rs"]
mod bare;
#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use benchkit::callgrind::{Callgrind, child};
use benchkit::{Bench, CountingAllocator, CpuClock, Metric, Result, allocations};
use common::{Target, memory, processor_times, soon};
use efa_transport::scheduler::queue::{Queue, Token};
use efa_transport::scheduler::rail::{Chooser, PER_SLICE, Pace, cost, partner};
use efa_transport::scheduler::slicer::{Chunk, Stretch, slice};
use efa_transport::{Batch, Op, Request, Shape, Transport};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::system();

const LANES: usize = 16;
const PACE: Pace = Pace::of(100_000);

/// Slices that wait or are in flight on each lane meanwhile: choosing among idle ones would be too easy.
const BACKLOG: usize = 16;

/// What is in flight on a lane, in order: a ring that costs next to nothing, because it is not the scheduler's.
struct Flying {
    tokens: [Token; Self::MOST],
    first: usize,
    end: usize,
}

impl Flying {
    const MOST: usize = 4 * BACKLOG;

    const fn new() -> Self {
        Self { tokens: [Token::from_raw(0); Self::MOST], first: 0, end: 0 }
    }

    fn push(&mut self, token: Token) {
        self.tokens[self.end % Self::MOST] = token;
        self.end += 1;
        assert!(self.end - self.first <= Self::MOST, "the lanes are out of balance");
    }

    /// The oldest, if there are more than so many.
    fn pop_beyond(&mut self, count: usize) -> Option<Token> {
        (self.end - self.first > count).then(|| {
            self.first += 1;
            self.tokens[(self.first - 1) % Self::MOST]
        })
    }
}

/// The scheduler's way of `count` slices of 64 KiB over 16 busy lanes: cut, choose, queue, post, end.
#[inline(never)]
fn way_of_slices(queues: &mut [Queue<(u32, u64)>], count: u64) {
    let chunk = |addr: u64| Some(Chunk { index: 0, before: addr, left: u64::MAX - addr });
    let mut loads = [0_u64; LANES];
    let mut flying = [const { Flying::new() }; LANES];
    let mut chooser = Chooser::default();
    for number in 0..count {
        let page = Stretch { at: number << 17, len: 64 << 10 };
        let ends = std::iter::once(page);
        let cut = slice(ends.clone(), ends, chunk, chunk, 1 << 20, |cut| {
            let lane = chooser.choose(
                (1 << LANES) - 1,
                number as usize % LANES,
                |_| cost(0, cut.len, PACE, false),
                |lane| cost(loads[lane], cut.len, PACE, false),
            );
            let lane = lane.unwrap_or(0);
            loads[lane] += cut.len + PER_SLICE;
            queues[lane].push(0, cut.len, (cut.local_chunk, cut.local));
            while let Some(token) = queues[lane].next(0) {
                black_box(partner(lane, LANES, LANES, (1 << LANES) - 1, 0));
                queues[lane].posted(token);
                flying[lane].push(token);
            }
        });
        black_box(cut.is_ok());
        // Every lane ends as many as it gets, by and by.
        let lane = number as usize % LANES;
        if let Some(token) = flying[lane].pop_beyond(BACKLOG) {
            black_box(queues[lane].end(token));
            loads[lane] -= (64 << 10) + PER_SLICE;
        }
    }
}

/// Blocks of a batch, for counting instructions.
const BATCH: usize = 64;
const BLOCK: usize = 4096;

/// `count` blocks written through the transport, one by one.
fn counted_alone(provider: &str, count: u64) -> Result<()> {
    let transport = Transport::open(common::config(provider, 1, "initiator").depth(BATCH))?;
    let mut target = Target::start(provider, 1, "target", BLOCK);
    let peer = target.meet(&transport);
    transport.warm_up(peer, soon())?;
    let region = memory(&transport, BLOCK);
    let mut batch = Batch::new();
    for _ in 0..count {
        batch.push(Request::write(peer, &region, region.addr(), target.addr, BLOCK as u64))?;
        transport.submit(&mut batch)?.wait()?;
    }
    transport.shutdown(soon());
    Ok(())
}

/// The same without the transport.
fn counted_bare_alone(provider: &str, count: u64) -> Result<()> {
    let mut bare = bare::Bare::start(provider, 1, BLOCK)?;
    for _ in 0..count {
        bare.one(0, true, BLOCK)?;
    }
    Ok(())
}

/// `count` blocks written through the transport: pages of a request each.
fn counted_ours(provider: &str, count: u64, depth: usize) -> Result<()> {
    let len = 4 * BATCH * BLOCK;
    let transport = Transport::open(common::config(provider, 1, "initiator").depth(depth))?;
    let mut target = Target::start(provider, 1, "target", len);
    let peer = target.meet(&transport);
    transport.warm_up(peer, soon())?;
    let region = memory(&transport, len);
    let mut batch = Batch::new();
    // Every other one, so that nothing merges.
    let every_other =
        |base: u64| (0..BATCH as u64).map(|block| base + block * 2 * BLOCK as u64).collect::<Vec<_>>();
    let (here, there) = (every_other(region.addr()), every_other(target.addr));
    for _ in 0..count / BATCH as u64 {
        batch.push(Request {
            op: Op::Write,
            peer,
            local: &region,
            local_shape: Shape::Paged { page_len: BLOCK as u64, addrs: &here },
            remote_shape: Shape::Paged { page_len: BLOCK as u64, addrs: &there },
            immediate: None,
        })?;
        transport.submit(&mut batch)?.wait()?;
    }
    transport.shutdown(soon());
    Ok(())
}

/// The same without the transport.
fn counted_bare(provider: &str, count: u64, depth: usize) -> Result<()> {
    let mut bare = bare::Bare::start(provider, 1, 4 * BATCH * BLOCK)?;
    for _ in 0..count / BATCH as u64 {
        bare.stream(true, BLOCK, BATCH, depth)?;
    }
    Ok(())
}

/// Instructions of one operation that this program executes itself: what libfabric, the C library and the kernel do is not counted.
/// `None` without valgrind.
fn own_instructions(mode: &str, operations: u64) -> Result<Option<f64>> {
    let program = std::env::current_exe()?;
    let name = "libscripted_provider.so";
    let provider = program.ancestors().map(|dir| dir.join(name)).find(|path| path.is_file());
    let Some(provider) = provider else { return Ok(None) };
    let own = |operations: u64| -> Result<Option<u64>> {
        let dir = tempfile::tempdir()?;
        let report = dir.path().join("report");
        std::os::unix::fs::symlink(&provider, dir.path().join("libscripted-fi.so"))?;
        let output = std::process::Command::new("valgrind")
            .args(["--tool=callgrind", "--compress-strings=no", "--compress-pos=no"])
            .arg("--separate-threads=yes")
            .env("FI_PROVIDER_PATH", dir.path())
            .env("FI_PROVIDER", "scripted")
            .arg(format!("--callgrind-out-file={}", report.display()))
            .arg(&program)
            .env("BENCHKIT_MODE", mode)
            .env("BENCHKIT_OPERATIONS", operations.to_string())
            .output();
        let output = match output {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            output => output?,
        };
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(format!("{mode} under callgrind: {}\n{said}", output.status).into());
        }
        // The first thread's; the progress thread looks by the clock.
        let report = std::fs::read_to_string(dir.path().join("report-01"))?;
        Ok(Some(self_cost(&report, &program.to_string_lossy())))
    };
    let (Some(once), Some(twice)) = (own(operations)?, own(2 * operations)?) else { return Ok(None) };
    Ok(Some(twice.saturating_sub(once) as f64 / operations as f64))
}

/// The instructions that callgrind's report attributes to an object file itself.
fn self_cost(report: &str, object: &str) -> u64 {
    let (mut ours, mut callee, mut sum) = (false, false, 0);
    for line in report.lines() {
        if let Some(name) = line.strip_prefix("ob=") {
            ours = name == object;
        } else if line.starts_with("calls=") {
            // The next line is what was called, and its cost not our own.
            callee = true;
        } else if line.starts_with(|c: char| c.is_ascii_digit()) {
            let cost = line.split_whitespace().nth(1).and_then(|cost| cost.parse::<u64>().ok());
            if ours && !callee {
                sum += cost.unwrap_or(0);
            }
            callee = false;
        }
    }
    sum
}

/// Messages a second of [`sparse`].
const RATES: [u32; 4] = [1, 10, 100, 1000];

/// The share of a processor that a target takes, in percent, while `rate` messages a second are sent for a while.
fn share(target: u32, rate: u32, span: Duration, mut send: impl FnMut() -> Result<()>) -> Result<f64> {
    let pause = Duration::from_secs(1) / rate;
    // What the first message takes is not the question.
    send()?;
    std::thread::sleep(pause.min(Duration::from_millis(100)));
    let ran = || {
        processor_times(target)
            .map(|(ran, _)| ran)
            .ok_or("this kernel does not tell a thread's processor time")
    };
    let (began, before) = (Instant::now(), ran()?);
    let mut next = began;
    while began.elapsed() < span {
        next += pause;
        send()?;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    let took = ran()?.saturating_sub(before);
    Ok(100.0 * took.as_secs_f64() / began.elapsed().as_secs_f64())
}

/// What it costs a target that now and then somebody writes 4 KiB there, beside a bare one that sleeps until it is woken.
fn sparse(bench: &mut Bench, provider: &str) -> Result<()> {
    let span = Duration::from_millis(if bench.options().quick { 500 } else { 3000 });
    for rate in RATES {
        let case = |who| format!("step=sparse size={BLOCK} rate={rate} nics=1 provider={provider} who={who}");
        if !bench.wants(&case("ours")) {
            continue;
        }
        // Without one, whoever measures something else says that it is not here.
        let Ok(transport) = Transport::open(common::config(provider, 1, "initiator")) else { return Ok(()) };
        let wait_objects = transport.describe().nics.iter().all(|nic| nic.wait_object);
        let mut target = Target::start(provider, 1, "target", BLOCK);
        let peer = target.meet(&transport);
        transport.warm_up(peer, soon())?;
        let region = memory(&transport, BLOCK);
        let mut batch = Batch::new();
        let ours = share(target.process(), rate, span, || {
            batch.push(Request::write(peer, &region, region.addr(), target.addr, BLOCK as u64))?;
            Ok(transport.submit(&mut batch)?.wait()?)
        })?;
        transport.shutdown(soon());
        drop(target);
        bench.case(case("ours")).count(Metric::Cpu, ours, None)?;
        // Where nothing wakes it, a bare one can only look all the time.
        if wait_objects {
            let mut bare = bare::Bare::start(provider, 1, BLOCK)?;
            bare.doze()?;
            let process = bare.target().ok_or("a target of its own")?;
            let bare = share(process, rate, span, || bare.one(0, true, BLOCK))?;
            bench.case(case("bare")).count(Metric::Cpu, bare, None)?;
            eprintln!("{provider}, {rate} messages a second: {ours:.3} % of a processor, bare {bare:.3} %");
        } else {
            eprintln!("{provider}, {rate} messages a second: {ours:.3} % of a processor");
        }
    }
    Ok(())
}

// Links the crate, so that cargo builds its library.
use scripted_provider as _;

fn main() -> Result<()> {
    bare::serve_targets();
    let new_queues = || (0..LANES).map(|_| Queue::new(1024, 32 << 20)).collect::<Vec<_>>();
    if let Some(child) = child() {
        match child.mode.split_once(' ') {
            Some(("ours", provider)) => return counted_ours(provider, child.operations, BATCH),
            Some(("bare", provider)) => return counted_bare(provider, child.operations, BATCH),
            Some(("ours-drip", provider)) => return counted_ours(provider, child.operations, 1),
            Some(("bare-drip", provider)) => return counted_bare(provider, child.operations, 1),
            Some(("ours-alone", provider)) => return counted_alone(provider, child.operations),
            Some(("bare-alone", provider)) => return counted_bare_alone(provider, child.operations),
            _ => way_of_slices(&mut new_queues(), child.operations),
        }
        return Ok(());
    }
    let mut bench = Bench::from_args("overhead");
    if let Some(instructions) =
        Callgrind::this_program("scheduler").only_in("*way_of_slices*").instructions_per_operation(10_000)?
    {
        bench.case("step=scheduler size=65536 nics=16").at_most(400.0).count(
            Metric::Instructions,
            instructions,
            None,
        )?;
    } else {
        eprintln!("SKIP: overhead instructions: valgrind is not installed");
    }
    // A provider that completes everything at once: elsewhere the polls while waiting would be counted too, as many as the
    // weather wants.
    let counted = [
        (format!("step=slice size={BLOCK} batch={BATCH} nics=1 provider=scripted"), "", 400.0),
        // What a slice costs whose completion is read alone, and makes room for the next: providers over sockets and shared memory
        // complete so. Not promised: what it has cost.
        (format!("step=slice size={BLOCK} batch={BATCH} depth=1 nics=1 provider=scripted"), "-drip", 1300.0),
        // What a request costs that is alone in its batch, which is a part of its latency (`bench efa` has the whole). Not promised
        // to anybody: what it has cost, so that it is seen to grow.
        (format!("step=request size={BLOCK} batch=1 nics=1 provider=scripted"), "-alone", 1500.0),
    ];
    for (case, which, limit) in counted {
        if !bench.wants(&case) {
            continue;
        }
        let own = |who| own_instructions(&format!("{who}{which} scripted"), 4096);
        let (Some(ours), Some(bare)) = (own("ours")?, own("bare")?) else {
            eprintln!("SKIP: overhead {case}: valgrind or libscripted_provider.so is not here");
            continue;
        };
        eprintln!("{case}: {ours:.0} instructions with the transport, {bare:.0} in the bare loop");
        bench.case(case).at_most(limit).count(Metric::Instructions, ours - bare, None)?;
    }
    for provider in bare::providers() {
        let case = format!("nics=1 provider={provider}");
        let waits = |on: bool| format!("step=idle {case} wait_object={on}");
        let slices = format!("op=write size=65536 batch=1000 {case}");
        sparse(&mut bench, provider)?;
        if ![&slices, &waits(true), &waits(false)].into_iter().any(|name| bench.wants(name)) {
            continue;
        }
        let transport = match Transport::open(common::config(provider, 1, "initiator")) {
            Ok(transport) => transport,
            Err(error) => {
                eprintln!("SKIP: overhead {case}: {error}");
                continue;
            }
        };
        let len = 64 << 20;
        let mut target = Target::start(provider, 1, "target", len);
        let peer = target.meet(&transport);
        transport.warm_up(peer, soon())?;
        let region = memory(&transport, len);
        let mut batch = Batch::new();
        let round = |batch: &mut Batch, slices: u64| -> Result<()> {
            for page in 0..slices {
                let at = page * (64 << 10);
                // Every other page, so that nothing merges.
                let to = (page * 2 % 1024) * (64 << 10);
                batch.push(Request::write(
                    peer,
                    &region,
                    region.addr() + at % (len as u64),
                    target.addr + to,
                    64 << 10,
                ))?;
            }
            transport.submit(batch)?.wait()?;
            Ok(())
        };
        // What grows has grown.
        for _ in 0..8 {
            round(&mut batch, 1000)?;
        }
        const ROUNDS: u64 = 4;
        let (outcome, count) =
            allocations(&ALLOCATOR, || (0..ROUNDS).try_for_each(|_| round(&mut batch, 1000)));
        outcome?;
        bench.case(slices).at_most(0.0).count(
            Metric::Allocations,
            count as f64 / (ROUNDS * 1000) as f64,
            None,
        )?;
        // Idle, with a connected peer.
        let quiet = Duration::from_secs(if bench.options().quick { 1 } else { 5 });
        let clock = CpuClock::process();
        let until = Instant::now() + quiet;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::sleep(left);
        }
        let blocks = transport.describe().nics.iter().all(|nic| nic.wait_object);
        bench.case(waits(blocks)).at_most(if blocks { 1.0 } else { 3.0 }).count(
            Metric::Cpu,
            clock.percent(),
            None,
        )?;
        transport.shutdown(soon());
    }
    bench.finish()
}
