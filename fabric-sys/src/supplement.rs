//! What the bindings lack: constants that bindgen cannot type, and what libfabric has added since 2.1.
//!
//! The additions are appended by libfabric in every case, so that they mean nothing to an older library: an unknown
//! option or command is answered with `-FI_ENOPROTOOPT` or `-FI_ENOSYS`.

use core::ffi::c_int;

use crate::bindings::{FI_OPT_EFA_WRITE_IN_ORDER_ALIGNED_128_BYTES, fi_addr_t};

/// "No address": any source in a receive; no entry after a failed insertion (`fabric.h`).
pub const FI_ADDR_UNSPEC: fi_addr_t = u64::MAX;
/// The address of an entry that could not be inserted (`fabric.h`).
pub const FI_ADDR_NOTAVAIL: fi_addr_t = u64::MAX;
/// What `fi_mr_key` returns for a region whose key is too long for 64 bits, or not there yet (`fabric.h`).
pub const FI_KEY_NOTAVAIL: u64 = u64::MAX;
/// `fi_ep_attr.tx_ctx_cnt`/`rx_ctx_cnt`: the endpoint shares a context (`fabric.h`).
pub const FI_SHARED_CONTEXT: usize = usize::MAX;
/// `fi_domain_attr.auth_key_size`: authorisation keys come from the address vector (`fabric.h`).
pub const FI_AV_AUTH_KEY: usize = usize::MAX;

/// EFA endpoint option, `bool`: all peers run the same software on the same platform, which shortens the handshake of
/// the fabric `efa` (`fi_ext.h`, 2.2 and later).
pub const FI_OPT_EFA_HOMOGENEOUS_PEERS: c_int = FI_OPT_EFA_WRITE_IN_ORDER_ALIGNED_128_BYTES + 1;
/// EFA endpoint option, `bool`, true by default: a write with immediate uses up no posted receive, so that nothing
/// bounds the completions that peers cause here; false needs `FI_RX_CQ_DATA` on `efa-direct` (`fi_ext.h`, 2.5 and later).
pub const FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV: c_int = FI_OPT_EFA_WRITE_IN_ORDER_ALIGNED_128_BYTES + 2;
