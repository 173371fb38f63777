//! What one run plays and over which path: passed from the supervisor to the two processes of the run.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use engine::{Builder, Engine, Protocol};
use serde::{Deserialize, Serialize};

use crate::model::Geometry;

/// The way that a run's bytes are to go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Transport {
    /// TCP sockets; or, with `same_host`, the copy between processes that TCP peers of one host agree on.
    Tcp { same_host: bool },
    /// libfabric: EFA, or the provider named.
    Fabric { provider: Option<String> },
}

impl Transport {
    pub(crate) fn builder(&self) -> Builder {
        match self {
            Self::Tcp { same_host } => Engine::builder().protocol(Protocol::Tcp).same_host(*same_host),
            Self::Fabric { provider } => {
                let builder = Engine::builder().protocol(Protocol::Efa);
                match provider {
                    Some(provider) => builder.provider(provider),
                    None => builder,
                }
            }
        }
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Tcp { .. } => "tcp",
            Self::Fabric { provider: None } => "efa",
            Self::Fabric { provider: Some(_) } => "libfabric",
        }
    }
}

/// One run: a target and an initiator, one path, one or more models.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) transport: Transport,
    pub(crate) models: Vec<String>,
    pub(crate) page_tokens: usize,
    pub(crate) tp: usize,
    /// Traffic of this run, shared by its models.
    pub(crate) traffic: Duration,
    /// From submission to the end of each request, and to the target's word that it verified it.
    pub(crate) deadline: Duration,
    /// The target's KV pool.
    pub(crate) pool_bytes: usize,
    /// The initiator's pages: sources of writes, destinations of reads.
    pub(crate) staging_bytes: usize,
    pub(crate) trace: Option<PathBuf>,
    pub(crate) seed: u64,
    /// Where the target listens; filled in by the supervisor once it does.
    pub(crate) target: String,
}

impl Spec {
    pub(crate) fn geometries(&self) -> Result<Vec<Geometry>, String> {
        self.models.iter().map(|name| Geometry::new(name.parse()?, self.page_tokens, self.tp)).collect()
    }

    pub(crate) fn deadline_from_now(&self) -> Instant {
        Instant::now() + self.deadline
    }
}
