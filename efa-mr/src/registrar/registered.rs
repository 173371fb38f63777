//! Registered buffers, and closing them: at once, or as operations in flight let go of them.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{CloseError, MrDomain, Timing};
use crate::plan::{Chunk, Plan};

/// Registered buffers. Dropping it closes every MR as soon as nothing uses it any more.
pub struct Registered<D: MrDomain> {
    pub(super) plan: Plan,
    /// In the order of the plan's chunks, and of the NICs within a chunk.
    pub(super) regions: Vec<RegionOn<D>>,
    /// Where the regions of each chunk begin in `regions`; one more at the end.
    pub(super) starts: Vec<usize>,
    pub(super) timing: Timing,
}

/// An MR and where it was made.
pub(super) struct RegionOn<D: MrDomain> {
    pub(super) nic: usize,
    pub(super) domain: Arc<D>,
    pub(super) region: D::Region,
}

impl<D: MrDomain> fmt::Debug for Registered<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registered")
            .field("chunks", &self.plan.chunks.len())
            .field("mrs", &self.regions.len())
            .finish_non_exhaustive()
    }
}

/// What is left when buffers could not be unregistered completely.
pub struct StillInUse<D: MrDomain> {
    pub(super) rest: Vec<RegionOn<D>>,
    /// MRs that the provider refused to close; their memory and budget are kept for ever.
    pub leaked: usize,
    /// What the provider said about the first of those.
    pub leak: Option<D::Error>,
}

impl<D: MrDomain> fmt::Debug for StillInUse<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl<D: MrDomain> fmt::Display for StillInUse<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MR(s) are still in use; poll their completion queues and try again", self.rest.len())?;
        if let Some(leak) = &self.leak {
            write!(f, "; {} could not be closed and stay for good: {leak}", self.leaked)?;
        }
        Ok(())
    }
}

impl<D: MrDomain> std::error::Error for StillInUse<D> {}

impl<D: MrDomain> Registered<D> {
    /// The plan that was carried out.
    #[must_use]
    pub const fn plan(&self) -> &Plan {
        &self.plan
    }

    /// How long it took.
    #[must_use]
    pub const fn timing(&self) -> &Timing {
        &self.timing
    }

    /// Number of MRs.
    #[must_use]
    pub fn mrs(&self) -> usize {
        self.regions.len()
    }

    /// The MRs of a chunk (by index in the [plan](Plan::chunks)) with the index of their NIC, in ascending order of NICs.
    pub fn regions(&self, chunk: usize) -> impl Iterator<Item = (usize, &D::Region)> {
        let range = match (self.starts.get(chunk), self.starts.get(chunk + 1)) {
            (Some(&start), Some(&end)) => start..end,
            _ => 0..0,
        };
        self.regions[range].iter().map(|on| (on.nic, &on.region))
    }

    /// The chunk that holds a byte of a buffer, with its index in the [plan](Plan::chunks).
    #[must_use]
    pub fn chunk_at(&self, buffer: usize, addr: u64) -> Option<(usize, &Chunk)> {
        let after = self.plan.chunks.partition_point(|chunk| (chunk.buffer, chunk.addr) <= (buffer, addr));
        let chunk = self.plan.chunks.get(after.checked_sub(1)?)?;
        (chunk.buffer == buffer && addr - chunk.addr < chunk.len_bytes).then_some((after - 1, chunk))
    }

    /// Unregisters, or refuses as far as operations in flight (or clones of region handles) still need MRs. Does not wait.
    ///
    /// # Errors
    /// [`StillInUse`] with what is left. The memory of what is left stays valid until it has been closed.
    pub fn unregister(self) -> Result<(), StillInUse<D>> {
        match close_all(self.regions) {
            None => Ok(()),
            Some(left) => Err(left),
        }
    }

    /// Unregisters, waiting up to `limit` for operations in flight. `between` is called between attempts: it should poll the
    /// completion queues, or block until something may have ended.
    ///
    /// # Errors
    /// [`StillInUse`] with what is left when the time is over.
    pub fn unregister_within(self, limit: Duration, mut between: impl FnMut()) -> Result<(), StillInUse<D>> {
        let deadline = Instant::now().checked_add(limit);
        let mut left = match self.unregister() {
            Ok(()) => return Ok(()),
            Err(left) => left,
        };
        while !left.rest.is_empty() && deadline.is_none_or(|deadline| Instant::now() < deadline) {
            between();
            left = match left.retry() {
                Ok(()) => return Ok(()),
                Err(left) => left,
            };
        }
        Err(left)
    }
}

impl<D: MrDomain> StillInUse<D> {
    /// MRs that are still in use.
    #[must_use]
    pub fn mrs(&self) -> usize {
        self.rest.len()
    }

    /// Tries again to close what is left.
    ///
    /// # Errors
    /// `self` with what is left now. When only leaks are left, trying again does not help any more.
    pub fn retry(self) -> Result<(), Self> {
        let (leaked, leak) = (self.leaked, self.leak);
        match close_all(self.rest) {
            None if leaked == 0 => Ok(()),
            None => Err(Self { rest: Vec::new(), leaked, leak }),
            Some(now) => Err(Self { rest: now.rest, leaked: leaked + now.leaked, leak: leak.or(now.leak) }),
        }
    }
}

/// Closes what can be closed; what cannot comes back.
pub(super) fn close_all<D: MrDomain>(
    regions: impl IntoIterator<Item = RegionOn<D>>,
) -> Option<StillInUse<D>> {
    let mut left = StillInUse { rest: Vec::new(), leaked: 0, leak: None };
    for RegionOn { nic, domain, region } in regions {
        match domain.close(region) {
            Ok(()) => {}
            Err(CloseError::InUse(region)) => left.rest.push(RegionOn { nic, domain, region }),
            Err(CloseError::Leaked(error)) => {
                left.leaked += 1;
                left.leak.get_or_insert(error);
            }
        }
    }
    (!left.rest.is_empty() || left.leaked > 0).then_some(left)
}
