//! Feature `linked`: our types and those of the OFI working group's crate describe the same C types.

#![cfg(feature = "linked")]
#![allow(clippy::unwrap_used)] // a test fails by panicking

use core::mem::{align_of, offset_of, size_of};

use fabric_sys as ours;
use libfabric_sys::bindgen as theirs;

/// The headers that ours were made from.
const HEADERS: (u32, u32) = (ours::FI_MAJOR_VERSION, ours::FI_MINOR_VERSION);

macro_rules! compare {
    ($($ty:ident: $($field:ident)*;)*) => {
        /// Name, (ours, theirs) of every size, alignment and offset.
        fn figures() -> Vec<(&'static str, (usize, usize))> {
            // What only `fi_ext_efa.h` has, their crate leaves out: `known!` drops it.
            let mut all = Vec::new();
            $( known!(all, $ty: $($field)*); )*
            all
        }
    };
}

macro_rules! known {
    ($all:ident, fi_efa_mr_attr: $($field:ident)*) => {};
    ($all:ident, fi_efa_ops_domain: $($field:ident)*) => {};
    ($all:ident, $ty:ident: $($field:ident)*) => {
        $all.push((concat!("size of ", stringify!($ty)), (size_of::<ours::$ty>(), size_of::<theirs::$ty>())));
        $all.push((concat!("alignment of ", stringify!($ty)), (align_of::<ours::$ty>(), align_of::<theirs::$ty>())));
        $($all.push((
            concat!("offset of ", stringify!($ty), ".", stringify!($field)),
            (offset_of!(ours::$ty, $field), offset_of!(theirs::$ty, $field)),
        ));)*
    };
}

include!("fixtures/fields.rs");

#[test]
fn the_two_crates_agree_on_the_layout_of_every_type() {
    if (theirs::FI_MAJOR_VERSION, theirs::FI_MINOR_VERSION) != HEADERS {
        return eprintln!(
            "SKIP: the_two_crates_agree_on_the_layout_of_every_type: ofi-libfabric-sys was built with headers {}.{}, \
             ours are of {}.{}",
            theirs::FI_MAJOR_VERSION,
            theirs::FI_MINOR_VERSION,
            HEADERS.0,
            HEADERS.1
        );
    }
    let all = figures();
    assert!(all.len() > 600, "the list of fields has only {} entries", all.len());
    let different: Vec<_> = all.iter().filter(|(_, (ours, theirs))| ours != theirs).collect();
    assert!(different.is_empty(), "(ours, theirs): {different:#?}");
}

#[test]
fn the_two_crates_agree_on_constants() {
    macro_rules! same {
        ($($name:ident)*) => { $(assert_eq!(i128::from(ours::$name), i128::from(theirs::$name), stringify!($name));)* };
    }
    same!(FI_MSG FI_RMA FI_HMEM FI_REMOTE_CQ_DATA FI_MORE FI_DELIVERY_COMPLETE FI_CONTEXT FI_CONTEXT2 FI_MR_LOCAL);
    same!(FI_MR_VIRT_ADDR FI_MR_PROV_KEY FI_MR_DMABUF FI_EAGAIN FI_EOPNOTSUPP FI_SELECTIVE_COMPLETION);
    assert_eq!(ours::FI_EP_RDM, theirs::fi_ep_type_FI_EP_RDM);
    assert_eq!(ours::FI_AV_TABLE, theirs::fi_av_type_FI_AV_TABLE);
    assert_eq!(ours::FI_THREAD_SAFE, theirs::fi_threading_FI_THREAD_SAFE);
    assert_eq!(ours::FI_CQ_FORMAT_TAGGED, theirs::fi_cq_format_FI_CQ_FORMAT_TAGGED);
    assert_eq!(ours::FI_HMEM_CUDA, theirs::fi_hmem_iface_FI_HMEM_CUDA);
    assert_eq!(ours::FI_UINT64, theirs::fi_datatype_FI_UINT64);
    assert_eq!(ours::FI_CSWAP, theirs::fi_op_FI_CSWAP);
}

#[test]
fn the_linked_library_is_the_one_that_is_loaded() {
    let library = ours::load().unwrap();
    assert!(library.was_already_loaded());
    // SAFETY: takes nothing and has no precondition.
    assert_eq!(library.version().raw(), unsafe { theirs::fi_version() });
}
