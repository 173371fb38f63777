//! Memory and its registration: one region, known to every path that the engine has.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tcp_transport::OwnedMemory;
pub use tcp_transport::{Access, Memory};

use crate::error::Error;
use crate::request::Shape;

/// Page-aligned host memory of the engine's own. Its bytes are copied in and out and never lent, because the network may
/// change them at any time. Clones are the same memory.
///
/// ```
/// let memory = engine::HostMemory::new(1 << 20)?;
/// memory.write(4096, b"hello")?;
/// let mut bytes = [0; 5];
/// memory.read(4096, &mut bytes)?;
/// assert_eq!(&bytes, b"hello");
/// # Ok::<(), engine::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct HostMemory(Arc<OwnedMemory>);

impl HostMemory {
    /// Maps `len` zeroed bytes.
    ///
    /// # Errors
    /// [`Error::Tcp`] when `len` is zero or the kernel refuses.
    pub fn new(len: usize) -> Result<Self, Error> {
        Ok(Self(OwnedMemory::new(len)?))
    }

    /// Maps `len` zeroed bytes on huge pages, which cost a NIC far fewer page table entries.
    ///
    /// # Errors
    /// [`Error::Tcp`] when the system has not enough of them reserved.
    pub fn hugepages(len: usize) -> Result<Self, Error> {
        Ok(Self(OwnedMemory::hugepages(len)?))
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty)] // never empty
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Copies `bytes` to `offset`.
    ///
    /// # Errors
    /// [`Error::Tcp`] if they do not fit.
    pub fn write(&self, offset: usize, bytes: &[u8]) -> Result<(), Error> {
        Ok(self.0.write(offset, bytes)?)
    }

    /// Fills `bytes` from `offset`.
    ///
    /// # Errors
    /// [`Error::Tcp`] if the range is not inside the memory.
    pub fn read(&self, offset: usize, bytes: &mut [u8]) -> Result<(), Error> {
        Ok(self.0.read(offset, bytes)?)
    }
}

impl From<HostMemory> for Arc<dyn Memory> {
    fn from(memory: HostMemory) -> Self {
        memory.0
    }
}

/// Registered memory. Clones are the same region. The engine itself keeps one until [`Engine::unregister`], so that peers
/// can use the memory while the program does something else.
///
/// [`Engine::unregister`]: crate::Engine::unregister
#[derive(Clone)]
pub struct Region(Arc<Registered>);

struct Registered {
    label: Arc<str>,
    tcp: tcp_transport::Region,
    #[cfg(feature = "efa")]
    fabric: Option<efa_transport::Region>,
}

impl Region {
    pub(crate) fn new(
        label: &str,
        tcp: tcp_transport::Region,
        #[cfg(feature = "efa")] fabric: Option<efa_transport::Region>,
    ) -> Self {
        Self(Arc::new(Registered {
            label: label.into(),
            tcp,
            #[cfg(feature = "efa")]
            fabric,
        }))
    }

    /// First address: what peers and [`Shape`]s name.
    pub fn addr(&self) -> u64 {
        self.0.tcp.addr()
    }

    /// Length in bytes; never zero.
    #[allow(clippy::len_without_is_empty)] // an empty region cannot be registered
    pub fn len(&self) -> u64 {
        self.0.tcp.len()
    }

    /// What the owner called it, for peers that look for a buffer by name.
    pub fn label(&self) -> &str {
        &self.0.label
    }

    /// What peers may do with it.
    pub fn access(&self) -> Access {
        self.0.tcp.descriptor().access
    }

    /// The range of `len` bytes at `offset` of this region, as an absolute shape. Bounds are checked when a request is made
    /// of it.
    pub fn range(&self, offset: u64, len: u64) -> Shape<'static> {
        Shape::contiguous(self.addr().wrapping_add(offset), len)
    }

    /// Whether the libfabric path has it, too.
    pub(crate) fn on_fabric(&self) -> bool {
        #[cfg(feature = "efa")]
        return self.0.fabric.is_some();
        #[cfg(not(feature = "efa"))]
        false
    }

    pub(crate) fn tcp(&self) -> &tcp_transport::Region {
        &self.0.tcp
    }

    #[cfg(feature = "efa")]
    pub(crate) fn fabric(&self) -> Option<&efa_transport::Region> {
        self.0.fabric.as_ref()
    }

    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Takes peers' access away over TCP: a barrier. What NICs may still do ends in [`close`](Self::close).
    pub(crate) fn revoke(&self) {
        self.0.tcp.revoke();
    }

    /// Takes it off both paths, and waits for own requests that use it. Both are tried, whatever comes of the first.
    pub(crate) fn close(self, wait: Duration) -> Result<(), Error> {
        let deadline = Instant::now() + wait;
        self.revoke();
        #[cfg(feature = "efa")]
        let fabric = self.0.fabric.as_ref().map_or(Ok(()), |fabric| fabric.unregister(deadline));
        let in_use = Error::InUse { addr: self.addr(), waited: wait };
        let tcp = self.0.tcp.clone().unregister(deadline).map(drop);
        #[cfg(feature = "efa")]
        fabric.map_err(|error| match error {
            efa_transport::Error::StillInUse { .. } => in_use.clone(),
            other => other.into(),
        })?;
        // The only thing that TCP can have to say is that requests are running.
        tcp.map_err(|_| in_use)
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Region({:?} {:#x}+{:#x})", self.label(), self.addr(), self.len())
    }
}
