//! The main job: KV-cache traffic between two processes of this machine, over every transport that it has, every byte
//! verified. `cargo xtask demo` builds and runs it.
//!
//! The process that the user starts is the [`supervisor`]; it runs a [`target`] (a decode node with a KV pool) and an
//! [`initiator`] (a prefill node) for each transport. The initiator replays a [`trace`] of requests with the geometry of a
//! [`model`]: blocks that nobody has computed before are written into the pool, blocks that the pool holds are read back.

mod cache;
mod initiator;
mod message;
mod model;
mod pattern;
mod spec;
mod supervisor;
mod table;
mod target;
mod trace;

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use message::Report;
use spec::{Spec, Transport};
use supervisor::Wanted;
use tracing_subscriber::EnvFilter;

/// libfabric providers to try, the best first. `efa` means both of its fabrics.
const PROVIDERS: [&str; 5] = ["efa", "tcp;ofi_rxm", "tcp", "net", "shm"];

/// Plays KV-cache traffic between two processes over every transport that this machine has, and verifies every byte.
///
/// Exit status: 0 if everything that ran was verified, 1 if not, 2 for wrong usage, 3 if a transport that was asked for by
/// name is not there.
#[derive(Parser)]
#[command(name = "cargo xtask demo", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    #[command(flatten)]
    options: Options,
}

#[derive(clap::Args)]
struct Options {
    /// Seconds of traffic for each transport, shared by the models
    #[arg(long, default_value_t = 12.0)]
    seconds: f64,
    /// llama-3.1-70b, qwen3-235b-a22b or deepseek-v3; may be repeated. Default: all of them, one after the other
    #[arg(long)]
    model: Vec<String>,
    /// Tokens in a page, a divisor of 512. 16 gives the pages of 8 to 64 KiB that transfer engines find hardest
    #[arg(long, default_value_t = 16)]
    page_tokens: usize,
    /// Tensor-parallel ranks that the cache is sharded over
    #[arg(long, default_value_t = 1)]
    tp: usize,
    /// Replays this trace (JSON lines with "hash_ids"; starts again at its end) instead of the generated one. As fast as
    /// it goes: its timestamps are not waited for
    #[arg(long)]
    trace: Option<PathBuf>,
    /// Which transports to run; may be repeated. Default: all
    #[arg(long)]
    transport: Vec<Wanted>,
    /// Take this libfabric provider and no other
    #[arg(long)]
    provider: Option<String>,
    /// Size of the target's KV pool in MiB
    #[arg(long, default_value_t = 1024)]
    pool_mib: usize,
    /// Size of the initiator's staging memory in MiB
    #[arg(long, default_value_t = 128)]
    staging_mib: usize,
    /// Seconds that one request may take, and the target's confirmation after it
    #[arg(long, default_value_t = 10.0)]
    deadline: f64,
    /// Seed of the generated trace and of the page contents
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

/// The processes that the supervisor starts.
#[derive(Subcommand)]
#[command(hide = true)]
enum Role {
    /// Holds the KV pool and checks what arrives.
    #[command(hide = true)]
    Target { spec: String },
    /// Plays the traffic.
    #[command(hide = true)]
    Initiator { spec: String },
    /// Reports which libfabric providers can be opened.
    #[command(hide = true)]
    Probe,
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let colour = std::io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(colour).with_writer(std::io::stderr).init();
    let cli = Cli::parse();
    let outcome = match cli.role {
        None => supervise(&cli.options),
        Some(role) => play(role).map(|()| ExitCode::SUCCESS),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// The part of one child process.
fn play(role: Role) -> anyhow::Result<()> {
    // A child whose supervisor was killed has nobody to report to.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::TERM))?;
    let parse = |spec: String| serde_json::from_str::<Spec>(&spec).context("the supervisor's specification");
    match role {
        Role::Target { spec } => target::run(&parse(spec)?).context("target"),
        Role::Initiator { spec } => initiator::run(&parse(spec)?).context("initiator"),
        Role::Probe => {
            for name in PROVIDERS {
                let provider = (name != "efa").then(|| name.to_owned());
                let engine = Transport::Fabric { provider }.builder().build();
                let found = engine.and_then(|engine| engine.fabric()).map_err(|error| error.to_string());
                Report::Provider { name: name.to_owned(), found }.print();
            }
            Ok(())
        }
    }
}

fn supervise(options: &Options) -> anyhow::Result<ExitCode> {
    let (Ok(traffic), Ok(deadline)) =
        (Duration::try_from_secs_f64(options.seconds), Duration::try_from_secs_f64(options.deadline))
    else {
        eprintln!("error: --seconds and --deadline are positive numbers of seconds");
        return Ok(ExitCode::from(2));
    };
    let models = if options.model.is_empty() {
        model::MODELS.iter().map(ToString::to_string).collect()
    } else {
        options.model.clone()
    };
    let mut spec = Spec {
        transport: Transport::Tcp { same_host: false },
        models,
        page_tokens: options.page_tokens,
        tp: options.tp,
        traffic,
        deadline,
        pool_bytes: options.pool_mib << 20,
        staging_bytes: options.staging_mib << 20,
        trace: options.trace.clone(),
        seed: options.seed,
        target: String::new(),
    };
    if let Err(reason) = spec.geometries() {
        eprintln!("error: {reason}");
        return Ok(ExitCode::from(2));
    }
    let trace = match &options.trace {
        Some(path) => trace::Trace::open(path)?,
        None => trace::Trace::generated(options.seed),
    };
    println!("trace: {}", trace.describe());

    let wanted = if options.transport.is_empty() {
        vec![Wanted::Tcp, Wanted::Libfabric]
    } else {
        options.transport.clone()
    };
    let providers =
        if wanted.contains(&Wanted::Libfabric) { supervisor::probe_providers()? } else { Vec::new() };
    let (runs, notes) = supervisor::plan(&wanted, options.provider.as_deref(), &providers);
    for note in &notes {
        println!("{note}");
    }
    let asked_for = options.provider.is_some() || options.transport.contains(&Wanted::Libfabric);
    if asked_for && !runs.iter().any(|run| matches!(run, Transport::Fabric { .. })) {
        eprintln!("error: the libfabric path that was asked for is not there; the reasons are above");
        return Ok(ExitCode::from(3));
    }

    let mut outcomes = Vec::new();
    for transport in runs {
        spec.transport = transport;
        let bar = supervisor::progress_bar(traffic);
        let outcome = supervisor::run(&spec, &bar);
        bar.finish_and_clear();
        if let Some(error) = &outcome.error {
            eprintln!("{} {}: {error}", outcome.transport, outcome.path);
        }
        outcomes.push(outcome);
    }
    println!("{}", table::render(&outcomes));
    println!(
        "GB/s: payload over the time with such requests in flight. A request is one layer of a 512-token block."
    );
    let verified = |outcome: &supervisor::Outcome| {
        outcome.error.is_none() && outcome.rows.iter().any(|row| row.requests > 0)
    };
    Ok(if outcomes.iter().all(verified) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
