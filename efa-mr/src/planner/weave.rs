//! The wrap-around: from numbers of pages to chunks with their NICs.

use super::flow::Shares;
use super::strip::{Part, Strip};
use crate::error::Error;
use crate::nic::{Nic, NicSet};
use crate::plan::Chunk;

/// Lays the shares out on the strips, and cuts the strips' parts accordingly.
pub(super) fn chunks(strips: &[Strip], shares: &Shares, nics: &[Nic]) -> Result<Vec<Chunk>, Error> {
    let mut chunks = Vec::with_capacity(strips.iter().map(|strip| strip.parts.len()).sum::<usize>() * 2);
    for (number, strip) in strips.iter().enumerate() {
        lay_out(strip, shares.of(number), &mut chunks);
    }
    chunks.sort_unstable_by_key(|chunk| (chunk.buffer, chunk.addr));
    merge(&mut chunks);
    let mut chunks = cut_to_max_mr(chunks, nics);
    repair_mr_counts(&mut chunks, strips, nics)?;
    merge_within_max_mr(&mut chunks, nics);
    Ok(chunks)
}

/// One strip: NIC after NIC takes its share, each starting where the one before it stopped.
fn lay_out(strip: &Strip, share: &[u64], chunks: &mut Vec<Chunk>) {
    let pages = strip.pages;
    // NICs that hold the whole strip cut nothing.
    let whole: NicSet = (0..share.len()).filter(|&nic| share[nic] == pages).collect();
    // (position, NIC, whether it starts or stops here)
    let mut events: Vec<(u64, usize, bool)> = Vec::new();
    let mut current = whole;
    let mut at = 0;
    for (nic, &x) in share.iter().enumerate() {
        if x == 0 || x == pages {
            continue;
        }
        events.push((at, nic, true));
        let stop = at + x;
        if stop > pages {
            // It wraps: it also holds the beginning.
            current.insert(nic);
            events.push((stop - pages, nic, false));
            at = stop - pages;
        } else {
            if stop < pages {
                events.push((stop, nic, false));
            }
            at = stop % pages;
        }
    }
    events.sort_unstable();
    // Walk parts and events together.
    let mut events = events.into_iter().peekable();
    let mut strip_page = 0;
    for part in &strip.parts {
        let mut done = 0;
        while done < part.pages {
            while let Some((_, nic, start)) = events.next_if(|(position, ..)| *position <= strip_page) {
                if start { current.insert(nic) } else { current.remove(nic) }
            }
            let next_event = events.peek().map_or(pages, |(position, ..)| *position);
            let take = (next_event - strip_page).min(part.pages - done);
            chunks.push(slice(part, done, take, current));
            done += take;
            strip_page += take;
        }
    }
}

/// Pages `first .. first + count` of a part.
fn slice(part: &Part, first: u64, count: u64, nics: NicSet) -> Chunk {
    let run = part.run;
    let shift = run.page.shift();
    let boundary = |page: u64| ((run.addr >> shift) + page) << shift;
    let addr = if first == 0 { run.addr } else { boundary(first) };
    let run_last = run.addr + (run.len_bytes - 1);
    let last = if first + count == part.pages { run_last } else { boundary(first + count) - 1 };
    Chunk { buffer: part.buffer, addr, len_bytes: last - addr + 1, page: run.page, pages: count, nics }
}

/// Joins neighbours with the same NICs and pages. Chunks never join across buffers: each buffer can then be let go alone.
fn merge(chunks: &mut Vec<Chunk>) {
    chunks.dedup_by(|next, before| join(before, next, u64::MAX));
}

/// As [`merge`], as far as the longest MR of their NICs allows.
fn merge_within_max_mr(chunks: &mut Vec<Chunk>, nics: &[Nic]) {
    chunks.dedup_by(|next, before| {
        let longest = before.nics.iter().map(|nic| nics[nic].max_mr_bytes).min().unwrap_or(u64::MAX);
        join(before, next, longest)
    });
}

fn join(before: &mut Chunk, next: &Chunk, longest: u64) -> bool {
    let touches =
        before.buffer == next.buffer && before.addr.checked_add(before.len_bytes) == Some(next.addr);
    let len_bytes = before.len_bytes.saturating_add(next.len_bytes);
    if !touches || before.nics != next.nics || before.page != next.page || len_bytes > longest {
        return false;
    }
    before.len_bytes = len_bytes;
    before.pages = before.page.pages_touched(before.addr, before.len_bytes);
    true
}

/// Cuts chunks that are longer than the longest MR of one of their NICs into pieces of equal numbers of pages.
fn cut_to_max_mr(chunks: Vec<Chunk>, nics: &[Nic]) -> Vec<Chunk> {
    let shortest = nics.iter().map(|nic| nic.max_mr_bytes).min().unwrap_or(u64::MAX);
    if chunks.iter().all(|chunk| chunk.len_bytes <= shortest) {
        return chunks;
    }
    let mut pieces = Vec::with_capacity(chunks.len() * 2);
    for chunk in chunks {
        let longest = chunk.nics.iter().map(|nic| nics[nic].max_mr_bytes).min().unwrap_or(u64::MAX);
        let mut rest = chunk;
        while rest.len_bytes > longest {
            // As far as the longest MR reaches, down to a page boundary. It is at least a page long (strips see to it).
            let boundary = (rest.addr + longest) >> chunk.page.shift() << chunk.page.shift();
            let len_bytes = boundary.saturating_sub(rest.addr);
            if len_bytes == 0 {
                break;
            }
            let pages = chunk.page.pages_touched(rest.addr, len_bytes);
            pieces.push(Chunk { len_bytes, pages, ..rest });
            rest.addr = boundary;
            rest.len_bytes -= len_bytes;
            rest.pages -= pages;
        }
        pieces.push(rest);
    }
    pieces
}

/// Brings NICs that would get more MRs than they may have down to their limit, smallest chunks first: a chunk moves
/// to another NIC with room, or goes without that copy if it keeps as many as it must have.
fn repair_mr_counts(chunks: &mut [Chunk], strips: &[Strip], nics: &[Nic]) -> Result<(), Error> {
    let mut mrs = vec![0_u64; nics.len()];
    let mut pages = vec![0_u64; nics.len()];
    for chunk in chunks.iter() {
        for nic in chunk.nics.iter() {
            mrs[nic] += 1;
            pages[nic] += chunk.pages;
        }
    }
    if mrs.iter().zip(nics).all(|(mrs, nic)| *mrs <= nic.mrs_left) {
        return Ok(());
    }
    // The strip of a chunk: the one with a part around its first byte.
    let mut homes: Vec<(usize, u64, usize)> = strips
        .iter()
        .enumerate()
        .flat_map(|(strip, s)| s.parts.iter().map(move |part| (part.buffer, part.run.addr, strip)))
        .collect();
    homes.sort_unstable();
    let home = |chunk: &Chunk| {
        let after = homes.partition_point(|(buffer, addr, _)| (*buffer, *addr) <= (chunk.buffer, chunk.addr));
        &strips[homes[after.max(1) - 1].2]
    };
    let mut by_size: Vec<usize> = (0..chunks.len()).collect();
    by_size.sort_by_key(|&chunk| (chunks[chunk].len_bytes, chunk));
    for crowded in 0..nics.len() {
        let needed = mrs[crowded];
        for &number in &by_size {
            if mrs[crowded] <= nics[crowded].mrs_left {
                break;
            }
            let chunk = &mut chunks[number];
            if !chunk.nics.contains(crowded) {
                continue;
            }
            let strip = home(chunk);
            let other = (0..nics.len())
                .filter(|&nic| !chunk.nics.contains(nic) && strip.weights[nic].is_some())
                .filter(|&nic| mrs[nic] < nics[nic].mrs_left && nics[nic].max_mr_bytes >= chunk.len_bytes)
                .filter(|&nic| nics[nic].pte_left - pages[nic] >= chunk.pages)
                .min_by_key(|&nic| (strip.weights[nic], mrs[nic], nic));
            if other.is_none() && (chunk.nics.len() as u64) <= strip.least {
                continue;
            }
            chunk.nics.remove(crowded);
            mrs[crowded] -= 1;
            pages[crowded] -= chunk.pages;
            if let Some(other) = other {
                chunk.nics.insert(other);
                mrs[other] += 1;
                pages[other] += chunk.pages;
            }
        }
        if mrs[crowded] > nics[crowded].mrs_left {
            let Nic { name, mrs_left, .. } = &nics[crowded];
            return Err(Error::TooManyMrs { nic: name.clone(), needed, left: *mrs_left });
        }
    }
    Ok(())
}
