//! Errors: a number for the program, words for people. Panics end here.

use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char};
use std::panic::{AssertUnwindSafe, catch_unwind};

use weft_compat::Fault;

/// Everything went well.
pub const WEFT_OK: i32 = 0;
/// An argument makes no sense, or a transfer failed.
pub const WEFT_ERROR: i32 = -1;
/// Nothing is registered at the address.
pub const WEFT_NOT_REGISTERED: i32 = -3;
/// Part of the range is registered already.
pub const WEFT_OVERLAPPING: i32 = -7;
/// A peer's name leads nowhere.
pub const WEFT_NAME: i32 = -101;
/// A peer cannot be reached.
pub const WEFT_UNREACHABLE: i32 = -102;
/// Memory cannot be allocated.
pub const WEFT_NO_MEMORY: i32 = -302;
/// The library itself failed; please report it.
pub const WEFT_PANIC: i32 = -999;

thread_local! {
    static LAST: RefCell<CString> = RefCell::default();
}

/// Why a function failed: a code and words.
pub(crate) struct Failure {
    code: i32,
    words: String,
}

impl Failure {
    pub(crate) fn argument(words: impl Into<String>) -> Self {
        Self { code: WEFT_ERROR, words: words.into() }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self { code: fault.code(), words: fault.to_string() }
    }
}

impl From<engine::Error> for Failure {
    fn from(error: engine::Error) -> Self {
        Fault::from(error).into()
    }
}

/// Runs the body of a function: its result as a code, a panic as [`WEFT_PANIC`]; words are kept for [`weft_last_error`].
pub(crate) fn guard(body: impl FnOnce() -> Result<i32, Failure>) -> i32 {
    // Whatever a panic leaves half done is behind locks that do not care, or is not used again.
    let outcome = catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let said = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("no message");
        Err(Failure { code: WEFT_PANIC, words: format!("the library failed ({said}); please report it") })
    });
    match outcome {
        Ok(code) => code,
        Err(Failure { code, words }) => {
            let clean: Vec<u8> = words.into_bytes().into_iter().filter(|&byte| byte != 0).collect();
            // Nothing but zero bytes could make this fail. A thread that is ending has nowhere to keep the words.
            let _ = LAST.try_with(|last| last.replace(CString::new(clean).unwrap_or_default()));
            code
        }
    }
}

/// Why the last function of this thread that failed did so, in words. Never null; valid until the next failure on this thread.
#[unsafe(no_mangle)]
pub extern "C" fn weft_last_error() -> *const c_char {
    const NONE: &CStr = c"";
    LAST.try_with(|last| last.borrow().as_ptr()).unwrap_or(NONE.as_ptr())
}

/// A string of the caller's.
///
/// # Safety
/// Null, or a string that ends with a zero byte and is not changed meanwhile.
pub(crate) unsafe fn text<'a>(text: *const c_char, what: &str) -> Result<&'a str, Failure> {
    if text.is_null() {
        return Err(Failure::argument(format!("{what} is null")));
    }
    // SAFETY: not null, and the caller promises the rest.
    let text = unsafe { CStr::from_ptr(text) };
    text.to_str().map_err(|_| Failure::argument(format!("{what} is not UTF-8")))
}

/// An array of the caller's; null is fine if it has no elements.
///
/// # Safety
/// Null, or `len` values that are not changed meanwhile.
pub(crate) unsafe fn list<'a, T>(first: *const T, len: usize, what: &str) -> Result<&'a [T], Failure> {
    if len == 0 {
        return Ok(&[]);
    }
    if first.is_null() || len > isize::MAX as usize / size_of::<T>().max(1) {
        return Err(Failure::argument(format!("{what} is null or too long")));
    }
    // SAFETY: not null, fits the address space, and the caller promises the rest.
    Ok(unsafe { std::slice::from_raw_parts(first, len) })
}

/// Where a result goes.
///
/// # Safety
/// Null, or a place that may be written.
pub(crate) unsafe fn put<T>(place: *mut T, value: T, what: &str) -> Result<(), Failure> {
    if place.is_null() {
        return Err(Failure::argument(format!("{what} is null")));
    }
    // SAFETY: not null, and the caller promises the rest.
    unsafe { place.write(value) };
    Ok(())
}
