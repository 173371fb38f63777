//! Each publishable crate, packaged as for the registry, serves a consumer outside the workspace.
//!
//! `cargo package` makes the `.crate` files; each is unpacked, and for each a consumer is generated in a temporary
//! folder that depends on that crate alone. The layers below it come from their own packages too, through `[patch]`, so what a
//! package forgot to include, or borrowed from the workspace, is missed.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::shell::Cmd;
use crate::workspace::{Package, Workspace, root};

pub(super) fn check(workspace: &Workspace) -> Result<()> {
    let packages: Vec<&Package> = workspace.packages.values().filter(|package| package.publishable).collect();
    // Not verified by cargo: the consumers below do that, with the dependencies that are compiled already.
    packages
        .iter()
        .fold(super::cargo("package").args(["--quiet", "--allow-dirty", "--no-verify"]), |cmd, package| {
            cmd.args(["--package", &package.name])
        })
        .run()?;

    let scratch = tempfile::tempdir()?;
    for package in &packages {
        let file =
            workspace.target_dir.join("package").join(format!("{}-{}.crate", package.name, package.version));
        Cmd::new("tar").arg("-xzf").arg(&file).arg("-C").arg(scratch.path()).quiet().run()?;
    }

    let mut failed = Vec::new();
    for package in packages.iter().filter(|package| package.has_lib) {
        let consumer = write_consumer(scratch.path(), package, &packages)?;
        // Checked rather than built: what a package lacks is missed by the compiler's front end, and the code generated is that of the tests.
        let built = Cmd::cargo("check")
            .arg("--quiet")
            .dir(&consumer)
            .env("CARGO_TARGET_DIR", &workspace.target_dir)
            .run();
        if built.is_err() {
            failed.push(package.name.as_str());
        }
    }
    if !failed.is_empty() {
        bail!("no consumer outside the workspace compiles against {}", failed.join(", "));
    }
    Ok(())
}

/// A program that depends on `package` alone; returns its folder.
fn write_consumer(scratch: &Path, package: &Package, all: &[&Package]) -> Result<PathBuf> {
    let dir = scratch.join(format!("consumer-of-{}", package.name));
    std::fs::create_dir_all(dir.join("src")).context("cannot make the consumer's folder")?;
    std::fs::write(dir.join("Cargo.toml"), manifest(scratch, package, all))?;
    std::fs::write(
        dir.join("src/main.rs"),
        format!(
            "//! Outside the workspace.\npub use {} as _;\nfn main() {{}}\n",
            package.name.replace('-', "_")
        ),
    )?;
    // The workspace's lock file and profile, so that registry crates are compiled once for both.
    std::fs::copy(root().join("Cargo.lock"), dir.join("Cargo.lock"))?;
    Ok(dir)
}

fn manifest(scratch: &Path, package: &Package, all: &[&Package]) -> String {
    let mut text = format!(
        "[package]\nname = \"consumer-of-{name}\"\nversion = \"0.0.0\"\nedition = \"2024\"\npublish = false\n\n\
         [dependencies]\n{name} = \"={version}\"\n\n\
         [profile.dev.package.\"*\"]\nopt-level = 2\ndebug = false\n\n[workspace]\n\n[patch.crates-io]\n",
        name = package.name,
        version = package.version
    );
    for other in all {
        let path = scratch.join(format!("{}-{}", other.name, other.version));
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{} = {{ path = {path:?} }}", other.name);
    }
    text
}
