//! Starting nodes, with or without software EFA cards, and talking to them.

use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use soft_efa::{Network, Profile};

use crate::node::{LINE, SETUP, receive, send};
use crate::order::{
    Answer, BatchOrder, Ended, Follow, Order, Request, Setup, View, Where, checksum, pattern,
};

/// Longest wait for an answer: above every limit of a node.
const PATIENCE: Duration = Duration::from_secs(90);

pub(crate) const READ_WRITE: u8 = 3;
pub(crate) const READ: u8 = 1;
pub(crate) const LOCAL: u8 = 0;

/// Which way nodes reach each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Sockets.
    Tcp,
    /// Sockets with everything encrypted.
    Encrypted,
    /// The copy between processes of one host.
    Host,
    /// Software EFA cards, fabric `efa-direct`.
    EfaDirect,
    /// Software EFA cards, fabric `efa`.
    Efa,
    /// Software EFA cards, protocol `auto`.
    Auto,
}

impl Kind {
    pub(crate) fn on_cards(self) -> bool {
        matches!(self, Self::EfaDirect | Self::Efa | Self::Auto)
    }

    pub(crate) fn setup(self) -> Setup {
        let setup = |protocol: &str| Setup { protocol: Some(protocol.into()), ..Setup::default() };
        match self {
            Self::Tcp => setup("tcp"),
            Self::Encrypted => {
                Setup { secret: Some("a secret of the tests".into()), encrypt: true, ..setup("tcp") }
            }
            Self::Host => Setup { same_host: true, ..setup("tcp") },
            Self::EfaDirect => Setup { provider: Some("efa-direct".into()), ..setup("efa") },
            Self::Efa => Setup { provider: Some("efa".into()), ..setup("efa") },
            Self::Auto => setup("auto"),
        }
    }

    /// How the path's name begins.
    pub(crate) fn path(self) -> &'static str {
        match self {
            Self::Tcp | Self::Encrypted => "tcp/net",
            Self::Host => "tcp/host",
            Self::EfaDirect | Self::Auto => "efa/efa-direct",
            Self::Efa => "efa/efa",
        }
    }
}

/// The libfabric of `cargo xtask libfabric`, or the one that the environment names.
fn libfabric() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FABRIC_LIBRARY") {
        return Some(path.into());
    }
    let executable = std::env::current_exe().unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let places = executable.ancestors().map(Path::to_path_buf).chain([workspace]);
    places.map(|dir| dir.join("libfabric-2.5.1/lib/libfabric.so.1")).find(|path| path.is_file())
}

/// Nodes of one test.
pub(crate) struct Cluster {
    pub(crate) kind: Kind,
    /// The cards, if there are any. Each process on them is a host of its own.
    pub(crate) cards: Option<Network>,
    library: Option<PathBuf>,
}

impl Cluster {
    /// Nothing is started yet. `None` when this machine lacks what it takes, which is said.
    pub(crate) fn new(test: &str, kind: Kind) -> Option<Self> {
        if !kind.on_cards() {
            return Some(Self { kind, cards: None, library: None });
        }
        let Some(library) = libfabric() else {
            eprintln!(
                "SKIP: {test} ({kind:?}): no libfabric 2.x here; `cargo xtask libfabric` puts one under target/"
            );
            return None;
        };
        match Network::new(2, Profile::p5()) {
            Ok(cards) => Some(Self { kind, cards: Some(cards), library: Some(library) }),
            Err(error) => {
                eprintln!("SKIP: {test} ({kind:?}): no software cards: {error}");
                None
            }
        }
    }

    pub(crate) fn node(&self) -> Node {
        self.node_with(self.kind.setup(), true)
    }

    /// A node that has no cards, though others do.
    pub(crate) fn without_cards(&self, setup: Setup) -> Node {
        self.node_with(setup, false)
    }

    pub(crate) fn node_with(&self, setup: Setup, with_cards: bool) -> Node {
        Node::start(self.command(with_cards), setup)
    }

    /// A node on the system's libfabric 1.17, which knows the fabric `efa` only; `None` if the system has another one or none, which
    /// is said.
    pub(crate) fn older_node(&self, test: &str) -> Option<Node> {
        let dirs = ["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"];
        let Some(older) = dirs.iter().map(Path::new).find(|dir| dir.join("libfabric.so.1.20.0").is_file())
        else {
            eprintln!("SKIP: {test}: the system has no libfabric 1.17");
            return None;
        };
        let mut command = self.command(true);
        command.env("FABRIC_LIBRARY", older.join("libfabric.so.1")).env_remove("FI_PROVIDER_PATH");
        Some(Node::start(command, self.kind.setup()))
    }

    pub(crate) fn command(&self, with_cards: bool) -> Command {
        let mut command = Command::new(std::env::current_exe().unwrap());
        // What the tests' own environment says must not decide.
        for name in ["WEFT_PROTOCOL", "MOONCAKE_PROTOCOL", "MC_FORCE_TCP", "WEFT_CONFIG"] {
            command.env_remove(name);
        }
        if let (true, Some(cards), Some(library)) = (with_cards, &self.cards, &self.library) {
            command.env("FABRIC_LIBRARY", library).env_remove("LD_LIBRARY_PATH");
            let providers = library.parent().unwrap().join("libfabric");
            if providers.is_dir() {
                command.env("FI_PROVIDER_PATH", providers);
            }
            cards.prepare(&mut command);
        }
        command
    }

    /// Tells the cards what shall go wrong.
    pub(crate) fn fault(&self, rule: &str) -> String {
        self.cards.as_ref().unwrap().control(rule).unwrap_or_else(|error| panic!("{rule}: {error}"))
    }

    pub(crate) fn heal(&self) {
        self.fault("clear");
    }
}

/// A node's process, and the line to it.
pub(crate) struct Node {
    child: Child,
    line: UnixStream,
    pub(crate) name: String,
    pub(crate) setup: Setup,
}

impl Node {
    pub(crate) fn start(command: Command, setup: Setup) -> Self {
        Self::try_start(command, setup).unwrap_or_else(|error| panic!("a node does not start: {error}"))
    }

    /// Starts a node; the error is what its engine said.
    pub(crate) fn try_start(mut command: Command, setup: Setup) -> Result<Self, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("line");
        let listener = UnixListener::bind(&path).unwrap();
        let mut child = command
            .args(["--exact", "node", "--nocapture", "--test-threads=1"])
            .env(LINE, &path)
            .env(SETUP, serde_json::to_string(&setup).unwrap())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // A node that dies before it calls is noticed by its absence.
        listener.set_nonblocking(true).unwrap();
        let deadline = Instant::now() + PATIENCE;
        let mut line = loop {
            match listener.accept() {
                Ok((line, _)) => break line,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if let Some(status) = child.try_wait().unwrap() {
                        panic!("a node ended before it called: {status}");
                    }
                    assert!(Instant::now() < deadline, "a node does not call");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("the line: {error}"),
            }
        };
        line.set_nonblocking(false).unwrap();
        line.set_read_timeout(Some(PATIENCE)).unwrap();
        match receive(&mut line).unwrap() {
            Answer::Text(name) => Ok(Self { child, line, name, setup }),
            Answer::Failed(error) => {
                let _ = child.wait();
                Err(error)
            }
            other => panic!("{other:?}"),
        }
    }

    /// Gives an order without waiting for the answer.
    pub(crate) fn tell(&mut self, order: &Order) {
        send(&mut self.line, order).unwrap();
    }

    /// The answer to the oldest order.
    pub(crate) fn hear(&mut self) -> Answer {
        receive(&mut self.line).unwrap_or_else(|error| panic!("node {}: {error}", self.name))
    }

    pub(crate) fn ask(&mut self, order: Order) -> Answer {
        self.tell(&order);
        self.hear()
    }

    /// An order that must go well.
    pub(crate) fn must(&mut self, order: Order) -> Answer {
        let what = format!("{order:?}").chars().take(200).collect::<String>();
        match self.ask(order) {
            Answer::Failed(error) => panic!("{}: {what}: {error}", self.name),
            answer => answer,
        }
    }

    /// An order that must fail; what was said.
    pub(crate) fn must_fail(&mut self, order: Order) -> String {
        match self.ask(order) {
            Answer::Failed(error) => error,
            answer => panic!("{}: it went well: {answer:?}", self.name),
        }
    }

    pub(crate) fn number(&mut self, order: Order) -> u64 {
        match self.must(order) {
            Answer::Number(number) => number,
            answer => panic!("{answer:?}"),
        }
    }

    pub(crate) fn register(&mut self, label: &str, len: usize, access: u8, seed: u64) -> u64 {
        self.number(Order::Register { label: label.into(), len, access, seed })
    }

    pub(crate) fn open(&mut self, peer: &Node) -> View {
        match self.must(Order::Open(peer.name.clone())) {
            Answer::View(view) => view,
            answer => panic!("{answer:?}"),
        }
    }

    pub(crate) fn view(&mut self, name: &str) -> View {
        match self.must(Order::Path(name.into())) {
            Answer::View(view) => view,
            answer => panic!("{answer:?}"),
        }
    }

    pub(crate) fn bytes(&mut self, label: &str, at: usize, len: usize) -> Vec<u8> {
        match self.must(Order::Bytes { label: label.into(), at, len }) {
            Answer::Bytes(bytes) => bytes,
            answer => panic!("{answer:?}"),
        }
    }

    /// Whether the memory holds exactly these bytes.
    pub(crate) fn holds(&mut self, label: &str, bytes: &[u8]) -> bool {
        self.number(Order::Checksum(label.into())) == checksum(bytes)
    }

    pub(crate) fn batch(&mut self, order: BatchOrder) -> Ended {
        match self.must(Order::Batch(order)) {
            Answer::Ended(ended) => ended,
            answer => panic!("{answer:?}"),
        }
    }

    /// Runs requests and waits for them.
    pub(crate) fn run(&mut self, requests: Vec<Request>) -> Ended {
        self.batch(BatchOrder { requests, follow: Follow::Wait, deadline_ms: None, notify: None })
    }

    pub(crate) fn note(&mut self, wait_ms: u64) -> Option<(String, Vec<u8>)> {
        match self.must(Order::NextNote { wait_ms }) {
            Answer::Note(note) => note,
            answer => panic!("{answer:?}"),
        }
    }

    pub(crate) fn statistics(&mut self) -> serde_json::Value {
        match self.must(Order::Statistics) {
            Answer::Text(text) => serde_json::from_str(&text).unwrap(),
            answer => panic!("{answer:?}"),
        }
    }

    /// The statistics of one peer.
    pub(crate) fn peer_statistics(&mut self, peer: &str) -> serde_json::Value {
        let all = self.statistics();
        let peers = all["peers"].as_array().unwrap().clone();
        peers.into_iter().find(|p| p["name"] == peer).unwrap_or_else(|| panic!("{all}"))
    }

    pub(crate) fn stop_traffic(&mut self) -> (u64, Vec<String>) {
        match self.must(Order::StopTraffic) {
            Answer::Traffic { well, errors } => (well, errors),
            answer => panic!("{answer:?}"),
        }
    }

    fn signal(&self, signal: i32) {
        // SAFETY: plain system call on a child of ours that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Stops it without a warning: it neither answers nor closes anything.
    pub(crate) fn freeze(&self) {
        self.signal(libc::SIGSTOP);
        // Each of its threads stops when it notices.
        let tasks = format!("/proc/{}/task", self.child.id());
        eventually("all threads have stopped", || {
            let stopped = |task: &std::fs::DirEntry| {
                let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
                stat.rsplit(") ")
                    .next()
                    .is_none_or(|rest| rest.starts_with(['T', 'Z', 'X']) || rest.is_empty())
            };
            std::fs::read_dir(&tasks).unwrap().flatten().all(|task| stopped(&task))
        });
    }

    pub(crate) fn thaw(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Ends it without a warning; how it was set up, with the address that it had.
    pub(crate) fn kill(mut self) -> Setup {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        Setup { listen: Some(self.name.clone()), name: Some(self.name.clone()), ..self.setup.clone() }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Whatever has become of the test: it must not stay. Errors mean that it has gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request between equal offsets of two buffers.
pub(crate) fn request(write: bool, local: &str, segment: &Node, remote: &str, at: u64, len: u64) -> Request {
    request_to(write, local, &segment.name, remote, at, len)
}

pub(crate) fn request_to(
    write: bool,
    local: &str,
    segment: &str,
    remote: &str,
    at: u64,
    len: u64,
) -> Request {
    Request {
        write,
        local: (local.into(), Where::Range { at, len }),
        segment: segment.into(),
        remote: (remote.into(), Where::Range { at, len }),
        tag: None,
    }
}

/// Waits for something that does not tell when it has happened.
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !happened() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// What memory of this length and seed holds at first.
pub(crate) fn filled(len: usize, seed: u64) -> Vec<u8> {
    pattern(len, seed)
}
