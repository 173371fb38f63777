//! How a test talks to the copy of the provider that libfabric has opened.

use core::ffi::{CStr, c_void};

use crate::script::{Answer, Call, Counts, Faults, Placed};
use crate::world::world;

/// A handle of the provider in this process.
#[derive(Clone, Copy)]
pub struct Control {
    tell: unsafe extern "C" fn(Call, Answer, u32),
    reset: unsafe extern "C" fn(),
    forget: unsafe extern "C" fn(),
    counts: unsafe extern "C" fn(*mut Counts),
    faults: unsafe extern "C" fn(*mut Faults),
    placed: unsafe extern "C" fn(*mut Placed, usize) -> usize,
    ruin: unsafe extern "C" fn(u64, i32, i32),
}

impl Control {
    /// The provider's file name, by which libfabric finds it in a folder of `FI_PROVIDER_PATH`.
    pub const FILE: &'static str = "libscripted-fi.so";

    /// The provider that libfabric has opened; `None` before the first discovery or if it has not found it.
    #[must_use]
    pub fn of_loaded_provider() -> Option<Self> {
        // The loader knows a library by its soname, which cargo's cdylibs do not have, so ask all that are open.
        let handle = find_loaded(Self::FILE)?;
        let symbol = |name: &CStr| {
            // SAFETY: an open handle, a name that ends with NUL.
            let address = unsafe { libc::dlsym(handle, name.as_ptr()) };
            (!address.is_null()).then_some(address)
        };
        // SAFETY: the functions below, of the same build.
        unsafe {
            Some(Self {
                tell: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(Call, Answer, u32)>(symbol(
                    c"scripted_tell",
                )?),
                reset: core::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(symbol(
                    c"scripted_reset",
                )?),
                forget: core::mem::transmute::<*mut c_void, unsafe extern "C" fn()>(symbol(
                    c"scripted_forget",
                )?),
                counts: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut Counts)>(symbol(
                    c"scripted_counts",
                )?),
                faults: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut Faults)>(symbol(
                    c"scripted_faults",
                )?),
                placed: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(*mut Placed, usize) -> usize>(
                    symbol(c"scripted_placed")?,
                ),
                ruin: core::mem::transmute::<*mut c_void, unsafe extern "C" fn(u64, i32, i32)>(symbol(
                    c"scripted_ruin",
                )?),
            })
        }
    }

    /// Queues an answer for the next `times` calls of this kind that have no answer yet.
    pub fn tell(&self, call: Call, answer: Answer, times: u32) {
        // SAFETY: the provider is never unloaded; plain values.
        unsafe { (self.tell)(call, answer, times) }
    }

    /// From now on operations of this endpoint, by its number, end with that error unless they are answered otherwise; with errno
    /// 0 they end well again.
    pub fn ruin(&self, endpoint: u64, errno: i32, provider_errno: i32) {
        // SAFETY: as above.
        unsafe { (self.ruin)(endpoint, errno, provider_errno) }
    }

    /// Forgets all answers and ruins, and sets counters of what has happened and faults to zero. What is open stays counted.
    pub fn reset(&self) {
        // SAFETY: as above.
        unsafe { (self.reset)() }
    }

    /// Forgets answers and ruins, nothing else.
    pub fn forget_answers(&self) {
        // SAFETY: as above.
        unsafe { (self.forget)() }
    }

    /// What has happened and what is there.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        // SAFETY: as above.
        unsafe { (self.counts)(&raw mut counts) };
        counts
    }

    /// What the caller did wrong.
    #[must_use]
    pub fn faults(&self) -> Faults {
        let mut faults = Faults::default();
        // SAFETY: as above.
        unsafe { (self.faults)(&raw mut faults) };
        faults
    }

    /// The latest reads and writes that were accepted since the last reset, in order; not more than
    /// [`PLACED`](crate::PLACED).
    #[must_use]
    pub fn placed(&self) -> Vec<Placed> {
        let mut placed = vec![Placed::default(); crate::PLACED];
        // SAFETY: room for so many.
        let count = unsafe { (self.placed)(placed.as_mut_ptr(), placed.len()) };
        placed.truncate(count);
        placed
    }
}

/// A handle of the open library whose file has this name.
fn find_loaded(file: &str) -> Option<*mut c_void> {
    struct Search<'a> {
        file: &'a str,
        found: Option<std::ffi::CString>,
    }
    unsafe extern "C" fn visit(info: *mut libc::dl_phdr_info, _size: usize, data: *mut c_void) -> i32 {
        // SAFETY: called below with a Search; the loader's entry is valid during the call.
        let (search, name) = unsafe { (&mut *data.cast::<Search<'_>>(), (*info).dlpi_name) };
        if name.is_null() {
            return 0;
        }
        // SAFETY: not null, so a name that ends with NUL.
        let name = unsafe { CStr::from_ptr(name) };
        if name.to_str().is_ok_and(|name| name.rsplit('/').next() == Some(search.file)) {
            search.found = Some(name.to_owned());
            return 1;
        }
        0
    }
    let mut search = Search { file, found: None };
    // SAFETY: `visit` only uses what it is given.
    unsafe { libc::dl_iterate_phdr(Some(visit), core::ptr::from_mut(&mut search).cast()) };
    let name = search.found?;
    // SAFETY: a name that ends with NUL, of a library that is open already.
    let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_NOLOAD) };
    (!handle.is_null()).then_some(handle)
}

/// [`Control::tell`], in the provider.
#[unsafe(no_mangle)]
pub extern "C" fn scripted_tell(call: Call, answer: Answer, times: u32) {
    world().tell(call, answer, times);
}

/// [`Control::ruin`], in the provider.
#[unsafe(no_mangle)]
pub extern "C" fn scripted_ruin(endpoint: u64, errno: i32, provider_errno: i32) {
    world().ruin(endpoint, errno, provider_errno);
}

/// [`Control::reset`], in the provider.
#[unsafe(no_mangle)]
pub extern "C" fn scripted_reset() {
    world().reset();
}

/// [`Control::forget_answers`], in the provider.
#[unsafe(no_mangle)]
pub extern "C" fn scripted_forget() {
    world().forget_answers();
}

/// [`Control::counts`], in the provider.
///
/// # Safety
/// `out` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scripted_counts(out: *mut Counts) {
    // SAFETY: as the caller promises.
    unsafe { *out = world().counts() };
}

/// [`Control::faults`], in the provider.
///
/// # Safety
/// `out` can be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scripted_faults(out: *mut Faults) {
    // SAFETY: as the caller promises.
    unsafe { *out = world().faults };
}

/// [`Control::placed`], in the provider.
///
/// # Safety
/// `out` has room for as many.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn scripted_placed(out: *mut Placed, room: usize) -> usize {
    let world = world();
    let placed = world.placed.iter().take(room).enumerate();
    // SAFETY: as the caller promises.
    placed.map(|(index, one)| unsafe { *out.add(index) = *one }).count()
}
