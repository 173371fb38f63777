//! `cargo xtask wheel`: builds the Python wheel, installs it into a fresh environment, and tests it there.

use anyhow::{Context, Result, ensure};

use crate::interop;
use crate::python::{self, Venv};
use crate::shell::Cmd;
use crate::workspace::root;

/// Builds the Python wheel and tests it in a fresh virtual environment
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The Python to test with; default `python3`
    #[arg(long)]
    python: Option<String>,
    /// Build, do not test
    #[arg(long)]
    no_test: bool,
    /// Fewer cycles in the tests for leaks
    #[arg(long)]
    quick: bool,
    /// Build by the development profile: sooner there, slower in use
    #[arg(long)]
    dev: bool,
    /// Only prepare the environment of the benchmarks, with Mooncake's wheel for TCP or for EFA; prints its Python as the last line
    #[arg(long, value_parser = ["tcp", "efa"])]
    environment: Option<String>,
    /// What to test, as pytest takes it; default all
    #[arg(last = true)]
    pytest: Vec<String>,
}

/// What the tests need, and what they compare with where it can be had.
const NEEDED: [&str; 3] = ["pytest", "numpy", "mypy"];
/// Mooncake's own wheel; the tests that need it are skipped where it cannot be installed.
pub(crate) const MOONCAKE: &str = "mooncake-transfer-engine-non-cuda==0.3.13.post1";

pub(crate) fn run(args: &Args) -> Result<()> {
    let python = python::interpreter(args.python.as_deref())?;
    let wheel = python::wheel(&python, args.dev)?;
    if let Some(kind) = &args.environment {
        let venv = interop::environment(kind, &python, &wheel)?;
        println!("{}", venv.python().display());
        return Ok(());
    }
    println!("{}", wheel.display());
    let name = wheel.file_name().context("a wheel has a name")?.to_string_lossy().into_owned();
    ensure!(name.contains("-cp39-abi3-"), "{name} does not say that it is for every Python from 3.9");
    if args.no_test {
        return Ok(());
    }
    let venv = Venv::make(&python::home()?.join("test"), &python, true)?;
    venv.install([wheel.as_os_str()])?;
    alone(&venv)?;
    venv.install(NEEDED)?;
    if let Err(error) = venv.install([MOONCAKE]) {
        eprintln!("warning: comparing with Mooncake is left out: {error:#}");
    }
    // What the type hints say is what is there.
    venv.command().args(["-m", "mypy.stubtest", "--concise", "weft"]).dir(root().join("engine-py")).run()?;
    venv.command().args(["-m", "mypy", "--strict", "-p", "weft"]).dir(root().join("engine-py")).run()?;
    let cycles = if args.quick { "500" } else { "10000" };
    venv.command()
        .args(["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"])
        .args(&args.pytest)
        .env("WEFT_LEAK_CYCLES", cycles)
        .dir(root().join("engine-py"))
        .run()
}

/// The wheel by itself: it needs no other package, bundles no library, and its program runs.
fn alone(venv: &Venv) -> Result<()> {
    let said = venv
        .command()
        .args(["-c", "import weft, weft.mooncake; e = weft.Engine(); print(weft.__version__); e.close()"])
        .stdout()?;
    println!("weft {} works without any other package", said.trim());
    let program = venv.program("weft");
    if program.is_file() {
        print!("{}", Cmd::new(program).arg("--version").stdout()?);
    }
    Ok(())
}
