//! What all parts of one transport share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use crate::batch::BatchPool;
use crate::foreign::Foreigners;
use crate::handshake::{Introduction, Psk};
use crate::io::IoShared;
use crate::seldom::Seldom;
use crate::service::Service;
use crate::settings::Settings;
use crate::stats::Counters;
use crate::sync::lock;
use crate::workers::Workers;

/// See the module.
pub(crate) struct Context {
    pub(crate) settings: Settings,
    pub(crate) psk: Option<Psk>,
    pub(crate) session: u128,
    pub(crate) service: Arc<Service>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) pool: Arc<BatchPool>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) io: Vec<Arc<IoShared>>,
    pub(crate) foreigners: Foreigners,
    /// Takes nothing new.
    pub(crate) closed: AtomicBool,
    /// What is left ends without its answer.
    pub(crate) stopped: AtomicBool,
    next_io: AtomicUsize,
    next_lane: AtomicU64,
}

impl Context {
    pub(crate) fn new(
        settings: Settings,
        psk: Option<Psk>,
        session: u128,
        service: Arc<Service>,
        workers: Arc<Workers>,
        io: Vec<Arc<IoShared>>,
        foreigners: Foreigners,
    ) -> Arc<Self> {
        let counters = Arc::clone(&service.counters);
        Arc::new(Self {
            settings,
            psk,
            session,
            pool: BatchPool::new(Arc::clone(&counters)),
            service,
            counters,
            workers,
            io,
            foreigners,
            closed: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            next_io: AtomicUsize::new(0),
            next_lane: AtomicU64::new(1),
        })
    }

    pub(crate) fn io_threads(&self) -> usize {
        self.io.len()
    }

    /// The I/O threads in turn.
    pub(crate) fn next_io(&self) -> Arc<IoShared> {
        Arc::clone(&self.io[self.next_io.fetch_add(1, Ordering::Relaxed) % self.io.len()])
    }

    pub(crate) fn next_lane(&self) -> u64 {
        self.next_lane.fetch_add(1, Ordering::Relaxed)
    }

    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Acquire)
    }

    /// The time that a [shutdown](crate::Transport::shutdown) gives is over. Set before the peers are closed, so whoever puts something on
    /// a peer and does not see this afterwards can leave it to the one who closes it.
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Acquire)
    }

    /// What this side says about itself to everyone.
    pub(crate) fn introduction(&self) -> Introduction {
        Introduction {
            session: self.session,
            encrypt: self.settings.encryption.is_full(),
            host: self.settings.same_host,
            message_limit: self.settings.limits.message as u64,
            lane_requests: u32::try_from(self.settings.limits.lane_requests).unwrap_or(u32::MAX),
            ..Introduction::default()
        }
    }

    pub(crate) fn turned_away(&self, from: SocketAddr, cause: &str) {
        static TURNED_AWAY: Seldom = Seldom::new();
        self.counters.turned_away.add(1);
        self.counters.connections.down();
        if let Some(nth) = TURNED_AWAY.again() {
            tracing::warn!(peer = %from, "turned a connection away ({nth} so far): {cause}");
        }
    }
}

type Processwide = Mutex<HashMap<u128, Weak<Service>>>;

fn transports() -> &'static Processwide {
    static TRANSPORTS: OnceLock<Processwide> = OnceLock::new();
    TRANSPORTS.get_or_init(Mutex::default)
}

/// Makes a transport known to others in this process.
pub(crate) fn announce(session: u128, service: &Arc<Service>) {
    lock(transports()).insert(session, Arc::downgrade(service));
}

/// Ends that.
pub(crate) fn withdraw(session: u128) {
    lock(transports()).remove(&session);
}

/// The transport with this identity, if it lives in this process.
pub(crate) fn find(session: u128) -> Option<Weak<Service>> {
    lock(transports()).get(&session).cloned()
}
