//! `cargo xtask bench mr`: how fast the planner is and how good its plans are; what a cache hit and a reservation cost.
//!
//! The planner is compared with the loop that people write first: every buffer on the NICs of its GPU, cut by the longest
//! MR, without a look at budgets. Hit and reservation are counted in instructions, next to a bare look-up in a `BTreeMap` and a
//! bare pair of atomic additions.

#[path = "../tests/bound/mod.rs"]
mod bound;

use benchkit::callgrind::{self, Callgrind};
use benchkit::{Bench, Metric, Result};
use efa_mr::cache::{Cache, Request};
use efa_mr::{Access, Buffer, Chunk, Distance, Ledger, Location, Nic, NicSet, PageSize, Policy, plan};
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::hint::black_box;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

fn main() -> Result<()> {
    if let Some(child) = callgrind::child() {
        return counted(&child.mode, child.operations);
    }
    let mut bench = Bench::from_args("mr");
    planner(&mut bench)?;
    instructions(&mut bench)?;
    bench.finish()
}

/// A machine of `count` cards, spread evenly below eight GPUs, each with room for `pte_left` entries.
fn machine(count: u16, pte_left: u64) -> Vec<Nic> {
    let nic = |index: u16| {
        let gpu = |gpu: u16| {
            let own = u32::from(index) * 8 / u32::from(count) == u32::from(gpu);
            let node = u32::from(index) * 2 / u32::from(count) == u32::from(gpu) / 4;
            let distance = match (own, node) {
                (true, _) => Distance::SameSwitch,
                (_, true) => Distance::SameNode,
                _ => Distance::OtherNode,
            };
            (Location::Gpu(gpu), distance)
        };
        let distances = (0..8).map(gpu).collect();
        Nic { pte_left, numa: Some(index * 2 / count), distances, ..Nic::new(format!("nic{index}")) }
    };
    (0..count).map(nic).collect()
}

/// Buffers of 2.5 KB to 391 MB over eight GPUs, as the weights of a large model.
fn weights(count: u32) -> Vec<Buffer> {
    let mut at = 0x7f00_0000_0000;
    let buffer = |i: u32| {
        let share = f64::from(i * 577 % count) / f64::from(count.max(2) - 1);
        let len_bytes = (2_500.0 * (391e6_f64 / 2_500.0).powf(share)) as u64;
        let buffer = Buffer::new(at, len_bytes, PageSize::K64, Location::Gpu((i % 8) as u16));
        at += len_bytes.next_multiple_of(512);
        buffer
    };
    (0..count).map(buffer).collect()
}

fn planner(bench: &mut Bench) -> Result<()> {
    let room = efa_mr::DEFAULT_PTE_BUDGET;
    let all_pages: u64 = weights(1450).iter().map(Buffer::page_count).sum();
    let pool = |len| vec![Buffer::new(0x7e00_0000_0000, len, PageSize::K4, Location::Numa(0))];
    let cases = [
        ("buffers=1450 nics=32 policy=all", weights(1450), machine(32, room), Policy::all()),
        ("buffers=1450 nics=32 policy=near", weights(1450), machine(32, room), Policy::near()),
        ("buffers=1450 nics=32 policy=6", weights(1450), machine(32, room), Policy::nics(6)),
        (
            "buffers=1450 nics=32 policy=all budget=tight",
            weights(1450),
            machine(32, all_pages / 5),
            Policy::all(),
        ),
        ("buffers=48 nics=32 policy=all", weights(48), machine(32, room), Policy::all()),
        (
            "buffers=1 nics=16 size=400000000000 policy=all",
            pool(400_000_000_000),
            machine(16, room),
            Policy::all(),
        ),
    ];
    for (name, buffers, nics, policy) in cases {
        if !bench.wants(name) {
            continue;
        }
        let time = |work: &dyn Fn() -> usize| {
            let began = Instant::now();
            black_box(work());
            Ok(began.elapsed().as_secs_f64() * 1e3)
        };
        let ours = || plan(&buffers, &nics, &policy).map_or(0, |plan| plan.chunks.len());
        let bare = || every_buffer_near(&buffers, &nics).len();
        bench.case(name).compare(Metric::Time, "no planning", || time(&ours), || time(&bare))?;
        let quality = bound::quality(&plan(&buffers, &nics, &policy)?, &buffers, &nics);
        bench.case(name).count(Metric::Quality, quality, None)?;
    }
    Ok(())
}

/// The loop that people write first.
fn every_buffer_near(buffers: &[Buffer], nics: &[Nic]) -> Vec<Chunk> {
    let near = |location| {
        let nearest = nics.iter().map(|nic| nic.distance(location)).min();
        (0..nics.len()).filter(|&nic| Some(nics[nic].distance(location)) == nearest).collect::<NicSet>()
    };
    let chunk = |(buffer, b): (usize, &Buffer)| {
        b.runs()
            .map(move |run| (buffer, run))
            .map(|(buffer, run)| Chunk {
                buffer,
                addr: run.addr,
                len_bytes: run.len_bytes,
                page: run.page,
                pages: run.pages(),
                nics: near(b.location),
            })
            .collect::<Vec<_>>()
    };
    buffers.iter().enumerate().flat_map(chunk).collect()
}

const ENTRIES: u64 = 10_000;

/// What runs under callgrind.
fn counted(mode: &str, operations: u64) -> Result<()> {
    let cache = Cache::new(0);
    let mut map = BTreeMap::new();
    let request = |i: u64| Request {
        addr: 0x7f00_0000_0000 + (i * 7919 % ENTRIES) * 0x10_0000,
        len_bytes: 4096,
        access: Access::LOCAL,
        allocation: None,
    };
    for entry in 0..ENTRIES {
        let Request { addr, .. } = request(entry);
        let whole = Request { len_bytes: 0x8_0000, ..request(entry) };
        drop(cache.acquire(&whole, |_, _, _| Ok::<_, Infallible>(()))?);
        map.insert(addr, addr + 0x8_0000);
    }
    let ledger = Ledger::new(&machine(32, efa_mr::DEFAULT_PTE_BUDGET));
    let (pages, mrs) = (AtomicU64::new(0), AtomicU64::new(0));
    match mode {
        "cache" => (0..operations).for_each(|i| drop(black_box(cache.lookup(&request(i))))),
        "map" => (0..operations).for_each(|i| {
            black_box(map.range(..=request(i).addr).next_back());
        }),
        "ledger" => (0..operations).for_each(|i| drop(black_box(ledger.reserve(i as usize % 32, 17)))),
        "atomics" => (0..operations).for_each(|_| {
            pages.fetch_add(black_box(17), Ordering::AcqRel);
            mrs.fetch_add(black_box(1), Ordering::AcqRel);
            pages.fetch_sub(black_box(17), Ordering::AcqRel);
            mrs.fetch_sub(black_box(1), Ordering::AcqRel);
        }),
        other => return Err(format!("no mode {other}").into()),
    }
    Ok(())
}

fn instructions(bench: &mut Bench) -> Result<()> {
    let cases = [
        ("op=cache-hit entries=10000", "cache", "map", "BTreeMap look-up"),
        ("op=ledger-reserve-release nics=32", "ledger", "atomics", "four atomic additions"),
    ];
    for (name, ours, bare, bare_name) in cases {
        if !bench.wants(name) {
            continue;
        }
        let count = |mode| Callgrind::this_program(mode).instructions_per_operation(20_000);
        match (count(ours)?, count(bare)?) {
            (Some(ours), Some(bare)) => {
                bench.case(name).count(Metric::Instructions, ours, Some((bare_name, bare)))?
            }
            _ => eprintln!("SKIP: {name}: valgrind is not installed"),
        }
    }
    Ok(())
}
