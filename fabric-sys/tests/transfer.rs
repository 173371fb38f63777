//! The calls move bytes: two endpoints in one process, on real providers of every libfabric that is there. What this
//! catches: a function over the wrong table entry, an argument in the wrong place, a struct of the wrong layout.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use core::ffi::{CStr, c_int, c_void};
use core::ptr::{from_mut, null, null_mut};
use std::time::{Duration, Instant};

use fabric_sys::*;
use support::{on_every_library, skip};

const PROVIDERS: [&CStr; 3] = [c"tcp;ofi_rxm", c"shm", c"sockets"];

fn ok(call: &str, status: impl Into<i64>) {
    let status = status.into();
    assert!(status >= 0, "{call}: {}", errno_text(i32::try_from(status).unwrap()));
}

/// A domain with what an endpoint needs, and two endpoints that know each other.
struct Pair {
    library: &'static Library,
    info: *mut fi_info,
    fabric: *mut fid_fabric,
    domain: *mut fid_domain,
    av: *mut fid_av,
    cq: [*mut fid_cq; 2],
    ep: [*mut fid_ep; 2],
    peer: [fi_addr_t; 2],
}

impl Pair {
    /// `None` if the library has no such provider.
    unsafe fn open(library: &'static Library, provider: &CStr) -> Option<Self> {
        let mut pair = Pair {
            library,
            info: null_mut(),
            fabric: null_mut(),
            domain: null_mut(),
            av: null_mut(),
            cq: [null_mut(); 2],
            ep: [null_mut(); 2],
            peer: [FI_ADDR_NOTAVAIL; 2],
        };
        // SAFETY: every object is opened before it is used; out-pointers are fields of `pair` or locals.
        unsafe {
            let hints = library.fi_allocinfo();
            (*hints).caps = (Caps::MSG | Caps::TAGGED | Caps::RMA | Caps::ATOMIC).bits();
            (*hints).mode = (Mode::CONTEXT | Mode::CONTEXT2).bits();
            (*(*hints).ep_attr).type_ = FI_EP_RDM;
            let mr_mode = MrMode::LOCAL | MrMode::VIRT_ADDR | MrMode::ALLOCATED | MrMode::PROV_KEY;
            (*(*hints).domain_attr).mr_mode = mr_mode.bits();
            (*(*hints).fabric_attr).prov_name = libc::strdup(provider.as_ptr());
            let (node, flags) =
                if provider == c"shm" { (null(), 0) } else { (c"127.0.0.1".as_ptr(), FI_SOURCE) };
            let version = library.api_version().raw();
            let status = library.fi_getinfo(version, node, null(), flags, hints, &raw mut pair.info);
            library.fi_freeinfo(hints);
            if status == -FI_ENODATA {
                return None;
            }
            ok("fi_getinfo", status);
            let (info, mode) = (pair.info, MrMode::from_bits_retain((*(*pair.info).domain_attr).mr_mode));
            assert!(mr_mode.contains(mode), "the provider asks for more than the hints allow: {mode:?}");
            ok("fi_fabric", library.fi_fabric((*info).fabric_attr, &raw mut pair.fabric, null_mut()));
            ok("fi_domain", fi_domain(pair.fabric, info, &raw mut pair.domain, null_mut()));
            let mut av_attr = fi_av_attr { type_: FI_AV_TABLE, count: 2, ..Default::default() };
            ok("fi_av_open", fi_av_open(pair.domain, &raw mut av_attr, &raw mut pair.av, null_mut()));
            for side in 0..2 {
                let mut attr = fi_cq_attr { format: FI_CQ_FORMAT_TAGGED, size: 64, ..Default::default() };
                ok("fi_cq_open", fi_cq_open(pair.domain, &raw mut attr, &raw mut pair.cq[side], null_mut()));
                ok("fi_endpoint", fi_endpoint(pair.domain, info, &raw mut pair.ep[side], null_mut()));
                ok("bind av", fi_ep_bind(pair.ep[side], pair.av.cast(), 0));
                ok("bind cq", fi_ep_bind(pair.ep[side], pair.cq[side].cast(), FI_TRANSMIT | FI_RECV));
                // A killed process that had our number has left a file with the name of our endpoint: `shm` of 1.17 says
                // that it is in use, and removes it.
                let status = match fi_enable(pair.ep[side]) {
                    status if status == -FI_EBUSY && provider == c"shm" => fi_enable(pair.ep[side]),
                    status => status,
                };
                ok("fi_enable", status);
            }
            for side in 0..2 {
                let (mut name, mut len) = ([0_u8; 256], 256);
                ok("fi_getname", fi_getname(pair.ep[side].cast(), name.as_mut_ptr().cast(), &raw mut len));
                let inserted =
                    fi_av_insert(pair.av, name.as_ptr().cast(), 1, &raw mut pair.peer[side], 0, null_mut());
                assert_eq!(inserted, 1, "fi_av_insert");
                let (mut back, mut back_len) = ([0_u8; 256], 256);
                ok(
                    "lookup",
                    fi_av_lookup(pair.av, pair.peer[side], back.as_mut_ptr().cast(), &raw mut back_len),
                );
                // shm of 2.x leaves out its prefix.
                assert!(back_len > 0 && name[..len].ends_with(&back[..back_len]));
                let (mut text, mut text_len) = ([0; 256], 256);
                let shown =
                    fi_av_straddr(pair.av, name.as_ptr().cast(), text.as_mut_ptr(), &raw mut text_len);
                assert!(!shown.is_null() && text[0] != 0);
            }
        }
        Some(pair)
    }

    /// Waits for one completion on a side, driving the other one too; returns its context and data.
    unsafe fn complete(&self, side: usize) -> fi_cq_tagged_entry {
        let deadline = Instant::now() + Duration::from_secs(20);
        let mut entry = fi_cq_tagged_entry::default();
        loop {
            // SAFETY: open queues, one entry of the queue's format.
            unsafe {
                let other = fi_cq_read(self.cq[1 - side], null_mut(), 0);
                assert!(other == 0 || other == -(FI_EAGAIN as isize), "the other side: {other}");
                match fi_cq_read(self.cq[side], from_mut(&mut entry).cast(), 1) {
                    1 => return entry,
                    status if status == -(FI_EAVAIL as isize) => {
                        let mut error = fi_cq_err_entry::default();
                        assert_eq!(fi_cq_readerr(self.cq[side], &raw mut error, 0), 1);
                        panic!("error completion: {} ({})", errno_text(error.err), error.prov_errno);
                    }
                    status => assert_eq!(status, -(FI_EAGAIN as isize)),
                }
            }
            assert!(Instant::now() < deadline, "no completion within 20 s");
        }
    }

    /// Posts until the provider takes it, driving progress.
    unsafe fn post(&self, mut call: impl FnMut() -> isize) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            match call() {
                0 => return,
                status => assert_eq!(status, -(FI_EAGAIN as isize), "{}", errno_text(status as c_int)),
            }
            for cq in self.cq {
                // SAFETY: open queues; no entries are asked for.
                unsafe { fi_cq_read(cq, null_mut(), 0) };
            }
            assert!(Instant::now() < deadline, "still -FI_EAGAIN after 20 s");
        }
    }

    unsafe fn register(&self, bytes: &mut [u8], key: u64) -> *mut fid_mr {
        let mut mr = null_mut();
        let access = Access::SEND
            | Access::RECV
            | Access::READ
            | Access::WRITE
            | Access::REMOTE_READ
            | Access::REMOTE_WRITE;
        // SAFETY: an open domain; the attributes are read during the call. The caller keeps the bytes until it closes the region.
        unsafe {
            let iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
            let mut attr =
                fi_mr_attr { iov_count: 1, access: access.bits(), requested_key: key, ..Default::default() };
            attr.__bindgen_anon_1.mr_iov = &raw const iov;
            ok("fi_mr_regattr", fi_mr_regattr(self.domain, &raw const attr, 0, &raw mut mr));
        }
        mr
    }

    /// Where in the region a peer's access to its first byte goes.
    unsafe fn remote_base(&self, bytes: &[u8]) -> u64 {
        // SAFETY: `info` is whole until the pair is dropped.
        let mode = MrMode::from_bits_retain(unsafe { (*(*self.info).domain_attr).mr_mode });
        if mode.contains(MrMode::VIRT_ADDR) { bytes.as_ptr().addr() as u64 } else { 0 }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        // Children before parents. SAFETY: every object is open and nothing uses it any more.
        unsafe {
            let first = self.ep.map(|ep| ep.cast::<fid>()).into_iter().chain(self.cq.map(|cq| cq.cast()));
            let parents: [*mut fid; 3] = [self.av.cast(), self.domain.cast(), self.fabric.cast()];
            for fid in first.chain(parents).filter(|fid| !fid.is_null()) {
                ok("fi_close", fi_close(fid));
            }
            self.library.fi_freeinfo(self.info);
        }
    }
}

fn on_every_provider(test: &str, body: impl Fn(&Pair)) {
    on_every_library(test, |library| {
        let mut ran = 0;
        for provider in PROVIDERS {
            // SAFETY: the library is loaded and nothing else uses it.
            match unsafe { Pair::open(library, provider) } {
                Some(pair) => {
                    body(&pair);
                    ran += 1;
                }
                None => skip(test, &format!("{library:?} has no provider {provider:?}")),
            }
        }
        assert!(ran > 0, "not one provider");
    });
}

#[test]
fn messages_arrive_with_tag_and_data() {
    on_every_provider("messages_arrive_with_tag_and_data", |pair| {
        let (mut from, mut to) = (*b"0123456789abcdef", [0_u8; 16]);
        let mut context = [fi_context2::default(); 2];
        let [sent, received]: [*mut c_void; 2] = context.each_mut().map(|c| from_mut(c).cast());
        // SAFETY: buffers and contexts live until both completions have been read; regions are closed before the buffers go.
        unsafe {
            let (source, target) = (pair.register(&mut from, 1), pair.register(&mut to, 2));
            let (source_desc, target_desc) = (fi_mr_desc(source), fi_mr_desc(target));
            let (ep, peer) = (pair.ep, pair.peer);
            pair.post(|| fi_recv(ep[1], to.as_mut_ptr().cast(), 16, target_desc, FI_ADDR_UNSPEC, received));
            pair.post(|| fi_send(ep[0], from.as_ptr().cast(), 16, source_desc, peer[1], sent));
            assert_eq!(pair.complete(1).op_context, received);
            assert_eq!(pair.complete(0).op_context, sent);
            assert_eq!(to, from);

            from.reverse();
            pair.post(|| {
                fi_trecv(ep[1], to.as_mut_ptr().cast(), 16, target_desc, FI_ADDR_UNSPEC, 0x70, 0xf, received)
            });
            pair.post(|| fi_tsenddata(ep[0], from.as_ptr().cast(), 16, source_desc, 99, peer[1], 0x77, sent));
            let entry = pair.complete(1);
            assert_eq!((entry.op_context, entry.tag, entry.data, entry.len), (received, 0x77, 99, 16));
            assert!(
                CqFlags::from_bits_retain(entry.flags).contains(CqFlags::TAGGED | CqFlags::REMOTE_CQ_DATA)
            );
            assert_eq!(pair.complete(0).op_context, sent);
            assert_eq!(to, from);
            ok("fi_close", fi_close(source.cast()));
            ok("fi_close", fi_close(target.cast()));
        }
    });
}

#[test]
fn reads_writes_and_atomics_reach_exactly_their_range() {
    on_every_provider("reads_writes_and_atomics_reach_exactly_their_range", |pair| {
        let (mut local, mut remote) = ([0_u8; 64], [0xee_u8; 64]);
        let mut context = fi_context2::default();
        let context: *mut c_void = from_mut(&mut context).cast();
        // SAFETY: as above.
        unsafe {
            let (mine, theirs) = (pair.register(&mut local, 1), pair.register(&mut remote, 2));
            let (desc, key, base) = (fi_mr_desc(mine), fi_mr_key(theirs), pair.remote_base(&remote));
            let (ep, peer) = (pair.ep[0], pair.peer[1]);
            local[8..16].copy_from_slice(b"written!");
            // With delivery-complete, so that the bytes are there when the completion is.
            let iov = libc::iovec { iov_base: local.as_mut_ptr().add(8).cast(), iov_len: 8 };
            let rma_iov = fi_rma_iov { addr: base + 24, len: 8, key };
            let mut descs = [desc];
            let message = fi_msg_rma {
                msg_iov: &raw const iov,
                desc: descs.as_mut_ptr(),
                iov_count: 1,
                addr: peer,
                rma_iov: &raw const rma_iov,
                rma_iov_count: 1,
                context,
                data: 0,
            };
            let flags = (OpFlags::COMPLETION | OpFlags::DELIVERY_COMPLETE).bits();
            pair.post(|| fi_writemsg(ep, &raw const message, flags));
            assert_eq!(pair.complete(0).op_context, context);
            let mut expected = [0xee; 64];
            expected[24..32].copy_from_slice(b"written!");
            assert_eq!(remote, expected);

            pair.post(|| {
                fi_read(ep, local.as_mut_ptr().add(40).cast(), 16, desc, peer, base + 20, key, context)
            });
            assert_eq!(pair.complete(0).op_context, context);
            assert_eq!(local[40..56], expected[20..36]);

            remote[32..40].copy_from_slice(&40_u64.to_ne_bytes());
            local[..8].copy_from_slice(&2_u64.to_ne_bytes());
            let result = local.as_mut_ptr().add(56);
            pair.post(|| {
                fi_fetch_atomic(
                    ep,
                    local.as_ptr().cast(),
                    1,
                    desc,
                    result.cast(),
                    desc,
                    peer,
                    base + 32,
                    key,
                    FI_UINT64,
                    FI_SUM,
                    context,
                )
            });
            assert_eq!(pair.complete(0).op_context, context);
            assert_eq!(local[56..], 40_u64.to_ne_bytes());
            let compare = 42_u64.to_ne_bytes();
            local[16..24].copy_from_slice(&compare);
            local[..8].copy_from_slice(&7_u64.to_ne_bytes());
            pair.post(|| {
                fi_compare_atomic(
                    ep,
                    local.as_ptr().cast(),
                    1,
                    desc,
                    local.as_ptr().add(16).cast(),
                    desc,
                    result.cast(),
                    desc,
                    peer,
                    base + 32,
                    key,
                    FI_UINT64,
                    FI_CSWAP,
                    context,
                )
            });
            assert_eq!(pair.complete(0).op_context, context);
            assert_eq!(local[56..], 42_u64.to_ne_bytes());
            assert_eq!(remote[32..40], 7_u64.to_ne_bytes());
            ok("fi_close", fi_close(mine.cast()));
            ok("fi_close", fi_close(theirs.cast()));
        }
    });
}

#[test]
fn options_and_controls_answer_or_refuse() {
    on_every_provider("options_and_controls_answer_or_refuse", |pair| {
        // SAFETY: open objects, out-pointers of the right type.
        unsafe {
            let ep: fid_t = pair.ep[0].cast();
            // An option that no provider knows, and those of EFA on another provider: refused, not crashed.
            for option in [FI_OPT_EFA_EMULATED_WRITE, FI_OPT_EFA_USE_UNSOLICITED_WRITE_RECV, 0x7fff_0000] {
                let (mut value, mut len) = (false, size_of::<bool>());
                let status =
                    fi_getopt(ep, FI_OPT_ENDPOINT, option, from_mut(&mut value).cast(), &raw mut len);
                assert!(status < 0, "option {option:#x} of {:?}", pair.library);
            }
            let mut minimum = 64_usize;
            let size = size_of::<usize>();
            let value = from_mut(&mut minimum).cast();
            let status = fi_setopt(ep, FI_OPT_ENDPOINT, FI_OPT_MIN_MULTI_RECV, value, size);
            if status == 0 {
                let (mut back, mut len) = (0_usize, size);
                let value = from_mut(&mut back).cast();
                ok("fi_getopt", fi_getopt(ep, FI_OPT_ENDPOINT, FI_OPT_MIN_MULTI_RECV, value, &raw mut len));
                // 2.x takes it and says the default.
                assert!(len == size && back >= minimum, "{back} in {len} bytes");
            }
            // Entries that 1.17 does not have: refused by the table's size.
            let mut address = FI_ADDR_NOTAVAIL;
            let status = fi_av_insert_auth_key(pair.av, null(), 0, &raw mut address, 0);
            assert!(status < 0);
            let mut ops = null_mut();
            let status = fi_open_ops(
                pair.domain.cast(),
                FI_EFA_DOMAIN_OPS.as_ptr().cast(),
                0,
                &raw mut ops,
                null_mut(),
            );
            assert!(status < 0 && ops.is_null(), "EFA's operations on another provider");
        }
    });
}

#[test]
fn counters_and_event_queues_open_and_wait() {
    on_every_provider("counters_and_event_queues_open_and_wait", |pair| {
        // SAFETY: open objects, out-pointers of the right type.
        unsafe {
            let mut attr = fi_cntr_attr::default();
            let mut cntr = null_mut();
            ok("fi_cntr_open", fi_cntr_open(pair.domain, &raw mut attr, &raw mut cntr, null_mut()));
            ok("fi_cntr_set", fi_cntr_set(cntr, 99));
            ok("fi_cntr_set", fi_cntr_set(cntr, 5));
            ok("fi_cntr_add", fi_cntr_add(cntr, 2));
            assert_eq!((fi_cntr_read(cntr), fi_cntr_readerr(cntr)), (7, 0));
            let status = fi_cntr_wait(cntr, 7, 1000);
            assert!(status == 0 || status == -FI_ENOSYS, "{}", errno_text(status));
            ok("fi_close", fi_close(cntr.cast()));

            let mut attr = fi_eq_attr { flags: FI_WRITE, wait_obj: FI_WAIT_UNSPEC, ..Default::default() };
            let mut eq = null_mut();
            ok("fi_eq_open", fi_eq_open(pair.fabric, &raw mut attr, &raw mut eq, null_mut()));
            let (mut event, mut entry) = (u32::MAX, fi_eq_entry::default());
            let size = size_of::<fi_eq_entry>();
            let buffer = from_mut(&mut entry).cast();
            assert_eq!(fi_eq_read(eq, &raw mut event, buffer, size, 0), -(FI_EAGAIN as isize));
            let note = fi_eq_entry { fid: eq.cast(), context: null_mut(), data: 0xfeed };
            let written = fi_eq_write(eq, FI_NOTIFY, (&raw const note).cast(), size, 0);
            assert_eq!(written, size as isize);
            assert_eq!(fi_eq_sread(eq, &raw mut event, buffer, size, 1000, 0), size as isize);
            assert_eq!((event, entry.data), (FI_NOTIFY, 0xfeed));
            ok("fi_close", fi_close(eq.cast()));
        }
    });
}
