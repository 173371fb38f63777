//! Any order of what can go wrong.

use std::collections::HashMap;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use scripted_provider::{Answer, Call, Control};

use super::scripted::scripted;
use super::{EIO, Stand};
use crate::clock::nanos;
use crate::{BatchHandle, PeerId, Status};

const NICS: usize = 3;
const RETRIES: u32 = 4;
const NAMES: [&str; 2] = ["one", "two"];
const EAGAIN: i32 = 11;
const ETIMEDOUT: i32 = 110;

#[derive(Debug, Clone, Copy)]
enum Act {
    /// A batch to one of the peers.
    Submit(Submit),
    /// The latest batch is not wanted any more.
    Cancel,
    Drive,
    Advance {
        ms: u64,
    },
    /// The next posts are answered like that.
    Answer {
        answer: Answer,
        times: u32,
    },
    /// All operations of a card fail from now on, or go well again.
    Ruin {
        nic: usize,
        errno: i32,
    },
    /// A completion queue fails, so that its endpoint is closed and opened again; perhaps that fails, too.
    Break {
        nic: usize,
        for_now: bool,
    },
    /// A peer comes back, or has more memory than before.
    Restart {
        who: usize,
        new_life: bool,
    },
    /// A peer goes, and comes back in whatever place is free.
    Remove {
        who: usize,
    },
    /// What the progress thread does now and then.
    Unstick,
}

fn act() -> impl Strategy<Value = Act> {
    let answer = prop_oneof![
        Just(Answer::Never),
        Just(Answer::Fail(EAGAIN)),
        Just(Answer::Fail(EIO)),
        (1..20_u32).prop_map(|after| Answer::Complete { after }),
        (0..5_u32).prop_map(|after| Answer::Error { errno: EIO, provider_errno: 0, after }),
        (0..5_u32).prop_map(|after| Answer::Error { errno: ETIMEDOUT, provider_errno: 0, after }),
    ];
    prop_oneof![
        6 => submit(),
        1 => Just(Act::Cancel),
        5 => Just(Act::Drive),
        4 => (0..120_u64).prop_map(|ms| Act::Advance { ms }),
        4 => (answer, 1..10_u32).prop_map(|(answer, times)| Act::Answer { answer, times }),
        2 => (0..NICS, prop_oneof![Just(0), Just(EIO)]).prop_map(|(nic, errno)| Act::Ruin { nic, errno }),
        1 => (0..NICS, any::<bool>()).prop_map(|(nic, for_now)| Act::Break { nic, for_now }),
        2 => (0..2_usize, any::<bool>()).prop_map(|(who, new_life)| Act::Restart { who, new_life }),
        1 => (0..2_usize).prop_map(|who| Act::Remove { who }),
        1 => Just(Act::Unstick),
    ]
}

#[derive(Debug, Clone, Copy)]
struct Submit {
    to: usize,
    /// So many requests, or one of so many pieces.
    slices: u64,
    scattered: bool,
    immediate: bool,
    limit_ms: u64,
}

fn submit() -> impl Strategy<Value = Act> {
    // Those that are alone in their batches have a way of their own.
    let slices = prop_oneof![1 => Just(1), 1 => 1..40_u64];
    (0..2_usize, slices, any::<bool>(), prop::bool::weighted(0.3), 1..200_u64).prop_map(
        |(to, slices, scattered, immediate, limit_ms)| {
            Act::Submit(Submit { to, slices, scattered, immediate, limit_ms })
        },
    )
}

/// A peer as the test knows it. Its keys say which of its lives and descriptors they are of.
struct Known {
    id: PeerId,
    life: (u64, u64),
    /// The first key of its latest descriptor.
    keys: u64,
}

struct Flight {
    handle: BatchHandle,
    immediate: bool,
    deadline: u64,
    /// How each had ended when it was last looked at.
    ended: Vec<Option<bool>>,
}

struct Schedule<'a> {
    stand: &'a Stand,
    known: Vec<Known>,
    /// Each key belongs to one life of a peer: which, and since when (in posts) that life is over.
    lives: HashMap<u64, Option<usize>>,
    next_keys: u64,
    flights: Vec<Flight>,
    submitted: u64,
    slices: u64,
    /// Requests that carry one.
    immediates: usize,
}

impl<'a> Schedule<'a> {
    fn new(stand: &'a Stand) -> Self {
        let known = Vec::new();
        let mut new = Self {
            stand,
            known,
            lives: HashMap::new(),
            next_keys: 1000,
            flights: Vec::new(),
            submitted: 0,
            slices: 0,
            immediates: 0,
        };
        for name in NAMES {
            let keys = new.fresh_keys();
            let life = (keys, 1);
            let id = stand.meet(name, life, keys);
            new.known.push(Known { id, life, keys });
        }
        new
    }

    fn fresh_keys(&mut self) -> u64 {
        let keys = self.next_keys;
        self.next_keys += NICS as u64;
        self.lives.extend((keys..self.next_keys).map(|key| (key, None)));
        keys
    }

    /// From now on nothing may be posted with keys of this peer's life.
    fn bury(&mut self, from: u64) {
        let posts = self.stand.control.placed().len();
        for key in from..from + NICS as u64 {
            self.lives.insert(key, Some(posts));
        }
    }

    fn submit(&mut self, submit: Submit) -> Result<(), TestCaseError> {
        let Stand { control, transport, .. } = self.stand;
        let core = self.stand.core();
        let aside: Vec<u64> = (0..NICS)
            .filter(|&lane| !core.lanes[lane].is_usable(self.stand.now()))
            .map(|lane| self.stand.endpoint_of(lane))
            .collect();
        let before = control.placed().len();
        let limit = Duration::from_millis(submit.limit_ms);
        let deadline = self.stand.now() + nanos(limit);
        let to = self.known[submit.to].id;
        let mut batch = if submit.scattered {
            self.stand.scattered(to, submit.slices, limit)
        } else {
            self.stand.requests(to, submit.slices, limit)
        };
        let requests = batch.requests.len();
        if submit.immediate {
            batch.requests.iter_mut().for_each(|request| request.immediate = Some(7));
            self.immediates += requests;
        }
        let handle = transport.submit(&mut batch).unwrap();
        self.slices += submit.slices;
        self.submitted += requests as u64;
        let ended = vec![None; requests];
        self.flights.push(Flight { handle, immediate: submit.immediate, deadline, ended });
        let placed = self.stand.placed_since(before);
        // If all are set aside in the end, all are used.
        if core.lanes.iter().any(|lane| lane.is_usable(self.stand.now())) {
            let wrong = placed.iter().find(|placed| aside.contains(&placed.endpoint));
            prop_assert!(wrong.is_none(), "{:?} over a card that is set aside: {:?}", wrong, aside);
        }
        Ok(())
    }

    fn act(&mut self, act: Act) -> Result<(), TestCaseError> {
        let Stand { control, transport, .. } = self.stand;
        let core = self.stand.core();
        match act {
            Act::Submit(submit) => self.submit(submit)?,
            Act::Cancel => self.flights.last().into_iter().for_each(|flight| flight.handle.cancel()),
            Act::Drive => self.stand.drive(),
            Act::Advance { ms } => self.stand.advance(Duration::from_millis(ms)),
            Act::Answer { answer, times } => control.tell(Call::Post, answer, times),
            Act::Ruin { nic, errno } => control.ruin(self.stand.endpoint_of(nic), errno, 0),
            Act::Break { nic, for_now } => {
                control.tell(Call::Open, Answer::Fail(EIO), u32::from(for_now));
                core.broken(&core.lanes[nic], "as the test says");
                self.stand.settle();
            }
            Act::Restart { who, new_life } => {
                let (life, old) = (self.known[who].life, self.known[who].keys);
                let keys = self.fresh_keys();
                let life = if new_life { (keys, 1) } else { (life.0, life.1 + 1) };
                if new_life {
                    self.bury(old);
                }
                let id = self.stand.meet(NAMES[who], life, keys);
                prop_assert_eq!(id, self.known[who].id);
                self.known[who] = Known { id, life, keys };
            }
            Act::Remove { who } => {
                let old = self.known[who].id;
                prop_assert!(transport.remove_peer(old));
                let keys = self.fresh_keys();
                let life = (keys, 1);
                let id = self.stand.meet(NAMES[who], life, keys);
                prop_assert!(id != old && transport.peer_state(old).is_err());
                self.known[who] = Known { id, life, keys };
            }
            Act::Unstick => self.stand.unstick(),
        }
        self.look()
    }

    /// What must hold at any time.
    fn look(&mut self) -> Result<(), TestCaseError> {
        self.stand.core().expire();
        let now = self.stand.now();
        for flight in &mut self.flights {
            for (index, ended) in flight.ended.iter_mut().enumerate() {
                let status = match flight.handle.status(index) {
                    Status::Pending => None,
                    Status::Done => Some(true),
                    Status::Failed(_) => Some(false),
                };
                prop_assert!(
                    status.is_some() || now < flight.deadline,
                    "request {} outlives its deadline",
                    index
                );
                prop_assert!(ended.is_none() || *ended == status, "request {} ended twice", index);
                *ended = status;
            }
        }
        for lane in &self.stand.core().lanes {
            let state = lane.state.lock();
            prop_assert!(state.queue.in_flight() <= state.queue.depth());
        }
        let placed = self.stand.control.placed();
        prop_assert!(placed.len() < scripted_provider::PLACED, "the test's own limit");
        for (index, placed) in placed.iter().enumerate() {
            let life = self.lives.get(&placed.key);
            prop_assert!(life.is_some(), "nobody has key {}", placed.key);
            let over = life.copied().flatten().is_some_and(|since| index >= since);
            prop_assert!(!over, "post {} goes to a life that is over", index);
        }
        Ok(())
    }

    /// Everything ends, and all is as in the beginning.
    fn end(mut self) -> Result<(), TestCaseError> {
        let control = self.stand.control;
        control.forget_answers();
        for _ in 0..4 {
            // Beyond every deadline, every pause, and the time that a card may sit on an operation.
            self.stand.advance(Duration::from_secs(20));
            self.stand.core().expire();
            self.stand.unstick();
            self.stand.drive();
        }
        self.look()?;
        let attempts = control.counts().accepted;
        prop_assert!(attempts <= self.slices * u64::from(RETRIES + 1), "{} attempts", attempts);
        for flight in &self.flights {
            prop_assert!(
                flight.handle.quiesced(std::time::Instant::now()),
                "{} requests",
                flight.ended.len()
            );
        }
        // None twice, and none left out.
        let arrived = control.placed().iter().filter(|placed| placed.immediate).count();
        let with = self.flights.iter().filter(|flight| flight.immediate);
        let wanted = with.flat_map(|flight| &flight.ended).filter(|ended| **ended == Some(true)).count();
        prop_assert!((wanted..=self.immediates).contains(&arrived), "{} immediates posted", arrived);
        let before = self.stand.transport.statistics();
        let done = self
            .flights
            .iter()
            .flat_map(|flight| &flight.ended)
            .filter(|ended| **ended == Some(true))
            .count();
        self.flights.clear();
        let after = self.stand.transport.statistics();
        let counted =
            after.requests_done + after.requests_failed - before.requests_done - before.requests_failed;
        prop_assert_eq!(counted, self.submitted);
        prop_assert_eq!(after.requests_done - before.requests_done, done as u64);
        self.stand.assert_clean(&[self.known[0].id, self.known[1].id]);
        // And goes on: peers that were down are tried again.
        for (who, name) in NAMES.into_iter().enumerate() {
            let id = self.known[who].id;
            prop_assert!(self.stand.send(id, 8, Duration::from_secs(1)).wait().is_ok(), "{}", name);
        }
        Ok(())
    }
}

fn play(control: Control, acts: &[Act]) -> Result<(), TestCaseError> {
    // Each has its own, so that a case that fails leaves nothing to the next.
    let stand = Stand::open(control, "scripted", NICS, |config| config.retries(RETRIES));
    let mut schedule = Schedule::new(&stand);
    for &act in acts {
        schedule.act(act)?;
    }
    schedule.end()
}

/// Catches: a request that ends twice, never, or after its deadline; an attempt in another life of its peer, over a card that is set
/// aside, or after too many others; anything that is left behind.
#[test]
fn whatever_goes_wrong_every_request_ends_once_and_in_time() {
    scripted(
        "scripted_tests::schedules::whatever_goes_wrong_every_request_ends_once_and_in_time",
        |control| {
            let runs = Runs { failure_persistence: None, ..Runs::default() };
            let acts = prop::collection::vec(act(), 1..60);
            let played = TestRunner::new(runs).run(&acts, |acts| play(control, &acts));
            if let Err(error) = played {
                panic!("{error}");
            }
        },
    );
}
