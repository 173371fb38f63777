//! The page sizes of host memory, from the kernel, for the whole range.
//!
//! Looking at the first page only is wrong: with transparent huge pages most long buffers are a mixture of 2 MiB and
//! 4 KiB pages, and a range may reach over several mappings. A card that is told about one MR uses the *smallest* page
//! in it for all of it, so what matters is where the sizes change.
//!
//! # How, and what it costs
//!
//! * From Linux 6.11 on: one `PROCMAP_QUERY` per mapping (its page size, hugetlb included) and one `PAGEMAP_SCAN` over the range
//!   (which parts are mapped by huge pages). The scan walks the page tables: some 10 ns for each 2 MiB page, some µs for 2 MiB of
//!   small pages. 400 GB of small pages take about a second, far less than pinning them.
//! * Before: `/proc/self/smaps`, which is read up to the end of the range only. It tells the page size of each mapping and *how
//!   many* bytes of it are in transparent huge pages, not where. A mapping that is huge throughout counts as huge; a mixture
//!   counts as small pages, so a plan may be too careful there but never over budget.
//!
//! Memory that has not been touched yet counts as small pages: what the kernel will put there is not known. [`prefault`] first
//! gives better plans, and lets several processors do the work that a registration would do on one.

mod kernel;
mod prefault;
mod smaps;

pub use prefault::prefault;

use crate::buffer::{PageRun, PageSize, Pages};
use std::io;

/// How many runs [`of_range`] gives at most. Every run becomes at least one MR on each NIC, so a buffer in which small and huge
/// pages alternate a thousand times is better off with fewer cuts and more entries.
pub const MAX_RUNS: usize = 32;

/// Why the page sizes of a range cannot be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PagesError {
    /// Not all of the range is mapped.
    #[error("nothing is mapped at {addr:#x}; check address and length, or whether the memory has been freed")]
    NotMapped {
        /// The first address without memory.
        addr: u64,
    },
    /// An empty range, or one that reaches past 2^64.
    #[error("{len_bytes} bytes at {addr:#x} are not a range of memory")]
    BadRange {
        /// First byte.
        addr: u64,
        /// Length in bytes.
        len_bytes: u64,
    },
    /// The kernel does not say.
    #[error("the kernel does not tell the page sizes ({what}): {source}; is /proc mounted?")]
    Kernel {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
}

/// A mapping of this process, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mapping {
    start: u64,
    end: u64,
    /// The page size of the mapping itself: larger than the base page for hugetlb only.
    page: PageSize,
}

/// The page sizes of `len_bytes` bytes of host memory at `addr`, in at most [`MAX_RUNS`] runs.
///
/// Takes time in proportion to the number of pages (see the [module](self)); does not touch the memory.
///
/// # Errors
/// [`PagesError`]. Whoever cannot do anything about [`PagesError::Kernel`] takes 4 KiB for granted.
pub fn of_range(addr: u64, len_bytes: u64) -> Result<Pages, PagesError> {
    let bad = PagesError::BadRange { addr, len_bytes };
    let Some(end) = addr.checked_add(len_bytes).filter(|_| len_bytes > 0) else { return Err(bad) };
    let runs = match kernel::runs(addr, end) {
        Err(PagesError::Kernel { .. }) => smaps::runs(addr, end)?,
        told => told?,
    };
    Ok(simplify(runs, MAX_RUNS))
}

/// The base page of this machine.
fn base_page() -> PageSize {
    PageSize::new(rustix::param::page_size() as u64).unwrap_or(PageSize::K4)
}

/// Cuts `[addr, end)` of a list of mappings and huge areas (both ascending) into runs.
///
/// `huge` are areas in which the page tables map pages of `huge_page`; mappings with a larger page of their own count as that.
fn assemble(
    addr: u64,
    end: u64,
    mappings: &[Mapping],
    huge: &[(u64, u64)],
    huge_page: PageSize,
) -> Result<Vec<PageRun>, PagesError> {
    let base = base_page();
    let mut runs: Vec<PageRun> = Vec::new();
    let mut at = addr;
    let mut push = |from: u64, to: u64, page: PageSize| {
        let (from, to) = (from.max(addr), to.min(end));
        if from >= to {
            return;
        }
        match runs.last_mut() {
            Some(last) if last.page == page && last.addr + last.len_bytes == from => {
                last.len_bytes += to - from
            }
            _ => runs.push(PageRun { addr: from, len_bytes: to - from, page }),
        }
    };
    for mapping in mappings.iter().filter(|mapping| mapping.end > addr && mapping.start < end) {
        if mapping.start > at {
            return Err(PagesError::NotMapped { addr: at });
        }
        if mapping.page > base {
            push(mapping.start, mapping.end, mapping.page);
        } else {
            let mut from = mapping.start;
            for &(start, stop) in huge.iter().filter(|area| area.1 > mapping.start && area.0 < mapping.end) {
                // Whole huge pages only: a scan is cut off where the range is.
                let start = start.max(mapping.start) >> huge_page.shift() << huge_page.shift();
                let stop = stop.min(mapping.end).next_multiple_of(huge_page.bytes());
                let (start, stop) = (start.max(mapping.start), stop.min(mapping.end));
                push(from, start, base);
                push(start, stop, huge_page);
                from = stop.max(from);
            }
            push(from, mapping.end, base);
        }
        at = mapping.end;
    }
    if at < end {
        return Err(PagesError::NotMapped { addr: at });
    }
    Ok(runs)
}

/// Makes at most `most` runs of many: huge runs that save least are counted in the pages of their neighbours.
///
/// Counting a huge page as small ones is always sound (a huge page is made of them), so the plan stays within its budgets.
#[must_use]
pub fn simplify(mut runs: Vec<PageRun>, most: usize) -> Pages {
    while runs.len() > most.max(1) {
        // What a run costs more when it is counted in the smaller page of a neighbour; runs of the smallest pages only merge.
        let demotion = |at: usize| {
            let smaller = [at.wrapping_sub(1), at + 1]
                .into_iter()
                .filter_map(|neighbour| runs.get(neighbour))
                .map(|neighbour| neighbour.page)
                .filter(|page| *page < runs[at].page)
                .max()?;
            let PageRun { addr, len_bytes, page } = runs[at];
            Some((smaller.pages_touched(addr, len_bytes) - page.pages_touched(addr, len_bytes), at, smaller))
        };
        let Some((_, at, page)) = (0..runs.len()).filter_map(demotion).min() else { break };
        runs[at].page = page;
        runs.dedup_by(|next, before| {
            let same = next.page == before.page;
            if same {
                before.len_bytes += next.len_bytes;
            }
            same
        });
    }
    match runs.as_slice() {
        [only] => Pages::Uniform(only.page),
        _ => Pages::Runs(runs),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const M2: u64 = 2 << 20;

    fn map(start: u64, end: u64, page: PageSize) -> Mapping {
        Mapping { start, end, page }
    }

    fn run(addr: u64, end: u64, page: PageSize) -> PageRun {
        PageRun { addr, len_bytes: end - addr, page }
    }

    #[test]
    fn a_mixture_is_cut_where_the_page_size_changes() {
        let mappings = [map(M2 / 2, 8 * M2, PageSize::K4), map(8 * M2, 10 * M2, PageSize::M2)];
        let runs =
            assemble(M2, 9 * M2 + 5, &mappings, &[(2 * M2, 4 * M2), (6 * M2, 7 * M2)], PageSize::M2).unwrap();
        assert_eq!(
            runs,
            [
                run(M2, 2 * M2, PageSize::K4),
                run(2 * M2, 4 * M2, PageSize::M2),
                run(4 * M2, 6 * M2, PageSize::K4),
                run(6 * M2, 7 * M2, PageSize::M2),
                run(7 * M2, 8 * M2, PageSize::K4),
                run(8 * M2, 9 * M2 + 5, PageSize::M2),
            ]
        );
    }

    #[test]
    fn holes_are_errors_wherever_they_are() {
        let mappings = [map(0x1000, 0x3000, PageSize::K4), map(0x4000, 0x5000, PageSize::K4)];
        let hole = |addr, end| match assemble(addr, end, &mappings, &[], PageSize::M2) {
            Err(PagesError::NotMapped { addr }) => Some(addr),
            _ => None,
        };
        assert_eq!(hole(0x1000, 0x3000), None);
        assert_eq!(hole(0x0, 0x3000), Some(0));
        assert_eq!(hole(0x2000, 0x4800), Some(0x3000));
        assert_eq!(hole(0x4000, 0x5001), Some(0x5000));
        assert_eq!(hole(0x9000, 0x9001), Some(0x9000));
    }

    #[test]
    fn simplifying_keeps_the_range_and_gives_up_the_least() {
        let mut runs = Vec::new();
        let mut at = 0;
        for length in [1_u64, 5, 1, 2, 1, 9, 1] {
            let page = if length == 1 { PageSize::K4 } else { PageSize::M2 };
            runs.push(run(at, at + length * M2, page));
            at += length * M2;
        }
        let before: u64 = runs.iter().map(PageRun::pages).sum();
        let Pages::Runs(five) = simplify(runs.clone(), 5) else { panic!() };
        assert_eq!(five.iter().map(|run| run.len_bytes).sum::<u64>(), at);
        assert_eq!(five.len(), 5);
        // The run of two huge pages went: 1024 small pages instead of 2.
        assert_eq!(five.iter().map(PageRun::pages).sum::<u64>(), before + 1022);
        assert_eq!(simplify(runs, 1), Pages::Uniform(PageSize::K4));
    }

    #[test]
    fn old_and_new_kernels_agree_about_small_pages() {
        let memory = vec![1_u8; 100_000];
        let (addr, end) = (memory.as_ptr() as u64, memory.as_ptr() as u64 + 100_000);
        let old = smaps::runs(addr, end).unwrap();
        assert_eq!(old.iter().map(|run| run.len_bytes).sum::<u64>(), 100_000);
        match kernel::runs(addr, end) {
            Ok(new) => assert_eq!(old, new),
            Err(error) => eprintln!("SKIP: old_and_new_kernels_agree_about_small_pages: {error}"),
        }
    }
}
