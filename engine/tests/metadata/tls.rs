//! HTTPS, with a certificate authority of the cluster's own.

use std::process::{Command, Stdio};

use engine::metadata::{Directory, Record};

use crate::harness::{Server, options};

/// Mooncake's protocol over TLS in a few lines: arguments are port, certificate and key.
const SERVER: &str = r#"
import http.server, ssl, sys, urllib.parse
entries = {}
class Handler(http.server.BaseHTTPRequestHandler):
    def key(self):
        return urllib.parse.parse_qs(urllib.parse.urlsplit(self.path).query)["key"][0]
    def say(self, status, body=b""):
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        value = entries.get(self.key())
        self.say(404 if value is None else 200, value or b"")
    def do_PUT(self):
        entries[self.key()] = self.rfile.read(int(self.headers["content-length"]))
        self.say(200)
    def do_DELETE(self):
        self.say(200 if entries.pop(self.key(), None) is not None else 404)
    def log_message(self, *_):
        pass
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(sys.argv[2], sys.argv[3])
server = http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"#;

#[test]
fn https_is_spoken_with_the_authority_that_was_named_and_no_other() {
    let test = "https_is_spoken_with_the_authority_that_was_named_and_no_other";
    let dir = tempfile::TempDir::new().unwrap();
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=weft test", "-addext", "subjectAltName=IP:127.0.0.1"])
        // Its own authority and nobody else's.
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .args(["-keyout", &path("key.pem"), "-out", &path("cert.pem")])
        .stderr(Stdio::null())
        .status();
    if !made.is_ok_and(|status| status.success()) {
        eprintln!("SKIP: {test}: openssl makes no certificate here");
        return;
    }
    let (cert, key) = (path("cert.pem"), path("key.pem"));
    let Some(server) = Server::start_with(test, "python3", |port, _| {
        ["-c", SERVER, &port.to_string(), &cert, &key].map(str::to_owned).to_vec()
    }) else {
        return;
    };
    let url = format!("https://127.0.0.1:{}/metadata", server.port);
    let mut trusting = options();
    trusting.ca = Some(cert.clone().into());
    let directory = Directory::connect(&url, trusting).unwrap().unwrap();
    let record = Record::new("10.0.0.1:7000", 1);
    let lease = directory.publish("secure", &record).unwrap();
    assert_eq!(directory.lookup("secure").unwrap(), Some(record));
    lease.withdraw().unwrap();
    assert_eq!(directory.lookup("secure").unwrap(), None);
    let strict = Directory::connect(&url, options()).unwrap().unwrap();
    let error = strict.lookup("secure").unwrap_err().to_string();
    assert!(error.contains(&url) && error.to_lowercase().contains("certificate"), "{error}");
    let mut wrong = options();
    wrong.ca = Some(key.into());
    let error = Directory::connect(&url, wrong).unwrap_err().to_string();
    assert!(error.contains("key.pem"), "{error}");
}
