//! The metadata store and the metrics.
#![cfg(all(feature = "prometheus", feature = "metadata"))]
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Stdio;
use std::time::Instant;

use common::{PATIENCE, Running, libfabric_2, run, skip, use_libfabric, weft};

/// The body of an HTTP answer, or `None` while nobody listens.
fn get(addr: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(addr).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {addr}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned())
}

/// Two addresses that were free a moment ago and that nobody takes meanwhile: of the loopback network each process has an address of its
/// own.
fn free_addrs() -> [String; 2] {
    let [_, high, mid, low] = std::process::id().to_be_bytes();
    let own = std::net::Ipv4Addr::new(127, 64 | high & 63, mid, low.clamp(1, 254));
    // Both at once, so that they differ.
    let listeners = [(); 2].map(|()| std::net::TcpListener::bind((own, 0)).unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().to_string())
}

/// Names of metrics in a scrape.
fn names(scrape: &str) -> BTreeSet<String> {
    let lines = scrape.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
    lines.map(|line| line.split(['{', ' ']).next().unwrap().to_owned()).collect()
}

/// Names that the dashboard asks for.
fn dashboard() -> BTreeSet<String> {
    let text = include_str!("../../../docs/grafana/weft.json");
    let json: serde_json::Value = serde_json::from_str(text).unwrap();
    let panels = json["panels"].as_array().unwrap();
    let targets = panels.iter().filter_map(|panel| panel["targets"].as_array()).flatten();
    let exprs: Vec<&str> = targets.map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(exprs.len() > 15, "{exprs:?}");
    let words = exprs.iter().flat_map(|expr| expr.split(|c: char| !c.is_ascii_alphanumeric() && c != '_'));
    words.filter(|word| word.starts_with("weft_")).map(str::to_owned).collect()
}

/// What a `weft serve` and a `weft bench` against it export while traffic runs, with libfabric's cards if there are any.
fn exported(prepare: &dyn Fn(&mut std::process::Command)) -> BTreeSet<String> {
    let [served, asked] = free_addrs();
    let mut command = weft();
    prepare(&mut command);
    let (_target, name) = Running::serve(&mut command, &["--size", "16M", "--metrics", &served]);
    let mut command = weft();
    prepare(&mut command);
    command.args(["bench", "--target", &name, "--duration", "60s", "--metrics", &asked]);
    let mut bench = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let start = Instant::now();
    let mut found = BTreeSet::new();
    // Until the traffic shows, which is what an operator would wait for.
    let moved = |scrape: &str| {
        let bytes = scrape
            .lines()
            .filter(|line| line.starts_with("weft_peer_bytes_total") && line.contains("op=\"write\""));
        bytes.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() > 0.0
    };
    loop {
        let scrape = get(&asked, "/metrics").unwrap_or_default();
        if moved(&scrape) {
            found.extend(names(&scrape));
            break;
        }
        assert!(start.elapsed() < PATIENCE && bench.try_wait().unwrap().is_none(), "no traffic in {scrape}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    bench.kill().unwrap();
    bench.wait().unwrap();
    let scrape = get(&served, "/metrics").unwrap();
    assert!(scrape.contains(&format!("weft_up{{name=\"{name}\"")), "{scrape}");
    assert!(scrape.contains("# TYPE weft_tcp_bytes_total counter"), "{scrape}");
    found.extend(names(&scrape));
    found
}

#[test]
fn every_metric_of_the_dashboard_is_exported() {
    let missing =
        |exported: &BTreeSet<String>| -> Vec<String> { dashboard().difference(exported).cloned().collect() };
    let without_cards = missing(&exported(&|command| {
        command.env("WEFT_PROTOCOL", "tcp");
    }));
    assert!(without_cards.iter().all(|name| name.starts_with("weft_nic_")), "{without_cards:?}");
    let test = "every_metric_of_the_dashboard_is_exported";
    let Some(library) = libfabric_2() else {
        return skip(test, "metrics of NICs: no libfabric 2.x; `cargo xtask libfabric` makes one");
    };
    let network = match soft_efa::Network::new(2, soft_efa::Profile::p5()) {
        Ok(network) => network,
        Err(error) => return skip(test, &error.to_string()),
    };
    let with_cards = missing(&exported(&|command| {
        use_libfabric(command, &library);
        network.prepare(command);
    }));
    assert_eq!(with_cards, [] as [String; 0]);
}

#[test]
fn a_metrics_address_that_is_taken_is_status_3() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap().to_string();
    let failed =
        run(weft().args(["serve", "--listen", "127.0.0.1:0", "--size", "1M", "--metrics", &addr])).expect(3);
    assert!(failed.stderr.contains(&addr), "{}", failed.stderr);
    let no_port =
        run(weft().args(["serve", "--listen", "127.0.0.1:0", "--size", "1M", "--metrics", "127.0.0.1:0"]))
            .expect(2);
    assert!(no_port.stderr.contains("port"), "{}", no_port.stderr);
}

#[test]
fn peers_find_each_other_by_name_in_the_metadata_store() {
    let (store, told) = Running::start(weft().args(["metadata", "--listen", "127.0.0.1:0", "--json"]));
    let url = told["url"].as_str().unwrap();
    let addr = url.strip_prefix("http://").unwrap().split('/').next().unwrap();
    assert!(get(addr, "/health").is_some());
    let (target, name) =
        Running::serve(&mut weft(), &["--size", "1M", "--name", "decode-0", "--metadata", url]);
    assert_eq!(name, "decode-0");
    let bench = ["bench", "--target", "decode-0", "--duration", "50ms", "--batch-size", "1", "--verify"];
    let run_with = |args: &[&str]| run(weft().args(bench).args(args));
    let found = run_with(&["--metadata", url]).expect(0);
    assert!(found.stdout.contains("decode-0"), "{}", found.stdout);
    // Without the store the name means nothing, and a name that is not in it is said.
    run_with(&[]).expect(2);
    let unknown = run(weft().args(["probe", "--target", "decode-1", "--metadata", url])).expect(3);
    assert!(unknown.stderr.contains("decode-1"), "{}", unknown.stderr);
    assert_eq!(target.terminate(), 0);
    assert_eq!(store.terminate(), 0);
    let gone = run_with(&["--metadata", url]).expect(3);
    assert!(gone.stderr.contains(addr), "{}", gone.stderr);
}
