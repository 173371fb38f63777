//! Fault schedules on software cards: whatever goes wrong while traffic and registrations run, invariants 1, 2, 4 and 5 hold.
//!
//! Each schedule follows from a seed, which is printed when it fails. `PROPTEST_CASES` says how many there are, `FAULTS_SEED`
//! which is the first of each test.

mod common;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use common::cards::{control, on_cards};
use common::{Target, checksum, config, memory, open, pattern, serve, soon};
use efa_transport::{Batch, BatchHandle, Error, Op, PeerId, Region, Request, Shape, Status, Transport};

/// Not a test: the target's process, when the tests below start it.
#[test]
fn target_process() {
    serve();
}

const PAGE: usize = 8 << 10;
/// Pages of each target, and of ours for each target.
const PAGES: usize = 96;
const LEN: usize = PAGES * PAGE;
const TARGETS: usize = 2;
const CARDS: usize = 4;
/// More than the deadline may be exceeded by, in time of this process's processor.
const LATENESS: Duration = Duration::from_millis(100);

fn cases(default: u64) -> u64 {
    std::env::var("PROPTEST_CASES").ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn first_seed() -> u64 {
    std::env::var("FAULTS_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(1)
}

/// Processor time that this process has used.
fn processor_time() -> Duration {
    let text = std::fs::read_to_string("/proc/self/stat").expect("/proc");
    let after = text.rsplit(')').next().expect("a line");
    let fields: Vec<&str> = after.split_whitespace().collect();
    // utime and stime, fields 14 and 15, in hundredths of a second.
    let ticks: u64 = fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime");
    Duration::from_millis(ticks * 10)
}

/// What should be in a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Content {
    Sum(u64),
    /// Part of a request that is running, or has failed and might still write.
    Unknown,
}

struct Peer {
    id: PeerId,
    target: Target,
    /// What should be in its pages, and in those of ours that are used with it.
    there: Vec<Content>,
    here: Vec<Content>,
    /// Pages that no running request uses.
    free: Vec<usize>,
    region: Region,
    lives: u32,
}

/// A request that runs.
struct Flight {
    handle: BatchHandle,
    peer: usize,
    op: Op,
    pages: Vec<(usize, usize)>,
    deadline: Instant,
    /// Of the target's life that it was meant for.
    life: u32,
}

struct World {
    seed: u64,
    random: fastrand::Rng,
    providers: &'static [&'static str],
    transport: Transport,
    peers: Vec<Peer>,
    flights: Vec<Flight>,
    submitted: u64,
    log: Vec<String>,
    kinds: HashMap<&'static str, u64>,
}

/// What target `n` uses in one of its lives: they take turns.
fn provider_of(providers: &[&'static str], n: usize, life: u32) -> &'static str {
    providers[(n + life as usize) % providers.len()]
}

impl World {
    fn new(providers: &'static [&'static str], transport: Transport) -> Self {
        let peers = (0..TARGETS)
            .map(|n| {
                let mut target =
                    Target::start(provider_of(providers, n, 0), CARDS, &format!("target-{n}"), LEN);
                let id = target.meet(&transport);
                let region = memory(&transport, LEN);
                let (there, here) = (vec![Content::Unknown; PAGES], vec![Content::Unknown; PAGES]);
                Peer { id, target, there, here, free: (0..PAGES).collect(), region, lives: 0 }
            })
            .collect();
        let mut world = Self {
            seed: 0,
            random: fastrand::Rng::with_seed(0),
            providers,
            transport,
            peers,
            flights: Vec::new(),
            submitted: 0,
            log: Vec::new(),
            kinds: HashMap::new(),
        };
        (0..TARGETS).for_each(|n| world.look(n));
        world
    }

    fn fail(&self, what: &str) -> ! {
        let states: Vec<_> = self.peers.iter().map(|peer| self.transport.peer_state(peer.id)).collect();
        let log = self.log.join("\n");
        panic!("seed {}: {what}\n{log}\n{states:?}\n{:#?}", self.seed, self.transport.statistics());
    }

    /// Takes what is in the pages that nobody uses for right.
    fn look(&mut self, n: usize) {
        let (there, here) = self.sums(n);
        let peer = &mut self.peers[n];
        for &page in &peer.free {
            (peer.there[page], peer.here[page]) = (Content::Sum(there[page]), Content::Sum(here[page]));
        }
    }

    fn sums(&mut self, n: usize) -> (Vec<u64>, Vec<u64>) {
        let peer = &mut self.peers[n];
        let there = peer.target.sums(PAGE);
        let mut bytes = vec![0; LEN];
        peer.region.read(0, &mut bytes).expect("our memory");
        (there, bytes.chunks(PAGE).map(checksum).collect())
    }

    /// Compares all pages that nobody uses with what they should be.
    fn check(&mut self, n: usize) {
        let (there, here) = self.sums(n);
        let peer = &self.peers[n];
        for &page in &peer.free {
            for (side, content, sum) in
                [("there", peer.there[page], there[page]), ("here", peer.here[page], here[page])]
            {
                if content != Content::Sum(sum) {
                    self.fail(&format!("page {page} of peer {n} {side} has changed"));
                }
            }
        }
    }

    fn submit(&mut self) {
        let n = self.random.usize(..TARGETS);
        let op = if self.random.bool() { Op::Write } else { Op::Read };
        let count = 1 + self.random.usize(..12);
        let limit = Duration::from_millis(30 + self.random.u64(..250));
        let peer = &mut self.peers[n];
        if peer.free.len() < count {
            return;
        }
        self.random.shuffle(&mut peer.free);
        let there = peer.free.split_off(peer.free.len() - count);
        // Ours may be others, but the same are free on both sides.
        let mut here = there.clone();
        self.random.shuffle(&mut here);
        let pages: Vec<(usize, usize)> = here.into_iter().zip(there).collect();
        for &(here, there) in &pages {
            // What is read or written lies in pages that nobody else uses meanwhile; new bytes each time.
            let bytes = pattern(PAGE, self.random.u64(..));
            match op {
                Op::Write => {
                    peer.region.write((here * PAGE) as u64, &bytes).expect("our memory");
                    peer.here[here] = Content::Sum(checksum(&bytes));
                    peer.there[there] = Content::Unknown;
                }
                Op::Read => peer.here[here] = Content::Unknown,
            }
        }
        let (local, remote): (Vec<u64>, Vec<u64>) = pages
            .iter()
            .map(|&(here, there)| {
                (peer.region.addr() + (here * PAGE) as u64, peer.target.addr + (there * PAGE) as u64)
            })
            .unzip();
        let shape = |addrs| Shape::Paged { page_len: PAGE as u64, addrs };
        let request = Request {
            op,
            peer: peer.id,
            local: &peer.region,
            local_shape: shape(&local),
            remote_shape: shape(&remote),
            immediate: None,
        };
        let mut batch = Batch::new();
        batch.set_deadline(limit);
        batch.push(request).expect("a request");
        let life = peer.lives;
        let handle = self.transport.submit(&mut batch).expect("submitting");
        let deadline = Instant::now() + limit;
        self.log.push(format!("submit {op:?} of {count} pages to {n} within {limit:?}"));
        self.submitted += 1;
        self.flights.push(Flight { handle, peer: n, op, pages, deadline, life });
    }

    /// Follows a request to its end and beyond, to the moment when its pages may be used again.
    fn finish(&mut self, index: usize) {
        let flight = self.flights.swap_remove(index);
        // Invariant 1, and the deadline.
        let outcome = match flight.handle.wait_until(flight.deadline) {
            Some(outcome) => outcome,
            None => {
                let before = processor_time();
                let outcome = flight.handle.wait_until(flight.deadline + Duration::from_secs(20));
                let late = processor_time().saturating_sub(before);
                match outcome {
                    Some(outcome) if late <= LATENESS => outcome,
                    Some(_) => self.fail(&format!("a request ended {late:?} of processor time too late")),
                    None => self.fail("a request has not ended"),
                }
            }
        };
        let status = flight.handle.status(0);
        match (&outcome, &status) {
            (Ok(()), Status::Done) => *self.kinds.entry("done").or_default() += 1,
            (Err(_), Status::Failed(error)) => {
                let kind = match error {
                    Error::Timeout { .. } => "timeout",
                    Error::PeerDown { .. } => "peer down",
                    Error::PeerStale { .. } => "peer stale",
                    Error::Cancelled => "cancelled",
                    Error::NotRegistered { .. } => "not registered",
                    _ => "failed",
                };
                *self.kinds.entry(kind).or_default() += 1;
            }
            _ => self.fail(&format!("{outcome:?}, but {status:?}")),
        }
        if outcome.is_err() {
            self.log.push(format!("ended: {outcome:?}"));
        }
        if !flight.handle.quiesced(soon()) {
            self.fail("never quiesced");
        }
        if std::mem::discriminant(&flight.handle.status(0)) != std::mem::discriminant(&status) {
            self.fail("a request has ended twice");
        }
        let n = flight.peer;
        let same_life = self.peers[n].lives == flight.life;
        let (there, here) = self.sums(n);
        let peer = &mut self.peers[n];
        for &(ours, theirs) in &flight.pages {
            match (flight.op, &outcome) {
                (Op::Write, Ok(())) if same_life => {
                    let wrote = peer.here[ours];
                    if wrote != Content::Sum(there[theirs]) {
                        self.fail(&format!("page {theirs} of peer {n} has not got what was written"));
                    }
                    peer.there[theirs] = wrote;
                }
                (Op::Read, Ok(())) if same_life => {
                    let read = peer.there[theirs];
                    if read != Content::Sum(here[ours]) {
                        self.fail(&format!("our page {ours} has not got what peer {n} has in {theirs}"));
                    }
                    peer.here[ours] = read;
                }
                // Memory of another life: whatever it is now.
                _ if !same_life => {
                    peer.there[theirs] = Content::Sum(there[theirs]);
                    peer.here[ours] = Content::Sum(here[ours]);
                }
                // Whatever is there now stays, for it is quiet.
                (Op::Write, _) => peer.there[theirs] = Content::Sum(there[theirs]),
                (Op::Read, _) => peer.here[ours] = Content::Sum(here[ours]),
            }
            peer.free.push(theirs);
        }
        // Invariant 5.
        self.credits();
    }

    fn credits(&self) {
        let nics = self.transport.describe().nics;
        for (nic, described) in self.transport.statistics().nics.iter().zip(nics) {
            if nic.in_flight > described.depth {
                self.fail(&format!("{} has {} in flight", nic.name, nic.in_flight));
            }
        }
    }

    /// Something goes wrong, or is put right.
    fn rule(&mut self) {
        let random = &mut self.random;
        let host = 65_536 + random.usize(..=TARGETS);
        let card = random.usize(..CARDS);
        // What the provider behind `efa` has to say to its like, it says in messages, each once.
        let messages = self.providers.contains(&"efa/efa") && random.u32(..3) == 0;
        let op = if messages { "send" } else { ["rdma", "read", "write"][random.usize(..3)] };
        let at = if random.bool() { "" } else { " at=end" };
        // 10 (no receive posted) is for messages: a card never says it of reads and writes.
        let status = [1, 2, 4, 8, 12, 13, 15][random.usize(..7)];
        let line = match random.u32(..12) {
            0 => format!("fail status={status} op={op} nth={}{at}", 1 + random.u32(..20)),
            1 => format!(
                "fail status={status} op={op} prob=0.{} times={}{at}",
                1 + random.u32(..5),
                1 + random.u32(..40)
            ),
            2 => format!("fail status=7 op={op} nth={}", 1 + random.u32(..20)),
            3 => format!("delay us={} op={op}{at}", random.u32(..20_000)),
            4 => format!("hold op={op} times={}{at}", 1 + random.u32(..8)),
            5 => format!("hold op={op} card={card}"),
            6 | 7 => format!("down card={card} host={host}"),
            8 => format!("link card={card}"),
            9 => format!("unreachable host={}", 65_537 + random.usize(..TARGETS)),
            _ => "clear".to_owned(),
        };
        self.log.push(line.clone());
        control(&line);
    }

    /// Whoever carries descriptors does so.
    fn meet(&mut self, n: usize) {
        let peer = &mut self.peers[n];
        peer.id = peer.target.meet(&self.transport);
    }

    fn restart(&mut self, n: usize) {
        self.log.push(format!("kill and restart target {n}"));
        let provider = provider_of(self.providers, n, self.peers[n].lives + 1);
        let fresh = Target::start(provider, CARDS, &format!("target-{n}"), LEN);
        let peer = &mut self.peers[n];
        std::mem::replace(&mut peer.target, fresh).kill();
        peer.lives += 1;
        self.meet(n);
        // New memory: what is in it now stays.
        let there = self.peers[n].target.sums(PAGE);
        let peer = &mut self.peers[n];
        for &page in &peer.free {
            peer.there[page] = Content::Sum(there[page]);
        }
    }

    fn register_again(&mut self, n: usize) {
        self.log.push(format!("target {n} registers anew"));
        let peer = &mut self.peers[n];
        peer.target.register_again();
        peer.lives += 1;
        self.meet(n);
        let there = self.peers[n].target.sums(PAGE);
        let peer = &mut self.peers[n];
        for &page in &peer.free {
            peer.there[page] = Content::Sum(there[page]);
        }
    }

    fn schedule(&mut self, seed: u64) {
        self.seed = seed;
        self.random = fastrand::Rng::with_seed(seed);
        self.log.clear();
        for _ in 0..12 + self.random.usize(..24) {
            match self.random.u32(..24) {
                0..12 => self.submit(),
                12..16 => self.rule(),
                16..19 if !self.flights.is_empty() => {
                    let index = self.random.usize(..self.flights.len());
                    self.finish(index);
                }
                19 if !self.flights.is_empty() => {
                    let index = self.random.usize(..self.flights.len());
                    self.log.push("cancel".into());
                    self.flights[index].handle.cancel();
                }
                20 => {
                    // Memory of ours that comes and goes meanwhile.
                    let extra = memory(&self.transport, PAGE * (1 + self.random.usize(..64)));
                    extra.unregister(soon()).unwrap_or_else(|error| self.fail(&error.to_string()));
                }
                21 if self.random.u32(..4) == 0 => {
                    let n = self.random.usize(..TARGETS);
                    self.restart(n);
                }
                22 => {
                    let n = self.random.usize(..TARGETS);
                    self.register_again(n);
                }
                _ => {
                    let n = self.random.usize(..TARGETS);
                    self.meet(n);
                }
            }
        }
        while !self.flights.is_empty() {
            // Half of them end while things are still wrong.
            if self.flights.len() == 2 {
                control("clear");
                self.log.push("clear".into());
            }
            self.finish(0);
        }
        control("clear");
        let statistics = self.transport.statistics();
        if statistics.nics.iter().any(|nic| nic.in_flight > 0) {
            // Probes of the background; they end as well.
            common::eventually("credits come back", || {
                self.transport.progress();
                self.transport.statistics().nics.iter().all(|nic| nic.in_flight == 0)
            });
        }
        for n in 0..TARGETS {
            // Nothing has changed that was quiet, however late.
            self.check(n);
            // All is well again: with a new descriptor at the latest, the next batch succeeds.
            self.meet(n);
            let peer = &self.peers[n];
            let write =
                Request::write(peer.id, &peer.region, peer.region.addr(), peer.target.addr, LEN as u64);
            let mut batch = Batch::new();
            batch.push(write).expect("a request");
            let handle = self.transport.submit(&mut batch).expect("submitting");
            let began = Instant::now();
            loop {
                match handle.wait_until(Instant::now() + Duration::from_millis(300)) {
                    Some(Ok(())) => break,
                    // A message that the target's provider has lost: it opens another endpoint, and whoever carries descriptors tells.
                    None if began.elapsed() < Duration::from_secs(10) => self.meet(n),
                    outcome => self.fail(&format!("the next batch to {n}: {outcome:?}")),
                }
            }
            self.look(n);
            if self.peers[n].there != self.peers[n].here {
                self.fail("the next batch has not arrived");
            }
        }
    }
}

/// Schedules of a test, unless `PROPTEST_CASES` says otherwise.
const SCHEDULES: u64 = 70;

fn run(test: &str, providers: &'static [&'static str], seeds: u64) {
    on_cards(test, CARDS, "p5", &[], || {
        // Small registrations and short slices: many seams, many attempts.
        let config = config(providers[0], CARDS, "initiator")
            .max_mr_bytes(200 << 10)
            .stripe_bytes(32 << 10)
            .stuck_after(Duration::from_millis(500));
        let Some(transport) = open(test, config) else { return };
        let mut world = World::new(providers, transport);
        let began = Instant::now();
        let (cases, first) = (cases(SCHEDULES), seeds + first_seed());
        for seed in first..first + cases {
            world.schedule(seed);
        }
        let done: u64 = world.kinds.values().sum();
        assert_eq!(done, world.submitted, "each request ends once");
        eprintln!(
            "{test}: {cases} schedules from seed {first}, {:?}: {:?}, {} attempts repeated",
            began.elapsed(),
            world.kinds,
            world.transport.statistics().retries
        );
        // Otherwise nothing has been shown.
        assert!(cases < 20 || world.kinds.len() >= 4 && world.kinds["done"] > 0);
        world.transport.shutdown(soon());
    });
}

// Several tests, because schedules mostly wait: they can do that at the same time.

#[test]
fn every_fault_on_efa_direct() {
    run("every_fault_on_efa_direct", &["efa/efa-direct"], 0);
}

#[test]
fn every_fault_on_efa_direct_again() {
    run("every_fault_on_efa_direct_again", &["efa/efa-direct"], 1_000_000);
}

#[test]
fn every_fault_on_efa_direct_and_again() {
    run("every_fault_on_efa_direct_and_again", &["efa/efa-direct"], 2_000_000);
}

#[test]
fn every_fault_with_the_providers_protocols() {
    run("every_fault_with_the_providers_protocols", &["efa/efa"], 3_000_000);
}

/// Peers on either fabric at the same time, each of which comes back on the other one when it is restarted.
#[test]
fn every_fault_on_both_fabrics() {
    run("every_fault_on_both_fabrics", &["efa-auto", "efa/efa"], 4_000_000);
}
