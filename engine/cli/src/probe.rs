//! `weft probe`: how long it takes until a peer's first byte, cold and warm.
//!
//! Each round is a process's first contact: a new engine opens the peer (one round trip that exchanges everything), then either submits at
//! once (cold) or warms up first (every lane and rail is opened), and then goes on with further submissions, which are what a running
//! system sees.

use std::time::{Duration, Instant};

use engine::{Access, Batch, Engine, HostMemory, Region, RemoteBuffer, Segment};
use serde::Serialize;

use crate::bench::rows::PathName;
use crate::connection::ToPeer;
use crate::failure::Failure;
use crate::output::Output;
use crate::units::{bytes, figures, parse_size};
use crate::verify::MAILBOX;

/// Measures how long the first transfer to a peer takes, with and without warming up
///
/// Reads from the target; changes nothing there.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The target's name, host:port
    #[arg(long, value_name = "NAME")]
    target: String,
    /// Bytes of each read
    #[arg(long, value_name = "SIZE", default_value = "4K", value_parser = parse_size)]
    block_size: u64,
    /// First contacts, of which each figure is the median
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Further reads after each first one
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    reads: u32,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    to_peer: ToPeer,
}

/// Medians over the rounds, in microseconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Report {
    target: String,
    path: String,
    block_bytes: u64,
    rounds: u32,
    /// Opening this side's transports.
    engine_us: f64,
    /// Opening the peer: one round trip that exchanges addresses and keys.
    open_us: f64,
    /// The first read, right after opening.
    cold_first_us: f64,
    /// Warming up: every lane or rail.
    warm_up_us: f64,
    /// The first read after warming up.
    warm_first_us: f64,
    /// Reads after that.
    steady_p50_us: f64,
    steady_p99_us: f64,
    /// A question and its answer on the control path.
    control_us: f64,
}

/// One first contact.
struct Contact {
    engine_took: Duration,
    open_took: Duration,
    engine: Engine,
    segment: Segment,
    region: Region,
    buffer: RemoteBuffer,
}

/// Runs the command.
pub(crate) fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    let mut path = None;
    let [mut engine_us, mut open_us, mut cold, mut warm_up, mut warm, mut control, mut steady] =
        [const { Vec::new() }; 7];
    for _ in 0..args.rounds {
        let contact = Contact::new(args)?;
        engine_us.push(contact.engine_took);
        open_us.push(contact.open_took);
        cold.push(contact.read(args)?);
        contact.end()?;

        let contact = Contact::new(args)?;
        engine_us.push(contact.engine_took);
        open_us.push(contact.open_took);
        let begin = Instant::now();
        contact
            .segment
            .warm_up(begin + args.to_peer.connect_timeout)
            .map_err(|error| Failure::opening(&error))?;
        warm_up.push(begin.elapsed());
        warm.push(contact.read(args)?);
        for _ in 0..args.reads {
            steady.push(contact.read(args)?);
        }
        let deadline = Instant::now() + args.to_peer.connect_timeout;
        control.push(contact.segment.probe(deadline).map_err(|error| Failure::transferring(&error))?);
        path.get_or_insert_with(|| PathName::of(&contact.segment));
        contact.end()?;
    }
    let path = path.map_or_else(String::new, |path| path.to_string());
    let report = Report {
        target: args.target.clone(),
        path,
        block_bytes: args.block_size,
        rounds: args.rounds,
        engine_us: quantile(&mut engine_us, 0.5),
        open_us: quantile(&mut open_us, 0.5),
        cold_first_us: quantile(&mut cold, 0.5),
        warm_up_us: quantile(&mut warm_up, 0.5),
        warm_first_us: quantile(&mut warm, 0.5),
        steady_p50_us: quantile(&mut steady, 0.5),
        steady_p99_us: quantile(&mut steady, 0.99),
        control_us: quantile(&mut control, 0.5),
    };
    if args.json { output.json(&report) } else { show(&report, output) }
}

fn show(report: &Report, output: &Output) -> Result<(), Failure> {
    output.line(format!(
        "reads of {} from {} over {}, medians of {} first contacts",
        bytes(report.block_bytes),
        report.target,
        report.path,
        report.rounds
    ));
    let row =
        |what: &str, micros: f64, meaning: &str| vec![what.to_owned(), figures(micros), meaning.to_owned()];
    let rows = [
        row("engine", report.engine_us, "opening this side's transports, once a process"),
        row("open", report.open_us, "one round trip that exchanges addresses and keys"),
        row("first read, cold", report.cold_first_us, "right after opening"),
        row("warm-up", report.warm_up_us, "every connection or rail"),
        row("first read, warm", report.warm_first_us, "after the warm-up"),
        row("further reads, p50", report.steady_p50_us, "what a running system sees"),
        row("further reads, p99", report.steady_p99_us, ""),
        row("control call", report.control_us, "a question to the peer's engine and its answer"),
    ];
    output.table(&["", "µs", ""], &rows, &[1]);
    let gain = report.cold_first_us - report.warm_first_us;
    if gain > 2.0 * report.warm_first_us {
        output.line(format!(
            "the first read waits {} µs less after a warm-up: call Segment::warm_up before traffic begins",
            figures(gain)
        ));
    }
    Ok(())
}

impl Contact {
    fn new(args: &Args) -> Result<Self, Failure> {
        let begin = Instant::now();
        let engine = args.to_peer.engine(&args.target)?;
        let engine_took = begin.elapsed();
        let len = usize::try_from(args.block_size)
            .map_err(|_| Failure::Usage("a block that large does not fit into memory".into()))?;
        let memory = HostMemory::new(len).map_err(|error| Failure::opening(&error))?;
        let region =
            engine.register("probe", memory, Access::LOCAL).map_err(|error| Failure::opening(&error))?;
        let begin = Instant::now();
        let segment = args.to_peer.segment(&engine, &args.target)?;
        let open_took = begin.elapsed();
        let buffers = segment.buffers();
        let largest =
            buffers.into_iter().filter(|buffer| buffer.label() != MAILBOX).max_by_key(RemoteBuffer::len);
        let buffer = largest.filter(|buffer| buffer.len() >= args.block_size).ok_or_else(|| {
            Failure::Unavailable(format!(
                "{} has no buffer of at least {}; try `weft serve` there, or a smaller --block-size",
                args.target,
                bytes(args.block_size)
            ))
        })?;
        Ok(Self { engine_took, open_took, engine, segment, region, buffer })
    }

    fn read(&self, args: &Args) -> Result<Duration, Failure> {
        let len = args.block_size;
        let begin = Instant::now();
        let mut batch = Batch::new();
        batch.set_deadline(args.to_peer.connect_timeout);
        batch
            .read(&self.region, self.region.range(0, len), &self.segment, self.buffer.range(0, len))
            .and_then(|_| self.engine.submit(&mut batch))
            .and_then(|handle| handle.wait())
            .map_err(|error| {
                Failure::Transfer(format!("reading {} from {} failed: {error}", bytes(len), args.target))
            })?;
        Ok(begin.elapsed())
    }

    fn end(self) -> Result<(), Failure> {
        self.engine.unregister(self.region).map_err(|error| Failure::transferring(&error))?;
        self.engine.shutdown(Instant::now() + Duration::from_secs(1));
        Ok(())
    }
}

/// Microseconds; 0 of nothing.
fn quantile(times: &mut [Duration], quantile: f64) -> f64 {
    times.sort_unstable();
    let last = times.len().saturating_sub(1);
    times.get((last as f64 * quantile).round() as usize).map_or(0.0, |time| time.as_secs_f64() * 1e6)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_sorted_times() {
        let mut times: Vec<Duration> = (1..=101).rev().map(Duration::from_micros).collect();
        let near = |value: f64, wanted: f64| assert!((value - wanted).abs() < 1e-6, "{value}");
        near(quantile(&mut times, 0.5), 51.0);
        near(quantile(&mut times, 0.99), 100.0);
        near(quantile(&mut [], 0.5), 0.0);
    }
}
