//! Counts instructions, with `valgrind --tool=callgrind`: the one figure that a noisy machine cannot blur.
//!
//! The benchmark runs itself as a child: [`child`] says in `main` what such a child is to do.
//!
//! ```no_run
//! use benchkit::callgrind::{self, Callgrind};
//!
//! fn main() -> benchkit::Result<()> {
//!     if let Some(child) = callgrind::child() {
//!         // Set up, then do the operation child.operations times.
//!         match child.mode.as_str() {
//!             "ours" => (0..child.operations).for_each(|i| drop(std::hint::black_box(i.to_string()))),
//!             other => return Err(format!("no mode {other}").into()),
//!         }
//!         return Ok(());
//!     }
//!     if let Some(per_operation) = Callgrind::this_program("ours").instructions_per_operation(1_000)? {
//!         println!("{per_operation} instructions");
//!     }
//!     Ok(())
//! }
//! ```

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Result;

const MODE: &str = "BENCHKIT_MODE";
const OPERATIONS: &str = "BENCHKIT_OPERATIONS";

/// What a child process under callgrind is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Child {
    /// The name given to [`Callgrind::this_program`].
    pub mode: String,
    /// How often it repeats the operation.
    pub operations: u64,
}

/// Are we such a child? To be asked first in `main`.
#[must_use]
pub fn child() -> Option<Child> {
    let mode = std::env::var(MODE).ok()?;
    let operations = std::env::var(OPERATIONS).ok()?.parse().ok()?;
    Some(Child { mode, operations })
}

/// A program whose instructions are counted.
#[derive(Clone, Debug)]
pub struct Callgrind {
    program: PathBuf,
    args: Vec<OsString>,
    envs: Vec<(OsString, OsString)>,
    toggle: Vec<String>,
}

impl Callgrind {
    /// This very program as a child that finds `mode` in [`child`].
    #[must_use]
    pub fn this_program(mode: &str) -> Self {
        // An empty path fails when it is run, with an error that says so.
        Self::program(std::env::current_exe().unwrap_or_default()).env(MODE, mode)
    }

    /// Another program.
    #[must_use]
    pub fn program(program: impl Into<PathBuf>) -> Self {
        Self { program: program.into(), args: Vec::new(), envs: Vec::new(), toggle: Vec::new() }
    }

    /// One more argument of the program.
    #[must_use]
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }

    /// A variable of the program's environment.
    #[must_use]
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Self {
        self.envs.push((name.into(), value.into()));
        self
    }

    /// Counts only inside functions whose demangled name matches this pattern (`*` and `?` as in a shell), and in what
    /// they call. The function must be `#[inline(never)]`.
    #[must_use]
    pub fn only_in(mut self, function: impl Into<String>) -> Self {
        self.toggle.push(function.into());
        self
    }

    /// Runs it once and returns the instructions that were executed; `None` if valgrind is not installed.
    ///
    /// # Errors
    /// The program failed under valgrind, or callgrind's report says nothing.
    pub fn instructions(&self) -> Result<Option<u64>> {
        if !available() {
            return Ok(None);
        }
        let dir = tempfile::tempdir()?;
        let report = dir.path().join("callgrind.out");
        let output = self.command(&report).output()?;
        if !output.status.success() {
            return Err(format!(
                "{} under callgrind ended with {}:\n{}",
                self.program.display(),
                output.status,
                String::from_utf8_lossy(&output.stderr).trim_end()
            )
            .into());
        }
        let report = std::fs::read_to_string(&report)?;
        let total = total(&report).ok_or("callgrind's report has no totals")?;
        if total == 0 && !self.toggle.is_empty() {
            return Err(format!("no function matches {:?}: inlined away?", self.toggle).into());
        }
        Ok(Some(total))
    }

    /// Instructions of one operation: the child does it `operations` times, then twice as often; the difference holds
    /// the operations alone, without start-up and set-up. `None` if valgrind is not installed.
    ///
    /// # Errors
    /// As [`Callgrind::instructions`]; also if twice the work took fewer instructions.
    pub fn instructions_per_operation(&self, operations: u64) -> Result<Option<f64>> {
        let run = |operations: u64| self.clone().env(OPERATIONS, operations.to_string()).instructions();
        let (Some(once), Some(twice)) = (run(operations.max(1))?, run(2 * operations.max(1))?) else {
            return Ok(None);
        };
        let difference = twice.checked_sub(once).ok_or_else(|| {
            format!("{operations} operations took {once} instructions, twice as many took {twice}")
        })?;
        Ok(Some(difference as f64 / operations.max(1) as f64))
    }

    fn command(&self, report: &Path) -> Command {
        let mut command = Command::new("valgrind");
        let mut out_file = OsString::from("--callgrind-out-file=");
        out_file.push(report);
        command.args(["--tool=callgrind", "--quiet"]).arg(out_file);
        for function in &self.toggle {
            command.arg(format!("--toggle-collect={function}"));
        }
        command.arg(&self.program).args(&self.args).envs(self.envs.iter().map(|(k, v)| (k, v)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }
}

/// Is valgrind installed?
#[must_use]
pub fn available() -> bool {
    let version = Command::new("valgrind").arg("--version").stdin(Stdio::null()).output();
    version.is_ok_and(|output| output.status.success())
}

/// The instruction count of a callgrind report: `totals:` of all its parts, else `summary:`.
fn total(report: &str) -> Option<u64> {
    let sum = |key: &str| {
        let mut counts = report
            .lines()
            .filter_map(|line| line.strip_prefix(key))
            .filter_map(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
            .peekable();
        counts.peek()?;
        Some(counts.fold(0, u64::saturating_add))
    };
    sum("totals:").or_else(|| sum("summary:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_a_report() {
        let report = "# callgrind format\nversion: 1\npid: 7\nevents: Ir\nsummary: 12\n\nfn=(1) main\n3 12\n\ntotals: 1234\n";
        assert_eq!(total(report), Some(1234));
        assert_eq!(total("events: Ir\nsummary: 12\n"), Some(12));
        assert_eq!(total("totals: nonsense\n"), None);
        assert_eq!(total(""), None);
    }

    #[test]
    fn counts_a_program_and_repeats_itself() {
        let Some(first) = Callgrind::program("/bin/true").instructions().unwrap() else {
            eprintln!("SKIP: counts_a_program_and_repeats_itself: valgrind is not installed");
            return;
        };
        let second = Callgrind::program("/bin/true").instructions().unwrap().unwrap();
        assert!(first > 1_000);
        assert!(first.abs_diff(second) * 100 < first, "{first} then {second}");
        let error = Callgrind::program("/bin/false").instructions().unwrap_err().to_string();
        assert!(error.contains("/bin/false"), "{error}");
    }
}
