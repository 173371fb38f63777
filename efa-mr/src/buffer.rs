//! What is to be registered: a range of memory, where it lies, and how large its pages are.

use std::fmt;
use std::str::FromStr;

/// The size of the pages that back a range of memory: a power of two of at least 512 bytes.
///
/// It is the unit in which a card's translation table is paid for: an MR costs one page table entry (PTE) for each page
/// that it touches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageSize {
    shift: u8,
}

impl PageSize {
    /// 4 KiB, the base page of x86-64 and of most arm64 kernels.
    pub const K4: Self = Self { shift: 12 };
    /// 64 KiB, the base page of some arm64 kernels and the granule in which NVIDIA drivers hand out pages of device
    /// memory to peers (`GPU_PAGE_SIZE` of the open kernel modules).
    pub const K64: Self = Self { shift: 16 };
    /// 2 MiB, the ordinary huge page, and the granularity of CUDA's virtual memory management.
    pub const M2: Self = Self { shift: 21 };
    /// 1 GiB, the gigantic huge page.
    pub const G1: Self = Self { shift: 30 };

    /// A page size of `bytes`, or `None` if that is not a power of two between 512 bytes and 1 TiB.
    #[must_use]
    pub const fn new(bytes: u64) -> Option<Self> {
        if bytes.is_power_of_two() && bytes >= 512 && bytes <= 1 << 40 {
            Some(Self { shift: bytes.trailing_zeros() as u8 })
        } else {
            None
        }
    }

    /// Bytes in one page.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        1 << self.shift
    }

    /// The base-two logarithm of [`bytes`](Self::bytes).
    #[must_use]
    pub const fn shift(self) -> u32 {
        self.shift as u32
    }

    /// How many pages of this size the range touches; exact for unaligned ranges, zero for an empty one.
    ///
    /// A range that would reach past 2^64 is counted up to 2^64.
    #[must_use]
    pub const fn pages_touched(self, addr: u64, len_bytes: u64) -> u64 {
        if len_bytes == 0 {
            return 0;
        }
        let last = addr.saturating_add(len_bytes - 1);
        (last >> self.shift) - (addr >> self.shift) + 1
    }
}

impl fmt::Display for PageSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&crate::units::bytes(self.bytes()))
    }
}

/// Where memory lies, in the granularity in which distances to NICs are known.
///
/// The text form is the one that Mooncake's users already write: `cpu:0`, `cuda:3`, and `*` for "host memory somewhere".
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Location {
    /// Host memory of which the NUMA node is unknown, or which is spread over several.
    Host,
    /// Host memory on a NUMA node.
    Numa(u16),
    /// Memory of the GPU with this ordinal (CUDA's numbering, or PCI order when CUDA is absent).
    Gpu(u16),
}

impl Location {
    /// Whether this is memory of a device, not of the host.
    #[must_use]
    pub const fn is_device(self) -> bool {
        matches!(self, Self::Gpu(_))
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host => f.pad("*"),
            Self::Numa(node) => f.pad(&format!("cpu:{node}")),
            Self::Gpu(gpu) => f.pad(&format!("cuda:{gpu}")),
        }
    }
}

/// A text that names no location.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a memory location; write `*`, `cpu:<NUMA node>` or `cuda:<GPU>`")]
pub struct ParseLocationError {
    text: String,
}

impl FromStr for Location {
    type Err = ParseLocationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || ParseLocationError { text: text.to_owned() };
        let number = |digits: &str| {
            if digits.bytes().all(|b| b.is_ascii_digit()) {
                digits.parse().map_err(|_| bad())
            } else {
                Err(bad())
            }
        };
        match text.split_once(':') {
            None if text == "*" || text == "cpu" => Ok(Self::Host),
            Some(("cpu", node)) => Ok(Self::Numa(number(node)?)),
            Some(("cuda" | "gpu", gpu)) => Ok(Self::Gpu(number(gpu)?)),
            _ => Err(bad()),
        }
    }
}

/// A stretch of a buffer that is backed by pages of one size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageRun {
    /// First byte.
    pub addr: u64,
    /// Length in bytes, not zero.
    pub len_bytes: u64,
    /// The size of every page in the run.
    pub page: PageSize,
}

impl PageRun {
    /// Pages that the run touches.
    #[must_use]
    pub const fn pages(&self) -> u64 {
        self.page.pages_touched(self.addr, self.len_bytes)
    }
}

/// A range of memory that somebody wants to transfer from or to.
///
/// Just numbers: a `Buffer` owns nothing and promises nothing about the memory.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Buffer {
    /// First byte.
    pub addr: u64,
    /// Length in bytes. `addr + len_bytes` may be exactly 2^64, not more.
    pub len_bytes: u64,
    /// Where the memory lies.
    pub location: Location,
    /// Page sizes, as [`Pages::Uniform`] or as the kernel reports them.
    pub pages: Pages,
}

/// The page sizes of a buffer.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Pages {
    /// One size throughout.
    Uniform(PageSize),
    /// Several: runs in ascending order which cover the buffer exactly and meet at boundaries of the larger page.
    ///
    /// Transparent huge pages give such buffers all the time: 2 MiB in the middle, 4 KiB at the ends and wherever the
    /// kernel found no free huge page. Cutting there matters, because a card translates an MR in the *smallest* page
    /// that occurs in it.
    Runs(Vec<PageRun>),
}

impl Buffer {
    /// A buffer with pages of one size.
    #[must_use]
    pub const fn new(addr: u64, len_bytes: u64, page: PageSize, location: Location) -> Self {
        Self { addr, len_bytes, location, pages: Pages::Uniform(page) }
    }

    /// Host memory on an unknown NUMA node.
    #[must_use]
    pub const fn host(addr: u64, len_bytes: u64, page: PageSize) -> Self {
        Self::new(addr, len_bytes, page, Location::Host)
    }

    /// The address of the last byte; `None` for an empty buffer and for one that reaches past 2^64.
    #[must_use]
    pub const fn last(&self) -> Option<u64> {
        if self.len_bytes == 0 { None } else { self.addr.checked_add(self.len_bytes - 1) }
    }

    /// The runs of equal page size, in ascending order.
    pub fn runs(&self) -> impl Iterator<Item = PageRun> + '_ {
        let (uniform, runs) = match &self.pages {
            Pages::Uniform(page) => {
                (Some(PageRun { addr: self.addr, len_bytes: self.len_bytes, page: *page }), &[][..])
            }
            Pages::Runs(runs) => (None, runs.as_slice()),
        };
        uniform.into_iter().chain(runs.iter().copied())
    }

    /// What one NIC pays for the whole buffer, in page table entries.
    #[must_use]
    pub fn page_count(&self) -> u64 {
        self.runs().fold(0, |sum, run| sum.saturating_add(run.pages()))
    }

    /// Whether the page runs (if any) cover the buffer exactly and are cut where pages may be cut.
    pub(crate) fn runs_are_sound(&self) -> bool {
        let Pages::Runs(runs) = &self.pages else { return true };
        let mut next = Some(self.addr);
        let mut before: Option<PageSize> = None;
        for run in runs {
            if next != Some(run.addr) || run.len_bytes == 0 {
                return false;
            }
            if let Some(before) = before
                && run.addr % before.max(run.page).bytes() != 0
            {
                return false;
            }
            before = Some(run.page);
            next = run.addr.checked_add(run.len_bytes);
            if next.is_none() && run.addr.checked_add(run.len_bytes - 1) != Some(u64::MAX) {
                return false;
            }
        }
        // The last run ends where the buffer ends, which may be exactly 2^64.
        !runs.is_empty() && next == self.addr.checked_add(self.len_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_by_what_is_touched() {
        let page = PageSize::K4;
        assert_eq!(page.pages_touched(0, 0), 0);
        assert_eq!(page.pages_touched(4095, 1), 1);
        assert_eq!(page.pages_touched(4095, 2), 2);
        assert_eq!(page.pages_touched(4096, 4096), 1);
        assert_eq!(page.pages_touched(1, 4096), 2);
        assert_eq!(page.pages_touched(u64::MAX, 1), 1);
        assert_eq!(page.pages_touched(0, u64::MAX), 1 << 52);
        assert_eq!(PageSize::G1.pages_touched((1 << 30) - 1, 2), 2);
    }

    #[test]
    fn page_sizes_are_powers_of_two() {
        assert_eq!(PageSize::new(4096), Some(PageSize::K4));
        assert_eq!(PageSize::new(0), None);
        assert_eq!(PageSize::new(4097), None);
        assert_eq!(PageSize::new(1 << 63), None);
    }

    #[test]
    fn locations_read_back_as_written() {
        for location in [Location::Host, Location::Numa(0), Location::Numa(65535), Location::Gpu(7)] {
            assert_eq!(location.to_string().parse(), Ok(location));
        }
        for bad in ["", "cpu:", "cuda:-1", "cuda:+1", "cpu:65536", "cuda", "nic:0", "*:1"] {
            assert!(bad.parse::<Location>().is_err(), "{bad}");
        }
    }

    #[test]
    fn runs_must_cover_the_buffer_and_meet_at_page_boundaries() {
        let run = |addr, len_bytes, page| PageRun { addr, len_bytes, page };
        let buffer = |runs| Buffer {
            addr: 0x1000,
            len_bytes: 0x3f_f000,
            location: Location::Host,
            pages: Pages::Runs(runs),
        };
        let good =
            buffer(vec![run(0x1000, 0x1f_f000, PageSize::K4), run(0x20_0000, 0x20_0000, PageSize::M2)]);
        assert!(good.runs_are_sound());
        assert_eq!(good.page_count(), 511 + 1);
        assert!(!buffer(vec![]).runs_are_sound());
        assert!(!buffer(vec![run(0x1000, 0x3f_f001, PageSize::K4)]).runs_are_sound(), "too long");
        assert!(!buffer(vec![run(0x1000, 0x1000, PageSize::K4)]).runs_are_sound(), "too short");
        assert!(
            !buffer(vec![run(0x1000, 0xf_f000, PageSize::K4), run(0x10_0000, 0x30_0000, PageSize::M2)])
                .runs_are_sound(),
            "cut inside a huge page"
        );
        let top = Buffer {
            addr: u64::MAX - 0xfff,
            len_bytes: 0x1000,
            location: Location::Host,
            pages: Pages::Runs(vec![run(u64::MAX - 0xfff, 0x1000, PageSize::K4)]),
        };
        assert!(top.runs_are_sound());
    }
}
