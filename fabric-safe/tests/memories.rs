//! Everything that can be registered, on every provider: bytes go out of it, come into it, and it comes back.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use fabric_safe::{
    Access, Address, DeregisterError, ForeignMemory, Mapping, Memory, PageKind, Part, Region, leaked_objects,
};
use rustix::fs::MemfdFlags;
use support::line::PATIENCE;
use support::node::Node;
use support::{libraries, pattern, skip};

const LEN: usize = 10_000;

/// Two endpoints of this process.
struct Pair {
    near: Node,
    far: Node,
    to: Address,
    token: u64,
}

impl Pair {
    /// Posts a write or a read of all of `local` and waits for its end.
    fn transfer(&mut self, read: bool, local: &Region, remote: &Region) {
        self.token += 1;
        let (slice, remote, token) = (local.as_slice(), remote.remote().at(0), self.token);
        let mut posted = false;
        let start = Instant::now();
        while !self.near.ended.contains_key(&token) {
            if !posted {
                let endpoint = &self.near.endpoint;
                let result = match read {
                    true => endpoint.read(&self.to, slice, remote, token),
                    false => endpoint.write(&self.to, slice, remote, token),
                };
                posted = result.map_err(|error| assert!(error.is_again(), "{error}")).is_ok();
            }
            self.near.poll();
            self.far.poll();
            assert!(start.elapsed() < PATIENCE, "the transfer does not end");
        }
        self.near.good_end(token);
    }

    /// Writes from the memory and reads back into it, with both domains: as source, target and result.
    fn all_ways<M: Memory>(&mut self, name: &str, make: impl Fn() -> M, read_only: bool) -> [M; 2] {
        let access = if read_only { Access::SOURCE } else { Access::ALL };
        let here = self.near.domain.register(make(), access).unwrap();
        let there = self.far.domain.register(make(), access).unwrap();
        let plain_here = self.near.domain.register(vec![0; LEN], Access::ALL).unwrap();
        let plain_there = self.far.domain.register(vec![0; LEN], Access::ALL).unwrap();
        let bytes = |region: &Region| {
            let mut bytes = vec![0; LEN];
            region.copy_out(0, &mut bytes).unwrap();
            bytes
        };
        if !read_only {
            here.copy_in(0, &pattern(1, LEN)).unwrap();
            there.copy_in(0, &pattern(2, LEN)).unwrap();
        }
        let (ours, theirs) = (bytes(&here), bytes(&there));
        // Out of it, by our write and by a read from afar.
        self.transfer(false, &here, &plain_there);
        self.eventually(name, &plain_there, &ours);
        self.transfer(true, &plain_here, &there);
        assert!(bytes(&plain_here) == theirs, "{name}: read from afar");
        if !read_only {
            // Into it, by a write from afar and by our read.
            plain_here.copy_in(0, &pattern(3, LEN)).unwrap();
            self.transfer(false, &plain_here, &there);
            self.eventually(name, &there, &pattern(3, LEN));
            plain_there.copy_in(0, &pattern(4, LEN)).unwrap();
            self.transfer(true, &here, &plain_there);
            assert!(bytes(&here) == pattern(4, LEN), "{name}: our read");
        }
        [here, there].map(|region| region.into_memory().unwrap())
    }

    /// Waits for bytes that have been written, where writes complete before they are visible.
    fn eventually(&mut self, name: &str, region: &Region, expected: &[u8]) {
        let mut bytes = vec![0; LEN];
        let start = Instant::now();
        loop {
            region.copy_out(0, &mut bytes).unwrap();
            if bytes == expected {
                return;
            }
            assert!(!self.near.domain.info().delivery_complete(), "{name}: complete and not there");
            assert!(start.elapsed() < PATIENCE, "{name}: the bytes do not come");
            self.near.poll();
            self.far.poll();
        }
    }
}

/// A file in memory with a pattern in it.
fn file(seed: u64) -> File {
    let mut file = File::from(rustix::fs::memfd_create("fabric-safe", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(&pattern(seed, 4096 + LEN)).unwrap();
    file
}

/// Says when it is dropped.
struct Tell(Arc<AtomicBool>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn on_every_provider(test: &str, body: impl Fn(&str, &mut Pair)) {
    libraries::on_each(test, || {
        for (name, info) in libraries::providers(test) {
            // See tests/properties.rs: both ends of these are in one process here.
            if name == "shm" {
                support::without(test, name, "its two ends crash each other when they are in one process");
                continue;
            }
            let (near, far) = (Node::open(&info), Node::open(&info));
            let to = near.insert(&far.endpoint.name().unwrap());
            let mut pair = Pair { near, far, to, token: 0 };
            body(name, &mut pair);
            drop(pair);
            assert_eq!(leaked_objects(), 0, "{name}");
        }
    });
}

#[test]
fn vectors_boxes_and_mappings() {
    on_every_provider("vectors_boxes_and_mappings", |name, pair| {
        let [here, there] = pair.all_ways(name, || vec![0; LEN], false);
        assert!(here == pattern(4, LEN) && there == pattern(3, LEN), "{name}: comes back as it was left");
        let boxed = || -> Box<dyn Memory> { Box::new(vec![0; LEN]) };
        pair.all_ways(name, boxed, false);
        pair.all_ways(name, || Mapping::anonymous(LEN, PageKind::Small).unwrap(), false);
    });
}

#[test]
fn files() {
    on_every_provider("files", |name, pair| {
        let page = PageKind::Small.bytes() as u64;
        let (source, target) = (file(5), file(6));
        // SAFETY: nobody makes the files shorter.
        let map = |file: &File, writable| unsafe { Mapping::file(file, page, LEN, writable) }.unwrap();
        // What may only be read can only be a source.
        pair.all_ways(name, || map(&source, false), true);
        let refused = pair.near.domain.register(map(&source, false), Access::ALL);
        assert!(refused.is_err(), "{name}: read-only memory as a target");
        // What is written to the mapping is in the file.
        let mappings = pair.all_ways(name, || map(&target, true), false);
        drop(mappings);
        let mut bytes = Vec::new();
        let mut target = target;
        target.rewind().unwrap();
        target.read_to_end(&mut bytes).unwrap();
        let (head, body) = bytes.split_at(page as usize);
        assert!(
            head == &pattern(6, 4096 + LEN)[..head.len()],
            "{name}: bytes before the mapping have changed"
        );
        assert!(body[..LEN] == pattern(4, LEN), "{name}: the file has something else");
    });
}

/// Huge pages from the kernel's reserve, or, for who may, from beyond it as long as the test runs.
#[test]
fn huge_pages() {
    let test = "huge_pages";
    let _more = Overcommit::raise();
    if let Err(error) = Mapping::anonymous(LEN, PageKind::Huge2M) {
        return skip(test, &format!("no huge pages (sysctl vm.nr_hugepages=8): {error}"));
    }
    on_every_provider(test, |name, pair| {
        let mapping = || Mapping::anonymous(LEN, PageKind::Huge2M).unwrap();
        assert_eq!(mapping().address() as usize % PageKind::Huge2M.bytes(), 0);
        pair.all_ways(name, mapping, false);
    });
}

/// Lets the kernel make huge pages beyond its reserve, until it is dropped.
struct Overcommit(Option<String>);

impl Overcommit {
    const FILE: &str = "/proc/sys/vm/nr_overcommit_hugepages";

    fn raise() -> Overcommit {
        let before = std::fs::read_to_string(Self::FILE).ok().filter(|text| text.trim() == "0");
        // Only root may; others take the reserve as it is.
        Overcommit(before.filter(|_| std::fs::write(Self::FILE, "64").is_ok()))
    }
}

impl Drop for Overcommit {
    fn drop(&mut self) {
        if let Some(before) = &self.0 {
            let _ = std::fs::write(Self::FILE, before);
        }
    }
}

#[test]
fn memory_of_others_is_let_go_of_after_deregistration() {
    on_every_provider("memory_of_others_is_let_go_of_after_deregistration", |name, pair| {
        let gone = Arc::new(AtomicBool::new(false));
        let backing = Arc::new(Mapping::anonymous(LEN, PageKind::Small).unwrap());
        let foreign = || {
            let guard = (Tell(gone.clone()), backing.clone());
            // SAFETY: the guard keeps the mapping, and nobody makes references to its bytes.
            unsafe { ForeignMemory::with_guard(backing.address(), LEN, guard) }
        };
        let region = pair.near.domain.register(foreign(), Access::ALL).unwrap();
        let target = pair.far.domain.register(vec![0; LEN], Access::ALL).unwrap();
        pair.transfer(false, &region, &target);
        // A receive that nobody sends to holds the region after its owner has let go.
        pair.near.endpoint.receive(None, region.slice(0..8).unwrap(), 999).unwrap();
        drop(region);
        assert!(!gone.load(Ordering::Relaxed), "{name}: let go of in flight");
        pair.near.endpoint.close().unwrap();
        while !pair.near.ended.contains_key(&999) {
            pair.near.poll();
        }
        assert!(gone.load(Ordering::Relaxed), "{name}: never let go of");
        assert_eq!(Arc::strong_count(&backing), 1);
    });
}

#[test]
fn shared_memory_is_registered_in_parts_and_with_several_domains() {
    on_every_provider("shared_memory_is_registered_in_parts_and_with_several_domains", |name, pair| {
        let whole = Arc::new(Mapping::anonymous(3 * LEN, PageKind::Small).unwrap());
        // One memory, two domains: what one side writes the other side reads.
        let here = pair.near.domain.register(whole.clone(), Access::ALL).unwrap();
        let there = pair.far.domain.register(whole.clone(), Access::ALL).unwrap();
        here.copy_in(0, &pattern(8, LEN)).unwrap();
        let mut bytes = vec![0; LEN];
        there.copy_out(0, &mut bytes).unwrap();
        assert!(bytes == pattern(8, LEN), "{name}");
        // Parts beside each other, with a key each.
        let part = |index: usize| Part::new(whole.clone(), index * LEN..(index + 1) * LEN).unwrap();
        let first = pair.near.domain.register(part(0), Access::ALL).unwrap();
        let last = pair.far.domain.register(part(2), Access::ALL).unwrap();
        pair.transfer(false, &first, &last);
        pair.eventually(name, &last, &pattern(8, LEN));
        let Err(DeregisterError::InUse(first)) = ({
            let clone = first.region().clone();
            let refused = first.into_memory();
            drop(clone);
            refused
        }) else {
            panic!("{name}: given back while a clone lives")
        };
        drop((first.into_memory().unwrap(), last, here, there));
        assert_eq!(Arc::strong_count(&whole), 1, "{name}: something keeps the memory");
    });
}
