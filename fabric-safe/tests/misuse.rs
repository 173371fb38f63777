//! What a careless user may do: letting go in any order, from several threads, with operations in flight, with things that do
//! not belong together. Nothing crashes, nothing is lost, nothing leaks.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use fabric_safe::{
    Access, AddressVector, Capabilities, CompletionBatch, CompletionFormat, CompletionQueue,
    CompletionQueueOptions, Direction, Domain, Endpoint, Error, ErrorKind, Fabric, ForeignMemory, Hints,
    Mapping, PageKind, PostError, Usage, WriteOptions, leaked_objects, option,
};
use support::line::PATIENCE;
use support::node::{Node, discover};
use support::{libraries, pattern};

/// One entry is enough for what does not depend on the provider.
fn any_provider(test: &str) -> Option<fabric_safe::Info> {
    let found = ["tcp", "tcp;ofi_rxm", "net", "efa/efa"]
        .into_iter()
        .filter(|name| libraries::wanted(name))
        .find_map(discover);
    if found.is_none() {
        support::skip(test, "no provider here");
    }
    found
}

fn usage<T: std::fmt::Debug>(result: Result<T, PostError>) -> Usage {
    match result {
        Err(PostError::Failed(error)) => match *error {
            Error::Usage(usage) => usage,
            other => panic!("{other}"),
        },
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let test = "what_does_not_fit_together_is_refused";
    libraries::on_each(test, || {
        let Some(info) = any_provider(test) else { return };
        let (near, far) = (Node::open(&info), Node::open(&info));
        let peer = near.insert(&far.endpoint.name().unwrap());
        let region = near.domain.register(vec![0; 4096], Access::ALL).unwrap();
        let foreign = far.domain.register(vec![0; 4096], Access::ALL).unwrap();
        let remote = foreign.remote().at(0);
        let endpoint = &near.endpoint;

        // A region of another domain, an address of another vector.
        let result = endpoint.write(&peer, foreign.as_slice(), remote, 0);
        assert!(matches!(usage(result), Usage::Foreign { what: "memory region", .. }));
        let stranger = far.insert(&near.endpoint.name().unwrap());
        let result = endpoint.write(&stranger, region.as_slice(), remote, 0);
        assert!(matches!(usage(result), Usage::Foreign { what: "address", .. }));

        // Ranges outside, rights that were not asked for.
        assert!(matches!(region.slice(4000..5000), Err(Usage::OutOfRange { .. })));
        #[allow(clippy::reversed_empty_ranges)]
        let reversed = region.slice(5..4);
        assert!(matches!(reversed, Err(Usage::OutOfRange { .. })));
        assert!(matches!(region.copy_in(usize::MAX, &[0; 2]), Err(Usage::OutOfRange { .. })));
        let source = near.domain.register(vec![0; 64], Access::SOURCE).unwrap();
        assert!(matches!(usage(endpoint.read(&peer, source.as_slice(), remote, 0)), Usage::Access { .. }));
        assert!(matches!(usage(endpoint.receive(None, source.as_slice(), 0)), Usage::Access { .. }));

        // More than goes in.
        let bytes = vec![0; info.inject_bytes() + 1];
        assert!(matches!(usage(endpoint.inject_write(&peer, &bytes, remote, None)), Usage::TooLong { .. }));

        // Memory that cannot be registered comes back.
        let empty = near.domain.register(Vec::new(), Access::ALL).unwrap_err();
        assert!(matches!(empty.error, Error::Usage(Usage::BadRange { .. })));
        static CONSTANT: [u8; 64] = [7; 64];
        // SAFETY: the bytes live for ever, and nobody writes to them.
        let constant = unsafe { ForeignMemory::new(CONSTANT.as_ptr().cast_mut(), 64) }.read_only();
        let refused = near.domain.register(constant, Access::ALL).unwrap_err();
        assert!(matches!(refused.error, Error::Usage(Usage::ReadOnly)));
        let constant = near.domain.register(refused.memory, Access::SOURCE).unwrap();
        assert!(matches!(constant.copy_in(0, &[1]), Err(Usage::ReadOnly)));

        // Queues: of another domain, too small, missing.
        let opened = Endpoint::open(&near.domain, &info).unwrap();
        assert!(opened.bind_completion_queue(&far.queue, Direction::Both).is_err());
        let opened = Endpoint::open(&near.domain, &info).unwrap();
        assert!(matches!(opened.enable(), Err(Error::Usage(Usage::Binding(_)))));
        let mut options = CompletionQueueOptions::new(&info);
        options.entries = info.transmit_depth() + info.receive_depth() - 1;
        let queue = CompletionQueue::open(&near.domain, options).unwrap();
        let small = Endpoint::open(&near.domain, &info)
            .unwrap()
            .bind_address_vector(&near.vector)
            .unwrap()
            .bind_completion_queue(&queue, Direction::Both)
            .unwrap()
            .enable();
        assert!(matches!(small, Err(Error::Usage(Usage::QueueTooSmall { .. }))));
        // And then it still can be used by one that fits.
        assert_eq!(queue.poll(&mut CompletionBatch::new(4)).unwrap().len(), 0);

        // Bytes that are no address; options that nobody knows.
        assert!(near.vector.insert(&[]).is_err());
        assert!(near.vector.insert(&[0xff; 4096]).is_err());
        assert!(endpoint.get(option::EFA_EMULATED_WRITE).is_err() || info.provider_name() == "efa");

        // The guard, and the same thread once more.
        let guard = endpoint.transmit().unwrap();
        assert!(matches!(usage(endpoint.write(&peer, region.as_slice(), remote, 0)), Usage::Binding(_)));
        assert!(endpoint.close().is_err());
        drop(guard);
        drop((region, foreign, source, constant, near, far, peer, stranger, queue));
        assert_eq!(leaked_objects(), 0);
    });
}

/// Tells threads to stop when it is dropped.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// A writer, a poller, threads that register and let go, and one that closes in the middle of it.
#[test]
fn many_threads_at_once() {
    let test = "many_threads_at_once";
    libraries::on_each(test, || {
        for (name, info) in libraries::providers(test) {
            // See tests/properties.rs: both ends of these are in one process here.
            if name == "shm" {
                support::without(test, name, "its two ends crash each other when they are in one process");
                continue;
            }
            let (near, far) = (Node::open(&info), Node::open(&info));
            let peer = near.insert(&far.endpoint.name().unwrap());
            let target = far.domain.register(vec![0; 1 << 16], Access::ALL).unwrap();
            let remote = target.remote();
            let (posted, ended) = (AtomicU64::new(0), AtomicU64::new(0));
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // Also if this thread panics.
                let _stop = Stop(&stop);
                for seed in 0..2 {
                    let (near, peer, posted, stop) = (&near, &peer, &posted, &stop);
                    scope.spawn(move || {
                        while !stop.load(Ordering::Relaxed) {
                            // The region is let go of while the write is in flight.
                            let region = near.domain.register(pattern(seed, 256), Access::WRITE).unwrap();
                            match near.endpoint.write(peer, region.as_slice(), remote.at(256 * seed), 1) {
                                Ok(_) => {
                                    posted.fetch_add(1, Ordering::Relaxed);
                                }
                                Err(PostError::Again) => std::thread::yield_now(),
                                Err(PostError::Closed) => return,
                                Err(error) => panic!("{error}"),
                            }
                        }
                    });
                }
                for _ in 0..2 {
                    let (near, far, ended, stop) = (&near, &far, &ended, &stop);
                    scope.spawn(move || {
                        let mut batch = CompletionBatch::new(8);
                        while !stop.load(Ordering::Relaxed) {
                            for completion in near.queue.poll(&mut batch).unwrap() {
                                assert_eq!(completion.token(), Some(1));
                                ended.fetch_add(1, Ordering::Relaxed);
                            }
                            far.queue.poll(&mut CompletionBatch::new(1)).unwrap();
                            std::thread::yield_now();
                        }
                    });
                }
                let start = Instant::now();
                while ended.load(Ordering::Relaxed) < 200 {
                    assert!(start.elapsed() < PATIENCE, "{name}: {posted:?} posted, {ended:?} ended");
                    std::thread::yield_now();
                }
                near.endpoint.close().unwrap();
            });
            let mut batch = CompletionBatch::new(64);
            let start = Instant::now();
            while ended.load(Ordering::Relaxed) < posted.load(Ordering::Relaxed) {
                for completion in near.queue.poll(&mut batch).unwrap() {
                    assert_eq!(completion.result().unwrap_err().kind(), ErrorKind::Aborted);
                    ended.fetch_add(1, Ordering::Relaxed);
                }
                assert!(start.elapsed() < PATIENCE, "{name}: {posted:?} posted, {ended:?} ended");
            }
            assert_eq!(near.queue.poll(&mut batch).unwrap().len(), 0);
            assert_eq!(ended.into_inner(), posted.into_inner(), "{name}");
            drop((near, far, peer, target));
            assert_eq!(leaked_objects(), 0, "{name}");
        }
    });
}

/// Waiting sleeps until there is something, until the time is over, or until somebody signals.
#[test]
fn waiting() {
    let test = "waiting";
    libraries::on_each(test, || {
        let mut waited = 0;
        for (name, info) in libraries::providers(test) {
            let fabric = Fabric::open(&info).unwrap();
            let domain = Domain::open(&fabric, &info).unwrap();
            let mut options = CompletionQueueOptions::new(&info);
            options.wait = true;
            if CompletionQueue::open(&domain, options).is_err() {
                // No wait object: says so when asked. As the crate's documentation has it.
                assert!(["shm", "udp;ofi_rxd"].contains(&name), "{name}");
                let node = Node::open(&info);
                let mut batch = CompletionBatch::new(1);
                assert!(node.queue.wait(&mut batch, Duration::ZERO).is_err());
                continue;
            }
            let mut near = Node::open_with(&info, options);
            let far = Node::open_with(&info, options);
            let start = Instant::now();
            assert_eq!(
                near.queue.wait(&mut near.batch, Duration::from_millis(20)).unwrap().len(),
                0,
                "{name}"
            );
            assert!(start.elapsed() >= Duration::from_millis(20), "{name}");
            // A signal before is not lost.
            near.queue.signal();
            near.queue.wait(&mut near.batch, PATIENCE).unwrap();
            std::thread::scope(|scope| {
                let queue = &near.queue;
                let sleeper = scope.spawn(move || {
                    let mut batch = CompletionBatch::new(1);
                    queue.wait(&mut batch, PATIENCE).unwrap().len()
                });
                queue.signal();
                assert_eq!(sleeper.join().unwrap(), 0, "{name}");
            });
            // Both sides sleep through a message.
            let peer = near.insert(&far.endpoint.name().unwrap());
            let target = far.domain.register(vec![0; 64], Access::ALL).unwrap();
            let source = near.domain.register(pattern(1, 64), Access::ALL).unwrap();
            far.endpoint.receive(None, target.as_slice(), 1).unwrap();
            let received = AtomicBool::new(false);
            std::thread::scope(|scope| {
                let (far, received) = (&far, &received);
                scope.spawn(move || {
                    let mut batch = CompletionBatch::new(4);
                    while far.queue.wait(&mut batch, PATIENCE).unwrap().is_empty() {}
                    received.store(true, Ordering::Release);
                });
                near.post(|endpoint| endpoint.send(&peer, source.as_slice(), 2));
                let start = Instant::now();
                while !(received.load(Ordering::Acquire) && near.ended.contains_key(&2)) {
                    near.queue.wait(&mut near.batch, Duration::from_millis(10)).unwrap();
                    let ends: Vec<_> =
                        near.batch.completions().iter().map(|c| (c.token(), c.into())).collect();
                    near.ended.extend(ends.into_iter().filter_map(|(token, end)| Some((token?, end))));
                    assert!(start.elapsed() < PATIENCE, "{name}");
                }
            });
            assert_eq!(target.into_memory().unwrap(), pattern(1, 64), "{name}");
            // Closing wakes up who waits.
            let spare = far.domain.register(vec![0; 64], Access::ALL).unwrap();
            far.endpoint.receive(None, spare.as_slice(), 3).unwrap();
            std::thread::scope(|scope| {
                let queue = &far.queue;
                let sleeper = scope.spawn(move || {
                    let mut batch = CompletionBatch::new(4);
                    while queue.wait(&mut batch, PATIENCE).unwrap().is_empty() {}
                    batch.completions()[0].result().map_err(|error| error.kind())
                });
                far.endpoint.close().unwrap();
                assert_eq!(sleeper.join().unwrap(), Err(ErrorKind::Aborted), "{name}");
            });
            waited += 1;
        }
        assert!(waited > 0 || !libraries::wanted("tcp"), "no provider could be waited on");
    });
}

/// Clones of a region and of an address keep what they name; the same bytes are one address.
#[test]
fn handles_keep_what_they_name() {
    let test = "handles_keep_what_they_name";
    libraries::on_each(test, || {
        let Some(info) = any_provider(test) else { return };
        let mut near = Node::open(&info);
        let mut far = Node::open(&info);
        let name = far.endpoint.name().unwrap();
        let one = near.insert(&name);
        let two = near.insert(&name);
        assert_eq!(one.source(), two.source());
        assert_eq!(&*one.lookup().unwrap(), &*name);
        drop(one);
        let memory = Mapping::anonymous(8192, PageKind::Small).unwrap();
        let region = near.domain.register(memory, Access::ALL).unwrap();
        let clone = region.region().clone();
        let Err(fabric_safe::DeregisterError::InUse(region)) = region.into_memory() else {
            panic!("memory was given back while a clone of its region lives");
        };
        drop(region);
        clone.copy_in(0, &pattern(4, 100)).unwrap();
        let target = far.domain.register(vec![0; 100], Access::ALL).unwrap();
        let remote = target.remote().at(0);
        let slice = clone.slice(0..100).unwrap();
        let start = Instant::now();
        while let Err(error) = near.endpoint.write_with(&two, &[slice], remote, WriteOptions::default(), 9) {
            assert!(error.is_again(), "{error}");
            near.poll();
            far.poll();
            assert!(start.elapsed() < PATIENCE);
        }
        while !near.ended.contains_key(&9) {
            near.poll();
            far.poll();
            assert!(start.elapsed() < PATIENCE);
        }
        near.good_end(9);
        assert_eq!(target.into_memory().unwrap(), pattern(4, 100));
        // Everything but one handle goes; what it stands on stays.
        let Node { endpoint, queue, vector, domain, .. } = near;
        drop((domain, vector, queue, endpoint));
        assert_eq!(&*two.lookup().unwrap(), &*name);
        clone.copy_in(0, &[1]).unwrap();
        drop((clone, two, far));
        assert_eq!(leaked_objects(), 0);
    });
}

/// Vectors of addresses: each stands for itself.
#[test]
fn batches_of_addresses() {
    let test = "batches_of_addresses";
    libraries::on_each(test, || {
        let Some(info) = any_provider(test) else { return };
        let nodes: Vec<_> = (0..3).map(|_| Node::open(&info)).collect();
        let names: Vec<_> = nodes.iter().map(|node| node.endpoint.name().unwrap().to_vec()).collect();
        let vector = AddressVector::open(&nodes[0].domain, Default::default()).unwrap();
        let asked = [names[0].clone(), Vec::new(), names[1].clone(), names[2].clone()];
        let inserted = vector.insert_batch(&asked);
        assert!(inserted[1].is_err());
        for (index, name) in [(0, &names[0]), (2, &names[1]), (3, &names[2])] {
            assert_eq!(&*inserted[index].as_ref().unwrap().lookup().unwrap(), &name[..]);
        }
    });
}

/// Counters and event queues, where the provider has them.
#[test]
fn counters_and_events() {
    let test = "counters_and_events";
    libraries::on_each(test, || {
        let mut counted = 0;
        for (name, info) in libraries::providers(test) {
            if name == "shm" {
                support::without(test, name, "its two ends crash each other when they are in one process");
                continue;
            }
            let fabric = Fabric::open(&info).unwrap();
            let domain = Domain::open(&fabric, &info).unwrap();
            if let Ok(events) = fabric_safe::EventQueue::open(&fabric) {
                assert!(events.read().unwrap().is_none());
                let mut event = events.write(&fabric_safe::Event::new(77, 1234));
                if event.is_ok() {
                    let read = events.wait(PATIENCE).unwrap().unwrap().unwrap();
                    assert_eq!((read.number, read.data), (77, 1234), "{name}");
                    event = events.write(&fabric_safe::Event::new(78, 1));
                }
                drop(event);
                assert!(events.wait(Duration::from_millis(1)).is_ok());
            }
            let Ok(counter) = fabric_safe::Counter::open(&domain) else { continue };
            let queue = CompletionQueue::open(&domain, CompletionQueueOptions::new(&info)).unwrap();
            let vector = AddressVector::open(&domain, Default::default()).unwrap();
            let endpoint = Endpoint::open(&domain, &info)
                .unwrap()
                .bind_address_vector(&vector)
                .unwrap()
                .bind_completion_queue(&queue, Direction::Both)
                .unwrap()
                .bind_counter(&counter, fabric_safe::CounterEvents::WRITE);
            let Ok(endpoint) = endpoint.and_then(Endpoint::enable) else { continue };
            let mut far = Node::open(&info);
            let peer = vector.insert(&far.endpoint.name().unwrap()).unwrap();
            let target = far.domain.register(vec![0; 64], Access::ALL).unwrap();
            let source = domain.register(pattern(2, 64), Access::ALL).unwrap();
            let mut batch = CompletionBatch::new(4);
            let start = Instant::now();
            while let Err(error) = endpoint.write(&peer, source.as_slice(), target.remote().at(0), 1) {
                assert!(error.is_again(), "{error}");
                queue.poll(&mut batch).unwrap();
                far.poll();
                assert!(start.elapsed() < PATIENCE);
            }
            while counter.value() < 1 {
                queue.poll(&mut batch).unwrap();
                far.poll();
                assert!(start.elapsed() < PATIENCE, "{name}: the counter does not count");
            }
            assert!(counter.wait(1, Duration::ZERO).unwrap());
            let start = Instant::now();
            assert!(!counter.wait(2, Duration::from_millis(5)).unwrap());
            assert!(start.elapsed() >= Duration::from_millis(5), "{name}: did not wait");
            // One thread sleeps until another one's operation has ended.
            std::thread::scope(|scope| {
                let sleeper = scope.spawn(|| counter.wait(2, PATIENCE));
                let mut posted = false;
                while !sleeper.is_finished() {
                    let slice = source.as_slice();
                    posted = posted || endpoint.write(&peer, slice, target.remote().at(0), 2).is_ok();
                    queue.poll(&mut batch).unwrap();
                    far.poll();
                    assert!(start.elapsed() < PATIENCE, "{name}: nobody wakes up");
                }
                assert!(sleeper.join().unwrap().unwrap(), "{name}");
            });
            // Numbers of our own; some providers write them down a little later.
            counter.set(40).and_then(|()| counter.add(2)).unwrap();
            while counter.value() != 42 {
                queue.poll(&mut batch).unwrap();
                assert!(start.elapsed() < PATIENCE, "{name}: {} instead of 42", counter.value());
            }
            assert_eq!(counter.errors(), 0);
            counted += 1;
        }
        assert!(counted > 0 || !libraries::wanted("tcp"), "no provider has counters");
    });
}

/// Completions of receives say who sent, where that was asked for; in every format.
#[test]
fn completions_say_who_sent_in_every_format() {
    let test = "completions_say_who_sent_in_every_format";
    libraries::on_each(test, || {
        let mut told = 0;
        let formats = [
            CompletionFormat::Context,
            CompletionFormat::Message,
            CompletionFormat::Data,
            CompletionFormat::Tagged,
        ];
        for name in
            ["tcp", "tcp;ofi_rxm", "net", "sockets"].into_iter().filter(|name| libraries::wanted(name))
        {
            let capabilities =
                Capabilities::MSG | Capabilities::RMA | Capabilities::TAGGED | Capabilities::SOURCE;
            let hints = Hints::new().provider(name).capabilities(capabilities).source("127.0.0.1", None);
            let infos = hints.discover().unwrap();
            let Some(info) = infos.into_iter().find(|info| info.provider_name() == name) else { continue };
            for format in formats {
                let mut options = CompletionQueueOptions::new(&info);
                (options.format, options.sources) = (format, true);
                let (mut near, mut far) = (Node::open(&info), Node::open_with(&info, options));
                assert_eq!(far.queue.format(), format);
                let to = near.insert(&far.endpoint.name().unwrap());
                let from = far.insert(&near.endpoint.name().unwrap());
                let inbox = far.domain.register(vec![0; 64], Access::ALL).unwrap();
                let message = near.domain.register(pattern(3, 64), Access::ALL).unwrap();
                far.endpoint.receive(None, inbox.as_slice(), 5).unwrap();
                let (start, mut posted, mut source) = (Instant::now(), false, None);
                while source.is_none() {
                    posted = posted || near.endpoint.send(&to, message.slice(0..40).unwrap(), 6).is_ok();
                    near.poll();
                    if let [completion] = far.queue.poll(&mut far.batch).unwrap() {
                        assert_eq!(completion.token(), Some(5), "{name}");
                        assert_eq!(
                            completion.len_bytes(),
                            if format == formats[0] { 0 } else { 40 },
                            "{name}"
                        );
                        source = Some(completion.source());
                    }
                    assert!(start.elapsed() < PATIENCE, "{name}: the message does not come");
                }
                assert_eq!(source.flatten(), Some(from.source()), "{name}");
                told += 1;
            }
        }
        assert!(told > 0 || !libraries::wanted("tcp;ofi_rxm"), "no provider says who sent");
    });
}
