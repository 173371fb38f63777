//! A network card as the planner sees it: what it has left, how fast it is, how far from which memory.

use crate::buffer::Location;
use std::fmt;

/// Page table entries that we budget a card for by default.
///
/// An EFA card holds about 24 Mi translations; 2 Mi stay free for other processes' queues and for what the provider
/// itself registers (bounce buffers, handshake pools).
pub const DEFAULT_PTE_BUDGET: u64 = 22 << 20;

/// The most NICs that one plan can use: the width of a [`NicSet`].
pub const MAX_NICS: usize = 128;

/// How far a NIC is from memory, in the steps that a transfer has to cross. Nearer sorts first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distance {
    /// Below the same PCIe switch as the device.
    SameSwitch,
    /// Below the same PCIe root port or host bridge.
    SameRoot,
    /// On the same NUMA node.
    SameNode,
    /// Across the processors' interconnect, or unknown.
    OtherNode,
    /// The NIC cannot reach this memory at all (for example device memory on a card without peer access).
    Unreachable,
}

impl Distance {
    /// What one byte at this distance counts in the planner's affinity objective; `None` if unreachable.
    ///
    /// Steps are weighed linearly: two bytes one step too far are as bad as one byte two steps too far.
    #[must_use]
    pub const fn weight(self) -> Option<u32> {
        match self {
            Self::SameSwitch => Some(0),
            Self::SameRoot => Some(1),
            Self::SameNode => Some(2),
            Self::OtherNode => Some(3),
            Self::Unreachable => None,
        }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::SameSwitch => "same switch",
            Self::SameRoot => "same root",
            Self::SameNode => "same node",
            Self::OtherNode => "other node",
            Self::Unreachable => "unreachable",
        })
    }
}

/// What the planner knows about one NIC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nic {
    /// The libfabric domain's or the kernel's name (`rdmap16s27`); used in messages only.
    pub name: String,
    /// Page table entries that may still be used on it.
    pub pte_left: u64,
    /// MRs that may still be made on it.
    pub mrs_left: u64,
    /// The longest single MR in bytes.
    pub max_mr_bytes: u64,
    /// Link speed in Mbit/s, not zero; 100 000 for a 100 Gbit/s card.
    pub link_mbps: u32,
    /// The NUMA node that it hangs off, if known.
    pub numa: Option<u16>,
    /// Distances that are known better than by NUMA node alone (GPUs, mostly).
    pub distances: Vec<(Location, Distance)>,
}

impl Nic {
    /// A 100 Gbit/s card with the default budget, no practical limit on MRs, and no known place.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            pte_left: DEFAULT_PTE_BUDGET,
            mrs_left: u64::MAX,
            max_mr_bytes: u64::MAX,
            link_mbps: 100_000,
            numa: None,
            distances: Vec::new(),
        }
    }

    /// The distance to memory at `location`: the listed one, else by NUMA node, else [`Distance::OtherNode`].
    ///
    /// Host memory on an unknown node is equally far from every NIC.
    #[must_use]
    pub fn distance(&self, location: Location) -> Distance {
        if let Some((_, distance)) = self.distances.iter().find(|(known, _)| *known == location) {
            return *distance;
        }
        match (location, self.numa) {
            (Location::Numa(node), Some(own)) if node == own => Distance::SameNode,
            _ => Distance::OtherNode,
        }
    }
}

/// A set of NICs by index into the slice that the plan was made for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct NicSet(u128);

impl NicSet {
    /// The empty set.
    pub const EMPTY: Self = Self(0);

    /// The NICs `0..count`; `count` is cut off at [`MAX_NICS`].
    #[must_use]
    pub const fn first(count: usize) -> Self {
        if count >= MAX_NICS { Self(u128::MAX) } else { Self((1 << count) - 1) }
    }

    /// Puts a NIC in. Indices from [`MAX_NICS`] on are ignored.
    pub const fn insert(&mut self, nic: usize) {
        if nic < MAX_NICS {
            self.0 |= 1 << nic;
        }
    }

    /// Takes a NIC out.
    pub const fn remove(&mut self, nic: usize) {
        if nic < MAX_NICS {
            self.0 &= !(1 << nic);
        }
    }

    /// Whether the NIC is in the set.
    #[must_use]
    pub const fn contains(self, nic: usize) -> bool {
        nic < MAX_NICS && self.0 >> nic & 1 == 1
    }

    /// How many NICs are in the set.
    #[must_use]
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Whether no NIC is in the set.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The indices in ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        let mut bits = self.0;
        std::iter::from_fn(move || {
            if bits == 0 {
                return None;
            }
            let nic = bits.trailing_zeros() as usize;
            bits &= bits - 1;
            Some(nic)
        })
    }
}

impl FromIterator<usize> for NicSet {
    fn from_iter<I: IntoIterator<Item = usize>>(nics: I) -> Self {
        let mut set = Self::EMPTY;
        nics.into_iter().for_each(|nic| set.insert(nic));
        set
    }
}

impl fmt::Display for NicSet {
    /// Ranges, as people write them: `0-3,8,12-15`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = String::new();
        let mut nics = self.iter().peekable();
        while let Some(start) = nics.next() {
            let mut end = start;
            while let Some(next) = nics.next_if_eq(&(end + 1)) {
                end = next;
            }
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(&start.to_string());
            if end > start {
                text.push('-');
                text.push_str(&end.to_string());
            }
        }
        f.pad(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_print_as_ranges() {
        let set: NicSet = [0, 1, 2, 3, 8, 12, 13, 127].into_iter().collect();
        assert_eq!(set.to_string(), "0-3,8,12-13,127");
        assert_eq!(set.len(), 8);
        assert_eq!(set.iter().collect::<Vec<_>>(), [0, 1, 2, 3, 8, 12, 13, 127]);
        assert_eq!(NicSet::EMPTY.to_string(), "");
        assert_eq!(NicSet::first(128).len(), 128);
        assert_eq!(NicSet::first(0), NicSet::EMPTY);
    }

    #[test]
    fn listed_distance_wins_over_the_numa_node() {
        let mut nic = Nic::new("a");
        nic.numa = Some(1);
        nic.distances =
            vec![(Location::Gpu(3), Distance::SameSwitch), (Location::Numa(1), Distance::Unreachable)];
        assert_eq!(nic.distance(Location::Gpu(3)), Distance::SameSwitch);
        assert_eq!(nic.distance(Location::Gpu(4)), Distance::OtherNode);
        assert_eq!(nic.distance(Location::Numa(1)), Distance::Unreachable);
        assert_eq!(nic.distance(Location::Numa(0)), Distance::OtherNode);
    }
}
