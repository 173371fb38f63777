//! A fabric: the network that domains belong to.

use core::ptr::{self, NonNull};
use std::sync::Arc;

use fabric_sys as sys;

use crate::object::close;
use crate::{Error, Info};

/// An open fabric. Cheap to clone; closed when the last object that came from it is gone.
#[derive(Clone)]
pub struct Fabric(pub(crate) Arc<FabricInner>);

pub(crate) struct FabricInner {
    pub(crate) raw: NonNull<sys::fid_fabric>,
    name: String,
}

// SAFETY: libfabric's control calls on a fabric may be made from any thread (FI_THREAD_SAFE domains below it).
unsafe impl Send for FabricInner {}
// SAFETY: as above.
unsafe impl Sync for FabricInner {}

impl Fabric {
    /// Opens the fabric that `info` belongs to.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said.
    pub fn open(info: &Info) -> Result<Fabric, Error> {
        let mut raw = ptr::null_mut();
        let status = info.with_copy(|copy| {
            // SAFETY: the copy is complete (every Info is) and valid for the call.
            unsafe { info.library().fi_fabric((*copy).fabric_attr, &mut raw, ptr::null_mut()) }
        })?;
        let name = format!("fabric {} of provider {}", info.fabric_name(), info.provider_name());
        match NonNull::new(raw) {
            Some(raw) if status == 0 => Ok(Fabric(Arc::new(FabricInner { raw, name }))),
            None if status == 0 => {
                Err(Error::Misbehaviour { call: "fi_fabric", what: "success without an object".into() })
            }
            _ => Err(Error::call("fi_fabric", name, status)),
        }
    }

    pub(crate) fn raw(&self) -> *mut sys::fid_fabric {
        self.0.raw.as_ptr()
    }

    pub(crate) fn name(&self) -> &str {
        &self.0.name
    }
}

impl Drop for FabricInner {
    fn drop(&mut self) {
        // SAFETY: everything opened from it holds an Arc of it, so nothing is left.
        let _ = unsafe { close(self.raw.as_ptr().cast()) };
    }
}

impl core::fmt::Debug for Fabric {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_tuple("Fabric").field(&self.0.name).finish()
    }
}
