//! The registrar's seam to libfabric.

use super::{CloseError, MrDomain};
use crate::access::Access;
use crate::buffer::{Buffer, Location, PageSize};
use crate::ledger::Reservation;
use crate::nic::{DEFAULT_PTE_BUDGET, Nic};
use fabric_safe::{DeregisterError, Domain, Memory, MemoryRegion, Part, Placement, SharedMemory};
use std::ops::Range;
use std::sync::Arc;

impl MrDomain for Domain {
    type Memory = Arc<dyn SharedMemory>;
    type Region = MemoryRegion<Part>;
    type Error = fabric_safe::Error;

    fn extent(memory: &Self::Memory) -> (u64, u64) {
        (memory.address() as u64, memory.len_bytes() as u64)
    }

    fn register(
        &self,
        memory: &Self::Memory,
        range: Range<usize>,
        access: Access,
        reservation: Reservation,
    ) -> Result<Self::Region, Self::Error> {
        // The part carries the reservation: fabric-safe drops both when the MR has been closed, and neither if it could
        // not be closed.
        let part = Part::new(Arc::clone(memory), range)?.with_guard(reservation);
        Ok(Domain::register(self, part, fabric_safe::Access::from(access))?)
    }

    fn close(&self, region: Self::Region) -> Result<(), CloseError<Self::Region, Self::Error>> {
        match region.into_memory() {
            Ok(part) => {
                drop(part);
                Ok(())
            }
            Err(DeregisterError::InUse(region)) => Err(CloseError::InUse(region)),
            Err(DeregisterError::Leaked(error)) => Err(CloseError::Leaked(error)),
            Err(other) => Err(CloseError::Leaked(fabric_safe::Error::Misbehaviour {
                call: "fi_close",
                what: other.to_string(),
            })),
        }
    }
}

impl From<Access> for fabric_safe::Access {
    fn from(access: Access) -> Self {
        use fabric_safe::Access as Fabric;
        let pairs = [
            (Access::SEND, Fabric::SEND),
            (Access::RECV, Fabric::RECV),
            (Access::READ, Fabric::READ),
            (Access::WRITE, Fabric::WRITE),
            (Access::REMOTE_READ, Fabric::REMOTE_READ),
            (Access::REMOTE_WRITE, Fabric::REMOTE_WRITE),
        ];
        pairs.into_iter().filter(|(ours, _)| access.contains(*ours)).map(|(_, theirs)| theirs).collect()
    }
}

/// A NIC as libfabric describes it. Only EFA cards have a budget of page table entries; place and distances come from the
/// [topology](crate::topology).
#[must_use]
pub fn nic_of(domain: &Domain) -> Nic {
    let info = domain.info();
    let efa = info.provider_name().split(';').any(|name| name == "efa");
    let mbps = info.link_bits_per_second() / 1_000_000;
    Nic {
        pte_left: if efa { DEFAULT_PTE_BUDGET } else { u64::MAX },
        mrs_left: match info.region_count() {
            0 => u64::MAX,
            count => count as u64,
        },
        // Speeds matter relative to each other only; 10 Gbit/s where the provider does not say.
        link_mbps: if mbps == 0 { 10_000 } else { u32::try_from(mbps).unwrap_or(u32::MAX) },
        ..Nic::new(
            info.nic()
                .map(|nic| nic.name)
                .filter(|name| !name.is_empty())
                .unwrap_or_else(|| info.domain_name().to_owned()),
        )
    }
}

/// Memory as the planner sees it, with a page size that is taken for granted; [`crate::pages`] knows better for host memory.
#[must_use]
pub fn buffer_of(memory: &dyn Memory, page: PageSize) -> Buffer {
    let location = match memory.placement() {
        Placement::Cuda { device } | Placement::Rocm { device } | Placement::Neuron { device } => {
            Location::Gpu(u16::try_from(device).unwrap_or(u16::MAX))
        }
        _ => Location::Host,
    };
    Buffer::new(memory.address() as u64, memory.len_bytes() as u64, page, location)
}
