//! An upper bound of the spread that no plan can exceed, by arguments that share nothing with the planner.

use efa_mr::{Buffer, Nic, Plan};

/// The spread of a plan over an upper bound; 1 is perfect.
///
/// Order all pages by their bytes, the most first. However a plan looks, the first `k` of them have together no more copies than
///
/// 1. are wanted of them,
/// 2. fit, when every NIC holds each of them at most once: Σ min(budget, k),
/// 3. are left when every other page has one copy: Σ budgets − (pages − k).
///
/// The least of the three for every `k` bounds the spread (summation by parts).
pub(crate) fn quality(plan: &Plan, buffers: &[Buffer], nics: &[Nic]) -> f64 {
    let wanted = |buffer: &Buffer| {
        plan.wanted
            .iter()
            .find(|(location, _)| *location == buffer.location)
            .map_or(0, |(_, wanted)| *wanted as u64)
    };
    // (bytes of a page, how many such pages, copies wanted), most bytes first.
    let mut pages: Vec<(u64, u64, u64)> = Vec::new();
    for buffer in buffers {
        for run in buffer.runs() {
            let size = run.page.bytes();
            let head = run.addr.wrapping_neg() % size;
            if run.pages() == 1 {
                pages.push((run.len_bytes, 1, wanted(buffer)));
                continue;
            }
            let tail = (run.addr + run.len_bytes) % size;
            let full = (run.len_bytes - head - tail) / size;
            for (bytes, count) in [(head, 1), (size, full), (tail, 1)] {
                if bytes > 0 && count > 0 {
                    pages.push((bytes, count, wanted(buffer)));
                }
            }
        }
    }
    pages.sort_unstable_by_key(|page| std::cmp::Reverse(page.0));
    let total: u64 = pages.iter().map(|page| page.1).sum();
    let room: u64 = nics.iter().map(|nic| nic.pte_left.min(total)).sum();
    // Copies that the best `pages` pages can have together.
    let most = |best: u64, wanted: u64| {
        let fit: u64 = nics.iter().map(|nic| nic.pte_left.min(best)).sum();
        wanted.min(fit).min(room.saturating_sub(total - best))
    };
    // Σ value × copies = Σ over pages of (value − next value) × copies of all pages up to this one.
    let (mut best, mut wanted, mut bound) = (0, 0, 0_u128);
    for (index, (bytes, count, copies)) in pages.iter().enumerate() {
        best += count;
        wanted += count * copies;
        let next = pages.get(index + 1).map_or(0, |page| page.0);
        bound += u128::from(bytes - next) * u128::from(most(best, wanted));
    }
    assert!(plan.score.spread <= bound, "the plan exceeds the bound: one of them is wrong");
    plan.score.spread as f64 / bound as f64
}
