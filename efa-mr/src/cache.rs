//! The cache: what is registered already needs no second registration.
//!
//! A map of address ranges to registrations of any kind. A request that lies inside a live registration with sufficient rights
//! costs one look-up. Anything else registers, and while doing so takes in what is already there:
//!
//! * a request that overlaps registrations, or lies inside one that lacks rights, is registered together with them and with
//!   the rights of all; if that is refused, the request alone;
//! * a request in a known allocation (`cuMemGetAddressRange`, one `mmap`) registers the allocation, if that is not too long, or
//!   else joins its neighbours in the same allocation;
//! * what a new registration replaces leaves the map at once and is let go when its last [`Lease`] is dropped.
//!
//! # Memory that is unmapped and mapped again
//!
//! An address says nothing about what is behind it: after `munmap` and `mmap` the same address is other memory, and the old MR
//! still points at the old pages. The cache does not hook the allocator to notice (hooks miss calls, and are a nuisance to everybody
//! else in the process). It takes both of these, and one is always at hand:
//!
//! * **generations**: a request may say which [`Allocation`] it is in, by a number that is never used twice (CUDA has one:
//!   `CU_POINTER_ATTRIBUTE_BUFFER_ID`). A registration of another generation never matches and is dropped from the map;
//! * **explicit invalidation** for memory without such a number: whoever unmaps calls [`Cache::invalidate`]. Memory that is owned by
//!   its registration (everything that comes through [`crate::registrar`]) cannot be unmapped before that.
//!
//! # Eviction
//!
//! [`Cache::evict`] for a range, [`Cache::sweep`] for what has not been used since some sweeps ago, [`Cache::make_room`] for the least
//! recently used. None of them touches a registration that somebody holds a lease of.

use crate::access::Access;
use std::fmt;
use std::ops::{Deref, Range};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Allocations up to this length are registered whole unless set otherwise.
pub const DEFAULT_WHOLE_BYTES: u64 = 1 << 30;

/// The allocation that a request lies in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Allocation {
    /// First byte.
    pub addr: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// A number that no other allocation ever has, or 0 if there is none: then whoever frees memory has to
    /// [invalidate](Cache::invalidate) it.
    pub generation: u64,
}

/// What somebody needs to be registered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Request {
    /// First byte.
    pub addr: u64,
    /// Length in bytes, not zero.
    pub len_bytes: u64,
    /// Rights that are needed.
    pub access: Access,
    /// The allocation, if known.
    pub allocation: Option<Allocation>,
}

/// A request that is not a range of memory, or not inside the allocation that it names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "{len_bytes} bytes at {addr:#x} are not a range of memory inside their allocation; check address and length"
)]
pub struct BadRequest {
    addr: u64,
    len_bytes: u64,
}

/// Why nothing could be acquired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AcquireError<E: std::error::Error + 'static> {
    /// The request makes no sense.
    #[error(transparent)]
    Request(#[from] BadRequest),
    /// It could not be registered. The cache is as it was before.
    #[error("cannot register what is not in the cache: {0}")]
    Register(#[source] E),
}

/// A range with inclusive end, so that the top of the address space needs no special case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    first: u64,
    last: u64,
}

impl Span {
    fn new(addr: u64, len_bytes: u64) -> Option<Self> {
        Some(Self { first: addr, last: addr.checked_add(len_bytes.checked_sub(1)?)? })
    }

    const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    fn touches(self, other: Self) -> bool {
        self.overlaps(other)
            || self.last.checked_add(1) == Some(other.first)
            || other.last.checked_add(1) == Some(self.first)
    }

    fn join(self, other: Self) -> Self {
        Self { first: self.first.min(other.first), last: self.last.max(other.last) }
    }

    fn len_bytes(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }
}

struct Entry<R> {
    span: Span,
    access: Access,
    generation: u64,
    /// First byte of the allocation that it is part of, if known: only parts of one allocation are joined.
    allocation: Option<u64>,
    /// The sweep in which it was used last.
    used: AtomicU64,
    registration: R,
}

/// A registration in use. While a lease exists, the registration does.
pub struct Lease<R>(Arc<Entry<R>>);

impl<R> Clone for Lease<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> Deref for Lease<R> {
    type Target = R;

    fn deref(&self) -> &R {
        &self.0.registration
    }
}

impl<R> Lease<R> {
    /// First byte of the registration, which may begin before the request.
    #[must_use]
    pub fn addr(&self) -> u64 {
        self.0.span.first
    }

    /// Length of the registration in bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.0.span.len_bytes()
    }

    /// Rights of the registration.
    #[must_use]
    pub fn access(&self) -> Access {
        self.0.access
    }

    /// Whether both are leases of the same registration.
    #[must_use]
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<R> fmt::Debug for Lease<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("addr", &self.addr())
            .field("len_bytes", &self.len_bytes())
            .field("access", &self.access())
            .finish_non_exhaustive()
    }
}

/// How the cache has done so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Requests that were met by what was there.
    pub hits: u64,
    /// Requests that registered.
    pub misses: u64,
    /// Registrations in the map.
    pub entries: usize,
    /// Bytes of them.
    pub bytes: u64,
}

/// Registrations by address. Used from any thread; a hit holds a lock for one look-up, and nothing is locked while something is
/// being registered or let go.
pub struct Cache<R> {
    state: Mutex<State<R>>,
    registered: Condvar,
    whole_bytes: u64,
}

/// A registration that is being made.
#[derive(Debug, Clone, Copy)]
struct Pending {
    span: Span,
    /// Distinguishes it from others of the same span.
    number: u64,
    /// It was invalidated before it was finished: it must not enter the map.
    invalid: bool,
}

struct State<R> {
    /// In ascending order of first bytes. No entry lies inside another, so last bytes ascend as well, and of all entries that begin
    /// at or before an address the last one reaches farthest: a look-up is one binary search and one step back.
    entries: Vec<Arc<Entry<R>>>,
    /// The first bytes of the entries, next to each other for the search.
    firsts: Vec<u64>,
    /// What is being registered now. Requests that overlap it wait.
    pending: Vec<Pending>,
    sweep: u64,
    hits: u64,
    misses: u64,
}

impl<R> fmt::Debug for Cache<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl<R> Default for Cache<R> {
    fn default() -> Self {
        Self::new(DEFAULT_WHOLE_BYTES)
    }
}

impl<R> Cache<R> {
    /// An empty cache that registers allocations of up to `whole_bytes` bytes whole; 0 never does.
    #[must_use]
    pub const fn new(whole_bytes: u64) -> Self {
        let state = State {
            entries: Vec::new(),
            firsts: Vec::new(),
            pending: Vec::new(),
            sweep: 0,
            hits: 0,
            misses: 0,
        };
        Self { state: Mutex::new(state), registered: Condvar::new(), whole_bytes }
    }

    /// The registration of a request if there is one. Never registers, never blocks for long.
    #[inline]
    #[must_use]
    pub fn lookup(&self, request: &Request) -> Option<Lease<R>> {
        let span = Span::new(request.addr, request.len_bytes)?;
        self.lock().hit(span, request)
    }

    /// A registration that covers the request with its rights: one that exists, or a new one made by `register(addr, length in
    /// bytes, rights)`. `register` may be called more than once, with less each time, until it succeeds; its last call is for exactly the
    /// request. Blocks while another thread registers something that overlaps.
    ///
    /// # Errors
    /// [`AcquireError`]; the cache is as before.
    pub fn acquire<E: std::error::Error + 'static>(
        &self,
        request: &Request,
        mut register: impl FnMut(u64, u64, Access) -> Result<R, E>,
    ) -> Result<Lease<R>, AcquireError<E>> {
        let Request { addr, len_bytes, access, allocation } = *request;
        let bad = BadRequest { addr, len_bytes };
        let span = Span::new(addr, len_bytes).ok_or(bad)?;
        let within = match allocation {
            None => None,
            Some(Allocation { addr, len_bytes, .. }) => {
                Some(Span::new(addr, len_bytes).filter(|within| within.contains(span)).ok_or(bad)?)
            }
        };
        let mut state = self.lock();
        loop {
            if let Some(lease) = state.hit(span, request) {
                return Ok(lease);
            }
            if !state.pending.iter().any(|pending| pending.span.overlaps(span)) {
                break;
            }
            state = self.registered.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.misses += 1;
        let stale = state.drop_stale(span, allocation);
        // From the most that would be useful down to what is needed.
        let mut attempts = Vec::with_capacity(3);
        if let Some(within) = within.filter(|within| within.len_bytes() <= self.whole_bytes) {
            attempts.push(within);
        }
        attempts.push(state.join(span, within, allocation));
        attempts.push(span);
        attempts.dedup();
        let widest = attempts[0].join(attempts[attempts.len().min(2) - 1]);
        let attempts: Vec<(Span, Access)> =
            attempts.into_iter().map(|attempt| (attempt, access | state.rights_within(attempt))).collect();
        let number = state.misses;
        state.pending.push(Pending { span: widest, number, invalid: false });
        drop(state);
        drop(stale); // Letting go may take long: without the lock.

        let mut outcome = Err(None);
        // Lets waiting threads go on whatever happens, even if `register` panics.
        let waiting = Waiting { cache: self, number };
        for (attempt, rights) in attempts {
            match register(attempt.first, attempt.len_bytes(), rights) {
                Ok(registration) => {
                    outcome = Ok((attempt, rights, registration));
                    break;
                }
                Err(error) => outcome = Err(Some(error)),
            }
        }
        let result = match outcome {
            Ok((span, access, registration)) => {
                let mut state = self.lock();
                let entry = Arc::new(Entry {
                    span,
                    access,
                    generation: allocation.map_or(0, |allocation| allocation.generation),
                    allocation: allocation.map(|allocation| allocation.addr),
                    used: AtomicU64::new(state.sweep),
                    registration,
                });
                let invalid = state.pending.iter().any(|pending| pending.number == number && pending.invalid);
                let replaced = if invalid { Vec::new() } else { state.insert(Arc::clone(&entry)) };
                drop(state);
                drop(replaced);
                Ok(Lease(entry))
            }
            Err(Some(error)) => Err(AcquireError::Register(error)),
            Err(None) => Err(bad.into()), // There is always an attempt.
        };
        drop(waiting);
        result
    }

    /// Forgets everything that overlaps a range, leased or not, and also what is being registered at the moment: to be called *before* the memory is unmapped. Leases stay valid
    /// until they are dropped. Returns how many registrations still have leases.
    pub fn invalidate(&self, addr: u64, len_bytes: u64) -> usize {
        let Some(span) = Span::new(addr, len_bytes) else { return 0 };
        let mut state = self.lock();
        state.pending.iter_mut().filter(|pending| pending.span.overlaps(span)).for_each(|p| p.invalid = true);
        let removed = state.remove(span, |_| true);
        drop(state);
        removed.iter().filter(|entry| Arc::strong_count(entry) > 1).count()
    }

    /// Lets go of what overlaps a range and is not leased. Returns how many registrations were kept because of leases.
    pub fn evict(&self, addr: u64, len_bytes: u64) -> usize {
        let Some(span) = Span::new(addr, len_bytes) else { return 0 };
        let mut state = self.lock();
        let removed = state.remove(span, idle);
        let kept = state.overlapping(span).len();
        drop(state);
        drop(removed);
        kept
    }

    /// Lets go of everything that is not leased and has not been asked for in the last `sweeps` sweeps (0: since this one). To be
    /// called at regular times. Returns how many registrations went.
    pub fn sweep(&self, sweeps: u64) -> usize {
        let mut state = self.lock();
        let oldest = state.sweep.saturating_sub(sweeps);
        state.sweep += 1;
        let all = Span { first: 0, last: u64::MAX };
        let used = |entry: &Arc<Entry<R>>| entry.used.load(Ordering::Relaxed);
        let removed = state.remove(all, |entry| idle(entry) && (sweeps == 0 || used(entry) < oldest));
        drop(state);
        removed.len()
    }

    /// Lets go of unleased registrations, least recently used first, until they had `bytes` bytes together. Returns the bytes.
    pub fn make_room(&self, bytes: u64) -> u64 {
        let mut state = self.lock();
        let mut oldest: Vec<(u64, u64)> = state
            .entries
            .iter()
            .filter(|entry| idle(entry))
            .map(|entry| (entry.used.load(Ordering::Relaxed), entry.span.first))
            .collect();
        oldest.sort_unstable();
        let (mut freed, mut removed) = (0_u64, Vec::new());
        for (_, first) in oldest {
            if freed >= bytes {
                break;
            }
            for entry in
                state.remove(Span { first, last: first }, |entry| entry.span.first == first && idle(entry))
            {
                freed = freed.saturating_add(entry.span.len_bytes());
                removed.push(entry);
            }
        }
        drop(state);
        drop(removed);
        freed
    }

    /// Figures so far.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let state = self.lock();
        let bytes =
            state.entries.iter().fold(0, |sum: u64, entry| sum.saturating_add(entry.span.len_bytes()));
        Stats { hits: state.hits, misses: state.misses, entries: state.entries.len(), bytes }
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, State<R>> {
        // Nothing under the lock runs code of users, so a panic elsewhere left the state whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether nobody has a lease. Exact under the lock: new leases are made from the map under it, or from other leases.
fn idle<R>(entry: &Arc<Entry<R>>) -> bool {
    Arc::strong_count(entry) == 1
}

/// Takes a registration off the list of pending ones when dropped.
struct Waiting<'a, R> {
    cache: &'a Cache<R>,
    number: u64,
}

impl<R> Drop for Waiting<'_, R> {
    fn drop(&mut self) {
        let mut state = self.cache.lock();
        if let Some(at) = state.pending.iter().position(|pending| pending.number == self.number) {
            state.pending.swap_remove(at);
        }
        drop(state);
        self.cache.registered.notify_all();
    }
}

impl<R> State<R> {
    #[inline]
    fn hit(&mut self, span: Span, request: &Request) -> Option<Lease<R>> {
        let after = self.firsts.partition_point(|first| *first <= span.first);
        let entry = &self.entries[after.checked_sub(1)?];
        let same = match request.allocation {
            Some(allocation) => entry.generation == allocation.generation,
            None => true,
        };
        if !same || entry.span.last < span.last || !entry.access.contains(request.access) {
            return None;
        }
        entry.used.store(self.sweep, Ordering::Relaxed);
        self.hits += 1;
        Some(Lease(Arc::clone(entry)))
    }

    /// Entries that overlap a span, in ascending order.
    fn overlapping(&self, span: Span) -> &[Arc<Entry<R>>] {
        &self.entries[self.overlapping_range(span)]
    }

    fn overlapping_range(&self, span: Span) -> Range<usize> {
        let start = self.entries.partition_point(|entry| entry.span.last < span.first);
        let end = self.firsts.partition_point(|first| *first <= span.last);
        start..end.max(start)
    }

    fn remove(&mut self, span: Span, mut which: impl FnMut(&Arc<Entry<R>>) -> bool) -> Vec<Arc<Entry<R>>> {
        let range = self.overlapping_range(span);
        let removed: Vec<_> = self.entries.extract_if(range, |entry| which(entry)).collect();
        if !removed.is_empty() {
            self.firsts.clear();
            self.firsts.extend(self.entries.iter().map(|entry| entry.span.first));
        }
        removed
    }

    /// Drops entries of another generation that the request's allocation lies over: that memory is gone.
    fn drop_stale(&mut self, span: Span, allocation: Option<Allocation>) -> Vec<Arc<Entry<R>>> {
        let Some(Allocation { addr, len_bytes, generation }) = allocation else { return Vec::new() };
        let within = Span::new(addr, len_bytes).unwrap_or(span);
        self.remove(within, |entry| entry.generation != generation)
    }

    /// The span together with what overlaps it, and with its neighbours in the same allocation.
    fn join(&self, span: Span, within: Option<Span>, allocation: Option<Allocation>) -> Span {
        let mut joined = span;
        loop {
            let around = Span { first: joined.first.saturating_sub(1), last: joined.last.saturating_add(1) };
            let grown = self.overlapping(around).iter().fold(joined, |sum, entry| {
                let neighbour =
                    allocation.is_some_and(|allocation| entry.allocation == Some(allocation.addr));
                let joins = entry.span.overlaps(joined) || (neighbour && entry.span.touches(joined));
                let inside = within.is_none_or(|within| within.contains(entry.span));
                if joins && inside { sum.join(entry.span) } else { sum }
            });
            if grown == joined {
                return joined;
            }
            joined = grown;
        }
    }

    /// The rights of all entries that lie inside a span or around it: who replaces them must have these.
    fn rights_within(&self, span: Span) -> Access {
        self.overlapping(span)
            .iter()
            .filter(|entry| span.contains(entry.span) || entry.span.contains(span))
            .fold(Access::empty(), |rights, entry| rights | entry.access)
    }

    /// Puts an entry in and takes out those that lie inside it or around it.
    fn insert(&mut self, entry: Arc<Entry<R>>) -> Vec<Arc<Entry<R>>> {
        let span = entry.span;
        let replaced = self.remove(span, |other| span.contains(other.span) || other.span.contains(span));
        let at = self.firsts.partition_point(|first| *first < span.first);
        self.entries.insert(at, entry);
        self.firsts.insert(at, span.first);
        replaced
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;
    use std::sync::atomic::AtomicUsize;

    fn request(addr: u64, len_bytes: u64, access: Access) -> Request {
        Request { addr, len_bytes, access, allocation: None }
    }

    fn within(addr: u64, len_bytes: u64, allocation: (u64, u64, u64)) -> Request {
        let (start, len, generation) = allocation;
        let allocation = Some(Allocation { addr: start, len_bytes: len, generation });
        Request { addr, len_bytes, access: Access::READ, allocation }
    }

    /// Registers and returns what was asked for.
    fn get(cache: &Cache<(u64, u64, Access)>, request: &Request) -> Lease<(u64, u64, Access)> {
        cache.acquire(request, |addr, len, access| Ok::<_, Infallible>((addr, len, access))).unwrap()
    }

    #[test]
    fn what_lies_inside_costs_nothing() {
        let cache = Cache::default();
        let whole = get(&cache, &request(1000, 100, Access::LOCAL));
        for (addr, len) in [(1000, 100), (1000, 1), (1099, 1), (1050, 20)] {
            assert!(get(&cache, &request(addr, len, Access::READ)).same(&whole));
        }
        assert!(cache.lookup(&request(1050, 51, Access::READ)).is_none());
        assert!(cache.lookup(&request(999, 2, Access::READ)).is_none());
        assert_eq!(cache.stats(), Stats { hits: 4, misses: 1, entries: 1, bytes: 100 });
    }

    #[test]
    fn overlaps_are_joined_and_old_leases_stay() {
        let cache = Cache::default();
        let first = get(&cache, &request(100, 100, Access::READ));
        let second = get(&cache, &request(150, 100, Access::WRITE));
        assert_eq!(*second, (100, 150, Access::READ | Access::WRITE));
        assert_eq!((first.addr(), first.len_bytes()), (100, 100), "the old lease is what it was");
        assert_eq!(cache.stats().entries, 1);
        // Not known to be one allocation: neighbours stay apart.
        get(&cache, &request(250, 10, Access::READ));
        assert_eq!(cache.stats().entries, 2);
    }

    #[test]
    fn rights_are_upgraded_for_all_of_the_registration() {
        let cache = Cache::default();
        get(&cache, &request(100, 100, Access::READ));
        let upgraded = get(&cache, &request(120, 10, Access::REMOTE_WRITE));
        assert_eq!(*upgraded, (100, 100, Access::READ | Access::REMOTE_WRITE));
        assert!(get(&cache, &request(100, 100, Access::READ)).same(&upgraded));
        assert_eq!(cache.stats().entries, 1);
    }

    #[test]
    fn allocations_are_registered_whole_up_to_a_length() {
        let cache = Cache::new(1000);
        let allocation = (0x1000, 1000, 7);
        assert_eq!(get(&cache, &within(0x1010, 16, allocation)).len_bytes(), 1000);
        assert_eq!(cache.stats().entries, 1);
        // Too long: neighbours of one allocation grow together instead.
        let long = (0x9000, 1001, 8);
        get(&cache, &within(0x9000, 100, long));
        let grown = get(&cache, &within(0x9064, 100, long));
        assert_eq!((grown.addr(), grown.len_bytes()), (0x9000, 200));
        assert_eq!(cache.stats().entries, 2);
        assert_eq!(get(&cache, &within(0x9000 + 900, 101, long)).len_bytes(), 101, "not a neighbour");
    }

    #[test]
    fn the_same_address_mapped_again_is_not_the_same_memory() {
        let cache = Cache::default();
        let old = get(&cache, &within(0x1000, 10, (0x1000, 100, 1)));
        let new = get(&cache, &within(0x1000, 10, (0x1000, 100, 2)));
        assert!(!new.same(&old));
        assert!(get(&cache, &within(0x1000, 10, (0x1000, 100, 2))).same(&new));
        assert_eq!(cache.stats().entries, 1, "the old generation left the map");
        // A smaller allocation of a later generation over a part of it drops it just as well.
        get(&cache, &within(0x1020, 4, (0x1020, 8, 3)));
        assert!(cache.lookup(&within(0x1000, 10, (0x1000, 100, 2))).is_none());
        // Without generations it takes a word.
        let old = get(&cache, &request(0x5000, 10, Access::READ));
        assert_eq!(cache.invalidate(0x5009, 1), 1);
        assert!(!get(&cache, &request(0x5000, 10, Access::READ)).same(&old));
    }

    #[test]
    fn a_refused_union_falls_back_to_the_request_and_a_refused_request_changes_nothing() {
        #[derive(Debug, thiserror::Error)]
        #[error("no room")]
        struct NoRoom;
        let cache = Cache::default();
        let first = get(&cache, &request(100, 100, Access::READ));
        let mut asked = Vec::new();
        let second = cache.acquire(&request(150, 100, Access::WRITE), |addr, len, access| {
            asked.push((addr, len));
            if len > 100 { Err(NoRoom) } else { Ok((addr, len, access)) }
        });
        assert_eq!(*second.unwrap(), (150, 100, Access::WRITE));
        assert_eq!(asked, [(100, 150), (150, 100)]);
        assert!(get(&cache, &request(100, 100, Access::READ)).same(&first));
        let before = cache.stats().entries;
        let refused = cache.acquire(&request(0, 50, Access::READ), |_, _, _| Err(NoRoom));
        assert!(matches!(refused, Err(AcquireError::Register(NoRoom))));
        assert_eq!(cache.stats().entries, before);
    }

    #[test]
    fn eviction_spares_leases() {
        let cache = Cache::default();
        let held = get(&cache, &request(100, 10, Access::READ));
        get(&cache, &request(200, 10, Access::READ));
        assert_eq!(cache.evict(0, 1000), 1);
        assert_eq!(cache.stats().entries, 1);
        assert_eq!(cache.make_room(u64::MAX), 0);
        drop(held);
        assert_eq!(cache.make_room(1), 10);
        assert_eq!(cache.stats().entries, 0);
    }

    #[test]
    fn sweeps_let_go_of_what_is_not_used() {
        let cache = Cache::default();
        get(&cache, &request(100, 10, Access::READ));
        get(&cache, &request(200, 10, Access::READ));
        let lease = get(&cache, &request(300, 10, Access::READ));
        for _ in 0..3 {
            assert_eq!(cache.sweep(2), 0);
            get(&cache, &request(100, 10, Access::READ));
        }
        assert_eq!(cache.sweep(2), 1, "200 has not been used for long");
        assert!(cache.lookup(&request(100, 10, Access::READ)).is_some());
        drop(lease);
        assert_eq!(cache.sweep(0), 2);
    }

    #[test]
    fn what_is_invalidated_while_it_is_being_registered_does_not_stay() {
        let cache: Cache<()> = Cache::default();
        let lease = cache.acquire(&request(100, 10, Access::READ), |_, _, _| {
            cache.invalidate(105, 1);
            Ok::<_, Infallible>(())
        });
        assert_eq!(lease.unwrap().len_bytes(), 10);
        assert!(cache.lookup(&request(100, 10, Access::READ)).is_none());
    }

    #[test]
    fn one_registration_for_threads_that_want_the_same() {
        let cache: Cache<()> = Cache::default();
        let calls = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let register = |_, _, _| {
                        calls.fetch_add(1, Ordering::SeqCst);
                        std::thread::yield_now();
                        Ok::<_, Infallible>(())
                    };
                    cache.acquire(&request(100, 10, Access::READ), register).unwrap();
                });
            }
        });
        assert_eq!(calls.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn nonsense_is_refused() {
        let cache: Cache<()> = Cache::default();
        let register = |_, _, _| Ok::<_, Infallible>(());
        for bad in [
            request(0, 0, Access::READ),
            request(u64::MAX, 2, Access::READ),
            within(0x1000, 10, (0x1000, 9, 1)),
            within(0x1000, 10, (u64::MAX, 9, 1)),
        ] {
            assert!(matches!(cache.acquire(&bad, register), Err(AcquireError::Request(_))));
        }
        assert!(cache.acquire(&request(u64::MAX - 9, 10, Access::READ), register).is_ok());
        assert!(cache.acquire(&request(0, u64::MAX, Access::READ), register).is_ok());
    }
}
