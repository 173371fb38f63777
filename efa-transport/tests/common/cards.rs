//! Software EFA cards under a test: it starts itself again on them.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use soft_efa::{Network, Profile, settings};

const CHILD: &str = "EFA_TRANSPORT_TEST_ON_CARDS";

/// The libfabric whose `efa` provider has device reads, device writes and `efa-direct`.
pub(crate) fn library() -> Option<PathBuf> {
    let executable = std::env::current_exe().ok()?;
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let mut places = executable.ancestors().map(Path::to_path_buf).chain([workspace]);
    places.find_map(|dir| Some(dir.join("libfabric-2.5.1/lib/libfabric.so.1")).filter(|path| path.is_file()))
}

/// The variables that make a process on cards use the system's older libfabric, if that is one: no device writes, no `efa-direct`.
pub(crate) fn older_library() -> Option<Vec<(&'static str, String)>> {
    let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
    let older = dirs.iter().map(Path::new).find(|dir| dir.join("libfabric.so.1.20.0").is_file())?;
    let newer = library()?;
    let path = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
    let path: Vec<&str> = path.split(':').filter(|dir| Some(Path::new(dir)) != newer.parent()).collect();
    Some(vec![
        ("FABRIC_LIBRARY", older.join("libfabric.so.1").display().to_string()),
        ("LD_LIBRARY_PATH", path.join(":")),
        // Nothing else is built in there.
        ("FI_PROVIDER_PATH", String::new()),
    ])
}

/// Runs `body` in a process on `nics` cards of a profile; the test program starts itself again, with the name of the test.
/// Targets that `body` starts are further hosts of the same network.
pub(crate) fn on_cards(test: &str, nics: usize, profile: &str, with: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var_os(CHILD).is_some() {
        return body();
    }
    let Some(library) = library() else {
        return eprintln!("SKIP: {test}: no libfabric 2.5.1 here; `cargo xtask libfabric` makes one");
    };
    let profile = Profile::named(profile).expect("a profile of soft-efa");
    let mut network = match Network::new(nics, profile) {
        Ok(network) => network,
        Err(error) => return eprintln!("SKIP: {test}: {error}"),
    };
    network.redirect(false);
    for (name, value) in with {
        network.set(name, value);
    }
    let dir = library.parent().expect("a file in a folder");
    let mut child = std::process::Command::new(std::env::current_exe().expect("this program"));
    child
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .env("FABRIC_LIBRARY", &library)
        .env("LD_LIBRARY_PATH", dir)
        .env("FI_PROVIDER_PATH", dir.join("libfabric"))
        .env("FI_PROVIDER", "efa")
        .stdin(Stdio::null());
    network.prepare(&mut child);
    let output = child.output().expect("starting this program again");
    let said = String::from_utf8_lossy(&output.stdout);
    eprint!("{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{test} on {nics} cards: {}\n{said}", output.status);
    assert!(said.contains("1 passed"), "the child ran no test called {test}:\n{said}");
}

/// Tells the network what shall go wrong; in the child only.
pub(crate) fn control(line: &str) -> String {
    let dir = std::env::var_os(settings::DIR).expect("on cards");
    soft_efa::control::command(Path::new(&dir), line).unwrap_or_else(|error| panic!("{line}: {error}"))
}
