//! `cargo xtask interop`: the real Mooncake wheel from PyPI and ours, in processes of their own, every byte verified.

use std::path::Path;

use anyhow::Result;

use crate::libfabric;
use crate::python::{self, Venv};
use crate::shell::Cmd;
use crate::wheel::MOONCAKE;
use crate::workspace::{Workspace, root};

/// Runs against the real Mooncake wheel from PyPI in a virtual environment under target/
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Python to run both with; Mooncake's wheels exist for some versions only; default `python3`
    #[arg(long)]
    python: Option<String>,
    /// Only over TCP, or only over software EFA cards
    #[arg(long, value_parser = ["tcp", "efa"])]
    only: Option<String>,
    /// Build our wheel by the development profile
    #[arg(long)]
    dev: bool,
    /// Fewer sizes
    #[arg(long)]
    quick: bool,
}

/// The same, built for EFA.
const MOONCAKE_EFA: &str = "mooncake-transfer-engine-efa-non-cuda==0.3.13.post1";
/// Cards of each simulated host.
const NICS: &str = "4";

pub(crate) fn run(args: &Args) -> Result<()> {
    let python = python::interpreter(args.python.as_deref())?;
    let wheel = python::wheel(&python, args.dev)?;
    let only = args.only.as_deref();
    if only != Some("efa") {
        let venv = environment("tcp", &python, &wheel)?;
        let script = root().join("engine-py/interop/tcp.py");
        venv.command().arg(script).args(args.quick.then_some("--quick")).run()?;
        engine_tests("WEFT_MOONCAKE_PYTHON", &venv).run()?;
    }
    if only != Some("tcp") {
        let venv = environment("efa", &python, &wheel)?;
        over_efa(&venv, args.quick)?;
    }
    Ok(())
}

/// An environment with our wheel and Mooncake's, which is called `mooncake` in both its builds, so that each needs its own.
pub(crate) fn environment(kind: &str, python: &str, wheel: &Path) -> Result<Venv> {
    let mooncake = if kind == "efa" { MOONCAKE_EFA } else { MOONCAKE };
    let venv = Venv::make(&python::home()?.join(format!("mooncake-{kind}")), python, false)?;
    venv.install([mooncake])?;
    // The wheel's version does not change with every build.
    venv.install(["--force-reinstall".as_ref(), "--no-deps".as_ref(), wheel.as_os_str()])?;
    Ok(venv)
}

/// On software cards, with the libfabric that `cargo xtask libfabric` puts in place.
fn over_efa(venv: &Venv, quick: bool) -> Result<()> {
    let workspace = Workspace::load()?;
    Cmd::cargo("build")
        .args(["--quiet", "--package", "soft-efa", "--bin", "soft-efa"])
        .dir(root())
        .quiet()
        .run()?;
    let prefix = libfabric::install()?;
    let soft_efa = workspace.target_dir.join("debug/soft-efa");
    let on_cards = || {
        // Whoever wants to know what the cards have carried asks the launcher.
        let launcher = Cmd::new(&soft_efa).env_quiet("WEFT_SOFT_EFA", &soft_efa);
        let with_libfabric = prefix
            .env()
            .into_iter()
            .fold(launcher, |launcher, (name, value)| launcher.env_quiet(name, value));
        with_libfabric.args(["--nics", NICS, "--"])
    };
    on_cards()
        .arg(venv.python())
        .arg(root().join("engine-py/interop/efa.py"))
        .args(quick.then_some("--quick"))
        .run()?;
    // Built before the cards are there: the compiler has no use for them.
    engine_tests("WEFT_MOONCAKE_EFA_PYTHON", venv).arg("--no-run").run()?;
    let tests = ["cargo", "test", "--quiet", "--package", "engine", "--features", ENGINE_FEATURES];
    on_cards()
        .dir(root())
        .args(tests)
        .args(["--test", "mooncake", "cards"])
        .env("WEFT_MOONCAKE_EFA_PYTHON", venv.python())
        .run()
}

/// What the engine needs for its tests against the wheel.
const ENGINE_FEATURES: &str = "mooncake,etcd,http,http-server";

/// The engine's own tests with Mooncake's nodes, which start them with the Python that `variable` names.
fn engine_tests(variable: &'static str, venv: &Venv) -> Cmd {
    Cmd::cargo("test")
        .args(["--quiet", "--package", "engine", "--features", ENGINE_FEATURES, "--test", "mooncake"])
        .dir(root())
        .env(variable, venv.python())
}
