//! fabric-safe's own two-process suite, on software cards.
//!
//! It is another package's test program, so it is not built from here: what the same build has left beside this program is run.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::path::PathBuf;
use std::process::Command;
use support::{libraries, network, output, skip};

/// The newest test program `two_processes` beside this one that has the tests of the efa provider.
fn suite() -> Option<PathBuf> {
    let dir = std::env::current_exe().unwrap().parent()?.to_path_buf();
    let mut found: Vec<_> = std::fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("two_processes-"))
        .filter(|entry| entry.path().extension().is_none())
        .filter_map(|entry| Some((entry.metadata().ok()?.modified().ok()?, entry.path())))
        .collect();
    found.sort();
    found.into_iter().rev().map(|(_, path)| path).find(|path| {
        let said = output(Command::new(path).arg("--list"));
        String::from_utf8_lossy(&said.stdout).lines().any(|line| line == "efa_direct: test")
    })
}

#[test]
fn fabric_safes_suite_runs_on_the_cards() {
    let test = "fabric_safes_suite_runs_on_the_cards";
    let Some(suite) = suite() else {
        return skip(test, "not built; `cargo test -p fabric-safe --no-run` builds it");
    };
    let libraries = libraries();
    if libraries.is_empty() {
        return skip(test, "no libfabric here");
    }
    let network = network(2, "p5");
    for library in libraries {
        let tests: &[&str] = if library.is_2() { &["efa", "efa_direct"] } else { &["efa"] };
        for name in tests {
            let mut command = Command::new(&suite);
            command.args(["--exact", name, "--nocapture"]).env_remove("FABRIC_TEST_PROVIDERS");
            library.choose(&mut command);
            network.prepare(&mut command);
            let said = output(&mut command);
            let err = String::from_utf8_lossy(&said.stderr);
            assert!(said.status.success(), "{name} on libfabric {}:\n{err}", library.name);
            // A provider that is not there is skipped over there, and would pass for a success here.
            assert!(
                err.contains(&format!("{name}: well on")),
                "{name} on libfabric {} did nothing:\n{err}",
                library.name
            );
        }
    }
}
