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
    if !holds(set, nic) {
        return None;
    }
    // Two words rather than one long one, which shifts slowly; most machines need the first only.
    let (low, high) = (set as u64, (set >> 64) as u64);
    let (word, before) = if nic < 64 { (low, 0) } else { (high, low.count_ones()) };
    let lower = (1 << (nic % 64)) - 1;
    let below = word & lower;
    // Mostly it is all of them.
    let count = if below == lower { nic as u32 % 64 } else { below.count_ones() };
    Some((before + count) as usize)
}

/// Whether a NIC is a member of `set`.
#[inline]
pub const fn holds(set: Set, nic: usize) -> bool {
    let word = if nic < 64 { set as u64 } else { (set >> 64) as u64 };
    nic < 128 && word >> (nic % 64) & 1 == 1
}

/// The NIC of a set that has one only.
#[inline]
pub const fn only(set: Set) -> Option<usize> {
    let (low, high) = (set as u64, (set >> 64) as u64);
    if low.is_power_of_two() && high == 0 {
        Some(low.trailing_zeros() as usize)
    } else if high.is_power_of_two() && low == 0 {
        Some(64 + high.trailing_zeros() as usize)
    } else {
        None
    }
}

/// How fast a NIC is, prepared for [`cost`]. The faster, the less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pace {
    near: u64,
    far: u64,
}

impl Pace {
    /// Of a link of `mbps` Mbit/s.
    #[must_use]
    pub const fn of(mbps: u32) -> Self {
        // Cost units for 64 bytes: a division here saves one for every NIC and slice. 64 Mbit/s is as slow as it gets.
        let near = (1_u64 << 30) / if mbps < 64 { 64 } else { mbps as u64 };
        // A far NIC is taken when the near ones are a third busier.
        Self { near, far: near + near / 3 }
    }
}

/// How soon `bytes` more would be through a NIC, in arbitrary units that are the same for all NICs: what is waiting, over
/// the speed, with a surcharge for a NIC that is far from the memory. Of up to 2^44 bytes.
#[inline]
#[must_use]
pub fn cost(waiting_bytes: u64, bytes: u64, pace: Pace, far: bool) -> u64 {
    let total = waiting_bytes.wrapping_add(bytes.wrapping_add(PER_SLICE));
    (total >> 6).wrapping_mul(if far { pace.far } else { pace.near })
}

/// What a slice costs besides its bytes, in bytes: a card does a few million operations a second at some ten GB/s.
pub const PER_SLICE: u64 = 4096;

/// The eligible NIC with the least cost; of equal ones the first at or after `turn`, which the caller lets rotate.
#[inline]
pub fn least_loaded(eligible: Set, turn: usize, cost: impl FnMut(usize) -> u64) -> Option<usize> {
    two_least(eligible, turn, cost).map(|least| least.nic)
}

/// The cheapest NIC and what it costs, and the same of the next one. If there is one only, that one is next, too.
struct Least {
    nic: usize,
    cost: u64,
    next_nic: usize,
    next: u64,
}

#[inline]
fn two_least(eligible: Set, turn: usize, mut cost: impl FnMut(usize) -> u64) -> Option<Least> {
    if eligible == 0 {
        return None;
    }
    // Two words rather than one long one: most machines need the first only.
    let (low, high) = (eligible as u64, (eligible >> 64) as u64);
    let turn = turn % 128;
    let first = eligible.trailing_zeros() as usize;
    let mut least = Least { nic: first, cost: u64::MAX, next_nic: first, next: u64::MAX };
    let mut look = |mut word: u64, base: usize| {
        while word != 0 {
            let nic = base + word.trailing_zeros() as usize;
            word &= word - 1;
            let cost = cost(nic);
            if cost < least.cost {
                least = Least { nic, cost, next_nic: least.nic, next: least.cost };
            } else if cost < least.next {
                (least.next_nic, least.next) = (nic, cost);
            }
        }
    };
    if high == 0 && turn < 64 {
        let after = u64::MAX << turn;
        look(low & after, 0);
        look(low & !after, 0);
    } else {
        let after = u128::MAX << turn;
        for part in [eligible & after, eligible & !after] {
            look(part as u64, 0);
            look((part >> 64) as u64, 64);
        }
    }
    Some(least)
}

/// Chooses NICs for the slices of one batch. Looks at all of them only when it has to: the NIC that was chosen stays the right
/// one until it has got so much that another is as good, or, when all have plenty waiting, an eighth more than that. Then the
/// next best of the same look has its turn, on the same terms.
#[derive(Debug, Default)]
pub struct Chooser {
    eligible: Set,
    nic: usize,
    /// What the NIC may still get, in units of [`cost`].
    room: u64,
    /// The next best and what it costs, unless it has had its turn.
    next: Option<(usize, u64)>,
}

impl Chooser {
    /// The NIC for a slice that costs `own` on it when it is idle; `cost` says how soon the slice would be through each.
    #[inline]
    pub fn choose(
        &mut self,
        eligible: Set,
        turn: usize,
        own: impl Fn(usize) -> u64,
        cost: impl FnMut(usize) -> u64,
    ) -> Option<usize> {
        if eligible == self.eligible {
            let its_own = own(self.nic);
            if its_own <= self.room {
                self.room -= its_own;
                return Some(self.nic);
            }
            if let Some((nic, cost)) = self.next.take() {
                // The others cost as much at least, this one with the slice.
                (self.nic, self.room) = (nic, cost.saturating_sub(own(nic)) / 8);
                return Some(nic);
            }
        }
        let least = two_least(eligible, turn, cost)?;
        // Both costs hold the slice itself.
        let alone = least.next == u64::MAX;
        let next = if alone { least.cost } else { least.next };
        let ahead = next - least.cost;
        let waiting = next.saturating_sub(own(least.nic));
        *self = Self {
            eligible,
            nic: least.nic,
            room: ahead.max(waiting / 8),
            next: (!alone).then_some((least.next_nic, least.next)),
        };
        Some(least.nic)
    }
}

/// The first remote NIC of local NIC `local`, and how many it has. Both sides come to the same pairs: each NIC of the side that
/// has more of them belongs to one NIC of the other.
#[inline]
fn share(local: usize, locals: usize, remotes: usize) -> (usize, usize) {
    if locals == remotes {
        return (local, 1);
    }
    let locals = locals.max(1);
    let local = local % locals;
    if remotes < locals {
        (local * remotes / locals, 1)
    } else {
        let first = (local * remotes).div_ceil(locals);
        (first, ((local + 1) * remotes).div_ceil(locals) - first)
    }
}

/// The remote NICs that local NIC `local` of `locals` is responsible for: those that [`partner`] gives it while all are eligible.
#[inline]
pub fn partners(local: usize, locals: usize, remotes: usize) -> Set {
    let (first, count) = share(local, locals, remotes);
    (first..first + count)
        .take(128)
        .fold(0, |set: Set, nic| set | 1_u128.checked_shl(nic as u32).unwrap_or(0))
}

/// Whether local NIC `local` of `locals` has one remote NIC only.
#[inline]
pub fn has_one_partner(local: usize, locals: usize, remotes: usize) -> bool {
    share(local, locals, remotes).1 == 1
}

/// The remote NIC for local NIC `local` of `locals`: the one at the same place of `remotes` (near pairs with near when both
/// sides list their NICs in the same order), spread over several by `turn` where there are more remote NICs than local
/// ones; the next eligible one where that one is not.
#[inline]
pub fn partner(local: usize, locals: usize, remotes: usize, eligible: Set, turn: usize) -> Option<usize> {
    if eligible == 0 || remotes == 0 {
        return None;
    }
    let (first, count) = share(local, locals, remotes);
    let wanted = first + if count > 1 { turn % count } else { 0 };
    if holds(eligible, wanted) {
        return Some(wanted);
    }
    // One that it is responsible for, if there is one.
    let own = eligible & partners(local, locals, remotes);
    let eligible = if own != 0 { own } else { eligible };
    let at_or_after = eligible & u128::MAX.checked_shl(wanted as u32).unwrap_or(0);
    let found = if at_or_after != 0 { at_or_after } else { eligible };
    Some(found.trailing_zeros() as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_count_members_below() {
        assert_eq!(rank(1 << 70 | 0b1011 << 60, 70), Some(3));
        assert_eq!(rank(1 << 70 | 1 << 3, 64), None);
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
    fn partners_are_those_that_partner_gives() {
        for (locals, remotes) in [(1, 1), (4, 16), (16, 4), (3, 7), (7, 3), (32, 32), (1, 128)] {
            let all = if remotes == 128 { u128::MAX } else { (1 << remotes) - 1 };
            for local in 0..locals {
                let given = (0..256)
                    .filter_map(|turn| partner(local, locals, remotes, all, turn))
                    .fold(0, |set: Set, nic| set | 1 << nic);
                assert_eq!(partners(local, locals, remotes), given, "{local} of {locals}, {remotes} remote");
                assert_eq!(has_one_partner(local, locals, remotes), given.count_ones() == 1);
                for remote in members(given) {
                    let back = partners(remote, remotes, locals);
                    assert!(
                        back >> local & 1 == 1,
                        "{local} of {locals} with {remote} of {remotes}, not back"
                    );
                }
            }
        }
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
    fn a_chooser_spreads_what_is_little_evenly_and_what_is_much_nearly_so() {
        for (count, most) in [(16, 1), (160, 10), (1600, 115)] {
            let pace = Pace::of(100_000);
            let (mut loads, mut given) = ([0_u64; 16], [0; 16]);
            let mut chooser = Chooser::default();
            let bytes = 64 << 10;
            for slice in 0..count {
                let own = |_| cost(0, bytes, pace, false);
                let nic =
                    chooser.choose(0xffff, slice, own, |nic| cost(loads[nic], bytes, pace, false)).unwrap();
                loads[nic] += bytes + PER_SLICE;
                given[nic] += 1;
            }
            assert!(given.iter().all(|&n| n <= most && n * 115 >= most * 80), "{count}: {given:?}");
        }
    }

    #[test]
    fn a_chooser_looks_again_when_the_eligible_nics_are_others() {
        let mut chooser = Chooser::default();
        let flat = |_: usize| 1 << 30;
        assert_eq!(chooser.choose(0b0011, 0, |_| 1, flat), Some(0));
        assert_eq!(chooser.choose(0b0011, 1, |_| 1, flat), Some(0), "an eighth more");
        assert_eq!(chooser.choose(0b1110, 1, |_| 1, flat), Some(1));
        assert_eq!(chooser.choose(0, 1, |_| 1, flat), None);
    }

    #[test]
    fn a_far_nic_helps_only_when_the_near_one_is_busy() {
        let (near, far) =
            (cost(0, 1 << 20, Pace::of(100_000), false), cost(0, 1 << 20, Pace::of(100_000), true));
        assert!(near < far);
        assert!(cost(1 << 20, 1 << 20, Pace::of(100_000), false) > far);
        assert!(cost(0, 4096, Pace::of(200_000), false) < cost(0, 4096, Pace::of(100_000), false));
    }
}
