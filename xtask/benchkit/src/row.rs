//! One measured case: the format of `--json`.

use serde::{Deserialize, Serialize};

/// What is measured, in a fixed unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Metric {
    /// GB/s (10⁹ bytes per second).
    Throughput,
    /// Operations per second.
    Rate,
    /// Median latency in µs.
    LatencyP50,
    /// 99th percentile of the latency in µs. Reported, not judged, on shared machines.
    LatencyP99,
    /// Milliseconds.
    Time,
    /// Percent of one core.
    Cpu,
    /// Heap allocations per operation.
    Allocations,
    /// Instructions per operation.
    Instructions,
    /// 0 to 1, 1 is the best possible.
    Quality,
}

impl Metric {
    /// The unit as it stands in a row.
    #[must_use]
    pub const fn unit(self) -> &'static str {
        match self {
            Self::Throughput => "GB/s",
            Self::Rate => "op/s",
            Self::LatencyP50 | Self::LatencyP99 => "µs",
            Self::Time => "ms",
            Self::Cpu => "% of a core",
            Self::Allocations | Self::Instructions => "per operation",
            Self::Quality => "0–1",
        }
    }

    /// The name as it stands in a row.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Throughput => "throughput",
            Self::Rate => "rate",
            Self::LatencyP50 => "latency_p50",
            Self::LatencyP99 => "latency_p99",
            Self::Time => "time",
            Self::Cpu => "cpu",
            Self::Allocations => "allocations",
            Self::Instructions => "instructions",
            Self::Quality => "quality",
        }
    }

    /// Is more better? Otherwise less is.
    #[must_use]
    pub const fn more_is_better(self) -> bool {
        matches!(self, Self::Throughput | Self::Rate | Self::Quality)
    }

    /// May a measured value be exactly zero? A count can; a speed or a duration of zero is a broken measurement.
    #[must_use]
    pub const fn may_be_zero(self) -> bool {
        matches!(self, Self::Cpu | Self::Allocations | Self::Instructions | Self::Quality)
    }

    /// How good `ours` is compared with `baseline`: above 1 is better than the baseline, whatever the metric.
    ///
    /// Equal values give 1, zeros included. Infinite where the worse one is zero times the better one.
    #[must_use]
    pub fn ratio(self, ours: f64, baseline: f64) -> f64 {
        let (over, under) = if self.more_is_better() { (ours, baseline) } else { (baseline, ours) };
        if over == under { 1.0 } else { over / under }
    }
}

/// One measured case, with exactly the fields of the `--json` format.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The benchmark suite: `tcp`, `fabric`, `efa`, `mr` …
    pub suite: String,
    /// Space-separated `key=value`, sizes in bytes: `op=write size=65536 batch=128`.
    pub case: String,
    /// What was measured.
    pub metric: Metric,
    /// Ours: the median of the rounds, or the count.
    pub value: f64,
    /// The unit of `value` and `baseline` ([`Metric::unit`]).
    pub unit: String,
    /// The baseline's median or count; `None` where there is no baseline.
    pub baseline: Option<f64>,
    /// What the baseline is.
    pub baseline_name: Option<String>,
    /// Ours/baseline for throughput and rates, baseline/ours for latency and costs: above 1 is better than the
    /// baseline. `None` without a baseline, and where it would be infinite.
    pub ratio: Option<f64>,
    /// Lower end of the ratio's 95 % confidence interval; `None` for what is counted.
    pub ci_low: Option<f64>,
    /// Upper end of the ratio's 95 % confidence interval; `None` for what is counted.
    pub ci_high: Option<f64>,
    /// The baseline's ratio to itself in the same run; 1 on a quiet machine, `None` for what is counted.
    pub aa_ratio: Option<f64>,
    /// Was the machine too noisy for a judgement (A/A off by more than half of the margin)?
    pub inconclusive: bool,
    /// Measured rounds, each of ours and of the baseline; 1 for a count.
    pub samples: usize,
}

impl Row {
    /// A row of one value without a baseline.
    #[must_use]
    pub fn plain(suite: &str, case: &str, metric: Metric, value: f64, samples: usize) -> Self {
        Self {
            suite: suite.to_owned(),
            case: case.to_owned(),
            metric,
            value,
            unit: metric.unit().to_owned(),
            baseline: None,
            baseline_name: None,
            ratio: None,
            ci_low: None,
            ci_high: None,
            aa_ratio: None,
            inconclusive: false,
            samples,
        }
    }

    /// The same with an exact baseline (a count: no interval, no A/A).
    #[must_use]
    pub fn against(mut self, baseline_name: &str, baseline: f64) -> Self {
        self.ratio = finite(self.metric.ratio(self.value, baseline));
        self.baseline = Some(baseline);
        self.baseline_name = Some(baseline_name.to_owned());
        self
    }
}

/// JSON has no infinities.
pub(crate) fn finite(value: f64) -> Option<f64> {
    value.is_finite().then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ratio_above_one_is_better_whatever_the_metric() {
        assert_eq!(Metric::Throughput.ratio(3.0, 2.0), 1.5);
        assert_eq!(Metric::LatencyP50.ratio(2.0, 3.0), 1.5);
        assert_eq!(Metric::Allocations.ratio(0.0, 0.0), 1.0);
        assert_eq!(Metric::Allocations.ratio(0.0, 2.0), f64::INFINITY);
        assert_eq!(Metric::Allocations.ratio(2.0, 0.0), 0.0);
    }

    #[test]
    fn the_json_has_exactly_the_agreed_fields() {
        let row =
            Row::plain("tcp", "op=write size=64", Metric::LatencyP50, 6.5, 20).against("bare loop", 6.5);
        let json = serde_json::to_value(&row).unwrap();
        let mut fields: Vec<_> = json.as_object().unwrap().keys().map(String::as_str).collect();
        fields.sort_unstable();
        let mut agreed = [
            "suite",
            "case",
            "metric",
            "value",
            "unit",
            "baseline",
            "baseline_name",
            "ratio",
            "ci_low",
            "ci_high",
            "aa_ratio",
            "inconclusive",
            "samples",
        ];
        agreed.sort_unstable();
        assert_eq!(fields, agreed);
        assert_eq!(json["metric"], "latency_p50");
        assert_eq!(json["ratio"], 1.0);
        assert!(json["ci_low"].is_null());
    }

    #[test]
    fn metric_names_are_those_of_the_json() {
        use Metric::*;
        for metric in
            [Throughput, Rate, LatencyP50, LatencyP99, Time, Cpu, Allocations, Instructions, Quality]
        {
            assert_eq!(serde_json::to_value(metric).unwrap(), metric.name());
        }
    }

    #[test]
    fn an_infinite_ratio_is_null() {
        let row = Row::plain("mr", "x=1", Metric::Allocations, 0.0, 1).against("theirs", 4.0);
        assert_eq!(row.ratio, None);
        assert_eq!(row.baseline, Some(4.0));
    }
}
