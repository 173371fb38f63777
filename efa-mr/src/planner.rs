//! The planner: which bytes to register on which NICs.
//!
//! # The problem
//!
//! A NIC can hold only so many page table entries. Registering a page on one more NIC costs one entry there and lets
//! transfers of that page use one more link. Given buffers, NICs with what they have left, and a [`Policy`] that says
//! how many NICs each byte is *wanted* on, the planner looks for the plan that, in this order,
//!
//! 1. **spread**: has the largest Σ bytes × min(NICs of the chunk, NICs wanted),
//! 2. **far**: keeps bytes near their NICs: the least Σ bytes × distance weight,
//! 3. **load**: has the smallest largest load of a NIC (its bytes over its link speed),
//! 4. **MRs**: makes the fewest registrations,
//!
//! and that covers every byte, exceeds no budget, and cuts at page boundaries only ([`Score`] has exactly these four).
//!
//! # The idea: strips, a flow, and a wrap-around
//!
//! **Strips.** Pages that look the same to the objective (same distances, same wanted number, same bytes per page) are
//! interchangeable. Laid end to end they form a *strip* of `P` pages; 1,450 buffers on a p5 are about ten strips.
//!
//! **Flow.** How *many* pages of strip `g` NIC `j` holds, `x[g][j]`, is all that the first three objectives see. The
//! numbers have to obey
//!
//! ```text
//! 0 ≤ x[g][j] ≤ P[g]          a NIC holds a page at most once
//! P[g] ≤ Σ_j x[g][j] ≤ W·P[g] every page at least once, none more often than wanted
//! Σ_g x[g][j] ≤ budget[j]
//! ```
//!
//! which is a transportation problem: a flow from strips to NICs. Copies are handed out one layer at a time: first one
//! for every page (or as many as [`Policy::at_least`] says), then further ones in descending order of bytes per page.
//! That greedy order is optimal because the sets of copies that fit form a polymatroid. Each step sends flow along a
//! cheapest path, which may move earlier copies to other NICs but never takes one away, so the second objective
//! stays optimal as well (successive shortest paths). Then load is moved from the fullest NIC to others along
//! paths that change neither of the first two.
//!
//! **Wrap-around.** Any such numbers can be laid out on the strip: NIC after NIC takes the next `x[g][j]` pages, starting
//! where the one before it stopped and wrapping at the end (McNaughton's rule for scheduling parallel machines). As no
//! NIC wraps past its own start it holds no page twice, and every page gets Σx/P copies, rounded down or up.
//!
//! ```text
//!           page 0                                  P
//! nic 0     ████████████████████
//! nic 1                         ████████████████          ← wraps
//! nic 2     ██████                              ████
//! nic 3           ████████████████████
//!           └─ {0,2} ┴──── {0,3} ──┴── {1,3} ┴ {1} …      chunks
//! ```
//!
//! A strip is cut at most once per NIC, whatever its length, so almost every buffer stays whole.
//!
//! # What is exact and what is not
//!
//! Spread and far are optimal. When the budgets are ample (every NIC could take everything) pages are pooled into strips
//! by page size, otherwise also by bytes per page, so that the partly used pages at the ends of unaligned buffers
//! are the first to go without further copies; with more than 512 different values, near ones are pooled. Load is optimal up to
//! a page or so, and the number of MRs as small as the layout makes it. For small problems (up to 4 NICs and 24 pages) a search
//! over all plans settles these two as well, unless it takes more than about a millisecond. Limits on the *number* of MRs are
//! met by a repair afterwards that gives up copies of the smallest chunks first.

mod exact;
mod flow;
mod strip;
mod weave;

use crate::buffer::{Buffer, Location};
use crate::error::Error;
use crate::nic::{Distance, MAX_NICS, Nic};
use crate::plan::{Plan, Score};
use crate::policy::{Policy, Wanted};

/// Plans what to register where. Pure and deterministic: the same input gives the same plan on every machine.
///
/// # Errors
/// [`Error`]: an empty or impossible buffer, no NIC that reaches it, or budgets that cannot take every byte once.
///
/// ```
/// use efa_mr::{Buffer, Nic, PageSize, Policy, plan};
///
/// let nics: Vec<Nic> = (0..4).map(|i| Nic { pte_left: 1 << 20, ..Nic::new(format!("efa{i}")) }).collect();
/// // 8 GiB of 4 KiB pages are 2 Mi pages: they fit on two of the four cards at a time.
/// let pool = Buffer::host(0x7f00_0000_0000, 8 << 30, PageSize::K4);
/// let plan = plan(&[pool], &nics, &Policy::all())?;
/// assert!(plan.chunks.iter().all(|chunk| chunk.nics.len() == 2));
/// assert_eq!(plan.fulfilment(), 0.5);
/// # Ok::<(), efa_mr::Error>(())
/// ```
pub fn plan(buffers: &[Buffer], nics: &[Nic], policy: &Policy) -> Result<Plan, Error> {
    check(buffers, nics)?;
    let (limit, model) = match policy.wanted {
        Wanted::Within(limit, model) => (limit, model),
        wanted => return plan_wanted(buffers, nics, wanted, policy.at_least),
    };
    // The most NICs per byte whose predicted registration time is within the limit; more NICs never take less time.
    let mut best = plan_wanted(buffers, nics, Wanted::Nics(1), policy.at_least)?;
    let (mut fits, mut too_many) = (1, nics.len() + 1);
    while too_many - fits > 1 {
        let middle = usize::midpoint(fits, too_many);
        let candidate = plan_wanted(buffers, nics, Wanted::Nics(middle), policy.at_least)?;
        if candidate.predicted_time(&model) <= limit {
            (best, fits) = (candidate, middle);
        } else {
            too_many = middle;
        }
    }
    Ok(best)
}

/// One location of memory as the planner sees it.
struct Place {
    location: Location,
    /// Distance weight of each NIC; `None` where it cannot reach this memory.
    weights: Vec<Option<u32>>,
    /// NICs wanted per byte, before NICs drop out because their longest MR is too short.
    wanted: usize,
}

fn check(buffers: &[Buffer], nics: &[Nic]) -> Result<(), Error> {
    if nics.is_empty() {
        return Err(Error::NoNics);
    }
    if nics.len() > MAX_NICS {
        return Err(Error::TooManyNics { count: nics.len() });
    }
    if let Some(nic) = nics.iter().find(|nic| nic.link_mbps == 0) {
        return Err(Error::LinkDown { nic: nic.name.clone() });
    }
    for (buffer, b) in buffers.iter().enumerate() {
        if b.len_bytes == 0 {
            return Err(Error::Empty { buffer, addr: b.addr });
        }
        if b.last().is_none() {
            return Err(Error::PastTheEnd { buffer, addr: b.addr, len_bytes: b.len_bytes });
        }
        if !b.runs_are_sound() {
            return Err(Error::BadPageRuns { buffer, addr: b.addr });
        }
    }
    Ok(())
}

fn plan_wanted(buffers: &[Buffer], nics: &[Nic], wanted: Wanted, at_least: usize) -> Result<Plan, Error> {
    let places = places(buffers, nics, wanted, at_least);
    let mut strips = strip::pooled(buffers, nics, &places, at_least)?;
    if !strip::ample(&strips, nics) {
        strips = strip::by_value(buffers, nics, &places, at_least)?;
    }
    let shares = flow::assign(&strips, nics)?;
    let chunks = weave::chunks(&strips, &shares, nics)?;
    let plan = finish(buffers, nics, &places, &strips, chunks);
    Ok(match exact::improve(&strips, nics, &plan.score) {
        Some(chunks) => finish(buffers, nics, &places, &strips, chunks),
        None => plan,
    })
}

/// The distinct locations, in order, and what is wanted for each.
fn places(buffers: &[Buffer], nics: &[Nic], wanted: Wanted, at_least: usize) -> Vec<Place> {
    let mut locations: Vec<Location> = Vec::new();
    for buffer in buffers {
        if let Err(at) = locations.binary_search(&buffer.location) {
            locations.insert(at, buffer.location);
        }
    }
    let place = |location| {
        let weights: Vec<Option<u32>> = nics.iter().map(|nic| nic.distance(location).weight()).collect();
        let reach = weights.iter().flatten().count();
        let nearest = weights.iter().flatten().min().copied().or(Distance::OtherNode.weight());
        let wanted = match wanted {
            Wanted::All | Wanted::Within(..) => reach,
            Wanted::Near => weights.iter().filter(|weight| **weight == nearest).count(),
            Wanted::Nics(count) => count,
        };
        Place { location, weights, wanted: wanted.max(at_least).clamp(1, reach.max(1)) }
    };
    locations.into_iter().map(place).collect()
}

/// Adds up what the chunks cost and how good they are.
fn finish(
    buffers: &[Buffer],
    nics: &[Nic],
    places: &[Place],
    strips: &[strip::Strip],
    chunks: Vec<crate::plan::Chunk>,
) -> Plan {
    let mut plan = Plan {
        chunks,
        nics: vec![crate::plan::NicUse::default(); nics.len()],
        score: Score::default(),
        wanted: Vec::new(),
        locations: buffers.iter().map(|buffer| buffer.location).collect(),
        ideal_spread: strips.iter().map(|strip| strip.bytes * u128::from(strip.wanted)).sum(),
    };
    let index = |location| places.partition_point(|place: &Place| place.location < location);
    let place_of: Vec<&Place> = buffers.iter().map(|buffer| &places[index(buffer.location)]).collect();
    for chunk in &plan.chunks {
        let place = place_of[chunk.buffer];
        let bytes = u128::from(chunk.len_bytes);
        plan.score.spread += bytes * chunk.nics.len().min(place.wanted) as u128;
        for nic in chunk.nics.iter() {
            plan.score.far += bytes * u128::from(place.weights[nic].unwrap_or_default());
            let used = &mut plan.nics[nic];
            used.pages += chunk.pages;
            used.mrs += 1;
            used.bytes += bytes;
        }
        plan.score.mrs += chunk.nics.len() as u64;
    }
    for (used, nic) in plan.nics.iter_mut().zip(nics) {
        used.load_ns = load_ns(used.bytes, nic.link_mbps);
        plan.score.load_ns = plan.score.load_ns.max(used.load_ns);
    }
    plan.wanted = places.iter().map(|place| (place.location, place.wanted)).collect();
    plan
}

/// The time to move `bytes` over a link of `link_mbps` Mbit/s, in nanoseconds, rounded down.
fn load_ns(bytes: u128, link_mbps: u32) -> u64 {
    u64::try_from(bytes * 8_000 / u128::from(link_mbps.max(1))).unwrap_or(u64::MAX)
}
