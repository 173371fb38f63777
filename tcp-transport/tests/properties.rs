//! Random batches over real sockets against a model in plain memory.
#![allow(clippy::unwrap_used)] // tests

mod common;

use common::{Asker, Target, pattern, soon};
use proptest::prelude::*;
use tcp_transport::{
    Access, Batch, OwnedMemory, Peer, RegionDescriptor, RegionKey, Request, Shape, Transport,
};

const LEN: usize = 1 << 20;

#[derive(Debug, Clone)]
enum Side {
    Contiguous(u64),
    Paged(u64, Vec<u64>),
    Strided(u64, u64, u64, u64),
}

/// Ranges of `len` bytes in all, inside `LEN`, none of them overlapping another.
fn side(len: u64) -> impl Strategy<Value = Side> {
    let room = LEN as u64;
    let divisors: Vec<u64> = [1, 2, 4, 8, 16].into_iter().filter(|&d| len.is_multiple_of(d)).collect();
    prop::sample::select(divisors).prop_flat_map(move |parts| {
        let block = len / parts;
        let slots: Vec<u64> = (0..room / block).collect();
        let most = (room - block) / parts.max(1);
        prop_oneof![
            (0..=room - len).prop_map(Side::Contiguous),
            prop::sample::subsequence(slots, parts as usize).prop_shuffle().prop_map(move |slots| {
                Side::Paged(block, slots.into_iter().map(|s| s * block).collect())
            }),
            (0..=most.saturating_sub(block).min(5000))
                .prop_map(move |gap| { Side::Strided(0, block, block + gap, parts) }),
        ]
    })
}

impl Side {
    fn ranges(&self, len: u64) -> Vec<(u64, u64)> {
        match self {
            Self::Contiguous(at) => vec![(*at, len)],
            Self::Paged(page, at) => at.iter().map(|a| (*a, *page)).collect(),
            Self::Strided(at, block, stride, n) => (0..*n).map(|i| (at + i * stride, *block)).collect(),
        }
    }

    /// The addresses of a paged side, for as long as the shape borrows them.
    fn addrs(&self, base: u64) -> Vec<u64> {
        if let Self::Paged(_, at) = self { at.iter().map(|a| base + a).collect() } else { Vec::new() }
    }

    fn shape<'a>(&self, base: u64, len: u64, addrs: &'a [u64]) -> Shape<'a> {
        match *self {
            Self::Contiguous(at) => Shape::contiguous(base + at, len),
            Self::Paged(page_len, _) => Shape::Paged { page_len, addrs },
            Self::Strided(at, block_len, stride, count) => {
                Shape::Strided { addr: base + at, block_len, stride, count }
            }
        }
    }
}

fn request() -> impl Strategy<Value = (u64, Side, Side)> {
    (1_u64..8000).prop_map(|n| n * 16).prop_flat_map(|len| (Just(len), side(len), side(len)))
}

struct Pair {
    target: Target,
    asker: Asker,
    peer: Peer,
}

thread_local! {
    static PAIRS: [Pair; 3] = [(false, false), (true, false), (false, true)].map(|(host, process)| {
        let builder = || Transport::builder().same_host(host).same_process(process);
        let (target, asker) = (Target::new(builder(), LEN), Asker::new(builder(), LEN));
        let peer = asker.transport.peer(target.addr()).unwrap();
        peer.connect(soon()).unwrap();
        Pair { target, asker, peer }
    });
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_shapes_move_exactly_their_bytes((len, local, remote) in request(), write: bool, path in 0_usize..3, seed: u64) {
        PAIRS.with(|pairs| {
            let Pair { target, asker, peer } = &pairs[path];
            let (mut here, mut there) = (pattern(LEN, seed), pattern(LEN, !seed));
            asker.memory.write(0, &here).unwrap();
            target.memory.write(0, &there).unwrap();
            let (l, r) = (asker.region.addr(), target.region.addr());
            let (l_addrs, r_addrs) = (local.addrs(l), remote.addrs(r));
            let descriptor = target.region.descriptor();
            let any = match write {
                true => Request::write(peer, &asker.region, 0, descriptor, 0, 0),
                false => Request::read(peer, &asker.region, 0, descriptor, 0, 0),
            };
            let mut batch = Batch::new();
            batch.push(Request {
                local_shape: local.shape(l, len, &l_addrs),
                remote_shape: remote.shape(r, len, &r_addrs),
                ..any
            }).unwrap();
            asker.transport.submit(&mut batch).unwrap().wait().unwrap();
            let flat = |ranges: Vec<(u64, u64)>| ranges.into_iter().flat_map(|(at, n)| at..at + n).collect::<Vec<_>>();
            for (l, r) in flat(local.ranges(len)).into_iter().zip(flat(remote.ranges(len))) {
                match write {
                    true => there[r as usize] = here[l as usize],
                    false => here[l as usize] = there[r as usize],
                }
            }
            let mut now = vec![0; LEN];
            asker.memory.read(0, &mut now).unwrap();
            assert!(now == here, "local memory differs");
            assert!(target.bytes(0, LEN) == there, "remote memory differs");
        });
    }

    #[test]
    fn descriptors_survive_the_wire_and_nothing_else_is_one(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
        if let Ok(descriptor) = RegionDescriptor::from_bytes(&bytes) {
            prop_assert_eq!(descriptor.to_bytes().to_vec(), bytes);
        }
    }

    /// The region table against a model: keys are unique, rights and life time are kept.
    #[test]
    fn regions_are_reachable_exactly_while_registered(steps in prop::collection::vec((0_u8..3, 0_usize..8, 0_u8..4), 1..40)) {
        let target = Target::new(common::builder(), 4096);
        let asker = Asker::new(common::builder(), 4096);
        let peer = asker.transport.peer(target.addr()).unwrap();
        let mut live: Vec<(tcp_transport::Region, Access)> = Vec::new();
        let mut dead: Vec<RegionDescriptor> = Vec::new();
        let mut keys: Vec<RegionKey> = Vec::new();
        for (action, which, rights) in steps {
            match action {
                0 => {
                    let access = Access::from_bits(rights).unwrap();
                    let region = target.transport.register(OwnedMemory::new(64).unwrap(), access).unwrap();
                    prop_assert!(!keys.contains(&region.descriptor().key));
                    keys.push(region.descriptor().key);
                    live.push((region, access));
                }
                1 if !live.is_empty() => {
                    let (region, _) = live.swap_remove(which % live.len());
                    dead.push(region.descriptor());
                    match rights {
                        0 => region.revoke(),
                        1 => drop(region.unregister(soon()).unwrap()),
                        _ => drop(region),
                    }
                }
                _ => {}
            }
        }
        let mut batch = Batch::new();
        let mut expected = Vec::new();
        let all = live.iter().map(|(r, a)| (r.descriptor(), Some(*a))).chain(dead.iter().map(|d| (*d, None)));
        for (mut descriptor, access) in all {
            descriptor.access = Access::READ_WRITE; // a peer may lie about it
            for (right, write) in [(Access::READ, false), (Access::WRITE, true)] {
                let l = asker.region.addr();
                batch.push(match write {
                    true => Request::write(&peer, &asker.region, l, descriptor, descriptor.addr, 64),
                    false => Request::read(&peer, &asker.region, l, descriptor, descriptor.addr, 64),
                }).unwrap();
                expected.push(access.is_some_and(|a| a.allows(right)));
            }
        }
        if !expected.is_empty() {
            let handle = asker.transport.submit(&mut batch).unwrap();
            let _ = handle.wait();
            for (i, ok) in expected.into_iter().enumerate() {
                prop_assert_eq!(matches!(handle.status(i), tcp_transport::Status::Done), ok, "request {}", i);
            }
        }
    }
}
