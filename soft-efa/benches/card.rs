//! One software card against a bare `process_vm_writev` loop over the same memory of the same two processes.
//!
//! The card is driven through libfabric (fabric `efa-direct`, fabric-safe) by one thread that posts and polls; the target process sleeps.
//! `cargo bench -p soft-efa --bench card` (or `cargo xtask bench` with the suite that lists it); needs `cargo xtask libfabric`.

#![allow(clippy::unwrap_used)] // a benchmark fails by panicking

use benchkit::{Bench, Metric, OtherEnd, Result, per_second, throughput_gb_per_s};
use fabric_safe::{
    Access, Address, AddressVector, CompletionBatch, CompletionQueue, CompletionQueueOptions, Direction,
    Domain, Endpoint, Fabric, Hints, MemoryRegion, PostError, RegisterOptions, RemoteRegion,
};
use soft_efa::{Network, Profile};
use std::io::BufRead as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

const ROLE: &str = "SOFT_EFA_BENCH_ROLE";
/// Memory on each side that the operations walk through: larger than a core's cache, as real transfers are.
const FOOTPRINT: usize = 64 << 20;
/// Requests in flight.
const DEPTH: usize = 256;

fn main() -> Result<()> {
    match std::env::var(ROLE).as_deref() {
        Ok("initiator") => initiator(),
        Ok("target") => target(),
        _ => launch(),
    }
}

fn library() -> Option<PathBuf> {
    if let Some(path) = std::env::var_os("FABRIC_LIBRARY") {
        return Some(path.into());
    }
    let exe = std::env::current_exe().unwrap();
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target");
    let places = exe.ancestors().map(Path::to_path_buf).chain([workspace]);
    places.map(|dir| dir.join("libfabric-2.5.1/lib/libfabric.so.1")).find(|path| path.is_file())
}

/// Starts the initiator on software cards, with our own arguments.
fn launch() -> Result<()> {
    let Some(library) = library() else {
        eprintln!("SKIP: card: no libfabric 2.5.1 here; `cargo xtask libfabric` makes one");
        return Bench::from_args("soft-efa").finish();
    };
    let mut network = Network::new(1, Profile::p5())?;
    let mut command = Command::new(std::env::current_exe()?);
    let dir = library.parent().unwrap();
    command.args(std::env::args_os().skip(1)).env(ROLE, "initiator").env("FABRIC_LIBRARY", &library);
    command.env("LD_LIBRARY_PATH", dir).env("FI_PROVIDER_PATH", dir.join("libfabric"));
    network.redirect(false).prepare(&mut command);
    let status = command.status()?;
    if status.success() { Ok(()) } else { Err(format!("the initiator ended with {status}").into()) }
}

struct Node {
    endpoint: Endpoint,
    queue: CompletionQueue,
    vector: AddressVector,
    domain: Domain,
}

fn open() -> Node {
    let info = Hints::new().provider("efa").fabric("efa-direct").discover().unwrap().swap_remove(0);
    let fabric = Fabric::open(&info).unwrap();
    let domain = Domain::open(&fabric, &info).unwrap();
    let vector = AddressVector::open(&domain, Default::default()).unwrap();
    let queue = CompletionQueue::open(&domain, CompletionQueueOptions::new(&info)).unwrap();
    let endpoint = Endpoint::open(&domain, &info)
        .and_then(|endpoint| endpoint.bind_address_vector(&vector))
        .and_then(|endpoint| endpoint.bind_completion_queue(&queue, Direction::Both))
        .and_then(Endpoint::enable)
        .unwrap();
    Node { endpoint, queue, vector, domain }
}

/// Registers memory, says where it is, and sleeps until the initiator hangs up.
fn target() -> Result<()> {
    let node = open();
    let region = node.domain.register(vec![1u8; FOOTPRINT], RegisterOptions::new(Access::ALL)).unwrap();
    OtherEnd::say(&format!(
        "{} {}",
        hex::encode(node.endpoint.name()?),
        hex::encode(region.remote().to_bytes())
    ))?;
    let mut lines = std::io::stdin().lock().lines();
    let name = hex::decode(lines.next().unwrap()?)?;
    let _initiator = node.vector.insert(&name)?;
    OtherEnd::say("ready")?;
    drop(lines);
    OtherEnd::stay()
}

struct Card {
    node: Node,
    peer: Address,
    region: MemoryRegion<Vec<u8>>,
    remote: RemoteRegion,
    batch: CompletionBatch,
}

impl Card {
    /// Carries `count` writes of `size` bytes out, at most [`DEPTH`] at a time.
    fn writes(&mut self, size: usize, count: usize) {
        let places = FOOTPRINT / size;
        let (mut posted, mut ended) = (0, 0);
        while ended < count {
            while posted < count && posted - ended < DEPTH {
                let at = posted % places * size;
                let slice = self.region.slice(at..at + size).unwrap();
                match self.node.endpoint.write(&self.peer, slice, self.remote.at(at as u64), posted as u64) {
                    Ok(_) => posted += 1,
                    Err(PostError::Again) => break,
                    Err(error) => panic!("{error}"),
                }
            }
            for end in self.node.queue.poll(&mut self.batch).unwrap() {
                end.result().unwrap();
                ended += 1;
            }
        }
    }
}

/// The same writes by the bare system call, one after the other.
fn bare(pid: i32, region: &MemoryRegion<Vec<u8>>, remote: RemoteRegion, size: usize, count: usize) {
    let places = FOOTPRINT / size;
    let base = region.address();
    for index in 0..count {
        let at = index % places * size;
        let local = libc::iovec { iov_base: (base + at) as *mut _, iov_len: size };
        let far = libc::iovec { iov_base: (remote.address as usize + at) as *mut _, iov_len: size };
        // SAFETY: both ranges lie inside memory that is registered and stays so; the kernel checks them anyway.
        let copied = unsafe { libc::process_vm_writev(pid, &local, 1, &far, 1, 0) };
        assert_eq!(copied, size as isize);
    }
}

fn initiator() -> Result<()> {
    let mut bench = Bench::from_args("soft-efa");
    let mut target = OtherEnd::start(ROLE, "target")?;
    let node = open();
    let [name, remote] = target.words()?;
    let remote = RemoteRegion::from_bytes(hex::decode(remote)?.try_into().unwrap());
    let peer = node.vector.insert(&hex::decode(name)?)?;
    target.tell(&hex::encode(node.endpoint.name()?))?;
    assert_eq!(target.line()?, "ready");
    let region = node.domain.register(vec![2u8; FOOTPRINT], RegisterOptions::new(Access::ALL)).unwrap();
    let pid = target.id() as i32;
    let card = std::cell::RefCell::new(Card { node, peer, region, remote, batch: CompletionBatch::new(256) });

    for size in [65_536usize, 1 << 20, 16 << 20] {
        let count = (256 << 20) / size;
        let timed = |work: &dyn Fn()| {
            let start = Instant::now();
            work();
            Ok(throughput_gb_per_s((size * count) as u64, start.elapsed()))
        };
        bench
            .case(format!("op=write size={size} batch={DEPTH} nics=1 provider=efa-direct"))
            .target(0.9)
            .compare(
                Metric::Throughput,
                "process_vm_writev",
                || timed(&|| card.borrow_mut().writes(size, count)),
                || timed(&|| bare(pid, &card.borrow().region, remote, size, count)),
            )?;
    }
    for size in [64usize, 4096] {
        let count = 100_000;
        let timed = |work: &dyn Fn()| {
            let start = Instant::now();
            work();
            Ok(per_second(count as u64, start.elapsed()))
        };
        bench.case(format!("op=write size={size} batch={DEPTH} nics=1 provider=efa-direct")).compare(
            Metric::Rate,
            "process_vm_writev",
            || timed(&|| card.borrow_mut().writes(size, count)),
            || timed(&|| bare(pid, &card.borrow().region, remote, size, count)),
        )?;
    }
    bench.case("op=write size=64 batch=1 nics=1 provider=efa-direct").record(Metric::LatencyP50, || {
        let mut times: Vec<f64> = (0..2000)
            .map(|_| {
                let start = Instant::now();
                card.borrow_mut().writes(64, 1);
                start.elapsed().as_secs_f64() * 1e6
            })
            .collect();
        times.sort_by(f64::total_cmp);
        Ok(times[times.len() / 2])
    })?;
    bench.finish()
}
