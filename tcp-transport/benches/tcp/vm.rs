//! The baseline of `path=host`: `process_vm_readv` and `process_vm_writev`, one call per request.

use std::sync::Arc;

use benchkit::Result;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;
use tcp_transport::{Memory, OwnedMemory};

use crate::Op;

pub(crate) struct Remote {
    pid: Pid,
    addr: usize,
    room: usize,
}

thread_local! {
    static BUFFER: std::cell::RefCell<Vec<u8>> = const { std::cell::RefCell::new(Vec::new()) };
}

impl Remote {
    pub(crate) fn new(pid: u32, memory: &Arc<OwnedMemory>, addr: u64) -> Self {
        Self { pid: Pid::from_raw(pid as i32), addr: addr as usize, room: memory.len() }
    }

    pub(crate) fn run(&self, op: Op, size: usize, count: usize, base: usize, room: usize) -> Result<()> {
        let slots = (room / size).max(1);
        let footprint = (size * count).min(room).min(self.room);
        BUFFER.with_borrow_mut(|buffer| {
            buffer.resize(footprint.max(size), 5);
            for i in 0..count {
                let at = i % slots * size;
                let ours = &mut buffer[at..at + size];
                let theirs = [RemoteIoVec { base: self.addr + base + at, len: size }];
                let n = match op {
                    Op::Write => process_vm_writev(self.pid, &[std::io::IoSlice::new(ours)], &theirs)?,
                    Op::Read => process_vm_readv(self.pid, &mut [std::io::IoSliceMut::new(ours)], &theirs)?,
                };
                if n != size {
                    return Err("process_vm copied less than asked for".into());
                }
            }
            Ok(())
        })
    }
}
