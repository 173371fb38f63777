//! Addresses of peers, and the vector that they are kept in.

use core::ffi::c_void;
use core::fmt;
use core::ops::Deref;
use core::ptr::{self, NonNull};
use std::collections::HashMap;
use std::sync::Arc;

use fabric_sys as sys;
use parking_lot::Mutex;

use crate::Error;
use crate::completion::SourceAddress;
use crate::domain::Domain;
use crate::info::Info;
use crate::object::close;
use crate::operations::HoldId;

/// Longest address that is handed to a provider. The longest known are strings of 64 bytes.
const MAX_ADDRESS_BYTES: usize = 512;

/// The address of an endpoint in the provider's own form: to be carried to a peer by whatever means and inserted there.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RawAddress(Box<[u8]>);

impl RawAddress {
    /// From the bytes that [`Endpoint::name`](crate::Endpoint::name) gave on the other side.
    pub fn new(bytes: impl Into<Box<[u8]>>) -> RawAddress {
        RawAddress(bytes.into())
    }
}

impl Deref for RawAddress {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.0
    }
}

impl AsRef<[u8]> for RawAddress {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for RawAddress {
    fn from(bytes: Vec<u8>) -> RawAddress {
        RawAddress(bytes.into())
    }
}

impl fmt::Debug for RawAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RawAddress(")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        f.write_str(")")
    }
}

/// How to open an address vector.
#[derive(Debug, Clone, Copy)]
pub struct AddressVectorOptions {
    /// Addresses expected. A hint: most providers grow. EFA keeps what it needs for this many from the start.
    pub count: usize,
}

impl Default for AddressVectorOptions {
    /// 1024 addresses.
    fn default() -> Self {
        AddressVectorOptions { count: 1024 }
    }
}

/// An open address vector. Cheap to clone; closed when the last handle, address and endpoint bound to it are gone.
#[derive(Clone)]
pub struct AddressVector(pub(crate) Arc<VectorInner>);

pub(crate) struct VectorInner {
    raw: NonNull<sys::fid_av>,
    entries: Mutex<HashMap<Box<[u8]>, Entry>>,
    /// Whether entries nobody uses are removed before the vector is closed; otherwise they are found again.
    removes: bool,
    // Last: closed after the vector.
    domain: Domain,
}

/// An address that the provider knows. Some providers count insertions of the same bytes and some do not, so we do: one
/// insertion, one removal.
struct Entry {
    fi_addr: sys::fi_addr_t,
    users: usize,
    /// Whether it is removed with its last user.
    goes: bool,
}

// SAFETY: the vector belongs to a thread-safe domain; insertion and removal are serialised by `entries` besides.
unsafe impl Send for VectorInner {}
// SAFETY: as above.
unsafe impl Sync for VectorInner {}

/// A peer, as operations name it. Cheap to clone.
///
/// The entry is removed from the vector when the last clone is gone and the last operation to it has ended; on the fabric `efa` and on
/// `shm` it stays, and is found again, unless it is [discarded](Address::discard) or there is no room for another one.
#[derive(Clone)]
pub struct Address(Arc<AddressInner>);

struct AddressInner {
    id: HoldId,
    fi_addr: sys::fi_addr_t,
    bytes: Box<[u8]>,
    vector: AddressVector,
}

impl AddressVector {
    /// Opens an address vector.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said.
    pub fn open(domain: &Domain, options: AddressVectorOptions) -> Result<AddressVector, Error> {
        let mut status = 0;
        // Tables where the provider has them; otherwise whatever it has. Some refuse a count that is above what they can
        // have at all (shm: 256), so a wish that is not granted is withdrawn.
        let map = (domain.info().av_type() == sys::FI_AV_MAP).then_some(sys::FI_AV_MAP);
        let kinds = map.into_iter().chain([sys::FI_AV_TABLE, sys::FI_AV_UNSPEC]);
        for (kind, count) in kinds.flat_map(|kind| [(kind, options.count), (kind, 0)]) {
            let mut attributes = sys::fi_av_attr {
                type_: kind,
                rx_ctx_bits: 0,
                count,
                ep_per_node: 0,
                name: ptr::null(),
                map_addr: ptr::null_mut(),
                flags: 0,
            };
            let mut raw = ptr::null_mut();
            // SAFETY: the domain is open and the attributes are valid for the call.
            status = unsafe { sys::fi_av_open(domain.raw(), &mut attributes, &mut raw, ptr::null_mut()) };
            match NonNull::new(raw) {
                Some(raw) if status == 0 => {
                    return Ok(AddressVector(Arc::new(VectorInner {
                        raw,
                        entries: Mutex::default(),
                        removes: !keeps_entries(domain.info()),
                        domain: domain.clone(),
                    })));
                }
                None if status == 0 => {
                    return Err(Error::Misbehaviour {
                        call: "fi_av_open",
                        what: "success without an object".into(),
                    });
                }
                _ => {}
            }
        }
        Err(Error::call("fi_av_open", domain.info().place(), status))
    }

    /// Makes a peer's address usable. The same bytes twice give the same entry. Does not talk to the peer.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] if the provider does not take the bytes for an address, or has no room for more.
    pub fn insert(&self, address: &[u8]) -> Result<Address, Error> {
        if address.is_empty() || address.len() > MAX_ADDRESS_BYTES {
            let what = format!("an address of {} bytes", address.len());
            return Err(Error::call("fi_av_insert", what, -sys::FI_EINVAL));
        }
        let mut entries = self.0.entries.lock();
        let fi_addr = match entries.get_mut(address) {
            Some(entry) => {
                entry.users += 1;
                entry.fi_addr
            }
            None => {
                let fi_addr = match self.insert_raw(address) {
                    Err(_) if self.0.make_room(&mut entries) => self.insert_raw(address)?,
                    outcome => outcome?,
                };
                entries.insert(address.into(), Entry { fi_addr, users: 1, goes: self.0.removes });
                fi_addr
            }
        };
        drop(entries);
        Ok(Address(Arc::new(AddressInner {
            id: HoldId::new(),
            fi_addr,
            bytes: address.into(),
            vector: self.clone(),
        })))
    }

    /// Inserts several addresses. Each stands for itself: one that is refused does not spoil the others.
    pub fn insert_batch<A: AsRef<[u8]>>(&self, addresses: &[A]) -> Vec<Result<Address, Error>> {
        addresses.iter().map(|address| self.insert(address.as_ref())).collect()
    }

    fn insert_raw(&self, address: &[u8]) -> Result<sys::fi_addr_t, Error> {
        // The call is not told how long the address is. Zeroes behind it end strings, and make addresses that are too short
        // wrong rather than dangerous.
        #[repr(align(16))]
        struct Padded([u8; MAX_ADDRESS_BYTES + 16]);
        let mut padded = Padded([0; MAX_ADDRESS_BYTES + 16]);
        padded.0[..address.len()].copy_from_slice(address);
        let mut fi_addr = sys::FI_ADDR_NOTAVAIL;
        // SAFETY: the vector is open, the address longer than any that a provider reads.
        let count = unsafe {
            sys::fi_av_insert(
                self.0.raw.as_ptr(),
                padded.0.as_ptr().cast(),
                1,
                &mut fi_addr,
                0,
                ptr::null_mut(),
            )
        };
        if count == 1 && fi_addr != sys::FI_ADDR_NOTAVAIL {
            return Ok(fi_addr);
        }
        // Neither inserted nor an error: the provider does not take it for an address.
        let status = if count < 0 { count } else { -sys::FI_EINVAL };
        Err(Error::call("fi_av_insert", self.0.domain.info().place(), status))
    }
}

/// Whether entries stay in a vector although nobody uses them.
fn keeps_entries(info: &Info) -> bool {
    match (info.provider_name(), info.fabric_name()) {
        // 2.5 follows a null pointer when a peer that has been removed still sends. There are few peers on one host.
        ("shm", _) => true,
        // An endpoint makes its handshake with a peer once. Whoever removes it and inserts it again has forgotten that, asks for
        // another one, and waits for ever: operations are neither refused nor do they end.
        ("efa", "efa") => true,
        _ => false,
    }
}

impl VectorInner {
    /// Whether an entry can be removed while the vector is open: see [`keeps_entries`].
    fn can_remove(&self) -> bool {
        self.domain.info().provider_name() != "shm"
    }

    fn remove_raw(&self, mut fi_addr: sys::fi_addr_t) {
        // SAFETY: the vector is open and no operation uses the address. If it cannot be removed it stays until the vector is
        // closed, which does no harm.
        unsafe { sys::fi_av_remove(self.raw.as_ptr(), &mut fi_addr, 1, 0) };
    }

    /// Removes the entries that have stayed and that nobody uses; whether there were any. A card has room for so many hosts.
    fn make_room(&self, entries: &mut HashMap<Box<[u8]>, Entry>) -> bool {
        let before = entries.len();
        if self.can_remove() {
            entries.retain(|_, entry| {
                let used = entry.users > 0;
                if !used {
                    self.remove_raw(entry.fi_addr);
                }
                used
            });
        }
        entries.len() < before
    }

    /// One user of an address less.
    fn release(&self, bytes: &[u8]) {
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(bytes) else { return };
        entry.users -= 1;
        if entry.users == 0 && entry.goes {
            let fi_addr = entry.fi_addr;
            entries.remove(bytes);
            self.remove_raw(fi_addr);
        }
    }
}

impl Address {
    pub(crate) fn id(&self) -> HoldId {
        self.0.id
    }

    #[inline]
    pub(crate) fn raw(&self) -> sys::fi_addr_t {
        self.0.fi_addr
    }

    #[inline]
    pub(crate) fn is_in(&self, vector: &AddressVector) -> bool {
        Arc::ptr_eq(&self.0.vector.0, &vector.0)
    }

    /// What completions of messages from this peer call it.
    pub fn source(&self) -> SourceAddress {
        SourceAddress(self.0.fi_addr)
    }

    /// Lets go of it for good: with its last user the entry is removed also where entries stay otherwise, and the provider begins
    /// anew with that peer when it is inserted again. For a peer that the provider has not come to terms with.
    pub fn discard(self) {
        let mut entries = self.0.vector.0.entries.lock();
        if let Some(entry) = entries.get_mut(self.bytes()) {
            entry.goes = self.0.vector.0.can_remove();
        }
    }

    /// The bytes that were inserted.
    pub fn bytes(&self) -> &[u8] {
        &self.0.bytes
    }

    /// The address as the provider has it.
    ///
    /// # Errors
    ///
    /// [`Error::Call`] with what the provider said.
    pub fn lookup(&self) -> Result<RawAddress, Error> {
        let vector = &self.0.vector.0;
        read_address("fi_av_lookup", |buffer, len| {
            // SAFETY: the vector is open, the entry in it, the buffer as long as said.
            unsafe { sys::fi_av_lookup(vector.raw.as_ptr(), self.0.fi_addr, buffer, len) }
        })
    }
}

impl Drop for AddressInner {
    fn drop(&mut self) {
        let vector = self.vector.0.clone();
        let bytes = core::mem::take(&mut self.bytes);
        // The vector is kept until the last operation has ended; endpoints are closed before their domain goes.
        self.vector.0.domain.0.bury_when_free(self.id, Box::new(move || vector.release(&bytes)));
    }
}

impl Drop for VectorInner {
    fn drop(&mut self) {
        // SAFETY: endpoints and addresses hold the vector, so none is left.
        let _ = unsafe { close(self.raw.as_ptr().cast()) };
    }
}

impl AddressVector {
    pub(crate) fn raw(&self) -> *mut sys::fid_av {
        self.0.raw.as_ptr()
    }

    pub(crate) fn domain(&self) -> &Domain {
        &self.0.domain
    }
}

impl fmt::Debug for AddressVector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AddressVector").field("entries", &self.0.entries.lock().len()).finish_non_exhaustive()
    }
}

impl fmt::Debug for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Address({})", self.0.fi_addr)
    }
}

/// Calls something that writes an address and its length, with as much room as it wants.
pub(crate) fn read_address(
    call: &'static str,
    mut read: impl FnMut(*mut c_void, *mut usize) -> core::ffi::c_int,
) -> Result<RawAddress, Error> {
    let mut buffer = vec![0; MAX_ADDRESS_BYTES];
    for _ in 0..2 {
        let mut len = buffer.len();
        match read(buffer.as_mut_ptr().cast(), &mut len) {
            // Lookups may say that the address is longer than the buffer, without an error.
            0 if len <= buffer.len() => {
                buffer.truncate(len);
                return Ok(RawAddress(buffer.into()));
            }
            status if status == 0 || status == -sys::FI_ETOOSMALL => {
                buffer.resize(len.clamp(MAX_ADDRESS_BYTES, 1 << 16), 0);
            }
            status => return Err(Error::call(call, "an address", status)),
        }
    }
    Err(Error::Misbehaviour { call, what: "an address that no buffer is long enough for".into() })
}
