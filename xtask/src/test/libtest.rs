//! Runs tests with `cargo test` and reads the lines of Rust's own test harness.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use anyhow::{Context, Result, bail};

use super::{Tally, skips};
use crate::shell::Cmd;

pub(super) fn run(cmd: Cmd, filter: Option<&str>) -> Result<Tally> {
    let cmd = match filter {
        Some(filter) => cmd.arg(filter),
        None => cmd,
    };
    // The output of passing tests is shown to us, for its SKIP lines; [`Reader`] passes on the rest.
    let cmd = cmd.args(["--", "--show-output"]);
    let shown = cmd.to_string();
    let mut command = cmd.into_inner();
    let mut child =
        command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start `{shown}`"))?;
    let mut reader = Reader::default();
    for line in BufReader::new(child.stdout.take().context("no pipe from cargo test")?).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        if reader.line(&line) {
            println!("{line}");
        }
    }
    let status = child.wait()?;
    let tally = reader.tally();
    if !status.success() && tally.failed.is_empty() {
        bail!("`{shown}` ended with {status} although no test reported a failure");
    }
    Ok(tally)
}

/// Reads the harness' output line by line.
#[derive(Default)]
struct Reader {
    binary: usize,
    /// Per test: did it pass?
    results: BTreeMap<(usize, String), bool>,
    skips: BTreeSet<String>,
    skipping: BTreeSet<(usize, String)>,
    /// The test whose output is being read.
    section: Option<String>,
    in_successes: bool,
}

impl Reader {
    /// Takes one line; returns whether it is worth showing.
    fn line(&mut self, line: &str) -> bool {
        if line.starts_with("running ") && line.contains(" test") {
            self.binary += 1;
            self.section = None;
            self.in_successes = false;
            // Binaries without tests are not worth a line.
            return !line.starts_with("running 0");
        }
        if let Some((name, result)) = line.strip_prefix("test ").and_then(|rest| rest.rsplit_once(" ... ")) {
            let name = name.to_owned();
            if let Some(reason) = result.strip_prefix("ignored") {
                let reason = reason.trim_start_matches(", ");
                let reason = if reason.is_empty() { "marked as ignored" } else { reason };
                self.skips.insert(format!("{name}: {reason}"));
            } else {
                self.results.insert((self.binary, name), result.starts_with("ok"));
            }
            return true;
        }
        match line {
            "successes:" => self.in_successes = true,
            "failures:" => {
                self.in_successes = false;
                self.section = None;
            }
            _ => {}
        }
        if let Some(name) = line.strip_prefix("---- ").and_then(|rest| rest.strip_suffix(" stdout ----")) {
            self.section = Some(name.to_owned());
        }
        for skip in skips(line) {
            self.skips.insert(skip);
            if let Some(test) = &self.section {
                self.skipping.insert((self.binary, test.clone()));
            }
        }
        let noise = line.is_empty() || line == "successes:" || line.starts_with("test result: ok. 0 passed");
        !noise && (!self.in_successes || line.starts_with("test result:"))
    }

    fn tally(self) -> Tally {
        let mut tally = Tally { skipped: self.skips, ..Tally::default() };
        for (test, passed) in self.results {
            if !passed {
                tally.failed.insert(test.1);
            } else if !self.skipping.contains(&test) {
                tally.passed += 1;
            }
        }
        tally
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Tally, String) {
        let mut reader = Reader::default();
        let shown: Vec<_> = text.lines().filter(|line| reader.line(line)).collect();
        (reader.tally(), shown.join("\n"))
    }

    #[test]
    fn the_harness_output_is_counted() {
        let (tally, shown) = read(
            "
running 4 tests
test a ... ok
test b ... ok
test c ... FAILED
test d ... ignored, needs a card

successes:

---- a stdout ----
chatter

---- b stdout ----
SKIP: b: no libfabric


successes:
    a
    b

failures:

---- c stdout ----
assertion failed

failures:
    c

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s

running 1 test
test a ... ok

test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s
",
        );
        assert_eq!(tally.passed, 2, "a of both binaries, not b");
        assert_eq!(tally.failed.into_iter().collect::<Vec<_>>(), ["c"]);
        assert_eq!(tally.skipped.into_iter().collect::<Vec<_>>(), ["b: no libfabric", "d: needs a card"]);
        assert!(shown.contains("assertion failed") && shown.contains("test result: FAILED"));
        assert!(!shown.contains("chatter"));
    }
}
