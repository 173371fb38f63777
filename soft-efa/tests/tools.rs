//! libfabric's own tools on software cards.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use support::{Library, Running, libraries, network, output, skip, valgrind};

fn tool_is_there(name: &str) -> bool {
    Command::new(name).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// Runs `body` on each libfabric, if the tools are there.
fn on_each(test: &str, body: impl Fn(&Library)) {
    if !tool_is_there("fi_info") {
        return skip(test, "no fi_info here (Debian: libfabric-bin)");
    }
    let libraries = libraries();
    if libraries.is_empty() {
        return skip(test, "no libfabric here");
    }
    libraries.iter().for_each(body);
}

#[test]
fn fi_info_lists_every_card() {
    on_each("fi_info_lists_every_card", |library| {
        for (nics, profile) in [(1, "p4d"), (4, "p5"), (16, "p5en"), (32, "p6")] {
            let network = network(nics, profile);
            let mut command = Command::new("fi_info");
            library.choose(&mut command);
            network.prepare(&mut command);
            let said = output(command.args(["-p", "efa", "-v"]));
            let text = String::from_utf8_lossy(&said.stdout);
            assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
            let profile = soft_efa::Profile::named(profile).unwrap();
            for card in 0..nics {
                let name = format!("name: {}-rdm\n", profile.card_name(card));
                assert!(
                    text.contains(&name),
                    "{} of {nics} cards, libfabric {}",
                    profile.card_name(card),
                    library.name
                );
                let place = profile.placement(card);
                assert!(text.contains(&format!("bus_id: {}\n", place.bus)), "the bus of card {card}");
            }
            assert!(!text.contains(&profile.card_name(nics)), "no more cards than asked for");
            assert!(text.contains(&format!("device_id: 0x{:x}", profile.part_id)));
            assert!(text.contains("driver: efa"));
        }
    });
}

#[test]
fn fi_pingpong_runs_between_two_processes() {
    fi_pingpong("fi_pingpong_runs_between_two_processes", "rdm");
}

/// Datagram endpoints are UD queue pairs.
#[test]
fn fi_pingpong_runs_on_datagrams() {
    fi_pingpong("fi_pingpong_runs_on_datagrams", "dgram");
}

#[test]
fn valgrind_finds_nothing_in_the_card_under_libfabric() {
    let test = "valgrind_finds_nothing_in_the_card_under_libfabric";
    if !valgrind::is_there() {
        return skip(test, "no valgrind here");
    }
    if std::env::var_os("WEFT_TEST_QUICK").is_some() {
        return skip(test, "takes long");
    }
    for endpoint in ["rdm", "dgram"] {
        on_each(test, |library| {
            let folder = tempfile::tempdir().unwrap();
            pingpong(library, endpoint, || valgrind::command("fi_pingpong", folder.path()));
            // A client and the server; a client that came too early is a third.
            valgrind::assert_clean(folder.path(), 2, true);
        });
    }
}

fn fi_pingpong(test: &str, endpoint: &str) {
    on_each(test, |library| pingpong(library, endpoint, || Command::new("fi_pingpong")));
}

/// Runs a server and a client of `fi_pingpong`, each started by `command`.
fn pingpong(library: &Library, endpoint: &str, command: impl Fn() -> Command) {
    // A port that is free now may be somebody else's when the server wants it: then another one is tried.
    for _ in 0..5 {
        if pingpong_on(free_port(), library, endpoint, &command) {
            return;
        }
    }
    panic!("no port is free for long enough");
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port()
}

/// False if the server could not have that port.
fn pingpong_on(port: u16, library: &Library, endpoint: &str, command: &impl Fn() -> Command) -> bool {
    let network = network(1, "p5");
    let port = port.to_string();
    let tool = |arguments: &[&str]| {
        let mut command = command();
        library.choose(&mut command);
        network.prepare(&mut command);
        command.args(["-p", "efa", "-e", endpoint, "-I", "20", "-c"]).args(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).stdin(Stdio::null());
        Running(command.spawn().unwrap())
    };
    let said = |running: &mut Running| {
        let (mut out, mut err) = (String::new(), String::new());
        running.0.stdout.take().unwrap().read_to_string(&mut out).unwrap();
        running.0.stderr.take().unwrap().read_to_string(&mut err).unwrap();
        (out, err)
    };
    let mut server = tool(&["-B", &port]);
    // The client gives up at once when nobody listens yet: it is asked until somebody does.
    let start = Instant::now();
    let text = loop {
        if server.0.try_wait().unwrap().is_some() {
            let (server_out, server_err) = said(&mut server);
            assert!(server_err.contains("bind"), "{}: {server_out}{server_err}", library.name);
            return false;
        }
        let mut client = tool(&["-P", &port, "127.0.0.1"]);
        let status = client.wait();
        let (out, err) = said(&mut client);
        if status.success() {
            break out;
        }
        let refused = err.contains("refused") || err.contains("connect");
        if !refused || start.elapsed() > Duration::from_secs(60) {
            let _ = server.0.kill();
            let (server_out, server_err) = said(&mut server);
            panic!("{}: {out}{err}\nthe server: {server_out}{server_err}", library.name);
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    assert!(server.wait().success());
    assert!(text.contains("64 ") && text.contains("=20"), "{text}");
    true
}
