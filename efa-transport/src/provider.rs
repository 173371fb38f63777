//! Which provider and which of its NICs: the choice, and why.

use std::collections::HashSet;

use fabric_safe::{Capabilities, Hints, Info};

use crate::config::{Config, NicSelection, Provider};
use crate::error::Error;
use crate::lane::Lane;
use crate::scheduler::fabric::DIRECT;

/// Something that was considered and not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Rejected {
    /// A provider, fabric or NIC.
    pub what: String,
    /// In words.
    pub why: String,
}

/// What was chosen.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) first: Found,
    /// EFA's other fabric.
    pub(crate) second: Option<Found>,
    pub(crate) rejected: Vec<Rejected>,
}

/// NICs of one provider and fabric.
#[derive(Debug)]
pub(crate) struct Found {
    /// One for each NIC, in order.
    pub(crate) infos: Vec<Info>,
    pub(crate) label: String,
    /// In words.
    pub(crate) why: String,
}

/// A provider to try.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    label: String,
    provider: String,
    fabric: Option<&'static str>,
    why: &'static str,
}

impl Candidate {
    fn new(label: &str, provider: &str, fabric: Option<&'static str>, why: &'static str) -> Self {
        Self { label: label.into(), provider: provider.into(), fabric, why }
    }
}

fn candidates(provider: &Provider) -> Vec<Candidate> {
    let direct = || {
        let why = "the card reads and writes by itself and nothing is emulated";
        Candidate::new(DIRECT, "efa", Some(DIRECT), why)
    };
    let efa = || {
        let why = "EFA cards are there; the provider's protocols do what the card cannot";
        Candidate::new("efa", "efa", Some("efa"), why)
    };
    let rxm = || {
        Candidate::new(
            "tcp;ofi_rxm",
            "tcp;ofi_rxm",
            None,
            "there is no EFA card; datagrams over TCP connections",
        )
    };
    let net =
        || Candidate::new("net", "net", None, "there is no EFA card; libfabric's own datagrams over TCP");
    let tcp =
        || Candidate::new("tcp", "tcp", None, "there is no EFA card; libfabric's own datagrams over TCP");
    let shm = || {
        Candidate::new("shm", "shm", None, "there is no network provider; peers on this host can be reached")
    };
    match provider {
        Provider::Auto => vec![direct(), efa(), rxm(), net(), tcp(), shm()],
        Provider::EfaAuto => vec![direct(), efa()],
        Provider::EfaDirect => vec![direct()],
        Provider::Efa => vec![efa()],
        Provider::TcpRxm => vec![rxm()],
        Provider::Net => vec![net()],
        Provider::Tcp => vec![tcp()],
        Provider::Shm => vec![shm()],
        Provider::Named(name) => vec![Candidate::new(name, name, None, "asked for by name")],
    }
}

/// Asks libfabric what there is and takes the first candidate that works; after `efa-direct` also `efa`, if both are allowed.
pub(crate) fn choose(config: &Config) -> Result<Choice, Error> {
    let mut rejected = Vec::new();
    let mut first: Option<Found> = None;
    for candidate in candidates(&config.provider) {
        if first.as_ref().is_some_and(|_| candidate.provider != "efa") {
            break;
        }
        let infos = offers(&candidate, config, &mut rejected)?;
        if infos.is_empty() {
            continue;
        }
        let why = match config.provider {
            Provider::Auto | Provider::EfaAuto => candidate.why,
            _ => "the settings ask for it",
        };
        let found = Found { infos, why: format!("{}: {why}", candidate.label), label: candidate.label };
        match first {
            None if candidate.fabric == Some(DIRECT) => first = Some(found),
            None => return Ok(Choice { first: found, second: None, rejected }),
            Some(first) => return Ok(Choice { first, second: Some(found), rejected }),
        }
    }
    match first {
        Some(first) => Ok(Choice { first, second: None, rejected }),
        None => Err(Error::NoProvider { tried: rejected }),
    }
}

/// Those of `infos` that are of the same cards as `lanes`, in their order; `None` if a card is missing.
pub(crate) fn of_the_same_cards(infos: &[Info], lanes: &[Lane]) -> Option<Vec<Info>> {
    // A card that is opened several times has so many infos here, too.
    let mut left: Vec<&Info> = infos.iter().collect();
    let mut take = |lane: &Lane| {
        let at = left.iter().position(|info| nic_name(info) == lane.nic.name)?;
        Some(left.swap_remove(at).clone())
    };
    lanes.iter().map(&mut take).collect()
}

fn offers(candidate: &Candidate, config: &Config, rejected: &mut Vec<Rejected>) -> Result<Vec<Info>, Error> {
    let mut reject = |what: String, why: String| rejected.push(Rejected { what, why });
    let is_efa = candidate.provider == "efa";
    let base = Capabilities::MSG | Capabilities::RMA;
    // Device memory where the provider can; host memory alone where it cannot.
    let wishes: &[Capabilities] = if is_efa { &[base.union(Capabilities::HMEM), base] } else { &[base] };
    let mut infos = Vec::new();
    for capabilities in wishes {
        let mut hints = Hints::new().provider(&candidate.provider).capabilities(*capabilities);
        if let Some(fabric) = candidate.fabric {
            hints = hints.fabric(fabric);
        }
        if let (Some(source), false) = (&config.source, is_efa || candidate.provider == "shm") {
            hints = hints.source(source, None);
        }
        match hints.discover() {
            Ok(found) => infos = found,
            Err(error @ fabric_safe::Error::Library(_)) => {
                return Err(Error::NoLibrary(std::sync::Arc::new(error)));
            }
            Err(error) => {
                reject(candidate.label.clone(), error.to_string());
                return Ok(Vec::new());
            }
        }
        if !infos.is_empty() {
            break;
        }
    }
    if infos.is_empty() {
        let why = match (is_efa, &config.source) {
            (true, _) => "libfabric lists no such EFA card".to_owned(),
            (false, Some(source)) => format!("libfabric does not offer it on {source}"),
            (false, None) => "libfabric does not offer it".to_owned(),
        };
        reject(candidate.label.clone(), why);
        return Ok(infos);
    }
    if candidate.fabric == Some(DIRECT) {
        // Without both, efa-direct could not do half of the operations.
        let both = Capabilities::READ | Capabilities::WRITE;
        infos.retain(|info| {
            let caps = info.capabilities();
            caps.contains(both) || !caps.intersects(both)
        });
    }
    infos = one_each(infos, config);
    let before = infos.len();
    let kept: Vec<Info> =
        infos.iter().filter(|info| selected(info, infos.as_slice(), config)).cloned().collect();
    if kept.is_empty() {
        let names: Vec<String> = infos.iter().map(nic_name).collect();
        reject(
            candidate.label.clone(),
            format!("none of its {before} NIC(s) ({}) is selected", names.join(", ")),
        );
        return Ok(kept);
    }
    for left_out in infos.iter().filter(|info| !kept.iter().any(|k| nic_name(k) == nic_name(info))) {
        reject(format!("NIC {}", nic_name(left_out)), "not selected by the settings".into());
    }
    let copies = config.endpoints_per_nic.max(1);
    Ok(kept.into_iter().flat_map(|info| std::iter::repeat_n(info, copies)).take(efa_mr::MAX_NICS).collect())
}

/// libfabric lists an interface once for each of its addresses; the first (IPv4 before IPv6) counts. The loopback counts
/// only if it is all that there is, or was asked for.
fn one_each(infos: Vec<Info>, config: &Config) -> Vec<Info> {
    let mut seen = HashSet::new();
    let mut infos: Vec<Info> =
        infos.into_iter().filter(|info| seen.insert(info.domain_name().to_owned())).collect();
    let asked_for = config.source.is_some() || matches!(config.nics, NicSelection::Named(_));
    if !asked_for && infos.iter().any(|info| info.domain_name() != "lo") {
        infos.retain(|info| info.domain_name() != "lo");
    }
    infos
}

/// The fabric where its name says how endpoints talk (`efa`, `efa-direct`); elsewhere it names a network, and this is empty.
pub(crate) fn fabric_of(info: &Info) -> &str {
    if info.provider_name() == "efa" { info.fabric_name() } else { "" }
}

/// The device's name, or the domain's.
pub(crate) fn nic_name(info: &Info) -> String {
    info.nic()
        .map(|nic| nic.name)
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| info.domain_name().to_owned())
}

/// The NUMA node that the card hangs off, if the kernel knows.
pub(crate) fn numa_of(info: &Info) -> Option<u16> {
    let pci = info.nic()?.pci?;
    let text = std::fs::read_to_string(format!("/sys/bus/pci/devices/{pci}/numa_node")).ok()?;
    text.trim().parse().ok()
}

fn selected(info: &Info, all: &[Info], config: &Config) -> bool {
    match &config.nics {
        NicSelection::All => true,
        NicSelection::Named(names) => {
            names.iter().any(|name| *name == nic_name(info) || *name == info.domain_name())
        }
        NicSelection::Numa(node) => numa_of(info) == Some(*node),
        NicSelection::Near(location) => {
            let distance = |info: &Info| {
                efa_mr::Nic { numa: numa_of(info), ..efa_mr::Nic::new(nic_name(info)) }.distance(*location)
            };
            all.iter().map(distance).min() == Some(distance(info))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn efa_comes_first_and_shared_memory_last() {
        let all = candidates(&Provider::Auto);
        let labels: Vec<&str> = all.iter().map(|c| c.label.as_str()).collect();
        assert_eq!(labels, ["efa-direct", "efa", "tcp;ofi_rxm", "net", "tcp", "shm"]);
    }

    #[test]
    fn a_provider_that_does_not_exist_is_named_in_the_error() {
        let config = Config::new().provider(Provider::Named("nonesuch".into()));
        match choose(&config) {
            Err(Error::NoProvider { tried }) => assert_eq!(tried[0].what, "nonesuch"),
            Err(Error::NoLibrary(error)) => eprintln!("SKIP: a_provider_that_does_not_exist: {error}"),
            other => panic!("{other:?}"),
        }
    }
}
