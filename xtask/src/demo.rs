//! `cargo xtask demo`: builds the demo (`xtask/demo`) in release mode and becomes it.

use anyhow::Result;

use crate::setup;
use crate::shell::Cmd;
use crate::workspace::{Workspace, root};

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// The demo's own arguments; `cargo xtask demo --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::provide(&[&setup::LIBFABRIC]);
    let workspace = Workspace::load()?;
    Cmd::cargo("build").args(["--release", "--package", "weft-demo"]).dir(root()).run()?;
    Err(Cmd::new(workspace.target_dir.join("release/weft-demo")).args(&args.args).exec())
}
