//! The provider, and the one thing that it offers.

use core::ffi::{CStr, c_char, c_void};
use std::sync::OnceLock;

use fabric_sys::*;

use crate::{nic, objects};

/// The provider's name, also of its fabric.
pub const NAME: &CStr = c"scripted";

/// The name that it has instead if the environment of the process has [`AS_EFA`]: for callers that read the numbers of errors as
/// the `efa` provider's if the name says so.
pub const NAME_AS_EFA: &CStr = c"scripted-efa";

/// See [`NAME_AS_EFA`].
pub const AS_EFA: &str = "SCRIPTED_AS_EFA";

/// The usual domain.
const DOMAIN: &CStr = c"scripted0";

/// A domain of the provider that is only listed when it is asked for by name: its regions belong to an endpoint
/// (`FI_MR_ENDPOINT`).
pub const BOUND_DOMAIN: &CStr = c"scripted-bound";

/// Transmit and receive depth.
pub const DEPTH: usize = 16;

/// The most that can be injected.
pub const INJECT_BYTES: usize = 64;

const CAPS: u64 = FI_MSG
    | FI_TAGGED
    | FI_RMA
    | FI_ATOMIC
    | FI_READ
    | FI_WRITE
    | FI_RECV
    | FI_SEND
    | FI_REMOTE_READ
    | FI_REMOTE_WRITE
    | FI_LOCAL_COMM
    | FI_REMOTE_COMM
    | FI_SOURCE
    | FI_DIRECTED_RECV;

/// libfabric writes into the struct, under its own lock.
struct Shared(*mut fi_provider);
// SAFETY: see above; we only hand out the address.
unsafe impl Send for Shared {}
// SAFETY: as above.
unsafe impl Sync for Shared {}

/// The struct that libfabric registers; `None` if libfabric's own functions cannot be found.
pub(crate) fn provider() -> Option<*mut fi_provider> {
    static PROVIDER: OnceLock<Option<Shared>> = OnceLock::new();
    let made = PROVIDER.get_or_init(|| {
        let version = load().ok()?.version();
        let provider = fi_provider {
            version: FI_VERSION(1, 0),
            fi_version: version.raw(),
            name: if std::env::var_os(AS_EFA).is_some() { NAME_AS_EFA } else { NAME }.as_ptr(),
            getinfo: Some(getinfo),
            fabric: Some(objects::open_fabric),
            cleanup: Some(cleanup),
            ..Default::default()
        };
        Some(Shared(Box::into_raw(Box::new(provider))))
    });
    made.as_ref().map(|shared| shared.0)
}

unsafe extern "C" fn cleanup() {}

/// C's copy of a text, which `fi_freeinfo` frees.
fn text(text: &CStr) -> *mut c_char {
    // SAFETY: ends with NUL.
    unsafe { libc::strdup(text.as_ptr()) }
}

unsafe extern "C" fn getinfo(
    _version: u32,
    _node: *const c_char,
    _service: *const c_char,
    _flags: u64,
    hints: *const fi_info,
    info: *mut *mut fi_info,
) -> i32 {
    let mut bound = false;
    // SAFETY: null or whole, says libfabric.
    if let Some(hints) = unsafe { hints.as_ref() } {
        // SAFETY: null or whole. Other kinds of endpoints would be stacked under libfabric's utility providers.
        let kind = unsafe { hints.ep_attr.as_ref() }.map_or(FI_EP_UNSPEC, |attr| attr.type_);
        if hints.caps & !CAPS != 0 || ![FI_EP_UNSPEC, FI_EP_RDM].contains(&kind) {
            return -FI_ENODATA;
        }
        // SAFETY: null or whole; not as a reference, because older libraries have a shorter one.
        let (name, mr_mode) = unsafe {
            match hints.domain_attr.is_null() {
                true => (core::ptr::null_mut(), 0),
                false => ((*hints.domain_attr).name, (*hints.domain_attr).mr_mode),
            }
        };
        // SAFETY: null or a text that ends with NUL.
        bound = !name.is_null() && unsafe { CStr::from_ptr(name) } == BOUND_DOMAIN;
        // SAFETY: as above.
        if !name.is_null() && !bound && unsafe { CStr::from_ptr(name) } != DOMAIN {
            return -FI_ENODATA;
        }
        if bound && mr_mode & FI_MR_ENDPOINT == 0 {
            return -FI_ENODATA;
        }
    }
    let Ok(library) = load() else { return -FI_ENODATA };
    let new = library.fi_allocinfo();
    if new.is_null() {
        return -FI_ENOMEM;
    }
    // SAFETY: a whole fi_info of the library's own making; the caller's out-pointer.
    unsafe {
        (*new).caps = CAPS;
        (*new).mode = FI_CONTEXT;
        (*new).addr_format = FI_ADDR_STR;
        let tx = &mut *(*new).tx_attr;
        (tx.caps, tx.mode, tx.size, tx.inject_size) = (CAPS, FI_CONTEXT, DEPTH, INJECT_BYTES);
        (tx.iov_limit, tx.rma_iov_limit) = (4, 4);
        tx.op_flags = 0;
        let rx = &mut *(*new).rx_attr;
        (rx.caps, rx.mode, rx.size, rx.iov_limit) = (CAPS, FI_CONTEXT, DEPTH, 4);
        let ep = &mut *(*new).ep_attr;
        (ep.type_, ep.protocol, ep.max_msg_size) = (FI_EP_RDM, FI_PROTO_UNSPEC, 1 << 30);
        (ep.tx_ctx_cnt, ep.rx_ctx_cnt, ep.mem_tag_format) = (1, 1, u64::MAX);
        // Not as a whole: older libraries have a shorter one.
        let domain = (*new).domain_attr;
        (*domain).name = text(if bound { BOUND_DOMAIN } else { DOMAIN });
        (*domain).threading = FI_THREAD_SAFE;
        (*domain).control_progress = FI_PROGRESS_MANUAL;
        (*domain).__bindgen_anon_1.data_progress = FI_PROGRESS_MANUAL;
        (*domain).resource_mgmt = FI_RM_ENABLED;
        (*domain).av_type = FI_AV_TABLE;
        (*domain).mr_mode = FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
        (*domain).mr_mode |= if bound { FI_MR_ENDPOINT } else { 0 };
        (*domain).mr_key_size = 8;
        (*domain).cq_data_size = 8;
        (*domain).mr_iov_limit = 1;
        (*domain).mr_cnt = 1024;
        (*domain).caps = FI_LOCAL_COMM | FI_REMOTE_COMM;
        (*(*new).fabric_attr).name = text(NAME);
        (*(*new).fabric_attr).prov_version = FI_VERSION(1, 0);
        (*new).nic = nic::card();
        *info = new;
    }
    0
}

/// Nothing, for parameters that are not looked at.
pub(crate) type Any = *mut c_void;
