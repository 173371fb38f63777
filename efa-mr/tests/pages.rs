//! What the kernel says about memory that these tests made.

#![allow(clippy::unwrap_used)]

use efa_mr::{PageSize, Pages, pages};
use memmap2::{Advice, MmapMut, MmapOptions};

const M2: usize = 2 << 20;

/// An anonymous mapping and the offset of the first huge page boundary in it.
fn mapping(len: usize) -> (MmapMut, usize) {
    let map = MmapMut::map_anon(len).unwrap();
    let offset = (map.as_ptr() as usize).next_multiple_of(M2) - map.as_ptr() as usize;
    (map, offset)
}

#[test]
fn untouched_and_small_pages_are_small() {
    let (mut map, _) = mapping(3 * 4096);
    let addr = map.as_ptr() as u64;
    assert_eq!(pages::of_range(addr, 3 * 4096).unwrap(), Pages::Uniform(PageSize::K4));
    map.fill(1);
    assert_eq!(pages::of_range(addr + 5, 8000).unwrap(), Pages::Uniform(PageSize::K4));
}

#[test]
fn a_mixture_of_huge_and_small_pages_is_seen_wherever_it_changes() {
    let (mut map, offset) = mapping(6 * M2);
    // Huge: the second and third huge page from the first boundary on. Small: the rest.
    map.advise(Advice::NoHugePage).unwrap();
    if map.advise_range(Advice::HugePage, offset + M2, 2 * M2).is_err() {
        eprintln!("SKIP: a_mixture_of_huge_and_small_pages: this kernel has no transparent huge pages");
        return;
    }
    map.fill(7);
    let addr = map.as_ptr() as u64;
    let found = pages::of_range(addr + 100, (5 * M2) as u64).unwrap();
    let Pages::Runs(runs) = found else {
        eprintln!(
            "SKIP: a_mixture_of_huge_and_small_pages: the kernel gave no huge page (memory too fragmented)"
        );
        return;
    };
    let base = addr + offset as u64;
    let of = |page| runs.iter().filter(move |run| run.page == page).collect::<Vec<_>>();
    let huge = of(PageSize::M2);
    assert_eq!(huge.len(), 1, "{runs:?}");
    assert_eq!((huge[0].addr, huge[0].len_bytes), (base + M2 as u64, 2 * M2 as u64));
    assert_eq!(runs[0].addr, addr + 100);
    assert_eq!(runs.iter().map(|run| run.len_bytes).sum::<u64>(), (5 * M2) as u64);
    // The first page alone would have said: small throughout.
    assert_eq!(runs[0].page, PageSize::K4);
}

#[test]
fn explicit_huge_pages_are_seen() {
    let map = MmapOptions::new().len(2 * M2).huge(Some(21)).map_anon();
    let Ok(mut map) = map else {
        eprintln!("SKIP: explicit_huge_pages_are_seen: no huge pages reserved (sysctl vm.nr_hugepages)");
        return;
    };
    let addr = map.as_ptr() as u64;
    assert_eq!(
        pages::of_range(addr + 1, M2 as u64).unwrap(),
        Pages::Uniform(PageSize::M2),
        "before the first touch"
    );
    map[0] = 1;
    assert_eq!(pages::of_range(addr + 1, M2 as u64).unwrap(), Pages::Uniform(PageSize::M2));
}

#[test]
fn holes_and_bad_ranges_are_errors() {
    let (map, _) = mapping(4096);
    let addr = map.as_ptr() as u64;
    assert!(pages::of_range(addr, 0).is_err());
    assert!(pages::of_range(u64::MAX, 2).is_err());
    assert!(matches!(pages::of_range(16, 4096), Err(pages::PagesError::NotMapped { addr: 16 })));
    drop(map);
    assert!(pages::of_range(0, 1 << 47).is_err());
    assert!(pages::prefault(0, 1 << 47, 2).is_err());
    assert!(pages::prefault(u64::MAX - 10, 11, 2).is_err());
    assert!(pages::prefault(1, 0, 2).is_err());
}

#[test]
fn prefault_makes_pages_present_and_keeps_their_bytes() {
    let (mut map, offset) = mapping(40 * M2);
    map[offset + 12345] = 42;
    let huge = map.advise(Advice::HugePage).is_ok();
    let (addr, len) = (map.as_ptr() as u64, map.len() as u64);
    pages::prefault(addr + 1, len - 2, 2).unwrap();
    assert_eq!(map[offset + 12345], 42);
    // Resident without having been touched by this test: the kernel counts the pages of this range.
    let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let entry = smaps.lines().skip_while(|line| !line.starts_with(&format!("{addr:x}-")));
    let rss: u64 = entry
        .skip(1)
        .find_map(|line| line.strip_prefix("Rss:"))
        .and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap();
    assert_eq!(rss * 1024, len);
    if huge && let Pages::Runs(runs) = pages::of_range(addr, len).unwrap() {
        assert!(runs.iter().any(|run| run.page == PageSize::M2));
    }
}
