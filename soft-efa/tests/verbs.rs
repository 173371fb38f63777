//! The card as programs see it that use the verbs themselves, without libfabric: datagrams, flushed queue pairs, keys, queue depths.

#![allow(clippy::unwrap_used)] // a test fails by panicking

mod support;

use soft_efa::abi::{
    IBV_ACCESS_LOCAL_WRITE, IBV_ACCESS_REMOTE_READ, IBV_ACCESS_REMOTE_WRITE, IBV_QP_STATE, IBV_QPS_ERR,
    IBV_WC_RECV, IBV_WC_WITH_IMM, ibv_cq, ibv_mr, ibv_qp, ibv_qp_attr, ibv_wc,
};
use soft_efa::status::Status;
use soft_efa::{control, settings};
use std::path::PathBuf;
use std::time::Instant;
use support::node::Line;
use support::verbs::{Card, To, Verbs, Work, number, part, target};
use support::{
    PATIENCE, Part, Running, alone, network, pattern, player_without_libfabric, skip, valgrind,
    without_libfabric,
};

#[test]
fn datagrams_arrive_whole_after_their_prefix_or_not_at_all() {
    let network = network(1, "p5");
    let folder = tempfile::tempdir().unwrap();
    let line = folder.path().join("line");
    let start = |first| Running(without_libfabric(&network, "datagrams", first, &line).spawn().unwrap());
    let (mut first, mut second) = (start(true), start(false));
    assert_eq!((first.wait().code(), second.wait().code()), (Some(0), Some(0)), "seed {}", network.seed());
}

#[test]
fn a_queue_pair_in_the_error_state_gives_everything_back_flushed() {
    alone(&network(1, "p5"), "flushed");
}

#[test]
fn each_wrong_key_address_and_state_has_its_status() {
    alone(&network(2, "p5"), "statuses");
}

#[test]
fn depths_and_numbers_are_limited() {
    let mut network = network(1, "p5");
    network.set(settings::MAX_MR, "5").set(settings::MAX_AH, "3").set(settings::MAX_PTES, "100");
    alone(&network, "limits");
}

#[test]
fn valgrind_finds_nothing_in_the_card() {
    let test = "valgrind_finds_nothing_in_the_card";
    if !valgrind::is_there() {
        return skip(test, "no valgrind here");
    }
    let program = std::env::current_exe().unwrap();
    for (play, tidy) in [("flushed", false), ("statuses", false), ("everything", true)] {
        let folder = tempfile::tempdir().unwrap();
        let mut network = network(2, "p5en");
        network.set(settings::SEED, "3").set(settings::LATENCY_US, "5");
        let line = folder.path().join("line");
        let command = valgrind::command(&program, folder.path());
        let mut command = player_without_libfabric(command, &network, play, true, &line);
        assert_eq!(
            Running(command.spawn().unwrap()).wait().code(),
            Some(0),
            "{play}, seed {}",
            network.seed()
        );
        valgrind::assert_clean(folder.path(), 1, tidy);
    }
}

/// The part of a child; does nothing unless started by a test.
#[test]
fn child() {
    let Some(part) = Part::mine() else { return };
    match part.play.as_str() {
        "datagrams" => datagrams(&part),
        "flushed" => flushed(),
        "statuses" => statuses(),
        "limits" => limits(),
        "everything" => everything(),
        other => panic!("no play called {other}"),
    }
}

const QKEY: u32 = 0x4321;
const BYTES: usize = 64 << 10;
const READ: u32 = IBV_ACCESS_REMOTE_READ;
const LOCAL: u32 = IBV_ACCESS_LOCAL_WRITE;
const ALL: u32 = LOCAL | READ | IBV_ACCESS_REMOTE_WRITE;

fn tell_run(line: &str) {
    control::command(&PathBuf::from(std::env::var_os(settings::DIR).unwrap()), line).unwrap();
}

/// A card with a queue, a queue pair, and memory that is registered.
struct Own {
    card: Card,
    queue: *mut ibv_cq,
    qp: *mut ibv_qp,
    mr: *mut ibv_mr,
    memory: Vec<u8>,
}

impl Own {
    fn open(datagram: bool) -> Own {
        let card = Card::open(&Verbs::load(), 0);
        let queue = card.queue(256);
        let qp = card.queue_pair(queue, datagram, 16, QKEY);
        let mut memory = vec![0u8; BYTES];
        let mr = card.register(memory.as_mut_ptr(), BYTES, ALL);
        Own { card, queue, qp, mr, memory }
    }

    fn to_myself(&self) -> To {
        To { handle: self.card.handle(&self.card.gid), number: number(self.qp), qkey: QKEY }
    }

    /// The next completion.
    fn end(&self) -> ibv_wc {
        let start = Instant::now();
        loop {
            if let Some(entry) = self.card.poll(self.queue) {
                return entry;
            }
            assert!(start.elapsed() < PATIENCE, "a request has not ended");
        }
    }

    /// Posts one request and gives the status of its end.
    fn ends(&self, work: Work, to: To, offset: usize, length: usize) -> u32 {
        assert_eq!(self.card.post(self.qp, 1, work, to, &[part(self.mr, offset, length)]), 0);
        let end = self.end();
        assert_eq!(end.wr_id, 1);
        end.vendor_err
    }
}

fn datagrams(told: &Part) {
    const PREFIX: usize = 40;
    let mut own = Own::open(true);
    let mut line = Line::open(&told.line, told.first);
    line.tell(&[&own.card.gid[..], &number(own.qp).to_le_bytes()[..]].concat());
    let theirs = line.hear(|| {}).unwrap();
    let (gid, qpn) = theirs.split_at(16);
    let handle = own.card.handle(gid.try_into().unwrap());
    let to = To { handle, number: u32::from_le_bytes(qpn.try_into().unwrap()), qkey: QKEY };
    let sizes = [0usize, 1, 64, 4096, 8888];
    if told.first {
        for (id, _) in sizes.iter().enumerate() {
            let room = [part(own.mr, id * 9000, 9000)];
            assert_eq!(own.card.receive(own.qp, id as u64, &mut room.clone()), 0);
        }
        line.tell(b"posted");
        for (id, &size) in sizes.iter().enumerate() {
            let end = own.end();
            assert_eq!((end.wr_id, end.status, end.opcode), (id as u64, 0, IBV_WC_RECV));
            assert_eq!(end.byte_len as usize, PREFIX + size);
            assert_eq!(end.src_qp, to.number);
            assert_eq!((end.wc_flags, end.imm_data), if id == 4 { (IBV_WC_WITH_IMM, 77) } else { (0, 0) });
            let start = id * 9000;
            assert!(
                own.memory[start..start + PREFIX].iter().all(|&byte| byte == 0),
                "the prefix is left alone"
            );
            assert!(
                own.memory[start + PREFIX..start + PREFIX + size] == pattern(id as u64, size)[..],
                "datagram {id}"
            );
            assert!(
                own.memory[start + PREFIX + size..start + 9000].iter().all(|&byte| byte == 0),
                "bytes after {id}"
            );
            line.tell(b"next");
        }
        assert_eq!(line.hear(|| {}).unwrap(), b"lost ones sent");
        assert!(
            own.card.poll(own.queue).is_none(),
            "nothing comes of a datagram without a receive or with a wrong qkey"
        );
        let room = [part(own.mr, 0, 9000)];
        assert_eq!(own.card.receive(own.qp, 50, &mut room.clone()), 0);
        line.tell(b"posted again");
        assert_eq!(own.end().wr_id, 50);
        line.tell(b"done");
    } else {
        assert_eq!(line.hear(|| {}).unwrap(), b"posted");
        for (id, &size) in sizes.iter().enumerate() {
            own.memory[..size].copy_from_slice(&pattern(id as u64, size));
            let work = if id == 4 { Work::SendImm(77) } else { Work::Send };
            let end = own.card.post(own.qp, id as u64, work, to, &[part(own.mr, 0, size)]);
            assert_eq!(end, 0);
            assert_eq!((own.end().wr_id, line.hear(|| {}).unwrap()), (id as u64, b"next".to_vec()));
        }
        // No receive is posted, the key is wrong, nobody is there: the sender of a datagram does not hear of it.
        let wrong = To { qkey: QKEY + 1, ..to };
        let nobody = To { number: to.number + 100, ..to };
        for to in [to, wrong, nobody] {
            assert_eq!(own.ends(Work::Send, to, 0, 64), 0);
        }
        // A datagram cannot read or write memory.
        let (address, rkey) = target(own.mr);
        assert_eq!(
            own.card.post(own.qp, 9, Work::Write { rkey, address }, to, &[part(own.mr, 0, 64)]),
            libc::EINVAL
        );
        line.tell(b"lost ones sent");
        assert_eq!(line.hear(|| {}).unwrap(), b"posted again");
        assert_eq!(own.ends(Work::Send, to, 0, 64), 0);
        assert_eq!(line.hear(|| {}).unwrap(), b"done");
    }
}

fn flushed() {
    let own = Own::open(false);
    let to = own.to_myself();
    tell_run("hold");
    let (address, rkey) = target(own.mr);
    for id in 0..8 {
        let work = if id % 2 == 0 { Work::Write { rkey, address } } else { Work::Send };
        assert_eq!(own.card.post(own.qp, id, work, to, &[part(own.mr, 0, 64)]), 0);
        assert_eq!(own.card.receive(own.qp, 100 + id, &mut [part(own.mr, 0, 64)]), 0);
    }
    assert!(own.card.poll(own.queue).is_none());
    let error = ibv_qp_attr { qp_state: IBV_QPS_ERR, ..Default::default() };
    assert_eq!(own.card.modify(own.qp, error, IBV_QP_STATE), 0);
    let mut ids: Vec<u64> = (0..16)
        .map(|_| {
            let end = own.end();
            assert_eq!(end.vendor_err, Status::Flushed.vendor());
            end.wr_id
        })
        .collect();
    ids.sort_unstable();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6, 7, 100, 101, 102, 103, 104, 105, 106, 107]);
    assert!(own.card.poll(own.queue).is_none(), "each request ends once");
    assert_eq!(own.card.post(own.qp, 1, Work::Send, to, &[part(own.mr, 0, 64)]), libc::EINVAL);
    assert_eq!(own.card.receive(own.qp, 1, &mut [part(own.mr, 0, 64)]), libc::EINVAL);
}

fn statuses() {
    let mut own = Own::open(false);
    let to = own.to_myself();
    let (address, rkey) = target(own.mr);
    let write = Work::Write { rkey, address };
    assert_eq!(own.ends(write, to, 0, 64), 0);
    assert_eq!(
        own.ends(write, to, BYTES - 63, 64),
        Status::InvalidLkey.vendor(),
        "one byte past our own registration"
    );
    assert_eq!(
        own.ends(write, To { qkey: 1, ..to }, 0, 64),
        Status::RemoteBadDestQpn.vendor(),
        "a wrong qkey"
    );
    assert_eq!(
        own.ends(write, To { number: 3000, ..to }, 0, 64),
        Status::RemoteBadDestQpn.vendor(),
        "an unknown queue pair"
    );
    let bad = Work::Write { rkey: rkey ^ 0x10000, address };
    assert_eq!(own.ends(bad, to, 0, 64), Status::RemoteBadAddress.vendor());
    // A GID that is no software card's, and one that no process has.
    let strange = To { handle: own.card.handle(&[7; 16]), ..to };
    assert_eq!(own.ends(write, strange, 0, 64), Status::UnreachableRemote.vendor());
    let mut gid = own.card.gid;
    gid[10] ^= 1;
    let nobody = To { handle: own.card.handle(&gid), ..to };
    assert_eq!(own.ends(Work::Send, nobody, 0, 64), Status::UnreachableRemote.vendor());
    // A read into memory that is registered for reading only.
    let read_only = own.card.register(own.memory.as_mut_ptr(), BYTES, READ);
    let posted = own.card.post(own.qp, 1, Work::Read { rkey, address }, to, &[part(read_only, 0, 64)]);
    assert_eq!((posted, own.end().vendor_err), (0, Status::InvalidLkey.vendor()));
    // What the target may only read cannot be written.
    let (address, rkey) = target(read_only);
    assert_eq!(own.ends(Work::Write { rkey, address }, to, 0, 64), Status::RemoteBadAddress.vendor());
    assert_eq!(own.ends(Work::Read { rkey, address }, to, 0, 64), 0);
    // A message longer than the card's, and one without a receive.
    assert_eq!(own.ends(Work::Send, to, 0, 8929), Status::BadLength.vendor());
    own.card.set_retries(own.qp, 0);
    assert_eq!(own.ends(Work::Send, to, 0, 64), Status::RemoteRnr.vendor());
    let (address, rkey) = target(own.mr);
    let imm = Work::WriteImm { rkey, address, imm: 1 };
    assert_eq!(own.ends(imm, to, 0, 64), Status::RemoteRnr.vendor(), "an immediate takes a receive");
    // A registration of one card is unknown to another card, and so is our key at another protection domain's queue pair.
    let other = Card::open(&Verbs::load(), 1);
    let foreign = other.register(own.memory.as_mut_ptr(), BYTES, ALL);
    let (address, rkey) = target(foreign);
    assert_eq!(
        own.ends(Work::Write { rkey, address }, to, 0, 64),
        Status::RemoteBadAddress.vendor(),
        "another card's key"
    );
    let posted = own.card.post(own.qp, 1, write, to, &[part(foreign, 0, 64)]);
    assert_eq!((posted, own.end().vendor_err), (0, Status::InvalidLkey.vendor()), "another card's local key");
    tell_run("down card=0");
    assert_eq!(own.ends(write, to, 0, 64), Status::QpInternalError.vendor(), "our card is dead");
    tell_run("clear");
    assert_eq!(own.ends(write, to, 0, 64), 0);
    // Memory that was unmapped under its registration ends requests, and nothing else.
    // SAFETY: an anonymous mapping of one page, which nobody else uses.
    let page = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            4096,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    let gone = own.card.register(page.cast(), 4096, ALL);
    // SAFETY: the mapping from above.
    unsafe { libc::munmap(page, 4096) };
    let (address, rkey) = target(gone);
    assert_eq!(own.ends(Work::Write { rkey, address }, to, 0, 64), Status::RemoteBadAddress.vendor());
    assert_eq!(own.ends(write, to, 0, 64), 0);
}

/// Every operation, in both directions between a card and itself, through delays and faults, with everything given back at the end.
fn everything() {
    let own = Own::open(false);
    let to = own.to_myself();
    let (address, rkey) = target(own.mr);
    tell_run("fail status=13 every=7");
    tell_run("delay us=20 at=end every=5");
    let mut ended = 0;
    for round in 0..20u64 {
        let works = [
            Work::Send,
            Work::SendImm(1),
            Work::Read { rkey, address },
            Work::Write { rkey, address: address + 32_768 },
            Work::WriteImm { rkey, address, imm: 2 },
        ];
        for (id, work) in works.into_iter().enumerate() {
            assert_eq!(own.card.receive(own.qp, 1000, &mut [part(own.mr, 40_000, 8192)]), 0);
            let parts = [part(own.mr, 0, 100), part(own.mr, 200, 100 + round as usize)];
            let parts = if id < 2 { &parts[..] } else { &parts[..1] };
            assert_eq!(own.card.post(own.qp, id as u64, work, to, parts), 0);
        }
        let mut open = works.len();
        while open > 0 {
            let end = own.end();
            ended += 1;
            open -= usize::from(end.wr_id < 1000);
        }
        if round % 3 == 2 {
            // Receives that a failed message has not taken.
            let error = ibv_qp_attr { qp_state: IBV_QPS_ERR, ..Default::default() };
            assert_eq!(own.card.modify(own.qp, error, IBV_QP_STATE), 0);
            let reset = |state| ibv_qp_attr { qp_state: state, qkey: QKEY, ..Default::default() };
            for state in 0..4 {
                assert_eq!(own.card.modify(own.qp, reset(state), IBV_QP_STATE), 0);
            }
            while own.card.poll(own.queue).is_some() {}
        }
    }
    assert!(ended >= 100);
    tell_run("clear");
    assert_eq!(own.card.destroy_queue_pair(own.qp), 0);
    assert_eq!(own.card.destroy_handle(to.handle), 0);
    assert_eq!(own.card.deregister(own.mr), 0);
    assert_eq!(own.card.destroy_queue(own.queue), 0);
    assert_eq!(own.card.close(), 0);
}

fn limits() {
    let mut own = Own::open(false);
    let to = own.to_myself();
    let errno = || std::io::Error::last_os_error().raw_os_error();
    tell_run("hold");
    for id in 0..16 {
        assert_eq!(own.card.post(own.qp, id, Work::Send, to, &[part(own.mr, 0, 64)]), 0);
        assert_eq!(own.card.receive(own.qp, 100 + id, &mut [part(own.mr, 0, 64)]), 0);
    }
    assert_eq!(
        own.card.post(own.qp, 16, Work::Send, to, &[part(own.mr, 0, 64)]),
        libc::ENOMEM,
        "the send queue is full"
    );
    assert_eq!(
        own.card.receive(own.qp, 16, &mut [part(own.mr, 0, 64)]),
        libc::ENOMEM,
        "the receive queue is full"
    );
    tell_run("clear");
    for _ in 0..32 {
        assert_eq!(own.end().status, 0);
    }
    // A slot is free again when its completion has been read.
    assert_eq!(own.card.receive(own.qp, 16, &mut [part(own.mr, 0, 64)]), 0);
    assert_eq!(own.card.post(own.qp, 16, Work::Send, to, &[part(own.mr, 0, 64)]), 0);
    // Our own registration takes sixteen or seventeen pages and one of five places.
    let small: Vec<_> = (0..4).map(|_| own.card.register(own.memory.as_mut_ptr(), 1, ALL)).collect();
    assert!(small.iter().all(|mr| !mr.is_null()));
    assert!(own.card.register(own.memory.as_mut_ptr(), 1, ALL).is_null());
    assert_eq!(errno(), Some(libc::ENOMEM), "no registrations left");
    for mr in small {
        assert_eq!(own.card.deregister(mr), 0);
    }
    let mut large = vec![0u8; 90 << 12];
    assert!(own.card.register(large.as_mut_ptr(), large.len(), ALL).is_null());
    assert_eq!(errno(), Some(libc::ENOMEM), "no page table entries left");
    assert!(!own.card.register(large.as_mut_ptr(), 60 << 12, ALL).is_null());
    // One handle is for ourselves, and the same GID takes no more.
    assert!(!own.card.handle(&own.card.gid).is_null());
    let others: Vec<bool> = (1..=3u8).map(|n| own.card.handle(&[n; 16]).is_null()).collect();
    assert_eq!((others, errno()), (vec![false, false, true], Some(libc::ENOMEM)));
}
