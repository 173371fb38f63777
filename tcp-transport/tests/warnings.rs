//! What a careless operator is told.
#![allow(clippy::unwrap_used)] // tests

use std::io::Write;
use std::sync::{Arc, Mutex};

use tcp_transport::Transport;

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn said(build: impl FnOnce()) -> String {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    tracing::subscriber::with_default(subscriber, build);
    String::from_utf8(log.0.lock().unwrap().clone()).unwrap()
}

#[test]
fn listening_beyond_loopback_without_a_secret_is_loud() {
    let listen = |addr: &str, secret: bool| {
        said(|| {
            let builder = Transport::builder().listen(addr.parse().unwrap());
            let builder = if secret { builder.secret("sixteen bytes or more") } else { builder };
            drop(builder.build().unwrap());
        })
    };
    let warning = listen("0.0.0.0:0", false);
    assert!(warning.contains("WARN") && warning.contains("WITHOUT A SECRET"), "{warning}");
    assert!(!listen("0.0.0.0:0", true).contains("WARN"));
    assert!(!listen("127.0.0.1:0", false).contains("WARN"));
}
