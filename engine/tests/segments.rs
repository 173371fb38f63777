//! What a program sees of segments that change, end, or never were.
#![allow(clippy::unwrap_used)] // a test fails by panicking

use std::net::TcpListener;
use std::time::{Duration, Instant};

use engine::{Access, Batch, Engine, Error, HostMemory, Path, Protocol, Shape, Status};

fn tcp() -> Engine {
    Engine::builder().protocol(Protocol::Tcp).build().unwrap()
}

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

#[test]
fn a_name_that_nobody_answers_to_fails_at_the_deadline_and_is_named() {
    // Bound and closed again: nobody listens there.
    let addr = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let start = Instant::now();
    let error = tcp().open(&addr, start + Duration::from_millis(400)).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(10), "{:?}", start.elapsed());
    assert!(error.to_string().contains(&addr), "{error}");
}

#[test]
fn a_path_that_is_not_there_is_said_and_not_replaced() {
    let error = Engine::builder().protocol(Protocol::Efa).provider("no-such-provider").build().unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("no-such-provider"), "{error}");
    let error = tcp().fabric().unwrap_err();
    assert!(error.to_string().contains("tcp"), "{error}");
}

#[test]
fn a_segment_is_opened_once_and_refreshed_when_asked() {
    let (near, far) = (tcp(), tcp());
    let segment = near.open(far.name(), soon()).unwrap();
    assert!(segment.buffers().is_empty());
    assert!(matches!(segment.buffer("later"), Err(Error::Control { .. })));
    let region = far.register("later", HostMemory::new(4096).unwrap(), Access::READ).unwrap();
    segment.refresh(soon()).unwrap();
    let buffer = near.open(far.name(), soon()).unwrap().buffer("later").unwrap();
    assert_eq!((buffer.addr(), buffer.len()), (region.addr(), 4096));
    assert!(segment.probe(soon()).unwrap() < Duration::from_secs(20));
    segment.warm_up(soon()).unwrap();
    assert!(matches!(segment.path(), Path::Tcp(_)));
}

#[test]
fn what_is_not_registered_or_not_allowed_is_refused_before_anything_moves() {
    let (near, far) = (tcp(), tcp());
    let memory = HostMemory::new(4096).unwrap();
    let local = near.register("local", memory, Access::LOCAL).unwrap();
    far.register("readable", HostMemory::new(4096).unwrap(), Access::READ).unwrap();
    let segment = near.open(far.name(), soon()).unwrap();
    let remote = segment.buffer("readable").unwrap();
    let mut batch = Batch::new();
    let whole = local.range(0, 4096);

    let beyond = batch.read(&local, local.range(0, 16), &segment, remote.range(4090, 16)).unwrap_err();
    assert!(matches!(beyond, Error::NotInSegment { buffers: 1, .. }), "{beyond:?}");
    let denied = batch.write(&local, whole, &segment, remote.range(0, 4096)).unwrap_err();
    assert!(denied.to_string().contains("writing"), "{denied}");
    let unequal = batch.read(&local, whole, &segment, remote.range(0, 100)).unwrap_err();
    assert!(unequal.to_string().contains("100"), "{unequal}");
    let outside = batch.read(&local, local.range(4000, 200), &segment, remote.range(0, 200)).unwrap_err();
    assert!(outside.to_string().contains("outside"), "{outside}");
    let empty = batch.read(&local, Shape::contiguous(local.addr(), 0), &segment, remote.range(0, 0));
    assert!(empty.is_err());
    assert!(batch.is_empty());
}

#[test]
fn an_unregistered_region_refuses_peers_that_still_know_it() {
    let (near, far) = (tcp(), tcp());
    let local = near.register("local", HostMemory::new(4096).unwrap(), Access::LOCAL).unwrap();
    let region = far.register("short-lived", HostMemory::new(4096).unwrap(), Access::READ_WRITE).unwrap();
    let segment = near.open(far.name(), soon()).unwrap();
    let remote = segment.buffer("short-lived").unwrap();
    far.unregister(region).unwrap();

    let mut batch = Batch::new();
    let index = batch.write(&local, local.range(0, 64), &segment, remote.range(0, 64)).unwrap();
    let handle = near.submit(&mut batch).unwrap();
    let error = handle.wait().unwrap_err();
    assert!(error.to_string().contains(far.name()), "{error}");
    assert!(matches!(handle.status(index), Status::Failed(_)));
    assert!(matches!(handle.status(index + 1), Status::Failed(_)), "there is no such request");
    segment.refresh(soon()).unwrap();
    assert!(segment.buffers().is_empty());
}

#[test]
fn ten_thousand_buffers_in_one_segment() {
    let (near, far) = (tcp(), tcp());
    let regions: Vec<_> = (0..10_000)
        .map(|i| far.register(&format!("layer-{i}"), HostMemory::new(64).unwrap(), Access::READ).unwrap())
        .collect();
    let segment = near.open(far.name(), soon()).unwrap();
    assert_eq!(segment.buffers().len(), regions.len());
    assert!(segment.buffers().is_sorted_by_key(|buffer| buffer.addr()));
    assert_eq!(segment.buffer("layer-9876").unwrap().addr(), regions[9876].addr());
}

#[test]
fn notifications_arrive_in_order_with_their_sender() {
    let (near, far) = (tcp(), tcp());
    let segment = near.open(far.name(), soon()).unwrap();
    for number in 0..100_u32 {
        segment.notify(&number.to_le_bytes(), soon()).unwrap();
    }
    for number in 0..100_u32 {
        let note = far.notification(soon()).unwrap();
        assert_eq!((note.from.as_str(), note.payload), (near.name(), number.to_le_bytes().to_vec()));
    }
    assert_eq!(far.try_notification(), None);
}

#[test]
fn the_last_engine_of_a_pair_still_ends() {
    let (near, far) = (tcp(), tcp());
    let segment = near.open(far.name(), soon()).unwrap();
    drop(far);
    assert!(segment.probe(Instant::now() + Duration::from_millis(300)).is_err());
    near.shutdown(soon());
    assert!(near.open("127.0.0.1:9", soon()).is_err());
}
