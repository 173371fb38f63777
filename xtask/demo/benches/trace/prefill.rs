//! The prefill process: plays a round of either side when it is told to.

use std::collections::VecDeque;
use std::io::{BufRead as _, Write as _};
use std::time::{Duration, Instant};

use benchkit::{Latencies, Result, throughput_gb_per_s};
use engine::{Access, Batch, BatchHandle, Engine, HostMemory, Region, RemoteBuffer, Segment, Shape};

use crate::bare::Bare;
use crate::decode::POOL;
use crate::model::Geometry;
use crate::pattern::fill;
use crate::plan::{Op, Prompt, plan};
use crate::spec::{Round, Spec};

/// Requests in flight at once, on both sides.
const WINDOW: usize = 16;

/// Requests whose pages fit into the staging memory; more than the window, so that caches do not hold it all.
const SLOTS: usize = 4 * WINDOW;

/// No request takes longer.
const DEADLINE: Duration = Duration::from_secs(30);

/// Plays rounds as the parent asks for them, until it lets go.
pub(crate) fn run(spec: &Spec) -> Result<()> {
    let mut prefill = Prefill::new(spec)?;
    for line in std::io::stdin().lock().lines() {
        let round = match line?.as_str() {
            "ours" => prefill.ours()?,
            "bare" => prefill.bare()?,
            other => return Err(format!("no side {other}").into()),
        };
        println!("{}", serde_json::to_string(&round)?);
        std::io::stdout().flush()?;
    }
    prefill.engine.shutdown(Instant::now() + Duration::from_secs(1));
    Ok(())
}

struct Prefill {
    geometry: Geometry,
    prompts: Vec<Prompt>,
    engine: Engine,
    staging: HostMemory,
    region: Region,
    target: Segment,
    pool: RemoteBuffer,
    bare: Bare,
    /// What the baseline sends.
    source: Vec<u8>,
    batch: Batch,
    addrs: (Vec<u64>, Vec<u64>),
    next_slot: usize,
}

/// What a round is measured by.
struct Meter {
    start: Instant,
    prompts: Latencies,
    requests: Latencies,
    bytes: u64,
}

impl Meter {
    fn new() -> Meter {
        Meter { start: Instant::now(), prompts: Latencies::new(), requests: Latencies::new(), bytes: 0 }
    }

    fn round(&self, elapsed: Duration) -> Round {
        Round {
            prompt_p50_us: self.prompts.p50_us(),
            prompt_p99_us: self.prompts.p99_us(),
            request_p50_us: self.requests.p50_us(),
            request_p99_us: self.requests.p99_us(),
            gb_per_s: throughput_gb_per_s(self.bytes, elapsed),
        }
    }
}

impl Prefill {
    fn new(spec: &Spec) -> Result<Prefill> {
        let geometry = spec.geometry()?;
        let target = spec.target.as_ref().ok_or("no target")?;
        let engine = spec.path.builder().build()?;
        let page = geometry.page_bytes();
        let request_bytes = geometry.pages_per_request() * page;
        let staging = HostMemory::new(SLOTS * request_bytes)?;
        let mut bytes = vec![0; page];
        for index in 0..SLOTS * geometry.pages_per_request() {
            fill(&mut bytes, index as u64);
            staging.write(index * page, &bytes)?;
        }
        let region = engine.register("staging", staging.clone(), Access::LOCAL)?;
        let segment = engine.open(&target.name, Instant::now() + DEADLINE)?;
        segment.warm_up(Instant::now() + DEADLINE)?;
        eprintln!("{}: {}", spec.path, segment.path_reason());
        let pool = segment.buffer(POOL)?;
        Ok(Prefill {
            prompts: plan(spec)?,
            bare: Bare::connect(target.port, WINDOW, request_bytes)?,
            source: vec![7; SLOTS * request_bytes],
            target: segment,
            engine,
            staging,
            region,
            pool,
            geometry,
            batch: Batch::new(),
            addrs: Default::default(),
            next_slot: 0,
        })
    }

    /// Every request of a prompt: block by block, layer by layer.
    fn requests(&self, prompt: &Prompt) -> Vec<(Op, usize, usize)> {
        let layers = self.geometry.requests_per_block();
        prompt.iter().flat_map(|(op, place)| (0..layers).map(|layer| (*op, *place, layer))).collect()
    }

    /// One round through the engine.
    fn ours(&mut self) -> Result<Round> {
        let mut meter = Meter::new();
        let mut flights: VecDeque<(Instant, BatchHandle)> = VecDeque::with_capacity(WINDOW);
        let mut last_write = None;
        for prompt in self.prompts.clone() {
            let start = Instant::now();
            for (op, place, layer) in self.requests(&prompt) {
                if flights.len() == WINDOW {
                    collect(&mut flights, &mut meter)?;
                }
                let slot = self.next_slot;
                self.next_slot = (slot + 1) % (SLOTS - 1);
                let submitted = Instant::now();
                flights.push_back((submitted, self.submit(op, place, layer, slot)?));
                meter.bytes += (self.geometry.pages_per_request() * self.geometry.page_bytes()) as u64;
                if op == Op::Write {
                    last_write = Some((place, layer, slot));
                } else if last_write.is_some_and(|(.., written)| written == slot) {
                    last_write = None; // something else is read over it
                }
            }
            while !flights.is_empty() {
                collect(&mut flights, &mut meter)?;
            }
            meter.prompts.record(start.elapsed());
        }
        let elapsed = meter.start.elapsed();
        if let Some((place, layer, slot)) = last_write {
            self.check(place, layer, slot)?;
        }
        Ok(meter.round(elapsed))
    }

    /// Asks the engine for one layer of one block. Pages are scattered over the block, and over the staging memory.
    fn submit(&mut self, op: Op, place: usize, layer: usize, slot: usize) -> Result<BatchHandle> {
        let (page, pages) = (self.geometry.page_bytes() as u64, self.geometry.pages_per_request());
        let layers = self.geometry.requests_per_block();
        let (local, remote) = &mut self.addrs;
        let set = |addrs: &mut Vec<u64>, base: u64, first: usize, step: usize| {
            addrs.clear();
            addrs.extend((0..pages).map(|index| base + (first + index * step) as u64 * page));
        };
        set(local, self.region.addr(), slot, SLOTS);
        set(remote, self.pool.addr(), place * self.geometry.pages_per_block() + layer, layers);
        let here = Shape::Paged { page_len: page, addrs: local };
        let there = Shape::Paged { page_len: page, addrs: remote };
        self.batch.set_deadline(DEADLINE);
        match op {
            Op::Write => self.batch.write(&self.region, here, &self.target, there)?,
            Op::Read => self.batch.read(&self.region, here, &self.target, there)?,
        };
        Ok(self.engine.submit(&mut self.batch)?)
    }

    /// Reads a request back and compares it with the slot that it was written from.
    fn check(&mut self, place: usize, layer: usize, slot: usize) -> Result<()> {
        let spare = SLOTS - 1;
        self.submit(Op::Read, place, layer, spare)?.wait()?;
        let page = self.geometry.page_bytes();
        let (mut sent, mut came) = (vec![0; page], vec![0; page]);
        for index in 0..self.geometry.pages_per_request() {
            self.staging.read((slot + index * SLOTS) * page, &mut sent)?;
            self.staging.read((spare + index * SLOTS) * page, &mut came)?;
            if sent != came {
                return Err(format!("page {index} of layer {layer} did not arrive as it was sent").into());
            }
        }
        Ok(())
    }

    /// One round over the bare socket.
    fn bare(&mut self) -> Result<Round> {
        let mut meter = Meter::new();
        let request_bytes = self.geometry.pages_per_request() * self.geometry.page_bytes();
        let layers = self.geometry.requests_per_block();
        for prompt in self.prompts.clone() {
            let start = Instant::now();
            let requests = self.requests(&prompt);
            for (index, (op, place, layer)) in requests.iter().enumerate() {
                let slot = index % SLOTS * request_bytes;
                let at = (place * layers + layer) * request_bytes;
                self.bare.send(*op, at, &self.source[slot..slot + request_bytes])?;
                meter.bytes += request_bytes as u64;
            }
            for _ in &requests {
                meter.requests.record(self.bare.end()?);
            }
            meter.prompts.record(start.elapsed());
        }
        Ok(meter.round(meter.start.elapsed()))
    }
}

/// Waits for the oldest request and takes all that have ended from the front.
fn collect(flights: &mut VecDeque<(Instant, BatchHandle)>, meter: &mut Meter) -> Result<()> {
    let Some((submitted, handle)) = flights.pop_front() else { return Ok(()) };
    handle.wait()?;
    meter.requests.record(submitted.elapsed());
    while let Some((submitted, handle)) = flights.front() {
        let Some(outcome) = handle.poll() else { break };
        outcome?;
        meter.requests.record(submitted.elapsed());
        flights.pop_front();
    }
    Ok(())
}
