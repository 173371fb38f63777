//! What holds for every plan and every ledger, whatever the input.

mod bound;
mod brute;

use efa_mr::{Buffer, Distance, Error, Ledger, Location, Nic, PageRun, PageSize, Pages, Plan, Policy, plan};
use proptest::prelude::*;

/// Buffers as they come: unaligned, tiny, in several kinds of pages and places; never overlapping.
fn buffers(most: usize) -> impl Strategy<Value = Vec<Buffer>> {
    let page = prop_oneof![4 => Just(PageSize::K4), 1 => Just(PageSize::K64), 2 => Just(PageSize::M2)];
    let location = prop_oneof![
        Just(Location::Host),
        (0..2_u16).prop_map(Location::Numa),
        (0..4_u16).prop_map(Location::Gpu)
    ];
    let one = (page, location, 0..1_u64 << 21, prop_oneof![1..5000_u64, 1..1_u64 << 26], any::<bool>());
    prop::collection::vec(one, 1..=most).prop_map(|list| {
        let each =
            |(index, (page, location, offset, len, mixed)): (usize, (PageSize, Location, u64, u64, bool))| {
                let mut buffer = Buffer::new(((index as u64 + 1) << 32) + offset, len, page, location);
                if mixed {
                    buffer.pages = Pages::Runs(mixed_runs(buffer.addr, len));
                }
                buffer
            };
        list.into_iter().enumerate().map(each).collect()
    })
}

/// 4 KiB pages up to the first 2 MiB boundary and after the last one, 2 MiB pages between.
fn mixed_runs(addr: u64, len: u64) -> Vec<PageRun> {
    let end = addr + len;
    let (from, to) = (addr.next_multiple_of(1 << 21), end >> 21 << 21);
    if from >= to {
        return vec![PageRun { addr, len_bytes: len, page: PageSize::K4 }];
    }
    let runs = [(addr, from, PageSize::K4), (from, to, PageSize::M2), (to, end, PageSize::K4)];
    let run = |(from, to, page): (u64, u64, _)| {
        (from < to).then(|| PageRun { addr: from, len_bytes: to - from, page })
    };
    runs.into_iter().filter_map(run).collect()
}

fn nics(most: usize) -> impl Strategy<Value = Vec<Nic>> {
    let budget = prop_oneof![Just(22 << 20), 0..40_000_u64, 0..400_u64];
    let max_mr = prop_oneof![3 => Just(u64::MAX), 1 => (1_u64 << 21)..(1 << 23), 1 => 1_u64..100_000];
    let distance = prop_oneof![
        Just(Distance::SameSwitch),
        Just(Distance::SameRoot),
        Just(Distance::OtherNode),
        Just(Distance::Unreachable)
    ];
    let one = (
        budget,
        max_mr,
        prop_oneof![Just(100_000_u32), Just(200_000)],
        0..2_u16,
        prop::collection::vec(distance, 4),
    );
    prop::collection::vec(one, 1..=most).prop_map(|list| {
        let each = |(index, (pte_left, max_mr_bytes, link_mbps, node, gpus)): (usize, _)| {
            let gpus: Vec<Distance> = gpus;
            Nic {
                pte_left,
                max_mr_bytes,
                link_mbps,
                numa: Some(node),
                distances: (0..4).map(Location::Gpu).zip(gpus).collect(),
                ..Nic::new(format!("nic{index}"))
            }
        };
        list.into_iter().enumerate().map(each).collect()
    })
}

fn policy() -> impl Strategy<Value = Policy> {
    let wanted = prop_oneof![Just(Policy::all()), Just(Policy::near()), (0..6_usize).prop_map(Policy::nics)];
    (wanted, prop_oneof![4 => Just(1_usize), 1 => 0..4_usize])
        .prop_map(|(policy, least)| policy.with_at_least(least))
}

/// Everything that must be true of a plan.
fn check(buffers: &[Buffer], nics: &[Nic], policy: &Policy, plan: &Plan) -> Result<(), TestCaseError> {
    let mut pages = vec![0_u64; nics.len()];
    let mut mrs = vec![0_u64; nics.len()];
    for (number, buffer) in buffers.iter().enumerate() {
        let chunks = plan.chunks_of(number);
        // Every byte, once, in order.
        let mut next = buffer.addr;
        for chunk in chunks {
            prop_assert_eq!(chunk.addr, next, "a gap or an overlap");
            prop_assert!(chunk.len_bytes > 0);
            next = chunk.addr.wrapping_add(chunk.len_bytes);
        }
        prop_assert_eq!(next, buffer.addr.wrapping_add(buffer.len_bytes), "not covered to its end");
        // Seams on page boundaries, pages counted exactly, one page size in each chunk.
        for chunk in chunks {
            let run =
                buffer.runs().find(|run| chunk.addr >= run.addr && chunk.addr - run.addr < run.len_bytes);
            let Some(run) = run else { return Err(TestCaseError::fail("a chunk outside its buffer")) };
            prop_assert_eq!(chunk.page, run.page);
            prop_assert!(chunk.addr - run.addr + chunk.len_bytes <= run.len_bytes);
            prop_assert!(
                chunk.addr == buffer.addr || chunk.addr % chunk.page.bytes() == 0,
                "seam inside a page"
            );
            prop_assert_eq!(chunk.pages, chunk.page.pages_touched(chunk.addr, chunk.len_bytes));
            let reach = nics
                .iter()
                .filter(|nic| nic.distance(buffer.location) != Distance::Unreachable)
                .filter(|nic| nic.max_mr_bytes >= run.page.bytes().min(run.len_bytes))
                .count();
            prop_assert!(chunk.nics.len() >= policy.at_least.max(1).min(reach), "on too few NICs");
            for nic in chunk.nics.iter() {
                prop_assert!(nic < nics.len());
                prop_assert!(chunk.len_bytes <= nics[nic].max_mr_bytes, "longer than the NIC's longest MR");
                prop_assert!(nics[nic].distance(buffer.location) != Distance::Unreachable);
                pages[nic] += chunk.pages;
                mrs[nic] += 1;
            }
        }
    }
    for (number, nic) in nics.iter().enumerate() {
        prop_assert!(pages[number] <= nic.pte_left, "{} over budget", nic.name);
        prop_assert!(mrs[number] <= nic.mrs_left, "{} has too many MRs", nic.name);
        prop_assert_eq!(pages[number], plan.nics[number].pages);
        prop_assert_eq!(mrs[number], plan.nics[number].mrs);
    }
    prop_assert_eq!(plan.score.mrs, mrs.iter().sum::<u64>());
    prop_assert!((0.0..=1.0).contains(&plan.fulfilment()));
    Ok(())
}

proptest! {
    #[test]
    fn plans_are_sound_and_deterministic(buffers in buffers(12), nics in nics(6), policy in policy()) {
        let first = plan(&buffers, &nics, &policy);
        if let Ok(found) = &first {
            check(&buffers, &nics, &policy, found)?;
        }
        prop_assert_eq!(first, plan(&buffers, &nics, &policy));
    }

    #[test]
    fn limits_on_the_number_of_mrs_hold(
        buffers in buffers(12),
        mut nics in nics(6),
        policy in policy(),
        limits in prop::collection::vec(0..14_u64, 6),
    ) {
        for (nic, limit) in nics.iter_mut().zip(limits) {
            nic.mrs_left = limit;
        }
        if let Ok(found) = plan(&buffers, &nics, &policy) {
            check(&buffers, &nics, &policy, &found)?;
        }
    }

    #[test]
    fn a_refusal_for_budget_is_deserved(buffers in buffers(6), nics in nics(4)) {
        if let Err(Error::DoesNotFit { needed, left, .. }) = plan(&buffers, &nics, &Policy::all()) {
            prop_assert!(needed > left, "needs {needed} and has {left}");
        }
    }

    #[test]
    fn more_budget_never_gives_less(
        buffers in buffers(8),
        nics in nics(5),
        policy in policy(),
        which in any::<prop::sample::Index>(),
        more in 1..20_000_u64,
    ) {
        let mut richer = nics.clone();
        let lucky = which.index(nics.len());
        richer[lucky].pte_left += more;
        if let Ok(before) = plan(&buffers, &nics, &policy) {
            let after = plan(&buffers, &richer, &policy);
            prop_assert!(after.is_ok(), "{after:?}");
            prop_assert!(after.unwrap().score.spread >= before.score.spread);
        }
    }

    #[test]
    fn the_ledger_reads_zero_after_release(buffers in buffers(8), nics in nics(5)) {
        let ledger = Ledger::new(&nics);
        if let Ok(found) = plan(&buffers, &nics, &Policy::all()) {
            let held = ledger.reserve_plan(&found).unwrap();
            for (nic, used) in found.nics.iter().enumerate() {
                prop_assert_eq!(ledger.used(nic), (used.pages, used.mrs));
            }
            prop_assert_eq!(held.len() as u64, found.score.mrs);
            drop(held);
        }
        for nic in 0..nics.len() {
            prop_assert_eq!(ledger.used(nic), (0, 0));
        }
    }

    #[test]
    fn large_plans_come_within_a_hundredth_of_an_upper_bound(
        sizes in prop::collection::vec((0..5_usize, 1..40_000_u64, 0..4096_u64, 0..4_u16), 50..600),
        budgets in prop::collection::vec(0.0..1.0_f64, 2..32),
        scale in 0.3..3.0_f64,
        policy in prop_oneof![Just(Policy::all()), Just(Policy::nics(4)), Just(Policy::near())],
    ) {
        // Kinds of buffers: small and large, small and huge pages.
        let buffer = |(index, (kind, size, offset, gpu)): (usize, (usize, u64, u64, u16))| {
            let (len, page) = match kind {
                0 => (size, PageSize::K4),
                1 => (size * 100, PageSize::K4),
                2 => (size * 1000, PageSize::K64),
                3 => (size * 10_000, PageSize::M2),
                _ => (size, PageSize::M2),
            };
            Buffer::new(((index as u64 + 1) << 36) + offset, len, page, Location::Gpu(gpu))
        };
        let buffers: Vec<Buffer> = sizes.into_iter().enumerate().map(buffer).collect();
        let pages: u64 = buffers.iter().map(Buffer::page_count).sum();
        // Together the NICs have room for `scale` copies of everything and a bit.
        let sum: f64 = budgets.iter().sum::<f64>().max(1e-3);
        let nic = |(index, share): (usize, &f64)| Nic {
            pte_left: (pages as f64 * (scale.max(1.0) + 0.1) * share / sum) as u64,
            distances: vec![(Location::Gpu(index as u16 % 4), Distance::SameSwitch)],
            ..Nic::new(format!("nic{index}"))
        };
        let nics: Vec<Nic> = budgets.iter().enumerate().map(nic).collect();
        match plan(&buffers, &nics, &policy) {
            Ok(found) => {
                check(&buffers, &nics, &policy, &found)?;
                let quality = bound::quality(&found, &buffers, &nics);
                prop_assert!(quality >= 0.99, "{quality}");
            }
            Err(error) => prop_assert!(nics.iter().map(|nic| nic.pte_left).sum::<u64>() < pages, "{error}"),
        }
    }

    #[test]
    fn the_cache_covers_requests_and_leaks_nothing(
        steps in prop::collection::vec((0..7_u8, 0..64_u64, 1..24_u64, 1..64_u8, 0..3_u64), 1..60),
        whole in prop_oneof![Just(0_u64), Just(16), Just(1000)],
        fail in prop::collection::vec(any::<bool>(), 8),
    ) {
        use efa_mr::cache::{Allocation, Request};
        use std::sync::Arc;
        // Every registration holds a clone of this: its count is the number of live registrations.
        let live = Arc::new(());
        let cache = efa_mr::Cache::new(whole);
        let mut leases = Vec::new();
        let mut calls = 0;
        for (what, addr, len, rights, generation) in steps {
            let access = efa_mr::Access::from_bits_truncate(rights);
            // Memory of 32-byte allocations, of which each generation is another one.
            let start = addr / 32 * 32;
            let len = if generation > 0 { len.min(start + 32 - addr) } else { len };
            let allocation = (generation > 0).then_some(Allocation { addr: start, len_bytes: 32, generation });
            let request = Request { addr, len_bytes: len, access, allocation };
            match what {
                0..=2 => {
                    let hit = cache.lookup(&request).is_some();
                    let before = calls;
                    let result = cache.acquire(&request, |a, l, rights| {
                        calls += 1;
                        if fail[calls % fail.len()] && calls % 3 == 0 { Err(std::fmt::Error) } else { Ok((a, l, rights, Arc::clone(&live))) }
                    });
                    prop_assert!(!hit || calls == before, "registered although it was there");
                    if let Ok(lease) = result {
                        prop_assert_eq!((lease.addr(), lease.len_bytes(), lease.access()), (lease.0, lease.1, lease.2));
                        prop_assert!(lease.addr() <= addr && addr + len <= lease.addr() + lease.len_bytes());
                        prop_assert!(lease.access().contains(access));
                        prop_assert!(cache.lookup(&request).is_some_and(|again| again.same(&lease)));
                        leases.push(lease);
                    }
                }
                3 => {
                    cache.invalidate(addr, len);
                    let byte = |addr| Request { addr, len_bytes: 1, access: efa_mr::Access::empty(), allocation: None };
                    let gone = (addr..addr + len).all(|addr| cache.lookup(&byte(addr)).is_none());
                    prop_assert!(gone, "found after it was invalidated");
                }
                4 => {
                    cache.evict(addr, len);
                }
                5 => {
                    cache.sweep(generation);
                }
                _ => {
                    leases.truncate(addr as usize % (leases.len() + 1));
                }
            }
            prop_assert!(Arc::strong_count(&live) > cache.stats().entries);
        }
        drop(leases);
        prop_assert_eq!(Arc::strong_count(&live) - 1, cache.stats().entries, "a registration outlives map and leases");
        cache.sweep(0);
        prop_assert_eq!((Arc::strong_count(&live), cache.stats().entries, cache.stats().bytes), (1, 0, 0));
    }
}

/// Cases for the tests that need much time for each: few, unless `PROPTEST_CASES` asks for more.
fn few() -> ProptestConfig {
    let cases =
        if std::env::var_os("PROPTEST_CASES").is_some() { ProptestConfig::default().cases } else { 24 };
    ProptestConfig { cases, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(few())]

    #[test]
    fn small_plans_equal_brute_force(case in prop_oneof![brute::cases(2, 4, 4), brute::cases(3, 3, 3), brute::cases(4, 2, 3)]) {
        let brute::Case { buffers, nics, policy } = &case;
        let best = brute::best(buffers, nics, policy);
        match plan(buffers, nics, policy) {
            Ok(found) => {
                check(buffers, nics, policy, &found)?;
                prop_assert_eq!(Some(found.score), best);
            }
            Err(_) => prop_assert_eq!(None, best),
        }
    }

    /// Up to 4 buffers of up to 6 pages on 4 NICs: spread and distance always equal. (Load and the number of MRs are settled exactly unless
    /// the search is cut off, which it is for some of these.)
    #[test]
    fn larger_small_plans_equal_brute_force_in_spread_and_distance(case in brute::cases(4, 6, 4)) {
        let brute::Case { buffers, nics, policy } = &case;
        let best = brute::best_spread_and_far(buffers, nics, policy);
        match plan(buffers, nics, policy) {
            Ok(found) => {
                check(buffers, nics, policy, &found)?;
                prop_assert_eq!(Some((found.score.spread, found.score.far)), best);
            }
            Err(_) => prop_assert_eq!(None, best),
        }
    }
}
