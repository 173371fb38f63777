//! Setting up an engine.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config_file::Given;
use crate::engine::{Engine, Inner};
use crate::error::Error;
use crate::metadata::{Directory, Options, Record};
use crate::node::Node;
use crate::protocol::Protocol;
use crate::settings::{Mooncake, Secret, Settings};

/// Sets up an [`Engine`]. Every setting has a default, and can come from a file or the environment instead: see
/// [`settings`](crate::settings).
///
/// ```
/// use std::time::Duration;
/// use engine::{Engine, Protocol, Source};
///
/// let engine = Engine::builder()
///     .listen(([127, 0, 0, 1], 0).into())
///     .protocol(Protocol::Auto)
///     .secret("sixteen random bytes or more")
///     .timeout(Duration::from_secs(10))
///     .build()?;
/// assert_eq!(engine.protocol(), (Protocol::Auto, Source::Builder));
/// for entry in engine.settings().entries() {
///     println!("{} = {} ({})", entry.name, entry.value, entry.source);
/// }
/// # Ok::<(), engine::Error>(())
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Builder {
    given: Given,
    file: Option<PathBuf>,
}

impl Builder {
    /// Reads settings from this TOML file. What is set here goes before it, the environment comes after it. Default: the file
    /// that `WEFT_CONFIG` names, or none.
    pub fn config_file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Where peers reach this engine; port 0 takes a free one. Default: a free port of 127.0.0.1. May be called several times.
    pub fn listen(mut self, addr: SocketAddr) -> Self {
        self.given.listen.get_or_insert_default().push(addr);
        self
    }

    /// The name that peers open. Without a metadata store that is an address, `host:port`; with one it can be anything. Default:
    /// the first listening address. Must be given when that is a wildcard such as `0.0.0.0`.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.given.name = Some(name.into());
        self
    }

    /// The address that is published in the metadata store, `host:port`. Default: the first listening address, or the name where
    /// that is a wildcard.
    pub fn advertise(mut self, address: impl Into<String>) -> Self {
        self.given.advertise = Some(address.into());
        self
    }

    /// The cluster's secret, at least 16 random bytes, the same everywhere: peers prove to each other that they know it before
    /// anything else is served. The libfabric path's keys travel under it too.
    pub fn secret(mut self, secret: impl AsRef<[u8]>) -> Self {
        self.given.secret = Some(Secret(secret.as_ref().to_vec()));
        self
    }

    /// Whether payload on the TCP path is encrypted, too; needs a secret, and the same at both sides. Default off.
    pub fn encrypt(mut self, on: bool) -> Self {
        self.given.encrypt = Some(on);
        self
    }

    /// Which transport to use. Default [`Protocol::Auto`].
    pub fn protocol(mut self, protocol: Protocol) -> Self {
        self.given.protocol = Some(protocol);
        self
    }

    /// Uses this libfabric provider (such as `tcp;ofi_rxm` or `shm`) instead of EFA: for tests, and for fabrics that are not
    /// AWS's. Both sides must name the same one.
    pub fn provider(mut self, provider: impl Into<String>) -> Self {
        self.given.provider = Some(provider.into());
        self
    }

    /// Whether [`Protocol::Auto`] moves a peer's traffic to TCP when its last libfabric rail dies, and back when one works
    /// again. Default on.
    pub fn failover(mut self, on: bool) -> Self {
        self.given.failover = Some(on);
        self
    }

    /// Whether TCP peers on the same host copy between the two processes instead of going through sockets. Default on.
    pub fn same_host(mut self, on: bool) -> Self {
        self.given.same_host = Some(on);
        self
    }

    /// Threads that serve TCP peers, for all of them together.
    pub fn io_threads(mut self, threads: usize) -> Self {
        self.given.io_threads = Some(threads);
        self
    }

    /// TCP connections to one peer.
    pub fn lanes(mut self, lanes: usize) -> Self {
        self.given.lanes = Some(lanes);
        self
    }

    /// From submitting a request to its end, at the latest, unless [`Batch::set_deadline`](crate::Batch::set_deadline) says
    /// otherwise. Default 30 s.
    pub fn timeout(mut self, limit: Duration) -> Self {
        self.given.timeout = Some(limit);
        self
    }

    /// Where names are looked up and this engine's is published: `p2p` (nowhere, the default), `etcd://host:port`,
    /// `redis://host:port`, `http(s)://host:port/path`, each behind the feature of its name. See [`metadata`](crate::metadata).
    pub fn metadata(mut self, url: impl Into<String>) -> Self {
        self.given.metadata = Some(url.into());
        self
    }

    /// How long this engine's name stays in the metadata store after its death. Default 10 s.
    pub fn lease(mut self, time: Duration) -> Self {
        self.given.lease = Some(time);
        self
    }

    /// Whether peers that speak Mooncake's protocols are served on the same port (feature `mooncake`). Default
    /// [`Mooncake::Off`].
    pub fn mooncake(mut self, mooncake: Mooncake) -> Self {
        self.given.mooncake = Some(mooncake);
        self
    }

    /// What [`build`](Self::build) would use, and who says so.
    ///
    /// # Errors
    /// [`Error::Setting`] names what makes no sense, and where it stands.
    pub fn settings(self) -> Result<Settings, Error> {
        let look = |name: &str| std::env::var(name).ok();
        Settings::resolve(self.given, self.file.as_deref(), &look)
    }

    /// Opens the transports, and publishes the name if there is a metadata store. Blocks for milliseconds; with a store for a round
    /// trip to it.
    ///
    /// # Errors
    /// [`Error::Setting`]; [`Error::Tcp`] when the listening address is taken; [`Error::Unavailable`] when [`Protocol::Efa`] was
    /// asked for and there is no such path; [`Error::Metadata`].
    pub fn build(self) -> Result<Engine, Error> {
        let settings = self.settings()?;
        check(&settings)?;
        let options = Options { ttl: settings.lease.value, ..Options::default() };
        let directory = Directory::connect(&settings.metadata.value, options)?;
        let node = Node::new(settings.protocol.value);
        let transport = transport(&settings, &node)?;
        let address = address(&settings, transport.local_addrs());
        let name = settings.name.value.clone().unwrap_or_else(|| address.clone());
        let epoch = transport.session();
        #[cfg(feature = "efa")]
        match crate::fabric::open(&settings, &name) {
            Ok(fabric) => node.set_opened(name, epoch, fabric),
            Err(error) => {
                node.set_opened(name, epoch, Err(error.to_string()));
                return Err(error);
            }
        }
        #[cfg(not(feature = "efa"))]
        node.set_opened(name, epoch);
        let (protocol, source) = (settings.protocol.value, settings.protocol.source);
        tracing::info!(name = node.name(), %protocol, %source, "engine is up");
        let lease = match &directory {
            Some(directory) => Some(directory.publish(node.name(), &Record::new(address.clone(), epoch))?),
            None => None,
        };
        Inner::start(settings, transport, node, address, directory, lease)
    }
}

/// Refuses settings that contradict each other or this build.
fn check(settings: &Settings) -> Result<(), Error> {
    #[cfg(not(feature = "efa"))]
    if settings.protocol.value == Protocol::Efa {
        return Err(Error::Unavailable {
            path: match &settings.provider.value {
                Some(name) => format!("libfabric provider {name}"),
                None => "efa".into(),
            },
            reason: crate::node::WITHOUT_LIBFABRIC.into(),
        });
    }
    #[cfg(not(feature = "mooncake"))]
    if settings.mooncake.value != Mooncake::Off {
        return Err(Error::Setting(format!(
            "mooncake is {} ({}), but this program was built without the feature `mooncake`",
            settings.mooncake.value, settings.mooncake.source
        )));
    }
    if settings.mooncake.value == Mooncake::On && settings.secret.value.is_some() {
        return Err(Error::Setting(format!(
            "mooncake is on ({}) and a secret is set ({}): Mooncake's protocols know no authentication and would let anybody past \
             it; leave one of the two out, or set mooncake to even-with-secret",
            settings.mooncake.source, settings.secret.source
        )));
    }
    // An address that stands for all of them is none that peers could connect to.
    match settings.listen.value.first() {
        None => Err(Error::Setting(format!("listen ({}) names no address", settings.listen.source))),
        Some(addr)
            if addr.ip().is_unspecified()
                && settings.name.value.is_none()
                && settings.advertise.value.is_none() =>
        {
            Err(Error::Setting(format!(
                "an engine that listens on the wildcard address {addr} needs a name that peers can connect to: \
                 Builder::name(\"host:port\")"
            )))
        }
        Some(_) => Ok(()),
    }
}

fn transport(settings: &Settings, node: &Arc<Node>) -> Result<tcp_transport::Transport, Error> {
    let answering = Arc::clone(node);
    let mut builder = tcp_transport::Transport::builder()
        .handler(move |from, request: &[u8]| answering.answer(from, request))
        .same_host(settings.same_host.value)
        .deadlines(tcp_transport::Deadlines {
            request: settings.timeout.value,
            ..tcp_transport::Deadlines::default()
        });
    for &addr in &settings.listen.value {
        builder = builder.listen(addr);
    }
    if let Some(secret) = &settings.secret.value {
        builder = builder.secret(&secret.0);
    }
    if settings.encrypt.value {
        builder = builder.encryption(tcp_transport::Encryption::Full);
    }
    if let Some(threads) = settings.io_threads.value {
        builder = builder.io_threads(threads);
    }
    if let Some(lanes) = settings.lanes.value {
        builder = builder.lanes(lanes);
    }
    #[cfg(feature = "mooncake")]
    if settings.mooncake.value != Mooncake::Off {
        builder = crate::mooncake::serve(builder, settings, node)?;
    }
    Ok(builder.build()?)
}

/// Where peers connect to, as far as one can tell from here.
fn address(settings: &Settings, listening: &[SocketAddr]) -> String {
    if let Some(address) = &settings.advertise.value {
        return address.clone();
    }
    match (listening.first(), &settings.name.value) {
        (Some(addr), _) if !addr.ip().is_unspecified() => addr.to_string(),
        (_, Some(name)) => name.clone(),
        // Refused by `check`.
        (_, None) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(builder: Builder) -> String {
        check(&builder.settings().unwrap()).unwrap_err().to_string()
    }

    #[test]
    fn a_wildcard_needs_a_name() {
        let wildcard = || Engine::builder().listen(([0, 0, 0, 0], 9000).into());
        assert!(refusal(wildcard()).contains("0.0.0.0:9000"));
        for named in [wildcard().name("node7:9000"), wildcard().advertise("node7:9000")] {
            let settings = named.settings().unwrap();
            check(&settings).unwrap();
            assert_eq!(address(&settings, &[([0, 0, 0, 0], 9000).into()]), "node7:9000");
        }
        let local = Engine::builder().settings().unwrap();
        assert_eq!(address(&local, &[([127, 0, 0, 1], 9).into()]), "127.0.0.1:9");
    }

    #[test]
    fn mooncake_does_not_open_what_a_secret_closes() {
        let builder = Engine::builder().secret("sixteen bytes at least").mooncake(Mooncake::On);
        assert!(refusal(builder).contains("mooncake"));
    }
}
