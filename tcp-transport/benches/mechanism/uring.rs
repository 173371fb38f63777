//! The third mechanism: one thread that gives the kernel its receives and sends through io_uring and waits for their ends.
#![allow(unsafe_code)] // io_uring takes pointers

use std::io::{self, IoSlice};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};

use crate::conn::Conn;

const ACCEPT: u64 = u64::MAX;
const SEND: u64 = 1 << 32;

/// A ring for one thread, as later kernels recommend it, or a plain one where they are refused.
pub(crate) fn ring() -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_coop_taskrun()
        .build(256)
        .or_else(|_| IoUring::new(256))
}

struct Slot {
    stream: TcpStream,
    conn: Conn,
    /// The list that a send in flight points to.
    parts: Box<[libc::iovec; 128]>,
    message: Box<libc::msghdr>,
    receiving: bool,
    sending: bool,
    ended: bool,
}

/// One thread, as many connections as come.
pub(crate) fn serve(listener: &TcpListener) -> io::Result<()> {
    let mut ring = ring()?;
    let mut slots: Vec<Slot> = Vec::new();
    let accept = || {
        opcode::Accept::new(types::Fd(listener.as_raw_fd()), std::ptr::null_mut(), std::ptr::null_mut())
            .build()
            .user_data(ACCEPT)
    };
    push(&mut ring, &accept())?;
    loop {
        ring.submit_and_wait(1)?;
        while let Some((token, result)) = next(&mut ring) {
            let index = if token == ACCEPT {
                let stream = take(result)?;
                stream.set_nodelay(true)?;
                // SAFETY: a message header of zeroes says "nothing".
                let message = Box::new(unsafe { std::mem::zeroed() });
                let parts = Box::new([libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }; 128]);
                let (receiving, sending, ended) = (false, false, false);
                slots.push(Slot { stream, conn: Conn::new(), parts, message, receiving, sending, ended });
                push(&mut ring, &accept())?;
                slots.len() - 1
            } else {
                let slot = &mut slots[token as u32 as usize];
                match (token & SEND != 0, usize::try_from(result)) {
                    (true, Ok(n)) => {
                        slot.sending = false;
                        slot.conn.sent(n);
                    }
                    (false, Ok(n)) if n > 0 => {
                        slot.receiving = false;
                        slot.conn.received(n);
                    }
                    _ => slot.ended = true,
                }
                token as u32 as usize
            };
            let slot = &mut slots[index];
            if slot.ended {
                if !slot.sending {
                    slot.conn = Conn::new(); // its memory is no longer in use
                }
                continue;
            }
            let fd = types::Fd(slot.stream.as_raw_fd());
            if slot.conn.has_unsent() && !slot.sending {
                let mut parts = Vec::with_capacity(8);
                slot.conn.gather(&mut parts);
                let send = match parts.as_slice() {
                    [one] => opcode::Send::new(fd, one.as_ptr(), one.len() as u32).build(),
                    many => {
                        for (to, from) in slot.parts.iter_mut().zip(many) {
                            *to = iovec(from);
                        }
                        slot.message.msg_iov = slot.parts.as_mut_ptr();
                        slot.message.msg_iovlen = many.len().min(slot.parts.len());
                        opcode::SendMsg::new(fd, &raw const *slot.message).build()
                    }
                };
                drop(parts);
                slot.sending = true;
                push(&mut ring, &send.user_data(index as u64 | SEND))?;
            }
            if !slot.receiving {
                let room = slot.conn.room();
                let receive = opcode::Recv::new(fd, room.as_mut_ptr(), room.len() as u32).build();
                slot.receiving = true;
                push(&mut ring, &receive.user_data(index as u64))?;
            }
        }
    }
}

fn next(ring: &mut IoUring) -> Option<(u64, i32)> {
    ring.completion().next().map(|c| (c.user_data(), c.result()))
}

fn iovec(part: &IoSlice<'_>) -> libc::iovec {
    libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() }
}

fn take(result: i32) -> io::Result<TcpStream> {
    use std::os::fd::{FromRawFd, OwnedFd};
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    // SAFETY: the kernel has just made this descriptor for us, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(result) }.into())
}

fn push(ring: &mut IoUring, entry: &Entry) -> io::Result<()> {
    // SAFETY: what an entry points to (a connection's buffers, boxed lists) stays where it is until its completion has been
    // taken: a connection's vectors are not resized, and each has at most one receive and one send in flight.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit()?;
    }
    Ok(())
}

/// The asking side: one request and its answer in one system call.
pub(crate) struct Asker {
    ring: IoUring,
}

impl Asker {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { ring: ring()? })
    }

    /// Sends all of `out` and fills `back`.
    pub(crate) fn ask(&mut self, stream: &TcpStream, out: &[IoSlice<'_>], back: &mut [u8]) -> io::Result<()> {
        let fd = types::Fd(stream.as_raw_fd());
        let total: usize = out.iter().map(|p| p.len()).sum();
        let parts: [libc::iovec; 2] = std::array::from_fn(|i| {
            out.get(i).map_or(libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 }, iovec)
        });
        // SAFETY: a message header of zeroes says "nothing".
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = parts.as_ptr().cast_mut();
        message.msg_iovlen = out.len().min(2);
        let flags = libc::MSG_WAITALL;
        let send = opcode::SendMsg::new(fd, &raw const message).flags(flags as u32).build().user_data(0);
        let receive =
            opcode::Recv::new(fd, back.as_mut_ptr(), back.len() as u32).flags(flags).build().user_data(1);
        push(&mut self.ring, &send)?;
        push(&mut self.ring, &receive)?;
        let mut left = 2;
        while left > 0 {
            // Both have ended before anything that they point to goes out of scope.
            self.ring.submit_and_wait(left)?;
            for done in self.ring.completion() {
                left -= 1;
                let wanted = if done.user_data() == 0 { total } else { back.len() };
                if usize::try_from(done.result()) != Ok(wanted) {
                    return Err(io::Error::other(format!("moved {} of {wanted} bytes", done.result())));
                }
            }
        }
        Ok(())
    }
}
