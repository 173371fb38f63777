//! The command line: what is refused, and with which exit status. The soak itself runs in CI.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::process::{Command, Output};

fn soak(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_weft-soak")).args(args).output().unwrap()
}

#[test]
fn wrong_usage_is_status_two() {
    for args in [&["--minutes", "soon"][..], &["--minutes", "-1"], &["--minutes", "0.01"], &["--nonsense"]] {
        let output = soak(args);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {output:?}");
        assert!(!output.stderr.is_empty(), "{args:?}");
    }
}

#[test]
fn a_build_without_bugs_says_so() {
    if cfg!(feature = "planted") {
        return eprintln!("SKIP: a_build_without_bugs_says_so: this build has them");
    }
    let output = soak(&["--planted", "late-write"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stderr).contains("--features planted"));
}

#[test]
fn help_names_every_option() {
    let help = String::from_utf8(soak(&["--help"]).stdout).unwrap();
    for option in ["--minutes", "--seed", "--no-cards", "--planted"] {
        assert!(help.contains(option), "{option} in {help}");
    }
    assert!(!help.contains("node "), "the processes' own command is hidden");
}
