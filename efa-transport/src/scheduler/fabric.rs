//! Which fabric two transports use with each other.
//!
//! EFA cards have two: on `efa-direct` the card alone reads and writes, on `efa` the provider's protocols do what a card cannot.
//! Endpoints of one do not understand those of the other. Both sides come to the same answer, each from what it knows.

/// The fabric on which the cards work alone.
pub const DIRECT: &str = "efa-direct";

/// A fabric that one side has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offer<'a> {
    /// libfabric's name for it; empty where names tell nothing, outside EFA.
    pub fabric: &'a str,
    /// What the cards do on it.
    pub device: Device,
}

/// Whether cards read and write remote memory by themselves; `None` where nobody says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Device {
    /// Reads.
    pub reads: Option<bool>,
    /// Writes.
    pub writes: Option<bool>,
}

impl Device {
    /// What is left when this side's cards deal with those of another.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self { reads: both(self.reads, other.reads), writes: both(self.writes, other.writes) }
    }

    /// Reads and writes together.
    #[must_use]
    pub fn rdma(self) -> Option<bool> {
        both(self.reads, self.writes)
    }
}

/// Known to be so only if both are; known not to be so if one is.
fn both(a: Option<bool>, b: Option<bool>) -> Option<bool> {
    match (a, b) {
        (Some(false), _) | (_, Some(false)) => Some(false),
        (Some(true), Some(true)) => Some(true),
        _ => None,
    }
}

/// The fabric that both sides have: [`DIRECT`] unless one side's cards are known not to do everything by themselves, and any other
/// before it then. `None` if there is none: the two cannot reach each other.
#[must_use]
pub fn choose<'a>(ours: &[Offer<'a>], theirs: &[Offer<'_>]) -> Option<&'a str> {
    let common = ours.iter().filter_map(|our| {
        let their = theirs.iter().find(|their| their.fabric == our.fabric)?;
        Some((our.fabric, our.device.with(their.device)))
    });
    let suits = |&(fabric, device): &(&'a str, Device)| fabric != DIRECT || device.rdma() != Some(false);
    // Names decide what nothing else does, so that both sides come to the same.
    common.filter(suits).map(|(fabric, _)| fabric).min_by_key(|fabric| (*fabric != DIRECT, *fabric))
}
