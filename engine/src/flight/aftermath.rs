//! What is done for a batch whose transports are through with it and that did not simply end well.
//!
//! Peers whose requests failed are asked what has become of them; requests that failed on a dead libfabric path are sent over TCP,
//! when nothing of their first attempt can touch memory any more; a notification that was asked for is delivered. It happens once
//! for each batch, on the thread that waits for it, or as an errand when nobody does.

use std::sync::atomic::Ordering;
use std::time::Instant;

use super::Flight;
use crate::engine::Inner as Engine;
use crate::error::Error;
use crate::handle::Status;
use crate::known::Known;
use crate::request::Place;
use crate::segment::Condition;

impl Flight {
    /// What there is to be done. Called once.
    pub(super) fn aftermath(&self) {
        let mut errors: Vec<(usize, Error)> = (0..self.parts.slots.len())
            .filter_map(|index| match self.raw_status(index) {
                Status::Failed(error) => Some((index, error)),
                Status::Pending | Status::Done => None,
            })
            .collect();
        let mut moved = Vec::new();
        let engine = self.engine.upgrade();
        if let Some(engine) = &engine
            && !errors.is_empty()
            && !self.cancelled.load(Ordering::Acquire)
        {
            let candidates = self.mend(&mut errors);
            moved = self.move_to_tcp(engine, candidates, &mut errors);
        }
        let mut undelivered = None;
        if errors.is_empty()
            && let Some(payload) = &self.notification
        {
            undelivered =
                self.parts.segments.iter().find_map(|segment| segment.notify(payload, self.deadline).err());
        }
        self.count(&errors, &moved);
        self.finish(self.after(), errors, undelivered);
    }

    /// Asks the peers of failed requests what has become of them, each once. Whom it finds in another life, it says so in the
    /// errors. Returns the failed requests whose peers are alive and the same.
    fn mend(&self, errors: &mut [(usize, Error)]) -> Vec<usize> {
        let now = Instant::now();
        let mut found: Vec<Option<Condition>> = vec![None; self.parts.segments.len()];
        let mut candidates = Vec::new();
        for (index, error) in errors {
            let slot = self.parts.slots[*index];
            let Some(trouble) = Trouble::of(error).or_else(|| Trouble::of_mooncake(slot.place)) else {
                continue;
            };
            let at = slot.segment as usize;
            let segment = &self.parts.segments[at];
            let condition = *found[at].get_or_insert_with(|| {
                segment.mend(now, self.deadline, |known| {
                    let doubtful = trouble == Trouble::Path || self.is_registered(*index, known);
                    doubtful.then(|| error.to_string())
                })
            });
            match condition {
                Condition::Silent => {}
                Condition::Alive(epoch) if self.epochs.get(at) == Some(&epoch) => candidates.push(*index),
                Condition::Alive(_) => {
                    *error = Error::Restarted { segment: segment.name().to_owned() };
                }
            }
        }
        candidates
    }

    /// Whether a request's registration is there still: then it is not that what has made it fail over libfabric.
    #[cfg(feature = "efa")]
    fn is_registered(&self, index: usize, known: &Known) -> bool {
        match self.parts.slots[index].place {
            Place::Fabric { kept: Some(kept), .. } => known.has(&self.parts.kept.remote(kept)),
            _ => false,
        }
    }

    #[cfg(not(feature = "efa"))]
    fn is_registered(&self, _: usize, _: &Known) -> bool {
        false
    }

    /// Sends failed requests over TCP, as far as that is allowed, when nothing of their first attempt moves any more.
    #[cfg(feature = "efa")]
    fn move_to_tcp(
        &self,
        engine: &Engine,
        candidates: Vec<usize>,
        errors: &mut Vec<(usize, Error)>,
    ) -> Vec<usize> {
        let movable: Vec<(usize, u32)> = candidates
            .into_iter()
            .filter_map(|index| match self.parts.slots[index].place {
                Place::Fabric { kept: Some(kept), .. } => Some((index, kept)),
                _ => None,
            })
            .collect();
        // A late write of the first attempt could overtake the second one, and what comes after it.
        if movable.is_empty() || !self.fabric.as_ref().is_none_or(|handle| handle.quiesced(self.deadline)) {
            return Vec::new();
        }
        let mut batch = tcp_transport::Batch::new();
        batch.set_deadline(self.deadline.saturating_duration_since(Instant::now()));
        let mut sent = Vec::new();
        for (index, kept) in movable {
            let slot = &self.parts.slots[index];
            let known = self.parts.segments[slot.segment as usize].known();
            match self.parts.kept.send(kept, known.peer(), &mut batch) {
                Ok(at) => sent.push((index, at)),
                Err(second) => add_second(errors, index, second),
            }
        }
        let handle = match engine.transport.submit(&mut batch) {
            Ok(handle) => std::sync::Arc::new(handle),
            Err(error) => {
                for (index, _) in sent {
                    add_second(errors, index, error.clone().into());
                }
                return Vec::new();
            }
        };
        self.after().second = Some(std::sync::Arc::clone(&handle));
        if self.cancelled.load(Ordering::Acquire) {
            handle.cancel();
        }
        // Each request's own end is asked for below.
        let _ = handle.wait();
        let mut moved = Vec::new();
        for (index, at) in sent {
            match handle.status(at) {
                tcp_transport::Status::Done => moved.push(index),
                tcp_transport::Status::Failed(second) => add_second(errors, index, second.into()),
                tcp_transport::Status::Pending => {}
            }
        }
        if !moved.is_empty() {
            errors.retain(|(failed, _)| moved.binary_search(failed).is_err());
            tracing::debug!(requests = moved.len(), "failed over libfabric and went over TCP instead");
        }
        moved
    }

    #[cfg(not(feature = "efa"))]
    fn move_to_tcp(&self, _: &Engine, _: Vec<usize>, _: &mut Vec<(usize, Error)>) -> Vec<usize> {
        Vec::new()
    }
}

#[cfg(feature = "efa")]
fn add_second(errors: &mut [(usize, Error)], index: usize, second: Error) {
    if let Some((_, first)) = errors.iter_mut().find(|(failed, _)| *failed == index) {
        *first = Error::BothPaths { first: Box::new(first.clone()), second: Box::new(second) };
    }
}

/// What an error says about the peer, where asking it again may help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trouble {
    /// What was known of its memory does not hold any more.
    Stale,
    /// It has not answered over TCP, so there is no way to ask it now.
    Silence,
    /// The libfabric path to it has failed.
    #[cfg_attr(not(feature = "efa"), allow(dead_code))]
    Path,
}

impl Trouble {
    fn of(error: &Error) -> Option<Self> {
        use tcp_transport::{Error as Tcp, Refusal};
        match error {
            Error::Tcp(
                Tcp::PeerRestarted { .. }
                | Tcp::Refused {
                    reason:
                        Refusal::UnknownKey | Refusal::Revoked | Refusal::OutOfBounds | Refusal::AccessDenied,
                    ..
                },
            ) => Some(Self::Stale),
            Error::Tcp(Tcp::Timeout { .. } | Tcp::Disconnected { .. }) => Some(Self::Silence),
            #[cfg(feature = "efa")]
            Error::Fabric(
                efa_transport::Error::PeerStale { .. } | efa_transport::Error::NotRegistered { .. },
            ) => Some(Self::Stale),
            #[cfg(feature = "efa")]
            Error::Fabric(error) if error.is_about_peer() => Some(Self::Path),
            _ => None,
        }
    }
}

impl Trouble {
    /// A Mooncake node that has been restarted has another data port, which only asking it again tells.
    fn of_mooncake(place: Place) -> Option<Self> {
        match place {
            #[cfg(feature = "mooncake")]
            Place::Mooncake(_) => Some(Self::Stale),
            _ => None,
        }
    }
}
