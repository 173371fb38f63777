//! Entry points of the fuzz targets: one for each parser of what comes off a wire. Each takes any bytes, must not panic, and
//! checks what must hold whatever they were.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::cipher::Cipher;
use crate::decoder::{Decoder, Step};
use crate::handshake::{Handshake, Introduction, Psk, preface};
use crate::initiator::Initiator;
use crate::memory::{Memory, OwnedMemory};
use crate::region::{Access, RegionDescriptor, RegionTable};
use crate::responder::Responder;
use crate::service::Service;
use crate::settings::Limits;
use crate::stats::Counters;
use crate::wire::{self, MAX_RANGES, Reader};

fn addr() -> SocketAddr {
    ([127, 0, 0, 1], 7).into()
}

/// The stream cut in two: at the place that the first byte says.
fn cut(data: &[u8]) -> (&[u8], &[u8]) {
    let Some((&at, rest)) = data.split_first() else { return (&[], &[]) };
    rest.split_at(rest.len() * usize::from(at) / 256)
}

/// The decoder of frames: every byte is accounted for, and one cut gives the same frames as none.
pub fn fuzz_frames(data: &[u8]) {
    let (a, b) = cut(data);
    let run = |pieces: &[&[u8]]| {
        let mut decoder = Decoder::default();
        let (mut frames, mut payload) = (Vec::new(), Vec::new());
        for mut piece in pieces.iter().copied() {
            loop {
                match decoder.step(&mut piece) {
                    Err(e) => return (frames, payload, Some(e)),
                    Ok(Step::Starved) => break,
                    Ok(Step::Frame(header, meta)) => frames.push((header, meta.to_vec())),
                    Ok(Step::Payload(bytes)) => payload.extend_from_slice(bytes),
                }
            }
        }
        (frames, payload, None)
    };
    let whole: Vec<u8> = [a, b].concat();
    assert_eq!(run(&[a, b]), run(&[&whole]));
}

/// Ranges: within the limits, and written again they are the same.
pub fn fuzz_ranges(data: &[u8]) {
    let (mut ranges, mut again) = (Vec::new(), Vec::new());
    let Ok(total) = wire::get_ranges(&mut Reader(data), &mut ranges) else { return };
    assert!(!ranges.is_empty() && ranges.len() <= MAX_RANGES);
    assert_eq!(ranges.iter().map(|r| r.len).sum::<u64>(), total);
    let mut bytes = Vec::new();
    wire::put_ranges(&mut bytes, &ranges);
    assert_eq!(wire::get_ranges(&mut Reader(&bytes), &mut again), Ok(total));
    assert_eq!(ranges, again);
}

/// The answering side of a lane: without a key nothing is written, and bytes that wait are bounded.
pub fn fuzz_requests(data: &[u8]) {
    let table = Arc::new(RegionTable::default());
    let limits = Limits { message: 4096, events: 16, calls: 4, ..Limits::default() };
    let service = Arc::new(Service::new(Arc::clone(&table), limits, Arc::<Counters>::default()));
    let (Ok(memory), session) = (OwnedMemory::new(4096), service.session(1)) else { return };
    let Ok(region) = table.register(memory.clone(), Access::READ_WRITE) else { return };
    let mut responder = Responder::new(service, session, addr());
    let (a, b) = cut(data);
    if responder.feed(a).is_ok() {
        let _ = responder.feed(b);
    }
    let mut bytes = [1; 4096];
    assert!(memory.read(0, &mut bytes).is_ok() && bytes == [0; 4096], "written without a key");
    assert_eq!(region.len(), memory.len() as u64);
}

/// The asking side of a lane: nothing was asked, so nothing is an answer.
pub fn fuzz_answers(data: &[u8]) {
    let mut initiator = Initiator::new(addr(), 4096);
    let (a, b) = cut(data);
    if initiator.feed(a).is_ok() {
        let _ = initiator.feed(b);
    }
    assert_eq!(initiator.in_flight(), 0);
}

/// The handshake, on both sides, with and without a secret: random bytes never get through with one.
pub fn fuzz_handshake(data: &[u8]) {
    let (a, b) = cut(data);
    for psk in [None, Psk::derive(&[7; 16])] {
        let secret = psk.is_some();
        let mut native = preface(secret).to_vec();
        native.extend_from_slice(a);
        for first in [a, &native] {
            let mut side = Handshake::accept(Introduction::default(), psk.clone());
            let mut agreed = side.feed(first).is_ok_and(|x| x.is_some());
            agreed |= side.feed(b).is_ok_and(|x| x.is_some());
            assert!(!(secret && agreed), "got in without the secret");
        }
        if let Ok(mut side) = Handshake::dial(Introduction::default(), psk) {
            let mut agreed = side.feed(a).is_ok_and(|x| x.is_some());
            agreed |= side.feed(b).is_ok_and(|x| x.is_some());
            assert!(!(secret && agreed), "believed a peer without the secret");
        }
    }
    if let Ok(introduction) = Introduction::from_bytes(data) {
        assert_eq!(introduction.to_bytes()[..24], data[..24]);
    }
}

/// Encrypted records: nothing that was not sealed is opened.
pub fn fuzz_records(data: &[u8]) {
    let Some(mut cipher) = responder_cipher() else { return };
    let (a, b) = cut(data);
    for mut piece in [a, b] {
        match cipher.open(&mut piece) {
            Ok(opened) => assert!(opened.is_none(), "opened a forged record"),
            Err(_) => return,
        }
    }
}

fn responder_cipher() -> Option<Cipher> {
    let psk = Psk::derive(&[7; 16]);
    let ours = || Introduction { encrypt: true, ..Introduction::default() };
    let mut a = Handshake::dial(ours(), psk.clone()).ok()?;
    let mut b = Handshake::accept(ours(), psk);
    b.feed(a.outgoing()).ok()?;
    a.sent(usize::MAX);
    a.feed(b.outgoing()).ok()?;
    b.feed(a.outgoing()).ok()??.cipher
}

/// Region descriptors that travelled through somebody else's hands.
pub fn fuzz_descriptor(data: &[u8]) {
    if let Ok(descriptor) = RegionDescriptor::from_bytes(data) {
        assert_eq!(descriptor.to_bytes(), data);
    }
}

/// Mooncake's header and status.
#[cfg(feature = "mooncake")]
pub fn fuzz_mooncake(data: &[u8]) {
    use crate::mooncake::{Head, Status, recognise};
    let _ = recognise(data);
    if let Some(head) = data.first_chunk().and_then(Head::from_bytes) {
        assert_eq!(head.to_bytes()[..17], data[..17]);
    }
    if let Some((status, bytes)) = data.first_chunk().and_then(|b| Some((Status::from_bytes(*b)?, b))) {
        assert_eq!(status.to_bytes(), *bytes);
    }
}
