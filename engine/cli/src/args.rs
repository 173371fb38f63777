//! The command line as a whole; each command's own arguments are in its chapter.

use clap::{Parser, Subcommand};

use crate::output::Color;
use crate::{bench, doctor, manual, metadata, plan, probe, serve, topo};

/// Moves memory between machines over AWS EFA, and over TCP where there is none; measures and explains it.
///
/// Exit status: 0 if everything was done, 1 if a transfer or verification failed, 2 for wrong usage, 3 if a transport or a peer that was
/// asked for is not there.
#[derive(Debug, Parser)]
#[command(name = "weft", version, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Args {
    /// What to log, such as `info` or `warn,engine=debug`; logs go to stderr
    #[arg(long, global = true, value_name = "FILTER", env = "WEFT_LOG", hide_env_values = true)]
    pub(crate) log: Option<String>,
    /// Colour in tables, messages and logs; `auto`: on terminals, unless NO_COLOR is set
    #[arg(long, global = true, value_name = "WHEN", default_value = "auto")]
    pub(crate) color: Color,
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Serve(serve::Args),
    Bench(bench::Args),
    Probe(probe::Args),
    Doctor(doctor::Args),
    Topo(topo::Args),
    Plan(plan::Args),
    Metadata(metadata::Args),
    Completions(manual::CompletionsArgs),
    Man(manual::ManArgs),
}
