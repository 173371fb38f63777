//! `cargo xtask bench efa`: the transport against a bare loop over the same provider, window and sizes.

#[allow(dead_code)] // each benchmark uses a part of it
#[path = "common/mod.rs"]
mod bare;
#[allow(dead_code)] // the tests use more of it
#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use bare::{Bare, providers, serve_bare};
use benchkit::{Bench, Latencies, Metric, Result, throughput_gb_per_s};
use common::{Target, memory, soon};
use efa_transport::{Batch, Op, PeerId, Region, Request, Transport};

const MIB: usize = 1 << 20;

/// Operations that either side keeps outstanding on a card.
const WINDOW: usize = 64;

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
        let config = common::config(provider, cards, "initiator").depth(WINDOW);
        let transport = Transport::open(config)?;
        let mut target = Target::start(provider, cards, "target", len);
        let peer = target.meet(&transport);
        transport.warm_up(peer, soon())?;
        let region = memory(&transport, len);
        Ok(Self { transport, target, peer, region, batch: Batch::new(), len })
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

fn main() -> Result<()> {
    serve_bare();
    common::serve();
    let mut bench = Bench::from_args("efa");
    let quick = bench.options().round_time().as_millis() < 50;
    for provider in providers() {
        for nics in [1, 16] {
            let len = 32 * MIB;
            let prefix = format!("nics={nics} provider={provider}");
            if !bench.wants(&prefix) && !bench.wants("op=") {
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
            let path = ours.transport.describe().fabric;
            for op in [Op::Write, Op::Read] {
                let name = if op == Op::Write { "write" } else { "read" };
                for (size, target) in [(4 << 10, 0.90), (64 << 10, 0.97), (MIB, 0.97), (16 * MIB, 0.97)] {
                    let total = if quick { 16 * MIB } else { 128 * MIB };
                    let count = (total / size).clamp(4, 8192);
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
                                let start = Instant::now();
                                bare.stream(op == Op::Write, size, count, WINDOW)?;
                                Ok(throughput_gb_per_s((size * count) as u64, start.elapsed()))
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
                        let mut latencies = Latencies::new();
                        for index in 0..repeat {
                            let start = Instant::now();
                            bare.one(index % nics, true, 4096)?;
                            latencies.record(start.elapsed());
                        }
                        Ok(latencies.p50_us())
                    },
                )?;
            ours.transport.shutdown(soon());
        }
    }
    bench.finish()
}
