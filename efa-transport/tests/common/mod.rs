//! A target in a process of its own, and a line to tell it what to do.
//!
//! The test program starts itself again as the target ([`Target::start`]); its test `target_process` finds the port of the
//! line in the environment and serves until it is told to stop, its line breaks, or it is killed. Descriptors travel over that
//! line: the transport itself has no sockets.

#![allow(dead_code)] // each test program uses a part of it

pub(crate) mod cards;
pub(crate) mod scripted;

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use efa_transport::{
    Access, Batch, Config, Error, NicSelection, PeerId, Provider, Region, Request, Transport,
};
use fabric_safe::{Hints, Mapping, PageKind};

/// Longest wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

const PORT: &str = "EFA_TRANSPORT_TEST_PORT";

/// Some time from now, when a test that hangs fails instead.
pub(crate) fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// The provider, with `nics` cards: the first ones of EFA's, endpoints of the same interface elsewhere.
pub(crate) fn config(provider: &str, nics: usize, name: &str) -> Config {
    let config = Config::new()
        .name(name)
        .provider(Provider::parse(provider))
        .same_process_copy(false)
        .request_deadline(PATIENCE);
    if provider.starts_with("efa") {
        return config.nics(NicSelection::Named(efa_cards().into_iter().take(nics).collect()));
    }
    let config = config.endpoints_per_nic(nics);
    if matches!(provider, "shm" | "scripted" | "scripted-efa") { config } else { config.source("127.0.0.1") }
}

/// The names of all EFA cards, in order.
pub(crate) fn efa_cards() -> Vec<String> {
    let infos = Hints::new().provider("efa").discover().unwrap_or_default();
    let mut names: Vec<String> = infos.iter().filter_map(|info| Some(info.nic()?.name)).collect();
    names.dedup();
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// Opens, or says why the test is skipped.
pub(crate) fn open(test: &str, config: Config) -> Option<Transport> {
    match Transport::open(config) {
        Ok(transport) => Some(transport),
        Err(error @ (Error::NoLibrary(_) | Error::NoProvider { .. })) => {
            eprintln!("SKIP: {test}: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Fresh memory that peers may use.
pub(crate) fn memory(transport: &Transport, len: usize) -> Region {
    lend(transport, &mapping(len))
}

/// Fresh memory.
pub(crate) fn mapping(len: usize) -> Arc<Mapping> {
    Arc::new(Mapping::anonymous(len, PageKind::Small).expect("memory"))
}

/// Memory that peers may use.
pub(crate) fn lend(transport: &Transport, memory: &Arc<Mapping>) -> Region {
    transport.register(Arc::clone(memory) as Arc<_>, Access::ALL).expect("registering")
}

/// Bytes that are different everywhere and for every seed.
pub(crate) fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed ^ 0x9e37_79b9_7f4a_7c15;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ state >> 29).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// A checksum that notices every changed, moved or missing byte (64-bit polynomial over words).
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<8>();
    let mut sum = bytes.len() as u64;
    for word in words {
        sum = (sum ^ u64::from_le_bytes(*word)).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(23);
    }
    for byte in rest {
        sum = (sum ^ u64::from(*byte)).wrapping_mul(0x9fb2_1c65_1e98_df25).rotate_left(23);
    }
    sum
}

fn send(line: &mut TcpStream, bytes: &[u8]) -> io::Result<()> {
    line.write_all(&(bytes.len() as u64).to_le_bytes())?;
    line.write_all(bytes)
}

fn receive(line: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 8];
    line.read_exact(&mut len)?;
    let mut bytes = vec![0; u64::from_le_bytes(len) as usize];
    line.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn word(bytes: &[u8], index: usize) -> u64 {
    u64::from_le_bytes(bytes[8 * index..8 * index + 8].try_into().expect("eight bytes"))
}

/// What a target can be told; the first byte of a message.
mod order {
    pub(crate) const CHECKSUM: u8 = 0;
    pub(crate) const FILL: u8 = 1;
    pub(crate) const MEET: u8 = 2;
    pub(crate) const ARRIVALS: u8 = 3;
    pub(crate) const DESCRIPTOR: u8 = 4;
    pub(crate) const REGISTER_AGAIN: u8 = 5;
    pub(crate) const SUMS: u8 = 6;
    pub(crate) const FILL_RANGE: u8 = 7;
    pub(crate) const PUT: u8 = 8;
    pub(crate) const GET: u8 = 9;
}

/// A target process.
pub(crate) struct Target {
    child: Child,
    line: TcpStream,
    /// First address of its memory.
    pub(crate) addr: u64,
    pub(crate) descriptor: Vec<u8>,
}

impl Target {
    /// Starts a target with `len` bytes of memory.
    pub(crate) fn start(provider: &str, nics: usize, name: &str, len: usize) -> Target {
        Self::start_with(provider, nics, name, len, &[])
    }

    /// The same, with variables of its own.
    pub(crate) fn start_with(
        provider: &str,
        nics: usize,
        name: &str,
        len: usize,
        env: &[(&str, &str)],
    ) -> Target {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listening");
        let port = listener.local_addr().expect("bound").port();
        let child = Command::new(std::env::current_exe().expect("this program"))
            .args(["--exact", "target_process", "--nocapture", "--test-threads=1"])
            .env(PORT, format!("{port} {nics} {len} {name} {provider}"))
            .envs(env.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("starting this program again");
        // A target that dies before it calls is noticed by its absence.
        listener.set_nonblocking(true).expect("a listener");
        let deadline = soon();
        let mut line = loop {
            match listener.accept() {
                Ok((line, _)) => break line,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(1));
                }
                Err(error) => panic!("the target does not call: {error}"),
            }
        };
        line.set_nonblocking(false).expect("a line");
        line.set_read_timeout(Some(PATIENCE)).expect("a line");
        line.set_nodelay(true).expect("a line");
        let addr = word(&receive(&mut line).expect("its address"), 0);
        let descriptor = receive(&mut line).expect("its descriptor");
        Target { child, line, addr, descriptor }
    }

    fn ask(&mut self, order: u8, arguments: &[u8]) -> Vec<u8> {
        let mut message = vec![order];
        message.extend_from_slice(arguments);
        send(&mut self.line, &message).expect("asking the target");
        receive(&mut self.line).expect("the target's answer")
    }

    /// Each side takes in the other's descriptor.
    pub(crate) fn meet(&mut self, transport: &Transport) -> PeerId {
        let answer = self.ask(order::MEET, &transport.local_descriptor());
        assert_eq!(answer, b"ok", "{}", String::from_utf8_lossy(&answer));
        // It may have opened another fabric for us.
        self.descriptor = self.ask(order::DESCRIPTOR, &[]);
        transport.add_or_update_peer(&self.descriptor).expect("its descriptor")
    }

    /// The checksum of all its memory.
    pub(crate) fn checksum(&mut self) -> u64 {
        word(&self.ask(order::CHECKSUM, &[]), 0)
    }

    /// Fills its memory with the pattern of a seed.
    pub(crate) fn fill(&mut self, seed: u64) {
        self.ask(order::FILL, &words(&[seed]));
    }

    /// The checksum of each of its pages.
    pub(crate) fn sums(&mut self, page_len: usize) -> Vec<u64> {
        let sums = self.ask(order::SUMS, &words(&[page_len as u64]));
        (0..sums.len() / 8).map(|index| word(&sums, index)).collect()
    }

    /// Fills a range of its memory with the pattern of a seed.
    pub(crate) fn fill_range(&mut self, at: usize, len: usize, seed: u64) {
        self.ask(order::FILL_RANGE, &words(&[at as u64, len as u64, seed]));
    }

    /// Waits there until `count` writes with an immediate have arrived; how many have.
    pub(crate) fn arrivals(&mut self, immediate: u64, count: u64) -> u64 {
        word(&self.ask(order::ARRIVALS, &words(&[immediate, count])), 0)
    }

    /// Unregisters its memory, registers fresh memory, and tells about it.
    pub(crate) fn register_again(&mut self) {
        self.addr = word(&self.ask(order::REGISTER_AGAIN, &[]), 0);
        self.descriptor = self.ask(order::DESCRIPTOR, &[]);
    }

    /// Only it takes our descriptor in; what it says.
    pub(crate) fn is_told(&mut self, transport: &Transport) -> Result<(), String> {
        match self.ask(order::MEET, &transport.local_descriptor()) {
            answer if answer == b"ok" => Ok(()),
            answer => Err(String::from_utf8_lossy(&answer).into_owned()),
        }
    }

    /// Its descriptor as it is now.
    pub(crate) fn tells(&mut self) -> Vec<u8> {
        self.ask(order::DESCRIPTOR, &[])
    }

    /// Makes it write its memory to whom it met last, or read from there; what it says of that.
    pub(crate) fn transfers(&mut self, write: bool, remote: u64, len: usize) -> Result<(), String> {
        let order = if write { order::PUT } else { order::GET };
        match self.ask(order, &words(&[remote, len as u64])) {
            answer if answer == b"ok" => Ok(()),
            answer => Err(String::from_utf8_lossy(&answer).into_owned()),
        }
    }

    /// Its process.
    pub(crate) fn process(&self) -> u32 {
        self.child.id()
    }

    /// Stops it where it is, and returns when every thread of it stands still: it is there and does nothing.
    pub(crate) fn stop(&self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP).expect("stopping the target");
        let stands = |task: std::fs::DirEntry| {
            let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
            stat.rsplit(')').next().is_some_and(|state| state.starts_with(" T"))
        };
        eventually("the target has not stopped", || {
            let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id()));
            tasks.expect("its threads").flatten().all(stands)
        });
    }

    /// As [`processor_times`], of its process.
    pub(crate) fn processor_times(&self) -> Option<(Duration, Duration)> {
        processor_times(self.child.id())
    }

    /// Ends it without a warning.
    pub(crate) fn kill(mut self) {
        self.child.kill().expect("killing the target");
        self.child.wait().expect("its end");
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        // Whatever has become of the test: it must not stay. Errors mean that it has gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
        // What the provider `shm` of a killed process leaves behind would be in the way of a later process with the same id.
        let own = format!("{}:", self.child.id());
        for left in std::fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if left.file_name().to_string_lossy().starts_with(&own) {
                let _ = std::fs::remove_file(left.path());
            }
        }
    }
}

/// What a target does; call it from a test called `target_process`. Does nothing in the program that was started first.
pub(crate) fn serve() {
    serve_with(|_| {});
}

/// The same; `also` is called with the target's memory before anybody hears of it.
pub(crate) fn serve_with(also: impl FnOnce(&Arc<Mapping>)) {
    let Ok(order) = std::env::var(PORT) else { return };
    let mut words_of = order.splitn(5, ' ');
    let mut next = || words_of.next().expect("port, cards, length, name, provider");
    let port: u16 = next().parse().expect("a port");
    let nics: usize = next().parse().expect("a number of cards");
    let len: usize = next().parse().expect("a length");
    let (name, provider) = (next(), next());
    let transport = Transport::open(config(provider, nics, name)).expect("opening at the target");
    let mapping = mapping(len);
    also(&mapping);
    let mut region = lend(&transport, &mapping);
    drop(mapping);
    let mut line = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("the line");
    line.set_nodelay(true).expect("a line");
    send(&mut line, &words(&[region.addr()])).expect("the line");
    send(&mut line, &transport.local_descriptor()).expect("the line");
    let mut counters = std::collections::HashMap::new();
    let mut met = None;
    // The line breaks when the first program ends.
    while let Ok(message) = receive(&mut line) {
        let (order, arguments) = message.split_first().expect("an order");
        let answer = match *order {
            order::CHECKSUM => {
                let mut bytes = vec![0; len];
                region.read(0, &mut bytes).expect("our memory");
                words(&[checksum(&bytes)])
            }
            order::FILL => {
                region.write(0, &pattern(len, word(arguments, 0))).expect("our memory");
                Vec::new()
            }
            order::SUMS => {
                let mut bytes = vec![0; len];
                region.read(0, &mut bytes).expect("our memory");
                let page_len = word(arguments, 0) as usize;
                words(&bytes.chunks(page_len).map(checksum).collect::<Vec<u64>>())
            }
            order::FILL_RANGE => {
                let bytes = pattern(word(arguments, 1) as usize, word(arguments, 2));
                region.write(word(arguments, 0), &bytes).expect("our memory");
                Vec::new()
            }
            order::MEET => match transport.add_or_update_peer(arguments) {
                Ok(peer) => {
                    met = Some(peer);
                    b"ok".to_vec()
                }
                Err(error) => error.to_string().into_bytes(),
            },
            order::PUT | order::GET => {
                let peer = met.expect("somebody to write to");
                let (here, there, len) = (region.addr(), word(arguments, 0), word(arguments, 1));
                let mut batch = Batch::new();
                let request = match *order {
                    order::PUT => Request::write(peer, &region, here, there, len),
                    _ => Request::read(peer, &region, here, there, len),
                };
                batch.push(request).expect("a request");
                let outcome = transport.submit(&mut batch).and_then(|handle| handle.wait());
                outcome.map_or_else(|error| error.to_string().into_bytes(), |()| b"ok".to_vec())
            }
            order::ARRIVALS => {
                let (immediate, count) = (word(arguments, 0) as u32, word(arguments, 1));
                let counter =
                    counters.entry(immediate).or_insert_with(|| transport.arrivals().watch(immediate));
                let _ = counter.wait(count, soon());
                words(&[counter.value()])
            }
            order::DESCRIPTOR => transport.local_descriptor(),
            order::REGISTER_AGAIN => {
                region.unregister(soon()).expect("unregistering");
                region = memory(&transport, len);
                words(&[region.addr()])
            }
            other => panic!("no such order: {other}"),
        };
        if send(&mut line, &answer).is_err() {
            break;
        }
    }
    std::process::exit(0);
}

/// For how long all threads of a process have run, and for how long they were ready to and had no processor; `None` where the kernel
/// does not tell.
pub(crate) fn processor_times(process: u32) -> Option<(Duration, Duration)> {
    let tasks = std::fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    // Time on a processor, time without one, number of turns; in nanoseconds.
    let times = |task: std::fs::DirEntry| -> Option<(u64, u64)> {
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        let mut fields = text.split_whitespace();
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    let (ran, waited) = tasks.filter_map(times).reduce(|sum, task| (sum.0 + task.0, sum.1 + task.1))?;
    Some((Duration::from_nanos(ran), Duration::from_nanos(waited)))
}

/// Waits for something that does not tell when it has happened.
pub(crate) fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = soon();
    while !happened() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Providers that tests run on: those of this machine's libfabric, and software EFA cards where they have been set up.
pub(crate) fn providers() -> Vec<&'static str> {
    let mut providers = vec!["tcp;ofi_rxm", "net", "tcp", "shm"];
    if std::env::var("FI_PROVIDER").is_ok_and(|provider| provider == "efa") {
        providers = vec!["efa/efa-direct", "efa/efa"];
    }
    providers
}
