//! Registering memory.

use std::ffi::{c_char, c_void};

use weft_compat::Access;

use crate::error::{Failure, WEFT_OK, guard, list, put, text};
use crate::node::{engine, weft_engine};

/// A range of memory.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct weft_buffer {
    /// First byte.
    pub addr: *mut c_void,
    /// Bytes.
    pub length: usize,
}

impl weft_buffer {
    fn range(&self) -> (u64, u64) {
        (self.addr as u64, self.length as u64)
    }
}

fn access(remote_accessible: bool) -> Access {
    if remote_accessible { Access::READ_WRITE } else { Access::LOCAL }
}

/// Registers memory, so that transfers may use it; peers may read and write it if `remote_accessible`. `location` is a label
/// such as "cpu:0", or "*".
///
/// # Safety
/// `engine` is one; the memory stays mapped and writable until weft_unregister of it has returned 0 or the engine is destroyed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_register(
    engine: *const weft_engine,
    addr: *mut c_void,
    length: usize,
    location: *const c_char,
    remote_accessible: bool,
) -> i32 {
    let one = weft_buffer { addr, length };
    // SAFETY: as the caller promises.
    unsafe { weft_register_batch(engine, &raw const one, 1, location, remote_accessible) }
}

/// Registers all of these, or none.
///
/// # Safety
/// As weft_register, for each; `buffers` are `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_register_batch(
    engine: *const weft_engine,
    buffers: *const weft_buffer,
    count: usize,
    location: *const c_char,
    remote_accessible: bool,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let (engine, buffers, location) =
            unsafe { (self::engine(engine)?, list(buffers, count, "buffers")?, text(location, "location")?) };
        let ranges: Vec<_> = buffers.iter().map(weft_buffer::range).collect();
        // SAFETY: as the caller promises, for each of them.
        unsafe { engine.node.register_many(&ranges, location, access(remote_accessible))? };
        Ok(WEFT_OK)
    })
}

/// Takes peers' access away and waits for transfers that use the memory. After 0 nobody but this program touches it.
///
/// # Safety
/// `engine` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_unregister(engine: *const weft_engine, addr: *mut c_void) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        unsafe { self::engine(engine)? }.node.unregister(addr as u64)?;
        Ok(WEFT_OK)
    })
}

/// As weft_unregister for `count` addresses; none if one of them is not registered.
///
/// # Safety
/// `engine` is one; `addrs` are `count`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_unregister_batch(
    engine: *const weft_engine,
    addrs: *const *mut c_void,
    count: usize,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let (engine, addrs) = unsafe { (self::engine(engine)?, list(addrs, count, "addrs")?) };
        let addrs: Vec<u64> = addrs.iter().map(|&addr| addr as u64).collect();
        engine.node.unregister_many(&addrs)?;
        Ok(WEFT_OK)
    })
}

/// Allocates zeroed, page-aligned memory, registers it for peers, and stores its address in `*addr_out`.
///
/// # Safety
/// `engine` is one; `addr_out` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_allocate(
    engine: *const weft_engine,
    length: usize,
    addr_out: *mut *mut c_void,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let engine = unsafe { self::engine(engine)? };
        if addr_out.is_null() {
            return Err(Failure::argument("addr_out is null"));
        }
        let addr = engine.node.allocate(length)?;
        // SAFETY: as the caller promises.
        unsafe { put(addr_out, addr as *mut c_void, "addr_out")? };
        Ok(WEFT_OK)
    })
}

/// Unregisters and frees what weft_allocate gave.
///
/// # Safety
/// `engine` is one; nobody uses the memory any more.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_free(engine: *const weft_engine, addr: *mut c_void) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        unsafe { self::engine(engine)? }.node.free(addr as u64)?;
        Ok(WEFT_OK)
    })
}
