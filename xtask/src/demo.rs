//! `cargo xtask demo`: builds the demo in release mode and becomes it.

use anyhow::Result;

use crate::shell::Cmd;
use crate::workspace::{Workspace, root};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Passed to the demo as they are; `cargo xtask demo -- --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::load()?;
    Cmd::cargo("build").args(["--release", "--bin", "weft-demo"]).dir(root()).run()?;
    Err(Cmd::new(workspace.target_dir.join("release/weft-demo")).args(&args.args).exec())
}
