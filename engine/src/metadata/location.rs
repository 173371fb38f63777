//! Which metadata server, read from a URL.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::error::Error;

const FORMS: &str = "it is p2p, etcd://host:port[,host:port…], redis://[user:password@]host:port[/database] or \
                     http[s]://host[:port]/path";

/// Which metadata server an engine uses.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Location {
    /// None: names are addresses. `p2p`, `none`, `P2PHANDSHAKE` or nothing.
    PeerToPeer,
    /// etcd, one endpoint or several of one cluster, `etcd://a:2379,b:2379`; with TLS, `etcds://…`. A bare `host:port` is etcd,
    /// as it is to Mooncake.
    Etcd {
        /// `host:port` of each endpoint.
        endpoints: Vec<String>,
        /// Whether to speak TLS.
        tls: bool,
    },
    /// Redis, `redis://[user:password@]host:port[/database]`: the whole URL.
    Redis(String),
    /// Mooncake's HTTP metadata protocol, `http://host:port/metadata` or `https://…`: the whole URL.
    Http(String),
}

impl FromStr for Location {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let text = text.trim();
        if text.is_empty() || ["p2p", "none", "p2phandshake"].contains(&text.to_ascii_lowercase().as_str()) {
            return Ok(Self::PeerToPeer);
        }
        let wrong = |reason: &str| {
            Error::Setting(format!("metadata {:?}: {reason}; {FORMS}", without_password(text)))
        };
        if text.chars().any(|c| c.is_control() || c.is_whitespace()) {
            return Err(wrong("a space or control character in it"));
        }
        let (scheme, rest) = text.split_once("://").unwrap_or(("etcd", text));
        let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
        match scheme {
            "etcd" | "etcds" => {
                let endpoints: Vec<_> =
                    rest.trim_end_matches('/').split([',', ';']).map(str::to_owned).collect();
                if let Some(bad) = endpoints.iter().find(|endpoint| !is_host_port(endpoint)) {
                    return Err(wrong(&format!("{bad:?} is not host:port")));
                }
                Ok(Self::Etcd { endpoints, tls: scheme == "etcds" })
            }
            "redis" => {
                let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
                if host.is_empty() {
                    return Err(wrong("it names no host"));
                }
                Ok(Self::Redis(text.to_owned()))
            }
            "rediss" => Err(wrong("Redis is spoken without TLS here; put a TLS tunnel beside it")),
            "http" | "https" if authority.is_empty() => Err(wrong("it names no host")),
            "http" | "https" => Ok(Self::Http(text.to_owned())),
            other => Err(wrong(&format!("unknown scheme {other:?}"))),
        }
    }
}

fn is_host_port(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !host.contains(['/', '@', '?']) && port.parse::<u16>().is_ok_and(|port| port != 0)
    })
}

/// The URL as it may be shown: credentials left out.
fn without_password(text: &str) -> String {
    match text.split_once("://") {
        Some((scheme, rest)) => {
            let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
            let host = rest[..end].rsplit_once('@').map_or(&rest[..end], |(_, host)| host);
            format!("{scheme}://{host}{}", &rest[end..])
        }
        None => text.to_owned(),
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PeerToPeer => f.write_str("p2p"),
            Self::Etcd { endpoints, tls } => {
                write!(f, "etcd{}://{}", if *tls { "s" } else { "" }, endpoints.join(","))
            }
            Self::Redis(url) | Self::Http(url) => f.write_str(&without_password(url)),
        }
    }
}

/// As [`Display`](fmt::Display): never with credentials.
impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Location({self})")
    }
}

/// How a metadata server is used.
#[derive(Debug, Clone)]
pub struct Options {
    /// How long an entry outlives its owner. Renewed three times within it. Default 10 s; etcd counts whole seconds.
    pub ttl: Duration,
    /// Longest that one call waits for the server. Default 3 s.
    pub timeout: Duration,
    /// Separates clusters that share a server: part of every key. Default: `MC_METADATA_CLUSTER_ID`, or none.
    pub cluster: Option<String>,
    /// Certificate authority of the server, a PEM file; for `etcds://` and `https://`. Default: the public ones.
    pub ca: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        let cluster = std::env::var("MC_METADATA_CLUSTER_ID").ok().filter(|id| !id.is_empty());
        Self { ttl: Duration::from_secs(10), timeout: Duration::from_secs(3), cluster, ca: None }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Location, String> {
        text.parse().map_err(|error: Error| error.to_string())
    }

    #[test]
    fn every_form_is_read() {
        for nothing in ["", "p2p", "none", "P2PHANDSHAKE", " p2p "] {
            assert_eq!(read(nothing), Ok(Location::PeerToPeer));
        }
        let etcd = |endpoints: &[&str], tls| {
            Ok(Location::Etcd { endpoints: endpoints.iter().map(|&e| e.to_owned()).collect(), tls })
        };
        assert_eq!(read("etcd://a:2379"), etcd(&["a:2379"], false));
        assert_eq!(read("etcds://a:2379,[::1]:2380/"), etcd(&["a:2379", "[::1]:2380"], true));
        assert_eq!(read("10.0.0.1:2379;10.0.0.2:2379"), etcd(&["10.0.0.1:2379", "10.0.0.2:2379"], false));
        assert_eq!(read("redis://a:1/2"), Ok(Location::Redis("redis://a:1/2".into())));
        assert_eq!(read("https://a/m"), Ok(Location::Http("https://a/m".into())));
    }

    #[test]
    fn other_forms_are_refused_with_the_right_ones() {
        for bad in [
            "etcd://",
            "etcd://a",
            "etcd://a:0",
            "etcd://a:1,b",
            "redis://",
            "redis://u:p@",
            "rediss://a",
            "http://",
            "ftp://a:1",
            "nowhere",
            "etcd://a :1",
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains("etcd://host:port"), "{bad}: {error}");
        }
    }

    #[test]
    fn passwords_are_never_shown() {
        let location = read("redis://user:hunter2@a:1/0").unwrap();
        assert_eq!(location.to_string(), "redis://a:1/0");
        assert!(!format!("{location:?}").contains("hunter2"));
        assert!(!read("rediss://user:hunter2@a:1").unwrap_err().contains("hunter2"));
    }

    proptest! {
        #[test]
        fn anything_is_read_or_refused(text in ".{0,40}", scheme in "(etcd|redis|http)://") {
            let _ = read(&text);
            let _ = read(&format!("{scheme}{text}"));
        }
    }
}
