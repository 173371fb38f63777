//! The sources compile with the oldest promised toolchain (`rust-version` of the workspace).

use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Outcome;
use crate::shell::Cmd;
use crate::workspace::{Workspace, root};

pub(super) fn check(workspace: &Workspace) -> Result<Outcome> {
    let promised = env!("CARGO_PKG_RUST_VERSION");
    dependencies_promise_it_too(promised)?;

    let toolchain = toolchains().into_iter().find(|name| name.starts_with(promised));
    let Some(toolchain) = toolchain else {
        // clippy's incompatible_msrv knows since when each standard library item has been stable; it warns by default
        // and the clippy step denies warnings.
        return Ok(Outcome::HoldsExcept(format!(
            "a build with Rust {promised} itself, which is not installed (`rustup toolchain install {promised}`); \
             clippy compared the items used with what {promised} has, and every dependency states {promised} or older"
        )));
    };
    let libraries = workspace.packages.values().filter(|package| package.publishable);
    libraries
        .fold(Cmd::new("cargo").arg(format!("+{toolchain}")).arg("check"), |cmd, package| {
            cmd.args(["--package", &package.name])
        })
        .env_remove("RUSTUP_TOOLCHAIN")
        .env_remove("CARGO")
        .env("CARGO_TARGET_DIR", workspace.target_dir.join("msrv"))
        .dir(root())
        .run()?;
    Ok(Outcome::Holds)
}

/// No dependency in the lock file asks for a newer toolchain.
fn dependencies_promise_it_too(promised: &str) -> Result<()> {
    let json = super::cargo("metadata").args(["--format-version", "1"]).quiet().stdout()?;
    let json: Value = serde_json::from_str(&json).context("cargo metadata printed no JSON")?;
    let newer: Vec<String> = json["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|package| {
            let needs = package["rust_version"].as_str()?;
            (version(needs) > version(promised)).then(|| format!("{} needs {needs}", package["id"]))
        })
        .collect();
    if !newer.is_empty() {
        bail!("rust-version {promised} is promised, but {}", newer.join(", "));
    }
    Ok(())
}

/// `1.88` and `1.88.0` are the same version.
fn version(text: &str) -> Vec<u64> {
    let mut parts: Vec<u64> = text.split('.').map(|part| part.parse().unwrap_or(u64::MAX)).collect();
    parts.resize(3, 0);
    parts
}

/// Names of the installed toolchains; none without rustup.
fn toolchains() -> Vec<String> {
    let list = Command::new("rustup").args(["toolchain", "list", "--quiet"]).output();
    let list = list.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    list.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_compare_by_number() {
        assert!(version("1.9") < version("1.88"));
        assert_eq!(version("1.88"), version("1.88.0"));
        assert!(version("1.88.1") > version("1.88"));
        assert!(version("2") > version("1.99"));
    }
}
