//! The library itself: the functions that it exports, and what it is.

use core::ffi::{CStr, c_char, c_int, c_void};
use core::fmt;
use core::ptr::{self, NonNull};
use std::path::{Path, PathBuf};

use crate::bindings::*;
use crate::version::Version;

/// The API versions that we ask for, best first: the first one that the library knows.
///
/// The version that a program asks for decides how long the structs are that it allocates, and how the library behaves, so it
/// is a constant and never what `fi_version()` says. 1.20: memory can be registered as a dmabuf. 1.18: the EFA provider
/// uses the device's RDMA by default and calls CUDA itself. 1.17: Debian 12 and Ubuntu 24.04.
pub const API_VERSIONS: [Version; 3] = [Version::new(1, 20), Version::new(1, 18), Version::new(1, 17)];

/// The oldest library that [`load`](crate::load) accepts.
pub const OLDEST: Version = API_VERSIONS[2];

macro_rules! exports {
    (
        $(#[doc = $doc:expr])* struct $entries:ident;
        $( $(#[doc = $fdoc:expr])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $ret:ty)?; )*
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy)]
        pub(crate) struct $entries {
            $( pub(crate) $name: unsafe extern "C" fn($($ty),*) $(-> $ret)?, )*
            /// Since 2.0; `None` before.
            pub(crate) fi_fabric2: Option<unsafe extern "C" fn(*mut fi_info, *mut *mut fid_fabric, u64, *mut c_void) -> c_int>,
        }

        impl $entries {
            /// Looks each function up by its unversioned name, which gives the newest layout of what it returns.
            ///
            /// # Safety
            /// What `symbol` finds must be libfabric's function of that name.
            pub(crate) unsafe fn find(
                mut symbol: impl FnMut(&'static CStr) -> Option<NonNull<c_void>>,
            ) -> Result<Self, &'static str> {
                Ok(Self {
                    $( $name: {
                        let name = concat!(stringify!($name), "\0");
                        let name = CStr::from_bytes_with_nul(name.as_bytes()).map_err(|_| stringify!($name))?;
                        let address = symbol(name).ok_or(stringify!($name))?;
                        // SAFETY: libfabric's function of this name has this type, in every version.
                        unsafe { core::mem::transmute::<NonNull<c_void>, unsafe extern "C" fn($($ty),*) $(-> $ret)?>(address) }
                    }, )*
                    // SAFETY: as above.
                    fi_fabric2: symbol(c"fi_fabric2").map(|address| unsafe { core::mem::transmute(address) }),
                })
            }
        }

        /// The functions that the library exports, by their C names.
        impl Library {
            $(
                $(#[doc = $fdoc])*
                ///
                /// # Safety
                /// [The contract of all calls](crate::calls).
                #[inline]
                pub unsafe fn $name(&self $(, $arg: $ty)*) $(-> $ret)? {
                    // SAFETY: the caller keeps the function's contract.
                    unsafe { (self.entries.$name)($($arg),*) }
                }
            )*
        }
    };
}

exports! {
    /// Addresses of the exported functions.
    struct Entries;

    /// The newest API version that the library knows.
    fn fi_version() -> u32;
    /// Lists what is there that matches `hints` (null: everything); free the list with `fi_freeinfo`.
    ///
    /// Blocks: providers look at devices, and some resolve names.
    fn fi_getinfo(version: u32, node: *const c_char, service: *const c_char, flags: u64, hints: *const fi_info, info: *mut *mut fi_info) -> c_int;
    /// Frees a list of `fi_getinfo` or a copy of `fi_dupinfo`, and everything that it points to (by C's `free`).
    fn fi_freeinfo(info: *mut fi_info);
    /// Copies one entry; of null it makes an empty one with all attribute structs. Null when out of memory.
    fn fi_dupinfo(info: *const fi_info) -> *mut fi_info;
    /// Opens a fabric.
    fn fi_fabric(attr: *mut fi_fabric_attr, fabric: *mut *mut fid_fabric, context: *mut c_void) -> c_int;
    /// Opens an object of the library by name (`"logging"`, `"mr_cache"`, `"hooks"`, …).
    fn fi_open(version: u32, name: *const c_char, attr: *mut c_void, attr_len: usize, flags: u64, fid: *mut *mut fid, context: *mut c_void) -> c_int;
    /// The text of a positive errno; static.
    fn fi_strerror(errnum: c_int) -> *const c_char;
    /// Writes a value of the API as text into `buf`; returns `buf`.
    fn fi_tostr_r(buf: *mut c_char, len: usize, data: *const c_void, datatype: fi_type) -> *mut c_char;
    /// Lists the settings that the library and its providers read from the environment; needs one `fi_getinfo` before.
    fn fi_getparams(params: *mut *mut fi_param, count: *mut c_int) -> c_int;
    /// Frees a list of `fi_getparams`.
    fn fi_freeparams(params: *mut fi_param);
}

/// A libfabric that this process has open, for as long as it runs.
///
/// All functions may be called from several threads at once.
pub struct Library {
    entries: Entries,
    version: Version,
    path: PathBuf,
    shared: bool,
}

impl Library {
    pub(crate) fn new(entries: Entries, shared: bool) -> Self {
        // SAFETY: takes nothing and has no precondition.
        let version = Version::from_raw(unsafe { (entries.fi_version)() });
        Self { entries, version, path: file_of(entries.fi_version as *const c_void), shared }
    }

    /// The newest API version that the library knows.
    #[must_use]
    pub fn version(&self) -> Version {
        self.version
    }

    /// The version with the patch level, as the library's own text says it (e.g. `2.5.1`).
    #[must_use]
    pub fn package_version(&self) -> String {
        let mut text = [0; 256];
        let version = self.version.raw();
        // SAFETY: the buffer is as long as said. For this type the data is not read, but must not be null.
        unsafe {
            self.fi_tostr_r(text.as_mut_ptr(), text.len(), ptr::from_ref(&version).cast(), FI_TYPE_VERSION)
        };
        let bytes: Vec<u8> = text.iter().map(|c| c.cast_unsigned()).take_while(|c| *c != 0).collect();
        let text = String::from_utf8_lossy(&bytes);
        let word = text
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '.')
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        word.map_or_else(|| self.version.to_string(), str::to_owned)
    }

    /// The version to ask `fi_getinfo` for: the first of [`API_VERSIONS`] that the library knows.
    #[must_use]
    pub fn api_version(&self) -> Version {
        API_VERSIONS.into_iter().find(|wanted| *wanted <= self.version).unwrap_or(OLDEST)
    }

    /// The file that it was loaded from, as the loader names it.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Was it there before we looked, opened by somebody else in this process or linked in?
    #[must_use]
    pub fn was_already_loaded(&self) -> bool {
        self.shared
    }

    /// An empty `fi_info` with all attribute structs, in the library's own layout; free it with `fi_freeinfo`.
    ///
    /// Never allocate one in any other way: the library's may be longer than the one in [`bindings`](crate::fi_info).
    /// Null when out of memory.
    #[must_use]
    pub fn fi_allocinfo(&self) -> *mut fi_info {
        // SAFETY: null means an empty one.
        unsafe { self.fi_dupinfo(ptr::null()) }
    }

    /// Opens a fabric with flags (2.0 and later; earlier libraries know only `flags` 0).
    ///
    /// # Safety
    /// [The contract of all calls](crate::calls).
    pub unsafe fn fi_fabric2(
        &self,
        info: *mut fi_info,
        fabric: *mut *mut fid_fabric,
        flags: u64,
        context: *mut c_void,
    ) -> c_int {
        match self.entries.fi_fabric2 {
            // SAFETY: the caller keeps the function's contract.
            Some(call) => unsafe { call(info, fabric, flags, context) },
            // SAFETY: `info` is live, says the caller.
            None if flags == 0 => unsafe { self.fi_fabric((*info).fabric_attr, fabric, context) },
            None => -FI_ENOSYS,
        }
    }

    /// The library's text for an errno of either sign; [`errno_text`](crate::errno_text) where it has none.
    #[must_use]
    pub fn error_text(&self, errno: c_int) -> String {
        // SAFETY: takes any number, returns static text or null.
        let text = unsafe { self.fi_strerror(errno.checked_abs().unwrap_or(FI_EOTHER)) };
        if text.is_null() {
            return crate::errno_text(errno).into_owned();
        }
        // SAFETY: not null, so static text that ends with NUL.
        unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
    }
}

impl fmt::Debug for Library {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Library")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("was_already_loaded", &self.shared)
            .finish_non_exhaustive()
    }
}

/// The file that an address in this process belongs to; empty if the loader does not know.
fn file_of(address: *const c_void) -> PathBuf {
    // SAFETY: an all-zero Dl_info is valid.
    let mut found: libc::Dl_info = unsafe { core::mem::zeroed() };
    // SAFETY: any address may be asked for; the answer's text belongs to the loader and lives as long as the object, which
    // is never closed.
    unsafe {
        if libc::dladdr(address, &raw mut found) == 0 || found.dli_fname.is_null() {
            return PathBuf::new();
        }
        use std::os::unix::ffi::OsStrExt as _;
        PathBuf::from(std::ffi::OsStr::from_bytes(CStr::from_ptr(found.dli_fname).to_bytes()))
    }
}
