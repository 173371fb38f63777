//! Reads and writes of every shape between two transports, over every path that one machine has.
#![allow(clippy::unwrap_used)] // tests

use std::sync::Arc;
use std::time::{Duration, Instant};

use tcp_transport::{
    Access, Batch, Builder, Encryption, Error, OwnedMemory, Path, Peer, Refusal, Region, Request, Shape,
    Status, Transport,
};

fn soon() -> Instant {
    Instant::now() + Duration::from_secs(10)
}

/// Two transports in this process, and a region of `len` bytes in each.
struct Pair {
    a: Transport,
    b: Transport,
    peer: Peer,
    local: Region,
    local_memory: Arc<OwnedMemory>,
    remote: Region,
    remote_memory: Arc<OwnedMemory>,
}

fn pair(path: Path, len: usize, change: impl Fn(Builder) -> Builder) -> Pair {
    let builder = || {
        let builder = Transport::builder().same_host(path == Path::Host).same_process(path == Path::Loopback);
        change(builder)
    };
    let a = builder().build().unwrap();
    let b = builder().listen("127.0.0.1:0".parse().unwrap()).build().unwrap();
    let peer = a.peer(b.local_addrs()[0]).unwrap();
    assert_eq!(peer.connect(soon()).unwrap(), path);
    let (local_memory, remote_memory) = (OwnedMemory::new(len).unwrap(), OwnedMemory::new(len).unwrap());
    let local = a.register(local_memory.clone(), Access::LOCAL).unwrap();
    let remote = b.register(remote_memory.clone(), Access::READ_WRITE).unwrap();
    Pair { a, b, peer, local, local_memory, remote, remote_memory }
}

fn pattern(len: usize, seed: u64) -> Vec<u8> {
    let mut x = seed | 1;
    (0..len)
        .map(|_| {
            x = x.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (x >> 33) as u8
        })
        .collect()
}

fn contents(memory: &OwnedMemory, offset: usize, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    memory.read(offset, &mut bytes).unwrap();
    bytes
}

const PATHS: [Path; 3] = [Path::Net, Path::Host, Path::Loopback];

#[test]
fn writes_and_reads_of_all_sizes_arrive_and_touch_nothing_else() {
    for path in PATHS {
        let len = 12 << 20;
        let p = pair(path, len, |b| b);
        for (nth, size) in [1_u64, 23, 4096, 16 << 10, 65_537, 1 << 20, (5 << 20) + 3].into_iter().enumerate()
        {
            let source = pattern(size as usize, nth as u64);
            p.remote_memory.write(0, &vec![0xee; len]).unwrap();
            p.local_memory.write(100, &source).unwrap();
            let mut batch = Batch::new();
            let (l, r) = (p.local.addr() + 100, p.remote.addr() + 333);
            batch.push(Request::write(&p.peer, &p.local, l, p.remote.descriptor(), r, size)).unwrap();
            p.a.submit(&mut batch).unwrap().wait().unwrap();
            assert_eq!(contents(&p.remote_memory, 333, size as usize), source, "{path} write of {size}");
            assert!(contents(&p.remote_memory, 0, 333).iter().all(|&b| b == 0xee));
            let end = 333 + size as usize;
            assert!(contents(&p.remote_memory, end, len - end).iter().all(|&b| b == 0xee), "{path} {size}");

            p.local_memory.write(0, &vec![0x11; len]).unwrap();
            batch.push(Request::read(&p.peer, &p.local, l, p.remote.descriptor(), r, size)).unwrap();
            p.a.submit(&mut batch).unwrap().wait().unwrap();
            assert_eq!(contents(&p.local_memory, 100, size as usize), source, "{path} read of {size}");
            assert!(contents(&p.local_memory, 0, 100).iter().all(|&b| b == 0x11));
            let end = 100 + size as usize;
            assert!(contents(&p.local_memory, end, len - end).iter().all(|&b| b == 0x11));
        }
    }
}

#[test]
fn batches_of_many_requests_and_mixed_shapes() {
    for path in PATHS {
        let len = 16 << 20;
        let p = pair(path, len, |b| b);
        let source = pattern(len, 7);
        p.local_memory.write(0, &source).unwrap();
        let mut batch = Batch::new();
        // 128 pages in reverse order, then a strided block, then a scatter.
        let page = 65_536_u64;
        for i in 0..128 {
            let (l, r) = (p.local.addr() + i * page, p.remote.addr() + (127 - i) * page);
            batch.push(Request::write(&p.peer, &p.local, l, p.remote.descriptor(), r, page)).unwrap();
        }
        let base = p.remote.addr() + 128 * page;
        let strided = Shape::Strided { addr: base, block_len: 100, stride: 256, count: 9000 };
        batch
            .push(Request {
                local_shape: Shape::contiguous(p.local.addr(), 900_000),
                remote_shape: strided,
                ..Request::write(&p.peer, &p.local, 0, p.remote.descriptor(), 0, 0)
            })
            .unwrap();
        let scatter_base = base + 9000 * 256;
        let pages: Vec<u64> = (0..5000).map(|i| scatter_base + (i * 7919 % 5000) * 64).collect();
        batch
            .push(Request {
                local_shape: Shape::contiguous(p.local.addr() + 5, 5000 * 64),
                remote_shape: Shape::Paged { page_len: 64, addrs: &pages },
                ..Request::write(&p.peer, &p.local, 0, p.remote.descriptor(), 0, 0)
            })
            .unwrap();
        let handle = p.a.submit(&mut batch).unwrap();
        assert_eq!(handle.len(), 130);
        handle.wait().unwrap();
        for i in 0..128 {
            let at = ((127 - i) * page) as usize;
            let want = &source[(i * page) as usize..][..page as usize];
            assert_eq!(contents(&p.remote_memory, at, page as usize), want, "{path} page {i}");
        }
        for i in 0..9000 {
            let at = (128 * page) as usize + i * 256;
            assert_eq!(contents(&p.remote_memory, at, 100), source[i * 100..][..100], "{path} block {i}");
            assert_eq!(contents(&p.remote_memory, at + 100, 156), [0; 156]);
        }
        // And back, gathered from the scattered pages in one read.
        p.local_memory.write(0, &vec![0; len]).unwrap();
        batch
            .push(Request {
                local_shape: Shape::contiguous(p.local.addr() + 5, 5000 * 64),
                remote_shape: Shape::Paged { page_len: 64, addrs: &pages },
                ..Request::read(&p.peer, &p.local, 0, p.remote.descriptor(), 0, 0)
            })
            .unwrap();
        p.a.submit(&mut batch).unwrap().wait().unwrap();
        assert_eq!(contents(&p.local_memory, 5, 5000 * 64), source[5..5 + 5000 * 64], "{path}");
    }
}

/// All ranges are checked before the first byte is written.
#[test]
fn one_range_outside_and_nothing_is_written() {
    for path in PATHS {
        let p = pair(path, 1 << 20, |b| b);
        p.local_memory.write(0, &[7; 40_000]).unwrap();
        let mut long = p.remote.descriptor();
        long.len += 40_000;
        let ranges = [(long.addr, 20_000), (long.addr + (1 << 20) - 1, 20_000)];
        let request = Request::write(&p.peer, &p.local, p.local.addr(), long, long.addr, 40_000);
        let mut batch = Batch::new();
        batch.push(Request { remote_shape: Shape::Scatter(&ranges), ..request }).unwrap();
        let error = p.a.submit(&mut batch).unwrap().wait().unwrap_err();
        assert!(matches!(error, Error::Refused { reason: Refusal::OutOfBounds, .. }), "{path}: {error}");
        assert!(contents(&p.remote_memory, 0, 1 << 20).iter().all(|&b| b == 0), "{path}: was written to");
    }
}

#[test]
fn refusals_say_why_and_the_connection_goes_on() {
    for path in PATHS {
        let p = pair(path, 1 << 20, |b| b);
        let lanes = p.a.statistics().lanes_opened;
        let read_only = p.b.register(OwnedMemory::new(4096).unwrap(), Access::READ).unwrap();
        let gone = p.b.register(OwnedMemory::new(4096).unwrap(), Access::READ_WRITE).unwrap();
        let gone_descriptor = gone.descriptor();
        gone.revoke();
        let mut lie = read_only.descriptor();
        lie.access = Access::READ_WRITE;
        let mut long = p.remote.descriptor();
        long.len += 4096;
        let mut batch = Batch::new();
        for (descriptor, addr) in [
            (gone_descriptor, gone_descriptor.addr),
            (lie, lie.addr),
            (long, long.addr + (1 << 20) - 1),
            (p.remote.descriptor(), p.remote.addr()),
        ] {
            batch.push(Request::write(&p.peer, &p.local, p.local.addr(), descriptor, addr, 4000)).unwrap();
        }
        let handle = p.a.submit(&mut batch).unwrap();
        let error = handle.wait().unwrap_err();
        assert!(matches!(error, Error::Batch { failed: 3, total: 4, index: 0, .. }), "{path}: {error}");
        let reason = |i| match handle.status(i) {
            Status::Failed(Error::Refused { reason, .. }) => Some(reason),
            Status::Done => None,
            other => panic!("{path}: {other:?}"),
        };
        assert_eq!(reason(0), Some(Refusal::UnknownKey));
        assert_eq!(reason(1), Some(Refusal::AccessDenied));
        assert_eq!(reason(2), Some(Refusal::OutOfBounds));
        assert_eq!(reason(3), None);
        assert_eq!(p.a.statistics().lanes_lost, 0);
        assert!(p.a.statistics().lanes_opened >= lanes);
    }
}

#[test]
fn immediates_notifications_and_calls_arrive_once() {
    for path in PATHS {
        let b_handler = |_: tcp_transport::Caller, request: &[u8]| match request {
            b"fail" => Err("no such thing".to_string()),
            other => Ok(other.iter().rev().copied().collect()),
        };
        let p = pair(path, 8 << 20, |b| b.handler(b_handler));
        let counter = p.b.arrivals().watch(77);
        let mut batch = Batch::new();
        for (immediate, size) in [(1, 10), (77, 4096), (2, 5 << 20), (77, 3 << 20)] {
            let request = Request::write(
                &p.peer,
                &p.local,
                p.local.addr(),
                p.remote.descriptor(),
                p.remote.addr(),
                size,
            );
            batch.push(request.with_immediate(immediate)).unwrap();
        }
        p.a.submit(&mut batch).unwrap().wait().unwrap();
        assert!(counter.wait(2, soon()));
        let mut seen: Vec<_> =
            (0..2).map(|_| p.b.arrivals().next(soon()).unwrap()).map(|a| (a.immediate, a.bytes)).collect();
        seen.sort_unstable();
        assert_eq!(seen, [(1, 10), (2, 5 << 20)], "{path}");
        assert_eq!(p.b.arrivals().try_next(), None);

        p.peer.notify(b"ready", soon()).unwrap();
        let notification = p.b.notifications().next(soon()).unwrap();
        assert_eq!((notification.bytes.as_slice(), notification.session), (&b"ready"[..], p.a.session()));
        assert_eq!(p.b.notifications().try_next(), None);

        assert_eq!(p.peer.call(b"abc", soon()).unwrap(), b"cba");
        let long = pattern(3 << 20, 3);
        assert_eq!(p.peer.call(&long, soon()).unwrap(), long.iter().rev().copied().collect::<Vec<_>>());
        let error = p.peer.call(b"fail", soon()).unwrap_err();
        assert!(matches!(&error, Error::Call { detail, .. } if detail == "no such thing"), "{error}");
    }
}

/// Whichever way the bytes go, both sides count them, and every request once.
#[test]
fn statistics_count_bytes_and_requests() {
    for (path, encrypted) in
        [(Path::Net, false), (Path::Net, true), (Path::Host, false), (Path::Loopback, false)]
    {
        let pair = pair(path, 4 << 20, |builder| match encrypted {
            true => builder.secret("sixteen bytes or more").encryption(Encryption::Full),
            false => builder,
        });
        let before = pair.a.statistics();
        let (l, d) = (pair.local.addr(), pair.remote.descriptor());
        let (peer, local) = (&pair.peer, &pair.local);
        let mut batch = Batch::new();
        batch.push(Request::write(peer, local, l, d, d.addr, 3 << 20)).unwrap();
        batch.push(Request::write(peer, local, l, d, d.addr, 100)).unwrap();
        batch.push(Request::read(peer, local, l, d, d.addr, 5000)).unwrap();
        pair.a.submit(&mut batch).unwrap().wait().unwrap();
        pair.remote.revoke();
        batch.push(Request::write(peer, local, l, d, d.addr, 10)).unwrap();
        pair.a.submit(&mut batch).unwrap().wait().unwrap_err();
        let (ours, theirs) = (pair.a.statistics(), pair.b.statistics());
        assert_eq!((ours.bytes_written, ours.bytes_read), ((3 << 20) + 100, 5000), "{path}");
        assert_eq!(
            (theirs.bytes_served_written, theirs.bytes_served_read),
            ((3 << 20) + 100, 5000),
            "{path}"
        );
        assert_eq!(ours.requests_done - before.requests_done, 3, "{path}");
        assert_eq!((ours.requests_failed, ours.retries, ours.lanes_lost), (1, 0, 0), "{path}");
        // On the loopback path the asking side refuses by itself.
        assert_eq!(theirs.refused, u64::from(path != Path::Loopback), "{path}");
    }
}
