//! Numbers that tell things apart which come and go: an address may be another thing's later, such a number never is.

use std::sync::atomic::{AtomicU64, Ordering};

/// The next one. Never 0.
pub(crate) fn serial() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}
