//! What people are shown: plans and topologies as tables, for `weft plan`, `weft topo` and anyone else who prints.
//!
//! A [`Table`] is only text in rows; how it is drawn is up to the program. [`Plan::explain`] says in sentences what was decided and why,
//! and its `Display` is good enough for a log.

use crate::buffer::{Buffer, Location, PageSize};
use crate::cost::CostModel;
use crate::nic::{Nic, NicSet};
use crate::plan::Plan;
use crate::topology::Topology;
use crate::units::{bytes, count};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// Text in rows and columns.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// What it shows.
    pub title: &'static str,
    /// Heads of the columns.
    pub columns: Vec<&'static str>,
    /// As many cells in each row as there are columns.
    pub rows: Vec<Vec<String>>,
}

/// What a plan does, in words and tables.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explanation {
    /// Sentences: the outcome, the reason for anything that falls short, what would help.
    pub summary: Vec<String>,
    /// What each NIC pays.
    pub nics: Table,
    /// Chunks with the same NICs and page size, together.
    pub chunks: Table,
}

impl fmt::Display for Table {
    /// Columns padded with spaces.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            let widest = cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
            widest.max(self.columns[column].chars().count())
        };
        let widths: Vec<usize> = (0..self.columns.len()).map(width).collect();
        let line = |f: &mut fmt::Formatter<'_>, cells: &mut dyn Iterator<Item = &str>| {
            let padded: Vec<String> =
                cells.zip(&widths).map(|(cell, width)| format!("{cell:width$}", width = *width)).collect();
            writeln!(f, "  {}", padded.join("  ").trim_end())
        };
        writeln!(f, "{}", self.title)?;
        line(f, &mut self.columns.iter().copied())?;
        self.rows.iter().try_for_each(|row| line(f, &mut row.iter().map(String::as_str)))
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.summary.iter().try_for_each(|sentence| writeln!(f, "{sentence}"))?;
        write!(f, "\n{}\n{}", self.nics, self.chunks)
    }
}

impl Plan {
    /// Explains the plan. `buffers` and `nics` are those that it was made from.
    #[must_use]
    pub fn explain(&self, buffers: &[Buffer], nics: &[Nic], model: &CostModel) -> Explanation {
        Explanation {
            summary: self.summary(buffers, nics, model),
            nics: self.nic_table(nics),
            chunks: self.chunk_table(),
        }
    }

    fn summary(&self, buffers: &[Buffer], nics: &[Nic], model: &CostModel) -> Vec<String> {
        let total: u128 = buffers.iter().map(|buffer| u128::from(buffer.len_bytes)).sum();
        let total_bytes = u64::try_from(total).unwrap_or(u64::MAX);
        let registered: u128 = self.nics.iter().map(|used| used.bytes).sum();
        let mut summary = vec![format!(
            "{} buffer(s) of {} become {} chunk(s) and {} MR(s); a byte is on {:.2} NICs on average.",
            buffers.len(),
            bytes(total_bytes),
            self.chunks.len(),
            self.score.mrs,
            if total == 0 { 0.0 } else { registered as f64 / total as f64 },
        )];
        let wanted: Vec<String> =
            self.wanted.iter().map(|(location, wanted)| format!("{wanted} for {location}")).collect();
        if !wanted.is_empty() {
            summary.push(format!(
                "Wanted NICs per byte: {}; fulfilled to {:.1} %.",
                wanted.join(", "),
                self.fulfilment() * 100.0
            ));
        }
        summary.extend(self.shortfall(buffers, nics));
        let cut = (0..buffers.len())
            .filter(|&buffer| self.chunks_of(buffer).len() > buffers[buffer].runs().count())
            .count();
        if cut > 0 {
            summary.push(format!(
                "{cut} buffer(s) are cut, because a NIC is full, MRs have a longest length, or load is evened out."
            ));
        }
        summary.push(format!(
            "Predicted registration time on empty domains: {:.3} s (a model, not a measurement).",
            self.predicted_time(model).as_secs_f64()
        ));
        summary
    }

    /// Why fewer NICs than wanted, and what would help.
    fn shortfall(&self, buffers: &[Buffer], nics: &[Nic]) -> Option<String> {
        if self.score.spread >= self.ideal_spread {
            return None;
        }
        let full: NicSet =
            (0..nics.len()).filter(|&nic| self.nics[nic].pages >= nics[nic].pte_left).collect();
        let many: NicSet = (0..nics.len()).filter(|&nic| self.nics[nic].mrs >= nics[nic].mrs_left).collect();
        let small = buffers.iter().filter(|buffer| !buffer.location.is_device());
        let small: u64 = small
            .flat_map(|buffer| {
                buffer.runs().filter(|run| run.page < PageSize::M2).map(|run| run.pages()).collect::<Vec<_>>()
            })
            .sum();
        let reason = match (full.is_empty(), many.is_empty()) {
            (_, false) => format!("NIC(s) {many} have no room for more MRs"),
            (false, _) => format!("NIC(s) {full} have no page table entries left"),
            _ => "the NICs with room hold everything that they can already".to_owned(),
        };
        let help = if small > 0 && many.is_empty() {
            format!("; {} of the pages are small host pages: huge pages would make room", count(small))
        } else {
            String::new()
        };
        Some(format!("Short of what was wanted because {reason}{help}."))
    }

    fn nic_table(&self, nics: &[Nic]) -> Table {
        let row = |(number, (used, nic)): (usize, (&crate::plan::NicUse, &Nic))| {
            let left = nic.pte_left.saturating_sub(used.pages);
            vec![
                number.to_string(),
                nic.name.clone(),
                used.mrs.to_string(),
                bytes(u64::try_from(used.bytes).unwrap_or(u64::MAX)),
                count(used.pages),
                count(left),
                format!("{:.3}", used.load_ns as f64 * 1e-6),
            ]
        };
        Table {
            title: "NICs",
            columns: vec!["#", "NIC", "MRs", "bytes", "PTEs", "PTEs left", "load ms"],
            rows: self.nics.iter().zip(nics).enumerate().map(row).collect(),
        }
    }

    fn chunk_table(&self) -> Table {
        // By location, page size and NICs: chunks, bytes, pages.
        let mut groups: BTreeMap<(Location, PageSize, NicSet), (u64, u128, u64)> = BTreeMap::new();
        for chunk in &self.chunks {
            let key = (self.locations[chunk.buffer], chunk.page, chunk.nics);
            let group = groups.entry(key).or_default();
            *group =
                (group.0 + 1, group.1 + u128::from(chunk.len_bytes), group.2.saturating_add(chunk.pages));
        }
        let row = |((location, page, nics), (chunks, len, pages)): (
            (Location, PageSize, NicSet),
            (u64, u128, u64),
        )| {
            vec![
                location.to_string(),
                page.to_string(),
                chunks.to_string(),
                bytes(u64::try_from(len).unwrap_or(u64::MAX)),
                count(pages),
                nics.len().to_string(),
                nics.to_string(),
            ]
        };
        Table {
            title: "Chunks",
            columns: vec!["memory", "pages of", "chunks", "bytes", "PTEs per NIC", "NICs", "which"],
            rows: groups.into_iter().map(row).collect(),
        }
    }
}

impl Topology {
    /// NICs, GPUs and nodes as tables, the distance of each NIC from each place included.
    #[must_use]
    pub fn tables(&self) -> Vec<Table> {
        let known = |value: Option<u16>| value.map_or_else(|| "?".to_owned(), |value| value.to_string());
        let nic = |nic: &crate::topology::NicPlace| {
            let near =
                |gpu: &&crate::topology::GpuPlace| nic.distance(Location::Gpu(gpu.ordinal), &self.gpus);
            let nearest = self.gpus.iter().min_by_key(near).map(|gpu| near(&gpu));
            let nearest = nearest.filter(|distance| *distance < crate::nic::Distance::OtherNode);
            let gpus =
                self.gpus.iter().filter(|gpu| Some(near(gpu)) == nearest).map(|gpu| gpu.ordinal.to_string());
            let gpus: Vec<String> = gpus.collect();
            vec![
                nic.name.clone(),
                nic.kind.to_string(),
                nic.link_mbps
                    .map_or_else(|| "?".to_owned(), |mbps| format!("{} Gbit/s", f64::from(mbps) / 1000.0)),
                nic.pci.to_string(),
                known(nic.numa),
                if gpus.is_empty() {
                    "–".to_owned()
                } else {
                    format!("{} ({})", gpus.join(","), nearest.map_or_else(String::new, |d| d.to_string()))
                },
                if nic.usable { "yes".to_owned() } else { "no driver".to_owned() },
            ]
        };
        let gpu = |gpu: &crate::topology::GpuPlace| {
            vec![
                format!("cuda:{}", gpu.ordinal),
                gpu.pci.to_string(),
                known(gpu.numa),
                format!("{:#06x}", gpu.vendor),
            ]
        };
        let node = |node: &crate::topology::Node| {
            let pools = node.huge_pages.iter().filter(|pool| pool.total > 0);
            let pools: Vec<String> =
                pools.map(|p| format!("{} × {} ({} free)", p.total, bytes(p.page_bytes), p.free)).collect();
            let pools = if pools.is_empty() { "none".to_owned() } else { pools.join(", ") };
            vec![format!("cpu:{}", node.node), node.cpus.clone(), pools]
        };
        vec![
            Table {
                title: "NICs",
                columns: vec!["NIC", "kind", "link", "PCI", "node", "nearest GPUs", "usable"],
                rows: self.nics.iter().map(nic).collect(),
            },
            Table {
                title: "GPUs",
                columns: vec!["GPU", "PCI", "node", "vendor"],
                rows: self.gpus.iter().map(gpu).collect(),
            },
            Table {
                title: "Memory nodes",
                columns: vec!["node", "processors", "huge pages reserved"],
                rows: self.nodes.iter().map(node).collect(),
            },
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::planner::plan;
    use crate::policy::Policy;

    #[test]
    fn a_shortfall_is_explained_with_its_remedy() {
        let nics: Vec<Nic> = (0..2).map(|i| Nic { pte_left: 1500, ..Nic::new(format!("efa{i}")) }).collect();
        let buffers = [Buffer::host(0x1000_0000, 8 << 20, PageSize::K4)];
        let made = plan(&buffers, &nics, &Policy::all()).unwrap();
        let text = made.explain(&buffers, &nics, &CostModel::DEFAULT).to_string();
        assert!(text.contains("NIC(s) 0-1 have no page table entries left"), "{text}");
        assert!(text.contains("huge pages would make room"), "{text}");
        assert!(
            text.contains("efa1") && text.contains("8 MiB") && text.contains("fulfilled to 73.2 %"),
            "{text}"
        );
        let easy = plan(&buffers, &nics, &Policy::nics(1)).unwrap();
        let text = easy.explain(&buffers, &nics, &CostModel::DEFAULT).to_string();
        assert!(!text.contains("Short of") && text.contains("fulfilled to 100.0 %"), "{text}");
    }

    #[test]
    fn tables_are_padded_and_rectangular() {
        let table =
            Table { title: "T", columns: vec!["a", "bb"], rows: vec![vec!["–––".into(), "x".into()]] };
        assert_eq!(table.to_string(), "T\n  a    bb\n  –––  x\n");
        for table in Topology::default().tables() {
            assert!(table.rows.is_empty());
        }
    }
}
