//! A system under test: a target and an initiator, each a Python process with one of the modules.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Lines, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use benchkit::Result;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::{Figures, LENGTH, Load, Side};

/// How a process is started.
pub(crate) struct Python {
    pub(crate) module: &'static str,
    pub(crate) protocol: &'static str,
    pub(crate) env: Vec<(String, OsString)>,
    pub(crate) python: PathBuf,
}

struct Worker {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

/// Target and initiator of one system.
pub(crate) struct Pair {
    target: Worker,
    initiator: Worker,
    hello: Value,
}

impl Worker {
    fn start(side: &Python, role: &str) -> Result<(Self, Value)> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/python/worker.py");
        let mut command = Command::new(&side.python);
        command.arg(script).args([role, side.module, side.protocol, &LENGTH.to_string()]);
        command.envs(side.env.iter().map(|(name, value)| (name, value)));
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

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.child.id())?), signal)?)
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Pair {
    pub(crate) fn start(side: &Python) -> Result<Self> {
        let (target, hello) = Worker::start(side, "target")?;
        let (initiator, _) = Worker::start(side, "initiator")?;
        let mut pair = Self { target, initiator, hello };
        pair.rest()?;
        Ok(pair)
    }
}

impl Side for Pair {
    fn run(&mut self, load: &Load) -> Result<Figures> {
        self.target.signal(Signal::SIGCONT)?;
        self.initiator.signal(Signal::SIGCONT)?;
        let question = json!({
            "op": load.op.name(), "size": load.size, "batch": load.batch, "seconds": load.seconds,
            "session": self.hello["session"], "address": self.hello["address"],
        });
        writeln!(self.initiator.input, "{question}")?;
        let answer = self.initiator.read()?;
        match (answer["gb_per_s"].as_f64(), answer["p50_us"].as_f64()) {
            (Some(rate), Some(p50)) => Ok([rate, p50]),
            _ => Err(answer.to_string().into()),
        }
    }

    fn rest(&mut self) -> Result<()> {
        self.initiator.signal(Signal::SIGSTOP)?;
        self.target.signal(Signal::SIGSTOP)
    }
}
