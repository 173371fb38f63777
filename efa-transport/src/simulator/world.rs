//! The world that the scheduler is put into: cards, time, faults.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet};

use super::machine::Card;
use super::report::{CardReport, Report};
use super::{Faults, Scenario, Settings};
use crate::scheduler::health::Health;
use crate::scheduler::queue::{Queue, Token};
use crate::scheduler::rail::{Pace, Set, cost, holds, least_loaded, members, partner};
use crate::scheduler::retry::{Decision, Failure, Tried, decide};
use crate::scheduler::slicer::{Chunk, Stretch, longest_slice, slice};

/// Failures in a row that set a card aside, as in the transport.
const NIC_TOLERANCE: u32 = 4;

/// Least backlog that is worth taking over from, as in the transport.
const WORTH_TAKING: u64 = 64 << 10;

/// How long a dead card's operations stay out before they end in an error.
const DETECT_NS: u64 = 2_000_000;

/// Runs a scenario to its end.
pub fn run(scenario: &Scenario) -> Report {
    let mut world = World::new(scenario);
    for _ in 0..scenario.outstanding.min(usize::try_from(scenario.requests).unwrap_or(usize::MAX)) {
        world.submit();
    }
    world.schedule_death();
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        world.now = at;
        world.handle(event);
        if world.ended == scenario.requests {
            break;
        }
    }
    world.report()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// An attempt ends; `attempt` says which, so that one that has been ended otherwise is not ended twice.
    End {
        card: usize,
        token: u32,
        attempt: u64,
        failed: bool,
    },
    /// A slice gets its next attempt.
    Retry {
        slice: usize,
    },
    /// A request takes the place of one that has ended.
    Submit,
    Deadline {
        request: usize,
    },
    Death,
    Return {
        card: usize,
    },
    /// Something paused may go on.
    Kick {
        card: usize,
    },
}

struct SimCard {
    card: Card,
    queue: Queue<usize>,
    health: Health,
    /// Bytes queued and in flight.
    load: u64,
    free_at: u64,
    busy_ns: u64,
    dead: bool,
    kick_at: u64,
    report: CardReport,
}

struct SimRequest {
    slices_left: usize,
    bytes_left: u64,
    submitted: u64,
    deadline: u64,
    ended: bool,
}

struct SimSlice {
    request: usize,
    bytes: u64,
    attempts: u32,
    /// The attempt that is out, if one is.
    out: Option<u64>,
    tried: Tried,
    delivered: bool,
}

struct World<'a> {
    scenario: &'a Scenario,
    settings: Settings,
    faults: Faults,
    now: u64,
    random: Random,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    cards: Vec<SimCard>,
    remote: Vec<(Card, u64)>,
    requests: Vec<SimRequest>,
    free_requests: Vec<usize>,
    slices: Vec<SimSlice>,
    free_slices: Vec<usize>,
    submitted: u64,
    ended: u64,
    done: u64,
    bytes: u64,
    retries: u64,
    attempts: u64,
    most_attempts: u32,
    turn: usize,
    latencies: Vec<u64>,
    violations: Vec<String>,
    /// Requests that failed with attempts still out: their slots are free when those have ended.
    lingering: HashSet<usize>,
}

impl<'a> World<'a> {
    fn new(scenario: &'a Scenario) -> Self {
        let card = |(index, card): (usize, &Card)| SimCard {
            card: *card,
            queue: Queue::new(card.depth, scenario.settings.window_bytes),
            health: Health::default(),
            load: 0,
            free_at: 0,
            busy_ns: 0,
            dead: holds(scenario.faults.dead, index),
            kick_at: u64::MAX,
            report: CardReport {
                bytes: 0,
                operations: 0,
                busy: 0.0,
                bytes_per_second: card.bytes_per_second(),
                deaths: 0,
                taken_over: 0,
            },
        };
        Self {
            scenario,
            settings: scenario.settings,
            faults: scenario.faults,
            now: 0,
            random: Random(scenario.seed),
            events: BinaryHeap::new(),
            sequence: 0,
            cards: (0..).zip(&scenario.local.cards).map(card).collect(),
            remote: scenario.remote.cards.iter().map(|card| (*card, 0)).collect(),
            requests: Vec::new(),
            free_requests: Vec::new(),
            slices: Vec::new(),
            free_slices: Vec::new(),
            submitted: 0,
            ended: 0,
            done: 0,
            bytes: 0,
            retries: 0,
            attempts: 0,
            most_attempts: 0,
            turn: 0,
            latencies: Vec::new(),
            violations: Vec::new(),
            lingering: HashSet::new(),
        }
    }

    fn at(&mut self, time: u64, event: Event) {
        self.sequence += 1;
        self.events.push(Reverse((time, self.sequence, event)));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::End { card, token, attempt, failed } => self.attempt_ended(card, token, attempt, failed),
            Event::Retry { slice } => {
                if self.requests[self.slices[slice].request].ended {
                    self.slice_gone(slice);
                } else {
                    self.route(slice);
                }
            }
            Event::Submit => self.submit(),
            Event::Deadline { request } => {
                let of = &self.requests[request];
                // The slot may have been used again since.
                if !of.ended && of.deadline == self.now && of.slices_left > 0 {
                    self.request_ended(request, false);
                    self.sweep(request);
                }
            }
            Event::Death => self.death(),
            Event::Return { card } => {
                self.cards[card].dead = false;
                self.pump(card);
            }
            Event::Kick { card } => {
                self.cards[card].kick_at = u64::MAX;
                self.pump(card);
            }
        }
    }

    // ---- what a transport does -------------------------------------------------------------------------------------

    fn submit(&mut self) {
        if self.submitted == self.scenario.requests {
            return;
        }
        self.submitted += 1;
        let bytes = self.scenario.request_bytes;
        let deadline = self.now + self.scenario.deadline_ns;
        let fresh =
            SimRequest { slices_left: 0, bytes_left: bytes, submitted: self.now, deadline, ended: false };
        let request = match self.free_requests.pop() {
            Some(slot) => {
                self.requests[slot] = fresh;
                slot
            }
            None => {
                self.requests.push(fresh);
                self.requests.len() - 1
            }
        };
        self.at(deadline, Event::Deadline { request });
        let rails = self.usable().count_ones() as usize;
        let longest = longest_slice(
            bytes,
            bytes,
            (rails.min(self.cards.len()), self.cards.len()),
            self.settings.stripe_bytes,
            self.settings.slice_bytes,
            1 << 30,
        );
        let whole = Stretch { at: 0, len: bytes };
        let chunk = |addr: u64| Some(Chunk { index: 0, before: addr, left: u64::MAX - addr });
        let mut lengths = Vec::new();
        let sliced = slice([whole], [whole], chunk, chunk, longest, |cut| lengths.push(cut.len));
        if sliced.is_err() || lengths.iter().sum::<u64>() != bytes {
            self.violations.push(format!("slices of a request of {bytes} bytes do not partition it"));
        }
        self.requests[request].slices_left = lengths.len();
        for bytes in lengths {
            let fresh = SimSlice {
                request,
                bytes,
                attempts: 0,
                out: None,
                tried: Tried::default(),
                delivered: false,
            };
            let slice = match self.free_slices.pop() {
                Some(slot) => {
                    self.slices[slot] = fresh;
                    slot
                }
                None => {
                    self.slices.push(fresh);
                    self.slices.len() - 1
                }
            };
            self.route(slice);
        }
    }

    fn usable(&self) -> Set {
        let usable =
            |(index, card): (usize, &SimCard)| if card.health.usable(self.now) { 1 << index } else { 0 };
        let set = self.cards.iter().enumerate().map(usable).fold(0, |set: Set, bit: Set| set | bit);
        if set == 0 { (1 << self.cards.len()) - 1 } else { set }
    }

    fn route(&mut self, slice: usize) {
        let eligible = self.slices[slice].tried.other_locals(self.usable());
        self.turn = (self.turn + 1) % self.cards.len();
        let bytes = self.slices[slice].bytes;
        let chosen = least_loaded(eligible, self.turn, |index| {
            let card = &self.cards[index];
            cost(card.load, bytes, Pace::of(card.card.link_mbps), false)
        });
        let Some(card) = chosen else {
            self.violations.push("no lane for a slice although there are cards".into());
            return;
        };
        self.cards[card].load += bytes;
        self.cards[card].queue.push(0, bytes, slice);
        self.pump(card);
    }

    /// Posts what there are credits for.
    fn pump(&mut self, card: usize) {
        while let Some(token) = self.cards[card].queue.next(self.now) {
            let Some(&slice) = self.cards[card].queue.get(token) else { continue };
            if self.requests[self.slices[slice].request].ended {
                self.cards[card].queue.end(token);
                self.cards[card].load -= self.slices[slice].bytes;
                self.slice_gone(slice);
                continue;
            }
            if self.random.chance(self.faults.agains_per_million) {
                self.cards[card].queue.again(token, self.now);
                continue;
            }
            self.post(card, token, slice);
            self.cards[card].queue.posted(token);
            let queue = &self.cards[card].queue;
            if queue.in_flight() > queue.depth() {
                self.violations.push(format!("card {card} has more in flight than its depth"));
            }
        }
        if let Some(at) = self.cards[card].queue.wake_at()
            && at < self.cards[card].kick_at
        {
            self.cards[card].kick_at = at;
            self.at(at.max(self.now + 1), Event::Kick { card });
        }
    }

    fn attempt_ended(&mut self, card: usize, token: u32, attempt: u64, failed: bool) {
        let token = Token::from_raw(token);
        let Some(&slice) = self.cards[card].queue.get(token) else { return };
        if self.slices[slice].out != Some(attempt) {
            return;
        }
        self.cards[card].queue.end(token);
        let (request, bytes) = (self.slices[slice].request, self.slices[slice].bytes);
        self.slices[slice].out = None;
        self.cards[card].load -= bytes;
        self.cards[card].report.operations += 1;
        let wanted = !self.requests[request].ended;
        if failed {
            self.cards[card].health.failed(self.now, NIC_TOLERANCE);
            if wanted {
                self.retry(card, slice);
            } else {
                self.slice_gone(slice);
            }
        } else {
            self.cards[card].health.succeeded();
            self.cards[card].report.bytes += bytes;
            if std::mem::replace(&mut self.slices[slice].delivered, true) {
                self.violations.push("a slice was delivered twice".into());
            }
            let of = &mut self.requests[request];
            of.bytes_left = of.bytes_left.saturating_sub(bytes);
            if wanted && of.slices_left == 1 {
                if of.bytes_left != 0 {
                    self.violations.push("a request is done with bytes missing".into());
                }
                self.request_ended(request, true);
            }
            self.slice_gone(slice);
        }
        self.pump(card);
        if self.cards[card].queue.queued() == 0 {
            self.take_over(card);
        }
    }

    fn retry(&mut self, card: usize, slice: usize) {
        let usable = self.usable();
        let untried = self.slices[slice].tried.fail((Some(card), None), (usable, 0)).local;
        let (attempts, request) = (self.slices[slice].attempts, self.slices[slice].request);
        let deadline = self.requests[request].deadline;
        match decide(Failure::Rail, attempts, self.settings.retries, untried, self.now, deadline) {
            Decision::Retry { at } => {
                self.retries += 1;
                self.at(at, Event::Retry { slice });
            }
            Decision::GiveUp => {
                self.request_ended(request, false);
                self.slice_gone(slice);
                self.sweep(request);
            }
        }
    }

    /// A lane that has run dry takes waiting slices from the one that has most.
    fn take_over(&mut self, to: usize) {
        if self.usable() & 1 << to == 0 || self.cards[to].load > self.settings.window_bytes {
            return;
        }
        let others = members((1 << self.cards.len()) - 1).filter(|&card| card != to);
        let Some(from) = others.max_by_key(|&card| self.cards[card].load) else { return };
        let share = self.cards[from].queue.queued_bytes() / 2;
        if self.cards[from].load <= WORTH_TAKING || share < WORTH_TAKING {
            return;
        }
        let mut taken = Vec::new();
        let most = share.min(self.settings.window_bytes);
        let slices = &self.slices;
        self.cards[from].queue.take_waiting(
            most,
            |&slice| !slices[slice].tried.holds_local(to),
            |_, bytes, slice| taken.push((bytes, slice)),
        );
        for (bytes, slice) in taken.into_iter().rev() {
            self.cards[from].load -= bytes;
            self.cards[to].load += bytes;
            self.cards[to].report.taken_over += 1;
            self.cards[to].queue.push(0, bytes, slice);
        }
        self.pump(to);
    }

    /// Waiting slices of a request that has ended are dropped.
    fn sweep(&mut self, request: usize) {
        for card in 0..self.cards.len() {
            let mut taken = Vec::new();
            let slices = &self.slices;
            self.cards[card].queue.take_waiting(
                u64::MAX,
                |&slice| slices[slice].request == request,
                |_, bytes, slice| taken.push((bytes, slice)),
            );
            for (bytes, slice) in taken {
                self.cards[card].load -= bytes;
                self.slice_gone(slice);
            }
        }
    }

    fn request_ended(&mut self, request: usize, done: bool) {
        let of = &mut self.requests[request];
        if std::mem::replace(&mut of.ended, true) {
            self.violations.push("a request ended twice".into());
            return;
        }
        if self.now > of.deadline {
            self.violations.push("a request outlived its deadline".into());
        }
        self.ended += 1;
        if done {
            self.done += 1;
            self.bytes += self.scenario.request_bytes;
            self.latencies.push(self.now - of.submitted);
        }
        self.lingering.insert(request);
        self.at(self.now + self.scenario.pause_ns, Event::Submit);
    }

    /// A slice will never be worked on again.
    fn slice_gone(&mut self, slice: usize) {
        let request = self.slices[slice].request;
        if self.slices[slice].out.is_some() {
            self.violations.push("a slice was given up while an attempt was out".into());
        }
        self.free_slices.push(slice);
        let of = &mut self.requests[request];
        of.slices_left -= 1;
        if of.slices_left == 0 {
            if !of.ended {
                self.violations.push("a request lost all its slices without ending".into());
            }
            self.lingering.remove(&request);
            self.free_requests.push(request);
        }
    }

    // ---- what cards do -----------------------------------------------------------------------------------------------

    fn post(&mut self, card: usize, token: Token, slice: usize) {
        self.attempts += 1;
        let attempt = self.attempts;
        if self.slices[slice].out.replace(attempt).is_some() {
            self.violations.push("two attempts of a slice at the same time".into());
        }
        self.slices[slice].attempts += 1;
        self.most_attempts = self.most_attempts.max(self.slices[slice].attempts);
        let bytes = self.slices[slice].bytes;
        let (locals, remotes) = (self.cards.len(), self.remote.len());
        let all = (1 << remotes) - 1;
        let there = partner(card, locals, remotes, all, self.turn).unwrap_or(0);
        let local = &mut self.cards[card];
        let failed = local.dead || self.random.chance(self.faults.failures_per_million);
        let end = if local.dead {
            self.now + DETECT_NS
        } else {
            let service = local.card.service_ns(bytes);
            local.free_at = local.free_at.max(self.now) + service;
            local.busy_ns += service;
            // The remote card takes it as it comes, unless it is behind.
            let (remote, free_at) = &mut self.remote[there];
            *free_at = (*free_at + remote.service_ns(bytes)).max(local.free_at);
            let jitter = self.random.below(self.scenario.local.latency_ns / 4 + 1);
            *free_at + self.scenario.local.latency_ns + jitter
        };
        self.at(end, Event::End { card, token: token.raw(), attempt, failed });
    }

    fn schedule_death(&mut self) {
        if self.faults.mean_ns_between_deaths > 0 {
            let wait = self.random.about(self.faults.mean_ns_between_deaths);
            self.at(self.now + wait, Event::Death);
        }
    }

    fn death(&mut self) {
        let card = self.random.below(self.cards.len() as u64) as usize;
        if !self.cards[card].dead {
            self.cards[card].dead = true;
            self.cards[card].report.deaths += 1;
            // Everything that is out on it ends in an error.
            let out: Vec<_> = self.cards[card].queue.flying().map(|(token, &slice)| (token, slice)).collect();
            for (token, slice) in out {
                if let Some(attempt) = self.slices[slice].out {
                    let end = self.now + DETECT_NS;
                    self.at(end, Event::End { card, token: token.raw(), attempt, failed: true });
                }
            }
            let wait = self.random.about(self.faults.mean_ns_dead);
            self.at(self.now + wait, Event::Return { card });
        }
        self.schedule_death();
    }

    fn report(mut self) -> Report {
        if self.ended != self.scenario.requests {
            let missing = self.scenario.requests - self.ended;
            self.violations.push(format!("{missing} requests never ended"));
        }
        self.latencies.sort_unstable();
        let percentile = |of: usize| {
            let last = self.latencies.len().saturating_sub(1);
            self.latencies.get(last * of / 100).copied().unwrap_or(0)
        };
        let latency_ns = (percentile(50), percentile(99));
        let elapsed = self.now.max(1);
        let cards = self
            .cards
            .into_iter()
            .map(|card| CardReport { busy: (card.busy_ns as f64 / elapsed as f64).min(1.0), ..card.report });
        Report {
            machine: self.scenario.local.name.clone(),
            seed: self.scenario.seed,
            elapsed_ns: self.now,
            done: self.done,
            failed: self.ended - self.done,
            bytes: self.bytes,
            retries: self.retries,
            most_attempts: self.most_attempts,
            cards: cards.collect(),
            latency_ns,
            violations: self.violations,
        }
    }
}

/// Random numbers from a seed (SplitMix64, a published generator).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ word >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ word >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ word >> 31
    }

    fn below(&mut self, limit: u64) -> u64 {
        ((u128::from(self.next()) * u128::from(limit.max(1))) >> 64) as u64
    }

    fn chance(&mut self, per_million: u32) -> bool {
        per_million > 0 && self.below(1_000_000) < u64::from(per_million)
    }

    /// Exponentially distributed around a mean, at least 1.
    fn about(&mut self, mean: u64) -> u64 {
        let uniform = (self.next() >> 11) as f64 / (1_u64 << 53) as f64;
        ((mean as f64 * -(1.0 - uniform).ln()) as u64).max(1)
    }
}
