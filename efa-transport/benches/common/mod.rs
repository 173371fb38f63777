//! The bare loop: what anybody would write over the same provider without a transport.
//!
//! One endpoint for each card, a window of operations kept full, completions read in batches; nothing is retried, balanced or
//! checked. Its target does nothing but make progress: a process of its own, or a thread of the transport's target, so that both
//! move the same memory about. Where the pages of a process lie is luck that decides more than most of what is to be measured:
//! two bare loops in pairs of processes that were started one after the other have differed by 5 to 30 %, for as long as they ran.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use benchkit::Result;
use fabric_safe::{
    Access, Address, AddressVector, AddressVectorOptions, CompletionBatch, CompletionFormat, CompletionQueue,
    CompletionQueueOptions, Direction, Domain, Enabled, Endpoint, Fabric, Hints, Info, Mapping, MemoryRegion,
    PageKind, PostError, RemoteRegion,
};

use crate::common;

const BARE: &str = "EFA_TRANSPORT_BENCH_BARE";

/// An endpoint with everything that it needs.
pub(crate) struct BareCard {
    endpoint: Endpoint<Enabled>,
    queue: CompletionQueue,
    vector: AddressVector,
    region: MemoryRegion<Arc<Mapping>>,
    batch: CompletionBatch,
    peer: Option<(Address, RemoteRegion)>,
    in_flight: usize,
}

/// What the provider has for each of so many cards, as the transport would take it: EFA cards in order, of others the first
/// interface over and over.
fn infos(provider: &str, cards: usize) -> Result<Vec<Info>> {
    let (provider, fabric) = provider.split_once('/').map_or((provider, None), |(p, f)| (p, Some(f)));
    let mut hints = Hints::new().provider(provider);
    if let Some(fabric) = fabric {
        hints = hints.fabric(fabric);
    }
    if !matches!(provider, "efa" | "shm" | "scripted") {
        hints = hints.source("127.0.0.1", None);
    }
    let mut found = hints.discover()?;
    if provider == "efa" {
        found.dedup_by_key(|info| info.nic().map(|nic| nic.name));
    } else {
        found.truncate(1);
    }
    if found.is_empty() {
        return Err("the provider has nothing here".into());
    }
    Ok(found.into_iter().cycle().take(cards).collect())
}

fn memory(len: usize) -> Result<Arc<Mapping>> {
    Ok(Arc::new(Mapping::anonymous(len, PageKind::Small)?))
}

/// Writes to the memory of all cards: untouched, it would read as the kernel's one page of zeros, out of the cache.
fn touch(card: Option<&BareCard>) -> Result<()> {
    let Some(card) = card else { return Ok(()) };
    Ok(card.region.copy_in(0, &vec![0x5a; card.region.len_bytes()])?)
}

impl BareCard {
    fn open(info: &Info, memory: &Arc<Mapping>) -> Result<Self> {
        let fabric = Fabric::open(info)?;
        let domain = Domain::open(&fabric, info)?;
        let vector = AddressVector::open(&domain, AddressVectorOptions::default())?;
        let options =
            CompletionQueueOptions { format: CompletionFormat::Context, ..CompletionQueueOptions::new(info) };
        let waiting = CompletionQueue::open(&domain, CompletionQueueOptions { wait: true, ..options });
        let queue = waiting.or_else(|_| CompletionQueue::open(&domain, options))?;
        let endpoint = Endpoint::open(&domain, info)?
            .bind_address_vector(&vector)?
            .bind_completion_queue(&queue, Direction::Both)?
            .enable()?;
        let region = domain.register(Arc::clone(memory), Access::ALL)?;
        let batch = CompletionBatch::new(64);
        Ok(Self { endpoint, queue, vector, region, batch, peer: None, in_flight: 0 })
    }

    /// Takes completions; how many there were.
    fn poll(&mut self) -> Result<usize> {
        let mut ended = 0;
        for completion in self.queue.poll(&mut self.batch)? {
            completion.result().map_err(|error| error.to_string())?;
            ended += 1;
        }
        self.in_flight -= ended;
        Ok(ended)
    }

    /// Posts a write or a read between two offsets; false if there is no room.
    fn post(&mut self, write: bool, (here, there): (usize, usize), len: usize) -> Result<bool> {
        let Some((to, remote)) = &self.peer else { return Err("no peer".into()) };
        let slice = self.region.slice(here..here + len)?;
        let at = remote.at(there as u64);
        let posted =
            if write { self.endpoint.write(to, slice, at, 0) } else { self.endpoint.read(to, slice, at, 0) };
        match posted {
            Ok(_) => {
                self.in_flight += 1;
                Ok(true)
            }
            Err(PostError::Again) => Ok(false),
            Err(error) => Err(error.to_string().into()),
        }
    }
}

/// A bare initiator, connected with its target.
pub(crate) struct Bare {
    cards: Vec<BareCard>,
    /// The target, if it is a process of its own.
    child: Option<Child>,
    line: TcpStream,
    len: usize,
    /// What connects the cards: the address of each one's partner, and its memory.
    partners: Vec<(Vec<u8>, RemoteRegion)>,
}

/// Where a bare target is expected.
pub(crate) struct Rendezvous {
    listener: TcpListener,
    provider: String,
    cards: usize,
    len: usize,
}

impl Rendezvous {
    /// For a target with `cards` endpoints, all with the same `len` bytes.
    pub(crate) fn new(provider: &str, cards: usize, len: usize) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        Ok(Self { listener, provider: provider.to_owned(), cards, len })
    }

    /// The variable that makes a process of this program a bare target, or one beside what else it is: see [`serve_targets`].
    pub(crate) fn variable(&self) -> Result<(&'static str, String)> {
        let Self { listener, provider, cards, len } = self;
        let port = listener.local_addr()?.port();
        Ok((BARE, format!("{port} {cards} {len} {provider}")))
    }

    /// The pair, when the target has been started, with this memory here. Not connected yet.
    fn pair(&self, memory: &Arc<Mapping>, child: Option<Child>) -> Result<Bare> {
        let (mut line, _) = self.listener.accept()?;
        line.set_nodelay(true)?;
        let (mut cards, mut partners) = (Vec::new(), Vec::new());
        for info in infos(&self.provider, self.cards)? {
            let card = BareCard::open(&info, memory)?;
            write_block(&mut line, &card.endpoint.name()?)?;
            let address = read_block(&mut line)?;
            let remote = <[u8; 24]>::try_from(read_block(&mut line)?).map_err(|_| "not a region")?;
            partners.push((address, RemoteRegion::from_bytes(remote)));
            cards.push(card);
        }
        Ok(Bare { cards, child, line, len: self.len, partners })
    }
}

/// What a target is told by one byte.
const GO: u8 = 1;
const DOZE: u8 = 2;
const REST: u8 = 0;

impl Bare {
    /// `cards` endpoints here and in a process that is started for it, all with the same `len` bytes, connected one to one.
    pub(crate) fn start(provider: &str, cards: usize, len: usize) -> Result<Self> {
        let mut bare = Self::apart(provider, cards, len)?;
        bare.connect()?;
        bare.go()?;
        Ok(bare)
    }

    /// The same, not connected yet; the target rests.
    pub(crate) fn apart(provider: &str, cards: usize, len: usize) -> Result<Self> {
        let rendezvous = Rendezvous::new(provider, cards, len)?;
        let child = Command::new(std::env::current_exe()?)
            .envs([rendezvous.variable()?])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()?;
        let bare = rendezvous.pair(&memory(len)?, Some(child))?;
        touch(bare.cards.first())?;
        Ok(bare)
    }

    /// With a target that has been started with the [variable](Rendezvous::variable) and the same memory here, which has been used
    /// before; connected. It rests.
    pub(crate) fn beside(rendezvous: &Rendezvous, memory: &Arc<Mapping>) -> Result<Self> {
        let mut bare = rendezvous.pair(memory, None)?;
        bare.connect()?;
        Ok(bare)
    }

    /// Makes each card's partner known to it.
    pub(crate) fn connect(&mut self) -> Result<()> {
        for (card, (address, remote)) in self.cards.iter_mut().zip(&self.partners) {
            card.peer = Some((card.vector.insert(address)?, *remote));
        }
        Ok(())
    }

    /// How many cards it has.
    pub(crate) fn cards(&self) -> usize {
        self.cards.len()
    }

    /// A round with the target running, which rests before and after: it looks without a pause where nothing wakes it, and would
    /// take a processor from whatever is measured beside it.
    pub(crate) fn round(&mut self, round: impl FnOnce(&mut Self) -> Result<f64>) -> Result<f64> {
        self.go()?;
        let figure = round(self);
        self.ask()?;
        figure
    }

    /// A message to the target and its answer, after which it rests. When it does already, that is what a question costs.
    pub(crate) fn ask(&mut self) -> Result<()> {
        self.line.write_all(&[REST])?;
        self.answer(REST)
    }

    /// Wakes the target: from now on it makes progress without a pause.
    pub(crate) fn go(&mut self) -> Result<()> {
        self.line.write_all(&[GO])?;
        self.answer(GO)
    }

    /// From now on the target sleeps until the provider wakes it, each time, where it has one card and a queue that can be waited for.
    pub(crate) fn doze(&mut self) -> Result<()> {
        self.line.write_all(&[DOZE])?;
        self.answer(DOZE)
    }

    /// The target's process, if it has one of its own.
    pub(crate) fn target(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    fn answer(&mut self, expected: u8) -> Result<()> {
        let mut answer = [!expected];
        self.line.read_exact(&mut answer)?;
        if answer == [expected] { Ok(()) } else { Err("the bare target is confused".into()) }
    }

    /// Moves `count` blocks of `size` bytes in order, `window` at a time on each card.
    pub(crate) fn stream(&mut self, write: bool, size: usize, count: usize, window: usize) -> Result<()> {
        let places = (self.len / size).max(1);
        self.blocks(write, size, count, window, |block| (block % places * size, block % places * size))
    }

    /// The same between the offsets that `place` says of each block: where it is here and where there. The cards take turns.
    pub(crate) fn blocks(
        &mut self,
        write: bool,
        size: usize,
        count: usize,
        window: usize,
        place: impl Fn(usize) -> (usize, usize),
    ) -> Result<()> {
        let cards = self.cards.len();
        let mut ended = 0;
        let mut next: Vec<usize> = (0..cards).collect();
        while ended < count {
            let mut moved = false;
            for (card, next) in self.cards.iter_mut().zip(&mut next) {
                while card.in_flight < window && *next < count {
                    if !card.post(write, place(*next), size)? {
                        break;
                    }
                    *next += cards;
                    moved = true;
                }
                let completed = card.poll()?;
                ended += completed;
                moved |= completed > 0;
            }
            if !moved {
                std::thread::yield_now();
            }
        }
        Ok(())
    }

    /// One operation on one pair of cards, to its end.
    pub(crate) fn one(&mut self, card: usize, write: bool, size: usize) -> Result<()> {
        self.one_at(card, write, size, 0)
    }

    /// The same between the bytes at an offset, the same here and there.
    pub(crate) fn one_at(&mut self, card: usize, write: bool, size: usize, at: usize) -> Result<()> {
        let card = &mut self.cards[card];
        while !card.post(write, (at, at), size)? {
            card.poll()?;
            std::thread::yield_now();
        }
        let mut idle = 0_u32;
        while card.in_flight > 0 {
            if card.poll()? == 0 {
                idle += 1;
                if idle > 64 {
                    std::thread::yield_now();
                }
            }
        }
        Ok(())
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It ends with its line anyhow.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// The target that this process is to be, if it is one; does not return then. One of the transport may be a bare one besides, on
/// a thread and with the same memory.
pub(crate) fn serve_targets() {
    let order = std::env::var(BARE).ok();
    common::serve_with(|memory| {
        if let Some(order) = order.clone() {
            let memory = Arc::clone(memory);
            std::thread::spawn(move || serve(&order, Some(memory)));
        }
    });
    if let Some(order) = order {
        serve(&order, None);
        std::process::exit(0);
    }
}

fn serve(order: &str, shared: Option<Arc<Mapping>>) {
    if let Err(error) = make_progress(order, shared) {
        eprintln!("bare target: {error}");
    }
}

/// Makes progress whenever it is told to, until its line ends. With fresh memory, or with this, which has been used before.
fn make_progress(order: &str, shared: Option<Arc<Mapping>>) -> Result<()> {
    let mut words = order.splitn(4, ' ');
    let mut next = || words.next().ok_or("port, cards, length, provider");
    let (port, cards, len): (u16, usize, usize) = (next()?.parse()?, next()?.parse()?, next()?.parse()?);
    // First of all: whoever waits for it learns from the line's end that it has failed.
    let mut line = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    let infos = infos(next()?, cards)?;
    let fresh = shared.is_none();
    let memory = shared.map_or_else(|| memory(len), Ok)?;
    line.set_nodelay(true)?;
    let mut opened = Vec::new();
    for info in infos {
        let card = BareCard::open(&info, &memory)?;
        // Peers that answer must know who asks.
        let peer = card.vector.insert(&read_block(&mut line)?)?;
        write_block(&mut line, &card.endpoint.name()?)?;
        write_block(&mut line, &card.region.remote().to_bytes())?;
        opened.push((card, peer));
    }
    if fresh {
        touch(opened.first().map(|(card, _)| card))?;
    }
    let mut told = [REST];
    while line.read(&mut told)? > 0 {
        line.write_all(&told)?;
        if told != [REST] {
            line.set_nonblocking(true)?;
            let nap = Duration::from_millis(if told == [DOZE] { 50 } else { 1 });
            look_until_told(&mut opened, &line, nap)?;
            line.set_nonblocking(false)?;
        }
    }
    Ok(())
}

/// Reads the completion queues until there is something to read on the line, which is looked at after each nap.
fn look_until_told(cards: &mut [(BareCard, Address)], line: &TcpStream, nap: Duration) -> Result<()> {
    let mut looks = 0;
    loop {
        for (card, _) in &mut *cards {
            card.poll()?;
        }
        let slept = match cards {
            [(card, _)] => card.queue.wait(&mut card.batch, nap).is_ok(),
            _ => false,
        };
        if !slept {
            std::thread::yield_now();
        }
        // Now and then: it costs as much as the rest of a look.
        looks = (looks + 1) % 256;
        if looks > 0 && !slept {
            continue;
        }
        match line.peek(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            _ => return Ok(()),
        }
    }
}

fn write_block(line: &mut TcpStream, bytes: &[u8]) -> Result<()> {
    line.write_all(&(bytes.len() as u32).to_le_bytes())?;
    Ok(line.write_all(bytes)?)
}

fn read_block(line: &mut TcpStream) -> Result<Vec<u8>> {
    let mut len = [0; 4];
    line.read_exact(&mut len)?;
    let mut bytes = vec![0; u32::from_le_bytes(len) as usize];
    line.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Providers to measure: those of this machine's libfabric, or EFA cards where there are any.
pub(crate) fn providers() -> Vec<&'static str> {
    if !common::efa_cards().is_empty() {
        return vec!["efa/efa-direct"];
    }
    vec!["tcp;ofi_rxm", "net", "shm"]
}
