//! `cargo xtask bench efa`: the transport against a bare loop over the same provider, window and sizes.

#[allow(dead_code)] // each benchmark uses a part of it
#[path = "common/mod.rs"]
mod bare;
#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::VecDeque;
use std::time::Instant;

use bare::{Bare, providers, serve_bare};
use benchkit::{Bench, Latencies, Metric, Result, throughput_gb_per_s};
use common::{Target, memory, soon};
use efa_transport::{Batch, Op, PeerId, Region, Request, Shape, Transport};

const MIB: usize = 1 << 20;

/// Operations that either side keeps outstanding on a card.
const WINDOW: usize = 64;

/// Sizes of streamed blocks, and what is to be reached of the bare loop.
const SIZES: [(usize, f64); 4] = [(4 << 10, 0.90), (64 << 10, 0.97), (MIB, 0.97), (16 * MIB, 0.97)];

/// Sizes of the pages of cache traffic.
const PAGE_SIZES: [usize; 2] = [16 << 10, 32 << 10];

/// Cache traffic: requests in flight at a time, and pages in each.
const IN_FLIGHT: usize = 16;
const PAGES: usize = 8;

/// The transport with a target process, warmed up.
struct Ours {
    transport: Transport,
    target: Target,
    peer: PeerId,
    region: Region,
    batch: Batch,
    len: usize,
}

impl Ours {
    fn start(provider: &str, cards: usize, len: usize) -> Result<Self> {
        Self::start_with(provider, cards, len, false)
    }

    fn start_with(provider: &str, cards: usize, len: usize, doorbell_batching: bool) -> Result<Self> {
        let config = common::config(provider, cards, "initiator").depth(WINDOW);
        let config = config.doorbell_batching(doorbell_batching);
        let transport = Transport::open(config)?;
        let mut target = Target::start(provider, cards, "target", len);
        let peer = target.meet(&transport);
        transport.warm_up(peer, soon())?;
        let region = memory(&transport, len);
        Ok(Self { transport, target, peer, region, batch: Batch::new(), len })
    }

    /// Cache traffic: `IN_FLIGHT` requests at a time, each of `PAGES` scattered pages, the oldest waited for before the next.
    fn pages(&mut self, op: Op, size: usize, requests: usize) -> Result<()> {
        let places = self.len / size;
        let mut flights = VecDeque::new();
        let (mut here, mut there) = ([0; PAGES], [0; PAGES]);
        for request in 0..requests {
            for page in 0..PAGES {
                let number = request * PAGES + page;
                // Odd steps, so that neighbours in the list are none in memory.
                here[page] = self.region.addr() + (number * 3 % places * size) as u64;
                there[page] = self.target.addr + (number * 5 % places * size) as u64;
            }
            self.batch.push(Request {
                op,
                peer: self.peer,
                local: &self.region,
                local_shape: Shape::Paged { page_len: size as u64, addrs: &here },
                remote_shape: Shape::Paged { page_len: size as u64, addrs: &there },
                immediate: None,
            })?;
            flights.push_back(self.transport.submit(&mut self.batch)?);
            if flights.len() == IN_FLIGHT
                && let Some(oldest) = flights.pop_front()
            {
                oldest.wait()?;
            }
        }
        for flight in flights {
            flight.wait()?;
        }
        Ok(())
    }

    fn stream(&mut self, op: Op, size: usize, count: usize) -> Result<()> {
        let places = (self.len / size).max(1);
        for index in 0..count {
            let at = (index % places * size) as u64;
            let (local, remote) = (self.region.addr() + at, self.target.addr + at);
            let request = Request::write(self.peer, &self.region, local, remote, size as u64);
            self.batch.push(Request { op, ..request })?;
        }
        self.transport.submit(&mut self.batch)?.wait()?;
        Ok(())
    }
}

/// Operation, and size and batch, of every case.
fn cases() -> impl Iterator<Item = (&'static str, String)> {
    let streams = SIZES.map(|(size, _)| format!("size={size} batch={}", batch_of(size, false)));
    let quick = SIZES.map(|(size, _)| format!("size={size} batch={}", batch_of(size, true)));
    let pages = PAGE_SIZES.map(|size| format!("size={size} batch={PAGES} threads=1"));
    let others = ["size=4096 batch=1".into(), "size=4096 batch=4096 doorbell_batching=1".into()];
    let shapes = streams.into_iter().chain(quick).chain(pages).chain(others);
    shapes.flat_map(|shape| [("write", shape.clone()), ("read", shape)])
}

/// Blocks of `size` bytes that are moved in a round.
fn batch_of(size: usize, quick: bool) -> usize {
    let total = if quick { 16 * MIB } else { 128 * MIB };
    (total / size).clamp(4, 8192)
}

fn main() -> Result<()> {
    serve_bare();
    common::serve();
    let mut bench = Bench::from_args("efa");
    let quick = bench.options().round_time().as_millis() < 50;
    for provider in providers() {
        for nics in [1, 16] {
            let len = 32 * MIB;
            let prefix = format!("nics={nics} provider={provider}");
            if !cases().any(|(op, shape)| bench.wants(&format!("op={op} {shape} {prefix}"))) {
                continue;
            }
            let (mut ours, mut bare) =
                match (Ours::start(provider, nics, len), Bare::start(provider, nics, len)) {
                    (Ok(ours), Ok(bare)) => (ours, bare),
                    (Err(error), _) | (_, Err(error)) => {
                        eprintln!("SKIP: efa {prefix}: {error}");
                        continue;
                    }
                };
            bare.rest()?;
            let path = ours.transport.describe().fabric;
            for op in [Op::Write, Op::Read] {
                let name = if op == Op::Write { "write" } else { "read" };
                for (size, target) in SIZES {
                    let count = batch_of(size, quick);
                    bench
                        .case(format!("op={name} size={size} batch={count} {prefix} path={path}"))
                        .target(target)
                        .compare(
                            Metric::Throughput,
                            "bare fabric-safe loop",
                            || {
                                let start = Instant::now();
                                ours.stream(op, size, count)?;
                                Ok(throughput_gb_per_s((size * count) as u64, start.elapsed()))
                            },
                            || {
                                bare.round(|bare| {
                                    let start = Instant::now();
                                    bare.stream(op == Op::Write, size, count, WINDOW)?;
                                    Ok(throughput_gb_per_s((size * count) as u64, start.elapsed()))
                                })
                            },
                        )?;
                }
            }
            // Pages of cache blocks, as an inference engine asks for them: the target must keep up although it has nothing to do itself.
            for size in PAGE_SIZES {
                for op in [Op::Write, Op::Read] {
                    let name = if op == Op::Write { "write" } else { "read" };
                    let requests = if quick { 64 } else { 512 };
                    let bytes = requests * PAGES * size;
                    bench
                        .case(format!("op={name} size={size} batch={PAGES} threads=1 {prefix} path={path}"))
                        .target(0.90)
                        .compare(
                            Metric::Throughput,
                            "bare fabric-safe loop",
                            || {
                                let start = Instant::now();
                                ours.pages(op, size, requests)?;
                                Ok(throughput_gb_per_s(bytes as u64, start.elapsed()))
                            },
                            || {
                                bare.round(|bare| {
                                    let start = Instant::now();
                                    bare.stream(op == Op::Write, size, requests * PAGES, WINDOW)?;
                                    Ok(throughput_gb_per_s(bytes as u64, start.elapsed()))
                                })
                            },
                        )?;
                }
            }
            let repeat = if quick { 200 } else { 1000 };
            bench
                .case(format!("op=write size=4096 batch=1 {prefix} path={path}"))
                .target(1.0 / 1.15)
                .compare(
                    Metric::LatencyP50,
                    "bare fabric-safe loop",
                    || {
                        let mut latencies = Latencies::new();
                        for _ in 0..repeat {
                            let start = Instant::now();
                            ours.stream(Op::Write, 4096, 1)?;
                            latencies.record(start.elapsed());
                        }
                        Ok(latencies.p50_us())
                    },
                    || {
                        bare.round(|bare| {
                            let mut latencies = Latencies::new();
                            for index in 0..repeat {
                                let start = Instant::now();
                                bare.one(index % nics, true, 4096)?;
                                latencies.record(start.elapsed());
                            }
                            Ok(latencies.p50_us())
                        })
                    },
                )?;
            let case = format!("op=write size=4096 batch=4096 doorbell_batching=1 {prefix} path={path}");
            if nics == 1 && bench.wants(&case) {
                let mut batching = Ours::start_with(provider, nics, len, true)?;
                bench.case(case).compare(
                    Metric::Throughput,
                    "without",
                    || {
                        let start = Instant::now();
                        batching.stream(Op::Write, 4096, 4096)?;
                        Ok(throughput_gb_per_s(4096 * 4096, start.elapsed()))
                    },
                    || {
                        let start = Instant::now();
                        ours.stream(Op::Write, 4096, 4096)?;
                        Ok(throughput_gb_per_s(4096 * 4096, start.elapsed()))
                    },
                )?;
                batching.transport.shutdown(soon());
            }
            ours.transport.shutdown(soon());
        }
    }
    bench.finish()
}
