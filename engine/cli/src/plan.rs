//! `weft plan`: what the registration planner would do with given buffers and NICs.
//!
//! NICs are those of this machine, those of a sysfs tree, a number of default cards, or those of a file; buffers are given by
//! arguments or the same file (`spec`). Nothing is registered.

pub(crate) mod spec;

use std::path::PathBuf;

use efa_mr::report::Explanation;
use efa_mr::{Buffer, CostModel, Nic, Plan, plan};
use serde::Serialize;

use crate::failure::Failure;
use crate::output::Output;
use crate::topo;
use spec::{BufferSpec, File, WantedSpec};

/// Shows what would be registered on which NIC, and why
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Buffers: [COUNTx]SIZE[@LOCATION][/PAGE], separated by commas, such as `1450x264M/4K`, \
    `400G@cpu:0/2M` or `8x16G@cuda:1/2M`.\n\nA file (TOML, or JSON with the same names):\n  policy = \"near\"          # all, near, a number of NICs, or \"within 10s\"\n  \
    [[nics]]\n  name = \"rdmap16s27\"\n  numa = 0\n  gbps = 100\n  pte_budget = 23068672\n  distances = { \"cuda:0\" = \"same switch\" }\n  \
    [[buffers]]\n  count = 8\n  size = \"16G\"\n  location = \"cuda:0\"\n  page = \"2M\""
)]
pub struct Args {
    /// Buffers to register; see below
    #[arg(long, value_name = "SPECS", value_delimiter = ',', required_unless_present = "file")]
    buffers: Vec<BufferSpec>,
    /// This many cards of 100 Gbit/s, half of them on each of two memory nodes, instead of this machine's
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=128), conflicts_with_all = ["root", "file"])]
    nics: Option<u16>,
    /// Page table entries that each NIC has left
    #[arg(long, value_name = "N")]
    pte_budget: Option<u64>,
    /// Longest single registration
    #[arg(long, value_name = "SIZE", value_parser = crate::units::parse_size)]
    max_mr: Option<u64>,
    /// How many NICs a byte is wanted on: all, near, a number, or "within 10s" (as many as register in that time)
    #[arg(long, value_name = "POLICY")]
    policy: Option<WantedSpec>,
    /// Refuse rather than put a byte on fewer NICs
    #[arg(long, value_name = "N")]
    at_least: Option<usize>,
    /// Take the NICs of this sysfs tree instead of /sys
    #[arg(long, value_name = "DIR")]
    root: Option<PathBuf>,
    /// Buffers and NICs from a file; see below
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Print the plan as JSON
    #[arg(long)]
    json: bool,
}

/// The plan, for programs.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    explanation: Explanation,
    /// How far the policy could be followed, 0 to 1.
    fulfilment: f64,
    pieces: Vec<Piece>,
}

/// A stretch of a buffer that becomes one registration on each of its NICs.
#[derive(Debug, Serialize)]
struct Piece {
    buffer: usize,
    offset: u64,
    bytes: u64,
    pages: u64,
    nics: Vec<String>,
}

/// Runs the command.
pub(crate) fn run(args: &Args, output: &Output) -> Result<(), Failure> {
    let file = args.file.as_deref().map(File::read).transpose()?.unwrap_or_default();
    let mut nics = nics(args, &file)?;
    for nic in &mut nics {
        nic.pte_left = args.pte_budget.unwrap_or(nic.pte_left);
        nic.max_mr_bytes = args.max_mr.unwrap_or(nic.max_mr_bytes);
    }
    let specs: Vec<&BufferSpec> = args.buffers.iter().chain(&file.buffers).collect();
    let buffers = spec::buffers(&specs)?;
    let mut policy = args.policy.or(file.policy).unwrap_or_default().policy();
    policy.at_least = args.at_least.or(file.at_least).unwrap_or(policy.at_least);
    let made = plan(&buffers, &nics, &policy).map_err(|error| Failure::Usage(error.to_string()))?;
    let explanation = made.explain(&buffers, &nics, &CostModel::DEFAULT);
    if args.json {
        let pieces = pieces(&made, &buffers, &nics);
        return output.json(&Report { explanation, fulfilment: made.fulfilment(), pieces });
    }
    for sentence in &explanation.summary {
        output.line(sentence);
    }
    for table in [&explanation.nics, &explanation.chunks] {
        output.line("");
        topo::show(table, output);
    }
    Ok(())
}

fn nics(args: &Args, file: &File) -> Result<Vec<Nic>, Failure> {
    if !file.nics.is_empty() {
        return file.nics.iter().map(spec::NicSpec::nic).collect();
    }
    if let Some(count) = args.nics {
        let card = |index: u16| Nic { numa: Some(index * 2 / count), ..Nic::new(format!("nic{index}")) };
        return Ok((0..count).map(card).collect());
    }
    let topology = topo::read(args.root.as_deref(), None, false)?;
    let cards = topology.clone().only_efa().nics();
    let nics = if cards.is_empty() { topology.nics() } else { cards };
    if nics.is_empty() {
        return Err(Failure::Unavailable(
            "this machine has no NIC to plan for (see `weft topo`); --nics 16 plans for as many cards".into(),
        ));
    }
    Ok(nics)
}

fn pieces(plan: &Plan, buffers: &[Buffer], nics: &[Nic]) -> Vec<Piece> {
    let piece = |chunk: &efa_mr::Chunk| Piece {
        buffer: chunk.buffer,
        offset: chunk.addr - buffers[chunk.buffer].addr,
        bytes: chunk.len_bytes,
        pages: chunk.pages,
        nics: chunk.nics.iter().map(|nic| nics[nic].name.clone()).collect(),
    };
    plan.chunks.iter().map(piece).collect()
}
