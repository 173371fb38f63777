//! The report in words.

use std::collections::BTreeMap;

use super::PeerReport;
use super::advice::{Advice, Grade};
use super::facts::{Facts, Limit};
use super::paths::Way;
use crate::output::{Mark, Output};
use crate::units::bytes;

/// Prints everything.
pub(crate) fn print(facts: &Facts, ways: &[Way], advice: &[Advice], peers: &[PeerReport], output: &Output) {
    output.heading("What is here");
    for line in found(facts) {
        output.line(format!("  {line}"));
    }
    output.line("");
    output.heading("Which way transfers take");
    let width = ways.iter().map(|way| way.transfer.len()).max().unwrap_or(0);
    for way in ways {
        output.line(format!("  {:width$}  {}", way.transfer, way.path));
        output.line(format!("  {:width$}    {}", "", way.why));
    }
    if !peers.is_empty() {
        output.line("");
        output.heading("Peers");
        for peer in peers {
            let mark = if peer.path.is_ok() { Mark::Good } else { Mark::Broken };
            output.marked(mark, &peer.words());
        }
    }
    output.line("");
    output.heading("What to do");
    if advice.is_empty() {
        output.marked(Mark::Good, "nothing stands out; `weft bench` measures what comes of it");
    }
    for Advice { grade, finding, remedy } in advice {
        let mark = match grade {
            Grade::Broken => Mark::Broken,
            Grade::Slow => Mark::Slow,
            Grade::Note => Mark::Note,
        };
        output.marked(mark, &format!("{finding}."));
        if let Some(remedy) = remedy {
            output.line(format!("          → {remedy}"));
        }
    }
}

fn found(facts: &Facts) -> Vec<String> {
    let mut lines = vec![machine(facts)];
    lines.extend(nics(facts));
    lines.push(match (&facts.fabric.library, &facts.fabric.no_library) {
        (Some(library), _) => format!("libfabric {} ({})", library.version, library.path),
        (None, Some(reason)) => format!("no libfabric: {reason}"),
        (None, None) => "libfabric was not asked".into(),
    });
    if !facts.fabric.providers.is_empty() {
        let provider = |provider: &super::fabric::ProviderFacts| match provider.nics.len() {
            1 => provider.name.clone(),
            nics => format!("{} ({nics} NICs)", provider.name),
        };
        let providers: Vec<String> = facts.fabric.providers.iter().map(provider).collect();
        lines.push(format!("libfabric's providers: {}", providers.join(", ")));
    }
    if let Some(path) = &facts.fabric.path {
        lines.push(format!(
            "libfabric's path: {} over {} NIC(s); {}",
            path.name(),
            path.nics.len(),
            path.why
        ));
        if let Some(depth) = path.nics.iter().map(|nic| nic.depth).min() {
            lines.push(format!("  each NIC takes {depth} operations at a time"));
        }
    }
    if !facts.modules.is_empty() {
        lines.push(format!("kernel modules: {}", facts.modules.join(", ")));
    }
    lines.push(memory(facts));
    lines.push(format!("locked memory: {}", limit(facts.limits.locked_memory_bytes, bytes)));
    lines.push(match facts.same_host_refused() {
        None if !facts.same_host_known() => {
            "whether processes of this host may copy each other's memory is unknown".into()
        }
        None => "processes of this host may copy each other's memory".into(),
        Some(reason) => format!("processes of this host may not copy each other's memory: {reason}"),
    });
    lines.push(tcp(facts));
    if !facts.environment.is_empty() {
        let set: Vec<String> =
            facts.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
        lines.push(format!("environment: {}", set.join(" ")));
    }
    lines
}

fn machine(facts: &Facts) -> String {
    let mut parts = Vec::new();
    parts.push(
        facts
            .kernel
            .as_ref()
            .map_or_else(|| "an unknown kernel".to_owned(), |release| format!("Linux {release}")),
    );
    if let Some(cpus) = facts.cpus {
        parts.push(format!("{cpus} processors"));
    }
    if let Some(memory) = facts.memory_bytes {
        parts.push(format!("{} of memory", bytes(memory)));
    }
    if let Ok(topology) = &facts.topology {
        let nodes = topology.nodes.len().max(1);
        parts.push(if nodes == 1 { "one memory node".to_owned() } else { format!("{nodes} memory nodes") });
        match facts.gpus() {
            0 => parts.push("no GPU".into()),
            1 => parts.push("one GPU".into()),
            gpus => parts.push(format!("{gpus} GPUs")),
        }
    }
    parts.join(", ")
}

fn nics(facts: &Facts) -> Vec<String> {
    let Ok(topology) = &facts.topology else { return vec!["NICs: unknown, sysfs cannot be read".into()] };
    // Alike ones in one line: kind, speed, node.
    let mut groups: BTreeMap<(String, String, String), Vec<&str>> = BTreeMap::new();
    for nic in &topology.nics {
        let speed = nic.link_mbps.map_or_else(
            || "unknown speed".to_owned(),
            |mbps| format!("{} Gbit/s", f64::from(mbps) / 1000.0),
        );
        let node = nic.numa.map_or_else(|| "unknown node".to_owned(), |node| format!("node {node}"));
        let kind = if nic.usable { nic.kind.to_string() } else { format!("{} without driver", nic.kind) };
        groups.entry((kind, speed, node)).or_default().push(&nic.name);
    }
    if groups.is_empty() {
        return vec!["no EFA card, nor any other NIC on a bus".into()];
    }
    let mut lines: Vec<String> = Vec::new();
    if !groups.keys().any(|(kind, ..)| kind.starts_with("efa")) {
        lines.push("no EFA card".into());
    }
    for ((kind, speed, node), names) in groups {
        let count = names.len();
        let names = match names.as_slice() {
            [one] => (*one).to_owned(),
            [first, .., last] => format!("{first} to {last}"),
            [] => String::new(),
        };
        lines.push(format!("{count} × {kind}, {speed}, {node}: {names}"));
    }
    lines
}

fn memory(facts: &Facts) -> String {
    let (total, free) = facts.huge_page_bytes();
    let reserved = match total {
        0 if facts.topology.is_err() => "huge pages: unknown".to_owned(),
        0 => "no huge pages reserved".to_owned(),
        total => format!("{} in huge pages, {} free", bytes(total), bytes(free)),
    };
    match &facts.transparent_huge_pages {
        Some(mode) => format!("{reserved}; transparent huge pages: {mode}"),
        None => reserved,
    }
}

fn limit(limit: Option<Limit>, show: impl Fn(u64) -> String) -> String {
    match limit {
        None => "unknown limit".into(),
        Some(Limit::Unlimited) => "unlimited".into(),
        Some(Limit::At(value)) => format!("{} at the most", show(value)),
    }
}

fn tcp(facts: &Facts) -> String {
    let tcp = &facts.tcp;
    if tcp.congestion_control.is_none() && tcp.receive_buffer_max.is_none() {
        return "TCP settings: unknown".into();
    }
    let size = |value: Option<u64>| value.map_or_else(|| "unknown".to_owned(), bytes);
    format!(
        "TCP: {}; buffers grow to {} (receive) and {} (send)",
        tcp.congestion_control.as_deref().unwrap_or("unknown congestion control"),
        size(tcp.receive_buffer_max),
        size(tcp.send_buffer_max)
    )
}
