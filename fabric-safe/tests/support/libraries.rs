//! Which libfabrics and which of their providers to test.
//!
//! Without settings: the system's libfabric and the one that `cargo xtask libfabric` makes, each with every provider of the
//! list. `FABRIC_TEST_PROVIDERS` (comma-separated, `provider` or `provider/fabric`, e.g. `efa/efa-direct`) limits the
//! providers; with `FABRIC_LIBRARY` set, that library alone is tested, in the environment as it is.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A libfabric to test.
#[derive(Debug, Clone)]
pub(crate) struct Library {
    pub(crate) name: String,
    /// `None`: whatever the environment says.
    path: Option<PathBuf>,
}

impl Library {
    /// Makes a child process use it.
    pub(crate) fn choose(&self, child: &mut Command) {
        let Some(path) = &self.path else { return };
        child.env("FABRIC_LIBRARY", path).env_remove("LD_LIBRARY_PATH");
        let providers = path.parent().unwrap().join("libfabric");
        if providers.is_dir() {
            child.env("FI_PROVIDER_PATH", providers);
        } else {
            child.env_remove("FI_PROVIDER_PATH");
        }
    }
}

/// All that are there.
pub(crate) fn all() -> Vec<Library> {
    if std::env::var_os("FABRIC_LIBRARY").is_some() {
        return vec![Library { name: "the environment's libfabric".into(), path: None }];
    }
    let mut libraries = Vec::new();
    let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib"];
    let system = dirs.iter().map(|dir| Path::new(dir).join("libfabric.so.1")).find(|path| path.is_file());
    if let Some(path) = system {
        libraries.push(Library { name: "the system's libfabric".into(), path: Some(path) });
    }
    let executable = std::env::current_exe().unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let places = executable.ancestors().map(Path::to_path_buf).chain([workspace]);
    let own = places.map(|dir| dir.join("libfabric-2.5.1/lib/libfabric.so.1")).find(|path| path.is_file());
    if let Some(path) = own {
        libraries.push(Library { name: "libfabric 2.5.1".into(), path: Some(path) });
    }
    libraries
}

/// Whether `FABRIC_TEST_PROVIDERS` lets a provider (`name` or `name/fabric`) be tested.
pub(crate) fn wanted(provider: &str) -> bool {
    match std::env::var("FABRIC_TEST_PROVIDERS") {
        Ok(list) => list.split(',').any(|entry| entry.trim() == provider),
        Err(_) => true,
    }
}

const CHILD: &str = "FABRIC_SAFE_TEST_CHILD";

/// Runs `body` once per libfabric, each time in a process of its own: the test program calls itself with the name of the test.
pub(crate) fn on_each(test: &str, body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let libraries = all();
    if libraries.is_empty() {
        return super::skip(test, "no libfabric here");
    }
    for library in libraries {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(CHILD, "1");
        library.choose(&mut child);
        let output = child.output().unwrap();
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        eprint!("{err}");
        assert!(output.status.success(), "{test} on {}: {}\n{out}", library.name, output.status);
        assert!(out.contains("1 passed"), "the child ran no test called {test}:\n{out}");
    }
}

/// The providers to test in one process, of those that are here: the best entry of each.
pub(crate) fn providers(test: &str) -> Vec<(&'static str, fabric_safe::Info)> {
    let names = ["tcp", "tcp;ofi_rxm", "net", "shm", "sockets", "udp;ofi_rxd", "efa/efa", "efa/efa-direct"];
    let found: Vec<_> = names
        .into_iter()
        .filter(|name| wanted(name))
        .filter_map(|name| Some((name, super::node::discover(name)?)))
        .collect();
    if found.is_empty() {
        super::skip(test, "no provider here that may be tested");
    }
    found
}
