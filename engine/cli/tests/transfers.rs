//! serve, bench, probe: two processes that move bytes.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Running, libfabric_2, run, skip, use_libfabric, weft, weft_with};
use serde_json::Value;

/// The rows of a bench, by metric, of the case that has all these words.
fn value(rows: &Value, words: &[&str], metric: &str) -> f64 {
    let fits = |row: &&Value| {
        let case: Vec<&str> = row["case"].as_str().unwrap().split(' ').collect();
        let stage = case.iter().any(|word| word.starts_with("stage="));
        row["metric"] == metric
            && words.iter().all(|word| case.contains(word))
            && stage == words.iter().any(|word| word.starts_with("stage="))
    };
    let rows = rows.as_array().unwrap();
    let found = rows.iter().find(fits).unwrap_or_else(|| panic!("{metric} of {words:?} in {rows:#?}"));
    found["value"].as_f64().unwrap()
}

/// Everything that INTERFACES promises of a row.
fn check_rows(rows: &Value) {
    let keys = [
        "suite",
        "case",
        "metric",
        "value",
        "unit",
        "baseline",
        "baseline_name",
        "ratio",
        "ci_low",
        "ci_high",
        "aa_ratio",
        "inconclusive",
        "samples",
    ];
    for row in rows.as_array().unwrap() {
        for key in keys {
            assert!(row.get(key).is_some(), "{key} in {row}");
        }
        assert!(row["value"].as_f64().unwrap() > 0.0 && row["samples"].as_u64().unwrap() > 0, "{row}");
    }
    // Percentiles are in order, and stages are parts of the whole.
    for stage in ["", "stage=queue", "stage=post", "stage=transfer"] {
        let words: Vec<&str> = [stage].into_iter().filter(|stage| !stage.is_empty()).collect();
        let order = ["latency_p50", "latency_p90", "latency_p99", "latency_p99.9"]
            .map(|metric| value(rows, &words, metric));
        assert!(order.is_sorted(), "{stage} {order:?}");
    }
}

#[test]
fn a_bench_measures_verifies_and_says_so_in_a_table_and_in_json() {
    let (target, name) = Running::serve(&mut weft(), &["--size", "16M"]);
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("rows.json");
    for op in ["write", "read"] {
        for host in [true, false] {
            let mut command = weft();
            command.args(["bench", "--target", &name, "--op", op, "--duration", "200ms", "--verify"]);
            command
                .args([
                    "--block-size",
                    "4K,64K",
                    "--batch-size",
                    "1,16",
                    "--threads",
                    "2",
                    "--depth",
                    "2",
                    "--json",
                ])
                .arg(&json);
            if !host {
                command.arg("--no-same-host");
            }
            let run = run(&mut command).expect(0);
            assert!(run.stdout.contains("p99.9 µs") && run.stdout.contains("verified"), "{}", run.stdout);
            assert_eq!(
                run.stdout.lines().filter(|line| line.contains("KiB") && !line.contains("buffer")).count(),
                4,
                "{}",
                run.stdout
            );
            let rows: Value = serde_json::from_slice(&std::fs::read(&json).unwrap()).unwrap();
            check_rows(&rows);
            let path = if host { "path=host" } else { "path=net" };
            let words = [
                format!("op={op}"),
                "size=65536".into(),
                "batch=16".into(),
                "threads=2".into(),
                path.to_owned(),
            ];
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let (throughput, rate) = (value(&rows, &words, "throughput"), value(&rows, &words, "rate"));
            assert!(
                (throughput - rate * 65_536.0 / 1e9).abs() < 1e-6 * throughput,
                "{throughput} GB/s, {rate} blocks/s"
            );
        }
    }
    assert_eq!(target.terminate(), 0);
}

#[test]
fn stdout_is_only_json_when_json_goes_there() {
    let (_target, name) = Running::serve(&mut weft(), &["--size", "1M"]);
    let run = weft_with([
        "bench",
        "--target",
        &name,
        "--duration",
        "50ms",
        "--batch-size",
        "1",
        "--paged",
        "--json",
        "-",
    ])
    .expect(0);
    check_rows(&run.json());
}

/// The check must be able to fail: a target whose memory is not what was written.
#[test]
fn wrong_bytes_are_found_at_the_target_and_are_status_1() {
    // This target is no `weft serve`: it overwrites what arrives, and has no mailbox, so that it is read back.
    let engine = engine::Engine::builder().protocol(engine::Protocol::Tcp).build().unwrap();
    let memory = engine::HostMemory::new(1 << 20).unwrap();
    engine.register("pool", memory.clone(), engine::Access::READ_WRITE).unwrap();
    let args = |op: &str| {
        let mut command = weft();
        command.args(["bench", "--target", engine.name(), "--op", op, "--duration", "400ms", "--verify"]);
        command.args(["--block-size", "64K", "--batch-size", "4", "--no-same-host"]);
        command
    };
    run(&mut args("write")).expect(0);
    run(&mut args("read")).expect(0);
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                memory.write(70_000, &[1, 2, 3, 4, 5, 6, 7, 8]).unwrap();
            }
        });
        // The other thread may have had no processor between the last write and the look at it.
        let mut failed = run(&mut args("write"));
        for _ in 0..20 {
            if failed.status != 0 {
                break;
            }
            failed = run(&mut args("write"));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
        let failed = failed.expect(1);
        assert!(failed.stderr.contains("verification failed: byte 7000"), "{}", failed.stderr);
    });
}

#[test]
fn memory_that_is_too_small_is_said_before_anything_moves() {
    let (_target, name) = Running::serve(&mut weft(), &["--size", "1M"]);
    let too_small =
        weft_with(["bench", "--target", &name, "--block-size", "1M", "--batch-size", "2"]).expect(2);
    assert!(
        too_small.stderr.contains("2 MiB") && too_small.stderr.contains("--size"),
        "{}",
        too_small.stderr
    );
    let no_buffer = weft_with(["bench", "--target", &name, "--buffer", "weights"]).expect(3);
    assert!(
        no_buffer.stderr.contains("weights") && no_buffer.stderr.contains("pool"),
        "{}",
        no_buffer.stderr
    );
    let too_large = weft_with(["probe", "--target", &name, "--block-size", "2M"]).expect(3);
    assert!(too_large.stderr.contains("2 MiB"), "{}", too_large.stderr);
}

#[test]
fn a_target_that_is_killed_ends_the_bench_with_its_name() {
    for same_host in [true, false] {
        let (mut target, name) = Running::serve(&mut weft(), &["--size", "16M"]);
        let mut command = weft();
        // Its metrics tell when it is under way, so the test need not guess.
        command.args(["bench", "--target", &name, "--duration", "60s", "--deadline", "2s", "--log", "info"]);
        if !same_host {
            command.arg("--no-same-host");
        }
        let mut bench = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // The first line is printed when the connection is warm and traffic is about to begin.
        let mut first = String::new();
        let mut out = std::io::BufReader::new(bench.stdout.take().unwrap());
        std::io::BufRead::read_line(&mut out, &mut first).unwrap();
        assert!(first.starts_with("write "), "{first}");
        target.kill();
        let start = Instant::now();
        let status = common::wait(&mut bench);
        let mut said = String::new();
        std::io::Read::read_to_string(&mut bench.stderr.take().unwrap(), &mut said).unwrap();
        assert_eq!(status, 1, "{said}");
        assert!(said.contains("error: write of 128 × 64 KiB to ") && said.contains(&name), "{said}");
        assert!(start.elapsed() < Duration::from_secs(30), "{:?}", start.elapsed());
    }
}

#[test]
fn a_probe_tells_cold_from_warm() {
    let (target, name) = Running::serve(&mut weft(), &["--size", "1M"]);
    let probe = weft_with(["probe", "--target", &name, "--rounds", "2", "--reads", "20", "--json"]).expect(0);
    let report = probe.json();
    for key in [
        "engine_us",
        "open_us",
        "cold_first_us",
        "warm_up_us",
        "warm_first_us",
        "steady_p50_us",
        "steady_p99_us",
        "control_us",
    ] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key} in {report}");
    }
    assert!(report["steady_p50_us"].as_f64() <= report["steady_p99_us"].as_f64());
    let table = weft_with(["probe", "--target", &name, "--rounds", "1", "--reads", "1"]).expect(0).stdout;
    for row in ["open", "first read, cold", "warm-up", "first read, warm", "further reads, p99"] {
        assert!(table.contains(row), "{table}");
    }
    let doctor = weft_with(["doctor", &name]).expect(0).stdout;
    assert!(doctor.contains(&format!("{name}: tcp/host, because")), "{doctor}");
    assert_eq!(target.terminate(), 0);
}

#[test]
fn a_secret_keeps_others_out() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("secret");
    std::fs::write(&file, "a secret of many random bytes\n").unwrap();
    let file = file.to_str().unwrap();
    let (_target, name) = Running::serve(&mut weft(), &["--size", "1M", "--secret-file", file]);
    let bench =
        ["bench", "--target", &name, "--duration", "50ms", "--batch-size", "1", "--connect-timeout", "30s"];
    weft_with(bench.iter().copied().chain(["--secret-file", file])).expect(0);
    let refused = weft_with(bench).expect(3);
    assert!(
        refused.stderr.contains("secret") || refused.stderr.contains("authentication"),
        "{}",
        refused.stderr
    );
}

#[test]
fn a_sweep_is_drawn_with_titles_axes_units_and_legend() {
    let (_target, name) = Running::serve(&mut weft(), &["--size", "16M"]);
    let dir = tempfile::tempdir().unwrap();
    let plot = dir.path().join("sweep.svg");
    let mut command = weft();
    command.args([
        "bench",
        "--target",
        &name,
        "--sweep",
        "--block-size",
        "4K..256K:4",
        "--batch-size",
        "1,16",
        "--duration",
        "30ms",
    ]);
    let swept = run(command.arg("--plot").arg(&plot)).expect(0);
    assert_eq!(swept.stderr, "", "everything fits");
    let left_out = weft_with([
        "bench",
        "--target",
        &name,
        "--sweep",
        "--duration",
        "1ms",
        "--threads",
        "1",
        "--batch-size",
        "16,1024",
    ])
    .expect(0);
    assert!(left_out.stderr.contains("7 cases do not fit"), "{}", left_out.stderr);
    let text = std::fs::read_to_string(&plot).unwrap();
    let svg = roxmltree::Document::parse(&text).unwrap();
    assert_eq!(svg.root_element().tag_name().name(), "svg");
    let words: Vec<String> = svg
        .descendants()
        .filter(|node| node.tag_name().name() == "text")
        .map(|node| node.text().unwrap_or("").trim().to_owned())
        .collect();
    let has = |word: &str| assert!(words.iter().any(|text| text == word), "{word:?} in {words:?}");
    for word in [
        "weft bench: write over a copy between two processes of this host",
        "Throughput",
        "Latency of a batch",
        "throughput (GB/s)",
        "latency (µs, logarithmic)",
        "block size (bytes, binary units)",
        "4 KiB",
        "256 KiB",
        "batch of 1, 1 thread",
        "batch of 16, 2 threads",
        "batch of 16, 2 threads: p50",
        "batch of 16, 2 threads: p99",
    ] {
        has(word);
    }
    // One line for each of the four series in the upper half, two in the lower, with a point for each block size.
    let points = svg.descendants().filter(|node| node.tag_name().name() == "circle").count();
    assert!(points >= 2 * 4 * 4, "{points} points");
}

/// Writes and reads over libfabric: `tcp` of any libfabric, and EFA on software cards.
fn over(library: &Path, prepare: &dyn Fn(&mut Command), arguments: &[&str], expected: &str) {
    let mut command = weft();
    use_libfabric(&mut command, library);
    prepare(&mut command);
    let (target, name) = Running::serve(&mut command, &[&["--size", "16M"], arguments].concat());
    for op in ["write", "read"] {
        let mut command = weft();
        use_libfabric(&mut command, library);
        prepare(&mut command);
        command
            .args(["bench", "--target", &name, "--op", op, "--duration", "300ms", "--verify", "--json", "-"])
            .args(arguments);
        let rows = run(command.args(["--block-size", "64K", "--batch-size", "16"])).expect(0).json();
        check_rows(&rows);
        let case = rows[0]["case"].as_str().unwrap();
        assert!(case.contains(expected) && case.contains("verified=yes"), "{case}");
    }
    let mut command = weft();
    use_libfabric(&mut command, library);
    prepare(&mut command);
    let probe = command.args(["probe", "--target", &name, "--rounds", "1", "--reads", "10"]).args(arguments);
    let probe = run(probe).expect(0);
    assert!(probe.stdout.contains("libfabric's"), "{}", probe.stdout);
    assert_eq!(target.terminate(), 0);
}

#[test]
fn two_processes_over_libfabrics_tcp() {
    let Some(library) = libfabric_2() else {
        return skip(
            "two_processes_over_libfabrics_tcp",
            "no libfabric 2.x; `cargo xtask libfabric` makes one",
        );
    };
    over(
        &library,
        &|_| {},
        &["--protocol", "efa", "--provider", "tcp"],
        "transport=libfabric provider=tcp path=net",
    );
}

#[test]
fn two_processes_over_software_cards() {
    let Some(library) = libfabric_2() else {
        return skip(
            "two_processes_over_software_cards",
            "no libfabric 2.x; `cargo xtask libfabric` makes one",
        );
    };
    let network = match soft_efa::Network::new(4, soft_efa::Profile::p5()) {
        Ok(network) => network,
        Err(error) => return skip("two_processes_over_software_cards", &error.to_string()),
    };
    over(&library, &|command| network.prepare(command), &[], "provider=efa/efa-direct path=net");
}
