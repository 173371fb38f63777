//! The scripted provider under a test: it starts itself again with that one.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use scripted_provider::Control;

const CHILD: &str = "EFA_TRANSPORT_TEST_SCRIPTED";

/// Runs `body` in a process that has the scripted provider, and whose only test is this one.
pub(crate) fn scripted(test: &str, body: impl FnOnce(Control)) {
    run(test, "scripted", &[], body);
}

/// The same, with a provider whose name makes its errors read as those of EFA cards: `scripted-efa`.
pub(crate) fn scripted_as_efa(test: &str, body: impl FnOnce(Control)) {
    run(test, "scripted-efa", &[(scripted_provider::AS_EFA, "1")], body);
}

fn run(test: &str, name: &str, with: &[(&str, &str)], body: impl FnOnce(Control)) {
    if std::env::var_os(CHILD).is_some() {
        let _ = fabric_safe::Hints::new().provider(name).discover();
        return body(Control::of_loaded_provider().expect("libfabric has loaded the provider"));
    }
    let executable = std::env::current_exe().expect("this program");
    let mut places = executable.ancestors().map(|dir| dir.join("libscripted_provider.so"));
    let provider: Option<PathBuf> = places.find(|path| path.is_file());
    let Some(provider) = provider.filter(|_| fabric_safe::Hints::new().discover().is_ok()) else {
        return eprintln!("SKIP: {test}: no libfabric, or libscripted_provider.so has not been built");
    };
    let folder = tempfile::tempdir().expect("a folder");
    std::os::unix::fs::symlink(provider, folder.path().join(Control::FILE)).expect("a link");
    let child = Command::new(executable)
        .args(["--exact", test, "--nocapture", "--test-threads=1"])
        .env(CHILD, "1")
        .envs(with.iter().copied())
        .env("FI_PROVIDER_PATH", folder.path())
        .env("FI_PROVIDER", name)
        .stdin(Stdio::null())
        .output()
        .expect("starting this program again");
    let said = String::from_utf8_lossy(&child.stdout);
    eprint!("{}", String::from_utf8_lossy(&child.stderr));
    assert!(child.status.success() && said.contains("1 passed"), "{test}: {}\n{said}", child.status);
}
