//! What one process of a software-EFA run is told: the `SOFT_EFA_*` environment variables, and their defaults.
//!
//! The launcher writes these variables, the cards read them once when they are first opened. An unknown or malformed value is
//! reported on standard error and the default taken, because a library that is loaded into somebody else's program has no
//! better way to speak.

use crate::clock::Kind;
use crate::profile::Profile;
use std::path::PathBuf;

/// Directory that the processes of one run share. Set by the launcher.
pub const DIR: &str = "SOFT_EFA_DIR";
/// Number of cards.
pub const NICS: &str = "SOFT_EFA_NICS";
/// Generation of the cards: `p4d`, `p5`, `p5en`, `p6`.
pub const PROFILE: &str = "SOFT_EFA_PROFILE";
/// Number of the simulated host that a process belongs to (1 to 65535); processes of one host share its cards' GIDs.
/// Default: a host for each process.
pub const HOST: &str = "SOFT_EFA_HOST";
/// Seed of the order in which requests are carried out, and of random faults.
pub const SEED: &str = "SOFT_EFA_SEED";
/// How many requests of one card are shuffled among each other; 1 keeps the posting order.
pub const WINDOW: &str = "SOFT_EFA_WINDOW";
/// 0 keeps a program that polls a completion queue from lending its time to the card.
pub const ASSIST: &str = "SOFT_EFA_ASSIST";
/// 0 lets RDMA through to a card that has no address handle for the initiator.
pub const PEER_CHECK: &str = "SOFT_EFA_PEER_CHECK";
/// Page table entries of one card.
pub const MAX_PTES: &str = "SOFT_EFA_MAX_PTES";
/// Longest memory registration in bytes.
pub const MAX_MR_SIZE: &str = "SOFT_EFA_MAX_MR_SIZE";
/// Memory registrations of one card.
pub const MAX_MR: &str = "SOFT_EFA_MAX_MR";
/// Address handles of one card.
pub const MAX_AH: &str = "SOFT_EFA_MAX_AH";
/// Longest RDMA operation in bytes.
pub const MAX_RDMA: &str = "SOFT_EFA_MAX_RDMA";
/// Send queue depth.
pub const SQ_DEPTH: &str = "SOFT_EFA_SQ_DEPTH";
/// Receive queue depth.
pub const RQ_DEPTH: &str = "SOFT_EFA_RQ_DEPTH";
/// Bandwidth per card in Gbit/s, comma-separated, the last one for all further cards; 0 is as fast as memory.
pub const GBPS: &str = "SOFT_EFA_GBPS";
/// Latency of each operation in microseconds, per card like [`GBPS`].
pub const LATENCY_US: &str = "SOFT_EFA_LATENCY_US";
/// Which clock [`GBPS`], [`LATENCY_US`] and timed faults go by: `wall`, `virtual` or `manual`; see [`clock`](crate::clock).
pub const CLOCK: &str = "SOFT_EFA_CLOCK";
/// File of fault rules that hold from the start (more come over the control socket).
pub const FAULTS: &str = "SOFT_EFA_FAULTS";
/// Directory for traces, one file a process; unset for none.
pub const TRACE: &str = "SOFT_EFA_TRACE";

/// Cards that a run may have.
pub const MAX_CARDS: usize = 64;
/// Page table entries of a card by default: what EFA cards have room for (about 24 Mi).
pub const DEFAULT_PTES: u64 = 24 << 20;

/// Everything above, read and checked.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// Shared directory of the run.
    pub dir: PathBuf,
    /// Number of cards.
    pub nics: usize,
    /// Their generation, with depths and sizes overridden as asked.
    pub profile: Profile,
    /// Host number, or `None` for a host of the process's own.
    pub host: Option<u32>,
    /// Seed.
    pub seed: u64,
    /// Shuffle window.
    pub window: usize,
    /// Whether pollers lend time to the card.
    pub assist: bool,
    /// Whether RDMA needs an address handle at the target.
    pub peer_check: bool,
    /// Page table entries of a card.
    pub max_ptes: u64,
    /// Longest registration in bytes.
    pub max_mr_size: u64,
    /// Registrations of a card.
    pub max_mr: u32,
    /// Address handles of a card.
    pub max_ah: u32,
    /// Bandwidth per card in Gbit/s (0: unlimited); the last entry holds for further cards.
    pub gbps: Vec<f64>,
    /// Latency per card in microseconds.
    pub latency_us: Vec<f64>,
    /// The clock that timing goes by.
    pub clock: Kind,
    /// File of fault rules.
    pub faults: Option<PathBuf>,
    /// Where traces go.
    pub trace: Option<PathBuf>,
}

impl Settings {
    /// Reads the process environment.
    pub fn from_env() -> Settings {
        Settings::from_lookup(|name| std::env::var(name).ok(), |problem| eprintln!("soft-efa: {problem}"))
    }

    /// Reads the settings through `look_up`, telling `complain` what is wrong with a value.
    pub fn from_lookup(look_up: impl Fn(&str) -> Option<String>, complain: impl Fn(String)) -> Settings {
        let number = |name: &str, default: u64, low: u64, high: u64| -> u64 {
            let Some(text) = look_up(name) else { return default };
            match parse_size(&text) {
                Some(value) if (low..=high).contains(&value) => value,
                _ => {
                    complain(format!("{name}={text} is not a number from {low} to {high}; using {default}"));
                    default
                }
            }
        };
        let list = |name: &str| -> Vec<f64> {
            let Some(text) = look_up(name) else { return Vec::new() };
            let parsed: Option<Vec<f64>> = text
                .split(',')
                .map(|part| part.trim().parse().ok().filter(|v: &f64| v.is_finite() && *v >= 0.0))
                .collect();
            parsed.unwrap_or_else(|| {
                complain(format!("{name}={text} is not a comma-separated list of numbers; ignoring it"));
                Vec::new()
            })
        };
        let mut profile = Profile::p5();
        if let Some(name) = look_up(PROFILE) {
            match Profile::named(&name) {
                Some(found) => profile = found,
                None => complain(format!("{PROFILE}={name} is none of p4d, p5, p5en, p6; using p5")),
            }
        }
        profile.max_sq_wr = number(SQ_DEPTH, profile.max_sq_wr.into(), 1, 1 << 16) as u32;
        profile.max_rq_wr = number(RQ_DEPTH, profile.max_rq_wr.into(), 3, 1 << 18) as u32;
        profile.max_rdma_bytes = number(MAX_RDMA, profile.max_rdma_bytes.into(), 1, u32::MAX.into()) as u32;
        let mut clock = Kind::Wall;
        if let Some(name) = look_up(CLOCK) {
            match Kind::named(&name) {
                Some(found) => clock = found,
                None => complain(format!("{CLOCK}={name} is none of wall, virtual, manual; using wall")),
            }
        }
        let host = number(HOST, 0, 0, 65535) as u32;
        Settings {
            dir: look_up(DIR).map_or_else(default_dir, PathBuf::from),
            nics: number(NICS, 1, 1, MAX_CARDS as u64) as usize,
            profile,
            host: (host != 0).then_some(host),
            seed: number(SEED, 1, 0, u64::MAX),
            window: number(WINDOW, 16, 1, 4096) as usize,
            assist: number(ASSIST, 1, 0, 1) == 1,
            peer_check: number(PEER_CHECK, 1, 0, 1) == 1,
            max_ptes: number(MAX_PTES, DEFAULT_PTES, 1, u64::MAX),
            max_mr_size: number(MAX_MR_SIZE, 0x1000_0000_0000, 1, u64::MAX),
            max_mr: number(MAX_MR, 65535, 1, 65535) as u32,
            max_ah: number(MAX_AH, 4096, 1, 65534) as u32,
            gbps: list(GBPS),
            latency_us: list(LATENCY_US),
            clock,
            faults: look_up(FAULTS).map(PathBuf::from),
            trace: look_up(TRACE).map(PathBuf::from),
        }
    }

    /// The entry of a per-card list that holds for `card`.
    pub fn per_card(list: &[f64], card: usize) -> f64 {
        list.get(card).or(list.last()).copied().unwrap_or(0.0)
    }
}

/// A number with an optional binary suffix `k`, `m`, `g` (or `ki`, `mi`, `gi`).
pub fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim().to_ascii_lowercase();
    let text = text.strip_suffix('i').unwrap_or(&text);
    let (digits, shift) = match text.as_bytes().last()? {
        b'k' => (&text[..text.len() - 1], 10),
        b'm' => (&text[..text.len() - 1], 20),
        b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    digits.parse::<u64>().ok()?.checked_mul(1 << shift)
}

/// Where processes meet that were started without the launcher: a directory of this user's own.
fn default_dir() -> PathBuf {
    // SAFETY: getuid takes nothing and cannot fail.
    let user = unsafe { libc::getuid() };
    std::env::temp_dir().join(format!("soft-efa-{user}-default"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;
    use std::collections::HashMap;

    fn read(pairs: &[(&str, &str)]) -> (Settings, Vec<String>) {
        let map: HashMap<String, String> =
            pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        let complaints = RefCell::new(Vec::new());
        let settings =
            Settings::from_lookup(|name| map.get(name).cloned(), |text| complaints.borrow_mut().push(text));
        (settings, complaints.into_inner())
    }

    #[test]
    fn defaults_need_no_environment() {
        let (settings, complaints) = read(&[]);
        assert_eq!((settings.nics, settings.profile.name, settings.host), (1, "p5", None));
        assert!(complaints.is_empty());
    }

    #[test]
    fn bad_values_are_named_and_ignored() {
        let (settings, complaints) =
            read(&[(NICS, "65"), (PROFILE, "p7"), (GBPS, "100,x"), (SQ_DEPTH, ""), (CLOCK, "")]);
        assert_eq!((settings.nics, settings.profile.name), (1, "p5"));
        assert_eq!(settings.clock, Kind::Wall);
        assert_eq!(complaints.len(), 5, "{complaints:?}");
    }

    #[test]
    fn the_last_entry_of_a_list_holds_for_further_cards() {
        let (settings, _) = read(&[(GBPS, "100, 50")]);
        let of = |card| Settings::per_card(&settings.gbps, card);
        assert_eq!((of(0), of(1), of(9)), (100.0, 50.0, 50.0));
    }

    #[test]
    fn sizes_take_suffixes_and_never_overflow() {
        assert_eq!(parse_size("4k"), Some(4096));
        assert_eq!(parse_size("2Gi"), Some(2 << 30));
        assert_eq!(parse_size("99999999999g"), None);
        assert_eq!(parse_size("-1"), None);
        assert_eq!(parse_size(""), None);
    }
}
