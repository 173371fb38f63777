//! Every setting, with its default and where the default comes from.

use std::net::IpAddr;
use std::time::Duration;

/// Time limits. Each is wall-clock time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deadlines {
    /// Establishing one TCP connection. Default 3 s: one lost SYN is repeated after 1 s, a second one after 3 s.
    pub connect: Duration,
    /// From an established connection to the end of the handshake, on both sides. Default 3 s.
    pub hello: Duration,
    /// No byte moves although the peer owes some (a half-sent payload, an answer): the lane is given up and its requests
    /// are retried elsewhere. Default 5 s.
    pub stall: Duration,
    /// From submitting a request to its end, unless its batch says otherwise. Default 30 s (Mooncake's
    /// `MC_TRANSFER_TIMEOUT`).
    pub request: Duration,
    /// How long [`Transport::shutdown`](crate::Transport::shutdown) lets running requests finish. Default 5 s.
    pub shutdown: Duration,
}

impl Default for Deadlines {
    fn default() -> Self {
        let s = Duration::from_secs;
        Self { connect: s(3), hello: s(3), stall: s(5), request: s(30), shutdown: s(5) }
    }
}

/// Bounds on memory and queues. A peer can make this process hold no more than these.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Own requests waiting for a lane, in slices, for one peer. Default 1 Mi.
    pub queued: usize,
    /// Requests in flight on one lane. Default 1024.
    pub lane_requests: usize,
    /// Payload bytes in flight on one lane. Default 8 MiB: 100 Gbit/s for 0.6 ms.
    pub lane_bytes: u64,
    /// Largest notification, call or answer in bytes. Default 16 MiB.
    pub message: usize,
    /// Notifications and immediates waiting to be taken, each. Default 65 536. When it is full, senders wait.
    pub events: usize,
    /// Calls waiting for the handler. Default 1024; more are refused and retried by the caller's transport.
    pub calls: usize,
    /// Accepted connections. Default 16 384; more are closed at once.
    pub connections: usize,
    /// Accepted connections that have not yet authenticated. Default 1024; the oldest makes room for the newest.
    pub handshakes: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queued: 1 << 20,
            lane_requests: 1024,
            lane_bytes: 8 << 20,
            message: 16 << 20,
            events: 65_536,
            calls: 1024,
            connections: 16_384,
            handshakes: 1024,
        }
    }
}

/// Options of every lane's socket. `None` leaves the system's choice.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SocketOptions {
    /// `SO_SNDBUF` in bytes. Unset, Linux tunes it up to `net.ipv4.tcp_wmem`; on 100–400 Gbit/s networks raise that
    /// limit instead of setting this. Unset, a connection within this host gets 512 KiB, because more would only wait where the
    /// caches do not reach.
    pub send_buffer: Option<usize>,
    /// `SO_RCVBUF` in bytes. Unset, Linux tunes it up to `net.ipv4.tcp_rmem`.
    pub receive_buffer: Option<usize>,
    /// `TCP_CONGESTION`, such as `"cubic"`, `"bbr"`, `"dctcp"`. Unset: the system's.
    pub congestion_control: Option<String>,
    /// `SO_BUSY_POLL` in microseconds: the kernel polls the card's queue before it sleeps. Costs CPU. Unset: off.
    pub busy_poll_us: Option<u32>,
    /// `IP_TOS`/`IPV6_TCLASS`, for networks with traffic classes.
    pub traffic_class: Option<u8>,
    /// `SO_MAX_PACING_RATE` in bytes per second.
    pub max_pacing_rate: Option<u64>,
}

/// What happens to payload after the handshake when a secret is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Encryption {
    /// Peers authenticate each other, payload travels in the clear: as fast as without a secret. Keeps out whoever can
    /// connect, but not whoever can change packets on the way.
    #[default]
    HandshakeOnly,
    /// Everything is encrypted and authenticated (ChaCha20-Poly1305). Both sides must ask for it.
    Full,
}

/// One way to a peer: which local address and interface its connections use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LocalPath {
    /// Local address to connect from.
    pub source: Option<IpAddr>,
    /// Interface to bind to (`SO_BINDTODEVICE`).
    pub interface: Option<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) io_threads: usize,
    pub(crate) workers: usize,
    pub(crate) lanes: usize,
    pub(crate) same_host: bool,
    pub(crate) stay_awake: bool,
    pub(crate) same_process: bool,
    pub(crate) stripe_bytes: u64,
    pub(crate) encryption: Encryption,
    pub(crate) deadlines: Deadlines,
    pub(crate) limits: Limits,
    pub(crate) sockets: SocketOptions,
    pub(crate) paths: Vec<LocalPath>,
    #[cfg(feature = "mooncake")]
    pub(crate) mooncake: bool,
}

impl Default for Settings {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            io_threads: cores.min(2),
            workers: 2,
            lanes: cores.clamp(1, 4),
            same_host: true,
            stay_awake: cores > 1,
            same_process: true,
            stripe_bytes: 1 << 20,
            encryption: Encryption::default(),
            deadlines: Deadlines::default(),
            limits: Limits::default(),
            sockets: SocketOptions::default(),
            paths: Vec::new(),
            #[cfg(feature = "mooncake")]
            mooncake: false,
        }
    }
}
