//! Many cards, many processes, many peers.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use fabric_safe::{Access, RemoteRegion};
use support::node::{Line, Node, cards};
use support::{Part, Running, library_2, network, pattern, player, two};

const PROCESSES: usize = 8;
const CARDS: usize = 16;
const PIECE: usize = 4096;

#[test]
fn eight_processes_with_sixteen_cards_each() {
    let test = "eight_processes_with_sixteen_cards_each";
    let Some(library) = library_2(test) else { return };
    let network = network(CARDS, "p5en");
    let folder = tempfile::tempdir().unwrap();
    // Everybody talks to the first process, which knows all.
    let mut players: Vec<Running> = (0..PROCESSES)
        .map(|rank| {
            let place = folder.path().join(format!("line{rank}"));
            let mut command = player(&network, &library, "efa-direct", "ring", rank == 0, &place);
            Running(command.env("RANK", rank.to_string()).spawn().unwrap())
        })
        .collect();
    for (rank, player) in players.iter_mut().enumerate() {
        assert_eq!(player.wait().code(), Some(0), "process {rank}");
    }
}

#[test]
fn two_thousand_peers_in_one_address_vector() {
    let test = "two_thousand_peers_in_one_address_vector";
    let Some(library) = library_2(test) else { return };
    two(&network(1, "p5"), &library, "efa-direct", "crowd");
    two(&network(1, "p5"), &library, "efa", "crowd");
}

#[test]
fn child() {
    let Some(part) = Part::mine() else { return };
    match part.play.as_str() {
        "ring" => ring(&part),
        "crowd" => crowd(&part),
        other => panic!("no play called {other}"),
    }
}

/// Every process writes over each of its cards to the same card of the next process.
fn ring(part: &Part) {
    let rank: usize = std::env::var("RANK").unwrap().parse().unwrap();
    let mut nodes: Vec<Node> = cards(&part.fabric).iter().map(|info| Node::open(info, false)).collect();
    assert_eq!(nodes.len(), CARDS);
    let regions: Vec<_> = nodes.iter().map(|node| node.register(vec![0; PIECE], Access::ALL)).collect();
    let sources: Vec<_> =
        nodes.iter().map(|node| node.register(pattern(rank as u64, PIECE), Access::ALL)).collect();
    // One record a card: name and region.
    let mine: Vec<u8> = nodes
        .iter()
        .zip(&regions)
        .flat_map(|(node, region)| {
            let name = node.endpoint.name().unwrap().to_vec();
            assert_eq!(name.len(), 32);
            [name, region.remote().to_bytes().to_vec()].concat()
        })
        .collect();
    let mut lines: Vec<Line> = Vec::new();
    let all: Vec<Vec<u8>> = if rank == 0 {
        lines = (1..PROCESSES)
            .map(|other| Line::open(&part.line.with_file_name(format!("line{other}")), true))
            .collect();
        let theirs: Vec<Vec<u8>> = lines.iter_mut().map(|line| line.hear(|| {}).unwrap()).collect();
        let all: Vec<Vec<u8>> = std::iter::once(mine).chain(theirs).collect();
        lines.iter_mut().for_each(|line| all.iter().for_each(|record| line.tell(record)));
        all
    } else {
        let mut line = Line::open(&part.line, false);
        line.tell(&mine);
        let all = (0..PROCESSES).map(|_| line.hear(|| {}).unwrap()).collect();
        lines.push(line);
        all
    };
    let record = |of: usize, card: usize| {
        let at = &all[of][card * 56..(card + 1) * 56];
        (at[..32].to_vec(), RemoteRegion::from_bytes(at[32..].try_into().unwrap()))
    };
    let next = (rank + 1) % PROCESSES;
    let before = (rank + PROCESSES - 1) % PROCESSES;
    // The target of RDMA must know its initiator.
    let peers: Vec<_> = nodes
        .iter()
        .enumerate()
        .map(|(card, node)| (node.insert(&record(next, card).0), node.insert(&record(before, card).0)))
        .collect();
    barrier(&mut lines, rank);
    for (card, node) in nodes.iter_mut().enumerate() {
        let token = node.token();
        let remote = record(next, card).1;
        node.post(|endpoint| endpoint.write(&peers[card].0, sources[card].as_slice(), remote.at(0), token));
        node.good_end(token);
    }
    barrier(&mut lines, rank);
    for (card, region) in regions.into_iter().enumerate() {
        assert!(
            region.into_memory().unwrap() == pattern(before as u64, PIECE),
            "card {card} of process {rank}"
        );
    }
    barrier(&mut lines, rank);
}

fn barrier(lines: &mut [Line], rank: usize) {
    if rank == 0 {
        lines.iter_mut().for_each(|line| assert_eq!(line.hear(|| {}).unwrap(), b"here"));
        lines.iter_mut().for_each(|line| line.tell(b"go"));
    } else {
        lines[0].tell(b"here");
        assert_eq!(lines[0].hear(|| {}).unwrap(), b"go");
    }
}

/// One process knows two thousand addresses, of which one is real.
fn crowd(part: &Part) {
    let mut side = support::node::Side::meet(part, 0);
    let region = side.node.register(vec![9; 64], Access::ALL);
    let token = side.node.token();
    if side.first {
        side.node.post(|endpoint| endpoint.receive(None, region.as_slice(), token));
        side.together();
        side.node.good_end(token);
    } else {
        let mut name = side.node.endpoint.name().unwrap().to_vec();
        let others: Vec<_> = (0..2000u16)
            .map(|other| {
                // Bytes 10 to 13 of a software card's GID are its host.
                name[10..14].copy_from_slice(&(0x0100_0000 + u32::from(other)).to_be_bytes());
                side.node.insert(&name)
            })
            .collect();
        side.together();
        let peer = side.peer.clone();
        side.node.post(|endpoint| endpoint.send(&peer, region.as_slice(), token));
        side.node.good_end(token);
        if part.fabric == "efa-direct" {
            // An address that nobody has is unreachable, and says so.
            let token = side.node.token();
            side.node.post(|endpoint| endpoint.send(&others[1999], region.as_slice(), token));
            assert_eq!(side.node.end(token).numbers(), (libc::EHOSTUNREACH, 15));
        }
    }
    side.together();
}
