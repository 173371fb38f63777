//! What is asked for is what is listed, on every libfabric. (Cards' places and speeds: see `scripted.rs`.)

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use fabric_safe::{
    Capabilities, DeliveryComplete, Endpoint, EndpointKind, Error, Fabric, Hints, MemoryMode, Usage, library,
};
use support::libraries;

#[test]
fn filters_narrow_the_list() {
    libraries::on_each("filters_narrow_the_list", || {
        let everything = Hints::everything().discover().unwrap();
        assert!(library().is_some() && !everything.is_empty());
        let basic = Hints::new().discover().unwrap();
        assert!(basic.len() < everything.len());
        for info in &basic {
            assert_eq!(info.endpoint_kind(), Some(EndpointKind::Rdm));
            assert!(
                info.thread_safe() && info.capabilities().contains(Capabilities::MSG | Capabilities::RMA)
            );
            assert!(!info.endpoint_regions(), "{info}: only for who asks for it");
            assert!(info.transmit_depth() > 0 && info.receive_depth() > 0 && info.transmit_segments() > 0);
            // By each of the names that it has.
            let (provider, fabric, domain) = (info.provider_name(), info.fabric_name(), info.domain_name());
            let again = Hints::new().provider(provider).fabric(fabric).domain(domain).discover().unwrap();
            assert!(!again.is_empty(), "{info}");
            for same in &again {
                // Asked for `tcp`, what is layered over it comes too.
                assert!(
                    same.provider_name()
                        .split(';')
                        .any(|name| provider.split(';').any(|asked| asked == name))
                );
                assert_eq!((same.fabric_name(), same.domain_name()), (fabric, domain));
            }
        }
        let tagged = Hints::new().capabilities(Capabilities::TAGGED).discover().unwrap();
        assert!(tagged.iter().all(|info| info.capabilities().contains(Capabilities::TAGGED)));
        let connected = Hints::new().endpoint_kind(EndpointKind::Connected).discover().unwrap();
        assert!(connected.iter().all(|info| info.endpoint_kind() == Some(EndpointKind::Connected)));
        // They can be found, and not opened.
        for info in connected.iter().take(1) {
            let domain = fabric_safe::Domain::open(&Fabric::open(info).unwrap(), info).unwrap();
            assert!(matches!(Endpoint::open(&domain, info), Err(Error::Unsupported { .. })));
        }
    });
}

#[test]
fn what_is_nowhere_is_an_empty_list_and_what_is_nonsense_an_error() {
    libraries::on_each("what_is_nowhere_is_an_empty_list_and_what_is_nonsense_an_error", || {
        let nothing = [
            Hints::new().provider("weaver"),
            Hints::new().fabric("no such fabric"),
            Hints::new().domain("no such domain"),
            Hints::new().pci("ffff:ff:1f.7".parse().unwrap()),
            Hints::new().min_link_speed(u64::MAX),
        ];
        for hints in nothing {
            assert!(hints.discover().unwrap().is_empty(), "{hints:?}");
        }
        let nonsense = Hints::new().provider("tc\0p").discover();
        assert!(matches!(nonsense, Err(Error::Usage(Usage::Nul(_)))));
    });
}

#[test]
fn when_writes_complete_can_be_chosen() {
    libraries::on_each("when_writes_complete_can_be_chosen", || {
        let list = |delivery| Hints::new().delivery_complete(delivery).discover().unwrap();
        assert!(list(DeliveryComplete::Require).iter().all(|info| info.delivery_complete()));
        assert!(list(DeliveryComplete::Never).iter().all(|info| !info.delivery_complete()));
        // Preferred: everything that is there at all, with it wherever it can be had.
        let (preferred, required) = (list(DeliveryComplete::Prefer), list(DeliveryComplete::Require));
        assert_eq!(preferred.len(), list(DeliveryComplete::Never).len());
        for info in &required {
            let same = |other: &&fabric_safe::Info| {
                (other.provider_name(), other.domain_name()) == (info.provider_name(), info.domain_name())
            };
            assert!(preferred.iter().find(same).is_some_and(|other| other.delivery_complete()), "{info}");
        }
    });
}

#[test]
fn depths_and_memory_modes_are_negotiated() {
    libraries::on_each("depths_and_memory_modes_are_negotiated", || {
        // Without the right to let the provider choose keys and addresses, those that insist are not listed.
        for info in Hints::new().memory_modes(MemoryMode::LOCAL).discover().unwrap() {
            assert!(!info.virtual_addressing() && !info.provider_keys(), "{info}");
        }
        let shallow = Hints::new().transmit_depth(8).receive_depth(8).discover().unwrap();
        assert!(shallow.iter().all(|info| info.transmit_depth() >= 8 && info.receive_depth() >= 8));
        let deep = Hints::new().transmit_depth(usize::MAX / 2).discover().unwrap();
        assert!(deep.is_empty(), "{deep:?}");
    });
}
