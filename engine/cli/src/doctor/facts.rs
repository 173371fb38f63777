//! What the kernel tells. Every file may be absent or full of nonsense; then the fact is unknown.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use efa_mr::Topology;
use efa_mr::topology::NicKind;
use serde::Serialize;

use super::fabric::FabricFacts;

/// Linux's number of the capability that lets a process lock more memory than its limit.
const CAP_IPC_LOCK: u32 = 14;
/// Linux's number of the capability that lets a process read another's memory.
const CAP_SYS_PTRACE: u32 = 19;
/// Variables that change which way transfers take. Values of others, and of any that look like a secret, are not shown.
const VARIABLES: [&str; 4] = ["WEFT_", "MC_", "MOONCAKE_", "FI_"];

/// What is known of a machine.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    /// Linux's release.
    pub(crate) kernel: Option<String>,
    /// Processors that are online.
    pub(crate) cpus: Option<usize>,
    /// Memory in bytes.
    pub(crate) memory_bytes: Option<u64>,
    /// NICs, GPUs and memory nodes, or why they are unknown.
    pub(crate) topology: Result<Topology, String>,
    /// Files of RDMA devices under dev/infiniband.
    pub(crate) verbs_devices: Vec<String>,
    /// Kernel modules that matter here and are loaded.
    pub(crate) modules: Vec<String>,
    /// State of transparent huge pages.
    pub(crate) transparent_huge_pages: Option<String>,
    pub(crate) limits: Limits,
    pub(crate) same_host: SameHost,
    pub(crate) tcp: Tcp,
    /// MTU of the interfaces that have a card.
    pub(crate) mtu: BTreeMap<String, u32>,
    /// Environment variables that change something.
    pub(crate) environment: BTreeMap<String, String>,
    pub(crate) fabric: FabricFacts,
}

/// Limits of this process; absent is unknown.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Limits {
    pub(crate) locked_memory_bytes: Option<Limit>,
    pub(crate) open_files: Option<Limit>,
    /// Whether the process may lock more memory than that.
    pub(crate) may_exceed_locked_memory: Option<bool>,
}

/// A limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Limit {
    Unlimited,
    #[serde(untagged)]
    At(u64),
}

/// Whether processes of this host may copy each other's memory.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct SameHost {
    /// Yama's setting; `None` where Yama is not there, which is as good as 0.
    pub(crate) ptrace_scope: Option<u8>,
    /// Whether this process may trace any other.
    pub(crate) may_trace: Option<bool>,
    /// Whether system calls are filtered (as container runtimes do).
    pub(crate) seccomp: Option<bool>,
}

/// The kernel's TCP settings.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Tcp {
    pub(crate) congestion_control: Option<String>,
    pub(crate) available: Vec<String>,
    /// The most that a connection's receive buffer grows to, in bytes.
    pub(crate) receive_buffer_max: Option<u64>,
    /// The same for sending.
    pub(crate) send_buffer_max: Option<u64>,
}

impl Default for Facts {
    /// A machine of which nothing is known.
    fn default() -> Self {
        Self {
            kernel: None,
            cpus: None,
            memory_bytes: None,
            topology: Err("not read".into()),
            verbs_devices: Vec::new(),
            modules: Vec::new(),
            transparent_huge_pages: None,
            limits: Limits::default(),
            same_host: SameHost::default(),
            tcp: Tcp::default(),
            mtu: BTreeMap::new(),
            environment: BTreeMap::new(),
            fabric: FabricFacts::default(),
        }
    }
}

impl Facts {
    /// Reads what is below `root`, and this process's environment.
    pub(crate) fn gather(root: &Path) -> Self {
        let read = |file: &str| text(&root.join(file));
        let topology = Topology::read(&root.join("sys")).map_err(|error| error.to_string());
        Self {
            kernel: read("proc/sys/kernel/osrelease"),
            cpus: read("sys/devices/system/cpu/online").and_then(|list| count_list(&list)),
            memory_bytes: read("proc/meminfo").and_then(|text| memory(&text)),
            mtu: topology.as_ref().map(|topology| mtu(root, topology)).unwrap_or_default(),
            topology,
            verbs_devices: names(&root.join("dev/infiniband"), "uverbs"),
            modules: read("proc/modules").map(|text| modules(&text)).unwrap_or_default(),
            transparent_huge_pages: read("sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| chosen(&text)),
            limits: Limits {
                may_exceed_locked_memory: read("proc/self/status")
                    .and_then(|text| capable(&text, CAP_IPC_LOCK)),
                ..read("proc/self/limits").map(|text| limits(&text)).unwrap_or_default()
            },
            same_host: SameHost {
                ptrace_scope: read("proc/sys/kernel/yama/ptrace_scope").and_then(|text| text.parse().ok()),
                may_trace: read("proc/self/status").and_then(|text| capable(&text, CAP_SYS_PTRACE)),
                seccomp: read("proc/self/status")
                    .and_then(|text| field(&text, "Seccomp:"))
                    .map(|mode| mode != "0"),
            },
            tcp: Tcp {
                congestion_control: read("proc/sys/net/ipv4/tcp_congestion_control"),
                available: read("proc/sys/net/ipv4/tcp_available_congestion_control")
                    .map(|text| text.split_whitespace().map(str::to_owned).collect())
                    .unwrap_or_default(),
                receive_buffer_max: read("proc/sys/net/ipv4/tcp_rmem").and_then(|text| third(&text)),
                send_buffer_max: read("proc/sys/net/ipv4/tcp_wmem").and_then(|text| third(&text)),
            },
            environment: environment(std::env::vars_os().filter_map(|(name, value)| {
                Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
            })),
            fabric: FabricFacts::default(),
        }
    }

    /// EFA cards.
    pub(crate) fn cards(&self) -> impl Iterator<Item = &efa_mr::topology::NicPlace> {
        self.topology.iter().flat_map(|topology| &topology.nics).filter(|nic| nic.kind == NicKind::Efa)
    }

    /// GPUs.
    pub(crate) fn gpus(&self) -> usize {
        self.topology.as_ref().map_or(0, |topology| topology.gpus.len())
    }

    /// Reserved huge pages over all nodes: bytes in all, and bytes free.
    pub(crate) fn huge_page_bytes(&self) -> (u64, u64) {
        let nodes = self.topology.iter().flat_map(|topology| &topology.nodes);
        nodes.flat_map(|node| &node.huge_pages).fold((0, 0), |(total, free), huge| {
            (total + huge.total * huge.page_bytes, free + huge.free * huge.page_bytes)
        })
    }

    /// Whether anything is known of what processes may do to each other.
    pub(crate) fn same_host_known(&self) -> bool {
        self.same_host.may_trace.is_some() || self.same_host.ptrace_scope.is_some()
    }

    /// Whether the copy between two processes of this host is allowed, as far as can be told; the reason if not.
    pub(crate) fn same_host_refused(&self) -> Option<String> {
        let scope = self.same_host.ptrace_scope.unwrap_or(0);
        if scope == 0 || self.same_host.may_trace == Some(true) {
            return None;
        }
        Some(format!(
            "kernel.yama.ptrace_scope is {scope} and this process has not the capability CAP_SYS_PTRACE"
        ))
    }
}

fn text(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

/// Names in a directory that begin so, in order.
fn names(dir: &Path, beginning: &str) -> Vec<String> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.starts_with(beginning)).collect();
    names.sort();
    names
}

/// `0-3,8` is five.
fn count_list(list: &str) -> Option<usize> {
    list.split(',').try_fold(0_usize, |sum, part| {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        sum.checked_add(last.checked_sub(first)?.checked_add(1)?)
    })
}

/// `MemTotal:  24576000 kB`
fn memory(meminfo: &str) -> Option<u64> {
    let kib: u64 = field(meminfo, "MemTotal:")?.split_whitespace().next()?.parse().ok()?;
    kib.checked_mul(1024)
}

/// The rest of the line that begins so.
fn field(text: &str, name: &str) -> Option<String> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

fn modules(text: &str) -> Vec<String> {
    const MATTER: [&str; 9] = [
        "efa",
        "ib_uverbs",
        "mlx5_ib",
        "nvidia",
        "nvidia_uvm",
        "efa_nv_peermem",
        "nvidia_peermem",
        "amdgpu",
        "neuron",
    ];
    let loaded = text.lines().filter_map(|line| line.split_whitespace().next());
    let mut found: Vec<String> = loaded.filter(|name| MATTER.contains(name)).map(str::to_owned).collect();
    found.sort();
    found
}

/// `always [madvise] never` is madvise.
fn chosen(text: &str) -> Option<String> {
    let (_, rest) = text.split_once('[')?;
    Some(rest.split_once(']')?.0.to_owned())
}

fn limits(text: &str) -> Limits {
    let limit = |name: &str| {
        let rest = field(text, name)?;
        let soft = rest.split_whitespace().next()?.to_owned();
        if soft == "unlimited" { Some(Limit::Unlimited) } else { soft.parse().ok().map(Limit::At) }
    };
    Limits {
        locked_memory_bytes: limit("Max locked memory"),
        open_files: limit("Max open files"),
        may_exceed_locked_memory: None,
    }
}

/// Whether a capability is effective.
fn capable(status: &str, capability: u32) -> Option<bool> {
    let effective = u64::from_str_radix(&field(status, "CapEff:")?, 16).ok()?;
    Some(effective >> capability & 1 == 1)
}

/// `4096 131072 6291456`
fn third(text: &str) -> Option<u64> {
    text.split_whitespace().nth(2)?.parse().ok()
}

fn mtu(root: &Path, topology: &Topology) -> BTreeMap<String, u32> {
    let interfaces = topology.nics.iter().filter(|nic| nic.kind == NicKind::Ethernet);
    let mtu = |name: &String| {
        let mtu = text(&root.join("sys/class/net").join(name).join("mtu"))?.parse().ok()?;
        Some((name.clone(), mtu))
    };
    interfaces.filter_map(|nic| mtu(&nic.name)).collect()
}

fn environment(vars: impl Iterator<Item = (String, String)>) -> BTreeMap<String, String> {
    let shown = vars.filter(|(name, _)| VARIABLES.iter().any(|beginning| name.starts_with(beginning)));
    shown
        .map(|(name, value)| {
            let upper = name.to_ascii_uppercase();
            let secret = ["SECRET", "PASSWORD", "TOKEN", "_KEY"].iter().any(|part| upper.contains(part));
            // URLs may carry a password.
            let value = if secret || value.contains('@') { "(set, not shown)".to_owned() } else { value };
            (name, value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn files_are_read_as_the_kernel_writes_them() {
        assert_eq!(count_list("0-3,8"), Some(5));
        assert_eq!(count_list("0"), Some(1));
        assert_eq!(memory("MemTotal:       24576000 kB\nMemFree: 1 kB"), Some(24_576_000 * 1024));
        assert_eq!(chosen("always [madvise] never"), Some("madvise".into()));
        let text = "Limit                     Soft Limit           Hard Limit           Units\n\
                    Max open files            20000                20000                files\n\
                    Max locked memory         unlimited            unlimited            bytes\n";
        let limits = limits(text);
        assert_eq!(limits.open_files, Some(Limit::At(20_000)));
        assert_eq!(limits.locked_memory_bytes, Some(Limit::Unlimited));
        assert_eq!(capable("CapEff:\t000001fffeffffff", CAP_SYS_PTRACE), Some(true));
        assert_eq!(capable("CapEff:\t00000000a80425fb", CAP_SYS_PTRACE), Some(false), "what a container has");
        assert_eq!(third("4096\t131072\t6291456"), Some(6_291_456));
        assert_eq!(modules("efa 100 0 - Live\next4 1 1\nib_uverbs 5 2"), ["efa", "ib_uverbs"]);
    }

    #[test]
    fn secrets_of_the_environment_stay_there() {
        let vars = [
            ("WEFT_SECRET", "hunter2"),
            ("MC_REDIS_PASSWORD", "x"),
            ("WEFT_METADATA", "redis://user:pass@host"),
            ("FI_PROVIDER", "efa"),
            ("HOME", "/root"),
        ];
        let shown = environment(vars.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        assert_eq!(shown.len(), 4);
        assert_eq!(shown["FI_PROVIDER"], "efa");
        assert!(shown.values().all(|value| !value.contains("hunter2") && !value.contains("pass@")));
    }

    #[test]
    fn an_empty_root_is_a_machine_of_which_nothing_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let facts = Facts::gather(dir.path());
        assert!(facts.topology.is_err() && facts.kernel.is_none() && facts.limits.open_files.is_none());
        assert_eq!((facts.gpus(), facts.cards().count(), facts.huge_page_bytes()), (0, 0, (0, 0)));
        assert_eq!(facts.same_host_refused(), None);
    }

    proptest! {
        #[test]
        fn nonsense_in_files_is_unknown_and_never_a_panic(text in "[ -~\n\t]{0,200}") {
            let _ = count_list(&text);
            let _ = memory(&text);
            let _ = chosen(&text);
            let _ = limits(&text);
            let _ = capable(&text, CAP_SYS_PTRACE);
            let _ = third(&text);
            let _ = modules(&text);
        }
    }
}
