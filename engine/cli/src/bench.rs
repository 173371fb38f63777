//! `weft bench`: reads or writes a target's memory and measures it.
//!
//! | chapter | what it is |
//! |---|---|
//! | `grid` | the cases: block size × batch size × threads |
//! | `worker` | the traffic of one thread |
//! | `measure` | latencies by stage, and what they come to |
//! | `check` | verification of every byte, before and after measuring |
//! | `rows` | results as JSON rows and as a table |
//! | `plot` | the same as an SVG |
//!
//! # What is measured
//!
//! A *batch* is what one `Engine::submit` takes: as many blocks as `--batch-size` says. Its time is split in three:
//!
//! - **queue**: from the moment that it could begin (its predecessor in the same place was over) to the call of `Engine::submit`: making
//!   up the requests, and waiting for this thread;
//! - **post**: the call of `Engine::submit`;
//! - **transfer**: from its return until this thread has seen the end. What waits inside the engine for a credit or a lane is in here.
//!
//! Latencies are those of whole batches, throughput is the payload of all threads over the time from the common start to the last end.
//! One GB/s is 10⁹ bytes per second.

pub(crate) mod check;
pub(crate) mod grid;
pub(crate) mod measure;
pub(crate) mod plot;
pub(crate) mod rows;
pub(crate) mod worker;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use engine::{Engine, RemoteBuffer, Segment};

use crate::connection::ToPeer;
use crate::failure::Failure;
use crate::output::Output;
use crate::units::{Counts, Sizes, bytes, figures, parse_duration};
use crate::verify::MAILBOX;
use grid::{Case, Grid};
use measure::Measured;
use worker::Traffic;

/// Reads or writes a target's memory and measures throughput and latency
///
/// The target is a `weft serve`, or any engine that has memory registered: --op write changes that memory.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Each of the lists takes values and ranges: `4K,64K`, `4K..16M` (doubling), `4K..16M:4`. All combinations are run.\n\n\
    Examples:\n  weft bench --target 127.0.0.1:7420 --op write --verify\n  weft bench --target node7:7420 --sweep --plot sweep.svg --json sweep.json"
)]
pub struct Args {
    /// The target's name, host:port, as its `weft serve` prints it
    #[arg(long, value_name = "NAME")]
    target: String,
    /// What to do with the target's memory
    #[arg(long, value_name = "OP", default_value = "write")]
    op: Op,
    /// Bytes of one block
    #[arg(long, value_name = "LIST", default_value_if("sweep", "true", "4K..16M:4"), default_value = "64K")]
    block_size: Sizes,
    /// Blocks of one batch
    #[arg(long, value_name = "LIST", default_value_if("sweep", "true", "1,16,128"), default_value = "128")]
    batch_size: Counts,
    /// Threads, each with batches of its own
    #[arg(long, value_name = "LIST", default_value_if("sweep", "true", "1,2"), default_value = "1")]
    threads: Counts,
    /// Batches that each thread keeps in flight
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=1024))]
    depth: u64,
    /// Measure each case for this long
    #[arg(long, value_name = "TIME", default_value_if("sweep", "true", "1s"), default_value = "5s", value_parser = parse_duration)]
    duration: Duration,
    /// Run through block sizes 4K..16M, batches of 1, 16 and 128, and 1 and 2 threads, where the lists do not say otherwise
    #[arg(long)]
    sweep: bool,
    /// Send the blocks of a batch as one request with pages instead of a request for each
    #[arg(long)]
    paged: bool,
    /// Check every byte of further batches, before and after measuring; writes to the target with either --op
    #[arg(long)]
    verify: bool,
    /// The target's buffer. Default: its largest
    #[arg(long, value_name = "LABEL")]
    buffer: Option<String>,
    /// How long one batch may take
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = parse_duration)]
    deadline: Duration,
    /// Draw throughput and latency by block size
    #[arg(long, value_name = "FILE.svg")]
    plot: Option<PathBuf>,
    /// Write the results as rows of JSON; `-` for stdout, without the table then
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Answer Prometheus at http://ADDR/metrics while it runs
    #[cfg(feature = "prometheus")]
    #[arg(long, value_name = "ADDR")]
    metrics: Option<std::net::SocketAddr>,
    #[command(flatten)]
    to_peer: ToPeer,
}

/// Direction of the transfers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, ValueEnum)]
pub(crate) enum Op {
    /// From the target's memory to ours.
    Read,
    /// From our memory to the target's.
    Write,
}

impl std::fmt::Display for Op {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(match self {
            Self::Read => "read",
            Self::Write => "write",
        })
    }
}

/// What all cases have in common.
pub(crate) struct Setting {
    pub(crate) engine: Engine,
    pub(crate) segment: Segment,
    pub(crate) buffer: RemoteBuffer,
    pub(crate) op: Op,
    pub(crate) paged: bool,
    pub(crate) depth: usize,
    pub(crate) deadline: Duration,
}

/// A case with its results.
#[derive(Debug, Clone)]
pub(crate) struct Outcome {
    pub(crate) case: Case,
    pub(crate) measured: Measured,
    /// Bytes that were verified beside it, if that was asked for.
    pub(crate) verified: Option<u64>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    let mut grid = Grid::new(&args.block_size, &args.batch_size, &args.threads);
    let (engine, segment) = args.to_peer.open(&args.target)?;
    #[cfg(feature = "prometheus")]
    let _exporter = args.metrics.map(|addr| crate::metrics::Exporter::start(addr, &engine)).transpose()?;
    let buffer = choose_buffer(&segment, args.buffer.as_deref())?;
    if args.sweep {
        match grid.keep_fitting(args.depth, &buffer, args.verify) {
            0 => {}
            left_out => output.remark(format!(
                "{left_out} cases do not fit into the target's buffer of {} and are left out; `weft serve --size 4G` takes them all",
                bytes(buffer.len())
            )),
        }
    }
    grid.fits(args.depth, &buffer, args.verify)?;
    segment
        .warm_up(Instant::now() + args.to_peer.connect_timeout)
        .map_err(|error| Failure::opening(&error))?;
    let path = rows::PathName::of(&segment);
    let quiet = args.json.as_deref().is_some_and(|file| file == "-");
    if !quiet {
        output.line(format!(
            "{} {} over {path}, buffer {:?} of {}, {} a case",
            args.op,
            args.target,
            buffer.label(),
            bytes(buffer.len()),
            seconds(args.duration),
        ));
    }
    let setting = Setting {
        engine,
        segment,
        buffer,
        op: args.op,
        paged: args.paged,
        depth: usize::try_from(args.depth).unwrap_or(1),
        deadline: args.deadline,
    };
    let mut outcomes = Vec::new();
    for case in grid.cases() {
        match measure_case(&setting, case, args, output) {
            Ok(outcome) => outcomes.push(outcome),
            Err(failure) => {
                // What has been measured so far is worth having.
                report(args, &path, &outcomes, quiet, output)?;
                return Err(failure);
            }
        }
    }
    report(args, &path, &outcomes, quiet, output)?;
    incidents(&setting, &path, output);
    setting.engine.shutdown(Instant::now() + Duration::from_secs(1));
    Ok(())
}

/// Says what happened on the way that the figures do not show.
fn incidents(setting: &Setting, path: &rows::PathName, output: &Output) {
    let now = rows::PathName::of(&setting.segment);
    if now != *path {
        let reason = setting.segment.path_reason();
        output.warning(format!("the path changed to {now} ({reason}); the figures are of both"));
    }
    let statistics = setting.segment.statistics();
    let retries = statistics.retries + setting.engine.statistics().tcp.retries;
    if retries + statistics.failovers + statistics.restarts > 0 {
        output.warning(format!(
            "on the way {retries} slices were sent again, the peer was moved to TCP {} times and restarted {} times",
            statistics.failovers, statistics.restarts
        ));
    }
}

fn measure_case(setting: &Setting, case: Case, args: &Args, output: &Output) -> Result<Outcome, Failure> {
    let traffic = Traffic::set_up(setting, case)?;
    // Half before measuring, half after it.
    let share = args.duration / 4;
    let mut verified = args.verify.then_some(0);
    if let Some(verified) = &mut verified {
        *verified += check::run(setting, &traffic, share)?;
    }
    let bar = output.progress(args.duration);
    bar.set_prefix(case.short());
    let measured = traffic.measure(setting, args.duration, |elapsed, moved| {
        bar.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
        bar.set_message(format!("{} GB/s", figures(moved as f64 / elapsed.as_secs_f64().max(1e-9) / 1e9)));
    });
    bar.finish_and_clear();
    let measured = measured?;
    if let Some(verified) = &mut verified {
        *verified += check::run(setting, &traffic, share)?;
    }
    traffic.tear_down(setting)?;
    Ok(Outcome { case, measured, verified })
}

fn report(
    args: &Args,
    path: &rows::PathName,
    outcomes: &[Outcome],
    quiet: bool,
    output: &Output,
) -> Result<(), Failure> {
    if !quiet && !outcomes.is_empty() {
        rows::table(outcomes, output);
    }
    if let Some(file) = &args.json {
        output.json_file(file, &rows::rows(args.op, path, outcomes))?;
    }
    if let Some(file) = args.plot.as_ref().filter(|_| !outcomes.is_empty()) {
        let title = format!("weft bench: {} over {path}", args.op);
        let svg = plot::draw(&title, outcomes)
            .map_err(|reason| Failure::Usage(format!("cannot draw {file:?}: {reason}")))?;
        std::fs::write(file, svg).map_err(Failure::writing(file))?;
        if !quiet {
            output.line(format!("plot: {}", file.display()));
        }
    }
    Ok(())
}

/// The buffer that was named, or the largest.
fn choose_buffer(segment: &Segment, label: Option<&str>) -> Result<RemoteBuffer, Failure> {
    let buffers = segment.buffers();
    let chosen = match label {
        Some(label) => buffers.iter().find(|buffer| buffer.label() == label),
        None => buffers.iter().filter(|buffer| buffer.label() != MAILBOX).max_by_key(|buffer| buffer.len()),
    };
    chosen.cloned().ok_or_else(|| {
        let known: Vec<&str> = buffers.iter().map(RemoteBuffer::label).take(10).collect();
        Failure::Unavailable(match label {
            Some(label) => format!("{} has no buffer called {label:?}; it has {known:?}", segment.name()),
            None => format!("{} has no memory registered", segment.name()),
        })
    })
}

fn seconds(time: Duration) -> String {
    format!("{} s", figures(time.as_secs_f64()))
}
