//! Peers' memory.

use std::ffi::c_char;
use std::time::{Duration, Instant};

use crate::error::{WEFT_OK, guard, put, text};
use crate::node::{engine, weft_engine};

/// How long asking a peer may take.
const ASKING: Duration = Duration::from_secs(30);

/// Opens a peer's memory by the peer's name ("host:port") and stores its id in `*segment_out`.
///
/// # Safety
/// `engine` is one; `name` ends with a zero byte; `segment_out` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_open_segment(
    engine: *const weft_engine,
    name: *const c_char,
    segment_out: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let (engine, name) = unsafe { (self::engine(engine)?, text(name, "name")?) };
        let segment = engine.node.open(name)?;
        // SAFETY: as the caller promises.
        unsafe { put(segment_out, engine.segments.add(segment), "segment_out")? };
        Ok(WEFT_OK)
    })
}

/// Lets go of an opened segment. Transfers that were submitted to it run on.
///
/// # Safety
/// `engine` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_close_segment(engine: *const weft_engine, segment: u64) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        unsafe { self::engine(engine)? }.segments.remove(segment)?;
        Ok(WEFT_OK)
    })
}

/// Fetches what the peers of all opened segments have registered now. The first failure is returned; the others are fetched all the same.
///
/// # Safety
/// `engine` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_sync_segments(engine: *const weft_engine) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let segments = unsafe { self::engine(engine)? }.segments.all();
        let mut outcome = Ok(());
        for segment in segments {
            outcome = outcome.and(segment.refresh(Instant::now() + ASKING));
        }
        outcome?;
        Ok(WEFT_OK)
    })
}

/// Opens connections and rails to a segment's peer now rather than with the first transfer.
///
/// # Safety
/// `engine` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_warm_up(engine: *const weft_engine, segment: u64) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        unsafe { self::engine(engine)? }.segments.get(segment)?.warm_up(Instant::now() + ASKING)?;
        Ok(WEFT_OK)
    })
}

/// The address and length of a segment's buffer number `index`, in ascending order of address.
///
/// # Safety
/// `engine` is one; `addr_out` and `length_out` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_segment_buffer(
    engine: *const weft_engine,
    segment: u64,
    index: usize,
    addr_out: *mut u64,
    length_out: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let buffers = unsafe { self::engine(engine)? }.segments.get(segment)?.buffers();
        let buffer = buffers.get(index).ok_or_else(|| {
            crate::error::Failure::argument(format!("the segment has {} buffers", buffers.len()))
        })?;
        // SAFETY: as the caller promises.
        unsafe {
            put(addr_out, buffer.addr(), "addr_out")?;
            put(length_out, buffer.len(), "length_out")?;
        }
        Ok(WEFT_OK)
    })
}

/// 0 if the peer of that name answers.
///
/// # Safety
/// `engine` is one; `name` ends with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_probe(engine: *const weft_engine, name: *const c_char) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let (engine, name) = unsafe { (self::engine(engine)?, text(name, "name")?) };
        engine.node.probe(name)?;
        Ok(WEFT_OK)
    })
}
