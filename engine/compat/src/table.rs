//! Which addresses are registered.

use std::collections::BTreeMap;

use crate::fault::Fault;

/// Ranges of addresses that do not overlap, each with a value once its registration is through.
///
/// ```
/// let mut table = weft_compat::Table::default();
/// table.reserve(4096, 100)?;
/// table.fill(4096, "region");
/// assert_eq!(table.reserve(4100, 1).unwrap_err().code(), -7);
/// assert_eq!(table.take(4096)?, "region");
/// assert_eq!(table.take(4096).unwrap_err().code(), -3);
/// # Ok::<(), weft_compat::Fault>(())
/// ```
#[derive(Debug)]
pub struct Table<T> {
    entries: BTreeMap<u64, Entry<T>>,
}

#[derive(Debug)]
struct Entry<T> {
    len: u64,
    value: Option<T>,
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { entries: BTreeMap::new() }
    }
}

impl<T> Table<T> {
    /// Claims a range; [`fill`](Self::fill) or [`release`](Self::release) follows.
    ///
    /// # Errors
    /// [`Fault::Argument`] for no bytes or a range that wraps around, [`Fault::Overlap`].
    pub fn reserve(&mut self, addr: u64, len: u64) -> Result<(), Fault> {
        let end = addr.checked_add(len).filter(|_| len > 0 && addr > 0);
        let Some(end) = end else {
            return Err(Fault::Argument(format!("{addr:#x}+{len:#x} is no range of memory")));
        };
        // They do not overlap each other, so only the last one that begins before the end can reach into it.
        if let Some((&other, entry)) = self.entries.range(..end).next_back()
            && other + entry.len > addr
        {
            return Err(Fault::Overlap { addr, len, other, other_len: entry.len });
        }
        self.entries.insert(addr, Entry { len, value: None });
        Ok(())
    }

    /// The registration of a claimed range is through.
    pub fn fill(&mut self, addr: u64, value: T) {
        if let Some(entry) = self.entries.get_mut(&addr) {
            entry.value = Some(value);
        }
    }

    /// Gives a claimed range back.
    pub fn release(&mut self, addr: u64) {
        self.entries.remove(&addr);
    }

    /// Removes a range by its first address.
    ///
    /// # Errors
    /// [`Fault::NotRegistered`], also while its registration is not through.
    pub fn take(&mut self, addr: u64) -> Result<T, Fault> {
        let value = self.entries.get_mut(&addr).and_then(|entry| entry.value.take());
        let value = value.ok_or(Fault::NotRegistered(addr))?;
        self.entries.remove(&addr);
        Ok(value)
    }

    /// Whether a filled range begins here.
    pub fn holds(&self, addr: u64) -> bool {
        self.entries.get(&addr).is_some_and(|entry| entry.value.is_some())
    }

    /// The value of the range that holds `addr..addr + len` wholly.
    pub fn around(&self, addr: u64, len: u64) -> Option<&T> {
        let (&start, entry) = self.entries.range(..=addr).next_back()?;
        let inside = (addr - start).checked_add(len)? <= entry.len;
        entry.value.as_ref().filter(|_| inside)
    }

    /// Number of ranges, claimed ones included.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}
