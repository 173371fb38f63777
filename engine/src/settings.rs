//! Which transport is used, and who said so.

use std::fmt;
use std::str::FromStr;

use crate::error::Error;

/// Which transport carries requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Protocol {
    /// EFA where both sides have it, TCP otherwise; the choice is logged with its reason.
    #[default]
    Auto,
    /// libfabric only: EFA, or the provider that the builder names. Never falls back.
    Efa,
    /// TCP only.
    Tcp,
}

impl FromStr for Protocol {
    type Err = Error;

    /// `auto`, `efa` or `tcp`; Mooncake's `rdma` means `auto`.
    fn from_str(text: &str) -> Result<Self, Error> {
        match text {
            "auto" => Ok(Self::Auto),
            "efa" => Ok(Self::Efa),
            "tcp" => Ok(Self::Tcp),
            "rdma" => {
                tracing::warn!("protocol \"rdma\" is Mooncake's name; taken as \"auto\"");
                Ok(Self::Auto)
            }
            _ => Err(Error::Setting(format!("unknown protocol {text:?}; it is auto, efa or tcp"))),
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Efa => "efa",
            Self::Tcp => "tcp",
        })
    }
}

/// Where a setting's value comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Source {
    /// Nobody said anything.
    Default,
    /// An environment variable, by name.
    Environment(&'static str),
    /// The program, through the builder.
    Builder,
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Environment(name) => write!(f, "environment variable {name}"),
            Self::Builder => f.write_str("builder"),
        }
    }
}

/// Decides the protocol: the builder, then `WEFT_PROTOCOL`, `MOONCAKE_PROTOCOL`, `MC_FORCE_TCP`, then `auto`.
///
/// `env` looks a variable up; an empty one counts as unset.
pub(crate) fn protocol(
    builder: Option<Protocol>,
    env: impl Fn(&str) -> Option<String>,
) -> Result<(Protocol, Source), Error> {
    if let Some(protocol) = builder {
        return Ok((protocol, Source::Builder));
    }
    let set = |name: &str| env(name).filter(|value| !value.is_empty());
    for name in ["WEFT_PROTOCOL", "MOONCAKE_PROTOCOL"] {
        if let Some(value) = set(name) {
            let protocol = value.parse().map_err(|error| Error::Setting(format!("{name}: {error}")))?;
            return Ok((protocol, Source::Environment(name)));
        }
    }
    match set("MC_FORCE_TCP").as_deref() {
        None | Some("0" | "false") => Ok((Protocol::Auto, Source::Default)),
        Some(_) => Ok((Protocol::Tcp, Source::Environment("MC_FORCE_TCP"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(builder: Option<Protocol>, env: &[(&str, &str)]) -> Result<(Protocol, Source), Error> {
        protocol(builder, |name| env.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_owned()))
    }

    #[test]
    fn the_builder_wins_then_each_variable_in_its_turn() {
        let all = [("WEFT_PROTOCOL", "efa"), ("MOONCAKE_PROTOCOL", "tcp"), ("MC_FORCE_TCP", "1")];
        assert_eq!(decide(Some(Protocol::Tcp), &all).unwrap(), (Protocol::Tcp, Source::Builder));
        assert_eq!(decide(None, &all).unwrap(), (Protocol::Efa, Source::Environment("WEFT_PROTOCOL")));
        assert_eq!(
            decide(None, &all[1..]).unwrap(),
            (Protocol::Tcp, Source::Environment("MOONCAKE_PROTOCOL"))
        );
        assert_eq!(decide(None, &all[2..]).unwrap(), (Protocol::Tcp, Source::Environment("MC_FORCE_TCP")));
        assert_eq!(decide(None, &[]).unwrap(), (Protocol::Auto, Source::Default));
    }

    #[test]
    fn empty_and_false_values_count_as_unset_and_others_are_named() {
        assert_eq!(decide(None, &[("WEFT_PROTOCOL", ""), ("MC_FORCE_TCP", "0")]).unwrap().0, Protocol::Auto);
        assert_eq!(decide(None, &[("MOONCAKE_PROTOCOL", "rdma")]).unwrap().0, Protocol::Auto);
        let error = decide(None, &[("MOONCAKE_PROTOCOL", "carrier-pigeon")]).unwrap_err().to_string();
        assert!(error.contains("MOONCAKE_PROTOCOL") && error.contains("carrier-pigeon"), "{error}");
    }
}
