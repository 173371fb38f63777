//! The table at the end.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets};

use crate::message::Row;
use crate::supervisor::Outcome;

pub(crate) fn render(outcomes: &[Outcome]) -> String {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header([
        "transport",
        "path",
        "model",
        "page",
        "op",
        "requests",
        "bytes",
        "GB/s",
        "p50",
        "p99",
        "verified",
    ]);
    for outcome in outcomes {
        for row in outcome.rows.iter().filter(|row| row.requests > 0) {
            table.add_row(cells(outcome, row));
        }
        if let Some(error) = &outcome.error {
            table.add_row([
                outcome.transport,
                &outcome.path,
                "",
                "",
                "",
                "",
                "",
                "",
                "",
                "",
                &format!("FAILED: {error}"),
            ]);
        }
    }
    for column in table.column_iter_mut().skip(3).take(7) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table.to_string()
}

fn cells(outcome: &Outcome, row: &Row) -> [String; 11] {
    let verified = if outcome.error.is_none() { "every byte" } else { "until the failure" };
    [
        outcome.transport.to_owned(),
        outcome.path.clone(),
        row.model.clone(),
        bytes(row.page_bytes as u64),
        row.op.clone(),
        row.requests.to_string(),
        bytes(row.bytes),
        format!("{:.2}", row.bytes as f64 / 1e9 / row.busy.as_secs_f64().max(1e-9)),
        millis(row.p50),
        millis(row.p99),
        verified.to_owned(),
    ]
}

fn millis(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

/// Binary units, to three digits or so.
fn bytes(count: u64) -> String {
    let mut value = count as f64;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            let digits = usize::from(value < 100.0 && value.fract() != 0.0);
            return format!("{value:.digits$} {unit}");
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_readable() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(18 * 1024), "18 KiB");
        assert_eq!(bytes(64 * 1024), "64 KiB");
        assert_eq!(bytes(1536 << 20), "1.5 GiB");
        assert_eq!(bytes(3 << 40), "3.0 TiB");
    }

    #[test]
    fn failures_stand_in_the_table() {
        let outcome = Outcome {
            transport: "tcp",
            path: "tcp/net".into(),
            rows: vec![],
            error: Some("peer gone".into()),
        };
        assert!(render(&[outcome]).contains("FAILED: peer gone"));
    }
}
