//! Page-aligned memory straight from the kernel: anonymous, huge pages, files.

use core::ptr::NonNull;
use std::io;
use std::os::fd::AsFd;

use rustix::mm::{MapFlags, ProtFlags};

use super::{Memory, SharedMemory};

/// The pages that an anonymous [`Mapping`] is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum PageKind {
    /// The kernel's ordinary pages (4 KiB on x86-64).
    Small,
    /// 2 MiB pages out of the reserve `vm.nr_hugepages`.
    Huge2M,
    /// 1 GiB pages out of the reserve.
    Huge1G,
}

impl PageKind {
    /// Bytes in one page. Small pages are taken to be the smallest that the kernel has.
    pub fn bytes(self) -> usize {
        match self {
            PageKind::Small => small_page(),
            PageKind::Huge2M => 2 << 20,
            PageKind::Huge1G => 1 << 30,
        }
    }

    fn flags(self) -> MapFlags {
        match self {
            PageKind::Small => MapFlags::empty(),
            PageKind::Huge2M => MapFlags::HUGETLB | MapFlags::HUGE_2MB,
            PageKind::Huge1G => MapFlags::HUGETLB | MapFlags::HUGE_1GB,
        }
    }
}

/// Memory from `mmap`, unmapped when dropped.
///
/// Unlike a `Vec<u8>` it never lends its bytes, so an `Arc<Mapping>` can be registered with several domains at once.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    len_bytes: usize,
    mapped_bytes: usize,
    writable: bool,
}

impl Mapping {
    /// At least `len_bytes` zeroed bytes, of which `len_bytes` count.
    ///
    /// # Errors
    ///
    /// What `mmap` says; `ENOMEM` when the reserve of huge pages is used up (`sysctl vm.nr_hugepages`).
    pub fn anonymous(len_bytes: usize, pages: PageKind) -> io::Result<Self> {
        let mapped_bytes = round_up(len_bytes, pages.bytes())?;
        // SAFETY: a new mapping at an address of the kernel's choice touches nothing that exists.
        let address = unsafe {
            rustix::mm::mmap_anonymous(
                core::ptr::null_mut(),
                mapped_bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::PRIVATE | pages.flags(),
            )
        }?;
        Self::from_kernel(address, len_bytes, mapped_bytes, true)
    }

    /// `len_bytes` bytes of a file (or memfd) from `offset_bytes` on, shared with everyone else who maps it.
    ///
    /// The file has to stay at least that long: touching pages past the end of a file raises `SIGBUS`, for the processor and
    /// for software providers alike. That is why this is `unsafe`.
    ///
    /// # Safety
    ///
    /// Nobody makes the file shorter while the mapping exists.
    ///
    /// # Errors
    ///
    /// What `mmap` says: `EACCES` if the file is not open for what is asked, `EINVAL` for an offset that is not a multiple of
    /// the page size.
    pub unsafe fn file(
        file: impl AsFd,
        offset_bytes: u64,
        len_bytes: usize,
        writable: bool,
    ) -> io::Result<Self> {
        let mapped_bytes = round_up(len_bytes, small_page())?;
        let protection = if writable { ProtFlags::READ | ProtFlags::WRITE } else { ProtFlags::READ };
        // SAFETY: a new mapping at an address of the kernel's choice; the caller answers for the file.
        let address = unsafe {
            rustix::mm::mmap(
                core::ptr::null_mut(),
                mapped_bytes,
                protection,
                MapFlags::SHARED,
                file,
                offset_bytes,
            )
        }?;
        Self::from_kernel(address, len_bytes, mapped_bytes, writable)
    }

    fn from_kernel(
        address: *mut core::ffi::c_void,
        len_bytes: usize,
        mapped_bytes: usize,
        writable: bool,
    ) -> io::Result<Self> {
        let address = NonNull::new(address.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Mapping { address, len_bytes, mapped_bytes, writable })
    }
}

/// Bytes in one of the kernel's ordinary pages.
fn small_page() -> usize {
    // SAFETY: asks for a number. 4 KiB if the kernel does not say, which it always does.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}

/// `len` rounded up to whole pages; an empty or impossible length is refused as `mmap` would.
fn round_up(len: usize, page: usize) -> io::Result<usize> {
    match len.checked_next_multiple_of(page) {
        Some(rounded) if len > 0 => Ok(rounded),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the range came from `mmap` with this length and nobody refers to it any more. An error would mean that the
        // range is not ours, which cannot be; there is nothing to do about it either.
        let _ = unsafe { rustix::mm::munmap(self.address.as_ptr().cast(), self.mapped_bytes) };
    }
}

// SAFETY: the mapping belongs to this value alone and no method gives access to the bytes.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

// SAFETY: mapped until dropped, at a constant address; nothing here lends the bytes.
unsafe impl Memory for Mapping {
    fn address(&self) -> *mut u8 {
        self.address.as_ptr()
    }
    fn len_bytes(&self) -> usize {
        self.len_bytes
    }
    fn writable(&self) -> bool {
        self.writable
    }
}

// SAFETY: no method lends the bytes.
unsafe impl SharedMemory for Mapping {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_rounded_to_pages_but_reported_as_asked() {
        let mapping = Mapping::anonymous(100, PageKind::Small).unwrap();
        assert_eq!(mapping.len_bytes(), 100);
        assert_eq!(mapping.address() as usize % PageKind::Small.bytes(), 0);
    }

    #[test]
    fn impossible_lengths_are_errors() {
        assert!(Mapping::anonymous(0, PageKind::Small).is_err());
        assert!(Mapping::anonymous(usize::MAX, PageKind::Huge1G).is_err());
    }
}
