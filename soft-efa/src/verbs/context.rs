//! Devices, contexts, ports, GIDs, asynchronous events.

use super::{errno_of, fail, set_errno};
use crate::abi::*;
use crate::card::completion::Channel;
use crate::card::device::Card;
use crate::card::process::{Process, lock};
use crate::settings::Settings;
use std::collections::VecDeque;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::mem::offset_of;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, OnceLock};

/// Longest message of a card (`ibv_port_attr::max_msg_sz`), as EFA reports it.
pub(crate) const MAX_MESSAGE: u32 = 8928;

/// An `ibv_device` and the card behind it. Devices live as long as the process: programs keep pointers to them.
#[repr(C)]
pub(crate) struct Device {
    base: ibv_device,
    pub(crate) index: usize,
    guid: u64,
}

// SAFETY: never written after it is made.
unsafe impl Send for Device {}
// SAFETY: as above.
unsafe impl Sync for Device {}

fn copy_name<const N: usize>(to: &mut [c_char; N], text: &str) {
    for (slot, byte) in to[..N - 1].iter_mut().zip(text.bytes()) {
        *slot = byte as c_char;
    }
}

fn devices() -> &'static [Device] {
    static DEVICES: OnceLock<Vec<Device>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let settings = Settings::from_env();
        if let Err(error) = crate::sysfs::build(&settings.dir, &settings.profile, settings.nics) {
            eprintln!("soft-efa: no sysfs facts under {}: {error}", settings.dir.display());
        }
        let root = crate::sysfs::root(&settings.dir);
        (0..settings.nics)
            .map(|index| {
                let name = settings.profile.card_name(index);
                let mut base = ibv_device {
                    _ops: [std::ptr::null(); 2],
                    node_type: IBV_NODE_UNSPECIFIED,
                    transport_type: IBV_TRANSPORT_UNSPECIFIED,
                    name: [0; 64],
                    dev_name: [0; 64],
                    dev_path: [0; 256],
                    ibdev_path: [0; 256],
                };
                copy_name(&mut base.name, &name);
                copy_name(&mut base.dev_name, &format!("uverbs{index}"));
                copy_name(
                    &mut base.dev_path,
                    &root.join(format!("class/infiniband_verbs/uverbs{index}")).to_string_lossy(),
                );
                copy_name(&mut base.ibdev_path, &root.join("class/infiniband").join(&name).to_string_lossy());
                Device { base, index, guid: (0x0253_45ff_fe00_0000 + index as u64).to_be() }
            })
            .collect()
    })
}

/// An open card: what `ibv_open_device` gives, with the public part in the middle.
#[repr(C)]
pub(crate) struct Context {
    verbs: verbs_context,
    pub(crate) card: Arc<Card>,
    events: Arc<Events>,
}

/// Asynchronous events of one context.
pub(crate) struct Events {
    channel: Channel,
    pending: Mutex<VecDeque<(u32, u64)>>,
}

impl Events {
    /// Reports an event of that type about port 1.
    pub(crate) fn push(&self, event_type: u32) {
        lock(&self.pending).push_back((event_type, 1));
        self.channel.ring();
    }
}

/// The card of a context.
///
/// # Safety
/// `context` must come from `ibv_open_device` and be open.
pub(crate) unsafe fn card_of<'a>(context: *mut ibv_context) -> &'a Arc<Card> {
    // SAFETY: by contract; the public part lies at a fixed place inside a Context.
    unsafe { &(*own(context)).card }
}

fn own(context: *mut ibv_context) -> *mut Context {
    context.wrapping_byte_sub(offset_of!(Context, verbs) + offset_of!(verbs_context, context)).cast()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_list(count: *mut c_int) -> *mut *mut ibv_device {
    let devices = devices();
    // SAFETY: room for one pointer a device and the closing null; calloc's result is checked before use.
    let list =
        unsafe { libc::calloc(devices.len() + 1, size_of::<*mut ibv_device>()) }.cast::<*mut ibv_device>();
    if list.is_null() {
        return fail(libc::ENOMEM);
    }
    for (index, device) in devices.iter().enumerate() {
        // SAFETY: index is below the room that was made.
        unsafe { *list.add(index) = (&raw const device.base).cast_mut() };
    }
    if !count.is_null() {
        // SAFETY: the caller's int.
        unsafe { *count = devices.len() as c_int };
    }
    list
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_free_device_list(list: *mut *mut ibv_device) {
    // SAFETY: allocated by calloc in ibv_get_device_list.
    unsafe { libc::free(list.cast()) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_name(device: *mut ibv_device) -> *const c_char {
    // SAFETY: a device of ours.
    unsafe { (&raw const (*device).name).cast() }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_guid(device: *mut ibv_device) -> u64 {
    // SAFETY: a device of ours is a Device.
    unsafe { (*device.cast::<Device>()).guid }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_device_index(device: *mut ibv_device) -> c_int {
    // SAFETY: a device of ours is a Device.
    unsafe { (*device.cast::<Device>()).index as c_int }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_open_device(device: *mut ibv_device) -> *mut ibv_context {
    // SAFETY: a device of ours is a Device.
    let index = unsafe { (*device.cast::<Device>()).index };
    let card = match Process::current().and_then(|process| process.card(index)) {
        Ok(card) => card,
        Err(error) => {
            eprintln!("soft-efa: cannot open card {index}: {error}");
            return fail(errno_of(&error));
        }
    };
    let events = match Channel::new() {
        Ok(channel) => Arc::new(Events { channel, pending: Mutex::default() }),
        Err(error) => return fail(errno_of(&error)),
    };
    card.listen(&events);
    // SAFETY: all-zero is valid for these C structures: null pointers, zero integers, unlocked mutexes.
    let mut verbs: verbs_context = unsafe { std::mem::zeroed() };
    verbs.sz = size_of::<verbs_context>();
    verbs.query_port = query_port as Slot;
    verbs.create_cq_ex = super::queues::create_cq_ex as Slot;
    verbs.create_qp_ex = super::queues::create_qp_ex as Slot;
    verbs.query_device_ex = query_device_ex as Slot;
    verbs.context.device = device;
    verbs.context.ops.poll_cq = super::poll::poll_cq as Slot;
    verbs.context.ops.req_notify_cq = super::poll::req_notify_cq as Slot;
    verbs.context.ops.post_send = super::post::post_send as Slot;
    verbs.context.ops.post_recv = super::post::post_recv as Slot;
    verbs.context.cmd_fd = -1;
    verbs.context.async_fd = events.channel.fd();
    verbs.context.num_comp_vectors = 32;
    verbs.context.abi_compat = VERBS_ABI_IS_EXTENDED;
    let context = Box::into_raw(Box::new(Context { verbs, card, events }));
    // SAFETY: fresh from the Box.
    unsafe { &raw mut (*context).verbs.context }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_close_device(context: *mut ibv_context) -> c_int {
    // SAFETY: the caller closes what ibv_open_device gave, once.
    drop(unsafe { Box::from_raw(own(context)) });
    0
}

fn device_attr(card: &Card) -> ibv_device_attr {
    let profile = &card.process.settings.profile;
    let settings = &card.process.settings;
    // SAFETY: plain integers.
    let mut attr: ibv_device_attr = unsafe { std::mem::zeroed() };
    copy_name(&mut attr.fw_ver, "0.0.0.0-soft-efa");
    attr.max_mr_size = settings.max_mr_size;
    attr.page_size_cap = 0x1_ffff_f000;
    attr.vendor_id = 0x1d0f;
    attr.vendor_part_id = profile.part_id;
    attr.hw_ver = 0xefa0;
    // The provider keeps tables of max_qp rounded up to a power of two and wants numbers distinct modulo that.
    attr.max_qp = crate::shared::QPS as c_int;
    attr.max_qp_wr = profile.max_sq_wr.max(profile.max_rq_wr) as c_int;
    attr.max_sge = 1;
    attr.max_sge_rd = 1;
    attr.max_cq = 4096;
    attr.max_cqe = 65536;
    attr.max_mr = settings.max_mr as c_int;
    attr.max_pd = 4096;
    attr.max_ah = settings.max_ah as c_int;
    attr.max_pkeys = 1;
    attr.phys_port_cnt = 1;
    attr
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_device(context: *mut ibv_context, attr: *mut ibv_device_attr) -> c_int {
    // SAFETY: an open context and the caller's structure.
    unsafe { *attr = device_attr(card_of(context)) };
    0
}

unsafe extern "C" fn query_device_ex(
    context: *mut ibv_context,
    _input: *const c_void,
    attr: *mut c_void,
    size: usize,
) -> c_int {
    if size < size_of::<ibv_device_attr>() {
        return libc::EINVAL;
    }
    // SAFETY: the structure begins with the plain attributes and is `size` bytes long.
    unsafe {
        attr.cast::<u8>().write_bytes(0, size);
        attr.cast::<ibv_device_attr>().write(device_attr(card_of(context)));
    }
    0
}

unsafe extern "C" fn query_port(
    context: *mut ibv_context,
    port: u8,
    attr: *mut ibv_port_attr,
    size: usize,
) -> c_int {
    if port != 1 {
        return libc::EINVAL;
    }
    // SAFETY: an open context.
    let card = unsafe { card_of(context) };
    let full = ibv_port_attr {
        state: if card.is_up() { IBV_PORT_ACTIVE } else { IBV_PORT_DOWN },
        max_mtu: IBV_MTU_4096,
        active_mtu: IBV_MTU_4096,
        gid_tbl_len: 1,
        max_msg_sz: MAX_MESSAGE,
        pkey_tbl_len: 1,
        lid: 0,
        lmc: 1,
        max_vl_num: 1,
        // 4 lanes of 25 Gbit/s, times what makes up the line rate.
        active_width: match card.process.settings.profile.gbps {
            400 => 8,
            200 => 4,
            _ => 2,
        },
        active_speed: 32,
        phys_state: if card.is_up() { 5 } else { 3 },
        ..ibv_port_attr::default()
    };
    // SAFETY: copies what the caller has room for, and no more than there is.
    unsafe {
        let known = size.min(size_of::<ibv_port_attr>());
        attr.cast::<u8>().copy_from_nonoverlapping((&raw const full).cast(), known);
    }
    0
}

/// Called by programs that were built against headers older than the extended query: they know 48 bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_port(
    context: *mut ibv_context,
    port: u8,
    attr: *mut ibv_port_attr,
) -> c_int {
    // SAFETY: forwarded.
    unsafe { query_port(context, port, attr, COMPAT_PORT_ATTR_SIZE) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_gid(
    context: *mut ibv_context,
    port: u8,
    index: c_int,
    gid: *mut ibv_gid,
) -> c_int {
    if port != 1 || index != 0 {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: an open context and the caller's sixteen bytes.
    unsafe { *gid = card_of(context).gid };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn _ibv_query_gid_ex(
    context: *mut ibv_context,
    port: u32,
    index: u32,
    entry: *mut ibv_gid_entry,
    flags: u32,
    size: usize,
) -> c_int {
    if port != 1 || flags != 0 || size < size_of::<ibv_gid_entry>() {
        return libc::EINVAL;
    }
    if index != 0 {
        return libc::ENODATA;
    }
    // SAFETY: an open context and the caller's entry.
    unsafe {
        *entry = ibv_gid_entry {
            gid: card_of(context).gid,
            gid_index: 0,
            port_num: 1,
            gid_type: 0,
            ndev_ifindex: 0,
        };
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn _ibv_query_gid_table(
    context: *mut ibv_context,
    entries: *mut ibv_gid_entry,
    room: usize,
    flags: u32,
    size: usize,
) -> isize {
    if room == 0 {
        return 0;
    }
    // SAFETY: forwarded; there is room for one entry.
    match unsafe { _ibv_query_gid_ex(context, 1, 0, entries, flags, size) } {
        0 => 1,
        errno => -(errno as isize),
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_query_pkey(
    _context: *mut ibv_context,
    port: u8,
    index: c_int,
    pkey: *mut u16,
) -> c_int {
    if port != 1 || index != 0 {
        set_errno(libc::EINVAL);
        return -1;
    }
    // SAFETY: the caller's integer.
    unsafe { *pkey = u16::MAX };
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_pkey_index(_context: *mut ibv_context, port: u8, pkey: u16) -> c_int {
    if port == 1 && pkey == u16::MAX { 0 } else { -1 }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_get_async_event(
    context: *mut ibv_context,
    event: *mut ibv_async_event,
) -> c_int {
    // SAFETY: an open context.
    let events = unsafe { (*own(context)).events.clone() };
    loop {
        let mut count = 0u64;
        // SAFETY: eight bytes into a local; the descriptor is the event channel's.
        let got = unsafe { libc::read(events.channel.fd().as_raw_fd(), (&raw mut count).cast(), 8) };
        if got != 8 {
            return -1;
        }
        if let Some((event_type, element)) = lock(&events.pending).pop_front() {
            // SAFETY: the caller's structure.
            unsafe { *event = ibv_async_event { element, event_type } };
            return 0;
        }
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_ack_async_event(_event: *mut ibv_async_event) {}

/// Fork is harmless: a child that opens cards joins the run as a process of its own.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_fork_init() -> c_int {
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ibv_is_fork_initialized() -> c_uint {
    // IBV_FORK_UNNEEDED
    2
}
