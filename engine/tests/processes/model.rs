//! Random programs over the public API, in three processes, against a model of all memory and of every status.

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::alone;
use crate::cluster::{Cluster, Kind, Node, READ, READ_WRITE, filled};
use crate::order::{Answer, BatchOrder, Follow, Order, Request, Where};

const NODES: usize = 3;
const LEN: usize = 64 << 10;
/// Requests of one batch use cells of their own, on all sides: overlapping ones have no defined order.
const CELL: usize = 2048;
const CELLS: usize = LEN / CELL;

#[derive(Debug, Clone)]
enum Step {
    Batch {
        node: usize,
        requests: Vec<Piece>,
        follow: Follow,
        notify: bool,
    },
    /// Unregisters a node's extra buffer, or registers it again.
    Toggle(usize),
    Refresh(usize, usize),
    Notify(usize, usize, u8),
}

/// One request: between a node's main buffer and a buffer of another node.
#[derive(Debug, Clone)]
struct Piece {
    /// Which of the two other nodes.
    other: usize,
    write: bool,
    buffer: &'static str,
    len: usize,
    local: Vec<usize>,
    remote: Vec<usize>,
    paged: bool,
    /// Adds one to the length of the remote side, so that both cannot fit.
    unequal: bool,
    tag: Option<u16>,
}

fn batch() -> impl Strategy<Value = Step> {
    let cells = || Just((0..CELLS).collect::<Vec<_>>()).prop_shuffle();
    let buffer = prop_oneof![6 => Just("main"), 3 => Just("extra"), 1 => Just("fixed")];
    let piece = (
        0..NODES - 1,
        any::<bool>(),
        buffer,
        1..=CELL,
        1usize..5,
        any::<bool>(),
        prop::bool::weighted(0.05),
        prop::option::weighted(0.3, 0u16..3),
    );
    let follow = prop_oneof![
        4 => Just(Follow::Wait),
        2 => Just(Follow::Poll),
        2 => Just(Follow::Await),
        2 => Just(Follow::WaitUntil)
    ];
    let pieces = prop::collection::vec(piece, 1..6);
    (0..NODES, cells(), cells(), pieces, follow, any::<bool>()).prop_map(
        |(node, mut local, mut remote, pieces, follow, notify)| {
            let requests = pieces
                .into_iter()
                .map(|(other, write, buffer, len, count, paged, unequal, tag)| Piece {
                    other,
                    write,
                    buffer,
                    len,
                    local: local.split_off(local.len() - count),
                    remote: remote.split_off(remote.len() - count),
                    paged,
                    unequal,
                    tag: tag.filter(|_| write),
                })
                .collect();
            Step::Batch { node, requests, follow, notify }
        },
    )
}

fn step() -> impl Strategy<Value = Step> {
    let two = || (0..NODES, 0..NODES - 1);
    prop_oneof![
        6 => batch(),
        2 => (0..NODES).prop_map(Step::Toggle),
        1 => two().prop_map(|(a, b)| Step::Refresh(a, b)),
        1 => (two(), any::<u8>()).prop_map(|((a, b), n)| Step::Notify(a, b, n)),
    ]
}

/// The other nodes of a node, by number.
fn other(node: usize, other: usize) -> usize {
    (node + 1 + other) % NODES
}

/// What everything should be like.
struct Model {
    /// Of each node: main, extra, fixed.
    memory: Vec<[Vec<u8>; 3]>,
    extra_is_open: [bool; NODES],
    notes: [Vec<(usize, Vec<u8>)>; NODES],
    /// By receiver, sender, tag.
    arrivals: [[[u64; 3]; NODES]; NODES],
}

fn index(buffer: &str) -> usize {
    ["main", "extra", "fixed"].iter().position(|name| *name == buffer).unwrap()
}

struct Play {
    nodes: Vec<Node>,
    arrivals_before: [[[u64; 3]; NODES]; NODES],
}

impl Play {
    fn start(cluster: &Cluster) -> Self {
        let mut nodes: Vec<Node> = (0..NODES).map(|_| cluster.node()).collect();
        for node in &mut nodes {
            node.register("main", LEN, READ_WRITE, 0);
            node.register("extra", LEN, READ_WRITE, 0);
            node.register("fixed", LEN, READ, 0);
        }
        Self { nodes, arrivals_before: Default::default() }
    }

    fn run(&mut self, steps: &[Step], seed: u64) {
        let mut model = Model {
            memory: Vec::new(),
            extra_is_open: [true; NODES],
            notes: Default::default(),
            arrivals: self.arrivals_before,
        };
        for (i, node) in self.nodes.iter_mut().enumerate() {
            for (b, label) in ["main", "extra", "fixed"].into_iter().enumerate() {
                let seed = seed.wrapping_mul(31) + (i * 3 + b) as u64;
                node.must(Order::Fill { label: label.into(), seed });
                if b == 0 {
                    model.memory.push([filled(LEN, seed), Vec::new(), Vec::new()]);
                } else {
                    model.memory[i][b] = filled(LEN, seed);
                }
            }
        }
        for (at, step) in steps.iter().enumerate() {
            self.take(step, &mut model);
            self.check(&mut model, &format!("after step {at}, {step:?}"));
        }
        // As it was, for the next program.
        for node in 0..NODES {
            if !model.extra_is_open[node] {
                self.take(&Step::Toggle(node), &mut model);
            }
        }
        self.arrivals_before = model.arrivals;
    }

    fn take(&mut self, step: &Step, model: &mut Model) {
        match step {
            Step::Toggle(node) => {
                let label = "extra".to_owned();
                let order = if model.extra_is_open[*node] {
                    Order::Unregister(label)
                } else {
                    // Its bytes stay what they are.
                    Order::RegisterAgain(label)
                };
                self.nodes[*node].must(order);
                model.extra_is_open[*node] ^= true;
            }
            Step::Refresh(node, to) => {
                let name = self.nodes[other(*node, *to)].name.clone();
                self.nodes[*node].must(Order::Refresh(name));
            }
            Step::Notify(node, to, number) => {
                let to = other(*node, *to);
                let segment = self.nodes[to].name.clone();
                self.nodes[*node].must(Order::Notify { segment, payload: vec![*number] });
                model.notes[to].push((*node, vec![*number]));
            }
            Step::Batch { node, requests, follow, notify } => {
                self.batch(*node, requests, *follow, *notify, model)
            }
        }
    }

    fn batch(&mut self, node: usize, pieces: &[Piece], follow: Follow, notify: bool, model: &mut Model) {
        let requests: Vec<Request> = pieces.iter().map(|piece| self.request(node, piece)).collect();
        let notify = notify.then(|| b"batch".to_vec());
        let order = BatchOrder { requests, follow, deadline_ms: Some(15_000), notify: notify.clone() };
        // What a request of the batch must come to: carried out, or refused before or after it was sent.
        let goes_well = |piece: &Piece| {
            let to = other(node, piece.other);
            let impossible = piece.unequal || piece.write && piece.buffer == "fixed";
            !impossible && (piece.buffer != "extra" || model.extra_is_open[to])
        };
        let expected: Vec<bool> = pieces.iter().map(goes_well).collect();
        let statuses = match self.nodes[node].ask(Order::Batch(order)) {
            Answer::Ended(ended) => {
                assert_eq!(ended.result.is_ok(), ended.statuses.iter().all(Result::is_ok), "{ended:?}");
                assert!(ended.quiesced, "{ended:?}");
                ended.statuses
            }
            // One that can never work is refused when it is added; then nothing of the batch is sent. What a stale view holds
            // for one of those may be a buffer that has come back since.
            Answer::Failed(error) => {
                let stale = pieces.iter().any(|piece| piece.buffer == "extra");
                assert!(expected.contains(&false) || stale, "{error}");
                return;
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(statuses.len(), pieces.len());
        let mut all_well = true;
        for ((piece, status), expected) in pieces.iter().zip(&statuses).zip(&expected) {
            let to = other(node, piece.other);
            all_well &= status.is_ok();
            match status {
                Ok(()) => assert!(expected, "{piece:?} went well and must not"),
                // The view of the segment may be of before the buffer was registered again.
                Err(error) => assert!(!expected || piece.buffer == "extra", "{piece:?}: {error}"),
            }
            if status.is_err() {
                continue;
            }
            for (l, r) in piece.local.iter().zip(&piece.remote) {
                let (l, r) = (l * CELL..l * CELL + piece.len, r * CELL..r * CELL + piece.len);
                let b = index(piece.buffer);
                if piece.write {
                    let bytes = model.memory[node][0][l].to_vec();
                    model.memory[to][b][r].copy_from_slice(&bytes);
                } else {
                    let bytes = model.memory[to][b][r].to_vec();
                    model.memory[node][0][l].copy_from_slice(&bytes);
                }
            }
            if let Some(tag) = piece.tag {
                model.arrivals[to][node][usize::from(tag)] += 1;
            }
        }
        if all_well && let Some(payload) = notify {
            let mut told: Vec<usize> = pieces.iter().map(|piece| other(node, piece.other)).collect();
            told.sort_unstable();
            told.dedup();
            for to in told {
                model.notes[to].push((node, payload.clone()));
            }
        }
    }

    fn request(&self, node: usize, piece: &Piece) -> Request {
        let at = |cells: &[usize]| -> Vec<u64> { cells.iter().map(|cell| (cell * CELL) as u64).collect() };
        let (local, remote) = (at(&piece.local), at(&piece.remote));
        let len = piece.len as u64;
        let ranges = |at: &[u64]| at.iter().map(|at| (*at, len)).collect::<Vec<_>>();
        let mut there = ranges(&remote);
        if piece.unequal {
            there[0].1 += if piece.len == CELL { u64::MAX } else { 1 };
            there[0].1 = there[0].1.max(1);
        }
        let (here, there) = match (piece.paged, piece.unequal) {
            (true, false) => {
                (Where::Pages { page_len: len, at: local }, Where::Pages { page_len: len, at: remote })
            }
            _ => (Where::Scatter(ranges(&local)), Where::Scatter(there)),
        };
        Request {
            write: piece.write,
            local: ("main".into(), here),
            segment: self.nodes[other(node, piece.other)].name.clone(),
            remote: (piece.buffer.into(), there),
            tag: piece.tag,
        }
    }

    fn check(&mut self, model: &mut Model, what: &str) {
        let names: Vec<String> = self.nodes.iter().map(|node| node.name.clone()).collect();
        for (i, node) in self.nodes.iter_mut().enumerate() {
            for (b, label) in ["main", "extra", "fixed"].into_iter().enumerate() {
                assert!(node.holds(label, &model.memory[i][b]), "{label} of node {i} differs {what}");
            }
            for (from, payload) in model.notes[i].drain(..) {
                assert_eq!(node.note(10_000), Some((names[from].clone(), payload)), "{what}");
            }
            assert_eq!(node.note(0), None, "a notification too many {what}");
            for (from, peer) in names.iter().enumerate().filter(|(from, _)| *from != i) {
                for (tag, &count) in model.arrivals[i][from].iter().enumerate() {
                    let order = Order::Arrivals {
                        peer: peer.clone(),
                        tag: tag as u16,
                        at_least: count,
                        wait_ms: 10_000,
                    };
                    assert_eq!(node.number(order), count, "arrivals from {from} with tag {tag} {what}");
                }
            }
        }
    }
}

fn random_programs(test: &str, kind: Kind) {
    let Some(cluster) = Cluster::new(test, kind) else { return };
    let _alone = alone();
    let cases = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok()).unwrap_or(6);
    let play = std::cell::RefCell::new(Play::start(&cluster));
    let config = Config { cases, max_shrink_iters: 40, failure_persistence: None, ..Config::default() };
    let programs = (prop::collection::vec(step(), 1..14), any::<u32>());
    TestRunner::new(config)
        .run(&programs, |(steps, seed)| {
            let mut current = play.borrow_mut();
            let played = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                current.run(&steps, u64::from(seed));
            }));
            played.map_err(|panic| {
                // What was left behind is nobody's model any more.
                *current = Play::start(&cluster);
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_else(|| "it panicked".into());
                TestCaseError::fail(text)
            })
        })
        .unwrap();
}

#[test]
fn random_programs_over_sockets() {
    random_programs("random_programs_over_sockets", Kind::Tcp);
}

#[test]
fn random_programs_within_the_host() {
    random_programs("random_programs_within_the_host", Kind::Host);
}

#[test]
fn random_programs_over_efa_direct() {
    random_programs("random_programs_over_efa_direct", Kind::EfaDirect);
}

#[test]
fn random_programs_with_auto() {
    random_programs("random_programs_with_auto", Kind::Auto);
}
