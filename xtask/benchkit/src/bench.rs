//! Runs the cases and collects their rows.

use std::io::Write as _;

use crate::options::Options;
use crate::row::{Metric, Row, finite};
use crate::stats::{Comparison, median};
use crate::{Result, table};

/// The margin of a case that states no target: differences of 5 % matter.
const DEFAULT_MARGIN: f64 = 0.05;

/// A benchmark run: its options and the rows so far.
#[derive(Debug)]
pub struct Bench {
    suite: String,
    options: Options,
    results: Vec<(Row, Option<Goal>)>,
}

/// What is promised of a case.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Goal {
    /// The ratio to the baseline is at least this.
    Ratio(f64),
    /// The value itself is at most this, in the metric's unit.
    AtMost(f64),
}

/// One case of a benchmark, about to be measured.
#[derive(Debug)]
#[must_use = "a case is measured by compare, compare_all, record or count"]
pub struct Case<'a> {
    bench: &'a mut Bench,
    name: String,
    goal: Option<Goal>,
    /// Consecutive rounds that share their luck.
    group: usize,
}

impl Bench {
    /// A run of `suite` with the options of the command line; prints usage and exits on a wrong one.
    #[must_use]
    pub fn from_args(suite: &str) -> Self {
        Self::new(suite, Options::from_args())
    }

    /// A run with given options.
    #[must_use]
    pub fn new(suite: &str, options: Options) -> Self {
        Self { suite: suite.to_owned(), options, results: Vec::new() }
    }

    /// The options, for the size of the work.
    #[must_use]
    pub const fn options(&self) -> &Options {
        &self.options
    }

    /// Is this case wanted (`FILTER` on the command line)? Ask before an expensive set-up; the measuring functions
    /// skip unwanted cases by themselves.
    #[must_use]
    pub fn wants(&self, case: &str) -> bool {
        self.options.filter.as_deref().is_none_or(|filter| case.contains(filter))
    }

    /// A case, named by space-separated `key=value` with sizes in bytes.
    pub fn case(&mut self, name: impl Into<String>) -> Case<'_> {
        Case { bench: self, name: name.into(), goal: None, group: 1 }
    }

    /// The rows so far.
    pub fn rows(&self) -> impl Iterator<Item = &Row> {
        self.results.iter().map(|(row, _)| row)
    }

    /// Prints the table, and writes the JSON file if one was asked for.
    ///
    /// # Errors
    /// The JSON file cannot be written.
    pub fn finish(self) -> Result<()> {
        println!("\n{}", table::render(&self.suite, &self.results));
        if let Some(path) = &self.options.json {
            let rows: Vec<_> = self.rows().collect();
            let mut file =
                std::fs::File::create(path).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
            serde_json::to_writer_pretty(&mut file, &rows)?;
            writeln!(file)?;
        }
        Ok(())
    }

    fn push(&mut self, row: Row, goal: Option<Goal>) {
        eprintln!("{}", table::line(&row));
        self.results.push((row, goal));
    }
}

impl Case<'_> {
    /// The ratio that is promised, e.g. 0.97. It sets the margin that noise is judged by: |1 − target|.
    pub const fn target(mut self, ratio: f64) -> Self {
        self.goal = Some(Goal::Ratio(ratio));
        self
    }

    /// The value that is promised not to be exceeded, in the metric's unit: say 0 allocations, or 150 instructions.
    pub const fn at_most(mut self, value: f64) -> Self {
        self.goal = Some(Goal::AtMost(value));
        self
    }

    /// So many consecutive rounds share their luck, because they ran in the same processes or over the same connection: the interval
    /// counts them as one chance. 1 unless said.
    pub const fn in_groups_of(mut self, rounds: usize) -> Self {
        self.group = rounds;
        self
    }

    /// Measures `ours` against `baseline` in interleaved rounds: each call is one round and returns its figure in the
    /// metric's unit. One unmeasured round of each comes first.
    ///
    /// # Errors
    /// A closure failed, or returned something that is no measurement (NaN, negative, infinite, or zero where the
    /// metric excludes it).
    pub fn compare(
        self,
        metric: Metric,
        baseline_name: &str,
        mut ours: impl FnMut() -> Result<f64>,
        mut baseline: impl FnMut() -> Result<f64>,
    ) -> Result<()> {
        self.compare_all([metric], baseline_name, || Ok([ours()?]), || Ok([baseline()?]))
    }

    /// As [`Case::compare`] for rounds that measure several things at once (say throughput and CPU): one row each.
    /// What is promised applies to the first.
    ///
    /// # Errors
    /// As [`Case::compare`].
    pub fn compare_all<const N: usize>(
        self,
        metrics: [Metric; N],
        baseline_name: &str,
        mut ours: impl FnMut() -> Result<[f64; N]>,
        mut baseline: impl FnMut() -> Result<[f64; N]>,
    ) -> Result<()> {
        if !self.bench.wants(&self.name) {
            return Ok(());
        }
        let mut measure_ours = || ours().map_err(|e| format!("{}: ours: {e}", self.name));
        let mut measure_baseline = || baseline().map_err(|e| format!("{}: {baseline_name}: {e}", self.name));
        measure_ours()?;
        measure_baseline()?;

        let rounds = self.bench.options.rounds();
        let (mut all_ours, mut all_baseline) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
        for _ in 0..rounds {
            all_ours.push(measure_ours()?);
            all_baseline.push(measure_baseline()?);
        }
        self.compare_rounds(metrics, baseline_name, &all_ours, &all_baseline)
    }

    /// As [`Case::compare_all`] of rounds that have been measured already, the unmeasured one of each left out: where more than
    /// two sides take turns, each pair of them is a comparison. `ours[i]` ran close to `baseline[i]`.
    ///
    /// # Errors
    /// As [`Case::compare`]; fewer than two rounds, or not as many of one side as of the other.
    pub fn compare_rounds<const N: usize>(
        self,
        metrics: [Metric; N],
        baseline_name: &str,
        ours: &[[f64; N]],
        baseline: &[[f64; N]],
    ) -> Result<()> {
        if !self.bench.wants(&self.name) {
            return Ok(());
        }
        for (i, &metric) in metrics.iter().enumerate() {
            let series = |rounds: &[[f64; N]]| -> Result<Vec<f64>> {
                rounds.iter().map(|round| check(&self.name, metric, round[i])).collect()
            };
            let goal = if i == 0 { self.goal } else { None };
            let margin = match goal {
                // No less than the baseline: the distance to 1 says nothing of how much would matter.
                Some(Goal::Ratio(target)) if target != 1.0 => (1.0 - target).abs(),
                _ => DEFAULT_MARGIN,
            };
            let comparison = Comparison::of_groups(metric, &series(ours)?, &series(baseline)?, self.group)
                .ok_or_else(|| format!("{}: too few rounds for a comparison", self.name))?;
            let row = Row {
                baseline: Some(comparison.baseline),
                baseline_name: Some(baseline_name.to_owned()),
                ratio: finite(comparison.ratio),
                ci_low: finite(comparison.ci_low),
                ci_high: finite(comparison.ci_high),
                aa_ratio: finite(comparison.aa_ratio),
                inconclusive: comparison.inconclusive(margin),
                ..Row::plain(&self.bench.suite, &self.name, metric, comparison.ours, ours.len())
            };
            self.bench.push(row, goal);
        }
        Ok(())
    }

    /// Measures without a baseline: the row's value is the median of the rounds.
    ///
    /// # Errors
    /// As [`Case::compare`].
    pub fn record(self, metric: Metric, mut ours: impl FnMut() -> Result<f64>) -> Result<()> {
        if !self.bench.wants(&self.name) {
            return Ok(());
        }
        let mut measure = || -> Result<f64> {
            let value = ours().map_err(|e| format!("{}: {e}", self.name))?;
            check(&self.name, metric, value)
        };
        measure()?;
        let rounds = self.bench.options.rounds();
        let values = (0..rounds).map(|_| measure()).collect::<Result<Vec<_>>>()?;
        let row = Row::plain(&self.bench.suite, &self.name, metric, median(&values), rounds);
        self.bench.push(row, self.goal);
        Ok(())
    }

    /// A figure that is exact (allocations, instructions) or was measured elsewhere: no rounds, no interval.
    ///
    /// # Errors
    /// The figure is no measurement, as in [`Case::compare`].
    pub fn count(self, metric: Metric, value: f64, baseline: Option<(&str, f64)>) -> Result<()> {
        if !self.bench.wants(&self.name) {
            return Ok(());
        }
        let mut row = Row::plain(&self.bench.suite, &self.name, metric, check(&self.name, metric, value)?, 1);
        if let Some((name, value)) = baseline {
            row = row.against(name, check(&self.name, metric, value)?);
        }
        self.bench.push(row, self.goal);
        Ok(())
    }
}

/// Refuses what cannot be a measurement, so that a broken loop never looks like a fast one.
fn check(case: &str, metric: Metric, value: f64) -> Result<f64> {
    if value.is_finite() && (value > 0.0 || (value == 0.0 && metric.may_be_zero())) {
        Ok(value)
    } else {
        Err(format!("{case}: {value} {} is no {}", metric.unit(), metric.name()).into())
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    fn quick() -> Bench {
        Bench::new("self", Options { quick: true, ..Options::default() })
    }

    #[test]
    fn rounds_are_interleaved_after_one_warm_up_of_each() {
        let order = RefCell::new(String::new());
        let mut bench = quick();
        bench
            .case("op=x")
            .compare(
                Metric::Time,
                "bare",
                || {
                    order.borrow_mut().push('A');
                    Ok(1.0)
                },
                || {
                    order.borrow_mut().push('B');
                    Ok(2.0)
                },
            )
            .unwrap();
        assert_eq!(*order.borrow(), "AB".repeat(1 + bench.options().rounds()));
        let row = bench.rows().next().unwrap();
        assert_eq!((row.value, row.baseline, row.ratio), (1.0, Some(2.0), Some(2.0)));
        assert_eq!((row.aa_ratio, row.inconclusive, row.samples), (Some(1.0), false, 6));
    }

    #[test]
    fn the_target_sets_the_margin_of_the_first_metric_only() {
        // A/A of 0.98: too noisy for a margin of 0.03, quiet enough for the default of 0.05.
        let round = RefCell::new(0_u32);
        let mut bench = quick();
        bench
            .case("op=x")
            .target(0.97)
            .compare_all(
                [Metric::Rate, Metric::Throughput],
                "bare",
                || Ok([1.0, 1.0]),
                || {
                    *round.borrow_mut() += 1;
                    let value = if round.borrow().is_multiple_of(2) { 0.98 } else { 1.0 };
                    Ok([value, value])
                },
            )
            .unwrap();
        let verdicts: Vec<_> = bench.rows().map(|row| row.inconclusive).collect();
        assert_eq!(verdicts, [true, false]);
    }

    #[test]
    fn rounds_that_were_measured_elsewhere_are_compared_alike() {
        let mut bench = quick();
        let case = |bench: &mut Bench, theirs: &[[f64; 1]]| {
            let ours = [[4.0], [4.0], [4.0]];
            bench.case("op=x").target(1.0).compare_rounds([Metric::Rate], "them", &ours, theirs)
        };
        case(&mut bench, &[[2.0], [2.0], [2.0]]).unwrap();
        let row = bench.rows().next().unwrap();
        assert_eq!((row.ratio, row.samples, row.inconclusive), (Some(2.0), 3, false));
        let error = case(&mut bench, &[[2.0]]).unwrap_err().to_string();
        assert!(error.contains("too few"), "{error}");
        assert!(case(&mut bench, &[[2.0], [f64::NAN], [2.0]]).is_err());
    }

    #[test]
    fn what_is_no_measurement_is_an_error_that_names_the_case() {
        for bad in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error =
                quick().case("op=bad").record(Metric::Throughput, || Ok(bad)).unwrap_err().to_string();
            assert!(error.contains("op=bad"), "{error}");
        }
        quick().case("op=ok").count(Metric::Allocations, 0.0, Some(("bare", 0.0))).unwrap();
        let failing = quick().case("op=y").compare(Metric::Rate, "bare", || Ok(1.0), || Err("broke".into()));
        assert_eq!(failing.unwrap_err().to_string(), "op=y: bare: broke");
    }

    #[test]
    fn unwanted_cases_are_not_run() {
        let options = Options { quick: true, filter: Some("size=64 ".into()), ..Options::default() };
        let mut bench = Bench::new("self", options);
        bench.case("size=4096 op=x").record(Metric::Rate, || panic!("must not run")).unwrap();
        bench.case("size=64 op=x").record(Metric::Rate, || Ok(1.0)).unwrap();
        assert_eq!(bench.rows().count(), 1);
    }

    #[test]
    fn the_json_file_reads_back_as_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.json");
        let mut bench =
            Bench::new("self", Options { quick: true, json: Some(path.clone()), ..Options::default() });
        bench.case("op=x").count(Metric::Instructions, 150.0, None).unwrap();
        bench.case("op=y").compare(Metric::Rate, "bare", || Ok(1.0), || Ok(1.0)).unwrap();
        let rows: Vec<Row> = bench.rows().cloned().collect();
        bench.finish().unwrap();
        let read: Vec<Row> = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
        assert_eq!(read, rows);
    }
}
