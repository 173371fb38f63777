//! `cargo xtask test`: everything that can run here, and a closing line that counts it.
//!
//! A test that needs what the machine lacks prints `SKIP: <name>: <reason>` and returns. Test runners count it as
//! passed; we do not: every such line is one skipped test, listed with its reason, and a test that printed one is not
//! among the passed.

mod libtest;
mod nextest;
mod walk;

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use crate::libfabric::{self, Prefix};
use crate::setup;
use crate::shell::Cmd;
use crate::workspace::{Package, Workspace, root};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Leave out what needs a libfabric build or a long run
    #[arg(long)]
    quick: bool,

    /// Only this package (repeatable); default: all
    #[arg(short, long, value_name = "PACKAGE")]
    package: Vec<String>,

    /// Cases of each property test and schedules of each fault test, instead of what each test holds for enough; takes as long
    /// as that takes
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    cases: Option<u32>,

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

    /// The same, with every name telling which of several runs it was.
    fn labelled(self, run: &str) -> Self {
        let label =
            |tests: BTreeSet<String>| tests.into_iter().map(|test| format!("[{run}] {test}")).collect();
        Self { passed: self.passed, failed: label(self.failed), skipped: label(self.skipped) }
    }
}

pub(crate) fn run(args: &Args) -> Result<()> {
    setup::provide(&[&setup::LIBFABRIC, &setup::VALGRIND, &setup::IPROUTE, &setup::ETCD, &setup::REDIS]);
    let workspace = Workspace::load()?;
    for package in &args.package {
        workspace.package(package)?;
    }

    let chosen: Vec<&Package> = workspace
        .packages
        .values()
        .filter(|p| args.package.is_empty() || args.package.contains(&p.name))
        .collect();

    let newer = if args.quick { None } else { Some(libfabric::install()) };
    let mut tally = tests(args, &chosen, &[], |cmd| cmd)?;
    // `cargo test --doc` refuses a selection without any library.
    if chosen.iter().any(|package| package.has_lib) {
        let cmd = select(Cmd::cargo("test").arg("--doc"), args, &chosen);
        tally.add(libtest::run(cmd, args.filter.as_deref())?);
    }
    match newer {
        Some(Ok(prefix)) => tally.add(on_newer_libfabric(args, &chosen, &prefix)?),
        Some(Err(error)) => {
            tally.skipped.insert(format!("everything on libfabric 2.x: {error:#}"));
        }
        None => {
            tally.skipped.insert("everything on libfabric 2.x: --quick".to_owned());
        }
    }
    if args.quick {
        tally.skipped.insert("README quick start: --quick".to_owned());
    } else if args.package.is_empty() && args.filter.is_none() {
        tally.add(walk::run(&workspace)?);
    }
    report(&tally)
}

/// All but the doc tests of the packages `chosen`; only those named in `only`, if there are any. `with` adds to the command.
fn tests(args: &Args, chosen: &[&Package], only: &[String], with: impl FnOnce(Cmd) -> Cmd) -> Result<Tally> {
    let filter = args.filter.as_deref();
    if setup::nextest_present() {
        // `only` chooses when running, not when building: another selection would be another set of features.
        let cmd = select(Cmd::cargo("nextest").arg("run"), args, chosen);
        let cmd = if args.cases.is_some() { cmd.args(["--profile", "thorough"]) } else { cmd };
        return nextest::run(with(cmd), only, filter);
    }
    eprintln!("cargo-nextest is not installed; using cargo test");
    let chosen: Vec<_> =
        chosen.iter().copied().filter(|p| only.is_empty() || only.contains(&p.name)).collect();
    let cmd = select(Cmd::cargo("test"), args, &chosen).args(["--lib", "--bins", "--tests"]);
    libtest::run(with(cmd), filter)
}

/// What always stands on fabric-safe once more, on the libfabric 2.x of `cargo xtask libfabric`: the system's is another
/// major version. (The tests of fabric-sys and fabric-safe run on every libfabric by themselves.) And fabric-sys with its
/// entry points linked instead of loaded.
fn on_newer_libfabric(args: &Args, chosen: &[&Package], prefix: &Prefix) -> Result<Tally> {
    let mut tally = Tally::default();
    let stands_on = |package: &Package, name: &str| {
        package.dependencies.iter().any(|d| d.name == name && !d.dev && !d.optional)
    };
    let names: Vec<String> = chosen
        .iter()
        .filter(|package| stands_on(package, "fabric-safe"))
        .map(|package| package.name.clone())
        .collect();
    if !names.is_empty() {
        eprintln!("\nonce more on the libfabric in {}: {}", prefix.path().display(), names.join(", "));
        let on_it = |cmd: Cmd| prefix.env().into_iter().fold(cmd, |cmd, (name, value)| cmd.env(name, value));
        tally.add(tests(args, chosen, &names, on_it)?.labelled("libfabric 2.x"));
    }
    if chosen.iter().any(|package| package.name == "fabric-sys") {
        let linked =
            Cmd::cargo("test").args(["--no-fail-fast", "--package", "fabric-sys", "--features", "linked"]);
        let linked = linked.arg("--tests").dir(root());
        let linked =
            prefix.link_env()?.into_iter().fold(linked, |cmd, (name, value)| cmd.env_quiet(name, value));
        tally.add(libtest::run(linked, args.filter.as_deref())?.labelled("feature linked"));
    }
    Ok(tally)
}

/// Features that change what the whole build is, so that no ordinary test can run with them: `linked` ties every program to
/// a libfabric, `cards` is for the build of soft-efa's stand-in libraries alone, `extension-module` for that of the Python
/// module.
const NOT_IN_TESTS: &[&str] = &["default", "linked", "cards", "extension-module"];

/// The packages to build with all their features, and what all runs share.
fn select(cmd: Cmd, args: &Args, chosen: &[&Package]) -> Cmd {
    let mut cmd = cmd.dir(root()).arg("--no-fail-fast");
    for package in chosen {
        cmd = cmd.args(["--package", &package.name]);
    }
    let features: Vec<String> = chosen
        .iter()
        .flat_map(|package| package.features.keys().map(move |feature| (package, feature)))
        .filter(|(_, feature)| !NOT_IN_TESTS.contains(&feature.as_str()))
        .map(|(package, feature)| format!("{}/{feature}", package.name))
        .collect();
    if !features.is_empty() {
        cmd = cmd.args(["--features", &features.join(",")]);
    }
    if args.quick {
        cmd = cmd.env("WEFT_TEST_QUICK", "1");
    }
    match args.cases {
        Some(cases) => cmd.env("PROPTEST_CASES", cases.to_string()),
        None => cmd,
    }
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
