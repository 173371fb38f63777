//! Doors for the fuzz targets: what other processes can put in our way, and the verbs without a shared library between.

use crate::abi::ibv_gid;
use crate::card::process::Process;
use crate::card::ring::Ring;
use crate::card::{pace, remote};
use crate::control::Control;
use crate::scratch::Scratch;
use crate::shared::{self, CardFile, Mapped, ProcessFile};
use crate::verbs::{context, efadv, memory, queues};
use std::ffi::{CStr, c_void};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A control socket's other end.
pub struct Listener {
    control: Control,
    scratch: Scratch,
}

impl Listener {
    /// One with a run's directory of its own.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn new() -> Result<Listener, crate::Error> {
        let scratch = Scratch::new()?;
        Ok(Listener { control: Control::new(scratch.dir()), scratch })
    }

    /// The run's directory.
    pub fn dir(&self) -> &Path {
        self.scratch.dir()
    }

    /// Sends these bytes over a socket and gives the answer.
    ///
    /// # Errors
    /// When the socket fails.
    pub fn answer(&mut self, bytes: &[u8]) -> std::io::Result<String> {
        let (mut client, server) = UnixStream::pair()?;
        // A listener that has read enough hangs up; the rest is lost, as on any socket.
        let _ = client.write_all(bytes);
        client.shutdown(std::net::Shutdown::Write)?;
        self.control.answer(server)?;
        let mut answer = String::new();
        client.read_to_string(&mut answer)?;
        Ok(answer)
    }
}

/// Reads packets out of a ring whose memory is `bytes`, and says how many there were. Each payload lies in the ring.
///
/// # Errors
/// When the ring's file cannot be made.
pub fn ring(file: &Path, bytes: &[u8]) -> std::io::Result<usize> {
    let ring = Ring::open(file, true)?;
    let whole = ring.bytes();
    // SAFETY: the ring's mapping, which nobody else uses.
    unsafe {
        whole.cast::<u8>().write_bytes(0, whole.len());
        whole.cast::<u8>().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len().min(whole.len()));
    }
    let range = whole.cast::<u8>() as usize..whole.cast::<u8>() as usize + whole.len();
    let mut count = 0;
    // A ring that says of itself that it is full for ever would be read for ever.
    while count < 4096
        && ring
            .pop(|_, payload| {
                let start = payload.as_ptr() as usize;
                assert!(
                    start >= range.start && start + payload.len() <= range.end,
                    "a payload outside of the ring"
                );
                std::hint::black_box(payload.iter().fold(0u8, |sum, byte| sum ^ byte));
            })
            .is_some()
    {
        count += 1;
    }
    Ok(count)
}

/// The C function of that name, of those that a small program needs.
pub fn verb(name: &CStr) -> *const c_void {
    match name.to_bytes() {
        b"ibv_get_device_list" => context::ibv_get_device_list as *const c_void,
        b"ibv_free_device_list" => context::ibv_free_device_list as *const c_void,
        b"ibv_open_device" => context::ibv_open_device as *const c_void,
        b"ibv_close_device" => context::ibv_close_device as *const c_void,
        b"ibv_query_gid" => context::ibv_query_gid as *const c_void,
        b"ibv_alloc_pd" => memory::ibv_alloc_pd as *const c_void,
        b"ibv_dealloc_pd" => memory::ibv_dealloc_pd as *const c_void,
        b"ibv_reg_mr" => memory::ibv_reg_mr as *const c_void,
        b"ibv_dereg_mr" => memory::ibv_dereg_mr as *const c_void,
        b"ibv_create_ah" => memory::ibv_create_ah as *const c_void,
        b"ibv_destroy_ah" => memory::ibv_destroy_ah as *const c_void,
        b"ibv_create_cq" => queues::ibv_create_cq as *const c_void,
        b"ibv_destroy_cq" => queues::ibv_destroy_cq as *const c_void,
        b"ibv_destroy_qp" => queues::ibv_destroy_qp as *const c_void,
        b"ibv_modify_qp" => queues::ibv_modify_qp as *const c_void,
        b"efadv_create_qp_ex" => efadv::soft_efa_create_qp_ex as *const c_void,
        _ => std::ptr::null(),
    }
}

/// A process of our run that tells us whatever it likes. What we do to it goes to the process whose number it was given.
pub struct Stranger {
    us: Arc<Process>,
    slot: usize,
    card: Mapped<CardFile>,
    process: Mapped<ProcessFile>,
    ring: Ring,
}

const HOST: u32 = 0x00ab_cdef;
const SLOT: usize = 7;

impl Stranger {
    /// Puts one beside us; `pid` must be a live process whose memory does not matter.
    ///
    /// # Errors
    /// When the shared files cannot be made.
    pub fn join(pid: u32) -> std::io::Result<Stranger> {
        let us = Process::current()?;
        let dir: PathBuf = us.settings.dir.clone();
        let entry = &us.registry.slots[SLOT];
        entry.generation.store(1, Ordering::SeqCst);
        entry.pid.store(pid, Ordering::SeqCst);
        entry.host.store(HOST, Ordering::SeqCst);
        let start = crate::card::process::start_time(pid as i32).unwrap_or(0);
        entry.start_time.store(start, Ordering::SeqCst);
        entry.waiting.store(1, Ordering::SeqCst);
        entry.due_ns.store(pace::NEVER, Ordering::SeqCst);
        entry.state.store(shared::LIVE, Ordering::SeqCst);
        let card = Mapped::open(&us.card_path(HOST, 0), 0, true)?;
        let process = Mapped::open(&shared::process_path(&dir, SLOT, 1), 0, true)?;
        let ring =
            Ring::open(&crate::card::process::ring_path(&dir, (SLOT, 1), (us.slot, us.generation)), true)?;
        Ok(Stranger { us, slot: SLOT, card, process, ring })
    }

    /// The address of its only card.
    pub fn gid(&self) -> ibv_gid {
        remote::gid(HOST, 0)
    }

    /// Owner word of its queue pairs.
    pub fn owner(&self) -> u64 {
        shared::owner(self.slot, 1)
    }

    /// Writes eight bytes somewhere into what it shares: 0 its card, 1 its registrations, 2 its ring to us, 3 the mail bits of our slot.
    pub fn scribble(&self, place: u8, offset: usize, word: u64) {
        let (base, length) = match place % 4 {
            0 => self.card.bytes(),
            1 => self.process.bytes(),
            2 => (self.ring.bytes().cast::<u8>(), self.ring.bytes().len()),
            _ => {
                self.us.me().inbound[offset % 4].store(word, Ordering::SeqCst);
                return self.us.wake_thread();
            }
        };
        let offset = offset % (length / 8) * 8;
        // SAFETY: inside the mapping, aligned; all who read it use atomics or copies.
        unsafe { (*base.add(offset).cast::<std::sync::atomic::AtomicU64>()).store(word, Ordering::SeqCst) };
    }

    /// Puts a packet into its ring to us and rings: 56 bytes of a header, the rest is payload.
    pub fn send(&self, bytes: &[u8]) {
        // SAFETY: the payload is what follows the header; we are the ring's only writer.
        unsafe { self.ring.push_raw(bytes) };
        self.us.me().inbound[self.slot / 64].fetch_or(1 << (self.slot % 64), Ordering::SeqCst);
        self.us.wake_thread();
    }
}
