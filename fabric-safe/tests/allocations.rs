//! Posting and polling allocate nothing once everything is set up.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use fabric_safe::{
    Access, Capabilities, PostError, PostFlags, ReceiveOptions, SendOptions, Tag, WriteOptions,
};
use support::node::Node;
use support::{libraries, pattern};

/// Counts what this thread allocates in Rust. What providers allocate in C is their business.
struct Counting;

thread_local!(static COUNT: Cell<u64> = const { Cell::new(0) });

// SAFETY: forwards to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.with(|count| count.set(count.get() + 1));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn operations_allocate_nothing() {
    libraries::on_each("operations_allocate_nothing", || {
        for (provider, info) in libraries::providers("operations_allocate_nothing") {
            let (mut near, mut far) = (Node::open(&info), Node::open(&info));
            let to = near.insert(&far.endpoint.name().unwrap());
            let ours = near.domain.register(pattern(1, 1 << 16), Access::ALL).unwrap();
            let theirs = far.domain.register(vec![0; 1 << 16], Access::ALL).unwrap();
            let remote = theirs.remote();
            let slice = ours.slice(0..512).unwrap();
            let tagged = info.capabilities().contains(Capabilities::TAGGED);
            let mut again = 0;
            let mut round = |near: &mut Node, far: &mut Node| {
                let mut ended = 0;
                let mut posted = 0;
                let mut received = 0;
                // As many as go in, so that refusals are among what is counted.
                let mut more = true;
                while more || ended < posted || received < 2 {
                    if more {
                        let message = theirs.slice(0..600).unwrap();
                        let options = ReceiveOptions { tag: Some(Tag::any()), ..Default::default() };
                        far.endpoint.receive(None, message, 0).unwrap();
                        match tagged {
                            true => far.endpoint.receive_with(None, &[message], options, 0).unwrap(),
                            false => far.endpoint.receive(None, message, 0).unwrap(),
                        };
                        let tag = tagged.then_some(5);
                        let messages = [None, tag].map(|tag| SendOptions { tag, ..Default::default() });
                        for options in messages {
                            while let Err(error) = near.endpoint.send_with(&to, &[slice], options, 1) {
                                assert!(error.is_again(), "{error}");
                                ended += near.queue.poll(&mut near.batch).unwrap().len();
                                received += far.queue.poll(&mut far.batch).unwrap().len();
                            }
                            posted += 1;
                        }
                        let mut transmit = near.endpoint.transmit().unwrap();
                        for turn in 0..3000 {
                            let options = WriteOptions::default();
                            let result = match turn % 4 {
                                0 => transmit.write(&to, slice, remote.at(1024), 1),
                                1 => transmit.read(&to, slice, remote.at(1024), 1),
                                2 => transmit.write_with(&to, &[slice, slice], remote.at(0), options, 1),
                                _ => transmit.read_with(&to, &[slice], remote.at(0), PostFlags::empty(), 1),
                            };
                            match result {
                                Ok(_) => posted += 1,
                                Err(PostError::Again) => {
                                    again += 1;
                                    break;
                                }
                                Err(error) => panic!("{error}"),
                            }
                        }
                        more = false;
                    }
                    ended += near.queue.poll(&mut near.batch).unwrap().len();
                    received += far.queue.poll(&mut far.batch).unwrap().len();
                }
            };
            // Connects; libfabric may call back into what Rust has not used before.
            round(&mut near, &mut far);
            COUNT.with(|count| count.set(0));
            for _ in 0..3 {
                round(&mut near, &mut far);
            }
            let count = COUNT.with(Cell::get);
            assert_eq!(count, 0, "{provider} allocated");
            assert!(again > 0, "{provider} never was full");
        }
    });
}
