//! The demo as its user starts it, and what happens when one of its processes dies.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

const DEMO: &str = env!("CARGO_BIN_EXE_weft-demo");

fn demo(args: &[&str], env: &[(&str, &str)]) -> Output {
    Command::new(DEMO).args(args).envs(env.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Small pools, so that pages are reused early; one short run for each path.
/// The deadline is for machines that have much else to do.
const SMALL: [&str; 10] = [
    "--seconds",
    "0.5",
    "--model",
    "deepseek-v3",
    "--pool-mib",
    "128",
    "--staging-mib",
    "16",
    "--deadline",
    "60",
];

/// Six short prompts that share their first block, so that even the shortest run reads.
fn short_prompts() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for prompt in 1..=6 {
        let line = format!(
            r#"{{"timestamp": {prompt}, "input_length": 900, "output_length": 9, "hash_ids": [0, {prompt}]}}"#
        );
        writeln!(file, "{line}").unwrap();
    }
    file
}

#[test]
fn tcp_traffic_is_played_and_verified() {
    let prompts = short_prompts();
    let trace = ["--trace", prompts.path().to_str().unwrap(), "--transport", "tcp"];
    let output = demo(&[&SMALL[..], &trace].concat(), &[]);
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for needed in ["tcp/net", "tcp/host", "write", "read", "every byte"] {
        assert!(stdout.contains(needed), "no {needed:?} in\n{stdout}");
    }
    // Not a terminal: no bar, no control characters.
    assert!(!stdout.contains('\u{1b}') && !stderr.contains('\u{1b}'), "{stdout}{stderr}");
}

#[test]
fn a_trace_file_is_replayed_with_sharded_pages() {
    let file = short_prompts();
    let path = file.path().to_str().unwrap();
    let args = [
        "--seconds",
        "0.5",
        "--model",
        "llama-3.1-70b",
        "--tp",
        "8",
        "--trace",
        path,
        "--pool-mib",
        "512",
        "--transport",
        "tcp",
    ];
    let output = demo(&args, &[]);
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", text(&output.stderr));
    assert!(stdout.contains("6 requests") && stdout.contains("8 KiB"), "{stdout}");
}

#[test]
fn without_libfabric_tcp_runs_and_the_reason_is_printed() {
    // Every place where a libfabric could be found is closed: the loader takes no other file than this one.
    let missing = [("FABRIC_LIBRARY", "/nonexistent/libfabric.so.1")];
    let output = demo(&SMALL, &missing);
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{stdout}\n{}", text(&output.stderr));
    assert!(stdout.contains("tcp/net") && stdout.contains("not used: "), "{stdout}");
    assert!(stdout.contains("libfabric"), "{stdout}");

    let output = demo(&[&SMALL[..], &["--transport", "libfabric"]].concat(), &missing);
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
}

#[test]
fn wrong_usage_is_exit_status_2_and_says_what_is_right() {
    for (args, needed) in [
        (&["--model", "gpt-9"][..], "llama-3.1-70b"),
        (&["--page-tokens", "48"], "must divide"),
        (&["--tp", "3", "--model", "llama-3.1-70b"], "KV heads"),
        (&["--seconds=-1"], "seconds"),
        (&["--no-such-flag"], "--help"),
    ] {
        let output = demo(args, &[]);
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", text(&output.stderr));
        assert!(text(&output.stderr).contains(needed), "{args:?}: {}", text(&output.stderr));
    }
}

/// A child that is ended with its test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn start(role: &str, spec: &str) -> (Ended, mpsc::Receiver<String>) {
    let mut child = Command::new(DEMO)
        .args([role, spec])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = mpsc::channel();
    std::thread::spawn(move || stdout.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    (Ended(child), lines)
}

/// Kills the target while traffic runs: the initiator ends within its deadline, with an error that names the peer.
fn killed_target(transport: &str) {
    let spec = |target: &str| {
        format!(
            r#"{{"transport": {transport}, "models": ["deepseek-v3"], "page_tokens": 16, "tp": 1,
                "traffic": {{"secs": 60, "nanos": 0}}, "deadline": {{"secs": 3, "nanos": 0}},
                "pool_bytes": 134217728, "staging_bytes": 33554432, "trace": null, "seed": 1, "target": "{target}"}}"#
        )
    };
    let (mut target, lines) = start("target", &spec(""));
    let patience = Duration::from_secs(60);
    let listening = lines.recv_timeout(patience).unwrap();
    let name = listening.split('"').find(|part| part.contains("127.0.0.1:")).unwrap().to_owned();
    let (mut initiator, lines) = start("initiator", &spec(&name));
    while !lines.recv_timeout(patience).unwrap().contains("Progress") {}

    target.0.kill().unwrap();
    target.0.wait().unwrap();
    let killed = Instant::now();
    let mut words = String::new();
    initiator.0.stderr.take().unwrap().read_to_string(&mut words).unwrap();
    let status = initiator.0.wait().unwrap();
    // The request's deadline or that of the target's answer, whichever was running: not the traffic's end. How much longer than the six
    // seconds it takes is the machine's affair.
    assert!(killed.elapsed() < Duration::from_secs(45), "took {:?}", killed.elapsed());
    assert_eq!(status.code(), Some(1), "{words}");
    assert!(words.contains(&name), "the error does not name {name}: {words}");
    assert!(!words.contains("panicked"), "{words}");
}

#[test]
fn a_killed_target_is_named_over_sockets() {
    killed_target(r#"{"Tcp": {"same_host": false}}"#);
}

#[test]
fn a_killed_target_is_named_over_the_copy_within_the_host() {
    killed_target(r#"{"Tcp": {"same_host": true}}"#);
}

#[test]
fn a_killed_target_is_named_over_libfabric() {
    let output =
        demo(&[&SMALL[..], &["--transport", "libfabric", "--provider", "tcp;ofi_rxm"]].concat(), &[]);
    if output.status.code() == Some(3) {
        eprintln!("SKIP: a_killed_target_is_named_over_libfabric: {}", text(&output.stdout).trim());
        return;
    }
    assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
    killed_target(r#"{"Fabric": {"provider": "tcp;ofi_rxm"}}"#);
}
