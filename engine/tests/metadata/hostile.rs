//! Servers that are not what they should be.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use engine::Error;
use engine::metadata::{Directory, Options};

/// Serves every connection with `answer` until the test program ends.
fn hostile(answer: fn(TcpStream)) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

/// Reads what has come so far, then says `text`.
fn say(mut stream: TcpStream, text: &[u8]) {
    let _ = stream.read(&mut [0; 65536]);
    let _ = stream.write_all(text);
}

/// Looks a name up at such a server by every protocol: an error that names the server, soon, and never a panic.
fn every_store_survives(what: &str, answer: fn(TcpStream)) {
    for scheme in ["etcd", "redis", "http"] {
        let port = hostile(answer);
        let options = Options { timeout: Duration::from_millis(700), ..Options::default() };
        let path = if scheme == "http" { "/metadata" } else { "" };
        let directory =
            Directory::connect(&format!("{scheme}://127.0.0.1:{port}{path}"), options).unwrap().unwrap();
        let begun = Instant::now();
        let error = match directory.lookup("name") {
            Ok(found) => panic!("{scheme}, {what}: {found:?}"),
            Err(error) => error,
        };
        assert!(matches!(error, Error::Metadata { .. }), "{scheme}, {what}: {error:?}");
        assert!(error.to_string().contains(&port.to_string()), "{scheme}, {what}: {error}");
        assert!(begun.elapsed() < Duration::from_secs(6), "{scheme}, {what}: {:?}", begun.elapsed());
        assert!(
            error.to_string().len() < 2000,
            "{scheme}, {what}: {} bytes of message",
            error.to_string().len()
        );
    }
}

#[test]
fn one_that_never_answers() {
    every_store_survives("silence", |stream| {
        std::thread::sleep(Duration::from_secs(20));
        drop(stream);
    });
}

#[test]
fn one_that_hangs_up() {
    every_store_survives("hanging up", drop);
}

#[test]
fn one_that_speaks_something_else() {
    every_store_survives("noise", |stream| say(stream, &[0xff; 4000]));
    every_store_survives("a 200 that means nothing", |stream| {
        say(stream, b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\n\xff\xfe\"}");
    });
    every_store_survives("a redirect", |stream| {
        say(stream, b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n");
    });
}

/// The announced length is not believed, and an endless body is not read to its end.
#[test]
fn one_that_never_stops() {
    every_store_survives("an endless body", |mut stream| {
        let _ = stream.read(&mut [0; 65536]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000000\r\n\r\n");
        while stream.write_all(&[b'['; 65536]).is_ok() {}
    });
    every_store_survives("an endless head", |mut stream| {
        let _ = stream.read(&mut [0; 65536]);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(&[b'x'; 65536]).is_ok() {}
    });
}

/// A server that says it has a gigabyte for us, and sends it, is hung up on before a fraction of it has come.
#[test]
fn a_gigabyte_is_refused_not_read() {
    const GIGABYTE: usize = 1 << 30;
    for scheme in ["etcd", "http"] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let serving = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 65536]);
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {GIGABYTE}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            let (chunk, mut sent) = ([b'['; 65536], 0);
            while sent < GIGABYTE && stream.write_all(&chunk).is_ok() {
                sent += chunk.len();
            }
            sent
        });
        let options = Options { timeout: Duration::from_secs(30), ..Options::default() };
        let path = if scheme == "http" { "/metadata" } else { "" };
        let directory =
            Directory::connect(&format!("{scheme}://127.0.0.1:{port}{path}"), options).unwrap().unwrap();
        let error = directory.lookup("name").unwrap_err().to_string();
        assert!(error.contains("longer than"), "{scheme}: {error}");
        drop(directory);
        let sent = serving.join().unwrap();
        assert!(sent < 100 << 20, "{scheme}: {sent} bytes were taken");
    }
}
