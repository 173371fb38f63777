//! The facts about the cards that programs look up in sysfs and /dev, under a root of the run's own.
//!
//! `SYSFS_PATH` points libfabric at `DIR/sys`; for programs that have `/sys/class/infiniband` and `/dev/infiniband` built in, the
//! launcher's preload library redirects those two prefixes there (`native/redirect.c`).

use crate::profile::Profile;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where the sysfs of a run is.
pub fn root(dir: &Path) -> PathBuf {
    dir.join("sys")
}

/// Where the run's /dev is.
pub fn dev_root(dir: &Path) -> PathBuf {
    dir.join("dev")
}

/// Makes the tree for `nics` cards. Harmless when it is there already.
///
/// # Errors
/// When a directory or file cannot be made under `dir`.
pub fn build(dir: &Path, profile: &Profile, nics: usize) -> io::Result<()> {
    let sys = root(dir);
    let done = sys.join(format!(".complete-{}-{nics}", profile.name));
    if done.exists() {
        return Ok(());
    }
    let verbs = sys.join("class/infiniband_verbs");
    let infiniband = sys.join("class/infiniband");
    let driver = sys.join("bus/pci/drivers/efa");
    let dev = dev_root(dir).join("infiniband");
    for path in [&verbs, &infiniband, &driver, &dev] {
        std::fs::create_dir_all(path)?;
    }
    write(&verbs.join("abi_version"), "6")?;
    for card in 0..nics {
        let name = profile.card_name(card);
        let place = profile.placement(card);
        let device = sys.join(format!("devices/pci{:04x}:{:02x}/{}", place.domain, place.bus, place.pci()));
        std::fs::create_dir_all(&device)?;
        write(&device.join("numa_node"), &place.numa.to_string())?;
        write(&device.join("vendor"), "0x1d0f")?;
        write(&device.join("device"), &format!("0x{:04x}", profile.part_id))?;
        write(&device.join("class"), "0x020000")?;
        write(&device.join("local_cpulist"), "0-1023")?;
        write(&device.join("max_link_speed"), "32.0 GT/s PCIe")?;
        write(&device.join("max_link_width"), "16")?;
        write(&device.join("current_link_speed"), "32.0 GT/s PCIe")?;
        write(&device.join("current_link_width"), "16")?;
        link(&driver, &device.join("driver"))?;

        let class = infiniband.join(&name);
        let port = class.join("ports/1");
        std::fs::create_dir_all(port.join("gids"))?;
        link(&device, &class.join("device"))?;
        write(&class.join("node_type"), "7: unspecified")?;
        write(&class.join("fw_ver"), "0.0.0.0-soft-efa")?;
        write(&class.join("node_desc"), "soft-efa")?;
        write(&port.join("state"), "4: ACTIVE")?;
        write(&port.join("phys_state"), "5: LinkUp")?;
        write(&port.join("link_layer"), "Unspecified")?;
        write(&port.join("rate"), &format!("{} Gb/sec", profile.gbps))?;
        write(&port.join("lid"), "0x0")?;

        let uverbs = verbs.join(format!("uverbs{card}"));
        std::fs::create_dir_all(&uverbs)?;
        write(&uverbs.join("ibdev"), &name)?;
        write(&uverbs.join("abi_version"), "1")?;
        write(&uverbs.join("dev"), &format!("231:{}", 192 + card))?;
        link(&device, &uverbs.join("device"))?;
        // A character device, which is what callers check for; opening it does no harm.
        link(Path::new("/dev/null"), &dev.join(format!("uverbs{card}")))?;
        std::fs::create_dir_all(device.join("infiniband"))?;
        link(&class, &device.join("infiniband").join(&name))?;
    }
    write(&done, "")
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    std::fs::write(path, format!("{text}\n"))
}

fn link(target: &Path, at: &Path) -> io::Result<()> {
    match symlink(target, at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_card_resolves_to_its_pci_address_and_driver() {
        let dir = std::env::temp_dir().join(format!("soft-efa-sysfs-{}", std::process::id()));
        let profile = Profile::p5();
        build(&dir, &profile, 32).unwrap();
        build(&dir, &profile, 32).unwrap();
        for card in 0..32 {
            let class = root(&dir).join("class/infiniband").join(profile.card_name(card));
            let device = std::fs::canonicalize(class.join("device")).unwrap();
            assert!(device.ends_with(profile.placement(card).pci()));
            assert!(std::fs::canonicalize(class.join("device/driver")).unwrap().ends_with("efa"));
            let numa = std::fs::read_to_string(class.join("device/numa_node")).unwrap();
            assert_eq!(numa.trim(), (card / 16).to_string());
        }
        std::fs::remove_dir_all(dir).unwrap();
    }
}
