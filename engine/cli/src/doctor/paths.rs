//! Which way each kind of transfer takes, and why.

use serde::Serialize;

use super::facts::Facts;

/// The way of one kind of transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Way {
    pub(crate) transfer: &'static str,
    pub(crate) path: String,
    pub(crate) why: String,
}

/// All of them, the nearest peer first.
pub(crate) fn ways(facts: &Facts) -> Vec<Way> {
    let way = |transfer, path: &str, why: String| Way { transfer, path: path.into(), why };
    let fabric = facts.fabric.path.as_ref();
    let none = || {
        let known = facts.fabric.no_path.clone().or_else(|| facts.fabric.no_library.clone());
        known.unwrap_or_else(|| "libfabric was not asked".into())
    };
    let over_fabric = |nics: usize| match nics {
        1 => "one NIC".to_owned(),
        nics => format!("{nics} NICs at once"),
    };
    let mut ways = vec![way("within one process", "memory copy", "no NIC is needed".into())];
    ways.push(match (fabric, facts.same_host_refused()) {
        (Some(path), _) => way(
            "to another process of this host",
            &path.name(),
            "both sides have libfabric; --protocol tcp copies between the processes instead".into(),
        ),
        (None, None) => way(
            "to another process of this host",
            "copy between processes",
            "the kernel lets the memory's owner copy (process_vm_readv); no socket carries payload".into(),
        ),
        (None, Some(reason)) => way("to another process of this host", "TCP", reason),
    });
    ways.push(match fabric {
        Some(path) => way(
            "to a host with the same NICs",
            &format!("{}, {}", path.name(), over_fabric(path.nics.len())),
            path.why.clone(),
        ),
        None => way("to a host with EFA cards", "TCP", format!("not here: {}", none())),
    });
    ways.push(way(
        "to a host without EFA cards",
        "TCP",
        "TCP is always there; several connections to each peer".into(),
    ));
    if facts.gpus() > 0 {
        ways.push(match fabric {
            Some(path) if path.device_memory => {
                way("from or to GPU memory", &path.name(), "the NICs register device memory".into())
            }
            _ => way(
                "from or to GPU memory",
                "TCP, staged",
                "through a ring of pinned host memory, copy and network overlapped".into(),
            ),
        });
    }
    ways
}

#[cfg(test)]
mod tests {
    use super::super::fabric::{NicFacts, PathFacts};
    use super::*;

    #[test]
    fn cards_are_used_where_both_sides_have_them_and_nothing_is_silent_where_not() {
        let mut facts = Facts { topology: Err("x".into()), ..Facts::default() };
        facts.fabric.no_library = Some("no libfabric".into());
        let without = ways(&facts);
        assert_eq!(without[1].path, "copy between processes");
        assert!(without[2].path == "TCP" && without[2].why.contains("no libfabric"), "{without:#?}");
        facts.same_host.ptrace_scope = Some(1);
        assert!(ways(&facts)[1].why.contains("ptrace_scope is 1"));
        facts.fabric.path = Some(PathFacts {
            provider: "efa".into(),
            fabric: "efa-direct".into(),
            nics: vec![NicFacts::default(); 16],
            ..PathFacts::default()
        });
        assert_eq!(ways(&facts)[2].path, "efa/efa-direct, 16 NICs at once");
    }
}
