//! The documents' commands are run as they stand there: the quick start of README.md, and docs/testing-with-soft-efa.md.
//!
//! Each fenced block marked `sh` is one shell session, in an empty directory outside of this repository.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::path::Path;
use std::process::{Command, Stdio};
use support::{output, skip};

/// Longest time for one session.
const LIMIT: &str = "60";

/// The `sh` blocks of a text.
fn sessions(text: &str) -> Vec<String> {
    let blocks = text.split("```sh\n").skip(1);
    blocks.map(|block| block.split("```").next().unwrap_or_default().to_owned()).collect()
}

fn crate_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Runs the sessions of a document as somebody who has nothing but what the document says; gives what they said.
fn walk(test: &str, document: &Path) -> Vec<String> {
    let Ok(text) = std::fs::read_to_string(document) else {
        skip(test, &format!("{} is not here", document.display()));
        return Vec::new();
    };
    for tool in ["fi_info", "fi_pingpong"] {
        if Command::new(tool).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_err() {
            skip(test, &format!("no {tool} here (Debian: libfabric-bin)"));
            return Vec::new();
        }
    }
    let sessions = sessions(&text);
    assert!(!sessions.is_empty(), "{} has no commands", document.display());
    // Where `cargo install` would put it, outside of cargo's target directory: the program that cargo has built for this test.
    let root = tempfile::tempdir().unwrap();
    std::fs::copy(env!("CARGO_BIN_EXE_soft-efa"), root.path().join("soft-efa")).unwrap();
    // What its first run would build in the user's cache lies where the other tests have it: building again takes too long on a busy machine.
    let libraries = soft_efa::Libraries::build().unwrap();
    let mut path = vec![root.path().to_path_buf()];
    path.extend(std::env::split_paths(&std::env::var_os("PATH").unwrap()));
    let path = std::env::join_paths(path).unwrap();
    // The commands name no ports, so one session at a time, whatever runs the tests.
    let turn = std::fs::File::create(libraries.dir().join("documents.turn")).unwrap();
    // SAFETY: flock on a descriptor that we own; closing it gives the lock back.
    assert_eq!(unsafe { libc::flock(std::os::fd::AsRawFd::as_raw_fd(&turn), libc::LOCK_EX) }, 0);
    let run = |session: &str| {
        let folder = tempfile::tempdir().unwrap();
        let script = format!("set -euo pipefail\n{}", session.replace("cargo install soft-efa\n", ""));
        let mut command = Command::new("timeout");
        command
            .args(["--kill-after=5", LIMIT, "bash", "-c", &script])
            .current_dir(folder.path())
            .env("PATH", &path)
            .env("SOFT_EFA_BUILD_DIR", libraries.dir().parent().unwrap())
            .env_remove("SOFT_EFA_LIBRARY_DIR")
            .env_remove("CARGO_TARGET_DIR");
        let said = output(&mut command);
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        let errors = String::from_utf8_lossy(&said.stderr);
        assert!(said.status.success(), "{session}\nended with {}:\n{text}\n{errors}", said.status);
        text
    };
    sessions.iter().map(|session| run(session)).collect()
}

#[test]
fn a_stranger_gets_cards_with_the_quick_start() {
    let said = walk("a_stranger_gets_cards_with_the_quick_start", &crate_dir().join("README.md"));
    if let [quick_start] = &said[..] {
        // Bus and device of the first card and of the fourth, as fi_info names them.
        let profile = soft_efa::Profile::p5();
        for card in [0, 3] {
            assert!(quick_start.contains(&profile.card_name(card)), "{quick_start}");
        }
        assert!(quick_start.contains("usec/xfer"), "{quick_start}");
    } else {
        assert!(said.is_empty(), "one session");
    }
}

#[test]
fn the_commands_of_the_testing_document_run() {
    let document = crate_dir().join("../docs/testing-with-soft-efa.md");
    let said = walk("the_commands_of_the_testing_document_run", &document);
    if !said.is_empty() {
        assert!(said.iter().any(|text| text.contains("fail status=13 op=write nth=100")), "{said:?}");
        assert!(said.iter().any(|text| text.contains("\"ph\":\"X\"")), "a trace: {said:?}");
    }
}
