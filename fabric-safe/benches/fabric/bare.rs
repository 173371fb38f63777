//! The baseline: the same calls without anything around them, as a C program would make them.

use core::ffi::{CStr, c_void};
use core::ptr::{from_mut, null, null_mut};
use std::ffi::CString;

use benchkit::Result;
use fabric_sys::*;

use crate::Writer;
use crate::target::Point;

/// Completions that are read at a time.
pub(crate) const BATCH: usize = 16;

/// Is the provider's source given as an address (of the loopback interface)?
pub(crate) fn by_address(provider: &str) -> bool {
    provider.starts_with("tcp")
}

/// An endpoint and its memory.
pub(crate) struct Bare {
    info: *mut fi_info,
    fabric: *mut fid_fabric,
    domain: *mut fid_domain,
    av: *mut fid_av,
    cq: *mut fid_cq,
    ep: *mut fid_ep,
    mr: *mut fid_mr,
    bytes: Vec<u8>,
    contexts: Vec<fi_context2>,
    free: Vec<u32>,
    entries: [fi_cq_data_entry; BATCH],
    deliver: bool,
    peer: fi_addr_t,
    target: (u64, u64),
}

fn ok(call: &str, status: impl Into<i64>) -> Result<()> {
    let status = status.into();
    if status >= 0 {
        return Ok(());
    }
    Err(format!("{call}: {}", errno_text(i32::try_from(status).unwrap_or(-FI_EOTHER))).into())
}

/// The entry of this provider, as fabric-safe's hints ask for it; null if there is none.
fn discover(library: &Library, provider: &CStr) -> Result<*mut fi_info> {
    let name = provider.to_str()?;
    let deliver = |flags: u64| {
        let mut list = null_mut();
        // SAFETY: `hints` is whole and freed once; the list is freed or returned.
        unsafe {
            let hints = library.fi_allocinfo();
            (*hints).caps = FI_MSG | FI_RMA;
            (*hints).mode = FI_CONTEXT | FI_CONTEXT2;
            (*(*hints).ep_attr).type_ = FI_EP_RDM;
            (*(*hints).tx_attr).op_flags = flags;
            (*(*hints).domain_attr).threading = FI_THREAD_SAFE;
            (*(*hints).domain_attr).mr_mode =
                FI_MR_LOCAL | FI_MR_VIRT_ADDR | FI_MR_ALLOCATED | FI_MR_PROV_KEY;
            (*(*hints).fabric_attr).prov_name = libc::strdup(provider.as_ptr());
            let (node, source) =
                if by_address(name) { (c"127.0.0.1".as_ptr(), FI_SOURCE) } else { (null(), 0) };
            let version = library.api_version().raw();
            let status = library.fi_getinfo(version, node, null(), source, hints, &raw mut list);
            library.fi_freeinfo(hints);
            (status == 0).then_some(list)
        }
    };
    Ok(deliver(FI_DELIVERY_COMPLETE).or_else(|| deliver(0)).ok_or(format!("no provider {name}"))?)
}

impl Bare {
    /// Opens everything; [`connect`](Self::connect) before writing.
    pub(crate) fn open(provider: &str, bytes: usize) -> Result<Self> {
        let library = load()?;
        let info = discover(library, &CString::new(provider)?)?;
        let mut bare = Self {
            info,
            fabric: null_mut(),
            domain: null_mut(),
            av: null_mut(),
            cq: null_mut(),
            ep: null_mut(),
            mr: null_mut(),
            bytes: vec![1; bytes],
            contexts: vec![fi_context2::default(); 64],
            free: (0..64).collect(),
            entries: [fi_cq_data_entry::default(); BATCH],
            deliver: false,
            peer: FI_ADDR_UNSPEC,
            target: (0, 0),
        };
        // SAFETY: every object is opened before it is used; all live as long as the process.
        unsafe {
            bare.deliver = (*(*info).tx_attr).op_flags & FI_DELIVERY_COMPLETE != 0;
            (*(*info).tx_attr).op_flags &= !FI_DELIVERY_COMPLETE;
            ok("fi_fabric", library.fi_fabric((*info).fabric_attr, &raw mut bare.fabric, null_mut()))?;
            ok("fi_domain", fi_domain(bare.fabric, info, &raw mut bare.domain, null_mut()))?;
            let mut attr = fi_av_attr { type_: FI_AV_TABLE, count: 16, ..Default::default() };
            ok("fi_av_open", fi_av_open(bare.domain, &raw mut attr, &raw mut bare.av, null_mut()))?;
            let mut attr = fi_cq_attr { format: FI_CQ_FORMAT_DATA, size: 4096, ..Default::default() };
            ok("fi_cq_open", fi_cq_open(bare.domain, &raw mut attr, &raw mut bare.cq, null_mut()))?;
            ok("fi_endpoint", fi_endpoint(bare.domain, info, &raw mut bare.ep, null_mut()))?;
            ok("fi_ep_bind", fi_ep_bind(bare.ep, bare.av.cast(), 0))?;
            ok("fi_ep_bind", fi_ep_bind(bare.ep, bare.cq.cast(), FI_TRANSMIT | FI_RECV))?;
            ok("fi_enable", fi_enable(bare.ep))?;
            let iov = libc::iovec { iov_base: bare.bytes.as_mut_ptr().cast(), iov_len: bytes };
            let access = FI_SEND | FI_RECV | FI_READ | FI_WRITE | FI_REMOTE_READ | FI_REMOTE_WRITE;
            let mut attr = fi_mr_attr { iov_count: 1, access, requested_key: 7, ..Default::default() };
            attr.__bindgen_anon_1.mr_iov = &raw const iov;
            ok("fi_mr_regattr", fi_mr_regattr(bare.domain, &raw const attr, 0, &raw mut bare.mr))?;
        }
        Ok(bare)
    }

    /// What others need to write here.
    pub(crate) fn point(&self) -> Result<Point> {
        let (mut name, mut len) = (vec![0; 256], 256);
        // SAFETY: open objects; the buffer is as long as said.
        unsafe {
            ok("fi_getname", fi_getname(self.ep.cast(), name.as_mut_ptr().cast(), &raw mut len))?;
            name.truncate(len);
            let by_pointer = (*(*self.info).domain_attr).mr_mode & FI_MR_VIRT_ADDR != 0;
            let address = if by_pointer { self.bytes.as_ptr().addr() as u64 } else { 0 };
            Ok(Point { name, address, key: fi_mr_key(self.mr) })
        }
    }

    /// Chooses where writes go.
    pub(crate) fn connect(&mut self, target: &Point) -> Result<()> {
        // SAFETY: one address of the provider's own format.
        let inserted = unsafe {
            fi_av_insert(self.av, target.name.as_ptr().cast(), 1, &raw mut self.peer, 0, null_mut())
        };
        self.target = (target.address, target.key);
        if inserted == 1 { Ok(()) } else { Err(format!("fi_av_insert: {inserted}").into()) }
    }

    /// Reads completions; how many there were.
    pub(crate) fn poll(&mut self) -> Result<usize> {
        // SAFETY: an open queue, room for a batch of its format.
        let count = unsafe { fi_cq_read(self.cq, from_mut(&mut self.entries).cast(), BATCH) };
        match usize::try_from(count) {
            Ok(count) => {
                for entry in &self.entries[..count] {
                    let offset = entry.op_context.addr() - self.contexts.as_ptr().addr();
                    self.free.push((offset / size_of::<fi_context2>()) as u32);
                }
                Ok(count)
            }
            Err(_) if count == -(FI_EAGAIN as isize) => Ok(0),
            Err(_) => Err(format!("fi_cq_read: {}", errno_text(count as i32)).into()),
        }
    }

    /// Posts one write.
    fn post(&mut self, at: usize, len: usize) -> isize {
        let Some(slot) = self.free.pop() else { return -(FI_EAGAIN as isize) };
        let context: *mut c_void = from_mut(&mut self.contexts[slot as usize]).cast();
        let (address, key) = self.target;
        // SAFETY: open objects; the range is inside the region, the context its own until the write has ended.
        let status = unsafe {
            let desc = fi_mr_desc(self.mr);
            if self.deliver {
                let iov = libc::iovec { iov_base: self.bytes.as_mut_ptr().add(at).cast(), iov_len: len };
                let remote = fi_rma_iov { addr: address + at as u64, len, key };
                let mut descs = [desc];
                let message = fi_msg_rma {
                    msg_iov: &raw const iov,
                    desc: descs.as_mut_ptr(),
                    iov_count: 1,
                    addr: self.peer,
                    rma_iov: &raw const remote,
                    rma_iov_count: 1,
                    context,
                    data: 0,
                };
                fi_writemsg(self.ep, &raw const message, FI_COMPLETION | FI_DELIVERY_COMPLETE)
            } else {
                let from = self.bytes.as_ptr().add(at).cast();
                fi_write(self.ep, from, len, desc, self.peer, address + at as u64, key, context)
            }
        };
        if status != 0 {
            self.free.push(slot);
        }
        status
    }
}

impl Writer for Bare {
    fn write(&mut self, size: usize, window: usize, operations: usize) -> Result<()> {
        let (mut posted, mut ended) = (0, 0);
        while ended < operations {
            while posted < operations && posted - ended < window {
                match self.post(posted % window * size, size) {
                    0 => posted += 1,
                    status if status == -(FI_EAGAIN as isize) => break,
                    status => return Err(format!("fi_write: {}", errno_text(status as i32)).into()),
                }
            }
            ended += self.poll()?;
        }
        Ok(())
    }
}
