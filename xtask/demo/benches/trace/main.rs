//! `cargo xtask bench trace`: how long the decode node waits for the first token's KV.
//!
//! A prefill process and a decode process replay requests of a chat service with the KV geometry of a model: blocks that the
//! decode node does not hold are written to it layer by layer, blocks that it holds are read from it. Two things are timed:
//!
//! * `what=first-token-kv`: a whole prompt, from its first byte to the moment when all of its KV is where it is needed and the
//!   first token can be computed. Percentiles are over the prompts of a round.
//! * `what=request`: one layer of one block of 512 tokens, which is what the engine is asked for at a time.
//!
//! Over TCP through sockets and between processes of one host, and over EFA on software cards. The baseline does the same
//! transfers over one bare socket, contiguous and without pages. After each round a request is read back and compared.
//!
//! The requests come from the built-in generator, or from the file in `WEFT_TRACE` (JSON lines with `hash_ids`). A round is
//! the first prompts of it, cut to a few blocks each: a machine with two cores moves a gigabyte in half a second.

mod bare;
mod decode;
#[path = "../../src/model.rs"]
#[allow(dead_code, unused_imports)] // the demo needs more of it
mod model;
#[path = "../../src/pattern.rs"]
#[allow(dead_code, unused_imports)] // as above
mod pattern;
mod plan;
mod prefill;
mod spec;
#[path = "../../src/trace.rs"]
#[allow(dead_code, unused_imports)] // as above
mod trace;

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitCode, Stdio};

use benchkit::{Bench, Metric, Result};
use soft_efa::{Network, Profile};

use spec::{Path, Round, Spec, Target};

/// In the environment of a child: its [`Role`], and its [`Spec`] as JSON.
const ROLE: &str = "TRACE_BENCH_ROLE";
const SPEC: &str = "TRACE_BENCH_SPEC";

/// What all rows compare with.
const BASELINE: &str = "one bare socket";

fn main() -> ExitCode {
    let outcome = match (std::env::var(ROLE), std::env::var(SPEC)) {
        (Ok(role), Ok(spec)) => play(&role, &spec),
        _ => run(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// The part of one child.
fn play(role: &str, spec: &str) -> Result<()> {
    // A child whose parent was killed has nobody to report to.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let spec: Spec = serde_json::from_str(spec)?;
    match role {
        "decode" => decode::run(&spec),
        "prefill" => prefill::run(&spec),
        other => Err(format!("no role {other}").into()),
    }
}

fn run() -> Result<()> {
    let mut bench = Bench::from_args("trace");
    let quick = bench.options().quick;
    for path in [Path::TcpNet, Path::TcpHost, Path::Efa] {
        let spec = Spec::new(path, quick);
        let name =
            |what: &str| format!("what={what} model={} path={path} blocks={}", spec.model, spec.blocks);
        let cases = [name("first-token-kv"), name("request")];
        if !cases.iter().any(|case| bench.wants(case)) {
            continue;
        }
        let cards = match path.on_cards() {
            false => None,
            true => match Cards::new() {
                Ok(cards) => Some(cards),
                Err(reason) => {
                    eprintln!("SKIP: trace {path}: {reason}");
                    continue;
                }
            },
        };
        let pair = std::cell::RefCell::new(Pair::start(spec.clone(), cards.as_ref())?);
        let round = |command: &str| pair.borrow_mut().round(command);
        let [first_token, request] = cases;
        let metrics = [Metric::LatencyP50, Metric::LatencyP99, Metric::Throughput];
        let figures = |round: Round| [round.prompt_p50_us, round.prompt_p99_us, round.gb_per_s];
        bench.case(first_token).compare_all(
            metrics,
            BASELINE,
            || Ok(figures(round("ours")?)),
            || Ok(figures(round("bare")?)),
        )?;
        let metrics = [Metric::LatencyP50, Metric::LatencyP99];
        let figures = |round: Round| [round.request_p50_us, round.request_p99_us];
        bench.case(request).compare_all(
            metrics,
            BASELINE,
            || Ok(figures(round("ours")?)),
            || Ok(figures(round("bare")?)),
        )?;
    }
    bench.finish()
}

/// Software EFA cards, and the libfabric that is to find them.
struct Cards {
    network: Network,
    library: std::path::PathBuf,
}

impl Cards {
    fn new() -> std::result::Result<Self, String> {
        let named = std::env::var_os("FABRIC_LIBRARY").map(std::path::PathBuf::from);
        let executable = std::env::current_exe().map_err(|error| error.to_string())?;
        let workspace = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
        let mut places = executable.ancestors().chain([workspace.as_path()]);
        let built = || {
            places.find_map(|dir| {
                Some(dir.join("libfabric-2.5.1/lib/libfabric.so.1")).filter(|path| path.is_file())
            })
        };
        let library = named.or_else(built).ok_or("no libfabric 2.x; `cargo xtask libfabric` makes one")?;
        let network = Network::new(2, Profile::p5()).map_err(|error| error.to_string())?;
        Ok(Self { network, library })
    }

    fn prepare(&self, command: &mut Command) {
        command.env("FABRIC_LIBRARY", &self.library).env_remove("LD_LIBRARY_PATH");
        let providers = self.library.with_file_name("libfabric");
        if providers.is_dir() {
            command.env("FI_PROVIDER_PATH", providers);
        }
        self.network.prepare(command);
    }
}

/// The two processes of one path.
struct Pair {
    prefill: Running,
    // Ends after the other.
    _decode: Running,
}

impl Pair {
    fn start(mut spec: Spec, cards: Option<&Cards>) -> Result<Self> {
        let mut decode = Running::start("decode", &spec, cards)?;
        spec.target = Some(decode.answer::<Target>()?);
        let prefill = Running::start("prefill", &spec, cards)?;
        Ok(Self { prefill, _decode: decode })
    }

    /// One round of either side.
    fn round(&mut self, command: &str) -> Result<Round> {
        writeln!(self.prefill.stdin, "{command}")?;
        self.prefill.answer()
    }
}

/// A child process, which ends when its input is closed, and is ended when this is dropped.
struct Running {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    role: &'static str,
}

impl Running {
    fn start(role: &'static str, spec: &Spec, cards: Option<&Cards>) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe()?);
        if let Some(cards) = cards {
            cards.prepare(&mut command);
        }
        command.env(ROLE, role).env(SPEC, serde_json::to_string(spec)?);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let stdin = child.stdin.take().ok_or("no pipe")?;
        let stdout = BufReader::new(child.stdout.take().ok_or("no pipe")?);
        Ok(Self { child, stdin, stdout, role })
    }

    fn answer<T: serde::de::DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        if line.is_empty() {
            return Err(format!("the {} process ended: {}", self.role, self.child.wait()?).into());
        }
        Ok(serde_json::from_str(&line)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Nothing to be done about an error: it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
