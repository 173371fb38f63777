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
//! | [`soak`] | traffic among processes with kills and card deaths, and the proof that it finds bugs |
//! | [`soft_efa`] | a command on software EFA cards |
//! | [`wheel`] | the Python wheel, tested in a fresh environment |
//! | [`interop`] | ours and the real Mooncake, reading and writing each other |
//! | [`bindgen`] | fabric-sys' checked-in bindings |
//!
//! [`shell`] runs programs and says so; [`python`] makes virtual environments; [`workspace`] knows where things are; [`registry`] fetches pinned files. A
//! new command is one module with an `Args` struct and a `run` function, and one line in [`Command`].

mod bench;
mod bindgen;
mod demo;
mod fuzz;
mod interop;
mod libfabric;
mod lint;
mod python;
mod registry;
mod setup;
mod shell;
mod soak;
mod soft_efa;
mod test;
mod wheel;
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
    /// Verified traffic among processes that are killed, stopped, cut off and robbed of their cards
    Soak(soak::Args),
    /// Builds the Python wheel and tests it in a fresh virtual environment
    Wheel(wheel::Args),
    /// Runs against the real Mooncake wheel from PyPI
    Interop(interop::Args),
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
        Command::Soak(args) => soak::run(&args),
        Command::Wheel(args) => wheel::run(&args),
        Command::Interop(args) => interop::run(&args),
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
