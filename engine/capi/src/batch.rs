//! Batches of reads and writes.

use std::ffi::{c_char, c_void};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use weft_compat::{Fault, Note, Op, Progress, Transfer};

use crate::error::{Failure, WEFT_ERROR, WEFT_OK, guard, list, put, text};
use crate::node::{engine, weft_engine};

/// The peer's memory is copied to local memory.
pub const WEFT_READ: i32 = 0;
/// Local memory is copied to the peer's.
pub const WEFT_WRITE: i32 = 1;

/// Not submitted yet.
pub const WEFT_STATE_WAITING: i32 = 0;
/// Running.
pub const WEFT_STATE_PENDING: i32 = 1;
/// There is no such request.
pub const WEFT_STATE_INVALID: i32 = 2;
/// Was cancelled.
pub const WEFT_STATE_CANCELED: i32 = 3;
/// Ended well: a write is visible at the peer.
pub const WEFT_STATE_COMPLETED: i32 = 4;
/// Did not end in time.
pub const WEFT_STATE_TIMEOUT: i32 = 5;
/// Ended with an error.
pub const WEFT_STATE_FAILED: i32 = 6;

/// One read or write.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct weft_request {
    /// WEFT_READ or WEFT_WRITE.
    pub opcode: i32,
    /// First local byte. Registered memory is best; other memory is registered for this transfer.
    pub source: *mut c_void,
    /// The peer, as weft_open_segment gave it.
    pub segment: u64,
    /// Absolute address in the peer's process.
    pub target_addr: u64,
    /// Bytes.
    pub length: u64,
}

/// How a request stands.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct weft_status {
    /// One of WEFT_STATE_….
    pub state: i32,
    /// Its length when it has completed, else 0.
    pub transferred_bytes: u64,
}

/// Requests that were submitted under one id.
pub(crate) struct Batch {
    room: usize,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    /// Taken by a submission that is going on.
    claimed: usize,
    requests: Vec<Submitted>,
}

struct Submitted {
    transfer: Arc<Transfer>,
    /// In the transfer.
    index: usize,
    len: u64,
}

impl Batch {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its transfers, each once.
    fn transfers(&self) -> Vec<Arc<Transfer>> {
        let inner = self.inner();
        inner
            .requests
            .iter()
            .filter(|request| request.index == 0)
            .map(|request| Arc::clone(&request.transfer))
            .collect()
    }

    fn claim(&self, count: usize) -> Result<(), Failure> {
        let mut inner = self.inner();
        let free = self.room - inner.claimed;
        if count > free {
            return Err(Failure::argument(format!(
                "{count} requests, and {free} of the batch's {} are free",
                self.room
            )));
        }
        inner.claimed += count;
        Ok(())
    }
}

/// Makes room for `size` requests and stores the batch's id in `*batch_out`.
///
/// # Safety
/// `engine` is one; `batch_out` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_allocate_batch(
    engine: *const weft_engine,
    size: usize,
    batch_out: *mut u64,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let engine = unsafe { self::engine(engine)? };
        let batch = Batch { room: size, inner: Mutex::default() };
        // SAFETY: as the caller promises.
        unsafe { put(batch_out, engine.batches.add(batch), "batch_out")? };
        Ok(WEFT_OK)
    })
}

/// Starts requests under a batch's id; does not wait for them. They are numbered in the order of submission. None has been started
/// if this fails.
///
/// # Safety
/// `engine` is one; `requests` are `count`; local memory stays where it is until the requests have ended.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_submit(
    engine: *const weft_engine,
    batch: u64,
    requests: *const weft_request,
    count: usize,
) -> i32 {
    // SAFETY: as the caller promises.
    guard(|| unsafe { submit(engine, batch, requests, count, None) })
}

/// As weft_submit; when all of these requests have ended well, their peers get the notification.
///
/// # Safety
/// As weft_submit; `name` and `message` end with a zero byte.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_submit_with_notification(
    engine: *const weft_engine,
    batch: u64,
    requests: *const weft_request,
    count: usize,
    name: *const c_char,
    message: *const c_char,
) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let note = unsafe {
            Note { name: text(name, "name")?.to_owned(), message: text(message, "message")?.to_owned() }
        };
        // SAFETY: as the caller promises.
        unsafe { submit(engine, batch, requests, count, Some(&note)) }
    })
}

/// # Safety
/// As [`weft_submit`].
unsafe fn submit(
    engine: *const weft_engine,
    batch: u64,
    requests: *const weft_request,
    count: usize,
    note: Option<&Note>,
) -> Result<i32, Failure> {
    // SAFETY: as the caller promises.
    let (engine, requests) = unsafe { (self::engine(engine)?, list(requests, count, "requests")?) };
    let batch = engine.batches.get(batch)?;
    let asked = requests.iter().map(|request| {
        let op = match request.opcode {
            WEFT_READ => Op::Read,
            WEFT_WRITE => Op::Write,
            other => return Err(Failure::argument(format!("opcode {other} is neither read nor write"))),
        };
        let segment = engine.segments.get(request.segment)?;
        Ok((op, (*segment).clone(), request.source as u64, request.target_addr, request.length))
    });
    let asked = asked.collect::<Result<Vec<_>, Failure>>()?;
    batch.claim(count)?;
    match engine.node.transfer_each(&asked, note) {
        Ok(transfer) => {
            let transfer = Arc::new(transfer);
            let submitted = asked.iter().enumerate().map(|(index, request)| Submitted {
                transfer: Arc::clone(&transfer),
                index,
                len: request.4,
            });
            batch.inner().requests.extend(submitted);
            Ok(WEFT_OK)
        }
        Err(fault) => {
            batch.inner().claimed -= count;
            Err(fault.into())
        }
    }
}

/// How request number `index` of a batch stands; stored in `*status_out`. Of one that failed, weft_last_error() is the reason.
///
/// # Safety
/// `engine` is one; `status_out` may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_get_status(
    engine: *const weft_engine,
    batch: u64,
    index: usize,
    status_out: *mut weft_status,
) -> i32 {
    let mut reason = None;
    let code = guard(|| {
        // SAFETY: as the caller promises.
        let batch = unsafe { self::engine(engine)? }.batches.get(batch)?;
        let inner = batch.inner();
        let found = inner.requests.get(index).map(|request| {
            // Looks at the whole, too, so that what follows the last request gets done while somebody polls.
            request.transfer.progress();
            (request.transfer.progress_of(request.index), request.len)
        });
        drop(inner);
        let (state, transferred_bytes) = match found {
            None if index < batch.room => (WEFT_STATE_WAITING, 0),
            None => (WEFT_STATE_INVALID, 0),
            Some((Progress::Pending, _)) => (WEFT_STATE_PENDING, 0),
            Some((Progress::Done, len)) => (WEFT_STATE_COMPLETED, len),
            Some((Progress::Failed(fault), _)) => {
                let state = match fault {
                    Fault::Timeout(_) => WEFT_STATE_TIMEOUT,
                    _ => WEFT_STATE_FAILED,
                };
                reason = Some(fault);
                (state, 0)
            }
        };
        // SAFETY: as the caller promises.
        unsafe { put(status_out, weft_status { state, transferred_bytes }, "status_out")? };
        Ok(WEFT_OK)
    });
    if let Some(fault) = reason {
        guard(|| Err(fault.into()));
    }
    code
}

/// Blocks until every request of a batch that has been submitted has ended, for `timeout_ms` at most (negative: until their own
/// deadlines). 0 if all ended well; 1 if some are still running.
///
/// # Safety
/// `engine` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_wait(engine: *const weft_engine, batch: u64, timeout_ms: i64) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let batch = unsafe { self::engine(engine)? }.batches.get(batch)?;
        let end = u64::try_from(timeout_ms).ok().map(|ms| Instant::now() + Duration::from_millis(ms));
        let mut outcome = Ok(());
        for transfer in batch.transfers() {
            let ended = match end {
                None => transfer.wait(),
                Some(end) => match transfer.wait_until(end) {
                    Some(ended) => ended,
                    None => return Ok(1),
                },
            };
            outcome = outcome.and(ended);
        }
        outcome?;
        Ok(WEFT_OK)
    })
}

/// Forgets a batch. Fails, and changes nothing, while requests of it are running.
///
/// # Safety
/// `engine` is one.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn weft_free_batch(engine: *const weft_engine, batch: u64) -> i32 {
    guard(|| {
        // SAFETY: as the caller promises.
        let engine = unsafe { self::engine(engine)? };
        let running = |transfer: &Arc<Transfer>| matches!(transfer.progress(), Progress::Pending);
        if engine.batches.get(batch)?.transfers().iter().any(running) {
            return Err(Failure::argument(format!("batch {batch} is still running; weft_wait() first")));
        }
        engine.batches.remove(batch)?;
        Ok(WEFT_OK)
    })
}

const _: () = assert!(WEFT_ERROR < 0, "positive results mean something else");
