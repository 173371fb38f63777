//! No request outlives its deadline by more than 100 ms of its process's processor time, whatever it is waiting for then, and
//! whether somebody waits for it or nobody does. By the real clock; what happens to the nanosecond is tested beside the code, and
//! what happens to requests on cards while everything goes wrong in `faults`.

mod common;

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread::Thread;
use std::time::{Duration, Instant};

use benchkit::CpuClock;
use common::scripted::scripted;
use common::{PATIENCE, Target, config, memory, open, providers, serve, soon};
use efa_transport::{Batch, BatchHandle, Error, PeerId, Region, Request, Shape, Transport};
use scripted_provider::{Answer, Call, Control, DEPTH};

/// Not a test: the target's process, when the tests below start it.
#[test]
fn target_process() {
    serve();
}

const EAGAIN: i32 = 11;
const EIO: i32 = 5;
const ETIMEDOUT: i32 = 110;
const LIMIT: Duration = Duration::from_millis(80);
/// More than the deadline may be exceeded by, in time of this process's processor.
const LATENESS: Duration = Duration::from_millis(100);
const BLOCK: u64 = 64;
const LEN: usize = 1 << 20;

/// Wakes a thread that awaits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// Who follows a batch to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Follows {
    /// A thread that waits, and drives the NICs meanwhile.
    Waiter,
    /// Nobody but the progress thread, which wakes whoever awaits it.
    ProgressThread,
}

/// The outcome of a batch, and the processor time that this process has used from the deadline to its end.
fn follow(handle: &BatchHandle, follows: Follows, deadline: Instant) -> (Result<(), Error>, Duration) {
    match follows {
        Follows::Waiter => {
            if let Some(outcome) = handle.wait_until(deadline) {
                return (outcome, Duration::ZERO);
            }
            let clock = CpuClock::process();
            let outcome = handle.wait_until(deadline + PATIENCE).expect("a batch that never ends");
            (outcome, clock.cpu())
        }
        Follows::ProgressThread => {
            let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
            let (mut future, mut clock) = (pin!(handle), None);
            loop {
                if let Poll::Ready(outcome) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                    return (outcome, clock.map_or(Duration::ZERO, |clock: CpuClock| clock.cpu()));
                }
                // To the deadline first, and from then on with an eye on what it costs.
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    clock.get_or_insert_with(CpuClock::process);
                    assert!(deadline.elapsed() < PATIENCE, "a batch that never ends");
                    std::thread::park_timeout(PATIENCE);
                } else {
                    std::thread::park_timeout(left);
                }
            }
        }
    }
}

/// What a request is waiting for at its deadline.
#[derive(Debug, Clone, Copy)]
enum State {
    /// The card has it.
    Posted,
    /// The card has others, and no room.
    QueuedForCredit,
    /// The provider has no room, though the card has: a connection is being made, say.
    Refused,
    /// The provider has no room, time and again, for a part of it.
    RefusedNowAndThen,
    /// Its latest attempt has failed, and the next one is for later.
    BackOff,
    /// The same because the peer does not answer.
    PeerBackOff,
    /// Many pages of it have ended, some are on the card, others have not been posted.
    Paged,
    /// Its immediate waits for its last bytes.
    BeforeImmediate,
    /// The card has its immediate.
    Immediate,
}

const STATES: [State; 9] = [
    State::Posted,
    State::QueuedForCredit,
    State::Refused,
    State::RefusedNowAndThen,
    State::BackOff,
    State::PeerBackOff,
    State::Paged,
    State::BeforeImmediate,
    State::Immediate,
];

impl State {
    /// Tells the provider how to answer.
    fn prepare(self, control: Control) {
        let depth = DEPTH as u32;
        let fails = |errno| Answer::Error { errno, provider_errno: 0, after: 0 };
        control.reset();
        match self {
            Self::Posted | Self::QueuedForCredit | Self::Immediate => {
                control.tell(Call::Post, Answer::Never, u32::MAX);
            }
            Self::Refused => control.tell(Call::Post, Answer::Fail(EAGAIN), u32::MAX),
            Self::RefusedNowAndThen => {
                control.tell(Call::Post, Answer::Never, 1);
                for _ in 0..1000 {
                    control.tell(Call::Post, Answer::Fail(EAGAIN), 3);
                    control.tell(Call::Post, Answer::Usual, 1);
                }
            }
            Self::BackOff => control.tell(Call::Post, fails(EIO), u32::MAX),
            Self::PeerBackOff => control.tell(Call::Post, fails(ETIMEDOUT), u32::MAX),
            Self::Paged => {
                control.tell(Call::Post, Answer::Usual, depth);
                control.tell(Call::Post, Answer::Never, u32::MAX);
            }
            Self::BeforeImmediate => {
                control.tell(Call::Post, Answer::Usual, 3);
                control.tell(Call::Post, Answer::Never, u32::MAX);
            }
        }
    }

    fn batch(self, peer: PeerId, region: &Region) -> Batch {
        let at = region.addr();
        let place = |n: u64| at + n * 2 * BLOCK;
        let mut batch = Batch::new();
        batch.set_deadline(LIMIT);
        let paged = |batch: &mut Batch, pages: u64, immediate: Option<u32>| {
            let addrs: Vec<u64> = (0..pages).map(place).collect();
            let shape = Shape::Paged { page_len: BLOCK, addrs: &addrs };
            let write = Request::write(peer, region, at, at, BLOCK);
            let request = Request { local_shape: shape, remote_shape: shape, immediate, ..write };
            batch.push(request).expect("a request");
        };
        let write = |batch: &mut Batch, n: u64, immediate: Option<u32>| {
            let write = Request::write(peer, region, place(n), place(n), BLOCK);
            batch.push(Request { immediate, ..write }).expect("a request");
        };
        match self {
            Self::Posted | Self::Refused | Self::BackOff | Self::PeerBackOff => write(&mut batch, 0, None),
            Self::QueuedForCredit | Self::RefusedNowAndThen => {
                (0..DEPTH as u64 + 9).for_each(|n| write(&mut batch, n, None));
            }
            Self::Paged => paged(&mut batch, 3 * DEPTH as u64, None),
            Self::BeforeImmediate => paged(&mut batch, 5, Some(7)),
            Self::Immediate => write(&mut batch, 0, Some(7)),
        }
        batch
    }
}

/// Catches: deadlines that are looked at only when something happens, or only by whoever waits; a state in which nobody looks; a
/// request that is given up before its time, or that keeps its memory after it.
#[test]
fn whatever_a_request_waits_for_it_ends_at_its_deadline() {
    let test = "whatever_a_request_waits_for_it_ends_at_its_deadline";
    scripted(test, |control| {
        for state in STATES {
            for follows in [Follows::Waiter, Follows::ProgressThread] {
                let what = format!("{state:?}, {follows:?}");
                control.reset();
                let config = config("scripted", 1, "initiator").stuck_after(Duration::from_millis(1));
                // More attempts than there is time for.
                let transport = Transport::open(config.retries(1000)).expect("scripted");
                let region = memory(&transport, LEN);
                let own = transport.add_or_update_peer(&transport.local_descriptor()).expect("ourselves");
                state.prepare(control);
                let handle = transport.submit(&mut state.batch(own, &region)).expect("submitting");
                let deadline = Instant::now() + LIMIT;
                let (outcome, late) = follow(&handle, follows, deadline);
                assert!(late <= LATENESS, "{what}: {late:?} of processor time too late");
                let error = outcome.expect_err(&what).to_string();
                let in_time = matches!(state, State::BackOff | State::PeerBackOff);
                // Another attempt would have come too late: that is told at once.
                assert!(in_time || Instant::now() >= deadline, "{what}: too early: {error}");
                assert!(in_time || error.contains("deadline") || error.contains("80ms"), "{what}: {error}");
                // What the card never ends is ended for it.
                control.forget_answers();
                assert!(handle.quiesced(soon()), "{what}");
                region.unregister(soon()).expect("nothing is under way");
                assert_eq!(control.faults().total(), 0, "{what}");
                transport.shutdown(soon());
            }
        }
    });
}

/// Catches: a warm-up that waits for its last probe, or its rehearsal, past its deadline.
#[test]
fn a_warm_up_ends_at_its_deadline() {
    scripted("a_warm_up_ends_at_its_deadline", |control| {
        // None of its operations ends; the provider takes none; some end, and not the requests that come last.
        let answers = [(0, Answer::Never), (0, Answer::Fail(EAGAIN)), (2, Answer::Never), (3, Answer::Never)];
        for (first, answer) in answers {
            control.reset();
            let config = config("scripted", 3, "initiator").stuck_after(Duration::from_millis(1));
            let transport = Transport::open(config).expect("scripted");
            let own = transport.add_or_update_peer(&transport.local_descriptor()).expect("ourselves");
            control.tell(Call::Post, Answer::Usual, first);
            control.tell(Call::Post, answer, u32::MAX);
            let (began, clock) = (Instant::now(), CpuClock::process());
            let outcome = transport.warm_up(own, began + LIMIT);
            // Not more than it would have taken of a processor that it had for itself until the deadline.
            let used = clock.cpu();
            assert!(used <= 2 * LIMIT + LATENESS, "{first} end, then {answer:?}: {used:?}");
            assert!(began.elapsed() >= LIMIT, "{outcome:?}");
            assert_eq!(outcome.is_ok(), first > 0, "{outcome:?}");
            control.forget_answers();
            assert!(transport.peer_quiesced(own, soon()).expect("a peer"));
            transport.shutdown(soon());
        }
    });
}

/// Catches: a request that waits for a connection, or for an answer, for as long as the provider likes; a caller that is held up
/// while it submits.
#[test]
fn a_target_that_has_stopped_makes_nobody_wait_past_a_deadline() {
    for provider in providers() {
        let name = format!("a_target_that_has_stopped over {provider}");
        for met in [false, true] {
            let Some(transport) = open(&name, config(provider, 2, "initiator")) else { continue };
            let mut target = Target::start(provider, 2, "the-target", LEN);
            let (peer, addr) = (target.meet(&transport), target.addr);
            let region = memory(&transport, LEN);
            if met {
                transport.warm_up(peer, soon()).expect("while it runs");
            }
            target.stop();
            for follows in [Follows::Waiter, Follows::ProgressThread] {
                let mut batch = Batch::new();
                batch.set_deadline(LIMIT);
                for read in [false, true] {
                    for page in 0..8 {
                        let (here, there) = (region.addr() + page * 65_536, addr + page * 65_536);
                        batch
                            .push(if read {
                                Request::read(peer, &region, here, there, 65_536)
                            } else {
                                Request::write(peer, &region, here, there, 65_536)
                            })
                            .expect("a request");
                    }
                }
                let clock = CpuClock::process();
                let handle = transport.submit(&mut batch).expect("submitting");
                assert!(clock.cpu() <= LATENESS, "{name}: submitting took {:?}", clock.cpu());
                let (outcome, late) = follow(&handle, follows, Instant::now() + LIMIT);
                assert!(late <= LATENESS, "{name}, met: {met}, {follows:?}: {late:?} too late");
                let error = outcome.expect_err("nobody has answered the reads").to_string();
                assert!(error.contains("the-target"), "{name}: {error}");
            }
            target.kill();
            transport.shutdown(Instant::now() + LIMIT);
        }
    }
}
