//! The steps that both processes take together: every operation, with the data checked.

use std::time::Instant;

use fabric_safe::{
    Access, Capabilities, MemoryRegion, OperationKind, PostError, PostFlags, ReceiveOptions, SendOptions,
    Tag, WriteOptions, option,
};

use crate::side::{LARGE, MARGIN, Side};
use crate::support::line::PATIENCE;
use crate::support::pattern;

/// One of the things to do together.
type Step = fn(&mut Side);

impl Side {
    /// Every operation, one step after the other.
    pub(crate) fn everything(&mut self, provider: &str) {
        let steps: [(&str, Step); 11] = [
            ("messages", Side::messages),
            ("tagged messages", Side::tagged_messages),
            ("injected messages", Side::injected_messages),
            ("writes", Side::writes),
            ("reads", Side::reads),
            ("vectors", Side::vectors),
            ("immediates", Side::immediates),
            ("atomics", Side::atomics),
            ("more to come", Side::more_to_come),
            ("saturation", Side::saturation),
            ("closing", Side::closing),
        ];
        for (name, step) in steps {
            let start = Instant::now();
            step(self);
            assert!(self.node.troubles.is_empty(), "{name}: {:?}", self.node.troubles);
            if std::env::var_os(LARGE).is_some() && self.target {
                eprintln!("  {provider}: {name} {:?}", start.elapsed());
            }
        }
    }

    fn messages(&mut self) {
        // Messages may be far shorter than writes (EFA's own fabric: one packet).
        let longest = self.node.endpoint.get(option::MAX_MESSAGE_BYTES).unwrap_or(usize::MAX);
        for size in self.sizes(longest.min(16 << 20)) {
            let token = self.token();
            let peer = self.peer.clone();
            if self.target {
                let region = self.register(vec![0; size + 5]);
                self.node.post(|e| e.receive(None, region.slice(0..size + 5).unwrap(), token));
                self.together();
                let end = self.node.good_end(token);
                assert_eq!((end.kind, end.len_bytes), (OperationKind::Receive, size));
                let bytes = region.into_memory().unwrap();
                assert!(bytes[..size] == pattern(size as u64, size), "{size} bytes received wrong");
                assert_eq!(bytes[size..], [0; 5]);
            } else {
                let region = self.register(pattern(size as u64, size));
                self.together();
                self.node.post(|e| e.send(&peer, region.as_slice(), token));
                assert_eq!(self.node.good_end(token).kind, OperationKind::Send);
            }
            self.together();
        }
    }

    fn tagged_messages(&mut self) {
        if !self.capabilities.contains(Capabilities::TAGGED) {
            return;
        }
        let (one, two) = (self.token(), self.token());
        let peer = self.peer.clone();
        let region = self.register(pattern(9, 200));
        if self.target {
            // The second message meets the first receive, because the tags say so.
            for (token, tag, at) in [(two, 22, 100), (one, 11, 0)] {
                let options = ReceiveOptions { tag: Some(Tag::exactly(tag)), ..Default::default() };
                self.node
                    .post(|e| e.receive_with(None, &[region.slice(at..at + 100).unwrap()], options, token));
            }
            self.together();
            assert_eq!(self.node.good_end(one).len_bytes, 50);
            let end = self.node.good_end(two);
            assert_eq!(end.len_bytes, 60);
            assert!(end.tag.is_none_or(|tag| tag == 22), "{end:?}");
            let mut bytes = [0; 60];
            region.copy_out(100, &mut bytes).unwrap();
            assert_eq!(bytes, pattern(9, 200)[50..110]);
        } else {
            self.together();
            for (token, tag, range) in [(one, 11, 0..50), (two, 22, 50..110)] {
                let options = SendOptions { tag: Some(tag), ..Default::default() };
                self.node
                    .post(|e| e.send_with(&peer, &[region.slice(range.clone()).unwrap()], options, token));
                self.node.good_end(token);
            }
        }
        self.together();
    }

    fn injected_messages(&mut self) {
        let size = self.node.endpoint.info().inject_bytes().min(48);
        let immediate = self.node.endpoint.info().immediate_bytes() > 0;
        let token = self.token();
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0; 48]);
            self.node.post(|e| e.receive(None, region.as_slice(), token));
            self.together();
            let end = self.node.good_end(token);
            assert_eq!(end.len_bytes, size);
            assert_eq!(end.immediate, immediate.then_some(0x1234_5678));
            assert_eq!(region.into_memory().unwrap()[..size], pattern(3, size));
        } else {
            self.together();
            let mut bytes = pattern(3, size);
            let options = SendOptions { immediate: immediate.then_some(0x1234_5678), ..Default::default() };
            self.node.post(|e| e.inject(&peer, &bytes, options));
            // Free to be reused as soon as the call has returned.
            bytes.fill(0);
            self.node.poll();
        }
        self.together();
    }

    /// The target waits until the bytes are there (at once, where writes complete when visible), and checks that nothing
    /// around them has changed.
    fn check_written(&mut self, region: &MemoryRegion<Vec<u8>>, seed: u64, size: usize) {
        let expected = pattern(seed, size);
        let mut bytes = vec![0; 1 << 20];
        let mut same = |at: usize| {
            let len = bytes.len().min(size - at);
            region.copy_out(MARGIN + at, &mut bytes[..len]).unwrap();
            bytes[..len] == expected[at..at + len]
        };
        let start = Instant::now();
        for at in (0..size).step_by(1 << 20) {
            while !same(at) {
                assert!(
                    !self.node.endpoint.info().delivery_complete(),
                    "a write of {size} bytes completed before the bytes were there"
                );
                assert!(start.elapsed() < PATIENCE, "the bytes of a write do not come");
                self.node.poll();
            }
        }
        let mut margins = [0; 2 * MARGIN];
        region.copy_out(0, &mut margins[..MARGIN]).unwrap();
        region.copy_out(MARGIN + size, &mut margins[MARGIN..]).unwrap();
        assert_eq!(margins, [0xee; 2 * MARGIN]);
    }

    fn writes(&mut self) {
        for size in self.sizes(1 << 30) {
            let peer = self.peer.clone();
            if self.target {
                let region = self.register(vec![0xee; size + 2 * MARGIN]);
                self.tell(&region.remote().to_bytes());
                self.hear();
                self.check_written(&region, size as u64, size);
            } else {
                let region = self.register(pattern(size as u64, size));
                let remote = self.remote();
                assert_eq!(remote.len_bytes, (size + 2 * MARGIN) as u64);
                let token = self.token();
                self.node.post(|e| e.write(&peer, region.as_slice(), remote.at(MARGIN as u64), token));
                assert_eq!(self.node.good_end(token).kind, OperationKind::Write);
                self.tell(b"written");
            }
            self.together();
        }
        // A few bytes without a completion, where writes can be injected at all (on EFA's own fabric they cannot).
        let endpoint = &self.node.endpoint;
        let size = endpoint.get(option::INJECT_RMA_BYTES).unwrap_or(endpoint.info().inject_bytes()).min(32);
        if size == 0 {
            return;
        }
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0xee; size + 2 * MARGIN]);
            self.tell(&region.remote().to_bytes());
            let start = Instant::now();
            let mut bytes = vec![0; size];
            while bytes != pattern(5, size) {
                self.node.poll();
                region.copy_out(MARGIN, &mut bytes).unwrap();
                assert!(start.elapsed() < PATIENCE, "injected bytes do not come");
            }
            self.tell(b"seen");
        } else {
            let remote = self.remote();
            let bytes = pattern(5, size);
            match self.node.endpoint.inject_write(&peer, &bytes, remote.at(MARGIN as u64), None) {
                Ok(()) => {}
                Err(_) => {
                    self.node.post(|e| e.inject_write(&peer, &bytes, remote.at(MARGIN as u64), None));
                }
            }
            self.hear();
        }
        self.together();
    }

    fn reads(&mut self) {
        for size in self.sizes(16 << 20) {
            let peer = self.peer.clone();
            if self.target {
                let region = self.register(pattern(size as u64 + 1, size));
                self.tell(&region.remote().to_bytes());
                self.hear();
            } else {
                let region = self.register(vec![0xee; size + 2 * MARGIN]);
                let remote = self.remote();
                let token = self.token();
                let slice = region.slice(MARGIN..MARGIN + size).unwrap();
                self.node.post(|e| e.read(&peer, slice, remote.at(0), token));
                assert_eq!(self.node.good_end(token).kind, OperationKind::Read);
                let bytes = region.into_memory().unwrap();
                assert!(bytes[MARGIN..MARGIN + size] == pattern(size as u64 + 1, size));
                assert!(bytes[..MARGIN].iter().chain(&bytes[MARGIN + size..]).all(|byte| *byte == 0xee));
                self.tell(b"read");
            }
            self.together();
        }
    }

    fn vectors(&mut self) {
        let info = self.node.endpoint.info();
        let most = info.transmit_segments();
        // What `tx_attr.iov_limit` promises holds for sends; an EFA card takes one local range for a read or write.
        let segments = if info.fabric_name() == "efa-direct" { 1 } else { most };
        let size = 1000 * segments;
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0xee; size + 2 * MARGIN]);
            self.tell(&region.remote().to_bytes());
            self.hear();
            self.check_written(&region, 77, size);
            self.hear();
        } else {
            // Every second block of a region, backwards in memory, and two regions where that is possible.
            let bytes = pattern(77, size);
            let mut regions = Vec::new();
            for segment in bytes.chunks(1000) {
                let mut memory = vec![0; 1500];
                memory[500..].copy_from_slice(segment);
                regions.push(self.register(memory));
            }
            let slices: Vec<_> = regions.iter().map(|region| region.slice(500..1500).unwrap()).collect();
            let remote = self.remote();
            let token = self.token();
            let options = WriteOptions::default();
            self.node.post(|e| e.write_with(&peer, &slices, remote.at(MARGIN as u64), options, token));
            self.node.good_end(token);
            self.tell(b"written");
            let into: Vec<_> = regions.iter().rev().map(|region| region.slice(0..400).unwrap()).collect();
            let token = self.token();
            self.node.post(|e| {
                e.read_with(&peer, &into, remote.at(MARGIN as u64 + 100), PostFlags::empty(), token)
            });
            self.node.good_end(token);
            for (index, region) in regions.iter().rev().enumerate() {
                let mut read = [0; 400];
                region.copy_out(0, &mut read).unwrap();
                assert_eq!(read, bytes[100 + 400 * index..][..400]);
            }
            let many = vec![slices[0]; most + 1];
            let refused = self.node.endpoint.write_with(&peer, &many, remote.at(0), options, 0);
            assert!(matches!(refused, Err(PostError::Failed(_))));
            self.tell(b"read");
        }
        self.together();
    }

    fn immediates(&mut self) {
        let width = self.node.endpoint.info().immediate_bytes();
        if width == 0 {
            return;
        }
        let widest = u64::MAX >> (64 - 8 * width as u32);
        let values = [0, 1, widest];
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0xee; 3000 + 2 * MARGIN]);
            // Some providers use up a receive for each.
            let spare = self.register(vec![0; 64]);
            let tokens: Vec<u64> = values.iter().map(|_| self.token()).collect();
            for token in &tokens {
                self.node.post(|e| e.receive(None, spare.as_slice(), *token));
            }
            self.tell(&region.remote().to_bytes());
            self.node.until("three immediates", |node| node.immediates.len() >= 3);
            let mut came = core::mem::take(&mut self.node.immediates);
            came.sort_unstable();
            assert_eq!(came, values);
            // The bytes come before the immediate.
            self.check_written(&region, 6, 3000);
            self.tell(b"seen");
            // Messages for the receives that are left.
            let left = tokens.iter().filter(|token| !self.node.ended.contains_key(token)).count();
            self.tell(&[left as u8]);
            for token in tokens {
                self.node.good_end(token);
            }
        } else {
            let region = self.register(pattern(6, 3000));
            let remote = self.remote();
            for (index, value) in values.into_iter().enumerate() {
                let (token, at) = (self.token(), 1000 * index);
                let options = WriteOptions { immediate: Some(value), ..Default::default() };
                let slice = region.slice(at..at + 1000).unwrap();
                self.node
                    .post(|e| e.write_with(&peer, &[slice], remote.at((MARGIN + at) as u64), options, token));
                self.node.good_end(token);
            }
            if width < 8 {
                let options = WriteOptions { immediate: Some(widest + 1), ..Default::default() };
                let slice = [region.slice(0..8).unwrap()];
                assert!(self.node.endpoint.write_with(&peer, &slice, remote.at(0), options, 0).is_err());
            }
            self.hear();
            for _ in 0..self.hear()[0] {
                let token = self.token();
                self.node.post(|e| e.send(&peer, region.slice(0..4).unwrap(), token));
                self.node.good_end(token);
            }
        }
        self.together();
    }

    fn atomics(&mut self) {
        if !self.node.endpoint.has_atomics() {
            return;
        }
        let peer = self.peer.clone();
        if self.target {
            // Aligned, which a vector of bytes need not be.
            let region = self.node.domain.register(
                fabric_safe::Mapping::anonymous(64, fabric_safe::PageKind::Small).unwrap(),
                Access::ALL,
            );
            let region = region.unwrap();
            region.copy_in(8, &40u64.to_ne_bytes()).unwrap();
            self.tell(&region.remote().to_bytes());
            self.hear();
            let mut value = [0; 8];
            region.copy_out(8, &mut value).unwrap();
            assert_eq!(u64::from_ne_bytes(value), 7);
        } else {
            let memory = fabric_safe::Mapping::anonymous(64, fabric_safe::PageKind::Small).unwrap();
            let region = self.node.domain.register(memory, Access::ALL).unwrap();
            let remote = self.remote();
            let number = |at: usize| region.slice(at..at + 8).unwrap();
            let result = || {
                let mut value = [0; 8];
                region.copy_out(16, &mut value).unwrap();
                u64::from_ne_bytes(value)
            };
            region.copy_in(0, &2u64.to_ne_bytes()).unwrap();
            let token = self.token();
            self.node.post(|e| e.fetch_add(&peer, number(0), number(16), remote.at(8), token));
            assert_eq!(self.node.good_end(token).kind, OperationKind::Atomic);
            assert_eq!(result(), 40);
            // Refused because the value is 42 by now, then accepted.
            region.copy_in(0, &7u64.to_ne_bytes()).unwrap();
            for (expected, found) in [(40u64, 42), (42, 42)] {
                region.copy_in(8, &expected.to_ne_bytes()).unwrap();
                let token = self.token();
                self.node
                    .post(|e| e.compare_swap(&peer, number(0), number(8), number(16), remote.at(8), token));
                self.node.good_end(token);
                assert_eq!(result(), found);
            }
            let odd = region.slice(1..9).unwrap();
            assert!(self.node.endpoint.fetch_add(&peer, odd, number(16), remote.at(8), 0).is_err());
            self.tell(b"done");
        }
        self.together();
    }

    /// As many writes as go in, then all of them again while some complete: each ends once.
    fn saturation(&mut self) {
        const BLOCK: usize = 512;
        let blocks = 64;
        let peer = self.peer.clone();
        if self.target {
            let region = self.register(vec![0xee; blocks * BLOCK + 2 * MARGIN]);
            self.tell(&region.remote().to_bytes());
            self.hear();
            self.check_written(&region, 8, blocks * BLOCK);
        } else {
            let region = self.register(pattern(8, blocks * BLOCK));
            let remote = self.remote();
            let depth = self.node.endpoint.transmit_depth();
            let total = (2 * depth + 100).min(if self.longest < 16 << 20 { 500 } else { 10_000 });
            let first = self.token();
            self.token += total as u64;
            let mut posted = 0;
            let mut ended = 0;
            let mut again = 0;
            let start = Instant::now();
            while ended < total {
                let mut transmit = self.node.endpoint.transmit().unwrap();
                while posted < total {
                    let at = posted % blocks * BLOCK;
                    let target = remote.at((MARGIN + at) as u64);
                    let slice = region.slice(at..at + BLOCK).unwrap();
                    match transmit.write(&peer, slice, target, first + posted as u64) {
                        Ok(_) => posted += 1,
                        Err(PostError::Again) => {
                            again += 1;
                            break;
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                drop(transmit);
                assert!(self.node.endpoint.transmit_in_flight() <= depth);
                ended += self.node.poll();
                assert!(start.elapsed() < PATIENCE, "{ended} of {posted} writes have ended");
            }
            assert_eq!(posted, total);
            assert!(again > 0 || total < depth, "no limit was met");
            for token in first..first + total as u64 {
                self.node.good_end(token);
            }
            assert_eq!(self.node.endpoint.transmit_in_flight(), 0);
            self.tell(b"written");
        }
        self.together();
    }

    /// Batches in which all but the last operation say that more follows: the provider may hold them back until then, but not
    /// for ever.
    fn more_to_come(&mut self) {
        const BLOCK: usize = 200;
        let blocks = 16.min(self.node.endpoint.transmit_depth());
        let peer = self.peer.clone();
        let flags = |index| if index + 1 < blocks { PostFlags::MORE } else { PostFlags::empty() };
        let tokens: Vec<u64> = (0..2 * blocks).map(|_| self.token()).collect();
        let (first, second) = tokens.split_at(blocks);
        let block = |index: usize| index * BLOCK..(index + 1) * BLOCK;
        if self.target {
            let region = self.register(vec![0xee; blocks * BLOCK + 2 * MARGIN]);
            let inbox = self.register(vec![0; blocks * BLOCK]);
            for (index, token) in second.iter().enumerate() {
                let options = ReceiveOptions { flags: flags(index), ..Default::default() };
                let slice = [inbox.slice(block(index)).unwrap()];
                self.node.post(|e| e.receive_with(None, &slice, options, *token));
            }
            self.tell(&region.remote().to_bytes());
            self.hear();
            self.check_written(&region, 12, blocks * BLOCK);
            for token in second {
                assert_eq!(self.node.good_end(*token).len_bytes, BLOCK);
            }
            // Messages may overtake each other (on EFA they do), so in any order.
            let mut came = inbox.into_memory().unwrap();
            let mut sent = pattern(12, blocks * BLOCK);
            let sorted = |bytes: &mut Vec<u8>| {
                let mut blocks: Vec<_> = bytes.chunks(BLOCK).map(<[u8]>::to_vec).collect();
                blocks.sort();
                blocks
            };
            assert!(sorted(&mut came) == sorted(&mut sent));
        } else {
            let region = self.register(pattern(12, blocks * BLOCK));
            let remote = self.remote();
            for (index, token) in first.iter().enumerate() {
                let options = WriteOptions { flags: flags(index), ..Default::default() };
                let (slice, at) = ([region.slice(block(index)).unwrap()], (MARGIN + index * BLOCK) as u64);
                self.node.post(|e| e.write_with(&peer, &slice, remote.at(at), options, *token));
            }
            for token in first {
                self.node.good_end(*token);
            }
            self.tell(b"written");
            for (index, token) in second.iter().enumerate() {
                let options = SendOptions { flags: flags(index), ..Default::default() };
                let slice = [region.slice(block(index)).unwrap()];
                self.node.post(|e| e.send_with(&peer, &slice, options, *token));
            }
            for token in second {
                self.node.good_end(*token);
            }
        }
        self.together();
    }
}
