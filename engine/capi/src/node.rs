//! Opening and ending an engine.

use std::ffi::c_char;

use engine::Segment;
use weft_compat::{Node, Setup};

use crate::batch::Batch;
use crate::error::{Failure, WEFT_OK, guard, put, text};
use crate::ids::Ids;

/// An engine. Made by weft_create, ended by weft_destroy.
pub struct weft_engine {
    pub(crate) node: Node,
    pub(crate) segments: Ids<Segment>,
    pub(crate) batches: Ids<Batch>,
}

/// The engine behind a handle.
///
/// # Safety
/// Null, or what [`weft_create`] gave and nobody destroys meanwhile.
pub(crate) unsafe fn engine<'a>(engine: *const weft_engine) -> Result<&'a weft_engine, Failure> {
    // SAFETY: as the caller promises; an engine is shared, never borrowed mutably.
    unsafe { engine.as_ref() }.ok_or_else(|| Failure::argument("the engine is null"))
}

/// Opens an engine and stores its handle in `*engine_out`.
///
/// `local_hostname` is how peers reach this host. `metadata` is "P2PHANDSHAKE" for none, or a store's URL such as
/// "etcd://10.0.0.1:2379". `protocol` is "auto", "efa" or "tcp"; "rdma" is "auto". The variables WEFT_PROTOCOL, MOONCAKE_PROTOCOL and
/// MC_FORCE_TCP win over it.
///
/// # Safety
/// Strings end with a zero byte; `engine_out` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_create(
    local_hostname: *const c_char,
    metadata: *const c_char,
    protocol: *const c_char,
    engine_out: *mut *mut weft_engine,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let setup = unsafe {
            put(engine_out, std::ptr::null_mut(), "engine_out")?;
            Setup::new(
                text(local_hostname, "local_hostname")?,
                text(metadata, "metadata")?,
                text(protocol, "protocol")?,
            )
        };
        let node = Node::start(&setup, &|name| std::env::var(name).ok())?;
        let made = weft_engine { node, segments: Ids::new("segment"), batches: Ids::new("batch") };
        // SAFETY: as the caller promises.
        unsafe { put(engine_out, Box::into_raw(Box::new(made)), "engine_out")? };
        Ok(WEFT_OK)
    })
}

/// Ends an engine: running transfers get two seconds, then all memory is let go of. Null does nothing.
///
/// # Safety
/// `engine` came from weft_create, is destroyed once, and is in use by nobody.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_destroy(engine: *mut weft_engine) {
    guard(|| {
        if !engine.is_null() {
            // SAFETY: `weft_create` made it with Box, and the caller gives it back.
            drop(unsafe { Box::from_raw(engine) });
        }
        Ok(WEFT_OK)
    });
}

/// Copies the name by which peers open this engine ("host:port") to `name`, which has room for `room` bytes, the final zero
/// included. Returns the name's length without it, or a negative number if it does not fit.
///
/// # Safety
/// `engine` is one; `room` bytes at `name` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_session_name(
    engine: *const weft_engine,
    name: *mut c_char,
    room: usize,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let session = unsafe { self::engine(engine) }?.node.session();
        if name.is_null() || room <= session.len() {
            return Err(Failure::argument(format!("the name needs room for {} bytes", session.len() + 1)));
        }
        // SAFETY: `name` has room for the bytes and the zero, as just checked against what the caller promises.
        unsafe {
            std::ptr::copy_nonoverlapping(session.as_ptr().cast(), name, session.len());
            name.add(session.len()).write(0);
        }
        i32::try_from(session.len()).map_err(|_| Failure::argument("the name is too long"))
    })
}

/// The port that peers connect to; negative on failure.
///
/// # Safety
/// `engine` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_port(engine: *const weft_engine) -> i32 {
    // SAFETY: as the caller promises.
    guard(|| Ok(i32::from(unsafe { self::engine(engine) }?.node.port())))
}
