//! Finds libfabric at run time.

use core::ffi::{CStr, c_char, c_void};
use core::ptr::{self, NonNull};
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use crate::error::{Attempts, LoadError};
use crate::library::{Entries, Library};
use crate::loader::{LIBRARY_VARIABLE, SONAME};

/// Where AWS's EFA installer puts it.
const EFA_PREFIX: &str = "/opt/amazon/efa";

/// Opens the first libfabric in the order that [`load`](crate::load) documents.
pub(crate) fn find() -> Result<Library, LoadError> {
    if let Ok(handle) = Handle::open(Path::new(SONAME), libc::RTLD_NOLOAD) {
        return check(handle, true);
    }
    let named = std::env::var_os(LIBRARY_VARIABLE).filter(|value| !value.is_empty());
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
            Err(reason) => attempts.push(&place, reason),
        }
    }
    Err(LoadError::NotFound { attempts })
}

/// `lib*/libfabric.so.1` below a prefix, `lib64` before `lib`.
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
struct Handle(NonNull<c_void>);

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
        let mut map: *mut LinkMap = ptr::null_mut();
        // SAFETY: an open handle; the request writes one pointer.
        let ret = unsafe { libc::dlinfo(self.0.as_ptr(), libc::RTLD_DI_LINKMAP, (&raw mut map).cast()) };
        if ret != 0 || map.is_null() {
            return PathBuf::from(SONAME);
        }
        // SAFETY: the loader's entry of an object that is never closed; its name ends with NUL.
        let name = unsafe { CStr::from_ptr((*map).name) };
        PathBuf::from(OsStr::from_bytes(name.to_bytes()))
    }
}

/// The public head of the loader's `struct link_map` (`link.h`).
#[repr(C)]
struct LinkMap {
    address: usize,
    name: *const c_char,
}

fn check(handle: Handle, shared: bool) -> Result<Library, LoadError> {
    // SAFETY: a library of this soname, or the one that the user names, has libfabric's functions under their names.
    let entries = unsafe { Entries::find(|name| handle.symbol(name)) };
    let entries = entries.map_err(|symbol| LoadError::NotLibfabric { path: handle.path(), symbol })?;
    Ok(Library::new(entries, shared))
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
}
