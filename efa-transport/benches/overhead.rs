//! `cargo xtask bench overhead`: what the transport itself costs per slice: allocations, and instructions of the scheduler.

#[allow(dead_code)] // the bare loop is for the other benchmarks
#[path = "common/mod.rs"]
mod bare;
#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::time::{Duration, Instant};

use benchkit::callgrind::{Callgrind, child};
use benchkit::{Bench, CountingAllocator, CpuClock, Metric, Result, allocations};
use common::{Target, memory, soon};
use efa_transport::scheduler::queue::Queue;
use efa_transport::scheduler::rail::{cost, least_loaded, partner};
use efa_transport::scheduler::slicer::{Chunk, Stretch, slice};
use efa_transport::{Batch, Request, Transport};

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator::system();

const LANES: usize = 16;

/// The scheduler's way of `count` slices of 64 KiB over 16 lanes: cut, choose, queue, post, end.
#[inline(never)]
fn way_of_slices(queues: &mut [Queue<(u32, u64)>], count: u64) {
    let chunk = |addr: u64| Some(Chunk { index: 0, left: u64::MAX - addr });
    let mut loads = [0_u64; LANES];
    for number in 0..count {
        let page = Stretch { at: number << 17, len: 64 << 10 };
        let cut = slice([page], [page], chunk, chunk, 1 << 20, |cut| {
            let lane = least_loaded((1 << LANES) - 1, number as usize % LANES, |lane| {
                cost(loads[lane], cut.len, 100_000, false)
            });
            let lane = lane.unwrap_or(0);
            loads[lane] += cut.len;
            queues[lane].push(0, cut.len, (cut.local_chunk, cut.local));
            while let Some(token) = queues[lane].next(0) {
                black_box(partner(lane, LANES, LANES, (1 << LANES) - 1, 0));
                queues[lane].posted(token);
                black_box(queues[lane].end(token));
                loads[lane] -= cut.len;
            }
        });
        black_box(cut.is_ok());
    }
}

fn main() -> Result<()> {
    bare::serve_bare();
    common::serve();
    let new_queues = || (0..LANES).map(|_| Queue::new(1024, 32 << 20)).collect::<Vec<_>>();
    if let Some(child) = child() {
        way_of_slices(&mut new_queues(), child.operations);
        return Ok(());
    }
    let mut bench = Bench::from_args("overhead");
    if let Some(instructions) =
        Callgrind::this_program("scheduler").only_in("*way_of_slices*").instructions_per_operation(10_000)?
    {
        bench.case("step=scheduler size=65536 nics=16").at_most(400.0).count(
            Metric::Instructions,
            instructions,
            None,
        )?;
    } else {
        eprintln!("SKIP: overhead instructions: valgrind is not installed");
    }
    for provider in bare::providers() {
        let case = format!("nics=1 provider={provider}");
        let waits = |on: bool| format!("step=idle {case} wait_object={on}");
        let slices = format!("op=write size=65536 batch=1000 {case}");
        if ![&slices, &waits(true), &waits(false)].into_iter().any(|name| bench.wants(name)) {
            continue;
        }
        let transport = match Transport::open(common::config(provider, 1, "initiator")) {
            Ok(transport) => transport,
            Err(error) => {
                eprintln!("SKIP: overhead {case}: {error}");
                continue;
            }
        };
        let len = 64 << 20;
        let mut target = Target::start(provider, 1, "target", len);
        let peer = target.meet(&transport);
        transport.warm_up(peer, soon())?;
        let region = memory(&transport, len);
        let mut batch = Batch::new();
        let round = |batch: &mut Batch, slices: u64| -> Result<()> {
            for page in 0..slices {
                let at = page * (64 << 10);
                // Every other page, so that nothing merges.
                let to = (page * 2 % 1024) * (64 << 10);
                batch.push(Request::write(
                    peer,
                    &region,
                    region.addr() + at % (len as u64),
                    target.addr + to,
                    64 << 10,
                ))?;
            }
            transport.submit(batch)?.wait()?;
            Ok(())
        };
        // What grows has grown.
        for _ in 0..8 {
            round(&mut batch, 1000)?;
        }
        const ROUNDS: u64 = 4;
        let (outcome, count) =
            allocations(&ALLOCATOR, || (0..ROUNDS).try_for_each(|_| round(&mut batch, 1000)));
        outcome?;
        bench.case(slices).at_most(0.0).count(Metric::Allocations, (count / (ROUNDS * 1000)) as f64, None)?;
        // Idle, with a connected peer.
        let quiet = Duration::from_secs(if bench.options().quick { 1 } else { 5 });
        let clock = CpuClock::process();
        let until = Instant::now() + quiet;
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            std::thread::sleep(left);
        }
        let blocks = transport.describe().nics.iter().all(|nic| nic.wait_object);
        bench.case(waits(blocks)).at_most(if blocks { 1.0 } else { 3.0 }).count(
            Metric::Cpu,
            clock.percent(),
            None,
        )?;
        transport.shutdown(soon());
    }
    bench.finish()
}
