//! The ledger's account under every interleaving that its memory orderings allow.
//!
//! The account's source is compiled into this test with loom's atomics in place of the standard library's, so the
//! test runs with an ordinary `cargo test`.

mod sync {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering};
}

#[path = "../src/ledger/account.rs"]
#[allow(dead_code)] // Not every method of the account is needed here.
mod account;

use account::Account;
use loom::sync::Arc;
use loom::thread;

#[test]
fn a_budget_is_never_exceeded_and_all_is_given_back() {
    // Three threads have too many interleavings for all of them; up to two preemptions find nearly every bug.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        // Any two of the three fit, never all three.
        let account = Arc::new(Account::new(5, 2));
        let takers: Vec<_> = [2, 3]
            .into_iter()
            .map(|pages| {
                let account = Arc::clone(&account);
                thread::spawn(move || {
                    let granted = account.take(pages, 1);
                    let (used, mrs) = account.used();
                    assert!(used <= 5 && mrs <= 2, "{used} pages, {mrs} MRs");
                    if granted {
                        assert!(used >= pages, "our own pages are counted");
                        account.give(pages, 1);
                    }
                })
            })
            .collect();
        let granted = account.take(2, 1);
        let (used, mrs) = account.used();
        assert!(used <= 5 && mrs <= 2, "{used} pages, {mrs} MRs");
        if granted {
            account.give(2, 1);
        }
        for taker in takers {
            taker.join().unwrap();
        }
        assert_eq!(account.used(), (0, 0));
    });
}

#[test]
fn nobody_is_refused_what_is_free() {
    loom::model(|| {
        let account = Arc::new(Account::new(4, 2));
        let other = {
            let account = Arc::clone(&account);
            thread::spawn(move || account.take(2, 1))
        };
        // There is room for both at every moment, and for no third.
        assert!(account.take(2, 1));
        assert!(other.join().unwrap());
        assert!(!account.take(1, 0));
        assert_eq!(account.used(), (4, 2));
    });
}

#[test]
fn a_refused_mr_holds_no_pages_even_for_a_moment() {
    loom::model(|| {
        // One MR left, many pages. Whoever asks for pages alone must get them.
        let account = Arc::new(Account::new(4, 1));
        let greedy = {
            let account = Arc::clone(&account);
            thread::spawn(move || account.take(4, 2))
        };
        assert!(account.take(4, 1));
        assert!(!greedy.join().unwrap());
    });
}
