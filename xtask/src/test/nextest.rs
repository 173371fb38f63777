//! Runs the tests with cargo-nextest and reads its JUnit report.

use std::path::Path;

use anyhow::{Context, Result, bail};

use super::{Tally, skips};
use crate::shell::Cmd;

/// Runs what `cmd` builds; of that only the packages `only` (all for none) and the names that contain `filter`.
pub(super) fn run(cmd: Cmd, only: &[String], filter: Option<&str>) -> Result<Tally> {
    // A folder of our own, so that several runs in one checkout do not read each other's reports.
    let dir = tempfile::tempdir()?;
    let (settings, report) = (dir.path().join("nextest.toml"), dir.path().join("junit.xml"));
    std::fs::write(&settings, with_report(&report))?;
    let cmd =
        cmd.args(["--no-tests", "pass", "--tool-config-file"]).arg(format!("weft:{}", settings.display()));
    let cmd = match filterset(only, filter) {
        Some(filterset) => cmd.args(["-E", &filterset]),
        None => cmd,
    };
    let outcome = cmd.run();
    let Ok(xml) = std::fs::read_to_string(&report) else {
        // Nothing ran: the build failed, or there are no tests.
        return outcome.map(|()| Tally::default());
    };
    let tally = parse(&xml).context("cannot read nextest's report")?;
    match outcome {
        Err(error) if tally.failed.is_empty() => Err(error),
        _ => Ok(tally),
    }
}

/// Settings that ask for a report with the output of passing tests too.
fn with_report(report: &Path) -> String {
    format!("[profile.default.junit]\npath = '{}'\nstore-success-output = true\n", report.display())
}

/// In nextest's language: these packages, and names that contain this text.
fn filterset(only: &[String], filter: Option<&str>) -> Option<String> {
    let packages: Vec<String> = only.iter().map(|name| format!("package(={name})")).collect();
    let packages = (!only.is_empty()).then(|| format!("({})", packages.join(" | ")));
    let names = filter.map(|text| format!("test(~{text})"));
    let both: Vec<String> = packages.into_iter().chain(names).collect();
    (!both.is_empty()).then(|| both.join(" & "))
}

fn parse(xml: &str) -> Result<Tally> {
    let document = roxmltree::Document::parse(xml)?;
    let mut tally = Tally::default();
    for case in document.descendants().filter(|node| node.has_tag_name("testcase")) {
        let Some(name) = case.attribute("name") else { bail!("a test case without a name") };
        let suite = case.attribute("classname").unwrap_or_default();
        let has = |tag: &str| case.children().any(|node| node.has_tag_name(tag));
        if has("failure") || has("error") {
            tally.failed.insert(format!("{suite} {name}"));
            continue;
        }
        let output =
            case.children().filter(|node| node.has_tag_name("system-out") || node.has_tag_name("system-err"));
        let skipped: Vec<_> = output.filter_map(|node| node.text()).flat_map(skips).collect();
        if skipped.is_empty() {
            tally.passed += 1;
        }
        tally.skipped.extend(skipped.into_iter().map(|skip| format!("{suite} {skip}")));
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_and_names_are_both_asked_for() {
        let only = ["fabric-sys".to_owned(), "engine".to_owned()];
        assert_eq!(filterset(&[], None), None);
        assert_eq!(filterset(&[], Some("lane")).as_deref(), Some("test(~lane)"));
        let both = "(package(=fabric-sys) | package(=engine)) & test(~lane)";
        assert_eq!(filterset(&only, Some("lane")).as_deref(), Some(both));
    }

    #[test]
    fn a_report_is_counted() {
        let xml = r#"<?xml version="1.0" encoding="UTF-8"?>
            <testsuites name="nextest-run" tests="4" failures="1" errors="0">
              <testsuite name="tcp-transport::lanes" tests="4" disabled="0" errors="0" failures="1">
                <testcase name="a" classname="tcp-transport::lanes" time="0.01"><system-out>fine</system-out></testcase>
                <testcase name="b" classname="tcp-transport::lanes" time="0.01">
                  <system-err>SKIP: b[efa]: no &lt;card&gt;
SKIP: b[shm]: no shm</system-err>
                </testcase>
                <testcase name="c" classname="tcp-transport::lanes"><failure type="test failure"/></testcase>
                <testcase name="d" classname="tcp-transport::lanes"><flakyFailure/></testcase>
              </testsuite>
            </testsuites>"#;
        let tally = parse(xml).unwrap();
        assert_eq!(tally.passed, 2);
        assert_eq!(tally.failed.into_iter().collect::<Vec<_>>(), ["tcp-transport::lanes c"]);
        assert_eq!(
            tally.skipped.into_iter().collect::<Vec<_>>(),
            ["tcp-transport::lanes b[efa]: no <card>", "tcp-transport::lanes b[shm]: no shm"]
        );
        assert!(parse("<testsuites>").is_err());
    }
}
