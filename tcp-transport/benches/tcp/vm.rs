//! The baseline of `path=host`: `process_vm_readv` and `process_vm_writev`, one call per request.

use std::sync::Mutex;

use benchkit::Result;
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use crate::Op;

/// The other process, and memory of this one for each of several threads.
pub(crate) struct Remote {
    pid: Pid,
    addr: usize,
    /// Most bytes that a thread may touch.
    room: usize,
    memory: Vec<Mutex<Vec<u8>>>,
}

impl Remote {
    /// Each thread gets `footprint` bytes of its own, and `room` bytes of the other process.
    pub(crate) fn new(pid: u32, addr: u64, threads: usize, footprint: usize, room: usize) -> Self {
        let memory = (0..threads).map(|_| Mutex::new(vec![5; footprint])).collect();
        Self { pid: Pid::from_raw(pid as i32), addr: addr as usize, room, memory }
    }

    /// `count` requests of `size` bytes by this thread, from this slot on.
    pub(crate) fn run(&self, op: Op, size: usize, count: usize, thread: usize, first: usize) -> Result<()> {
        let mut memory = self.memory[thread].lock().map_err(|_| "a round panicked")?;
        let slots = (memory.len() / size).max(1);
        for i in first..first + count {
            let at = i % slots * size;
            let ours = &mut memory[at..at + size];
            let theirs = [RemoteIoVec { base: self.addr + thread * self.room + at, len: size }];
            let n = match op {
                Op::Write => process_vm_writev(self.pid, &[std::io::IoSlice::new(ours)], &theirs)?,
                Op::Read => process_vm_readv(self.pid, &mut [std::io::IoSliceMut::new(ours)], &theirs)?,
            };
            if n != size {
                return Err("process_vm copied less than asked for".into());
            }
        }
        Ok(())
    }
}
