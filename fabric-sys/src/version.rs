//! Version numbers as libfabric packs them.

use core::fmt;

/// A libfabric API version: what `fi_version()` returns and `fi_getinfo` takes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u32);

/// Packs a version as the C macro `FI_VERSION` does.
#[must_use]
#[allow(non_snake_case)] // as in C
pub const fn FI_VERSION(major: u16, minor: u16) -> u32 {
    ((major as u32) << 16) | minor as u32
}

impl Version {
    /// Version `major.minor`.
    #[must_use]
    pub const fn new(major: u16, minor: u16) -> Self {
        Self(FI_VERSION(major, minor))
    }

    /// From the packed form.
    #[must_use]
    pub const fn from_raw(packed: u32) -> Self {
        Self(packed)
    }

    /// The packed form.
    #[must_use]
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// The part before the point.
    #[must_use]
    pub const fn major(self) -> u32 {
        self.0 >> 16
    }

    /// The part behind the point.
    #[must_use]
    pub const fn minor(self) -> u32 {
        self.0 & 0xffff
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major(), self.minor())
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
