//! The two ends: a process that serves memory, with us and with the bare loops, and a transport in this one.

use std::net::{SocketAddr, TcpListener};
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use benchkit::{OtherEnd, Result};
use tcp_transport::{
    Access, Batch, OwnedMemory, Path, Peer, Region, RegionDescriptor, Request, Shape, Transport,
};

use crate::{ALLOCATOR, Op, bare};

/// Memory of the other process: as much as four threads need who each have 256 MiB.
pub(crate) const FOOTPRINT: usize = 1 << 30;
/// Set in the environment of the other process.
pub(crate) const CHILD: &str = "TCP_BENCH_SERVER";

/// Memory whose pages are there.
fn filled(len: usize, with: u8) -> Result<Arc<OwnedMemory>> {
    let memory = OwnedMemory::new(len)?;
    let piece = vec![with; len.min(1 << 20)];
    (0..len).step_by(piece.len()).try_for_each(|at| memory.write(at, &piece[..piece.len().min(len - at)]))?;
    Ok(memory)
}

pub(crate) fn serve() -> Result<()> {
    let memory = filled(FOOTPRINT, 3)?;
    let transport = Transport::builder().listen("127.0.0.1:0".parse()?).build()?;
    let region = transport.register(memory, Access::READ_WRITE)?;
    let bare = TcpListener::bind("127.0.0.1:0")?;
    let descriptor = hex::encode(region.descriptor().to_bytes());
    OtherEnd::say(&format!("{} {} {descriptor}", transport.local_addrs()[0], bare.local_addr()?))?;
    std::thread::spawn(move || bare::serve(bare));
    // Each line asks for the heap allocations so far. Ends when the benchmark does.
    let mut line = String::new();
    while std::io::stdin().read_line(&mut line)? > 0 {
        let so_far = ALLOCATOR.stats();
        OtherEnd::say(&(so_far.allocations + so_far.reallocations).to_string())?;
        line.clear();
    }
    Ok(())
}

/// The other process.
pub(crate) struct Server {
    pub(crate) process: OtherEnd,
    addr: SocketAddr,
    pub(crate) bare: SocketAddr,
    pub(crate) remote: RegionDescriptor,
}

impl Server {
    pub(crate) fn start() -> Result<Self> {
        let mut process = OtherEnd::start(CHILD, "1")?;
        let [addr, bare, remote] = process.words()?;
        let remote = RegionDescriptor::from_bytes(&hex::decode(remote)?)?;
        Ok(Self { process, addr: addr.parse()?, bare: bare.parse()?, remote })
    }

    /// Heap allocations of the other process so far; asking adds a few, the same number each time after the first.
    pub(crate) fn allocations(&mut self) -> Result<u64> {
        self.process.tell("")?;
        Ok(self.process.line()?.parse()?)
    }
}

/// This process: a transport that is connected to the other one.
pub(crate) struct Ours {
    transport: Transport,
    peer: Peer,
    local: Region,
    remote: RegionDescriptor,
}

impl Ours {
    pub(crate) fn connect(server: &Server, path: Path, lanes: usize, footprint: usize) -> Result<Self> {
        let transport = Transport::builder().same_host(path == Path::Host).lanes(lanes).build()?;
        let peer = transport.peer(server.addr)?;
        let deadline = Instant::now() + Duration::from_secs(5);
        let found = peer.connect(deadline)?;
        if found != path {
            return Err(format!("wanted path {path}, got {found}").into());
        }
        while transport.statistics().lanes_opened < lanes as u64 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
        let memory = filled(footprint, 4)?;
        let local = transport.register(memory, Access::LOCAL)?;
        Ok(Self { transport, peer, local, remote: server.remote })
    }

    /// One batch of `count` requests, from slot `first` on, in this part of the memory.
    pub(crate) fn run(
        &self,
        batch: &mut Batch,
        op: Op,
        size: usize,
        count: usize,
        within: Range<usize>,
        first: usize,
    ) -> Result<()> {
        let slots = (within.len() / size).max(1);
        for i in first..first + count {
            let at = (within.start + i % slots * size) as u64;
            let (l, r) = (self.local.addr() + at, self.remote.addr + at);
            let size = size as u64;
            batch.push(match op {
                Op::Write => Request::write(&self.peer, &self.local, l, self.remote, r, size),
                Op::Read => Request::read(&self.peer, &self.local, l, self.remote, r, size),
            })?;
        }
        self.transport.submit(batch)?.wait()?;
        Ok(())
    }

    /// One batch of `count` requests of so many pages of 4 KiB each, which lie apart on both sides.
    pub(crate) fn run_paged(&self, batch: &mut Batch, op: Op, pages: &Pages, count: usize) -> Result<()> {
        let paged = |addrs| Shape::Paged { page_len: 4096, addrs };
        for _ in 0..count {
            let request = Request::write(&self.peer, &self.local, 0, self.remote, 0, 0);
            let op = if op == Op::Read { tcp_transport::Op::Read } else { tcp_transport::Op::Write };
            let (local_shape, remote_shape) = (paged(&pages.here), paged(&pages.there));
            batch.push(Request { op, local_shape, remote_shape, ..request })?;
        }
        self.transport.submit(batch)?.wait()?;
        Ok(())
    }

    /// Every second page of the memory, here backwards.
    pub(crate) fn pages(&self, count: u64) -> Pages {
        let all = |base: u64| (0..count).map(move |i| base + i * 8192);
        Pages { here: all(self.local.addr()).rev().collect(), there: all(self.remote.addr).collect() }
    }
}

/// Addresses of pages on both sides.
pub(crate) struct Pages {
    here: Vec<u64>,
    there: Vec<u64>,
}
