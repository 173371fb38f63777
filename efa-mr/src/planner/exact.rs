//! The last touch for small problems: all four objectives at once, exactly.
//!
//! Flow and wrap-around are exact in spread and distance; load comes within a page, and the number of MRs is as good as the
//! layout happens to be. With few pages and NICs the rest can be had as well: this goes through the pages in order and through every set of NICs for
//! each (dynamic programming over what each NIC holds), and leaves out whatever cannot reach the spread, distance and load that are known already
//! to be possible. It gives up after [`MAX_STEPS`] steps, which are about a millisecond, and then the plan stays as it was.

use super::load_ns;
use super::strip::Strip;
use crate::buffer::PageSize;
use crate::nic::{Nic, NicSet};
use crate::plan::{Chunk, Score};
use std::collections::HashMap;

/// Problems with more NICs than this are not small.
const MAX_NICS: usize = 4;
/// Problems with more pages than this are not small.
const MAX_PAGES: u64 = 24;
/// Sets of NICs that are tried before giving up.
const MAX_STEPS: usize = 60_000;

/// One page of the problem.
struct Page {
    buffer: usize,
    addr: u64,
    len_bytes: u64,
    size: PageSize,
    strip: usize,
    /// Whether it could be part of the same MR as the page before.
    continues: bool,
}

/// What the rest of the search can tell apart: pages and bytes on each NIC, and the NICs of the page before.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct State {
    pages: [u8; MAX_NICS],
    bytes: [u64; MAX_NICS],
    set: u8,
}

/// The best way to a state.
#[derive(Clone, Copy)]
struct Way {
    score: Score,
    /// The state before, by position in its layer.
    from: usize,
}

/// Better chunks than those of `score`, if the problem is small and there are any.
pub(super) fn improve(strips: &[Strip], nics: &[Nic], score: &Score) -> Option<Vec<Chunk>> {
    let total = strips.iter().fold(0_u64, |sum, strip| sum.saturating_add(strip.pages));
    let unlimited = |nic: &Nic| {
        nic.mrs_left >= total && strips.iter().all(|strip| u128::from(nic.max_mr_bytes) >= strip.bytes)
    };
    if !(2..=MAX_NICS).contains(&nics.len()) || total > MAX_PAGES || !nics.iter().all(unlimited) {
        return None;
    }
    let pages = pages(strips);
    let best = search(&pages, strips, nics, score)?;
    Some(join(&pages, &best))
}

fn pages(strips: &[Strip]) -> Vec<Page> {
    let mut pages = Vec::new();
    for (strip, s) in strips.iter().enumerate() {
        for part in &s.parts {
            let mut rest = part.run;
            for number in 0..part.pages {
                // The last page is what is left; its end may be exactly 2^64.
                let to_boundary = rest.page.bytes() - rest.addr % rest.page.bytes();
                let len_bytes = if number + 1 == part.pages { rest.len_bytes } else { to_boundary };
                pages.push(Page {
                    buffer: part.buffer,
                    addr: rest.addr,
                    len_bytes,
                    size: rest.page,
                    strip,
                    continues: false,
                });
                rest.addr = rest.addr.wrapping_add(len_bytes);
                rest.len_bytes -= len_bytes;
            }
        }
    }
    pages.sort_unstable_by_key(|page| (page.buffer, page.addr));
    for at in 1..pages.len() {
        let (before, page) = (&pages[at - 1], &pages[at]);
        pages[at].continues = before.buffer == page.buffer && before.size == page.size;
    }
    pages
}

/// The set of NICs of each page in a plan that is better than `known`.
fn search(pages: &[Page], strips: &[Strip], nics: &[Nic], known: &Score) -> Option<Vec<u8>> {
    let count = nics.len();
    let ideal: u128 = strips.iter().map(|strip| strip.bytes * u128::from(strip.wanted)).sum();
    // Where the budgets allow all that is wanted, every page has that many copies in a plan as good as this.
    let all_wanted = ideal == known.spread;
    let twins = twins(strips, nics);
    // The least distance that the pages from here on can add, and the most spread.
    let (mut far_left, mut spread_left) = (vec![0_u128; pages.len() + 1], vec![0_u128; pages.len() + 1]);
    for (at, page) in pages.iter().enumerate().rev() {
        let strip = &strips[page.strip];
        let mut weights: Vec<u32> = strip.weights.iter().flatten().copied().collect();
        weights.sort_unstable();
        let copies = if all_wanted { strip.wanted } else { strip.least };
        let nearest: u32 = weights.iter().take(copies as usize).sum();
        far_left[at] = far_left[at + 1] + u128::from(page.len_bytes) * u128::from(nearest);
        spread_left[at] = spread_left[at + 1] + u128::from(page.len_bytes) * u128::from(strip.wanted);
    }
    // Nothing to gain where every page is on every NIC.
    if strips.iter().all(|strip| strip.least as usize == count) {
        return None;
    }
    let start = State { pages: [0; MAX_NICS], bytes: [0; MAX_NICS], set: 0 };
    let mut layers: Vec<Vec<(State, Way)>> = vec![vec![(start, Way { score: Score::default(), from: 0 })]];
    let mut steps = 0;
    for (at, page) in pages.iter().enumerate() {
        let strip = &strips[page.strip];
        let able: u8 =
            (0..count).filter(|&nic| strip.weights[nic].is_some()).fold(0, |set, nic| set | 1 << nic);
        let sets = (1_u8..1 << count).filter(|set| set & !able == 0);
        let sizes = strip.least as u32..=strip.wanted as u32;
        let sets: Vec<u8> = sets.filter(|set| sizes.contains(&set.count_ones())).collect();
        let mut index: HashMap<State, usize> = HashMap::new();
        let mut next: Vec<(State, Way)> = Vec::new();
        for (from, (state, way)) in layers[at].iter().enumerate() {
            for &set in &sets {
                steps += 1;
                if steps > MAX_STEPS {
                    return None;
                }
                let Some((state, score)) = extend(state, &way.score, page, strip, nics, set) else {
                    continue;
                };
                let hopeless = score.spread + spread_left[at + 1] < known.spread
                    || score.far + far_left[at + 1] > known.far
                    || score.load_ns > known.load_ns;
                if hopeless {
                    continue;
                }
                let way = Way { score, from };
                match index.entry(canonical(&state, &twins)) {
                    std::collections::hash_map::Entry::Vacant(entry) => {
                        entry.insert(next.len());
                        next.push((state, way));
                    }
                    std::collections::hash_map::Entry::Occupied(entry) => {
                        let old = &mut next[*entry.get()];
                        if score > old.1.score {
                            *old = (state, way);
                        }
                    }
                }
            }
        }
        layers.push(next);
    }
    let last = layers.last()?;
    let (mut at, (_, way)) = last.iter().enumerate().max_by_key(|(_, (_, way))| way.score)?;
    if way.score <= *known {
        return None;
    }
    let mut sets = Vec::with_capacity(pages.len());
    for layer in layers[1..].iter().rev() {
        let (state, way) = &layer[at];
        sets.push(state.set);
        at = way.from;
    }
    sets.reverse();
    Some(sets)
}

/// For each NIC the first one that is just like it, for every page and as long as this problem lasts.
fn twins(strips: &[Strip], nics: &[Nic]) -> [usize; MAX_NICS] {
    let total = strips.iter().fold(0_u64, |sum, strip| sum.saturating_add(strip.pages));
    let mut twins: [usize; MAX_NICS] = std::array::from_fn(|nic| nic);
    for nic in 0..nics.len() {
        let alike = |other: &usize| {
            nics[*other].pte_left.min(total) == nics[nic].pte_left.min(total)
                && nics[*other].link_mbps == nics[nic].link_mbps
                && strips.iter().all(|strip| strip.weights[*other] == strip.weights[nic])
        };
        twins[nic] = (0..nic).find(alike).unwrap_or(nic);
    }
    twins
}

/// The same for all states that differ only in which of several alike NICs holds what: their futures are the same.
fn canonical(state: &State, twins: &[usize; MAX_NICS]) -> State {
    let mut state = *state;
    let held = |state: &State, nic: usize| (state.pages[nic], state.bytes[nic], state.set >> nic & 1);
    // Sorting by insertion: there are four.
    for mut at in 1..MAX_NICS {
        while let Some(before) = (0..at).rev().find(|&other| twins[other] == twins[at]) {
            if held(&state, before) <= held(&state, at) {
                break;
            }
            state.pages.swap(before, at);
            state.bytes.swap(before, at);
            if (state.set >> before ^ state.set >> at) & 1 == 1 {
                state.set ^= 1 << before | 1 << at;
            }
            at = before;
        }
    }
    state
}

/// One page more, on a set of NICs; `None` if a NIC is full.
fn extend(
    state: &State,
    score: &Score,
    page: &Page,
    strip: &Strip,
    nics: &[Nic],
    set: u8,
) -> Option<(State, Score)> {
    let (mut state, mut score, before) = (*state, *score, state.set);
    let bytes = u128::from(page.len_bytes);
    for (nic, n) in nics.iter().enumerate().filter(|(nic, _)| set >> nic & 1 == 1) {
        state.pages[nic] += 1;
        state.bytes[nic] += page.len_bytes;
        if u64::from(state.pages[nic]) > n.pte_left {
            return None;
        }
        score.far += bytes * u128::from(strip.weights[nic].unwrap_or_default());
        score.load_ns = score.load_ns.max(load_ns(u128::from(state.bytes[nic]), n.link_mbps));
    }
    state.set = set;
    score.spread += bytes * u128::from(set.count_ones());
    if !(page.continues && before == set) {
        score.mrs += u64::from(set.count_ones());
    }
    Some((state, score))
}

/// Pages with their sets, joined to chunks.
fn join(pages: &[Page], sets: &[u8]) -> Vec<Chunk> {
    let mut chunks: Vec<Chunk> = Vec::new();
    for (page, &set) in pages.iter().zip(sets) {
        let nics: NicSet = (0..MAX_NICS).filter(|nic| set >> nic & 1 == 1).collect();
        match chunks.last_mut() {
            Some(last) if page.continues && last.nics == nics => {
                last.len_bytes += page.len_bytes;
                last.pages += 1;
            }
            _ => chunks.push(Chunk {
                buffer: page.buffer,
                addr: page.addr,
                len_bytes: page.len_bytes,
                page: page.size,
                pages: 1,
                nics,
            }),
        }
    }
    chunks
}
