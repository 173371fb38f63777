//! Topology from the trees of machines (reconstructed, see `machines`), and from this one.

#![allow(clippy::unwrap_used)]

mod machines;

use efa_mr::topology::{NicKind, PriorityMatrix, Topology};
use efa_mr::{Buffer, Distance, Location, PageSize, Policy, plan};
use machines::Machine;

fn read(machine: &Machine) -> Topology {
    Topology::read(machine.root()).unwrap()
}

/// Cards, their speed, GPUs, and how many cards are nearest to each GPU.
fn shape(machine: &Machine) -> (usize, u32, usize, Vec<usize>) {
    let topology = read(machine).only_efa();
    let matrix = topology.matrix();
    let near = |gpu: &efa_mr::topology::GpuPlace| matrix.places[&Location::Gpu(gpu.ordinal)][0].len();
    let near = topology.gpus.iter().map(near).collect();
    (topology.nics.len(), topology.nics[0].link_mbps.unwrap(), topology.gpus.len(), near)
}

#[test]
fn the_machines_have_the_cards_and_neighbours_that_they_are_known_for() {
    assert_eq!(shape(&Machine::p4d()), (4, 100_000, 8, vec![1; 8]));
    assert_eq!(shape(&Machine::p5()), (32, 100_000, 8, vec![4; 8]));
    assert_eq!(shape(&Machine::p5en()), (16, 200_000, 8, vec![2; 8]));
    assert_eq!(shape(&Machine::p6_b200()), (8, 400_000, 8, vec![1; 8]));
    assert_eq!(shape(&Machine::p6_b300()), (16, 400_000, 8, vec![2; 8]));
    assert_eq!(shape(&Machine::g6()), (1, 100_000, 8, vec![1; 8]));
}

#[test]
fn p4d_pairs_cards_with_gpus_of_their_host_bridge() {
    let topology = read(&Machine::p4d());
    let names: Vec<&str> = topology.nics.iter().map(|nic| nic.name.as_str()).collect();
    assert_eq!(names, ["ens32", "rdmap16s27", "rdmap32s27", "rdmap144s27", "rdmap160s27"]);
    assert_eq!(topology.nics[0].kind, NicKind::Ethernet);
    let card = &topology.nics[2];
    let to = |gpu| card.distance(Location::Gpu(gpu), &topology.gpus);
    assert_eq!(
        [to(0), to(2), to(3), to(4)],
        [Distance::SameNode, Distance::SameRoot, Distance::SameRoot, Distance::OtherNode]
    );
    assert_eq!(card.distance(Location::Numa(0), &topology.gpus), Distance::SameNode);
    assert_eq!(card.distance(Location::Numa(1), &topology.gpus), Distance::OtherNode);
}

#[test]
fn p5_shares_a_switch_between_a_gpu_and_its_four_cards() {
    let topology = read(&Machine::p5()).only_efa();
    assert_eq!(topology.nics[0].name, "rdmap79s0");
    assert_eq!(topology.nics[0].pci.hops(&topology.gpus[0].pci), Some(4));
    assert_eq!(topology.nics[0].pci.hops(&topology.gpus[1].pci), None);
    // A plan on these NICs puts a GPU's memory on its own four cards, and host memory on those of its node.
    let nics = topology.nics();
    let buffers = [
        Buffer::new(0x7f00_0000_0000, 1 << 30, PageSize::M2, Location::Gpu(5)),
        Buffer::new(0x7e00_0000_0000, 1 << 30, PageSize::M2, Location::Numa(1)),
    ];
    let plan = plan(&buffers, &nics, &Policy::near()).unwrap();
    assert_eq!(plan.chunks[0].nics.to_string(), "20-23");
    assert_eq!(plan.chunks[1].nics.to_string(), "16-31");
    assert_eq!(topology.huge_pages(PageSize::M2), (8192, 4096));
    assert_eq!(topology.nodes[1].cpus, "96-191");
}

#[test]
fn a_laptop_has_interfaces_and_no_gpu_for_computing() {
    let topology = read(&Machine::laptop());
    let nics: Vec<_> = topology.nics.iter().map(|nic| (nic.name.as_str(), nic.kind, nic.link_mbps)).collect();
    assert_eq!(nics, [("enp1s0", NicKind::Ethernet, Some(1000)), ("wlp2s0", NicKind::Ethernet, None)]);
    assert!(topology.gpus.is_empty());
    assert!(topology.nics.iter().all(|nic| nic.numa.is_none()));
    assert_eq!(topology.nics()[1].link_mbps, 1000, "unknown speed: the slowest known");
}

#[test]
fn a_container_with_a_partial_sysfs_still_has_its_cards() {
    let topology = read(&Machine::container());
    let nics: Vec<_> = topology.nics.iter().map(|nic| (nic.name.as_str(), nic.kind)).collect();
    assert_eq!(nics, [("mlx5_0", NicKind::Rdma), ("rdmap16s27", NicKind::Efa), ("rdmap32s27", NicKind::Efa)]);
    assert!(topology.nodes.is_empty() && topology.gpus.is_empty());
    let plan = plan(&[Buffer::host(0x1000, 1, PageSize::K4)], &topology.nics(), &Policy::near()).unwrap();
    assert_eq!(plan.chunks[0].nics.len(), 3);
    assert!(Topology::read(&Machine::empty().root().join("nothing")).is_err());
    assert_eq!(read(&Machine::empty()), Topology::default());
}

#[test]
fn a_card_without_driver_is_shown_and_not_used() {
    let machine = Machine::p4d();
    machine.device("pci0000:b0/0000:b0:1b.0", (0x1d0f, 0xefa1, 0x02_0000), 1, None);
    let topology = read(&machine).only_efa();
    let idle = topology.nics.last().unwrap();
    assert_eq!((idle.name.as_str(), idle.usable, idle.numa), ("0000:b0:1b.0", false, Some(1)));
    assert_eq!(topology.nics().len(), 4);
}

#[test]
fn cuda_numbers_the_gpus() {
    let mut topology = read(&Machine::p4d());
    topology.number_gpus(&["0000:A0:1D.0", "0000:10:1c.0"]);
    let gpus: Vec<_> = topology.gpus.iter().map(|gpu| (gpu.ordinal, gpu.pci.to_string())).collect();
    assert_eq!(gpus, [(0, "0000:a0:1d.0".into()), (1, "0000:10:1c.0".into())]);
}

#[test]
fn filters_and_matrices_go_round() {
    let topology = read(&Machine::p5en()).filtered(&"rdmap*,!rdmap16s0".parse().unwrap());
    assert_eq!(topology.nics.len(), 15);
    let matrix = topology.matrix();
    assert_eq!(matrix.places.len(), 2 + 8);
    assert_eq!(PriorityMatrix::from_json(&matrix.to_json()).unwrap(), matrix);
    // A matrix decides like the topology that it was made from.
    let mut nics = topology.nics();
    nics.iter_mut().for_each(|nic| nic.distances.clear());
    matrix.apply(&mut nics);
    let buffer = [Buffer::new(0x1000, 4096, PageSize::K4, Location::Gpu(3))];
    let by = |nics: &[efa_mr::Nic]| plan(&buffer, nics, &Policy::near()).unwrap().chunks;
    assert_eq!(by(&nics), by(&topology.nics()));
}

#[test]
fn this_machine_can_be_read() {
    match Topology::of_this_machine() {
        Ok(topology) => assert!(topology.nics.iter().all(|nic| !nic.name.is_empty())),
        Err(error) => eprintln!("SKIP: this_machine_can_be_read: {error}"),
    }
}
