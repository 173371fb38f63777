//! Which path am I on?

use std::fmt;

use crate::core::Core;
use crate::nic::Emulation;
use crate::provider::Rejected;

/// The path that transfers of a transport take.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Description {
    /// libfabric's provider.
    pub provider: String,
    /// libfabric's fabric: how EFA endpoints talk, elsewhere the network.
    pub fabric: String,
    /// A further fabric that is opened for the first peer that needs it, at the cost of registering all memory once more.
    pub on_request: Option<String>,
    /// Why this provider was chosen, in words.
    pub choice: String,
    /// What was considered and not taken.
    pub rejected: Vec<Rejected>,
    /// The NICs, in order; each once more when the further fabric is open, then called `CARD/FABRIC`.
    pub nics: Vec<NicDescription>,
    /// Whether a write completes only when its bytes are visible at the target.
    pub delivery_complete: bool,
    /// Whether the cards read and write by themselves; `None` where that question makes no sense.
    pub device_rdma: Option<bool>,
    /// What makes this path slower than it could be.
    pub warnings: Vec<String>,
}

/// One NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct NicDescription {
    /// Its name.
    pub name: String,
    /// libfabric's domain.
    pub domain: String,
    /// libfabric's fabric.
    pub fabric: String,
    /// Link speed in Mbit/s, 0 if the provider does not say.
    pub link_mbps: u64,
    /// The NUMA node that it hangs off.
    pub numa: Option<u16>,
    /// Operations that it takes at a time.
    pub depth: usize,
    /// Whether reads are emulated with messages.
    pub read_emulated: Option<bool>,
    /// Whether writes are emulated with messages.
    pub write_emulated: Option<bool>,
    /// Whether device memory can be registered.
    pub device_memory: bool,
    /// Whether somebody has to poll for anything to move.
    pub manual_progress: bool,
    /// Whether threads can sleep until something completes.
    pub wait_object: bool,
    /// Bytes of immediates.
    pub immediate_bytes: usize,
    /// Whether it is set aside at the moment.
    pub aside: bool,
}

impl Core {
    pub(crate) fn description(&self) -> Description {
        let now = self.clock.now();
        let mut warnings = Vec::new();
        let mut nics = Vec::new();
        for lane in &self.lanes {
            let (endpoint, depth) = {
                let state = lane.state.lock();
                (std::sync::Arc::clone(&state.endpoint), state.queue.depth())
            };
            // While an endpoint is being closed, the provider has it.
            let closing = lane.reopening.is_closing();
            let Emulation { read, write } =
                if closing { Emulation::default() } else { lane.nic.emulation(&endpoint) };
            let info = &lane.nic.info;
            let name = &lane.nic.name;
            if write == Some(true) {
                warnings.push(format!(
                    "NIC {name} emulates writes with messages: slow, and complete before they are visible"
                ));
            }
            if read == Some(true) {
                warnings.push(format!("NIC {name} emulates reads with messages: slow"));
            }
            nics.push(NicDescription {
                name: name.clone(),
                domain: info.domain_name().to_owned(),
                fabric: info.fabric_name().to_owned(),
                link_mbps: info.link_bits_per_second() / 1_000_000,
                numa: lane.nic.numa,
                depth,
                read_emulated: read,
                write_emulated: write,
                device_memory: info.capabilities().contains(fabric_safe::Capabilities::HMEM),
                manual_progress: lane.manual,
                wait_object: lane.nic.has_wait_object,
                immediate_bytes: info.immediate_bytes(),
                aside: lane.aside_until.load(std::sync::atomic::Ordering::Relaxed) > now,
            });
        }
        let info = &self.lanes[0].nic.info;
        let efa = info.provider_name() == "efa";
        if !efa
            && std::path::Path::new("/sys/class/infiniband").read_dir().is_ok_and(|mut d| d.next().is_some())
        {
            warnings.push(format!("this machine has RDMA devices, but the path is {}", info.provider_name()));
        }
        let delivery_complete = self.lanes.iter().all(|lane| lane.nic.info.delivery_complete());
        if !efa && !delivery_complete {
            warnings.push("a write may complete a moment before its bytes are visible at the target".into());
        }
        let device_rdma = efa.then(|| {
            nics.iter().all(|nic| nic.read_emulated != Some(true) && nic.write_emulated != Some(true))
        });
        Description {
            provider: info.provider_name().to_owned(),
            fabric: info.fabric_name().to_owned(),
            on_request: self.on_request().map(str::to_owned),
            choice: self.choice.clone(),
            rejected: self.rejected.iter().cloned().chain(self.second_failed()).collect(),
            nics,
            delivery_complete,
            device_rdma,
            warnings,
        }
    }
}

impl Description {
    /// One log line for each NIC from this one on, and one for each warning.
    pub(crate) fn log(&self, first: usize) {
        for nic in self.nics.iter().skip(first) {
            tracing::info!("{} of {} ({}): {nic}", nic.name, self.provider, nic.fabric);
        }
        for warning in &self.warnings {
            tracing::warn!("{warning}");
        }
    }
}

impl fmt::Display for NicDescription {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.link_mbps {
            0 => f.write_str("speed unknown")?,
            mbps => write!(f, "{} Gbit/s", mbps as f64 / 1000.0)?,
        }
        write!(f, ", depth {}", self.depth)?;
        if let Some(node) = self.numa {
            write!(f, ", NUMA node {node}")?;
        }
        match (self.read_emulated, self.write_emulated) {
            (None, None) => {}
            (Some(false), Some(false)) => f.write_str(", device reads and writes")?,
            (Some(false), _) => f.write_str(", device reads, emulated writes")?,
            (_, Some(false)) => f.write_str(", emulated reads, device writes")?,
            _ => f.write_str(", emulated reads and writes")?,
        }
        f.write_str(if self.device_memory { ", device memory" } else { ", host memory only" })?;
        f.write_str(if self.manual_progress { ", manual progress" } else { ", automatic progress" })?;
        f.write_str(if self.wait_object { ", wait object" } else { ", timer" })?;
        if self.aside { f.write_str(", set aside") } else { Ok(()) }
    }
}

impl fmt::Display for Description {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})", self.provider, self.choice)?;
        let complete = if self.delivery_complete { "visible at the target" } else { "acknowledged" };
        writeln!(f, "  writes complete when {complete}")?;
        for nic in &self.nics {
            writeln!(f, "  NIC {} ({}): {nic}", nic.name, nic.fabric)?;
        }
        if let Some(fabric) = &self.on_request {
            writeln!(f, "  fabric {fabric} is opened for peers that need it")?;
        }
        for rejected in &self.rejected {
            writeln!(f, "  not {}: {}", rejected.what, rejected.why)?;
        }
        for warning in &self.warnings {
            writeln!(f, "  warning: {warning}")?;
        }
        Ok(())
    }
}
