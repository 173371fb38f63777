//! Another engine's memory: what is known of it, and which way leads there.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::{Duration, Instant};

use tcp_transport::{Peer, Shape};

use crate::backoff::Backoff;
use crate::control::{self, Answer, Ask, Note};
use crate::engine::Inner as Engine;
use crate::error::Error;
use crate::known::Known;
pub use crate::known::RemoteBuffer;
use crate::memory::Region;
use crate::path::{Chosen, Path};
use crate::statistics::{PeerCounters, PeerStatistics};

/// How long a peer has to answer when its requests have failed and it is asked what is the matter. Generous for a round trip, short for
/// whoever waits.
pub(crate) const MENDING: Duration = Duration::from_secs(2);

/// How long what a peer has said is not doubted.
const DOUBTING: Duration = Duration::from_millis(50);

/// A peer engine's registered memory. Clones are the same segment; opening the same name twice gives the same one. May be used
/// from any thread.
#[derive(Clone)]
pub struct Segment {
    inner: Arc<Inner>,
}

pub(crate) struct Inner {
    name: Arc<str>,
    engine: Weak<Engine>,
    known: RwLock<Arc<Known>>,
    #[cfg(feature = "efa")]
    failover: crate::failover::Failover,
    mending: Mutex<Option<Mended>>,
    /// There while the peer does not answer: when it is asked again.
    lost: Mutex<Option<Backoff>>,
    pub(crate) counters: Arc<PeerCounters>,
}

/// What asking a peer again came to.
#[derive(Debug, Clone, Copy)]
struct Mended {
    began: Instant,
    found: Condition,
}

/// What has become of a peer whose requests failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Condition {
    /// It does not answer over TCP either.
    Silent,
    /// It answers, in the life of which these epochs are the number.
    Alive(u128),
}

impl Segment {
    /// Asks the peer who it is; the answer decides the path.
    pub(crate) fn open(name: &str, engine: &Arc<Engine>, deadline: Instant) -> Result<Self, Error> {
        let known = describe(name, engine, deadline)?;
        let inner = Inner {
            name: name.into(),
            engine: Arc::downgrade(engine),
            known: RwLock::new(Arc::new(known)),
            #[cfg(feature = "efa")]
            failover: crate::failover::Failover::new(&engine.settings),
            mending: Mutex::default(),
            lost: Mutex::default(),
            counters: engine.counters(name),
        };
        Ok(Self { inner: Arc::new(inner) })
    }

    pub(crate) fn downgrade(&self) -> Weak<Inner> {
        Arc::downgrade(&self.inner)
    }

    pub(crate) fn upgrade(inner: &Weak<Inner>) -> Option<Self> {
        inner.upgrade().map(|inner| Self { inner })
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The name it was opened by.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The peer's buffers as last heard, in ascending order of address.
    pub fn buffers(&self) -> Vec<RemoteBuffer> {
        self.known().buffers().to_vec()
    }

    /// The buffer with this label; of several the one with the lowest address. If the peer has told of none, it is asked again in the
    /// background, so that a later call may find it; [`refresh`](Self::refresh) waits for that.
    ///
    /// # Errors
    /// [`Error::Control`] if the peer has none as far as is known.
    pub fn buffer(&self, label: &str) -> Result<RemoteBuffer, Error> {
        let known = self.known();
        known.buffers().iter().find(|buffer| buffer.label() == label).cloned().ok_or_else(|| {
            self.doubt();
            Error::Control {
                segment: self.name().to_owned(),
                reason: format!("it has no buffer called {label:?}"),
            }
        })
    }

    /// Which way its requests go at the moment.
    pub fn path(&self) -> Path {
        let known = self.known();
        match known.path {
            #[cfg(feature = "efa")]
            Chosen::Fabric(peer) if !self.is_moved() => {
                let engine = self.engine();
                Path::Fabric(engine.map_or_else(|_| "none".into(), |engine| engine.node.fabric_name(peer)))
            }
            #[cfg(feature = "mooncake")]
            Chosen::Mooncake(remote) => Path::Mooncake(remote.version),
            #[cfg(all(feature = "mooncake", feature = "efa"))]
            Chosen::MooncakeFabric(peer, _) => {
                let engine = self.engine();
                let name = engine.map_or_else(|_| "none".into(), |engine| engine.node.fabric_name(peer));
                Path::Fabric(format!("{name} to a Mooncake node"))
            }
            _ => Path::Tcp(known.peer().path()),
        }
    }

    /// Why they go that way, in words.
    pub fn path_reason(&self) -> String {
        #[cfg(feature = "efa")]
        if let Some(reason) = self.inner.failover.reason() {
            return format!("moved to TCP: {reason}");
        }
        self.known().why.clone()
    }

    /// Random number of the peer's life: another one after each restart.
    pub fn epoch(&self) -> u128 {
        self.known().epoch
    }

    /// Fetches the peer's current list of buffers, and tells it ours: one round trip. Needed when the peer has registered
    /// more memory. After a restart, and when requests were refused because a registration has gone, the engine does it by itself.
    ///
    /// # Errors
    /// [`Error::Tcp`] when it cannot be reached until `deadline`, [`Error::Control`], [`Error::Unavailable`].
    pub fn refresh(&self, deadline: Instant) -> Result<(), Error> {
        let engine = self.engine()?;
        let known = describe(self.name(), &engine, deadline)?;
        let before = self.known();
        if before.epoch != known.epoch {
            PeerCounters::count(&self.inner.counters.restarts);
            tracing::info!(segment = self.name(), buffers = known.buffers().len(), "has been restarted");
        }
        #[cfg(feature = "efa")]
        if matches!(known.path, Chosen::Tcp) && self.inner.failover.undo() {
            tracing::info!(segment = self.name(), reason = known.why, "has no libfabric path any more");
        }
        *self.inner.known.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(known);
        Ok(())
    }

    /// Opens connections and rails now rather than with the first request. Idempotent.
    ///
    /// # Errors
    /// As [`refresh`](Self::refresh).
    pub fn warm_up(&self, deadline: Instant) -> Result<(), Error> {
        let known = self.known();
        match known.path {
            #[cfg(feature = "efa")]
            Chosen::Fabric(peer) if !self.is_moved() => self.engine()?.node.fabric()?.warm_up(peer, deadline),
            #[cfg(feature = "mooncake")]
            Chosen::Mooncake(remote) => remote.probe(self.name(), deadline).map(drop),
            #[cfg(all(feature = "mooncake", feature = "efa"))]
            Chosen::MooncakeFabric(peer, _) => self.engine()?.node.fabric()?.warm_up(peer, deadline),
            _ => known.peer().connect(deadline).map(drop).map_err(Error::from),
        }
    }

    /// Puts `payload` into the peer engine's queue of notifications, exactly once, and returns when it is there.
    ///
    /// # Errors
    /// [`Error::Tcp`]: the peer could not be reached, or its queue stayed full, until `deadline`.
    pub fn notify(&self, payload: &[u8], deadline: Instant) -> Result<(), Error> {
        #[cfg(feature = "mooncake")]
        if let Some(remote) = self.known().path.mooncake() {
            return remote.notify(self.name(), self.engine()?.node.name(), payload, deadline);
        }
        let note = Note { from: self.engine()?.node.name().to_owned(), payload: payload.to_vec() };
        Ok(self.known().peer().notify(&control::encode(&note), deadline)?)
    }

    /// Whether the peer engine answers, and how long that takes.
    ///
    /// # Errors
    /// [`Error::Tcp`] if it does not until `deadline`.
    pub fn probe(&self, deadline: Instant) -> Result<Duration, Error> {
        #[cfg(feature = "mooncake")]
        if let Some(remote) = self.known().path.mooncake() {
            return remote.probe(self.name(), deadline);
        }
        let start = Instant::now();
        match ask(self.name(), self.known().peer(), &Ask::Probe, deadline)? {
            Answer::Probe => Ok(start.elapsed()),
            Answer::Describe { .. } => Err(wrong_answer(self.name())),
        }
    }

    /// What was done with the peer, and which way its requests go.
    pub fn statistics(&self) -> PeerStatistics {
        let known = self.known();
        PeerStatistics {
            path: self.path().to_string(),
            reason: self.path_reason(),
            buffers: known.buffers().len(),
            descriptor: match known.path {
                #[cfg(feature = "efa")]
                Chosen::Fabric(peer) => {
                    self.engine().ok().and_then(|engine| engine.node.fabric().ok()?.generation_of(peer))
                }
                _ => None,
            },
            retries: match known.path {
                #[cfg(feature = "efa")]
                Chosen::Fabric(peer) => self.engine().map_or(0, |engine| engine.node.retries(peer)),
                _ => 0,
            },
            ..self.inner.counters.snapshot(self.name())
        }
    }

    pub(crate) fn counters(&self) -> &PeerCounters {
        &self.inner.counters
    }

    pub(crate) fn known(&self) -> Arc<Known> {
        Arc::clone(&self.inner.known.read().unwrap_or_else(PoisonError::into_inner))
    }

    #[cfg(feature = "efa")]
    pub(crate) fn failover(&self) -> &crate::failover::Failover {
        &self.inner.failover
    }

    #[cfg(feature = "efa")]
    pub(crate) fn is_moved(&self) -> bool {
        self.inner.failover.is_moved()
    }

    pub(crate) fn engine(&self) -> Result<Arc<Engine>, Error> {
        self.inner.engine.upgrade().ok_or(Error::Tcp(tcp_transport::Error::ShutDown))
    }

    // ---- which way -----------------------------------------------------------------------------------------------------

    /// The way of a request between these two.
    pub(crate) fn way(&self, known: &Known, local: &Region, remote: &RemoteBuffer) -> Result<Chosen, Error> {
        #[cfg(not(feature = "efa"))]
        let _ = (local, remote);
        match known.path {
            Chosen::Tcp => Ok(Chosen::Tcp),
            #[cfg(feature = "mooncake")]
            Chosen::Mooncake(remote) => Ok(Chosen::Mooncake(remote)),
            #[cfg(all(feature = "mooncake", feature = "efa"))]
            Chosen::MooncakeFabric(peer, remote) => Ok(Chosen::MooncakeFabric(peer, remote)),
            #[cfg(feature = "efa")]
            Chosen::Fabric(_) if self.is_moved() => Ok(Chosen::Tcp),
            #[cfg(feature = "efa")]
            Chosen::Fabric(peer) if local.on_fabric() && remote.on_fabric => Ok(Chosen::Fabric(peer)),
            #[cfg(feature = "efa")]
            Chosen::Fabric(_) if self.inner.failover.is_auto() => Ok(Chosen::Tcp),
            #[cfg(feature = "efa")]
            Chosen::Fabric(_) => {
                let whose = if local.on_fabric() { self.name() } else { "this engine" };
                Err(Error::Unavailable {
                    path: "the libfabric path".into(),
                    reason: format!("the memory at {whose} is not registered with it"),
                })
            }
        }
    }

    /// Something that a program wants is not in what is known: the peer is asked again in the background, now and then.
    pub(crate) fn doubt(&self) {
        let lately = |mended: &Mended| mended.began.elapsed() < DOUBTING;
        match self.inner.mending.try_lock() {
            Ok(mending) if !mending.as_ref().is_some_and(lately) => {}
            // Somebody is about it, or was just now.
            _ => return,
        }
        if let Ok(engine) = self.engine() {
            let segment = self.clone();
            engine.errands.run(move || {
                let now = Instant::now();
                segment.mend(now.checked_sub(DOUBTING).unwrap_or(now), now + MENDING, |_| None);
            });
        }
    }

    /// Finds out what has become of a peer whose requests failed at or before `since`: asks it again, and tries its rails if
    /// `rails`, which is shown the answer, has a reason to doubt them. Requests of many threads that fail together lead to one
    /// round trip.
    pub(crate) fn mend(
        &self,
        since: Instant,
        deadline: Instant,
        rails: impl FnOnce(&Known) -> Option<String>,
    ) -> Condition {
        if deadline <= Instant::now() {
            self.lose();
            return Condition::Silent;
        }
        let mut mending = self.inner.mending.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(Mended { began, found }) = *mending
            && began >= since
        {
            return found;
        }
        let began = Instant::now();
        let found = match self.refresh(deadline.min(began + MENDING)) {
            Ok(()) => {
                if self.lost().take().is_some() {
                    tracing::info!(segment = self.name(), "answers again");
                }
                Condition::Alive(self.epoch())
            }
            Err(error) => {
                tracing::debug!(segment = self.name(), %error, "does not answer");
                if !self.lose()
                    && let Some(backoff) = &mut *self.lost()
                {
                    backoff.failed(Instant::now());
                }
                Condition::Silent
            }
        };
        #[cfg(feature = "efa")]
        if found != Condition::Silent
            && let Some(reason) = rails(&self.known())
        {
            self.try_rails(&reason);
        }
        #[cfg(not(feature = "efa"))]
        let _ = rails;
        *mending = Some(Mended { began, found });
        found
    }

    fn lost(&self) -> MutexGuard<'_, Option<Backoff>> {
        self.inner.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer does not answer, or has not answered in time: it is asked again, with growing pauses, until it does. So a peer that
    /// has been restarted is known again before anybody needs it. False if that is known already.
    pub(crate) fn lose(&self) -> bool {
        let mut lost = self.lost();
        if lost.is_some() {
            return false;
        }
        tracing::warn!(segment = self.name(), "does not answer; it is asked again until it does");
        *lost = Some(Backoff::new(Instant::now()));
        true
    }

    /// Whether the peer does not answer, and whether it is time to ask it again.
    pub(crate) fn is_lost(&self) -> (bool, bool) {
        match &mut *self.lost() {
            Some(backoff) => (true, backoff.is_due(Instant::now())),
            None => (false, false),
        }
    }

    #[cfg(feature = "efa")]
    pub(crate) fn is_of(&self, id: efa_transport::PeerId) -> bool {
        matches!(self.known().path, Chosen::Fabric(peer) if peer == id)
    }
}

impl fmt::Debug for Segment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Segment({} path={} buffers={})", self.name(), self.path(), self.known().buffers().len())
    }
}

/// One round trip that tells both sides everything; then the path is chosen.
fn describe(name: &str, engine: &Engine, deadline: Instant) -> Result<Known, Error> {
    #[cfg(feature = "mooncake")]
    if let Some(known) = of_mooncake(name, engine, deadline)? {
        return Ok(known);
    }
    let peer = engine.transport.peer(engine.resolve(name)?)?;
    #[cfg(feature = "efa")]
    let reach = engine.node.fabric().map(crate::fabric::Fabric::reach);
    let Answer::Describe { card, number } = ask(name, &peer, &Ask::Describe(engine.node.card()), deadline)?
    else {
        return Err(wrong_answer(name));
    };
    let (path, why) = engine.node.choose(name, &card)?;
    // It knows this engine from the question.
    #[cfg(feature = "efa")]
    if let (Ok(reach), Chosen::Fabric(_)) = (reach, path) {
        engine.node.audience.given(name, reach);
    }
    Known::new(name, card, peer, number, (path, why))
}

/// The Mooncake node of that name, if it is one and this engine deals with them.
#[cfg(feature = "mooncake")]
fn of_mooncake(name: &str, engine: &Engine, deadline: Instant) -> Result<Option<Known>, Error> {
    if !engine.speaks_mooncake() {
        return Ok(None);
    }
    let directory = engine.directory.as_ref();
    if let Some(directory) = directory
        && directory.lookup(name)?.is_some()
    {
        return Ok(None);
    }
    let Some((chosen, remote, card)) =
        crate::mooncake::Remote::find(name, directory, &engine.node, deadline)?
    else {
        return Ok(None);
    };
    if engine.settings.protocol.value == crate::protocol::Protocol::Efa
        && matches!(chosen, Chosen::Mooncake(_))
    {
        return Err(Error::Unavailable {
            path: format!("the libfabric path to {name}"),
            reason: "it is a Mooncake node, and one of the two speaks TCP only".into(),
        });
    }
    let peer = engine.transport.peer(remote.data)?;
    let path = (chosen, "it is a Mooncake node".to_owned());
    Known::new(name, card, peer, None, path).map(Some)
}

pub(crate) fn ask(segment: &str, peer: &Peer, ask: &Ask, deadline: Instant) -> Result<Answer, Error> {
    let answer = peer.call(&control::encode(ask), deadline)?;
    control::decode(&answer).map_err(|reason| Error::Control { segment: segment.to_owned(), reason })
}

fn wrong_answer(segment: &str) -> Error {
    Error::Control {
        segment: segment.to_owned(),
        reason: "it answered another question than the one asked".into(),
    }
}

/// Lowest address of a shape and the one past its highest.
pub(crate) fn bounds(shape: &Shape<'_>) -> (u64, u64) {
    let span = |(low, high): (u64, u64), (addr, len): (u64, u64)| {
        (low.min(addr), high.max(addr.saturating_add(len)))
    };
    let nothing = (u64::MAX, 0);
    let (low, high) = match *shape {
        Shape::Contiguous { addr, len } => span(nothing, (addr, len)),
        Shape::Paged { page_len, addrs } => addrs.iter().map(|&addr| (addr, page_len)).fold(nothing, span),
        Shape::Strided { addr, block_len, stride, count } => {
            let last = addr.saturating_add(stride.saturating_mul(count.saturating_sub(1)));
            span(span(nothing, (addr, block_len)), (last, block_len))
        }
        Shape::Scatter(ranges) => ranges.iter().copied().fold(nothing, span),
    };
    (low, high.max(low))
}
