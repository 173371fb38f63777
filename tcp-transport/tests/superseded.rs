//! The end of a lost lane: after the word that it is closed nothing that came over it is applied any more.
#![allow(clippy::unwrap_used)] // tests

mod common;

use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::raw::{Liar, is_closed};
use common::{Asker, Mode, Proxy, Target, builder, soon, until};
use tcp_transport::{Access, Batch, Deadlines, DeviceCopy, Memory, Region};

/// The number of a lane names it when it is to be closed: a second one of the same session with that number is not let in.
#[test]
fn a_lane_number_is_used_once() {
    let target = Target::new(builder(), 4096);
    let same = |introduction: &mut [u8]| introduction[16..24].copy_from_slice(&[5; 8]);
    let (mut first, _) = Liar::introduced(target.addr(), same);
    let (second, _) = Liar::introduced(target.addr(), same);
    assert!(is_closed(second.0).is_empty());
    first.0.write_all(&Liar::frame(7, 0, 1, &[], 0)).unwrap();
    assert_eq!(first.code(), 0, "the first one goes on");
}

/// After the answer to `supersede` nothing of the lane that it names is applied, not even what its socket still brings.
#[test]
fn a_superseded_lane_applies_nothing_more() {
    let target = Target::new(builder(), 4096);
    let good = target.region.descriptor();
    let lane = |n: u8| move |introduction: &mut [u8]| introduction[16..24].copy_from_slice(&[n; 8]);
    let (mut old, _) = Liar::introduced(target.addr(), lane(5));
    let (mut new, _) = Liar::introduced(target.addr(), lane(6));
    let range = Liar::range(&good.to_bytes()[..16], good.addr, 100);
    old.0.write_all(&Liar::frame(2, 0, 1, &range, 100)).unwrap();
    old.0.write_all(&[1; 40]).unwrap();
    until("the first part is there", || target.bytes(39, 1) == [1]);
    new.0.write_all(&Liar::frame(9, 0, 1, &[5; 8], 0)).unwrap();
    assert_eq!(new.code(), 0);
    let _ = old.0.write_all(&[1; 60]); // may find the connection closed
    assert!(is_closed(old.0).is_empty(), "the old lane goes on");
    assert_eq!(target.bytes(0, 100), [[1; 40].as_slice(), &[0; 60]].concat());
    new.0.write_all(&Liar::frame(7, 0, 2, &[], 0)).unwrap();
    assert_eq!(new.code(), 0, "the new lane goes on");
}

/// Memory that is reached by copying only, where a copy ends when the test says so.
struct Slow {
    bytes: Mutex<Vec<u8>>,
    began: Sender<()>,
    go_on: Mutex<Receiver<()>>,
}

// SAFETY: nothing lies at the address; `device` is some, so it is never used as a pointer.
unsafe impl Memory for Slow {
    fn address(&self) -> u64 {
        0x10 // in the page that is never mapped
    }
    fn len(&self) -> usize {
        4096
    }
    fn device(&self) -> Option<&dyn DeviceCopy> {
        Some(self)
    }
}

impl DeviceCopy for Slow {
    fn copy_in(&self, offset: usize, bytes: &[u8]) -> Result<(), String> {
        self.began.send(()).map_err(|e| e.to_string())?;
        let go_on = self.go_on.lock().unwrap().recv_timeout(Duration::from_secs(20));
        self.bytes.lock().unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
        go_on.map_err(|e| e.to_string())
    }
    fn copy_out(&self, offset: usize, bytes: &mut [u8]) -> Result<(), String> {
        bytes.copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + bytes.len()]);
        Ok(())
    }
    fn flush(&self) -> Result<(), String> {
        Ok(())
    }
}

/// A lane may be superseded while it is being made: it is not let in any more.
#[test]
fn a_lane_is_superseded_even_before_it_is_there() {
    let world = World::new();
    let mut new = world.lane(6);
    for (n, same) in [5, 5, 7].into_iter().enumerate() {
        new.0.write_all(&Liar::frame(9, 0, n as u64, &[same; 8], 0)).unwrap();
        assert_eq!(new.code(), 0);
    }
    for number in [5, 7] {
        assert!(is_closed(world.lane(number).0).is_empty(), "lane {number} was let in");
    }
    let mut fresh = world.lane(8);
    fresh.0.write_all(&Liar::frame(7, 0, 1, &[], 0)).unwrap();
    assert_eq!(fresh.code(), 0);
}

/// A target with two I/O threads, which take turns with new lanes, and a region where copies last as long as the test wants.
struct World {
    target: Target,
    slow: Arc<Slow>,
    region: Region,
    begins: Receiver<()>,
    release: Sender<()>,
}

impl World {
    fn new() -> Self {
        let target = Target::new(builder().io_threads(2), 4096);
        let ((began, begins), (release, go_on)) = (channel(), channel());
        let slow = Arc::new(Slow { bytes: vec![0; 4096].into(), began, go_on: Mutex::new(go_on) });
        let region = target.transport.register(slow.clone(), Access::READ_WRITE).unwrap();
        Self { target, slow, region, begins, release }
    }

    fn lane(&self, number: u8) -> Liar {
        let introduce = |introduction: &mut [u8]| introduction[16..24].copy_from_slice(&[number; 8]);
        Liar::introduced(self.target.addr(), introduce).0
    }

    /// Writes a hundred times 1 to a region's beginning.
    fn write(lane: &mut Liar, region: &Region) {
        let good = region.descriptor();
        let range = Liar::range(&good.to_bytes()[..16], good.addr, 100);
        lane.0.write_all(&[Liar::frame(2, 0, 1, &range, 100), vec![1; 100]].concat()).unwrap();
    }

    /// Does so where it lasts, and returns when the copy has begun.
    fn begin_copy(&self, lane: &mut Liar) {
        Self::write(lane, &self.region);
        self.begins.recv_timeout(Duration::from_secs(20)).unwrap();
    }
}

/// A lane is closed, and said to be, when the copy has ended that is being made for it.
#[test]
fn superseding_waits_for_the_copy_that_is_being_made() {
    let world = World::new();
    let (mut old, mut new) = (world.lane(5), world.lane(6));
    world.begin_copy(&mut old);
    new.0.write_all(&Liar::frame(9, 0, 1, &[5; 8], 0)).unwrap();
    new.0.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let early = new.0.peek(&mut [0; 24]);
    assert!(early.is_err(), "the lane is said to be closed while a copy is being made for it");
    assert_eq!(world.slow.bytes.lock().unwrap()[..100], [0; 100]);
    world.release.send(()).unwrap();
    assert_eq!(new.code(), 0);
    assert_eq!(world.slow.bytes.lock().unwrap()[..100], [1; 100], "a late write");
}

/// What lies in the socket of a superseded lane, because its thread has been busy elsewhere, is thrown away.
#[test]
fn what_a_superseded_lane_has_in_its_socket_is_thrown_away() {
    let world = World::new();
    let (mut other, mut new, mut old) = (world.lane(4), world.lane(6), world.lane(5));
    world.begin_copy(&mut other);
    World::write(&mut old, &world.target.region);
    new.0.write_all(&Liar::frame(9, 0, 1, &[5; 8], 0)).unwrap();
    assert_eq!(new.code(), 0);
    world.release.send(()).unwrap();
    assert_eq!(other.code(), 0);
    // When these are answered, it has been the old lane's turn.
    for _ in 0..2 {
        other.0.write_all(&Liar::frame(7, 0, 1, &[], 0)).unwrap();
        assert_eq!(other.code(), 0);
    }
    assert_eq!(world.target.bytes(0, 100), [0; 100], "a late write");
}

/// What a lost connection still carries comes to the target after the request has been repeated elsewhere, and even after it
/// has ended. It is not applied.
#[test]
fn what_a_lost_connection_still_carries_is_not_applied() {
    let target = Target::new(builder(), 4096);
    let proxy = Proxy::new(target.addr());
    let deadlines = Deadlines { stall: Duration::from_millis(200), ..Deadlines::default() };
    let asker = Asker::new(builder().lanes(1).deadlines(deadlines), 4096);
    asker.memory.write(0, &[1; 4096]).unwrap();
    let peer = asker.transport.peer(proxy.addr).unwrap();
    peer.connect(soon()).unwrap();
    proxy.set(Mode::Hold);
    let mut batch = Batch::new();
    asker.write(&mut batch, &peer, target.region.descriptor(), 0, 4096);
    let handle = asker.transport.submit(&mut batch).unwrap();
    until("the write is held up", || proxy.holds() > 4096);
    proxy.set(Mode::Pass); // for new connections
    handle.wait().unwrap();
    assert_eq!(target.bytes(0, 4096), [1; 4096]);
    assert!(handle.quiesced(soon()));
    let statistics = asker.transport.statistics();
    assert!(statistics.lanes_lost >= 1 && statistics.retries >= 1, "nothing had to be repeated");
    // The memory is somebody else's now.
    target.memory.write(0, &[2; 4096]).unwrap();
    proxy.release();
    until("the target has seen all of it, or will not", || proxy.holds() == 0);
    assert!(target.bytes(0, 4096) == [2; 4096], "a late write");
}
