//! The best plan there is, found by looking at all of them.
#![allow(clippy::unwrap_used)]
//!
//! Goes through the pages one by one and through every set of NICs for each, and keeps, for every state that the rest of
//! the search can tell apart (pages and bytes on each NIC, the set of the page before), the best score so far.
//! Comparing scores per state is sound because everything but the load adds up and the load is a function of the state.

use efa_mr::{Buffer, Location, Nic, PageSize, Policy, Score, Wanted};
use proptest::prelude::*;
use std::collections::HashMap;

#[derive(Debug, Clone)]
pub(crate) struct Case {
    pub(crate) buffers: Vec<Buffer>,
    pub(crate) nics: Vec<Nic>,
    pub(crate) policy: Policy,
}

/// Up to `buffers` buffers of up to `pages` pages each and `nics` NICs, with budgets around what is needed.
pub(crate) fn cases(buffers: usize, pages: u64, nics: usize) -> impl Strategy<Value = Case> {
    let page = prop_oneof![3 => Just(PageSize::K4), 1 => Just(PageSize::new(8192).unwrap())];
    let edge = prop_oneof![3 => Just(0_u64), 1 => 1..4096_u64];
    let buffer =
        (page, 1..=pages, edge.clone(), edge, 0..2_u16).prop_map(|(page, pages, head, tail, gpu)| {
            let len = pages * page.bytes();
            // Cut something off both ends, leaving at least a byte.
            let (head, tail) = (head.min(page.bytes() - 1), tail.min(page.bytes() - 1));
            let (head, tail) = if head + tail < len { (head, tail) } else { (head, 0) };
            (page, head, len - head - tail, Location::Gpu(gpu))
        });
    let near = prop_oneof![
        Just(efa_mr::Distance::SameSwitch),
        Just(efa_mr::Distance::SameNode),
        Just(efa_mr::Distance::OtherNode)
    ];
    let speed = prop_oneof![3 => Just(100_000_u32), 1 => Just(200_000)];
    let alike = any::<bool>();
    let nic = (0..=pages * 3, speed, near.clone(), near);
    (
        prop::collection::vec(buffer, 1..=buffers),
        prop::collection::vec(nic, 1..=nics),
        0..=nics + 1,
        1..=2_usize,
        alike,
    )
        .prop_map(|(buffers, nics, wanted, least, alike)| {
            let buffers = buffers.into_iter().enumerate();
            let place = |(index, (page, head, len, location)): (usize, (PageSize, u64, u64, Location))| {
                Buffer::new(((index as u64 + 1) << 24) + head, len, page, location)
            };
            let first = nics[0];
            let nic = |(index, mut of): (usize, (u64, u32, efa_mr::Distance, efa_mr::Distance))| {
                if alike {
                    of = (of.0, first.1, first.2, first.3);
                }
                Nic {
                    pte_left: of.0,
                    link_mbps: of.1,
                    distances: vec![(Location::Gpu(0), of.2), (Location::Gpu(1), of.3)],
                    ..Nic::new(format!("nic{index}"))
                }
            };
            let policy = match wanted {
                0 => Policy::near(),
                w if w > nics.len() => Policy::all(),
                w => Policy::nics(w),
            };
            Case {
                buffers: buffers.map(place).collect(),
                nics: nics.into_iter().enumerate().map(nic).collect(),
                policy: policy.with_at_least(least),
            }
        })
}

/// One page: its bytes, the weight of each NIC, how many NICs are wanted and needed, and whether it continues a buffer.
struct Page {
    bytes: u64,
    location: Location,
    wanted: u32,
    least: u32,
    continues: bool,
}

fn pages(case: (&[Buffer], &[Nic], &Policy)) -> Vec<Page> {
    let (buffers, nics, policy) = case;
    let mut pages = Vec::new();
    for buffer in buffers {
        let weight = |nic: &Nic| nic.distance(buffer.location).weight().unwrap();
        let nearest = nics.iter().map(weight).min().unwrap();
        let wanted = match policy.wanted {
            Wanted::All => nics.len(),
            Wanted::Near => nics.iter().filter(|nic| weight(nic) == nearest).count(),
            Wanted::Nics(count) => count,
            _ => unreachable!("not generated"),
        };
        let least = policy.at_least.max(1).min(nics.len()) as u32;
        let wanted = (wanted.clamp(1, nics.len()) as u32).max(least);
        for run in buffer.runs() {
            let size = run.page.bytes();
            let end = run.addr + run.len_bytes;
            let mut addr = run.addr;
            while addr < end {
                let next = ((addr / size + 1) * size).min(end);
                pages.push(Page {
                    bytes: next - addr,
                    location: buffer.location,
                    wanted,
                    least,
                    continues: addr > buffer.addr,
                });
                addr = next;
            }
        }
    }
    pages
}

/// Pages and bytes on each of at most four NICs, and the set of the page before.
type State = ([u8; 4], [u32; 4], u8);

/// The score of the best plan; `None` if there is no plan.
pub(crate) fn best(buffers: &[Buffer], nics: &[Nic], policy: &Policy) -> Option<Score> {
    let mut states: HashMap<State, Score> = HashMap::from([(([0; 4], [0; 4], 0), Score::default())]);
    for page in pages((buffers, nics, policy)) {
        let mut next: HashMap<State, Score> = HashMap::new();
        for ((used, bytes, before), score) in states {
            for set in 1_u8..1 << nics.len() {
                if set.count_ones() < page.least || set.count_ones() > page.wanted {
                    // More NICs than wanted add nothing to the spread and something to every other term, or nothing.
                    continue;
                }
                let (mut used, mut bytes, mut score) = (used, bytes, score);
                let mut fits = true;
                for nic in (0..nics.len()).filter(|nic| set >> nic & 1 == 1) {
                    used[nic] += 1;
                    bytes[nic] += page.bytes as u32;
                    fits &= u64::from(used[nic]) <= nics[nic].pte_left;
                    score.far += u128::from(page.bytes)
                        * u128::from(nics[nic].distance(page.location).weight().unwrap());
                }
                if !fits {
                    continue;
                }
                score.spread += u128::from(page.bytes) * u128::from(set.count_ones().min(page.wanted));
                if !(page.continues && before == set) {
                    score.mrs += u64::from(set.count_ones());
                }
                let known = next.entry((used, bytes, set)).or_insert(score);
                *known = (*known).max(score);
            }
        }
        states = next;
    }
    let with_load = |((_, bytes, _), mut score): (State, Score)| {
        let load = |(nic, bytes): (&Nic, u32)| u64::from(bytes) * 8000 / u64::from(nic.link_mbps);
        score.load_ns = nics.iter().zip(bytes).map(load).max().unwrap();
        score
    };
    states.into_iter().map(with_load).max()
}

/// The best spread, and the least distance with it. What each NIC holds is all that these two depend on, so larger cases can be gone
/// through.
pub(crate) fn best_spread_and_far(buffers: &[Buffer], nics: &[Nic], policy: &Policy) -> Option<(u128, u128)> {
    let better =
        |a: (u128, u128), b: (u128, u128)| (a.0, std::cmp::Reverse(a.1)) > (b.0, std::cmp::Reverse(b.1));
    let mut states: HashMap<[u8; 4], (u128, u128)> = HashMap::from([([0; 4], (0, 0))]);
    for page in pages((buffers, nics, policy)) {
        let mut next: HashMap<[u8; 4], (u128, u128)> = HashMap::new();
        let weights: Vec<u32> =
            nics.iter().map(|nic| nic.distance(page.location).weight().unwrap()).collect();
        for (used, (spread, far)) in states {
            for set in 1_u8..1 << nics.len() {
                if set.count_ones() < page.least || set.count_ones() > page.wanted {
                    continue;
                }
                let (mut used, mut far) = (used, far);
                for nic in (0..nics.len()).filter(|nic| set >> nic & 1 == 1) {
                    used[nic] += 1;
                    far += u128::from(page.bytes) * u128::from(weights[nic]);
                }
                if used.iter().zip(nics).any(|(used, nic)| u64::from(*used) > nic.pte_left) {
                    continue;
                }
                let score = (spread + u128::from(page.bytes) * u128::from(set.count_ones()), far);
                let known = next.entry(used).or_insert(score);
                if better(score, *known) {
                    *known = score;
                }
            }
        }
        states = next;
    }
    states.into_values().reduce(|a, b| if better(b, a) { b } else { a })
}
