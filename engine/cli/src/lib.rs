//! `weft` on the command line: serve memory, measure transfers, find out why they are slow.
//!
//! | command | what it does | chapter |
//! |---|---|---|
//! | `weft serve` | registers memory and waits for peers | [`serve`] |
//! | `weft bench` | reads or writes a target's memory and measures it | [`mod@bench`] |
//! | `weft probe` | time to the first byte, cold and warm | [`probe`] |
//! | `weft doctor` | what this machine has, which way transfers take, what is slow and how to mend it | [`doctor`] |
//! | `weft topo` | NICs, GPUs and memory nodes; the priority matrix | [`topo`] |
//! | `weft plan` | what would be registered on which NIC | [`plan`] |
//! | `weft metadata` | an HTTP metadata store | [`metadata`] |
//! | `weft completions`, `weft man` | for shells and for `man` | [`manual`] |
//!
//! The library has one entry, [`main_from`], which the binary and the Python package's console script call. What is public besides is for
//! programs that want the same logs ([`logging`]). It is not an API for transfers: that is the crate `engine`.
//!
//! # Exit status
//! 0: everything was done. 1: a transfer or a verification failed. 2: wrong usage, a setting that makes no sense, or a file that cannot be
//! read or written. 3: a transport or a peer that was asked for is not there. ([`Failure`])
//!
//! # Example
//!
//! ```
//! let status = weft_cli::main_from(["weft", "plan", "--nics", "4", "--buffers", "8x1G"]);
//! assert_eq!(status, std::process::ExitCode::SUCCESS);
//! let status = weft_cli::main_from(["weft", "plan", "--nics", "many"]);
//! assert_eq!(status, std::process::ExitCode::from(2));
//! ```

#![forbid(unsafe_code)]

pub mod bench;
pub mod doctor;
pub mod logging;
pub mod manual;
pub mod metadata;
pub mod plan;
pub mod probe;
pub mod serve;
pub mod topo;

mod args;
mod connection;
mod failure;
#[cfg(feature = "prometheus")]
mod metrics;
mod output;
mod signals;
mod units;
mod verify;

use std::ffi::OsString;
use std::process::ExitCode;

use args::Command;
use clap::Parser as _;
pub use failure::Failure;
use output::Output;

/// Runs `weft` with these arguments, the program's name first. Blocks until the command has ended; prints to the process's standard
/// streams. Installs the process's logger unless it has one.
///
/// # Example
/// ```
/// assert_eq!(weft_cli::main_from(["weft", "--version"]), std::process::ExitCode::SUCCESS);
/// ```
pub fn main_from<I, T>(args: I) -> ExitCode
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    ExitCode::from(status_from(args))
}

/// As [`main_from`], but returns the exit status as a number, for callers that hand it to another runtime.
pub fn status_from<I, T>(args: I) -> u8
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let args = match args::Args::try_parse_from(args) {
        Ok(args) => args,
        Err(error) => {
            // Help and version are printed to stdout, errors to stderr; a closed pipe is nobody's business.
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    let output = Output::new(args.color);
    let outcome = logging::init(args.log.as_deref(), &output).and_then(|log| {
        let outcome = run(args.command, &output);
        log.finish();
        outcome
    });
    match outcome {
        Ok(()) => 0,
        Err(Failure::Quiet(status)) => status,
        Err(failure) => {
            output.error(&failure);
            failure.status()
        }
    }
}

fn run(command: Command, output: &Output) -> Result<(), Failure> {
    match command {
        Command::Serve(args) => serve::run(&args, output),
        Command::Bench(args) => bench::run(&args, output),
        Command::Probe(args) => probe::run(&args, output),
        Command::Doctor(args) => doctor::run(&args, output),
        Command::Topo(args) => topo::run(&args, output),
        Command::Plan(args) => plan::run(&args, output),
        Command::Metadata(args) => metadata::run(&args, output),
        Command::Completions(args) => manual::completions(&args, output),
        Command::Man(args) => manual::man(&args, output),
    }
}
