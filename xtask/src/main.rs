//! `cargo xtask …`: the one way in which everything here is driven.
//!
//! | module | command |
//! |---|---|
//! | [`setup`] | what this machine lacks for the rest, and how to install it |
//! | [`demo`] | the main job: two processes, verified KV-cache traffic over every transport |
//!
//! [`shell`] runs programs and says so; [`workspace`] knows where things are. A new command is one module with an
//! `Args` struct and a `run` function, and one line in [`Command`].

mod demo;
mod shell;
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
    /// The main job: KV-cache traffic between two processes over every transport, every byte verified
    Demo(demo::Args),
}

fn main() -> std::process::ExitCode {
    let outcome = match Cli::parse().command {
        Command::Demo(args) => demo::run(&args),
    };
    match outcome {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}
