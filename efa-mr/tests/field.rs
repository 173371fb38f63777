//! Cases from the field, each of which broke or hurt somebody.

#![allow(clippy::unwrap_used)]

mod bound;

use efa_mr::{
    Buffer, CostModel, DEFAULT_PTE_BUDGET, Distance, Error, Ledger, Location, Nic, PageSize, Plan, Policy,
    ledger, plan,
};
use std::time::Duration;

const GB: u64 = 1_000_000_000;

/// A p5: 32 cards, four below each GPU's switch, GPUs 0–3 on node 0.
fn p5() -> Vec<Nic> {
    let nic = |index: u16| {
        let gpu = |gpu: u16| {
            let distance = match (index / 4 == gpu, index / 16 == gpu / 4) {
                (true, _) => Distance::SameSwitch,
                (_, true) => Distance::SameNode,
                _ => Distance::OtherNode,
            };
            (Location::Gpu(gpu), distance)
        };
        Nic {
            numa: Some(index / 16),
            distances: (0..8).map(gpu).collect(),
            ..Nic::new(format!("rdmap{index}"))
        }
    };
    (0..32).map(nic).collect()
}

fn p5en() -> Vec<Nic> {
    let nic =
        |index: u16| Nic { numa: Some(index / 8), link_mbps: 200_000, ..Nic::new(format!("rdmap{index}")) };
    (0..16).map(nic).collect()
}

/// A model's weights: 1,450 buffers of 2.5 KB to 391 MB, spread over 8 GPUs.
fn weights() -> Vec<Buffer> {
    let size = |i: u32| 2_500.0 * (391e6_f64 / 2_500.0).powf(f64::from(i) / 1449.0);
    let mut at = 0x7f00_0000_0000;
    let buffer = |i: u32| {
        // Sizes shuffled the way layers alternate.
        let len = size(i * 577 % 1450) as u64;
        let buffer = Buffer::new(at, len, PageSize::K64, Location::Gpu((i % 8) as u16));
        at += len.next_multiple_of(512);
        buffer
    };
    (0..1450).map(buffer).collect()
}

fn covers(plan: &Plan, buffers: &[Buffer]) {
    for (index, buffer) in buffers.iter().enumerate() {
        assert_eq!(plan.chunks_of(index).iter().map(|chunk| chunk.len_bytes).sum::<u64>(), buffer.len_bytes);
    }
}

#[test]
fn a_400_gb_host_pool_on_16_nics_with_small_pages() {
    let pool = [Buffer::new(0x7e00_0000_0000, 400 * GB, PageSize::K4, Location::Numa(0))];
    let nics = p5en();
    let plan = plan(&pool, &nics, &Policy::all()).unwrap();
    covers(&plan, &pool);
    // 97.7 M pages and room for 369 M: each byte on three or four cards, every card full, at most one cut for each card.
    assert!(plan.nics.iter().all(|nic| nic.pages == DEFAULT_PTE_BUDGET));
    assert!(plan.chunks.iter().all(|chunk| matches!(chunk.nics.len(), 3 | 4)), "{:?}", plan.chunks);
    assert!(plan.chunks.len() <= 17, "{} chunks", plan.chunks.len());
    assert!(bound::quality(&plan, &pool, &nics) >= 0.99);
    // All of it in one MR on one card does not fit, and it says how it would.
    let error = efa_mr::plan(&pool, &nics, &Policy::all().with_at_least(4)).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("2 MiB pages") && text.contains("fewer NICs") && text.contains("raise the budget"),
        "{text}"
    );
}

#[test]
fn two_terabytes_with_huge_pages() {
    let pool = [Buffer::new(0x7000_0000_0000, 2_000 * GB, PageSize::M2, Location::Numa(1))];
    let plan = plan(&pool, &p5en(), &Policy::all()).unwrap();
    assert_eq!(plan.fulfilment(), 1.0);
    assert_eq!((plan.chunks.len(), plan.score.mrs), (1, 16));
    assert_eq!(plan.nics[0].pages, 953_675);
}

#[test]
fn start_up_of_1450_device_buffers_on_32_nics() {
    let (buffers, nics) = (weights(), p5());
    let near = plan(&buffers, &nics, &Policy::near()).unwrap();
    covers(&near, &buffers);
    assert_eq!(near.fulfilment(), 1.0);
    assert_eq!(near.score.far, 0, "every byte is on the four cards of its own GPU");
    assert_eq!(near.score.mrs, 1450 * 4, "no buffer is cut");
    let all = plan(&buffers, &nics, &Policy::all()).unwrap();
    assert_eq!(all.score.mrs, 1450 * 32);
    // The time that the model predicts is what makes people choose; ascending order is what the registrar uses.
    let time = |plan: &Plan| plan.predicted_time(&CostModel::DEFAULT);
    assert!(time(&near) < time(&all) / 8);
    let sizes: Vec<u64> =
        near.registrations().iter().map(|(_, registration)| registration.len_bytes).collect();
    assert!(sizes.is_sorted());
    // "As much bandwidth as a minute of registration buys."
    let minute = plan(&buffers, &nics, &Policy::within(Duration::from_secs(60))).unwrap();
    assert!(time(&minute) <= Duration::from_secs(60));
    assert!(minute.score.spread >= near.score.spread / 4);
    let more = plan(&buffers, &nics, &Policy::within(time(&minute) * 4)).unwrap();
    assert!(more.score.spread > minute.score.spread);
}

#[test]
fn eight_processes_sharing_a_machine() {
    // Every process plans for itself with an eighth of each card; the cards hold all eight.
    let share = ledger::share_of(DEFAULT_PTE_BUDGET, 8);
    let mut nics = p5();
    nics.iter_mut().for_each(|nic| nic.pte_left = share);
    let mut used = vec![0; nics.len()];
    for process in 0..8_u16 {
        let pool = [
            Buffer::new(0x7e00_0000_0000, 40 * GB, PageSize::K4, Location::Numa(process / 4)),
            Buffer::new(0x7f00_0000_0000, 60 * GB, PageSize::M2, Location::Gpu(process)),
        ];
        let plan = plan(&pool, &nics, &Policy::all()).unwrap();
        covers(&plan, &pool);
        assert!(bound::quality(&plan, &pool, &nics) >= 0.99);
        let ledger = Ledger::new(&nics);
        let held = ledger.reserve_plan(&plan).unwrap();
        (0..nics.len()).for_each(|nic| used[nic] += ledger.used(nic).0);
        drop(held);
    }
    assert!(used.iter().all(|used| *used <= DEFAULT_PTE_BUDGET));
}

#[test]
fn a_buffer_bigger_than_all_budgets_together() {
    let nics = p5en();
    let pool = [Buffer::host(0x7000_0000_0000, 1_600 * GB, PageSize::K4)];
    let error = plan(&pool, &nics, &Policy::all()).unwrap_err();
    let Error::DoesNotFit { buffer: 0, needed, left, nics: count, ref nic, nic_left, ref remedy, .. } = error
    else {
        panic!("{error}")
    };
    assert_eq!((needed, left, count), (390_625_000, 16 * DEFAULT_PTE_BUDGET, 16));
    assert_eq!((nic.as_str(), nic_left), ("rdmap0", DEFAULT_PTE_BUDGET));
    assert!(remedy.contains("2 MiB pages"), "{remedy}");
    assert!(error.to_string().contains("rdmap0"));
    // The remedy is true.
    let huge = [Buffer::host(0x7000_0000_0000, 1_600 * GB, PageSize::M2)];
    assert_eq!(plan(&huge, &nics, &Policy::all()).unwrap().fulfilment(), 1.0);
}

#[test]
fn one_byte() {
    let plan = plan(&[Buffer::host(0xfff, 1, PageSize::K4)], &p5(), &Policy::all()).unwrap();
    assert_eq!((plan.chunks.len(), plan.chunks[0].pages, plan.chunks[0].nics.len()), (1, 1, 32));
    // Two bytes over a page boundary are two pages.
    let plan = efa_mr::plan(&[Buffer::host(0xfff, 2, PageSize::K4)], &p5(), &Policy::all()).unwrap();
    assert_eq!(plan.chunks[0].pages, 2);
}

#[test]
fn length_0() {
    let buffers = [Buffer::host(0x1000, 1, PageSize::K4), Buffer::host(0x2000, 0, PageSize::K4)];
    assert_eq!(plan(&buffers, &p5(), &Policy::all()), Err(Error::Empty { buffer: 1, addr: 0x2000 }));
    assert_eq!(plan(&[], &p5(), &Policy::all()).unwrap().chunks, []);
}

#[test]
fn an_address_near_2_to_the_64() {
    let top = u64::MAX - 3 * 4096 + 1;
    let whole = [Buffer::host(top, 3 * 4096, PageSize::K4)];
    let plan_top = plan(&whole, &p5(), &Policy::nics(2)).unwrap();
    covers(&plan_top, &whole);
    let past = [Buffer::host(top, 3 * 4096 + 1, PageSize::K4)];
    assert!(matches!(plan(&past, &p5(), &Policy::all()), Err(Error::PastTheEnd { buffer: 0, .. })));
    // Cut into MRs of a page each, right up to the end.
    let mut nics = p5();
    nics.iter_mut().for_each(|nic| nic.max_mr_bytes = 4096);
    let pieces = plan(&whole, &nics, &Policy::all()).unwrap();
    assert_eq!(pieces.chunks.len(), 3);
    assert_eq!(pieces.chunks[2].addr + (pieces.chunks[2].len_bytes - 1), u64::MAX);
}

#[test]
fn nobody_to_register_on() {
    let buffer = [Buffer::host(0, 1, PageSize::K4)];
    assert_eq!(plan(&buffer, &[], &Policy::all()), Err(Error::NoNics));
    let many: Vec<Nic> = (0..129).map(|i| Nic::new(i.to_string())).collect();
    assert_eq!(plan(&buffer, &many, &Policy::all()), Err(Error::TooManyNics { count: 129 }));
    let mut blind = p5();
    blind.iter_mut().for_each(|nic| nic.distances = vec![(Location::Gpu(0), Distance::Unreachable)]);
    let gpu = [Buffer::new(0, 1, PageSize::K64, Location::Gpu(0))];
    assert!(matches!(plan(&gpu, &blind, &Policy::all()), Err(Error::Unreachable { .. })));
}
