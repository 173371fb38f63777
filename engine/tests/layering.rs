//! What the crate pulls in: without default features it is TCP alone.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::process::Command;

/// Names of everything that ends up in a program that uses the crate with these features.
fn pulled_in(features: &[&str]) -> Vec<String> {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml");
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--quiet",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
            "--format",
            "{p}",
        ])
        .args(["--manifest-path", manifest])
        .args(features)
        .output()
        .unwrap();
    assert!(tree.status.success(), "{}", String::from_utf8_lossy(&tree.stderr));
    let names = String::from_utf8(tree.stdout).unwrap();
    names.lines().filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
}

fn none_of(features: &[&str], never: &[&str]) {
    let names = pulled_in(features);
    assert!(names.iter().any(|name| name == "tcp-transport"), "{names:?}");
    for name in names {
        assert!(!never.iter().any(|beginning| name.starts_with(beginning)), "{features:?} pull in {name}");
    }
}

const LIBFABRIC: &[&str] = &["fabric-", "efa-", "ofi-libfabric", "libfabric"];
const CUDA: &[&str] = &["cudarc", "cust"];
const RUNTIMES: &[&str] = &["tokio", "async-std", "smol", "futures-executor", "hyper"];

#[test]
fn without_default_features_it_is_tcp_alone() {
    none_of(&["--no-default-features"], &[LIBFABRIC, CUDA, RUNTIMES].concat());
}

#[test]
fn by_default_it_pulls_in_no_runtime_and_no_cuda() {
    none_of(&[], &[CUDA, RUNTIMES].concat());
    assert!(pulled_in(&[]).iter().any(|name| name == "efa-transport"), "this test looks at the wrong tree");
}
