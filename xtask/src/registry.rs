//! Files from package registries, pinned by checksum: PyPI wheels and Debian packages that nobody installs, only
//! unpacks under `target/`. Which registry or mirror answers is the system's own configuration (pip's, apt's).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::shell::{Cmd, program_exists};

/// A file that must be exactly this one.
pub(crate) struct Pinned {
    /// Its name in the registry.
    pub(crate) file: &'static str,
    /// The SHA-256 of its content, lower-case hexadecimal.
    pub(crate) sha256: &'static str,
}

impl Pinned {
    /// Is the right content already in `dir`?
    fn is_in(&self, dir: &Path) -> bool {
        sha256(&dir.join(self.file)).is_ok_and(|found| found == self.sha256)
    }

    fn check(&self, dir: &Path) -> Result<PathBuf> {
        let path = dir.join(self.file);
        let found = sha256(&path)?;
        if found != self.sha256 {
            fs::remove_file(&path).ok();
            bail!(
                "{} has SHA-256 {found}, but {} is pinned here; the registry serves another file under that name",
                self.file,
                self.sha256
            );
        }
        Ok(path)
    }
}

/// The SHA-256 of a file's content, lower-case hexadecimal.
fn sha256(path: &Path) -> Result<String> {
    ensure!(path.is_file(), "{} is not there", path.display());
    let line = Cmd::new("sha256sum").arg(path).quiet().stdout()?;
    // A name with a backslash or a newline makes coreutils start the line with a backslash.
    let digest = line.trim_start_matches('\\').split_whitespace().next().unwrap_or_default();
    Ok(digest.to_owned())
}

/// Downloads a wheel from the Python package index that pip is configured for; returns its path in `dir`.
///
/// `platform` is the wheel's platform tag. Nothing is downloaded if `dir` holds the right file already.
pub(crate) fn wheel(requirement: &str, platform: &str, pinned: &Pinned, dir: &Path) -> Result<PathBuf> {
    if !pinned.is_in(dir) {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let pip = pip()?;
        let flags = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--implementation", "py"];
        pip.args(flags)
            .args(["--abi", "none", "--platform", platform, "--dest"])
            .arg(dir)
            .arg(requirement)
            .run()
            .with_context(|| format!("cannot download {requirement} from the Python package index"))?;
    }
    pinned.check(dir)
}

/// `python3 -m pip` of a Python that has pip; installs Debian's if none has.
fn pip() -> Result<Cmd> {
    let pip = |python: &str| Cmd::new(python).args(["-m", "pip", "--disable-pip-version-check"]);
    let usable = || ["python3", "/usr/bin/python3"].into_iter().find(|p| pip(p).arg("--version").succeeds());
    if let Some(python) = usable() {
        return Ok(pip(python));
    }
    apt_install(&["python3-pip", "ca-certificates"], "pip downloads pinned wheels")?;
    usable().map(pip).context("python3-pip is installed, but `python3 -m pip --version` fails")
}

/// Unpacks a wheel (a zip archive) into `dir`.
pub(crate) fn unpack_wheel(wheel: &Path, dir: &Path) -> Result<()> {
    Cmd::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(dir).run()
}

/// Downloads a package from the Debian mirror that apt is configured for; returns its path in `dir`.
///
/// `pool_path` is the folder below the mirror's root. It need not belong to the installed release: the package is
/// checked against the pinned checksum and unpacked, never installed.
pub(crate) fn deb(pool_path: &str, pinned: &Pinned, dir: &Path) -> Result<PathBuf> {
    if !pinned.is_in(dir) {
        fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        let url = format!("{}/{pool_path}/{}", debian_mirror()?.trim_end_matches('/'), pinned.file);
        Cmd::new("/usr/lib/apt/apt-helper")
            .args(["-q", "download-file", &url])
            .arg(dir.join(pinned.file))
            .arg(format!("SHA256:{}", pinned.sha256))
            .run()
            .with_context(|| format!("cannot download {} from apt's mirror", pinned.file))?;
    }
    pinned.check(dir)
}

/// The root of the Debian archive in apt's sources (not of its security updates or of third parties).
fn debian_mirror() -> Result<String> {
    let targets = Cmd::new("apt-get")
        .args(["indextargets", "--format", "$(ORIGIN)|$(LABEL)|$(REPO_URI)", "Created-By: Packages"])
        .quiet()
        .stdout()?;
    let found = targets.lines().find_map(|line| line.strip_prefix("Debian|Debian|"));
    let hint = "no source with origin Debian in apt's lists; run `apt-get update` as root first";
    found.map(str::to_owned).context(hint)
}

/// Installs Debian packages, as root or through sudo; `why` is shown.
pub(crate) fn apt_install(packages: &[&str], why: &str) -> Result<()> {
    let list = packages.join(" ");
    eprintln!("installing {list}: {why}");
    let is_root = Cmd::new("id").arg("-u").quiet().stdout()?.trim() == "0";
    ensure!(
        program_exists("apt-get") && (is_root || Cmd::new("sudo").args(["-n", "true"]).succeeds()),
        "this machine lacks {list} ({why}), and they cannot be installed from here; run: apt-get install {list}"
    );
    let apt = |words: &[&str]| {
        let privileged = if is_root { Cmd::new("env") } else { Cmd::new("sudo").arg("env") };
        privileged.args(["DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq"]).args(words)
    };
    let install = || apt(&["install", "-y", "--no-install-recommends"]).args(packages).run();
    // A fresh image has no package lists, an old one has stale ones.
    install().or_else(|_| apt(&["update"]).run().and_then(|()| install()))
}

/// As [`apt_install`], for packages that would start a server on a port of their own: it is started neither now nor at the
/// next boot.
pub(crate) fn apt_install_stopped(packages: &[&str], services: &[&str], why: &str) -> Result<()> {
    // Debian's packages ask this program whether they may start what they bring.
    const POLICY: &str = "/usr/sbin/policy-rc.d";
    let privileged = |script: &str| {
        let is_root = Cmd::new("id").arg("-u").quiet().stdout().is_ok_and(|id| id.trim() == "0");
        let cmd = if is_root { Cmd::new("sh") } else { Cmd::new("sudo").args(["-n", "sh"]) };
        cmd.args(["-c", script]).succeeds()
    };
    let ours = !Path::new(POLICY).exists()
        && privileged(&format!("printf '#!/bin/sh\\nexit 101\\n' > {POLICY} && chmod 755 {POLICY}"));
    let installed = apt_install(packages, why);
    if ours {
        privileged(&format!("rm -f {POLICY}"));
    }
    if Path::new("/run/systemd/system").exists() {
        privileged(&format!("systemctl disable --quiet --now {}", services.join(" ")));
    }
    installed
}
