//! The inline functions of libfabric's C headers, by the same names: each looks up an entry in the operations table of
//! its object and calls it.
//!
//! # The contract of all calls
//! Objects are open, and of the type that the parameter says; pointers are what the C manual page asks for (null where
//! it allows that); out-pointers can be written; memory that an operation works on stays valid and unaliased by Rust
//! references until the operation has ended. Whether two threads may use one object at a time is what the domain was
//! opened with (`fi_domain_attr.threading`).
//!
//! # What comes back
//! What C returns: 0 or a count, or a negative errno. Where a provider has no table, or a null entry in it (C would crash),
//! and where the library is too old to have the entry (C tests `ops->size`), the answer is `-FI_ENOSYS`, a null
//! pointer or 0.

mod atomic;
mod av;
mod cm;
mod cntr;
mod cq;
mod endpoint;
mod eq;
mod fabric;
mod mr;
mod msg;
mod object;
mod rma;
mod tagged;

pub use atomic::*;
pub use av::*;
pub use cm::*;
pub use cntr::*;
pub use cq::*;
pub use endpoint::*;
pub use eq::*;
pub use fabric::*;
pub use mr::*;
pub use msg::*;
pub use object::*;
pub use rma::*;
pub use tagged::*;

use core::ffi::{c_char, c_int};

use crate::bindings::FI_ENOSYS;

/// What a call returns that the provider does not have.
trait Absent {
    const ABSENT: Self;
}

impl Absent for c_int {
    const ABSENT: Self = -FI_ENOSYS;
}

impl Absent for isize {
    const ABSENT: Self = -(FI_ENOSYS as isize);
}

impl Absent for u64 {
    const ABSENT: Self = 0;
}

impl Absent for *const c_char {
    const ABSENT: Self = core::ptr::null();
}

/// Defines functions that call an entry of an operations table. The body says which:
///
/// - `ep.rma.write(…)`: entry `write` of the table `(*ep).rma`;
/// - `ep.fid.bind(…)`: entry `bind` of the common table of every object;
/// - `(fid as fid_ep).ops.cancel(…)`: the parameter is a `fid_t`, the table is that of an endpoint;
/// - `newer …`: the entry is not in the oldest tables, so that the table's size must be looked at first.
macro_rules! calls {
    ($(
        $(#[$meta:meta])*
        $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) -> $ret:ty { $($body:tt)* }
    )*) => { $(
        $(#[$meta])*
        ///
        /// # Safety
        /// [The contract of all calls](crate::calls).
        #[inline]
        $vis unsafe fn $name($($arg: $ty),*) -> $ret {
            // SAFETY: the object is open, so its table is null or a live table of the type that its field says, of
            // which `size` bytes are there. Entries that every library has are read without looking at `size`.
            // The arguments are what the entry's contract asks for, says the caller.
            unsafe { $crate::calls::entry!($($body)*) }
        }
    )* };
}

macro_rules! entry {
    ($obj:ident.fid.$entry:ident($($pass:expr),*)) => {
        $crate::calls::entry!(@call ((*$obj.cast::<fid>()).ops), true, $entry($($pass),*))
    };
    ($obj:ident.$ops:ident.$entry:ident($($pass:expr),*)) => {
        $crate::calls::entry!(@call ((*$obj).$ops), true, $entry($($pass),*))
    };
    (($obj:ident as $class:ident).$ops:ident.$entry:ident($($pass:expr),*)) => {
        $crate::calls::entry!(@call ((*$obj.cast::<$class>()).$ops), true, $entry($($pass),*))
    };
    (newer $obj:ident.$ops:ident.$entry:ident($($pass:expr),*)) => {
        $crate::calls::entry!(@call ((*$obj).$ops), $crate::calls::has!((*$obj).$ops, $entry), $entry($($pass),*))
    };
    (@call ($ops:expr), $has:expr, $entry:ident($($pass:expr),*)) => {
        if !$ops.is_null() && $has && let Some(call) = (*$ops).$entry {
            call($($pass),*)
        } else {
            $crate::calls::Absent::ABSENT
        }
    };
}

/// Does the table reach as far as this entry?
macro_rules! has {
    ($ops:expr, $entry:ident) => {
        (*$ops).size > (&raw const (*$ops).$entry).addr() - $ops.addr()
    };
}

use {calls, entry, has};
