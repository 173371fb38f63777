//! Raw libfabric: its ABI as Rust types, and the library itself, found and opened at run time.
//!
//! [libfabric](https://ofiwg.github.io/libfabric/) gives programs one interface to many networks: AWS EFA, InfiniBand, shared
//! memory, TCP. This crate is the lowest layer above it. It is for those who write a safe layer, a provider or a test device;
//! everybody else wants such a safe layer (`fabric-safe` is one).
//!
//! - **Building needs nothing**: no libfabric, no headers, no libclang. The bindings are checked in; `cargo xtask bindgen`
//!   wrote them from the headers of libfabric 2.1 and writes the same again.
//! - **A program needs no libfabric to start.** [`load`] looks for one; none is an [error](LoadError) that says what to do.
//!   One binary serves machines with 1.17 (Debian 12, Ubuntu 24.04), with 2.x, and with none.
//! - **One libfabric per process.** A copy that is there already (of NCCL's plugin, of an MPI) is used, because two copies
//!   in one process break each other. It is never closed. The environment is read ([`LIBRARY_VARIABLE`]), never written:
//!   settings of providers go through [`fi_setopt`] and hints.
//!
//! # What is where
//!
//! | | |
//! |---|---|
//! | [`load`], [`loaded`], [`Library`] | the library: where it is, its version, the functions that it exports |
//! | [`calls`] | `fi_write`, `fi_cq_read`, `fi_mr_regattr`, …: in C inline functions over tables of function pointers; here too |
//! | the types `fi_info`, `fid_ep`, `fi_cq_attr`, … | as in C, with `Default` (all zero) for those that programs fill in |
//! | the constants `FI_MSG`, `FI_EAGAIN`, `FI_OPT_EFA_USE_DEVICE_RDMA`, … | as in C, each in the type that C uses it in |
//! | [`Caps`], [`Mode`], [`MrMode`], [`OpFlags`], [`Access`], [`CqFlags`], [`RegFlags`] | the words of bits as types |
//! | [`errno_name`], [`errno_text`] | errno values for people, without a library |
//!
//! # An example: what is there
//!
//! ```
//! use std::{ffi::CStr, ptr};
//!
//! let library = match fabric_sys::load() {
//!     Ok(library) => library,
//!     Err(error) => return eprintln!("{error}"),
//! };
//! eprintln!("libfabric {} in {}", library.package_version(), library.path().display());
//!
//! let hints = library.fi_allocinfo();
//! assert!(!hints.is_null(), "out of memory");
//! let mut list = ptr::null_mut();
//! // SAFETY: `hints` is a whole fi_info, and so is every entry of the list, until they are freed below.
//! unsafe {
//!     (*hints).caps = (fabric_sys::Caps::MSG | fabric_sys::Caps::RMA).bits();
//!     (*(*hints).ep_attr).type_ = fabric_sys::FI_EP_RDM;
//!     let version = library.api_version().raw();
//!     let status = library.fi_getinfo(version, ptr::null(), ptr::null(), 0, hints, &mut list);
//!     if status != 0 {
//!         eprintln!("nothing matches: {}", library.error_text(status));
//!     }
//!     let mut entry = list;
//!     while !entry.is_null() {
//!         let provider = CStr::from_ptr((*(*entry).fabric_attr).prov_name);
//!         println!("{}: up to {} bytes a message", provider.to_string_lossy(), (*(*entry).ep_attr).max_msg_size);
//!         entry = (*entry).next;
//!     }
//!     library.fi_freeinfo(list);
//!     library.fi_freeinfo(hints);
//! }
//! ```
//!
//! # How one set of bindings serves many versions
//!
//! libfabric appends to its structs and never changes what is there. So:
//!
//! - structs that the **library** allocates may be longer or shorter than ours. [`fi_info`] is always made by
//!   [`Library::fi_allocinfo`], which gives the library's own layout. Of what 1.17 allocates, ours have more at the end in one
//!   place: `max_ep_auth_key` and `max_group_id` of [`fi_domain_attr`], which only exist from [`Library::version`] 1.20
//!   and 2.0 on;
//! - structs that **we** allocate have the layout of 2.1, zero where nothing is said, and the library reads as much of
//!   them as the API version has that the program asked `fi_getinfo` for: ask for [`Library::api_version`], one of a few
//!   constants ([`API_VERSIONS`]), never for what the library happens to be;
//! - **tables of function pointers** say how long they are; newer entries are only called where the table reaches that far.
//!   What is missing answers `-FI_ENOSYS`.
//!
//! # What it is not
//! Nothing here is checked beyond that: a wrong pointer is as wrong as in C. No object is closed for you, no lock is taken, no
//! call is retried. Collective operations, scalable endpoints and poll sets have types but no functions.
//!
//! # Feature `linked`
//! Takes the entry points from the OFI working group's crate (`ofi-libfabric-sys`) at link time. The build then needs
//! libfabric ≥ 2.0 with headers and libclang, and the program needs libfabric to start. A test compares the layout of all
//! types of the two crates.

#![cfg(unix)]

#[cfg(not(target_pointer_width = "64"))]
compile_error!("the bindings describe libfabric on 64-bit systems");

#[rustfmt::skip]
#[allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals)]
#[allow(unsafe_op_in_unsafe_fn, unused_qualifications, clippy::all, clippy::undocumented_unsafe_blocks)]
mod bindings;
#[allow(clippy::too_many_arguments)] // as in C
pub mod calls;
mod errno;
mod error;
mod flags;
#[allow(clippy::too_many_arguments)] // as in C
mod library;
#[cfg(feature = "linked")]
mod linked;
mod loader;
#[cfg(not(feature = "linked"))]
mod search;
mod supplement;
mod version;

pub use bindings::*;
pub use calls::*;
pub use errno::{errno_name, errno_text};
pub use error::{Attempts, LoadError};
pub use flags::{Access, Caps, CqFlags, Mode, MrMode, OpFlags, RegFlags};
pub use library::{API_VERSIONS, Library, OLDEST};
pub use loader::{LIBRARY_VARIABLE, SONAME, load, loaded};
pub use supplement::*;
pub use version::{FI_VERSION, Version};
