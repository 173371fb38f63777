//! The configuration file, and what a builder is given: the same settings, none of which need be there.

use std::io::Read as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Deserializer, de};

use crate::error::Error;
use crate::protocol::Protocol;
use crate::settings::{EFA, Mooncake, Secret};

/// Longest file that is read: a configuration fits many times.
const MAX_FILE: u64 = 1 << 20;
/// Longest time limit: a year stands for "none" well enough, and sums of it and the present do not overflow.
const MAX_SECONDS: f64 = 365.0 * 86_400.0;

/// Settings that somebody has given.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Given {
    pub(crate) listen: Option<Vec<SocketAddr>>,
    pub(crate) name: Option<String>,
    pub(crate) advertise: Option<String>,
    #[serde(default, deserialize_with = "text_secret")]
    pub(crate) secret: Option<Secret>,
    pub(crate) secret_file: Option<PathBuf>,
    pub(crate) encrypt: Option<bool>,
    pub(crate) protocol: Option<Protocol>,
    pub(crate) provider: Option<String>,
    pub(crate) failover: Option<bool>,
    pub(crate) same_host: Option<bool>,
    pub(crate) io_threads: Option<usize>,
    pub(crate) lanes: Option<usize>,
    #[serde(default, rename = "timeout_seconds", deserialize_with = "seconds")]
    pub(crate) timeout: Option<Duration>,
    pub(crate) metadata: Option<String>,
    #[serde(default, rename = "lease_seconds", deserialize_with = "seconds")]
    pub(crate) lease: Option<Duration>,
    #[serde(default, deserialize_with = "mooncake")]
    pub(crate) mooncake: Option<Mooncake>,
    /// Keys of the table `[efa]` and their values as text; efa-transport reads them.
    #[serde(default, deserialize_with = "efa_table")]
    pub(crate) efa: Vec<(String, String)>,
}

impl Given {
    /// The secret itself, read from its file if only that was given.
    pub(crate) fn secret(&self) -> Result<Option<Secret>, Error> {
        match (&self.secret, &self.secret_file) {
            (Some(_), Some(file)) => Err(Error::Setting(format!(
                "both secret and secret_file ({}) are set; leave one of them out",
                file.display()
            ))),
            (Some(secret), None) => Ok(Some(secret.clone())),
            (None, Some(file)) => secret(file).map(Some),
            (None, None) => Ok(None),
        }
    }
}

/// Reads a configuration file.
pub(crate) fn read(path: &Path) -> Result<Given, Error> {
    parse(&text(path)?)
        .map_err(|why| Error::Setting(format!("configuration file {}: {}", path.display(), why.trim_end())))
}

fn parse(text: &str) -> Result<Given, String> {
    toml::from_str(text).map_err(|error| error.to_string())
}

/// Reads a secret: the file's text without the line end.
pub(crate) fn secret(path: &Path) -> Result<Secret, Error> {
    Ok(Secret(text(path)?.trim_end().as_bytes().to_vec()))
}

fn text(path: &Path) -> Result<String, Error> {
    let failed = |why: String| Error::Setting(format!("reading {}: {why}", path.display()));
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    let read =
        file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if read as u64 > MAX_FILE {
        return Err(failed(format!("it has more than {MAX_FILE} bytes")));
    }
    Ok(text)
}

/// A time limit in seconds, with fractions.
pub(crate) fn duration(seconds: f64) -> Result<Duration, String> {
    if seconds > 0.0 && seconds <= MAX_SECONDS {
        return Ok(Duration::from_secs_f64(seconds));
    }
    Err(format!("{seconds} seconds; it must be more than none and at most a year"))
}

fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Number {
        Whole(u32),
        Broken(f64),
    }
    let seconds = match Number::deserialize(deserializer)? {
        Number::Whole(seconds) => f64::from(seconds),
        Number::Broken(seconds) => seconds,
    };
    duration(seconds).map(Some).map_err(de::Error::custom)
}

fn text_secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Secret>, D::Error> {
    Ok(Some(Secret(String::deserialize(deserializer)?.into_bytes())))
}

fn mooncake<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Mooncake>, D::Error> {
    String::deserialize(deserializer)?.parse().map(Some).map_err(de::Error::custom)
}

fn efa_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<(String, String)>, D::Error> {
    let table = toml::Table::deserialize(deserializer)?;
    let entries = table.into_iter().map(|(key, value)| {
        if !EFA.iter().any(|(known, _)| *known == key) {
            let known: Vec<_> = EFA.iter().map(|(known, _)| *known).collect();
            return Err(de::Error::custom(format!("[efa] has no {key:?}; it has {}", known.join(", "))));
        }
        let text = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Boolean(on) => on.to_string(),
            _ => {
                return Err(de::Error::custom(format!(
                    "[efa] {key} must be a text, a number, true or false"
                )));
            }
        };
        Ok((key, text))
    });
    entries.collect()
}
