//! The examples run, on every libfabric, and are as short as promised.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::path::{Path, PathBuf};
use std::process::Command;

use support::{libraries, skip};

/// The program that cargo has built of an example, beside the tests.
fn program(name: &str) -> PathBuf {
    let executable = std::env::current_exe().unwrap();
    let found = executable.ancestors().map(|dir| dir.join("examples").join(name)).find(|path| path.is_file());
    found.unwrap_or_else(|| panic!("no example {name}: cargo builds the examples together with the tests"))
}

/// Runs an example on every libfabric, with every provider; what it says if it can do without a network card.
fn said(test: &str, example: &str, providers: &[&str], more: &[&str]) -> Vec<(String, String)> {
    let all = libraries::all();
    if all.is_empty() {
        skip(test, "no libfabric here");
    }
    let mut said = Vec::new();
    for library in all {
        for provider in providers {
            let mut command = Command::new(program(example));
            command.arg(provider).args(more);
            library.choose(&mut command);
            let output = command.output().unwrap();
            let (out, err) =
                (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            if err.contains("no such provider here") {
                continue;
            }
            assert!(output.status.success(), "{example} {provider} on {}:\n{out}{err}", library.name);
            said.push((format!("{provider} on {}", library.name), out.into_owned()));
        }
    }
    said
}

#[test]
fn info_lists_what_is_there() {
    for (place, said) in said("info_lists_what_is_there", "info", &["--all", "tcp;ofi_rxm"], &[]) {
        for word in ["libfabric ", "fabric  ", "domain  ", "capabilities  ", "progress  "] {
            assert!(said.contains(word), "{place} without {word:?}:\n{said}");
        }
    }
}

#[test]
fn rma_writes_and_reads_back() {
    for (place, said) in said("rma_writes_and_reads_back", "rma", &["tcp;ofi_rxm", "net", "sockets"], &[]) {
        assert!(said.contains("\"a thread through the fabric\" came back"), "{place}:\n{said}");
    }
}

#[test]
fn pingpong_says_how_long_it_takes() {
    let providers = ["tcp", "tcp;ofi_rxm", "net", "shm", "sockets"];
    for (place, said) in said("pingpong_says_how_long_it_takes", "pingpong", &providers, &["100", "256"]) {
        let time = said.rsplit_once("to and fro, ").and_then(|(_, rest)| rest.strip_suffix(" µs each way\n"));
        assert!(time.unwrap().parse::<f64>().unwrap() > 0.0, "{place}:\n{said}");
        assert!(said.contains("100 times 256 bytes"), "{place}:\n{said}");
    }
}

#[test]
fn each_is_shorter_than_a_hundred_lines() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples");
    for name in ["info.rs", "pingpong.rs", "rma.rs"] {
        let lines = std::fs::read_to_string(folder.join(name)).unwrap().lines().count();
        assert!(lines < 100, "{name} has {lines} lines");
    }
}
