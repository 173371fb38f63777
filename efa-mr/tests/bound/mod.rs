//! An upper bound of the spread that no plan can exceed, by arguments that share nothing with the planner.

use efa_mr::{Buffer, Nic, Plan};

/// The spread of a plan over an upper bound; 1 is perfect.
///
/// Order all pages by their bytes, the most first. However a plan looks, the first `k` of them have together no more copies than
///
/// 1. are wanted of them and fit, when every NIC holds each of them at most once, taken one location at a time: of the `k` pages
///    those of a location count min(copies wanted, Σ min(budget, pages of that location)),
/// 2. fit in all, likewise: Σ min(budget, k),
/// 3. are left when every other page has one copy: Σ budgets − (pages − k).
///
/// The least of the three for every `k` bounds the spread (summation by parts).
pub(crate) fn quality(plan: &Plan, buffers: &[Buffer], nics: &[Nic]) -> f64 {
    // Index of the location in the plan's list of what is wanted.
    let place = |buffer: &Buffer| {
        let mut places = plan.wanted.iter();
        places.position(|(location, _)| *location == buffer.location).expect("the plan knows every location")
    };
    // (bytes of a page, how many such pages, their location), most bytes first.
    let mut pages: Vec<(u64, u64, usize)> = Vec::new();
    for buffer in buffers {
        for run in buffer.runs() {
            let size = run.page.bytes();
            let head = run.addr.wrapping_neg() % size;
            if run.pages() == 1 {
                pages.push((run.len_bytes, 1, place(buffer)));
                continue;
            }
            let tail = (run.addr + run.len_bytes) % size;
            let full = (run.len_bytes - head - tail) / size;
            for (bytes, count) in [(head, 1), (size, full), (tail, 1)] {
                if bytes > 0 && count > 0 {
                    pages.push((bytes, count, place(buffer)));
                }
            }
        }
    }
    pages.sort_unstable_by_key(|page| std::cmp::Reverse(page.0));
    let total: u64 = pages.iter().map(|page| page.1).sum();
    let room: u64 = nics.iter().map(|nic| nic.pte_left.min(total)).sum();
    let fitting = |pages: u64| nics.iter().map(|nic| nic.pte_left.min(pages)).sum::<u64>();
    // Copies that the best pages can have together: how many of each location there are among them.
    let most = |counts: &[u64]| {
        let best: u64 = counts.iter().sum();
        let wanted =
            |(pages, (_, wanted)): (&u64, &(_, usize))| (pages * *wanted as u64).min(fitting(*pages));
        let by_location: u64 = counts.iter().zip(&plan.wanted).map(wanted).sum();
        by_location.min(fitting(best)).min(room.saturating_sub(total - best))
    };
    // Σ value × copies = Σ over pages of (value − next value) × copies of all pages up to this one.
    let (mut counts, mut bound) = (vec![0; plan.wanted.len()], 0_u128);
    for (index, (bytes, count, place)) in pages.iter().enumerate() {
        counts[*place] += count;
        let next = pages.get(index + 1).map_or(0, |page| page.0);
        bound += u128::from(bytes - next) * u128::from(most(&counts));
    }
    assert!(plan.score.spread <= bound, "the plan exceeds the bound: one of them is wrong");
    plan.score.spread as f64 / bound as f64
}
