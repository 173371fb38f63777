//! What this engine has registered, in order of address.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use crate::control::BufferCard;
use crate::memory::{Access, Region};

/// All registrations. They may overlap.
#[derive(Default)]
pub(crate) struct Regions(RwLock<State>);

#[derive(Default)]
struct State {
    /// By first address, and a number for those that begin at the same one.
    by_addr: BTreeMap<(u64, u64), Region>,
    next: u64,
    /// No region ever registered was longer: how far back one that holds an address can begin.
    longest: u64,
}

impl Regions {
    pub(crate) fn add(&self, region: Region) {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        state.next += 1;
        state.longest = state.longest.max(region.len());
        let key = (region.addr(), state.next);
        state.by_addr.insert(key, region);
    }

    /// Forgets it; false if it was not there.
    pub(crate) fn remove(&self, region: &Region) -> bool {
        let mut state = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let addr = region.addr();
        let same = state.by_addr.range((addr, 0)..=(addr, u64::MAX)).find(|(_, known)| known.is(region));
        let Some(key) = same.map(|(key, _)| *key) else { return false };
        state.by_addr.remove(&key).is_some()
    }

    /// The registration that holds `addr..addr + len` and begins last, and the offset in it.
    pub(crate) fn at(&self, addr: u64, len: u64) -> Option<(Region, u64)> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let end = addr.checked_add(len)?;
        let near = state.by_addr.range(..=(addr, u64::MAX)).rev();
        let (_, region) = near
            .take_while(|((start, _), _)| addr - start <= state.longest)
            .find(|((start, _), region)| end - start <= region.len())?;
        Some((region.clone(), addr - region.addr()))
    }

    /// Number of registrations, and their bytes.
    pub(crate) fn size(&self) -> (usize, u64) {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        (state.by_addr.len(), state.by_addr.values().map(Region::len).sum())
    }

    /// What peers are told: those that they may use.
    pub(crate) fn cards(&self) -> Vec<BufferCard> {
        let state = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let open = state.by_addr.values().filter(|region| region.access() != Access::LOCAL);
        open.map(|region| BufferCard::new(region.label(), &region.tcp().descriptor(), region.on_fabric()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;
    use tcp_transport::{Memory, Transport};

    use super::*;

    /// A range that is registered and never touched.
    struct Range(u64, usize);

    // SAFETY: no request ever names it, so nobody looks at its bytes.
    #[allow(unsafe_code)]
    unsafe impl Memory for Range {
        fn address(&self) -> u64 {
            self.0
        }
        fn len(&self) -> usize {
            self.1
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Against the obvious search, while registrations come and go.
        #[test]
        fn an_address_is_found_exactly_if_a_registration_holds_it(
            ranges in prop::collection::vec((1u64..200, 1usize..100), 1..12),
            gone in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
            asked in prop::collection::vec((0u64..320, 0u64..120), 1..20),
        ) {
            let transport = Transport::builder().build().unwrap();
            let regions = Regions::default();
            let mut live = Vec::new();
            for (addr, len) in ranges {
                let tcp = transport.register(Arc::new(Range(addr, len)), Access::READ).unwrap();
                #[cfg(feature = "efa")]
                let region = Region::new("x", tcp, None);
                #[cfg(not(feature = "efa"))]
                let region = Region::new("x", tcp);
                regions.add(region.clone());
                live.push(region);
            }
            for index in gone {
                if !live.is_empty() {
                    let region = live.swap_remove(index.index(live.len()));
                    prop_assert!(regions.remove(&region));
                    prop_assert!(!regions.remove(&region));
                }
            }
            prop_assert_eq!(regions.size(), (live.len(), live.iter().map(Region::len).sum()));
            for (addr, len) in asked {
                let holds = |r: &Region| r.addr() <= addr && addr + len <= r.addr() + r.len();
                let best = live.iter().filter(|r| holds(r)).map(Region::addr).max();
                let found = regions.at(addr, len);
                prop_assert_eq!(found.as_ref().map(|(r, _)| r.addr()), best);
                if let Some((region, offset)) = found {
                    prop_assert!(holds(&region) && region.addr() + offset == addr);
                }
            }
            prop_assert!(regions.at(u64::MAX, 1).is_none());
        }
    }
}
