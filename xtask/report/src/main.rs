//! Draws what the benchmark suites have measured. `cargo xtask bench` runs it over `target/bench`.
//!
//! The folder holds a `SUITE.json` for every suite that has been run, each an array of `benchkit` rows. Beside them it puts
//! `SUITE-….svg`, the plots ([`chart`] decides which, [`draw`] draws them), and `index.html`, a page with all plots and all
//! figures ([`page`]). What a suite measured earlier stays until it is run again.

mod case;
mod chart;
mod draw;
mod page;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use benchkit::Row;
use clap::Parser;

/// Draws the rows of the benchmark suites
#[derive(Parser)]
struct Args {
    /// The folder of the suites' rows (SUITE.json), to which the plots and index.html are written
    folder: PathBuf,
}

/// One suite's rows and the files of its plots.
struct Suite {
    name: String,
    rows: Vec<Row>,
    plots: Vec<(String, String)>,
}

fn main() -> ExitCode {
    match run(&Args::parse().folder) {
        Ok(page) => {
            println!("plots of all suites: {}", page.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(folder: &Path) -> Result<PathBuf> {
    let mut suites = Vec::new();
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    files.sort();
    for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "json")) {
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let text =
            std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let rows: Vec<Row> =
            serde_json::from_str(&text).with_context(|| format!("{}: no rows of a suite", file.display()))?;
        let mut plots = Vec::new();
        for (index, chart) in chart::charts(&name, &rows).iter().enumerate() {
            let plot = format!("{name}-{}.svg", index + 1);
            draw::draw(chart, &folder.join(&plot)).with_context(|| format!("drawing {plot}"))?;
            plots.push((plot, chart.title.clone()));
        }
        suites.push(Suite { name, rows, plots });
    }
    let page = folder.join("index.html");
    std::fs::write(&page, page::render(&suites))
        .with_context(|| format!("cannot write {}", page.display()))?;
    Ok(page)
}
