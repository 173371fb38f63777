//! A node: a process with an engine of its own that does what it is told over a line.

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use engine::{
    Access, ArrivalCounter, Batch, Buffer, Engine, Error, HostMemory, Region, Segment, Shape, Status,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::order::{Answer, BatchOrder, Ended, Follow, Order, Setup, View, Where, checksum, pattern};

/// Where the line is (a Unix socket, which leads into network namespaces, too), and the setup as JSON.
pub(crate) const LINE: &str = "ENGINE_TEST_LINE";
pub(crate) const SETUP: &str = "ENGINE_TEST_SETUP";

/// Longest wait of a node for anything that it was not told a limit for.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn send(line: &mut UnixStream, message: &impl Serialize) -> io::Result<()> {
    let bytes = postcard::to_stdvec(message).map_err(io::Error::other)?;
    line.write_all(&(bytes.len() as u64).to_le_bytes())?;
    line.write_all(&bytes)
}

pub(crate) fn receive<T: DeserializeOwned>(line: &mut UnixStream) -> io::Result<T> {
    let mut len = [0; 8];
    line.read_exact(&mut len)?;
    let mut bytes = vec![0; u64::from_le_bytes(len) as usize];
    line.read_exact(&mut bytes)?;
    postcard::from_bytes(&bytes).map_err(io::Error::other)
}

fn soon() -> Instant {
    Instant::now() + PATIENCE
}

/// Memory of the node: owned by the engine, or mapped where the setup says.
enum Bytes {
    Owned(HostMemory),
    Fixed { start: NonNull<u8>, len: usize },
}

// SAFETY: the mapping is never unmapped, and this is the only handle to it; its bytes are copied with raw pointers only.
unsafe impl Send for Bytes {}
// SAFETY: as above.
unsafe impl Sync for Bytes {}

impl Bytes {
    fn len(&self) -> usize {
        match self {
            Self::Owned(memory) => memory.len(),
            Self::Fixed { len, .. } => *len,
        }
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        match self {
            Self::Owned(memory) => memory.read(at, into).unwrap(),
            Self::Fixed { start, len } => {
                assert!(at + into.len() <= *len);
                // SAFETY: in bounds of a mapping that stays; the other side is a fresh slice.
                unsafe { start.as_ptr().add(at).copy_to_nonoverlapping(into.as_mut_ptr(), into.len()) }
            }
        }
    }

    fn write(&self, at: usize, from: &[u8]) {
        match self {
            Self::Owned(memory) => memory.write(at, from).unwrap(),
            Self::Fixed { start, len } => {
                assert!(at + from.len() <= *len);
                // SAFETY: in bounds of a mapping that stays; the other side is a slice elsewhere.
                unsafe { start.as_ptr().add(at).copy_from_nonoverlapping(from.as_ptr(), from.len()) }
            }
        }
    }
}

struct Node {
    engine: Engine,
    fixed: Option<u64>,
    memory: HashMap<String, Bytes>,
    regions: HashMap<String, Region>,
    access: HashMap<String, Access>,
    segments: HashMap<String, Segment>,
    counters: HashMap<(String, u16), ArrivalCounter>,
    traffic: Option<Traffic>,
}

/// Batches that are run one after the other in the background.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, Vec<String>)>,
}

/// The node's process; does nothing in the program that was started first.
pub(crate) fn serve() {
    let Ok(path) = std::env::var(LINE) else { return };
    // `RUST_LOG=debug` shows what the engines of a failing test have to say.
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).init();
    let setup: Setup = serde_json::from_str(&std::env::var(SETUP).unwrap()).unwrap();
    let mut line = UnixStream::connect(path).unwrap();
    let engine = match build(&setup) {
        Ok(engine) => engine,
        Err(error) => {
            let _ = send(&mut line, &Answer::Failed(error.to_string()));
            std::process::exit(0);
        }
    };
    send(&mut line, &Answer::Text(engine.name().to_owned())).unwrap();
    let mut node = Node {
        engine,
        fixed: setup.fixed,
        memory: HashMap::new(),
        regions: HashMap::new(),
        access: HashMap::new(),
        segments: HashMap::new(),
        counters: HashMap::new(),
        traffic: None,
    };
    // The line breaks when the first program ends.
    while let Ok(order) = receive::<Order>(&mut line) {
        let answer = node.obey(order).unwrap_or_else(|error| Answer::Failed(error.to_string()));
        if send(&mut line, &answer).is_err() {
            break;
        }
    }
    std::process::exit(0);
}

fn build(setup: &Setup) -> Result<Engine, Error> {
    let mut builder = Engine::builder().same_host(setup.same_host);
    if let Some(protocol) = &setup.protocol {
        builder = builder.protocol(protocol.parse()?);
    }
    if let Some(name) = &setup.name {
        builder = builder.name(name);
    }
    if let Some(listen) = &setup.listen {
        builder = builder.listen(listen.parse().unwrap());
    }
    if let Some(provider) = &setup.provider {
        builder = builder.provider(provider);
    }
    if let Some(secret) = &setup.secret {
        builder = builder.secret(secret).encrypt(setup.encrypt);
    }
    if let Some(ms) = setup.timeout_ms {
        builder = builder.timeout(Duration::from_millis(ms));
    }
    builder.build()
}

/// Maps memory at an address, which must be free.
fn map_at(addr: u64, len: usize) -> NonNull<u8> {
    // SAFETY: a new mapping; MAP_FIXED_NOREPLACE leaves what is there alone.
    let start = unsafe {
        libc::mmap(
            addr as *mut libc::c_void,
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert!(start != libc::MAP_FAILED, "{addr:#x} is taken");
    NonNull::new(start.cast()).unwrap()
}

fn access(bits: u8) -> Access {
    Access::from_bits(bits).unwrap()
}

impl Node {
    fn region(&self, label: &str) -> Region {
        self.regions[label].clone()
    }

    fn segment(&mut self, name: &str) -> Result<Segment, Error> {
        if let Some(segment) = self.segments.get(name) {
            return Ok(segment.clone());
        }
        let segment = self.engine.open(name, soon())?;
        self.segments.insert(name.to_owned(), segment.clone());
        Ok(segment)
    }

    fn register(&mut self, label: &str, access: Access) -> Result<(), Error> {
        let region = match &self.memory[label] {
            Bytes::Owned(memory) => self.engine.register(label, memory.clone(), access)?,
            // SAFETY: the mapping stays for the life of the process, and its bytes are copied with raw pointers only.
            Bytes::Fixed { start, len } => unsafe { self.engine.register_raw(label, *start, *len, access)? },
        };
        self.regions.insert(label.to_owned(), region);
        self.access.insert(label.to_owned(), access);
        Ok(())
    }

    fn obey(&mut self, order: Order) -> Result<Answer, Error> {
        match order {
            Order::Register { label, len, access: bits, seed } => {
                let bytes = match self.fixed.take() {
                    Some(addr) => Bytes::Fixed { start: map_at(addr, len), len },
                    None => Bytes::Owned(HostMemory::new(len)?),
                };
                bytes.write(0, &pattern(len, seed));
                self.memory.insert(label.clone(), bytes);
                self.register(&label, access(bits))?;
                return Ok(Answer::Number(self.regions[&label].addr()));
            }
            Order::RegisterMany { prefix, count, len, access: bits } => {
                let labels: Vec<String> = (0..count).map(|i| format!("{prefix}{i}")).collect();
                let mut buffers = Vec::new();
                for label in &labels {
                    let memory = HostMemory::new(len)?;
                    buffers.push(Buffer::new(label, memory.clone(), access(bits)));
                    self.memory.insert(label.clone(), Bytes::Owned(memory));
                }
                let regions = self.engine.register_many(buffers)?;
                self.regions.extend(labels.into_iter().zip(regions));
            }
            Order::Unregister(label) => {
                let region = self.regions.remove(&label).unwrap();
                self.engine.unregister(region)?;
            }
            Order::UnregisterMany { prefix } => {
                let gone: Vec<String> =
                    self.regions.keys().filter(|label| label.starts_with(&prefix)).cloned().collect();
                let regions: Vec<Region> =
                    gone.iter().filter_map(|label| self.regions.remove(label)).collect();
                self.engine.unregister_many(regions)?;
            }
            Order::RegisterAgain(label) => {
                if let Some(region) = self.regions.remove(&label) {
                    self.engine.unregister(region)?;
                }
                self.register(&label, self.access[&label])?;
            }
            Order::Fill { label, seed } => {
                let memory = &self.memory[&label];
                memory.write(0, &pattern(memory.len(), seed));
            }
            Order::Write { label, at, bytes } => self.memory[&label].write(at, &bytes),
            Order::Bytes { label, at, len } => {
                let mut bytes = vec![0; len];
                self.memory[&label].read(at, &mut bytes);
                return Ok(Answer::Bytes(bytes));
            }
            Order::Checksum(label) => {
                let memory = &self.memory[&label];
                let mut bytes = vec![0; memory.len()];
                memory.read(0, &mut bytes);
                return Ok(Answer::Number(checksum(&bytes)));
            }
            Order::RegionAt { label, offset, len } => {
                let addr = self.region(&label).addr();
                let found = self.engine.region_at(addr + offset, len);
                return Ok(Answer::Text(match found {
                    Some((region, offset)) => format!("{}+{offset}", region.label()),
                    None => "none".into(),
                }));
            }
            Order::Open(name) => {
                self.segment(&name)?;
                return self.view(&name);
            }
            Order::Path(name) => return self.view(&name),
            Order::Close(name) => {
                if let Some(segment) = self.segments.remove(&name) {
                    self.engine.close(segment);
                }
            }
            Order::Refresh(name) => self.segment(&name)?.refresh(soon())?,
            Order::Probe(name) => {
                self.segment(&name)?.probe(Instant::now() + Duration::from_secs(2))?;
            }
            Order::WarmUp(name) => self.segment(&name)?.warm_up(soon())?,
            Order::Batch(order) => {
                let mut batch = Batch::new();
                self.fill(&mut batch, &order)?;
                return run(&self.engine, &mut batch, order.follow).map(Answer::Ended);
            }
            Order::Traffic(order) => {
                let stop = Arc::new(AtomicBool::new(false));
                let mut other = Self {
                    engine: self.engine.clone(),
                    fixed: None,
                    memory: HashMap::new(),
                    regions: self.regions.clone(),
                    access: HashMap::new(),
                    segments: self.segments.clone(),
                    counters: HashMap::new(),
                    traffic: None,
                };
                let stopped = Arc::clone(&stop);
                let thread = std::thread::spawn(move || {
                    let (mut well, mut errors) = (0, Vec::new());
                    let mut batch = Batch::new();
                    while !stopped.load(Ordering::Relaxed) {
                        batch.clear();
                        let ended = other
                            .fill(&mut batch, &order)
                            .and_then(|()| other.engine.submit(&mut batch)?.wait());
                        match ended {
                            Ok(()) => well += 1,
                            Err(error) => {
                                errors.push(error.to_string());
                                // As a program would: not at once again.
                                std::thread::sleep(Duration::from_millis(10));
                            }
                        }
                    }
                    (well, errors)
                });
                self.traffic = Some(Traffic { stop, thread });
            }
            Order::StopTraffic => {
                let Traffic { stop, thread } = self.traffic.take().unwrap();
                stop.store(true, Ordering::Relaxed);
                let (well, errors) = thread.join().unwrap();
                return Ok(Answer::Traffic { well, errors });
            }
            Order::Notify { segment, payload } => self.segment(&segment)?.notify(&payload, soon())?,
            Order::NextNote { wait_ms } => {
                let note = self.engine.notification(Instant::now() + Duration::from_millis(wait_ms));
                return Ok(Answer::Note(note.map(|note| (note.from, note.payload))));
            }
            Order::Arrivals { peer, tag, at_least, wait_ms } => {
                let counter = match self.counters.get(&(peer.clone(), tag)) {
                    Some(counter) => counter.clone(),
                    None => self.engine.arrivals(&peer, tag)?,
                };
                self.counters.insert((peer, tag), counter.clone());
                counter.wait(at_least, Instant::now() + Duration::from_millis(wait_ms));
                return Ok(Answer::Number(counter.value()));
            }
            Order::Statistics => {
                return Ok(Answer::Text(serde_json::to_string(&self.engine.statistics()).unwrap()));
            }
            Order::Settings => {
                return Ok(Answer::Text(serde_json::to_string(self.engine.settings()).unwrap()));
            }
            Order::Shutdown { wait_ms } => {
                self.engine.shutdown(Instant::now() + Duration::from_millis(wait_ms))
            }
        }
        Ok(Answer::Ok)
    }

    fn view(&mut self, name: &str) -> Result<Answer, Error> {
        let segment = self.segment(name)?;
        let buffers = segment.buffers();
        Ok(Answer::View(View {
            path: segment.path().to_string(),
            reason: segment.path_reason(),
            epoch: segment.epoch(),
            buffers: buffers.iter().map(|b| (b.label().to_owned(), b.addr(), b.len())).collect(),
        }))
    }

    fn fill(&mut self, batch: &mut Batch, order: &BatchOrder) -> Result<(), Error> {
        if let Some(ms) = order.deadline_ms {
            batch.set_deadline(Duration::from_millis(ms));
        }
        if let Some(payload) = &order.notify {
            batch.notify_on_completion(payload.clone());
        }
        for request in &order.requests {
            let local = self.region(&request.local.0);
            let segment = self.segment(&request.segment)?;
            let remote = segment.buffer(&request.remote.0)?;
            let mut lists = (Lists::default(), Lists::default());
            let here = shape(&request.local.1, local.addr(), &mut lists.0);
            let there = shape(&request.remote.1, remote.addr(), &mut lists.1);
            match (request.write, request.tag) {
                (true, None) => batch.write(&local, here, &segment, there)?,
                (true, Some(tag)) => batch.write_with_tag(&local, here, &segment, there, tag)?,
                (false, _) => batch.read(&local, here, &segment, there)?,
            };
        }
        Ok(())
    }
}

#[derive(Default)]
struct Lists {
    addrs: Vec<u64>,
    ranges: Vec<(u64, u64)>,
}

/// Offsets become addresses.
fn shape<'a>(place: &Where, base: u64, lists: &'a mut Lists) -> Shape<'a> {
    match place {
        Where::Range { at, len } => Shape::contiguous(base + at, *len),
        Where::Pages { page_len, at } => {
            lists.addrs = at.iter().map(|at| base + at).collect();
            Shape::Paged { page_len: *page_len, addrs: &lists.addrs }
        }
        Where::Strided { at, block_len, stride, count } => {
            Shape::Strided { addr: base + at, block_len: *block_len, stride: *stride, count: *count }
        }
        Where::Scatter(ranges) => {
            lists.ranges = ranges.iter().map(|(at, len)| (base + at, *len)).collect();
            Shape::Scatter(&lists.ranges)
        }
    }
}

/// Submits, follows it to its end in the way that was asked for, and looks at every status twice.
fn run(engine: &Engine, batch: &mut Batch, follow: Follow) -> Result<Ended, Error> {
    let count = batch.len();
    let began = Instant::now();
    let mut handle = engine.submit(batch)?;
    assert!(batch.is_empty() && handle.len() == count);
    let result = match follow {
        Follow::Drop => {
            drop(handle);
            return Ok(Ended { result: Ok(()), statuses: Vec::new(), quiesced: false, ms: 0 });
        }
        Follow::Cancel => {
            handle.cancel();
            handle.wait()
        }
        Follow::Wait => handle.wait(),
        Follow::WaitUntil => {
            let limit = Instant::now() + 3 * PATIENCE;
            loop {
                if let Some(result) = handle.wait_until(Instant::now() + Duration::from_millis(3)) {
                    break result;
                }
                assert!(Instant::now() < limit, "a batch does not end");
            }
        }
        Follow::Poll => {
            let limit = Instant::now() + 3 * PATIENCE;
            loop {
                if let Some(result) = handle.poll() {
                    break result;
                }
                assert!(Instant::now() < limit, "a batch does not end");
                std::thread::yield_now();
            }
        }
        Follow::Await => block_on(&mut handle),
    };
    let ms = began.elapsed().as_millis() as u64;
    let statuses = |_| -> Vec<Result<(), String>> {
        let status = |index| match handle.status(index) {
            Status::Done => Ok(()),
            Status::Failed(error) => Err(error.to_string()),
            Status::Pending => Err("PENDING after the end".into()),
        };
        (0..count).map(status).collect()
    };
    let first = statuses(());
    // After success it is so at once, but for the last hand of another thread.
    let limit = if result.is_ok() { Duration::from_secs(1) } else { PATIENCE };
    let quiesced = handle.quiesced(Instant::now() + limit);
    assert_eq!(first, statuses(()), "a status has changed after the end");
    Ok(Ended { result: result.map_err(|error| error.to_string()), statuses: first, quiesced, ms })
}

/// The smallest executor there is.
fn block_on<F: Future + Unpin>(future: &mut F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let limit = Instant::now() + 3 * PATIENCE;
    loop {
        match std::pin::Pin::new(&mut *future).poll(&mut Context::from_waker(&waker)) {
            Poll::Ready(output) => return output,
            Poll::Pending => {
                let left = limit.saturating_duration_since(Instant::now());
                assert!(!left.is_zero(), "nobody woke the future");
                std::thread::park_timeout(left);
            }
        }
    }
}
