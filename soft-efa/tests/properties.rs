//! Random programs in two processes: memory equals a model, and every request completes exactly once.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use fabric_safe::{Access, WriteOptions};
use proptest::prelude::*;
use soft_efa::rules::Rule;
use support::node::Side;
use support::{Part, library_2, network, pattern, two};

/// Bytes of a place: requests of one round touch different places, because nothing orders them.
const PLACE: usize = 2048;
const PLACES: usize = 96;
const ROUNDS: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Op {
    Write,
    WriteImm,
    Read,
}

/// One request: a place of the initiator's memory, a place of the target's, and bytes within.
#[derive(Debug, Clone, Copy)]
struct Step {
    op: Op,
    by_first: bool,
    local: usize,
    remote: usize,
    offset: usize,
    length: usize,
}

/// A seeded sequence of small numbers.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % below
    }
}

/// A round that both processes know: no place is used twice.
fn round(seed: u64, number: usize) -> Vec<Step> {
    let mut dice =
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(number as u64 * 0x1234_5677) | 1);
    let mut free: [Vec<usize>; 2] = [(0..PLACES).collect(), (0..PLACES).collect()];
    let mut steps = Vec::new();
    for _ in 0..dice.roll(PLACES - 8) {
        let by_first = dice.roll(2) == 0;
        let (own, other) = if by_first { (0, 1) } else { (1, 0) };
        let take = |list: &mut Vec<usize>, roll: usize| list.swap_remove(roll);
        if free[own].is_empty() || free[other].is_empty() {
            break;
        }
        let (mine, theirs) = (dice.roll(free[own].len()), dice.roll(free[other].len()));
        let (local, remote) = (take(&mut free[own], mine), take(&mut free[other], theirs));
        let offset = dice.roll(PLACE);
        let length = dice.roll(PLACE - offset) + 1;
        let op = [Op::Write, Op::Read, Op::Write, Op::WriteImm][dice.roll(4)];
        steps.push(Step { op, by_first, local, remote, offset, length });
    }
    steps
}

/// What a round does to both memories.
fn apply(steps: &[Step], memories: &mut [Vec<u8>; 2]) {
    for step in steps {
        let (own, other) = if step.by_first { (0, 1) } else { (1, 0) };
        let span = |place: usize| place * PLACE + step.offset..place * PLACE + step.offset + step.length;
        if step.op == Op::Read {
            let bytes = memories[other][span(step.remote)].to_vec();
            memories[own][span(step.local)].copy_from_slice(&bytes);
        } else {
            let bytes = memories[own][span(step.local)].to_vec();
            memories[other][span(step.remote)].copy_from_slice(&bytes);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: std::env::var("PROPTEST_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(4),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn memory_equals_the_model(seed in 1u64.., window in 1usize..200, direct: bool, unsolicited: bool) {
        let test = "memory_equals_the_model";
        let Some(library) = library_2(test) else { return Ok(()) };
        let mut network = network(1, if unsolicited { "p5en" } else { "p5" });
        network.set(soft_efa::settings::SEED, seed.to_string()).set(soft_efa::settings::WINDOW, window.to_string());
        network.set("SOFT_EFA_TEST_SEED", seed.to_string());
        eprintln!("{test}: seed {seed}, window {window}");
        two(&network, &library, if direct { "efa-direct" } else { "efa" }, "random");
    }
}

proptest! {
    #[test]
    fn the_parser_of_rules_takes_anything(text in "\\PC{0,200}") {
        let _ = text.parse::<Rule>();
        let _ = soft_efa::rules::parse_file(&text);
    }

    #[test]
    fn almost_rules_are_read_or_refused_whole(
        verb in "fail|delay|hold|kill|register|down|link|unreachable|x",
        words in proptest::collection::vec(("status|us|errno|op|card|host|peer|min|max|nth|every|prob|times|y", "-?[0-9]{0,22}|send|rdma|0\\.[0-9]{1,5}|nan"), 0..8),
    ) {
        let line = words.iter().fold(verb.clone(), |line, (name, value)| format!("{line} {name}={value}"));
        if let Ok(rule) = line.parse::<Rule>() {
            // What is accepted says what happens, and can be asked about any request.
            prop_assert!(verb != "x");
            let _ = rule.meets("write", 0, 1, None, u64::MAX);
            let _ = rule.hits(u16::MAX, u32::MAX);
        }
    }
}

#[test]
fn child() {
    let Some(part) = Part::mine() else { return };
    let seed: u64 = std::env::var("SOFT_EFA_TEST_SEED").unwrap().parse().unwrap();
    let mut side = Side::meet(&part, 0);
    let direct = part.fabric == "efa-direct";
    let size = PLACE * PLACES;
    let mut memories = [pattern(seed, size), pattern(seed ^ 1, size)];
    let mine = usize::from(!part.first);
    let region = side.node.register(memories[mine].clone(), Access::ALL);
    let spare = side.node.register(vec![0; 64], Access::ALL);
    side.tell(&region.remote().to_bytes());
    let remote = side.remote();
    let peer = side.peer.clone();
    for number in 0..ROUNDS {
        let steps = round(seed, number);
        let immediates =
            steps.iter().filter(|step| step.op == Op::WriteImm && step.by_first != part.first).count();
        if direct {
            for _ in 0..immediates {
                let token = side.node.token();
                side.node.post(|endpoint| endpoint.receive(None, spare.as_slice(), token));
            }
        }
        side.together();
        let mut tokens = Vec::new();
        for (index, step) in steps.iter().enumerate().filter(|(_, step)| step.by_first == part.first) {
            let token = side.node.token();
            let start = step.local * PLACE + step.offset;
            let slice = region.slice(start..start + step.length).unwrap();
            let target = remote.at((step.remote * PLACE + step.offset) as u64);
            let immediate = (step.op == Op::WriteImm).then_some(index as u64);
            side.node.post(|endpoint| match step.op {
                Op::Read => endpoint.read(&peer, slice, target, token),
                Op::Write => endpoint.write(&peer, slice, target, token),
                Op::WriteImm => endpoint.write_with(
                    &peer,
                    &[slice],
                    target,
                    WriteOptions { immediate, ..Default::default() },
                    token,
                ),
            });
            tokens.push(token);
        }
        // `good_end` fails on an operation that ends twice, and waits in vain for one that never does.
        for token in tokens {
            side.node.good_end(token);
        }
        side.node.until("all immediates", |node| node.immediates.len() >= immediates);
        let mut told: Vec<(u64, usize)> = std::mem::take(&mut side.node.immediates);
        told.sort_unstable();
        let expected: Vec<(u64, usize)> = steps
            .iter()
            .enumerate()
            .filter(|(_, step)| step.op == Op::WriteImm && step.by_first != part.first)
            .map(|(index, step)| (index as u64, step.length))
            .collect();
        assert_eq!(told, expected, "seed {seed}, round {number}");
        side.together();
        apply(&steps, &mut memories);
        let mut bytes = vec![0; size];
        region.copy_out(0, &mut bytes).unwrap();
        let wrong = bytes.iter().zip(&memories[mine]).position(|(is, should)| is != should);
        assert_eq!(wrong, None, "seed {seed}, round {number}: memory differs from the model");
        side.together();
    }
}
