//! Bugs on purpose, so that the soak can show that it finds them. Only with the feature `planted`, and only when the environment
//! asks for one: `WEFT_PLANTED=late-write` or `WEFT_PLANTED=lost-completion`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use crate::region::RegionInner;
use crate::request::Range;
use crate::slice::Slice;

/// Every so many writes are applied once more, late; every so many answers are lost.
const EVERY: u64 = 200;
/// How much later.
const LATE: Duration = Duration::from_millis(300);

fn is(bug: &str) -> bool {
    static PLANTED: OnceLock<String> = OnceLock::new();
    PLANTED.get_or_init(|| std::env::var("WEFT_PLANTED").unwrap_or_default()) == bug
}

fn turn() -> bool {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed) % EVERY == EVERY - 1
}

/// What a transport does that sends a write again while its first attempt is still on its way.
pub(crate) fn late_write(region: &Arc<RegionInner>, ranges: &[Range]) {
    if !is("late-write") || region.device().is_some() || !turn() {
        return;
    }
    let copies: Vec<(usize, Vec<u8>)> = ranges
        .iter()
        .map(|r| {
            let mut bytes = vec![0; r.len as usize];
            crate::seam::copy_out(&*region.memory, r.at as usize, &mut bytes);
            (r.at as usize, bytes)
        })
        .collect();
    let region = Arc::clone(region);
    std::thread::spawn(move || {
        std::thread::sleep(LATE);
        let _ = region.enter(|| {
            copies.iter().for_each(|(at, bytes)| crate::seam::copy_in(&*region.memory, *at, bytes));
        });
    });
}

/// What a transport does that drops a completion: the request never ends.
pub(crate) fn lose_completion(slice: &mut Slice) {
    if is("lost-completion") && slice.bytes > 0 && turn() {
        std::mem::forget(slice.ticket.take());
    }
}
