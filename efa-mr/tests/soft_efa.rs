//! Registration on software EFA cards, which enforce their limits: what the ledger grants fits, what it does not know of is
//! refused by the card and undone.
//!
//! The cards live in child processes: this program starts itself on them.

#![allow(clippy::unwrap_used, clippy::result_large_err)]

use efa_mr::cache::{AcquireError, Allocation, Lease, Request};
use efa_mr::registrar::{RegisterError, Registered, Registrar, fabric};
use efa_mr::{Access, Buffer, Cache, Error, PageSize, Policy};
use fabric_safe::{Domain, Fabric, Hints, Mapping, Memory, PageKind, Part, SharedMemory};
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
        Ok("counting") => counting(),
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
    let tensors = Tensors::new(&registrar);
    // Without coalescing the card refuses the second part.
    let apart = Cache::new(0);
    let first = tensors.acquire(&apart, 0).unwrap();
    assert!(tensors.acquire(&apart, 4).is_err(), "this card has room for one MR");
    drop((first, apart));
    // With it all eight parts are one MR on each card.
    let cache = Cache::default();
    let leases: Vec<_> = (0..8).map(|number| tensors.acquire(&cache, number).unwrap()).collect();
    assert!(leases.iter().all(|lease| lease.same(&leases[0])));
    assert_eq!((registrar.ledger().used(0), cache.stats().entries), ((64, 1), 1));
    println!("\nCASE DONE");
}

#[test]
fn coalescing_makes_one_mr_of_eight_as_the_cards_count() {
    on_cards("coalescing_makes_one_mr_of_eight_as_the_cards_count", "counting", &[]);
}

fn counting() {
    let Some(registrar) = registrar(PTES) else { return };
    let tensors = Tensors::new(&registrar);
    let before = regions();
    let with = |cache: Cache<Registered<Domain>>| {
        let leases: Vec<_> = (0..8).map(|number| tensors.acquire(&cache, number).unwrap()).collect();
        let now = regions();
        drop((leases, cache));
        assert_eq!(regions(), before, "all registrations are given back");
        [now[0] - before[0], now[1] - before[1]]
    };
    assert_eq!(with(Cache::new(0)), [8, 8], "each part by itself");
    assert_eq!(with(Cache::default()), [1, 1], "coalesced");
    println!("\nCASE DONE");
}

/// Registrations of this process that each of the two cards has now, by its own count.
fn regions() -> [u64; 2] {
    let dir = std::env::var_os(settings::DIR).unwrap();
    let answer = soft_efa::control::command(dir.as_ref(), "counters").unwrap();
    let me = format!("pid={} ", std::process::id());
    [0, 1].map(|card| {
        let card = format!(" card={card} ");
        let line = answer.lines().find(|line| line.starts_with(&me) && line.contains(&card));
        // A card that has done nothing is not listed.
        line.map_or(0, |line| {
            line.split_once(" regions=").unwrap().1.split(' ').next().unwrap().parse().unwrap()
        })
    })
}

/// Eight parts, of eight pages each, of one allocation.
struct Tensors<'a> {
    registrar: &'a Registrar<Domain>,
    whole: Buffer,
    memory: Arc<dyn SharedMemory>,
}

impl<'a> Tensors<'a> {
    fn new(registrar: &'a Registrar<Domain>) -> Self {
        let (whole, memory) = mapping(64);
        Tensors { registrar, whole, memory }
    }

    fn acquire(
        &self,
        cache: &Cache<Registered<Domain>>,
        number: usize,
    ) -> Result<Lease<Registered<Domain>>, AcquireError<RegisterError<fabric_safe::Error>>> {
        let whole = &self.whole;
        let part = Request {
            addr: whole.addr + number as u64 * 8 * 4096,
            len_bytes: 8 * 4096,
            access: Access::LOCAL,
            allocation: Some(Allocation { addr: whole.addr, len_bytes: whole.len_bytes, generation: 1 }),
        };
        cache.acquire(&part, |addr, len_bytes, access| {
            let start = (addr - whole.addr) as usize;
            let part = Part::new(Arc::clone(&self.memory), start..start + len_bytes as usize).unwrap();
            let part: Arc<dyn SharedMemory> = Arc::new(part);
            assert_eq!(part.address() as u64, addr);
            let buffer = Buffer::host(addr, len_bytes, PageSize::K4);
            self.registrar.register(&[buffer], &[part], &Policy::all(), access, |_| {})
        })
    }
}
