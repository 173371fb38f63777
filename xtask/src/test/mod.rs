//! `cargo xtask test`: everything that can run here, and a closing line that counts it.
//!
//! A test that needs what the machine lacks prints `SKIP: <name>: <reason>` and returns. Test runners count it as
//! passed; we do not: every such line is one skipped test, listed with its reason, and a test that printed one is not
//! among the passed.

mod libtest;
mod nextest;

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::setup;
use crate::shell::Cmd;
use crate::workspace::{Workspace, root};

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

    let mut tally = Tally::default();
    let filter = args.filter.as_deref();
    if setup::nextest_present() {
        tally.add(nextest::run(select(args, Cmd::cargo("nextest").arg("run")), filter)?);
    } else {
        eprintln!("cargo-nextest is not installed; using cargo test");
        let cmd = select(args, Cmd::cargo("test")).args(["--lib", "--bins", "--tests", "--examples"]);
        tally.add(libtest::run(cmd, filter)?);
    }
    if doc_tests_selected(args, &workspace) {
        tally.add(libtest::run(select(args, Cmd::cargo("test")).arg("--doc"), filter)?);
    }
    report(&tally)
}

/// The packages, settings and folder that all runners share.
fn select(args: &Args, cmd: Cmd) -> Cmd {
    let cmd = cmd.dir(root()).arg("--no-fail-fast");
    let cmd = if args.quick { cmd.env("WEFT_TEST_QUICK", "1") } else { cmd };
    if args.package.is_empty() {
        cmd.arg("--workspace")
    } else {
        args.package.iter().fold(cmd, |cmd, package| cmd.args(["--package", package]))
    }
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
