//! `cargo xtask bench mooncake`: a batch of 512 × 64 KiB over the same four software cards, ours against Mooncake's EFA transport.
//!
//! The wheel from PyPI runs unmodified in a virtual environment (that of `WEFT_MOONCAKE_EFA_PYTHON`, or one below the target
//! directory); both sides are timed inside their own processes, round by round.

#[path = "../tests/common/mod.rs"]
mod common;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use benchkit::{Bench, Metric, Result, throughput_gb_per_s};
use common::{Target, memory, soon};
use efa_transport::{Batch, Request, Transport};
use rustix::process::{Pid, Signal, kill_process};
use soft_efa::{Network, Profile};

const CARDS: usize = 4;
const BLOCKS: usize = 512;
const BLOCK_BYTES: usize = 64 << 10;
const WHEEL: &str = "mooncake-transfer-engine-efa-non-cuda==0.3.13.post1";
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/mooncake_efa.py");
const OURS: &str = "EFA_TRANSPORT_BENCH_OURS";

fn main() -> Result<()> {
    common::serve();
    if std::env::var_os(OURS).is_some() {
        return ours();
    }
    let mut bench = Bench::from_args("mooncake");
    let case = format!("op=write size={BLOCK_BYTES} batch={BLOCKS} threads=1 nics={CARDS} provider=efa");
    if bench.wants(&case) {
        match contestants() {
            // The network goes last: the others live on it.
            Ok((_network, ours, theirs)) => {
                theirs.signal(Signal::STOP)?;
                let (ours, theirs) = (RefCell::new(ours), RefCell::new(theirs));
                bench.case(case).target(3.0).compare(
                    Metric::Throughput,
                    "Mooncake's EFA transport from Python",
                    || ours.borrow_mut().round(),
                    || theirs.borrow_mut().round_awake(),
                )?;
            }
            Err(error) => eprintln!("SKIP: mooncake {case}: {error}"),
        }
    }
    bench.finish()
}

/// A process that moves the batch once for every line that it is sent.
struct Contestant {
    child: Child,
    said: BufReader<ChildStdout>,
    /// Its target, where it has not started that itself.
    target: Option<Running>,
}

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It ends with its standard input anyhow.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Contestant {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Contestant {
    fn start(mut command: Command, target: Option<Running>) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let mut said = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        answer(&mut said, "READY")?;
        Ok(Self { child, said, target })
    }

    /// Stops both its processes, or lets them go on: pollers that never sleep would take the processors from whatever is measured
    /// beside them.
    fn signal(&self, signal: Signal) -> Result<()> {
        for child in [Some(&self.child), self.target.as_ref().map(|target| &target.0)].into_iter().flatten() {
            kill_process(Pid::from_child(child), signal)?;
        }
        Ok(())
    }

    /// A round of a contestant that is stopped before and after.
    fn round_awake(&mut self) -> Result<f64> {
        self.signal(Signal::CONT)?;
        let figure = self.round();
        self.signal(Signal::STOP)?;
        figure
    }

    /// Ten batches, in GB/s: one is over too soon.
    fn round(&mut self) -> Result<f64> {
        let mut seconds = 0.0;
        for _ in 0..10 {
            self.child.stdin.as_mut().ok_or("no pipe")?.write_all(b"\n")?;
            seconds += answer(&mut self.said, "TOOK")?.trim().parse::<f64>()?;
        }
        let took = std::time::Duration::from_secs_f64(seconds);
        Ok(throughput_gb_per_s((10 * BLOCKS * BLOCK_BYTES) as u64, took))
    }
}

/// The rest of the next line that begins with `word`; libraries may say other things in between.
fn answer(said: &mut impl BufRead, word: &str) -> Result<String> {
    loop {
        let mut line = String::new();
        if said.read_line(&mut line)? == 0 {
            return Err(format!("it ended without saying {word}").into());
        }
        if let Some(rest) = line.strip_prefix(word) {
            return Ok(rest.to_owned());
        }
    }
}

/// Ours and Mooncake's, on cards of the same kind.
fn contestants() -> Result<(Network, Contestant, Contestant)> {
    let library =
        common::cards::library().ok_or("no libfabric 2.5.1 here; `cargo xtask libfabric` makes one")?;
    let python = python()?;
    let network = Network::new(CARDS, Profile::named("p5").ok_or("no profile p5")?)?;
    let on_cards = |program: &Path| -> Result<Command> {
        let dir = library.parent().ok_or("no folder")?;
        let mut command = Command::new(program);
        command
            .env("FABRIC_LIBRARY", &library)
            .env("LD_LIBRARY_PATH", dir)
            .env("FI_PROVIDER_PATH", dir.join("libfabric"))
            .env("FI_PROVIDER", "efa")
            .env("BLOCKS", BLOCKS.to_string())
            .env("BLOCK_BYTES", BLOCK_BYTES.to_string())
            .stderr(Stdio::null());
        network.prepare(&mut command);
        Ok(command)
    };
    let mut ours = on_cards(&std::env::current_exe()?)?;
    ours.env(OURS, "1");
    let ours = Contestant::start(ours, None)?;
    let mut target = on_cards(&python)?;
    let target = target.args([SCRIPT, "target"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut target = Running(target);
    let mut said = BufReader::new(target.0.stdout.take().ok_or("no pipe")?);
    let place = answer(&mut said, "READY")?;
    let mut theirs = on_cards(&python)?;
    theirs.args([SCRIPT, "initiator"]).args(place.split_whitespace());
    let theirs = Contestant::start(theirs, Some(target))?;
    Ok((network, ours, theirs))
}

/// Our side, in a process on cards.
fn ours() -> Result<()> {
    let len = BLOCKS * BLOCK_BYTES;
    let transport = Transport::open(common::config("efa/efa-direct", CARDS, "initiator"))?;
    let mut target = Target::start("efa/efa-direct", CARDS, "target", len);
    let peer = target.meet(&transport);
    transport.warm_up(peer, soon())?;
    let region = memory(&transport, len);
    region.write(0, &vec![0x5a; len])?;
    let mut batch = Batch::new();
    println!("READY");
    for line in std::io::stdin().lines() {
        line?;
        let start = Instant::now();
        for block in 0..BLOCKS {
            let at = (block * BLOCK_BYTES) as u64;
            let (here, there) = (region.addr() + at, target.addr + at);
            batch.push(Request::write(peer, &region, here, there, BLOCK_BYTES as u64))?;
        }
        transport.submit(&mut batch)?.wait()?;
        println!("TOOK {}", start.elapsed().as_secs_f64());
    }
    Ok(())
}

/// A Python that has the wheel.
fn python() -> Result<PathBuf> {
    if let Some(python) = std::env::var_os("WEFT_MOONCAKE_EFA_PYTHON") {
        return Ok(python.into());
    }
    let program = std::env::current_exe()?;
    let target =
        program.ancestors().find(|dir| dir.join("CACHEDIR.TAG").is_file()).ok_or("no target directory")?;
    let venv = target.join("mooncake-efa-bench");
    let python = venv.join("bin/python");
    let has = |python: &Path| {
        let import = ["-c", "import mooncake.engine"];
        Command::new(python).args(import).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    };
    if has(&python) {
        return Ok(python);
    }
    let run = |command: &mut Command| -> Result<()> {
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {said}").into()) }
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", WHEEL]))?;
    Ok(python)
}
