//! Every setting, with its default and where the default comes from.

use std::time::Duration;

use efa_mr::{Location, Policy};

use crate::error::Error;

/// Which libfabric provider to use.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum Provider {
    /// The best that there is: [`EfaAuto`](Self::EfaAuto), then `tcp;ofi_rxm`, `net`, `tcp`, `shm`.
    #[default]
    Auto,
    /// EFA cards: `efa-direct`, and `efa` for peers that need it (see [`scheduler::fabric`](crate::scheduler::fabric)); `efa` alone
    /// where the cards do not both read and write by themselves. With the first peer that needs `efa` all memory is registered
    /// once more, out of the same budget of page table entries.
    EfaAuto,
    /// EFA cards without the provider's software protocols: needs cards that read and write by themselves, on both sides.
    EfaDirect,
    /// EFA cards with the provider's protocols, which emulate what the card cannot do. What Mooncake's nodes use.
    Efa,
    /// Reliable datagrams over TCP connections (`tcp;ofi_rxm`).
    TcpRxm,
    /// What libfabric 1.17 calls `net` and 2.x calls `tcp`: reliable datagrams over TCP, natively.
    Net,
    /// The provider `tcp` of libfabric 1.18 and later.
    Tcp,
    /// Shared memory: peers on this host only.
    Shm,
    /// Any other, by libfabric's name for it.
    Named(String),
}

/// Which NICs to open.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
#[non_exhaustive]
pub enum NicSelection {
    /// All that the provider has.
    #[default]
    All,
    /// Those with these names (of the device, or of libfabric's domain).
    Named(Vec<String>),
    /// Those on this NUMA node.
    Numa(u16),
    /// Those nearest to this memory, e.g. [`Location::Gpu`].
    Near(Location),
}

/// Settings of a [`Transport`](crate::Transport).
#[derive(Debug, Clone)]
#[must_use]
pub struct Config {
    pub(crate) name: Option<String>,
    pub(crate) provider: Provider,
    pub(crate) nics: NicSelection,
    pub(crate) source: Option<String>,
    pub(crate) endpoints_per_nic: usize,
    pub(crate) policy: Policy,
    pub(crate) pte_budget: Option<u64>,
    pub(crate) max_mr_bytes: u64,
    pub(crate) parallel_registrations: usize,
    pub(crate) request_deadline: Duration,
    pub(crate) retries: u32,
    pub(crate) depth: Option<usize>,
    pub(crate) window_bytes: u64,
    pub(crate) stripe_bytes: u64,
    pub(crate) slice_bytes: u64,
    pub(crate) doorbell_batching: bool,
    pub(crate) max_peers: usize,
    pub(crate) wait_objects: bool,
    pub(crate) same_process_copy: bool,
    pub(crate) stuck_after: Duration,
    pub(crate) trace_slices: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            name: None,
            provider: Provider::Auto,
            nics: NicSelection::All,
            source: None,
            endpoints_per_nic: 1,
            policy: Policy::all(),
            pte_budget: None,
            max_mr_bytes: u64::MAX,
            parallel_registrations: efa_mr::registrar::DEFAULT_PARALLEL,
            request_deadline: Duration::from_secs(30),
            retries: 7,
            depth: None,
            window_bytes: 32 << 20,
            stripe_bytes: 256 << 10,
            slice_bytes: 1 << 20,
            doorbell_batching: false,
            max_peers: 65_536,
            wait_objects: true,
            same_process_copy: true,
            stuck_after: Duration::from_secs(5),
            trace_slices: 0,
        }
    }
}

impl Config {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// What peers call this transport in their messages, and by which they recognise it after a restart. Default: host and
    /// process id, which no restart keeps.
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Which provider. Default: the best.
    pub fn provider(mut self, provider: Provider) -> Self {
        self.provider = provider;
        self
    }

    /// Which NICs. Default: all.
    pub fn nics(mut self, nics: NicSelection) -> Self {
        self.nics = nics;
        self
    }

    /// Local address for providers over TCP, which otherwise take every interface but the loopback.
    pub fn source(mut self, address: impl Into<String>) -> Self {
        self.source = Some(address.into());
        self
    }

    /// Opens each NIC this many times, each a NIC of its own to everything above, but for one thing: requests are cut for as many
    /// NICs as there are links. Default 1. For interfaces whose single connection is slower than the link, and for trying many
    /// NICs on a machine with one.
    pub fn endpoints_per_nic(mut self, count: usize) -> Self {
        self.endpoints_per_nic = count;
        self
    }

    /// How many NICs each byte is registered with. Default: all.
    pub fn policy(mut self, policy: Policy) -> Self {
        self.policy = policy;
        self
    }

    /// Page table entries to use on each NIC. Default: 22 Mi on EFA, no limit elsewhere.
    pub fn pte_budget(mut self, entries: u64) -> Self {
        self.pte_budget = Some(entries);
        self
    }

    /// The longest single registration in bytes. Default: no limit but the card's.
    pub fn max_mr_bytes(mut self, bytes: u64) -> Self {
        self.max_mr_bytes = bytes;
        self
    }

    /// NICs that register at a time. Default 8: the kernel serialises much of it.
    pub fn parallel_registrations(mut self, nics: usize) -> Self {
        self.parallel_registrations = nics;
        self
    }

    /// Time from submission to the end of each request unless its batch says otherwise. Default 30 s, as Mooncake's
    /// `MC_TRANSFER_TIMEOUT`.
    pub fn request_deadline(mut self, limit: Duration) -> Self {
        self.request_deadline = limit;
        self
    }

    /// Further attempts of a slice after the first has failed. Default 7. Unless it is 0, more are made while there are NICs here that
    /// the slice has not failed on: any number of them may have died at once.
    pub fn retries(mut self, count: u32) -> Self {
        self.retries = count;
        self
    }

    /// Operations outstanding on one NIC at the most. Default: what the provider reports, which is also the limit.
    pub fn depth(mut self, operations: usize) -> Self {
        self.depth = Some(operations);
        self
    }

    /// Bytes outstanding on one NIC at the most (one slice always goes). Default 32 MiB: 400 Gbit/s for 0.6 ms. The rest
    /// stays in our queue, where another NIC that has nothing to do can take it over.
    pub fn window_bytes(mut self, bytes: u64) -> Self {
        self.window_bytes = bytes;
        self
    }

    /// Requests longer than this are spread over several NICs. Default 256 KiB.
    pub fn stripe_bytes(mut self, bytes: u64) -> Self {
        self.stripe_bytes = bytes;
        self
    }

    /// The longest slice of a striped request. Default 1 MiB.
    pub fn slice_bytes(mut self, bytes: u64) -> Self {
        self.slice_bytes = bytes;
        self
    }

    /// Tells the card to wait for the next operation when there is one (`FI_MORE`), ringing its doorbell once for several.
    /// Default off: small writes have been seen to hang with it on EFA.
    pub fn doorbell_batching(mut self, on: bool) -> Self {
        self.doorbell_batching = on;
        self
    }

    /// Peers whose addresses a NIC keeps at the most; idle ones make room. Default 65 536, the size of EFA's address vector.
    pub fn max_peers(mut self, count: usize) -> Self {
        self.max_peers = count;
        self
    }

    /// Blocks on completion queues where the provider can. Default on; otherwise a coarse timer is used.
    pub fn wait_objects(mut self, on: bool) -> Self {
        self.wait_objects = on;
        self
    }

    /// Transfers within this process are copies by the processor. Default on.
    pub fn same_process_copy(mut self, on: bool) -> Self {
        self.same_process_copy = on;
        self
    }

    /// How long after its request's deadline an operation may stay unfinished before its NIC's endpoint is closed and opened
    /// again, which is what ends operations that a provider never completes. Default 5 s.
    pub fn stuck_after(mut self, time: Duration) -> Self {
        self.stuck_after = time;
        self
    }

    /// Keeps the last this many slices for [`Transport::slice_trace`](crate::Transport::slice_trace). Default 0: none.
    pub fn trace_slices(mut self, count: usize) -> Self {
        self.trace_slices = count;
        self
    }

    /// The defaults, changed by what the environment says; see [`from_vars`](Self::from_vars).
    ///
    /// # Errors
    /// [`Error::Setting`] names the variable that makes no sense.
    pub fn from_env() -> Result<Self, Error> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// The defaults, changed by variables. Ours are `WEFT_EFA_PROVIDER`, `WEFT_EFA_NICS` (names, comma-separated),
    /// `WEFT_EFA_SOURCE`, `WEFT_EFA_DEADLINE_MS`, `WEFT_EFA_STRIPE_BYTES`, `WEFT_EFA_SLICE_BYTES`,
    /// `WEFT_EFA_WINDOW_BYTES`, `WEFT_EFA_DOORBELL_BATCHING`, `WEFT_EFA_PTE_BUDGET`. Where one of these is absent, Mooncake's name for
    /// the same thing counts: `MC_TE_FILTERS` (names), `MC_EFA_NIC_SELECTION` (`all`, `local`), `MC_TRANSFER_TIMEOUT` (seconds),
    /// `MC_MAX_WR` (depth), `MC_MAX_MR_SIZE`, `MC_RETRY_CNT`, `MC_ENABLE_PARALLEL_REG_MR`,
    /// `MC_MAX_CONCURRENT_REG_MR`. Empty values count as absent.
    ///
    /// # Errors
    /// [`Error::Setting`] names the variable that makes no sense.
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, Error> {
        let get = |name: &'static str| {
            var(name).map(|v| v.trim().to_owned()).filter(|v| !v.is_empty()).map(|v| (name, v))
        };
        let either = |ours, theirs| get(ours).or_else(|| get(theirs));
        let mut config = Self::new();
        if let Some((_, text)) = get("WEFT_EFA_PROVIDER") {
            config.provider = Provider::parse(&text);
        }
        if let Some((_, selection)) = get("MC_EFA_NIC_SELECTION") {
            config.policy = match selection.to_ascii_lowercase().as_str() {
                "all" => Policy::all(),
                "local" => Policy::near(),
                _ => return Err(Error::setting("MC_EFA_NIC_SELECTION", "write all or local")),
            };
        }
        if let Some((_, names)) = either("WEFT_EFA_NICS", "MC_TE_FILTERS") {
            let names = names.split(',').map(|n| n.trim().to_owned()).filter(|n| !n.is_empty()).collect();
            config.nics = NicSelection::Named(names);
        }
        config.source = get("WEFT_EFA_SOURCE").map(|(_, v)| v);
        if let Some((name, text)) = get("WEFT_EFA_DEADLINE_MS") {
            config.request_deadline = Duration::from_millis(number(name, &text, 1)?);
        } else if let Some((name, text)) = get("MC_TRANSFER_TIMEOUT") {
            config.request_deadline = Duration::from_secs(number(name, &text, 1)?);
        }
        if let Some((name, text)) = get("WEFT_EFA_STRIPE_BYTES") {
            config.stripe_bytes = number(name, &text, 1)?;
        }
        if let Some((name, text)) = get("WEFT_EFA_SLICE_BYTES") {
            config.slice_bytes = number(name, &text, 4096)?;
        }
        if let Some((name, text)) = get("WEFT_EFA_WINDOW_BYTES") {
            config.window_bytes = number(name, &text, 1)?;
        }
        if let Some((name, text)) = get("WEFT_EFA_PTE_BUDGET") {
            config.pte_budget = Some(number(name, &text, 1)?);
        }
        if let Some((name, text)) = get("WEFT_EFA_DOORBELL_BATCHING") {
            config.doorbell_batching = switch(name, &text)?;
        }
        if let Some((name, text)) = get("MC_MAX_WR") {
            config.depth = Some(number(name, &text, 1)? as usize);
        }
        if let Some((name, text)) = get("MC_MAX_MR_SIZE") {
            config.max_mr_bytes = number(name, &text, 4096)?;
        }
        if let Some((name, text)) = get("MC_RETRY_CNT") {
            config.retries = u32::try_from(number(name, &text, 0)?).unwrap_or(u32::MAX);
        }
        if let Some((name, text)) = get("MC_ENABLE_PARALLEL_REG_MR")
            && text != "-1"
            && !switch(name, &text)?
        {
            config.parallel_registrations = 1;
        } else if let Some((name, text)) = get("MC_MAX_CONCURRENT_REG_MR") {
            config.parallel_registrations = number(name, &text, 1)? as usize;
        }
        Ok(config)
    }
}

impl Provider {
    /// From text as people write it: `auto`, `efa-auto`, `efa-direct`, `efa` (or `efa/efa-direct`, `efa/efa`), `tcp;ofi_rxm` (or `rxm`), `net`, `tcp`, `shm`, or any other name
    /// of libfabric's.
    pub fn parse(text: &str) -> Self {
        match text.to_ascii_lowercase().as_str() {
            "auto" | "" => Self::Auto,
            "efa-auto" => Self::EfaAuto,
            "efa-direct" | "efa/efa-direct" => Self::EfaDirect,
            "efa" | "efa/efa" => Self::Efa,
            "tcp;ofi_rxm" | "rxm" | "tcp-rxm" => Self::TcpRxm,
            "net" => Self::Net,
            "tcp" => Self::Tcp,
            "shm" => Self::Shm,
            _ => Self::Named(text.to_owned()),
        }
    }
}

fn number(name: &str, text: &str, least: u64) -> Result<u64, Error> {
    text.parse()
        .ok()
        .filter(|&n| n >= least)
        .ok_or_else(|| Error::setting(name, format!("{text:?} is not a whole number of at least {least}")))
}

fn switch(name: &str, text: &str) -> Result<bool, Error> {
    match text.to_ascii_lowercase().as_str() {
        "1" | "true" | "on" | "yes" => Ok(true),
        "0" | "false" | "off" | "no" => Ok(false),
        _ => Err(Error::setting(name, format!("{text:?} is neither on nor off"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)]) -> Result<Config, Error> {
        Config::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned()))
    }

    #[test]
    fn ours_come_before_mooncakes() {
        let config = with(&[
            ("MC_TRANSFER_TIMEOUT", "7"),
            ("MC_TE_FILTERS", "a, b,"),
            ("MC_MAX_WR", "128"),
            ("MC_RETRY_CNT", "0"),
            ("MC_ENABLE_PARALLEL_REG_MR", "0"),
        ])
        .unwrap();
        assert_eq!(config.request_deadline, Duration::from_secs(7));
        assert_eq!(config.nics, NicSelection::Named(vec!["a".into(), "b".into()]));
        assert_eq!((config.depth, config.retries, config.parallel_registrations), (Some(128), 0, 1));
        let config = with(&[("MC_TRANSFER_TIMEOUT", "7"), ("WEFT_EFA_DEADLINE_MS", "9")]).unwrap();
        assert_eq!(config.request_deadline, Duration::from_millis(9));
    }

    #[test]
    fn nonsense_is_named() {
        for (name, value) in [
            ("MC_TRANSFER_TIMEOUT", "soon"),
            ("MC_MAX_WR", "0"),
            ("WEFT_EFA_DOORBELL_BATCHING", "2"),
            ("MC_EFA_NIC_SELECTION", "some"),
            ("WEFT_EFA_SLICE_BYTES", "-1"),
        ] {
            let error = with(&[(name, value)]).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
        assert!(with(&[("MC_MAX_WR", " ")]).is_ok(), "empty is absent");
    }
}
