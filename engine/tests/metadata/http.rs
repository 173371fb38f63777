//! The HTTP protocol, against this crate's server and against one that knows no leases.

use std::cell::RefCell;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use engine::metadata::http_server::{Options, Server, serve};

use crate::contract;
use crate::harness::{TTL, directory};

const ANY: &str = "127.0.0.1:0";

fn start(options: Options) -> Server {
    serve(ANY.parse().unwrap(), options).unwrap()
}

#[test]
fn the_http_server_keeps_names() {
    let server = start(Options::default());
    contract::names_are_published_found_changed_and_withdrawn(&server.url());
    contract::renewals_say_what_they_found(&server.url());
    contract::nonsense_in_the_store_is_an_error(&server.url());
}

#[test]
fn the_http_server_forgets_the_dead() {
    let server = start(Options::default());
    contract::a_killed_node_vanishes(&server.url());
    assert_eq!(server.entries(), 0, "nor does it hold what has ended");
}

#[test]
fn the_http_server_gives_the_name_to_the_last() {
    contract::the_last_to_come_has_the_name(&start(Options::default()).url());
}

#[test]
fn the_http_server_may_go_away_and_come_back_empty() {
    let server = start(Options::default());
    let (url, addr) = (server.url(), server.addr());
    let server = RefCell::new(Some(server));
    contract::what_the_server_lost_is_published_again(
        &url,
        || drop(server.take()),
        || drop(server.replace(Some(serve(addr, Options::default()).unwrap()))),
    );
}

/// One raw request; status code and body.
fn ask(addr: SocketAddr, method: &str, target: &str, body: &[u8]) -> (u16, String) {
    let mut stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let head = format!(
        "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    // A server that has seen enough may close before it has all.
    let _ = stream.write_all(body);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    (status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default())
}

/// What Mooncake's nodes send, and what they are answered.
#[test]
fn mooncakes_requests_are_answered_as_its_own_server_does() {
    let server = start(Options::default());
    let target = "/metadata?key=mooncake%2Fram%2F10.0.0.1%3A15000";
    assert_eq!(ask(server.addr(), "GET", target, b"").0, 404);
    assert_eq!(ask(server.addr(), "PUT", target, b"{\"name\":1}").0, 200);
    assert_eq!(ask(server.addr(), "GET", target, b""), (200, "{\"name\":1}".into()));
    let (status, health) = ask(server.addr(), "GET", "/health", b"");
    assert!(status == 200 && health.contains("\"entries\":1"), "{health}");
    assert_eq!(ask(server.addr(), "DELETE", target, b"").0, 200);
    assert_eq!(ask(server.addr(), "DELETE", target, b"").0, 404);
}

#[test]
fn what_the_server_holds_is_bounded() {
    let limits =
        Options { max_entries: 3, max_value_bytes: 1000, max_total_bytes: 2500, ..Options::default() };
    let server = start(limits);
    let put = |key: &str, len: usize| {
        ask(server.addr(), "PUT", &format!("/metadata?key={key}"), &vec![b'x'; len]).0
    };
    assert_eq!((put("a", 1000), put("b", 1001)), (200, 413));
    assert_eq!((put("b", 1000), put("c", 1000)), (200, 507));
    assert_eq!((put("c", 10), put("d", 10), put("c", 11)), (200, 507, 200));
    assert_eq!(put(&"k".repeat(1025), 1), 400);
    for (method, target, wanted) in [
        ("PUT", "/metadata", 400),
        ("PUT", "/metadata?key=", 400),
        ("PUT", "/metadata?key=x&ttl_ms=0", 400),
        ("PUT", "/metadata?key=x&ttl_ms=soon", 400),
        ("GET", "/elsewhere", 404),
        ("POST", "/metadata?key=a", 405),
    ] {
        assert_eq!(ask(server.addr(), method, target, b"").0, wanted, "{method} {target}");
    }
    assert_eq!(server.entries(), 3);
    // One whose lease has ended makes room for another.
    assert_eq!(ask(server.addr(), "DELETE", "/metadata?key=b", b"").0, 200);
    assert_eq!(ask(server.addr(), "PUT", "/metadata?key=brief&ttl_ms=1", b"").0, 200);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(put("e", 10), 200);
}

/// Clients that say nothing, or half of it, lose their connection and keep nobody else from being served.
#[test]
fn slow_clients_are_not_waited_for() {
    let limits = Options { patience: Duration::from_millis(300), max_connections: 8, ..Options::default() };
    let server = start(limits);
    let begun = Instant::now();
    let slow: Vec<_> =
        ["", "PUT /meta", "PUT /metadata?key=a HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nabc"]
            .iter()
            .cycle()
            .take(12)
            .map(|beginning| {
                let mut stream = TcpStream::connect(server.addr()).unwrap();
                stream.write_all(beginning.as_bytes()).unwrap();
                stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
                stream
            })
            .collect();
    assert_eq!(ask(server.addr(), "GET", "/health", b"").0, 200, "after {:?}", begun.elapsed());
    for mut stream in slow {
        let mut rest = Vec::new();
        // Closed or reset; what it must not do is stay open.
        if let Err(error) = stream.read_to_end(&mut rest) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "still open after 20 s");
        }
    }
    assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
}

/// Garbage instead of HTTP does not end the server.
#[test]
fn garbage_is_survived() {
    let server = start(Options::default());
    for garbage in
        [&b"\x00\xff\x00\xff\r\n\r\n"[..], b"GET\r\n\r\n", &[b'A'; 200_000], b"GET / HTTP/9.9\r\n\r\n"]
    {
        let mut stream = TcpStream::connect(server.addr()).unwrap();
        let _ = stream.write_all(garbage);
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = stream.read_to_end(&mut Vec::new());
    }
    assert_eq!(ask(server.addr(), "GET", "/health", b"").0, 200);
}

#[test]
fn an_address_in_use_is_named() {
    let server = start(Options::default());
    let error = serve(server.addr(), Options::default()).unwrap_err().to_string();
    assert!(error.contains(&server.addr().to_string()) && error.contains("another"), "{error}");
}

/// The longest value goes through, and it is not the store that says no to one more byte.
#[test]
fn long_values_go_through() {
    let server = start(Options::default());
    let directory = directory(&server.url());
    let value = vec![b'x'; engine::metadata::MAX_VALUE_BYTES];
    directory.store().publish("long", &value, TTL * 10).unwrap();
    assert_eq!(directory.store().lookup("long").unwrap().unwrap().len(), value.len());
    let error = directory.store().publish("long", &vec![b'x'; value.len() + 1], TTL).unwrap_err();
    assert!(error.to_string().contains("413") || error.to_string().contains("running"), "{error}");
}
