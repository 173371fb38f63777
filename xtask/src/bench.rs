//! `cargo xtask bench SUITE`: runs a benchmark program and collects its rows.
//!
//! A suite is a bench target: `CRATE/benches/SUITE.rs` with `harness = false`, built on `benchkit`. Nothing has to be
//! declared here. The rows stay under `target/bench`, where `weft-report` draws those of all suites.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::setup;
use crate::shell::Cmd;
use crate::soft_efa;
use crate::workspace::{Workspace, root};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A suite, or `all`; without one, lists them
    suite: Option<String>,

    /// Write the rows of all suites as one JSON array
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Fewer and shorter rounds: shows that everything runs, not how fast it is
    #[arg(long)]
    quick: bool,

    /// Only cases whose name contains this text, e.g. `size=65536`
    filter: Option<String>,
}

/// Where the rows of every suite are kept, and the plots of them, under the target directory.
const REPORT: &str = "bench";

/// Keeps a suite's rows for the report; those of a filtered run are not the whole suite.
fn keep(workspace: &Workspace, suite: &str, json: &std::path::Path) -> Result<()> {
    let folder = workspace.target_dir.join(REPORT);
    std::fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let kept = folder.join(format!("{suite}.json"));
    std::fs::copy(json, &kept).with_context(|| format!("cannot write {}", kept.display()))?;
    Ok(())
}

/// Suites that are run a second time on software cards, and how many there are.
const ON_CARDS: &[&str] = &["efa"];
const CARDS: &str = "16";

/// A benchmark program.
struct Suite {
    name: String,
    package: String,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let workspace = Workspace::load()?;
    let suites = suites(&workspace);
    let names = suites.iter().map(|suite| suite.name.as_str()).collect::<Vec<_>>().join(", ");
    let Some(wanted) = &args.suite else {
        println!("suites: {names}, all");
        return Ok(());
    };
    let chosen: Vec<&Suite> =
        suites.iter().filter(|suite| wanted == "all" || suite.name == *wanted).collect();
    ensure!(!chosen.is_empty(), "no suite `{wanted}`; there are {names}, all");

    setup::provide(&[&setup::LIBFABRIC, &setup::VALGRIND]);
    let scratch = tempfile::tempdir()?;
    let mut rows = Vec::new();
    let mut failed = Vec::new();
    for suite in &chosen {
        let json = scratch.path().join(format!("{}.json", suite.name));
        match measure(&workspace, suite, args, &json) {
            Ok(measured) => {
                if args.filter.is_none() {
                    keep(&workspace, &suite.name, &json)?;
                }
                rows.extend(measured);
            }
            Err(error) => {
                eprintln!("error: suite {}: {error:#}", suite.name);
                failed.push(suite.name.as_str());
            }
        }
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&rows)? + "\n";
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        println!("{} rows in {}", rows.len(), path.display());
    }
    let folder = workspace.target_dir.join(REPORT);
    if args.filter.is_none() && folder.is_dir() {
        Cmd::cargo("run")
            .args(["--quiet", "--package", "weft-report", "--"])
            .arg(&folder)
            .dir(root())
            .quiet()
            .run()?;
    }
    if !failed.is_empty() {
        bail!("{} of {} suites failed: {}", failed.len(), chosen.len(), failed.join(", "));
    }
    Ok(())
}

/// Runs a suite, on software cards too if it is one of [`ON_CARDS`]. All rows are in `json` then.
fn measure(workspace: &Workspace, suite: &Suite, args: &Args, json: &std::path::Path) -> Result<Vec<Value>> {
    let mut words = vec!["--package", &suite.package, "--bench", &suite.name, "--", "--json"];
    words.push(json.to_str().context("a path that is no text")?);
    words.extend(args.quick.then_some("--quick"));
    words.extend(args.filter.as_deref());
    Cmd::cargo("bench").args(&words).dir(root()).run()?;
    let mut rows = read_rows(json)?;
    if ON_CARDS.contains(&suite.name.as_str()) {
        let launcher = soft_efa::launcher(workspace, false)?;
        let launcher = launcher.args(["--nics", CARDS, "--profile", "p5", "--", "cargo", "bench"]);
        launcher.args(&words).dir(root()).run()?;
        rows.extend(read_rows(json)?);
        std::fs::write(json, serde_json::to_string_pretty(&rows)?)?;
    }
    Ok(rows)
}

fn suites(workspace: &Workspace) -> Vec<Suite> {
    let of = |package: &crate::workspace::Package| {
        let name = package.name.clone();
        package.benches.clone().into_iter().map(move |bench| Suite { name: bench, package: name.clone() })
    };
    workspace.packages.values().flat_map(of).collect()
}

fn read_rows(path: &std::path::Path) -> Result<Vec<Value>> {
    let text = std::fs::read_to_string(path).context("the benchmark wrote no rows")?;
    serde_json::from_str(&text).context("the benchmark's rows are no JSON array")
}
