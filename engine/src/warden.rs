//! One thread that looks after what nobody else does: batches whose handles were dropped, peers that do not answer, that the
//! libfabric path reports about, or that wait to return from TCP, immediates that nobody counts yet. It blocks on nothing but its own
//! queue.

use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use crate::engine::Inner as Engine;
use crate::error::Error;
use crate::flight::Flight;
use crate::segment::MENDING;

/// Between two looks while something is going on.
const BUSY: Duration = Duration::from_millis(20);
/// Between two looks at the libfabric path's news.
#[cfg(feature = "efa")]
const NEWS: Duration = Duration::from_millis(100);
/// Between two looks when there is only TCP: immediates are taken in before the transport's 65 536 places are full.
const IDLE: Duration = Duration::from_millis(500);

/// The way to the thread, which ends when this is dropped.
pub(crate) type Warden = Sender<Arc<Flight>>;

/// The thread's end.
pub(crate) type Post = Receiver<Arc<Flight>>;

pub(crate) fn post() -> (Warden, Post) {
    mpsc::channel()
}

pub(crate) fn start(engine: &Arc<Engine>, post: Post) -> Result<(), Error> {
    let engine = Arc::downgrade(engine);
    let started =
        std::thread::Builder::new().name("weft-warden".into()).spawn(move || look_after(&engine, &post));
    started.map(drop).map_err(|error| Error::Setting(format!("no thread to be had: {error}")))
}

fn look_after(engine: &Weak<Engine>, post: &Post) {
    let mut orphans: Vec<Arc<Flight>> = Vec::new();
    let mut pause = IDLE;
    loop {
        match post.recv_timeout(pause) {
            Ok(flight) => orphans.push(flight),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return,
        }
        orphans.extend(post.try_iter());
        let Some(engine) = engine.upgrade() else { return };
        orphans.retain(|flight| flight.poll().is_none());
        engine.node.arrivals.take_in(engine.transport.arrivals());
        let searching = find_lost(&engine);
        pause = if orphans.is_empty() && !searching { IDLE } else { BUSY };
        #[cfg(feature = "efa")]
        if let Ok(fabric) = engine.node.fabric() {
            while let Some(event) = fabric.events().try_next() {
                hear(&engine, &event);
            }
            // Whatever the news are: they may have come before anybody asked.
            engine.tell();
            pause = pause.min(if send_back(&engine) { BUSY } else { NEWS });
        }
    }
}

/// Asks peers that do not answer again; whether there are any.
fn find_lost(engine: &Engine) -> bool {
    let mut any = false;
    for segment in engine.open_segments() {
        let (lost, due) = segment.is_lost();
        any |= lost;
        if due {
            engine.errands.run(move || {
                let now = Instant::now();
                segment.mend(now, now + MENDING, |_| None);
            });
        }
    }
    any
}

/// Acts on news of the libfabric path. What its NICs do it logs itself.
#[cfg(feature = "efa")]
fn hear(engine: &Engine, event: &efa_transport::Event) {
    use efa_transport::Event;
    let (peer, reason) = match event {
        Event::PeerDown { peer, .. } => (*peer, Some("it does not answer on any rail")),
        Event::PeerStale { peer, .. } | Event::PeerRestarted { peer, .. } => (*peer, None),
        _ => return,
    };
    // Whoever's requests failed has asked the peer already.
    let lately = Instant::now().checked_sub(Duration::from_millis(500));
    for segment in engine.open_segments().into_iter().filter(|segment| segment.is_of(peer)) {
        engine.errands.run(move || {
            let now = Instant::now();
            segment.mend(lately.unwrap_or(now), now + Duration::from_secs(3), |_| reason.map(str::to_owned));
        });
    }
}

/// Tries peers whose traffic was moved to TCP; whether there are any.
#[cfg(feature = "efa")]
fn send_back(engine: &Engine) -> bool {
    let moved: Vec<_> = engine.open_segments().into_iter().filter(|segment| segment.is_moved()).collect();
    let any = !moved.is_empty();
    for segment in moved.into_iter().filter(|segment| segment.return_is_due()) {
        engine.errands.run(move || segment.try_return());
    }
    any
}
