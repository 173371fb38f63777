//! `weft.mooncake` beside the real `mooncake.engine`, call for call, as their users call them.
//!
//! Each system has a target process and an initiator process; rounds are interleaved. Mooncake runs with its defaults and with its
//! pool of connections; Weft over sockets (`path=net`) and with the copy that its TCP peers on one host agree on
//! (`path=host`). Over software EFA cards both use their EFA transports.

use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use benchkit::{Bench, Metric, Result};
use serde_json::{Value, json};

/// Sizes of single transfers, in bytes.
const SINGLE: [usize; 5] = [4096, 65536, 1 << 20, 16 << 20, 256 << 20];
/// Batches: requests and bytes of each.
const BATCHES: [(usize, usize); 4] = [(16, 65536), (128, 65536), (16, 1 << 20), (128, 1 << 20)];
/// Memory of each process.
const LENGTH: usize = 256 << 20;
/// Cards of each simulated host.
const NICS: &str = "4";

/// A Python with one of the modules.
struct Side {
    module: &'static str,
    protocol: &'static str,
    env: &'static [(&'static str, &'static str)],
    /// What comes before the interpreter: a launcher with its options.
    launcher: Vec<String>,
    python: PathBuf,
}

struct Worker {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// Target and initiator of one system.
struct Pair {
    _target: Worker,
    initiator: Worker,
    hello: Value,
}

impl Worker {
    fn start(side: &Side, role: &str) -> Result<(Self, Value)> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/worker.py");
        let mut words = side.launcher.iter().map(Into::into).collect::<Vec<std::ffi::OsString>>();
        words.push(side.python.clone().into());
        words.push(script.into());
        words.extend([role, side.module, side.protocol].map(Into::into));
        words.push(LENGTH.to_string().into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).envs(side.env.iter().copied());
        command.env("GLOG_minloglevel", "3").env("MC_LOG_LEVEL", "ERROR");
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a worker without pipes".into());
        };
        let mut worker = Self { child, input, output: BufReader::new(output).lines() };
        let hello = worker.read()?;
        Ok((worker, hello))
    }

    fn read(&mut self) -> Result<Value> {
        for line in self.output.by_ref() {
            // Mooncake prints on standard output, too.
            if let Some(answer) = line?.strip_prefix("> ") {
                return Ok(serde_json::from_str(answer)?);
            }
        }
        Err(format!("the worker ended with {}", self.child.wait()?).into())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pair {
    fn start(side: &Side) -> Result<Self> {
        let (target, hello) = Worker::start(side, "target")?;
        let (initiator, _) = Worker::start(side, "initiator")?;
        Ok(Self { _target: target, initiator, hello })
    }

    /// GB/s and the median time of a call, µs.
    fn measure(&mut self, op: &str, size: usize, batch: usize, seconds: f64) -> Result<[f64; 2]> {
        let question = json!({
            "op": op, "size": size, "batch": batch, "seconds": seconds,
            "session": self.hello["session"], "address": self.hello["address"],
        });
        writeln!(self.initiator.input, "{question}")?;
        let answer = self.initiator.read()?;
        match (answer["gb_per_s"].as_f64(), answer["p50_us"].as_f64()) {
            (Some(rate), Some(p50)) => Ok([rate, p50]),
            _ => Err(format!("{op} {batch} x {size}: {answer}").into()),
        }
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

/// What is promised: 3 times Mooncake for batches of 64 KiB, 2 times from 1 MiB up; elsewhere no less than Mooncake.
fn target(size: usize, batch: usize) -> f64 {
    match (size, batch) {
        (65536, 16..) => 3.0,
        (1_048_576.., _) => 2.0,
        _ => 1.0,
    }
}

fn compare(bench: &mut Bench, path: &str, ours: &Side, theirs: &Side, name: &str) -> Result<()> {
    let singles = SINGLE.iter().map(|&size| (1, size));
    let cases: Vec<(usize, usize)> = singles.chain(BATCHES).collect();
    let case = |op: &str, batch: usize, size: usize| format!("op={op} size={size} batch={batch} path={path}");
    let wanted = |op| cases.iter().any(|&(batch, size)| bench.wants(&case(op, batch, size)));
    if !wanted("write") && !wanted("read") {
        return Ok(());
    }
    let (mut ours, mut theirs) = (Pair::start(ours)?, Pair::start(theirs)?);
    let seconds = bench.options().round_time().as_secs_f64();
    for op in ["write", "read"] {
        for &(batch, size) in &cases {
            bench.case(case(op, batch, size)).target(target(size, batch)).compare_all(
                [Metric::Throughput, Metric::LatencyP50],
                name,
                || ours.measure(op, size, batch, seconds),
                || theirs.measure(op, size, batch, seconds),
            )?;
        }
    }
    Ok(())
}

fn over_tcp(bench: &mut Bench) -> Result<()> {
    let python = environment("tcp")?;
    let side =
        |module, env| Side { module, protocol: "tcp", env, launcher: Vec::new(), python: python.clone() };
    let pool: &[_] = &[("MC_TCP_ENABLE_CONNECTION_POOL", "1")];
    let net: &[_] = &[("WEFT_SAME_HOST", "0")];
    let (weft, mooncake) = ("weft.mooncake", "mooncake.engine");
    compare(bench, "net", &side(weft, net), &side(mooncake, &[]), "mooncake")?;
    compare(bench, "net", &side(weft, net), &side(mooncake, pool), "mooncake, connection pool")?;
    compare(bench, "host", &side(weft, &[]), &side(mooncake, &[]), "mooncake")
}

fn over_efa(bench: &mut Bench) -> Result<()> {
    let python = environment("efa")?;
    let cargo = std::env::var("CARGO").unwrap_or_else(|_| "cargo".into());
    let launcher = [cargo.as_str(), "xtask", "soft-efa", "--nics", NICS, "--"].map(str::to_owned).to_vec();
    let side = |module| Side {
        module,
        protocol: "efa",
        env: &[],
        launcher: launcher.clone(),
        python: python.clone(),
    };
    compare(bench, "efa", &side("weft.mooncake"), &side("mooncake.engine"), "mooncake")
}

fn main() -> Result<()> {
    let mut bench = Bench::from_args("python");
    over_tcp(&mut bench)?;
    // Cards need libfabric and a build of soft-efa; what is missing is said, and the rows over TCP stand.
    if let Err(error) = over_efa(&mut bench) {
        eprintln!("SKIP: path=efa: {error}");
    }
    bench.finish()
}
