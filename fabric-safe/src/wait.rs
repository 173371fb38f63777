//! Blocking until a queue has something, or somebody says so.

use core::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::time::Duration;

use fabric_sys as sys;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec};

use crate::Error;

/// The descriptor of a libfabric object, and one of our own to wake up who waits for it.
pub(crate) struct WaitObject {
    /// Owned by the libfabric object.
    fd: RawFd,
    signal: OwnedFd,
}

impl WaitObject {
    /// # Safety
    ///
    /// `object` is open, was opened with `FI_WAIT_FD`, and outlives the result.
    pub(crate) unsafe fn of(object: *mut sys::fid) -> Result<WaitObject, Error> {
        let mut fd: c_int = -1;
        // SAFETY: as the caller promises; the command writes a descriptor.
        let status = unsafe { sys::fi_control(object, sys::FI_GETWAIT, (&raw mut fd).cast()) };
        if status != 0 || fd < 0 {
            return Err(Error::call("fi_control(FI_GETWAIT)", "a queue", status));
        }
        let signal = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|errno| Error::System { what: "making an eventfd", source: errno.into() })?;
        Ok(WaitObject { fd, signal })
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: open as long as the object, which outlives self.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }

    /// Blocks until the object is ready (false), the time is over (false), or somebody signals (true).
    pub(crate) fn block(&self, timeout: Option<Duration>) -> Result<bool, Error> {
        let mut fds = [
            PollFd::from_borrowed_fd(self.fd(), PollFlags::IN),
            PollFd::from_borrowed_fd(self.signal.as_fd(), PollFlags::IN),
        ];
        // Too long for the kernel's type is as good as for ever.
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => {
                return Err(Error::System { what: "waiting for a queue", source: errno.into() });
            }
        }
        let signalled = fds[1].revents().contains(PollFlags::IN);
        if signalled {
            // Whoever reads it first has been woken by it; an error means that somebody else was first.
            let _ = rustix::io::read(&self.signal, &mut [0; 8]);
        }
        Ok(signalled)
    }

    pub(crate) fn signal(&self) {
        // Fails only if 2^64 - 2 signals are pending.
        let _ = rustix::io::write(&self.signal, &1u64.to_ne_bytes());
    }
}
