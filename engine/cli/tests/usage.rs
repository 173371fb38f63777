//! Help, version, wrong usage, completions, manual pages, colour.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use common::{run, weft, weft_with};

const COMMANDS: [&str; 9] =
    ["serve", "bench", "probe", "doctor", "topo", "plan", "metadata", "completions", "man"];

#[test]
fn help_is_for_people_and_no_error() {
    let help = weft_with(["--help"]).expect(0);
    for command in COMMANDS {
        assert!(help.stdout.contains(&format!("\n  {command}")), "{command} in {}", help.stdout);
        let own = weft_with([command, "--help"]).expect(0);
        assert!(own.stdout.contains("Usage: weft "), "{}", own.stdout);
    }
    assert!(help.stdout.contains("Exit status"), "{}", help.stdout);
    let version = weft_with(["--version"]).expect(0);
    assert_eq!(version.stdout.trim(), concat!("weft ", env!("CARGO_PKG_VERSION")));
}

#[test]
fn wrong_usage_is_status_2_and_says_what_was_wrong() {
    let none: [&str; 0] = [];
    assert!(weft_with(none).expect(2).stderr.contains("Usage"));
    let cases: &[(&[&str], &str)] = &[
        (&["fly"], "fly"),
        (&["serve", "--size", "much"], "much"),
        (&["serve", "--listen", "here"], "here"),
        (&["serve", "--listen", "0.0.0.0:0"], "give a port"),
        (&["serve", "--buffers", "0"], "0"),
        (&["serve", "--listen", "127.0.0.1:0", "--size", "1", "--buffers", "2"], "less than a byte"),
        (&["serve", "--listen", "127.0.0.1:0", "--protocol", "pigeon"], "pigeon"),
        (&["serve", "--listen", "127.0.0.1:0", "--secret-file", "/nonexistent"], "/nonexistent"),
        (&["serve", "--listen", "127.0.0.1:0", "--metadata", "gopher://x"], "gopher"),
        (&["bench"], "--target"),
        (&["bench", "--target", "nowhere"], "host:port"),
        (&["bench", "--target", "127.0.0.1:1", "--block-size", "1M..4K"], "FIRST..LAST"),
        (&["bench", "--target", "127.0.0.1:1", "--batch-size", "0"], "1000000"),
        (&["bench", "--target", "127.0.0.1:1", "--duration", "0s"], "more than nothing"),
        (&["bench", "--target", "127.0.0.1:1", "--op", "erase"], "erase"),
        (&["probe"], "--target"),
        (&["probe", "--target", "127.0.0.1:1", "--rounds", "0"], "0"),
        (&["doctor", "--root", "/nonexistent"], "/nonexistent"),
        (&["doctor", "nowhere"], "host:port"),
        (&["topo", "--root", "/nonexistent"], "/nonexistent"),
        (&["topo", "--nics", "!"], "NIC filter"),
        (&["topo", "--json", "--matrix"], "--matrix"),
        (&["plan"], "--buffers"),
        (&["plan", "--buffers", "1x", "--nics", "2"], "1x"),
        (&["plan", "--buffers", "1G", "--nics", "2", "--policy", "some"], "some"),
        (&["plan", "--file", "/nonexistent.toml"], "/nonexistent.toml"),
        (&["metadata", "--listen", "everywhere"], "everywhere"),
        (&["completions", "cobol"], "cobol"),
        (&["man", "fly"], "serve, bench"),
        (&["--log", "engine=loud", "topo"], "engine=loud"),
    ];
    for (args, part) in cases {
        let run = weft_with(*args).expect(2);
        assert!(run.stderr.contains(part), "{args:?} says {}", run.stderr);
        assert!(!run.stderr.contains("panicked"), "{args:?} says {}", run.stderr);
        assert_eq!(run.stdout, "", "{args:?}");
    }
}

#[test]
fn what_is_not_there_is_status_3() {
    let nobody = ["--connect-timeout", "300ms"];
    for command in ["bench", "probe"] {
        let run = weft_with([command, "--target", "127.0.0.1:1"].iter().chain(&nobody)).expect(3);
        assert!(run.stderr.starts_with("error: ") && run.stderr.contains("127.0.0.1:1"), "{}", run.stderr);
    }
    let run = weft_with(["doctor", "127.0.0.1:1"].iter().chain(&nobody)).expect(3);
    assert!(run.stdout.contains("127.0.0.1:1: not reachable"), "{}", run.stdout);
    let run = weft_with([
        "serve",
        "--listen",
        "127.0.0.1:0",
        "--protocol",
        "efa",
        "--provider",
        "no-such-provider",
    ])
    .expect(3);
    assert!(run.stderr.contains("no-such-provider"), "{}", run.stderr);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    for command in ["serve", "metadata"] {
        let run = weft_with([command, "--listen", &addr]).expect(3);
        assert!(run.stderr.contains(&addr), "{}", run.stderr);
    }
}

#[test]
fn completions_and_manual_pages_know_every_command() {
    for (shell, sign) in
        [("bash", "complete -F _weft"), ("zsh", "#compdef weft"), ("fish", "complete -c weft")]
    {
        let script = weft_with(["completions", shell]).expect(0).stdout;
        assert!(script.contains(sign), "{shell}");
        assert!(COMMANDS.iter().all(|command| script.contains(command)), "{shell}");
        assert!(script.contains("block-size"), "{shell}");
    }
    let page = weft_with(["man"]).expect(0).stdout;
    assert!(page.contains(".TH weft 1") && COMMANDS.iter().all(|command| page.contains(command)), "{page}");
    let page = weft_with(["man", "bench"]).expect(0).stdout;
    assert!(page.contains(".TH weft\\-bench 1") || page.contains(".TH weft-bench 1"), "{page}");
    assert!(page.contains("block\\-size"), "{page}");
}

#[test]
fn colour_goes_to_terminals_only_unless_it_is_asked_for() {
    let has_colour = |text: &str| text.contains('\x1b');
    let plain = weft_with(["plan", "--nics", "2", "--buffers", "1G"]).expect(0);
    assert!(!has_colour(&plain.stdout), "a pipe is no terminal");
    let always = weft_with(["--color", "always", "plan", "--nics", "2", "--buffers", "1G"]).expect(0);
    assert!(has_colour(&always.stdout));
    let error = weft_with(["--color", "always", "topo", "--root", "/nonexistent"]).expect(2);
    assert!(has_colour(&error.stderr));
    let never = weft_with(["--color", "never", "topo", "--root", "/nonexistent"]).expect(2);
    assert!(!has_colour(&never.stderr));
    // `script` gives a command a terminal; without it this half is left out.
    let weft_program = env!("CARGO_BIN_EXE_weft");
    let on_terminal = |env: &[(&str, &str)]| {
        let line = format!("{weft_program} plan --nics 2 --buffers 1G");
        let mut command = std::process::Command::new("script");
        command.args(["-qec", &line, "/dev/null"]).envs(env.iter().copied());
        common::without_settings(&mut command).envs(env.iter().copied());
        command.output().ok().map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
    };
    match on_terminal(&[]) {
        None => common::skip(
            "colour_goes_to_terminals_only_unless_it_is_asked_for",
            "no `script` to make a terminal",
        ),
        Some(text) => {
            assert!(has_colour(&text), "{text:?}");
            let plain = on_terminal(&[("NO_COLOR", "1")]).unwrap();
            assert!(!has_colour(&plain), "{plain:?}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let line = format!("{} completions bash | head -c 10", env!("CARGO_BIN_EXE_weft"));
    let run = run(std::process::Command::new("sh").args(["-c", &line])).expect(0);
    assert_eq!(run.stderr, "");
}

#[test]
fn logs_go_to_stderr_and_only_when_they_are_wanted() {
    let quiet = run(weft().args(["serve", "--listen", "127.0.0.1:0", "--duration", "10ms"])).expect(0);
    assert!(!quiet.stderr.contains("INFO"), "{}", quiet.stderr);
    let by_variable =
        run(weft().env("WEFT_LOG", "info").args(["serve", "--listen", "127.0.0.1:0", "--duration", "10ms"]))
            .expect(0);
    assert!(by_variable.stderr.contains("engine is up"), "{}", by_variable.stderr);
    assert!(!by_variable.stdout.contains("INFO"), "{}", by_variable.stdout);
}
