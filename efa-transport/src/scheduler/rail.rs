//! Choosing rails: a local NIC, and a remote one for it.

/// A set of NICs, one bit each.
pub type Set = u128;

/// The NICs of a set, in ascending order.
pub fn members(mut set: Set) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let nic = set.trailing_zeros() as usize;
        (set != 0).then(|| {
            set &= set - 1;
            nic
        })
    })
}

/// The place of `nic` among the members of `set`, in ascending order; for tables that hold one entry for each member.
#[inline]
pub fn rank(set: Set, nic: usize) -> Option<usize> {
    let bit = 1_u128.checked_shl(nic as u32)?;
    (set & bit != 0).then(|| (set & (bit - 1)).count_ones() as usize)
}

/// How soon `bytes` more would be through a NIC, in arbitrary units that are the same for all NICs: what is waiting, over
/// the speed, with a surcharge for a NIC that is far from the memory.
#[inline]
pub fn cost(waiting_bytes: u64, bytes: u64, link_mbps: u32, far: bool) -> u64 {
    let total = waiting_bytes.saturating_add(bytes).saturating_add(PER_SLICE);
    // A far NIC is taken when the near ones are a third busier.
    let weighed = if far { total.saturating_add(total / 3) } else { total };
    weighed.saturating_mul(1024) / u64::from(link_mbps.max(1))
}

/// What a slice costs besides its bytes, in bytes: a card does a few million operations a second at some ten GB/s.
pub const PER_SLICE: u64 = 4096;

/// The eligible NIC with the least cost; of equal ones the first at or after `turn`, which the caller lets rotate.
#[inline]
pub fn least_loaded(eligible: Set, turn: usize, mut cost: impl FnMut(usize) -> u64) -> Option<usize> {
    let mut best: Option<(u64, usize)> = None;
    let split = u128::MAX.checked_shl((turn % 128) as u32).unwrap_or(0);
    for nic in members(eligible & split).chain(members(eligible & !split)) {
        let cost = cost(nic);
        if best.is_none_or(|(least, _)| cost < least) {
            best = Some((cost, nic));
        }
    }
    best.map(|(_, nic)| nic)
}

/// The remote NIC for local NIC `local` of `locals`: the one at the same place of `remotes` (near pairs with near when both
/// sides list their NICs in the same order), spread over several by `turn` where there are more remote NICs than local
/// ones; the next eligible one where that one is not.
#[inline]
pub fn partner(local: usize, locals: usize, remotes: usize, eligible: Set, turn: usize) -> Option<usize> {
    if eligible == 0 || remotes == 0 {
        return None;
    }
    let locals = locals.max(1);
    // Local NIC i is responsible for the remote ones from `first` up to where NIC i + 1 begins.
    let first = local % locals * remotes / locals;
    let end = (local % locals + 1) * remotes / locals;
    let wanted = first + if end > first { turn % (end - first) } else { 0 };
    let at_or_after = eligible & u128::MAX.checked_shl(wanted as u32).unwrap_or(0);
    let found = if at_or_after != 0 { at_or_after } else { eligible };
    Some(found.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_members_below() {
        assert_eq!(rank(0b1011, 0), Some(0));
        assert_eq!(rank(0b1011, 3), Some(2));
        assert_eq!(rank(0b1011, 2), None);
        assert_eq!(rank(u128::MAX, 127), Some(127));
        assert_eq!(rank(u128::MAX, 128), None);
    }

    #[test]
    fn equal_counts_pair_one_to_one_and_unequal_ones_cover_everything() {
        for n in [1, 4, 16, 32] {
            let all = if n == 128 { u128::MAX } else { (1 << n) - 1 };
            for i in 0..n {
                assert_eq!(partner(i, n, n, all, 7), Some(i));
            }
        }
        let mut hit = [0; 16];
        for local in 0..4 {
            for turn in 0..4 {
                hit[partner(local, 4, 16, 0xffff, turn).unwrap()] += 1;
            }
        }
        assert_eq!(hit, [1; 16], "4 NICs against 16 use every remote one equally");
        let mut hit = [0; 4];
        for local in 0..16 {
            hit[partner(local, 16, 4, 0xf, 0).unwrap()] += 1;
        }
        assert_eq!(hit, [4; 4], "16 NICs against 4 as well");
    }

    #[test]
    fn a_partner_is_always_eligible() {
        assert_eq!(partner(3, 4, 4, 0b0001, 0), Some(0));
        assert_eq!(partner(0, 4, 4, 0b1000, 0), Some(3));
        assert_eq!(partner(0, 4, 4, 0, 0), None);
    }

    #[test]
    fn ties_rotate_and_load_decides() {
        assert_eq!(least_loaded(0b1111, 2, |_| 5), Some(2));
        assert_eq!(least_loaded(0b1111, 130, |_| 5), Some(2));
        assert_eq!(least_loaded(0b1111, 2, |nic| if nic == 1 { 4 } else { 5 }), Some(1));
        assert_eq!(least_loaded(0, 0, |_| 0), None);
    }

    #[test]
    fn a_far_nic_helps_only_when_the_near_one_is_busy() {
        let (near, far) = (cost(0, 1 << 20, 100_000, false), cost(0, 1 << 20, 100_000, true));
        assert!(near < far);
        assert!(cost(1 << 20, 1 << 20, 100_000, false) > far);
        assert!(cost(0, 4096, 200_000, false) < cost(0, 4096, 100_000, false));
    }
}
