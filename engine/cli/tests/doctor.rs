//! `weft doctor` on three machines, as docs/doctor shows them. `WEFT_BLESS=1` writes the files anew.
#![allow(clippy::unwrap_used)] // a test fails by panicking

mod common;

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{libfabric_2, run, skip, use_libfabric, weft};

/// A machine's files below a directory that is deleted when dropped.
struct Machine(tempfile::TempDir);

impl Machine {
    fn empty() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn root(&self) -> &Path {
        self.0.path()
    }

    fn file(&self, path: &str, text: &str) {
        let file = self.root().join(path);
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(file, format!("{text}\n")).unwrap();
    }

    /// What /proc says of a process that may do little, on a machine with default settings.
    fn with_proc(self) -> Self {
        self.file("proc/sys/kernel/osrelease", "6.8.0-1021-aws");
        self.file("proc/meminfo", "MemTotal:       2097152000 kB\nMemFree:        1000000000 kB");
        self.file(
            "proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max open files            1024                 1048576              files\n\
             Max locked memory         8388608              8388608              bytes",
        );
        self.file("proc/self/status", "Name:\tweft\nCapEff:\t0000000000000000\nSeccomp:\t0");
        self.file("proc/sys/kernel/yama/ptrace_scope", "1");
        self.file("proc/sys/net/ipv4/tcp_congestion_control", "cubic");
        self.file("proc/sys/net/ipv4/tcp_available_congestion_control", "reno cubic");
        self.file("proc/sys/net/ipv4/tcp_rmem", "4096\t131072\t6291456");
        self.file("proc/sys/net/ipv4/tcp_wmem", "4096\t16384\t4194304");
        self.file("proc/modules", "ena 147456 0 - Live\nefa 131072 16 - Live\nib_uverbs 180224 17 efa, Live");
        self
    }

    /// What every sysfs has.
    fn with_sys(self, nodes: u32) -> Self {
        self.file("sys/devices/system/cpu/online", "0-191");
        self.file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never");
        for node in 0..nodes {
            let cpus = 192 / nodes;
            self.file(
                &format!("sys/devices/system/node/node{node}/cpulist"),
                &format!("{}-{}", node * cpus, (node + 1) * cpus - 1),
            );
        }
        self
    }

    /// An interface of ENA.
    fn with_interface(self) -> Self {
        let device = "sys/devices/pci0000:00/0000:00:05.0";
        self.file(&format!("{device}/vendor"), "0x1d0f");
        self.file(&format!("{device}/device"), "0xec20");
        self.file(&format!("{device}/class"), "0x020000");
        self.file(&format!("{device}/numa_node"), "-1");
        self.file("sys/class/net/ens5/mtu", "1500");
        self.file("sys/class/net/ens5/speed", "25000");
        symlink(self.root().join(device), self.root().join("sys/class/net/ens5/device")).unwrap();
        self
    }
}

/// `weft doctor` below a root.
fn doctor(machine: &Machine) -> Command {
    let mut command = weft();
    command.args(["doctor", "--root"]).arg(machine.root());
    command
}

/// What differs between machines that run the test is replaced by a word.
fn normalised(text: &str, machine: &Machine) -> String {
    let text = text.replace(machine.root().to_str().unwrap(), "ROOT");
    let line = |line: &str| {
        let trimmed = line.trim_start();
        let indent = &line[..line.len() - trimmed.len()];
        if let Some(names) = trimmed.strip_prefix("libfabric's providers: ") {
            // Which software providers a build has is up to its builder.
            let efa: Vec<&str> = names.split(", ").filter(|name| name.starts_with("efa/")).collect();
            let others =
                if efa.is_empty() { "PROVIDERS".to_owned() } else { format!("{}, OTHERS", efa.join(", ")) };
            format!("{indent}libfabric's providers: {others}")
        } else if trimmed.starts_with("libfabric ") && trimmed.contains(" (/") {
            format!("{indent}libfabric VERSION (PATH)")
        } else if trimmed.starts_with("environment: ") {
            let words = trimmed.split(' ').map(|word| match word.split_once('=') {
                Some((name, value)) if value.starts_with('/') => format!("{name}=PATH"),
                _ => word.to_owned(),
            });
            format!("{indent}{}", words.collect::<Vec<_>>().join(" "))
        } else {
            line.to_owned()
        }
    };
    text.lines().map(line).collect::<Vec<_>>().join("\n") + "\n"
}

fn compare(name: &str, found: &str) {
    let file = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/doctor").join(name);
    if std::env::var_os("WEFT_BLESS").is_some() {
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, found).unwrap();
    }
    let wanted = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{file:?}: {error}"));
    assert_eq!(found, wanted, "{file:?} shows something else; if that is right, WEFT_BLESS=1 writes it anew");
}

#[test]
fn a_machine_without_efa() {
    let machine = Machine::empty().with_proc().with_sys(1).with_interface();
    let report = run(&mut doctor(&machine)).expect(0);
    if report.stdout.contains("no libfabric: ") {
        return skip(
            "a_machine_without_efa",
            "no libfabric here, and the machine that docs/doctor shows has one",
        );
    }
    compare("no-efa.txt", &normalised(&report.stdout, &machine));
    assert_eq!(report.stderr, "");
}

#[test]
fn sixteen_software_cards() {
    let Some(library) = libfabric_2() else {
        return skip("sixteen_software_cards", "no libfabric 2.x; `cargo xtask libfabric` makes one");
    };
    let profile = soft_efa::Profile::named("p5en").unwrap();
    let network = match soft_efa::Network::new(16, profile) {
        Ok(network) => network,
        Err(error) => return skip("sixteen_software_cards", &error.to_string()),
    };
    let machine = Machine::empty().with_proc().with_interface().with_sys(2);
    // The same cards in the machine's own tree, where the run's scratch directory is not in the way.
    soft_efa::sysfs::build(machine.root(), &profile, 16).unwrap();
    let mut command = doctor(&machine);
    use_libfabric(&mut command, &library);
    network.prepare(&mut command);
    let report = run(&mut command).expect(0);
    compare("soft-efa-16.txt", &normalised(&report.stdout, &machine));

    // For programs: the same facts.
    let mut command = doctor(&machine);
    use_libfabric(&mut command, &library);
    network.prepare(&mut command);
    let json = run(command.arg("--json")).expect(0).json();
    assert_eq!(json["facts"]["fabric"]["path"]["nics"].as_array().unwrap().len(), 16, "{json}");
    assert_eq!(json["facts"]["limits"]["locked_memory_bytes"], serde_json::json!(8 << 20), "{json}");
    let broken =
        json["advice"].as_array().unwrap().iter().filter(|advice| advice["grade"] == "broken").count();
    assert_eq!(broken, 1, "{json}");

    // The same machine when somebody forces TCP.
    let mut command = doctor(&machine);
    use_libfabric(&mut command, &library);
    network.prepare(&mut command);
    let forced = run(command.env("MC_FORCE_TCP", "1")).expect(0).stdout;
    assert!(forced.contains("MC_FORCE_TCP forces TCP although"), "{forced}");
}

#[test]
fn a_container_without_sysfs() {
    let machine = Machine::empty().with_proc();
    let mut command = doctor(&machine);
    command.env("FABRIC_LIBRARY", machine.root().join("libfabric.so.1"));
    let report = run(&mut command).expect(0);
    compare("no-sysfs.txt", &normalised(&report.stdout, &machine));
}

#[test]
fn this_machine_is_told_of_too() {
    let report = run(weft().arg("doctor")).expect(0);
    for part in ["What is here", "Which way transfers take", "What to do", "to a host with"] {
        assert!(report.stdout.contains(part), "{}", report.stdout);
    }
    let forced = run(weft().args(["doctor", "--protocol", "tcp"])).expect(0).stdout;
    assert!(
        forced.contains("not here: --protocol tcp") || forced.contains("not here: no libfabric"),
        "{forced}"
    );
}
