//! A submitted batch, from the hand-over to its transports to its verdict.
//!
//! When the transports are through with it there is mostly nothing left to be done; otherwise there is an [`aftermath`].

mod aftermath;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use crate::engine::Inner as Engine;
use crate::error::Error;
use crate::handle::Status;
use crate::request::{Parts, Place};
#[cfg(feature = "efa")]
use crate::statistics::PeerCounters;

pub(crate) struct Flight {
    pub(crate) tcp: Option<tcp_transport::BatchHandle>,
    #[cfg(feature = "efa")]
    pub(crate) fabric: Option<efa_transport::BatchHandle>,
    #[cfg(feature = "mooncake")]
    pub(crate) mooncake: Option<crate::mooncake::Handle>,
    pub(crate) parts: Parts,
    pub(crate) deadline: Instant,
    /// The epochs of the segments when they were submitted to.
    pub(crate) epochs: Vec<u128>,
    pub(crate) notification: Option<Vec<u8>>,
    pub(crate) engine: Weak<Engine>,
    cancelled: AtomicBool,
    /// Nothing will change any more.
    settled: AtomicBool,
    after: Mutex<After>,
    changed: Condvar,
}

/// What the aftermath has come to.
#[derive(Default)]
struct After {
    /// Somebody is about it.
    begun: bool,
    /// Requests that failed, ascending; all others ended well.
    errors: Vec<(usize, Error)>,
    /// The notification could not be delivered.
    undelivered: Option<Error>,
    /// The second attempt of some requests.
    second: Option<Arc<tcp_transport::BatchHandle>>,
    waker: Option<Waker>,
}

impl Flight {
    pub(crate) fn new(
        engine: Weak<Engine>,
        parts: Parts,
        deadline: Instant,
        notification: Option<Vec<u8>>,
        tcp: Option<tcp_transport::BatchHandle>,
        #[cfg(feature = "efa")] fabric: Option<efa_transport::BatchHandle>,
        #[cfg(feature = "mooncake")] mooncake: Option<crate::mooncake::Handle>,
    ) -> Self {
        Self {
            epochs: parts.segments.iter().map(|segment| segment.epoch()).collect(),
            tcp,
            #[cfg(feature = "efa")]
            fabric,
            #[cfg(feature = "mooncake")]
            mooncake,
            parts,
            deadline,
            notification,
            engine,
            cancelled: AtomicBool::new(false),
            settled: AtomicBool::new(false),
            after: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn after(&self) -> MutexGuard<'_, After> {
        self.after.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Acquire)
    }

    // ---- the transports --------------------------------------------------------------------------------------------------

    /// Whether both are through, and if so whether all went well.
    fn transports(&self) -> Option<bool> {
        let tcp = self.tcp.as_ref().map_or(Some(Ok(())), |handle| handle.poll())?.is_ok();
        #[cfg(feature = "efa")]
        let tcp = self.fabric.as_ref().map_or(Some(Ok(())), |handle| handle.poll())?.is_ok() && tcp;
        #[cfg(feature = "mooncake")]
        let tcp = self.mooncake.as_ref().map_or(Some(true), |handle| handle.poll())? && tcp;
        Some(tcp)
    }

    /// Blocks until both are through.
    fn drive(&self) -> bool {
        let tcp = self.tcp.as_ref().is_none_or(|handle| handle.wait().is_ok());
        #[cfg(feature = "efa")]
        let tcp = self.fabric.as_ref().is_none_or(|handle| handle.wait().is_ok()) && tcp;
        #[cfg(feature = "mooncake")]
        let tcp = self.mooncake.as_ref().is_none_or(|handle| handle.wait()) && tcp;
        tcp
    }

    fn drive_until(&self, deadline: Instant) -> Option<bool> {
        let tcp = self.tcp.as_ref().map_or(Some(Ok(())), |handle| handle.wait_until(deadline))?.is_ok();
        #[cfg(feature = "efa")]
        let tcp =
            self.fabric.as_ref().map_or(Some(Ok(())), |handle| handle.wait_until(deadline))?.is_ok() && tcp;
        #[cfg(feature = "mooncake")]
        let tcp = self.mooncake.as_ref().map_or(Some(true), |handle| handle.wait_until(deadline))? && tcp;
        Some(tcp)
    }

    fn raw_status(&self, index: usize) -> Status {
        match self.parts.slots.get(index).map(|slot| slot.place) {
            Some(Place::Tcp(at)) => match self.tcp.as_ref().map(|handle| handle.status(at)) {
                Some(tcp_transport::Status::Pending) => Status::Pending,
                Some(tcp_transport::Status::Done) => Status::Done,
                Some(tcp_transport::Status::Failed(error)) => Status::Failed(error.into()),
                None => no_such_request(index),
            },
            #[cfg(feature = "mooncake")]
            Some(Place::Mooncake(at)) => match self.mooncake.as_ref().map(|handle| handle.status(at)) {
                Some(None) => Status::Pending,
                Some(Some(Ok(()))) => Status::Done,
                Some(Some(Err(error))) => Status::Failed(error),
                None => no_such_request(index),
            },
            #[cfg(feature = "efa")]
            Some(Place::Fabric { at, .. }) => match self.fabric.as_ref().map(|handle| handle.status(at)) {
                Some(efa_transport::Status::Pending) => Status::Pending,
                Some(efa_transport::Status::Done) => Status::Done,
                Some(efa_transport::Status::Failed(error)) => Status::Failed(error.into()),
                None => no_such_request(index),
            },
            None => no_such_request(index),
        }
    }

    // ---- looking at it ---------------------------------------------------------------------------------------------------

    pub(crate) fn wait(self: &Arc<Self>) -> Result<(), Error> {
        if !self.is_settled() {
            let well = self.drive();
            self.settle(well);
        }
        self.verdict()
    }

    /// Settles on this thread. The transports are through.
    fn settle(&self, well: bool) {
        if self.settle_at_once(well) {
            return;
        }
        let mut after = self.after();
        if !after.begun {
            after.begun = true;
            drop(after);
            self.aftermath();
            return;
        }
        while !self.is_settled() {
            after = self.changed.wait(after).unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn wait_until(self: &Arc<Self>, deadline: Instant) -> Option<Result<(), Error>> {
        if !self.is_settled() {
            let well = self.drive_until(deadline)?;
            if !self.settle_at_once(well) {
                self.send_aftermath();
                let mut after = self.after();
                while !self.is_settled() {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return None;
                    }
                    after = self.changed.wait_timeout(after, left).unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
        Some(self.verdict())
    }

    pub(crate) fn poll(self: &Arc<Self>) -> Option<Result<(), Error>> {
        if !self.is_settled() {
            let well = self.transports()?;
            if !self.settle_at_once(well) {
                self.send_aftermath();
                return None;
            }
        }
        Some(self.verdict())
    }

    pub(crate) fn poll_with(self: &Arc<Self>, context: &mut Context<'_>) -> Poll<Result<(), Error>> {
        if !self.is_settled() {
            let mut well = true;
            if let Some(mut handle) = self.tcp.as_ref() {
                match std::pin::Pin::new(&mut handle).poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(result) => well &= result.is_ok(),
                }
            }
            #[cfg(feature = "efa")]
            if let Some(mut handle) = self.fabric.as_ref() {
                match std::pin::Pin::new(&mut handle).poll(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(result) => well &= result.is_ok(),
                }
            }
            #[cfg(feature = "mooncake")]
            if let Some(handle) = &self.mooncake {
                match handle.poll_with(context) {
                    Poll::Pending => return Poll::Pending,
                    Poll::Ready(result) => well &= result,
                }
            }
            if !self.settle_at_once(well) {
                self.after().waker = Some(context.waker().clone());
                self.send_aftermath();
                // Asked again after the waker has been left, so that an end in between is seen by one or the other.
                if !self.is_settled() {
                    return Poll::Pending;
                }
            }
        }
        Poll::Ready(self.verdict())
    }

    pub(crate) fn status(self: &Arc<Self>, index: usize) -> Status {
        if !self.is_settled() {
            match self.raw_status(index) {
                // What failed over libfabric may still end well over TCP.
                Status::Failed(_) if self.may_still_move(index) => {
                    self.poll();
                    if !self.is_settled() {
                        return Status::Pending;
                    }
                }
                other => return other,
            }
        }
        if index >= self.parts.slots.len() {
            return no_such_request(index);
        }
        let after = self.after();
        match after.errors.binary_search_by_key(&index, |(at, _)| *at) {
            Ok(at) => Status::Failed(after.errors[at].1.clone()),
            Err(_) => Status::Done,
        }
    }

    fn may_still_move(&self, index: usize) -> bool {
        match self.parts.slots.get(index).map(|slot| slot.place) {
            #[cfg(feature = "efa")]
            Some(Place::Fabric { kept, .. }) => kept.is_some(),
            _ => false,
        }
    }

    fn verdict(&self) -> Result<(), Error> {
        let after = self.after();
        match after.errors.first() {
            None => after.undelivered.clone().map_or(Ok(()), Err),
            Some((_, error)) if self.parts.slots.len() == 1 => Err(error.clone()),
            Some((index, error)) => Err(Error::Batch {
                failed: after.errors.len(),
                total: self.parts.slots.len(),
                index: *index,
                source: Box::new(error.clone()),
            }),
        }
    }

    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        if let Some(handle) = &self.tcp {
            handle.cancel();
        }
        #[cfg(feature = "efa")]
        if let Some(handle) = &self.fabric {
            handle.cancel();
        }
        #[cfg(feature = "mooncake")]
        if let Some(handle) = &self.mooncake {
            handle.cancel();
        }
        let second = self.after().second.clone();
        if let Some(handle) = second {
            handle.cancel();
        }
    }

    pub(crate) fn quiesced(self: &Arc<Self>, deadline: Instant) -> bool {
        // Before that, another attempt may yet begin.
        if self.wait_until(deadline).is_none() {
            return false;
        }
        let second = self.after().second.clone();
        let quiet = self.tcp.as_ref().is_none_or(|handle| handle.quiesced(deadline))
            && second.is_none_or(|handle| handle.quiesced(deadline));
        #[cfg(feature = "efa")]
        let quiet = quiet && self.fabric.as_ref().is_none_or(|handle| handle.quiesced(deadline));
        #[cfg(feature = "mooncake")]
        let quiet = quiet && self.mooncake.as_ref().is_none_or(|handle| handle.quiesced(deadline));
        quiet
    }

    // ---- settling --------------------------------------------------------------------------------------------------------

    /// Settles if there is nothing to be done: all went well, and nobody is to be told.
    fn settle_at_once(&self, well: bool) -> bool {
        if self.is_settled() {
            return true;
        }
        if !well || self.notification.is_some() {
            return false;
        }
        let mut after = self.after();
        if !after.begun {
            after.begun = true;
            self.count(&[], &[]);
            self.finish(after, Vec::new(), None);
        }
        self.is_settled()
    }

    /// Has somebody else do what is to be done.
    fn send_aftermath(self: &Arc<Self>) {
        let mut after = self.after();
        if std::mem::replace(&mut after.begun, true) {
            return;
        }
        drop(after);
        match self.engine.upgrade() {
            Some(engine) => {
                let flight = Arc::clone(self);
                engine.errands.run(move || flight.aftermath());
            }
            None => self.aftermath(),
        }
    }

    fn finish(
        &self,
        mut after: MutexGuard<'_, After>,
        errors: Vec<(usize, Error)>,
        undelivered: Option<Error>,
    ) {
        after.errors = errors;
        after.undelivered = undelivered;
        self.settled.store(true, Ordering::Release);
        let waker = after.waker.take();
        drop(after);
        self.changed.notify_all();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// `moved`: what ended well over TCP at last, ascending.
    fn count(&self, errors: &[(usize, Error)], moved: &[usize]) {
        let mut failed = errors.iter().map(|(index, _)| *index).peekable();
        for (index, slot) in self.parts.slots.iter().enumerate() {
            let well = failed.next_if_eq(&index).is_none();
            let Some(segment) = self.parts.segments.get(slot.segment as usize) else { continue };
            let counters = segment.counters();
            let path = match slot.place {
                Place::Tcp(_) => &counters.tcp,
                #[cfg(feature = "mooncake")]
                Place::Mooncake(_) => &counters.tcp,
                #[cfg(feature = "efa")]
                Place::Fabric { .. } if moved.binary_search(&index).is_ok() => {
                    PeerCounters::count(&counters.requests_moved);
                    &counters.tcp
                }
                #[cfg(feature = "efa")]
                Place::Fabric { .. } => &counters.fabric,
            };
            #[cfg(not(feature = "efa"))]
            let _ = moved;
            path.ended(slot.op, slot.bytes, well);
        }
    }

    /// Takes the parts out of a flight that nobody else holds, for reuse.
    pub(crate) fn into_parts(self) -> Parts {
        self.parts
    }
}

fn no_such_request(index: usize) -> Status {
    Status::Failed(tcp_transport::Error::Request(format!("the batch has no request {index}")).into())
}
