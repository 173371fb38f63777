//! Where NICs, GPUs and memory are, relative to each other, as sysfs tells it.
//!
//! [`Topology::of_this_machine`] reads `/sys`; [`Topology::read`] any other root, such as a fixture or a host's tree that is mounted
//! into a container. Everything is optional: what a container hides is unknown, not an error. The result gives the planner its
//! [`Nic`]s ([`Topology::nics`]) and is written and read as the priority matrix that Mooncake's users have ([`PriorityMatrix`]).
//!
//! Distances come from the path of a device through the bridges: two devices below one bridge share a PCIe switch
//! ([`Distance::SameSwitch`]), two on one host bridge a root ([`Distance::SameRoot`]), and after that it is the NUMA node that
//! counts. Virtual machines often show a flattened tree in which each physical switch appears as a host bridge of its own (p4d does):
//! then "same root" is as near as it gets, and as the planner only compares, that is all it needs.

mod filter;
mod matrix;
mod sysfs;

pub use filter::{BadFilter, Filter};
pub use matrix::{MatrixError, PriorityMatrix};

use crate::buffer::{Location, PageSize};
use crate::nic::{Distance, Nic};
use serde::Serialize;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

/// Why there is no topology at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path:?}: {source}; is sysfs mounted there?")]
pub struct TopologyError {
    path: PathBuf,
    source: io::Error,
}

/// A machine's NICs, GPUs and memory nodes.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Topology {
    /// In order of PCI address, those without one last.
    pub nics: Vec<NicPlace>,
    /// In order of PCI address, which is CUDA's order under `CUDA_DEVICE_ORDER=PCI_BUS_ID`; [`Topology::number_gpus`] puts them
    /// into CUDA's own.
    pub gpus: Vec<GpuPlace>,
    /// In order of number.
    pub nodes: Vec<Node>,
}

/// What drives a NIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum NicKind {
    /// An Elastic Fabric Adapter.
    Efa,
    /// Another RDMA device.
    Rdma,
    /// A network interface without RDMA.
    Ethernet,
}

impl fmt::Display for NicKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Efa => "efa",
            Self::Rdma => "rdma",
            Self::Ethernet => "ethernet",
        })
    }
}

/// A NIC and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NicPlace {
    /// The kernel's name of the RDMA device or interface; the PCI address if no driver has taken the card.
    pub name: String,
    /// What it is.
    pub kind: NicKind,
    /// Whether a driver has taken it.
    pub usable: bool,
    /// Link speed in Mbit/s, if known.
    pub link_mbps: Option<u32>,
    /// Place on the bus.
    pub pci: PciPath,
    /// NUMA node, if known.
    pub numa: Option<u16>,
}

/// A GPU and its place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GpuPlace {
    /// Number as in [`Location::Gpu`].
    pub ordinal: u16,
    /// PCI vendor, 0x10de for NVIDIA.
    pub vendor: u16,
    /// Place on the bus.
    pub pci: PciPath,
    /// NUMA node, if known.
    pub numa: Option<u16>,
}

/// A NUMA node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Number.
    pub node: u16,
    /// Processors, as the kernel writes lists (`0-47,96-143`).
    pub cpus: String,
    /// Reserved huge pages, by page size.
    pub huge_pages: Vec<HugePages>,
}

/// Reserved huge pages of one size on one node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// Bytes in one page.
    pub page_bytes: u64,
    /// Pages reserved.
    pub total: u64,
    /// Pages not in use.
    pub free: u64,
}

/// The way to a PCI device from its host bridge: `pci0000:10`, then each bridge, then the device. Empty if unknown.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize)]
#[serde(transparent)]
pub struct PciPath(Vec<String>);

impl PciPath {
    /// A path from its components.
    #[must_use]
    pub fn new(components: Vec<String>) -> Self {
        Self(components)
    }

    /// The device's address, `0000:10:1b.0`.
    #[must_use]
    pub fn address(&self) -> Option<&str> {
        self.0.last().map(String::as_str)
    }

    /// Links to cross between two devices: up to what they share and down again. `None` if they share nothing or are unknown.
    #[must_use]
    pub fn hops(&self, other: &Self) -> Option<usize> {
        let shared = self.shared(other);
        (shared > 0).then(|| self.0.len() + other.0.len() - 2 * shared)
    }

    /// Leading components in common.
    fn shared(&self, other: &Self) -> usize {
        self.0.iter().zip(&other.0).take_while(|(a, b)| a == b).count()
    }

    fn distance(&self, other: &Self) -> Option<Distance> {
        match self.shared(other) {
            0 => None,
            1 => Some(Distance::SameRoot),
            _ => Some(Distance::SameSwitch),
        }
    }
}

impl fmt::Display for PciPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.address().unwrap_or("?"))
    }
}

impl NicPlace {
    /// Distance to memory.
    #[must_use]
    pub fn distance(&self, location: Location, gpus: &[GpuPlace]) -> Distance {
        let node = |numa: Option<u16>| match (numa, self.numa) {
            (Some(theirs), Some(ours)) if theirs == ours => Distance::SameNode,
            _ => Distance::OtherNode,
        };
        match location {
            Location::Host => Distance::OtherNode,
            Location::Numa(numa) => node(Some(numa)),
            Location::Gpu(ordinal) => {
                gpus.iter().find(|gpu| gpu.ordinal == ordinal).map_or(Distance::OtherNode, |gpu| {
                    self.pci.distance(&gpu.pci).unwrap_or_else(|| node(gpu.numa))
                })
            }
        }
    }
}

impl Topology {
    /// This machine, from `/sys`.
    ///
    /// # Errors
    /// [`TopologyError`] if there is no `/sys`.
    pub fn of_this_machine() -> Result<Self, TopologyError> {
        Self::read(Path::new("/sys"))
    }

    /// The machine whose sysfs is at `root`.
    ///
    /// # Errors
    /// [`TopologyError`] if `root` is not a directory that can be read. What is missing in it is left out.
    pub fn read(root: &Path) -> Result<Self, TopologyError> {
        sysfs::read(root).map_err(|source| TopologyError { path: root.to_owned(), source })
    }

    /// The NICs that a filter lets through; everything else stays.
    #[must_use]
    pub fn filtered(mut self, filter: &Filter) -> Self {
        self.nics.retain(|nic| filter.accepts(&nic.name));
        self
    }

    /// Only the EFA cards; everything else stays.
    #[must_use]
    pub fn only_efa(mut self) -> Self {
        self.nics.retain(|nic| nic.kind == NicKind::Efa);
        self
    }

    /// Numbers the GPUs as CUDA does: `order` has the PCI addresses in CUDA's order. GPUs that are not in it (hidden by
    /// `CUDA_VISIBLE_DEVICES`) are dropped.
    pub fn number_gpus<S: AsRef<str>>(&mut self, order: &[S]) {
        let place = |gpu: &GpuPlace| {
            order.iter().position(|address| {
                gpu.pci.address().is_some_and(|own| own.eq_ignore_ascii_case(address.as_ref()))
            })
        };
        self.gpus.retain_mut(|gpu| match place(gpu).and_then(|at| u16::try_from(at).ok()) {
            Some(ordinal) => {
                gpu.ordinal = ordinal;
                true
            }
            None => false,
        });
        self.gpus.sort_by_key(|gpu| gpu.ordinal);
    }

    /// Every location that this machine has memory at.
    #[must_use]
    pub fn locations(&self) -> Vec<Location> {
        let nodes = self.nodes.iter().map(|node| Location::Numa(node.node));
        nodes.chain(self.gpus.iter().map(|gpu| Location::Gpu(gpu.ordinal))).collect()
    }

    /// The usable NICs for the planner, with default budgets, in order. NICs of unknown speed count as the slowest known one.
    #[must_use]
    pub fn nics(&self) -> Vec<Nic> {
        let slowest = self.nics.iter().filter_map(|nic| nic.link_mbps).filter(|mbps| *mbps > 0).min();
        let nic = |place: &NicPlace| Nic {
            link_mbps: place.link_mbps.filter(|mbps| *mbps > 0).or(slowest).unwrap_or(100_000),
            numa: place.numa,
            distances: self
                .locations()
                .into_iter()
                .map(|location| (location, place.distance(location, &self.gpus)))
                .collect(),
            ..Nic::new(place.name.clone())
        };
        self.nics.iter().filter(|nic| nic.usable).map(nic).collect()
    }

    /// Reserved huge pages of a size over all nodes: total and free.
    #[must_use]
    pub fn huge_pages(&self, page: PageSize) -> (u64, u64) {
        let all = self.nodes.iter().flat_map(|node| &node.huge_pages);
        let of_size = all.filter(|huge| huge.page_bytes == page.bytes());
        of_size.fold((0, 0), |(total, free), huge| (total + huge.total, free + huge.free))
    }
}
