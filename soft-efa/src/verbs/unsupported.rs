//! Verbs that an EFA card has not, and small helpers that programs expect of libibverbs.
//!
//! Programs link against these names, so they must be there; what needs a feature that EFA lacks answers EOPNOTSUPP.

use super::fail;
use crate::abi::*;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::OnceLock;

macro_rules! not_on_efa {
    ($($name:ident => $result:expr;)*) => {
        $(
            #[unsafe(no_mangle)]
            pub extern "C" fn $name() -> *mut c_void {
                // Whatever the real arguments are, they are not looked at.
                $result
            }
        )*
    };
}

fn errno(number: c_int) -> *mut c_void {
    number as usize as *mut c_void
}

not_on_efa! {
    ibv_rereg_mr => errno(libc::EOPNOTSUPP);
    ibv_resize_cq => errno(libc::EOPNOTSUPP);
    ibv_create_srq => fail(libc::EOPNOTSUPP);
    ibv_modify_srq => errno(libc::EOPNOTSUPP);
    ibv_query_srq => errno(libc::EOPNOTSUPP);
    ibv_destroy_srq => errno(libc::EOPNOTSUPP);
    ibv_attach_mcast => errno(libc::EOPNOTSUPP);
    ibv_detach_mcast => errno(libc::EOPNOTSUPP);
    ibv_create_ah_from_wc => fail(libc::EOPNOTSUPP);
    ibv_init_ah_from_wc => errno(libc::EOPNOTSUPP);
    ibv_resolve_eth_l2_from_gid => errno(libc::EOPNOTSUPP);
    ibv_register_driver => errno(0);
    ibv_import_device => fail(libc::EOPNOTSUPP);
    ibv_import_mr => fail(libc::EOPNOTSUPP);
    ibv_import_pd => fail(libc::EOPNOTSUPP);
    ibv_unimport_mr => errno(0);
    ibv_unimport_pd => errno(0);
    ibv_import_dm => fail(libc::EOPNOTSUPP);
    ibv_unimport_dm => errno(0);
    ibv_query_ece => errno(libc::EOPNOTSUPP);
    ibv_set_ece => errno(libc::EOPNOTSUPP);
    ibv_dofork_range => errno(0);
    ibv_dontfork_range => errno(0);
    ibv_copy_ah_attr_from_kern => errno(0);
    ibv_copy_path_rec_from_kern => errno(0);
    ibv_copy_path_rec_to_kern => errno(0);
    ibv_copy_qp_attr_from_kern => errno(0);
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_wc_status_str(status: c_uint) -> *const c_char {
    const NAMES: [&CStr; 24] = [
        c"success",
        c"local length error",
        c"local QP operation error",
        c"local EE context operation error",
        c"local protection error",
        c"Work Request Flushed Error",
        c"memory management operation error",
        c"bad response error",
        c"local access error",
        c"remote invalid request error",
        c"remote access error",
        c"remote operation error",
        c"transport retry counter exceeded",
        c"RNR retry counter exceeded",
        c"local RDD violation error",
        c"remote invalid RD request",
        c"aborted error",
        c"invalid EE context number",
        c"invalid EE context state",
        c"fatal error",
        c"response timeout error",
        c"general error",
        c"TM error",
        c"TM software rendezvous",
    ];
    NAMES.get(status as usize).copied().unwrap_or(c"unknown").as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_port_state_str(state: c_uint) -> *const c_char {
    const NAMES: [&CStr; 6] =
        [c"no state change (NOP)", c"down", c"init", c"armed", c"active", c"active defer"];
    NAMES.get(state as usize).copied().unwrap_or(c"invalid state").as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_node_type_str(node_type: c_int) -> *const c_char {
    if node_type == IBV_NODE_UNSPECIFIED { c"unspecified".as_ptr() } else { c"unknown".as_ptr() }
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_event_type_str(event: c_uint) -> *const c_char {
    match event {
        IBV_EVENT_CQ_ERR => c"CQ error".as_ptr(),
        IBV_EVENT_PORT_ACTIVE => c"port active".as_ptr(),
        IBV_EVENT_PORT_ERR => c"port error".as_ptr(),
        _ => c"unknown".as_ptr(),
    }
}

/// Rates in Mbit/s by `enum ibv_rate`.
const RATES: [(c_int, c_int); 8] =
    [(2, 2500), (5, 5000), (3, 10000), (6, 20000), (7, 40000), (16, 103125), (17, 206250), (21, 425000)];

#[unsafe(no_mangle)]
pub extern "C" fn ibv_rate_to_mbps(rate: c_int) -> c_int {
    RATES.iter().find(|entry| entry.0 == rate).map_or(-1, |entry| entry.1)
}

#[unsafe(no_mangle)]
pub extern "C" fn mbps_to_ibv_rate(mbps: c_int) -> c_int {
    RATES.iter().find(|entry| entry.1 == mbps).map_or(0, |entry| entry.0)
}

#[unsafe(no_mangle)]
pub extern "C" fn ibv_rate_to_mult(rate: c_int) -> c_int {
    match ibv_rate_to_mbps(rate) {
        -1 => -1,
        mbps => mbps / 2500,
    }
}

#[unsafe(no_mangle)]
pub extern "C" fn mult_to_ibv_rate(mult: c_int) -> c_int {
    mbps_to_ibv_rate(mult.saturating_mul(2500))
}

/// Where the sysfs of the cards is.
#[unsafe(no_mangle)]
pub extern "C" fn ibv_get_sysfs_path() -> *const c_char {
    static PATH: OnceLock<std::ffi::CString> = OnceLock::new();
    PATH.get_or_init(|| {
        let settings = crate::settings::Settings::from_env();
        let root = crate::sysfs::root(&settings.dir);
        std::ffi::CString::new(root.to_string_lossy().into_owned()).unwrap_or_default()
    })
    .as_ptr()
}

/// Reads a sysfs file into `buffer`, without its last line end; the number of bytes, or -1.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_read_sysfs_file(
    dir: *const c_char,
    file: *const c_char,
    buffer: *mut c_char,
    size: usize,
) -> c_int {
    if size == 0 {
        return -1;
    }
    // SAFETY: two C strings.
    let (dir, file) = unsafe { (CStr::from_ptr(dir), CStr::from_ptr(file)) };
    let path = std::path::Path::new(dir.to_str().unwrap_or_default()).join(file.to_str().unwrap_or_default());
    let Ok(mut bytes) = std::fs::read(path) else { return -1 };
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    bytes.truncate(size - 1);
    // SAFETY: the caller's buffer has `size` bytes.
    unsafe {
        buffer.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len());
        *buffer.add(bytes.len()) = 0;
    }
    bytes.len() as c_int
}
