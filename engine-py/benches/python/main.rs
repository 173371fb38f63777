//! `weft.mooncake` beside the real `mooncake.engine`, call for call, as their users call them.
//!
//! Each system has a target process and an initiator process; in every round each has its turn, and the others are stopped
//! meanwhile. Over TCP: Weft over sockets (`path=net`) and with the copy that its peers on one host agree on (`path=host`), Mooncake
//! with its defaults and with its pool of connections, and the least that could move the same bytes over sockets, in Rust. Over
//! software EFA cards (`path=efa`): both with their EFA transports, and the sockets again.
//!
//! What is promised is at least 3 times Mooncake for batches of 64 KiB and 2 times from 1 MiB up, or 0.95 of the bare sockets
//! where that is less; and a lower median everywhere.

#[path = "../../../tcp-transport/benches/tcp/bare.rs"]
#[allow(dead_code)] // more than what is needed here
mod bare;
mod cards;
mod side;
mod sockets;

use std::path::PathBuf;
use std::process::{Command, Stdio};

use benchkit::{Bench, Metric, Result};

use crate::bare::Op;
use crate::cards::Cards;
use crate::side::{Pair, Python};
use crate::sockets::Sockets;

/// Sizes of single transfers, in bytes.
const SINGLE: [usize; 5] = [4096, 65536, 1 << 20, 16 << 20, 256 << 20];
/// Batches: requests and bytes of each.
const BATCHES: [(usize, usize); 4] = [(16, 65536), (128, 65536), (16, 1 << 20), (128, 1 << 20)];
/// Memory of each process.
const LENGTH: usize = 256 << 20;
/// Whom ours is compared with: the end of a case, and in words.
type Rival = (&'static str, &'static str);
const MOONCAKE: Rival = ("mooncake", "mooncake.engine with its defaults");
const POOLED: Rival = ("mooncake-pool", "mooncake.engine with its connection pool");
const SOCKETS: Rival = ("sockets", "bare sockets");

/// What is asked of a side: calls of one kind for some time, one after the other.
#[derive(Debug, Clone, Copy)]
struct Load {
    op: Op,
    /// Bytes of a request.
    size: usize,
    /// Requests of a call.
    batch: usize,
    seconds: f64,
}

impl Load {
    fn all(seconds: f64) -> impl Iterator<Item = Self> {
        let of = move |op| {
            let singles = SINGLE.into_iter().map(|size| (1, size));
            singles.chain(BATCHES).map(move |(batch, size)| Self { op, size, batch, seconds })
        };
        Op::BOTH.into_iter().flat_map(of)
    }

    fn case(&self, path: &str) -> String {
        format!("op={} size={} batch={} path={path}", self.op.name(), self.size, self.batch)
    }

    /// How many times as fast as Mooncake it is to be, if anything is promised.
    fn promised(&self) -> Option<f64> {
        match (self.size, self.batch) {
            (65536, 2..) => Some(3.0),
            (1_048_576.., _) => Some(2.0),
            _ => None,
        }
    }
}

/// GB/s, and the median time of a call in µs.
type Figures = [f64; 2];
const METRICS: [Metric; 2] = [Metric::Throughput, Metric::LatencyP50];

/// One of those that are compared.
trait Side {
    fn run(&mut self, load: &Load) -> Result<Figures>;
    /// Leaves the cores to others until it is run again.
    fn rest(&mut self) -> Result<()>;
}

/// Ours and whom it is compared with, by index into the sides of a run.
struct Match {
    path: &'static str,
    ours: usize,
    /// What the promise is about.
    mooncakes: &'static [(usize, Rival)],
    /// What caps it.
    bare: usize,
}

/// All sides in turn, load for load; then the comparisons of each load.
fn run(bench: &mut Bench, sides: &mut [Box<dyn Side>], matches: &[Match]) -> Result<()> {
    let seconds = bench.options().round_time().as_secs_f64().min(0.1);
    let rounds = bench.options().rounds().min(12);
    for load in Load::all(seconds) {
        let wanted: Vec<&Match> = matches.iter().filter(|m| m.wants(bench, &load)).collect();
        if wanted.is_empty() {
            continue;
        }
        let mut series: Vec<Vec<Figures>> = vec![Vec::new(); sides.len()];
        for round in 0..=rounds {
            for (side, series) in sides.iter_mut().zip(&mut series) {
                let figures = side.run(&load).map_err(|e| format!("{}: {e}", load.case("any")))?;
                side.rest()?;
                // The first round opens connections and finds pages.
                if round > 0 {
                    series.push(figures);
                }
            }
        }
        wanted.iter().try_for_each(|m| m.judge(bench, &load, &series))?;
    }
    Ok(())
}

impl Match {
    fn case(&self, load: &Load, (rival, _): Rival) -> String {
        format!("{} against={rival}", load.case(self.path))
    }

    /// Whether a load's figures are wanted, or those of any load: what they need takes a while.
    fn wants(&self, bench: &Bench, load: &Load) -> bool {
        self.rivals().any(|rival| bench.wants(&self.case(load, rival)))
    }

    fn is_wanted(&self, bench: &Bench) -> bool {
        Load::all(0.0).any(|load| self.wants(bench, &load))
    }

    fn rivals(&self) -> impl Iterator<Item = Rival> {
        self.mooncakes.iter().map(|&(_, rival)| rival).chain([SOCKETS])
    }

    fn judge(&self, bench: &mut Bench, load: &Load, series: &[Vec<Figures>]) -> Result<()> {
        let rate = |side: usize| {
            let rates: Vec<f64> = series[side].iter().map(|figures| figures[0]).collect();
            benchkit::stats::median(&rates)
        };
        let column =
            |side: usize, i: usize| -> Vec<[f64; 1]> { series[side].iter().map(|f| [f[i]]).collect() };
        for &(theirs, rival) in self.mooncakes {
            let case = bench.case(self.case(load, rival));
            let case = match load.promised() {
                Some(promised) => {
                    let cap = 0.95 * rate(self.bare) / rate(theirs);
                    case.target((promised.min(cap) * 100.0).round() / 100.0)
                }
                None => case,
            };
            case.compare_rounds([METRICS[0]], rival.1, &column(self.ours, 0), &column(theirs, 0))?;
            let case = bench.case(self.case(load, rival)).target(1.0);
            case.compare_rounds([METRICS[1]], rival.1, &column(self.ours, 1), &column(theirs, 1))?;
        }
        let case = bench.case(self.case(load, SOCKETS));
        case.compare_rounds(METRICS, SOCKETS.1, &series[self.ours], &series[self.bare])
    }
}

/// An environment with both modules: the path of its Python is the last line that xtask prints.
fn environment(kind: &str) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args(["xtask", "wheel", "--environment", kind])
        .stderr(Stdio::inherit())
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    match said.lines().last() {
        Some(path) if output.status.success() => Ok(path.into()),
        _ => Err(format!("`cargo xtask wheel --environment {kind}` failed").into()),
    }
}

fn over_tcp(bench: &mut Bench) -> Result<()> {
    let mooncakes = &[(1, MOONCAKE), (2, POOLED)];
    let net = Match { path: "net", ours: 0, mooncakes, bare: 3 };
    let host = Match { path: "host", ours: 4, mooncakes, bare: 3 };
    let matches = [net, host];
    if !matches.iter().any(|m| m.is_wanted(bench)) {
        return Ok(());
    }
    let python = environment("tcp")?;
    let pair = |module, env: &[(&str, &str)]| -> Result<Box<dyn Side>> {
        let env = env.iter().map(|&(name, value)| (name.to_owned(), value.into())).collect();
        let side = Python { module, protocol: "tcp", env, python: python.clone() };
        Ok(Box::new(Pair::start(&side)?))
    };
    let mut sides = [
        pair("weft.mooncake", &[("WEFT_SAME_HOST", "0")])?,
        pair("mooncake.engine", &[])?,
        pair("mooncake.engine", &[("MC_TCP_ENABLE_CONNECTION_POOL", "1")])?,
        Box::new(Sockets::start()?),
        pair("weft.mooncake", &[])?,
    ];
    run(bench, &mut sides, &matches)
}

fn over_efa(bench: &mut Bench) -> Result<()> {
    let matches = [Match { path: "efa", ours: 0, mooncakes: &[(1, MOONCAKE)], bare: 2 }];
    if !matches[0].is_wanted(bench) {
        return Ok(());
    }
    let python = environment("efa")?;
    let cards = Cards::plug_in()?;
    let pair = |module| -> Result<Box<dyn Side>> {
        let env = cards.env().to_vec();
        Ok(Box::new(Pair::start(&Python { module, protocol: "efa", env, python: python.clone() })?))
    };
    let mut sides = [pair("weft.mooncake")?, pair("mooncake.engine")?, Box::new(Sockets::start()?)];
    run(bench, &mut sides, &matches)
}

fn main() -> Result<()> {
    if sockets::is_server() {
        return sockets::serve();
    }
    let mut bench = Bench::from_args("python");
    over_tcp(&mut bench)?;
    // Cards need libfabric and a build of soft-efa; what is missing is said, and the rows over TCP stand.
    if let Err(error) = over_efa(&mut bench) {
        eprintln!("SKIP: path=efa: {error}");
    }
    bench.finish()
}
