//! Entry points at link time: those that `ofi-libfabric-sys` declares and links against.
//!
//! The program then needs libfabric to start at all. The types of the two crates describe the same C types; a test compares
//! them field by field where both were made from headers of one version.

use core::ffi::c_void;
use core::ptr::NonNull;

use libfabric_sys::bindgen as ofi;

use crate::error::LoadError;
use crate::library::{Entries, Library};
use crate::loader::SONAME;

/// The library that the program was linked with.
pub(crate) fn find() -> Result<Library, LoadError> {
    macro_rules! address {
        ($name:expr, $($function:ident),*) => {
            match $name.to_bytes() {
                $(name if name == stringify!($function).as_bytes() => NonNull::new(ofi::$function as *mut c_void),)*
                _ => None,
            }
        };
    }
    // SAFETY: these are libfabric's functions, each under its own name.
    let found = unsafe {
        Entries::find(|name| {
            address!(
                name,
                fi_version,
                fi_getinfo,
                fi_freeinfo,
                fi_dupinfo,
                fi_fabric,
                fi_open,
                fi_strerror,
                fi_tostr_r,
                fi_getparams,
                fi_freeparams
            )
        })
    };
    let entries = found.map_err(|symbol| LoadError::NotLibfabric { path: SONAME.into(), symbol })?;
    Ok(Library::new(entries, true))
}
