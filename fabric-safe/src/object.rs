//! What all libfabric objects have in common: they are closed once, and closing can fail.

use core::sync::atomic::{AtomicU64, Ordering};

use fabric_sys as sys;

static LEAKED: AtomicU64 = AtomicU64::new(0);

/// Objects of this process that could not be closed and have been left behind, together with the memory that they may still
/// use. Zero with every provider that keeps the rules.
pub fn leaked_objects() -> u64 {
    LEAKED.load(Ordering::Relaxed)
}

/// Closes an object. On failure it is counted as leaked and the status returned; the caller then must keep alive whatever
/// the object refers to.
///
/// # Safety
///
/// `fid` is an open object that is not used any more, and everything that was opened from it has been closed.
pub(crate) unsafe fn close(fid: *mut sys::fid) -> Result<(), i32> {
    // SAFETY: as the caller promises.
    match unsafe { sys::fi_close(fid) } {
        0 => Ok(()),
        status => {
            LEAKED.fetch_add(1, Ordering::Relaxed);
            Err(status)
        }
    }
}
