//! Mooncake's arguments and variables as settings of the engine.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs as _};
use std::time::Duration;

use engine::{Builder, Engine, Protocol};

use crate::fault::Fault;

/// What Mooncake's `initialize` is called with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Setup {
    /// How peers reach this host: an address or a name. A port may follow; without a metadata store it is not used.
    pub host: String,
    /// `P2PHANDSHAKE`, or the URL of a store; `host:port` is an etcd.
    pub metadata: String,
    /// `auto`, `efa` or `tcp`; `rdma` is `auto` with a warning. A variable of the environment wins over it.
    pub protocol: String,
}

/// A look at one environment variable; `None` if it is not set.
pub type Look<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Mooncake's range for its control port, unless `MC_MIN_RPC_PORT` and `MC_MAX_RPC_PORT` say otherwise.
const PORTS: (u16, u16) = (15_000, 17_000);

/// Ports to try before giving up.
const TRIES: usize = 64;

/// How long connecting to a peer may take, unless `MC_HANDSHAKE_CONNECT_TIMEOUT` says otherwise.
const CONNECT: Duration = Duration::from_secs(5);

/// The variables that choose the protocol, whatever the argument says.
const PROTOCOL_VARIABLES: [&str; 3] = ["WEFT_PROTOCOL", "MOONCAKE_PROTOCOL", "MC_FORCE_TCP"];

impl Setup {
    /// From the three arguments that matter.
    pub fn new(host: &str, metadata: &str, protocol: &str) -> Self {
        Self { host: host.to_owned(), metadata: metadata.to_owned(), protocol: protocol.to_owned() }
    }

    /// Opens the engine.
    ///
    /// # Errors
    /// [`Fault::Argument`] for what makes no sense, [`Fault::Engine`] for what the engine says.
    pub(crate) fn build(&self, env: Look<'_>) -> Result<Engine, Fault> {
        let base = self.base(env)?;
        let (host, port) = split(&self.host)?;
        let ports = ports(env)?;
        let with_store = self.store()?.is_some();
        let binds = addresses(&host, env)?;
        let mut last = None;
        for _ in 0..TRIES {
            // A store keeps the name apart from the address, so the port that was asked for can be had.
            let wanted = port.filter(|_| with_store);
            let number = wanted.unwrap_or_else(|| fastrand::u16(ports.0..=ports.1));
            for &ip in &binds {
                let reached = join(&host, number);
                let builder = base.clone().listen(SocketAddr::new(ip, number));
                let builder = match with_store {
                    true => builder.name(&self.host).advertise(reached),
                    false => builder.name(reached),
                };
                match builder.build() {
                    Ok(engine) => return Ok(engine),
                    Err(error) => match Refused::of(&error) {
                        Some(Refused::Port) if wanted.is_none() => last = Some(error),
                        Some(Refused::Address) if binds.len() > 1 => last = Some(error),
                        _ => return Err(error.into()),
                    },
                }
            }
        }
        let why = last.map(|error| error.to_string()).unwrap_or_default();
        Err(Fault::Argument(format!("no port between {} and {} is free on {host}: {why}", ports.0, ports.1)))
    }

    /// All settings but where to listen.
    fn base(&self, env: Look<'_>) -> Result<Builder, Fault> {
        let mut builder = Engine::builder();
        if let Some(protocol) = self.protocol(env)? {
            builder = builder.protocol(protocol);
        }
        if let Some(url) = self.store()? {
            builder = builder.metadata(url);
        }
        // A drop-in is found by nodes that have not been switched yet; a cluster secret keeps them out.
        #[cfg(feature = "mooncake")]
        if set(env, "WEFT_MOONCAKE").is_none() && builder.clone().settings()?.secret.value.is_none() {
            builder = builder.mooncake(engine::settings::Mooncake::On);
        }
        Ok(builder)
    }

    /// The argument, unless a variable decides: then nothing is said here, and the engine reads the variable.
    fn protocol(&self, env: Look<'_>) -> Result<Option<Protocol>, Fault> {
        for name in PROTOCOL_VARIABLES {
            match set(env, name).as_deref() {
                None => {}
                Some("0" | "false") if name == "MC_FORCE_TCP" => {}
                Some(value) => {
                    tracing::debug!(argument = self.protocol, "{name}={value} decides");
                    return Ok(None);
                }
            }
        }
        let wanted = self.protocol.to_ascii_lowercase();
        if wanted.is_empty() {
            return Ok(Some(Protocol::Auto));
        }
        wanted.parse().map(Some).map_err(|error: engine::Error| Fault::Argument(error.to_string()))
    }

    /// The store's URL, if there is a store.
    fn store(&self) -> Result<Option<String>, Fault> {
        let text = self.metadata.trim();
        match text {
            "" | "P2PHANDSHAKE" | "p2p" => Ok(None),
            _ if text.contains("://") => Ok(Some(text.to_owned())),
            // Mooncake's default kind of store.
            _ if text.contains(':') => Ok(Some(format!("etcd://{text}"))),
            _ => Err(Fault::Argument(format!(
                "metadata server {text:?}: it is P2PHANDSHAKE, or a URL such as etcd://host:2379"
            ))),
        }
    }
}

/// How long connecting to a peer may take.
pub(crate) fn connect_timeout(env: Look<'_>) -> Duration {
    let seconds = set(env, "MC_HANDSHAKE_CONNECT_TIMEOUT").and_then(|text| text.parse::<u64>().ok());
    seconds.filter(|&seconds| seconds > 0).map_or(CONNECT, Duration::from_secs)
}

fn set(env: Look<'_>, name: &str) -> Option<String> {
    env(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty())
}

fn ports(env: Look<'_>) -> Result<(u16, u16), Fault> {
    let port = |name: &str, default: u16| match set(env, name) {
        None => Ok(default),
        Some(text) => text.parse::<u16>().map_err(|_| Fault::Argument(format!("{name}={text:?} is no port"))),
    };
    let (low, high) = (port("MC_MIN_RPC_PORT", PORTS.0)?, port("MC_MAX_RPC_PORT", PORTS.1)?);
    if low == 0 || low > high {
        return Err(Fault::Argument(format!(
            "MC_MIN_RPC_PORT={low} and MC_MAX_RPC_PORT={high} leave no port"
        )));
    }
    Ok((low, high))
}

/// `host`, `host:port`, `[v6]`, `[v6]:port`, or a bare IPv6 address.
fn split(text: &str) -> Result<(String, Option<u16>), Fault> {
    let wrong = || Fault::Argument(format!("local hostname {text:?} is neither a host nor host:port"));
    if text.is_empty() {
        return Err(wrong());
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Ok((text.to_owned(), None));
    }
    if let Some(rest) = text.strip_prefix('[') {
        let (host, rest) = rest.split_once(']').ok_or_else(wrong)?;
        let port = match rest.strip_prefix(':') {
            None if rest.is_empty() => None,
            None => return Err(wrong()),
            Some(port) => Some(port.parse().map_err(|_| wrong())?),
        };
        return Ok((host.to_owned(), port));
    }
    match text.split_once(':') {
        None => Ok((text.to_owned(), None)),
        Some((host, port)) if !host.is_empty() => {
            Ok((host.to_owned(), Some(port.parse().map_err(|_| wrong())?)))
        }
        Some(_) => Err(wrong()),
    }
}

fn join(host: &str, port: u16) -> String {
    if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Where to listen, most wanted first. As narrow as the name allows: its own address; every interface only where that is not an
/// address of this host, as behind a translated one.
fn addresses(host: &str, env: Look<'_>) -> Result<Vec<IpAddr>, Fault> {
    if let Some(text) = set(env, "MC_TCP_BIND_ADDRESS") {
        let wrong = |_| Fault::Argument(format!("MC_TCP_BIND_ADDRESS={text:?} is no IP address"));
        return Ok(vec![text.parse().map_err(wrong)?]);
    }
    let six = set(env, "MC_USE_IPV6").is_some_and(|value| value != "0");
    let every = |six: bool| -> IpAddr {
        if six { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() }
    };
    if let Ok(ip) = host.parse::<IpAddr>() {
        return Ok(vec![ip, every(ip.is_ipv6())]);
    }
    // A name that means this host itself to itself (127.0.1.1 in /etc/hosts) may mean another of its addresses to others.
    match host {
        "localhost" => {
            let resolved =
                (host, 0).to_socket_addrs().ok().and_then(|mut all| all.find(|a| a.is_ipv6() == six));
            Ok(vec![resolved.map_or(Ipv4Addr::LOCALHOST.into(), |addr| addr.ip())])
        }
        _ => Ok(vec![every(six)]),
    }
}

/// Why a place to listen was not to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refused {
    /// The port is taken.
    Port,
    /// The address is not this host's.
    Address,
}

impl Refused {
    fn of(error: &engine::Error) -> Option<Self> {
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
        while let Some(error) = cause {
            let io = error
                .downcast_ref::<std::io::Error>()
                .or_else(|| error.downcast_ref::<std::sync::Arc<std::io::Error>>().map(|io| &**io));
            match io.map(std::io::Error::kind) {
                Some(std::io::ErrorKind::AddrInUse) => return Some(Self::Port),
                Some(std::io::ErrorKind::AddrNotAvailable) => return Some(Self::Address),
                _ => cause = error.source(),
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env<'a>(pairs: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        |name| pairs.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned())
    }

    #[test]
    fn a_variable_wins_over_the_argument() {
        let setup = Setup::new("h", "P2PHANDSHAKE", "tcp");
        assert_eq!(setup.protocol(&env(&[])).unwrap(), Some(Protocol::Tcp));
        for name in PROTOCOL_VARIABLES {
            assert_eq!(setup.protocol(&env(&[(name, "efa")])).unwrap(), None, "{name}");
        }
        assert_eq!(setup.protocol(&env(&[("MC_FORCE_TCP", "0")])).unwrap(), Some(Protocol::Tcp));
        assert_eq!(setup.protocol(&env(&[("MOONCAKE_PROTOCOL", "")])).unwrap(), Some(Protocol::Tcp));
    }

    #[test]
    fn rdma_means_auto_and_nonsense_is_refused() {
        let protocol = |name: &str| Setup::new("h", "", name).protocol(&env(&[]));
        assert_eq!(protocol("rdma").unwrap(), Some(Protocol::Auto));
        assert_eq!(protocol("EFA").unwrap(), Some(Protocol::Efa));
        assert_eq!(protocol("").unwrap(), Some(Protocol::Auto));
        assert!(protocol("pigeon").unwrap_err().to_string().contains("pigeon"));
    }

    #[test]
    fn stores_as_mooncake_names_them() {
        let store = |text: &str| Setup::new("h", text, "tcp").store();
        assert_eq!(store("P2PHANDSHAKE").unwrap(), None);
        assert_eq!(store("redis://r:6379").unwrap().as_deref(), Some("redis://r:6379"));
        assert_eq!(store("10.0.0.1:2379").unwrap().as_deref(), Some("etcd://10.0.0.1:2379"));
        assert_eq!(store("nonsense").unwrap_err().code(), -1);
    }

    #[test]
    fn hosts_with_and_without_ports() {
        let ok = |text: &str| split(text).unwrap();
        assert_eq!(ok("node7"), ("node7".into(), None));
        assert_eq!(ok("node7:80"), ("node7".into(), Some(80)));
        assert_eq!(ok("::1"), ("::1".into(), None));
        assert_eq!(ok("[::1]:80"), ("::1".into(), Some(80)));
        assert_eq!(ok("[::1]"), ("::1".into(), None));
        for wrong in ["", ":80", "node7:", "node7:x", "[::1", "[::1]80", "node7:70000", "a:b:c"] {
            assert!(split(wrong).is_err(), "{wrong}");
        }
        assert_eq!(join("::1", 80), "[::1]:80");
    }

    #[test]
    fn listening_is_as_narrow_as_the_name_allows() {
        let at = |host: &str, vars: &[(&str, &str)]| addresses(host, &env(vars)).unwrap();
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert_eq!(at("127.0.0.1", &[]), [ip("127.0.0.1"), ip("0.0.0.0")]);
        assert_eq!(at("node7", &[]), [ip("0.0.0.0")]);
        assert_eq!(at("node7", &[("MC_USE_IPV6", "1")]), [ip("::")]);
        assert_eq!(at("node7", &[("MC_TCP_BIND_ADDRESS", "10.0.0.7")]), [ip("10.0.0.7")]);
        assert!(addresses("node7", &env(&[("MC_TCP_BIND_ADDRESS", "x")])).is_err());
    }

    #[test]
    fn ports_are_checked() {
        assert_eq!(ports(&env(&[])).unwrap(), PORTS);
        assert_eq!(
            ports(&env(&[("MC_MIN_RPC_PORT", "20000"), ("MC_MAX_RPC_PORT", "20000")])).unwrap().0,
            20_000
        );
        for wrong in [[("MC_MIN_RPC_PORT", "0")], [("MC_MIN_RPC_PORT", "x")], [("MC_MAX_RPC_PORT", "1")]] {
            assert!(ports(&env(&wrong)).is_err());
        }
    }

    #[test]
    fn a_taken_port_is_told_from_other_errors() {
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = taken.local_addr().unwrap();
        let error = Engine::builder().protocol(Protocol::Tcp).listen(addr).build().unwrap_err();
        assert_eq!(Refused::of(&error), Some(Refused::Port));
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], addr.port()));
        let error = Engine::builder().protocol(Protocol::Tcp).listen(elsewhere).build().unwrap_err();
        assert_eq!(Refused::of(&error), Some(Refused::Address));
        assert_eq!(Refused::of(&engine::Error::Setting("x".into())), None);
    }
}
