//! Reading sysfs. Every file may be absent, unreadable, or full of nonsense.

use super::{GpuPlace, HugePages, NicKind, NicPlace, Node, PciPath, Topology};
use crate::buffer::PageSize;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

const AMAZON: u16 = 0x1d0f;
const NVIDIA: u16 = 0x10de;
const AMD: u16 = 0x1002;

/// A PCI device: its directory and what identifies it.
struct Device {
    dir: PathBuf,
    path: PciPath,
    vendor: u16,
    device: u16,
    /// Class, subclass and programming interface.
    class: u32,
    driver: Option<String>,
    numa: Option<u16>,
}

pub(super) fn read(root: &Path) -> io::Result<Topology> {
    fs::read_dir(root)?;
    let devices: Vec<Device> =
        entries(&root.join("bus/pci/devices")).into_iter().filter_map(|entry| Device::read(&entry)).collect();
    let mut nics = rdma_nics(root);
    // EFA cards that no driver has taken: worth telling.
    for device in devices.iter().filter(|device| device.is_efa()) {
        if !nics.iter().any(|nic| nic.pci == device.path) {
            nics.push(NicPlace {
                name: device.path.to_string(),
                kind: NicKind::Efa,
                usable: false,
                link_mbps: None,
                pci: device.path.clone(),
                numa: device.numa,
            });
        }
    }
    let rdma = nics.len();
    for interface in entries(&root.join("class/net")) {
        let Some(device) = Device::read(&interface.join("device")) else { continue };
        // An interface of an RDMA card is that card.
        let known = nics[..rdma].iter().any(|nic| nic.pci == device.path);
        if device.class >> 16 == 0x02 && !known {
            nics.push(NicPlace {
                name: name(&interface),
                kind: NicKind::Ethernet,
                usable: true,
                link_mbps: number(&interface.join("speed")).and_then(|mbps| u32::try_from(mbps).ok()),
                pci: device.path,
                numa: device.numa,
            });
        }
    }
    // Unknown places last.
    nics.sort_by(|a, b| {
        let key = |nic: &NicPlace| (nic.pci.address().is_none(), order(&nic.pci), nic.name.clone());
        key(a).cmp(&key(b))
    });
    let mut gpus: Vec<&Device> = devices.iter().filter(|device| device.is_gpu()).collect();
    gpus.sort_by_key(|device| order(&device.path));
    let gpu = |(ordinal, device): (usize, &Device)| GpuPlace {
        ordinal: u16::try_from(ordinal).unwrap_or(u16::MAX),
        vendor: device.vendor,
        pci: device.path.clone(),
        numa: device.numa,
    };
    Ok(Topology { nics, gpus: gpus.into_iter().enumerate().map(gpu).collect(), nodes: nodes(root) })
}

/// Everything in `class/infiniband`.
fn rdma_nics(root: &Path) -> Vec<NicPlace> {
    let nic = |entry: PathBuf| {
        let device = Device::read(&entry.join("device"));
        let efa_by_name = || name(&entry).starts_with("rdmap") || name(&entry).starts_with("efa");
        let kind = match &device {
            Some(device) if device.is_efa() => NicKind::Efa,
            Some(_) => NicKind::Rdma,
            // A container that shows the class but not the device: rdmap<bus>s<slot> is what udev calls EFA cards.
            None if efa_by_name() => NicKind::Efa,
            None => NicKind::Rdma,
        };
        NicPlace {
            name: name(&entry),
            kind,
            usable: true,
            link_mbps: text(&entry.join("ports/1/rate")).and_then(|rate| rate_mbps(&rate)),
            numa: device.as_ref().and_then(|device| device.numa),
            pci: device.map(|device| device.path).unwrap_or_default(),
        }
    };
    entries(&root.join("class/infiniband")).into_iter().map(nic).collect()
}

impl Device {
    fn read(link: &Path) -> Option<Self> {
        let dir = fs::canonicalize(link).ok()?;
        let path = pci_path(&dir)?;
        let id = |file| hex(&dir.join(file)).unwrap_or(0);
        Some(Self {
            path,
            vendor: u16::try_from(id("vendor")).unwrap_or(0),
            device: u16::try_from(id("device")).unwrap_or(0),
            class: id("class"),
            driver: fs::read_link(dir.join("driver")).ok().map(|link| name(&link)),
            // −1 stands for unknown.
            numa: number(&dir.join("numa_node")).and_then(|node| u16::try_from(node).ok()),
            dir,
        })
    }

    fn is_efa(&self) -> bool {
        self.driver.as_deref() == Some("efa")
            || (self.vendor == AMAZON && (0xefa0..=0xefaf).contains(&self.device))
    }

    /// 3D controllers and processing accelerators; display controllers only from those who make GPUs for computing (not the
    /// graphics of a mainboard or of a hypervisor).
    fn is_gpu(&self) -> bool {
        match self.class >> 8 {
            0x0302 | 0x1200 => self.vendor == NVIDIA || self.vendor == AMD || self.dir.join("drm").exists(),
            0x0300 => self.vendor == NVIDIA || self.vendor == AMD,
            _ => false,
        }
    }
}

/// The components of a device directory from its host bridge on.
fn pci_path(dir: &Path) -> Option<PciPath> {
    let names = dir.components().filter_map(|component| match component {
        Component::Normal(name) => name.to_str().map(str::to_owned),
        _ => None,
    });
    let path: Vec<String> = names.skip_while(|name| !is_host_bridge(name)).collect();
    // The host bridge and at least the device.
    (path.len() >= 2 && path[1..].iter().all(|name| parse_address(name).is_some()))
        .then(|| PciPath::new(path))
}

/// `pci0000:10`
fn is_host_bridge(name: &str) -> bool {
    name.strip_prefix("pci").and_then(|rest| rest.split_once(':')).is_some_and(|(domain, bus)| {
        u32::from_str_radix(domain, 16).is_ok() && u8::from_str_radix(bus, 16).is_ok()
    })
}

/// `0000:10:1b.0`
fn parse_address(address: &str) -> Option<(u32, u8, u8, u8)> {
    let mut parts = address.split(':');
    let domain = u32::from_str_radix(parts.next()?, 16).ok()?;
    let bus = u8::from_str_radix(parts.next()?, 16).ok()?;
    let (device, function) = parts.next()?.split_once('.')?;
    let all = (domain, bus, u8::from_str_radix(device, 16).ok()?, u8::from_str_radix(function, 16).ok()?);
    parts.next().is_none().then_some(all)
}

fn order(path: &PciPath) -> Option<(u32, u8, u8, u8)> {
    parse_address(path.address()?)
}

fn nodes(root: &Path) -> Vec<Node> {
    let node = |dir: PathBuf| {
        let number = name(&dir).strip_prefix("node")?.parse().ok()?;
        let pools = entries(&dir.join("hugepages")).into_iter().filter_map(|pool| huge_pages(&pool));
        let mut huge_pages: Vec<HugePages> = pools.collect();
        huge_pages.sort_by_key(|huge| huge.page_bytes);
        Some(Node { node: number, cpus: text(&dir.join("cpulist")).unwrap_or_default(), huge_pages })
    };
    let mut nodes: Vec<Node> =
        entries(&root.join("devices/system/node")).into_iter().filter_map(node).collect();
    nodes.sort_by_key(|node| node.node);
    nodes
}

/// `hugepages-2048kB`
fn huge_pages(pool: &Path) -> Option<HugePages> {
    let name = name(pool);
    let kib: u64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
    let page = PageSize::new(kib.checked_mul(1024)?)?;
    let count = |file| number(&pool.join(file)).and_then(|count| u64::try_from(count).ok()).unwrap_or(0);
    Some(HugePages { page_bytes: page.bytes(), total: count("nr_hugepages"), free: count("free_hugepages") })
}

/// `100 Gb/sec (4X EDR)`
fn rate_mbps(rate: &str) -> Option<u32> {
    let (number, unit) = rate.split_once(' ')?;
    let number: f64 = number.parse().ok()?;
    let mbps = number * if unit.starts_with("Gb/sec") { 1_000.0 } else { return None };
    (mbps >= 1.0 && mbps <= f64::from(u32::MAX)).then_some(mbps as u32)
}

/// The entries of a directory in order of name; none if it cannot be read.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut entries: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    entries.sort();
    entries
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or(OsStr::new("")).to_string_lossy().into_owned()
}

/// A file's text without surrounding space.
fn text(file: &Path) -> Option<String> {
    Some(fs::read_to_string(file).ok()?.trim().to_owned())
}

fn number(file: &Path) -> Option<i64> {
    text(file)?.parse().ok()
}

/// `0x1d0f`
fn hex(file: &Path) -> Option<u32> {
    u32::from_str_radix(text(file)?.strip_prefix("0x")?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_addresses_are_read_or_refused() {
        assert_eq!(rate_mbps("100 Gb/sec (4X EDR)"), Some(100_000));
        assert_eq!(rate_mbps("2.5 Gb/sec (1X SDR)"), Some(2_500));
        assert_eq!(rate_mbps("NaN Gb/sec"), None);
        assert_eq!(rate_mbps("1e99 Gb/sec"), None);
        assert_eq!(rate_mbps("fast"), None);
        assert_eq!(parse_address("0000:10:1b.0"), Some((0, 0x10, 0x1b, 0)));
        for bad in ["", "0000:10", "0000:10:1b", "0000:10:1b.0:1", "x:10:1b.0", "0000:100:1b.0"] {
            assert_eq!(parse_address(bad), None, "{bad}");
        }
        assert!(pci_path(Path::new("/sys/devices/virtual/net/lo")).is_none());
        let path = pci_path(Path::new("/sys/devices/pci0000:10/0000:10:1b.0")).unwrap();
        assert_eq!(path.address(), Some("0000:10:1b.0"));
    }
}
