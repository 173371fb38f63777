//! The plots open and show what they say: axes, units, a legend, and as much as there are rows.

#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::path::Path;
use std::process::Command;

use benchkit::{Metric, Row};

fn report(folder: &Path) -> std::process::Output {
    Command::new(env!("CARGO_BIN_EXE_weft-report")).arg(folder).output().unwrap()
}

fn compared(suite: &str, case: &str, metric: Metric, ours: f64, baseline: f64) -> Row {
    let mut row = Row::plain(suite, case, metric, ours, 24).against("bare <loop> & co", baseline);
    (row.ci_low, row.ci_high) = (row.ratio.map(|ratio| ratio * 0.98), row.ratio.map(|ratio| ratio * 1.02));
    row
}

/// All texts of a plot, in order.
fn texts(file: &Path) -> Vec<String> {
    let svg = std::fs::read_to_string(file).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    assert_eq!(document.root_element().tag_name().name(), "svg");
    let texts = document.descendants().filter(|node| node.has_tag_name("text"));
    texts.filter_map(|node| Some(node.text()?.trim().to_owned())).collect()
}

fn count(file: &Path, tag: &str, attribute: (&str, &str)) -> usize {
    let svg = std::fs::read_to_string(file).unwrap();
    let document = roxmltree::Document::parse(&svg).unwrap();
    let has = |node: &roxmltree::Node<'_, '_>| {
        node.has_tag_name(tag) && node.attribute(attribute.0).is_some_and(|value| value == attribute.1)
    };
    document.descendants().filter(has).count()
}

#[test]
fn lines_bars_and_ratios_are_drawn_with_axes_units_and_legends() {
    let folder = tempfile::tempdir().unwrap();
    let mut rows = Vec::new();
    for (index, size) in [64, 4096, 65536, 1 << 20].into_iter().enumerate() {
        let case = format!("op=write size={size} path=net");
        rows.push(compared("tcp", &case, Metric::Throughput, 1.0 + index as f64, 1.1 + index as f64));
    }
    std::fs::write(folder.path().join("tcp.json"), serde_json::to_string(&rows).unwrap()).unwrap();
    let mut rows = vec![
        compared("trace", "what=first-token-kv path=tcp/net", Metric::LatencyP50, 900.0, 1000.0),
        compared("trace", "what=first-token-kv path=soft-efa", Metric::LatencyP50, 2000.0, 1000.0),
        Row::plain("trace", "what=alone", Metric::Instructions, 141.0, 1),
    ];
    rows[1].inconclusive = true;
    std::fs::write(folder.path().join("trace.json"), serde_json::to_string(&rows).unwrap()).unwrap();
    let output = report(folder.path());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // Lines: the title, both axes with units, sizes, and a legend entry for each side.
    let lines = texts(&folder.path().join("tcp-1.svg"));
    let wanted = [
        "tcp throughput op=write path=net",
        "block size (bytes, binary units)",
        "throughput (GB/s)",
        "ours",
        "bare <loop> & co",
    ];
    for text in wanted {
        assert!(lines.iter().any(|found| found == text), "no {text:?} in {lines:?}");
    }
    assert!(lines.iter().any(|found| found.ends_with("KiB")), "{lines:?}");
    assert_eq!(
        count(&folder.path().join("tcp-1.svg"), "circle", ("r", "4")),
        4,
        "a mark for each measurement"
    );

    // Bars: two for a case with a baseline, with the values beside them.
    let file = folder.path().join("trace-2.svg");
    let bars = texts(&file);
    for text in ["latency p50 (µs)", "ours", "baseline", "path=soft-efa", "2000", "900"] {
        assert!(bars.iter().any(|found| found == text), "no {text:?} in {bars:?}");
    }
    // One in the legend besides.
    assert_eq!(count(&file, "rect", ("fill", "#1F6FB4")), 2 + 1);
    assert_eq!(count(&file, "rect", ("fill", "#B0B0B0")), 2 + 1);
    let alone = texts(&folder.path().join("trace-1.svg"));
    assert!(alone.iter().any(|found| found == "instructions (per operation)"), "{alone:?}");

    // Ratios: a mark for each, of another colour where the machine was too noisy.
    let file = folder.path().join("trace-3.svg");
    let ratios = texts(&file);
    for text in ["ratio and its 95 % interval", "inconclusive: too noisy", "1.111", "0.500"] {
        assert!(ratios.iter().any(|found| found == text), "no {text:?} in {ratios:?}");
    }
    assert_eq!(count(&file, "circle", ("fill", "#1F6FB4")), 1);
    assert_eq!(count(&file, "circle", ("fill", "#B0B0B0")), 1);

    // The page shows every plot and every figure, with what would be markup escaped.
    let page = std::fs::read_to_string(folder.path().join("index.html")).unwrap();
    for file in ["tcp-1.svg", "tcp-2.svg", "trace-1.svg", "trace-2.svg", "trace-3.svg"] {
        assert!(page.contains(&format!("src=\"{file}\"")) && folder.path().join(file).is_file(), "{file}");
    }
    assert_eq!(page.matches("<tr><td>").count(), 7);
    assert!(page.contains("bare &lt;loop&gt; &amp; co") && !page.contains("bare <loop>"));
}

#[test]
fn what_is_no_suite_is_an_error_that_names_the_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("broken.json"), "{}").unwrap();
    let output = report(folder.path());
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("broken.json"));
    assert!(!report(Path::new("/nonexistent")).status.success());
}
