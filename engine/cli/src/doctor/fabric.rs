//! What libfabric tells, and what our transport would make of it.

use serde::Serialize;

/// The libfabric side.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct FabricFacts {
    /// The library, or why there is none.
    pub(crate) library: Option<LibraryFacts>,
    pub(crate) no_library: Option<String>,
    /// Providers that can do messages and remote memory access, with their NICs.
    pub(crate) providers: Vec<ProviderFacts>,
    /// The path that the engine would open, or why it opens none.
    pub(crate) path: Option<PathFacts>,
    pub(crate) no_path: Option<String>,
}

/// The library.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct LibraryFacts {
    pub(crate) version: String,
    pub(crate) path: String,
    /// Whether it is 1.x.
    pub(crate) old: bool,
}

/// A provider.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ProviderFacts {
    pub(crate) name: String,
    pub(crate) nics: Vec<String>,
}

/// What the transport would use.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct PathFacts {
    pub(crate) provider: String,
    pub(crate) fabric: String,
    pub(crate) why: String,
    pub(crate) nics: Vec<NicFacts>,
    /// Whether cards read and write by themselves.
    pub(crate) device_rdma: Option<bool>,
    pub(crate) device_memory: bool,
    /// What was considered and not taken, with the reason.
    pub(crate) rejected: Vec<(String, String)>,
    pub(crate) warnings: Vec<String>,
}

/// One NIC of it.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct NicFacts {
    pub(crate) name: String,
    pub(crate) link_mbps: u64,
    pub(crate) numa: Option<u16>,
    pub(crate) depth: usize,
}

impl PathFacts {
    /// As the engine calls it.
    pub(crate) fn name(&self) -> String {
        if self.provider == "efa" { format!("efa/{}", self.fabric) } else { self.provider.clone() }
    }
}

/// Asks this process's libfabric. Opens NICs for a moment.
#[cfg(feature = "efa")]
pub(crate) fn ask(provider: Option<&str>, forced_tcp: bool) -> FabricFacts {
    let mut facts = FabricFacts::default();
    match fabric_sys::load() {
        Err(error) => {
            facts.no_library = Some(error.to_string());
            return facts;
        }
        Ok(library) => {
            facts.library = Some(LibraryFacts {
                version: library.package_version(),
                path: library.path().display().to_string(),
                old: library.package_version().starts_with("1."),
            });
        }
    }
    facts.providers = providers();
    if forced_tcp {
        facts.no_path = Some("--protocol tcp".into());
        return facts;
    }
    match open(provider) {
        Ok(path) => facts.path = Some(path),
        Err(reason) => facts.no_path = Some(reason),
    }
    facts
}

#[cfg(feature = "efa")]
fn providers() -> Vec<ProviderFacts> {
    use fabric_safe::{Capabilities, Hints};

    let mut providers: Vec<ProviderFacts> = Vec::new();
    let wanted = Hints::new().capabilities(Capabilities::MSG | Capabilities::RMA);
    for info in wanted.discover().unwrap_or_default() {
        let name = match info.provider_name() {
            "efa" => format!("efa/{}", info.fabric_name()),
            other => other.to_owned(),
        };
        let nic = info.domain_name().to_owned();
        match providers.iter_mut().find(|known| known.name == name) {
            Some(known) if known.nics.contains(&nic) => {}
            Some(known) => known.nics.push(nic),
            None => providers.push(ProviderFacts { name, nics: vec![nic] }),
        }
    }
    providers
}

/// As the engine does it: EFA, direct if possible, or the provider that was named.
#[cfg(feature = "efa")]
fn open(provider: Option<&str>) -> Result<PathFacts, String> {
    use efa_transport::{Config, Provider, Transport};

    let config = Config::from_env().map_err(|error| error.to_string())?;
    let opened = match provider {
        Some(name) => Transport::open(config.provider(Provider::parse(name))),
        None => Transport::open(config.provider(Provider::EfaAuto)),
    };
    let transport = opened.map_err(|error| error.to_string())?;
    let description = transport.describe();
    transport.shutdown(std::time::Instant::now() + std::time::Duration::from_secs(1));
    let nic = |nic: &efa_transport::NicDescription| NicFacts {
        name: nic.name.clone(),
        link_mbps: nic.link_mbps,
        numa: nic.numa,
        depth: nic.depth,
    };
    Ok(PathFacts {
        nics: description.nics.iter().map(nic).collect(),
        device_rdma: description.device_rdma,
        device_memory: !description.nics.is_empty() && description.nics.iter().all(|nic| nic.device_memory),
        rejected: description.rejected.into_iter().map(|rejected| (rejected.what, rejected.why)).collect(),
        warnings: description.warnings,
        why: match (provider, description.fabric.as_str()) {
            (None, "efa-direct") => {
                let why = "the cards read and write by themselves, nothing is emulated";
                let further = description.on_request.as_ref();
                further.map_or(why.into(), |it| format!("{why}; efa/{it} is opened for peers that need it"))
            }
            (None, _) => "the provider's protocols do what the cards cannot".into(),
            (Some(_), _) => description.choice.clone(),
        },
        provider: description.provider,
        fabric: description.fabric,
    })
}

/// Nothing is known of libfabric.
#[cfg(not(feature = "efa"))]
pub(crate) fn ask(_: Option<&str>, _: bool) -> FabricFacts {
    FabricFacts {
        no_library: Some("this program was built without the feature `efa`".into()),
        ..FabricFacts::default()
    }
}
