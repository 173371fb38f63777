//! Where the requests come from: a trace file, or a generator of the same shape.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use serde::Deserialize;

use crate::model::BLOCK_TOKENS;
use crate::pattern::mix;

/// Longest prompt that a trace may hold, in blocks: 8 Mi tokens. Guards against a line that is not a trace.
const MAX_BLOCKS: usize = 16 * 1024;

/// One request to the service, as a line of the published traces (JSON).
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub(crate) struct TraceRequest {
    /// Prompt blocks of [`BLOCK_TOKENS`] tokens; equal ids at the front mean a shared prefix, that is, a cache hit.
    pub(crate) hash_ids: Vec<u64>,
}

/// An endless stream of requests.
pub(crate) enum Trace {
    File { path: PathBuf, requests: Vec<TraceRequest>, next: usize },
    Generated(Generator),
}

impl Trace {
    /// Reads a trace file whole: one JSON object a line. Errors name the line.
    pub(crate) fn open(path: &Path) -> anyhow::Result<Self> {
        let file = File::open(path).with_context(|| format!("cannot open the trace {}", path.display()))?;
        let mut requests = Vec::new();
        for (index, line) in BufReader::new(file).lines().enumerate() {
            let place = || format!("{}:{}", path.display(), index + 1);
            let line = line.with_context(place)?;
            if line.trim().is_empty() {
                continue;
            }
            let request: TraceRequest = serde_json::from_str(&line)
                .with_context(|| format!("{}: not a trace line (want {{\"hash_ids\": […], …}})", place()))?;
            if request.hash_ids.len() > MAX_BLOCKS {
                bail!(
                    "{}: {} blocks in one request, more than {MAX_BLOCKS}",
                    place(),
                    request.hash_ids.len()
                );
            }
            requests.push(request);
        }
        if requests.iter().all(|request| request.hash_ids.is_empty()) {
            bail!("{}: the trace holds no blocks", path.display());
        }
        Ok(Self::File { path: path.to_owned(), requests, next: 0 })
    }

    /// A generated trace; the same seed gives the same requests.
    pub(crate) fn generated(seed: u64) -> Self {
        Self::Generated(Generator::new(seed))
    }

    /// The next request; a file starts again at its end.
    pub(crate) fn next_request(&mut self) -> TraceRequest {
        match self {
            Self::File { requests, next, .. } => {
                let request = requests[*next].clone();
                *next = (*next + 1) % requests.len();
                request
            }
            Self::Generated(generator) => generator.next_request(),
        }
    }

    pub(crate) fn describe(&self) -> String {
        match self {
            Self::File { path, requests, .. } => format!("{} ({} requests)", path.display(), requests.len()),
            Self::Generated(generator) => format!("built-in generator, seed {}", generator.seed),
        }
    }
}

/// Makes requests with the shape of the published conversation trace: log-normal prompt lengths (median 6.9 k
/// tokens, mean 12 k, at most 126 k), one block that every prompt shares, and conversations that come back with
/// their history, so that about a third of all block references are hits.
pub(crate) struct Generator {
    seed: u64,
    counter: u64,
    next_block: u64,
    conversations: Vec<Vec<u64>>,
}

impl Generator {
    /// Median and spread (of the logarithm) of the prompt length in tokens, and its largest value.
    const MEDIAN_TOKENS: f64 = 6909.0;
    const SIGMA: f64 = 1.05;
    const MAX_TOKENS: f64 = 126_195.0;
    /// Conversations that may come back, and how often the next request is one of them.
    const OPEN_CONVERSATIONS: usize = 64;
    const RETURNING: f64 = 0.45;

    fn new(seed: u64) -> Self {
        Self { seed, counter: 0, next_block: 1, conversations: Vec::new() }
    }

    fn next_request(&mut self) -> TraceRequest {
        let wanted = self.prompt_blocks();
        let returning = !self.conversations.is_empty() && self.uniform() < Self::RETURNING;
        let mut hash_ids = if returning {
            let index = (self.uniform() * self.conversations.len() as f64) as usize;
            let mut history = self.conversations.swap_remove(index);
            // The last block of a prompt is rarely full, so that its id changes once text is added.
            history.truncate(history.len().saturating_sub(1).max(1));
            history
        } else {
            vec![0]
        };
        let fresh = if returning { (wanted / 8).max(1) } else { wanted.max(2) - 1 };
        hash_ids.extend(self.next_block..self.next_block + fresh as u64);
        self.next_block += fresh as u64;
        hash_ids.truncate((Self::MAX_TOKENS as usize).div_ceil(BLOCK_TOKENS));
        if self.conversations.len() < Self::OPEN_CONVERSATIONS {
            self.conversations.push(hash_ids.clone());
        } else {
            let index = (self.uniform() * self.conversations.len() as f64) as usize;
            self.conversations[index] = hash_ids.clone();
        }
        TraceRequest { hash_ids }
    }

    fn prompt_blocks(&mut self) -> usize {
        // Box and Muller's transform of two uniform numbers into a normal one.
        let normal = (-2.0 * self.uniform().ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos();
        let tokens = (Self::MEDIAN_TOKENS * (Self::SIGMA * normal).exp()).min(Self::MAX_TOKENS);
        (tokens / BLOCK_TOKENS as f64).ceil() as usize
    }

    /// A number in (0, 1).
    fn uniform(&mut self) -> f64 {
        self.counter += 1;
        ((mix(self.seed ^ self.counter.wrapping_mul(0x2545_F491_4F6C_DD1D)) >> 11) as f64 + 0.5)
            / (1u64 << 53) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;
    use std::io::Write as _;

    #[test]
    fn the_generator_has_the_shape_of_the_published_trace() {
        let mut trace = Trace::generated(7);
        let (mut seen, mut references, mut hits) = (HashSet::new(), 0u64, 0u64);
        let mut lengths = Vec::new();
        for _ in 0..4000 {
            let request = trace.next_request();
            lengths.push(request.hash_ids.len());
            for id in request.hash_ids {
                references += 1;
                hits += u64::from(!seen.insert(id));
            }
        }
        lengths.sort_unstable();
        let median_tokens = lengths[lengths.len() / 2] * BLOCK_TOKENS;
        let hit_ratio = hits as f64 / references as f64;
        // The published hour: median 6,909 tokens, 36.6 % of block references are repeats.
        assert!((5_000..9_000).contains(&median_tokens), "median {median_tokens} tokens");
        assert!((0.25..0.50).contains(&hit_ratio), "hit ratio {hit_ratio}");
    }

    #[test]
    fn the_same_seed_gives_the_same_requests() {
        let (mut a, mut b, mut c) = (Trace::generated(1), Trace::generated(1), Trace::generated(2));
        let run = |trace: &mut Trace| (0..50).map(|_| trace.next_request()).collect::<Vec<_>>();
        let first = run(&mut a);
        assert_eq!(first, run(&mut b));
        assert_ne!(first, run(&mut c));
    }

    #[test]
    fn a_file_is_read_line_by_line_and_starts_again() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, r#"{{"timestamp": 0, "input_length": 900, "output_length": 5, "hash_ids": [0, 1]}}"#)
            .unwrap();
        writeln!(file).unwrap();
        writeln!(file, r#"{{"timestamp": 9, "input_length": 800, "output_length": 5, "hash_ids": [0, 2]}}"#)
            .unwrap();
        let mut trace = Trace::open(file.path()).unwrap();
        let ids: Vec<_> = (0..3).map(|_| trace.next_request().hash_ids).collect();
        assert_eq!(ids, [vec![0, 1], vec![0, 2], vec![0, 1]]);
    }

    #[test]
    fn a_bad_line_is_named() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        writeln!(file, r#"{{"hash_ids": [0]}}"#).unwrap();
        writeln!(file, "garbage").unwrap();
        let error = format!("{:#}", Trace::open(file.path()).map(|_| ()).unwrap_err());
        assert!(error.contains(":2: not a trace line"), "{error}");
        assert!(Trace::open(Path::new("/nonexistent/trace")).is_err());
    }
}
