//! The network card that the provider says it has.

use core::ffi::{CStr, c_void};
use std::sync::LazyLock;

use fabric_sys::*;

use crate::fid_ops;

/// Where the card is, as domain, bus, device and function are written.
pub const PCI_ADDRESS: &str = "0001:9b:1c.5";

/// How fast its link is.
pub const LINK_BITS_PER_SECOND: u64 = 200_000_000_000;

/// The parts of the card, which all point to each other.
struct Card {
    nic: fid_nic,
    device: fi_device_attr,
    bus: fi_bus_attr,
    link: fi_link_attr,
}

// SAFETY: never changed after it has been made.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

/// Nothing is freed: all entries show the same card.
unsafe extern "C" fn close(_fid: *mut fid) -> i32 {
    0
}

/// A copy for another entry: the same card.
unsafe extern "C" fn control(fid: *mut fid, command: i32, arg: *mut c_void) -> i32 {
    if command != FI_DUP {
        return -FI_ENOSYS;
    }
    // SAFETY: the command wants a card in its argument.
    unsafe { *arg.cast::<*mut fid_nic>() = fid.cast() };
    0
}

/// The card, for an entry of discovery.
pub(crate) fn card() -> *mut fid_nic {
    static OPS: LazyLock<fi_ops> = LazyLock::new(|| fid_ops(close, None, Some(control)));
    static CARD: LazyLock<usize> = LazyLock::new(|| {
        let text = |text: &'static CStr| text.as_ptr().cast_mut();
        let mut card = Box::new(Card {
            nic: fid_nic::default(),
            device: fi_device_attr {
                name: text(c"scripted-card"),
                device_id: text(c"0xefa9"),
                vendor_id: text(c"0x1d0f"),
                ..Default::default()
            },
            bus: fi_bus_attr { bus_type: FI_BUS_PCI, ..Default::default() },
            link: fi_link_attr {
                mtu: 9000,
                speed: LINK_BITS_PER_SECOND as usize,
                state: FI_LINK_UP,
                network_type: text(c"loom"),
                ..Default::default()
            },
        });
        card.bus.attr.pci = fi_pci_attr { domain_id: 1, bus_id: 0x9b, device_id: 0x1c, function_id: 5 };
        let card = Box::leak(card);
        card.nic = fid_nic {
            fid: crate::new_fid(FI_CLASS_NIC, core::ptr::null_mut(), &OPS),
            device_attr: &raw mut card.device,
            bus_attr: &raw mut card.bus,
            link_attr: &raw mut card.link,
            prov_attr: core::ptr::null_mut(),
        };
        (&raw mut card.nic).expose_provenance()
    });
    core::ptr::with_exposed_provenance_mut(*CARD)
}
