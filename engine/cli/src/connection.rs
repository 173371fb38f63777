//! The arguments by which a command's engine is set up.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _, UdpSocket};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use engine::{Engine, Segment};

use crate::failure::Failure;
use crate::units::parse_duration;

/// The fewest bytes that the engine takes as a secret.
const SECRET_BYTES: usize = 16;

/// Which transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Protocol {
    /// EFA where both sides have it, TCP otherwise.
    Auto,
    /// libfabric only: EFA, or the provider of --provider; never falls back.
    Efa,
    /// TCP only.
    Tcp,
}

/// How this side reaches others, and how they reach it.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Transport")]
pub(crate) struct Connection {
    /// Which transport carries the bytes. Default: WEFT_PROTOCOL, MOONCAKE_PROTOCOL, MC_FORCE_TCP, and else auto
    #[arg(long, value_name = "WHICH")]
    pub(crate) protocol: Option<Protocol>,
    /// Use this libfabric provider instead of EFA, such as `tcp;ofi_rxm` or `shm`; both sides must name the same
    #[arg(long, value_name = "NAME")]
    pub(crate) provider: Option<String>,
    /// Where names are looked up: p2p (names are host:port, no server; the default), or a store: etcd://host:port,
    /// redis://host:port, http://host:port/metadata
    #[arg(long, value_name = "URL")]
    pub(crate) metadata: Option<String>,
    /// File with further settings (TOML). Default: WEFT_CONFIG
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// File with the cluster's secret (at least 16 random bytes), the same on all sides
    #[arg(long, value_name = "FILE")]
    pub(crate) secret_file: Option<PathBuf>,
    /// Go through sockets even where both processes are on one host
    #[arg(long)]
    pub(crate) no_same_host: bool,
    /// TCP connections to a peer. Default: one a core, four at the most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) lanes: Option<u16>,
    /// Threads that serve TCP peers
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub(crate) io_threads: Option<u16>,
}

/// A connection to one peer.
#[derive(Debug, Clone, clap::Args)]
#[command(next_help_heading = "Transport")]
pub(crate) struct ToPeer {
    #[command(flatten)]
    pub(crate) connection: Connection,
    /// The address of this side that the peer sees. Default: the one that the system would use towards it
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Option<SocketAddr>,
    /// How long the peer may take to answer
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = parse_duration)]
    pub(crate) connect_timeout: Duration,
}

impl Connection {
    /// An engine with these settings.
    pub(crate) fn engine(&self, listen: SocketAddr, name: Option<&str>) -> Result<Engine, Failure> {
        let mut builder = Engine::builder().listen(listen);
        if self.no_same_host {
            builder = builder.same_host(false);
        }
        if let Some(name) = name {
            builder = builder.name(name);
        }
        if let Some(protocol) = self.protocol {
            builder = builder.protocol(match protocol {
                Protocol::Auto => engine::Protocol::Auto,
                Protocol::Efa => engine::Protocol::Efa,
                Protocol::Tcp => engine::Protocol::Tcp,
            });
        }
        if let Some(provider) = &self.provider {
            builder = builder.provider(provider);
        }
        if let Some(url) = &self.metadata {
            builder = builder.metadata(url);
        }
        if let Some(path) = &self.config {
            builder = builder.config_file(path);
        }
        if let Some(path) = &self.secret_file {
            builder = builder.secret(read_secret(path)?);
        }
        if let Some(lanes) = self.lanes {
            builder = builder.lanes(lanes.into());
        }
        if let Some(threads) = self.io_threads {
            builder = builder.io_threads(threads.into());
        }
        builder.build().map_err(|error| Failure::opening(&error))
    }
}

impl ToPeer {
    /// An engine that the peer can answer to.
    pub(crate) fn engine(&self, target: &str) -> Result<Engine, Failure> {
        let listen = self.listen.unwrap_or_else(|| SocketAddr::new(source_towards(target), 0));
        self.connection.engine(listen, None)
    }

    /// The peer's memory.
    pub(crate) fn segment(&self, engine: &Engine, target: &str) -> Result<Segment, Failure> {
        engine.open(target, Instant::now() + self.connect_timeout).map_err(|error| Failure::opening(&error))
    }

    /// Both. A target that has just been started listens a moment before it has registered its memory; it is given as long for that as
    /// for its answer.
    pub(crate) fn open(&self, target: &str) -> Result<(Engine, Segment), Failure> {
        let engine = self.engine(target)?;
        let segment = self.segment(&engine, target)?;
        let deadline = Instant::now() + self.connect_timeout;
        while segment.buffers().is_empty() && Instant::now() < deadline {
            std::thread::sleep(AGAIN);
            segment.refresh(deadline).map_err(|error| Failure::opening(&error))?;
        }
        Ok((engine, segment))
    }
}

/// Between two looks for a target's memory.
const AGAIN: Duration = Duration::from_millis(20);

/// A file's bytes without the newline that editors add.
fn read_secret(path: &std::path::Path) -> Result<Vec<u8>, Failure> {
    let mut secret = std::fs::read(path).map_err(Failure::reading(path))?;
    while secret.last().is_some_and(|byte| *byte == b'\n' || *byte == b'\r') {
        secret.pop();
    }
    if secret.len() < SECRET_BYTES {
        return Err(Failure::Usage(format!(
            "the secret in {path:?} has {} bytes; it needs at least {SECRET_BYTES} random ones, for example from \
             `head -c 32 /dev/urandom | base64`",
            secret.len()
        )));
    }
    Ok(secret)
}

/// The address from which packets to `target` would leave; the loopback if there is no way to tell.
///
/// Connecting a datagram socket sends nothing: it only asks the routing table.
fn source_towards(target: &str) -> IpAddr {
    let ask = |addr: SocketAddr| {
        let any: IpAddr = if addr.is_ipv4() { [0; 4].into() } else { [0_u16; 8].into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.connect(addr).ok()?;
        socket.local_addr().ok().map(|addr| addr.ip())
    };
    let addrs = target.to_socket_addrs().into_iter().flatten();
    addrs.into_iter().find_map(ask).unwrap_or(IpAddr::from([127, 0, 0, 1]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_to_this_host_is_the_loopback() {
        assert!(source_towards("127.0.0.1:9").is_loopback());
        assert!(source_towards("nonsense").is_loopback());
    }

    #[test]
    fn a_secret_is_read_without_its_newline_and_refused_when_short() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("secret");
        std::fs::write(&file, "0123456789abcdef\r\n").unwrap();
        assert_eq!(read_secret(&file).unwrap(), b"0123456789abcdef");
        std::fs::write(&file, "short\n").unwrap();
        let short = read_secret(&file).unwrap_err();
        assert!(short.status() == 2 && short.to_string().contains("5 bytes"), "{short}");
        assert_eq!(read_secret(&dir.path().join("none")).unwrap_err().status(), 2);
    }
}
