//! Real bytes between two processes, over every provider that is here.

mod common;

use std::time::{Duration, Instant};

use common::{Target, checksum, config, eventually, memory, open, pattern, providers, serve, soon};
use efa_transport::{Batch, Op, Request, Shape, Status, Transport};

/// Not a test: the target's process, when the tests below start it.
#[test]
fn target_process() {
    serve();
}

const LEN: usize = 8 << 20;

/// What the target's memory should be, compared with what it is after every step.
struct Model {
    bytes: Vec<u8>,
    sharp: bool,
}

impl Model {
    fn check(&self, target: &mut Target, what: &str) {
        let expected = checksum(&self.bytes);
        if self.sharp {
            assert_eq!(target.checksum(), expected, "{what}");
        } else {
            // Completion is not visibility here; but it must come true.
            eventually(what, || target.checksum() == expected);
        }
    }
}

fn each_provider(test: &str, nics: usize, run: impl Fn(&str, Transport, usize)) {
    for provider in providers() {
        let name = format!("{test} over {provider}");
        if let Some(transport) = open(&name, config(provider, nics, "initiator")) {
            eprintln!("{name}");
            run(provider, transport, nics);
        }
    }
}

/// Catches: bytes beside the range, remainders dropped, wrong offsets after a seam, sizes around the limits, reads of stale
/// data, pages that are swapped.
#[test]
fn bytes_arrive_exactly_and_nothing_else_changes() {
    each_provider("bytes_arrive_exactly", 2, |provider, transport, nics| {
        let mut target = Target::start(provider, nics, "target", LEN);
        let peer = target.meet(&transport);
        let region = memory(&transport, LEN);
        let warm = transport.warm_up(peer, soon()).expect("warming up");
        assert!(warm.rails >= nics && warm.failed.is_empty(), "{warm:?}");
        let mut model = Model { bytes: pattern(LEN, 1), sharp: transport.describe().delivery_complete };
        target.fill(1);
        let source = pattern(LEN, 2);
        region.write(0, &source).expect("our memory");
        let mut batch = Batch::new();
        let sizes =
            [1, 2, 7, 64, 4095, 4096, 4097, 65_536, 262_143, 262_144, 262_145, (1 << 20) + 1, 5_000_003];
        for (round, len) in sizes.into_iter().enumerate() {
            for (from, to) in [(0, 0), (round * 3 + 1, 4097 - round), (LEN - len, LEN - len - round)] {
                let request = Request::write(
                    peer,
                    &region,
                    region.addr() + from as u64,
                    target.addr + to as u64,
                    len as u64,
                );
                batch.push(request).expect("a request");
                transport.submit(&mut batch).expect("submitting").wait().expect("a write");
                model.bytes[to..to + len].copy_from_slice(&source[from..from + len]);
                model.check(&mut target, &format!("{provider}: a write of {len} bytes to {to}"));
            }
        }
        // And back: what was read is what the target has, and nothing beside it has changed here.
        for (round, len) in sizes.into_iter().enumerate() {
            region.write(0, &source).expect("our memory");
            let (to, from) = (round * 5 + 2, LEN - len - 3 * round);
            let request = Request::read(
                peer,
                &region,
                region.addr() + to as u64,
                target.addr + from as u64,
                len as u64,
            );
            batch.push(request).expect("a request");
            transport.submit(&mut batch).expect("submitting").wait().expect("a read");
            let mut expected = source.clone();
            expected[to..to + len].copy_from_slice(&model.bytes[from..from + len]);
            let mut seen = vec![0; LEN];
            region.read(0, &mut seen).expect("our memory");
            assert!(seen == expected, "{provider}: a read of {len} bytes");
        }
        transport.shutdown(soon());
    });
}

/// Catches: pages matched in the wrong order, blocks of a stride shifted, ranges of different grain on the two sides.
#[test]
fn every_shape_against_every_shape() {
    each_provider("every_shape", 3, |provider, transport, nics| {
        let mut target = Target::start(provider, nics, "target", LEN);
        let peer = target.meet(&transport);
        let region = memory(&transport, LEN);
        let mut model = Model { bytes: pattern(LEN, 3), sharp: transport.describe().delivery_complete };
        target.fill(3);
        const BYTES: u64 = 64 * 12_288;
        let shapes = |base: u64| {
            let pages: Vec<u64> = (0..64).map(|page| base + (page * 37 % 64) * 16_384 + 9).collect();
            let ranges: Vec<(u64, u64)> =
                (0..48).map(|n| (base + n * 30_000 + n, BYTES / 48)).rev().collect();
            (pages, ranges)
        };
        let (local_pages, local_ranges) = shapes(region.addr());
        let (remote_pages, remote_ranges) = shapes(target.addr);
        fn all<'a>(base: u64, pages: &'a [u64], ranges: &'a [(u64, u64)]) -> [Shape<'a>; 4] {
            [
                Shape::contiguous(base + 77, BYTES),
                Shape::Paged { page_len: 12_288, addrs: pages },
                Shape::Strided { addr: base + 5, block_len: 6_144, stride: 10_001, count: 128 },
                Shape::Scatter(ranges),
            ]
        }
        fn addresses(shape: &Shape<'_>) -> Vec<(u64, u64)> {
            match *shape {
                Shape::Contiguous { addr, len } => vec![(addr, len)],
                Shape::Paged { page_len, addrs } => addrs.iter().map(|&addr| (addr, page_len)).collect(),
                Shape::Strided { addr, block_len, stride, count } => {
                    (0..count).map(|block| (addr + block * stride, block_len)).collect()
                }
                Shape::Scatter(ranges) => ranges.to_vec(),
            }
        }
        let mut batch = Batch::new();
        let mut seed = 10;
        for local_shape in all(region.addr(), &local_pages, &local_ranges) {
            for remote_shape in all(target.addr, &remote_pages, &remote_ranges) {
                seed += 1;
                let source = pattern(LEN, seed);
                region.write(0, &source).expect("our memory");
                let request = Request {
                    op: Op::Write,
                    peer,
                    local: &region,
                    local_shape,
                    remote_shape,
                    immediate: None,
                };
                batch.push(request).expect("a request");
                transport.submit(&mut batch).expect("submitting").wait().expect("a write");
                let bytes = addresses(&local_shape).into_iter().flat_map(|(addr, len)| {
                    let at = (addr - region.addr()) as usize;
                    source[at..at + len as usize].to_vec()
                });
                let mut bytes = bytes.collect::<Vec<u8>>().into_iter();
                for (addr, len) in addresses(&remote_shape) {
                    let at = (addr - target.addr) as usize;
                    model.bytes[at..at + len as usize].fill_with(|| bytes.next().expect("as many"));
                }
                model.check(&mut target, &format!("{provider}: {local_shape:?} to {remote_shape:?}"));
            }
        }
        transport.shutdown(soon());
    });
}

/// Catches: an immediate that overtakes its bytes, that is lost, or that counts twice.
#[test]
fn immediates_arrive_once_and_after_their_bytes() {
    each_provider("immediates", 2, |provider, transport, nics| {
        let mut target = Target::start(provider, nics, "target", LEN);
        let peer = target.meet(&transport);
        let region = memory(&transport, LEN);
        if transport.describe().nics.iter().any(|nic| nic.immediate_bytes < 4) {
            eprintln!("SKIP: immediates over {provider}: not offered");
            return;
        }
        let mut batch = Batch::new();
        let mut count = 0;
        for (round, len) in [1, 4096, 3 << 20, LEN].into_iter().enumerate() {
            let source = pattern(LEN, 50 + round as u64);
            region.write(0, &source).expect("our memory");
            target.fill(99);
            let request = Request::write(peer, &region, region.addr(), target.addr, len as u64);
            batch.push(request.with_immediate(7)).expect("a request");
            let handle = transport.submit(&mut batch).expect("submitting");
            handle.wait().expect("a write with an immediate");
            count += 1;
            assert_eq!(target.arrivals(7, count), count, "{provider}: {len} bytes");
            let mut expected = pattern(LEN, 99);
            expected[..len].copy_from_slice(&source[..len]);
            Model { bytes: expected, sharp: transport.describe().delivery_complete }
                .check(&mut target, "the bytes of a write whose immediate has arrived");
        }
        assert_eq!(target.arrivals(8, 0), 0, "another value");
        transport.shutdown(soon());
    });
}

/// Catches: requests that hang when a peer dies, errors that do not say whose, late ends.
#[test]
fn a_killed_target_fails_requests_by_their_deadline_and_by_name() {
    each_provider("killed_target", 2, |provider, transport, nics| {
        let mut target = Target::start(provider, nics, "the-target", LEN);
        let (peer, addr) = (target.meet(&transport), target.addr);
        let region = memory(&transport, LEN);
        let mut batch = Batch::new();
        let mut put = |deadline: Duration| {
            batch.set_deadline(deadline);
            for page in 0..64 {
                let at = page * 65_536;
                batch
                    .push(Request::write(peer, &region, region.addr() + at, addr + at, 65_536))
                    .expect("a request");
            }
            transport.submit(&mut batch).expect("submitting")
        };
        put(common::PATIENCE).wait().expect("while it lives");
        target.kill();
        // That it ends by its deadline, as closely as the machine lets it, is shown in `deadlines.rs`.
        let handle = put(Duration::from_secs(2));
        let outcome = handle.wait_until(soon()).expect("an end by the deadline");
        // Shared memory and a socket whose buffers have room take writes that nobody reads; but not for ever.
        if let Err(error) = &outcome {
            assert!(error.to_string().contains("the-target"), "{provider}: {error}");
        } else {
            eprintln!("{provider}: writes to a dead process completed");
        }
        for index in 0..handle.len() {
            assert!(!matches!(handle.status(index), Status::Pending));
        }
        transport.shutdown(Instant::now() + Duration::from_secs(2));
    });
}

/// Catches: addresses and keys of a dead process that are still used; requests for the old process that reach the new one.
#[test]
fn a_restarted_target_is_reached_by_the_next_batch() {
    each_provider("restarted_target", 2, |provider, transport, nics| {
        let region = memory(&transport, LEN);
        let mut batch = Batch::new();
        let mut peers = Vec::new();
        for life in 0..3 {
            let mut target = Target::start(provider, nics, "phoenix", LEN);
            let peer = target.meet(&transport);
            let source = pattern(LEN, 70 + life);
            region.write(0, &source).expect("our memory");
            batch
                .push(Request::write(peer, &region, region.addr(), target.addr, LEN as u64))
                .expect("a request");
            transport.submit(&mut batch).expect("submitting").wait().expect("the next batch");
            Model { bytes: source, sharp: transport.describe().delivery_complete }
                .check(&mut target, &format!("{provider}: life {life}"));
            peers.push(peer);
            target.kill();
        }
        assert!(peers.windows(2).all(|pair| pair[0] == pair[1]), "the same name is the same peer");
        transport.shutdown(soon());
    });
}

/// Catches: a descriptor that is not taken in anew; writes into memory that the peer has unregistered.
#[test]
fn memory_registered_later_is_reached_and_old_memory_is_not() {
    each_provider("registered_later", 2, |provider, transport, nics| {
        let mut target = Target::start(provider, nics, "target", LEN);
        let peer = target.meet(&transport);
        let region = memory(&transport, LEN);
        let source = pattern(LEN, 90);
        region.write(0, &source).expect("our memory");
        let mut batch = Batch::new();
        for _ in 0..3 {
            let old = target.addr;
            target.register_again();
            assert_eq!(target.meet(&transport), peer);
            batch
                .push(Request::write(peer, &region, region.addr(), target.addr, LEN as u64))
                .expect("a request");
            if old != target.addr {
                batch.push(Request::write(peer, &region, region.addr(), old, 1)).expect("a request");
            }
            let handle = transport.submit(&mut batch).expect("submitting");
            let _ = handle.wait();
            assert!(matches!(handle.status(0), Status::Done), "{provider}: {:?}", handle.status(0));
            if old != target.addr && old.abs_diff(target.addr) >= LEN as u64 {
                assert!(matches!(handle.status(1), Status::Failed(_)), "{provider}: {:?}", handle.status(1));
            }
            let sharp = transport.describe().delivery_complete;
            Model { bytes: source.clone(), sharp }.check(&mut target, "the new memory");
        }
        transport.shutdown(soon());
    });
}

/// Catches: lost wake-ups between threads that submit, wait, poll and await at the same time; mixed-up batches.
#[test]
fn many_threads_share_one_transport() {
    each_provider("many_threads", 2, |provider, transport, nics| {
        let mut target = Target::start(provider, nics, "target", LEN);
        let peer = target.meet(&transport);
        let region = memory(&transport, LEN);
        target.fill(5);
        const THREADS: usize = 4;
        const SHARE: usize = LEN / THREADS;
        let source = pattern(LEN, 6);
        region.write(0, &source).expect("our memory");
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (transport, region, addr) = (&transport, &region, target.addr);
                scope.spawn(move || {
                    let mut batch = Batch::new();
                    let page = SHARE / 32;
                    for round in 0..8 {
                        for index in 0..4 {
                            let at = (thread * SHARE + (round * 4 + index) * page) as u64;
                            let request =
                                Request::write(peer, region, region.addr() + at, addr + at, page as u64);
                            batch.push(request).expect("a request");
                        }
                        let handle = transport.submit(&mut batch).expect("submitting");
                        let outcome = match thread {
                            0 => loop {
                                if let Some(outcome) = handle.poll() {
                                    break outcome;
                                }
                            },
                            1 => block_on(handle),
                            _ => handle.wait(),
                        };
                        outcome.expect("a write");
                    }
                });
            }
        });
        let sharp = transport.describe().delivery_complete;
        Model { bytes: source, sharp }.check(&mut target, &format!("{provider}: all shares"));
        transport.shutdown(soon());
    });
}

/// Runs a future on this thread, asleep while it is pending.
fn block_on<F: Future>(future: F) -> F::Output {
    struct Unpark(std::thread::Thread);
    impl std::task::Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = std::sync::Arc::new(Unpark(std::thread::current())).into();
    let mut context = std::task::Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    let deadline = soon();
    loop {
        match future.as_mut().poll(&mut context) {
            std::task::Poll::Ready(output) => return output,
            std::task::Poll::Pending => {
                assert!(Instant::now() < deadline, "never woken");
                std::thread::park_timeout(Duration::from_secs(1));
            }
        }
    }
}
