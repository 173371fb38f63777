//! `cargo xtask fuzz TARGET`: builds a fuzz target with coverage instrumentation and runs it under libFuzzer.
//!
//! A target is a `[[bin]]` of a package `CRATE/fuzz` that stands outside the workspace and depends on `libfuzzer-sys`; its
//! source is `CRATE/fuzz/fuzz_targets/TARGET.rs`. Inputs that found something worth keeping for everybody lie in
//! `CRATE/fuzz/corpus/TARGET`; what a run discovers goes under `target/fuzz`.
//!
//! The stable toolchain is enough: the coverage instrumentation is an LLVM pass that stable rustc takes as a code
//! generation option. Only AddressSanitizer needs an unstable option, which `RUSTC_BOOTSTRAP` unlocks.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::setup;
use crate::shell::Cmd;
use crate::workspace::{Workspace, root};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// A fuzz target, or `all`; without one, lists them
    target: Option<String>,

    /// How long to look for failures, per target
    #[arg(long, value_name = "N", default_value_t = 60)]
    seconds: u64,

    /// How many targets to run at a time; more than one keep their output until they end
    #[arg(long, value_name = "N", default_value_t = 1)]
    jobs: usize,

    /// Lists the targets
    #[arg(long)]
    list: bool,

    /// Runs only these inputs, to reproduce a failure
    #[arg(long, value_name = "FILE")]
    input: Vec<PathBuf>,
}

/// What rustc needs to compile for libFuzzer: its coverage counters, comparisons traced, and every check switched on.
const RUSTFLAGS: &[&str] = &[
    "--cfg=fuzzing",
    "-Cpasses=sancov-module",
    "-Cllvm-args=-sanitizer-coverage-level=4",
    "-Cllvm-args=-sanitizer-coverage-inline-8bit-counters",
    "-Cllvm-args=-sanitizer-coverage-pc-table",
    "-Cllvm-args=-sanitizer-coverage-trace-compares",
    "-Cdebug-assertions",
    "-Coverflow-checks",
    "-Ccodegen-units=1",
    "-Zsanitizer=address",
];

/// libFuzzer's limit on one input's memory: a parser that allocates by an unchecked length ends here.
const RSS_LIMIT_MB: u32 = 2048;

/// libFuzzer's limit on one input's time in seconds.
const INPUT_TIMEOUT_S: u32 = 10;

/// A fuzz target.
struct Target {
    name: String,
    /// `CRATE/fuzz`
    dir: PathBuf,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    let targets = targets(&root())?;
    let names = targets.iter().map(|target| target.name.as_str()).collect::<Vec<_>>().join(", ");
    let wanted = match &args.target {
        Some(wanted) if !args.list => wanted,
        _ => {
            println!("fuzz targets: {names}");
            return Ok(());
        }
    };
    let chosen: Vec<&Target> =
        targets.iter().filter(|target| wanted == "all" || target.name == *wanted).collect();
    ensure!(!chosen.is_empty(), "no fuzz target `{wanted}`; there are: {names}");
    ensure!(args.input.is_empty() || chosen.len() == 1, "--input needs one target");

    setup::provide(&[&setup::CXX]);
    let build_dir = Workspace::load()?.target_dir.join("fuzz");
    // Built one after the other, for cargo uses all cores; each run keeps one busy.
    let built = chosen.iter().map(|t| Ok((*t, t.build(&build_dir)?))).collect::<Result<Vec<_>>>()?;
    let jobs = args.jobs.clamp(1, built.len());
    let waiting = Mutex::new(built.into_iter());
    let next = || waiting.lock().ok().and_then(|mut waiting| waiting.next());
    let results = std::thread::scope(|scope| {
        let work = || -> Vec<Result<()>> {
            std::iter::from_fn(next).map(|(target, program)| target.run(&program, &build_dir, args)).collect()
        };
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(work)).collect();
        workers
            .into_iter()
            .flat_map(|w| w.join().unwrap_or_else(|_| vec![Err(anyhow!("a thread panicked"))]))
            .collect::<Vec<_>>()
    });
    results.into_iter().collect()
}

/// All bins of all `CRATE/fuzz` and `CRATE/SUBCRATE/fuzz` packages.
fn targets(root: &Path) -> Result<Vec<Target>> {
    let mut found = Vec::new();
    for parent in folders(root).into_iter().flat_map(|dir| [folders(&dir), vec![dir]].concat()) {
        let dir = parent.join("fuzz");
        if dir.join("Cargo.toml").is_file() {
            let packages = Workspace::load_from(&dir)?.packages;
            let bins = packages.into_values().flat_map(|package| package.bins);
            found.extend(bins.map(|name| Target { name, dir: dir.clone() }));
        }
    }
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

fn folders(dir: &Path) -> Vec<PathBuf> {
    let skip = |path: &Path| path.ends_with("target") || path.ends_with(".git");
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir() && !skip(path)).collect()
}

impl Target {
    fn run(&self, program: &Path, build_dir: &Path, args: &Args) -> Result<()> {
        let artifacts = build_dir.join("artifacts").join(&self.name);
        let discovered = build_dir.join("corpus").join(&self.name);
        for dir in [&artifacts, &discovered] {
            std::fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
        }

        let mut cmd = Cmd::new(program).args([
            format!("-rss_limit_mb={RSS_LIMIT_MB}"),
            format!("-timeout={INPUT_TIMEOUT_S}"),
            format!("-artifact_prefix={}/", artifacts.display()),
        ]);
        if args.input.is_empty() {
            cmd = cmd.args([format!("-max_total_time={}", args.seconds), "-print_final_stats=1".to_owned()]);
            cmd = cmd.arg(&discovered);
            let checked_in = self.dir.join("corpus").join(&self.name);
            if checked_in.is_dir() {
                cmd = cmd.arg(checked_in);
            }
        } else {
            cmd = cmd.args(&args.input);
        }
        let passed = if args.jobs > 1 {
            let captured = cmd.capture()?;
            let said: Vec<&str> = captured.stderr.lines().collect();
            // Of a failure all that matters, of a success the figures at the end.
            let kept = if captured.success { 12 } else { 200 };
            println!("{}:\n{}", self.name, said[said.len().saturating_sub(kept)..].join("\n"));
            captured.success
        } else {
            cmd.run().is_ok()
        };
        if !passed {
            bail!(
                "{} found a failing input; it lies in {}; reproduce it with `cargo xtask fuzz {} --input FILE`",
                self.name,
                artifacts.display(),
                self.name
            );
        }
        println!("fuzz target {}: no failing input found", self.name);
        Ok(())
    }

    /// Builds it; returns the program.
    fn build(&self, build_dir: &Path) -> Result<PathBuf> {
        let host = host()?;
        // With --target, cargo keeps the flags from build scripts and procedural macros.
        Cmd::cargo("build")
            .args(["--release", "--target", &host, "--bin", &self.name, "--target-dir"])
            .arg(build_dir)
            .dir(&self.dir)
            .env("RUSTFLAGS", RUSTFLAGS.join(" "))
            .env("RUSTC_BOOTSTRAP", "1")
            .run()?;
        Ok(build_dir.join(host).join("release").join(&self.name))
    }
}

/// The toolchain's host triple.
fn host() -> Result<String> {
    let version = Cmd::new("rustc").arg("-vV").quiet().stdout()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    host.map(str::to_owned).context("`rustc -vV` names no host")
}
