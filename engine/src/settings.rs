//! Every setting of an engine, and who chose its value.
//!
//! A value comes from the first of these that has one: the [`Builder`](crate::Builder), the configuration file, the environment, the
//! default. The file is TOML, named by [`Builder::config_file`](crate::Builder::config_file) or by `WEFT_CONFIG`:
//!
//! ```toml
//! protocol = "auto"
//! listen = ["0.0.0.0:15001"]
//! name = "node7:15001"
//! secret_file = "/etc/weft/secret"
//! metadata = "etcd://10.0.0.1:2379"
//! lease_seconds = 10
//! timeout_seconds = 30
//!
//! [efa]                 # as the variables WEFT_EFA_…
//! nics = "rdmap0s6,rdmap1s6"
//! stripe_bytes = 262144
//! ```
//!
//! | setting | variables, in this order |
//! |---|---|
//! | `protocol` | `WEFT_PROTOCOL`, `MOONCAKE_PROTOCOL`, `MC_FORCE_TCP` |
//! | `listen` | `WEFT_LISTEN`, separated by commas |
//! | `name`, `advertise` | `WEFT_NAME`, `WEFT_ADVERTISE` |
//! | `secret`, `secret_file` | `WEFT_SECRET`, `WEFT_SECRET_FILE` |
//! | `encrypt`, `same_host`, `failover` | `WEFT_ENCRYPT`, `WEFT_SAME_HOST`, `WEFT_FAILOVER`: 1 or 0 |
//! | `provider` | `WEFT_PROVIDER`, `WEFT_EFA_PROVIDER` |
//! | `io_threads`, `lanes` | `WEFT_IO_THREADS`, `WEFT_LANES` |
//! | `timeout_seconds` | `WEFT_TIMEOUT`, `MC_TRANSFER_TIMEOUT` |
//! | `metadata`, `lease_seconds` | `WEFT_METADATA`, `WEFT_LEASE` |
//! | `mooncake` | `WEFT_MOONCAKE` |

use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use serde::{Serialize, Serializer};

use crate::config_file::{self, Given};
use crate::error::Error;
use crate::protocol::Protocol;

/// Where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// An environment variable, by name.
    Environment(&'static str),
    /// The configuration file; [`Settings::file`] says which.
    File,
    /// The program, through the builder.
    Builder,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::File => f.write_str("configuration file"),
            Self::Builder => f.write_str("builder"),
        }
    }
}

impl Serialize for Source {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A value and who chose it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value<T> {
    /// The value in force.
    pub value: T,
    /// Where it comes from.
    pub source: Source,
}

/// The cluster's secret. Never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub(crate) Vec<u8>);

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// Whether peers that speak Mooncake's protocols are served on the same port (feature `mooncake`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mooncake {
    /// They are not.
    #[default]
    Off,
    /// They are, unless a cluster secret is set: Mooncake's protocols know no authentication.
    On,
    /// They are, even beside a cluster secret: whoever can connect reaches every registered byte.
    EvenWithSecret,
}

impl FromStr for Mooncake {
    type Err = Error;

    /// `off`, `on` or `even-with-secret`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "off" | "0" | "false" => Ok(Self::Off),
            "on" | "1" | "true" => Ok(Self::On),
            "even-with-secret" => Ok(Self::EvenWithSecret),
            _ => Err(Error::Setting(format!("mooncake {text:?}; it is off, on or even-with-secret"))),
        }
    }
}

impl fmt::Display for Mooncake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::On => "on",
            Self::EvenWithSecret => "even-with-secret",
        })
    }
}

/// Every setting in force, with its source.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Settings {
    /// The configuration file that was read, if one was.
    pub file: Option<PathBuf>,
    /// Where peers connect to.
    pub listen: Value<Vec<SocketAddr>>,
    /// The name that peers open.
    pub name: Value<Option<String>>,
    /// The address that is published in the metadata store, `host:port`.
    pub advertise: Value<Option<String>>,
    /// The cluster's secret.
    pub secret: Value<Option<Secret>>,
    /// Whether payload is encrypted too, on the TCP path.
    pub encrypt: Value<bool>,
    /// Which transport carries requests.
    pub protocol: Value<Protocol>,
    /// The libfabric provider instead of EFA.
    pub provider: Value<Option<String>>,
    /// Whether `auto` moves a peer's traffic to TCP when its last rail dies.
    pub failover: Value<bool>,
    /// Whether TCP peers of one host copy between the two processes.
    pub same_host: Value<bool>,
    /// Threads that serve TCP peers; `None` is the transport's choice.
    pub io_threads: Value<Option<usize>>,
    /// TCP connections to one peer; `None` is the transport's choice.
    pub lanes: Value<Option<usize>>,
    /// From submitting a request to its end, at the latest, unless its batch says otherwise.
    pub timeout: Value<Duration>,
    /// The metadata store; `p2p` is none.
    pub metadata: Value<String>,
    /// How long a name stays in the store when its engine has died.
    pub lease: Value<Duration>,
    /// Whether Mooncake's protocols are served.
    pub mooncake: Value<Mooncake>,
    /// What the `[efa]` table or a variable `WEFT_EFA_…` says: key and value.
    pub efa: Vec<(&'static str, Value<String>)>,
}

/// One line of [`Settings::entries`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Entry {
    /// As it is called in the configuration file.
    pub name: String,
    /// In words; of a secret only whether it is set.
    pub value: String,
    /// Who chose it.
    pub source: Source,
}

/// Mooncake's `MC_TRANSFER_TIMEOUT`, which has the same default.
const TIMEOUT: Duration = Duration::from_secs(30);
/// As etcd's and Consul's usual session length; renewed every third of it.
const LEASE: Duration = Duration::from_secs(10);

/// A look at one environment variable.
pub(crate) type Look<'a> = &'a dyn Fn(&str) -> Option<String>;

impl Settings {
    /// Puts them together. `file` is the builder's; else `WEFT_CONFIG` names one.
    pub(crate) fn resolve(builder: Given, file: Option<&Path>, env: Look<'_>) -> Result<Self, Error> {
        let set = |name: &str| env(name).map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
        let path = file.map(Path::to_owned).or_else(|| set("WEFT_CONFIG").map(PathBuf::from));
        let file = path.as_deref().map(config_file::read).transpose()?.unwrap_or_default();
        let env = Variables(&set);
        let builder_secret = builder.secret()?;
        let file_secret = file.secret()?;
        Ok(Self {
            listen: pick(
                builder.listen,
                file.listen,
                || env.list("WEFT_LISTEN"),
                vec![SocketAddr::from(([127, 0, 0, 1], 0))],
            )?,
            name: pick_some(builder.name, file.name, || env.text(&["WEFT_NAME"]))?,
            advertise: pick_some(builder.advertise, file.advertise, || env.text(&["WEFT_ADVERTISE"]))?,
            secret: pick_some(builder_secret, file_secret, || env.secret())?,
            encrypt: pick(builder.encrypt, file.encrypt, || env.switch("WEFT_ENCRYPT"), false)?,
            protocol: pick(builder.protocol, file.protocol, || env.protocol(), Protocol::Auto)?,
            provider: pick_some(builder.provider, file.provider, || {
                env.text(&["WEFT_PROVIDER", "WEFT_EFA_PROVIDER"])
            })?,
            failover: pick(builder.failover, file.failover, || env.switch("WEFT_FAILOVER"), true)?,
            same_host: pick(builder.same_host, file.same_host, || env.switch("WEFT_SAME_HOST"), true)?,
            io_threads: pick_some(builder.io_threads, file.io_threads, || env.parse(&["WEFT_IO_THREADS"]))?,
            lanes: pick_some(builder.lanes, file.lanes, || env.parse(&["WEFT_LANES"]))?,
            timeout: pick(
                builder.timeout,
                file.timeout,
                || env.seconds(&["WEFT_TIMEOUT", "MC_TRANSFER_TIMEOUT"]),
                TIMEOUT,
            )?,
            metadata: pick(builder.metadata, file.metadata, || env.text(&["WEFT_METADATA"]), "p2p".into())?,
            lease: pick(builder.lease, file.lease, || env.seconds(&["WEFT_LEASE"]), LEASE)?,
            mooncake: pick(builder.mooncake, file.mooncake, || env.parse(&["WEFT_MOONCAKE"]), Mooncake::Off)?,
            efa: efa(&file.efa, &set),
            file: path,
        })
    }

    /// Each setting by name, with its value in words and its source.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let mut add = |name: &str, value: String, source: Source| {
            entries.push(Entry { name: name.to_owned(), value, source });
        };
        let or = |text: Option<String>, otherwise: &str| text.unwrap_or_else(|| otherwise.to_owned());
        let count = |number: Option<usize>| or(number.map(|n| n.to_string()), "chosen by the machine");
        let listen: Vec<_> = self.listen.value.iter().map(ToString::to_string).collect();
        add("listen", listen.join(", "), self.listen.source);
        add("name", or(self.name.value.clone(), "the listening address"), self.name.source);
        add("advertise", or(self.advertise.value.clone(), "the listening address"), self.advertise.source);
        let secret = if self.secret.value.is_some() { "set" } else { "not set" };
        add("secret", secret.into(), self.secret.source);
        add("encrypt", self.encrypt.value.to_string(), self.encrypt.source);
        add("protocol", self.protocol.value.to_string(), self.protocol.source);
        add("provider", or(self.provider.value.clone(), "EFA"), self.provider.source);
        add("failover", self.failover.value.to_string(), self.failover.source);
        add("same_host", self.same_host.value.to_string(), self.same_host.source);
        add("io_threads", count(self.io_threads.value), self.io_threads.source);
        add("lanes", count(self.lanes.value), self.lanes.source);
        add("timeout_seconds", self.timeout.value.as_secs_f64().to_string(), self.timeout.source);
        add("metadata", self.metadata_words(), self.metadata.source);
        add("lease_seconds", self.lease.value.as_secs_f64().to_string(), self.lease.source);
        add("mooncake", self.mooncake.value.to_string(), self.mooncake.source);
        for (key, value) in &self.efa {
            add(&format!("efa.{key}"), value.value.clone(), value.source);
        }
        entries
    }

    /// The store without the password that its URL may carry.
    fn metadata_words(&self) -> String {
        let parsed = self.metadata.value.parse::<crate::metadata::Location>();
        parsed.map_or_else(|_| "malformed".into(), |location| location.to_string())
    }
}

/// As a list of entries.
impl Serialize for Settings {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.entries())
    }
}

type Found<T> = Result<Option<(&'static str, T)>, Error>;

/// The first that has something to say. The environment is not looked at where it does not matter.
fn pick<T>(
    builder: Option<T>,
    file: Option<T>,
    env: impl FnOnce() -> Found<T>,
    default: T,
) -> Result<Value<T>, Error> {
    Ok(match (builder, file) {
        (Some(value), _) => Value { value, source: Source::Builder },
        (None, Some(value)) => Value { value, source: Source::File },
        (None, None) => match env()? {
            Some((name, value)) => Value { value, source: Source::Environment(name) },
            None => Value { value: default, source: Source::Default },
        },
    })
}

/// As [`pick`], where nothing is a value, too.
fn pick_some<T>(
    builder: Option<T>,
    file: Option<T>,
    env: impl FnOnce() -> Found<T>,
) -> Result<Value<Option<T>>, Error> {
    pick(builder.map(Some), file.map(Some), || Ok(env()?.map(|(name, value)| (name, Some(value)))), None)
}

/// Reading the environment. Errors name the variable.
struct Variables<'a>(&'a dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    fn text(&self, names: &[&'static str]) -> Found<String> {
        Ok(names.iter().find_map(|&name| Some((name, (self.0)(name)?))))
    }

    fn with<T>(&self, names: &[&'static str], read: impl Fn(&str) -> Result<T, String>) -> Found<T> {
        let Some((name, text)) = self.text(names)? else { return Ok(None) };
        match read(&text) {
            Ok(value) => Ok(Some((name, value))),
            Err(why) => Err(Error::Setting(format!("{name}={text:?}: {why}"))),
        }
    }

    fn parse<T: FromStr<Err: fmt::Display>>(&self, names: &[&'static str]) -> Found<T> {
        self.with(names, |text| text.parse().map_err(|error: T::Err| error.to_string()))
    }

    fn list(&self, name: &'static str) -> Found<Vec<SocketAddr>> {
        self.with(&[name], |text| {
            let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
            parts.map(|part| part.parse().map_err(|error| format!("{part}: {error}"))).collect()
        })
    }

    fn switch(&self, name: &'static str) -> Found<bool> {
        self.with(&[name], |text| match text.to_ascii_lowercase().as_str() {
            "1" | "true" | "on" | "yes" => Ok(true),
            "0" | "false" | "off" | "no" => Ok(false),
            _ => Err("it is neither on nor off".into()),
        })
    }

    fn seconds(&self, names: &[&'static str]) -> Found<Duration> {
        self.with(names, |text| {
            let seconds = text.parse().map_err(|_| "it is no number of seconds".to_owned())?;
            config_file::duration(seconds)
        })
    }

    fn secret(&self) -> Found<Secret> {
        if let Some((name, text)) = self.text(&["WEFT_SECRET"])? {
            return Ok(Some((name, Secret(text.into_bytes()))));
        }
        let Some((name, path)) = self.text(&["WEFT_SECRET_FILE"])? else { return Ok(None) };
        Ok(Some((name, config_file::secret(Path::new(&path))?)))
    }

    fn protocol(&self) -> Found<Protocol> {
        let names = ["WEFT_PROTOCOL", "MOONCAKE_PROTOCOL"];
        if let Some(found) = self.with(&names, |text| text.parse().map_err(|e: Error| e.to_string()))? {
            return Ok(Some(found));
        }
        Ok(match (self.0)("MC_FORCE_TCP").as_deref() {
            None | Some("0" | "false") => None,
            Some(_) => Some(("MC_FORCE_TCP", Protocol::Tcp)),
        })
    }
}

/// The settings of efa-transport that a file may name: key and variable.
pub(crate) const EFA: [(&str, &str); 8] = [
    ("nics", "WEFT_EFA_NICS"),
    ("source", "WEFT_EFA_SOURCE"),
    ("deadline_ms", "WEFT_EFA_DEADLINE_MS"),
    ("stripe_bytes", "WEFT_EFA_STRIPE_BYTES"),
    ("slice_bytes", "WEFT_EFA_SLICE_BYTES"),
    ("window_bytes", "WEFT_EFA_WINDOW_BYTES"),
    ("doorbell_batching", "WEFT_EFA_DOORBELL_BATCHING"),
    ("pte_budget", "WEFT_EFA_PTE_BUDGET"),
];

fn efa(file: &[(String, String)], env: Look<'_>) -> Vec<(&'static str, Value<String>)> {
    let known = EFA.into_iter().filter_map(|(key, variable)| {
        let in_file = file.iter().find(|(name, _)| name == key);
        let value = match in_file {
            Some((_, text)) => Value { value: text.clone(), source: Source::File },
            None => Value { value: env(variable)?, source: Source::Environment(variable) },
        };
        Some((key, value))
    });
    known.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(builder: Given, file: Option<&Path>, env: &[(&str, &str)]) -> Result<Settings, Error> {
        let look = |name: &str| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned());
        Settings::resolve(builder, file, &look)
    }

    fn written(text: &str) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        file
    }

    fn protocol(settings: &Settings) -> (Protocol, Source) {
        (settings.protocol.value, settings.protocol.source)
    }

    #[test]
    fn the_builder_wins_then_the_file_then_each_variable_in_its_turn() {
        let env = [("WEFT_PROTOCOL", "efa"), ("MOONCAKE_PROTOCOL", "tcp"), ("MC_FORCE_TCP", "1")];
        let file = written("protocol = \"auto\"");
        let given = Given { protocol: Some(Protocol::Tcp), ..Given::default() };
        let all = with(given, Some(file.path()), &env).unwrap();
        assert_eq!(protocol(&all), (Protocol::Tcp, Source::Builder));
        let from_file = with(Given::default(), Some(file.path()), &env).unwrap();
        assert_eq!(protocol(&from_file), (Protocol::Auto, Source::File));
        assert_eq!(from_file.file.as_deref(), Some(file.path()));
        for (first, expected) in [Protocol::Efa, Protocol::Tcp, Protocol::Tcp].into_iter().enumerate() {
            let settings = with(Given::default(), None, &env[first..]).unwrap();
            assert_eq!(protocol(&settings), (expected, Source::Environment(env[first].0)));
        }
        assert_eq!(protocol(&with(Given::default(), None, &[]).unwrap()), (Protocol::Auto, Source::Default));
    }

    #[test]
    fn the_environment_can_name_the_file_and_the_builder_another() {
        let (one, other) = (written("lanes = 3"), written("lanes = 5"));
        let env = [("WEFT_CONFIG", one.path().to_str().unwrap()), ("WEFT_LANES", "7")];
        assert_eq!(with(Given::default(), None, &env).unwrap().lanes.value, Some(3));
        assert_eq!(with(Given::default(), Some(other.path()), &env).unwrap().lanes.value, Some(5));
        assert_eq!(with(Given::default(), None, &env[1..]).unwrap().lanes.value, Some(7));
        assert!(with(Given::default(), None, &[("WEFT_CONFIG", "/nowhere/weft.toml")]).is_err());
    }

    #[test]
    fn empty_and_false_values_count_as_unset_and_nonsense_is_named() {
        let unset = with(Given::default(), None, &[("WEFT_PROTOCOL", " "), ("MC_FORCE_TCP", "0")]).unwrap();
        assert_eq!(protocol(&unset), (Protocol::Auto, Source::Default));
        let rdma = with(Given::default(), None, &[("MOONCAKE_PROTOCOL", "rdma")]).unwrap();
        assert_eq!(rdma.protocol.value, Protocol::Auto);
        for (name, text) in [
            ("MOONCAKE_PROTOCOL", "carrier-pigeon"),
            ("WEFT_SAME_HOST", "perhaps"),
            ("WEFT_TIMEOUT", "-3"),
            ("WEFT_TIMEOUT", "NaN"),
            ("WEFT_LANES", "many"),
            ("WEFT_LISTEN", "here"),
        ] {
            let error = with(Given::default(), None, &[(name, text)]).unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(text), "{error}");
        }
    }

    #[test]
    fn every_setting_of_a_file_arrives() {
        let secret = written("sixteen bytes at least\n");
        let text = format!(
            r#"
            protocol = "tcp"
            listen = ["0.0.0.0:15001", "[::]:15001"]
            name = "node7:15001"
            advertise = "10.0.0.7:15001"
            secret_file = "{}"
            encrypt = true
            provider = "shm"
            failover = false
            same_host = false
            io_threads = 2
            lanes = 4
            timeout_seconds = 2.5
            metadata = "redis://user:hunter2@10.0.0.1:6379"
            lease_seconds = 20
            mooncake = "on"
            [efa]
            nics = "a,b"
            stripe_bytes = 65536
            doorbell_batching = true
            "#,
            secret.path().display()
        );
        let file = written(&text);
        let settings = with(Given::default(), Some(file.path()), &[("WEFT_EFA_PTE_BUDGET", "9")]).unwrap();
        assert_eq!(settings.listen.value.len(), 2);
        assert_eq!(settings.timeout.value, Duration::from_millis(2500));
        assert_eq!(settings.secret.value, Some(Secret(b"sixteen bytes at least".to_vec())));
        let words: Vec<String> = settings
            .entries()
            .iter()
            .map(|entry| format!("{}={} ({})", entry.name, entry.value, entry.source))
            .collect();
        let words = words.join("\n");
        for line in [
            "mooncake=on (configuration file)",
            "efa.stripe_bytes=65536 (configuration file)",
            "efa.pte_budget=9 (environment variable WEFT_EFA_PTE_BUDGET)",
            "secret=set (configuration file)",
            "metadata=redis://10.0.0.1:6379 (configuration file)",
        ] {
            assert!(words.contains(line), "{line} is not in\n{words}");
        }
        assert!(!words.contains("hunter2") && !words.contains("sixteen"), "{words}");
        assert!(!format!("{settings:?}").contains("sixteen"));
    }

    #[test]
    fn files_with_unknown_or_impossible_settings_are_refused_with_the_place() {
        for (text, word) in [
            ("protocoll = \"tcp\"", "protocoll"),
            ("protocol = \"pigeon\"", "pigeon"),
            ("[efa]\ncards = 3", "cards"),
            ("timeout_seconds = 0", "timeout_seconds"),
            ("timeout_seconds = inf", "timeout_seconds"),
            ("secret = \"x\"\nsecret_file = \"/y\"", "secret_file"),
            ("listen = \"here\"", "listen"),
            ("mooncake = \"maybe\"", "maybe"),
            ("=", "line 1"),
        ] {
            let file = written(text);
            let error = with(Given::default(), Some(file.path()), &[]).unwrap_err().to_string();
            assert!(error.contains(word), "{text}: {error}");
        }
        let endless = written(&"#".repeat(2 << 20));
        assert!(
            with(Given::default(), Some(endless.path()), &[]).unwrap_err().to_string().contains("more than")
        );
    }
}
