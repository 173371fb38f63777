//! What noise hides, counted; and what idle connections and many peers cost.

use std::time::{Duration, Instant};

use benchkit::{Bench, CpuClock, Metric, Result, allocations};
use tcp_transport::{Access, Batch, OwnedMemory, Path, Request, Transport};

use crate::pair::{Ours, Server};
use crate::promise::{self, Kept};
use crate::{ALLOCATOR, Op};

const MOST: usize = 256 << 20;

/// Heap allocations per request when everything has been used once, in both processes together.
pub(crate) fn allocated(bench: &mut Bench, kept: &mut Kept, server: &mut Server) -> Result<()> {
    for path in [Path::Net, Path::Host] {
        let counted = [
            (Op::Write, 4096, 1, None),
            (Op::Read, 4096, 1, None),
            (Op::Write, 65_536, 128, None),
            (Op::Read, 65_536, 128, None),
            (Op::Write, 16 << 20, 16, None),
            (Op::Write, 65_536, 16, Some(16)),
            (Op::Read, 65_536, 16, Some(16)),
        ];
        for (op, size, batch, pages) in counted {
            let shape = pages.map(|n: u64| format!(" pages={n}")).unwrap_or_default();
            let case = format!("op={} size={size}{shape} batch={batch} threads=1 path={path}", op.name());
            if !bench.wants(&case) {
                continue;
            }
            let ours = Ours::connect(server, path, 2, MOST)?;
            let pages = pages.map(|n| ours.pages(n));
            let mut requests = Batch::new();
            let mut run = |times: usize| -> Result<()> {
                (0..times).try_for_each(|_| match &pages {
                    Some(pages) => ours.run_paged(&mut requests, op, pages, batch),
                    None => ours.run(&mut requests, op, size, batch, 0..MOST, 0),
                })
            };
            let times = 1000_usize.div_ceil(batch);
            run(times)?;
            server.allocations()?;
            let before = server.allocations()?;
            let asking = server.allocations()? - before;
            let (result, here) = allocations(&ALLOCATOR, || run(times));
            result?;
            let there = server.allocations()? - before - 2 * asking;
            let value = (here + there) as f64 / (times * batch) as f64;
            kept.add(&case, Metric::Allocations, &promise::ALLOCATIONS);
            bench.case(case).at_most(promise::ALLOCATIONS.figure).count(Metric::Allocations, value, None)?;
        }
    }
    Ok(())
}

/// What an open but unused connection costs.
pub(crate) fn idle(bench: &mut Bench, kept: &mut Kept, server: &Server) -> Result<()> {
    let case = "op=idle lanes=4 path=net";
    if !bench.wants(case) {
        return Ok(());
    }
    let ours = Ours::connect(server, Path::Net, 4, 1 << 20)?;
    ours.run(&mut Batch::new(), Op::Write, 4096, 1, 0..1 << 20, 0)?;
    std::thread::sleep(Duration::from_millis(100));
    let clock = CpuClock::process();
    std::thread::sleep(Duration::from_secs(if bench.options().quick { 1 } else { 5 }));
    kept.add(case, Metric::Cpu, &promise::IDLE);
    bench.case(case).at_most(promise::IDLE.figure).count(Metric::Cpu, clock.percent(), None)
}

/// 256 peers served by two I/O threads on each side: time for a 4 KiB write to each of them, all at once.
pub(crate) fn many_peers(bench: &mut Bench) -> Result<()> {
    let case = "op=write size=4096 batch=256 peers=256 io_threads=2 path=net";
    if !bench.wants(case) {
        return Ok(());
    }
    let mut builder = Transport::builder().io_threads(2).same_process(false).same_host(false);
    for _ in 0..256 {
        builder = builder.listen("127.0.0.1:0".parse()?);
    }
    let target = builder.build()?;
    let remote = target.register(OwnedMemory::new(256 * 4096)?, Access::READ_WRITE)?.clone();
    let ours = Transport::builder().io_threads(2).lanes(1).same_process(false).same_host(false).build()?;
    let local = ours.register(OwnedMemory::new(4096)?, Access::LOCAL)?;
    let peers: Vec<_> =
        target.local_addrs().iter().map(|&a| ours.peer(a)).collect::<std::result::Result<_, _>>()?;
    let mut batch = Batch::new();
    bench.case(case).record(Metric::Time, || {
        let start = Instant::now();
        for (i, peer) in peers.iter().enumerate() {
            let at = remote.addr() + i as u64 * 4096;
            batch.push(Request::write(peer, &local, local.addr(), remote.descriptor(), at, 4096))?;
        }
        ours.submit(&mut batch)?.wait()?;
        Ok(start.elapsed().as_secs_f64() * 1e3)
    })
}
