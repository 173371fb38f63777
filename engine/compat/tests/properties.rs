//! The table of registered addresses against the obvious model, and the conventions of a node.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use proptest::prelude::*;
use weft_compat::{Access, Fault, Node, Note, Op, Progress, Setup, Table};

#[derive(Debug, Clone)]
enum Step {
    Register(u64, u64),
    Reserve(u64, u64),
    Fill(usize),
    Take(u64),
    Around(u64, u64),
}

fn step() -> impl Strategy<Value = Step> {
    let range = (1_u64..200, 0_u64..40);
    prop_oneof![
        range.clone().prop_map(|(addr, len)| Step::Register(addr, len)),
        range.clone().prop_map(|(addr, len)| Step::Reserve(addr, len)),
        (0_usize..8).prop_map(Step::Fill),
        (1_u64..200).prop_map(Step::Take),
        range.prop_map(|(addr, len)| Step::Around(addr, len)),
    ]
}

/// A list that is searched from end to end.
#[derive(Default)]
struct Model(Vec<(u64, u64, bool)>);

impl Model {
    fn overlaps(&self, addr: u64, len: u64) -> bool {
        self.0.iter().any(|&(a, l, _)| a < addr + len && addr < a + l)
    }
}

proptest! {
    #[test]
    fn the_table_is_the_model(steps in prop::collection::vec(step(), 1..60)) {
        let (mut table, mut model) = (Table::default(), Model::default());
        for step in steps {
            match step {
                Step::Register(addr, len) | Step::Reserve(addr, len) => {
                    let wanted = if len == 0 { -1 } else if model.overlaps(addr, len) { -7 } else { 0 };
                    let got = table.reserve(addr, len).map_or_else(|fault| fault.code(), |()| 0);
                    prop_assert_eq!(got, wanted);
                    if wanted == 0 {
                        let filled = matches!(step, Step::Register(..));
                        if filled {
                            table.fill(addr, addr);
                        }
                        model.0.push((addr, len, filled));
                    }
                }
                Step::Fill(index) => {
                    if let Some(entry) = model.0.get_mut(index) {
                        table.fill(entry.0, entry.0);
                        entry.2 = true;
                    }
                }
                Step::Take(addr) => {
                    let at = model.0.iter().position(|&(a, _, filled)| a == addr && filled);
                    prop_assert_eq!(table.take(addr).ok(), at.map(|_| addr));
                    at.map(|at| model.0.remove(at));
                }
                Step::Around(addr, len) => {
                    let holds = |&&(a, l, filled): &&(u64, u64, bool)| filled && a <= addr && addr + len <= a + l;
                    // An empty range may lie at the end of one buffer and the beginning of the next.
                    if len > 0 {
                        let wanted = model.0.iter().find(holds).map(|&(a, ..)| a);
                        prop_assert_eq!(table.around(addr, len).copied(), wanted);
                    }
                }
            }
            prop_assert_eq!(table.len(), model.0.len());
        }
    }

    #[test]
    fn ranges_at_the_end_of_the_address_space(addr in any::<u64>(), len in any::<u64>()) {
        let mut table = Table::default();
        let fits = len > 0 && addr > 0 && addr.checked_add(len).is_some();
        prop_assert_eq!(table.reserve(addr, len).is_ok(), fits);
        if fits {
            table.fill(addr, ());
            prop_assert!(table.around(addr, len).is_some());
            prop_assert!(table.around(addr, u64::MAX).is_none() || addr == 0);
        }
    }
}

fn node() -> Node {
    Node::start(&Setup::new("127.0.0.1", "P2PHANDSHAKE", "tcp"), &|_| None).unwrap()
}

#[test]
fn a_batch_that_registers_half_way_registers_nothing() {
    let node = node();
    let memory = vec![0_u8; 4096];
    let addr = memory.as_ptr() as u64;
    let register = |ranges: &[(u64, u64)]| {
        // SAFETY: `memory` is not looked at and lives longer than the node's registrations below.
        unsafe { node.register_many(ranges, "*", Access::READ_WRITE) }.map_err(|fault| fault.code())
    };
    assert_eq!(register(&[(addr, 100), (addr + 50, 100)]), Err(-7));
    assert_eq!(register(&[(addr, 100), (addr + 200, 0)]), Err(-1));
    assert_eq!(node.unregister(addr).unwrap_err().code(), -3, "the first was given back");
    assert_eq!(register(&[(addr, 100), (addr + 100, 100)]), Ok(()));
    assert_eq!(node.unregister_many(&[addr, addr + 1]).unwrap_err().code(), -3);
    node.unregister_many(&[addr, addr + 100]).unwrap();
    assert!(node.engine().region_at(addr, 1).is_none());
    drop(node);
    drop(memory);
}

#[test]
fn memory_that_nobody_registered_can_be_the_local_side_and_is_given_back() {
    let (here, there) = (node(), node());
    let target = there.allocate(64).unwrap();
    let memory = b"not registered".to_vec();
    let addr = memory.as_ptr() as u64;
    here.transfer(Op::Write, &there.session(), &[addr], &[target], &[14]).unwrap().wait().unwrap();
    let mut seen = [0; 14];
    there.copy_out(target, &mut seen).unwrap();
    assert_eq!(&seen, b"not registered");
    assert!(here.engine().region_at(addr, 1).is_none());
    // The last page of the address space that a program can have is never mapped.
    let fault =
        here.transfer(Op::Write, &there.session(), &[0x7fff_ffff_e000], &[target], &[14]).unwrap_err();
    assert!(fault.to_string().contains("not mapped"), "{fault}");
}

#[test]
fn memory_that_a_peer_registers_later_is_found() {
    let (here, there) = (node(), node());
    let local = here.allocate(4096).unwrap();
    let write = |remote| here.transfer(Op::Write, &there.session(), &[local], &[remote], &[8]);
    assert!(write(0x1000).is_err());
    let later = there.allocate(4096).unwrap();
    write(later).unwrap().wait().unwrap();
    assert_eq!(here.first_buffer(&there.session()).unwrap(), later);
}

#[test]
fn empty_requests_end_well_and_uneven_lists_are_refused() {
    let (here, there) = (node(), node());
    let (local, remote) = (here.allocate(64).unwrap(), there.allocate(64).unwrap());
    let session = there.session();
    let mixed = here.transfer(Op::Read, &session, &[local, local, local], &[remote; 3], &[0, 8, 0]).unwrap();
    mixed.wait().unwrap();
    assert_eq!(mixed.len(), 3);
    for index in 0..3 {
        assert!(matches!(mixed.progress_of(index), Progress::Done), "{index}");
    }
    assert!(matches!(mixed.progress_of(3), Progress::Failed(Fault::Argument(_))));
    here.transfer(Op::Read, &session, &[], &[], &[]).unwrap().wait().unwrap();
    assert_eq!(here.transfer(Op::Read, &session, &[local], &[], &[8]).unwrap_err().code(), -1);
}

#[test]
fn a_note_arrives_after_its_transfer_and_not_without_it() {
    let (here, there) = (node(), node());
    let (local, remote) = (here.allocate(64).unwrap(), there.allocate(64).unwrap());
    let note = Note { name: "kv".into(), message: "page 2".into() };
    let session = there.session();
    let send = |remote: u64| {
        here.transfer_and_notify(Op::Write, &session, &[local], &[remote], &[8], Some(&note))?.wait()
    };
    assert!(send(remote + 60).is_err());
    assert!(there.notes().is_empty());
    send(remote).unwrap();
    assert_eq!(there.notes(), std::slice::from_ref(&note));
    here.notify(&session, &note).unwrap();
    assert_eq!(there.notes(), [note]);
}

#[test]
fn peers_that_are_not_there_have_mooncakes_numbers() {
    let node = node();
    assert_eq!(node.probe("nowhere").unwrap_err().code(), -101);
    // Bound and closed again: nobody listens there.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let began = std::time::Instant::now();
    assert_eq!(node.probe(&free.to_string()).unwrap_err().code(), -102);
    assert!(began.elapsed() < std::time::Duration::from_secs(2), "refused at once, not at the deadline");
    assert!((15_000..=17_000).contains(&node.port()));
    let own = node.session();
    node.probe(&own).unwrap();
}
