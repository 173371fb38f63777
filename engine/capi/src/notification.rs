//! Notifications.

use std::ffi::{CString, c_char};

use weft_compat::Note;

use crate::error::{Failure, WEFT_OK, guard, put, text};
use crate::node::{engine, weft_engine};

/// A notification from a peer.
#[repr(C)]
pub struct weft_notification {
    /// What it is about; the sender's choice.
    pub name: *mut c_char,
    /// The message.
    pub message: *mut c_char,
}

/// Puts a notification into the queue of a segment's peer; returns when it is there.
///
/// # Safety
/// `engine` is one; strings end with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_notify(
    engine: *const weft_engine,
    segment: u64,
    name: *const c_char,
    message: *const c_char,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let (engine, name, message) =
            unsafe { (self::engine(engine)?, text(name, "name")?, text(message, "message")?) };
        let segment = engine.segments.get(segment)?;
        let note = Note { name: name.to_owned(), message: message.to_owned() };
        engine.node.notify(segment.name(), &note)?;
        Ok(WEFT_OK)
    })
}

/// Takes all notifications that have come, oldest first: an array in `*notifications_out`, its length in `*count_out`. Give it back with
/// weft_free_notifications.
///
/// # Safety
/// `engine` is one; both places may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_take_notifications(
    engine: *const weft_engine,
    notifications_out: *mut *mut weft_notification,
    count_out: *mut usize,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let engine = unsafe { self::engine(engine)? };
        if notifications_out.is_null() || count_out.is_null() {
            return Err(Failure::argument("notifications_out or count_out is null"));
        }
        let taken: Box<[weft_notification]> =
            engine.node.notes().iter().map(weft_notification::new).collect();
        let count = taken.len();
        let first = Box::into_raw(taken).cast::<weft_notification>();
        // SAFETY: as the caller promises.
        unsafe {
            put(notifications_out, first, "notifications_out")?;
            put(count_out, count, "count_out")?;
        }
        Ok(WEFT_OK)
    })
}

/// Gives back what weft_take_notifications gave.
///
/// # Safety
/// Array and length are as that function stored them, and are given back once.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_free_notifications(notifications: *mut weft_notification, count: usize) {
    guard(|| {
        if notifications.is_null() {
            return Ok(WEFT_OK);
        }
        let all = std::ptr::slice_from_raw_parts_mut(notifications, count);
        // SAFETY: `weft_take_notifications` made the slice and its strings with Box and CString, and the caller gives them back.
        unsafe {
            for one in Box::from_raw(all) {
                drop(CString::from_raw(one.name));
                drop(CString::from_raw(one.message));
            }
        }
        Ok(WEFT_OK)
    });
}

impl weft_notification {
    fn new(note: &Note) -> Self {
        // C's strings end at the first zero byte, so that is where such a text ends.
        let string = |text: &str| {
            let until = text.bytes().position(|byte| byte == 0).unwrap_or(text.len());
            CString::new(&text.as_bytes()[..until]).unwrap_or_default().into_raw()
        };
        Self { name: string(&note.name), message: string(&note.message) }
    }
}
