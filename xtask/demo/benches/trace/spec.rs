//! What the parent tells its children, and they it.

use std::fmt;

use engine::{Builder, Engine, Protocol};
use serde::{Deserialize, Serialize};

use crate::model::Geometry;

/// The way that the bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Path {
    /// TCP sockets.
    TcpNet,
    /// Copies between processes of one host.
    TcpHost,
    /// EFA, on software cards.
    Efa,
}

impl Path {
    pub(crate) fn builder(self) -> Builder {
        match self {
            Path::TcpNet => Engine::builder().protocol(Protocol::Tcp).same_host(false),
            Path::TcpHost => Engine::builder().protocol(Protocol::Tcp).same_host(true),
            Path::Efa => Engine::builder().protocol(Protocol::Efa),
        }
    }

    pub(crate) fn on_cards(self) -> bool {
        self == Path::Efa
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Path::TcpNet => "tcp/net",
            Path::TcpHost => "tcp/host",
            Path::Efa => "soft-efa",
        })
    }
}

/// One path's work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Spec {
    pub(crate) path: Path,
    pub(crate) model: String,
    /// Tokens in a page, as inference engines have it.
    pub(crate) page_tokens: usize,
    /// Blocks of 512 tokens in a round, and the most that a prompt has.
    pub(crate) blocks: usize,
    pub(crate) blocks_per_prompt: usize,
    /// A file of requests; the generator's if there is none.
    pub(crate) trace: Option<String>,
    pub(crate) target: Option<Target>,
}

impl Spec {
    pub(crate) fn new(path: Path, quick: bool) -> Spec {
        let model = std::env::var("WEFT_TRACE_MODEL").unwrap_or_else(|_| "deepseek-v3".to_owned());
        let (blocks, blocks_per_prompt) = if quick { (4, 2) } else { (16, 4) };
        let trace = std::env::var("WEFT_TRACE").ok();
        Spec { path, model, page_tokens: 64, blocks, blocks_per_prompt, trace, target: None }
    }

    pub(crate) fn geometry(&self) -> Result<Geometry, String> {
        Geometry::new(self.model.parse()?, self.page_tokens, 1)
    }
}

/// Where the decode process is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Target {
    /// The engine's name.
    pub(crate) name: String,
    /// Port of the baseline, on loopback.
    pub(crate) port: u16,
}

/// What one round came to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) prompt_p50_us: f64,
    pub(crate) prompt_p99_us: f64,
    pub(crate) request_p50_us: f64,
    pub(crate) request_p99_us: f64,
    pub(crate) gb_per_s: f64,
}
