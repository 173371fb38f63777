//! Generations of EFA cards: what a card of each kind of machine says about itself.
//!
//! Capabilities, depths and sizes are those that the libfabric provider reads (`efadv_query_device`, `ibv_query_device`,
//! `ibv_query_port`). Card counts and line rates are AWS's published ones; the transmit depth of 4096 on p5 and 2048 on p6 is
//! what libfabric reports there. Where no figure is public, the value is one that the provider was seen to accept.

use crate::abi;

/// What a card of one generation can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// Name as given to `--profile`.
    pub name: &'static str,
    /// Cards of such a machine.
    pub cards: usize,
    /// Line rate of one card in Gbit/s (reported; enforced only when a bandwidth is asked for).
    pub gbps: u32,
    /// PCI device id.
    pub part_id: u32,
    /// `EFADV_DEVICE_ATTR_CAPS_*`.
    pub caps: u32,
    /// Send queue depth.
    pub max_sq_wr: u32,
    /// Receive queue depth, in scatter entries.
    pub max_rq_wr: u32,
    /// Bytes of a send that travel inside the work request.
    pub inline_bytes: u16,
    /// Longest RDMA read or write in bytes; 0 without device RDMA.
    pub max_rdma_bytes: u32,
    /// Cards per NUMA node of the machine's two.
    pub cards_per_numa: usize,
}

const READ_ONLY: u32 = abi::EFADV_CAPS_RDMA_READ | abi::EFADV_CAPS_RNR_RETRY | abi::EFADV_CAPS_CQ_WITH_SGID;
const READ_WRITE: u32 = READ_ONLY | abi::EFADV_CAPS_RDMA_WRITE;
const UNSOLICITED: u32 = READ_WRITE | abi::EFADV_CAPS_UNSOLICITED_WRITE_RECV;

/// All profiles, oldest machine first.
pub const PROFILES: [Profile; 4] = [
    Profile {
        name: "p4d",
        cards: 4,
        gbps: 100,
        part_id: 0xefa1,
        caps: READ_ONLY,
        max_sq_wr: 4096,
        max_rq_wr: 12288,
        inline_bytes: 32,
        max_rdma_bytes: 1 << 30,
        cards_per_numa: 2,
    },
    Profile {
        name: "p5",
        cards: 32,
        gbps: 100,
        part_id: 0xefa2,
        caps: READ_WRITE,
        max_sq_wr: 4096,
        max_rq_wr: 12288,
        inline_bytes: 32,
        max_rdma_bytes: 1 << 30,
        cards_per_numa: 16,
    },
    Profile {
        name: "p5en",
        cards: 16,
        gbps: 200,
        part_id: 0xefa3,
        caps: UNSOLICITED,
        max_sq_wr: 4096,
        max_rq_wr: 12288,
        inline_bytes: 32,
        max_rdma_bytes: 1 << 30,
        cards_per_numa: 8,
    },
    Profile {
        name: "p6",
        cards: 8,
        gbps: 400,
        part_id: 0xefa4,
        caps: UNSOLICITED,
        max_sq_wr: 2048,
        max_rq_wr: 12288,
        inline_bytes: 32,
        max_rdma_bytes: 1 << 30,
        cards_per_numa: 4,
    },
];

impl Profile {
    /// The profile of that name, or `None`.
    pub fn named(name: &str) -> Option<Profile> {
        PROFILES.into_iter().find(|profile| profile.name == name)
    }

    /// The default: p5, the oldest generation with device writes.
    pub const fn p5() -> Profile {
        PROFILES[1]
    }

    /// Where card `index` sits: its PCI address and NUMA node. Cards come four to a PCI bus, as on a p5.
    pub fn placement(&self, index: usize) -> Placement {
        let numa = (index / self.cards_per_numa) % 2;
        Placement {
            domain: 0,
            bus: 0x4f + (index / 4) as u8 * 11,
            device: 0x19 + (index % 4) as u8,
            function: 0,
            numa,
        }
    }

    /// The kernel's name of card `index`: `rdmap<bus>s<device>`.
    pub fn card_name(&self, index: usize) -> String {
        let at = self.placement(index);
        format!("rdmap{}s{}", at.bus, at.device)
    }
}

/// A card's place on its machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Placement {
    /// PCI domain.
    pub domain: u16,
    /// PCI bus.
    pub bus: u8,
    /// PCI device.
    pub device: u8,
    /// PCI function.
    pub function: u8,
    /// NUMA node.
    pub numa: usize,
}

impl Placement {
    /// `DDDD:BB:DD.F`, as sysfs names it.
    pub fn pci(&self) -> String {
        format!("{:04x}:{:02x}:{:02x}.{:x}", self.domain, self.bus, self.device, self.function)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_and_places_are_unique_for_as_many_cards_as_we_allow() {
        for profile in PROFILES {
            let names: BTreeSet<_> =
                (0..crate::settings::MAX_CARDS).map(|card| profile.card_name(card)).collect();
            let places: BTreeSet<_> =
                (0..crate::settings::MAX_CARDS).map(|card| profile.placement(card).pci()).collect();
            assert_eq!(names.len(), crate::settings::MAX_CARDS);
            assert_eq!(places.len(), crate::settings::MAX_CARDS);
        }
    }

    #[test]
    fn only_p4d_lacks_device_writes() {
        for profile in PROFILES {
            assert_eq!(profile.caps & abi::EFADV_CAPS_RDMA_WRITE == 0, profile.name == "p4d");
        }
    }
}
