//! The same-host path: the owner of a region checks key, range and rights as always, and then copies between the two
//! processes itself, with `process_vm_readv` and `process_vm_writev`. The other process never touches the region, so
//! revoking it is a barrier here as well.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};

use crate::error::Refusal;
use crate::handshake::Introduction;
use crate::region::RegionInner;
use crate::request::Range;
use crate::seam::{self, HostCopy, MAX_PARTS, Parts};
use crate::slice::Cursor;
use crate::wire::Event;

/// Bytes copied by one system call at most, so that revocation waits a millisecond rather than a second.
const MAX_COPY: u64 = 4 << 20;

/// Fills in where this process runs.
pub(crate) fn introduce(introduction: &mut Introduction) {
    let (boot_id, pid_namespace) = *identity();
    introduction.boot_id = boot_id;
    introduction.pid_namespace = pid_namespace;
    introduction.pid = std::process::id();
}

/// Whether a peer says that it runs on this kernel, in this process namespace. To be proved by the challenge.
pub(crate) fn is_near(theirs: &Introduction) -> bool {
    let (boot_id, pid_namespace) = *identity();
    theirs.host && theirs.boot_id == boot_id && theirs.pid_namespace == pid_namespace && boot_id != [0; 16]
}

fn identity() -> &'static ([u8; 16], u64) {
    static IDENTITY: OnceLock<([u8; 16], u64)> = OnceLock::new();
    IDENTITY.get_or_init(|| {
        let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let mut digits = text.chars().filter_map(|c| c.to_digit(16));
        let mut boot_id = [0; 16];
        for byte in &mut boot_id {
            let (Some(high), Some(low)) = (digits.next(), digits.next()) else { return ([0; 16], 0) };
            *byte = (high << 4 | low) as u8;
        }
        let namespace = std::fs::metadata("/proc/self/ns/pid");
        (boot_id, namespace.map_or(0, |m| std::os::unix::fs::MetadataExt::ino(&m)))
    })
}

/// Another process whose memory we may copy to and from, because it has shown our challenge in it.
#[derive(Debug)]
pub(crate) struct HostPeer {
    pid: Pid,
    /// Tells that the number still means the same process.
    handle: OwnedFd,
}

impl HostPeer {
    /// Looks for `challenge` at `address` of the process.
    pub(crate) fn probe(pid: u32, address: u64, challenge: &[u8; 32]) -> Option<Self> {
        let pid = Pid::from_raw(i32::try_from(pid).ok()?)?;
        let handle = rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok()?;
        let this = Self { pid, handle };
        let mut found = [0; 32];
        let mut parts = Parts::new();
        parts.push_bytes(&mut found);
        let n =
            seam::host_copy(this.pid.as_raw_nonzero().get(), HostCopy::In, &parts, &[(address, 32)]).ok()?;
        (n == 32 && found == *challenge && this.is_alive()).then_some(this)
    }

    fn is_alive(&self) -> bool {
        let mut fds = [PollFd::new(&self.handle, PollFlags::IN)];
        let zero = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(rustix::event::poll(&mut fds, Some(&zero)), Ok(0))
    }
}

/// One request on this path.
pub(crate) struct HostJob {
    pub(crate) id: u64,
    pub(crate) way: HostCopy,
    pub(crate) bytes: u64,
    pub(crate) event: Option<(Event, u64)>,
    region: Arc<RegionInner>,
    ours: Vec<Range>,
    theirs: Vec<Range>,
    our_cursor: Cursor,
    their_cursor: Cursor,
    done: u64,
}

impl HostJob {
    pub(crate) fn new(
        id: u64,
        way: HostCopy,
        region: Arc<RegionInner>,
        ours: Vec<Range>,
        theirs: Vec<Range>,
        bytes: u64,
        event: Option<(Event, u64)>,
    ) -> Self {
        let (our_cursor, their_cursor) = Default::default();
        Self { id, way, bytes, event, region, ours, theirs, our_cursor, their_cursor, done: 0 }
    }

    /// Bytes of memory that its lists take.
    pub(crate) fn held(&self) -> u64 {
        (size_of_val(&*self.ours) + size_of_val(&*self.theirs)) as u64
    }

    pub(crate) fn is_done(&self) -> bool {
        self.done == self.bytes
    }

    pub(crate) fn into_ranges(self) -> (Vec<Range>, Vec<Range>) {
        (self.ours, self.theirs)
    }

    /// Copies a piece of at most `budget` bytes and returns its length.
    pub(crate) fn run(&mut self, host: &HostPeer, budget: u64) -> Result<u64, Refusal> {
        let limit = budget.min(MAX_COPY);
        let copied = self.region.enter(|| {
            let mut ours = Parts::new();
            let mut left = limit;
            for r in self.our_cursor.rest(&self.ours) {
                if left == 0 || ours.is_full() {
                    break;
                }
                let len = r.len.min(left);
                ours.push_memory(&*self.region.memory, r.at as usize, len as usize);
                left -= len;
            }
            let mut theirs = [(0, 0); MAX_PARTS];
            let mut count = 0;
            let mut left = ours.bytes() as u64;
            for r in self.their_cursor.rest(&self.theirs) {
                if left == 0 || count == MAX_PARTS {
                    break;
                }
                let len = r.len.min(left);
                theirs[count] = (r.at, len);
                count += 1;
                left -= len;
            }
            seam::host_copy(host.pid.as_raw_nonzero().get(), self.way, &ours, &theirs[..count])
        })?;
        // A number that has passed to another process must not count as a copy.
        match copied {
            Ok(n) if n > 0 && host.is_alive() => {
                self.our_cursor.advance(&self.ours, n as u64);
                self.their_cursor.advance(&self.theirs, n as u64);
                self.done += n as u64;
                Ok(n as u64)
            }
            _ => Err(Refusal::HostCopy),
        }
    }
}
