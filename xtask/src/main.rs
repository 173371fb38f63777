//! `cargo xtask …`: the one way in which everything here is driven.
//!
//! | module | command |
//! |---|---|
//! | [`setup`] | what this machine lacks for the rest, and how to install it |
//! | [`demo`] | the main job: two processes, verified KV-cache traffic over every transport |
//! | [`mod@test`] | everything that can run here, counted |
//! | [`lint`] | what must hold of the sources without running them |
//! | [`mod@bench`] | ours against bare loops, as tables and JSON rows |
//! | [`fuzz`] | the parsers' fuzz targets |
//! | [`libfabric`] | a libfabric 2.x with its efa provider under `target/` |
//! | [`soft_efa`] | a command on software EFA cards |
//! | [`bindgen`] | fabric-sys' checked-in bindings |
//!
//! [`shell`] runs programs and says so; [`workspace`] knows where things are; [`registry`] fetches pinned files. A
//! new command is one module with an `Args` struct and a `run` function, and one line in [`Command`].

mod bench;
mod bindgen;
mod demo;
mod fuzz;
mod libfabric;
mod lint;
mod registry;
mod setup;
mod shell;
mod soft_efa;
mod test;
mod workspace;

use clap::{Parser, Subcommand};

/// Drives everything in this repository.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Installs what this machine lacks for the rest; says what and why
    Setup(setup::Args),
    /// The main job: KV-cache traffic between two processes over every transport, every byte verified
    Demo(demo::Args),
    /// Runs everything that can run here; the closing line counts passed, failed and skipped
    Test(test::Args),
    /// Checks formatting, lints, docs, licences, layers, features, the oldest toolchain and the packages
    Lint(lint::Args),
    /// Runs a benchmark suite (or `all`) against its baselines
    Bench(bench::Args),
    /// Looks for inputs that break a parser
    Fuzz(fuzz::Args),
    /// Puts a libfabric 2.x with its efa provider under target/; prints its prefix as the last line
    Libfabric(libfabric::Args),
    /// Runs a command on N software EFA cards
    SoftEfa(soft_efa::Args),
    /// Regenerates fabric-sys' checked-in bindings
    Bindgen(bindgen::Args),
}

fn main() -> std::process::ExitCode {
    let outcome = match Cli::parse().command {
        Command::Setup(args) => setup::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Test(args) => test::run(&args),
        Command::Lint(args) => lint::run(&args),
        Command::Bench(args) => bench::run(&args),
        Command::Fuzz(args) => fuzz::run(&args),
        Command::Libfabric(args) => libfabric::run(&args),
        Command::SoftEfa(args) => soft_efa::run(&args),
        Command::Bindgen(args) => bindgen::run(&args),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
