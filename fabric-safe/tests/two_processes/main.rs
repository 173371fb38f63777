//! Every operation between two processes, with the data checked, on every provider of every libfabric that is here.
//!
//! On software EFA cards it is run by soft-efa's test `fabric_safe`. `FABRIC_TEST_LARGE=1` adds transfers of 1 GiB and says how long the steps take.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod endings;
mod side;
mod steps;
#[path = "../support/mod.rs"]
mod support;

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use support::line::{Line, PATIENCE};
use support::node::{Node, discover};
use support::{libraries, skip, without};

use side::Side;

const ROLE: &str = "FABRIC_SAFE_TEST_ROLE";
const LINE: &str = "FABRIC_SAFE_TEST_LINE";
const PROVIDER: &str = "FABRIC_SAFE_TEST_PROVIDER";
const PLAY: &str = "FABRIC_SAFE_TEST_PLAY";
/// Every operation, with the data checked, then closing with receives outstanding.
const EVERYTHING: &str = "everything";
/// A key that nobody gave out: the memory stays as it is, and the operation ends, at the latest when its endpoint is closed.
const BAD_KEY: &str = "a bad key";
/// One side closes its endpoint in the middle of its own traffic: each operation ends once, and the other side lives on.
const PARTING: &str = "parting";
const PLAYS: [&str; 3] = [EVERYTHING, BAD_KEY, PARTING];

/// What a child exits with when its provider is not there.
const ABSENT: i32 = 77;

macro_rules! providers {
    ($($test:ident: $provider:literal,)*) => {
        $(
            #[test]
            fn $test() {
                two_processes(stringify!($test), $provider);
            }
        )*
    };
}

providers! {
    tcp: "tcp",
    tcp_rxm: "tcp;ofi_rxm",
    net: "net",
    shm: "shm",
    sockets: "sockets",
    udp_rxd: "udp;ofi_rxd",
    efa: "efa/efa",
    efa_direct: "efa/efa-direct",
}

/// Runs both roles of every play on every libfabric.
fn two_processes(test: &str, provider: &str) {
    if !libraries::wanted(provider) {
        return skip(test, "not in FABRIC_TEST_PROVIDERS");
    }
    let libraries = libraries::all();
    if libraries.is_empty() {
        return skip(test, "no libfabric here");
    }
    // One pair at a time: two processes that wait for each other are enough for a small machine.
    static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _one = ONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let mut places = Vec::new();
    for (library, play) in libraries.iter().flat_map(|library| PLAYS.map(|play| (library, play))) {
        let folder = tempfile::tempdir().unwrap();
        let start = |role: &str| {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "child", "--nocapture", "--test-threads=1"]);
            child
                .env(ROLE, role)
                .env(LINE, folder.path().join("line"))
                .env(PROVIDER, provider)
                .env(PLAY, play);
            library.choose(&mut child);
            Running(child.stdin(Stdio::null()).stdout(Stdio::null()).spawn().unwrap())
        };
        let (mut target, mut initiator) = (start("target"), start("initiator"));
        let (first, second) = (initiator.wait(), target.wait());
        if first == Some(ABSENT) && second == Some(ABSENT) {
            continue;
        }
        assert_eq!((first, second), (Some(0), Some(0)), "{play}: {provider} on {}", library.name);
        places.extend((play == EVERYTHING).then_some(&library.name));
    }
    if places.is_empty() {
        skip(test, &format!("no libfabric here has provider {provider}"));
    } else {
        eprintln!("{test}: well on {places:?}");
    }
}

/// A child process that does not outlive the test.
struct Running(Child);

impl Running {
    fn wait(&mut self) -> Option<i32> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status.code();
            }
            assert!(start.elapsed() < 2 * PATIENCE, "a child does not come to an end");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Both roles; does nothing unless started by `two_processes`.
#[test]
fn child() {
    let Some(role) = std::env::var_os(ROLE) else { return };
    let provider = std::env::var(PROVIDER).unwrap();
    let path = PathBuf::from(std::env::var_os(LINE).unwrap());
    let Some(info) = discover(&provider) else { std::process::exit(ABSENT) };
    let target = role == "target";
    let line = if target { Line::listen(&path) } else { Line::call(&path) };
    let node = Node::open(&info);
    let mut side = Side::meet(node, line, info.capabilities(), target, &provider);
    match std::env::var(PLAY).unwrap().as_str() {
        EVERYTHING => side.everything(&provider),
        // The efa provider of 1.17 sometimes follows a wrong pointer in the target when somebody comes with a bad key, or goes in
        // the middle of its protocol.
        BAD_KEY | PARTING if provider == "efa/efa" && info.provider_version().0 < 200 => {
            without(&std::env::var(PLAY).unwrap(), &provider, "1.17's crashes");
        }
        BAD_KEY => side.bad_key(&provider),
        PARTING => side.parting(),
        other => panic!("no play {other}"),
    }
    drop(side);
    assert_eq!(fabric_safe::leaked_objects(), 0);
}
