//! The local memory of an operation, checked and as libfabric wants it.

use core::ffi::c_void;
use core::ptr;
use libc::iovec;

use crate::endpoint::Enabled;
use crate::error::Usage;
use crate::flags::Access;
use crate::operations::{HoldId, MAX_SEGMENTS};
use crate::region::Slice;

/// Up to `N` pieces of registered memory.
pub(crate) struct Segments<const N: usize> {
    pub(crate) iov: [iovec; N],
    pub(crate) descriptors: [*mut c_void; N],
    /// What the operation has to hold; [`HoldId::NONE`] where there is nothing.
    pub(crate) regions: [HoldId; N],
    pub(crate) count: usize,
    pub(crate) len_bytes: usize,
}

impl Segments<1> {
    /// One slice.
    #[inline(always)]
    pub(crate) fn one(endpoint: &Enabled, slice: Slice<'_>, access: Access) -> Result<Segments<1>, Usage> {
        check(endpoint, slice, access)?;
        Ok(Segments {
            iov: [iovec { iov_base: slice.address.cast(), iov_len: slice.len_bytes }],
            descriptors: [slice.region.descriptor],
            regions: [slice.region.id],
            count: 1,
            len_bytes: slice.len_bytes,
        })
    }
}

impl Segments<MAX_SEGMENTS> {
    /// As many slices as the provider takes (`limit`).
    pub(crate) fn many(
        endpoint: &Enabled,
        slices: &[Slice<'_>],
        limit: usize,
        access: Access,
    ) -> Result<Segments<MAX_SEGMENTS>, Usage> {
        if slices.len() > limit {
            return Err(Usage::TooManySegments { count: slices.len(), limit });
        }
        let mut segments = Segments {
            iov: [const { iovec { iov_base: ptr::null_mut(), iov_len: 0 } }; MAX_SEGMENTS],
            descriptors: [ptr::null_mut(); MAX_SEGMENTS],
            regions: [HoldId::NONE; MAX_SEGMENTS],
            count: slices.len(),
            len_bytes: 0,
        };
        for (index, slice) in slices.iter().enumerate() {
            check(endpoint, *slice, access)?;
            segments.iov[index] = iovec { iov_base: slice.address.cast(), iov_len: slice.len_bytes };
            segments.descriptors[index] = slice.region.descriptor;
            segments.regions[index] = slice.region.id;
            segments.len_bytes = segments.len_bytes.saturating_add(slice.len_bytes);
        }
        Ok(segments)
    }
}

/// Whether the endpoint may use the memory in this way.
#[inline(always)]
pub(crate) fn check(endpoint: &Enabled, slice: Slice<'_>, access: Access) -> Result<(), Usage> {
    if slice.region.home != endpoint.home {
        return Err(Usage::Foreign { what: "memory region", parent: endpoint.parent() });
    }
    if !slice.region.access.contains(access) {
        return Err(missing(access));
    }
    Ok(())
}

#[cold]
fn missing(access: Access) -> Usage {
    Usage::Access {
        need: match access {
            Access::SEND => "SEND",
            Access::RECV => "RECV",
            Access::READ => "READ",
            _ => "WRITE",
        },
    }
}
