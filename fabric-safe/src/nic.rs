//! The network card behind a domain.

use core::fmt;
use core::str::FromStr;

use fabric_sys as sys;

use crate::info::text;

/// Where a card sits on the PCI bus.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PciAddress {
    /// PCI domain (segment).
    pub domain: u16,
    /// Bus.
    pub bus: u8,
    /// Device (slot) on the bus.
    pub device: u8,
    /// Function of the device.
    pub function: u8,
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

/// Text that is not a PCI address of the form `0000:00:1b.0`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a PCI address of the form 0000:00:1b.0")]
pub struct BadPciAddress(String);

impl FromStr for PciAddress {
    type Err = BadPciAddress;

    fn from_str(text: &str) -> Result<Self, BadPciAddress> {
        let parse = || {
            let (domain, rest) = text.split_once(':')?;
            let (bus, rest) = rest.split_once(':')?;
            let (device, function) = rest.split_once('.')?;
            Some(PciAddress {
                domain: u16::from_str_radix(domain, 16).ok()?,
                bus: u8::from_str_radix(bus, 16).ok()?,
                device: u8::from_str_radix(device, 16).ok().filter(|&device| device < 32)?,
                function: u8::from_str_radix(function, 16).ok().filter(|&function| function < 8)?,
            })
        };
        parse().ok_or_else(|| BadPciAddress(text.to_owned()))
    }
}

/// Whether the card has a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum LinkState {
    /// The provider does not say.
    Unknown,
    /// No link.
    Down,
    /// A link.
    Up,
}

/// A network card as the provider describes it. Text that the provider leaves out is empty.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Nic {
    /// The operating system's name, e.g. `rdmap0s6`.
    pub name: String,
    /// Device number given by the vendor, as text.
    pub device_id: String,
    /// Revision of the device.
    pub device_version: String,
    /// Number of the vendor, as text, e.g. `0x1d0f`.
    pub vendor_id: String,
    /// Kernel driver.
    pub driver: String,
    /// Firmware version.
    pub firmware: String,
    /// Place on the PCI bus.
    pub pci: Option<PciAddress>,
    /// Address of the port, in the form that the link layer uses.
    pub link_address: String,
    /// Largest packet in bytes.
    pub mtu_bytes: usize,
    /// Link speed in bits a second, 0 if unknown.
    pub link_bits_per_second: u64,
    /// Whether there is a link.
    pub link_state: LinkState,
    /// Kind of network, e.g. `Ethernet`, `EFA`.
    pub network: String,
}

impl Nic {
    /// # Safety
    ///
    /// `nic` is null or points to a valid description whose texts are null or end with NUL.
    pub(crate) unsafe fn from_raw(nic: *const sys::fid_nic) -> Option<Nic> {
        // SAFETY: as the caller promises, here and for every pointer inside.
        unsafe {
            let nic = nic.as_ref()?;
            let device = nic.device_attr.as_ref();
            let link = nic.link_attr.as_ref();
            let pci = nic.bus_attr.as_ref().filter(|bus| bus.bus_type == sys::FI_BUS_PCI).map(|bus| {
                let pci = bus.attr.pci;
                PciAddress {
                    domain: pci.domain_id,
                    bus: pci.bus_id,
                    device: pci.device_id,
                    function: pci.function_id,
                }
            });
            Some(Nic {
                name: text(device.map(|d| d.name)),
                device_id: text(device.map(|d| d.device_id)),
                device_version: text(device.map(|d| d.device_version)),
                vendor_id: text(device.map(|d| d.vendor_id)),
                driver: text(device.map(|d| d.driver)),
                firmware: text(device.map(|d| d.firmware)),
                pci,
                link_address: text(link.map(|l| l.address)),
                mtu_bytes: link.map_or(0, |l| l.mtu),
                link_bits_per_second: link.map_or(0, |l| l.speed as u64),
                link_state: match link.map(|l| l.state) {
                    Some(sys::FI_LINK_UP) => LinkState::Up,
                    Some(sys::FI_LINK_DOWN) => LinkState::Down,
                    _ => LinkState::Unknown,
                },
                network: text(link.map(|l| l.network_type)),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_read_what_they_write() {
        let address = PciAddress { domain: 0xa, bus: 0x10, device: 0x1f, function: 7 };
        assert_eq!(address.to_string().parse(), Ok(address));
        for bad in ["", "0000:00:1b", "0000:00:20.0", "0000:00:1b.8", "0:0:0.0:0", "10000:00:00.0"] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad}");
        }
    }
}
