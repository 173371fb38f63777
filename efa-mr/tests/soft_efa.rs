//! Registration on software EFA cards, which enforce their limits: what the ledger grants fits, what it does not know of is
//! refused by the card and undone.
//!
//! The cards live in child processes: this program starts itself on them.

#![allow(clippy::unwrap_used, clippy::result_large_err)]

use efa_mr::cache::{Allocation, Request};
use efa_mr::registrar::{RegisterError, Registered, Registrar, fabric};
use efa_mr::{Access, Buffer, Cache, Error, PageSize, Policy};
use fabric_safe::{Domain, Fabric, Hints, Mapping, Memory, PageKind, SharedMemory};
use soft_efa::{Network, Profile, settings};
use std::process::Stdio;
use std::sync::Arc;

const CASE: &str = "EFA_MR_SOFT_CASE";
/// Page table entries of each card.
const PTES: u64 = 1000;

/// Runs `case` in a child on two cards with these settings, or says why there are no software cards.
fn on_cards(test: &str, case: &str, with: &[(&str, &str)]) {
    let network = Profile::named("p5").ok_or("no profile p5".to_owned());
    let network = network.and_then(|profile| Network::new(2, profile).map_err(|error| error.to_string()));
    let mut network = match network {
        Ok(network) => network,
        Err(reason) => return eprintln!("SKIP: {test}: {reason}"),
    };
    network.set(settings::MAX_PTES, PTES.to_string());
    for (name, value) in with {
        network.set(name, value);
    }
    let mut child = network.command(std::env::current_exe().unwrap());
    child.args(["--exact", "child", "--nocapture"]).env(CASE, case).stdin(Stdio::null());
    let output = child.output().unwrap();
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    if let Some(line) = said.lines().find_map(|line| line.strip_prefix("NO CARDS: ")) {
        return eprintln!("SKIP: {test}: {line}");
    }
    assert!(output.status.success(), "{said}");
    assert!(said.contains("CASE DONE"), "the child did nothing: {said}");
}

/// In the child: one domain for each card.
fn registrar(pte_left: u64) -> Option<Registrar<Domain>> {
    let infos = match Hints::new().provider("efa").discover() {
        Ok(infos) => infos,
        Err(error) => {
            println!("\nNO CARDS: {error}");
            return None;
        }
    };
    let mut domains: Vec<Domain> = Vec::new();
    for info in infos {
        let name = info.nic().map(|nic| nic.name);
        if domains.iter().all(|domain| domain.info().nic().map(|nic| nic.name) != name) {
            let fabric = Fabric::open(&info).unwrap();
            domains.push(Domain::open(&fabric, &info).unwrap());
        }
    }
    assert_eq!(domains.len(), 2);
    let mut nics: Vec<_> = domains.iter().map(fabric::nic_of).collect();
    nics.iter_mut().for_each(|nic| nic.pte_left = pte_left);
    Some(Registrar::new(domains, nics).unwrap())
}

fn mapping(pages: usize) -> (Buffer, Arc<dyn SharedMemory>) {
    let memory: Arc<dyn SharedMemory> = Arc::new(Mapping::anonymous(pages * 4096, PageKind::Small).unwrap());
    (fabric::buffer_of(&*memory, PageSize::K4), memory)
}

type Outcome = Result<Registered<Domain>, RegisterError<fabric_safe::Error>>;

fn register(registrar: &Registrar<Domain>, pages: &[usize], policy: Policy) -> Outcome {
    let (buffers, memory): (Vec<_>, Vec<_>) = pages.iter().map(|pages| mapping(*pages)).unzip();
    registrar.register(&buffers, &memory, &policy, Access::LOCAL | Access::REMOTE_WRITE, |_| {})
}

#[test]
fn child() {
    match std::env::var(CASE).as_deref() {
        Ok("budget") => budget(),
        Ok("overcommitted") => overcommitted(),
        Ok("coalescing") => coalescing(),
        _ => {}
    }
}

#[test]
fn what_the_ledger_grants_fits_on_the_cards() {
    on_cards("what_the_ledger_grants_fits_on_the_cards", "budget", &[]);
}

fn budget() {
    let Some(registrar) = registrar(PTES) else { return };
    // 1,500 pages: more than one card, less than both. Cut, and every entry of both cards is used.
    let first = register(&registrar, &[1500], Policy::all()).unwrap();
    assert_eq!((registrar.ledger().used(0).0, registrar.ledger().used(1).0), (PTES, PTES));
    // Cumulative: not one page more, and our refusal comes before the card's.
    let error = register(&registrar, &[1], Policy::all()).unwrap_err();
    assert!(matches!(error, RegisterError::Plan(Error::DoesNotFit { .. })), "{error}");
    first.unregister().unwrap();
    // The card has its entries back, too.
    let again = register(&registrar, &[1000, 1000], Policy::nics(1)).unwrap();
    again.unregister().unwrap();
    println!("\nCASE DONE");
}

#[test]
fn a_card_that_refuses_leaves_everything_as_it_was() {
    on_cards("a_card_that_refuses_leaves_everything_as_it_was", "overcommitted", &[]);
}

fn overcommitted() {
    // The ledger believes in twice the room that the cards have.
    let Some(registrar) = registrar(2 * PTES) else { return };
    let kept = register(&registrar, &[100], Policy::all()).unwrap();
    let error = register(&registrar, &[50, 200, 800], Policy::all()).unwrap_err();
    let RegisterError::Refused { buffer: 2, pages: 800, leaked: 0, .. } = error else { panic!("{error}") };
    assert_eq!((registrar.ledger().used(0), registrar.ledger().used(1)), ((100, 1), (100, 1)));
    // All that was made has been given back to the cards: 900 pages fit beside the 100.
    let rest = register(&registrar, &[900], Policy::all()).unwrap();
    rest.unregister().unwrap();
    kept.unregister().unwrap();
    println!("\nCASE DONE");
}

#[test]
fn coalescing_needs_one_mr_where_the_card_allows_no_more() {
    on_cards(
        "coalescing_needs_one_mr_where_the_card_allows_no_more",
        "coalescing",
        &[(settings::MAX_MR, "1")],
    );
}

fn coalescing() {
    let Some(registrar) = registrar(PTES) else { return };
    let (whole, memory) = mapping(64);
    let part = |number: usize| Request {
        addr: whole.addr + number as u64 * 8 * 4096,
        len_bytes: 8 * 4096,
        access: Access::LOCAL,
        allocation: Some(Allocation { addr: whole.addr, len_bytes: whole.len_bytes, generation: 1 }),
    };
    let one = |cache: &Cache<Registered<Domain>>, number: usize| {
        cache.acquire(&part(number), |addr, len_bytes, access| {
            let part = fabric_safe::Part::new(
                Arc::clone(&memory),
                (addr - whole.addr) as usize..(addr - whole.addr + len_bytes) as usize,
            )
            .unwrap();
            let part: Arc<dyn SharedMemory> = Arc::new(part);
            assert_eq!(part.address() as u64, addr);
            let buffer = Buffer::host(addr, len_bytes, PageSize::K4);
            registrar.register(&[buffer], &[part], &Policy::all(), access, |_| {})
        })
    };
    // Without coalescing the card refuses the second part.
    let apart = Cache::new(0);
    let first = one(&apart, 0).unwrap();
    assert!(one(&apart, 4).is_err(), "this card has room for one MR");
    drop((first, apart));
    // With it all eight parts are one MR on each card.
    let cache = Cache::default();
    let leases: Vec<_> = (0..8).map(|number| one(&cache, number).unwrap()).collect();
    assert!(leases.iter().all(|lease| lease.same(&leases[0])));
    assert_eq!((registrar.ledger().used(0), cache.stats().entries), ((64, 1), 1));
    println!("\nCASE DONE");
}
