//! Opens libfabric once per process.

use std::sync::{Mutex, OnceLock, PoisonError};

use crate::error::LoadError;
use crate::library::{Library, OLDEST};
#[cfg(feature = "linked")]
use crate::linked::find;
#[cfg(not(feature = "linked"))]
use crate::search::find;

/// The name by which every libfabric since 1.0 is found.
pub const SONAME: &str = "libfabric.so.1";

/// The environment variable that names one libfabric file to open; nothing else is tried then (except a copy that the
/// process already has).
pub const LIBRARY_VARIABLE: &str = "FABRIC_LIBRARY";

static LOADED: OnceLock<Library> = OnceLock::new();

/// The process's libfabric; opens it on the first call.
///
/// In this order: a copy that the process already has (opened by another library, or linked); the file that the environment
/// variable [`FABRIC_LIBRARY`](LIBRARY_VARIABLE) names; `/opt/amazon/efa/lib*/libfabric.so.1`; the loader's own search
/// (`LD_LIBRARY_PATH`, the cache, the standard folders). It is never closed: providers keep threads and devices.
///
/// A success is remembered, a failure is not. Safe to call from several threads; the first call may take some milliseconds.
///
/// # Errors
/// [`LoadError`]: no libfabric, not a libfabric, or one that is too old. The process is unharmed.
pub fn load() -> Result<&'static Library, LoadError> {
    static LOADING: Mutex<()> = Mutex::new(());
    if let Some(library) = LOADED.get() {
        return Ok(library);
    }
    let _one_at_a_time = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(library) = LOADED.get() {
        return Ok(library);
    }
    let library = accept(find()?)?;
    Ok(LOADED.get_or_init(|| library))
}

/// The libfabric that [`load`] has opened: its [path](Library::path) and [version](Library::version). `None` before.
#[must_use]
pub fn loaded() -> Option<&'static Library> {
    LOADED.get()
}

/// Refuses what is too old.
fn accept(library: Library) -> Result<Library, LoadError> {
    if library.version() < OLDEST {
        return Err(LoadError::TooOld { path: library.path().to_owned(), version: library.version() });
    }
    Ok(library)
}
