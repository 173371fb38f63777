//! Traces: every request as a line of Chrome's trace format, which <https://ui.perfetto.dev> shows.
//!
//! One file a process, `trace-PID.json` in the directory that `SOFT_EFA_TRACE` names: a track for each queue pair, a bar for each request
//! from when the engine first saw it to its end.

use super::device::Card;
use super::pace;
use super::process::{Process, lock};
use super::request::Request;
use crate::status::Status;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::sync::Mutex;

/// The trace of a process.
pub(crate) struct Trace(Option<Mutex<BufWriter<File>>>);

impl Trace {
    /// Opens the file if a trace is wanted.
    pub(crate) fn new(settings: &crate::settings::Settings, pid: libc::pid_t) -> Trace {
        let Some(dir) = &settings.trace else { return Trace(None) };
        let path = dir.join(format!("trace-{pid}.json"));
        let opened = std::fs::create_dir_all(dir).and_then(|()| File::create(&path));
        match opened.and_then(|mut file| file.write_all(b"[\n").map(|()| file)) {
            Ok(file) => Trace(Some(Mutex::new(BufWriter::new(file)))),
            Err(error) => {
                eprintln!("soft-efa: no trace in {}: {error}", path.display());
                Trace(None)
            }
        }
    }
}

/// Whether there is a trace.
pub(crate) fn enabled(process: &Process) -> bool {
    process.trace.0.is_some()
}

/// Enters a request that has ended.
pub(crate) fn request(card: &Card, request: &Request, status: Status) {
    let process = &card.process;
    let Some(file) = &process.trace.0 else { return };
    let end = pace::now(process);
    let (host, target) = request.remote.as_ref().and_then(|remote| remote.at).unwrap_or_default();
    // The format takes a comma after the last entry and a missing bracket, so a killed process leaves a readable file.
    let _ = writeln!(
        lock(file),
        "{{\"name\":\"{} {}\",\"ph\":\"X\",\"ts\":{:.3},\"dur\":{:.3},\"pid\":{},\"tid\":{},\"args\":{{\"card\":{},\
         \"to_host\":{host},\"to_card\":{target},\"to_qp\":{},\"status\":{},\"bytes\":{}}}}},",
        request.op.name(),
        request.length,
        request.trace as f64 / 1e3,
        end.saturating_sub(request.trace) as f64 / 1e3,
        process.pid,
        card.index << 16 | request.qp.number as usize,
        card.index,
        request.remote_qpn,
        status.vendor(),
        request.length,
    );
}

/// Writes out what is buffered.
pub(crate) fn finish(process: &Process) {
    if let Some(file) = &process.trace.0 {
        let _ = lock(file).flush();
    }
}
