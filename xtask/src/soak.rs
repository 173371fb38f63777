//! `cargo xtask soak`: builds the soak (`xtask/soak`) and runs it; with `--prove`, builds it with bugs in it and has it find
//! them.

use anyhow::{Context, Result};

use crate::libfabric;
use crate::shell::Cmd;
use crate::workspace::{Workspace, root};

/// What a build with the feature `planted` can be asked for.
const BUGS: [&str; 2] = ["late-write", "lost-completion"];

#[derive(clap::Args)]
#[command(disable_help_flag = true)]
pub(crate) struct Args {
    /// Plants each of the known bugs in turn and fails unless it is found within a minute
    #[arg(long)]
    prove: bool,
    /// The soak's own arguments; `cargo xtask soak --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    args: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    // In the tests' profile: its checks of overflows and of our own assumptions are on.
    let build = Cmd::cargo("build").args(["--package", "weft-soak"]).dir(root());
    let build = if args.prove { build.args(["--features", "planted"]) } else { build };
    build.run()?;
    let program = Workspace::load()?.target_dir.join("debug/weft-soak");
    // The bugs are planted in the TCP path.
    let without_cards = args.prove || args.args.iter().any(|a| a == "--no-cards");
    let prefix = if without_cards { None } else { Some(libfabric::install()?) };
    let soak = || {
        let cmd = Cmd::new(&program);
        match &prefix {
            Some(prefix) => {
                prefix.env().into_iter().fold(cmd, |cmd, (name, value)| cmd.env_quiet(name, value))
            }
            None => cmd,
        }
    };
    if !args.prove {
        return Err(soak().args(&args.args).exec());
    }
    for bug in BUGS {
        soak()
            .args(["--planted", bug, "--minutes", "1", "--no-cards"])
            .args(&args.args)
            .run()
            .with_context(|| format!("the soak does not find {bug}"))?;
    }
    Ok(())
}
