//! What a pointer is.

use super::driver::{Cuda, CudaError, check};
use crate::buffer::{Buffer, Location, PageSize};
use crate::cache::Allocation;
use cudarc::driver::sys::{self, CUpointer_attribute as Attribute};
use std::ffi::c_void;
use std::os::fd::{FromRawFd, OwnedFd};

/// What kind of memory a pointer points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Host memory that CUDA does not know.
    Host,
    /// Host memory that CUDA has pinned.
    PinnedHost,
    /// Device memory.
    Device,
    /// Memory that moves between host and device. NICs cannot register it.
    Managed,
}

/// What CUDA says about a pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PointerInfo {
    /// Kind of memory.
    pub kind: Kind,
    /// The device, for device memory.
    pub device: Option<u16>,
    /// The allocation around the pointer, with CUDA's buffer id as its generation: ids are never used twice in a process.
    pub allocation: Option<Allocation>,
    /// Whether it is memory of the virtual memory management (`cuMemMap`), such as PyTorch's expandable segments. Then a neighbour may be
    /// another allocation, and a NIC needs a dmabuf.
    pub virtual_memory: bool,
    /// Whether NICs may access it directly.
    pub gpudirect: bool,
}

/// A stretch of device memory inside one allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub addr: u64,
    /// Length in bytes.
    pub len_bytes: u64,
    /// What it is.
    pub info: PointerInfo,
}

/// Device memory as a file.
#[derive(Debug)]
pub struct DmabufExport {
    /// The file. The memory stays allocated on the device as long as it is open.
    pub fd: OwnedFd,
    /// Where in it the memory begins.
    pub offset_bytes: u64,
}

impl PointerInfo {
    const HOST: Self =
        Self { kind: Kind::Host, device: None, allocation: None, virtual_memory: false, gpudirect: false };

    /// Pages in which a NIC will see this memory: 64 KiB, the granule that the driver maps for peers; 2 MiB for memory of the virtual
    /// memory management, which is allocated in that granularity.
    #[must_use]
    pub const fn page(&self) -> PageSize {
        if self.virtual_memory { PageSize::M2 } else { PageSize::K64 }
    }
}

impl Segment {
    /// The segment for the planner.
    #[must_use]
    pub fn buffer(&self) -> Buffer {
        let location = self.info.device.map_or(Location::Host, Location::Gpu);
        Buffer::new(self.addr, self.len_bytes, self.info.page(), location)
    }
}

impl Cuda {
    /// What CUDA says about an address. Any address may be asked about; a few µs.
    ///
    /// # Errors
    /// [`CudaError::Call`].
    pub fn describe(&self, addr: u64) -> Result<PointerInfo, CudaError> {
        // Eight zeroed bytes for each answer, so that narrower ones read the same (little-endian machines only have CUDA).
        let mut answers = [0_u64; 7];
        let mut attributes = [
            Attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE,
            Attribute::CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
            Attribute::CU_POINTER_ATTRIBUTE_IS_MANAGED,
            Attribute::CU_POINTER_ATTRIBUTE_RANGE_START_ADDR,
            Attribute::CU_POINTER_ATTRIBUTE_RANGE_SIZE,
            Attribute::CU_POINTER_ATTRIBUTE_BUFFER_ID,
            Attribute::CU_POINTER_ATTRIBUTE_IS_GPU_DIRECT_RDMA_CAPABLE,
        ];
        let mut places = answers.each_mut().map(|answer| std::ptr::from_mut(answer).cast::<c_void>());
        // SAFETY: as many attributes as places; each place has room for the widest answer (a pointer or 64 bits). The address is only
        // looked up. For one that CUDA does not know the call succeeds and answers zero.
        let status = unsafe {
            let count = attributes.len() as u32;
            sys::cuPointerGetAttributes(count, attributes.as_mut_ptr(), places.as_mut_ptr(), addr)
        };
        check("cuPointerGetAttributes", status)?;
        let [memory_type, ordinal, managed, start, len_bytes, generation, gpudirect] = answers;
        let kind = match (memory_type, managed) {
            (0, _) => return Ok(PointerInfo::HOST),
            (_, 1..) => Kind::Managed,
            (1, _) => Kind::PinnedHost,
            _ => Kind::Device,
        };
        let allocation = (len_bytes > 0).then_some(Allocation { addr: start, len_bytes, generation });
        let device = (kind == Kind::Device).then(|| u16::try_from(ordinal as i32).ok()).flatten();
        let virtual_memory = kind == Kind::Device && is_virtual(addr);
        Ok(PointerInfo { kind, device, allocation, virtual_memory, gpudirect: gpudirect != 0 })
    }

    /// Cuts a range of device memory where allocations meet.
    ///
    /// # Errors
    /// [`CudaError::NotDeviceMemory`] if not all of it is device memory; [`CudaError::Call`].
    pub fn segments(&self, addr: u64, len_bytes: u64) -> Result<Vec<Segment>, CudaError> {
        let not = |what| CudaError::NotDeviceMemory { addr, len_bytes, what };
        let end = addr.checked_add(len_bytes).ok_or(not("it reaches past 2^64"))?;
        let mut segments = Vec::new();
        let mut at = addr;
        while at < end {
            let info = self.describe(at)?;
            let allocation = info.allocation.filter(|_| info.kind == Kind::Device);
            let Some(allocation) = allocation else {
                return Err(not("check address and length, or whether it has been freed"));
            };
            let stop = allocation.addr.saturating_add(allocation.len_bytes).min(end);
            if stop <= at {
                return Err(not("CUDA's answers about it contradict each other"));
            }
            segments.push(Segment { addr: at, len_bytes: stop - at, info });
            at = stop;
        }
        Ok(segments)
    }

    /// Exports device memory inside one allocation as a dmabuf, page by page around it.
    ///
    /// # Errors
    /// [`CudaError::NoDmabuf`] where device or driver cannot; [`CudaError::NotDeviceMemory`]; [`CudaError::Call`].
    pub fn export_dmabuf(&self, addr: u64, len_bytes: u64) -> Result<DmabufExport, CudaError> {
        let not = |what| CudaError::NotDeviceMemory { addr, len_bytes, what };
        let info = self.describe(addr)?;
        let ordinal = info.device.ok_or(not("check the address"))?;
        if !self.device(ordinal)?.dmabuf {
            return Err(CudaError::NoDmabuf { ordinal });
        }
        let page = rustix::param::page_size() as u64;
        let start = addr / page * page;
        let end = addr.checked_add(len_bytes).and_then(|end| end.checked_next_multiple_of(page));
        let end = end.filter(|_| len_bytes > 0).ok_or(not("it is no range"))?;
        let _context = self.enter(ordinal)?;
        let mut fd: i32 = -1;
        // SAFETY: the handle is written to a live integer, which is what this type of handle is.
        let status = unsafe {
            sys::cuMemGetHandleForAddressRange(
                std::ptr::from_mut(&mut fd).cast(),
                start,
                (end - start) as usize,
                sys::CUmemRangeHandleType::CU_MEM_RANGE_HANDLE_TYPE_DMA_BUF_FD,
                0,
            )
        };
        check("cuMemGetHandleForAddressRange", status)?;
        if fd < 0 {
            return Err(not("the driver gave no file for it"));
        }
        // SAFETY: the driver has just opened it for us, and nobody else knows of it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Ok(DmabufExport { fd, offset_bytes: addr - start })
    }
}

/// Whether `cuMemMap` put the memory there: only then the driver has a handle of its allocation to give.
fn is_virtual(addr: u64) -> bool {
    let mut handle = 0;
    // SAFETY: the pointer is to a live handle; the address is only looked up. A handle that we get is ours to release.
    unsafe {
        let status = sys::cuMemRetainAllocationHandle(&mut handle, addr as *mut c_void);
        if status != sys::CUresult::CUDA_SUCCESS {
            return false;
        }
        let _ = sys::cuMemRelease(handle);
    }
    true
}

/// CUDA's id of the allocation around an address; `None` for memory that it does not know. One call, some 100 ns.
pub(super) fn buffer_id(addr: u64) -> Option<u64> {
    let mut id = 0_u64;
    // SAFETY: this attribute is 64 bits wide; the address is only looked up.
    let status = unsafe {
        let place = std::ptr::from_mut(&mut id).cast();
        sys::cuPointerGetAttribute(place, Attribute::CU_POINTER_ATTRIBUTE_BUFFER_ID, addr)
    };
    (status == sys::CUresult::CUDA_SUCCESS && id != 0).then_some(id)
}
