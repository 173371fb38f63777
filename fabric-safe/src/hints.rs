//! Discovery: what is asked for, and the list of what providers offer.

use core::ffi::CStr;
use core::ptr::{self, NonNull};
use std::ffi::CString;

use fabric_sys as sys;

use crate::flags::{Capabilities, MemoryMode, Mode};
use crate::info::{EndpointKind, Info};
use crate::nic::PciAddress;
use crate::{Error, Usage};

/// Whether writes are to complete only when their bytes are visible at the target (`FI_DELIVERY_COMPLETE`).
///
/// What a completed write means otherwise differs: with `tcp;ofi_rxm` and `shm` that the local memory can be reused, on
/// EFA that the other card has acknowledged it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DeliveryComplete {
    /// Where the provider offers it; [`Info::delivery_complete`] tells.
    #[default]
    Prefer,
    /// Only providers that offer it are listed.
    Require,
    /// Not asked for.
    Never,
}

/// What to look for. Everything that is not said is left to the providers.
///
/// ```no_run
/// use fabric_safe::{Capabilities, Hints};
///
/// let infos = Hints::new().provider("efa").capabilities(Capabilities::MSG | Capabilities::RMA).discover()?;
/// for info in &infos {
///     println!("{info}");
/// }
/// # Ok::<(), fabric_safe::Error>(())
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Hints {
    provider: Option<String>,
    fabric: Option<String>,
    domain: Option<String>,
    kind: Option<EndpointKind>,
    capabilities: Capabilities,
    delivery: DeliveryComplete,
    memory_mode: MemoryMode,
    transmit_depth: usize,
    receive_depth: usize,
    node: Option<String>,
    service: Option<String>,
    pci: Option<PciAddress>,
    min_link_bits_per_second: u64,
}

impl Default for Hints {
    fn default() -> Self {
        Hints::new()
    }
}

impl Hints {
    /// Reliable datagram endpoints with messages and remote memory access.
    pub fn new() -> Hints {
        Hints {
            provider: None,
            fabric: None,
            domain: None,
            kind: Some(EndpointKind::Rdm),
            capabilities: Capabilities::MSG | Capabilities::RMA,
            delivery: DeliveryComplete::Prefer,
            memory_mode: MemoryMode::LOCAL
                | MemoryMode::VIRT_ADDR
                | MemoryMode::ALLOCATED
                | MemoryMode::PROV_KEY
                | MemoryMode::HMEM,
            transmit_depth: 0,
            receive_depth: 0,
            node: None,
            service: None,
            pci: None,
            min_link_bits_per_second: 0,
        }
    }

    /// Any kind of endpoint with any capabilities: everything that there is.
    pub fn everything() -> Hints {
        Hints {
            kind: None,
            capabilities: Capabilities::empty(),
            delivery: DeliveryComplete::Never,
            ..Hints::new()
        }
    }

    /// Only this provider, e.g. `efa` or `tcp;ofi_rxm`.
    pub fn provider(mut self, name: impl Into<String>) -> Hints {
        self.provider = Some(name.into());
        self
    }

    /// Only this fabric, e.g. `efa-direct`.
    pub fn fabric(mut self, name: impl Into<String>) -> Hints {
        self.fabric = Some(name.into());
        self
    }

    /// Only this domain, e.g. `lo` or `rdmap0s6-rdm`.
    pub fn domain(mut self, name: impl Into<String>) -> Hints {
        self.domain = Some(name.into());
        self
    }

    /// Only this kind of endpoint. Reliable datagrams unless said otherwise.
    pub fn endpoint_kind(mut self, kind: EndpointKind) -> Hints {
        self.kind = Some(kind);
        self
    }

    /// Only endpoints that can do all of this. Nothing more than what is asked for may be used.
    pub fn capabilities(mut self, capabilities: Capabilities) -> Hints {
        self.capabilities = capabilities;
        self
    }

    /// When writes complete.
    pub fn delivery_complete(mut self, delivery: DeliveryComplete) -> Hints {
        self.delivery = delivery;
        self
    }

    /// Modes of registration that may be used; all that this crate knows unless restricted here.
    pub fn memory_modes(mut self, modes: MemoryMode) -> Hints {
        self.memory_mode = modes;
        self
    }

    /// Asks for at least this many operations outstanding on the transmit side; 0 leaves it to the provider.
    pub fn transmit_depth(mut self, operations: usize) -> Hints {
        self.transmit_depth = operations;
        self
    }

    /// Asks for at least this many receives outstanding; 0 leaves it to the provider.
    pub fn receive_depth(mut self, operations: usize) -> Hints {
        self.receive_depth = operations;
        self
    }

    /// Local address (host name or number, and port) for providers that have such, e.g. `127.0.0.1`.
    pub fn source(mut self, node: impl Into<String>, service: Option<u16>) -> Hints {
        self.node = Some(node.into());
        self.service = service.map(|port| port.to_string());
        self
    }

    /// Only the card at this place.
    pub fn pci(mut self, address: PciAddress) -> Hints {
        self.pci = Some(address);
        self
    }

    /// Only cards whose link is at least this fast, in bits a second.
    pub fn min_link_speed(mut self, bits_per_second: u64) -> Hints {
        self.min_link_bits_per_second = bits_per_second;
        self
    }

    /// Asks all providers. Blocks for some milliseconds: providers look for devices and resolve names.
    ///
    /// An empty list means that nothing matches. The order is the library's: best first.
    ///
    /// # Errors
    ///
    /// [`Error::Library`] where there is no libfabric; [`Error::Call`] if asking failed for any other reason than that
    /// nothing matches.
    pub fn discover(&self) -> Result<Vec<Info>, Error> {
        let library = sys::load()?;
        let mut infos = match self.delivery {
            DeliveryComplete::Never => self.ask(library, 0)?,
            DeliveryComplete::Require => self.ask(library, sys::FI_DELIVERY_COMPLETE)?,
            DeliveryComplete::Prefer => {
                let mut better = self.ask(library, sys::FI_DELIVERY_COMPLETE)?;
                let mut infos = self.ask(library, 0)?;
                // The same entry, asked for with more: take that.
                for info in &mut infos {
                    if let Some(index) = better.iter().position(|other| same_way(info, other)) {
                        *info = better.remove(index);
                    }
                }
                infos
            }
        };
        infos.retain(|info| self.accepts(info));
        Ok(infos)
    }

    fn accepts(&self, info: &Info) -> bool {
        // Needed: with regions registered and queues polled from other threads than those that post.
        (self.kind.is_none() || info.thread_safe())
            // Not all providers look at the names: EFA's of 1.17 gives its one fabric whichever is asked for.
            && self.fabric.as_deref().is_none_or(|name| info.fabric_name() == name)
            && self.domain.as_deref().is_none_or(|name| info.domain_name() == name)
            && self.pci.is_none_or(|pci| info.nic().and_then(|nic| nic.pci) == Some(pci))
            && info.link_bits_per_second() >= self.min_link_bits_per_second
    }

    fn ask(&self, library: &'static sys::Library, op_flags: u64) -> Result<Vec<Info>, Error> {
        let hints = RawHints::new(library)?;
        hints.fill(self, op_flags)?;
        let node = c_text(self.node.as_deref())?;
        let service = c_text(self.service.as_deref())?;
        let flags = if node.is_some() || service.is_some() { sys::FI_SOURCE } else { 0 };
        let mut list = ptr::null_mut();
        // SAFETY: the texts and hints outlive the call; `list` receives a list that we free below.
        let status = unsafe {
            library.fi_getinfo(
                library.api_version().raw(),
                node.as_deref().map_or(ptr::null(), CStr::as_ptr),
                service.as_deref().map_or(ptr::null(), CStr::as_ptr),
                flags,
                hints.0.as_ptr(),
                &mut list,
            )
        };
        match -status {
            0 => {}
            // A provider that is not there (and FI_ENODATA) is nothing that matches.
            sys::FI_ENODATA => return Ok(Vec::new()),
            _ => return Err(Error::call("fi_getinfo", format!("{self:?}"), status)),
        }
        let mut infos = Vec::new();
        let mut entry = list;
        while !entry.is_null() {
            // SAFETY: entries of a list are valid until it is freed.
            unsafe {
                infos.extend(Info::copy_of(library, entry));
                entry = (*entry).next;
            }
        }
        // SAFETY: the list is ours and all entries have been copied.
        unsafe { library.fi_freeinfo(list) };
        Ok(infos)
    }
}

/// Whether two entries describe the same endpoints.
fn same_way(a: &Info, b: &Info) -> bool {
    a.provider_name() == b.provider_name()
        && a.fabric_name() == b.fabric_name()
        && a.domain_name() == b.domain_name()
        && a.address_format() == b.address_format()
        && a.source_address() == b.source_address()
        && a.endpoint_kind() == b.endpoint_kind()
}

fn c_text(text: Option<&str>) -> Result<Option<CString>, Error> {
    text.map(|text| CString::new(text).map_err(|_| Usage::Nul(text.to_owned()).into())).transpose()
}

/// An empty `fi_info` from the library, to be filled in.
struct RawHints(NonNull<sys::fi_info>, &'static sys::Library);

impl RawHints {
    fn new(library: &'static sys::Library) -> Result<RawHints, Error> {
        NonNull::new(library.fi_allocinfo())
            .map(|raw| RawHints(raw, library))
            .ok_or_else(|| Error::call("fi_dupinfo", "hints", -sys::FI_ENOMEM))
    }

    fn fill(&self, hints: &Hints, op_flags: u64) -> Result<(), Error> {
        // SAFETY: the library allocated the structure and all that it points to. Fields are written through raw pointers
        // because the structures may be shorter than ours; the ones used here exist since 1.17. Texts are C allocations,
        // as fi_freeinfo expects.
        unsafe {
            let info = self.0.as_ptr();
            (*info).caps = hints.capabilities.bits();
            (*info).mode = (Mode::CONTEXT | Mode::CONTEXT2 | Mode::RX_CQ_DATA).bits();
            let ep = (*info).ep_attr;
            (*ep).type_ = match hints.kind {
                None => sys::FI_EP_UNSPEC,
                Some(EndpointKind::Rdm) => sys::FI_EP_RDM,
                Some(EndpointKind::Datagram) => sys::FI_EP_DGRAM,
                Some(EndpointKind::Connected) => sys::FI_EP_MSG,
            };
            (*(*info).tx_attr).op_flags = op_flags;
            (*(*info).tx_attr).size = hints.transmit_depth;
            (*(*info).rx_attr).size = hints.receive_depth;
            let domain = (*info).domain_attr;
            (*domain).mr_mode = hints.memory_mode.bits();
            if hints.kind.is_some() {
                (*domain).threading = sys::FI_THREAD_SAFE;
            }
            (*domain).name = duplicate(hints.domain.as_deref())?;
            let fabric = (*info).fabric_attr;
            (*fabric).name = duplicate(hints.fabric.as_deref())?;
            (*fabric).prov_name = duplicate(hints.provider.as_deref())?;
        }
        Ok(())
    }
}

impl Drop for RawHints {
    fn drop(&mut self) {
        // SAFETY: ours alone.
        unsafe { self.1.fi_freeinfo(self.0.as_ptr()) };
    }
}

/// A C allocation with the text in it, null for none.
fn duplicate(text: Option<&str>) -> Result<*mut core::ffi::c_char, Error> {
    match c_text(text)? {
        None => Ok(ptr::null_mut()),
        // SAFETY: the text ends with NUL. A null result means "no filter" and happens only when memory has run out.
        Some(text) => Ok(unsafe { libc::strdup(text.as_ptr()) }),
    }
}
