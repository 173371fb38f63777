//! A card under a program that posts, receives, registers, polls and destroys in any order, beside a process that writes
//! anything into what processes share. AddressSanitizer looks on; whatever ends here is the card's own doing.
#![no_main]

// What the tests use; not all of it is needed here.
#[allow(dead_code)]
#[path = "../../tests/support/verbs.rs"]
mod verbs;

use soft_efa::abi::{ibv_ah, ibv_cq, ibv_mr, ibv_qp, ibv_qp_attr, ibv_sge};
use soft_efa::fuzzing::{Listener, Stranger};
use std::cell::RefCell;
use std::os::unix::process::CommandExt;
use std::rc::Rc;
use verbs::{Card, To, Verbs, Work, number, part, target};

const BYTES: usize = 1 << 16;
const QKEY: u32 = 1;
/// Rules that a run can be given; none of them ends the process.
const RULES: [&str; 10] = [
    "clear",
    "hold op=write",
    "delay us=10",
    "fail status=13 prob=0.3",
    "fail status=8 at=end every=3",
    "hold at=end op=send",
    "link card=0",
    "down card=1",
    "flap card=0 us=50",
    "register errno=12 every=2",
];

/// What lives as long as the fuzzing process.
struct World {
    verbs: Rc<Verbs>,
    memory: *mut u8,
    stranger: Stranger,
    rules: Listener,
}

thread_local! {
    static WORLD: RefCell<Option<World>> = const { RefCell::new(None) };
}

fn world() -> World {
    let rules = Listener::new().expect("the temporary directory can be written");
    // SAFETY: libFuzzer calls from one thread, before any other is started by us.
    unsafe {
        std::env::set_var("SOFT_EFA_DIR", rules.dir());
        std::env::set_var("SOFT_EFA_NICS", "2");
        std::env::set_var("SOFT_EFA_PROFILE", "p5en");
    }
    // A process whose memory may be written to: it sleeps, and dies with us.
    let mut victim = std::process::Command::new("sleep");
    victim.arg("1000000");
    // SAFETY: one system call with integers between fork and exec.
    unsafe {
        victim.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    };
    let victim = victim.spawn().expect("`sleep` can be started");
    let verbs = Verbs::new(soft_efa::fuzzing::verb);
    let memory = Box::leak(vec![0u8; BYTES].into_boxed_slice()).as_mut_ptr();
    let stranger = Stranger::join(victim.id()).expect("the run's files can be made");
    World { verbs, memory, stranger, rules }
}

/// The input, as numbers.
struct Tape<'a>(&'a [u8]);

impl Tape<'_> {
    fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.0.split_first() else { return 0 };
        self.0 = rest;
        first
    }

    fn below(&mut self, count: usize) -> usize {
        usize::from(self.byte()) % count.max(1)
    }

    fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// A length that is mostly short and sometimes anything.
    fn length(&mut self) -> u32 {
        match self.below(4) {
            0 => u32::from(self.byte()),
            1 => u32::from(self.byte()) * 64,
            2 => u32::from(self.byte()) * 4096,
            _ => self.number(),
        }
    }
}

/// What one input has made.
#[derive(Default)]
struct Made {
    qps: Vec<(usize, *mut ibv_qp)>,
    mrs: Vec<(usize, *mut ibv_mr)>,
    ahs: Vec<(usize, *mut ibv_ah)>,
}

fn sges(tape: &mut Tape<'_>, made: &Made) -> Vec<ibv_sge> {
    (0..tape.below(4))
        .map(|_| match tape.below(8) {
            0 => ibv_sge { addr: tape.number().into(), length: tape.length(), lkey: tape.number() },
            choice if !made.mrs.is_empty() => {
                let mut sge = part(made.mrs[choice % made.mrs.len()].1, tape.below(256) * 16, 0);
                sge.length = tape.length();
                sge
            }
            _ => ibv_sge { addr: 0, length: 0, lkey: 0 },
        })
        .collect()
}

fn step(world: &mut World, cards: &[(Card, *mut ibv_cq)], made: &mut Made, tape: &mut Tape<'_>) {
    let which = tape.below(cards.len());
    let (card, queue) = &cards[which];
    match tape.below(16) {
        0 if made.qps.len() < 6 => {
            let depth = 1 << tape.below(5);
            let qp = card.queue_pair(*queue, tape.below(3) == 0, depth, QKEY);
            if !qp.is_null() {
                card.set_retries(qp, tape.byte() % 8);
                made.qps.push((which, qp));
            }
        }
        1 if !made.qps.is_empty() => {
            let (on, qp) = made.qps.swap_remove(tape.below(made.qps.len()));
            assert_eq!(cards[on].0.destroy_queue_pair(qp), 0);
        }
        2 if made.mrs.len() < 8 => {
            let offset = tape.below(256) * 64;
            let length = (tape.length() as usize).min(BYTES - offset);
            // SAFETY: inside the leaked memory.
            let mr = card.register(unsafe { world.memory.add(offset) }, length, u32::from(tape.byte() % 8));
            if !mr.is_null() {
                made.mrs.push((which, mr));
            }
        }
        3 if !made.mrs.is_empty() => {
            let (on, mr) = made.mrs.swap_remove(tape.below(made.mrs.len()));
            assert_eq!(cards[on].0.deregister(mr), 0);
        }
        4 if made.ahs.len() < 8 => {
            let gid = match tape.below(4) {
                0 => world.stranger.gid(),
                1 => [tape.byte(); 16],
                other => cards[other % cards.len()].0.gid,
            };
            let ah = card.handle(&gid);
            if !ah.is_null() {
                made.ahs.push((which, ah));
            }
        }
        5 if !made.ahs.is_empty() => {
            let (on, ah) = made.ahs.swap_remove(tape.below(made.ahs.len()));
            assert_eq!(cards[on].0.destroy_handle(ah), 0);
        }
        6..=8 if !made.qps.is_empty() && !made.ahs.is_empty() => {
            let (on, qp) = made.qps[tape.below(made.qps.len())];
            let handle = made.ahs[tape.below(made.ahs.len())].1;
            let known = number(made.qps[tape.below(made.qps.len())].1);
            let to = match tape.below(8) {
                0 => tape.number(),
                1 => 3,
                _ => known,
            };
            let to = To { handle, number: to, qkey: QKEY + u32::from(tape.below(16) == 0) };
            let (mut address, mut rkey) = (u64::from(tape.number()), tape.number());
            if !made.mrs.is_empty() && tape.below(8) != 0 {
                (address, rkey) = target(made.mrs[tape.below(made.mrs.len())].1);
                address = address.wrapping_add(u64::from(tape.byte()));
            }
            let work = match tape.below(5) {
                0 => Work::Send,
                1 => Work::SendImm(tape.number()),
                2 => Work::Read { rkey, address },
                3 => Work::WriteImm { rkey, address, imm: tape.number() },
                _ => Work::Write { rkey, address },
            };
            let sges = sges(tape, made);
            cards[on].0.post(qp, u64::from(tape.byte()), work, to, &sges);
        }
        9 if !made.qps.is_empty() => {
            let (on, qp) = made.qps[tape.below(made.qps.len())];
            cards[on].0.receive(qp, u64::from(tape.byte()), &mut sges(tape, made));
        }
        10 if !made.qps.is_empty() => {
            let (on, qp) = made.qps[tape.below(made.qps.len())];
            let attr = ibv_qp_attr { qp_state: u32::from(tape.byte() % 8), ..Default::default() };
            cards[on].0.modify(qp, attr, 1);
        }
        11 => {
            let length = tape.below(100);
            let bytes: Vec<u8> = (0..48 + length).map(|_| tape.byte()).collect();
            world.stranger.send(&bytes);
        }
        12 => {
            let (place, offset) = (tape.byte(), tape.number() as usize);
            let word = match tape.below(3) {
                0 => u64::from(tape.byte()),
                1 => world.stranger.owner(),
                _ => u64::from(tape.number()) << 32 | u64::from(tape.number()),
            };
            // Mostly where something is read: the first entries.
            world.stranger.scribble(place, if tape.below(4) == 0 { offset } else { offset % 8192 }, word);
        }
        13 => {
            world.rules.answer(RULES[tape.below(RULES.len())].as_bytes()).expect("a socket pair works");
        }
        _ => {
            for _ in 0..tape.below(16) {
                card.poll(*queue);
            }
        }
    }
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    WORLD.with_borrow_mut(|slot| {
        let world = slot.get_or_insert_with(world);
        let cards: Vec<(Card, *mut ibv_cq)> = (0..2)
            .map(|index| {
                let card = Card::open(&world.verbs, index);
                let queue = card.queue(64);
                (card, queue)
            })
            .collect();
        let mut made = Made::default();
        let mut tape = Tape(data);
        let mut steps = 0;
        while !tape.0.is_empty() && steps < 200 {
            step(world, &cards, &mut made, &mut tape);
            steps += 1;
        }
        for (on, qp) in made.qps {
            assert_eq!(cards[on].0.destroy_queue_pair(qp), 0);
        }
        for (on, ah) in made.ahs {
            assert_eq!(cards[on].0.destroy_handle(ah), 0);
        }
        for (on, mr) in made.mrs {
            assert_eq!(cards[on].0.deregister(mr), 0);
        }
        for (card, queue) in cards {
            assert_eq!(card.destroy_queue(queue), 0);
            assert_eq!(card.close(), 0);
        }
        world.rules.answer(b"clear").expect("a socket pair works");
    });
});
