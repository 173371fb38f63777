//! Finds libfabric at run time, once per process.

use core::ffi::{CStr, c_void};
use core::ptr::NonNull;
use std::ffi::{CString, OsString};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use crate::library::{Entries, Library, OLDEST};
use crate::version::Version;

/// The name by which every libfabric since 1.0 is found.
pub const SONAME: &str = "libfabric.so.1";

/// Names one libfabric file to open; nothing else is tried then (except a copy that the process already has).
pub const LIBRARY_VARIABLE: &str = "FABRIC_LIBRARY";

/// Where AWS's EFA installer puts it.
const EFA_PREFIX: &str = "/opt/amazon/efa";

/// Why there is no libfabric.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// Nowhere is one.
    #[error(
        "no libfabric on this machine: {attempts}; install it (Debian: libfabric1, AWS: the EFA installer) or set {LIBRARY_VARIABLE}"
    )]
    NotFound {
        /// What was tried, and what the loader said to it.
        attempts: Attempts,
    },
    /// The file named by `FABRIC_LIBRARY` cannot be opened.
    #[error("{LIBRARY_VARIABLE} is {}, which cannot be opened: {reason}; correct or unset it", path.display())]
    Override {
        /// The value of the variable.
        path: PathBuf,
        /// What the loader said.
        reason: String,
    },
    /// The library lacks a function that every libfabric has.
    #[error("{} is not a libfabric: it has no function {symbol}", path.display())]
    NotLibfabric {
        /// The library that was opened.
        path: PathBuf,
        /// What it lacks.
        symbol: &'static str,
    },
    /// The library is older than [`OLDEST`].
    #[error("libfabric {version} in {} is too old; {OLDEST} or later is needed", path.display())]
    TooOld {
        /// The library that was opened.
        path: PathBuf,
        /// Its version.
        version: Version,
    },
}

/// The places that were tried in vain.
#[derive(Debug, Clone, Default)]
pub struct Attempts(Vec<(String, String)>);

impl Attempts {
    /// Each place and what the loader said to it.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(place, reason)| (place.as_str(), reason.as_str()))
    }
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, (_, reason)) in self.0.iter().enumerate() {
            // The loader's text names the place.
            write!(f, "{}{reason}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

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
    let library = find()?;
    Ok(LOADED.get_or_init(|| library))
}

/// The libfabric that [`load`] has opened: its [path](Library::path) and [version](Library::version). `None` before.
#[must_use]
pub fn loaded() -> Option<&'static Library> {
    LOADED.get()
}

#[cfg(not(feature = "linked"))]
fn find() -> Result<Library, LoadError> {
    if let Ok(handle) = Handle::open(Path::new(SONAME), libc::RTLD_NOLOAD) {
        return check(handle, true);
    }
    let named: Option<OsString> = std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty());
    if let Some(path) = named.map(PathBuf::from) {
        return match Handle::open(&path, 0) {
            Ok(handle) => check(handle, false),
            Err(reason) => Err(LoadError::Override { path, reason }),
        };
    }
    let mut attempts = Attempts::default();
    let efa = efa_libraries(Path::new(EFA_PREFIX)).into_iter();
    for place in efa.chain([PathBuf::from(SONAME)]) {
        match Handle::open(&place, 0) {
            Ok(handle) => return check(handle, false),
            Err(reason) => attempts.0.push((place.display().to_string(), reason)),
        }
    }
    Err(LoadError::NotFound { attempts })
}

/// `lib*/libfabric.so.1` below a prefix, `lib64` before `lib`.
#[cfg_attr(feature = "linked", allow(dead_code))]
fn efa_libraries(prefix: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(prefix) else { return Vec::new() };
    let mut found: Vec<_> = entries
        .filter_map(Result::ok)
        .filter(|entry| entry.file_name().as_bytes().starts_with(b"lib"))
        .map(|entry| entry.path().join(SONAME))
        .filter(|path| path.is_file())
        .collect();
    found.sort_by(|a, b| b.cmp(a));
    found
}

/// Something that `dlopen` has opened. Never closed.
#[cfg(not(feature = "linked"))]
struct Handle(NonNull<c_void>);

#[cfg(not(feature = "linked"))]
impl Handle {
    /// Opens a library; the error is the loader's text.
    fn open(path: &Path, flags: libc::c_int) -> Result<Self, String> {
        let text = |_| format!("{} contains a NUL byte", path.display());
        let name = CString::new(path.as_os_str().as_bytes()).map_err(text)?;
        // SAFETY: the name ends with NUL. Constructors of the library run, which is what opening a library means.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL | flags) };
        NonNull::new(handle).map(Self).ok_or_else(|| {
            // SAFETY: the thread's last error, valid until its next call of the loader.
            let message = unsafe { libc::dlerror() };
            if message.is_null() {
                return format!("{}: not loaded", path.display());
            }
            // SAFETY: not null, so text that ends with NUL.
            unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
        })
    }

    fn symbol(&self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: an open handle and a name that ends with NUL.
        NonNull::new(unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) })
    }

    /// The file behind the handle.
    fn path(&self) -> PathBuf {
        let mut map: *mut LinkMap = core::ptr::null_mut();
        // SAFETY: an open handle; the request writes one pointer.
        let ret = unsafe { libc::dlinfo(self.0.as_ptr(), libc::RTLD_DI_LINKMAP, (&raw mut map).cast()) };
        if ret != 0 || map.is_null() {
            return PathBuf::from(SONAME);
        }
        // SAFETY: the loader's entry of an object that is never closed; its name ends with NUL.
        let name = unsafe { CStr::from_ptr((*map).name) };
        PathBuf::from(std::ffi::OsStr::from_bytes(name.to_bytes()))
    }
}

/// The public head of the loader's `struct link_map` (`link.h`).
#[cfg(not(feature = "linked"))]
#[repr(C)]
struct LinkMap {
    address: usize,
    name: *const core::ffi::c_char,
}

#[cfg(not(feature = "linked"))]
fn check(handle: Handle, shared: bool) -> Result<Library, LoadError> {
    // SAFETY: a library of this soname, or the one that the user names, has libfabric's functions under their names.
    let entries = unsafe { Entries::find(|name| handle.symbol(name)) };
    let entries = entries.map_err(|symbol| LoadError::NotLibfabric { path: handle.path(), symbol })?;
    accept(Library::new(entries, shared))
}

/// Refuses what is too old.
fn accept(library: Library) -> Result<Library, LoadError> {
    if library.version() < OLDEST {
        return Err(LoadError::TooOld { path: library.path().to_owned(), version: library.version() });
    }
    Ok(library)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efa_installs_are_found_lib64_first() {
        let root = tempfile::tempdir().unwrap();
        assert!(efa_libraries(&root.path().join("absent")).is_empty());
        for dir in ["lib", "lib64", "libexec", "share"] {
            std::fs::create_dir(root.path().join(dir)).unwrap();
        }
        for dir in ["lib", "lib64", "share"] {
            std::fs::write(root.path().join(dir).join(SONAME), "").unwrap();
        }
        let found = efa_libraries(root.path());
        let expected = ["lib64", "lib"].map(|dir| root.path().join(dir).join(SONAME));
        assert_eq!(found, expected);
    }

    #[test]
    fn the_error_names_every_place() {
        let attempts =
            Attempts(vec![("a".into(), "a: no such file".into()), ("b".into(), "b: bad ELF".into())]);
        let text = LoadError::NotFound { attempts }.to_string();
        assert!(text.contains("a: no such file; b: bad ELF") && text.contains(LIBRARY_VARIABLE), "{text}");
    }
}
