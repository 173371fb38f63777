//! KV-cache geometries of the models that the demo plays: how large a page is and how many make a block.

use std::fmt;
use std::str::FromStr;

/// Tokens in one block of a trace (`hash_ids`), as in the published Mooncake traces.
pub(crate) const BLOCK_TOKENS: usize = 512;

/// What attention keeps for one token in one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attention {
    /// Grouped-query attention: a key and a value vector per KV head. Tensor parallelism shards the heads.
    Grouped { kv_heads: usize, head_dim: usize },
    /// Multi-head latent attention: one compressed vector that every rank needs whole.
    Latent { kv_lora_rank: usize, rope_dim: usize },
}

/// A model, as far as its KV cache is concerned. Figures are those of the published model configurations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Model {
    pub(crate) name: &'static str,
    layers: usize,
    attention: Attention,
    bytes_per_element: usize,
}

/// The models that `--model` knows.
pub(crate) const MODELS: [Model; 3] = [
    Model {
        name: "llama-3.1-70b",
        layers: 80,
        attention: Attention::Grouped { kv_heads: 8, head_dim: 128 },
        bytes_per_element: 2,
    },
    Model {
        name: "qwen3-235b-a22b",
        layers: 94,
        attention: Attention::Grouped { kv_heads: 4, head_dim: 128 },
        bytes_per_element: 2,
    },
    Model {
        name: "deepseek-v3",
        layers: 61,
        attention: Attention::Latent { kv_lora_rank: 512, rope_dim: 64 },
        bytes_per_element: 2,
    },
];

impl FromStr for Model {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        MODELS.into_iter().find(|model| model.name == text).ok_or_else(|| {
            let known: Vec<_> = MODELS.iter().map(|model| model.name).collect();
            format!("unknown model {text:?}; known are {}", known.join(", "))
        })
    }
}

impl fmt::Display for Model {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A model cut into pages of `page_tokens` tokens for `tp` tensor-parallel ranks.
///
/// A page holds the keys and values of one layer on one rank: that is the unit a transfer is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) model: Model,
    pub(crate) page_tokens: usize,
    pub(crate) tp: usize,
}

impl Geometry {
    /// Checks that the pages tile a block and that the heads split over the ranks.
    pub(crate) fn new(model: Model, page_tokens: usize, tp: usize) -> Result<Self, String> {
        if page_tokens == 0 || !BLOCK_TOKENS.is_multiple_of(page_tokens) {
            return Err(format!("--page-tokens {page_tokens} must divide a block of {BLOCK_TOKENS} tokens"));
        }
        if tp == 0 {
            return Err("--tp must be at least 1".into());
        }
        if let Attention::Grouped { kv_heads, .. } = model.attention
            && !kv_heads.is_multiple_of(tp)
            && !tp.is_multiple_of(kv_heads)
        {
            return Err(format!(
                "--tp {tp} neither divides nor is divided by the {kv_heads} KV heads of {model}"
            ));
        }
        Ok(Self { model, page_tokens, tp })
    }

    /// Bytes of one page: one layer, one rank, `page_tokens` tokens.
    pub(crate) fn page_bytes(&self) -> usize {
        let elements = match self.model.attention {
            // With more ranks than KV heads, a head is kept on several ranks.
            Attention::Grouped { kv_heads, head_dim } => 2 * (kv_heads / self.tp).max(1) * head_dim,
            Attention::Latent { kv_lora_rank, rope_dim } => kv_lora_rank + rope_dim,
        };
        self.page_tokens * elements * self.model.bytes_per_element
    }

    /// Pages of one block in one layer on one rank: what one request moves.
    pub(crate) fn pages_per_request(&self) -> usize {
        BLOCK_TOKENS / self.page_tokens
    }

    /// Requests that one block takes: one for each layer and rank.
    pub(crate) fn requests_per_block(&self) -> usize {
        self.model.layers * self.tp
    }

    /// Pages of one block over all layers and ranks.
    pub(crate) fn pages_per_block(&self) -> usize {
        self.requests_per_block() * self.pages_per_request()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(model: &str, page_tokens: usize, tp: usize) -> Geometry {
        Geometry::new(model.parse().unwrap(), page_tokens, tp).unwrap()
    }

    /// Bytes a token takes in all layers, from the published configurations.
    #[test]
    fn bytes_per_token_match_the_published_arithmetic() {
        for (model, bytes) in
            [("llama-3.1-70b", 320 * 1024), ("qwen3-235b-a22b", 188 * 1024), ("deepseek-v3", 61 * 576 * 2)]
        {
            let g = geometry(model, 16, 1);
            assert_eq!(g.pages_per_block() * g.page_bytes() / BLOCK_TOKENS, bytes, "{model}");
        }
    }

    #[test]
    fn sharding_grouped_heads_keeps_the_bytes_and_shrinks_the_pages() {
        for tp in [1, 2, 4, 8] {
            let g = geometry("llama-3.1-70b", 16, tp);
            assert_eq!(g.page_bytes(), 64 * 1024 / tp);
            assert_eq!(g.pages_per_block() * g.page_bytes(), 160 << 20);
        }
    }

    #[test]
    fn replicated_heads_and_latents_are_sent_to_every_rank() {
        assert_eq!(
            geometry("qwen3-235b-a22b", 16, 8).page_bytes(),
            geometry("qwen3-235b-a22b", 16, 4).page_bytes()
        );
        assert_eq!(geometry("deepseek-v3", 64, 4).page_bytes(), geometry("deepseek-v3", 64, 1).page_bytes());
    }

    #[test]
    fn impossible_geometries_are_refused() {
        let llama: Model = "llama-3.1-70b".parse().unwrap();
        for (page_tokens, tp) in [(0, 1), (48, 1), (1024, 1), (16, 0), (16, 3)] {
            assert!(Geometry::new(llama, page_tokens, tp).is_err(), "{page_tokens} {tp}");
        }
        assert!("gpt-9".parse::<Model>().unwrap_err().contains("deepseek-v3"));
    }
}
