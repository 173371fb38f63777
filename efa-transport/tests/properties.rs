//! Invariants 1, 4 and 5 of the scheduler, and that everything that comes off a wire can be anything.

use std::collections::HashMap;

use efa_transport::scheduler::fabric::{DIRECT, Device, Offer, choose};
use efa_transport::scheduler::queue::{Queue, Token};
use efa_transport::scheduler::rail::{least_loaded, partner};
use efa_transport::scheduler::retry::{Decision, Failure, decide};
use efa_transport::scheduler::slicer::{Chunk, Cut, Stretch, longest_slice, slice};
use efa_transport::simulator::{Faults, Machine, Scenario, Settings, run};
use proptest::prelude::*;

/// What can be done to a queue.
#[derive(Debug, Clone, Copy)]
enum Step {
    Push {
        flow: u32,
        bytes: u64,
    },
    /// Take the next one; the provider accepts it, has no room, or it is not wanted any more.
    Next(Answer),
    /// One is posted without having waited, if that can be.
    Alone {
        flow: u32,
        bytes: u64,
    },
    /// One of those in flight ends.
    End(prop::sample::Index),
    /// A token that may be anything.
    Stray(u32),
    /// Another lane takes something over.
    Take {
        bytes: u64,
        modulus: u64,
    },
    Wait(u64),
    /// Its endpoint goes, or comes back.
    Close(bool),
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Posted,
    Again,
    Dropped,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..5_u32, 0..10_000_u64).prop_map(|(flow, bytes)| Step::Push { flow, bytes }),
        6 => prop_oneof![6 => Just(Answer::Posted), 1 => Just(Answer::Again), 1 => Just(Answer::Dropped)]
            .prop_map(Step::Next),
        2 => (0..5_u32, 0..10_000_u64).prop_map(|(flow, bytes)| Step::Alone { flow, bytes }),
        4 => any::<prop::sample::Index>().prop_map(Step::End),
        1 => any::<bool>().prop_map(Step::Close),
        1 => any::<u32>().prop_map(Step::Stray),
        1 => (0..50_000_u64, 1..4_u64).prop_map(|(bytes, modulus)| Step::Take { bytes, modulus }),
        2 => (0..3_000_000_u64).prop_map(Step::Wait),
    ]
}

/// Runs of ranges with gaps between them, and seams.
fn ranges() -> impl Strategy<Value = Vec<(u64, u64)>> {
    proptest::collection::vec((0..5_000_u64, 0..20_000_u64), 1..12).prop_map(|pieces| {
        let mut at = 1 << 32;
        let mut ranges = Vec::new();
        for (gap, len) in pieces {
            at += gap;
            ranges.push((at, len));
            at += len;
        }
        ranges
    })
}

/// The chunk of `grain` bytes that `addr` lies in; its number wraps where it does not fit, as neighbours still differ.
fn chunk_of(addr: u64, grain: u64) -> u32 {
    (addr / grain) as u32
}

/// Chunks of `grain` bytes, from 0.
fn chunks(grain: u64) -> impl Fn(u64) -> Option<Chunk> {
    move |addr| Some(Chunk { index: chunk_of(addr, grain), before: addr % grain, left: grain - addr % grain })
}

proptest! {
    /// Whatever happens to a queue: credits are conserved and never exceeded, the window is kept, each slice comes out exactly
    /// once, and slices of one flow are posted in order.
    #[test]
    fn a_queue_conserves_credits_and_slices(
        depth in 1..20_usize,
        window in 1..60_000_u64,
        steps in proptest::collection::vec(step(), 1..400),
    ) {
        let mut queue = Queue::new(depth, window);
        let mut waiting: HashMap<u64, u64> = HashMap::new();
        let mut flying: Vec<(Token, u64, u64)> = Vec::new();
        let mut last_posted: HashMap<u64, u64> = HashMap::new();
        let (mut name, mut now, mut out) = (0_u64, 0_u64, 0_u64);
        let mut closed = false;
        for step in steps {
            match step {
                Step::Push { flow, bytes } => {
                    // The name says the flow, and grows.
                    let item = name * 8 + u64::from(flow);
                    name += 1;
                    queue.push(flow, bytes, item);
                    waiting.insert(item, bytes);
                }
                Step::Next(answer) => {
                    let Some(token) = queue.next(now) else { continue };
                    prop_assert!(!closed);
                    let item = *queue.get(token).expect("it was handed out");
                    let bytes = waiting.remove(&item).expect("it was waiting");
                    prop_assert!(flying.iter().all(|(other, ..)| *other != token), "a token given twice");
                    let another = queue.has_another();
                    let before: u64 = flying.iter().map(|(_, _, bytes)| bytes).sum();
                    prop_assert!(before == 0 || before + bytes <= window);
                    match answer {
                        Answer::Posted => {
                            queue.posted(token);
                            flying.push((token, item, bytes));
                            if another {
                                // What was promised is there.
                                let next = queue.next(now).expect("another one");
                                let item = *queue.get(next).expect("it was handed out");
                                queue.again(next, now);
                                prop_assert!(waiting.contains_key(&item));
                            }
                            let last = last_posted.insert(item % 8, item);
                            prop_assert!(last.is_none_or(|last| last < item), "out of order");
                        }
                        Answer::Again => {
                            queue.again(token, now);
                            waiting.insert(item, bytes);
                        }
                        Answer::Dropped => {
                            prop_assert_eq!(queue.end(token), Some(item));
                            out += 1;
                        }
                    }
                }
                Step::Alone { flow, bytes } => {
                    let before: u64 = flying.iter().map(|(_, _, bytes)| bytes).sum();
                    let room = flying.len() < depth && (before == 0 || before + bytes <= window);
                    let token = queue.next_alone(bytes);
                    prop_assert_eq!(token.is_some(), waiting.is_empty() && room && !closed);
                    let Some(token) = token else { continue };
                    let item = name * 8 + u64::from(flow);
                    name += 1;
                    queue.push_posted(flow, bytes, item);
                    prop_assert_eq!(queue.get(token), Some(&item));
                    flying.push((token, item, bytes));
                    last_posted.insert(item % 8, item);
                }
                Step::Close(it) => {
                    closed = it;
                    queue.set_closed(closed);
                }
                Step::End(which) => {
                    if !flying.is_empty() {
                        let (token, item, _) = flying.swap_remove(which.index(flying.len()));
                        prop_assert_eq!(queue.end(token), Some(item));
                        prop_assert_eq!(queue.end(token), None, "it ends once");
                        out += 1;
                    }
                }
                Step::Stray(raw) => {
                    if flying.iter().all(|(token, ..)| token.raw() != raw) {
                        prop_assert_eq!(queue.end(Token::from_raw(raw)), None);
                    }
                }
                Step::Take { bytes, modulus } => {
                    let mut taken = Vec::new();
                    queue.take_waiting(bytes, |item| item / 8 % modulus == 0, |flow, bytes, item| {
                        taken.push((flow, bytes, item));
                    });
                    for (flow, bytes, item) in taken {
                        prop_assert_eq!(u64::from(flow), item % 8);
                        prop_assert_eq!(waiting.remove(&item), Some(bytes));
                        out += 1;
                    }
                }
                Step::Wait(time) => now += time,
            }
            prop_assert_eq!(queue.in_flight(), flying.len());
            prop_assert!(queue.in_flight() <= depth);
            prop_assert_eq!(queue.in_flight_bytes(), flying.iter().map(|(_, _, bytes)| bytes).sum::<u64>());
            prop_assert_eq!(queue.queued(), waiting.len());
            prop_assert_eq!(queue.queued_bytes(), waiting.values().sum::<u64>());
        }
        queue.set_closed(false);
        // And nothing gets stuck: with time and completions, everything comes out.
        for _ in 0..waiting.len() + flying.len() + 1 {
            now += 10_000_000;
            while let Some(token) = queue.next(now) {
                queue.posted(token);
                flying.push((token, 0, 0));
            }
            for (token, ..) in flying.drain(..) {
                prop_assert!(queue.end(token).is_some());
                out += 1;
            }
        }
        prop_assert_eq!(out, name);
        prop_assert_eq!((queue.queued(), queue.in_flight()), (0, 0));
    }

    /// Slices partition the request, cross no seam and no end of a range, and are no longer than they may be.
    #[test]
    fn slices_partition_a_request(
        local in ranges(),
        remote in ranges(),
        (local_grain, remote_grain) in (1..9_000_u64, 1..9_000_u64),
        longest in 1..30_000_u64,
    ) {
        let stretch = |&(at, len): &(u64, u64)| Stretch { at, len };
        let mut cuts: Vec<Cut> = Vec::new();
        slice(
            local.iter().map(stretch),
            remote.iter().map(stretch),
            chunks(local_grain),
            chunks(remote_grain),
            longest,
            |cut| cuts.push(cut),
        )
        .expect("there are chunks everywhere");
        let total = |ranges: &[(u64, u64)]| ranges.iter().map(|range| range.1).sum::<u64>();
        let bytes = total(&local).min(total(&remote));
        prop_assert_eq!(cuts.iter().map(|cut| cut.len).sum::<u64>(), bytes);
        // The n-th byte of one side goes with the n-th byte of the other.
        let byte = |ranges: &[(u64, u64)], mut n: u64| {
            for &(at, len) in ranges {
                if n < len {
                    return (at + n, len - n);
                }
                n -= len;
            }
            unreachable!("less than the total")
        };
        let mut done = 0;
        for cut in &cuts {
            prop_assert!(cut.len > 0 && cut.len <= longest);
            let ((here, local_left), (there, remote_left)) = (byte(&local, done), byte(&remote, done));
            prop_assert_eq!((cut.local, cut.remote), (here, there));
            prop_assert!(cut.len <= local_left && cut.len <= remote_left);
            for (addr, chunk, grain) in
                [(cut.local, cut.local_chunk, local_grain), (cut.remote, cut.remote_chunk, remote_grain)]
            {
                prop_assert_eq!(chunk, chunk_of(addr, grain));
                prop_assert_eq!(chunk, chunk_of(addr + cut.len - 1, grain), "across a seam");
            }
            done += cut.len;
        }
    }

    /// A hole on either side is found, and no cut reaches into it.
    #[test]
    fn holes_are_found(local in ranges(), hole in 0..3_u64, longest in 1..30_000_u64) {
        let stretch = |&(at, len): &(u64, u64)| Stretch { at, len };
        let end = local.iter().map(|range| range.0 + range.1).max().unwrap_or(0);
        let hole = (1 << 32) + hole * (end - (1 << 32)) / 3;
        let with_hole = |addr: u64| (addr < hole).then(|| Chunk { index: 0, before: addr, left: hole - addr });
        let mut reached = 0;
        let result = slice(
            local.iter().map(stretch),
            local.iter().map(stretch),
            chunks(1 << 40),
            with_hole,
            longest,
            |cut| reached = reached.max(cut.remote + cut.len),
        );
        prop_assert!(reached <= hole);
        let crosses = local.iter().any(|&(at, len)| len > 0 && at + len > hole);
        prop_assert_eq!(result.is_err(), crosses);
    }

    /// The longest slice respects the provider's limit and is never zero.
    #[test]
    fn slices_are_never_longer_than_the_provider_takes(
        total in any::<u64>(), ahead in any::<u64>(), rails in 0..200_usize, links in 0..200_usize,
        stripe in any::<u64>(), longest in any::<u64>(), limit in any::<u64>(),
    ) {
        let slice = longest_slice(total >> 1, ahead >> 1, (rails, links), stripe, longest >> 1, limit);
        prop_assert!(slice >= 1 && slice <= limit.max(1));
    }

    /// A chosen lane is eligible and none is cheaper; a partner is eligible.
    #[test]
    fn rails_are_eligible(costs in proptest::collection::vec(0..100_u64, 1..128), set in any::<u128>(), turn in any::<usize>()) {
        let cost = |nic: usize| costs.get(nic).copied().unwrap_or(1_000);
        match least_loaded(set, turn, cost) {
            None => prop_assert_eq!(set, 0),
            Some(chosen) => {
                prop_assert!(set >> chosen & 1 == 1);
                prop_assert!((0..128).filter(|nic| set >> nic & 1 == 1).all(|nic| cost(nic) >= cost(chosen)));
            }
        }
        let locals = costs.len();
        for local in 0..locals {
            match partner(local, locals, 128, set, turn % 1_000) {
                None => prop_assert_eq!(set, 0),
                Some(remote) => prop_assert!(set >> remote & 1 == 1),
            }
        }
    }

    /// No retry after the deadline, none for what cannot be cured, none beyond the limit; time never goes backwards.
    #[test]
    fn retries_are_bounded(
        failure in prop_oneof![
            Just(Failure::Rail), Just(Failure::Peer), Just(Failure::Stranger), Just(Failure::Key), Just(Failure::Operation), Just(Failure::Aborted),
        ],
        attempts in 1..300_u32, retries in 0..300_u32, untried in any::<bool>(), now in any::<u64>(), deadline in any::<u64>(),
    ) {
        if let Decision::Retry { at } = decide(failure, attempts, retries, untried, now, deadline) {
            // A card that the slice has not failed on gets its chance; there are not many of those.
            let chance = untried && retries > 0 && failure != Failure::Peer;
            prop_assert!(at >= now && at < deadline && (attempts <= retries || chance));
            prop_assert!(!matches!(failure, Failure::Key | Failure::Operation));
        }
    }

    /// Any machines, any faults: every request ends exactly once and by its deadline, no slice is attempted twice at a time or
    /// delivered twice, no card has more in flight than its depth. (The simulator looks for all of that.)
    #[test]
    fn no_schedule_of_faults_breaks_the_rules(
        (locals, remotes) in (1..20_usize, 1..20_usize),
        depth in 1..40_usize,
        request_bytes in 1..8_000_000_u64,
        outstanding in 1..40_usize,
        (deaths, dead) in (0..5_000_000_u64, 1..20_000_000_u64),
        (failures, agains) in (0..300_000_u32, 0..500_000_u32),
        deadline_ns in 100_000..200_000_000_u64,
        retries in 0..10_u32,
        slow in 1..100_u32,
        seed in any::<u64>(),
    ) {
        let scenario = Scenario {
            local: Machine::equal("here", locals, 100_000, depth).with_slow_card(0, slow),
            remote: Machine::equal("there", remotes, 200_000, depth),
            requests: 200,
            outstanding,
            pause_ns: 1_000,
            deadline_ns,
            faults: Faults {
                mean_ns_between_deaths: deaths,
                mean_ns_dead: dead,
                failures_per_million: failures,
                agains_per_million: agains,
                ..Faults::default()
            },
            settings: Settings { retries, window_bytes: 1 << 20, ..Settings::default() },
            ..Scenario::stream(Machine::p5(), request_bytes, 0, seed)
        };
        let report = run(&scenario);
        prop_assert!(report.violations.is_empty(), "{}", report);
        prop_assert_eq!(report.done + report.failed, 200);
    }

    /// However many cards are dead from the start, as long as one is not: every request ends well, and no slice is tried more than
    /// once over each of them, under load and alone, whether it may be retried often or once.
    #[test]
    fn dead_cards_cost_a_slice_one_attempt_each(
        cards in 2..33_usize,
        dead in any::<u128>(),
        alive in any::<prop::sample::Index>(),
        (request_bytes, outstanding) in (1..4_000_000_u64, 1..40_usize),
        (depth, retries) in (1..40_usize, 1..8_u32),
        agains in 0..500_000_u32,
        seed in any::<u64>(),
    ) {
        let dead = dead & ((1 << cards) - 1) & !(1 << alive.index(cards));
        let faults = Faults { dead, agains_per_million: agains, ..Faults::default() };
        let scenario = Scenario {
            faults,
            requests: 100,
            outstanding,
            settings: Settings { retries, ..Settings::default() },
            ..Scenario::stream(Machine::equal("equal", cards, 100_000, depth), request_bytes, 0, seed)
        };
        let report = run(&scenario);
        prop_assert!(report.violations.is_empty(), "{}", report);
        prop_assert_eq!(report.done, 100, "{} of {} cards are dead: {}", dead.count_ones(), cards, report);
        prop_assert!(
            report.most_attempts <= dead.count_ones() + 1,
            "{} attempts with {} of {} cards dead",
            report.most_attempts,
            dead.count_ones(),
            cards
        );
    }
}

/// What one side has, each fabric once.
fn offers() -> impl Strategy<Value = Vec<Offer<'static>>> {
    let known = || proptest::option::of(any::<bool>());
    let offer = |fabric: &'static str| {
        (any::<bool>(), known(), known()).prop_map(move |(there, reads, writes)| {
            there.then_some(Offer { fabric, device: Device { reads, writes } })
        })
    };
    let all = [offer(DIRECT), offer("efa"), offer("yet-another"), offer("")];
    all.prop_map(|offers| offers.into_iter().flatten().collect::<Vec<_>>()).prop_shuffle()
}

proptest! {
    /// Two sides that know the same come to the same fabric, whoever asks and in whatever order it names what it has: one that both have,
    /// `efa-direct` exactly if both have it and none is known to need help; and they find one whenever there is one.
    #[test]
    fn both_sides_choose_the_same_fabric_and_the_best_that_there_is(ours in offers(), theirs in offers()) {
        let chosen = choose(&ours, &theirs);
        prop_assert_eq!(chosen, choose(&theirs, &ours));
        let mut reversed = ours.clone();
        reversed.reverse();
        prop_assert_eq!(chosen, choose(&reversed, &theirs));
        let of = |side: &[Offer<'static>], fabric: &str| side.iter().find(|it| it.fabric == fabric).map(|it| it.device);
        let common = |fabric: &str| Some([of(&ours, fabric)?, of(&theirs, fabric)?]);
        let weak = |it: &Device| it.reads == Some(false) || it.writes == Some(false);
        let direct = common(DIRECT).is_some_and(|sides| !sides.iter().any(weak));
        prop_assert_eq!(chosen == Some(DIRECT), direct);
        let others = ours.iter().filter(|it| it.fabric != DIRECT && common(it.fabric).is_some()).count();
        prop_assert_eq!(chosen.is_some(), direct || others > 0);
        if let Some(chosen) = chosen {
            prop_assert!(common(chosen).is_some(), "{} is not there on both sides", chosen);
        }
    }

    /// A side that has yet to open a fabric does not say what its cards do on it, and that must not change the answer where it matters:
    /// the fabric that is opened later is never the preferred one.
    #[test]
    fn what_is_not_known_yet_changes_nothing_but_efa_direct(ours in offers(), theirs in offers()) {
        let forget = |it: &Offer<'static>| if it.fabric == DIRECT { *it } else { Offer { device: Device::default(), ..*it } };
        let less: Vec<Offer<'static>> = theirs.iter().map(forget).collect();
        prop_assert_eq!(choose(&ours, &theirs), choose(&ours, &less));
    }
}
