//! `cargo xtask test`: everything that can run here, and a closing line that counts it.
//!
//! A test that needs what the machine lacks prints `SKIP: <name>: <reason>` and returns. Test runners count it as
//! passed; we do not: every such line is one skipped test, listed with its reason, and a test that printed one is not
//! among the passed.

mod libtest;
mod nextest;

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::shell::Cmd;
use crate::workspace::{Package, Workspace, root};
use crate::{libfabric, setup};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out what needs a libfabric build or a long run
    #[arg(long)]
    quick: bool,

    /// Only this package (repeatable); default: all
    #[arg(short, long, value_name = "PACKAGE")]
    package: Vec<String>,

    /// Only tests whose name contains this text
    filter: Option<String>,
}

/// What a test run came to.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    passed: usize,
    failed: BTreeSet<String>,
    /// `name: reason`
    skipped: BTreeSet<String>,
}

impl Tally {
    fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed.extend(other.failed);
        self.skipped.extend(other.skipped);
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::provide(&[&setup::LIBFABRIC, &setup::VALGRIND, &setup::IPROUTE, &setup::NFTABLES]);
    let workspace = Workspace::load()?;
    for package in &args.package {
        workspace.package(package)?;
    }

    let mut tally = tests(args, &[], |cmd| cmd)?;
    if doc_tests_selected(args, &workspace) {
        let cmd = settings(args, select(Cmd::cargo("test").arg("--doc"), &args.package));
        tally.add(libtest::run(cmd, args.filter.as_deref())?);
    }
    if !args.quick {
        tally.add(on_newer_libfabric(args, &workspace)?);
    }
    report(&tally)
}

/// All but the doc tests; only those of the packages `only`, if there are any. `with` adds to the command.
fn tests(args: &Args, only: &[String], with: impl FnOnce(Cmd) -> Cmd) -> Result<Tally> {
    let filter = args.filter.as_deref();
    if setup::nextest_present() {
        // The packages are chosen when running, not when building: another selection would be another set of features.
        let cmd = settings(args, select(Cmd::cargo("nextest").arg("run"), &args.package));
        return nextest::run(with(cmd), only, filter);
    }
    eprintln!("cargo-nextest is not installed; using cargo test");
    let packages = if only.is_empty() { &args.package } else { only };
    let cmd = settings(args, select(Cmd::cargo("test"), packages)).args(["--lib", "--bins", "--tests"]);
    libtest::run(with(cmd), filter)
}

/// The libfabric layers once more, on the libfabric 2.x of `cargo xtask libfabric`: the system's is another major version.
fn on_newer_libfabric(args: &Args, workspace: &Workspace) -> Result<Tally> {
    let uses_libfabric = |package: &&Package| {
        let direct = |name: &str| package.dependencies.iter().any(|d| !d.dev && d.name == name);
        package.name == "fabric-sys" || direct("fabric-sys") || direct("fabric-safe")
    };
    let chosen = |package: &&Package| args.package.is_empty() || args.package.contains(&package.name);
    let names: Vec<String> =
        workspace.packages.values().filter(uses_libfabric).filter(chosen).map(|p| p.name.clone()).collect();
    if names.is_empty() {
        return Ok(Tally::default());
    }
    let prefix = match libfabric::install() {
        Ok(prefix) => prefix,
        Err(error) => {
            let skip = format!("the libfabric layers on libfabric 2.x: {error:#}");
            return Ok(Tally { skipped: BTreeSet::from([skip]), ..Tally::default() });
        }
    };
    eprintln!("once more on the libfabric in {}: {}", prefix.path().display(), names.join(", "));
    let again = tests(args, &names, |cmd| {
        prefix.env().into_iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value))
    })?;
    let label =
        |tests: BTreeSet<String>| tests.into_iter().map(|test| format!("[libfabric 2.x] {test}")).collect();
    Ok(Tally { passed: again.passed, failed: label(again.failed), skipped: label(again.skipped) })
}

/// The packages to test; all for none.
fn select(cmd: Cmd, packages: &[String]) -> Cmd {
    if packages.is_empty() {
        return cmd.arg("--workspace");
    }
    packages.iter().fold(cmd, |cmd, package| cmd.args(["--package", package]))
}

/// The folder and the settings that all runs share.
fn settings(args: &Args, cmd: Cmd) -> Cmd {
    let cmd = cmd.dir(root()).arg("--no-fail-fast");
    if args.quick { cmd.env("WEFT_TEST_QUICK", "1") } else { cmd }
}

/// `cargo test --doc` refuses a selection without any library.
fn doc_tests_selected(args: &Args, workspace: &Workspace) -> bool {
    workspace
        .packages
        .values()
        .any(|p| p.has_lib && (args.package.is_empty() || args.package.contains(&p.name)))
}

fn report(tally: &Tally) -> Result<()> {
    for test in &tally.failed {
        println!("FAILED {test}");
    }
    for test in &tally.skipped {
        println!("SKIPPED {test}");
    }
    println!("{} passed, {} failed, {} skipped", tally.passed, tally.failed.len(), tally.skipped.len());
    if !tally.failed.is_empty() {
        bail!("{} failed", tally.failed.len());
    }
    if tally.passed == 0 {
        bail!("no test has passed: does the filter match any?");
    }
    Ok(())
}

/// The `name: reason` of every line `SKIP: name: reason` in a test's output.
fn skips(output: &str) -> impl Iterator<Item = String> {
    output.lines().filter_map(|line| {
        let (name, reason) = line.trim().strip_prefix("SKIP: ")?.split_once(": ")?;
        Some(format!("{name}: {}", reason.trim()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skip_lines_are_found_among_other_output() {
        let output = "starting\nSKIP: pingpong_efa: no EFA card: none in sysfs\nSKIP: nonsense\n  SKIP: b: c \nunSKIP: x: y\n";
        let found: Vec<_> = skips(output).collect();
        assert_eq!(found, ["pingpong_efa: no EFA card: none in sysfs", "b: c"]);
    }

    #[test]
    fn a_run_without_a_passed_test_or_with_a_failed_one_is_an_error() {
        let tally = |passed, failed: &[&str]| Tally {
            passed,
            failed: failed.iter().map(|s| (*s).to_owned()).collect(),
            skipped: BTreeSet::new(),
        };
        assert!(report(&tally(1, &[])).is_ok());
        assert!(report(&tally(0, &[])).is_err());
        assert!(report(&tally(5, &["a"])).is_err());
    }
}
