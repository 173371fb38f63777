//! Raw libfabric ABI, found and opened at run time

#[rustfmt::skip]
#[allow(missing_docs, non_camel_case_types, non_snake_case, non_upper_case_globals)]
#[allow(unsafe_op_in_unsafe_fn, unused_qualifications, clippy::all, clippy::undocumented_unsafe_blocks)]
mod bindings;
mod supplement;

pub use bindings::*;
pub use supplement::*;
