//! Touching memory before it is registered, on several processors.

use super::{PagesError, base_page, kernel};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// What one processor populates before it asks for more: long enough that asking costs nothing, short enough to share well.
const STEP_BYTES: u64 = 64 << 20;

/// Makes the kernel provide all pages of a range of host memory, writable, on up to `threads` threads (0: one for each
/// processor). Bytes stay as they are.
///
/// Registration does this by itself, on one processor; for hundreds of gigabytes that is the larger part of its time. Blocks
/// until done. On kernels before 5.14 nothing happens.
///
/// # Errors
/// [`PagesError::NotMapped`] for memory that is not there or cannot be written, [`PagesError::BadRange`], or
/// [`PagesError::Kernel`], for example when there is no memory left.
pub fn prefault(addr: u64, len_bytes: u64, threads: usize) -> Result<(), PagesError> {
    let page = base_page().bytes();
    let last = addr.checked_add(len_bytes.saturating_sub(1)).filter(|_| len_bytes > 0);
    let Some(last) = last else { return Err(PagesError::BadRange { addr, len_bytes }) };
    let start = addr / page * page;
    let Some(end) = last.checked_add(1).and_then(|end| end.checked_next_multiple_of(page)) else {
        return Err(PagesError::NotMapped { addr }); // The last page of the address space is never user memory.
    };
    let most = (end - start).div_ceil(STEP_BYTES);
    let threads = if threads == 0 { thread::available_parallelism().map_or(1, usize::from) } else { threads };
    let threads = (threads as u64).min(most);

    let (next, stop) = (AtomicU64::new(start), AtomicBool::new(false));
    let work = || -> Result<(), PagesError> {
        loop {
            // Steps end on multiples of the step, so that no huge page is populated by two threads at once.
            let from = next.load(Ordering::Relaxed);
            let to = (from / STEP_BYTES + 1).saturating_mul(STEP_BYTES).min(end);
            if from >= end || stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if next.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_err() {
                continue;
            }
            match kernel::populate(from, to) {
                Ok(()) => {}
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => populate_again(from, to)?,
                // Before 5.14 the advice is unknown. The range itself is aligned and not empty.
                Err(rustix::io::Errno::INVAL) if kernel::populate(from, from).is_err() => return Ok(()),
                Err(rustix::io::Errno::NOMEM | rustix::io::Errno::FAULT | rustix::io::Errno::INVAL) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(PagesError::NotMapped { addr: from });
                }
                Err(error) => {
                    stop.store(true, Ordering::Relaxed);
                    return Err(PagesError::Kernel { what: "MADV_POPULATE_WRITE", source: error.into() });
                }
            }
        }
    };
    thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .filter_map(|_| thread::Builder::new().name("efa-mr-fault".into()).spawn_scoped(scope, work).ok())
            .collect();
        let mut result = work();
        for other in others {
            if let Ok(theirs) = other.join() {
                result = result.and(theirs);
            }
        }
        result
    })
}

/// A call that a signal interrupted has populated a part; the next one goes on from there.
fn populate_again(from: u64, to: u64) -> Result<(), PagesError> {
    loop {
        match kernel::populate(from, to) {
            Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => continue,
            Err(error) => {
                return Err(PagesError::Kernel { what: "MADV_POPULATE_WRITE", source: error.into() });
            }
            Ok(()) => return Ok(()),
        }
    }
}
