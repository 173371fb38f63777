//! `cargo xtask soft-efa`: runs a command on software EFA cards, with the libfabric of [`libfabric`].

use std::ffi::OsString;

use anyhow::Result;

use crate::libfabric;
use crate::shell::Cmd;
use crate::workspace::{Workspace, root};

/// Runs a command on software EFA cards
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Number of cards (1 to 64); default: as many as the profile's machine has
    #[arg(long)]
    nics: Option<usize>,
    /// Generation: p4d, p5, p5en, p6
    #[arg(long, default_value = "p5")]
    profile: String,
    /// Use the system's libfabric instead of the 2.5.1 of `cargo xtask libfabric`
    #[arg(long)]
    system_libfabric: bool,
    /// The command and its arguments; the launcher's own options (`soft-efa --help`) may come before them, after one `--`
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let mut launcher = launcher(&Workspace::load()?, args.system_libfabric)?.quiet();
    if let Some(nics) = args.nics {
        launcher = launcher.args(["--nics", &nics.to_string()]);
    }
    Err(launcher.args(["--profile", &args.profile, "--"]).args(&args.command).exec())
}

/// The program that starts commands on software cards, with the libfabric that they are to use.
pub(crate) fn launcher(workspace: &Workspace, system_libfabric: bool) -> Result<Cmd> {
    Cmd::cargo("build")
        .args(["--quiet", "--package", "soft-efa", "--bin", "soft-efa"])
        .dir(root())
        .quiet()
        .run()?;
    let mut launcher = Cmd::new(workspace.target_dir.join("debug/soft-efa"));
    if !system_libfabric {
        let prefix = libfabric::install()?;
        for (name, value) in prefix.env() {
            launcher = launcher.env_quiet(name, value);
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::iter::once(prefix.path().join("bin")).chain(std::env::split_paths(&path));
        launcher = launcher.env_quiet("PATH", std::env::join_paths(path)?);
    }
    Ok(launcher)
}
