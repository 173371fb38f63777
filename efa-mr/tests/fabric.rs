//! The registrar over the libfabric that this machine has: tcp, shm, sockets, and efa where there are cards.

#![allow(clippy::unwrap_used)]

use efa_mr::registrar::{Registrar, fabric};
use efa_mr::{Access, Buffer, PageSize, Policy};
use fabric_safe::{Domain, Fabric, Hints, Mapping, Memory, PageKind, SharedMemory};
use std::sync::Arc;

/// The domains of a provider, at most four; none if the machine has no such provider.
fn domains(test: &str, provider: &str) -> Vec<Domain> {
    let infos = match Hints::new().provider(provider).discover() {
        Ok(infos) => infos,
        Err(error) => {
            eprintln!("SKIP: {test} on {provider}: {error}");
            return Vec::new();
        }
    };
    let mut names = Vec::new();
    let mut domains = Vec::new();
    for info in infos {
        if names.len() < 4 && !names.contains(&info.domain_name().to_owned()) {
            names.push(info.domain_name().to_owned());
            let opened = Fabric::open(&info).and_then(|fabric| Domain::open(&fabric, &info));
            match opened {
                Ok(domain) => domains.push(domain),
                Err(error) => eprintln!("SKIP: {test} on {provider} domain {}: {error}", info.domain_name()),
            }
        }
    }
    if domains.is_empty() {
        eprintln!("SKIP: {test} on {provider}: no domain of that provider can be opened");
    }
    domains
}

fn mapping(pages: usize) -> (Buffer, Arc<dyn SharedMemory>) {
    let memory: Arc<dyn SharedMemory> = Arc::new(Mapping::anonymous(pages * 4096, PageKind::Small).unwrap());
    (fabric::buffer_of(&*memory, PageSize::K4), memory)
}

#[test]
fn buffers_are_registered_and_let_go() {
    for provider in ["tcp", "shm", "sockets", "efa"] {
        let domains = domains("buffers_are_registered_and_let_go", provider);
        if domains.is_empty() {
            continue;
        }
        let nics: Vec<_> = domains.iter().map(fabric::nic_of).collect();
        let registrar = Registrar::new(domains, nics).unwrap();
        let (buffers, memory): (Vec<_>, Vec<_>) = [1, 7, 300].map(mapping).into_iter().unzip();
        let access = Access::LOCAL | Access::REMOTE_READ | Access::REMOTE_WRITE;
        let mut last = None;
        let all = registrar
            .register(&buffers, &memory, &Policy::all(), access, |progress| last = Some(progress))
            .unwrap();
        assert_eq!(last.unwrap().mrs_done, all.mrs());
        let (used, mrs) = registrar.ledger().used(0);
        assert_eq!((used, mrs), (308, 3), "{provider}");
        for (index, chunk) in all.plan().chunks.iter().enumerate() {
            for (nic, region) in all.regions(index) {
                assert!(chunk.nics.contains(nic));
                assert_eq!(
                    (region.address() as u64, region.len_bytes() as u64),
                    (chunk.addr, chunk.len_bytes)
                );
            }
        }
        all.unregister().unwrap();
        assert_eq!(registrar.ledger().used(0), (0, 0), "{provider}");
        assert!(memory.iter().all(|memory| Arc::strong_count(memory) == 1), "{provider}: memory still held");
    }
}

#[test]
fn a_handle_in_use_makes_unregister_refuse_and_keeps_memory_and_budget() {
    for provider in ["tcp", "shm", "sockets", "efa"] {
        let domains = domains("a_handle_in_use_makes_unregister_refuse", provider);
        if domains.is_empty() {
            continue;
        }
        let nics: Vec<_> = domains.iter().map(fabric::nic_of).collect();
        let registrar = Registrar::new(domains, nics).unwrap();
        let (buffer, memory) = mapping(1); // One page: one MR.
        let weak = Arc::downgrade(&memory);
        let all = registrar.register(&[buffer], &[memory], &Policy::nics(1), Access::LOCAL, |_| {}).unwrap();
        let (nic, region) =
            all.regions(0).next().map(|(nic, region)| (nic, region.region().clone())).unwrap();
        let left = all.unregister().unwrap_err();
        assert_eq!((left.mrs(), left.leaked), (1, 0));
        assert_eq!(registrar.ledger().used(nic), (1, 1));
        assert!(weak.upgrade().is_some(), "memory freed under a region handle");
        drop(region);
        left.retry().unwrap();
        assert_eq!(registrar.ledger().used(nic), (0, 0));
        assert!(weak.upgrade().is_none());
    }
}

#[test]
fn a_long_buffer_is_cut_and_each_piece_is_memory_of_its_own() {
    for provider in ["tcp", "shm", "sockets", "efa"] {
        let domains = domains("a_long_buffer_is_cut", provider);
        if domains.is_empty() {
            continue;
        }
        let mut nics: Vec<_> = domains.iter().map(fabric::nic_of).collect();
        nics.iter_mut().for_each(|nic| nic.max_mr_bytes = 3 * 4096);
        let registrar = Registrar::new(domains, nics).unwrap();
        let (buffer, memory) = mapping(8);
        memory_is_mapped(&*memory);
        let all = registrar
            .register(std::slice::from_ref(&buffer), &[memory], &Policy::all(), Access::LOCAL, |_| {})
            .unwrap();
        assert_eq!(all.plan().chunks.len(), 3, "{provider}");
        for index in 0..3 {
            let (_, region) = all.regions(index).next().unwrap();
            region.copy_in(0, &[index as u8 + 1]).unwrap();
        }
        for index in 0..3 {
            let mut byte = [0];
            all.regions(index).next().unwrap().1.copy_out(0, &mut byte).unwrap();
            assert_eq!(byte, [index as u8 + 1], "pieces overlap");
        }
        all.unregister().unwrap();
    }
}

fn memory_is_mapped(memory: &dyn Memory) {
    assert!(memory.len_bytes() > 0 && !memory.address().is_null());
}
