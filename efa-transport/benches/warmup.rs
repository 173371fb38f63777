//! `cargo xtask bench warmup`: connecting 16 cards to 16 before the first transfer, beside doing every pair in turn.
//!
//! Each round is a fresh pair of processes, which has one first submit: a write in one round, a read in the next. It is compared
//! with the median of later ones of the same pair, and what is reported are medians over the pairs. Beside it stands what the first
//! operation of a bare card takes after the same: the provider and the caches are cold for that, too. The memory has been used
//! before, as that of EFA cards always has, because registering it pins it.

#[allow(dead_code)] // each benchmark uses a part of it
#[path = "common/mod.rs"]
mod bare;
#[path = "../tests/common/mod.rs"]
mod common;

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bare::{Bare, providers, serve_targets};
use benchkit::{Bench, Latencies, Metric, Result};
use common::{Target, memory, soon};
use efa_transport::Op;
use efa_transport::{Batch, Request, Transport};

const CARDS: usize = 16;
const LEN: usize = 1 << 20;
/// Submits after the first one: as many again as go over lanes that are new to requests, and those that count as steady.
const EARLY: usize = 2 * CARDS;
const STEADY: usize = 200;

/// First submits of one kind, and the medians of the later ones of the same pairs.
struct Submits {
    op: Op,
    first: Latencies,
    steady: Latencies,
    /// The same of a bare card, after every pair has had an operation.
    bare_first: Latencies,
    bare_steady: Latencies,
}

/// Runs `submit` again and again: the first one's time is recorded, and the median of those after the early ones.
fn record(
    first: &mut Latencies,
    steady: &mut Latencies,
    mut submit: impl FnMut() -> Result<Duration>,
) -> Result<()> {
    first.record(submit()?);
    for _ in 0..EARLY {
        submit()?;
    }
    let mut later = Latencies::new();
    for _ in 0..STEADY {
        later.record(submit()?);
    }
    steady.record(Duration::from_secs_f64(later.p50_us() / 1e6));
    Ok(())
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn main() -> Result<()> {
    serve_targets();
    let mut bench = Bench::from_args("warmup");
    for provider in providers() {
        let case = format!("nics={CARDS} provider={provider}");
        // Is the provider here at all?
        if let Err(error) = Transport::open(common::config(provider, 1, "probe")) {
            eprintln!("SKIP: warmup {case}: {error}");
            continue;
        }
        let new = |op| {
            let [first, steady, bare_first, bare_steady] = std::array::from_fn(|_| Latencies::new());
            Submits { op, first, steady, bare_first, bare_steady }
        };
        let submits = RefCell::new([new(Op::Write), new(Op::Read)]);
        let (mut rails, mut pairs, mut bare_pairs) = (0, 0, 0);
        // What the other way takes without its questions.
        let mut unasked = Latencies::new();
        bench.case(format!("step=warm_up {case}")).compare(
            Metric::Time,
            "a question and an operation for each of the 256 pairs",
            || {
                // Everything fresh: processes, endpoints, connections.
                let transport = Transport::open(common::config(provider, CARDS, "initiator"))?;
                let region = memory(&transport, LEN);
                let mut target = Target::start(provider, CARDS, "target", LEN);
                region.write(0, &vec![1; LEN])?;
                target.fill(1);
                // Before the warm-up, because the first submit follows at once: a target goes to sleep 50 to 200 µs after the latest traffic, and
                // is woken for the first request after any pause.
                let mut batch = Batch::new();
                let start = Instant::now();
                let peer = target.meet(&transport);
                let warm = transport.warm_up(peer, soon())?;
                let took = milliseconds(start);
                rails = warm.rails;
                let of_this_pair = &mut submits.borrow_mut()[pairs % 2];
                pairs += 1;
                let make = if of_this_pair.op == Op::Write { Request::write } else { Request::read };
                record(&mut of_this_pair.first, &mut of_this_pair.steady, || {
                    batch.push(make(peer, &region, region.addr(), target.addr, 4096))?;
                    let start = Instant::now();
                    transport.submit(&mut batch)?.wait()?;
                    Ok(start.elapsed())
                })?;
                transport.shutdown(soon());
                Ok(took)
            },
            || {
                // One endpoint for each of the 256 pairs would be more than any card has to connect; sixteen bare cards, each
                // connected by one operation, sixteen times over, are what the other way takes, and a question to the peer for each
                // pair: ours asks as well, and its question is in its time. Here it is one byte to a thread that waits for it.
                let mut bare = Bare::apart(provider, CARDS, LEN)?;
                let start = Instant::now();
                bare.connect()?;
                let connected = Instant::now();
                for _ in 1..CARDS * CARDS {
                    bare.ask()?;
                }
                // The last question.
                bare.go()?;
                let asking = connected.elapsed();
                for _ in 0..CARDS {
                    for card in 0..CARDS {
                        bare.one(card, false, 8)?;
                    }
                }
                let took = start.elapsed();
                unasked.record(took.saturating_sub(asking));
                // What a first operation is without a transport, elsewhere in the memory: the provider and the caches are cold for it, too.
                // Two writes and two reads come before it, as in our warm-up.
                for turn in 0..4 {
                    bare.one(CARDS - 1, turn % 2 == 0, 8)?;
                }
                let of_this_pair = &mut submits.borrow_mut()[bare_pairs % 2];
                bare_pairs += 1;
                let write = of_this_pair.op == Op::Write;
                record(&mut of_this_pair.bare_first, &mut of_this_pair.bare_steady, || {
                    let start = Instant::now();
                    bare.one_at(CARDS - 1, write, 4096, LEN / 2)?;
                    Ok(start.elapsed())
                })?;
                Ok(took.as_secs_f64() * 1e3)
            },
        )?;
        if !unasked.is_empty() {
            eprintln!("{case}: the 256 pairs without their questions take {:.3} ms", unasked.p50_us() / 1e3);
        }
        let mut submits = submits.into_inner();
        for submits in submits.iter_mut().filter(|submits| !submits.first.is_empty()) {
            let Submits { op, first, steady, bare_first, bare_steady } = submits;
            let op = if *op == Op::Write { "write" } else { "read" };
            eprintln!("{case}: {rails} rails warmed, {} first {op}s", first.len());
            // The first submit, against twice the steady median.
            bench.case(format!("step=first_submit op={op} size=4096 {case}")).target(0.5).count(
                Metric::LatencyP50,
                first.p50_us(),
                Some(("steady p50", steady.p50_us())),
            )?;
            if !bare_first.is_empty() {
                bench.case(format!("step=first_of_bare op={op} size=4096 {case}")).count(
                    Metric::LatencyP50,
                    bare_first.p50_us(),
                    Some(("steady p50 of a bare card", bare_steady.p50_us())),
                )?;
            }
        }
    }
    bench.finish()
}
