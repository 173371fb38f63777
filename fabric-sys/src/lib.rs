//! Raw libfabric ABI, found and opened at run time

#[rustfmt::skip]
#[allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals)]
#[allow(unsafe_op_in_unsafe_fn, unused_qualifications, clippy::all, clippy::undocumented_unsafe_blocks)]
mod bindings;
#[allow(clippy::too_many_arguments)] // as in C
pub mod calls;
mod errno;
#[allow(clippy::too_many_arguments)] // as in C
mod library;
mod loader;
mod supplement;
mod version;

pub use bindings::*;
pub use calls::*;
pub use errno::{errno_name, errno_text};
pub use library::{API_VERSIONS, Library, OLDEST};
pub use loader::{Attempts, LIBRARY_VARIABLE, LoadError, SONAME, load, loaded};
pub use supplement::*;
pub use version::{FI_VERSION, Version};
