//! Which plots a suite's rows make: lines over the block size where that varies, otherwise bars; and for all that is compared
//! with a baseline, the ratios with their intervals.

use std::collections::BTreeMap;

use benchkit::Row;

use crate::case;

/// Lines or bars in one plot, so that it can be read.
const MOST_LINES: usize = 4;
const MOST_BARS: usize = 14;

/// One plot.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Chart {
    pub(crate) title: String,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    /// Values over the block size in bytes.
    Lines { value: String, series: Vec<Line> },
    /// A value for each case.
    Bars { value: String, bars: Vec<Bar> },
    /// Ratios to the baseline.
    Ratios(Vec<Ratio>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Line {
    pub(crate) name: String,
    pub(crate) baseline: bool,
    /// Block size in bytes, and the value.
    pub(crate) points: Vec<(u64, f64)>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Bar {
    pub(crate) name: String,
    pub(crate) ours: f64,
    pub(crate) baseline: Option<f64>,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Ratio {
    pub(crate) name: String,
    pub(crate) ratio: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
    pub(crate) inconclusive: bool,
}

/// The plots of one suite.
pub(crate) fn charts(suite: &str, rows: &[Row]) -> Vec<Chart> {
    let mut by_metric: BTreeMap<&str, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        by_metric.entry(row.metric.name()).or_default().push(row);
    }
    let mut charts = Vec::new();
    for (metric, rows) in by_metric {
        let value = format!("{} ({})", metric.replace('_', " "), rows[0].unit);
        let cases: Vec<&str> = rows.iter().map(|row| row.case.as_str()).collect();
        let common = case::common(&cases);
        let title = [suite, metric, &case::words(common.iter().copied())].join(" ").trim().to_owned();
        let mut sizes: Vec<_> = cases.iter().filter_map(|case| case::size(case)).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let (sized, others): (Vec<&Row>, Vec<&Row>) =
            rows.iter().partition(|row| sizes.len() > 1 && case::size(&row.case).is_some());
        charts.extend(lines(&title, &value, &sized, &common));
        charts.extend(bars(&title, &value, &others, &common));
        charts.extend(ratios(&title, &rows, &common));
    }
    charts
}

fn lines(title: &str, value: &str, rows: &[&Row], common: &[(&str, &str)]) -> Vec<Chart> {
    let cases: Vec<&str> = rows.iter().map(|row| row.case.as_str()).collect();
    let sized = case::sized(&cases);
    let mut groups: BTreeMap<String, Vec<&Row>> = BTreeMap::new();
    for row in rows {
        groups.entry(case::rest(&row.case, common, &sized)).or_default().push(row);
    }
    let groups: Vec<_> = groups.into_iter().collect();
    let chart = |(index, part): (usize, &[(String, Vec<&Row>)])| {
        let mut series = Vec::new();
        for (name, rows) in part {
            let points = |value: fn(&Row) -> Option<f64>| {
                let point = |row: &&Row| Some((case::size(&row.case)?, value(row)?));
                let mut points: Vec<_> = rows.iter().filter_map(point).collect();
                points.sort_by_key(|(size, _)| *size);
                points
            };
            let named = |whose: &str| [name, whose].join(" ").trim().to_owned();
            series.push(Line { name: named("ours"), baseline: false, points: points(|row| Some(row.value)) });
            let baseline = points(|row| row.baseline);
            if !baseline.is_empty() {
                let whose = rows.iter().find_map(|row| row.baseline_name.as_deref()).unwrap_or("baseline");
                series.push(Line { name: named(whose), baseline: true, points: baseline });
            }
        }
        let kind = Kind::Lines { value: value.to_owned(), series };
        Chart { title: numbered(title, index, groups.len().div_ceil(MOST_LINES)), kind }
    };
    groups.chunks(MOST_LINES).enumerate().map(chart).collect()
}

fn bars(title: &str, value: &str, rows: &[&Row], common: &[(&str, &str)]) -> Vec<Chart> {
    let bar = |row: &&Row| Bar {
        name: case::rest(&row.case, common, &[]),
        ours: row.value,
        baseline: row.baseline,
    };
    let chart = |(index, part): (usize, &[&Row])| {
        let kind = Kind::Bars { value: value.to_owned(), bars: part.iter().map(bar).collect() };
        Chart { title: numbered(title, index, rows.len().div_ceil(MOST_BARS)), kind }
    };
    rows.chunks(MOST_BARS).enumerate().map(chart).collect()
}

fn ratios(title: &str, rows: &[&Row], common: &[(&str, &str)]) -> Vec<Chart> {
    let ratio = |row: &&Row| {
        let ratio = row.ratio?;
        Some(Ratio {
            name: case::rest(&row.case, common, &[]),
            ratio,
            low: row.ci_low.unwrap_or(ratio),
            high: row.ci_high.unwrap_or(ratio),
            inconclusive: row.inconclusive,
        })
    };
    let ratios: Vec<_> = rows.iter().filter_map(ratio).collect();
    let title = format!("{title}: ratio");
    let count = ratios.len().div_ceil(MOST_BARS);
    let chart = |(index, part): (usize, &[Ratio])| Chart {
        title: numbered(&title, index, count),
        kind: Kind::Ratios(part.to_vec()),
    };
    ratios.chunks(MOST_BARS).enumerate().map(chart).collect()
}

/// A title that tells one of several plots from the others.
fn numbered(title: &str, index: usize, count: usize) -> String {
    if count > 1 { format!("{title} ({} of {count})", index + 1) } else { title.to_owned() }
}

#[cfg(test)]
mod tests {
    use benchkit::Metric;

    use super::*;

    fn row(case: &str, metric: Metric, value: f64) -> Row {
        Row::plain("tcp", case, metric, value, 3).against("bare loop", value * 2.0)
    }

    #[test]
    fn sizes_make_lines_and_everything_else_bars() {
        let rows = [
            row("op=write size=4096 path=net", Metric::Throughput, 2.0),
            row("op=write size=64 path=net", Metric::Throughput, 1.0),
            row("op=write size=64 path=host", Metric::Throughput, 3.0),
            row("op=write what=connect", Metric::LatencyP50, 9.0),
        ];
        let charts = charts("tcp", &rows);
        let titles: Vec<_> = charts.iter().map(|chart| chart.title.as_str()).collect();
        let latency = "tcp latency_p50 op=write what=connect";
        assert_eq!(
            titles,
            [
                latency,
                &format!("{latency}: ratio"),
                "tcp throughput op=write",
                "tcp throughput op=write: ratio"
            ]
        );
        let Kind::Lines { value, series } = &charts[2].kind else { panic!("{:?}", charts[2]) };
        assert_eq!(value, "throughput (GB/s)");
        let names: Vec<_> = series.iter().map(|line| line.name.as_str()).collect();
        assert_eq!(names, ["path=host ours", "path=host bare loop", "path=net ours", "path=net bare loop"]);
        assert_eq!(series[2].points, [(64, 1.0), (4096, 2.0)]);
        assert!(series[3].baseline && series[3].points == [(64, 2.0), (4096, 4.0)]);
    }

    #[test]
    fn no_row_is_left_out_of_many() {
        let rows: Vec<_> =
            (0..40).map(|n| row(&format!("op=x n={n}"), Metric::Allocations, f64::from(n))).collect();
        let charts = charts("mr", &rows);
        let bars = charts.iter().map(|chart| match &chart.kind {
            Kind::Bars { bars, .. } => bars.len(),
            _ => 0,
        });
        assert_eq!(bars.sum::<usize>(), 40);
        assert!(charts[0].title.ends_with("(1 of 3)"), "{}", charts[0].title);
    }
}
