//! `cargo xtask bench efa`: the transport against a bare loop over the same provider, window and sizes.

#[allow(dead_code)] // each benchmark uses a part of it
#[path = "common/mod.rs"]
mod bare;
#[path = "../tests/common/mod.rs"]
mod common;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use bare::{Bare, Rendezvous, providers, serve_targets};
use benchkit::{Bench, Latencies, Metric, Result, throughput_gb_per_s};
use common::{Target, lend, mapping, soon};
use efa_transport::{Batch, Op, PeerId, Region, Request, Shape, Transport};
use fabric_safe::{Mapping, Memory};

const MIB: usize = 1 << 20;

/// Operations that either side keeps outstanding on a card.
const WINDOW: usize = 64;

/// Bytes that either side moves blocks about in, and at most in a round: no block comes twice, out of the cache.
const MEMORY: usize = 128 * MIB;

/// Rounds that a pair of processes has of each row; fresh ones come after it. Where memory comes to lie, and at what pace a connection
/// settles, is luck that stays with a pair and decides more than most of what is to be measured: one over
/// `tcp;ofi_rxm` that carries blocks of 64 KiB does 1.5 GB/s or 4, for as long as it lives. So the interval counts pairs, not rounds.
const ROUNDS_OF_A_PAIR: usize = 3;

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
    /// With this memory here, whose target has these variables.
    fn start(
        (provider, cards): (&str, usize),
        memory: &Arc<Mapping>,
        doorbell_batching: bool,
        env: &[(&str, &str)],
    ) -> Result<Self> {
        let len = memory.len_bytes();
        let config = common::config(provider, cards, "initiator").depth(WINDOW);
        let config = config.doorbell_batching(doorbell_batching);
        let transport = Transport::open(config)?;
        let mut target = Target::start_with(provider, cards, "target", len, env);
        let peer = target.meet(&transport);
        transport.warm_up(peer, soon())?;
        let region = lend(&transport, memory);
        // Untouched memory would read as the kernel's one page of zeros, out of the cache.
        region.write(0, &vec![0x5a; len])?;
        target.fill(0);
        Ok(Self { transport, target, peer, region, batch: Batch::new(), len })
    }

    /// Cache traffic: `IN_FLIGHT` requests at a time, each of `PAGES` scattered pages, the oldest waited for before the next.
    fn pages(&mut self, op: Op, size: usize, requests: usize) -> Result<()> {
        let places = self.len / size;
        let mut flights = VecDeque::new();
        let (mut here, mut there) = ([0; PAGES], [0; PAGES]);
        for request in 0..requests {
            for page in 0..PAGES {
                let (from, to) = scattered(request * PAGES + page, size, places);
                (here[page], there[page]) = (self.region.addr() + from as u64, self.target.addr + to as u64);
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

    /// One operation that is not measured: a round measures a stream, not how soon a target that sleeps notices its beginning.
    fn wake(&mut self) -> Result<()> {
        self.stream(Op::Write, 64, 1)
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

/// Where a page lies here and there: steps are odd, so that neighbours in the list are none in memory.
const fn scattered(number: usize, size: usize, places: usize) -> (usize, usize) {
    (number * 3 % places * size, number * 5 % places * size)
}

/// What is measured: a row of the table.
struct Case {
    name: String,
    metric: Metric,
    target: f64,
    what: What,
    /// What has been measured so far, round by round.
    ours: Vec<[f64; 1]>,
    bare: Vec<[f64; 1]>,
}

#[derive(Clone, Copy)]
enum What {
    /// Blocks of a size, so many in a batch.
    Stream { op: Op, size: usize, count: usize },
    /// Pages of cache blocks, as an inference engine asks for them: the target must keep up although it has nothing to do itself.
    Pages { op: Op, size: usize, requests: usize },
    /// The median time of so many requests, one after the other.
    Alone { repeat: usize },
}

const fn name_of(op: Op) -> &'static str {
    match op {
        Op::Write => "write",
        Op::Read => "read",
    }
}

/// The rows of one provider and number of cards.
fn cases(prefix: &str, quick: bool) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |name: String, metric, target, what| {
        let name = format!("{name} {prefix}");
        cases.push(Case { name, metric, target, what, ours: Vec::new(), bare: Vec::new() });
    };
    for op in [Op::Write, Op::Read] {
        for (size, target) in SIZES {
            let total = if quick { 16 * MIB } else { MEMORY };
            let count = (total / size).clamp(4, 8192);
            let name = format!("op={} size={size} batch={count}", name_of(op));
            add(name, Metric::Throughput, target, What::Stream { op, size, count });
        }
    }
    for size in PAGE_SIZES {
        for op in [Op::Write, Op::Read] {
            let requests = if quick { 64 } else { 512 };
            let name = format!("op={} size={size} batch={PAGES} threads=1", name_of(op));
            add(name, Metric::Throughput, 0.90, What::Pages { op, size, requests });
        }
    }
    let repeat = if quick { 200 } else { 1000 };
    let name = "op=write size=4096 batch=1".to_owned();
    add(name, Metric::LatencyP50, 1.0 / 1.15, What::Alone { repeat });
    cases
}

impl What {
    fn ours(self, ours: &mut Ours) -> Result<f64> {
        ours.wake()?;
        let start = Instant::now();
        let bytes = match self {
            Self::Stream { op, size, count } => {
                ours.stream(op, size, count)?;
                size * count
            }
            Self::Pages { op, size, requests } => {
                ours.pages(op, size, requests)?;
                size * requests * PAGES
            }
            Self::Alone { repeat } => {
                return median_us(repeat, |_| ours.stream(Op::Write, 4096, 1));
            }
        };
        Ok(throughput_gb_per_s(bytes as u64, start.elapsed()))
    }

    fn bare(self, bare: &mut Bare) -> Result<f64> {
        bare.one(0, true, 64)?;
        let start = Instant::now();
        let bytes = match self {
            Self::Stream { op, size, count } => {
                bare.stream(op == Op::Write, size, count, WINDOW)?;
                size * count
            }
            Self::Pages { op, size, requests } => {
                let place = |page| scattered(page, size, MEMORY / size);
                bare.blocks(op == Op::Write, size, requests * PAGES, WINDOW, place)?;
                size * requests * PAGES
            }
            Self::Alone { repeat } => {
                return median_us(repeat, |index| bare.one(index % bare.cards(), true, 4096));
            }
        };
        Ok(throughput_gb_per_s(bytes as u64, start.elapsed()))
    }
}

/// The median time of so many requests, one after the other. As many before them are not counted: two threads that wake each
/// other begin on one processor, and it takes the kernel some milliseconds to give each its own.
fn median_us(repeat: usize, mut request: impl FnMut(usize) -> Result<()>) -> Result<f64> {
    let mut latencies = Latencies::new();
    for index in 0..2 * repeat {
        let start = Instant::now();
        request(index)?;
        if index >= repeat {
            latencies.record(start.elapsed());
        }
    }
    Ok(latencies.p50_us())
}

/// A pair of each kind, with the same memory at both ends: the same two processes, that is. The bare one rests.
fn start(provider: &str, nics: usize) -> Result<(Ours, Bare)> {
    let (rendezvous, memory) = (Rendezvous::new(provider, nics, MEMORY)?, mapping(MEMORY));
    let (name, order) = rendezvous.variable()?;
    let ours = Ours::start((provider, nics), &memory, false, &[(name, &order)])?;
    Ok((ours, Bare::beside(&rendezvous, &memory)?))
}

/// Measures all cases of a provider that are wanted.
fn measure(bench: &mut Bench, provider: &str, nics: usize, quick: bool) -> Result<()> {
    let mut prefix = format!("nics={nics} provider={provider}");
    let wants = |bench: &Bench, cases: &[Case]| cases.iter().any(|case| bench.wants(&case.name));
    if !wants(bench, &cases(&prefix, quick)) {
        return Ok(());
    }
    let pairs = (bench.options().rounds() / ROUNDS_OF_A_PAIR).max(1);
    let mut measured = Vec::new();
    for _ in 0..pairs {
        let (mut ours, mut bare) = match start(provider, nics) {
            Ok(pairs) => pairs,
            Err(error) => {
                eprintln!("SKIP: efa {prefix}: {error}");
                return Ok(());
            }
        };
        if measured.is_empty() {
            prefix += &format!(" path={}", ours.transport.describe().fabric);
            measured = cases(&prefix, quick);
            measured.retain(|case| bench.wants(&case.name));
        }
        for case in &mut measured {
            let what = case.what;
            // The first of each is not counted.
            for round in 0..=ROUNDS_OF_A_PAIR {
                let fail = |who: &str, error| format!("{}: {who}: {error}", case.name);
                let value = what.ours(&mut ours).map_err(|error| fail("ours", error))?;
                let baseline = bare.round(|bare| what.bare(bare)).map_err(|error| fail("bare", error))?;
                if round > 0 {
                    case.ours.push([value]);
                    case.bare.push([baseline]);
                }
            }
        }
        ours.transport.shutdown(soon());
    }
    for case in measured {
        bench.case(case.name).target(case.target).in_groups_of(ROUNDS_OF_A_PAIR).compare_rounds(
            [case.metric],
            "bare fabric-safe loop",
            &case.ours,
            &case.bare,
        )?;
    }
    Ok(())
}

/// What telling the card only of the last of several operations brings.
fn doorbells(bench: &mut Bench, provider: &str) -> Result<()> {
    const BLOCKS: usize = 4096;
    let case = format!("op=write size=4096 batch={BLOCKS} doorbell_batching=1 nics=1 provider={provider}");
    if !bench.wants(&case) {
        return Ok(());
    }
    let both = [false, true].map(|batching| Ours::start((provider, 1), &mapping(MEMORY), batching, &[]));
    let [Ok(mut without), Ok(mut with)] = both else {
        eprintln!("SKIP: efa {case}: the provider does not work here");
        return Ok(());
    };
    let what = What::Stream { op: Op::Write, size: 4096, count: BLOCKS };
    let (metric, with_it, without_it) =
        (Metric::Throughput, || what.ours(&mut with), || what.ours(&mut without));
    bench.case(case).compare(metric, "without", with_it, without_it)?;
    with.transport.shutdown(soon());
    without.transport.shutdown(soon());
    Ok(())
}

fn main() -> Result<()> {
    serve_targets();
    let mut bench = Bench::from_args("efa");
    let quick = bench.options().round_time().as_millis() < 50;
    for provider in providers() {
        let cards = common::efa_cards().len();
        let counts: &[usize] = if cards > 0 { &[1, 4, 16] } else { &[1, 16] };
        for &nics in counts.iter().filter(|&&nics| cards == 0 || nics <= cards) {
            measure(&mut bench, provider, nics, quick)?;
        }
        doorbells(&mut bench, provider)?;
    }
    bench.finish()
}
