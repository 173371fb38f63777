//! The scheduler on machines that nobody here has, in virtual time.

use efa_transport::simulator::{Faults, Machine, Report, Scenario, run};

/// A run without anything broken; printed either way, so that a failure can be read.
fn clean(scenario: &Scenario) -> Report {
    let report = run(scenario);
    println!("{report}");
    assert!(report.violations.is_empty(), "seed {}: {:?}", report.seed, report.violations);
    report
}

/// Catches: lanes left idle, a tail that waits for one card, a window too small for a fast card.
#[test]
fn published_machines_are_filled() {
    for machine in Machine::published() {
        for request_bytes in [64 << 10, 1 << 20, 16 << 20] {
            // As much traffic for each, about 50 ms of it.
            let bytes = machine.bytes_per_second() / 20.0;
            let requests = (bytes / request_bytes as f64) as u64;
            let report = clean(&Scenario::stream(machine.clone(), request_bytes, requests, 7));
            assert_eq!(report.done, requests);
            assert!(report.utilisation() >= 0.95, "{} B on {}: {report}", request_bytes, machine.name);
        }
    }
}

/// Catches: a favourite card.
#[test]
fn equal_cards_get_equal_shares() {
    for request_bytes in [4 << 10, 64 << 10, 1 << 20] {
        let report = clean(&Scenario::stream(Machine::p5en(), request_bytes, 20_000, 3));
        assert!(report.imbalance() <= 1.15, "{report}");
    }
}

/// Catches: shares fixed at submission, so that everybody waits for the slow card.
#[test]
fn a_card_at_half_speed_costs_only_its_own_half() {
    for request_bytes in [64 << 10, 1 << 20, 64 << 20] {
        let machine = Machine::p5en().with_slow_card(5, 50);
        let requests = (machine.bytes_per_second() / 10.0 / request_bytes as f64) as u64;
        let mut scenario = Scenario::stream(machine.clone(), request_bytes, requests, 11);
        scenario.remote = Machine::p5en();
        let report = clean(&scenario);
        assert!(report.utilisation() >= 0.95, "{request_bytes} B: {report}");
        assert!(report.cards[5].bytes < report.cards[6].bytes * 3 / 4, "{report}");
    }
}

/// Catches: rails that ignore some of the remote cards.
#[test]
fn different_numbers_of_cards_use_all_of_the_smaller_side() {
    for (local, remote) in [(4, 16), (16, 4), (8, 3), (1, 32)] {
        let mut scenario = Scenario::stream(Machine::equal("here", local, 100_000, 1024), 1 << 20, 4_000, 5);
        scenario.remote = Machine::equal("there", remote, 100_000, 1024);
        let report = clean(&scenario);
        let possible = scenario.local.bytes_per_second().min(scenario.remote.bytes_per_second());
        let share = report.bytes_per_second() / possible;
        // Three remote cards cannot be shared equally by eight local ones without a switch in between.
        let least = if local % remote == 0 || remote % local == 0 { 0.93 } else { 0.6 };
        assert!(share >= least, "{local} against {remote}: {share:.3}\n{report}");
    }
}

/// Catches: requests lost or ended twice by a death at any moment; slices tried again while an attempt is out; cards that
/// are never let back in.
#[test]
fn months_of_dying_cards_lose_nothing() {
    let report = clean(&Scenario::months(Machine::p5en(), 30, 1));
    assert!(report.elapsed_ns > 20 * 24 * 3600 * 1_000_000_000, "a month has passed");
    assert!(report.cards.iter().map(|card| card.deaths).sum::<u64>() > 500);
    assert!(report.retries > 1_000);
    assert_eq!(report.failed, 0, "there was always another card");
    // Every card carries traffic again after its deaths.
    assert!(report.imbalance() < 1.5, "{report}");
}

/// Catches: a hang when nothing works at all.
#[test]
fn one_card_that_dies_for_good_fails_requests_at_their_deadline() {
    let mut scenario = Scenario::stream(Machine::equal("one", 1, 100_000, 64), 1 << 20, 50_000, 9);
    scenario.deadline_ns = 100_000_000;
    scenario.faults =
        Faults { mean_ns_between_deaths: 50_000_000, mean_ns_dead: u64::MAX / 4, ..Faults::default() };
    let report = clean(&scenario);
    assert!(report.done > 0 && report.failed > 0);
}

/// Catches: anything that depends on more than the seed.
#[test]
fn the_same_seed_gives_the_same_run() {
    let mut scenario = Scenario::months(Machine::p6_b200(), 2, 42);
    scenario.faults.agains_per_million = 100_000;
    assert_eq!(run(&scenario), run(&scenario));
    let other = Scenario { seed: 43, ..scenario.clone() };
    assert_ne!(run(&scenario), run(&other));
}
