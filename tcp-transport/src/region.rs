//! Registered memory: keys, rights, bounds, revocation.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::Instant;

use crate::error::{Error, Refusal};
use crate::memory::{DeviceCopy, Memory};
use crate::sync::{lock, read, write};

/// What peers may do with a region. The process that registered it may always use it as the local side.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Access(u8);

impl Access {
    /// Nothing: the region serves as the local side of this process's own requests.
    pub const LOCAL: Self = Self(0);
    /// Peers that know the key may read.
    pub const READ: Self = Self(1);
    /// Peers that know the key may write.
    pub const WRITE: Self = Self(2);
    /// Peers that know the key may read and write.
    pub const READ_WRITE: Self = Self(3);

    /// Whether every right of `other` is granted.
    pub const fn allows(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// The rights as they stand on the wire: bit 0 read, bit 1 write.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Rights from the wire; `None` if an unknown bit is set.
    pub const fn from_bits(bits: u8) -> Option<Self> {
        if bits <= 3 { Some(Self(bits)) } else { None }
    }
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(["LOCAL", "READ", "WRITE", "READ_WRITE"][usize::from(self.0 & 3)])
    }
}

/// What a region is called at the wire: 128 random bits of the system's generator.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegionKey(pub(crate) [u8; 16]);

impl fmt::Debug for RegionKey {
    /// Keys are capabilities, so logs get the first two bytes only.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RegionKey({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// All that a peer needs to address a region. Whoever has it may use the region, so it should travel over an
/// authenticated path only, such as [`Peer::call`](crate::Peer::call).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RegionDescriptor {
    /// The capability.
    pub key: RegionKey,
    /// First address, as the owner sees it.
    pub addr: u64,
    /// Length in bytes.
    pub len: u64,
    /// What the key allows.
    pub access: Access,
}

impl RegionDescriptor {
    /// Length of [`to_bytes`](Self::to_bytes).
    pub const WIRE_LEN: usize = 40;

    /// Key (16 bytes), address (8), length (8), rights (1), seven zeroes; little-endian.
    pub fn to_bytes(&self) -> [u8; Self::WIRE_LEN] {
        let mut out = [0; Self::WIRE_LEN];
        out[..16].copy_from_slice(&self.key.0);
        out[16..24].copy_from_slice(&self.addr.to_le_bytes());
        out[24..32].copy_from_slice(&self.len.to_le_bytes());
        out[32] = self.access.bits();
        out
    }

    /// Reads what [`to_bytes`](Self::to_bytes) wrote.
    ///
    /// # Errors
    /// [`Error::Request`] if the bytes are not a descriptor: wrong length, unknown rights, a range that is empty or wraps
    /// around.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, Error> {
        let bad = |why: &str| Error::Request(format!("region descriptor: {why}"));
        let bytes: &[u8; Self::WIRE_LEN] = bytes.try_into().map_err(|_| bad("it is not 40 bytes long"))?;
        let word = |at: usize| {
            let mut w = [0; 8];
            w.copy_from_slice(&bytes[at..at + 8]);
            u64::from_le_bytes(w)
        };
        let mut key = [0; 16];
        key.copy_from_slice(&bytes[..16]);
        let access = Access::from_bits(bytes[32]).ok_or_else(|| bad("unknown rights"))?;
        if bytes[33..] != [0; 7] {
            return Err(bad("reserved bytes are not zero"));
        }
        let (addr, len) = (word(16), word(24));
        if len == 0 || addr.checked_add(len).is_none() {
            return Err(bad("the range is empty or wraps around"));
        }
        Ok(Self { key: RegionKey(key), addr, len, access })
    }
}

/// Registered memory. Clones are the same region; it ends by [`unregister`](Self::unregister), by
/// [`revoke`](Self::revoke), or when the last clone is dropped and the last request on it has ended.
#[derive(Clone)]
pub struct Region {
    pub(crate) inner: Arc<RegionInner>,
    // Last clone dropped: peers lose access. Requests in flight hold `inner` alone.
    guard: Arc<Registration>,
}

impl Region {
    /// First address.
    pub fn addr(&self) -> u64 {
        self.inner.addr
    }

    /// Length in bytes; never zero.
    #[allow(clippy::len_without_is_empty)] // an empty region cannot be registered
    pub fn len(&self) -> u64 {
        self.inner.len
    }

    /// What a peer needs to address this region.
    pub fn descriptor(&self) -> RegionDescriptor {
        let RegionInner { key, addr, len, access, .. } = *self.inner;
        RegionDescriptor { key, addr, len, access }
    }

    /// The memory that was registered.
    pub fn memory(&self) -> &Arc<dyn Memory> {
        &self.inner.memory
    }

    /// Takes peers' access away. A barrier: when it returns, no peer's request reads or writes the memory any more, over
    /// whichever path; running ones are refused with [`Refusal::Revoked`]. Waits for copies of at most a few MiB that are
    /// being made at this moment. Own requests with this region as the local side go on.
    pub fn revoke(&self) {
        self.guard.table.remove(&self.inner);
    }

    /// Revokes, then waits until own requests with this region as local side have ended too, and hands the memory
    /// back.
    ///
    /// # Errors
    /// [`Error::Timeout`] if own requests are still running at the deadline; the region is revoked all the same, and
    /// its memory is freed when they have ended.
    pub fn unregister(self, deadline: Instant) -> Result<Arc<dyn Memory>, Error> {
        self.revoke();
        self.inner.wait_local_idle(deadline)?;
        self.inner.end_copies();
        Ok(Arc::clone(&self.inner.memory))
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Ends a registration when the last [`Region`] is dropped.
struct Registration {
    table: Arc<RegionTable>,
    region: Arc<RegionInner>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.table.remove(&self.region);
    }
}

/// The part of a region that requests in flight hold.
pub(crate) struct RegionInner {
    pub(crate) key: RegionKey,
    pub(crate) addr: u64,
    pub(crate) len: u64,
    pub(crate) access: Access,
    pub(crate) memory: Arc<dyn Memory>,
    on_device: bool,
    /// Bit 63: revoked. Below: copies being made for peers right now.
    remote: AtomicU64,
    /// Own slices that use the region as their local side.
    local: AtomicU64,
    idle: (Mutex<()>, Condvar),
}

impl fmt::Debug for RegionInner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:#x}+{:#x} {:?} {:?})", self.addr, self.len, self.access, self.key)
    }
}

const REVOKED: u64 = 1 << 63;

impl RegionInner {
    /// How to reach the memory if the CPU cannot address it.
    pub(crate) fn device(&self) -> Option<&dyn DeviceCopy> {
        if self.on_device { self.memory.device() } else { None }
    }

    /// Checks that `addr..addr + len` lies inside and returns its offset.
    pub(crate) fn offset(&self, addr: u64, len: u64) -> Option<u64> {
        let offset = addr.checked_sub(self.addr)?;
        let end = offset.checked_add(len)?;
        (end <= self.len).then_some(offset)
    }

    /// Runs `copy` unless the region has been revoked. [`revoke`](Self::revoke) waits for it, so it must not block.
    pub(crate) fn enter<T>(&self, copy: impl FnOnce() -> T) -> Result<T, Refusal> {
        let before = self.remote.fetch_add(1, Ordering::Acquire);
        if before & REVOKED != 0 {
            self.leave();
            return Err(Refusal::Revoked);
        }
        let result = copy();
        self.leave();
        Ok(result)
    }

    fn leave(&self) {
        // The last one out of a revoked region wakes the revoker.
        if self.remote.fetch_sub(1, Ordering::Release) == REVOKED | 1 {
            drop(lock(&self.idle.0));
            self.idle.1.notify_all();
        }
    }

    pub(crate) fn is_revoked(&self) -> bool {
        self.remote.load(Ordering::Acquire) & REVOKED != 0
    }

    fn revoke(&self) {
        self.remote.fetch_or(REVOKED, Ordering::SeqCst);
        let mut guard = lock(&self.idle.0);
        while self.remote.load(Ordering::Acquire) != REVOKED {
            guard = self.idle.1.wait(guard).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    /// Waits for what a device may still be copying ahead of requests that have ended.
    fn end_copies(&self) {
        if let Some(device) = self.device()
            && let Err(text) = device.flush()
        {
            tracing::warn!("waiting for the last copies of a device region: {text}");
        }
    }

    pub(crate) fn local_begin(&self) {
        self.local.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn local_end(&self) {
        // One order with `unregister`, which sets the flag and then looks at the count.
        if self.local.fetch_sub(1, Ordering::SeqCst) == 1 && self.remote.load(Ordering::SeqCst) & REVOKED != 0
        {
            drop(lock(&self.idle.0));
            self.idle.1.notify_all();
        }
    }

    fn wait_local_idle(&self, deadline: Instant) -> Result<(), Error> {
        let mut guard = lock(&self.idle.0);
        while self.local.load(Ordering::SeqCst) != 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Request(format!(
                    "{} own requests still use the region; wait for their batches first",
                    self.local.load(Ordering::Relaxed)
                )));
            }
            guard =
                self.idle.1.wait_timeout(guard, left).unwrap_or_else(std::sync::PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// Keys are random already: their first bytes are as good as any hash. A peer cannot choose a key that is registered.
#[derive(Default)]
struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn write(&mut self, bytes: &[u8]) {
        if let Some(word) = bytes.first_chunk::<8>() {
            self.0 ^= u64::from_le_bytes(*word);
        }
    }
    fn write_usize(&mut self, _: usize) {} // the length of the key, always 16
    fn finish(&self) -> u64 {
        self.0
    }
}

/// The regions that peers may address, by key.
#[derive(Default)]
pub(crate) struct RegionTable {
    by_key: RwLock<HashMap<RegionKey, Arc<RegionInner>, BuildHasherDefault<KeyHasher>>>,
}

impl RegionTable {
    pub(crate) fn register(
        self: &Arc<Self>,
        memory: Arc<dyn Memory>,
        access: Access,
    ) -> Result<Region, Error> {
        let mut key = [0; 16];
        crate::sync::random(&mut key)?;
        let (addr, len) = (memory.address(), memory.len() as u64);
        if len == 0 || addr.checked_add(len).is_none() {
            return Err(Error::Request(format!("memory {addr:#x}+{len:#x} cannot be registered")));
        }
        let inner = Arc::new(RegionInner {
            key: RegionKey(key),
            addr,
            len,
            access,
            on_device: memory.device().is_some(),
            memory,
            remote: AtomicU64::new(0),
            local: AtomicU64::new(0),
            idle: (Mutex::new(()), Condvar::new()),
        });
        write(&self.by_key).insert(inner.key, Arc::clone(&inner));
        let guard = Arc::new(Registration { table: Arc::clone(self), region: Arc::clone(&inner) });
        Ok(Region { inner, guard })
    }

    /// The region of a key, if it grants the right.
    pub(crate) fn find(&self, key: RegionKey, wanted: Access) -> Result<Arc<RegionInner>, Refusal> {
        let table = read(&self.by_key);
        let region = table.get(&key).ok_or(Refusal::UnknownKey)?;
        if !region.access.allows(wanted) {
            return Err(Refusal::AccessDenied);
        }
        Ok(Arc::clone(region))
    }

    /// The region that a range lies in, if it grants the right, and the range's offset in it; for protocols without keys.
    #[cfg(feature = "mooncake")]
    pub(crate) fn find_address(
        &self,
        addr: u64,
        len: u64,
        wanted: Access,
    ) -> Option<(Arc<RegionInner>, u64)> {
        let table = read(&self.by_key);
        table.values().filter(|r| r.access.allows(wanted) && r.device().is_none()).find_map(|r| {
            let offset = r.offset(addr, len)?;
            Some((Arc::clone(r), offset))
        })
    }

    fn remove(&self, region: &Arc<RegionInner>) {
        write(&self.by_key).remove(&region.key);
        region.revoke();
        region.end_copies();
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::memory::OwnedMemory;

    fn region(len: usize, access: Access) -> (Arc<RegionTable>, Region) {
        let table = Arc::new(RegionTable::default());
        let region = table.register(OwnedMemory::new(len).unwrap(), access).unwrap();
        (table, region)
    }

    proptest! {
        /// Inside is what plain arithmetic without overflow says is inside, at the edges above all.
        #[test]
        fn a_range_is_inside_or_it_is_not(
            region_len in 1_usize..10_000,
            from_start in prop_oneof![Just(0_i128), -2_i128..3, -20_000_i128..20_000],
            over_end in prop_oneof![Just(0_i128), -2_i128..3, -20_000_i128..20_000, Just(i128::from(u64::MAX))],
        ) {
            let (_table, region) = region(region_len, Access::READ_WRITE);
            let (start, end) = (i128::from(region.addr()), i128::from(region.addr()) + region_len as i128);
            let (Ok(at), Ok(len)) = (u64::try_from(start + from_start), u64::try_from(end + over_end - start - from_start))
            else { return Ok(()) };
            let inside = from_start >= 0 && over_end <= 0;
            prop_assert_eq!(region.inner.offset(at, len), inside.then_some(from_start as u64));
        }
    }

    /// Each registration has a key of its own, of which an observer of the others can say nothing, and the key alone opens it.
    #[test]
    fn keys_are_random_and_open_one_region() {
        let table = Arc::new(RegionTable::default());
        let memory = OwnedMemory::new(64).unwrap();
        let regions: Vec<_> =
            (0..64).map(|_| table.register(memory.clone(), Access::READ).unwrap()).collect();
        for byte in 0..16 {
            let mut seen: Vec<u8> = regions.iter().map(|r| r.inner.key.0[byte]).collect();
            seen.sort_unstable();
            seen.dedup();
            // Of 64 random bytes fewer than 30 are different ones less than once in 10^15 times.
            assert!(seen.len() >= 30, "byte {byte} of the keys takes {} values only", seen.len());
        }
        for region in &regions {
            assert!(Arc::ptr_eq(&table.find(region.inner.key, Access::READ).unwrap(), &region.inner));
            for bit in [0, 64, 127] {
                let mut wrong = region.inner.key;
                wrong.0[bit / 8] ^= 1 << (bit % 8);
                assert_eq!(table.find(wrong, Access::READ).unwrap_err(), Refusal::UnknownKey);
            }
            assert_eq!(table.find(region.inner.key, Access::WRITE).unwrap_err(), Refusal::AccessDenied);
        }
    }

    /// Revoking returns when the copy that is being made has ended, and no other one begins.
    #[test]
    fn revoking_waits_for_the_copy_that_is_being_made() {
        let (table, region) = region(64, Access::READ_WRITE);
        let (began, ended) = (std::sync::Barrier::new(2), std::sync::atomic::AtomicBool::new(false));
        let inner = Arc::clone(&region.inner);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                inner.enter(|| {
                    began.wait();
                    while !inner.is_revoked() {
                        std::thread::yield_now();
                    }
                    // The revoker has begun: it has to be waiting for this.
                    (0..1000).for_each(|_| std::thread::yield_now());
                    ended.store(true, Ordering::SeqCst);
                })
            });
            began.wait();
            region.revoke();
            assert!(ended.load(Ordering::SeqCst), "revoked while a copy was being made");
        });
        assert_eq!(inner.enter(|| ()), Err(Refusal::Revoked));
        assert_eq!(table.find(inner.key, Access::READ).unwrap_err(), Refusal::UnknownKey);
    }
}
