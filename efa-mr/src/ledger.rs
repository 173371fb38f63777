//! The ledger: what every NIC has left, over all live registrations.
//!
//! A registration takes a [`Reservation`] first and keeps it for as long as the MR lives; dropping the reservation gives
//! the entries back. So the ledger reads zero exactly when nothing is registered, whatever failed on the way, and no
//! budget is ever exceeded, not even for a moment while several threads register. Cloning a `Ledger` gives another
//! handle to the same accounts.
//!
//! One ledger counts for one process. When `n` processes share a machine's cards, give each an `n`-th of the budget
//! ([`share_of`]).

mod account;

/// The atomics of [`account`]; its loom test replaces them.
mod sync {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering};
}

use crate::error::Error;
use crate::nic::Nic;
use crate::plan::Plan;
use account::Account;
use std::sync::Arc;

/// The part of a card's budget that one of `processes` equal processes may use.
#[must_use]
pub fn share_of(budget: u64, processes: u64) -> u64 {
    budget / processes.max(1)
}

/// The accounts of a set of NICs. Cheap to clone, used from any thread, never blocks.
#[derive(Debug, Clone)]
pub struct Ledger {
    accounts: Arc<[NicAccount]>,
}

/// A cache line of its own for each NIC, so that threads registering on different NICs do not disturb each other.
#[derive(Debug)]
#[repr(align(128))]
struct NicAccount {
    account: Account,
    name: Box<str>,
}

/// Entries of one NIC that are spoken for; given back on drop.
#[derive(Debug)]
#[must_use = "dropping a reservation gives the entries back at once"]
pub struct Reservation {
    accounts: Arc<[NicAccount]>,
    nic: usize,
    pages: u64,
    mrs: u64,
}

impl Ledger {
    /// Accounts with budgets of what the NICs have left ([`Nic::pte_left`], [`Nic::mrs_left`]).
    ///
    /// An account counts up to 2^40 − 1 entries and 2^24 − 1 MRs; greater budgets are cut off there.
    #[must_use]
    pub fn new(nics: &[Nic]) -> Self {
        let account = |nic: &Nic| NicAccount {
            account: Account::new(nic.pte_left, nic.mrs_left),
            name: nic.name.as_str().into(),
        };
        Self { accounts: nics.iter().map(account).collect() }
    }

    /// Reserves the entries for one MR of `pages` pages on a NIC.
    ///
    /// # Errors
    /// [`Error::BudgetSpent`] or [`Error::TooManyMrs`] with nothing changed; [`Error::NoSuchNic`].
    #[inline]
    pub fn reserve(&self, nic: usize, pages: u64) -> Result<Reservation, Error> {
        self.reserve_many(nic, pages, 1)
    }

    /// Reserves the entries for `mrs` MRs of together `pages` pages on a NIC.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve).
    #[inline]
    pub fn reserve_many(&self, nic: usize, pages: u64, mrs: u64) -> Result<Reservation, Error> {
        let Some(entry) = self.accounts.get(nic) else {
            return Err(Error::NoSuchNic { nic, count: self.accounts.len() });
        };
        if entry.account.take(pages, mrs) {
            Ok(Reservation { accounts: Arc::clone(&self.accounts), nic, pages, mrs })
        } else {
            Err(entry.refusal(pages, mrs))
        }
    }

    /// Reserves all that a plan needs, or nothing: one reservation for each of
    /// [`Plan::registrations`](crate::Plan::registrations), in that order.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve), when another thread was faster since the plan was made: plan again.
    pub fn reserve_plan(&self, plan: &Plan) -> Result<Vec<Reservation>, Error> {
        // One step for each NIC, so that of two plans that compete for the last entries at least one gets through.
        let mut whole = Vec::with_capacity(plan.nics.len());
        for (nic, used) in plan.nics.iter().enumerate() {
            if used.mrs > 0 {
                whole.push(self.reserve_many(nic, used.pages, used.mrs)?);
            }
        }
        let split = plan.registrations().into_iter().map(|(_, registration)| {
            let at = whole.partition_point(|reservation| reservation.nic < registration.nic);
            match whole.get_mut(at) {
                Some(reservation) => reservation.split(registration.pages),
                None => self.reserve(registration.nic, registration.pages),
            }
        });
        split.collect()
    }

    /// Page table entries left on a NIC; 0 for one that is not there.
    #[must_use]
    pub fn pages_left(&self, nic: usize) -> u64 {
        self.accounts.get(nic).map_or(0, |entry| entry.account.budget().0 - entry.account.used().0)
    }

    /// MRs left on a NIC; 0 for one that is not there.
    #[must_use]
    pub fn mrs_left(&self, nic: usize) -> u64 {
        self.accounts.get(nic).map_or(0, |entry| entry.account.budget().1 - entry.account.used().1)
    }

    /// Page table entries and MRs in use on a NIC; zeros for one that is not there.
    #[must_use]
    pub fn used(&self, nic: usize) -> (u64, u64) {
        self.accounts.get(nic).map_or((0, 0), |entry| entry.account.used())
    }

    /// How many NICs have an account.
    #[must_use]
    pub fn nics(&self) -> usize {
        self.accounts.len()
    }

    /// Writes what is left now into the NICs, so that a plan can be made. The NICs are in the order of [`Ledger::new`].
    pub fn update(&self, nics: &mut [Nic]) {
        for (number, nic) in nics.iter_mut().enumerate() {
            nic.pte_left = self.pages_left(number);
            nic.mrs_left = self.mrs_left(number);
        }
    }
}

impl NicAccount {
    #[cold]
    fn refusal(&self, pages: u64, mrs: u64) -> Error {
        let (budget, mr_budget) = self.account.budget();
        let (used, mrs_used) = self.account.used();
        if pages > budget - used || mrs <= mr_budget - mrs_used {
            Error::BudgetSpent { nic: self.name.to_string(), needed: pages, left: budget - used, budget }
        } else {
            Error::TooManyMrs { nic: self.name.to_string(), needed: mrs, left: mr_budget - mrs_used }
        }
    }
}

impl Reservation {
    /// The NIC's index.
    #[must_use]
    pub const fn nic(&self) -> usize {
        self.nic
    }

    /// Page table entries held.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.pages
    }

    /// Cuts off a reservation for one MR of `pages` pages.
    fn split(&mut self, pages: u64) -> Result<Self, Error> {
        if pages > self.pages || self.mrs == 0 {
            let (needed, left) = (pages, self.pages);
            return Err(Error::BudgetSpent {
                nic: self.accounts[self.nic].name.to_string(),
                needed,
                left,
                budget: self.pages,
            });
        }
        self.pages -= pages;
        self.mrs -= 1;
        Ok(Self { accounts: Arc::clone(&self.accounts), nic: self.nic, pages, mrs: 1 })
    }
}

impl Drop for Reservation {
    #[inline]
    fn drop(&mut self) {
        self.accounts[self.nic].account.give(self.pages, self.mrs);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ledger(pages: u64, mrs: u64) -> Ledger {
        Ledger::new(&[Nic { pte_left: pages, mrs_left: mrs, ..Nic::new("efa0") }])
    }

    #[test]
    fn reservations_add_up_and_are_given_back() {
        let ledger = ledger(10, 3);
        let a = ledger.reserve(0, 4).unwrap();
        let b = ledger.reserve(0, 6).unwrap();
        assert_eq!(ledger.used(0), (10, 2));
        assert_eq!(
            ledger.reserve(0, 1).unwrap_err(),
            Error::BudgetSpent { nic: "efa0".into(), needed: 1, left: 0, budget: 10 }
        );
        drop(a);
        assert_eq!(ledger.pages_left(0), 4);
        drop(b);
        assert_eq!(ledger.used(0), (0, 0));
    }

    #[test]
    fn the_number_of_mrs_is_limited_too() {
        let ledger = ledger(10, 1);
        let one = ledger.reserve(0, 1).unwrap();
        assert!(matches!(ledger.reserve(0, 1), Err(Error::TooManyMrs { needed: 1, left: 0, .. })));
        drop(one);
        assert!(ledger.reserve(0, 10).is_ok());
    }

    #[test]
    fn absurd_requests_are_refused_without_wrapping() {
        let ledger = ledger(u64::MAX, u64::MAX);
        assert!(ledger.reserve(0, u64::MAX).is_err());
        assert!(ledger.reserve_many(0, 1, u64::MAX).is_err());
        assert!(matches!(ledger.reserve(1, 1), Err(Error::NoSuchNic { nic: 1, count: 1 })));
        let all = ledger.reserve(0, ledger.pages_left(0)).unwrap();
        assert!(ledger.reserve(0, 1).is_err());
        drop(all);
        assert_eq!(ledger.used(0), (0, 0));
    }

    #[test]
    fn shares_never_add_up_to_more_than_the_whole() {
        assert_eq!(share_of(100, 0), 100);
        assert!(share_of(crate::DEFAULT_PTE_BUDGET, 7) * 7 <= crate::DEFAULT_PTE_BUDGET);
    }
}
