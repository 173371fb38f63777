//! Traces.
use super::device::Card;
use super::engine::Request;
use super::process::Process;
use crate::status::Status;

pub(crate) fn enabled(process: &Process) -> bool {
    process.settings.trace.is_some()
}

pub(crate) fn now(_process: &Process) -> u64 {
    0
}

pub(crate) fn request(_card: &Card, _request: &Request, _status: Status) {}

pub(crate) fn finish(_process: &Process) {}
