//! Address vectors.

use core::ffi::{c_char, c_int, c_void};

use super::calls;
use crate::bindings::*;

calls! {
    /// Opens an address vector: the table of peers of a domain.
    pub fn fi_av_open(
        domain: *mut fid_domain,
        attr: *mut fi_av_attr,
        av: *mut *mut fid_av,
        context: *mut c_void,
    ) -> c_int {
        domain.ops.av_open(domain, attr, av, context)
    }

    /// Inserts `count` addresses that lie one after the other at `addr`; returns how many went in.
    /// Each failed one is [`FI_ADDR_NOTAVAIL`](crate::FI_ADDR_NOTAVAIL) in `fi_addr`.
    pub fn fi_av_insert(
        av: *mut fid_av,
        addr: *const c_void,
        count: usize,
        fi_addr: *mut fi_addr_t,
        flags: u64,
        context: *mut c_void,
    ) -> c_int {
        av.ops.insert(av, addr, count, fi_addr, flags, context)
    }

    /// Resolves a node and service name and inserts the address.
    pub fn fi_av_insertsvc(
        av: *mut fid_av,
        node: *const c_char,
        service: *const c_char,
        fi_addr: *mut fi_addr_t,
        flags: u64,
        context: *mut c_void,
    ) -> c_int {
        av.ops.insertsvc(av, node, service, fi_addr, flags, context)
    }

    /// Resolves and inserts a range of nodes with a range of services each.
    pub fn fi_av_insertsym(
        av: *mut fid_av,
        node: *const c_char,
        nodecnt: usize,
        service: *const c_char,
        svccnt: usize,
        fi_addr: *mut fi_addr_t,
        flags: u64,
        context: *mut c_void,
    ) -> c_int {
        av.ops.insertsym(av, node, nodecnt, service, svccnt, fi_addr, flags, context)
    }

    /// Removes addresses. Nothing may be outstanding to them.
    pub fn fi_av_remove(av: *mut fid_av, fi_addr: *mut fi_addr_t, count: usize, flags: u64) -> c_int {
        av.ops.remove(av, fi_addr, count, flags)
    }

    /// Copies the raw address of an entry to `addr`; `addrlen` is the room there and becomes the full length.
    pub fn fi_av_lookup(
        av: *mut fid_av,
        fi_addr: fi_addr_t,
        addr: *mut c_void,
        addrlen: *mut usize,
    ) -> c_int {
        av.ops.lookup(av, fi_addr, addr, addrlen)
    }

    /// Writes a raw address as text into `buf`; `len` becomes the length that the text needs.
    pub fn fi_av_straddr(
        av: *mut fid_av,
        addr: *const c_void,
        buf: *mut c_char,
        len: *mut usize,
    ) -> *const c_char {
        av.ops.straddr(av, addr, buf, len)
    }

    /// Inserts an authorisation key (1.20 and later).
    pub fn fi_av_insert_auth_key(
        av: *mut fid_av,
        auth_key: *const c_void,
        auth_key_size: usize,
        fi_addr: *mut fi_addr_t,
        flags: u64,
    ) -> c_int {
        newer av.ops.insert_auth_key(av, auth_key, auth_key_size, fi_addr, flags)
    }

    /// Copies out an authorisation key (1.20 and later).
    pub fn fi_av_lookup_auth_key(
        av: *mut fid_av,
        addr: fi_addr_t,
        auth_key: *mut c_void,
        auth_key_size: *mut usize,
    ) -> c_int {
        newer av.ops.lookup_auth_key(av, addr, auth_key, auth_key_size)
    }

    /// Has completions report `user_id` for this source (1.20 and later).
    pub fn fi_av_set_user_id(
        av: *mut fid_av,
        fi_addr: fi_addr_t,
        user_id: fi_addr_t,
        flags: u64,
    ) -> c_int {
        newer av.ops.set_user_id(av, fi_addr, user_id, flags)
    }
}

/// The address of receive context `rx_index` of a scalable endpoint.
#[inline]
#[must_use]
pub const fn fi_rx_addr(fi_addr: fi_addr_t, rx_index: u32, rx_ctx_bits: u32) -> fi_addr_t {
    if rx_ctx_bits == 0 { fi_addr } else { ((rx_index as u64) << (64 - rx_ctx_bits)) | fi_addr }
}

/// The address of a peer within a group.
#[inline]
#[must_use]
pub const fn fi_group_addr(fi_addr: fi_addr_t, group_id: u32) -> fi_addr_t {
    ((group_id as u64) << 32) | fi_addr
}
