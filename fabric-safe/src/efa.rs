//! What the EFA provider can tell beyond libfabric (`fi_ext_efa.h`).

use core::ffi::{c_int, c_void};
use core::ptr;

use fabric_sys as sys;

use crate::domain::Domain;
use crate::error::{Error, Usage};
use crate::region::Region;

/// The EFA provider's own operations on a domain: see [`Domain::efa_ext`].
#[derive(Clone, Copy)]
pub struct EfaExtension<'a> {
    domain: &'a Domain,
    query_mr: QueryMr,
}

type QueryMr = unsafe extern "C" fn(*mut sys::fid_mr, *mut sys::fi_efa_mr_attr) -> c_int;

/// Which of the host's interconnects the card uses to reach a region, by kind of operation. The numbers have no meaning but
/// being the same or not: device memory that a card reaches over another interconnect than its neighbours is further away.
/// `None` where the card does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub struct EfaInterconnects {
    /// For messages that are received into the region.
    pub receive: Option<u16>,
    /// For what our own reads bring.
    pub read: Option<u16>,
    /// For what peers write.
    pub remote_write: Option<u16>,
}

impl Domain {
    /// The EFA provider's own operations.
    ///
    /// # Errors
    ///
    /// [`Error::Unsupported`] with other providers, and with libfabric before 1.20; [`Error::Call`] with what the provider said.
    pub fn efa_ext(&self) -> Result<EfaExtension<'_>, Error> {
        let unsupported = || Error::Unsupported {
            what: "EFA's domain operations",
            provider: self.info().provider_name().to_owned(),
        };
        let mut table: *mut c_void = ptr::null_mut();
        let name = sys::FI_EFA_DOMAIN_OPS.as_ptr().cast();
        // SAFETY: the domain is open, the name ends with NUL, and the table is the provider's own and static.
        let status = unsafe { sys::fi_open_ops(self.raw().cast(), name, 0, &mut table, ptr::null_mut()) };
        match -status {
            0 => {}
            // Asked for a name that it does not know, or without the call.
            sys::FI_EINVAL | sys::FI_ENOSYS | sys::FI_ENOENT => return Err(unsupported()),
            _ => return Err(Error::call("fi_open_ops", self.info().place(), status)),
        }
        // SAFETY: null, or the table of that name; its first entry is the same in all versions that have it.
        let query_mr =
            unsafe { table.cast::<sys::fi_efa_ops_domain>().as_ref() }.and_then(|ops| ops.query_mr);
        Ok(EfaExtension { domain: self, query_mr: query_mr.ok_or_else(unsupported)? })
    }
}

impl EfaExtension<'_> {
    /// Asks the card how it reaches a region.
    ///
    /// # Errors
    ///
    /// [`Usage`] if the region is of another domain; [`Error::Call`] with what the provider said, `ENOSYS` if it was built
    /// without a recent rdma-core or the card does not know.
    pub fn interconnects(&self, region: &Region) -> Result<EfaInterconnects, Error> {
        if region.domain().0.id != self.domain.0.id {
            return Err(Usage::Foreign { what: "memory region", parent: "domain" }.into());
        }
        // Later versions may have longer attributes: there is room behind.
        let mut attributes = [sys::fi_efa_mr_attr::default(); 8];
        let asked = region.0.registration.with_open(|raw| {
            // SAFETY: the region is open and of the domain that the table belongs to; the attributes are longer than any known.
            unsafe { (self.query_mr)(raw, attributes.as_mut_ptr()) }
        });
        match asked.ok_or(Usage::Closed("region's endpoint"))? {
            0 => {}
            status => return Err(Error::call("query_mr", self.domain.info().place(), status)),
        }
        let [sys::fi_efa_mr_attr { ic_id_validity, recv_ic_id, rdma_read_ic_id, rdma_recv_ic_id }, ..] =
            attributes;
        let valid = |bit: u16, id: u16| (ic_id_validity & bit != 0).then_some(id);
        Ok(EfaInterconnects {
            receive: valid(sys::FI_EFA_MR_ATTR_RECV_IC_ID, recv_ic_id),
            read: valid(sys::FI_EFA_MR_ATTR_RDMA_READ_IC_ID, rdma_read_ic_id),
            remote_write: valid(sys::FI_EFA_MR_ATTR_RDMA_RECV_IC_ID, rdma_recv_ic_id),
        })
    }
}

impl core::fmt::Debug for EfaExtension<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("EfaExtension").field("domain", self.domain).finish_non_exhaustive()
    }
}
