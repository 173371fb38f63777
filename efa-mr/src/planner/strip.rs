//! Strips: pages that are alike to the objective, laid end to end.

use super::Place;
use crate::buffer::{Buffer, Location, PageRun, PageSize};
use crate::error::Error;
use crate::nic::{Nic, NicSet};
use std::collections::HashMap;

/// Beyond this many strips, pages of nearly the same value are pooled, so that the flow stays small.
const MAX_EXACT_STRIPS: usize = 512;

/// A stretch of a buffer on a strip.
#[derive(Debug, Clone, Copy)]
pub(super) struct Part {
    pub(super) buffer: usize,
    pub(super) run: PageRun,
    pub(super) pages: u64,
}

/// Alike pages.
#[derive(Debug)]
pub(super) struct Strip {
    pub(super) location: Location,
    /// Distance weight of each NIC; `None`: this NIC cannot take these pages.
    pub(super) weights: Vec<Option<u32>>,
    /// Pages on the strip.
    pub(super) pages: u64,
    /// Bytes on the strip (less than pages × page size when pages are used in part).
    pub(super) bytes: u128,
    /// The value of a copy of a page: its bytes, on average.
    pub(super) bytes_per_page: u64,
    /// Copies wanted of each page.
    pub(super) wanted: u64,
    /// Copies that each page must have.
    pub(super) least: u64,
    /// In order of buffer and address.
    pub(super) parts: Vec<Part>,
}

#[derive(PartialEq, Eq, Hash, Clone, Copy)]
struct Key {
    place: usize,
    page: PageSize,
    nics: NicSet,
    value: u64,
}

/// Strips by location and page size; all that is needed when no budget binds.
pub(super) fn pooled(
    buffers: &[Buffer],
    nics: &[Nic],
    places: &[Place],
    at_least: usize,
) -> Result<Vec<Strip>, Error> {
    build(buffers, nics, places, at_least, false, |_| 0)
}

/// Strips that differ in the value of their pages too.
pub(super) fn by_value(
    buffers: &[Buffer],
    nics: &[Nic],
    places: &[Place],
    at_least: usize,
) -> Result<Vec<Strip>, Error> {
    let exact = build(buffers, nics, places, at_least, true, |value| value)?;
    if exact.len() <= MAX_EXACT_STRIPS {
        return Ok(exact);
    }
    // Keep the leading three bits: values within an eighth of each other count as equal.
    build(buffers, nics, places, at_least, true, |value| {
        let shift = (u64::BITS - value.leading_zeros()).saturating_sub(3);
        value >> shift << shift
    })
}

/// Whether every NIC could take every page that it can reach.
pub(super) fn ample(strips: &[Strip], nics: &[Nic]) -> bool {
    nics.iter().enumerate().all(|(nic, n)| {
        let reachable = strips.iter().filter(|strip| strip.weights[nic].is_some());
        reachable.fold(0_u64, |sum, strip| sum.saturating_add(strip.pages)) <= n.pte_left
    })
}

fn build(
    buffers: &[Buffer],
    nics: &[Nic],
    places: &[Place],
    at_least: usize,
    split: bool,
    class: impl Fn(u64) -> u64,
) -> Result<Vec<Strip>, Error> {
    let smallest_max_mr = nics.iter().map(|nic| nic.max_mr_bytes).min().unwrap_or(0);
    let mut index: HashMap<Key, usize> = HashMap::new();
    let mut strips: Vec<Strip> = Vec::new();
    let mut last: Option<(Key, usize)> = None;
    for (number, buffer) in buffers.iter().enumerate() {
        let place = places.partition_point(|place| place.location < buffer.location);
        for run in buffer.runs() {
            // A NIC whose longest MR is shorter than a page cannot take the page (a buffer inside one page is shorter).
            let piece = run.page.bytes().min(run.len_bytes);
            let able = if piece <= smallest_max_mr {
                NicSet::first(nics.len())
            } else {
                (0..nics.len()).filter(|nic| nics[*nic].max_mr_bytes >= piece).collect()
            };
            let [first, middle, end] = if split { thirds(run) } else { [None, Some(run), None] };
            for run in [first, middle, end].into_iter().flatten() {
                let pages = run.pages();
                let value = if split { class(run.len_bytes / pages) } else { 0 };
                let key = Key { place, page: run.page, nics: able, value };
                let at = match last {
                    Some((same, at)) if same == key => at,
                    _ => *index.entry(key).or_insert_with(|| {
                        strips.push(Strip::new(&places[place], able, at_least));
                        strips.len() - 1
                    }),
                };
                last = Some((key, at));
                let strip = &mut strips[at];
                if strip.wanted == 0 {
                    return Err(Error::Unreachable {
                        buffer: number,
                        location: buffer.location,
                        page: run.page,
                    });
                }
                strip.pages = strip.pages.saturating_add(pages);
                strip.bytes += u128::from(run.len_bytes);
                strip.parts.push(Part { buffer: number, run, pages });
            }
        }
    }
    for strip in &mut strips {
        let average = strip.bytes.div_ceil(u128::from(strip.pages));
        strip.bytes_per_page = u64::try_from(average).unwrap_or(u64::MAX);
    }
    Ok(strips)
}

impl Strip {
    fn new(place: &Place, able: NicSet, at_least: usize) -> Self {
        let weights: Vec<Option<u32>> = place
            .weights
            .iter()
            .enumerate()
            .map(|(nic, weight)| weight.filter(|_| able.contains(nic)))
            .collect();
        let reach = weights.iter().flatten().count();
        Self {
            location: place.location,
            weights,
            pages: 0,
            bytes: 0,
            bytes_per_page: 0,
            wanted: place.wanted.min(reach) as u64,
            least: at_least.max(1).min(reach) as u64,
            parts: Vec::new(),
        }
    }
}

/// The partly used first page, the full pages, and the partly used last page of a run.
fn thirds(run: PageRun) -> [Option<PageRun>; 3] {
    let page = run.page.bytes();
    let pages = run.pages();
    if pages == 1 {
        return [None, Some(run), None];
    }
    let head = run.addr.wrapping_neg() % page;
    // Where the run ends, modulo a page; the end may be exactly 2^64, which wraps to 0.
    let tail = run.addr.wrapping_add(run.len_bytes) % page;
    let body = run.len_bytes - head - tail;
    let piece = |offset: u64, len_bytes: u64| {
        (len_bytes > 0).then(|| PageRun { addr: run.addr + offset, len_bytes, page: run.page })
    };
    [piece(0, head), piece(head, body), if tail > 0 { piece(head + body, tail) } else { None }]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thirds_partition_a_run() {
        let page = PageSize::K4;
        for (addr, len) in [(0, 4096), (1, 4095), (1, 8192), (4095, 2), (4096, 8193), (u64::MAX - 5000, 5001)]
        {
            let run = PageRun { addr, len_bytes: len, page };
            let parts: Vec<PageRun> = thirds(run).into_iter().flatten().collect();
            assert_eq!(parts[0].addr, addr);
            assert_eq!(parts.iter().map(|part| part.len_bytes).sum::<u64>(), len);
            assert_eq!(parts.iter().map(PageRun::pages).sum::<u64>(), run.pages(), "{addr} {len}");
            for pair in parts.windows(2) {
                assert_eq!(pair[0].addr + pair[0].len_bytes, pair[1].addr);
            }
        }
    }
}
