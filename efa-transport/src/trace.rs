//! The slice trace: what each NIC did when, for Perfetto or Chrome's tracing view.

use std::collections::VecDeque;
use std::fmt::Write as _;

use parking_lot::Mutex;

use crate::lot::Lot;
use crate::request::Op;
use crate::slice::Slice;

#[derive(Debug, Clone, Copy)]
struct Entry {
    lane: u32,
    remote: u8,
    write: bool,
    attempts: u16,
    len: u64,
    began: u64,
    ended: u64,
}

/// The latest slices.
pub(crate) struct Trace {
    limit: usize,
    entries: Mutex<VecDeque<Entry>>,
}

impl Trace {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, entries: Mutex::new(VecDeque::with_capacity(limit)) }
    }

    pub(crate) fn ended(&self, lane: usize, lot: &Lot, slice: &Slice, now: u64) {
        let entry = Entry {
            lane: lane as u32,
            remote: slice.remote_nic,
            write: lot.op == Op::Write,
            attempts: lot.attempts,
            len: slice.len(),
            began: slice.since,
            ended: now,
        };
        let mut entries = self.entries.lock();
        if entries.len() >= self.limit {
            entries.pop_front();
        }
        entries.push_back(entry);
    }

    /// In the trace event format: one track for each NIC, times in microseconds.
    pub(crate) fn to_json(&self, names: &[&str]) -> String {
        let mut out = String::from("[");
        for (lane, name) in names.iter().enumerate() {
            let name: String = name.chars().filter(|c| !c.is_control() && *c != '"' && *c != '\\').collect();
            let _ = write!(
                out,
                "{{\"ph\":\"M\",\"pid\":1,\"tid\":{lane},\"name\":\"thread_name\",\"args\":{{\"name\":\"{name}\"}}}},"
            );
        }
        for e in self.entries.lock().iter() {
            let name = if e.write { "write" } else { "read" };
            let (begin, took) = (e.began as f64 / 1e3, e.ended.saturating_sub(e.began) as f64 / 1e3);
            let _ = write!(
                out,
                "{{\"ph\":\"X\",\"pid\":1,\"tid\":{},\"name\":\"{name}\",\"ts\":{begin:.3},\"dur\":{took:.3},\
                 \"args\":{{\"bytes\":{},\"remote_nic\":{},\"attempts\":{}}}}},",
                e.lane,
                e.len,
                e.remote,
                e.attempts + 1,
            );
        }
        if out.ends_with(',') {
            out.pop();
        }
        out.push(']');
        out
    }
}
