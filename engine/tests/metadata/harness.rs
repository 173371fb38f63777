//! Starts the servers, waits for things to happen, and looks for what a machine lacks.
#![allow(dead_code)] // each test program uses its part

use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use engine::metadata::{Directory, Options};
use tempfile::TempDir;

/// Short leases, so that the tests see them end; etcd has none shorter.
pub(crate) const TTL: Duration = Duration::from_secs(2);

/// How much later than a lease an entry may go: etcd looks every half second, and the machine may be busy.
pub(crate) const SLACK: Duration = Duration::from_secs(8);

pub(crate) fn options() -> Options {
    Options { ttl: TTL, cluster: Some("test".into()), ..Options::default() }
}

pub(crate) fn directory(url: &str) -> Directory {
    Directory::connect(url, options()).unwrap().unwrap()
}

/// A program that serves metadata, killed at the end.
pub(crate) struct Server {
    child: Child,
    program: &'static str,
    arguments: Vec<String>,
    pub(crate) port: u16,
    // Last, so that it outlives the process.
    dir: TempDir,
}

impl Server {
    /// `None`, with a line that says why, where the program is not installed.
    pub(crate) fn start(
        test: &str,
        program: &'static str,
        arguments: fn(u16, &str) -> Vec<String>,
    ) -> Option<Self> {
        Self::start_with(test, program, arguments)
    }

    pub(crate) fn start_with(
        test: &str,
        program: &'static str,
        arguments: impl Fn(u16, &str) -> Vec<String>,
    ) -> Option<Self> {
        if !Command::new(program).arg("--version").stdout(Stdio::null()).status().is_ok_and(|s| s.success()) {
            eprintln!("SKIP: {test}: {program} is not installed; `cargo xtask setup` installs it");
            return None;
        }
        // A port that is free now may be taken before the server has it: then it ends, and another one is tried.
        for _ in 0..5 {
            let dir = TempDir::new().unwrap();
            let port = free_port();
            let arguments = arguments(port, dir.path().to_str().unwrap());
            let child = run(program, &arguments);
            let mut server = Self { child, program, arguments, port, dir };
            if server.is_up() {
                return Some(server);
            }
        }
        panic!("{program} does not start");
    }

    fn is_up(&mut self) -> bool {
        let addr = SocketAddr::from(([127, 0, 0, 1], self.port));
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            if std::net::TcpStream::connect(addr).is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }

    /// Ends it as a crash does.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again on the same port, with nothing of what it knew.
    pub(crate) fn restart_empty(&mut self) {
        for entry in std::fs::read_dir(self.dir.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap()
            } else {
                std::fs::remove_file(path).unwrap()
            }
        }
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            self.child = run(self.program, &self.arguments);
            if self.is_up() {
                return;
            }
            assert!(Instant::now() < end, "{} does not start again", self.program);
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An etcd of one member.
pub(crate) fn etcd(test: &str) -> Option<Server> {
    Server::start(test, "etcd", |port, dir| {
        let (client, peer) =
            (format!("http://127.0.0.1:{port}"), format!("http://127.0.0.1:{}", free_port()));
        [
            ["--name", "weft-test"],
            ["--data-dir", dir],
            ["--listen-client-urls", &client],
            ["--advertise-client-urls", &client],
            ["--listen-peer-urls", &peer],
            ["--initial-advertise-peer-urls", &peer],
            ["--initial-cluster", &format!("weft-test={peer}")],
            ["--log-level", "error"],
        ]
        .iter()
        .flatten()
        .map(|&argument| argument.to_owned())
        .collect()
    })
}

fn run(program: &str, arguments: &[String]) -> Child {
    Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A port that nobody listens on.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Asks until the answer is yes; panics if it is not within `limit`.
pub(crate) fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < limit, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
    begun.elapsed()
}
