//! The command line of a benchmark.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;

/// What a benchmark is asked to do.
#[derive(Clone, Debug, Default, Parser)]
#[command(about = None, long_about = None)]
pub struct Options {
    /// Write the rows as a JSON array
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,

    /// Fewer and shorter rounds: shows that everything runs, not how fast it is
    #[arg(long)]
    pub quick: bool,

    /// Run only the cases that contain this text
    #[arg(value_name = "FILTER")]
    pub filter: Option<String>,

    /// Passed by cargo to every benchmark
    #[arg(long = "bench", hide = true)]
    pub(crate) from_cargo: bool,

    /// Passed by `cargo test --benches`
    #[arg(long = "test", hide = true)]
    pub(crate) as_test: bool,
}

impl Options {
    /// Reads the program's arguments; prints usage and exits on a wrong one.
    #[must_use]
    pub fn from_args() -> Self {
        let mut options = Self::parse();
        options.quick |= options.as_test;
        options
    }

    /// Measured rounds of each side: 24, or 6 with `--quick`.
    #[must_use]
    pub const fn rounds(&self) -> usize {
        if self.quick { 6 } else { 24 }
    }

    /// How long one round of one side should take: long against clock resolution and wake-ups, short enough for
    /// both sides to see the same weather.
    #[must_use]
    pub const fn round_time(&self) -> Duration {
        Duration::from_millis(if self.quick { 30 } else { 150 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_cargo_and_xtask_pass() {
        let options =
            Options::try_parse_from(["bench", "--quick", "--json", "out.json", "--bench", "size=64"])
                .unwrap();
        assert!(options.quick);
        assert_eq!(options.json.unwrap().to_str(), Some("out.json"));
        assert_eq!(options.filter.as_deref(), Some("size=64"));
        assert!(Options::try_parse_from(["bench", "--unknown"]).is_err());
    }

    #[test]
    fn a_full_run_has_at_least_twenty_rounds() {
        assert!(Options::default().rounds() >= 20);
    }
}
