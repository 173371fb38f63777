//! What is good, what is slow, and what to do about it: each rule looks at the facts and says something or nothing.

use efa_mr::DEFAULT_PTE_BUDGET;
use serde::Serialize;

use super::facts::{Facts, Limit};
use crate::units::bytes;

/// TCP windows below this cannot fill 100 Gbit/s over a round trip of 1 ms (12.5 MB in flight).
const TCP_BUFFER: u64 = 12_500_000;
/// MTU of ENA's jumbo frames inside a VPC.
const JUMBO: u32 = 9001;
/// A thousand peers with four connections each.
const FILES: u64 = 4096;
/// Locked memory below this is no limit for production: an EFA pool has hundreds of GB.
const LOCKED: u64 = 1 << 40;

/// How grave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Grade {
    /// Something does not work, or not the way it should.
    Broken,
    /// Works, slower than it could.
    Slow,
    /// Worth knowing.
    Note,
}

/// A finding with its remedy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Advice {
    pub(crate) grade: Grade,
    pub(crate) finding: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) remedy: Option<String>,
}

/// Everything that there is to say, the gravest first.
pub(crate) fn advise(facts: &Facts) -> Vec<Advice> {
    let rules: [fn(&Facts, &mut Vec<Advice>); 12] = [
        sysfs,
        cards_without_driver,
        cards_without_libfabric,
        old_libfabric,
        environment,
        device_memory,
        locked_memory,
        emulation,
        huge_pages,
        same_host,
        tcp,
        files,
    ];
    let mut advice = Vec::new();
    for rule in rules {
        rule(facts, &mut advice);
    }
    advice.sort_by_key(|advice| advice.grade);
    advice
}

fn add(advice: &mut Vec<Advice>, grade: Grade, finding: impl Into<String>, remedy: &str) {
    let remedy = (!remedy.is_empty()).then(|| remedy.to_owned());
    advice.push(Advice { grade, finding: finding.into(), remedy });
}

fn sysfs(facts: &Facts, advice: &mut Vec<Advice>) {
    match &facts.topology {
        Err(reason) => add(
            advice,
            Grade::Broken,
            format!(
                "devices cannot be seen ({reason}), so which NIC is near which memory is unknown and NICs are taken as equal"
            ),
            "mount sysfs into the container (`-v /sys:/sys:ro`), or read a mounted copy of the host's tree with --root",
        ),
        Ok(topology) => {
            let lost = facts.cards().filter(|card| card.usable && card.numa.is_none()).count();
            if lost > 0 && topology.nodes.len() > 1 {
                add(
                    advice,
                    Grade::Slow,
                    format!(
                        "{lost} EFA cards hang off no known memory node, so transfers may cross the processors' interconnect"
                    ),
                    "show the container the PCI devices (`-v /sys:/sys:ro`); on a virtual machine use an instance type that exposes NUMA",
                );
            }
        }
    }
}

fn cards_without_driver(facts: &Facts, advice: &mut Vec<Advice>) {
    let idle: Vec<&str> = facts.cards().filter(|card| !card.usable).map(|card| card.name.as_str()).collect();
    if !idle.is_empty() {
        add(
            advice,
            Grade::Broken,
            format!("no driver has taken the EFA cards {}", idle.join(", ")),
            "load it (`modprobe efa`), or install it with AWS's EFA installer; `dmesg | grep efa` tells why it does not load",
        );
    }
}

fn cards_without_libfabric(facts: &Facts, advice: &mut Vec<Advice>) {
    let cards = facts.cards().filter(|card| card.usable).count();
    if cards == 0 {
        return;
    }
    if let Some(reason) = &facts.fabric.no_library {
        return add(
            advice,
            Grade::Broken,
            format!("there are {cards} EFA cards but no libfabric, so everything goes over TCP ({reason})"),
            "install AWS's EFA installer (it brings libfabric under /opt/amazon/efa), or `apt-get install libfabric1`; FABRIC_LIBRARY names another copy",
        );
    }
    if facts.fabric.providers.iter().any(|provider| provider.name.starts_with("efa/")) {
        return;
    }
    let (finding, remedy) = if facts.verbs_devices.is_empty() {
        (
            "but /dev/infiniband is empty, so libfabric does not see them and everything goes over TCP",
            "give the container the devices: `--device /dev/infiniband` (docker), or the EFA device plugin and `vpc.amazonaws.com/efa` (Kubernetes); \
             outside of containers `modprobe ib_uverbs`",
        )
    } else {
        (
            "but libfabric lists none, so everything goes over TCP",
            "`fi_info -p efa` says more; often this libfabric was built without its efa provider, or the limit of locked memory is too low",
        )
    };
    add(advice, Grade::Broken, format!("there are {cards} EFA cards {finding}"), remedy);
}

fn old_libfabric(facts: &Facts, advice: &mut Vec<Advice>) {
    let efa = facts.fabric.path.as_ref().is_some_and(|path| path.provider == "efa");
    if let Some(library) = facts.fabric.library.as_ref().filter(|library| library.old && efa) {
        add(
            advice,
            Grade::Slow,
            format!(
                "libfabric {} has no efa-direct, no wait objects, and may lack writes by the card: more work per operation, and targets that must poll",
                library.version
            ),
            "AWS's EFA installer brings 2.x; FABRIC_LIBRARY=/path/to/libfabric.so.1 chooses a copy",
        );
    }
}

fn environment(facts: &Facts, advice: &mut Vec<Advice>) {
    let set = |name: &str| facts.environment.get(name).map(String::as_str);
    let cards = facts.cards().any(|card| card.usable) || facts.fabric.path.is_some();
    let forces = [
        ("WEFT_PROTOCOL", set("WEFT_PROTOCOL") == Some("tcp")),
        ("MOONCAKE_PROTOCOL", set("MOONCAKE_PROTOCOL") == Some("tcp")),
        ("MC_FORCE_TCP", set("MC_FORCE_TCP").is_some_and(|value| !["", "0", "false"].contains(&value))),
    ];
    for (name, _) in forces.iter().filter(|(_, forced)| *forced && cards) {
        add(
            advice,
            Grade::Slow,
            format!("{name} forces TCP although there are NICs that libfabric can use"),
            &format!("unset {name}"),
        );
    }
    if let Some(value) = set("FI_PROVIDER").filter(|value| !value.contains("efa")) {
        add(
            advice,
            Grade::Slow,
            format!("FI_PROVIDER={value} hides libfabric's other providers, EFA too"),
            "unset FI_PROVIDER",
        );
    }
    if set("FI_EFA_USE_DEVICE_RDMA") == Some("0") {
        add(
            advice,
            Grade::Slow,
            "FI_EFA_USE_DEVICE_RDMA=0 turns reads and writes by the card off",
            "unset FI_EFA_USE_DEVICE_RDMA",
        );
    }
}

fn device_memory(facts: &Facts, advice: &mut Vec<Advice>) {
    let Some(path) = facts.fabric.path.as_ref().filter(|path| !path.device_memory && facts.gpus() > 0) else {
        return;
    };
    add(
        advice,
        Grade::Slow,
        format!("{} does not register GPU memory, so it goes through host memory and TCP", path.name()),
        "NVIDIA's open kernel modules export GPU memory to the cards (dmabuf), older ones need efa_nv_peermem; libfabric must be built with CUDA \
         (AWS's EFA installer's is), and `fi_info -p efa -c FI_HMEM` lists the cards then",
    );
}

fn locked_memory(facts: &Facts, advice: &mut Vec<Advice>) {
    // Providers over sockets lock nothing.
    if facts.cards().next().is_none() {
        return;
    }
    // Root outside of containers, mostly.
    if facts.limits.may_exceed_locked_memory == Some(true) {
        return;
    }
    match facts.limits.locked_memory_bytes {
        Some(Limit::At(limit)) if limit < LOCKED => add(
            advice,
            Grade::Broken,
            format!("this process may lock {} of memory; registering more with a card fails", bytes(limit)),
            "`ulimit -l unlimited`; in systemd units LimitMEMLOCK=infinity; docker run --ulimit memlock=-1; in Kubernetes set it in the container runtime",
        ),
        _ => {}
    }
}

fn emulation(facts: &Facts, advice: &mut Vec<Advice>) {
    let warnings = facts.fabric.path.iter().flat_map(|path| &path.warnings);
    // One finding for all cards of a kind.
    let mut told: Vec<String> = Vec::new();
    for warning in warnings {
        let kind = warning.split_once(" emulates ").map_or(warning.as_str(), |(_, rest)| rest);
        if told.iter().any(|known| known == kind) {
            continue;
        }
        told.push(kind.to_owned());
        let finding = match warning.split_once(" emulates ") {
            Some((_, rest)) => format!("the NICs emulate {rest}"),
            None => warning.clone(),
        };
        let remedy = if warning.contains(" emulates ") {
            "instance types from p5 on write by the card; on p4d prefer reads (the decode side pulls); libfabric ≥ 1.18 is needed either way"
        } else {
            ""
        };
        add(advice, Grade::Slow, finding, remedy);
    }
}

fn huge_pages(facts: &Facts, advice: &mut Vec<Advice>) {
    if facts.cards().next().is_none() {
        return;
    }
    let (total, _) = facts.huge_page_bytes();
    if total == 0 {
        let most = DEFAULT_PTE_BUDGET * 4096;
        add(
            advice,
            Grade::Slow,
            format!(
                "no huge pages are reserved. A card has room for about {} of memory in 4 KiB pages; a larger pool is split over the cards, so each byte is on fewer of them",
                bytes(most)
            ),
            "reserve 2 MiB pages (`sysctl vm.nr_hugepages=N`, early after boot) and put the pool there; `weft plan` shows what that changes",
        );
    }
}

fn same_host(facts: &Facts, advice: &mut Vec<Advice>) {
    // Where libfabric carries what goes to this host too, the copy is only for --protocol tcp.
    let fabric = facts.fabric.path.is_some();
    if let Some(reason) = facts.same_host_refused() {
        let (grade, therefore) = match fabric {
            true => (Grade::Note, "that matters for traffic over TCP only"),
            false => (Grade::Slow, "so they use sockets"),
        };
        add(
            advice,
            grade,
            format!("processes of this host cannot copy each other's memory ({reason}); {therefore}"),
            "`sysctl kernel.yama.ptrace_scope=0`, or give both processes CAP_SYS_PTRACE (docker run --cap-add SYS_PTRACE)",
        );
    } else if !fabric && facts.same_host.seccomp == Some(true) && facts.same_host.may_trace == Some(false) {
        add(
            advice,
            Grade::Note,
            "system calls are filtered here; if the filter refuses process_vm_readv, processes of this host use sockets",
            "docker run --cap-add SYS_PTRACE allows it; containers must share a PID namespace as well",
        );
    }
}

fn tcp(facts: &Facts, advice: &mut Vec<Advice>) {
    let tcp = &facts.tcp;
    if tcp.congestion_control.as_deref() == Some("bbr") {
        let cubic = tcp.available.iter().any(|name| name == "cubic");
        add(
            advice,
            Grade::Slow,
            "TCP's congestion control is bbr, which paces: a stream on the loopback was 37 % slower with it than with cubic",
            if cubic {
                "`sysctl net.ipv4.tcp_congestion_control=cubic`"
            } else {
                "`modprobe tcp_cubic; sysctl net.ipv4.tcp_congestion_control=cubic`"
            },
        );
    }
    for (what, name, value) in
        [("receive", "tcp_rmem", tcp.receive_buffer_max), ("send", "tcp_wmem", tcp.send_buffer_max)]
    {
        if let Some(value) = value.filter(|value| *value < TCP_BUFFER) {
            add(
                advice,
                Grade::Note,
                format!(
                    "TCP {what} buffers grow to {} at the most; 100 Gbit/s over a round trip of 1 ms needs 12 MiB",
                    bytes(value)
                ),
                &format!("`sysctl net.ipv4.{name}='4096 131072 67108864'` on networks that fast"),
            );
        }
    }
    let small: Vec<&str> =
        facts.mtu.iter().filter(|(_, mtu)| **mtu < JUMBO - 100).map(|(name, _)| name.as_str()).collect();
    if !small.is_empty() {
        add(
            advice,
            Grade::Note,
            format!(
                "{}: an MTU of 1500 or so costs TCP several packets where jumbo frames need one",
                small.join(", ")
            ),
            &format!("`ip link set dev {} mtu {JUMBO}` inside a VPC, if all hops allow it", small[0]),
        );
    }
}

fn files(facts: &Facts, advice: &mut Vec<Advice>) {
    if let Some(Limit::At(limit @ ..FILES)) = facts.limits.open_files {
        add(
            advice,
            Grade::Note,
            format!("this process may have {limit} files open; each TCP peer takes up to four"),
            "`ulimit -n 65536`; in systemd units LimitNOFILE=65536",
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::fabric::{LibraryFacts, PathFacts, ProviderFacts};
    use super::*;
    use efa_mr::Topology;
    use efa_mr::topology::{NicKind, NicPlace, PciPath};

    fn card(usable: bool) -> NicPlace {
        NicPlace {
            name: "rdmap16s27".into(),
            kind: NicKind::Efa,
            usable,
            link_mbps: Some(100_000),
            pci: PciPath::default(),
            numa: Some(0),
        }
    }

    fn with_card() -> Facts {
        let topology = Topology { nics: vec![card(true)], ..Topology::default() };
        Facts { topology: Ok(topology), ..Facts::default() }
    }

    fn said(facts: &Facts) -> String {
        advise(facts).iter().map(|advice| format!("{:?} {}\n", advice.grade, advice.finding)).collect()
    }

    #[test]
    fn a_machine_without_cards_is_not_bothered_with_them() {
        let facts = Facts { topology: Ok(Topology::default()), ..Facts::default() };
        assert_eq!(said(&facts), "");
    }

    #[test]
    fn cards_that_are_not_used_are_the_first_thing_said() {
        let mut facts = with_card();
        facts.fabric.no_library = Some("none found".into());
        facts.tcp.congestion_control = Some("bbr".into());
        assert!(
            said(&facts).starts_with("Broken there are 1 EFA cards but no libfabric"),
            "{}",
            said(&facts)
        );
        facts.fabric.no_library = None;
        facts.fabric.library = Some(LibraryFacts { version: "2.1".into(), ..LibraryFacts::default() });
        assert!(said(&facts).contains("/dev/infiniband is empty"));
        facts.verbs_devices = vec!["uverbs0".into()];
        assert!(said(&facts).contains("libfabric lists none"));
        facts.fabric.providers = vec![ProviderFacts { name: "efa/efa".into(), nics: vec!["x".into()] }];
        assert!(!said(&facts).contains("Broken"));
        facts.topology = Ok(Topology { nics: vec![card(false)], ..Topology::default() });
        assert!(said(&facts).contains("no driver has taken"));
    }

    #[test]
    fn each_thing_that_is_slow_is_said_with_its_remedy() {
        let mut facts = with_card();
        facts.fabric.providers = vec![ProviderFacts { name: "efa/efa".into(), nics: vec!["x".into()] }];
        facts.fabric.library =
            Some(LibraryFacts { version: "1.17".into(), old: true, ..LibraryFacts::default() });
        let warning = |card: &str| format!("NIC {card} emulates writes with messages: slow");
        facts.fabric.path = Some(PathFacts {
            provider: "efa".into(),
            warnings: vec![warning("a"), warning("b")],
            ..PathFacts::default()
        });
        facts.limits.locked_memory_bytes = Some(Limit::At(8 << 20));
        facts.limits.open_files = Some(Limit::At(1024));
        facts.same_host.ptrace_scope = Some(1);
        facts.environment.insert("MC_FORCE_TCP".into(), "1".into());
        facts.mtu.insert("ens32".into(), 1500);
        facts.tcp.receive_buffer_max = Some(6 << 20);
        let all = advise(&facts);
        let text = said(&facts);
        for part in [
            "lock 8 MiB",
            "emulate writes",
            "no huge pages",
            "MC_FORCE_TCP",
            "ptrace_scope is 1",
            "1.17 has no",
            "1024 files",
            "ens32",
            "receive buffers grow to 6 MiB",
        ] {
            assert!(text.contains(part), "{part} in {text}");
        }
        assert_eq!(text.matches("emulate writes").count(), 1, "once for all cards");
        assert!(all.iter().all(|advice| advice.remedy.is_some()), "{all:#?}");
        assert!(all.is_sorted_by_key(|advice| advice.grade));
        facts.limits.locked_memory_bytes = Some(Limit::Unlimited);
        facts.same_host.may_trace = Some(true);
        assert!(!said(&facts).contains("lock") && !said(&facts).contains("ptrace"));
    }
}
