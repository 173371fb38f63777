//! Rows for people.

use comfy_table::{Cell, CellAlignment, ContentArrangement, Table, presets};

use crate::bench::Goal;
use crate::row::Row;

/// The whole run; each row with what was promised, if anything.
pub(crate) fn render(suite: &str, results: &[(Row, Option<Goal>)]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_FULL_CONDENSED).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header([suite, "metric", "ours", "baseline", "ratio", "95 %", "A/A", "verdict"]);
    for (row, goal) in results {
        table.add_row([
            Cell::new(&row.case),
            Cell::new(row.metric.name()),
            right(format!("{} {}", figure(row.value), row.unit)),
            right(baseline(row)),
            right(ratio(row.ratio)),
            right(interval(row)),
            right(ratio(row.aa_ratio)),
            Cell::new(verdict(row, *goal)),
        ]);
    }
    table.to_string()
}

/// One row as progress.
pub(crate) fn line(row: &Row) -> String {
    let against = match &row.baseline_name {
        Some(name) => format!("; {name} {}, ratio {} {}", baseline(row), ratio(row.ratio), interval(row)),
        None => String::new(),
    };
    let noisy = if row.inconclusive { " (inconclusive)" } else { "" };
    format!("{} {}: {} {}{against}{noisy}", row.case, row.metric.name(), figure(row.value), row.unit)
}

/// Whether the promise was kept. An interval that contains the promised ratio leaves it open.
fn verdict(row: &Row, goal: Option<Goal>) -> String {
    match goal {
        None if row.inconclusive => "noisy".to_owned(),
        None => String::new(),
        Some(Goal::AtMost(limit)) => {
            let word = if row.value <= limit { "met" } else { "missed" };
            format!("{word} (≤ {})", figure(limit))
        }
        Some(Goal::Ratio(target)) => {
            // Without an interval the ratio is exact. Without a ratio it is infinite: the baseline costs something, ours
            // nothing.
            let exact = row.ratio.or(row.baseline.map(|_| f64::INFINITY));
            let word = match (row.ci_low.or(exact), row.ci_high.or(exact)) {
                _ if row.inconclusive => "inconclusive",
                (Some(low), _) if low >= target => "met",
                (_, Some(high)) if high < target => "missed",
                (Some(_), Some(_)) => "open",
                _ => return "no baseline".to_owned(),
            };
            format!("{word} (≥ {target})")
        }
    }
}

fn baseline(row: &Row) -> String {
    row.baseline.map_or_else(|| "–".to_owned(), figure)
}

fn ratio(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.3}"))
}

fn interval(row: &Row) -> String {
    match (row.ci_low, row.ci_high) {
        (Some(low), Some(high)) => format!("[{low:.3}, {high:.3}]"),
        _ => "–".to_owned(),
    }
}

/// About four significant digits.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 1000.0 || v == 0.0 => format!("{value:.0}"),
        v if v >= 100.0 => format!("{value:.1}"),
        v if v >= 10.0 => format!("{value:.2}"),
        v if v >= 0.001 => format!("{value:.3}"),
        _ => format!("{value:.2e}"),
    }
}

fn right(text: String) -> Cell {
    Cell::new(text).set_alignment(CellAlignment::Right)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Metric;

    fn row(ratio: f64, low: f64, high: f64) -> Row {
        Row {
            ratio: Some(ratio),
            ci_low: Some(low),
            ci_high: Some(high),
            baseline: Some(1.0),
            baseline_name: Some("bare".into()),
            aa_ratio: Some(1.0),
            ..Row::plain("s", "op=x", Metric::Rate, ratio, 20)
        }
    }

    #[test]
    fn verdicts_respect_the_interval_and_the_noise() {
        assert_eq!(verdict(&row(1.0, 0.99, 1.01), Some(Goal::Ratio(0.97))), "met (≥ 0.97)");
        assert_eq!(verdict(&row(0.9, 0.89, 0.91), Some(Goal::Ratio(0.97))), "missed (≥ 0.97)");
        assert_eq!(verdict(&row(0.97, 0.95, 0.99), Some(Goal::Ratio(0.97))), "open (≥ 0.97)");
        let noisy = Row { inconclusive: true, ..row(0.9, 0.89, 0.91) };
        assert_eq!(verdict(&noisy, Some(Goal::Ratio(0.97))), "inconclusive (≥ 0.97)");
        assert_eq!(verdict(&row(0.5, 0.5, 0.5), None), "");
        let count = Row::plain("s", "op=x", Metric::Instructions, 150.0, 1);
        assert_eq!(verdict(&count, Some(Goal::AtMost(150.0))), "met (≤ 150.0)");
        assert_eq!(verdict(&count, Some(Goal::AtMost(149.0))), "missed (≤ 149.0)");
        assert_eq!(verdict(&count, Some(Goal::Ratio(1.0))), "no baseline");
        assert_eq!(verdict(&count.against("theirs", 100.0), Some(Goal::Ratio(1.0))), "missed (≥ 1)");
        let free = Row::plain("s", "op=x", Metric::Allocations, 0.0, 1).against("theirs", 2.0);
        assert_eq!(verdict(&free, Some(Goal::Ratio(1.0))), "met (≥ 1)");
    }

    #[test]
    fn figures_keep_about_four_digits() {
        for (value, shown) in
            [(123456.0, "123456"), (12.345, "12.35"), (0.01234, "0.012"), (0.0, "0"), (1e-6, "1.00e-6")]
        {
            assert_eq!(figure(value), shown);
        }
    }

    #[test]
    fn the_table_shows_every_row() {
        let shown =
            render("tcp", &[(row(1.0, 0.99, 1.01), Some(Goal::Ratio(0.97))), (row(0.5, 0.4, 0.6), None)]);
        assert_eq!(shown.matches("op=x").count(), 2);
        assert!(shown.contains("[0.990, 1.010]") && shown.contains("met (≥ 0.97)"), "{shown}");
    }
}
