//! A soak that hunts bugs: four processes write to and read from each other's memory through the engine, over TCP and over
//! software EFA cards, while they are killed, stopped, cut off, robbed of their cards and made to register their memory
//! anew. No byte may be wrong, no request lost, nothing that was quiet may change, nothing may grow, and when things are well
//! again, all must work again. `cargo xtask soak` builds and runs it.
//!
//! The [`supervisor`] starts the [`node`]s and lets the events of a [`chaos`] schedule happen to them. Each node has a writer
//! for each other node ([`traffic`]) that knows every byte that it has there ([`shadow`]).

mod chaos;
mod health;
mod isolation;
mod node;
mod report;
mod shadow;
mod supervisor;
mod traffic;

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use comfy_table::{Cell, Table, presets::UTF8_FULL_CONDENSED};
use supervisor::{Outcome, Wanted};
use tracing_subscriber::EnvFilter;

/// Traffic among four processes with kills, partitions and card deaths. Exit status: 0 if nothing was lost or wrong, 1 if
/// something was, 2 for wrong usage. With --planted the other way around: 0 if the bug was found.
#[derive(Parser)]
#[command(name = "cargo xtask soak", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    role: Option<Role>,
    /// How long
    #[arg(long, default_value_t = 2.0)]
    minutes: f64,
    /// What happens follows from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// TCP alone
    #[arg(long)]
    no_cards: bool,
    /// Looks for this bug, in a build that has it: late-write or lost-completion
    #[arg(long, value_name = "BUG")]
    planted: Option<String>,
}

#[derive(Subcommand)]
enum Role {
    /// One of the four processes.
    #[command(hide = true)]
    Node { spec: String },
}

fn main() -> ExitCode {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_ansi(false).with_writer(std::io::stderr).init();
    let cli = Cli::parse();
    let outcome = match &cli.role {
        Some(Role::Node { spec }) => serde_json::from_str(spec)
            .context("the supervisor's specification")
            .and_then(|spec| node::run(&spec))
            .map(|()| ExitCode::SUCCESS),
        None => soak(&cli),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn soak(cli: &Cli) -> anyhow::Result<ExitCode> {
    let Ok(time) = Duration::try_from_secs_f64(cli.minutes * 60.0) else {
        eprintln!("error: --minutes is a positive number");
        return Ok(ExitCode::from(2));
    };
    let (seed, planted) = (cli.seed, cli.planted.clone());
    let wanted = Wanted { time, seed, cards: !cli.no_cards, planted: planted.clone() };
    if let Err(error) = supervisor::check(&wanted) {
        eprintln!("error: {error}");
        return Ok(ExitCode::from(2));
    }
    println!("seed {seed}, {:.1} minutes", cli.minutes);
    let outcome = supervisor::run(wanted)?;
    println!("{}", table(&outcome));
    let after = outcome.after.as_secs_f64();
    Ok(match (outcome.violation, planted) {
        (Some(violation), Some(bug)) => {
            println!("the planted {bug} was found after {after:.1} s: {violation}");
            ExitCode::SUCCESS
        }
        (None, Some(bug)) => {
            println!("the planted {bug} was NOT found in {after:.1} s");
            ExitCode::FAILURE
        }
        (Some(violation), None) => {
            println!("BROKEN after {after:.1} s: {violation}\nrun it again with --seed {seed}");
            ExitCode::FAILURE
        }
        (None, None) => {
            println!(
                "{} events in {after:.1} s: no byte wrong, no request lost, nothing leaked",
                outcome.events
            );
            ExitCode::SUCCESS
        }
    })
}

fn table(outcome: &Outcome) -> Table {
    let mut table = Table::new();
    table.load_preset(UTF8_FULL_CONDENSED);
    table.set_header([
        "node",
        "lives",
        "requests",
        "failed",
        "MiB compared",
        "memory",
        "threads",
        "files",
        "paths",
    ]);
    for (node, summary) in outcome.nodes.iter().enumerate() {
        let last = &summary.last;
        let paths =
            last.paths.iter().enumerate().filter(|(_, p)| !p.is_empty()).map(|(n, p)| format!("{n}: {p}"));
        table.add_row([
            Cell::new(node),
            Cell::new(summary.lives),
            Cell::new(summary.done),
            Cell::new(summary.failed),
            Cell::new(summary.verified >> 20),
            Cell::new(format!("{} MiB", last.memory_kib >> 10)),
            Cell::new(last.threads),
            Cell::new(last.descriptors),
            Cell::new(paths.collect::<Vec<_>>().join("\n")),
        ]);
    }
    table
}
