//! `cargo xtask bench fabric`: what fabric-safe costs over a bare loop on the same libfabric calls.
//!
//! Both write to one target in another process, over the same provider, with the same window of operations outstanding and
//! the same flags; each write goes to a part of the target of its own. Two figures a case: bytes and operations per second.
//! What the wrapper itself adds is counted besides, by callgrind, on a provider that does nothing (`fake-provider`).

mod bare;
mod safe;
mod target;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use benchkit::callgrind::{self, Callgrind};
use benchkit::{Bench, Metric, Result, per_second, throughput_gb_per_s};

use bare::Bare;
use safe::Safe;
use target::Target;

const SIZES: [usize; 4] = [64, 4096, 65536, 1 << 20];

/// Names by which libfabric's TCP is looked for: 2.x's own, 1.17's stack.
const PROVIDERS: [(&str, &[&str]); 2] = [("tcp", &["tcp", "tcp;ofi_rxm"]), ("shm", &["shm"])];

/// The most bytes that are outstanding.
const REGION_BYTES: usize = 16 << 20;

/// Operations outstanding at a time.
fn window(size: usize) -> usize {
    (REGION_BYTES / size).min(64)
}

/// One side of a comparison: something that writes to the target.
trait Writer {
    /// Posts `operations` writes of `size` bytes, never more than `window` at a time, and waits for the last.
    fn write(&mut self, size: usize, window: usize, operations: usize) -> Result<()>;
}

/// Bytes and operations per second of one round.
fn round(writer: &mut impl Writer, size: usize, operations: usize) -> Result<[f64; 2]> {
    let start = Instant::now();
    writer.write(size, window(size), operations)?;
    let elapsed = start.elapsed();
    Ok([throughput_gb_per_s((size * operations) as u64, elapsed), per_second(operations as u64, elapsed)])
}

/// How many operations take about the time of a round.
fn operations_for(writer: &mut impl Writer, size: usize, time: Duration) -> Result<usize> {
    let mut operations = window(size);
    loop {
        let start = Instant::now();
        writer.write(size, window(size), operations)?;
        let elapsed = start.elapsed();
        if elapsed * 4 >= time {
            let scaled = operations as f64 * time.as_secs_f64() / elapsed.as_secs_f64();
            return Ok((scaled as usize).max(window(size)));
        }
        operations *= 2;
    }
}

fn measure(bench: &mut Bench) -> Result<()> {
    for (name, candidates) in PROVIDERS {
        let case = |size: usize| {
            format!("op=write size={size} window={} provider={name} path=loopback", window(size))
        };
        if !SIZES.iter().any(|size| bench.wants(&case(*size))) {
            continue;
        }
        let Some(provider) = candidates.iter().copied().find(|provider| safe::info(provider).is_some())
        else {
            eprintln!("SKIP: fabric: this libfabric has no provider {name}");
            continue;
        };
        let target = Target::start(provider)?;
        let mut ours = Safe::open(provider, REGION_BYTES, target.point())?;
        let mut theirs = Bare::open(provider, REGION_BYTES)?;
        theirs.connect(target.point())?;
        for size in SIZES.into_iter().filter(|size| bench.wants(&case(*size))).collect::<Vec<_>>() {
            let operations = operations_for(&mut theirs, size, bench.options().round_time())?;
            bench.case(case(size)).target(if size < 4096 { 0.93 } else { 0.97 }).compare_all(
                [Metric::Throughput, Metric::Rate],
                "bare loop over fabric-sys",
                || round(&mut ours, size, operations),
                || round(&mut theirs, size, operations),
            )?;
        }
    }
    Ok(())
}

/// Operations that a child under callgrind repeats; twice as many in the second run.
const COUNTED: u64 = 2000;

/// What a child under callgrind does: writes on the provider that does nothing.
fn counted(mode: &str, operations: u64) -> Result<()> {
    let operations = usize::try_from(operations)?;
    let point = target::Point { name: b"nobody".to_vec(), address: 0x1000, key: 1 };
    match mode {
        "ours" => Safe::open("scripted", REGION_BYTES, &point)?.write(64, 16, operations),
        "bare" => {
            let mut bare = Bare::open("scripted", REGION_BYTES)?;
            bare.connect(&point)?;
            bare.write(64, 16, operations)
        }
        mode => Err(format!("no mode {mode}").into()),
    }
}

fn count(bench: &mut Bench) -> Result<()> {
    let case = "op=write size=64 window=16 provider=scripted what=added-by-the-wrapper";
    if !bench.wants(case) {
        return Ok(());
    }
    let folder = tempfile::tempdir()?;
    let provider = target::beside_this_program("libscripted_provider.so")?;
    std::os::unix::fs::symlink(provider, folder.path().join(scripted_provider::Control::FILE))?;
    let run = |mode: &str| {
        let program = Callgrind::this_program(mode).env("FI_PROVIDER_PATH", folder.path());
        program.env("FI_PROVIDER", "scripted").instructions_per_operation(COUNTED)
    };
    let (Some(ours), Some(bare)) = (run("ours")?, run("bare")?) else {
        eprintln!("SKIP: fabric: instructions: valgrind is not installed");
        return Ok(());
    };
    eprintln!(
        "instructions per operation: {ours:.0} with fabric-safe, {bare:.0} without (both with the provider's)"
    );
    bench.case(case).at_most(150.0).count(Metric::Instructions, (ours - bare).max(0.0), None)
}

fn run() -> Result<()> {
    if let Some(child) = callgrind::child() {
        return counted(&child.mode, child.operations);
    }
    if let Some(provider) = target::asked_for() {
        return target::serve(&provider);
    }
    let mut bench = Bench::from_args("fabric");
    if let Err(error) = fabric_sys::load() {
        eprintln!("SKIP: fabric: {error}");
        return bench.finish();
    }
    count(&mut bench)?;
    measure(&mut bench)?;
    bench.finish()
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
