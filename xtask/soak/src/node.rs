//! One node: an engine, a pool that the others write to, and a writer to each of them.

use std::io::BufRead as _;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use engine::{Access, Engine, Error, HostMemory, Path, Protocol};
use fastrand::Rng;

use crate::health;
use crate::report::{Alive, Order, Report, Spec};
use crate::shadow::{AREA, area, pool_len};
use crate::traffic::Writer;

/// What the pool is called.
pub(crate) const POOL: &str = "pool";
/// Nobody else knows it, so the handshake with a secret is under test too.
const SECRET: &str = "the nodes of one soak share this secret";

/// Runs one until the supervisor goes, or until something is wrong.
pub(crate) fn run(spec: &Spec) -> Result<()> {
    let listen = spec.names[spec.node].parse().context("a node's name is its address")?;
    let mut builder = Engine::builder().listen(listen).secret(SECRET).same_host(spec.same_host).lanes(2);
    builder = builder.protocol(if spec.cards { Protocol::Auto } else { Protocol::Tcp });
    let engine = builder.build()?;
    let nodes = spec.names.len();
    let pool = HostMemory::new(pool_len(nodes))?;
    let registered = engine.register(POOL, pool.clone(), Access::READ_WRITE)?;
    let meters = Arc::new(Meters::new(nodes));
    let mut rng = Rng::with_seed(spec.seed ^ (spec.node as u64) << 32 ^ spec.life << 48);
    Report::Ready.print();

    let (say, violations) = crossbeam_channel::bounded::<String>(nodes + 1);
    for peer in (0..nodes).filter(|&p| p != spec.node) {
        let staging = HostMemory::new(AREA)?;
        let local = engine.register(&format!("staging {peer}"), staging.clone(), Access::LOCAL)?;
        let writer = Writer {
            engine: engine.clone(),
            meters: Arc::clone(&meters),
            me: spec.node,
            area: area(spec.node, spec.life),
            peer,
            name: spec.names[peer].clone(),
            staging,
            local,
            rng: rng.fork(),
        };
        let say = say.clone();
        std::thread::Builder::new().name(format!("writer-{peer}")).spawn(move || say.send(writer.run()))?;
    }

    let (order, orders) = crossbeam_channel::unbounded();
    std::thread::spawn(move || {
        for line in std::io::stdin().lock().lines().map_while(Result::ok) {
            if let Ok(said) = serde_json::from_str::<Order>(&line)
                && order.send(said).is_err()
            {
                return;
            }
        }
        // The supervisor has gone: so does the node.
        std::process::exit(0);
    });

    let mut registered = Some(registered);
    let ticks = crossbeam_channel::tick(Duration::from_secs(1));
    loop {
        crossbeam_channel::select! {
            recv(violations) -> violation => {
                Report::Violation(violation.unwrap_or_else(|_| "every writer has ended".into())).print();
                std::process::exit(1);
            }
            recv(orders) -> order => if order == Ok(Order::Reregister)
                && let Some(region) = registered.take()
            {
                if let Some(violation) = take_back(&engine, region, &pool, &mut rng) {
                    Report::Violation(format!("node {}: {violation}", spec.node)).print();
                    std::process::exit(1);
                }
                registered = Some(engine.register(POOL, pool.clone(), Access::READ_WRITE)?);
            },
            recv(ticks) -> _ => Report::Alive(meters.snapshot(spec.life)).print(),
        }
    }
}

/// Takes the pool back. When that has been done, nobody writes to it any more.
fn take_back(engine: &Engine, region: engine::Region, pool: &HostMemory, rng: &mut Rng) -> Option<String> {
    if let Err(error) = engine.unregister(region) {
        return Some(format!("the pool cannot be taken back: {error}"));
    }
    let contents = || {
        let mut bytes = vec![0; pool.len()];
        pool.read(0, &mut bytes).map(|()| bytes)
    };
    let Ok(before) = contents() else { return Some("the pool cannot be read".into()) };
    std::thread::sleep(Duration::from_millis(rng.u64(5..200)));
    let changed = contents().ok()?.iter().zip(&before).position(|(a, b)| a != b)?;
    Some(format!("byte {changed} of the pool changed after it had been taken back"))
}

/// What the writers of a node have done.
pub(crate) struct Meters {
    started: Instant,
    done: AtomicU64,
    failed: AtomicU64,
    verified: AtomicU64,
    pub(crate) aside: Vec<Gauge>,
    /// Milliseconds from the start to the last request that ended well.
    last: Vec<AtomicU64>,
    words: Mutex<Words>,
}

#[derive(Default)]
struct Words {
    paths: Vec<String>,
    errors: Vec<String>,
}

#[derive(Default)]
pub(crate) struct Gauge(AtomicUsize);

impl Gauge {
    pub(crate) fn store(&self, value: usize) {
        self.0.store(value, Ordering::Relaxed);
    }
}

impl Meters {
    fn new(nodes: usize) -> Self {
        let words = Words { paths: vec![String::new(); nodes], errors: vec![String::new(); nodes] };
        Self {
            started: Instant::now(),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            verified: AtomicU64::new(0),
            aside: (0..nodes).map(|_| Gauge::default()).collect(),
            last: (0..nodes).map(|_| AtomicU64::new(0)).collect(),
            words: Mutex::new(words),
        }
    }

    fn words(&self) -> std::sync::MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn elapsed_ms(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    pub(crate) fn done(&self, peer: usize) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.last[peer].store(self.elapsed_ms(), Ordering::Relaxed);
    }

    pub(crate) fn request_failed(&self, peer: usize, error: &Error) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.error(peer, error);
    }

    pub(crate) fn error(&self, peer: usize, error: &Error) {
        self.words().errors[peer] = error.to_string();
    }

    pub(crate) fn path(&self, peer: usize, path: &Path) {
        let path = path.to_string();
        let mut words = self.words();
        if words.paths[peer] != path {
            words.paths[peer] = path;
        }
    }

    pub(crate) fn verified(&self, bytes: usize) {
        self.verified.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn snapshot(&self, life: u64) -> Alive {
        let now = self.elapsed_ms();
        let words = self.words();
        let health::Process { memory_kib, threads, descriptors } = health::this_process();
        Alive {
            life,
            done: self.done.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
            verified: self.verified.load(Ordering::Relaxed),
            aside: self.aside.iter().map(|a| a.0.load(Ordering::Relaxed)).sum(),
            quiet_ms: self.last.iter().map(|l| now - l.load(Ordering::Relaxed).min(now)).collect(),
            paths: words.paths.clone(),
            errors: words.errors.clone(),
            memory_kib,
            threads,
            descriptors,
        }
    }
}
