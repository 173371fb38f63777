//! The initiator process: a prefill node. It writes the KV pages of new blocks into the target's pool and reads those of
//! cached blocks back, as a trace of requests asks for them, and lets no page be reused before its bytes have been verified.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use engine::{Access, Batch, BatchHandle, Engine, HostMemory, Region, RemoteBuffer, Segment, Shape};
use hdrhistogram::Histogram;

use crate::cache::{BlockCache, PageAllocator, PageId};
use crate::message::{Checked, POOL, Report, Row, Write, Written, page_seed};
use crate::model::Geometry;
use crate::pattern::{fill, first_difference, mix};
use crate::spec::Spec;
use crate::trace::Trace;

/// Requests in flight at once.
const WINDOW: usize = 16;

/// How much longer a run may take to come to its first read.
const READ_GRACE: Duration = Duration::from_secs(5);

/// How often progress is reported.
const PROGRESS_EVERY: Duration = Duration::from_millis(100);

/// Plays the traffic of all models of the run, one after the other.
pub(crate) fn run(spec: &Spec) -> anyhow::Result<()> {
    let engine = spec.transport.builder().build()?;
    let staging = HostMemory::new(spec.staging_bytes)?;
    let region = engine.register("staging", staging.clone(), Access::LOCAL)?;
    let target = engine
        .open(&spec.target, spec.deadline_from_now())
        .with_context(|| format!("opening the target {}", spec.target))?;
    target.warm_up(spec.deadline_from_now())?;
    let pool = target.buffer(POOL)?;
    Report::Connected { path: target.path().to_string() }.print();

    let geometries = spec.geometries().map_err(anyhow::Error::msg)?;
    let share = spec.traffic / geometries.len().max(1) as u32;
    let mut totals = Totals { since: Instant::now(), reported: Instant::now(), requests: 0, bytes: 0 };
    for geometry in geometries {
        let mut player = Player::new(spec, geometry, &engine, &staging, &region, &target, &pool)?;
        player.play(share, &mut totals)?;
        for row in player.rows() {
            Report::Row(row).print();
        }
    }
    target.notify(&postcard::to_stdvec(&Written::default())?, spec.deadline_from_now())?;
    engine.shutdown(spec.deadline_from_now());
    Ok(())
}

/// What the progress bar shows.
struct Totals {
    since: Instant,
    reported: Instant,
    requests: u64,
    bytes: u64,
}

impl Totals {
    fn add(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
        if self.reported.elapsed() >= PROGRESS_EVERY {
            self.reported = Instant::now();
            let elapsed = self.since.elapsed();
            Report::Progress { requests: self.requests, bytes: self.bytes, elapsed }.print();
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Op {
    /// Prefill to decode: pages of a block that nobody has computed before.
    Write,
    /// Cache fetch: pages of a block that the target holds.
    Read,
}

/// A block on its way: one request for each layer and rank.
struct Job {
    op: Op,
    block: u64,
    depth: usize,
    seed: u64,
    /// The block's pages in the target's pool, in request order.
    pages: Vec<PageId>,
    issued: usize,
    unverified: usize,
}

/// A request on the wire.
struct Flight {
    job: u64,
    op: Op,
    /// Seed of the request, from which the seeds of its pages follow.
    seed: u64,
    local: Vec<PageId>,
    remote: Vec<PageId>,
    handle: BatchHandle,
    submitted: Instant,
}

/// Latencies and volume of one kind of request.
struct Meter {
    latency_us: Histogram<u64>,
    bytes: u64,
    busy: Duration,
    /// Requests in flight, and since when there have been any.
    in_flight: usize,
    since: Instant,
}

impl Meter {
    fn new() -> anyhow::Result<Self> {
        // A microsecond to an hour, to three digits.
        let latency_us = Histogram::new_with_bounds(1, 3_600_000_000, 3)?;
        Ok(Self { latency_us, bytes: 0, busy: Duration::ZERO, in_flight: 0, since: Instant::now() })
    }

    fn start(&mut self, now: Instant) {
        if self.in_flight == 0 {
            self.since = now;
        }
        self.in_flight += 1;
    }

    fn end(&mut self, submitted: Instant, now: Instant, bytes: u64) {
        self.in_flight -= 1;
        if self.in_flight == 0 {
            self.busy += now - self.since;
        }
        self.bytes += bytes;
        self.latency_us.saturating_record((now - submitted).as_micros() as u64);
    }

    fn row(&self, op: &str, geometry: &Geometry) -> Row {
        let quantile = |q| Duration::from_micros(self.latency_us.value_at_quantile(q));
        Row {
            model: geometry.model.to_string(),
            page_bytes: geometry.page_bytes(),
            op: op.to_owned(),
            requests: self.latency_us.len(),
            bytes: self.bytes,
            busy: self.busy,
            p50: quantile(0.5),
            p99: quantile(0.99),
        }
    }
}

/// Plays one model's traffic.
struct Player<'a> {
    spec: &'a Spec,
    geometry: Geometry,
    engine: &'a Engine,
    staging: &'a HostMemory,
    region: &'a Region,
    target: &'a Segment,
    pool: &'a RemoteBuffer,
    trace: Trace,
    /// Blocks of the current trace request that have not been started, with their place in the prompt.
    upcoming: VecDeque<(usize, u64)>,
    cache: BlockCache,
    remote_pages: PageAllocator,
    local_pages: PageAllocator,
    jobs: HashMap<u64, Job>,
    /// The job that requests are being issued from.
    current: Option<u64>,
    /// Blocks that are being written, and so are neither cached nor absent.
    writing: HashSet<u64>,
    flights: VecDeque<Flight>,
    /// Writes that the target has been asked to check, by request id, with the job and bytes of each.
    unchecked: HashMap<u64, (u64, u64)>,
    next_id: u64,
    last_word: Instant,
    writes: Meter,
    reads: Meter,
    batch: Batch,
    page: Vec<u8>,
    addrs: (Vec<u64>, Vec<u64>),
}

impl<'a> Player<'a> {
    fn new(
        spec: &'a Spec,
        geometry: Geometry,
        engine: &'a Engine,
        staging: &'a HostMemory,
        region: &'a Region,
        target: &'a Segment,
        pool: &'a RemoteBuffer,
    ) -> anyhow::Result<Self> {
        let trace = match &spec.trace {
            Some(path) => Trace::open(path)?,
            None => Trace::generated(spec.seed),
        };
        let page_bytes = geometry.page_bytes();
        let remote_pages = PageAllocator::new(pool.len() as usize / page_bytes);
        let local_pages = PageAllocator::new(staging.len() / page_bytes);
        if remote_pages.total() < 2 * geometry.pages_per_block() {
            bail!(
                "the pool holds {} pages and a block of {} takes {}; give it --pool-mib of at least {}",
                remote_pages.total(),
                geometry.model,
                geometry.pages_per_block(),
                (2 * geometry.pages_per_block() * page_bytes).div_ceil(1 << 20)
            );
        }
        if local_pages.total() < geometry.pages_per_request() {
            bail!("the staging memory is smaller than one request; give it more with --staging-mib");
        }
        let mut batch = Batch::new();
        batch.set_deadline(spec.deadline);
        Ok(Self {
            spec,
            geometry,
            engine,
            staging,
            region,
            target,
            pool,
            trace,
            upcoming: VecDeque::new(),
            cache: BlockCache::default(),
            remote_pages,
            local_pages,
            jobs: HashMap::new(),
            current: None,
            writing: HashSet::new(),
            flights: VecDeque::new(),
            unchecked: HashMap::new(),
            next_id: 0,
            last_word: Instant::now(),
            writes: Meter::new()?,
            reads: Meter::new()?,
            batch,
            page: vec![0; page_bytes],
            addrs: Default::default(),
        })
    }

    fn rows(&self) -> [Row; 2] {
        [self.writes.row("write", &self.geometry), self.reads.row("read", &self.geometry)]
    }

    /// Issues requests for `share`, then lets what has been started end. A run that is so short, or a machine so slow, that no
    /// block has been asked for a second time by then, gets a little longer: reads are half of what is to be shown.
    fn play(&mut self, share: Duration, totals: &mut Totals) -> anyhow::Result<()> {
        let end = Instant::now() + share;
        loop {
            let now = Instant::now();
            let more = now < end || (self.reads.latency_us.is_empty() && now < end + READ_GRACE);
            while self.flights.len() < WINDOW && self.issue(more)? {}
            if self.flights.is_empty() && self.unchecked.is_empty() {
                return Ok(());
            }
            self.collect_flights(totals)?;
            self.collect_answers(totals)?;
        }
    }

    /// Starts one request. False if there is nothing to start now.
    fn issue(&mut self, more: bool) -> anyhow::Result<bool> {
        if self.current.is_none() && !(more && self.start_job()) {
            return Ok(false);
        }
        let Some(job) = self.current.and_then(|id| self.jobs.get_mut(&id)) else { return Ok(false) };
        let pages = self.geometry.pages_per_request();
        let Some(local) = self.local_pages.allocate(pages) else { return Ok(false) };
        let remote = job.pages[job.issued * pages..][..pages].to_vec();
        let seed = mix(job.seed ^ job.issued as u64);
        let (op, job_id) = (job.op, self.current.unwrap_or_default());
        job.issued += 1;
        if job.issued == self.geometry.requests_per_block() {
            self.current = None;
        }
        self.submit(job_id, op, seed, local, remote)?;
        Ok(true)
    }

    /// Turns the next block of the trace into a job. False if it has to wait for others to end.
    fn start_job(&mut self) -> bool {
        while self.upcoming.is_empty() {
            self.upcoming.extend(self.trace.next_request().hash_ids.into_iter().enumerate());
        }
        let (depth, block) = self.upcoming[0];
        if self.writing.contains(&block) {
            return false;
        }
        let unverified = self.geometry.requests_per_block();
        let id = self.take_id();
        let job = if let Some(cached) = self.cache.pin(block) {
            let (seed, pages) = (cached.seed, cached.pages.clone());
            Job { op: Op::Read, block, depth, seed, pages, issued: 0, unverified }
        } else {
            let pages = loop {
                if let Some(pages) = self.remote_pages.allocate(self.geometry.pages_per_block()) {
                    break pages;
                }
                match self.cache.evict() {
                    Some(freed) => self.remote_pages.release(&freed),
                    None => return false,
                }
            };
            self.writing.insert(block);
            let seed = mix(self.spec.seed ^ mix(id));
            Job { op: Op::Write, block, depth, seed, pages, issued: 0, unverified }
        };
        self.jobs.insert(id, job);
        self.current = Some(id);
        self.upcoming.pop_front();
        true
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn submit(
        &mut self,
        job: u64,
        op: Op,
        seed: u64,
        local: Vec<PageId>,
        remote: Vec<PageId>,
    ) -> anyhow::Result<()> {
        let page_bytes = self.page.len();
        if op == Op::Write {
            for (index, &id) in local.iter().enumerate() {
                fill(&mut self.page, page_seed(seed, index));
                self.staging.write(id as usize * page_bytes, &self.page)?;
            }
        }
        let (local_addrs, remote_addrs) = &mut self.addrs;
        let set = |addrs: &mut Vec<u64>, base: u64, pages: &[PageId]| {
            addrs.clear();
            addrs.extend(pages.iter().map(|&id| base + u64::from(id) * page_bytes as u64));
        };
        set(local_addrs, self.region.addr(), &local);
        set(remote_addrs, self.pool.addr(), &remote);
        let page_len = page_bytes as u64;
        let (here, there) =
            (Shape::Paged { page_len, addrs: local_addrs }, Shape::Paged { page_len, addrs: remote_addrs });
        match op {
            Op::Write => self.batch.write(self.region, here, self.target, there)?,
            Op::Read => self.batch.read(self.region, here, self.target, there)?,
        };
        let submitted = Instant::now();
        let handle = self.engine.submit(&mut self.batch)?;
        self.meter(op).start(submitted);
        self.flights.push_back(Flight { job, op, seed, local, remote, handle, submitted });
        Ok(())
    }

    fn meter(&mut self, op: Op) -> &mut Meter {
        match op {
            Op::Write => &mut self.writes,
            Op::Read => &mut self.reads,
        }
    }

    /// Waits for the oldest request, then takes every one that has ended. Writes are handed to the target to be checked,
    /// reads are checked here.
    fn collect_flights(&mut self, totals: &mut Totals) -> anyhow::Result<()> {
        let Some(oldest) = self.flights.front() else { return Ok(()) };
        // Its own deadline ends it; asked for a little more, so that it is its error that is seen.
        oldest.handle.wait_until(oldest.submitted + self.spec.deadline + Duration::from_secs(1));
        let now = Instant::now();
        let mut ended = Vec::new();
        let mut running = VecDeque::with_capacity(self.flights.len());
        for flight in self.flights.drain(..) {
            match flight.handle.poll() {
                Some(outcome) => ended.push((flight, outcome)),
                None if now > flight.submitted + self.spec.deadline + Duration::from_secs(1) => {
                    bail!(
                        "a request to {} outlived its deadline of {:?}",
                        self.target.name(),
                        self.spec.deadline
                    )
                }
                None => running.push_back(flight),
            }
        }
        self.flights = running;
        let bytes = (self.geometry.pages_per_request() * self.page.len()) as u64;
        let mut written = Written::default();
        let mut read = Vec::new();
        for (flight, outcome) in ended {
            outcome.with_context(|| format!("{:?} of a KV block", flight.op))?;
            self.meter(flight.op).end(flight.submitted, now, bytes);
            match flight.op {
                Op::Write => {
                    self.local_pages.release(&flight.local);
                    let id = self.take_id();
                    self.unchecked.insert(id, (flight.job, bytes));
                    let page_bytes = self.page.len();
                    written.writes.push(Write { id, seed: flight.seed, page_bytes, pages: flight.remote });
                }
                Op::Read => read.push(flight),
            }
        }
        // First the target, so that it checks while we do.
        if !written.writes.is_empty() {
            if self.unchecked.len() == written.writes.len() {
                self.last_word = Instant::now();
            }
            self.target.notify(&postcard::to_stdvec(&written)?, self.spec.deadline_from_now())?;
        }
        for flight in read {
            self.check_read(&flight)?;
            self.local_pages.release(&flight.local);
            self.verified(flight.job, bytes, totals);
        }
        Ok(())
    }

    fn check_read(&mut self, flight: &Flight) -> anyhow::Result<()> {
        for (index, &id) in flight.local.iter().enumerate() {
            self.staging.read(id as usize * self.page.len(), &mut self.page)?;
            if let Some(at) = first_difference(&self.page, page_seed(flight.seed, index)) {
                bail!(
                    "read of page {} of {}: wrong from byte {at} on",
                    flight.remote[index],
                    self.target.name()
                );
            }
        }
        Ok(())
    }

    /// Takes the target's answers; waits for one only when nothing else is left to do.
    fn collect_answers(&mut self, totals: &mut Totals) -> anyhow::Result<()> {
        while !self.unchecked.is_empty() {
            let deadline = self.last_word + self.spec.deadline;
            let note = if self.flights.is_empty() {
                self.engine.notification(deadline)
            } else {
                self.engine.try_notification()
            };
            let Some(note) = note else {
                if Instant::now() < deadline {
                    return Ok(());
                }
                bail!(
                    "the target {} has not said within {:?} whether {} writes arrived whole",
                    self.target.name(),
                    self.spec.deadline,
                    self.unchecked.len()
                );
            };
            self.last_word = Instant::now();
            let checked: Checked = postcard::from_bytes(&note.payload).context("the target's answer")?;
            if let Some(wrong) = checked.wrong {
                bail!("verification failed at {}: {wrong}", self.target.name());
            }
            for id in checked.right {
                let Some((job, bytes)) = self.unchecked.remove(&id) else {
                    bail!("{} confirmed write {id}, which nobody asked about", self.target.name());
                };
                self.verified(job, bytes, totals);
            }
            if self.flights.is_empty() {
                // There may be room for new requests now.
                return Ok(());
            }
        }
        Ok(())
    }

    /// One more request of a job has been verified; after the last one its block is cached, or may be evicted again.
    fn verified(&mut self, id: u64, bytes: u64, totals: &mut Totals) {
        totals.add(bytes);
        let Some(job) = self.jobs.get_mut(&id) else { return };
        job.unverified -= 1;
        if job.unverified > 0 {
            return;
        }
        if let Some(Job { op, block, depth, seed, pages, .. }) = self.jobs.remove(&id) {
            match op {
                Op::Write => {
                    self.writing.remove(&block);
                    self.cache.insert(block, seed, pages, depth);
                }
                Op::Read => self.cache.unpin(block),
            }
        }
    }
}
