//! `cargo xtask lint`: what must hold of the sources without running them.
//!
//! | step | holds if |
//! |---|---|
//! | `fmt` | rustfmt would change nothing |
//! | `clippy` | clippy and rustc warn about nothing, in all targets, with all features |
//! | `docs` | rustdoc warns about nothing |
//! | `deny` | the dependencies' licences, sources and versions are those of `deny.toml`; no known advisory, where the database can be had |
//! | [`layers`] | dependencies point down only |
//! | [`features`] | every combination of features compiles |
//! | [`msrv`] | the sources compile with the oldest promised toolchain |
//! | [`package`] | each crate, packaged as for the registry, serves a consumer outside the workspace |

mod features;
mod layers;
mod msrv;
mod package;

use std::time::Instant;

use anyhow::{Result, bail};

use crate::shell::Cmd;
use crate::workspace::{Workspace, root};
use crate::{libfabric, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Only these steps; default: all
    #[arg(value_enum, value_name = "STEP")]
    steps: Vec<Step>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Step {
    Fmt,
    Layers,
    Deny,
    Clippy,
    Docs,
    Msrv,
    Features,
    Package,
}

/// Cheap ones first.
const ALL: [Step; 8] = {
    use Step::*;
    [Fmt, Layers, Deny, Clippy, Docs, Msrv, Features, Package]
};

/// How a step ended when it did not fail.
enum Outcome {
    Holds,
    /// Holds as far as it could be checked here, and what could not.
    HoldsExcept(String),
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::load()?;
    let steps: &[Step] = if args.steps.is_empty() { &ALL } else { &args.steps };
    let mut lines = Vec::new();
    let mut failed = Vec::new();
    for step in steps {
        let name = format!("{step:?}").to_lowercase();
        eprintln!("== {name}");
        let start = Instant::now();
        let outcome = step.run(&workspace);
        let seconds = start.elapsed().as_secs();
        lines.push(match &outcome {
            Ok(Outcome::Holds) => format!("ok      {name} ({seconds} s)"),
            Ok(Outcome::HoldsExcept(what)) => format!("ok      {name} ({seconds} s); not checked: {what}"),
            Err(error) => format!("FAILED  {name} ({seconds} s): {error:#}"),
        });
        if let Err(error) = outcome {
            eprintln!("error: {error:#}");
            failed.push(name);
        }
    }
    println!("{}", lines.join("\n"));
    if !failed.is_empty() {
        bail!("lint failed: {}", failed.join(", "));
    }
    Ok(())
}

impl std::fmt::Debug for Step {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Fmt => "fmt",
            Self::Layers => "layers",
            Self::Deny => "deny",
            Self::Clippy => "clippy",
            Self::Docs => "docs",
            Self::Msrv => "msrv",
            Self::Features => "features",
            Self::Package => "package",
        })
    }
}

impl Step {
    fn run(self, workspace: &Workspace) -> Result<Outcome> {
        match self {
            Self::Fmt => cargo("fmt").args(["--all", "--check"]).run()?,
            Self::Layers => layers::check(workspace)?,
            Self::Deny => return deny(),
            Self::Clippy => {
                let everything = [
                    "--workspace",
                    "--all-targets",
                    "--all-features",
                    "--keep-going",
                    "--",
                    "-D",
                    "warnings",
                ];
                with_linked(cargo("clippy").args(everything))?.run()?;
            }
            Self::Docs => {
                let everything = ["--workspace", "--no-deps", "--all-features", "--keep-going"];
                with_linked(cargo("doc").args(everything))?.env("RUSTDOCFLAGS", "-D warnings").run()?;
            }
            Self::Msrv => return msrv::check(workspace),
            Self::Features => features::check(workspace)?,
            Self::Package => package::check(workspace)?,
        }
        Ok(Outcome::Holds)
    }
}

fn cargo(subcommand: &str) -> Cmd {
    Cmd::cargo(subcommand).dir(root())
}

/// What the feature `linked` needs to be built, as `--all-features` switches it on.
fn with_linked(cmd: Cmd) -> Result<Cmd> {
    let variables = libfabric::install()?.link_env()?;
    Ok(variables.into_iter().fold(cmd, |cmd, (name, value)| cmd.env_quiet(name, value)))
}

fn deny() -> Result<Outcome> {
    setup::provide(&[&setup::CARGO_DENY]);
    cargo("deny").args(["--all-features", "check", "licenses", "bans", "sources"]).run()?;
    // The advisory database is a git repository on the network; without it there is nothing to compare with.
    if !cargo("deny").args(["fetch", "db"]).succeeds() {
        return Ok(Outcome::HoldsExcept(
            "advisories, because their database cannot be fetched from here".to_owned(),
        ));
    }
    cargo("deny").args(["--all-features", "check", "advisories"]).run()?;
    Ok(Outcome::Holds)
}
