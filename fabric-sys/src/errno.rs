//! Names and texts of libfabric's errno values, for when no library is there to ask.

use core::ffi::c_int;
use std::borrow::Cow;

use crate::bindings::*;

/// The name of an errno of either sign, e.g. `FI_EAGAIN` for 11 and -11; `None` for what libfabric does not define.
#[must_use]
pub fn errno_name(errno: c_int) -> Option<&'static str> {
    let errno = errno.checked_abs()?;
    NAMES.iter().find(|(value, _, _)| *value == errno).map(|(_, name, _)| *name)
}

/// A short text for an errno of either sign. Never empty.
#[must_use]
pub fn errno_text(errno: c_int) -> Cow<'static, str> {
    let known = errno.checked_abs().and_then(|errno| NAMES.iter().find(|(value, _, _)| *value == errno));
    match known {
        Some((_, _, text)) => Cow::Borrowed(text),
        None => Cow::Owned(format!("unknown error {errno}")),
    }
}

macro_rules! names {
    ($($name:ident: $text:literal,)*) => {
        /// Every errno of `fi_errno.h`: value, name, text.
        const NAMES: &[(c_int, &str, &str)] = &[$(($name, stringify!($name), $text),)*];
    };
}

names! {
    FI_SUCCESS: "success",
    FI_EPERM: "operation not permitted",
    FI_ENOENT: "no such file or directory",
    FI_EINTR: "interrupted system call",
    FI_EIO: "input/output error",
    FI_E2BIG: "argument list too long",
    FI_EBADF: "bad file descriptor",
    FI_EAGAIN: "resource temporarily unavailable, try again",
    FI_ENOMEM: "cannot allocate memory",
    FI_EACCES: "permission denied",
    FI_EFAULT: "bad address",
    FI_EBUSY: "object is still in use",
    FI_ENODEV: "no such device",
    FI_EINVAL: "invalid argument",
    FI_EMFILE: "too many open files",
    FI_ENOSPC: "no space left on device",
    FI_ENOSYS: "function not implemented",
    FI_ENOMSG: "no message of the desired type",
    FI_ENODATA: "no data available",
    FI_EPROTO: "protocol error",
    FI_EOVERFLOW: "value too large",
    FI_EMSGSIZE: "message too long",
    FI_ENOPROTOOPT: "option not available",
    FI_EOPNOTSUPP: "operation not supported",
    FI_EADDRINUSE: "address already in use",
    FI_EADDRNOTAVAIL: "cannot assign requested address",
    FI_ENETDOWN: "network is down",
    FI_ENETUNREACH: "network is unreachable",
    FI_ECONNABORTED: "connection aborted",
    FI_ECONNRESET: "connection reset by peer",
    FI_ENOBUFS: "no buffer space available",
    FI_EISCONN: "already connected",
    FI_ENOTCONN: "not connected",
    FI_ESHUTDOWN: "endpoint is shut down",
    FI_ETIMEDOUT: "timed out",
    FI_ECONNREFUSED: "connection refused",
    FI_EHOSTDOWN: "host is down",
    FI_EHOSTUNREACH: "no route to host",
    FI_EALREADY: "operation already in progress",
    FI_EINPROGRESS: "operation now in progress",
    FI_EREMOTEIO: "remote input/output error",
    FI_ECANCELED: "operation cancelled",
    FI_EKEYREJECTED: "key was rejected by the peer",
    FI_EOTHER: "unspecified error",
    FI_ETOOSMALL: "provided buffer is too small",
    FI_EOPBADSTATE: "operation not permitted in the object's state",
    FI_EAVAIL: "an error is available in the queue",
    FI_EBADFLAGS: "flags not supported",
    FI_ENOEQ: "missing or unavailable event queue",
    FI_EDOMAIN: "invalid resource domain",
    FI_ENOCQ: "missing or unavailable completion queue",
    FI_ECRC: "checksum error",
    FI_ETRUNC: "message was truncated",
    FI_ENOKEY: "required key is not available",
    FI_ENOAV: "missing or unavailable address vector",
    FI_EOVERRUN: "queue has been overrun",
    FI_ENORX: "receiver not ready, no receive buffer there",
    FI_ENOMR: "memory registration limit exceeded",
}
