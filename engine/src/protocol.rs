//! Which transport carries requests.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;

/// Which transport carries requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase", try_from = "String")]
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

impl TryFrom<String> for Protocol {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}
