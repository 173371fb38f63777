//! The statistics hold what they promise, for any samples.

use benchkit::stats::{Comparison, aa_ratio, median, quantile};
use benchkit::{Latencies, Metric};
use proptest::collection::vec;
use proptest::prelude::*;
use std::time::Duration;

fn metric() -> impl Strategy<Value = Metric> {
    prop::sample::select(vec![
        Metric::Throughput,
        Metric::Rate,
        Metric::LatencyP50,
        Metric::Time,
        Metric::Cpu,
    ])
}

fn rounds() -> impl Strategy<Value = (Vec<f64>, Vec<f64>)> {
    vec((0.01_f64..1e6, 0.01_f64..1e6), 2..40).prop_map(|pairs| pairs.into_iter().unzip())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// A quantile lies within the samples, grows with q, and does not depend on their order.
    #[test]
    fn quantiles_are_ordered_and_within_range(mut values in vec(-1e9_f64..1e9, 1..50), p in 0.0..1.0_f64, q in 0.0..1.0_f64) {
        let (low, high) = (quantile(&values, p.min(q)), quantile(&values, p.max(q)));
        prop_assert!(low <= high);
        prop_assert!(quantile(&values, 0.0) <= low && high <= quantile(&values, 1.0));
        let before = median(&values);
        values.reverse();
        prop_assert_eq!(before, median(&values));
    }

    /// At least half of the samples lie on each side of the median.
    #[test]
    fn the_median_halves_the_samples(values in vec(-1e9_f64..1e9, 1..50)) {
        let m = median(&values);
        prop_assert!(2 * values.iter().filter(|v| **v <= m).count() >= values.len());
        prop_assert!(2 * values.iter().filter(|v| **v >= m).count() >= values.len());
    }

    /// The interval is ordered and finite for positive samples; the same samples give the same interval.
    #[test]
    fn intervals_are_ordered_and_reproducible(m in metric(), (ours, baseline) in rounds()) {
        let c = Comparison::of(m, &ours, &baseline).unwrap();
        prop_assert!(c.ci_low <= c.ci_high && c.ci_low > 0.0 && c.ci_high.is_finite(), "{:?}", c);
        prop_assert_eq!(c, Comparison::of(m, &ours, &baseline).unwrap());
    }

    /// If ours is the baseline times a constant in every round, the ratio and both ends of its interval are exactly that.
    #[test]
    fn a_constant_factor_has_no_uncertainty(m in metric(), (_, baseline) in rounds(), factor in 0.1_f64..10.0) {
        let ours: Vec<f64> = baseline.iter().map(|v| v * factor).collect();
        let c = Comparison::of(m, &ours, &baseline).unwrap();
        let expected = if m.more_is_better() { factor } else { 1.0 / factor };
        for value in [c.ratio, c.ci_low, c.ci_high] {
            prop_assert!((value / expected - 1.0).abs() < 1e-9, "{:?}, expected {}", c, expected);
        }
    }

    /// Another unit changes no ratio.
    #[test]
    fn ratios_do_not_depend_on_the_unit(m in metric(), (ours, baseline) in rounds(), unit in prop::sample::select(vec![1e-3, 1e3, 8.0])) {
        let scale = |values: &[f64]| values.iter().map(|v| v * unit).collect::<Vec<_>>();
        let a = Comparison::of(m, &ours, &baseline).unwrap();
        let b = Comparison::of(m, &scale(&ours), &scale(&baseline)).unwrap();
        for (x, y) in [(a.ratio, b.ratio), (a.ci_low, b.ci_low), (a.ci_high, b.ci_high), (a.aa_ratio, b.aa_ratio)] {
            prop_assert!((x / y - 1.0).abs() < 1e-9, "{:?} and {:?}", a, b);
        }
    }

    /// "Better" means the same for speeds and for costs: a speed's ratio is that of the times it stands for.
    #[test]
    fn costs_and_speeds_agree(ours in 0.01_f64..1e6, baseline in 0.01_f64..1e6) {
        let speed = Metric::Rate.ratio(ours, baseline);
        let time = Metric::Time.ratio(1.0 / ours, 1.0 / baseline);
        prop_assert!((speed / time - 1.0).abs() < 1e-9);
    }

    /// A row is inconclusive exactly when A/A is off by more than half of the margin.
    #[test]
    fn inconclusive_is_half_of_the_margin((ours, baseline) in rounds(), margin in 0.001_f64..0.5) {
        let c = Comparison::of(Metric::Rate, &ours, &baseline).unwrap();
        prop_assert_eq!(c.aa_ratio, aa_ratio(Metric::Rate, &baseline));
        prop_assert_eq!(c.inconclusive(margin), (c.aa_ratio - 1.0).abs() > margin / 2.0);
    }

    /// Percentiles are those of the sorted samples, to three digits, and merging is the same as recording all.
    #[test]
    fn latency_percentiles_are_right_to_three_digits(a in vec(1_u64..10_000_000_000, 1..200), b in vec(1_u64..10_000_000_000, 0..200)) {
        let collect = |ns: &[u64]| {
            let mut latencies = Latencies::new();
            ns.iter().for_each(|ns| latencies.record(Duration::from_nanos(*ns)));
            latencies
        };
        let mut merged = collect(&a);
        merged.merge(&collect(&b));
        let mut all = [a, b].concat();
        prop_assert_eq!(merged.len(), all.len() as u64);
        all.sort_unstable();
        for percentile in [50.0, 99.0, 100.0] {
            let rank = ((percentile / 100.0 * all.len() as f64).ceil() as usize).clamp(1, all.len());
            let exact_us = all[rank - 1] as f64 / 1e3;
            let got = merged.percentile_us(percentile);
            prop_assert!((got / exact_us - 1.0).abs() < 2e-3, "p{}: {} for {}", percentile, got, exact_us);
        }
    }
}

/// Over many simulated runs with independent noise on both sides, the 95 % interval contains the true ratio about as often
/// as it says. (A bootstrap of medians over 24 rounds is known to be slightly generous; below 88 % it would be a bug.)
#[test]
fn the_interval_covers_the_true_ratio() {
    let mut rng = fastrand::Rng::with_seed(7);
    // A sum of uniforms: near enough to a bell curve, with a standard deviation of 3 %.
    let mut noisy = |mean: f64| mean * (1.0 + 0.03 * ((0..12).map(|_| rng.f64()).sum::<f64>() - 6.0));
    let runs = 200;
    let covered = (0..runs)
        .filter(|_| {
            let (ours, baseline): (Vec<f64>, Vec<f64>) = (0..24).map(|_| (noisy(0.95), noisy(1.0))).unzip();
            let c = Comparison::of(Metric::Throughput, &ours, &baseline).unwrap();
            c.ci_low <= 0.95 && 0.95 <= c.ci_high
        })
        .count();
    assert!(covered * 100 >= runs * 88, "the interval covered the truth in {covered} of {runs} runs");
    assert!(covered < runs, "an interval that is never wrong is too wide to say anything");
}
