//! Running `weft` as its users do: as a process.

#![allow(dead_code, clippy::unwrap_used)] // each test program uses a part of it; a test fails by panicking

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing in a test takes longer.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// What a run of `weft` left.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// Panics with everything that was said unless the status is this one.
    #[track_caller]
    pub(crate) fn expect(self, status: i32) -> Self {
        assert_eq!(self.status, status, "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {}", self.stdout))
    }
}

/// Variables of whoever runs the tests must not change what is tested.
pub(crate) fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if ["WEFT_", "MC_", "MOONCAKE_", "FI_", "NO_COLOR", "FABRIC_"]
            .iter()
            .any(|start| text.starts_with(start))
        {
            command.env_remove(&name);
        }
    }
    command.env("TERM", "xterm").stdin(Stdio::null())
}

/// The program.
pub(crate) fn weft() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_weft"));
    without_settings(&mut command);
    command
}

/// Runs it to its end.
pub(crate) fn run(command: &mut Command) -> Run {
    let output = command.output().unwrap();
    Run {
        status: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

/// Runs it with these arguments.
pub(crate) fn weft_with<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Run {
    run(weft().args(args))
}

/// A process that does not outlive its test.
pub(crate) struct Running {
    pub(crate) child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    /// Starts it; its first line must be JSON.
    pub(crate) fn start(command: &mut Command) -> (Self, serde_json::Value) {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        // A process that ends without a line closes the pipe, so this does not wait for ever.
        let first = lines.next().expect("it ended without a word").unwrap();
        let told = serde_json::from_str(&first).unwrap_or_else(|error| panic!("{error} in {first:?}"));
        (Self { child, lines }, told)
    }

    /// `weft serve` on a free port; its name.
    pub(crate) fn serve(command: &mut Command, args: &[&str]) -> (Self, String) {
        command.args(["serve", "--listen", "127.0.0.1:0", "--json"]).args(args);
        let (running, told) = Self::start(command);
        let name = told["name"].as_str().expect("a name").to_owned();
        (running, name)
    }

    /// Asks it to end, and waits for its status.
    pub(crate) fn terminate(mut self) -> i32 {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        wait(&mut self.child)
    }

    /// Ends it without a warning.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Errors mean that it has gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for its end.
pub(crate) fn wait(child: &mut Child) -> i32 {
    let start = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code().unwrap_or(-1);
        }
        assert!(start.elapsed() < PATIENCE, "a child does not come to an end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The libfabric of `cargo xtask libfabric`, if somebody has made one.
pub(crate) fn libfabric_2() -> Option<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target");
    let exe = std::env::current_exe().unwrap();
    let places = exe.ancestors().map(Path::to_path_buf).chain([workspace]);
    places.map(|dir| dir.join("libfabric-2.5.1/lib/libfabric.so.1")).find(|path| path.is_file())
}

/// Makes a command use this libfabric.
pub(crate) fn use_libfabric(command: &mut Command, library: &Path) {
    let dir = library.parent().unwrap();
    command.env("FABRIC_LIBRARY", library).env("LD_LIBRARY_PATH", dir);
    let providers = dir.join("libfabric");
    if providers.is_dir() {
        command.env("FI_PROVIDER_PATH", providers);
    }
}

/// Says that a test could not run.
pub(crate) fn skip(test: &str, reason: &str) {
    eprintln!("SKIP: {test}: {reason}");
}
