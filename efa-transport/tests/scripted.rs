//! On a provider that refuses and fails on command.
//!
//! Doorbell batching: a card is told of everything that has been posted before anybody looks at its completions, whatever has become
//! of the operation that was to follow. Immediates: one whose fate is unknown is not sent again.

mod common;

use std::time::Duration;

use common::scripted::scripted;
use common::{config, memory, soon};
use efa_transport::{Batch, Request, Transport};
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, TestRunner};
use scripted_provider::{Answer, Call, Control};

const EAGAIN: i32 = 11;
const EIO: i32 = 5;
const BLOCK: u64 = 64;
const BLOCKS: u64 = 64;

/// What happens while batches are posted.
#[derive(Debug, Clone, Copy)]
enum Act {
    /// So many posts are taken, then one is refused with that.
    Refuse { after: u32, errno: i32 },
    /// A batch of so many requests.
    Submit { requests: u64 },
    /// The latest batch is not wanted any more.
    Cancel,
    /// The NICs are driven.
    Drive,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        // At least one is taken between two that are refused: the bell's.
        3 => (1..20_u32, prop_oneof![3 => Just(EAGAIN), 1 => Just(EIO)])
            .prop_map(|(after, errno)| Act::Refuse { after, errno }),
        4 => (1..40_u64).prop_map(|requests| Act::Submit { requests }),
        2 => Just(Act::Cancel),
        2 => Just(Act::Drive),
    ]
}

fn play(transport: &Transport, control: Control, acts: &[Act]) -> Result<(), TestCaseError> {
    control.reset();
    let region = memory(transport, (BLOCK * BLOCKS) as usize);
    let own = transport.add_or_update_peer(&transport.local_descriptor()).expect("our descriptor");
    let mut flights = Vec::new();
    let mut batch = Batch::new();
    for act in acts {
        match *act {
            Act::Refuse { after, errno } => {
                control.tell(Call::Post, Answer::Usual, after);
                control.tell(Call::Post, Answer::Fail(errno), 1);
            }
            Act::Submit { requests } => {
                for request in 0..requests {
                    let at = region.addr() + request % BLOCKS * BLOCK;
                    // A page apart, so that nothing merges.
                    batch.push(Request::write(own, &region, at, at, BLOCK)).expect("a request");
                }
                flights.push(transport.submit(&mut batch).expect("submitting"));
            }
            Act::Cancel => flights.last().into_iter().for_each(efa_transport::BatchHandle::cancel),
            Act::Drive => {
                transport.progress();
            }
        }
    }
    for flight in &flights {
        // Cancelled, or failed too often: both are ends.
        let ended = flight.wait_until(soon());
        prop_assert!(ended.is_some(), "a batch does not end");
    }
    drop(flights);
    region.unregister(soon()).expect("nothing is under way");
    let (counts, faults) = (control.counts(), control.faults());
    prop_assert_eq!(counts.untold, 0, "{:?}", counts);
    prop_assert_eq!(faults.total(), 0, "{:?}", faults);
    Ok(())
}

/// Catches: a bell that is left to an operation which is then refused or cancelled, and rings late or never.
#[test]
fn every_card_is_told_of_what_was_posted_before_its_completions_are_read() {
    let test = "every_card_is_told_of_what_was_posted_before_its_completions_are_read";
    scripted(test, |control| {
        let config = config("scripted", 1, "initiator").doorbell_batching(true);
        let transport = Transport::open(config.request_deadline(Duration::from_secs(5))).expect("scripted");
        let promised = std::cell::Cell::new(0);
        let runs = Runs { failure_persistence: None, ..Runs::default() };
        let played = TestRunner::new(runs).run(&prop::collection::vec(act(), 1..30), |acts| {
            let outcome = play(&transport, control, &acts);
            promised.set(promised.get() + control.counts().promised);
            outcome
        });
        if let Err(error) = played {
            panic!("{error}");
        }
        // Otherwise nothing has been shown.
        assert!(promised.get() > 0, "no doorbell has been saved");
        transport.shutdown(soon());
    });
}

/// Catches: an immediate that is sent again after an attempt of which nobody knows whether it got through, so that the receiver
/// counts it twice; writes without one that are given up although they can be repeated.
#[test]
fn an_immediate_of_unknown_fate_is_not_sent_again_and_a_plain_write_is() {
    let test = "an_immediate_of_unknown_fate_is_not_sent_again_and_a_plain_write_is";
    scripted(test, |control| {
        let transport = Transport::open(config("scripted", 2, "initiator")).expect("scripted");
        let region = memory(&transport, BLOCK as usize);
        let own = transport.add_or_update_peer(&transport.local_descriptor()).expect("our descriptor");
        let mut batch = Batch::new();
        for (immediate, attempts) in [(true, 1), (false, 2)] {
            control.reset();
            control.tell(Call::Post, Answer::Error { errno: EIO, provider_errno: 0, after: 0 }, 1);
            let write = Request::write(own, &region, region.addr(), region.addr(), BLOCK);
            batch.push(if immediate { write.with_immediate(7) } else { write }).expect("a request");
            let outcome = transport.submit(&mut batch).expect("submitting").wait();
            assert_eq!(outcome.is_err(), immediate, "{outcome:?}");
            if let Err(error) = outcome {
                assert!(error.to_string().contains("may or may not have arrived"), "{error}");
            }
            assert_eq!(control.counts().accepted, attempts, "immediate: {immediate}");
        }
        transport.shutdown(soon());
    });
}
