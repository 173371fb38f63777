//! Results as rows of JSON and as a table.

use std::fmt;

use engine::{Path, Segment};
use serde::Serialize;

use super::check;
use super::measure::Stage;
use super::{Op, Outcome};
use crate::output::Output;
use crate::units::{bytes, figures};

/// The quantiles that are told, with the name of their metric.
const QUANTILES: [(f64, &str); 4] =
    [(0.5, "latency_p50"), (0.9, "latency_p90"), (0.99, "latency_p99"), (0.999, "latency_p99.9")];

/// One measured value, in the format of `cargo xtask bench --json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Row {
    suite: &'static str,
    case: String,
    metric: &'static str,
    value: f64,
    unit: &'static str,
    baseline: Option<f64>,
    baseline_name: Option<String>,
    ratio: Option<f64>,
    ci_low: Option<f64>,
    ci_high: Option<f64>,
    aa_ratio: Option<f64>,
    inconclusive: bool,
    samples: u64,
}

/// Which way the bytes went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PathName {
    /// Our own TCP transport: `net`, `host` or `loopback`.
    Tcp(String),
    /// libfabric, by its provider.
    Fabric(String),
}

impl PathName {
    pub(crate) fn of(segment: &Segment) -> Self {
        match segment.path() {
            Path::Tcp(path) => Self::Tcp(path.to_string()),
            other => Self::Fabric(other.to_string()),
        }
    }

    /// As words of a case.
    fn words(&self) -> String {
        match self {
            Self::Tcp(path) => format!("transport=tcp path={path}"),
            Self::Fabric(provider) => format!("transport=libfabric provider={provider} path=net"),
        }
    }
}

impl fmt::Display for PathName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(path) if path == "net" => f.write_str("TCP"),
            Self::Tcp(path) if path == "host" => f.write_str("a copy between two processes of this host"),
            Self::Tcp(path) => write!(f, "TCP ({path})"),
            Self::Fabric(provider) => write!(f, "libfabric's {provider}"),
        }
    }
}

/// All rows.
pub(crate) fn rows(op: Op, path: &PathName, outcomes: &[Outcome]) -> Vec<Row> {
    let mut rows = Vec::new();
    for Outcome { case, measured, verified } in outcomes {
        let name = format!(
            "op={op} size={} batch={} threads={} {}{}",
            case.block,
            case.batch,
            case.threads,
            path.words(),
            if verified.is_some() { " verified=yes" } else { "" }
        );
        let samples = measured.latencies.count();
        let mut add = |case: String, metric, value, unit| {
            rows.push(Row {
                suite: "weft",
                case,
                metric,
                value,
                unit,
                baseline: None,
                baseline_name: None,
                ratio: None,
                ci_low: None,
                ci_high: None,
                aa_ratio: None,
                inconclusive: false,
                samples,
            });
        };
        add(name.clone(), "throughput", measured.throughput(), "GB/s");
        add(name.clone(), "rate", measured.rate(), "op/s");
        for stage in Stage::ALL {
            let case = match stage {
                Stage::Total => name.clone(),
                stage => format!("{name} stage={}", stage.name()),
            };
            for (quantile, metric) in QUANTILES {
                add(case.clone(), metric, measured.latencies.micros(stage, quantile), "µs");
            }
        }
    }
    rows
}

/// Prints the table.
pub(crate) fn table(outcomes: &[Outcome], output: &Output) {
    let verified = outcomes.iter().any(|outcome| outcome.verified.is_some());
    let mut heads = vec![
        "block",
        "batch",
        "threads",
        "GB/s",
        "blocks/s",
        "p50 µs",
        "p90 µs",
        "p99 µs",
        "p99.9 µs",
        "queue p50",
        "post p50",
        "transfer p50",
    ];
    if verified {
        heads.push("verified");
    }
    let row = |outcome: &Outcome| {
        let Outcome { case, measured, .. } = outcome;
        let micros = |stage, quantile| figures(measured.latencies.micros(stage, quantile));
        let mut row = vec![
            bytes(case.block),
            case.batch.to_string(),
            case.threads.to_string(),
            figures(measured.throughput()),
            figures(measured.rate()),
        ];
        row.extend(QUANTILES.iter().map(|(quantile, _)| micros(Stage::Total, *quantile)));
        row.extend([Stage::Queue, Stage::Post, Stage::Transfer].map(|stage| micros(stage, 0.5)));
        if verified {
            row.push(check::words(outcome.verified));
        }
        row
    };
    let rows: Vec<Vec<String>> = outcomes.iter().map(row).collect();
    let right: Vec<usize> = (0..heads.len()).collect();
    output.table(&heads, &rows, &right);
    output.line("latencies are those of whole batches: queue (until submitted), post (submitting), transfer (until its end is seen)");
}
