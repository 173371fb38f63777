//! A libfabric provider without a network: it answers each call as a test has told it to.
//!
//! Real providers fail rarely and never on command. This one refuses posts with any number, completes operations with
//! errors, late, twice or never, returns fewer completions than were asked for, and fails to close. It checks its caller
//! at the same time: memory of operations in flight is touched on every poll (so that freed memory shows, under valgrind at
//! the latest), operation contexts carry a pattern, local buffers must be registered, and what is open is counted.
//!
//! libfabric finds it as `libscripted-fi.so` in a folder of `FI_PROVIDER_PATH`; hints with the provider name `scripted`
//! select it. The same crate, linked into the test, is the remote control:
//!
//! ```no_run
//! use scripted_provider::{Answer, Call, Control};
//!
//! let control = Control::of_loaded_provider().expect("libfabric has loaded the provider");
//! control.reset();
//! control.tell(Call::Post, Answer::Fail(11), 3); // the next three posts: try again
//! control.tell(Call::Post, Answer::Never, 1); // the one after that never completes
//! // … use libfabric …
//! assert_eq!(control.faults().total(), 0);
//! ```
//!
//! # What is where
//! [`script`]: what can be told and what is counted. [`control`]: how a test tells it. `world`: the state. `provider`,
//! `nic`,
//! `objects`, `endpoint`, `queue`, `events`: libfabric's objects. It is not a network: bytes go nowhere, no peer is ever reached.

pub mod control;
pub mod script;

mod endpoint;
mod events;
mod nic;
mod objects;
mod provider;
mod queue;
mod world;

pub use control::Control;
pub use nic::{LINK_BITS_PER_SECOND, PCI_ADDRESS};
pub use provider::{AS_EFA, BOUND_DOMAIN, DEPTH, INJECT_BYTES, NAME, NAME_AS_EFA};
pub use script::{Answer, Call, Counts, Faults, Placed};
pub use world::PLACED;

use core::ffi::c_void;
use core::ptr::null_mut;

/// The table of common operations of an object.
///
/// Entries that are not given refuse.
fn fid_ops(
    close: unsafe extern "C" fn(*mut fabric_sys::fid) -> i32,
    bind: Option<unsafe extern "C" fn(*mut fabric_sys::fid, *mut fabric_sys::fid, u64) -> i32>,
    control: Option<unsafe extern "C" fn(*mut fabric_sys::fid, i32, *mut c_void) -> i32>,
) -> fabric_sys::fi_ops {
    fabric_sys::fi_ops {
        size: size_of::<fabric_sys::fi_ops>(),
        close: Some(close),
        bind,
        control,
        ops_open: None,
        tostr: None,
        ops_set: None,
    }
}

/// The head of an object.
fn new_fid(class: usize, context: *mut c_void, ops: &'static fabric_sys::fi_ops) -> fabric_sys::fid {
    fabric_sys::fid { fclass: class, context, ops: core::ptr::from_ref(ops).cast_mut() }
}

/// Hands an object to the caller.
///
/// # Safety
/// `out` can be written.
unsafe fn give<T>(out: *mut *mut T, object: T) -> *mut T {
    let object = Box::into_raw(Box::new(object));
    // SAFETY: as the caller promises.
    unsafe { *out = object };
    object
}

/// Takes an object back.
///
/// # Safety
/// `object` came from [`give`] as a `T`, and nobody uses it any more.
unsafe fn take<T>(object: *mut fabric_sys::fid) {
    // SAFETY: as the caller promises; objects begin with their `fid`.
    drop(unsafe { Box::from_raw(object.cast::<T>()) });
}

/// The entry point that libfabric calls after it has opened the provider's library.
#[unsafe(no_mangle)]
pub extern "C" fn fi_prov_ini() -> *mut fabric_sys::fi_provider {
    provider::provider().unwrap_or(null_mut())
}
