//! Both fabrics of EFA at once: which peer is reached on which, on the real provider of two libfabrics over software cards.

mod common;

use std::time::{Duration, Instant};

use common::cards::{control, older_library, on_cards};
use common::{Target, checksum, config, memory, open, pattern, serve, soon};
use efa_transport::{Batch, Error, Event, PeerId, Region, Request, Status, Transport};

const MIB: usize = 1 << 20;

/// Not a test: the target's process, when the tests below start it.
#[test]
fn target_process() {
    serve();
}

fn initiator(test: &str, nics: usize) -> Option<Transport> {
    open(test, config("efa-auto", nics, "initiator").stuck_after(Duration::from_secs(1)))
}

/// A target on libfabric 1.17, which has the fabric `efa` only; or a line that says why not.
fn old_target(test: &str, nics: usize, name: &str, len: usize) -> Option<Target> {
    let Some(older) = older_library() else {
        eprintln!("SKIP: {test}: the system has no libfabric 1.17 beside 2.5.1");
        return None;
    };
    let older: Vec<(&str, &str)> = older.iter().map(|(name, value)| (*name, value.as_str())).collect();
    Some(Target::start_with("efa-auto", nics, name, len, &older))
}

fn fabric(transport: &Transport, peer: PeerId) -> String {
    transport.peer_state(peer).expect("a peer").fabric
}

/// Page table entries in use on the first card.
fn pages(transport: &Transport) -> u64 {
    transport.statistics().nics[0].pages.0
}

/// Bytes moved over lanes of the first fabric, and of the second.
fn bytes_by_fabric(transport: &Transport) -> (u64, u64) {
    let moved = |second: bool| -> u64 {
        let nics = transport.statistics().nics;
        let of_it = nics.iter().filter(|nic| nic.name.ends_with("/efa") == second);
        of_it.map(|nic| nic.bytes_written + nic.bytes_read).sum()
    };
    (moved(false), moved(true))
}

fn put(transport: &Transport, region: &Region, targets: &[(PeerId, u64)], len: usize) -> Result<(), Error> {
    let mut batch = Batch::new();
    for (peer, addr) in targets {
        batch.push(Request::write(*peer, region, region.addr(), *addr, len as u64)).expect("a request");
    }
    transport.submit(&mut batch).expect("submitting").wait()
}

fn get(transport: &Transport, region: &Region, (peer, addr): (PeerId, u64), len: usize) -> Result<(), Error> {
    let mut batch = Batch::new();
    batch.push(Request::read(peer, region, region.addr(), addr, len as u64)).expect("a request");
    transport.submit(&mut batch).expect("submitting").wait()
}

fn seen(region: &Region, len: usize) -> u64 {
    let mut bytes = vec![0; len];
    region.read(0, &mut bytes).expect("our memory");
    checksum(&bytes)
}

/// Catches: keys, addresses or lanes of one fabric used on the other; a second fabric that is opened for nothing, or that takes the
/// first one's traffic with it; a second fabric that nobody is told about.
#[test]
fn an_old_peer_on_efa_and_a_new_one_on_efa_direct_at_the_same_time() {
    let test = "an_old_peer_on_efa_and_a_new_one_on_efa_direct_at_the_same_time";
    on_cards(test, 4, "p5", &[], || {
        const LEN: usize = 4 * MIB;
        // Many registrations for one buffer: every request crosses seams.
        let config = config("efa-auto", 4, "initiator").max_mr_bytes(640 << 10);
        let Some(transport) = open(test, config) else { return };
        let region = memory(&transport, LEN);
        let described = transport.describe();
        assert_eq!((described.fabric.as_str(), described.on_request.as_deref()), ("efa-direct", Some("efa")));
        let alone = pages(&transport);
        assert_eq!(alone, (LEN / 4096) as u64);

        // One like us changes nothing.
        let mut new = Target::start("efa-auto", 4, "new", LEN);
        let to_new = new.meet(&transport);
        assert_eq!(fabric(&transport, to_new), "efa-direct");
        assert_eq!(transport.peer_state(to_new).expect("a peer").device_rdma, Some(true));
        put(&transport, &region, &[(to_new, new.addr)], LEN).expect("to the new one");
        assert_eq!(
            (transport.statistics().nics.len(), pages(&transport)),
            (4, alone),
            "there is one fabric still"
        );

        let Some(mut old) = old_target(test, 4, "old", LEN) else { return };
        let generation = transport.descriptor_generation();
        let began = Instant::now();
        let to_old = transport.add_or_update_peer(&old.descriptor).expect("on efa");
        let took = began.elapsed();
        eprintln!(
            "opened for the old one in {took:?}; {alone} page table entries became {}",
            pages(&transport)
        );
        assert_eq!(old.meet(&transport), to_old);
        assert_eq!(fabric(&transport, to_old), "efa");
        assert_ne!(
            transport.peer_state(to_old).expect("a peer").device_rdma,
            Some(true),
            "it has no device writes"
        );
        assert!(transport.descriptor_generation() > generation, "peers must hear of it");
        assert_eq!(pages(&transport), 2 * alone, "both count in one ledger");
        let described = transport.describe();
        assert_eq!((described.nics.len(), described.on_request), (8, None), "{}", transport.describe());
        assert_eq!(described.nics.iter().filter(|nic| nic.fabric == "efa").count(), 4);
        assert!(transport.statistics().nics[4].name.ends_with("/efa"));
        let warm = transport.warm_up(to_old, soon()).expect("warming up");
        assert_eq!((warm.rails, warm.failed), (4, vec![]));

        // Both in one batch, then each by itself, of all sizes; all bytes compared on both sides.
        for (round, size) in [1, 31, 8_929, 65_536, MIB, 2_500_001, LEN].into_iter().enumerate() {
            let before = bytes_by_fabric(&transport);
            let source = pattern(LEN, 10 + round as u64);
            region.write(0, &source).expect("our memory");
            for target in [&mut new, &mut old] {
                target.fill(100 + round as u64);
            }
            put(&transport, &region, &[(to_new, new.addr), (to_old, old.addr)], size).expect("to both");
            let mut expected = pattern(LEN, 100 + round as u64);
            expected[..size].copy_from_slice(&source[..size]);
            assert_eq!(new.checksum(), checksum(&expected), "{size} bytes on efa-direct");
            assert_eq!(old.checksum(), checksum(&expected), "{size} bytes on efa");
            let after = bytes_by_fabric(&transport);
            assert_eq!(
                (after.0 - before.0, after.1 - before.1),
                (size as u64, size as u64),
                "each on its own"
            );
            for target in [(to_new, new.addr), (to_old, old.addr)] {
                region.write(0, &vec![0; LEN]).expect("our memory");
                get(&transport, &region, target, LEN).expect("reading back");
                assert_eq!(
                    seen(&region, LEN),
                    checksum(&expected),
                    "read from {}",
                    fabric(&transport, target.0)
                );
            }
        }

        // The old one the other way round: with the keys that our descriptor has for its fabric.
        old.is_told(&transport).expect("our new descriptor");
        old.fill(77);
        old.transfers(true, region.addr(), LEN).expect("writing to us");
        assert_eq!(seen(&region, LEN), checksum(&pattern(LEN, 77)));
        region.write(0, &pattern(LEN, 78)).expect("our memory");
        old.transfers(false, region.addr(), LEN).expect("reading from us");
        assert_eq!(old.checksum(), checksum(&pattern(LEN, 78)));

        // Both at full load from two threads: nothing is taken over from one fabric by the other.
        let before = bytes_by_fabric(&transport);
        std::thread::scope(|scope| {
            for target in [(to_new, new.addr), (to_old, old.addr)] {
                let (transport, region) = (&transport, &region);
                scope.spawn(move || {
                    for _ in 0..20 {
                        put(transport, region, &[target; 4], LEN).expect("under load");
                    }
                });
            }
        });
        let after = bytes_by_fabric(&transport);
        let load = 80 * LEN as u64;
        assert_eq!((after.0 - before.0, after.1 - before.1), (load, load));
        for target in [&mut new, &mut old] {
            assert_eq!(target.checksum(), checksum(&pattern(LEN, 78)));
        }

        // Memory that is registered now is on both at once: nobody has to meet again.
        let later = memory(&transport, MIB);
        later.write(0, &pattern(MIB, 79)).expect("our memory");
        put(&transport, &later, &[(to_new, new.addr), (to_old, old.addr)], MIB).expect("from new memory");
        let mut expected = pattern(LEN, 78);
        expected[..MIB].copy_from_slice(&pattern(MIB, 79));
        for target in [&mut new, &mut old] {
            assert_eq!(target.checksum(), checksum(&expected));
        }
        for region in [region, later] {
            region.unregister(soon()).expect("unregistering");
        }
        assert_eq!(pages(&transport), 0, "on both fabrics");
        transport.shutdown(soon());
    });
}

/// Catches: memory that falls between the two: not yet in the list when the fabric is opened, and not told of it afterwards; or that is
/// registered twice, or taken away half.
#[test]
fn memory_that_comes_and_goes_while_the_second_fabric_opens_is_on_both_or_on_none() {
    let test = "memory_that_comes_and_goes_while_the_second_fabric_opens_is_on_both_or_on_none";
    on_cards(test, 2, "p5", &[], || {
        for round in 0..4 {
            let Some(transport) = initiator(test, 2) else { return };
            let mut other = Target::start("efa", 2, "other", MIB);
            let (peer, regions) = std::thread::scope(|scope| {
                let opener = scope.spawn(|| transport.add_or_update_peer(&other.descriptor).expect("on efa"));
                let mut regions = Vec::new();
                // As many as there is time for, and some after that.
                for turn in 0..2_000 {
                    if turn > 8 && opener.is_finished() {
                        break;
                    }
                    regions.push(memory(&transport, 64 << 10));
                    if turn % 3 == 2 {
                        regions.swap_remove(round % regions.len()).unregister(soon()).expect("unregistering");
                    }
                }
                (opener.join().expect("no panic"), regions)
            });
            let left = regions.len();
            assert_eq!(pages(&transport), 2 * 16 * left as u64, "round {round}, {left} regions");
            for (seed, region) in regions.iter().enumerate() {
                region.write(0, &pattern(64 << 10, seed as u64)).expect("our memory");
                put(&transport, region, &[(peer, other.addr)], 64 << 10).expect("from every one of them");
            }
            assert_eq!(other.meet(&transport), peer);
            other.transfers(true, regions[left - 1].addr(), 64 << 10).expect("to the last one");
            drop(regions);
            assert_eq!(pages(&transport), 0);
            transport.shutdown(soon());
        }
    });
}

/// Catches: an old initiator that a new target cannot serve because nothing tells it to open the other fabric; one that waits for
/// ever for it; a peer that is taken for reachable before it is.
#[test]
fn an_old_initiator_makes_a_new_target_open_its_other_fabric() {
    let test = "an_old_initiator_makes_a_new_target_open_its_other_fabric";
    on_cards(test, 2, "p5", &[], || {
        // As one on libfabric 1.17 does: it has `efa` and nothing else to offer.
        let Some(transport) = open(test, config("efa", 2, "initiator")) else { return };
        assert_eq!(transport.describe().on_request, None);
        let region = memory(&transport, MIB);
        let mut target = Target::start("efa-auto", 2, "target", MIB);
        // It has not heard of us.
        let peer = transport.add_or_update_peer(&target.descriptor).expect("it would open it");
        let state = transport.peer_state(peer).expect("a peer");
        assert!(state.stale && state.fabric == "efa" && state.nics == 0, "{state:?}");
        let event = transport.events().next(soon()).map(|event| format!("{event:?}"));
        assert!(matches!(&event, Some(text) if text.contains("DescriptorChanged")), "{event:?}");
        let event = transport.events().next(soon());
        assert!(matches!(event, Some(Event::PeerStale { peer: of, .. }) if of == peer), "{event:?}");
        let error =
            put(&transport, &region, &[(peer, target.addr)], MIB).expect_err("it is not open").to_string();
        assert!(error.contains("fabric efa") && error.contains("descriptor"), "{error}");
        let error = transport.warm_up(peer, soon()).expect_err("it is not open").to_string();
        assert!(error.contains("fabric efa"), "{error}");
        // The same again is no cure; its answer to our descriptor is.
        assert_eq!(transport.add_or_update_peer(&target.descriptor).expect("the same"), peer);
        assert!(transport.peer_state(peer).expect("a peer").stale);
        assert_eq!(target.meet(&transport), peer);
        let state = transport.peer_state(peer).expect("a peer");
        assert!(!state.stale && state.nics == 2, "{state:?}");
        region.write(0, &pattern(MIB, 5)).expect("our memory");
        put(&transport, &region, &[(peer, target.addr)], MIB).expect("now it is");
        assert_eq!(target.checksum(), checksum(&pattern(MIB, 5)));
        // Memory that it registers from now on is there on both.
        target.register_again();
        assert_eq!(target.meet(&transport), peer);
        put(&transport, &region, &[(peer, target.addr)], MIB).expect("its new memory");
        assert_eq!(target.checksum(), checksum(&pattern(MIB, 5)));
        transport.shutdown(soon());
    });
}

/// Catches: `efa-direct` with cards that cannot write; a choice that the two sides make differently.
#[test]
fn cards_without_device_writes_are_reached_on_efa() {
    let test = "cards_without_device_writes_are_reached_on_efa";
    on_cards(test, 2, "p5", &[], || {
        let Some(transport) = initiator(test, 2) else { return };
        let region = memory(&transport, MIB);
        let mut weak = Target::start_with("efa-auto", 2, "weak", MIB, &[("SOFT_EFA_PROFILE", "p4d")]);
        let to_weak = weak.meet(&transport);
        let state = transport.peer_state(to_weak).expect("a peer");
        assert_eq!((state.fabric.as_str(), state.device_rdma), ("efa", Some(false)), "{state:?}");
        let mut strong = Target::start("efa-auto", 2, "strong", MIB);
        let to_strong = strong.meet(&transport);
        assert_eq!(fabric(&transport, to_strong), "efa-direct");
        for (seed, target, peer) in [(1, &mut weak, to_weak), (2, &mut strong, to_strong)] {
            region.write(0, &pattern(MIB, seed)).expect("our memory");
            put(&transport, &region, &[(peer, target.addr)], MIB).expect("a write");
            assert_eq!(target.checksum(), checksum(&pattern(MIB, seed)), "{}", fabric(&transport, peer));
        }
        weak.is_told(&transport).expect("our descriptor");
        weak.fill(3);
        weak.transfers(true, region.addr(), MIB).expect("it writes by messages");
        assert_eq!(seen(&region, MIB), checksum(&pattern(MIB, 3)));
        transport.shutdown(soon());
    });
}

/// Where the cards cannot, there is nothing to choose: one fabric, no second one on request.
#[test]
fn on_cards_without_device_writes_there_is_efa_alone() {
    let test = "on_cards_without_device_writes_there_is_efa_alone";
    on_cards(test, 1, "p4d", &[], || {
        let Some(transport) = initiator(test, 1) else { return };
        let described = transport.describe();
        assert_eq!(
            (described.fabric.as_str(), described.on_request.as_deref()),
            ("efa", None),
            "{described}"
        );
        transport.shutdown(soon());
    });
}

/// Catches: a failure that is silent, half done or for good; one that takes the first fabric with it.
#[test]
fn a_second_fabric_that_cannot_be_opened_is_an_answer_and_is_tried_again() {
    let test = "a_second_fabric_that_cannot_be_opened_is_an_answer_and_is_tried_again";
    on_cards(test, 2, "p5", &[], || {
        let Some(transport) = initiator(test, 2) else { return };
        let region = memory(&transport, MIB);
        let mut new = Target::start("efa-auto", 2, "new", MIB);
        let to_new = new.meet(&transport);
        let mut other = Target::start("efa", 2, "other", MIB);
        let before = pages(&transport);
        // What a NIC registers for itself when it is opened.
        let rule = control("register errno=12 max=65536");
        let error = transport.add_or_update_peer(&other.descriptor).expect_err("it cannot be opened");
        assert!(matches!(error, Error::Incompatible { .. }) && error.is_about_peer(), "{error:?}");
        let said = error.to_string();
        assert!(said.contains("other") && said.contains("efa") && said.contains("opening NIC"), "{said}");
        let described = transport.describe();
        assert_eq!(described.on_request, None, "it is not on offer any more");
        assert!(described.to_string().contains("not fabric efa besides: opening NIC"), "{described}");
        let refused = other.is_told(&transport).expect_err("what it could reach us on is not there");
        assert!(refused.contains("efa-direct") && refused.contains("initiator"), "{refused}");
        assert_eq!((transport.statistics().nics.len(), pages(&transport)), (2, before));
        region.write(0, &pattern(MIB, 1)).expect("our memory");
        put(&transport, &region, &[(to_new, new.addr)], MIB).expect("the first fabric carries on");
        assert_eq!(new.checksum(), checksum(&pattern(MIB, 1)));
        // Better times.
        control(&format!("remove {}", rule.trim()));
        let to_other = transport.add_or_update_peer(&other.descriptor).expect("it can be opened now");
        assert_eq!(other.meet(&transport), to_other, "and that is what our descriptor says");
        put(&transport, &region, &[(to_other, other.addr)], MIB).expect("now it is open");
        assert_eq!(other.checksum(), checksum(&pattern(MIB, 1)));
        transport.shutdown(soon());
    });
}

/// Catches: a budget that is spent twice; a registration with the second fabric that undoes the first; memory that is never tried again.
#[test]
fn memory_that_finds_no_room_on_the_second_fabric_stays_on_the_first() {
    let test = "memory_that_finds_no_room_on_the_second_fabric_stays_on_the_first";
    on_cards(test, 2, "p5", &[], || {
        // Room for three times a MiB.
        let config = config("efa-auto", 2, "initiator").pte_budget(3 * 256);
        let Some(transport) = open(test, config) else { return };
        let (first, second) = (memory(&transport, MIB), memory(&transport, MIB));
        let mut new = Target::start("efa-auto", 2, "new", MIB);
        let to_new = new.meet(&transport);
        let mut other = Target::start("efa", 2, "other", MIB);
        let to_other = other.meet(&transport);
        assert_eq!(pages(&transport), 3 * 256);
        put(&transport, &first, &[(to_other, other.addr)], MIB).expect("there was room for this one");
        let mut batch = Batch::new();
        for peer in [(to_new, new.addr), (to_other, other.addr)] {
            batch.push(Request::write(peer.0, &second, second.addr(), peer.1, 1)).expect("a request");
        }
        let handle = transport.submit(&mut batch).expect("submitting");
        assert!(handle.wait().is_err());
        assert!(matches!(handle.status(0), Status::Done), "{:?}", handle.status(0));
        let Status::Failed(error @ Error::NoRail { .. }) = handle.status(1) else {
            panic!("{:?}", handle.status(1))
        };
        let said = error.to_string();
        assert!(said.contains("fabric efa") && said.contains("budget"), "{said}");
        // Peers on that fabric do not see it either.
        other.is_told(&transport).expect("our descriptor");
        let said = other.transfers(true, second.addr(), 64).expect_err("it has no key of it");
        assert!(said.contains("not registered"), "{said}");
        other.transfers(true, first.addr(), 64).expect("but of the other one");
        // New memory goes to the first fabric as long as there is room.
        assert!(pages(&transport) <= 3 * 256);
        first.unregister(soon()).expect("unregistering");
        assert_eq!(pages(&transport), 256);
        assert_eq!(other.meet(&transport), to_other);
        put(&transport, &second, &[(to_other, other.addr), (to_new, new.addr)], MIB)
            .expect("now there is room");
        assert_eq!(pages(&transport), 2 * 256);
        second.unregister(soon()).expect("unregistering");
        assert_eq!(pages(&transport), 0);
        transport.shutdown(soon());
    });
}

/// Catches: addresses and keys of the fabric that a peer was on in its former life.
#[test]
fn a_peer_may_come_back_with_another_libfabric() {
    let test = "a_peer_may_come_back_with_another_libfabric";
    on_cards(test, 2, "p5", &[], || {
        let Some(transport) = initiator(test, 2) else { return };
        let region = memory(&transport, MIB);
        let mut ids = Vec::new();
        for life in 0..4 {
            let (mut target, expected) = match life % 2 {
                0 => (Target::start("efa-auto", 2, "phoenix", MIB), "efa-direct"),
                _ => match old_target(test, 2, "phoenix", MIB) {
                    Some(target) => (target, "efa"),
                    None => return,
                },
            };
            let peer = target.meet(&transport);
            assert_eq!(fabric(&transport, peer), expected, "life {life}");
            region.write(0, &pattern(MIB, life)).expect("our memory");
            put(&transport, &region, &[(peer, target.addr)], MIB).expect("the next batch");
            assert_eq!(target.checksum(), checksum(&pattern(MIB, life)), "life {life}");
            ids.push(peer);
            target.kill();
        }
        assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "the same name is the same peer");
        // Nothing is left of the lives on the other fabric.
        let nics = transport.statistics().nics;
        let entries: Vec<usize> = nics.iter().map(|nic| nic.addresses).collect();
        assert_eq!(entries, [0, 0, 1, 1]);
        assert!(transport.remove_peer(ids[0]));
        assert!(transport.statistics().nics.iter().all(|nic| nic.addresses == 0));
        transport.shutdown(soon());
    });
}

/// Catches: settings that are ignored; a refusal that does not say what to do.
#[test]
fn an_explicit_provider_is_the_only_one() {
    let test = "an_explicit_provider_is_the_only_one";
    on_cards(test, 1, "p5", &[], || {
        let Some(direct) = open(test, config("efa-direct", 1, "direct")) else { return };
        let Some(efa) = open(test, config("efa", 1, "efa")) else { return };
        assert_eq!((direct.describe().on_request, efa.describe().on_request), (None, None));
        let error = direct.add_or_update_peer(&efa.local_descriptor()).expect_err("it is on efa").to_string();
        assert!(error.contains("it has fabric efa and we have efa-direct"), "{error}");
        let error =
            efa.add_or_update_peer(&direct.local_descriptor()).expect_err("it is on efa-direct").to_string();
        assert!(error.contains("it has fabric efa-direct and we have efa"), "{error}");
        // Both reach one that has both.
        let Some(both) = open(test, config("efa-auto", 1, "both")) else { return };
        let to_both = direct.add_or_update_peer(&both.local_descriptor()).expect("on efa-direct");
        assert_eq!(fabric(&direct, to_both), "efa-direct");
        let to_efa = both.add_or_update_peer(&efa.local_descriptor()).expect("on efa");
        assert_eq!(fabric(&both, to_efa), "efa");
        for transport in [direct, efa, both] {
            transport.shutdown(soon());
        }
    });
}

/// Catches: a card whose `efa-direct` does not open and that nobody uses although its `efa` would.
#[test]
fn if_efa_direct_cannot_be_opened_efa_is() {
    let test = "if_efa_direct_cannot_be_opened_efa_is";
    on_cards(test, 1, "p5", &[], || {
        control("register errno=12 max=65536 times=1");
        let Some(transport) = initiator(test, 1) else { return };
        let described = transport.describe();
        assert_eq!(
            (described.fabric.as_str(), described.on_request.as_deref()),
            ("efa", None),
            "{described}"
        );
        assert!(described.rejected.iter().any(|rejected| rejected.what == "efa-direct"), "{described}");
        transport.shutdown(soon());
    });
}
