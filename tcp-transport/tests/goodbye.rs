//! A graceful end, seen by those who are connected: each lane is told, and what has been begun on any of them is finished.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use common::raw::{Liar, go_away, preface};
use common::{Target, builder, soon};

/// The target says good-bye, and nothing else.
fn is_told(stream: &mut TcpStream) {
    stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let mut word = [0; 24];
    stream.read_exact(&mut word).unwrap();
    assert_eq!(word[..], go_away());
}

/// A write has been begun on one of several lanes, whichever it is: the others do not make the target leave.
#[test]
fn what_has_been_begun_on_any_lane_is_finished() {
    for busy in 0..3 {
        let target = Target::new(builder().io_threads(1), 4096);
        let good = target.region.descriptor();
        let range = Liar::range(&good.to_bytes()[..16], good.addr, 100);
        let write = [Liar::frame(2, 0, 1, &range, 100), vec![1; 100]].concat();
        let mut lanes: Vec<_> = (0..3).map(|_| Liar::new(target.addr())).collect();
        let (begun, rest) = write.split_at(write.len() - 50);
        lanes[busy].0.write_all(begun).unwrap();
        common::until("it has been begun", || target.bytes(0, 1) == [1]);
        let transport = target.transport.clone();
        let leaving = std::thread::spawn(move || transport.shutdown(soon()));
        lanes.iter_mut().for_each(|lane| is_told(&mut lane.0));
        // It stays for as long as that takes; how long cannot be seen, but that it is not gone at once can.
        lanes[busy].0.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        assert!(lanes[busy].0.peek(&mut [0]).is_err(), "lane {busy} was closed in the middle of a write");
        lanes[busy].0.write_all(rest).unwrap();
        assert_eq!(lanes[busy].code(), 0);
        leaving.join().unwrap();
        assert_eq!(target.bytes(0, 100), [1; 100]);
    }
}

/// Whose connection is made meanwhile is told, too.
#[test]
fn who_comes_late_is_told() {
    let target = Target::new(builder(), 4096);
    let mut late = TcpStream::connect(target.addr()).unwrap();
    let mut busy = Liar::new(target.addr());
    let half = &Liar::frame(7, 0, 1, &[], 0)[..12];
    busy.0.write_all(half).unwrap();
    let transport = target.transport.clone();
    let leaving = std::thread::spawn(move || transport.shutdown(soon()));
    is_told(&mut busy.0);
    let mut hello = preface(0);
    hello.extend([104, 0]);
    hello.extend([3; 24]);
    hello.extend([0; 80]);
    late.write_all(&hello).unwrap();
    let mut welcome = [0; 107];
    late.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    late.read_exact(&mut welcome).unwrap();
    is_told(&mut late);
    busy.0.write_all(&Liar::frame(7, 0, 1, &[], 0)[12..]).unwrap();
    assert_eq!(busy.code(), 0);
    leaving.join().unwrap();
}
