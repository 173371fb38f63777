//! `soft-efa`: runs a command on software EFA cards.

use anyhow::{Context, Result, bail};
use clap::Parser;
use soft_efa::{Network, Profile, settings};
use std::ffi::OsString;
use std::process::ExitCode;

/// Runs a command on a machine with EFA cards, in software.
///
/// Every process that the command starts is a host of its own, unless it sets SOFT_EFA_HOST.
#[derive(Parser)]
#[command(version, arg_required_else_help = true)]
struct Arguments {
    /// Number of cards (1 to 64); default: as many as the profile's machine has.
    #[arg(long)]
    nics: Option<usize>,
    /// Generation: p4d, p5, p5en, p6.
    #[arg(long, default_value = "p5")]
    profile: String,
    /// Seed of the order of requests and of random faults.
    #[arg(long)]
    seed: Option<u64>,
    /// Leave /sys/class/infiniband and /dev/infiniband as they are (no preload library).
    #[arg(long)]
    no_redirect: bool,
    /// The command and its arguments.
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

fn main() -> Result<ExitCode> {
    let arguments = Arguments::parse();
    let Some(profile) = Profile::named(&arguments.profile) else {
        bail!("no profile {:?}: there are p4d, p5, p5en and p6", arguments.profile);
    };
    let nics = arguments.nics.unwrap_or(profile.cards);
    if !(1..=settings::MAX_CARDS).contains(&nics) {
        bail!("--nics {nics}: a machine has 1 to {} cards", settings::MAX_CARDS);
    }
    let mut network = Network::new(nics, profile)?;
    if let Some(seed) = arguments.seed {
        network.set(settings::SEED, seed.to_string());
    }
    network.redirect(!arguments.no_redirect);
    let (program, rest) = arguments.command.split_first().context("no command")?;
    let status = network
        .command(program)
        .args(rest)
        .status()
        .with_context(|| format!("cannot start {}", program.display()))?;
    Ok(match status.code() {
        Some(code) => ExitCode::from(code as u8),
        None => ExitCode::FAILURE,
    })
}
