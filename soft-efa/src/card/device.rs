//! A card: its queue pairs, its address handles, its budget of registrations.

use super::engine::Engine;
use super::process::{Process, lock};
use super::queue_pair::{QueuePair, Shape};
use super::request::Request;
use super::{completion::CompletionQueue, engine, remote};
use crate::abi::ibv_gid;
use crate::counters::Counters;
use crate::shared::{CardFile, FileLock, Mapped, QPS, QpEntry};
use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock, Weak};

/// A card of this process's host, as this process uses it.
pub(crate) struct Card {
    pub(crate) process: Arc<Process>,
    pub(crate) index: usize,
    pub(crate) gid: ibv_gid,
    pub(crate) file: Arc<Mapped<CardFile>>,
    /// Requests posted and not yet seen by the engine.
    pub(crate) submitted: Mutex<Vec<Request>>,
    /// Ends of messages, from other processes: (token, status).
    pub(crate) answers: Mutex<Vec<(u64, u32)>>,
    /// Requests and answers that the engine could work on now.
    pub(crate) ready: AtomicUsize,
    /// Set when the engine met a full ring: pointless to try again before the bell.
    pub(crate) stalled: AtomicBool,
    /// Requests that wait for a time or an answer.
    pub(crate) waiting: AtomicUsize,
    pub(crate) engine: Mutex<Engine>,
    /// Grows each time that a program polls a queue of this card and finds it empty.
    pub(crate) polls: AtomicU64,
    qps: RwLock<HashMap<u32, Arc<QueuePair>>>,
    handles: Mutex<Handles>,
    listeners: Mutex<Vec<Weak<crate::verbs::context::Events>>>,
    next_pd: AtomicU32,
    /// Number after that of the last queue pair which this process made.
    next_qpn: AtomicU32,
    registrations: AtomicU32,
    ptes: AtomicU64,
}

#[derive(Default)]
struct Handles {
    by_gid: HashMap<ibv_gid, Handle>,
    next: u16,
    returned: Vec<u16>,
}

struct Handle {
    number: u16,
    users: usize,
    remote: Arc<remote::Remote>,
    /// Index in the shared list of known peers.
    entry: Option<usize>,
}

impl Card {
    pub(crate) fn new(process: &Arc<Process>, index: usize, file: Arc<Mapped<CardFile>>) -> Card {
        Card {
            process: process.clone(),
            index,
            gid: remote::gid(process.host, index as u16),
            file,
            submitted: Mutex::default(),
            answers: Mutex::default(),
            ready: AtomicUsize::new(0),
            stalled: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            engine: Mutex::new(Engine::new(&process.settings, index)),
            polls: AtomicU64::new(0),
            qps: RwLock::default(),
            handles: Mutex::default(),
            listeners: Mutex::default(),
            next_pd: AtomicU32::new(1),
            next_qpn: AtomicU32::new(1),
            registrations: AtomicU32::new(0),
            ptes: AtomicU64::new(0),
        }
    }

    /// What this card has done in this process.
    pub(crate) fn counters(&self) -> &Counters {
        self.process.regions.counts(self.index)
    }

    /// The shared entry of one of its queue pairs.
    pub(crate) fn entry(&self, qp: &QueuePair) -> &QpEntry {
        &self.file.qps[qp.number as usize]
    }

    /// A number for a protection domain, unique in this process and card.
    pub(crate) fn new_pd(&self) -> u32 {
        self.next_pd.fetch_add(1, Ordering::Relaxed)
    }

    /// Makes a queue pair with a number that no process of this host uses on this card.
    pub(crate) fn create_qp(
        self: &Arc<Self>,
        shape: Shape,
        send_cq: Arc<CompletionQueue>,
        recv_cq: Arc<CompletionQueue>,
    ) -> io::Result<Arc<QueuePair>> {
        let path = self.process.card_path(self.process.host, self.index as u16);
        let again = self.process.faults.numbers_return(self);
        let guard = FileLock::exclusive(&path)?;
        let ours = self.file.first_owner.load(Ordering::Relaxed) == self.process.owner();
        let start = match (again, ours) {
            (false, _) => &self.file.next_qpn,
            (true, false) => &self.file.first_qpn,
            (true, true) => &self.next_qpn,
        };
        let start = start.load(Ordering::Relaxed) as usize;
        let number = (0..QPS)
            .map(|step| (start + step) % QPS)
            // Number 0 is never given out: zeroed memory must not look like an address.
            .find(|&number| {
                let owner = self.file.qps[number].owner.load(Ordering::Acquire);
                let held = if again { self.process.lives(owner) } else { self.process.holds_slot(owner) };
                number != 0 && !held
            })
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOMEM))?;
        if !again {
            self.file.next_qpn.store(number as u32 + 1, Ordering::Relaxed);
        }
        self.next_qpn.store(number as u32 + 1, Ordering::Relaxed);
        if !ours {
            self.file.first_owner.store(self.process.owner(), Ordering::Relaxed);
            self.file.first_qpn.store(number as u32, Ordering::Relaxed);
        }
        let entry = &self.file.qps[number];
        entry.ready.store(0, Ordering::SeqCst);
        entry.pd.store(shape.pd, Ordering::SeqCst);
        for count in [&entry.posted, &entry.completed, &entry.failed, &entry.received] {
            count.store(0, Ordering::Relaxed);
        }
        entry.owner.store(self.process.owner(), Ordering::SeqCst);
        drop(guard);
        let qp = Arc::new(QueuePair::new(self.clone(), number as u32, shape, send_cq, recv_cq));
        self.qps.write().unwrap_or_else(|e| e.into_inner()).insert(qp.number, qp.clone());
        // The program is at work: the thread that starts now leaves the requests to it.
        super::pace::act(&self.process);
        engine::start_thread(&self.process);
        Ok(qp)
    }

    /// Shows a queue pair's state to the other processes.
    pub(crate) fn publish(&self, qp: &QueuePair) {
        let entry = &self.file.qps[qp.number as usize];
        entry.qkey.store(qp.qkey.load(Ordering::Acquire), Ordering::SeqCst);
        entry.ready.store(qp.can_receive() as u32, Ordering::SeqCst);
    }

    /// Takes a queue pair out of the world. When this returns, the card touches no memory for it any more.
    pub(crate) fn destroy_qp(&self, qp: &Arc<QueuePair>) {
        qp.destroyed.store(true, Ordering::SeqCst);
        let entry = &self.file.qps[qp.number as usize];
        entry.ready.store(0, Ordering::SeqCst);
        self.qps.write().unwrap_or_else(|e| e.into_inner()).remove(&qp.number);
        engine::forget(self, qp);
        qp.drop_receives();
        entry.owner.store(0, Ordering::SeqCst);
    }

    /// The queue pair of that number.
    pub(crate) fn qp(&self, number: u32) -> Option<Arc<QueuePair>> {
        self.qps.read().unwrap_or_else(|e| e.into_inner()).get(&number).cloned()
    }

    /// An address handle for `gid`, whose number is the same for the same GID; `None` when the card has no more of them.
    pub(crate) fn create_handle(&self, gid: &ibv_gid) -> Option<(u16, Arc<remote::Remote>)> {
        let mut handles = lock(&self.handles);
        if let Some(handle) = handles.by_gid.get_mut(gid) {
            handle.users += 1;
            return Some((handle.number, handle.remote.clone()));
        }
        if handles.by_gid.len() >= self.process.settings.max_ah as usize {
            return None;
        }
        let number = match handles.returned.pop() {
            Some(number) => number,
            None => {
                handles.next += 1;
                handles.next
            }
        };
        let remote = Arc::new(remote::Remote::new(gid));
        let entry = remote.at.and_then(|(host, card)| self.make_known((host as u64) << 16 | card as u64));
        handles.by_gid.insert(*gid, Handle { number, users: 1, remote: remote.clone(), entry });
        Some((number, remote))
    }

    fn make_known(&self, peer: u64) -> Option<usize> {
        let _guard =
            FileLock::exclusive(&self.process.card_path(self.process.host, self.index as u16)).ok()?;
        let used = self.file.handles_used.load(Ordering::Acquire) as usize;
        let free = (0..used)
            .find(|&index| !self.process.holds_slot(self.file.handles[index].owner.load(Ordering::Acquire)));
        let index = free.or((used < self.file.handles.len()).then_some(used))?;
        let entry = &self.file.handles[index];
        entry.peer.store(peer, Ordering::SeqCst);
        entry.owner.store(self.process.owner(), Ordering::SeqCst);
        self.file.handles_used.fetch_max(index as u32 + 1, Ordering::SeqCst);
        self.file.handle_epoch.fetch_add(1, Ordering::SeqCst);
        Some(index)
    }

    /// Whether the link is up.
    pub(crate) fn is_up(&self) -> bool {
        self.process.faults.refresh(&self.process);
        let now = super::pace::now(&self.process);
        !self.process.faults.card_is_down(self.process.host, self.index as u16, now)
    }

    /// Adds a listener for events about the port.
    pub(crate) fn listen(&self, events: &Arc<crate::verbs::context::Events>) {
        lock(&self.listeners).push(Arc::downgrade(events));
    }

    /// Tells all listeners.
    pub(crate) fn announce(&self, event_type: u32) {
        lock(&self.listeners)
            .retain(|events| events.upgrade().inspect(|events| events.push(event_type)).is_some());
    }

    /// Gives an address handle back.
    pub(crate) fn destroy_handle(&self, gid: &ibv_gid) {
        let mut handles = lock(&self.handles);
        let Some(handle) = handles.by_gid.get_mut(gid) else { return };
        handle.users -= 1;
        if handle.users > 0 {
            return;
        }
        let (number, entry) = (handle.number, handle.entry);
        handles.by_gid.remove(gid);
        handles.returned.push(number);
        if let Some(index) = entry {
            self.file.handles[index].owner.store(0, Ordering::SeqCst);
            self.file.handle_epoch.fetch_add(1, Ordering::SeqCst);
        }
    }

    /// Number of our address handle for a GID; 0xffff when we have none.
    pub(crate) fn handle_number(&self, gid: &ibv_gid) -> u16 {
        lock(&self.handles).by_gid.get(gid).map_or(0xffff, |handle| handle.number)
    }

    /// Spends the budget that a registration of `pages` pages needs; false when the card is full.
    pub(crate) fn spend(&self, pages: u64) -> bool {
        let settings = &self.process.settings;
        let spent = self.ptes.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(pages).filter(|&sum| sum <= settings.max_ptes)
        });
        if spent.is_err() {
            return false;
        }
        if self.registrations.fetch_add(1, Ordering::AcqRel) >= settings.max_mr {
            self.give_back(pages);
            return false;
        }
        true
    }

    /// Gives back what a registration cost.
    pub(crate) fn give_back(&self, pages: u64) {
        self.registrations.fetch_sub(1, Ordering::AcqRel);
        self.ptes.fetch_sub(pages, Ordering::AcqRel);
    }
}
