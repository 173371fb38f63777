//! Medians, and how sure one can be of their ratio.
//!
//! Rounds are paired (round *i* of ours ran right beside round *i* of the baseline), so the bootstrap resamples rounds
//! and keeps the pairs: slow spells of the machine hit both and cancel out. Rounds that share more than that (the same processes,
//! the same connection) are resampled together, as groups.

use crate::row::Metric;

/// Resamplings of a bootstrap. 2,000 put the ends of a 95 % interval at the 50th and the 1,950th value, steady to a
/// few parts in a thousand of the interval's width for 20 rounds.
const RESAMPLES: usize = 2_000;

/// The seed of the resampling: the same samples always give the same interval.
const SEED: u64 = 0x5EED_0F3E_F7AB_1C00;

/// The comparison of two series of paired rounds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Comparison {
    /// Median of ours.
    pub ours: f64,
    /// Median of the baseline.
    pub baseline: f64,
    /// [`Metric::ratio`] of the two medians.
    pub ratio: f64,
    /// Lower end of the ratio's 95 % bootstrap interval.
    pub ci_low: f64,
    /// Upper end of the ratio's 95 % bootstrap interval.
    pub ci_high: f64,
    /// The baseline's even rounds over its odd rounds, by their medians.
    pub aa_ratio: f64,
}

impl Comparison {
    /// Compares round by round; `None` if there are fewer than two rounds, the series differ in length, or a value
    /// is not a finite number ≥ 0.
    #[must_use]
    pub fn of(metric: Metric, ours: &[f64], baseline: &[f64]) -> Option<Self> {
        Self::of_groups(metric, ours, baseline, 1)
    }

    /// The same of rounds that come in groups of `group` (0 counts as 1), one after the other: those of a group share their luck (one
    /// pair of processes, one connection), so that only groups are chances of their own. The interval is that of resampled groups.
    #[must_use]
    pub fn of_groups(metric: Metric, ours: &[f64], baseline: &[f64], group: usize) -> Option<Self> {
        let good = |series: &[f64]| series.len() >= 2 && series.iter().all(|v| v.is_finite() && *v >= 0.0);
        if ours.len() != baseline.len() || !good(ours) || !good(baseline) {
            return None;
        }
        let (ours_median, baseline_median) = (median(ours), median(baseline));
        let (ci_low, ci_high) = bootstrap_interval(metric, ours, baseline, group.max(1));
        Some(Self {
            ours: ours_median,
            baseline: baseline_median,
            ratio: metric.ratio(ours_median, baseline_median),
            ci_low,
            ci_high,
            aa_ratio: aa_ratio(metric, baseline),
        })
    }

    /// Is the machine too noisy to judge a difference of `margin` (0.03 for a target of 0.97)?
    #[must_use]
    pub fn inconclusive(&self, margin: f64) -> bool {
        let off = (self.aa_ratio - 1.0).abs();
        off.is_nan() || off > margin / 2.0
    }
}

/// The median; the mean of the middle two for an even number of values. NaN for no values.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    quantile(values, 0.5)
}

/// The quantile `q` (0 to 1) with linear interpolation between neighbours. NaN for no values.
#[must_use]
pub fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let position = q.clamp(0.0, 1.0) * last as f64;
    let (below, above) = (sorted[position.floor() as usize], sorted[position.ceil() as usize]);
    // Equal neighbours are returned exactly, infinite ones included.
    if below == above { below } else { below + (above - below) * position.fract() }
}

/// The baseline against itself: even rounds over odd rounds, so that a drift over the run cancels out. 1 for fewer
/// than two rounds.
#[must_use]
pub fn aa_ratio(metric: Metric, baseline: &[f64]) -> f64 {
    if baseline.len() < 2 {
        return 1.0;
    }
    let half = |first: usize| baseline.iter().skip(first).step_by(2).copied().collect::<Vec<_>>();
    metric.ratio(median(&half(0)), median(&half(1)))
}

fn bootstrap_interval(metric: Metric, ours: &[f64], baseline: &[f64], group: usize) -> (f64, f64) {
    let mut rng = fastrand::Rng::with_seed(SEED);
    let groups: Vec<_> = ours.chunks(group).zip(baseline.chunks(group)).collect();
    let (mut a, mut b) = (Vec::with_capacity(ours.len()), Vec::with_capacity(ours.len()));
    let ratios: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            a.clear();
            b.clear();
            for _ in 0..groups.len() {
                let (ours, baseline) = groups[rng.usize(..groups.len())];
                a.extend_from_slice(ours);
                b.extend_from_slice(baseline);
            }
            metric.ratio(median(&a), median(&b))
        })
        .collect();
    (quantile(&ratios, 0.025), quantile(&ratios, 0.975))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles_of_known_series() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        assert_eq!(quantile(&[0.0, 10.0], 0.25), 2.5);
        assert!(median(&[]).is_nan());
    }

    #[test]
    fn a_drift_that_both_sides_share_does_not_widen_the_interval() {
        // The machine gets three times slower over the run; ours is 2 % slower throughout.
        let baseline: Vec<f64> = (0..24).map(|i| 3.0 - f64::from(i) / 12.0).collect();
        let ours: Vec<f64> = baseline.iter().map(|v| v * 0.98).collect();
        let c = Comparison::of(Metric::Throughput, &ours, &baseline).unwrap();
        assert!((c.ratio - 0.98).abs() < 1e-9);
        assert!((c.ci_low - 0.98).abs() < 1e-9 && (c.ci_high - 0.98).abs() < 1e-9, "{c:?}");
    }

    /// Catches: many rounds of few pairs of processes taken for as many chances, so that a lucky pair decides a row.
    #[test]
    fn rounds_that_share_their_luck_are_one_chance() {
        // Four pairs; ours was lucky in two of them, all six rounds long.
        let ours: Vec<f64> = (0..24).map(|i| if i / 6 < 2 { 2.0 } else { 1.0 }).collect();
        let baseline = [1.0; 24];
        let apart = Comparison::of(Metric::Throughput, &ours, &baseline).unwrap();
        let grouped = Comparison::of_groups(Metric::Throughput, &ours, &baseline, 6).unwrap();
        assert_eq!((grouped.ratio, grouped.aa_ratio), (apart.ratio, apart.aa_ratio));
        assert_eq!((grouped.ci_low, grouped.ci_high), (1.0, 2.0));
        // Each pair is as good as the others: then it does not matter.
        let even: Vec<f64> = (0..24).map(|i| if i % 2 == 0 { 1.0 } else { 1.02 }).collect();
        let grouped = Comparison::of_groups(Metric::Throughput, &even, &even, 6).unwrap();
        assert_eq!((grouped.ci_low, grouped.ci_high), (1.0, 1.0));
        assert!(Comparison::of_groups(Metric::Throughput, &even, &even, 0).is_some());
    }

    #[test]
    fn noise_in_the_baseline_makes_a_row_inconclusive() {
        let quiet = Comparison::of(Metric::Rate, &[1.0; 20], &[1.0; 20]).unwrap();
        assert!(!quiet.inconclusive(0.03));
        let noisy: Vec<f64> = (0..20).map(|i| if i % 2 == 0 { 1.0 } else { 1.02 }).collect();
        let noisy = Comparison::of(Metric::Rate, &[1.0; 20], &noisy).unwrap();
        assert!(noisy.inconclusive(0.03), "{noisy:?}");
        assert!(!noisy.inconclusive(0.10), "{noisy:?}");
    }

    #[test]
    fn broken_samples_are_refused() {
        for (ours, baseline) in [
            (&[1.0][..], &[1.0][..]),
            (&[1.0, 2.0], &[1.0]),
            (&[1.0, f64::NAN], &[1.0, 1.0]),
            (&[1.0, 1.0], &[1.0, f64::INFINITY]),
            (&[1.0, -1.0], &[1.0, 1.0]),
        ] {
            assert_eq!(Comparison::of(Metric::Rate, ours, baseline), None);
        }
    }
}
