//! The kernel's calls about page sizes and page faults: this crate's seam for them.
//!
//! None of the calls reads or changes the contents of any memory but the structures that are passed to it.

use super::{Mapping, PagesError, assemble, base_page};
use crate::buffer::{PageRun, PageSize};
use rustix::ioctl;
use std::fs::File;
use std::io;

/// `struct procmap_query` of linux/fs.h (6.11).
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    query_flags: u64,
    query_addr: u64,
    vma_start: u64,
    vma_end: u64,
    vma_flags: u64,
    vma_page_size: u64,
    vma_offset: u64,
    inode: u64,
    dev_major: u32,
    dev_minor: u32,
    vma_name_size: u32,
    build_id_size: u32,
    vma_name_addr: u64,
    build_id_addr: u64,
}

/// The mapping at the address or the next one after it.
const PROCMAP_QUERY_COVERING_OR_NEXT_VMA: u64 = 0x10;
const PROCMAP_QUERY: ioctl::Opcode = ioctl::opcode::read_write::<ProcmapQuery>(b'f', 17);

/// `struct pm_scan_arg` of linux/fs.h (6.7).
#[repr(C)]
#[derive(Default)]
struct PmScan {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `struct page_region` of linux/fs.h.
#[repr(C)]
#[derive(Default, Clone, Copy)]
struct PageRegion {
    start: u64,
    end: u64,
    categories: u64,
}

const PAGE_IS_HUGE: u64 = 1 << 6;
const PAGEMAP_SCAN: ioctl::Opcode = ioctl::opcode::read_write::<PmScan>(b'f', 16);

/// An ioctl that returns a count as its result.
struct Counting<'a, const OPCODE: ioctl::Opcode, T>(&'a mut T);

// SAFETY: the opcode belongs to the structure (both are private to this module and paired above); the pointer is to that
// structure, which the kernel may change.
unsafe impl<const OPCODE: ioctl::Opcode, T> ioctl::Ioctl for Counting<'_, OPCODE, T> {
    type Output = usize;
    const IS_MUTATING: bool = true;
    fn opcode(&self) -> ioctl::Opcode {
        OPCODE
    }
    fn as_ptr(&mut self) -> *mut core::ffi::c_void {
        std::ptr::from_mut(self.0).cast()
    }
    unsafe fn output_from_ptr(
        out: ioctl::IoctlOutput,
        _: *mut core::ffi::c_void,
    ) -> rustix::io::Result<usize> {
        Ok(usize::try_from(out).unwrap_or(0))
    }
}

/// The page runs of a range, from the kernel's own tables.
pub(super) fn runs(addr: u64, end: u64) -> Result<Vec<PageRun>, PagesError> {
    let mappings = mappings(addr, end)?;
    // Where every mapping has large pages of its own there is nothing to scan for.
    let base = base_page();
    let huge =
        if mappings.iter().any(|mapping| mapping.page == base) { huge_areas(addr, end)? } else { Vec::new() };
    assemble(addr, end, &mappings, &huge, pmd_size())
}

fn mappings(addr: u64, end: u64) -> Result<Vec<Mapping>, PagesError> {
    let kernel = |source: io::Error| PagesError::Kernel { what: "PROCMAP_QUERY", source };
    let maps = File::open("/proc/self/maps").map_err(kernel)?;
    let mut mappings = Vec::new();
    let mut at = addr;
    while at < end {
        let mut query = ProcmapQuery {
            size: size_of::<ProcmapQuery>() as u64,
            query_flags: PROCMAP_QUERY_COVERING_OR_NEXT_VMA,
            query_addr: at,
            ..ProcmapQuery::default()
        };
        // SAFETY: the structure is the one that this call takes, with its size in it; no buffers for names are given, so the
        // kernel writes nothing else.
        let answer = unsafe { ioctl::ioctl(&maps, Counting::<PROCMAP_QUERY, _>(&mut query)) };
        match answer {
            Ok(_) => {}
            Err(rustix::io::Errno::NOENT) => break, // Nothing is mapped from here on.
            Err(error) => return Err(kernel(error.into())),
        }
        if query.vma_end <= at {
            break; // Not possible, and must not become an endless loop.
        }
        let page = PageSize::new(query.vma_page_size).unwrap_or_else(base_page);
        mappings.push(Mapping { start: query.vma_start, end: query.vma_end, page });
        at = query.vma_end;
    }
    Ok(mappings)
}

/// Areas that are mapped by huge pages.
fn huge_areas(addr: u64, end: u64) -> Result<Vec<(u64, u64)>, PagesError> {
    let kernel = |source: io::Error| PagesError::Kernel { what: "PAGEMAP_SCAN", source };
    let pagemap = File::open("/proc/self/pagemap").map_err(kernel)?;
    let page = base_page().bytes();
    let (mut start, end) = (addr / page * page, end.next_multiple_of(page));
    let mut areas = Vec::new();
    let mut found = vec![PageRegion::default(); 1024];
    while start < end {
        let mut scan = PmScan {
            size: size_of::<PmScan>() as u64,
            start,
            end,
            vec: found.as_mut_ptr() as u64,
            vec_len: found.len() as u64,
            category_mask: PAGE_IS_HUGE,
            return_mask: PAGE_IS_HUGE,
            ..PmScan::default()
        };
        // SAFETY: the structure is the one that this call takes, with its size in it, and `vec` points to `vec_len` regions that
        // live longer than the call.
        let answer = unsafe { ioctl::ioctl(&pagemap, Counting::<PAGEMAP_SCAN, _>(&mut scan)) };
        let count = answer.map_err(|error| kernel(error.into()))?;
        areas.extend(found.iter().take(count).map(|region| (region.start, region.end)));
        if scan.walk_end <= start {
            break; // Not possible, and must not become an endless loop.
        }
        start = scan.walk_end;
    }
    Ok(areas)
}

/// The size of transparent huge pages.
fn pmd_size() -> PageSize {
    std::fs::read_to_string("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size")
        .ok()
        .and_then(|text| PageSize::new(text.trim().parse().ok()?))
        .unwrap_or(PageSize::M2)
}

/// Has the kernel fill `[start, end)` with pages that can be written, and leaves what is there as it is.
pub(super) fn populate(start: u64, end: u64) -> rustix::io::Result<()> {
    let len = usize::try_from(end - start).map_err(|_| rustix::io::Errno::NOMEM)?;
    // SAFETY: MADV_POPULATE_WRITE changes no byte of any memory: it does what a write of the bytes that are there would do. For
    // addresses that are not mapped or not writable it returns an error.
    unsafe {
        rustix::mm::madvise(start as *mut core::ffi::c_void, len, rustix::mm::Advice::LinuxPopulateWrite)
    }
}
