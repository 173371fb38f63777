//! `weft topo`: where NICs, GPUs and memory nodes are, and the priority matrix that follows from it.

use std::path::{Path, PathBuf};

use efa_mr::Topology;
use efa_mr::report::Table;
use efa_mr::topology::{Filter, TopologyError};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::Output;

/// Where the kernel tells about devices.
const SYSFS: &str = "/sys";

/// Shows NICs, GPUs and memory nodes, and which are near to which
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Read this tree instead of /sys: another machine's, or a host's that is mounted into a container
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Only NICs with these names; `*` and `?` stand for anything, `!` excludes
    #[arg(long, value_name = "NAMES")]
    nics: Option<String>,
    /// Only EFA cards
    #[arg(long)]
    efa_only: bool,
    /// Print nothing but the priority matrix, in the form of Mooncake's MC_CUSTOM_TOPO_JSON
    #[arg(long, conflicts_with = "json")]
    matrix: bool,
    /// Print everything as JSON
    #[arg(long)]
    json: bool,
}

/// Everything, for programs.
#[derive(Debug, Serialize)]
struct Report<'a> {
    topology: &'a Topology,
    priority_matrix: serde_json::Value,
}

/// Runs the command.
pub(crate) fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    let topology = read(args.root.as_deref(), args.nics.as_deref(), args.efa_only)?;
    let matrix = topology.matrix().to_json();
    if args.matrix {
        output.line(matrix);
        return Ok(());
    }
    if args.json {
        let priority_matrix = serde_json::from_str(&matrix)
            .map_err(|error| Failure::Usage(format!("the priority matrix is no JSON: {error}")))?;
        return output.json(&Report { topology: &topology, priority_matrix });
    }
    for table in topology.tables() {
        show(&table, output);
        output.line("");
    }
    output.heading("Priority matrix: memory, [[nearest NICs], [other NICs]]");
    output.line(matrix);
    Ok(())
}

/// The topology at a sysfs root, or of this machine.
pub(crate) fn read(root: Option<&Path>, nics: Option<&str>, efa_only: bool) -> Result<Topology, Failure> {
    let wrong = |error: TopologyError| match root {
        Some(_) => Failure::Usage(format!("--root: {error}")),
        None => Failure::Unavailable(error.to_string()),
    };
    let mut topology = Topology::read(root.unwrap_or(Path::new(SYSFS))).map_err(wrong)?;
    if let Some(names) = nics {
        let filter: Filter = names.parse().map_err(|error| Failure::Usage(format!("--nics: {error}")))?;
        topology = topology.filtered(&filter);
    }
    Ok(if efa_only { topology.only_efa() } else { topology })
}

/// Draws a table of efa-mr's; one without rows says so.
pub(crate) fn show(table: &Table, output: &Output) {
    output.heading(table.title);
    if table.rows.is_empty() {
        output.line("none");
        return;
    }
    let is_number = |cell: &String| cell.starts_with(|c: char| c.is_ascii_digit());
    let numbers = |column: &usize| table.rows.iter().all(|row| row.get(*column).is_some_and(is_number));
    let right: Vec<usize> = (0..table.columns.len()).filter(numbers).collect();
    output.table(&table.columns, &table.rows, &right);
}
