//! What the tests share: libfabrics to test with, children that run on software cards, and a node of fabric-safe in them.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part of it; a test fails by panicking

pub(crate) mod node;
pub(crate) mod valgrind;
pub(crate) mod verbs;

use soft_efa::{Network, Profile};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// Nothing in a test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(90);

/// Says that a test could not run.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("SKIP: {test}: {reason}");
}

/// A libfabric.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    pub(crate) name: &'static str,
    path: PathBuf,
}

impl Library {
    /// Makes a command use it, by the loader's path and by fabric-sys' variable.
    pub(crate) fn choose(&self, command: &mut Command) {
        let dir = self.path.parent().unwrap();
        command.env("FABRIC_LIBRARY", &self.path).env("LD_LIBRARY_PATH", dir);
        let providers = dir.join("libfabric");
        if providers.is_dir() {
            command.env("FI_PROVIDER_PATH", providers);
        } else {
            command.env_remove("FI_PROVIDER_PATH");
        }
    }

    /// Whether it is 2.x: device writes, the fabric `efa-direct`.
    pub(crate) fn is_2(&self) -> bool {
        self.name == "2.5.1"
    }
}

/// The system's libfabric, if it has an efa provider, and the one of `cargo xtask libfabric`.
pub(crate) fn libraries() -> Vec<Library> {
    let mut found = Vec::new();
    let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64"];
    if let Some(path) =
        dirs.iter().map(|dir| Path::new(dir).join("libfabric.so.1")).find(|path| path.is_file())
    {
        found.push(Library { name: "1.17", path });
    }
    let exe = std::env::current_exe().unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let places = exe.ancestors().map(Path::to_path_buf).chain([workspace]);
    let own = places.map(|dir| dir.join("libfabric-2.5.1/lib/libfabric.so.1")).find(|path| path.is_file());
    if let Some(path) = own {
        found.push(Library { name: "2.5.1", path });
    }
    found
}

/// The libfabric 2.5.1, or a line that says that it is not there.
pub(crate) fn library_2(test: &str) -> Option<Library> {
    let found = libraries().into_iter().find(Library::is_2);
    if found.is_none() {
        skip(test, "no libfabric 2.5.1 here; `cargo xtask libfabric` makes one");
    }
    found
}

/// A network, or a line that says why there is none.
pub(crate) fn network(nics: usize, profile: &str) -> Network {
    let mut network =
        Network::new(nics, Profile::named(profile).unwrap()).unwrap_or_else(|error| panic!("{error}"));
    // Test programs of Rust have no use for the preload library, and start faster without.
    network.redirect(false);
    network
}

/// A process that does not outlive the test.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    /// Waits for its end.
    pub(crate) fn wait(&mut self) -> ExitStatus {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "a child does not come to an end");
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command to its end and keeps what it said.
pub(crate) fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

const ROLE: &str = "SOFT_EFA_TEST_ROLE";
const PLAY: &str = "SOFT_EFA_TEST_PLAY";
const LINE: &str = "SOFT_EFA_TEST_LINE";
const FABRIC: &str = "SOFT_EFA_TEST_FABRIC";

/// What a child has been told.
pub(crate) struct Part {
    pub(crate) play: String,
    pub(crate) first: bool,
    pub(crate) fabric: String,
    pub(crate) line: PathBuf,
}

impl Part {
    /// The part of this process, or `None` if it is the test itself.
    pub(crate) fn mine() -> Option<Part> {
        let role = std::env::var(ROLE).ok()?;
        Some(Part {
            play: std::env::var(PLAY).unwrap(),
            first: role == "first",
            fabric: std::env::var(FABRIC).unwrap(),
            line: std::env::var_os(LINE).unwrap().into(),
        })
    }
}

/// A child of this test program that plays a part in the test `child`.
pub(crate) fn player(
    network: &Network,
    library: &Library,
    fabric: &str,
    play: &str,
    first: bool,
    line: &Path,
) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command
        .env(ROLE, if first { "first" } else { "second" })
        .env(PLAY, play)
        .env(LINE, line)
        .env(FABRIC, fabric);
    library.choose(&mut command);
    network.prepare(&mut command);
    // The way over the card, not the provider's shared memory: each process is a host of its own.
    command.env("FI_EFA_ENABLE_SHM_TRANSFER", "0").stdin(Stdio::null());
    command
}

/// A child that plays a part in which there is no libfabric.
pub(crate) fn without_libfabric(network: &Network, play: &str, first: bool, line: &Path) -> Command {
    let command = Command::new(std::env::current_exe().unwrap());
    player_without_libfabric(command, network, play, first, line)
}

/// As `without_libfabric`, of a command that starts this program in a way of its own.
pub(crate) fn player_without_libfabric(
    mut command: Command,
    network: &Network,
    play: &str,
    first: bool,
    line: &Path,
) -> Command {
    command.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
    command
        .env(ROLE, if first { "first" } else { "second" })
        .env(PLAY, play)
        .env(LINE, line)
        .env(FABRIC, "none");
    network.prepare(&mut command);
    command.stdin(Stdio::null());
    command
}

/// Runs a play of one process that needs no libfabric, and gives what it has written to its line.
pub(crate) fn alone(network: &Network, play: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let line = folder.path().join("line");
    let ended = Running(without_libfabric(network, play, true, &line).spawn().unwrap()).wait();
    assert_eq!(ended.code(), Some(0), "{play} with seed {}", network.seed());
    std::fs::read_to_string(line).unwrap_or_default()
}

/// Runs a play of two processes; both must end well.
pub(crate) fn two(network: &Network, library: &Library, fabric: &str, play: &str) {
    let folder = tempfile::tempdir().unwrap();
    let line = folder.path().join("line");
    let start = |first| Running(player(network, library, fabric, play, first, &line).spawn().unwrap());
    let (mut first, mut second) = (start(true), start(false));
    let ends = (first.wait().code(), second.wait().code());
    assert_eq!(
        ends,
        (Some(0), Some(0)),
        "{play} on {fabric} of libfabric {}, seed {}",
        library.name,
        network.seed()
    );
}

/// Bytes that depend on a number and on where they are.
pub(crate) fn pattern(number: u64, length: usize) -> Vec<u8> {
    let mut word = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        bytes.extend_from_slice(&word.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}
