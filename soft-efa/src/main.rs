//! `soft-efa`: runs a command on software EFA cards.

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use soft_efa::clock::Kind;
use soft_efa::{Network, Profile, control, rules, settings};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

/// Runs a command on a machine with EFA cards, in software.
///
/// Every process that the command starts is a host of its own, unless it sets SOFT_EFA_HOST.
#[derive(Parser)]
#[command(version, arg_required_else_help = true, args_conflicts_with_subcommands = true)]
struct Arguments {
    /// Number of cards (1 to 64); default: as many as the profile's machine has.
    #[arg(long)]
    nics: Option<usize>,
    /// Generation: p4d, p5, p5en, p6.
    #[arg(long, default_value = "p5")]
    profile: String,
    /// Seed of the order of requests and of random faults: a number, or `random`, which is said on standard error.
    #[arg(long)]
    seed: Option<Seed>,
    /// Which clock timing goes by: wall, virtual (jumps over idle time, makes runs repeatable) or manual (`ctl clock advance us=N`).
    #[arg(long)]
    clock: Option<String>,
    /// Leave /sys/class/infiniband and /dev/infiniband as they are (no preload library).
    #[arg(long)]
    no_redirect: bool,
    /// Directory for traces, one file a process, for ui.perfetto.dev.
    #[arg(long)]
    trace: Option<PathBuf>,
    /// File of fault rules that hold from the start.
    #[arg(long)]
    faults: Option<PathBuf>,
    #[command(subcommand)]
    ctl: Option<Ctl>,
    /// The command and its arguments.
    #[arg(last = true)]
    command: Vec<OsString>,
}

/// What `--seed` takes.
#[derive(Clone, Copy)]
enum Seed {
    Fixed(u64),
    Random,
}

impl std::str::FromStr for Seed {
    type Err = std::num::ParseIntError;

    fn from_str(text: &str) -> Result<Seed, Self::Err> {
        if text == "random" { Ok(Seed::Random) } else { text.parse().map(Seed::Fixed) }
    }
}

impl Seed {
    /// The number; a random one is told, because without it the run cannot be repeated.
    fn number(self) -> u64 {
        match self {
            Seed::Fixed(number) => number,
            Seed::Random => {
                // The keys of a fresh hasher are random; what is hashed does not matter.
                let number = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0) >> 32;
                eprintln!("soft-efa: seed {number}");
                number
            }
        }
    }
}

#[derive(Subcommand)]
enum Ctl {
    /// Tells a running network to do something: a fault rule, `remove ID`, `clear`, `list`, `counters`, `queue-pairs`.
    Ctl {
        /// Directory of the run; default: SOFT_EFA_DIR, which the launcher sets for its command.
        #[arg(long)]
        dir: Option<PathBuf>,
        /// The words of the command, e.g. `fail status=13 op=write nth=5`.
        #[arg(required = true)]
        words: Vec<String>,
    },
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    if let Some(Ctl::Ctl { dir, words }) = arguments.ctl {
        let dir = dir.or_else(|| std::env::var_os(settings::DIR).map(PathBuf::from));
        let dir =
            dir.context("no run: pass --dir, or use this inside the command that the launcher started")?;
        println!("{}", control::command(&dir, &words.join(" "))?.trim());
        return Ok(ExitCode::SUCCESS);
    }
    let Some(profile) = Profile::named(&arguments.profile) else {
        bail!("no profile {:?}: there are p4d, p5, p5en and p6", arguments.profile);
    };
    let nics = arguments.nics.unwrap_or(profile.cards);
    if !(1..=settings::MAX_CARDS).contains(&nics) {
        bail!("--nics {nics}: a machine has 1 to {} cards", settings::MAX_CARDS);
    }
    let mut network = Network::new(nics, profile)?;
    if let Some(seed) = arguments.seed {
        network.set(settings::SEED, seed.number().to_string());
    }
    if let Some(clock) = &arguments.clock {
        if Kind::named(clock).is_none() {
            bail!("--clock {clock}: there are wall, virtual and manual");
        }
        network.set(settings::CLOCK, clock);
    }
    if let Some(dir) = &arguments.trace {
        network.set(settings::TRACE, std::path::absolute(dir)?);
    }
    if let Some(file) = &arguments.faults {
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        rules::parse_file(&text).with_context(|| file.display().to_string())?;
        network.set(settings::FAULTS, std::path::absolute(file)?);
    }
    network.redirect(!arguments.no_redirect);
    let (program, rest) = arguments.command.split_first().context("no command")?;
    let status = network
        .command(program)
        .args(rest)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !status.success() {
        eprintln!(
            "soft-efa: {} ended with {status}; seed {} (--seed repeats it)",
            program.display(),
            network.seed()
        );
    }
    Ok(match status.code() {
        Some(code) => ExitCode::from(code as u8),
        None => ExitCode::FAILURE,
    })
}
