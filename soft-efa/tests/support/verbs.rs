//! The verbs, as a program without libfabric uses them: enough to post, receive and poll.
//!
//! The functions come from whoever finds them: a test's child takes them from the shared libraries that the launcher has put in
//! its way, the fuzz target from the card that is linked into it.

use soft_efa::abi::*;
use std::ffi::{CStr, c_int, c_void};
use std::rc::Rc;

/// Where the functions come from.
pub(crate) struct Verbs(Box<dyn Fn(&CStr) -> *const c_void>);

/// A work request.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Work {
    Send,
    SendImm(u32),
    Read { rkey: u32, address: u64 },
    Write { rkey: u32, address: u64 },
    WriteImm { rkey: u32, address: u64, imm: u32 },
}

/// Whom a request is for.
#[derive(Clone, Copy)]
pub(crate) struct To {
    pub(crate) handle: *mut ibv_ah,
    pub(crate) number: u32,
    pub(crate) qkey: u32,
}

impl Verbs {
    pub(crate) fn new(find: impl Fn(&CStr) -> *const c_void + 'static) -> Rc<Verbs> {
        Rc::new(Verbs(Box::new(find)))
    }

    /// The shared libraries of this process's path.
    pub(crate) fn load() -> Rc<Verbs> {
        let open = |name: &CStr| {
            // SAFETY: dlopen of a library by name; its initialisers are ours.
            let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_GLOBAL) };
            assert!(!library.is_null(), "{name:?} is not in the loader's path");
            library as usize
        };
        let libraries = [open(c"libibverbs.so.1"), open(c"libefa.so.1")];
        Verbs::new(move |name| {
            // SAFETY: dlsym on open libraries.
            let found =
                libraries.map(|library| unsafe { libc::dlsym(library as *mut c_void, name.as_ptr()) });
            found
                .into_iter()
                .find(|address| !address.is_null())
                .map_or(std::ptr::null(), <*mut _>::cast_const)
        })
    }

    fn get<F: Copy>(&self, name: &CStr) -> F {
        called((self.0)(name))
    }
}

/// A function pointer of the caller's type.
fn called<F: Copy>(address: *const c_void) -> F {
    assert!(!address.is_null() && size_of::<F>() == size_of::<*const c_void>());
    // SAFETY: F is the C function's type, which the callers below write down.
    unsafe { std::mem::transmute_copy(&address) }
}

type Open = unsafe extern "C" fn(*mut ibv_device) -> *mut ibv_context;
type Close = unsafe extern "C" fn(*mut ibv_context) -> c_int;
type List = unsafe extern "C" fn(*mut c_int) -> *mut *mut ibv_device;
type FreeList = unsafe extern "C" fn(*mut *mut ibv_device);
type QueryGid = unsafe extern "C" fn(*mut ibv_context, u8, c_int, *mut ibv_gid) -> c_int;
type AllocPd = unsafe extern "C" fn(*mut ibv_context) -> *mut ibv_pd;
type Dealloc = unsafe extern "C" fn(*mut c_void) -> c_int;
type Register = unsafe extern "C" fn(*mut ibv_pd, *mut c_void, usize, c_int) -> *mut ibv_mr;
type CreateAh = unsafe extern "C" fn(*mut ibv_pd, *mut ibv_ah_attr) -> *mut ibv_ah;
type CreateCq = unsafe extern "C" fn(*mut ibv_context, c_int, *mut c_void, *mut c_void, c_int) -> *mut ibv_cq;
type CreateQp = unsafe extern "C" fn(
    *mut ibv_context,
    *mut ibv_qp_init_attr_ex,
    *mut efadv_qp_init_attr,
    u32,
) -> *mut ibv_qp;
type ModifyQp = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_qp_attr, c_int) -> c_int;
type Poll = unsafe extern "C" fn(*mut ibv_cq, c_int, *mut ibv_wc) -> c_int;
type PostRecv = unsafe extern "C" fn(*mut ibv_qp, *mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> c_int;
type Wr = unsafe extern "C" fn(*mut ibv_qp_ex);
type WrImm = unsafe extern "C" fn(*mut ibv_qp_ex, u32);
type WrRdma = unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64);
type WrRdmaImm = unsafe extern "C" fn(*mut ibv_qp_ex, u32, u64, u32);
type WrTo = unsafe extern "C" fn(*mut ibv_qp_ex, *mut ibv_ah, u32, u32);
type WrList = unsafe extern "C" fn(*mut ibv_qp_ex, usize, *const ibv_sge);
type WrDone = unsafe extern "C" fn(*mut ibv_qp_ex) -> c_int;

/// An open card with a protection domain.
pub(crate) struct Card {
    verbs: Rc<Verbs>,
    pub(crate) context: *mut ibv_context,
    pub(crate) pd: *mut ibv_pd,
    pub(crate) gid: ibv_gid,
}

impl Card {
    pub(crate) fn open(verbs: &Rc<Verbs>, index: usize) -> Card {
        // SAFETY: the calls of the verbs' manual pages, in their order, with pointers that they gave.
        unsafe {
            let mut count = 0;
            let list = verbs.get::<List>(c"ibv_get_device_list")(&mut count);
            assert!(index < count as usize, "card {index} of {count}");
            let context = verbs.get::<Open>(c"ibv_open_device")(*list.add(index));
            verbs.get::<FreeList>(c"ibv_free_device_list")(list);
            assert!(!context.is_null(), "card {index} cannot be opened");
            let pd = verbs.get::<AllocPd>(c"ibv_alloc_pd")(context);
            let mut gid = [0; 16];
            assert_eq!(verbs.get::<QueryGid>(c"ibv_query_gid")(context, 1, 0, &mut gid), 0);
            Card { verbs: verbs.clone(), context, pd, gid }
        }
    }

    pub(crate) fn close(self) -> c_int {
        // SAFETY: given back once.
        unsafe {
            let freed = self.verbs.get::<Dealloc>(c"ibv_dealloc_pd")(self.pd.cast());
            freed | self.verbs.get::<Close>(c"ibv_close_device")(self.context)
        }
    }

    /// A completion queue.
    pub(crate) fn queue(&self, depth: i32) -> *mut ibv_cq {
        let null = std::ptr::null_mut();
        // SAFETY: an open context.
        unsafe { self.verbs.get::<CreateCq>(c"ibv_create_cq")(self.context, depth, null, null, 0) }
    }

    pub(crate) fn destroy_queue(&self, queue: *mut ibv_cq) -> c_int {
        // SAFETY: a queue of ours.
        unsafe { self.verbs.get::<Dealloc>(c"ibv_destroy_cq")(queue.cast()) }
    }

    /// A queue pair that is ready to send; `datagram` for UD instead of SRD. Null where the card refuses it.
    pub(crate) fn queue_pair(
        &self,
        queue: *mut ibv_cq,
        datagram: bool,
        depth: u32,
        qkey: u32,
    ) -> *mut ibv_qp {
        // SAFETY: all-zero is valid for both: null pointers and zero integers.
        let (mut attr, mut own): (ibv_qp_init_attr_ex, efadv_qp_init_attr) =
            unsafe { (std::mem::zeroed(), std::mem::zeroed()) };
        attr.send_cq = queue;
        attr.recv_cq = queue;
        attr.cap = ibv_qp_cap {
            max_send_wr: depth,
            max_recv_wr: depth,
            max_send_sge: 2,
            max_recv_sge: 3,
            max_inline_data: 32,
        };
        attr.qp_type = if datagram { IBV_QPT_UD } else { IBV_QPT_DRIVER };
        attr.comp_mask = IBV_QP_INIT_ATTR_PD | IBV_QP_INIT_ATTR_SEND_OPS_FLAGS;
        attr.pd = self.pd;
        attr.send_ops_flags = IBV_QP_EX_WITH_SEND | IBV_QP_EX_WITH_SEND_WITH_IMM;
        if !datagram {
            attr.send_ops_flags |=
                IBV_QP_EX_WITH_RDMA_READ | IBV_QP_EX_WITH_RDMA_WRITE | IBV_QP_EX_WITH_RDMA_WRITE_WITH_IMM;
        }
        // SAFETY: an open context, structures of their own size.
        let qp = unsafe {
            let create = self.verbs.get::<CreateQp>(c"efadv_create_qp_ex");
            create(self.context, &mut attr, &mut own, size_of::<efadv_qp_init_attr>() as u32)
        };
        if !qp.is_null() {
            for state in [IBV_QPS_INIT, IBV_QPS_RTR, IBV_QPS_RTS] {
                let attr = ibv_qp_attr { qp_state: state, qkey, ..Default::default() };
                let mask = IBV_QP_STATE | if state == IBV_QPS_INIT { IBV_QP_QKEY } else { 0 };
                assert_eq!(self.modify(qp, attr, mask), 0);
            }
        }
        qp
    }

    pub(crate) fn modify(&self, qp: *mut ibv_qp, mut attr: ibv_qp_attr, mask: c_int) -> c_int {
        // SAFETY: a queue pair of ours.
        unsafe { self.verbs.get::<ModifyQp>(c"ibv_modify_qp")(qp, &mut attr, mask) }
    }

    /// How often a message is tried again whose target has no receive.
    pub(crate) fn set_retries(&self, qp: *mut ibv_qp, retries: u8) {
        let attr = ibv_qp_attr { rnr_retry: retries, ..Default::default() };
        assert_eq!(self.modify(qp, attr, IBV_QP_RNR_RETRY), 0);
    }

    pub(crate) fn destroy_queue_pair(&self, qp: *mut ibv_qp) -> c_int {
        // SAFETY: a queue pair of ours.
        unsafe { self.verbs.get::<Dealloc>(c"ibv_destroy_qp")(qp.cast()) }
    }

    /// Registers memory, which must outlive the registration.
    pub(crate) fn register(&self, address: *mut u8, length: usize, access: u32) -> *mut ibv_mr {
        // SAFETY: an open domain.
        unsafe { self.verbs.get::<Register>(c"ibv_reg_mr")(self.pd, address.cast(), length, access as c_int) }
    }

    pub(crate) fn deregister(&self, mr: *mut ibv_mr) -> c_int {
        // SAFETY: a registration of ours.
        unsafe { self.verbs.get::<Dealloc>(c"ibv_dereg_mr")(mr.cast()) }
    }

    /// An address handle.
    pub(crate) fn handle(&self, gid: &ibv_gid) -> *mut ibv_ah {
        let mut attr = ibv_ah_attr { is_global: 1, port_num: 1, ..Default::default() };
        attr.grh.dgid.raw = *gid;
        // SAFETY: an open domain.
        unsafe { self.verbs.get::<CreateAh>(c"ibv_create_ah")(self.pd, &mut attr) }
    }

    pub(crate) fn destroy_handle(&self, handle: *mut ibv_ah) -> c_int {
        // SAFETY: a handle of ours.
        unsafe { self.verbs.get::<Dealloc>(c"ibv_destroy_ah")(handle.cast()) }
    }

    /// The next completion.
    pub(crate) fn poll(&self, queue: *mut ibv_cq) -> Option<ibv_wc> {
        let mut entry = ibv_wc::default();
        // SAFETY: a queue of ours, room for one entry.
        let count = unsafe { called::<Poll>((*self.context).ops.poll_cq)(queue, 1, &mut entry) };
        (count == 1).then_some(entry)
    }

    /// Posts a receive; an errno.
    pub(crate) fn receive(&self, qp: *mut ibv_qp, wr_id: u64, sges: &mut [ibv_sge]) -> c_int {
        let mut wr = ibv_recv_wr {
            wr_id,
            next: std::ptr::null_mut(),
            sg_list: sges.as_mut_ptr(),
            num_sge: sges.len() as c_int,
        };
        let mut bad = std::ptr::null_mut();
        // SAFETY: a queue pair of ours, a chain of one request.
        unsafe { called::<PostRecv>((*self.context).ops.post_recv)(qp, &mut wr, &mut bad) }
    }

    /// Posts a request; an errno.
    pub(crate) fn post(&self, qp: *mut ibv_qp, wr_id: u64, work: Work, to: To, sges: &[ibv_sge]) -> c_int {
        let ex = qp.cast::<ibv_qp_ex>();
        // SAFETY: a queue pair of ours, whose functions have the types that libibverbs gives them.
        unsafe {
            called::<Wr>((*ex).wr_start)(ex);
            (*ex).wr_id = wr_id;
            (*ex).wr_flags = IBV_SEND_SIGNALED;
            match work {
                Work::Send => called::<Wr>((*ex).wr_send)(ex),
                Work::SendImm(imm) => called::<WrImm>((*ex).wr_send_imm)(ex, imm),
                Work::Read { rkey, address } => called::<WrRdma>((*ex).wr_rdma_read)(ex, rkey, address),
                Work::Write { rkey, address } => called::<WrRdma>((*ex).wr_rdma_write)(ex, rkey, address),
                Work::WriteImm { rkey, address, imm } => {
                    called::<WrRdmaImm>((*ex).wr_rdma_write_imm)(ex, rkey, address, imm);
                }
            }
            called::<WrTo>((*ex).wr_set_ud_addr)(ex, to.handle, to.number, to.qkey);
            called::<WrList>((*ex).wr_set_sge_list)(ex, sges.len(), sges.as_ptr());
            called::<WrDone>((*ex).wr_complete)(ex)
        }
    }
}

/// The whole of a registration, or a part of it, as a request names it.
pub(crate) fn part(mr: *mut ibv_mr, offset: usize, length: usize) -> ibv_sge {
    // SAFETY: a live registration.
    let (address, lkey) = unsafe { ((*mr).addr as u64, (*mr).lkey) };
    ibv_sge { addr: address + offset as u64, length: length as u32, lkey }
}

/// Its number.
pub(crate) fn number(qp: *mut ibv_qp) -> u32 {
    // SAFETY: a live queue pair.
    unsafe { (*qp).qp_num }
}

/// Where it lies in its process, and the key for others.
pub(crate) fn target(mr: *mut ibv_mr) -> (u64, u32) {
    // SAFETY: a live registration.
    unsafe { ((*mr).addr as u64, (*mr).rkey) }
}
