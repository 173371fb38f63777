//! Where the tests find libfabrics of different versions.

#![allow(dead_code)] // each test program uses its part
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::path::{Path, PathBuf};

/// Says on stderr that a test could not run here.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("SKIP: {test}: {reason}");
}

/// Debian 12's libfabric 1.17.
pub(crate) fn library_1_17(test: &str) -> Option<PathBuf> {
    let places = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let found = places.iter().map(|dir| Path::new(dir).join("libfabric.so.1")).find(|path| {
        // The real name carries the interface number: 1.20 is libfabric 1.17.
        let real = path.canonicalize().unwrap_or_default();
        real.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libfabric.so.1.20."))
    });
    if found.is_none() {
        skip(test, "the system has no libfabric 1.17 (Debian 12: libfabric1)");
    }
    found
}

/// The libfabric 2.5.1 that `cargo xtask libfabric` puts under the build directory.
pub(crate) fn library_2_5(test: &str) -> Option<PathBuf> {
    let executable = std::env::current_exe().unwrap_or_default();
    let found = executable.ancestors().map(|dir| dir.join("libfabric-2.5.1/lib/libfabric.so.1"));
    let found = found.into_iter().find(|path| path.is_file());
    if found.is_none() {
        skip(test, "no libfabric 2.5.1; run `cargo xtask libfabric` first");
    }
    found
}

const CHILD_OF: &str = "FABRIC_SYS_TEST_LIBRARY";

/// Runs the body once per libfabric that is there, each time in a process of its own: the test program calls itself.
pub(crate) fn on_every_library(test: &str, body: impl FnOnce(&'static fabric_sys::Library)) {
    if std::env::var_os(CHILD_OF).is_some() {
        return body(fabric_sys::load().unwrap());
    }
    if cfg!(feature = "linked") {
        return body(fabric_sys::load().unwrap());
    }
    for library in [library_1_17(test), library_2_5(test)].into_iter().flatten() {
        let providers = library.parent().unwrap().join("libfabric");
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD_OF, "1");
        child.env(fabric_sys::LIBRARY_VARIABLE, &library).env_remove("LD_LIBRARY_PATH");
        if providers.is_dir() {
            child.env("FI_PROVIDER_PATH", providers);
        } else {
            child.env_remove("FI_PROVIDER_PATH");
        }
        let output = child.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        eprint!(
            "{}",
            err.lines()
                .filter(|line| line.starts_with("SKIP: "))
                .map(|l| format!("{l}\n"))
                .collect::<String>()
        );
        assert!(output.status.success(), "on {}: {}\n{out}\n{err}", library.display(), output.status);
        assert!(out.contains("1 passed"), "the child ran no test called {test}:\n{out}");
    }
}
