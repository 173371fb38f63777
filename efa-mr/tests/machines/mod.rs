//! The sysfs trees of machines, built on the fly.
//!
//! They are **reconstructed from public facts** (numbers of cards and GPUs, link speeds, which cards share a switch with which GPU,
//! NUMA nodes, the PCI ids of the drivers; for p4d and p5 also the bus numbers that occur in published device names such as
//! `rdmap16s27`). They were not captured on such machines: bridges between host bridge and device are an assumption, and so
//! are bus numbers elsewhere.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use tempfile::TempDir;

/// A tree that is deleted when dropped.
pub(crate) struct Machine(TempDir);

impl Machine {
    pub(crate) fn root(&self) -> &Path {
        self.0.path()
    }

    pub(crate) fn empty() -> Self {
        Self(TempDir::new().unwrap())
    }

    pub(crate) fn file(&self, path: &str, text: &str) {
        let file = self.root().join(path);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(file, format!("{text}\n")).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let link = self.root().join(path);
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        symlink(self.root().join(target), link).unwrap();
    }

    /// A PCI device. `path` begins with the host bridge; returns its directory.
    pub(crate) fn device(&self, path: &str, ids: (u16, u16, u32), numa: i32, driver: Option<&str>) -> String {
        let dir = format!("devices/{path}");
        let address = path.rsplit('/').next().unwrap();
        self.file(&format!("{dir}/vendor"), &format!("{:#06x}", ids.0));
        self.file(&format!("{dir}/device"), &format!("{:#06x}", ids.1));
        self.file(&format!("{dir}/class"), &format!("{:#08x}", ids.2));
        self.file(&format!("{dir}/numa_node"), &numa.to_string());
        self.link(&format!("bus/pci/devices/{address}"), &dir);
        if let Some(driver) = driver {
            fs::create_dir_all(self.root().join(format!("bus/pci/drivers/{driver}"))).unwrap();
            self.link(&format!("{dir}/driver"), &format!("bus/pci/drivers/{driver}"));
        }
        dir
    }

    /// An EFA card named after its place.
    pub(crate) fn efa(&self, path: &str, numa: i32, gbps: u32) {
        let dir = self.device(path, (0x1d0f, 0xefa2, 0x02_0000), numa, Some("efa"));
        let address = path.rsplit('/').next().unwrap();
        let hex = |range: std::ops::Range<usize>| u8::from_str_radix(&address[range], 16).unwrap();
        let name = format!("rdmap{}s{}", hex(5..7), hex(8..10));
        self.file(&format!("{dir}/infiniband/{name}/ports/1/rate"), &format!("{gbps} Gb/sec (4X EDR)"));
        self.link(&format!("{dir}/infiniband/{name}/device"), &dir);
        self.link(&format!("class/infiniband/{name}"), &format!("{dir}/infiniband/{name}"));
    }

    pub(crate) fn gpu(&self, path: &str, numa: i32) {
        self.device(path, (0x10de, 0x2330, 0x03_0200), numa, Some("nvidia"));
    }

    pub(crate) fn interface(&self, name: &str, path: &str, ids: (u16, u16, u32), numa: i32, driver: &str) {
        let dir = self.device(path, ids, numa, Some(driver));
        self.file(&format!("{dir}/net/{name}/speed"), "-1");
        self.link(&format!("{dir}/net/{name}/device"), &dir);
        self.link(&format!("class/net/{name}"), &format!("{dir}/net/{name}"));
    }

    pub(crate) fn nodes(&self, count: u16, cpus: u16, huge_2m: u64) {
        for node in 0..count {
            let dir = format!("devices/system/node/node{node}");
            self.file(&format!("{dir}/cpulist"), &format!("{}-{}", node * cpus, (node + 1) * cpus - 1));
            self.file(&format!("{dir}/hugepages/hugepages-2048kB/nr_hugepages"), &huge_2m.to_string());
            self.file(
                &format!("{dir}/hugepages/hugepages-2048kB/free_hugepages"),
                &(huge_2m / 2).to_string(),
            );
            self.file(&format!("{dir}/hugepages/hugepages-1048576kB/nr_hugepages"), "0");
        }
    }

    fn ena(&self, path: &str) {
        self.interface("ens32", path, (0x1d0f, 0xec20, 0x02_0000), 0, "ena");
    }

    /// Eight GPUs with `nics` cards each below their own switch, four on each node.
    fn switched(gpu_buses: [u8; 8], first_nic_buses: [u8; 8], nics: u8, gbps: u32) -> Self {
        let machine = Self::empty();
        machine.nodes(2, 96, 4096);
        machine.ena("pci0000:00/0000:00:05.0");
        for (gpu, (bus, nic_bus)) in gpu_buses.into_iter().zip(first_nic_buses).enumerate() {
            let numa = i32::from(gpu >= 4);
            // Host bridge, root port, the switch's upstream port, its downstream ports, the device.
            let root = nic_bus - 3;
            let up = format!("pci0000:{root:02x}/0000:{root:02x}:00.0/0000:{:02x}:00.0", root + 1);
            for nic in 0..nics {
                machine.efa(
                    &format!("{up}/0000:{:02x}:{nic:02x}.0/0000:{:02x}:00.0", root + 2, nic_bus + nic),
                    numa,
                    gbps,
                );
            }
            machine.gpu(&format!("{up}/0000:{:02x}:10.0/0000:{bus:02x}:00.0", root + 2), numa);
        }
        machine
    }

    /// 4 cards of 100 Gbit/s and 8 GPUs: a card and two GPUs on each of four host bridges.
    pub(crate) fn p4d() -> Self {
        let machine = Self::empty();
        machine.nodes(2, 48, 0);
        machine.ena("pci0000:00/0000:00:05.0");
        for (bus, numa) in [(0x10, 0), (0x20, 0), (0x90, 1), (0xa0, 1)] {
            machine.efa(&format!("pci0000:{bus:02x}/0000:{bus:02x}:1b.0"), numa, 100);
            machine.gpu(&format!("pci0000:{bus:02x}/0000:{bus:02x}:1c.0"), numa);
            machine.gpu(&format!("pci0000:{bus:02x}/0000:{bus:02x}:1d.0"), numa);
        }
        machine
    }

    /// 32 cards of 100 Gbit/s, four for each of 8 GPUs.
    pub(crate) fn p5() -> Self {
        Self::switched(
            [0x53, 0x64, 0x75, 0x86, 0x97, 0xa8, 0xb9, 0xca],
            [0x4f, 0x60, 0x71, 0x82, 0x93, 0xa4, 0xb5, 0xc6],
            4,
            100,
        )
    }

    /// 16 cards of 200 Gbit/s, two for each of 8 GPUs.
    pub(crate) fn p5en() -> Self {
        let nics = [0x10, 0x20, 0x30, 0x40, 0x90, 0xa0, 0xb0, 0xc0];
        Self::switched(nics.map(|bus| bus + 8), nics, 2, 200)
    }

    /// 8 cards of 400 Gbit/s, one for each of 8 GPUs.
    pub(crate) fn p6_b200() -> Self {
        let nics = [0x10, 0x20, 0x30, 0x40, 0x90, 0xa0, 0xb0, 0xc0];
        Self::switched(nics.map(|bus| bus + 8), nics, 1, 400)
    }

    /// 16 cards of 400 Gbit/s, two for each of 8 GPUs.
    pub(crate) fn p6_b300() -> Self {
        let nics = [0x10, 0x20, 0x30, 0x40, 0x90, 0xa0, 0xb0, 0xc0];
        Self::switched(nics.map(|bus| bus + 8), nics, 2, 400)
    }

    /// g6.48xlarge: one card of 100 Gbit/s and 8 small GPUs, all on host bridges without switches.
    pub(crate) fn g6() -> Self {
        let machine = Self::empty();
        machine.nodes(2, 96, 0);
        machine.ena("pci0000:00/0000:00:05.0");
        machine.efa("pci0000:9a/0000:9a:00.0", 1, 100);
        for gpu in 0..8 {
            let bus = [0x30, 0x32, 0x34, 0x36, 0x9b, 0x9d, 0x9f, 0xa1][gpu];
            machine.gpu(&format!("pci0000:{bus:02x}/0000:{bus:02x}:00.0"), i32::from(gpu >= 4));
        }
        machine
    }

    /// Built-in graphics, Ethernet, Wi-Fi; no NUMA information.
    pub(crate) fn laptop() -> Self {
        let machine = Self::empty();
        machine.device("pci0000:00/0000:00:02.0", (0x8086, 0x9a49, 0x03_0000), -1, Some("i915"));
        machine.interface(
            "enp1s0",
            "pci0000:00/0000:00:1c.0/0000:01:00.0",
            (0x8086, 0x15f3, 0x02_0000),
            -1,
            "igc",
        );
        machine.interface(
            "wlp2s0",
            "pci0000:00/0000:00:1c.1/0000:02:00.0",
            (0x8086, 0x2725, 0x02_8000),
            -1,
            "iwlwifi",
        );
        machine.file("class/net/enp1s0/speed", "1000");
        machine.file("devices/virtual/net/lo/mtu", "65536");
        machine.link("class/net/lo", "devices/virtual/net/lo");
        machine.nodes(1, 8, 0);
        machine
    }

    /// A container on a p4d that sees the names of two cards and little else: dangling links, no bus, no nodes.
    pub(crate) fn container() -> Self {
        let machine = Self::empty();
        for name in ["rdmap16s27", "rdmap32s27"] {
            machine.link(&format!("class/infiniband/{name}"), &format!("devices/gone/{name}"));
        }
        machine.file("class/infiniband/mlx5_0/node_desc", "x");
        machine.file("class/infiniband/mlx5_0/ports/1/rate", "fast");
        machine.file("devices/system/node/online", "0-1");
        machine.file("devices/system/node/nodeX/cpulist", "0");
        machine
    }
}
