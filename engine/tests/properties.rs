//! Random batches between two engines against a model of both memories.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::time::{Duration, Instant};

use engine::{Access, Batch, Engine, HostMemory, Protocol, Region, RemoteBuffer, Segment, Shape};
use proptest::prelude::*;

const LEN: usize = 64 * 1024;
/// Ranges are laid out in cells of this size, so that ranges of one batch never overlap: overlapping ones have no defined order.
const CELL: usize = 1024;
const CELLS: usize = LEN / CELL;

/// One request: which cells, in which form.
#[derive(Debug, Clone)]
struct Step {
    write: bool,
    paged: bool,
    len: usize,
    local: Vec<usize>,
    remote: Vec<usize>,
}

/// A batch whose requests share no cell on either side.
fn batch() -> impl Strategy<Value = Vec<Step>> {
    let cells = || Just((0..CELLS).collect::<Vec<_>>()).prop_shuffle();
    let sizes = prop::collection::vec((any::<bool>(), any::<bool>(), 1..=CELL, 1usize..6), 1..8);
    (cells(), cells(), sizes).prop_map(|(mut local, mut remote, sizes)| {
        let steps = sizes.into_iter().map(|(write, paged, len, count)| Step {
            write,
            paged,
            len,
            local: local.split_off(local.len() - count),
            remote: remote.split_off(remote.len() - count),
        });
        steps.collect()
    })
}

struct Pair {
    near: Engine,
    _far: Engine,
    near_memory: HostMemory,
    far_memory: HostMemory,
    local: Region,
    segment: Segment,
    remote: RemoteBuffer,
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

fn pair(same_host: bool) -> Pair {
    let open = || Engine::builder().protocol(Protocol::Tcp).same_host(same_host).build().unwrap();
    let (near, far) = (open(), open());
    let (near_memory, far_memory) = (HostMemory::new(LEN).unwrap(), HostMemory::new(LEN).unwrap());
    let local = near.register("near", near_memory.clone(), Access::LOCAL).unwrap();
    far.register("far", far_memory.clone(), Access::READ_WRITE).unwrap();
    let segment = near.open(far.name(), soon()).unwrap();
    let remote = segment.buffer("far").unwrap();
    Pair { near, _far: far, near_memory, far_memory, local, segment, remote }
}

fn contents(memory: &HostMemory) -> Vec<u8> {
    let mut bytes = vec![0; LEN];
    memory.read(0, &mut bytes).unwrap();
    bytes
}

/// Plays batches and compares all of both memories after each: the bytes asked for have moved, and not one byte else.
fn play(batches: &[Vec<Step>], seed: u8, same_host: bool) {
    let pair = pair(same_host);
    let fill = |memory: &HostMemory, salt: usize| {
        let bytes: Vec<u8> = (0..LEN).map(|i| (i * 7 + i / 251 + salt + usize::from(seed)) as u8).collect();
        memory.write(0, &bytes).unwrap();
        bytes
    };
    let (mut near, mut far) = (fill(&pair.near_memory, 3), fill(&pair.far_memory, 101));
    let mut batch = Batch::new();
    for steps in batches {
        for step in steps {
            let addrs = |base: u64, cells: &[usize]| -> Vec<u64> {
                cells.iter().map(|cell| base + (cell * CELL) as u64).collect()
            };
            let (local, remote) =
                (addrs(pair.local.addr(), &step.local), addrs(pair.remote.addr(), &step.remote));
            let ranges = |addrs: &[u64]| -> Vec<(u64, u64)> {
                addrs.iter().map(|&addr| (addr, step.len as u64)).collect()
            };
            let (local_ranges, remote_ranges) = (ranges(&local), ranges(&remote));
            let page_len = step.len as u64;
            let (here, there) = if step.paged {
                (Shape::Paged { page_len, addrs: &local }, Shape::Paged { page_len, addrs: &remote })
            } else {
                (Shape::Scatter(&local_ranges), Shape::Scatter(&remote_ranges))
            };
            for (&l, &r) in step.local.iter().zip(&step.remote) {
                let (l, r) = (l * CELL..l * CELL + step.len, r * CELL..r * CELL + step.len);
                if step.write {
                    far[r].copy_from_slice(&near[l]);
                } else {
                    near[l].copy_from_slice(&far[r]);
                }
            }
            if step.write {
                batch.write(&pair.local, here, &pair.segment, there).unwrap();
            } else {
                batch.read(&pair.local, here, &pair.segment, there).unwrap();
            }
        }
        let handle = pair.near.submit(&mut batch).unwrap();
        assert!(batch.is_empty() && handle.len() == steps.len());
        handle.wait().unwrap();
        assert!(handle.quiesced(soon()));
        assert!(contents(&pair.near_memory) == near, "local memory differs from the model");
        assert!(contents(&pair.far_memory) == far, "remote memory differs from the model");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    #[test]
    fn batches_move_exactly_what_was_asked_over_sockets(
        batches in prop::collection::vec(batch(), 1..5), seed: u8,
    ) {
        play(&batches, seed, false);
    }

    #[test]
    fn batches_move_exactly_what_was_asked_within_the_host(
        batches in prop::collection::vec(batch(), 1..5), seed: u8,
    ) {
        play(&batches, seed, true);
    }
}
