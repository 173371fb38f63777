//! What a provider offers: one way to reach one network through one card.

use core::ffi::{CStr, c_char};
use core::fmt;
use core::ptr::NonNull;
use std::sync::Arc;

use fabric_sys as sys;

use crate::flags::{Capabilities, MemoryMode, Mode};
use crate::nic::Nic;
use crate::{Error, operations};

/// A field of the domain's attributes. The structure is never borrowed whole: older libraries have a shorter one.
macro_rules! domain_field {
    ($info:expr, $($field:tt)+) => {
        // SAFETY: `copy_of` refuses entries without the structure; the fields that we ask for exist since 1.17.
        unsafe { (*$info.domain()).$($field)+ }
    };
}

/// The kind of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum EndpointKind {
    /// Reliable datagrams: no connections, any number of peers. What this crate is made for.
    #[default]
    Rdm,
    /// Unreliable datagrams.
    Datagram,
    /// Connected endpoints. Can be listed; cannot be opened with this crate.
    Connected,
}

/// A `fi_info` that we own.
struct RawInfo {
    raw: NonNull<sys::fi_info>,
    library: &'static sys::Library,
}

// SAFETY: nothing changes the structure after it has been made, and it has no thread affinity.
unsafe impl Send for RawInfo {}
// SAFETY: as above; all access is reading.
unsafe impl Sync for RawInfo {}

impl Drop for RawInfo {
    fn drop(&mut self) {
        // SAFETY: `raw` came from fi_dupinfo and nobody else frees it.
        unsafe { self.library.fi_freeinfo(self.raw.as_ptr()) };
    }
}

/// One of the ways to communicate that discovery found: provider, fabric, domain, kind of endpoint and their limits.
///
/// Cheap to clone. `Display` gives a readable description of several lines.
#[derive(Clone)]
pub struct Info(Arc<RawInfo>);

impl Info {
    /// Copies one entry of a list.
    ///
    /// # Safety
    ///
    /// `entry` points to a valid `fi_info` of this library.
    pub(crate) unsafe fn copy_of(library: &'static sys::Library, entry: *const sys::fi_info) -> Option<Info> {
        // SAFETY: as the caller promises.
        let raw = NonNull::new(unsafe { library.fi_dupinfo(entry) })?;
        // From here on it is freed whatever happens.
        let info = Info(Arc::new(RawInfo { raw, library }));
        // SAFETY: the copy is valid. Providers always fill these in; an entry without them is of no use.
        let complete = unsafe {
            let raw = raw.as_ref();
            !raw.tx_attr.is_null()
                && !raw.rx_attr.is_null()
                && !raw.ep_attr.is_null()
                && !raw.domain_attr.is_null()
                && !raw.fabric_attr.is_null()
        };
        complete.then_some(info)
    }

    pub(crate) fn library(&self) -> &'static sys::Library {
        self.0.library
    }

    /// A private copy that can be changed before it is handed to a call.
    pub(crate) fn with_copy<R>(&self, use_it: impl FnOnce(*mut sys::fi_info) -> R) -> Result<R, Error> {
        // SAFETY: `raw` is valid as long as self is.
        let copy = unsafe { self.0.library.fi_dupinfo(self.0.raw.as_ptr()) };
        if copy.is_null() {
            return Err(Error::call("fi_dupinfo", self.place(), -sys::FI_ENOMEM));
        }
        let result = use_it(copy);
        // SAFETY: the copy is ours; calls that took it do not keep it.
        unsafe { self.0.library.fi_freeinfo(copy) };
        Ok(result)
    }

    fn raw(&self) -> &sys::fi_info {
        // SAFETY: valid as long as self, and never changed.
        unsafe { self.0.raw.as_ref() }
    }

    fn tx(&self) -> &sys::fi_tx_attr {
        // SAFETY: `copy_of` refuses entries without the structure.
        unsafe { &*self.raw().tx_attr }
    }

    fn rx(&self) -> &sys::fi_rx_attr {
        // SAFETY: as in `tx`.
        unsafe { &*self.raw().rx_attr }
    }

    fn ep(&self) -> &sys::fi_ep_attr {
        // SAFETY: as in `tx`.
        unsafe { &*self.raw().ep_attr }
    }

    fn domain(&self) -> *const sys::fi_domain_attr {
        self.raw().domain_attr
    }

    fn fabric(&self) -> &sys::fi_fabric_attr {
        // SAFETY: as in `tx`.
        unsafe { &*self.raw().fabric_attr }
    }

    /// Name of the provider, e.g. `efa`, `tcp;ofi_rxm`, `shm`.
    pub fn provider_name(&self) -> &str {
        // SAFETY: the text lives as long as the structure.
        unsafe { borrow_text(self.fabric().prov_name) }
    }

    /// Version of the provider, major and minor.
    pub fn provider_version(&self) -> (u32, u32) {
        let version = self.fabric().prov_version;
        (version >> 16, version & 0xffff)
    }

    /// Name of the fabric: the network, e.g. `efa-direct` or `127.0.0.0/8`.
    pub fn fabric_name(&self) -> &str {
        // SAFETY: the text lives as long as the structure.
        unsafe { borrow_text(self.fabric().name) }
    }

    /// Name of the domain: the card or interface, e.g. `rdmap0s6-rdm` or `lo`.
    pub fn domain_name(&self) -> &str {
        // SAFETY: the text lives as long as the structure.
        unsafe { borrow_text((*self.domain()).name) }
    }

    /// Domain and provider in words, for messages.
    pub(crate) fn place(&self) -> String {
        format!("domain {} of provider {}", self.domain_name(), self.provider_name())
    }

    /// What endpoints can do.
    pub fn capabilities(&self) -> Capabilities {
        Capabilities::from_bits_retain(self.raw().caps)
    }

    /// What the provider asks of its users.
    pub fn mode(&self) -> Mode {
        Mode::from_bits_retain(self.raw().mode)
    }

    /// How memory is registered and addressed.
    pub fn memory_mode(&self) -> MemoryMode {
        MemoryMode::from_bits_retain(domain_field!(self, mr_mode))
    }

    /// The kind of endpoint.
    pub fn endpoint_kind(&self) -> Option<EndpointKind> {
        match self.ep().type_ {
            sys::FI_EP_RDM => Some(EndpointKind::Rdm),
            sys::FI_EP_DGRAM => Some(EndpointKind::Datagram),
            sys::FI_EP_MSG => Some(EndpointKind::Connected),
            _ => None,
        }
    }

    /// Form of the addresses, one of libfabric's `FI_SOCKADDR_IN`, `FI_ADDR_EFA`, ….
    pub fn address_format(&self) -> u32 {
        self.raw().addr_format
    }

    /// The local address that an endpoint will have, as far as it is known before there is one.
    pub fn source_address(&self) -> Option<&[u8]> {
        let raw = self.raw();
        if raw.src_addr.is_null() || raw.src_addrlen == 0 {
            return None;
        }
        // SAFETY: the address has that many bytes and lives as long as the structure.
        Some(unsafe { core::slice::from_raw_parts(raw.src_addr.cast(), raw.src_addrlen) })
    }

    /// Operations that can be outstanding on the transmit side of an endpoint.
    pub fn transmit_depth(&self) -> usize {
        self.tx().size.clamp(1, operations::MAX_SLOTS)
    }

    /// Receives that can be outstanding on an endpoint.
    pub fn receive_depth(&self) -> usize {
        self.rx().size.clamp(1, operations::MAX_SLOTS)
    }

    /// Local segments that one send, read or write may have; at most four.
    pub fn transmit_segments(&self) -> usize {
        self.tx().iov_limit.clamp(1, operations::MAX_SEGMENTS)
    }

    /// Segments that one receive may have; at most four.
    pub fn receive_segments(&self) -> usize {
        self.rx().iov_limit.clamp(1, operations::MAX_SEGMENTS)
    }

    /// Longest message for the inject operations, in bytes.
    pub fn inject_bytes(&self) -> usize {
        self.tx().inject_size
    }

    /// Longest message, read or write in bytes. Endpoints may have smaller limits of their own: see
    /// [`option::MAX_RMA_BYTES`](crate::option::MAX_RMA_BYTES).
    pub fn max_message_bytes(&self) -> usize {
        self.ep().max_msg_size
    }

    /// Bytes of an immediate value: 8, 4 (EFA) or 0 for none.
    pub fn immediate_bytes(&self) -> usize {
        domain_field!(self, cq_data_size)
    }

    /// Bytes of a memory key.
    pub fn key_bytes(&self) -> usize {
        domain_field!(self, mr_key_size)
    }

    /// Whether peers address registered memory by virtual addresses; otherwise by offsets into the region.
    pub fn virtual_addressing(&self) -> bool {
        self.memory_mode().contains(MemoryMode::VIRT_ADDR)
    }

    /// Whether regions belong to an endpoint ([`Endpoint::register`](crate::Endpoint::register)). Only where
    /// [`Hints::memory_modes`](crate::Hints::memory_modes) allows it; EFA, TCP and shared memory do not ask for it.
    pub fn endpoint_regions(&self) -> bool {
        self.memory_mode().contains(MemoryMode::ENDPOINT)
    }

    /// Whether the provider chooses the keys of regions; otherwise we do.
    pub fn provider_keys(&self) -> bool {
        self.memory_mode().contains(MemoryMode::PROV_KEY)
    }

    /// Whether writes are asked to complete only when the bytes are visible at the target
    /// ([`DeliveryComplete`](crate::DeliveryComplete)).
    pub fn delivery_complete(&self) -> bool {
        self.tx().op_flags & sys::FI_DELIVERY_COMPLETE != 0
    }

    /// Whether transfers advance only while somebody polls a completion queue of the domain, on this side *and at the target*.
    pub fn manual_progress(&self) -> bool {
        // Both members of the union are the same thing.
        let progress = domain_field!(self, __bindgen_anon_1.data_progress);
        progress != sys::FI_PROGRESS_AUTO
    }

    /// Whether several threads may use the domain at once, which is what this crate needs.
    pub fn thread_safe(&self) -> bool {
        let threading = domain_field!(self, threading);
        matches!(threading, sys::FI_THREAD_SAFE | sys::FI_THREAD_UNSPEC)
    }

    /// Regions that the provider says it can have at a time, 0 if it does not say.
    pub fn region_count(&self) -> usize {
        domain_field!(self, mr_cnt)
    }

    pub(crate) fn av_type(&self) -> sys::fi_av_type {
        domain_field!(self, av_type)
    }

    /// The card, where the provider describes it.
    pub fn nic(&self) -> Option<Nic> {
        // SAFETY: null or a description that lives as long as the structure.
        unsafe { Nic::from_raw(self.raw().nic) }
    }

    /// Link speed in bits a second, 0 if unknown.
    pub fn link_bits_per_second(&self) -> u64 {
        self.nic().map_or(0, |nic| nic.link_bits_per_second)
    }
}

impl fmt::Debug for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Info")
            .field("provider", &self.provider_name())
            .field("fabric", &self.fabric_name())
            .field("domain", &self.domain_name())
            .field("kind", &self.endpoint_kind())
            .field("capabilities", &self.capabilities())
            .finish_non_exhaustive()
    }
}

impl fmt::Display for Info {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (major, minor) = self.provider_version();
        writeln!(f, "{} {major}.{minor}", self.provider_name())?;
        writeln!(f, "  fabric        {}", self.fabric_name())?;
        writeln!(f, "  domain        {}", self.domain_name())?;
        match self.endpoint_kind() {
            Some(kind) => writeln!(f, "  endpoint      {kind:?}")?,
            None => writeln!(f, "  endpoint      other")?,
        }
        writeln!(f, "  capabilities  {}", words(self.capabilities()))?;
        writeln!(f, "  mode          {}", words(self.mode()))?;
        writeln!(f, "  memory        {}", words(self.memory_mode()))?;
        writeln!(
            f,
            "  depth         {} to transmit, {} to receive",
            self.transmit_depth(),
            self.receive_depth()
        )?;
        writeln!(
            f,
            "  segments      {} to transmit, {} to receive",
            self.transmit_segments(),
            self.receive_segments()
        )?;
        writeln!(f, "  inject        {} bytes", self.inject_bytes())?;
        writeln!(f, "  message       {} bytes", self.max_message_bytes())?;
        writeln!(f, "  immediate     {} bytes", self.immediate_bytes())?;
        writeln!(f, "  progress      {}", if self.manual_progress() { "manual" } else { "automatic" })?;
        write!(
            f,
            "  writes        complete {}",
            if self.delivery_complete() { "when visible at the target" } else { "as the provider likes" }
        )?;
        if let Some(nic) = self.nic() {
            write!(f, "\n  card          {} {} {}", nic.name, nic.vendor_id, nic.device_id)?;
            if let Some(pci) = nic.pci {
                write!(f, " at {pci}")?;
            }
            write!(f, ", link {:?}", nic.link_state)?;
            if nic.link_bits_per_second > 0 {
                write!(f, " {} Gbit/s", nic.link_bits_per_second / 1_000_000_000)?;
            }
        }
        Ok(())
    }
}

/// The names of the flags that are set and known.
fn words<F: bitflags::Flags>(flags: F) -> String {
    let names: Vec<String> = flags.iter_names().map(|(name, _)| name.to_ascii_lowercase()).collect();
    if names.is_empty() { "none".to_owned() } else { names.join(" ") }
}

/// # Safety
///
/// `text` is null or points to text that ends with NUL and lives for `'a`.
unsafe fn borrow_text<'a>(text: *const c_char) -> &'a str {
    if text.is_null() {
        return "";
    }
    // SAFETY: as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_str().unwrap_or("")
}

/// # Safety
///
/// The pointer is absent, null or points to text that ends with NUL.
pub(crate) unsafe fn text(text: Option<*mut c_char>) -> String {
    match text {
        // SAFETY: as the caller promises.
        Some(text) if !text.is_null() => unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned(),
        _ => String::new(),
    }
}
