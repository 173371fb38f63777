//! Virtual environments of Python under `target/`, and the wheel in them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::registry::apt_install;
use crate::shell::Cmd;
use crate::workspace::{Workspace, root};

/// What builds the wheel.
const MATURIN: &str = "maturin>=1.9,<2";

/// A virtual environment.
pub(crate) struct Venv(PathBuf);

impl Venv {
    /// Makes one, from scratch if `fresh`; else one that is there is used again.
    pub(crate) fn make(dir: &Path, python: &str, fresh: bool) -> Result<Self> {
        let venv = Self(dir.to_owned());
        if fresh || !venv.python().is_file() {
            let make = || Cmd::new(python).args(["-m", "venv", "--clear"]).arg(dir).run();
            if make().is_err() {
                apt_install(&["python3-venv"], "Python programs are tested in environments of their own")?;
                make()?;
            }
        }
        Ok(venv)
    }

    /// Its interpreter.
    pub(crate) fn python(&self) -> PathBuf {
        self.0.join("bin/python")
    }

    /// One of its programs.
    pub(crate) fn program(&self, name: &str) -> PathBuf {
        self.0.join("bin").join(name)
    }

    /// Its interpreter as a command that sees nothing of other environments.
    pub(crate) fn command(&self) -> Cmd {
        Cmd::new(self.python()).env_remove("PYTHONPATH").env_remove("PYTHONHOME")
    }

    /// Installs packages from the index that pip is configured for.
    pub(crate) fn install<A: AsRef<std::ffi::OsStr>>(
        &self,
        packages: impl IntoIterator<Item = A>,
    ) -> Result<()> {
        self.command()
            .args(["-m", "pip", "--disable-pip-version-check", "install", "--quiet"])
            .args(packages)
            .run()
            .context("pip cannot install what is needed")
    }
}

/// The folder of all environments.
pub(crate) fn home() -> Result<PathBuf> {
    Ok(Workspace::load()?.target_dir.join("python"))
}

/// Builds the wheel, with `dev` by the development profile; returns its path.
pub(crate) fn wheel(python: &str, dev: bool) -> Result<PathBuf> {
    let home = home()?;
    let tools = Venv::make(&home.join("build"), python, false)?;
    if !tools.program("maturin").is_file() {
        tools.install([MATURIN])?;
    }
    let out = home.join("wheels");
    if out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("cannot empty {}", out.display()))?;
    }
    let manifest = root().join("engine-py/Cargo.toml");
    Cmd::new(tools.program("maturin"))
        .arg("build")
        .args((!dev).then_some("--release"))
        .args(["--quiet", "--compatibility", "linux", "--manifest-path"])
        .arg(&manifest)
        .arg("--out")
        .arg(&out)
        .dir(root())
        .run()?;
    let mut found = std::fs::read_dir(&out)
        .with_context(|| format!("maturin wrote nothing to {}", out.display()))?
        .filter_map(|entry| Some(entry.ok()?.path()));
    let wheel = found.next().context("maturin wrote no wheel")?;
    ensure!(found.next().is_none(), "more than one wheel in {}", out.display());
    Ok(wheel)
}

/// The Python to use: the one that was asked for, or the system's; 3.9 at least.
pub(crate) fn interpreter(wanted: Option<&str>) -> Result<String> {
    let python = wanted.unwrap_or("python3").to_owned();
    let check = Cmd::new(&python).args(["-c", "import sys; sys.exit(sys.version_info < (3, 9))"]);
    if !check.succeeds() {
        bail!("{python} is not there or is older than 3.9; name another one with --python");
    }
    Ok(python)
}
