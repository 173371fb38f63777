//! `cargo xtask bench warmup`: connecting 16 cards to 16 before the first transfer, beside doing every pair in turn.

#[allow(dead_code)] // each benchmark uses a part of it
#[path = "common/mod.rs"]
mod bare;
#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use bare::{Bare, providers, serve_bare};
use benchkit::{Bench, Latencies, Metric, Result};
use common::{Target, memory, soon};
use efa_transport::{Batch, Request, Transport};

const CARDS: usize = 16;
const LEN: usize = 1 << 20;

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn main() -> Result<()> {
    serve_bare();
    common::serve();
    let mut bench = Bench::from_args("warmup");
    for provider in providers() {
        let case = format!("nics={CARDS} provider={provider}");
        // Is the provider here at all?
        if let Err(error) = Transport::open(common::config(provider, 1, "probe")) {
            eprintln!("SKIP: warmup {case}: {error}");
            continue;
        }
        let mut first = Latencies::new();
        let mut steady = Latencies::new();
        let mut rails = 0;
        bench.case(format!("step=warm_up {case}")).compare(
            Metric::Time,
            "one pair after the other, all 256",
            || {
                // Everything fresh: processes, endpoints, connections.
                let transport = Transport::open(common::config(provider, CARDS, "initiator"))?;
                let region = memory(&transport, LEN);
                let mut target = Target::start(provider, CARDS, "target", LEN);
                let start = Instant::now();
                let peer = target.meet(&transport);
                let warm = transport.warm_up(peer, soon())?;
                let took = milliseconds(start);
                rails = warm.rails;
                let mut batch = Batch::new();
                for round in 0..200 {
                    batch.push(Request::write(peer, &region, region.addr(), target.addr, 4096))?;
                    let start = Instant::now();
                    transport.submit(&mut batch)?.wait()?;
                    if round == 0 { first.record(start.elapsed()) } else { steady.record(start.elapsed()) }
                }
                transport.shutdown(soon());
                Ok(took)
            },
            || {
                // One endpoint for each of the 256 pairs would be more than any card has to connect; sixteen bare cards, each
                // connected by one operation, sixteen times over, are the round trips that the other way takes.
                let mut bare = Bare::start(provider, CARDS, LEN)?;
                let start = Instant::now();
                for _ in 0..CARDS {
                    for card in 0..CARDS {
                        bare.one(card, false, 8)?;
                    }
                }
                Ok(milliseconds(start))
            },
        )?;
        if !first.is_empty() {
            eprintln!("{case}: {rails} rails warmed");
            // The first submit, against twice the steady median.
            bench.case(format!("step=first_submit size=4096 {case}")).target(0.5).count(
                Metric::LatencyP50,
                first.p50_us(),
                Some(("steady p50", steady.p50_us())),
            )?;
        }
    }
    bench.finish()
}
