//! This process as the others see it: its slot in the registry, its cards, its peers, its mail.

use super::device::Card;
use super::peer::Peer;
use super::region::Regions;
use super::ring::{Packet, Ring};
use super::{faults::Faults, pace::Pace, receiver, trace::Trace};
use crate::settings::Settings;
use crate::shared::{self, CardFile, FileLock, LIVE, Mapped, ProcessSlot, Registry, SLOTS};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// Locks, whatever became of the last holder: no code here panics with data half changed.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// This process in a run.
pub(crate) struct Process {
    pub(crate) settings: Settings,
    pub(crate) registry: Mapped<Registry>,
    pub(crate) slot: usize,
    pub(crate) generation: u32,
    pub(crate) host: u32,
    pub(crate) pid: libc::pid_t,
    pub(crate) regions: Regions,
    pub(crate) faults: Faults,
    pub(crate) trace: Trace,
    pub(crate) pace: Pace,
    cards: Vec<OnceLock<Arc<Card>>>,
    peers: Mutex<HashMap<u64, Arc<Peer>>>,
    card_files: Mutex<HashMap<u64, Arc<Mapped<CardFile>>>>,
    inbound: Mutex<HashMap<usize, (u32, Arc<Ring>)>>,
    /// Answers that found a full ring.
    unsent: Mutex<VecDeque<(u64, Packet)>>,
    pub(crate) thread_started: AtomicBool,
    /// The run's directory, locked shared for as long as we live, so that nobody sweeps it away.
    _run_lock: Option<std::fs::File>,
}

static CURRENT: Mutex<Option<Arc<Process>>> = Mutex::new(None);

impl Process {
    /// This process's membership of the run, joining on first use (and again after a fork).
    pub(crate) fn current() -> io::Result<Arc<Process>> {
        let mut current = lock(&CURRENT);
        // SAFETY: getpid cannot fail.
        let pid = unsafe { libc::getpid() };
        match &*current {
            Some(process) if process.pid == pid => return Ok(process.clone()),
            Some(_) => {
                // A forked child: the parent's membership is not ours, and its destructors must not run here.
                std::mem::forget(current.take());
            }
            None => {}
        }
        let process = Arc::new(Process::join(Settings::from_env(), pid)?);
        *current = Some(process.clone());
        static AT_EXIT: OnceLock<()> = OnceLock::new();
        AT_EXIT.get_or_init(|| {
            // SAFETY: `leave` is an extern "C" function without arguments, which is what atexit wants.
            unsafe { libc::atexit(leave) };
        });
        Ok(process)
    }

    fn join(settings: Settings, pid: libc::pid_t) -> io::Result<Process> {
        std::fs::create_dir_all(&settings.dir)?;
        let run_lock = std::fs::File::open(settings.dir.join(crate::scratch::LOCK_FILE)).ok();
        if let Some(file) = &run_lock {
            // SAFETY: flock on a descriptor that we own. Failing to get it costs nothing: nobody sweeps a live run anyway.
            unsafe { libc::flock(std::os::fd::AsRawFd::as_raw_fd(file), libc::LOCK_SH | libc::LOCK_NB) };
        }
        // Where the Yama security module restricts process_vm_*, let the other processes of the run reach us all the same.
        // SAFETY: prctl with integers only; it fails harmlessly where there is no Yama.
        unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };

        let path = settings.dir.join(shared::REGISTRY_FILE);
        let guard = FileLock::exclusive(&path)?;
        let registry = Mapped::<Registry>::of(guard.file(), 0, true)?;
        let (slot, generation) = claim_slot(&registry, &settings.dir, pid)?;
        let regions = Regions::create(
            &shared::process_path(&settings.dir, slot, generation),
            settings.seed ^ pid as u64,
        )?;
        let entry = &registry.slots[slot];
        let host = settings.host.unwrap_or_else(|| 0x1_0000 + registry.hosts.fetch_add(1, Ordering::Relaxed));
        entry.host.store(host, Ordering::Relaxed);
        entry.sleeping.store(0, Ordering::Relaxed);
        entry.due_ns.store(u64::MAX, Ordering::Relaxed);
        entry.active_ns.store(0, Ordering::Relaxed);
        entry.waiting.store(1, Ordering::Relaxed);
        entry.inbound.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        entry.hazards.iter().for_each(|word| word.store(0, Ordering::Relaxed));
        entry.state.store(LIVE, Ordering::Release);
        drop(guard);

        let cards = (0..settings.nics).map(|_| OnceLock::new()).collect();
        let faults = Faults::load(&settings, &registry);
        let trace = Trace::new(&settings, pid);
        let pace = Pace::new(settings.clock);
        Ok(Process {
            settings,
            registry,
            slot,
            generation,
            host,
            pid,
            regions,
            faults,
            trace,
            pace,
            cards,
            peers: Mutex::default(),
            card_files: Mutex::default(),
            inbound: Mutex::default(),
            unsent: Mutex::default(),
            thread_started: AtomicBool::new(false),
            _run_lock: run_lock,
        })
    }

    /// Our slot in the registry.
    pub(crate) fn me(&self) -> &ProcessSlot {
        &self.registry.slots[self.slot]
    }

    /// Our owner word.
    pub(crate) fn owner(&self) -> u64 {
        shared::owner(self.slot, self.generation)
    }

    /// Card `index`, made on first use.
    pub(crate) fn card(self: &Arc<Self>, index: usize) -> io::Result<Arc<Card>> {
        let Some(cell) = self.cards.get(index) else {
            return Err(io::Error::from_raw_os_error(libc::ENODEV));
        };
        if let Some(card) = cell.get() {
            return Ok(card.clone());
        }
        let file = self.card_file(self.host, index as u16, true)?;
        Ok(cell.get_or_init(|| Arc::new(Card::new(self, index, file))).clone())
    }

    /// The cards that have been opened.
    pub(crate) fn open_cards(&self) -> impl Iterator<Item = &Arc<Card>> {
        self.cards.iter().filter_map(OnceLock::get)
    }

    /// The shared file of a card of some host.
    pub(crate) fn card_file(&self, host: u32, card: u16, create: bool) -> io::Result<Arc<Mapped<CardFile>>> {
        let key = (host as u64) << 16 | card as u64;
        let mut files = lock(&self.card_files);
        if let Some(file) = files.get(&key) {
            return Ok(file.clone());
        }
        let file = Arc::new(Mapped::<CardFile>::open(&self.card_path(host, card), 0, create)?);
        files.insert(key, file.clone());
        Ok(file)
    }

    /// Where the file of a card lies.
    pub(crate) fn card_path(&self, host: u32, card: u16) -> PathBuf {
        self.settings.dir.join(format!("card-{host}-{card}"))
    }

    /// Whether the holder of an owner word has not left (it may have been killed: see [`Peer::alive`]).
    pub(crate) fn holds_slot(&self, owner: u64) -> bool {
        shared::owner_parts(owner).is_some_and(|(slot, generation)| {
            let entry = &self.registry.slots[slot];
            entry.state.load(Ordering::Acquire) == LIVE
                && entry.generation.load(Ordering::Acquire) == generation
        })
    }

    /// Whether the holder of an owner word still runs. Asks the kernel.
    pub(crate) fn lives(&self, owner: u64) -> bool {
        self.holds_slot(owner)
            && shared::owner_parts(owner).is_some_and(|(slot, _)| slot_alive(&self.registry.slots[slot]))
    }

    /// Whether any process of that host runs but `gone`, of which it is known that it does not: a killed process has lost its memory
    /// some time before the kernel calls it dead. Asks the kernel.
    pub(crate) fn host_lives_without(&self, host: u32, gone: u64) -> bool {
        self.registry.slots.iter().enumerate().any(|(slot, entry)| {
            entry.state.load(Ordering::Acquire) == LIVE
                && shared::owner(slot, entry.generation.load(Ordering::Acquire)) != gone
                && entry.host.load(Ordering::Acquire) == host
                && slot_alive(entry)
        })
    }

    /// The process behind an owner word, or `None` when it has gone.
    pub(crate) fn peer(&self, owner: u64) -> Option<Arc<Peer>> {
        let mut peers = lock(&self.peers);
        if let Some(peer) = peers.get(&owner) {
            return Some(peer.clone());
        }
        if !self.holds_slot(owner) {
            return None;
        }
        let (slot, generation) = shared::owner_parts(owner)?;
        let peer = Arc::new(Peer::open(self, slot, generation)?);
        // Forget those that have gone, so that a long test with many restarts does not collect them.
        peers.retain(|&key, _| self.holds_slot(key));
        peers.insert(owner, peer.clone());
        Some(peer)
    }

    /// Takes in all packets that have come; true when there were any. One thread at a time; others return at once.
    pub(crate) fn receive(self: &Arc<Self>) -> bool {
        let Ok(mut rings) = self.inbound.try_lock() else { return false };
        let mut any = self.send_unsent();
        for word in 0..SLOTS / 64 {
            let bits = &self.me().inbound[word];
            if bits.load(Ordering::Relaxed) == 0 {
                continue;
            }
            let mut set = bits.swap(0, Ordering::SeqCst);
            while set != 0 {
                let source = word * 64 + set.trailing_zeros() as usize;
                set &= set - 1;
                any |= self.receive_from(&mut rings, source);
            }
        }
        any
    }

    /// Takes in all that a process has sent that is gone; false if another thread is taking packets in, so that it is to be tried again.
    pub(crate) fn receive_last_of(self: &Arc<Self>, owner: u64) -> bool {
        let Ok(mut rings) = self.inbound.try_lock() else { return false };
        let Some((slot, _)) = shared::owner_parts(owner) else { return true };
        while self.receive_from(&mut rings, slot) {}
        true
    }

    fn receive_from(self: &Arc<Self>, rings: &mut HashMap<usize, (u32, Arc<Ring>)>, source: usize) -> bool {
        let generation = self.registry.slots[source].generation.load(Ordering::Acquire);
        if rings.get(&source).is_none_or(|(known, _)| *known != generation) {
            rings.remove(&source);
            let path = ring_path(&self.settings.dir, (source, generation), (self.slot, self.generation));
            match Ring::open(&path, false) {
                Ok(ring) => rings.insert(source, (generation, Arc::new(ring))),
                Err(_) => return false,
            };
        }
        let Some((_, ring)) = rings.get(&source) else { return false };
        let from = shared::owner(source, generation);
        let mut any = false;
        for _ in 0..512 {
            if ring.pop(|packet, payload| receiver::take_in(self, from, packet, payload)).is_none() {
                if ring.take_writer_waits() {
                    self.ring_bell(source);
                }
                return any;
            }
            any = true;
        }
        // More than our share at one go: look at this source again soon.
        self.me().inbound[source / 64].fetch_or(1 << (source % 64), Ordering::SeqCst);
        if ring.take_writer_waits() {
            self.ring_bell(source);
        }
        any
    }

    /// Sends an answer, now or when the ring has room.
    pub(crate) fn answer(&self, to: u64, packet: Packet) {
        let mut unsent = lock(&self.unsent);
        unsent.push_back((to, packet));
        drop(unsent);
        self.send_unsent();
    }

    fn send_unsent(&self) -> bool {
        let mut unsent = lock(&self.unsent);
        let mut any = false;
        while let Some((to, packet)) = unsent.front() {
            if let Some(peer) = self.peer(*to) {
                // SAFETY: an answer has no payload.
                if !unsafe { peer.send(self, packet, &[]) } && peer.alive(self) {
                    break;
                }
            }
            unsent.pop_front();
            any = true;
        }
        any
    }

    /// Whether packets are waiting.
    pub(crate) fn has_mail(&self) -> bool {
        self.me().inbound.iter().any(|word| word.load(Ordering::Relaxed) != 0)
            || !lock(&self.unsent).is_empty()
    }

    /// Tells process `slot` that its ring from us has something new (or ours from it has room).
    pub(crate) fn ring_bell(&self, slot: usize) {
        let entry = &self.registry.slots[slot];
        entry.inbound[self.slot / 64].fetch_or(1 << (self.slot % 64), Ordering::SeqCst);
        wake(entry);
    }

    /// Wakes our own card thread if it sleeps.
    pub(crate) fn wake_thread(&self) {
        wake(self.me());
    }

    /// Wakes our own card thread also from its doze beside a polling program.
    pub(crate) fn rouse_thread(&self) {
        let me = self.me();
        if me.sleeping.swap(0, Ordering::SeqCst) != 0 {
            shared::ring_bell(me);
        }
    }

    /// Waits until nobody copies from or to our memory any more, except for copies begun after this call: the end of what a
    /// revoked registration allows. A process that was killed in mid-copy is not waited for.
    pub(crate) fn wait_for_copies(&self) {
        fence(Ordering::SeqCst);
        for slot in 0..SLOTS {
            let entry = &self.registry.slots[slot];
            if entry.state.load(Ordering::Acquire) != LIVE {
                continue;
            }
            for word in &entry.hazards {
                let seen = word.load(Ordering::SeqCst);
                let ours =
                    shared::hazard_slot(seen).is_some_and(|target| target == self.slot || slot == self.slot);
                let mut turns = 0u32;
                while ours && word.load(Ordering::SeqCst) == seen {
                    turns += 1;
                    if turns.is_multiple_of(1000) && !slot_alive(entry) {
                        break;
                    }
                    std::thread::yield_now();
                }
            }
        }
    }

    /// Packets' way to another process.
    pub(crate) fn ring_to(&self, slot: usize, generation: u32) -> io::Result<Ring> {
        Ring::open(&ring_path(&self.settings.dir, (self.slot, self.generation), (slot, generation)), true)
    }
}

fn wake(entry: &ProcessSlot) {
    fence(Ordering::SeqCst);
    if entry.sleeping.load(Ordering::SeqCst) == 1 && entry.sleeping.swap(0, Ordering::SeqCst) == 1 {
        shared::ring_bell(entry);
    }
}

/// The file of a process's registrations.
pub(crate) fn regions_path(process: &Process, slot: usize, generation: u32) -> PathBuf {
    shared::process_path(&process.settings.dir, slot, generation)
}

pub(crate) fn ring_path(dir: &Path, from: (usize, u32), to: (usize, u32)) -> PathBuf {
    dir.join(format!("ring-{}.{}-{}.{}", from.0, from.1, to.0, to.1))
}

/// Takes a free slot, or one whose process has died; the registry's lock is held.
fn claim_slot(registry: &Registry, dir: &Path, pid: libc::pid_t) -> io::Result<(usize, u32)> {
    for (slot, entry) in registry.slots.iter().enumerate() {
        if entry.state.load(Ordering::Acquire) == LIVE {
            if slot_alive(entry) {
                continue;
            }
            entry.state.store(shared::FREE, Ordering::SeqCst);
            remove_files(dir, slot, entry.generation.load(Ordering::Acquire));
        }
        let generation = entry.generation.load(Ordering::Acquire).wrapping_add(1).max(1);
        entry.generation.store(generation, Ordering::SeqCst);
        entry.pid.store(pid as u32, Ordering::SeqCst);
        entry.start_time.store(start_time(pid).unwrap_or(0), Ordering::SeqCst);
        return Ok((slot, generation));
    }
    Err(io::Error::other(format!("all {SLOTS} process slots of {} are taken", dir.display())))
}

/// Removes what a process of that slot and generation has left.
fn remove_files(dir: &Path, slot: usize, generation: u32) {
    let _ = std::fs::remove_file(shared::process_path(dir, slot, generation));
    let (source, target) = (format!("ring-{slot}.{generation}-"), format!("-{slot}.{generation}"));
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&source) || (name.starts_with("ring-") && name.ends_with(&target)) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Start time of a process that has not ended, in clock ticks since boot.
pub(crate) fn start_time(pid: libc::pid_t) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command name may contain anything; fields are counted from the last parenthesis.
    let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let state = fields.next()?;
    (state != "Z" && state != "X").then(|| fields.nth(18)?.parse().ok())?
}

/// Whether the process in a slot still runs.
pub(crate) fn slot_alive(entry: &ProcessSlot) -> bool {
    let pid = entry.pid.load(Ordering::Acquire) as libc::pid_t;
    start_time(pid) == Some(entry.start_time.load(Ordering::Acquire))
}

/// Gives the slot back when the program ends in the ordinary way.
extern "C" fn leave() {
    let Ok(guard) = CURRENT.try_lock() else { return };
    let Some(process) = &*guard else { return };
    // SAFETY: getpid cannot fail.
    if process.pid != unsafe { libc::getpid() } {
        return;
    }
    super::trace::finish(process);
    process.me().state.store(shared::FREE, Ordering::SeqCst);
    remove_files(&process.settings.dir, process.slot, process.generation);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_pid_and_start_time() {
        let mine = start_time(std::process::id() as i32);
        assert!(mine.is_some());
        assert_eq!(start_time(0), None);
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = child.id() as i32;
        child.wait().unwrap();
        assert_eq!(start_time(pid), None);
    }
}
