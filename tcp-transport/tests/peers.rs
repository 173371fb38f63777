//! What many peers cost: two I/O threads on each side, and next to nothing while nobody asks for anything. One test alone in its program,
//! because it looks at all threads of the process.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::time::{Duration, Instant};

use common::{Asker, Target, builder, soon, until};
use tcp_transport::{Batch, Request};

const PEERS: usize = 256;

/// The I/O threads of this process, with the nanoseconds that each has run.
fn io_threads() -> Vec<u64> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten().map(|t| t.path());
    let io =
        tasks.filter(|t| std::fs::read_to_string(t.join("comm")).is_ok_and(|c| c.starts_with("weft-io")));
    io.map(|t| {
        let ran = std::fs::read_to_string(t.join("schedstat")).unwrap();
        ran.split(' ').next().unwrap().parse().unwrap()
    })
    .collect()
}

#[test]
fn many_peers_share_two_threads_and_cost_nothing_when_idle() {
    let mut listening = builder().io_threads(2);
    for _ in 1..PEERS {
        listening = listening.listen("127.0.0.1:0".parse().unwrap());
    }
    let target = Target::new(listening, PEERS * 4096);
    let asker = Asker::new(builder().io_threads(2).lanes(1), PEERS * 4096);
    let peers: Vec<_> =
        target.transport.local_addrs().iter().map(|&a| asker.transport.peer(a).unwrap()).collect();
    assert_eq!(peers.len(), PEERS);
    for round in 1..=3_u8 {
        asker.memory.write(0, &vec![round; PEERS * 4096]).unwrap();
        let mut batch = Batch::new();
        for (i, peer) in peers.iter().enumerate() {
            let at = i as u64 * 4096;
            let (local, remote) = (asker.region.addr() + at, target.region.addr() + at);
            batch
                .push(Request::write(peer, &asker.region, local, target.region.descriptor(), remote, 4096))
                .unwrap();
        }
        asker.transport.submit(&mut batch).unwrap().wait().unwrap();
        assert!(target.bytes(0, PEERS * 4096).iter().all(|&b| b == round));
    }
    assert_eq!(asker.transport.statistics().lanes_opened, PEERS as u64, "one connection for each peer");
    assert_eq!(io_threads().len(), 4, "two on each side, whatever the number of peers");

    // Everything is open and unused: at most half a percent of a core, over a second in which nothing was asked for. What the last
    // requests have left to do is over soon, so that one of several seconds has to be quiet.
    let idle = || {
        let (before, start) = (io_threads().iter().sum::<u64>(), Instant::now());
        std::thread::sleep(Duration::from_secs(1));
        (io_threads().iter().sum::<u64>() - before) as f64 / start.elapsed().as_nanos() as f64
    };
    until("the connections cost nothing", || idle() <= 0.005);
    peers[0].ping(soon()).unwrap();
}
